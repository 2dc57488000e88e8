//! One inode of an index.

use std::fmt;

use super::format::{
    FLAG_HARDLINK, FLAG_IMPLICIT, FLAG_INLINE, FLAG_LINKS, FLAG_OPAQUE, FLAG_WHITEOUT, InodeRecord,
    MINOR_MAX,
};
use super::layout::Tables;
use super::view::Ino;
use super::xattrs::Xattrs;
use crate::digest::{Digest, ObjectId};

/// An inode. Cheap to copy.
#[derive(Clone, Copy)]
pub struct Inode<'a> {
    pub(super) tables: Tables<'a>,
    pub(super) record: &'a InodeRecord,
    pub(super) ino: Ino,
}

/// What an inode is, and its contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data<'a> {
    /// A directory.
    Directory {
        /// Number of its entries.
        entries: u32,
        /// How many of them are directories.
        subdirs: u32,
    },
    /// A regular file whose contents are in the index.
    Inline(&'a [u8]),
    /// A regular file whose contents are an object of the store, [`Inode::size`] bytes long.
    Object(ObjectId),
    /// A symbolic link to this target.
    Symlink(&'a [u8]),
    /// A character or block device; the mode says which.
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
    /// Layer index only: lower layers' entry of this name is deleted.
    Whiteout,
    /// Layer index only: another name of the file that lower layers have at this path, relative
    /// to the root.
    HardLink(&'a [u8]),
}

impl<'a> Inode<'a> {
    /// Its number.
    pub fn ino(&self) -> Ino {
        self.ino
    }

    /// `S_IFMT | 07777` bits, as in `st_mode`.
    pub fn mode(&self) -> u32 {
        u32::from(self.record.mode.get())
    }

    /// Owner.
    pub fn uid(&self) -> u32 {
        self.record.uid.get()
    }

    /// Group.
    pub fn gid(&self) -> u32 {
        self.record.gid.get()
    }

    /// Size in bytes of a regular file, or of a symlink's target; 0 for anything else.
    pub fn size(&self) -> u64 {
        if self.record.is_dir() || self.record.has(FLAG_HARDLINK) {
            0
        } else {
            self.record.size.get()
        }
    }

    /// Modification time: seconds since 1970 and nanoseconds.
    pub fn mtime(&self) -> (i64, u32) {
        (self.record.mtime_sec.get(), self.record.mtime_nsec.get())
    }

    /// Link count: 2 and the number of subdirectories for a directory, else the number of names.
    pub fn nlink(&self) -> u32 {
        if self.record.is_dir() {
            self.record.subdir_count().saturating_add(2)
        } else if self.record.has(FLAG_LINKS) {
            let links = self.tables.links;
            let end = links.partition_point(|link| link.inode.get() <= self.ino.0);
            (end - links.partition_point(|link| link.inode.get() < self.ino.0)) as u32
        } else {
            1
        }
    }

    /// The extended attributes, sorted by name.
    pub fn xattrs(&self) -> Xattrs<'a> {
        Xattrs::at(self.tables.heap, self.record.xattrs.get())
    }

    /// The value of one extended attribute.
    pub fn xattr(&self, name: &[u8]) -> Option<&'a [u8]> {
        self.xattrs()
            .find(|(at, _)| *at == name)
            .map(|(_, value)| value)
    }

    /// Whether there are extended attributes.
    pub fn has_xattrs(&self) -> bool {
        self.record.xattrs.get() != 0
    }

    /// The directory that holds its first name; the root is its own parent.
    pub fn parent(&self) -> Ino {
        Ino(self.record.parent.get())
    }

    /// Layer index only: a directory that hides what lower layers have below it.
    pub fn is_opaque(&self) -> bool {
        self.record.has(FLAG_OPAQUE)
    }

    /// Layer index only: a directory that the archive did not have.
    pub fn is_implicit(&self) -> bool {
        self.record.has(FLAG_IMPLICIT)
    }

    /// What it is, and its contents.
    pub fn data(&self) -> Data<'a> {
        let record = self.record;
        let data = record.data.get();
        let bytes = || self.tables.heap_at(data, record.size.get() as usize);
        match record.file_type() {
            libc::S_IFDIR => Data::Directory {
                entries: record.entry_count(),
                subdirs: record.subdir_count(),
            },
            libc::S_IFREG if record.has(FLAG_INLINE) => Data::Inline(bytes()),
            libc::S_IFREG if record.has(FLAG_HARDLINK) => Data::HardLink(bytes()),
            libc::S_IFREG => Data::Object(ObjectId(Digest(
                self.tables
                    .objects
                    .get(data as usize)
                    .copied()
                    .unwrap_or_default(),
            ))),
            libc::S_IFLNK => Data::Symlink(bytes()),
            libc::S_IFIFO => Data::Fifo,
            libc::S_IFSOCK => Data::Socket,
            _ if record.has(FLAG_WHITEOUT) => Data::Whiteout,
            _ => Data::Device {
                major: data >> 20,
                minor: data & MINOR_MAX,
            },
        }
    }
}

impl fmt::Debug for Inode<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inode")
            .field("ino", &self.ino)
            .field("mode", &format_args!("{:#o}", self.mode()))
            .field("data", &self.data())
            .finish_non_exhaustive()
    }
}
