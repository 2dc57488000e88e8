//! One inode of an index.

use std::fmt;

use super::format::{
    AttributesRecord, EntryKind, EntryRecord, FLAG_IMPLICIT, FLAG_LINKS, FLAG_OPAQUE, MINOR_MAX,
};
use super::layout::Tables;
use super::view::Ino;
use super::xattrs::Xattrs;
use crate::digest::{Digest, ObjectId};

/// An inode. Cheap to copy.
#[derive(Clone, Copy)]
pub struct Inode<'a> {
    tables: Tables<'a>,
    record: &'a EntryRecord,
    ino: Ino,
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
    pub(super) fn new(tables: Tables<'a>, ino: Ino) -> Option<Self> {
        let record = tables.inode(ino.0)?;
        Some(Self {
            tables,
            record,
            ino,
        })
    }

    fn kind(&self) -> EntryKind {
        // The check at open has ruled out other bits.
        self.record.kind().unwrap_or(EntryKind::Socket)
    }

    fn attributes(&self) -> Option<&'a AttributesRecord> {
        self.tables.attributes_of(self.record)
    }

    /// Its number.
    pub fn ino(&self) -> Ino {
        self.ino
    }

    /// File type as in `d_type`.
    pub fn file_type(&self) -> u8 {
        self.kind().file_type()
    }

    /// `S_IFMT | 07777` bits, as in `st_mode`.
    pub fn mode(&self) -> u32 {
        let permissions = self
            .attributes()
            .map_or(0, |attributes| attributes.permissions.get());
        u32::from(self.file_type()) << 12 | u32::from(permissions)
    }

    /// Owner.
    pub fn uid(&self) -> u32 {
        self.attributes()
            .map_or(0, |attributes| attributes.uid.get())
    }

    /// Group.
    pub fn gid(&self) -> u32 {
        self.attributes()
            .map_or(0, |attributes| attributes.gid.get())
    }

    /// Size in bytes of a regular file, or of a symlink's target; 0 for anything else.
    pub fn size(&self) -> u64 {
        match self.kind() {
            EntryKind::Inline | EntryKind::Object | EntryKind::Symlink => self.record.size.get(),
            _ => 0,
        }
    }

    /// Modification time: seconds since 1970 and nanoseconds.
    pub fn mtime(&self) -> (i64, u32) {
        self.attributes().map_or((0, 0), |attributes| {
            (attributes.mtime_sec.get(), attributes.mtime_nsec.get())
        })
    }

    /// Link count: 2 and the number of subdirectories for a directory, else the number of names.
    pub fn nlink(&self) -> u32 {
        if self.record.is_dir() {
            self.record.subdir_count().saturating_add(2)
        } else if self.record.has(FLAG_LINKS) {
            1 + self.tables.aliases_of(self.ino.0).len() as u32
        } else {
            1
        }
    }

    /// The extended attributes, sorted by name.
    pub fn xattrs(&self) -> Xattrs<'a> {
        let set = self
            .attributes()
            .map_or(0, |attributes| attributes.xattrs.get());
        Xattrs::at(self.tables.heap, set)
    }

    /// The value of one extended attribute.
    pub fn xattr(&self, name: &[u8]) -> Option<&'a [u8]> {
        self.xattrs()
            .find(|(at, _)| *at == name)
            .map(|(_, value)| value)
    }

    /// Whether there are extended attributes.
    pub fn has_xattrs(&self) -> bool {
        self.attributes()
            .is_some_and(|attributes| attributes.xattrs.get() != 0)
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
        match self.kind() {
            EntryKind::Directory => Data::Directory {
                entries: record.entry_count(),
                subdirs: record.subdir_count(),
            },
            EntryKind::Inline => Data::Inline(bytes()),
            EntryKind::Object => {
                let digest = self.tables.objects.get(data as usize);
                Data::Object(ObjectId(Digest(digest.copied().unwrap_or_default())))
            }
            EntryKind::Symlink => Data::Symlink(bytes()),
            EntryKind::CharDevice | EntryKind::BlockDevice => Data::Device {
                major: data >> 20,
                minor: data & MINOR_MAX,
            },
            EntryKind::Fifo => Data::Fifo,
            EntryKind::Whiteout => Data::Whiteout,
            EntryKind::HardLink => Data::HardLink(bytes()),
            // An alias is never made an `Inode`.
            EntryKind::Socket | EntryKind::Alias => Data::Socket,
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
