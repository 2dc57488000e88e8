//! Reading an index.

use std::fmt;
use std::path::Path;

use super::check::check;
use super::entries::{Entries, Entry, Names};
use super::error::IndexError;
use super::inode::Inode;
use super::layout::{self, Layout, Tables};
use super::map::{self, Bytes};
use crate::digest::{Digest, ObjectId};

/// Number of an inode in an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ino(pub u32);

impl Ino {
    /// The root directory.
    pub const ROOT: Self = Self(0);
}

/// What an index describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexKind {
    /// One layer. Refers to what is below it by whiteouts, opaque and implicit directories, and
    /// hard links.
    Layer,
    /// A whole image, self-contained.
    Merged,
}

/// Sizes of an index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexStats {
    /// Number of inodes, the root included.
    pub inodes: u32,
    /// Number of names.
    pub dirents: u32,
    /// Number of distinct sets of attributes.
    pub attributes: u32,
    /// Number of distinct objects.
    pub objects: u32,
    /// Length of the heap in bytes.
    pub heap_bytes: u64,
    /// Length of the whole index in bytes.
    pub file_bytes: u64,
}

/// An index, checked completely when it was opened.
///
/// `Send` and `Sync`; all methods are lookups in memory.
pub struct Index {
    bytes: Bytes,
    layout: Layout,
    kind: IndexKind,
    identity: [u8; 32],
}

impl Index {
    /// Maps the index file at `path` and checks all of it.
    ///
    /// The file must not change while it is open; files of the store never do.
    ///
    /// # Errors
    /// When the file cannot be read, or anything in it is wrong. The error does not name the path.
    pub fn open(path: &Path) -> Result<Self, IndexError> {
        Self::new(map::open(path)?)
    }

    /// Checks an index in memory.
    ///
    /// # Errors
    /// When anything in it is wrong.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, IndexError> {
        Self::new(Bytes::Buffer(bytes))
    }

    fn new(bytes: Bytes) -> Result<Self, IndexError> {
        let parsed = layout::read(&bytes)?;
        check(parsed.kind, &parsed.layout.tables(&bytes))?;
        bytes.was_read_through();
        Ok(Self {
            bytes,
            layout: parsed.layout,
            kind: parsed.kind,
            identity: parsed.identity,
        })
    }

    pub(super) fn tables(&self) -> Tables<'_> {
        self.layout.tables(&self.bytes)
    }

    /// Whether this is a layer or a whole image.
    pub fn kind(&self) -> IndexKind {
        self.kind
    }

    /// The diffID of the layer or the chain ID of the image, if the index says it.
    pub fn identity(&self) -> Option<Digest> {
        (self.identity != [0; 32]).then_some(Digest(self.identity))
    }

    /// Number of inode numbers: every inode has a number below this. A few numbers may have no
    /// inode: those of the further names of hard-linked files.
    pub fn inode_count(&self) -> u32 {
        self.tables().entries.len() as u32
    }

    /// The inode with this number; `None` when there is none.
    pub fn inode(&self, ino: Ino) -> Option<Inode<'_>> {
        Inode::new(self.tables(), ino)
    }

    /// All inodes in the order of their numbers.
    pub fn inodes(&self) -> impl Iterator<Item = Inode<'_>> {
        let tables = self.tables();
        (0..self.inode_count()).filter_map(move |ino| Inode::new(tables, Ino(ino)))
    }

    /// The entry called `name` in a directory; `None` also when `dir` is not a directory.
    pub fn lookup(&self, dir: Ino, name: &[u8]) -> Option<Entry<'_>> {
        self.entries(dir).find(name)
    }

    /// The entries of a directory, sorted by (hash, name); none for other inodes.
    pub fn entries(&self, dir: Ino) -> Entries<'_> {
        Entries::new(self.tables(), dir.0)
    }

    /// All names of an inode: the directory and the entry in it, the first name first. None for
    /// the root.
    pub fn names_of(&self, ino: Ino) -> Names<'_> {
        Names::new(self.tables(), ino)
    }

    /// The path of an inode's first name, relative to the root, without a leading slash; empty
    /// for the root.
    pub fn path_of(&self, ino: Ino) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = ino;
        while let Some((parent, entry)) = self.names_of(at).next() {
            names.push(entry.name);
            at = parent;
        }
        names.reverse();
        names.join(&b'/')
    }

    /// The objects that the files refer to, each once.
    pub fn objects(&self) -> impl ExactSizeIterator<Item = ObjectId> + '_ {
        self.tables()
            .objects
            .iter()
            .map(|digest| ObjectId(Digest(*digest)))
    }

    /// Sizes of the index.
    pub fn stats(&self) -> IndexStats {
        let tables = self.tables();
        IndexStats {
            inodes: (tables.entries.len() - tables.aliases.len()) as u32,
            dirents: (tables.entries.len() - 1) as u32,
            attributes: tables.attributes.len() as u32,
            objects: tables.objects.len() as u32,
            heap_bytes: tables.heap.len() as u64,
            file_bytes: self.bytes.len() as u64,
        }
    }
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Index")
            .field("kind", &self.kind)
            .field("identity", &self.identity())
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
