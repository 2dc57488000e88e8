//! A tree that grows entry by entry, and becomes an index.
//!
//! Nodes, names and strings are kept in a few large vectors. A name that is replaced or removed
//! leaves its node behind; what cannot be reached from the root at the end is not written.

use std::io::Write;

use hashbrown::HashTable;
use zerocopy::little_endian::U32;

use super::IndexKind;
use super::assemble::blank;
use super::format::{
    AttributesRecord, EntryKind, EntryRecord, FLAG_IMPLICIT, FLAG_OPAQUE, INLINE_MAX, MAJOR_MAX,
    MINOR_MAX, SYMLINK_MAX, name_hash, name_is_legal,
};
use super::intern::{Heap, Table, count};
use super::xattrs;
use crate::digest::{Digest, ObjectId};

mod error;
mod finish;

pub use error::BuildError;

/// Attributes of a directory that nothing describes.
const IMPLICIT: Meta = Meta {
    mode: libc::S_IFDIR | 0o755,
    uid: 0,
    gid: 0,
    mtime: (0, 0),
};
/// Attributes of whiteouts and hard links, which have none.
const NO_ATTRIBUTES: Meta = Meta {
    mode: 0,
    uid: 0,
    gid: 0,
    mtime: (0, 0),
};

/// A node of a [`Builder`]. Of no use in another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BuildNode(u32);

/// Attributes of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// File type and permissions, as in `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
}

/// What an entry is. The file type of the [`Meta`] must agree; it is not looked at for
/// `Whiteout` and `HardLink`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A directory.
    Directory,
    /// A regular file of at most [`INLINE_MAX`] bytes.
    Inline(Vec<u8>),
    /// A regular file whose contents are an object of the store.
    Object {
        /// The object.
        id: ObjectId,
        /// Its size in bytes.
        size: u64,
    },
    /// A symbolic link to this target.
    Symlink(Vec<u8>),
    /// A character or block device.
    Device {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// The name is deleted from the layers below.
    Whiteout,
    /// Another name for the file at this path of the layers below. The path is relative to the
    /// root, without empty, `.` and `..` parts.
    HardLink(Vec<u8>),
}

/// One name. `node` is [`NO_NODE`] after it was removed.
struct Link {
    dir: u32,
    name: u32,
    node: u32,
    hash_high: u32,
    hash_low: u16,
    name_len: u8,
    /// A whiteout of this name was seen too.
    whiteout: bool,
}

/// Stands for a name that was removed.
const NO_NODE: u32 = u32::MAX;

impl Link {
    fn hash(&self) -> u64 {
        u64::from(self.hash_high) << 16 | u64::from(self.hash_low)
    }
}

/// A tree under construction.
///
/// Whiteouts apply to lower layers only (OCI image spec, "Whiteouts"), whatever the order in
/// which they are added: where a layer has both an entry and a whiteout of the same name, the
/// entry counts, and a directory is opaque then.
pub struct Builder {
    nodes: Vec<EntryRecord>,
    /// Of each node: whether it is a directory with a name.
    named: Vec<bool>,
    links: Vec<Link>,
    /// Numbers in `links`, found by directory and name.
    table: HashTable<u32>,
    attributes: Table<AttributesRecord>,
    objects: Table<[u8; 32]>,
    heap: Heap,
}

impl Default for Builder {
    fn default() -> Self {
        Self::new()
    }
}

impl Builder {
    /// An empty tree: an implicit root, mode 0755, owner 0:0, mtime 0.
    pub fn new() -> Self {
        let mut builder = Self {
            nodes: Vec::new(),
            named: vec![true],
            links: Vec::new(),
            table: HashTable::new(),
            attributes: Table::new("sets of attributes", 0),
            objects: Table::new("objects", 0),
            heap: Heap::new(&[0], 0),
        };
        // The first set of attributes, so there is room for it.
        let attributes = builder
            .attributes
            .intern(&attributes(IMPLICIT, 0))
            .unwrap_or_default();
        builder.nodes.push(implicit_dir(attributes));
        builder
    }

    /// The root directory.
    pub fn root(&self) -> BuildNode {
        BuildNode(0)
    }

    /// The entry called `name` in a directory.
    pub fn child(&self, dir: BuildNode, name: &[u8]) -> Option<BuildNode> {
        let link = self.find(dir, name, name_hash(name))?;
        self.links
            .get(link as usize)
            .map(|link| BuildNode(link.node))
    }

    /// Adds a node that has no name yet.
    ///
    /// # Errors
    /// When the mode, the content or an extended attribute is not one that an inode can have, or
    /// the index is full.
    pub fn add(
        &mut self,
        meta: Meta,
        content: Content,
        xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    ) -> Result<BuildNode, BuildError> {
        let kind = kind_of(meta.mode & libc::S_IFMT, &content);
        let mut node = blank(kind.ok_or(BuildError::Mode(meta.mode))?, 0);
        node.attributes = match content {
            Content::Whiteout | Content::HardLink(_) => self.intern(NO_ATTRIBUTES, Vec::new())?,
            _ => self.intern(meta, xattrs)?,
        };
        self.set_content(&mut node, content)?;
        self.push(node)
    }

    /// Adds a directory that the archive does not have, and that has no name yet.
    ///
    /// # Errors
    /// When the index is full.
    pub fn add_implicit_dir(&mut self) -> Result<BuildNode, BuildError> {
        let attributes = self.intern(IMPLICIT, Vec::new())?;
        self.push(implicit_dir(attributes.get()))
    }

    /// Gives a node a name. Whatever had the name loses it; a directory's entries go with it.
    ///
    /// # Errors
    /// When the name is illegal, `dir` is not a directory, the node is a directory that has a
    /// name, or the index is full.
    pub fn link(&mut self, dir: BuildNode, name: &[u8], node: BuildNode) -> Result<(), BuildError> {
        let new = self.node(node);
        if !name_is_legal(name) {
            return Err(BuildError::Name(name.to_vec()));
        }
        if !self.is_dir(dir) {
            return Err(BuildError::NotADirectory);
        }
        if new.is_dir() && self.named.get(node.0 as usize) != Some(&false) {
            return Err(BuildError::DirectoryLinked);
        }
        let hash = name_hash(name);
        let whiteout = new.is(EntryKind::Whiteout);
        if let Some(number) = self.find(dir, name, hash) {
            let old = self
                .links
                .get(number as usize)
                .map_or(NO_NODE, |link| link.node);
            let was_whiteout = self.node(BuildNode(old)).is(EntryKind::Whiteout);
            if let Some(link) = self.links.get_mut(number as usize) {
                link.whiteout |= whiteout || was_whiteout;
                if whiteout {
                    return Ok(());
                }
                link.node = node.0;
            }
            self.set_named(old, false);
        } else {
            self.insert(dir, name, hash, node)?;
        }
        self.set_named(node.0, new.is_dir());
        Ok(())
    }

    /// Adds a whiteout of a name: lower layers' entry is deleted. An entry that this layer has
    /// there stays, and so does one that it gets later.
    ///
    /// # Errors
    /// As [`Self::link`].
    pub fn whiteout(&mut self, dir: BuildNode, name: &[u8]) -> Result<(), BuildError> {
        let node = self.add(NO_ATTRIBUTES, Content::Whiteout, Vec::new())?;
        self.link(dir, name, node)
    }

    /// Takes a name away, with a whiteout of it; a directory's entries go with it. Returns
    /// whether it was there.
    pub fn unlink(&mut self, dir: BuildNode, name: &[u8]) -> bool {
        let Some(number) = self.find(dir, name, name_hash(name)) else {
            return false;
        };
        let key = self
            .links
            .get(number as usize)
            .map_or(0, |link| table_hash(dir, link.hash()));
        if let Ok(entry) = self.table.find_entry(key, |at| *at == number) {
            entry.remove();
        }
        if let Some(link) = self.links.get_mut(number as usize) {
            let old = std::mem::replace(&mut link.node, NO_NODE);
            self.set_named(old, false);
        }
        true
    }

    /// Whether a node is a directory.
    pub fn is_dir(&self, node: BuildNode) -> bool {
        self.node(node).is_dir()
    }

    /// Whether a node is a whiteout.
    pub fn is_whiteout(&self, node: BuildNode) -> bool {
        self.node(node).is(EntryKind::Whiteout)
    }

    /// The target of a symlink; `None` for any other node.
    pub fn symlink_target(&self, node: BuildNode) -> Option<&[u8]> {
        let node = self.node(node);
        let is_symlink = node.is(EntryKind::Symlink);
        is_symlink.then(|| self.heap.at(node.data.get(), node.size.get()))
    }

    /// Gives a directory the attributes of an entry for it: new ones, and it is no longer
    /// implicit.
    ///
    /// # Errors
    /// When `dir` or the mode is not a directory's, or an extended attribute is not one that an
    /// inode can have.
    pub fn set_dir(
        &mut self,
        dir: BuildNode,
        meta: Meta,
        xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    ) -> Result<(), BuildError> {
        if !self.is_dir(dir) {
            return Err(BuildError::NotADirectory);
        }
        if meta.mode & libc::S_IFMT != libc::S_IFDIR {
            return Err(BuildError::Mode(meta.mode));
        }
        let attributes = self.intern(meta, xattrs)?;
        if let Some(node) = self.nodes.get_mut(dir.0 as usize) {
            node.attributes = attributes;
            node.kind &= !FLAG_IMPLICIT;
        }
        Ok(())
    }

    /// Makes a directory hide what lower layers have below it. Nothing happens to other nodes.
    pub fn set_opaque(&mut self, dir: BuildNode) {
        if let Some(node) = self
            .nodes
            .get_mut(dir.0 as usize)
            .filter(|node| node.is_dir())
        {
            node.kind |= FLAG_OPAQUE;
        }
    }

    /// The index as bytes. The same tree gives the same bytes, however it was built.
    ///
    /// # Errors
    /// When a limit is exceeded, or a merged index would have marks that only layers have.
    pub fn finish(self, kind: IndexKind, identity: Option<Digest>) -> Result<Vec<u8>, BuildError> {
        self.assemble(kind, identity)?.into_bytes()
    }

    /// As [`Self::finish`], written to `out` in a few large pieces.
    ///
    /// # Errors
    /// As [`Self::finish`], and when writing fails.
    pub fn finish_to(
        self,
        kind: IndexKind,
        identity: Option<Digest>,
        out: &mut impl Write,
    ) -> Result<(), BuildError> {
        Ok(self.assemble(kind, identity)?.write_to(out)?)
    }

    fn node(&self, node: BuildNode) -> EntryRecord {
        self.nodes
            .get(node.0 as usize)
            .copied()
            .unwrap_or_else(|| blank(EntryKind::Socket, 0))
    }

    fn push(&mut self, node: EntryRecord) -> Result<BuildNode, BuildError> {
        let number = count(self.nodes.len(), "inodes")?;
        self.nodes.push(node);
        self.named.push(false);
        Ok(BuildNode(number))
    }

    fn set_named(&mut self, node: u32, named: bool) {
        if let Some(slot) = self.named.get_mut(node as usize) {
            *slot = named;
        }
    }

    /// The number of a set of attributes.
    fn intern(&mut self, meta: Meta, xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Result<U32, BuildError> {
        if meta.mode & !(libc::S_IFMT | 0o7777) != 0 {
            return Err(BuildError::Mode(meta.mode));
        }
        if meta.mtime.1 >= 1_000_000_000 {
            return Err(BuildError::Nanoseconds(meta.mtime.1));
        }
        let set = self.heap.intern(&xattrs::encode(xattrs)?)?;
        Ok(self.attributes.intern(&attributes(meta, set))?.into())
    }

    fn set_content(&mut self, node: &mut EntryRecord, content: Content) -> Result<(), BuildError> {
        match content {
            Content::Inline(bytes) => {
                if bytes.len() as u64 > INLINE_MAX {
                    return Err(BuildError::InlineLength(bytes.len()));
                }
                node.size = (bytes.len() as u64).into();
                node.data = self.heap.intern(&bytes)?.into();
            }
            Content::Object { id, size } => {
                node.size = size.into();
                node.data = self.objects.intern(&id.0.0)?.into();
            }
            Content::Symlink(target) => {
                if !(1..=SYMLINK_MAX).contains(&target.len()) || target.contains(&0) {
                    return Err(BuildError::SymlinkTarget(target.len()));
                }
                node.size = (target.len() as u64).into();
                node.data = self.heap.intern(&target)?.into();
            }
            Content::HardLink(path) => {
                if !path.split(|byte| *byte == b'/').all(name_is_legal) {
                    return Err(BuildError::HardLinkTarget(path));
                }
                node.size = (path.len() as u64).into();
                node.data = self.heap.intern(&path)?.into();
            }
            Content::Device { major, minor } => {
                if major > MAJOR_MAX || minor > MINOR_MAX {
                    return Err(BuildError::Device { major, minor });
                }
                node.data = (major << 20 | minor).into();
            }
            Content::Directory | Content::Fifo | Content::Socket | Content::Whiteout => {}
        }
        Ok(())
    }

    /// The number in `links` of a name.
    fn find(&self, dir: BuildNode, name: &[u8], hash: u64) -> Option<u32> {
        let found = self.table.find(table_hash(dir, hash), |&number| {
            self.links.get(number as usize).is_some_and(|link| {
                link.dir == dir.0 && link.hash() == hash && self.name(link) == name
            })
        });
        found.copied()
    }

    /// Adds a name that is not there.
    fn insert(
        &mut self,
        dir: BuildNode,
        name: &[u8],
        hash: u64,
        node: BuildNode,
    ) -> Result<(), BuildError> {
        let number = count(self.links.len(), "names")?;
        self.links.push(Link {
            dir: dir.0,
            name: self.heap.append(name)?,
            node: node.0,
            hash_high: (hash >> 16) as u32,
            hash_low: hash as u16,
            name_len: name.len() as u8,
            whiteout: false,
        });
        let Self { links, table, .. } = self;
        table.insert_unique(table_hash(dir, hash), number, |&at| {
            links
                .get(at as usize)
                .map_or(0, |link| table_hash(BuildNode(link.dir), link.hash()))
        });
        Ok(())
    }

    fn name(&self, link: &Link) -> &[u8] {
        self.heap.at(link.name, u64::from(link.name_len))
    }
}

/// The kind of entry for a content; `None` when the file type does not fit it.
fn kind_of(file_type: u32, content: &Content) -> Option<EntryKind> {
    let (kind, fits) = match content {
        Content::Directory => (EntryKind::Directory, file_type == libc::S_IFDIR),
        Content::Inline(_) => (EntryKind::Inline, file_type == libc::S_IFREG),
        Content::Object { .. } => (EntryKind::Object, file_type == libc::S_IFREG),
        Content::Symlink(_) => (EntryKind::Symlink, file_type == libc::S_IFLNK),
        Content::Device { .. } if file_type == libc::S_IFBLK => (EntryKind::BlockDevice, true),
        Content::Device { .. } => (EntryKind::CharDevice, file_type == libc::S_IFCHR),
        Content::Fifo => (EntryKind::Fifo, file_type == libc::S_IFIFO),
        Content::Socket => (EntryKind::Socket, file_type == libc::S_IFSOCK),
        Content::Whiteout => (EntryKind::Whiteout, true),
        Content::HardLink(_) => (EntryKind::HardLink, true),
    };
    fits.then_some(kind)
}

/// The record of attributes that were checked.
fn attributes(meta: Meta, xattrs: u32) -> AttributesRecord {
    AttributesRecord {
        permissions: (meta.mode as u16 & 0o7777).into(),
        reserved: 0.into(),
        uid: meta.uid.into(),
        gid: meta.gid.into(),
        xattrs: xattrs.into(),
        mtime_sec: meta.mtime.0.into(),
        mtime_nsec: meta.mtime.1.into(),
    }
}

/// A directory that the archive does not have.
fn implicit_dir(attributes: u32) -> EntryRecord {
    EntryRecord {
        attributes: attributes.into(),
        ..blank(EntryKind::Directory, FLAG_IMPLICIT)
    }
}

/// The hash of a name in a directory, for the table of names.
fn table_hash(dir: BuildNode, name_hash: u64) -> u64 {
    (name_hash << 16 ^ u64::from(dir.0))
        .wrapping_mul(0x9E37_79B9_7F4A_7C15)
        .rotate_left(26)
}

#[cfg(test)]
mod tests;
