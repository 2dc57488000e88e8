//! `RUN --mount`: what a command sees besides the image, while it runs.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use lamina_layers::digest::{ChainId, DiffId, Digest};
use lamina_layers::store::Transaction;
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::copy::{Copier, Dest, How};
use super::error::{BuildError, BuildResult, Problem};
use super::layer;
use super::root::Root;
use super::source::{Node, Tree};
use super::stage::Stage;
use super::{Builder, absolute};
use crate::attr::Kind;
use crate::runtime::container::{FILES, MemoryFile, MountedTree, TREES};
use crate::runtime::spec::{Mount, MountWhat};

/// What a command sees besides the image.
pub struct Extras<'a> {
    /// The directory of the container.
    dir: PathBuf,
    /// The mounts.
    pub mounts: Vec<Mount>,
    /// Files that are mounted.
    pub files: Vec<MemoryFile>,
    /// Trees of which something is mounted.
    pub trees: Vec<MountedTree>,
    /// What of it the result depends on.
    pub key: Vec<String>,
    /// Directories of caches that are to be nobody else's meanwhile, and how messages call them. Sorted: who
    /// locks several does it in this order.
    exclusive: BTreeMap<PathBuf, String>,
    locks: Vec<fs::File>,
    /// Layers of what is bound of the context.
    made: Vec<Transaction<'a>>,
    /// Stages and images of which something is bound, which keeps them.
    held: Vec<Tree<'a>>,
}

impl Extras<'_> {
    /// Nothing, for a container in this directory.
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            mounts: Vec::new(),
            files: Vec::new(),
            trees: Vec::new(),
            key: Vec::new(),
            exclusive: BTreeMap::new(),
            locks: Vec::new(),
            made: Vec::new(),
            held: Vec::new(),
        }
    }

    /// Adds a file with these contents.
    pub fn add_file(
        &mut self,
        target: String,
        contents: Vec<u8>,
        mode: u32,
        owner: [Option<u32>; 2],
    ) {
        let path = self.dir.join(FILES).join(self.files.len().to_string());
        self.bind(target, path.clone(), true);
        self.files.push(MemoryFile {
            path,
            contents,
            mode,
            owner,
        });
    }

    /// Adds what is at a path of a stack of layers.
    fn add_tree(&mut self, target: String, layers: Vec<DiffId>, path: &[u8]) {
        use std::os::unix::ffi::OsStrExt as _;
        let at = self.dir.join(TREES).join(self.trees.len().to_string());
        let source = at.join(std::ffi::OsStr::from_bytes(path));
        self.bind(target, source, true);
        self.trees.push(MountedTree { at, layers });
    }

    fn bind(&mut self, target: String, source: PathBuf, read_only: bool) {
        let what = MountWhat::Bind { source, read_only };
        self.mounts.push(Mount { target, what });
    }

    /// Makes it all ready, when it is known that the command has to run.
    ///
    /// # Errors
    /// When the store cannot be written, or a cache not be locked.
    pub fn prepare(&mut self, say: &dyn Fn(&str)) -> BuildResult<()> {
        for txn in self.made.drain(..) {
            txn.commit()?;
        }
        for (dir, id) in &self.exclusive {
            let lock = fs::File::open(dir).map_err(Problem::io("open", dir))?;
            let locked = match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) => {
                    say(&format!(
                        "waiting for the cache '{id}', which another build uses"
                    ));
                    rustix::fs::flock(&lock, FlockOperation::LockExclusive)
                }
                locked => locked,
            };
            locked.map_err(Problem::io("lock", dir))?;
            self.locks.push(lock);
        }
        Ok(())
    }
}

impl<'a> Builder<'a> {
    /// Adds what a `--mount` asks for.
    pub(super) fn mount(
        &self,
        stage: &Stage,
        text: &str,
        extras: &mut Extras<'a>,
    ) -> BuildResult<()> {
        let mut asked = Asked::parse(text);
        let kind = asked.take("type").unwrap_or_else(|| "bind".to_owned());
        let target = asked
            .take("target")
            .map(|path| absolute(&path, stage.state.workdir()));
        match kind.as_str() {
            "tmpfs" => {
                let target = target.ok_or_else(|| asked.lacks("target"))?;
                let size = asked.take_number("size")?;
                let what = MountWhat::Tmpfs { size };
                extras.key.push(format!("tmpfs {target}"));
                extras.mounts.push(Mount { target, what });
            }
            "cache" => {
                let target = target.ok_or_else(|| asked.lacks("target"))?;
                self.cache_mount(&mut asked, target, extras)?;
            }
            "secret" => self.secret_mount(&mut asked, target, extras)?,
            "bind" => {
                let target = target.ok_or_else(|| asked.lacks("target"))?;
                self.bind_mount(&mut asked, target, extras)?;
            }
            other => {
                return Err(Problem::Unsupported {
                    what: format!("--mount=type={other}"),
                    hint: "bind, cache, secret and tmpfs can".into(),
                }
                .into());
            }
        }
        asked.end()
    }

    /// A directory that commands of all builds share.
    fn cache_mount(
        &self,
        asked: &mut Asked,
        target: String,
        extras: &mut Extras<'a>,
    ) -> BuildResult<()> {
        let id = asked.take("id").unwrap_or_else(|| target.clone());
        let dir = self.around.store.cache_mount(&Digest::of(id.as_bytes()))?;
        let [uid, gid] = asked.take_owner()?;
        let mode = asked.take_mode("mode")?.unwrap_or(0o755);
        let is_new = fs::read_dir(&dir).is_ok_and(|mut entries| entries.next().is_none());
        if is_new {
            chown(&dir, uid.or(Some(0)), gid.or(Some(0)))
                .map_err(Problem::io("give away", &dir))?;
            fs::set_permissions(&dir, fs::Permissions::from_mode(mode))
                .map_err(Problem::io("change the mode of", &dir))?;
        }
        match asked.take("sharing").as_deref() {
            None | Some("shared") => {}
            // One of its own for each build at a time, as docker has it, would be empty for the second.
            Some("locked" | "private") => {
                extras.exclusive.insert(dir.clone(), id.clone());
            }
            Some(_) => return Err(asked.wrong("sharing is shared, private or locked")),
        }
        let read_only = asked.take_switch("readonly");
        extras.key.push(format!("cache {id} {target}"));
        extras.bind(target, dir, read_only);
        Ok(())
    }

    /// A copy of a file, which is in no layer.
    fn secret_mount(
        &self,
        asked: &mut Asked,
        target: Option<String>,
        extras: &mut Extras<'a>,
    ) -> BuildResult<()> {
        let id = asked.take("id").ok_or_else(|| asked.lacks("id"))?;
        let target = target.unwrap_or_else(|| format!("/run/secrets/{id}"));
        let required = asked.take_switch("required");
        let mode = asked.take_mode("mode")?.unwrap_or(0o400);
        let owner = asked.take_owner()?;
        extras.key.push(format!("secret {id} {target}"));
        let Some(secret) = self.options.secrets.iter().find(|secret| secret.id == id) else {
            if required {
                return Err(Problem::Unsupported {
                    what: format!("the secret '{id}'"),
                    hint: format!("say where it is with --secret id={id},src=FILE"),
                }
                .into());
            }
            return Ok(());
        };
        let contents = fs::read(&secret.file).map_err(Problem::io("read", &secret.file))?;
        extras.add_file(target, contents, mode, owner);
        Ok(())
    }

    /// Something of the build context, a stage or an image, which the command cannot change.
    fn bind_mount(
        &self,
        asked: &mut Asked,
        target: String,
        extras: &mut Extras<'a>,
    ) -> BuildResult<()> {
        let from = asked.take("from");
        if asked.take_switch("rw") {
            return Err(Problem::Unsupported {
                what: "--mount=type=bind,rw".into(),
                hint: "bind it read-only, or COPY it".into(),
            }
            .into());
        }
        asked.take_switch("readonly");
        let source = asked.take("source").unwrap_or_else(|| "/".to_owned());
        let Some(from) = from else {
            return self.bind_context(&source, target, extras);
        };
        let (name, layers) = self.named(&from)?;
        let tree = self.image_tree(name, &layers)?;
        let node = bindable(&tree, &source)?;
        let chain = ChainId::of(&layers).map_or_else(String::new, |chain| chain.0.hex());
        let path = node.path.escape_ascii();
        extras.key.push(format!("bind {target} {chain} {path}"));
        extras.add_tree(target, layers, &node.path);
        extras.held.push(tree);
        Ok(())
    }

    /// What the context does not leave out. A layer is made of it: the result depends on all that the command
    /// can read, and it must not change meanwhile.
    fn bind_context(
        &self,
        source: &str,
        target: String,
        extras: &mut Extras<'a>,
    ) -> BuildResult<()> {
        const NAME: &str = "bound";
        let context = self.options.context.as_ref();
        let tree = context
            .map(Tree::Context)
            .ok_or_else(|| Problem::NoSource {
                path: source.to_owned(),
                place: "a build without a context".into(),
                hint: String::new(),
            })?;
        let node = bindable(&tree, source)?;
        // The same files are the same layer at any time.
        let how = How {
            now: (0, 0),
            ..self.how(Some((0, 0)), None)
        };
        let root = Root::default();
        let dest = Dest::of(&root, &format!("/{NAME}"), 1)?;
        let txn = Transaction::begin(self.around.store)?;
        let info = layer::stage(&txn, "what is bound", |out| {
            Copier::new(out, &root, &how).copy(&tree, &node, &dest)
        })?;
        let digest = layer::content_digest(&txn.layer_index(&info.diff_id)?);
        extras.key.push(format!("bind {target} {}", digest.hex()));
        extras.add_tree(target, vec![info.diff_id], NAME.as_bytes());
        extras.made.push(txn);
        Ok(())
    }
}

/// What is bound: a file or a directory.
fn bindable(tree: &Tree<'_>, source: &str) -> BuildResult<Node> {
    let found = tree.find(source.as_bytes())?.into_iter().next();
    let fits = |node: &Node| matches!(node.kind, Kind::File | Kind::Dir);
    let unsupported = || Problem::Unsupported {
        what: format!("--mount=type=bind,source={source}"),
        hint: "bind a file or a directory".into(),
    };
    Ok(found.filter(fits).ok_or_else(unsupported)?)
}

/// The stage or image that a `--mount` takes something from.
pub fn taken_from(text: &str) -> Option<String> {
    Asked::parse(text).take("from")
}

/// The words of a `--mount`.
struct Asked {
    text: String,
    words: Vec<(String, Option<String>)>,
}

impl Asked {
    fn parse(text: &str) -> Self {
        let word = |word: &str| {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (word, None),
            };
            let name = match name {
                "dst" | "destination" => "target",
                "src" => "source",
                "ro" => "readonly",
                "readwrite" => "rw",
                name => name,
            };
            (name.to_owned(), value)
        };
        Self {
            text: text.to_owned(),
            words: text.split(',').map(word).collect(),
        }
    }

    fn lacks(&self, what: &str) -> BuildError {
        Problem::FlagValue {
            flag: "mount".into(),
            value: self.text.clone(),
            hint: format!("it needs {what}="),
        }
        .into()
    }

    fn wrong(&self, hint: &str) -> BuildError {
        Problem::FlagValue {
            flag: "mount".into(),
            value: self.text.clone(),
            hint: hint.to_owned(),
        }
        .into()
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.words.iter().position(|(word, _)| word == name)?;
        self.words.remove(at).1
    }

    fn take_switch(&mut self, name: &str) -> bool {
        let Some(at) = self.words.iter().position(|(word, _)| word == name) else {
            return false;
        };
        self.words
            .remove(at)
            .1
            .is_none_or(|value| value != "false" && value != "0")
    }

    fn take_number(&mut self, name: &str) -> BuildResult<Option<u64>> {
        let text = self.take(name);
        let number = text.map(|text| text.parse().map_err(|_| self.wrong("a number is none")));
        number.transpose()
    }

    fn take_owner(&mut self) -> BuildResult<[Option<u32>; 2]> {
        let mut owner = [None; 2];
        for (place, name) in owner.iter_mut().zip(["uid", "gid"]) {
            let id = self.take_number(name)?.map(u32::try_from).transpose();
            *place = id.map_err(|_| self.wrong("a number is too large"))?;
        }
        Ok(owner)
    }

    fn take_mode(&mut self, name: &str) -> BuildResult<Option<u32>> {
        let text = self.take(name);
        let mode = text.map(|text| {
            u32::from_str_radix(&text, 8).map_err(|_| self.wrong("its mode is not octal"))
        });
        mode.transpose()
    }

    fn end(self) -> BuildResult<()> {
        match self.words.first() {
            None => Ok(()),
            Some((name, _)) => Err(self.wrong(&format!("'{name}' is not known"))),
        }
    }
}
