//! COPY and ADD as instructions.

use std::io::Read;
use std::sync::Arc;

use lamina_layers::digest::{DiffId, Digest};
use lamina_layers::store::{Store, Transaction};
use lamina_layers::tar::{ImportOptions, is_archive, stage_layer};

use super::containerfile::{Copy, CopySource};
use super::copy::{Copier, Dest};
use super::error::{BuildError, BuildResult, Problem};
use super::flags::Flags;
use super::image::short;
use super::layer;
use super::pattern::is_pattern;
use super::remote::{Remote, is_remote};
use super::source::{Holds, Image, Node, Objects, Tree};
use super::stage::{Stage, hold, nop};
use super::words::Expander;
use super::{Builder, absolute};
use crate::attr::Kind;

/// One thing to copy, found.
enum Item<'a> {
    /// A file or directory.
    Node(Node),
    /// An archive that is unpacked.
    Archive(Tree<'a>, Node),
    /// A file of the Containerfile.
    Document(String, String),
    /// A file from the network.
    Remote(Remote),
}

impl<'a> Builder<'a> {
    pub(super) fn copy(
        &mut self,
        stage: &mut Stage,
        copy: &Copy,
        is_add: bool,
        expander: &Expander<'_>,
    ) -> BuildResult<()> {
        let mut flags = Flags::new(&copy.flags);
        let from = if is_add { None } else { flags.take("from")? };
        let from = from.map(|from| expander.word(&from)).transpose()?;
        let owner = flags
            .take("chown")?
            .map(|text| expander.word(&text))
            .transpose()?;
        let mode = flags
            .take("chmod")?
            .map(|text| expander.word(&text))
            .transpose()?;
        let checksum = if is_add {
            flags.take("checksum")?
        } else {
            None
        };
        let checksum = checksum
            .map(|text| parse_checksum(&expander.word(&text)?))
            .transpose()?;
        // What is copied is always a layer of its own.
        flags.take_switch("link");
        flags.end()?;
        let owner = match owner {
            Some(owner) => Some(stage.root.accounts(self.around.store)?.owner(&owner)?),
            None => None,
        };
        let mode = mode.map(|mode| parse_mode(&mode)).transpose()?;
        let keeps_owner = from.is_some();
        let how = self.how(owner.or((!keeps_owner).then_some((0, 0))), mode);
        let unpacked = self.how(None, None);

        let txn = Transaction::begin(self.around.store)?;
        let tree = self.tree(from.as_deref())?;
        let mut items = Vec::new();
        let mut nothing = None;
        let checksum = checksum.as_ref();
        if checksum.is_some() && copy.sources.len() != 1 {
            return Err(Problem::Syntax("--checksum is of one source".into()).into());
        }
        for source in &copy.sources {
            if let CopySource::Path(path) = source
                && is_add
            {
                let url = expander.word(path)?;
                if is_remote(&url) {
                    let remote = self.download(&txn, &url, checksum)?;
                    items.push(Item::Remote(remote));
                    continue;
                }
            }
            if checksum.is_some() {
                return Err(Problem::Syntax("--checksum is of a URL".into()).into());
            }
            let missing = self.find(&txn, tree.as_ref(), source, is_add, expander, &mut items)?;
            nothing = nothing.or(missing);
        }
        if let Some(missing) = nothing.filter(|_| items.is_empty()) {
            return Err(missing);
        }
        let path = absolute(&expander.word(&copy.dest)?, stage.state.workdir());
        let dest = Dest::of(&stage.root, &path, items.len())?;
        let root = &stage.root;
        let info = layer::stage(&txn, "what is copied", |out| {
            let mut copier = Copier::new(out, root, &how);
            for item in &items {
                match (item, &tree) {
                    (Item::Node(node), Some(tree)) => copier.copy(tree, node, &dest)?,
                    (Item::Archive(tree, node), _) => {
                        copier.unpack(tree, node, &dest, &unpacked)?;
                    }
                    (Item::Document(name, text), _) => copier.document(name, text, &dest)?,
                    (Item::Remote(remote), _) => {
                        if dest.is_dir && remote.name.is_empty() {
                            return Err(Problem::NoName(remote.url.clone()).into());
                        }
                        copier.file(&remote.name, remote.contents()?, &dest)?;
                    }
                    (Item::Node(_), None) => {}
                }
            }
            Ok(())
        })?;
        let keyword = if is_add { "ADD" } else { "COPY" };
        let digest = layer::content_digest(&txn.layer_index(&info.diff_id)?);
        let what = if items
            .iter()
            .all(|item| matches!(item, Item::Node(node) if node.kind != Kind::Dir))
        {
            "file"
        } else {
            "multi"
        };
        let created_by = nop(&format!("{keyword} {what}:{} in {path}", digest.hex()));
        drop(items);
        self.finish_layer(stage, txn, &info.diff_id, "copy", &created_by)
    }

    /// What is copied from. Nothing, if there is no context: a here-document needs none.
    fn tree(&self, from: Option<&str>) -> BuildResult<Option<Tree<'a>>> {
        let Some(from) = from else {
            return Ok(self.options.context.as_ref().map(Tree::Context));
        };
        let (name, layers) = self.named(from)?;
        self.image_tree(name, &layers).map(Some)
    }

    /// The stage or image that `from` names: how messages call it, and its layers.
    pub(super) fn named(&self, from: &str) -> BuildResult<(String, Vec<DiffId>)> {
        let (name, layers) = if let Some(number) = self.plan.stage(from, self.stages.len()) {
            let stage = self.stages.get(number).and_then(Option::as_ref);
            let stage = stage.ok_or_else(|| Problem::NoStage(from.to_owned()))?;
            (format!("stage '{from}'"), stage.root.layers())
        } else {
            let image = (self.around.find_image)(from, self.options.platform.as_ref())?;
            (format!("image '{from}'"), image.layers)
        };
        if layers.is_empty() {
            return Err(Problem::NoSource {
                path: "anything".into(),
                place: name,
                hint: String::new(),
            }
            .into());
        }
        Ok((name, layers))
    }

    /// Layers as a tree, which keeps them from being removed.
    pub(super) fn image_tree(&self, name: String, layers: &[DiffId]) -> BuildResult<Tree<'a>> {
        let store: &'a Store = self.around.store;
        let lease = hold(store, layers.to_vec())?;
        Ok(Tree::Image(Image {
            name,
            index: Arc::new(store.merged_index(layers)?),
            objects: Objects::Store(store),
            _lease: Some(lease),
        }))
    }

    /// Finds what a source means. A pattern may match nothing, if another source gives something: the
    /// result is what to say otherwise.
    fn find<'t>(
        &self,
        txn: &'t Transaction<'t>,
        tree: Option<&Tree<'_>>,
        source: &CopySource,
        is_add: bool,
        expander: &Expander<'_>,
        items: &mut Vec<Item<'t>>,
    ) -> BuildResult<Option<BuildError>> {
        let path = match source {
            CopySource::Document { name, text, expand } => {
                let text = if *expand {
                    expander.document(text)?
                } else {
                    text.clone()
                };
                items.push(Item::Document(name.clone(), text));
                return Ok(None);
            }
            CopySource::Path(path) => expander.word(path)?,
        };
        let tree = tree.ok_or_else(|| Problem::NoSource {
            path: path.clone(),
            place: "a build without a context".into(),
            hint: String::new(),
        })?;
        let found = match tree.find(path.as_bytes()) {
            Err(error)
                if is_pattern(path.as_bytes())
                    && matches!(error.problem(), Problem::NoSource { .. }) =>
            {
                return Ok(Some(error));
            }
            found => found?,
        };
        for node in found {
            if is_add && node.kind == Kind::File && is_archive(reader(tree, &node)?) {
                items.push(self.unpack(txn, tree, &node)?);
            } else {
                items.push(Item::Node(node));
            }
        }
        Ok(None)
    }

    /// Reads an archive as a layer is read, which checks it; that layer itself is dropped again.
    fn unpack<'t>(
        &self,
        txn: &'t Transaction<'t>,
        tree: &Tree<'_>,
        node: &Node,
    ) -> BuildResult<Item<'t>> {
        let name = String::from_utf8_lossy(&node.asked).into_owned();
        let info = stage_layer(txn, reader(tree, node)?, &name, &ImportOptions::default())?;
        let index = txn.layer_index(&info.diff_id)?;
        txn.drop_layer(&info.diff_id)?;
        tracing::debug!("{name} is unpacked from {}", short(&info.diff_id));
        let archive = Tree::Image(Image {
            name: name.clone(),
            index: Arc::new(index),
            objects: Objects::Transaction(txn),
            _lease: None,
        });
        let root = archive.at(b"")?;
        let root =
            root.ok_or_else(|| BuildError::new(Problem::Syntax(format!("{name} is empty"))))?;
        Ok(Item::Archive(archive, root))
    }
}

/// The contents of a file.
fn reader<'n>(tree: &'n Tree<'_>, node: &'n Node) -> BuildResult<Box<dyn Read + Send + 'n>> {
    match tree.contents(node)?.data {
        Holds::File(_, data) => Ok(data),
        _ => Ok(Box::new(std::io::empty())),
    }
}

fn parse_checksum(text: &str) -> BuildResult<Digest> {
    let wrong = |_| Problem::FlagValue {
        flag: "checksum".into(),
        value: text.to_owned(),
        hint: "give a digest, as in sha256:0123… with 64 digits".into(),
    };
    text.parse().map_err(wrong).map_err(BuildError::new)
}

/// Permissions in octal.
fn parse_mode(text: &str) -> BuildResult<u32> {
    let wrong = || Problem::FlagValue {
        flag: "chmod".into(),
        value: text.to_owned(),
        hint: "give permissions in octal, as in 0755".into(),
    };
    let mode = u32::from_str_radix(text, 8).map_err(|_| wrong())?;
    if mode > 0o7777 {
        return Err(wrong().into());
    }
    Ok(mode)
}
