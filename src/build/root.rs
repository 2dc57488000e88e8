//! The root filesystem of a stage as far as it is built: a stack of layers that is looked at without
//! merging them, which would take longer than most instructions.

use std::io::Read as _;

use lamina_layers::digest::DiffId;
use lamina_layers::index::{Data, Index, Ino, Inode};
use lamina_layers::store::Store;

use super::error::{BuildResult, Problem};
use crate::runtime::users::Accounts;

/// Most symbolic links that are followed in one path, as in the kernel.
const SYMLINKS_MAX: u32 = 40;

/// Largest file that is read into memory, in bytes: thousands of times what an `/etc/passwd` needs.
const READ_MAX: u64 = 16 << 20;

/// The layers, bottom first.
#[derive(Default)]
pub struct Root {
    layers: Vec<(DiffId, Index)>,
}

/// An object: its parts in the layers, topmost first. Only a directory has several.
struct Found {
    parts: Vec<(usize, Ino)>,
}

/// A path without symbolic links, from the root.
pub type Names = Vec<Vec<u8>>;

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Nothing.
    Nothing,
    /// A directory.
    Dir,
    /// Anything else.
    Other,
}

impl Root {
    /// Adds a layer on top.
    ///
    /// # Errors
    /// When it is not in the store, or damaged.
    pub fn push(&mut self, store: &Store, id: DiffId) -> BuildResult<()> {
        let index = store.layer_index(&id)?;
        self.layers.push((id, index));
        Ok(())
    }

    /// The layers, bottom first.
    pub fn layers(&self) -> Vec<DiffId> {
        self.layers.iter().map(|(id, _)| *id).collect()
    }

    /// Where a path leads, symbolic links followed as in a chroot. What is not there counts as a
    /// directory that will be made.
    ///
    /// # Errors
    /// When the links do not end, or it leads through something that is no directory.
    pub fn resolve(&self, path: &[u8]) -> BuildResult<Names> {
        let wrong = |problem: &str| Problem::Target {
            path: String::from_utf8_lossy(path).into_owned(),
            problem: problem.to_owned(),
        };
        let mut names = Names::new();
        let mut ahead: Vec<Vec<u8>> = split(path).rev().map(<[u8]>::to_vec).collect();
        let mut links = SYMLINKS_MAX;
        while let Some(name) = ahead.pop() {
            if name == b".." {
                names.pop();
                continue;
            }
            names.push(name);
            let Some(found) = self.find(&names) else {
                continue;
            };
            match self.inode(&found).map(|inode| inode.data()) {
                Some(Data::Symlink(target)) => {
                    links = links
                        .checked_sub(1)
                        .ok_or_else(|| wrong("has too many symbolic links"))?;
                    names.pop();
                    if target.starts_with(b"/") {
                        names.clear();
                    }
                    ahead.extend(split(target).rev().map(<[u8]>::to_vec));
                }
                Some(Data::Directory { .. }) | None => {}
                Some(_) if ahead.is_empty() => {}
                Some(_) => return Err(wrong("leads through a file").into()),
            }
        }
        Ok(names)
    }

    /// What is at a path without symbolic links.
    pub fn what(&self, names: &Names) -> What {
        if names.is_empty() {
            // The root is there before any layer is.
            return What::Dir;
        }
        let found = self.find(names);
        match found
            .as_ref()
            .and_then(|found| self.inode(found))
            .map(|inode| inode.data())
        {
            None => What::Nothing,
            Some(Data::Directory { .. }) => What::Dir,
            Some(_) => What::Other,
        }
    }

    /// Whether a symbolic link is at a path.
    pub fn is_symlink(&self, names: &Names) -> bool {
        let found = self.find(names);
        let inode = found.as_ref().and_then(|found| self.inode(found));
        inode.is_some_and(|inode| matches!(inode.data(), Data::Symlink(_)))
    }

    /// The contents of a small file; empty if it is not there or is none.
    ///
    /// # Errors
    /// When they cannot be read, or are larger than [`READ_MAX`].
    fn read(&self, store: &Store, path: &[u8]) -> BuildResult<Vec<u8>> {
        let names = self.resolve(path)?;
        let Some(found) = self.find(&names) else {
            return Ok(Vec::new());
        };
        let Some(inode) = self.inode(&found) else {
            return Ok(Vec::new());
        };
        if inode.size() > READ_MAX {
            return Err(Problem::Target {
                path: String::from_utf8_lossy(path).into_owned(),
                problem: format!("is larger than {} MiB", READ_MAX >> 20),
            }
            .into());
        }
        match inode.data() {
            Data::Inline(bytes) => Ok(bytes.to_vec()),
            Data::Object(id) => {
                let mut bytes = Vec::new();
                let mut file = store.open_object(&id, inode.size())?;
                file.read_to_end(&mut bytes)
                    .map_err(Problem::io("read", store.object_path(&id)))?;
                Ok(bytes)
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Its users and groups.
    ///
    /// # Errors
    /// When its files cannot be read.
    pub fn accounts(&self, store: &Store) -> BuildResult<Accounts> {
        let passwd = self.read(store, b"/etc/passwd")?;
        let group = self.read(store, b"/etc/group")?;
        Ok(Accounts::new(&passwd, &group))
    }

    fn inode(&self, found: &Found) -> Option<Inode<'_>> {
        let (layer, ino) = found.parts.first()?;
        self.layers.get(*layer)?.1.inode(*ino)
    }

    fn find(&self, names: &[Vec<u8>]) -> Option<Found> {
        let mut at = Found { parts: Vec::new() };
        for (number, (_, index)) in self.layers.iter().enumerate().rev() {
            at.parts.push((number, Ino::ROOT));
            if index.inode(Ino::ROOT).is_some_and(|root| root.is_opaque()) {
                break;
            }
        }
        for name in names {
            at = self.child(&at, name)?;
        }
        Some(at)
    }

    /// What a directory has under a name: the topmost layer that says something about it counts, and
    /// for a directory those below as long as they have directories too.
    fn child(&self, dir: &Found, name: &[u8]) -> Option<Found> {
        let mut parts = Vec::new();
        for (number, ino) in &dir.parts {
            let (_, index) = self.layers.get(*number)?;
            let Some(entry) = index.lookup(*ino, name) else {
                continue;
            };
            let Some(inode) = index.inode(entry.ino) else {
                continue;
            };
            match inode.data() {
                Data::Directory { .. } => {
                    parts.push((*number, entry.ino));
                    if inode.is_opaque() {
                        break;
                    }
                }
                Data::HardLink(target) if parts.is_empty() => {
                    return self.below(*number, target);
                }
                Data::Whiteout => break,
                _ => {
                    if parts.is_empty() {
                        parts.push((*number, entry.ino));
                    }
                    break;
                }
            }
        }
        (!parts.is_empty()).then_some(Found { parts })
    }

    /// The file that a hard link to a lower layer is to.
    fn below(&self, layer: usize, path: &[u8]) -> Option<Found> {
        let mut at = Found {
            parts: (0..layer).rev().map(|number| (number, Ino::ROOT)).collect(),
        };
        for name in split(path) {
            at = self.child(&at, name)?;
        }
        Some(at)
    }
}

/// The names in a path; `.` is none.
pub fn split(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    let names = path.split(|byte| *byte == b'/');
    names.filter(|name| !name.is_empty() && *name != b".")
}
