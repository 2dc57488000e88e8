//! A tree that grows entry by entry, and becomes an index.
//!
//! Nodes, names and strings are kept in a few large vectors. A name that is replaced or removed
//! leaves its node behind; what cannot be reached from the root at the end is not written.

use std::io::{self, Write};

use hashbrown::HashTable;

use super::IndexKind;
use super::assemble::{Assembler, HashedName, Sections, Source, blank};
use super::format::{
    FLAG_HARDLINK, FLAG_IMPLICIT, FLAG_INLINE, FLAG_OPAQUE, FLAG_WHITEOUT, INLINE_MAX, InodeRecord,
    MAJOR_MAX, MINOR_MAX, NAME_MAX, SYMLINK_MAX, XATTR_NAME_MAX, XATTR_VALUE_MAX, name_hash,
    name_is_legal,
};
use super::intern::{Heap, Objects, count};
use super::xattrs;
use crate::digest::{Digest, ObjectId};

/// Permissions of a directory that nothing describes.
const IMPLICIT_MODE: u32 = libc::S_IFDIR | 0o755;

/// Why a tree cannot become an index.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A number does not fit in 32 bits.
    #[error("too many {what} for one index (its numbers have 32 bits)")]
    Full {
        /// What there is too much of.
        what: &'static str,
    },
    /// A name that no directory can have.
    #[error("'{}' cannot be the name of a file (1 to {NAME_MAX} bytes, not '.' or '..', no '/' or NUL)", .0.escape_ascii())]
    Name(Vec<u8>),
    /// A mode that does not fit the contents.
    #[error("mode {0:#o} does not fit what the entry is")]
    Mode(u32),
    /// Nanoseconds out of range.
    #[error("{0} nanoseconds are a second or more")]
    Nanoseconds(u32),
    /// Inline contents over the limit.
    #[error("{0} bytes are too many to be kept in the index (at most {INLINE_MAX})")]
    InlineLength(usize),
    /// A symlink target that cannot be.
    #[error("a symlink's target must have 1 to {SYMLINK_MAX} bytes without NUL, not {0} bytes")]
    SymlinkTarget(usize),
    /// A device number out of range.
    #[error("device {major}:{minor} is out of range (at most {MAJOR_MAX}:{MINOR_MAX})")]
    Device {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// The path of a hard link is not a normal relative path.
    #[error("'{}' cannot be the target of a hard link", .0.escape_ascii())]
    HardLinkTarget(Vec<u8>),
    /// More extended attributes than an inode can have.
    #[error("more than 65,535 extended attributes on one file")]
    TooManyXattrs,
    /// A name that no extended attribute can have.
    #[error("'{}' cannot be the name of an extended attribute (1 to {XATTR_NAME_MAX} bytes, no NUL)", .0.escape_ascii())]
    XattrName(Vec<u8>),
    /// A value over the limit.
    #[error("extended attribute '{}' has {len} bytes (at most {XATTR_VALUE_MAX})", .name.escape_ascii())]
    XattrValue {
        /// Name of the attribute.
        name: Vec<u8>,
        /// Length of its value, in bytes.
        len: usize,
    },
    /// A name was to be made in something else than a directory.
    #[error("not a directory")]
    NotADirectory,
    /// A second name for a directory.
    #[error("a directory cannot have a second name")]
    DirectoryLinked,
    /// A merged index was to have a whiteout or a hard link to a lower layer.
    #[error("a merged index cannot have whiteouts or links to lower layers")]
    LayerOnly,
    /// Writing the index failed.
    #[error("cannot write the index: {0}")]
    Io(#[from] io::Error),
}

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
    nodes: Vec<InodeRecord>,
    /// Of each node: whether it is a directory with a name.
    named: Vec<bool>,
    links: Vec<Link>,
    /// Numbers in `links`, found by directory and name.
    table: HashTable<u32>,
    heap: Heap,
    objects: Objects,
}

impl Default for Builder {
    fn default() -> Self {
        Self::new()
    }
}

impl Builder {
    /// An empty tree: an implicit root, mode 0755, owner 0:0, mtime 0.
    pub fn new() -> Self {
        Self {
            nodes: vec![blank(IMPLICIT_MODE, FLAG_IMPLICIT)],
            named: vec![true],
            links: Vec::new(),
            table: HashTable::new(),
            heap: Heap::new(&[0], 0),
            objects: Objects::new(0),
        }
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
        let file_type = meta.mode & libc::S_IFMT;
        let node = match content {
            Content::Whiteout => blank(libc::S_IFCHR, FLAG_WHITEOUT),
            Content::HardLink(path) => {
                if !path.split(|byte| *byte == b'/').all(name_is_legal) {
                    return Err(BuildError::HardLinkTarget(path));
                }
                let mut node = blank(libc::S_IFREG, FLAG_HARDLINK);
                node.data = self.heap.append(&path)?.into();
                node.size = (path.len() as u64).into();
                node
            }
            content if !fits(file_type, &content) => return Err(BuildError::Mode(meta.mode)),
            content => {
                let mut node = self.with_meta(meta, xattrs)?;
                self.set_content(&mut node, content)?;
                node
            }
        };
        self.push(node)
    }

    /// Adds a directory that the archive does not have, and that has no name yet.
    ///
    /// # Errors
    /// When the index is full.
    pub fn add_implicit_dir(&mut self) -> Result<BuildNode, BuildError> {
        self.push(blank(IMPLICIT_MODE, FLAG_IMPLICIT))
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
        let whiteout = new.has(FLAG_WHITEOUT);
        if let Some(number) = self.find(dir, name, hash) {
            let old = self
                .links
                .get(number as usize)
                .map_or(NO_NODE, |link| link.node);
            let was_whiteout = self.node(BuildNode(old)).has(FLAG_WHITEOUT);
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
        let node = self.push(blank(libc::S_IFCHR, FLAG_WHITEOUT))?;
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

    /// The target of a symlink; `None` for any other node.
    pub fn symlink_target(&self, node: BuildNode) -> Option<&[u8]> {
        let node = self.node(node);
        let is_symlink = node.file_type() == libc::S_IFLNK;
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
        let mut node = self.with_meta(meta, xattrs)?;
        if let Some(slot) = self.nodes.get_mut(dir.0 as usize) {
            node.flags = (slot.flags.get() & FLAG_OPAQUE).into();
            *slot = node;
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
            node.flags = (node.flags.get() | FLAG_OPAQUE).into();
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

    fn node(&self, node: BuildNode) -> InodeRecord {
        self.nodes
            .get(node.0 as usize)
            .copied()
            .unwrap_or_else(|| blank(0, 0))
    }

    fn push(&mut self, node: InodeRecord) -> Result<BuildNode, BuildError> {
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

    /// A node with these attributes and no content.
    fn with_meta(
        &mut self,
        meta: Meta,
        xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    ) -> Result<InodeRecord, BuildError> {
        let (seconds, nanoseconds) = meta.mtime;
        if meta.mode & !(libc::S_IFMT | 0o7777) != 0 {
            return Err(BuildError::Mode(meta.mode));
        }
        if nanoseconds >= 1_000_000_000 {
            return Err(BuildError::Nanoseconds(nanoseconds));
        }
        let mut node = blank(meta.mode, 0);
        node.uid = meta.uid.into();
        node.gid = meta.gid.into();
        node.mtime_sec = seconds.into();
        node.mtime_nsec = nanoseconds.into();
        node.xattrs = self.heap.intern(&xattrs::encode(xattrs)?)?.into();
        Ok(node)
    }

    fn set_content(&mut self, node: &mut InodeRecord, content: Content) -> Result<(), BuildError> {
        match content {
            Content::Inline(bytes) => {
                if bytes.len() as u64 > INLINE_MAX {
                    return Err(BuildError::InlineLength(bytes.len()));
                }
                node.flags = FLAG_INLINE.into();
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
            Content::Device { major, minor } => {
                if major > MAJOR_MAX || minor > MINOR_MAX {
                    return Err(BuildError::Device { major, minor });
                }
                node.data = (major << 20 | minor).into();
            }
            Content::Directory
            | Content::Fifo
            | Content::Socket
            | Content::Whiteout
            | Content::HardLink(_) => {}
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

    /// Walks the tree breadth first and numbers it.
    fn assemble(
        mut self,
        kind: IndexKind,
        identity: Option<Digest>,
    ) -> Result<Sections, BuildError> {
        self.settle_whiteouts();
        self.table = HashTable::new();
        let order = self.sorted_links();
        let source = Source {
            heap: self.heap.bytes(),
            objects: self.objects.digests(),
        };
        let mut out = Assembler::new(self.links.len() + 1);
        let root = self.node(BuildNode(0));
        out.add_root(&root, source)?;
        // The number that each node has in the index.
        let mut numbers = vec![NO_NODE; self.nodes.len()];
        // Nodes of the directories in the order of their numbers, and those numbers.
        let mut dirs = std::collections::VecDeque::from([(0_u32, 0_u32)]);
        while let Some((dir, dir_number)) = dirs.pop_front() {
            out.open_dir(dir_number);
            for link in order
                .links_of(dir)
                .iter()
                .filter_map(|at| self.links.get(*at as usize))
            {
                let record = self.node(BuildNode(link.node));
                if kind == IndexKind::Merged && record.has(FLAG_WHITEOUT | FLAG_HARDLINK) {
                    return Err(BuildError::LayerOnly);
                }
                let name = HashedName {
                    name: self.name(link),
                    hash: link.hash(),
                };
                let Some(number) = numbers.get_mut(link.node as usize) else {
                    continue;
                };
                // A whiteout is never shared: it is not a file that can have several names.
                if *number != NO_NODE && !record.has(FLAG_WHITEOUT) {
                    out.add_existing(dir_number, name, *number)?;
                    continue;
                }
                *number = out.add_new(dir_number, name, &record, source)?;
                if record.is_dir() {
                    dirs.push_back((link.node, *number));
                }
            }
        }
        out.finish(kind, identity)
    }

    /// A directory with a whiteout of its own name hides what is below. If nothing says its
    /// attributes, those of the deleted directory are not taken: it is a new one.
    fn settle_whiteouts(&mut self) {
        for link in self
            .links
            .iter()
            .filter(|link| link.whiteout && link.node != NO_NODE)
        {
            if let Some(node) = self.nodes.get_mut(link.node as usize)
                && node.is_dir()
            {
                node.flags = FLAG_OPAQUE.into();
            }
        }
    }

    /// The names of all directories, each directory's sorted by (hash, name).
    fn sorted_links(&self) -> SortedLinks {
        let live = || {
            (0_u32..)
                .zip(&self.links)
                .filter(|(_, link)| link.node != NO_NODE)
        };
        let mut ends = vec![0_u32; self.nodes.len()];
        for (_, link) in live() {
            if let Some(count) = ends.get_mut(link.dir as usize) {
                *count += 1;
            }
        }
        let mut total = 0;
        for end in &mut ends {
            // For now the start; filling it in makes it the end.
            total += std::mem::replace(end, total);
        }
        let mut numbers = vec![0; total as usize];
        for (number, link) in live() {
            if let Some(end) = ends.get_mut(link.dir as usize)
                && let Some(slot) = numbers.get_mut(*end as usize)
            {
                *slot = number;
                *end += 1;
            }
        }
        let mut start = 0;
        for end in &ends {
            let of_dir = numbers.get_mut(start..*end as usize).unwrap_or_default();
            of_dir.sort_unstable_by_key(|number| {
                self.links
                    .get(*number as usize)
                    .map(|link| (link.hash(), self.name(link)))
            });
            start = *end as usize;
        }
        SortedLinks { numbers, ends }
    }
}

/// Numbers of names, by directory.
struct SortedLinks {
    numbers: Vec<u32>,
    /// Where each node's names end; they begin where those of the node before end.
    ends: Vec<u32>,
}

impl SortedLinks {
    fn links_of(&self, dir: u32) -> &[u32] {
        let dir = dir as usize;
        let start = dir
            .checked_sub(1)
            .and_then(|before| self.ends.get(before))
            .copied();
        let end = self.ends.get(dir).copied().unwrap_or_default();
        self.numbers
            .get(start.unwrap_or_default() as usize..end as usize)
            .unwrap_or_default()
    }
}

/// Whether a file type fits a content.
fn fits(file_type: u32, content: &Content) -> bool {
    match content {
        Content::Directory => file_type == libc::S_IFDIR,
        Content::Inline(_) | Content::Object { .. } => file_type == libc::S_IFREG,
        Content::Symlink(_) => file_type == libc::S_IFLNK,
        Content::Device { .. } => file_type == libc::S_IFCHR || file_type == libc::S_IFBLK,
        Content::Fifo => file_type == libc::S_IFIFO,
        Content::Socket => file_type == libc::S_IFSOCK,
        Content::Whiteout | Content::HardLink(_) => true,
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
