//! From the entries of an archive to the tree of a layer: what paths mean, whiteouts, hard links,
//! and entries that come twice.
//!
//! A path never leads out of the root. `.`, `..` and extra slashes are resolved by looking at the
//! path alone, as the OCI tools do; then symbolic links of this layer on the way to the last name
//! are followed as they would be in a chroot.

use std::borrow::Cow;

use super::error::Problem;
use super::reader::{Entry, Kind};
use crate::index::format::{NAME_MAX, SYMLINK_MAX};
use crate::index::{BuildError, BuildNode, Builder, Content, Meta};

/// Before the name of what is deleted (OCI image spec, "Whiteouts").
pub const WHITEOUT: &[u8] = b".wh.";
/// The name of an entry that makes its directory opaque.
pub const OPAQUE: &[u8] = b".wh..wh..opq";
/// Before the names of AUFS's own files, which mean nothing elsewhere.
const AUFS: &[u8] = b".wh..wh.";
/// Most symbolic links that are followed in one path, as in the kernel.
const SYMLINKS_MAX: u32 = 40;

/// The tree of a layer under construction.
#[derive(Default)]
pub struct Tree {
    builder: Builder,
    /// The directory that the last entry was in: the next one is likely to be in it too.
    last: Option<(Vec<u8>, BuildNode)>,
    whiteouts: u64,
}

/// Where a path leads: its names after symbolic links have been followed, and the directories
/// that there are for them. The first node is the root's; there may be fewer nodes than names.
struct Place {
    names: Vec<Vec<u8>>,
    nodes: Vec<BuildNode>,
}

impl Place {
    /// The directory itself, if it is there.
    fn node(&self) -> Option<BuildNode> {
        let exists = self.nodes.len() == self.names.len() + 1;
        self.nodes.last().copied().filter(|_| exists)
    }
}

/// The index's problem with an entry is the entry's.
fn build(error: BuildError) -> Problem {
    Problem::Build(error)
}

impl Tree {
    /// Adds an entry at a path. `content` is that of a file, or of a hard link with data.
    pub fn add(
        &mut self,
        path: &[u8],
        entry: Entry,
        content: Option<Content>,
    ) -> Result<(), Problem> {
        let names = normalise(path)?;
        let Some((name, parents)) = names.split_last() else {
            return self.add_root(entry);
        };
        if names
            .iter()
            .any(|part| part.starts_with(AUFS) && *part != OPAQUE)
        {
            return Ok(());
        }
        if let Some(parent) = parents.iter().find(|parent| parent.starts_with(WHITEOUT)) {
            return Err(Problem::WhiteoutParent(parent.to_vec()));
        }
        let dir = self.directory(parents)?;
        if *name == OPAQUE {
            self.builder.set_opaque(dir);
            self.whiteouts += 1;
            return Ok(());
        }
        if let Some(deleted) = name.strip_prefix(WHITEOUT) {
            if deleted.is_empty() || deleted == b"." || deleted == b".." {
                return Err(Problem::Whiteout);
            }
            self.whiteouts += 1;
            return self.builder.whiteout(dir, deleted).map_err(build);
        }
        self.add_entry(dir, name, entry, content)
    }

    /// Number of whiteouts and opaque directories so far.
    pub fn whiteouts(&self) -> u64 {
        self.whiteouts
    }

    /// The tree.
    pub fn into_builder(self) -> Builder {
        self.builder
    }

    fn add_root(&mut self, entry: Entry) -> Result<(), Problem> {
        if !matches!(entry.kind, Kind::Directory) {
            return Err(Problem::Root);
        }
        let (root, meta) = (self.builder.root(), with_type(entry.meta, libc::S_IFDIR));
        self.builder
            .set_dir(root, meta, entry.xattrs)
            .map_err(build)
    }

    fn add_entry(
        &mut self,
        dir: BuildNode,
        name: &[u8],
        entry: Entry,
        content: Option<Content>,
    ) -> Result<(), Problem> {
        let existing = self.builder.child(dir, name);
        let (file_type, new) = match entry.kind {
            Kind::Directory => {
                let meta = with_type(entry.meta, libc::S_IFDIR);
                if let Some(node) = existing.filter(|node| self.builder.is_dir(*node)) {
                    return self
                        .builder
                        .set_dir(node, meta, entry.xattrs)
                        .map_err(build);
                }
                (libc::S_IFDIR, Content::Directory)
            }
            Kind::HardLink(target, _) => match self.hard_link(&target)? {
                Linked::Here(node) if existing == Some(node) => return Ok(()),
                Linked::Here(node) => return self.link(dir, name, node, existing),
                Linked::Below(path) => match content {
                    // The target is not in this layer, but the contents are.
                    Some(content) => (libc::S_IFREG, content),
                    None => (0, Content::HardLink(path)),
                },
            },
            Kind::File(_) => (
                libc::S_IFREG,
                content.unwrap_or(Content::Inline(Vec::new())),
            ),
            Kind::Symlink(target) => {
                if !(1..=SYMLINK_MAX).contains(&target.len()) || target.contains(&0) {
                    return Err(Problem::SymlinkTarget);
                }
                (libc::S_IFLNK, Content::Symlink(target))
            }
            Kind::CharDevice(major, minor) => (libc::S_IFCHR, Content::Device { major, minor }),
            Kind::BlockDevice(major, minor) => (libc::S_IFBLK, Content::Device { major, minor }),
            Kind::Fifo => (libc::S_IFIFO, Content::Fifo),
        };
        let meta = with_type(entry.meta, file_type);
        let node = self.builder.add(meta, new, entry.xattrs).map_err(build)?;
        self.link(dir, name, node, existing)
    }

    fn link(
        &mut self,
        dir: BuildNode,
        name: &[u8],
        node: BuildNode,
        existing: Option<BuildNode>,
    ) -> Result<(), Problem> {
        if existing.is_some() {
            // It may be on the way to the last directory.
            self.last = None;
        }
        self.builder.link(dir, name, node).map_err(build)
    }

    /// The directory with these names; it is made, implicitly, as far as it is not there.
    fn directory(&mut self, names: &[&[u8]]) -> Result<BuildNode, Problem> {
        let path = names.join(&b'/');
        if let Some((_, node)) = self.last.as_ref().filter(|(last, _)| *last == path) {
            return Ok(*node);
        }
        let place = self.walk(names, true)?;
        let node = place.node().unwrap_or_else(|| self.builder.root());
        self.last = Some((path, node));
        Ok(node)
    }

    /// What a hard link to a path links to.
    fn hard_link(&mut self, target: &[u8]) -> Result<Linked, Problem> {
        let names = normalise(target)?;
        let Some((name, parents)) = names.split_last() else {
            return Err(Problem::LinkToDirectory(target.to_vec()));
        };
        let mut place = self.walk(parents, false)?;
        let found = place
            .node()
            .and_then(|dir| self.builder.child(dir, name))
            .filter(|node| !self.builder.is_whiteout(*node));
        match found {
            Some(node) if self.builder.is_dir(node) => {
                Err(Problem::LinkToDirectory(target.to_vec()))
            }
            Some(node) => Ok(Linked::Here(node)),
            None => {
                place.names.push(name.to_vec());
                Ok(Linked::Below(place.names.join(&b'/')))
            }
        }
    }

    /// Follows names from the root, and symbolic links on the way.
    fn walk(&mut self, names: &[&[u8]], create: bool) -> Result<Place, Problem> {
        let mut place = Place {
            names: Vec::new(),
            nodes: vec![self.builder.root()],
        };
        let mut links = SYMLINKS_MAX;
        let mut ahead: Vec<Cow<'_, [u8]>> = names.iter().rev().map(|name| (*name).into()).collect();
        while let Some(name) = ahead.pop() {
            match &*name {
                b"" | b"." => continue,
                b".." => {
                    place.names.pop();
                    place.nodes.truncate(place.names.len() + 1);
                    continue;
                }
                _ if name.len() > NAME_MAX => return Err(Problem::NameLength(name.len())),
                _ => {}
            }
            let Some(dir) = place.node() else {
                place.names.push(name.into_owned());
                continue;
            };
            match self.builder.child(dir, &name) {
                Some(node) if self.builder.is_dir(node) => {
                    place.names.push(name.into_owned());
                    place.nodes.push(node);
                }
                Some(node) if !self.builder.is_whiteout(node) => {
                    let Some(target) = self.builder.symlink_target(node) else {
                        return Err(Problem::NotADirectory(name.into_owned()));
                    };
                    links = links.checked_sub(1).ok_or(Problem::SymlinkLoop)?;
                    if target.starts_with(b"/") {
                        place.names.clear();
                        place.nodes.truncate(1);
                    }
                    let parts = target.split(|byte| *byte == b'/').rev();
                    ahead.extend(parts.map(|part| Cow::Owned(part.to_vec())));
                }
                _ => {
                    if create {
                        let node = self.builder.add_implicit_dir().map_err(build)?;
                        self.builder.link(dir, &name, node).map_err(build)?;
                        place.nodes.push(node);
                    }
                    place.names.push(name.into_owned());
                }
            }
        }
        Ok(place)
    }
}

/// What a hard link is to.
enum Linked {
    /// An entry of this layer.
    Here(BuildNode),
    /// This path of the layers below.
    Below(Vec<u8>),
}

fn with_type(meta: Meta, file_type: u32) -> Meta {
    Meta {
        mode: if file_type == 0 {
            0
        } else {
            file_type | meta.mode
        },
        ..meta
    }
}

/// The names in a path, without `.` and `..`: it is relative to the root, which is its own parent.
fn normalise(path: &[u8]) -> Result<Vec<&[u8]>, Problem> {
    if path.contains(&0) {
        return Err(Problem::Nul);
    }
    let mut names = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                names.pop();
            }
            _ if name.len() > NAME_MAX => return Err(Problem::NameLength(name.len())),
            _ => names.push(name),
        }
    }
    Ok(names)
}
