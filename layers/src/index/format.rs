//! The records of an index file, little-endian. `docs/format.md` is the specification.

use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First bytes of every index file.
pub const MAGIC: [u8; 8] = *b"LAMINDEX";
/// Version of the format. A reader refuses any other.
pub const VERSION: u32 = 1;
/// Regular files up to this many bytes are kept in the index itself.
pub const INLINE_MAX: u64 = 512;
/// Longest name of a directory entry, in bytes (`NAME_MAX`).
pub const NAME_MAX: usize = 255;
/// Longest name of an extended attribute, in bytes (`XATTR_NAME_MAX`).
pub const XATTR_NAME_MAX: usize = 255;
/// Longest value of an extended attribute, in bytes (`XATTR_SIZE_MAX`).
pub const XATTR_VALUE_MAX: usize = 65_536;
/// Largest major number of a device.
pub const MAJOR_MAX: u32 = (1 << 12) - 1;
/// Largest minor number of a device.
pub const MINOR_MAX: u32 = (1 << 20) - 1;
/// Longest target of a symbolic link, in bytes (`PATH_MAX` less the final NUL).
pub const SYMLINK_MAX: usize = 4095;

/// The file header, at offset 0.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// [`VERSION`].
    pub version: U32,
    /// 0 = layer, 1 = merged.
    pub kind: U32,
    /// Length of the whole file in bytes.
    pub file_len: U64,
    /// Features a reader must know to read the file at all.
    pub incompat: U32,
    /// Number of [`Section`] records that follow the header.
    pub section_count: U32,
    /// For a merged index the chain ID, for a layer index the diffID; all zero if not known.
    pub identity: [u8; 32],
    /// XXH3-64 of the header (this field zero) followed by the section table.
    pub checksum: U64,
}

/// One entry of the section table.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Section {
    /// A [`SectionKind`] as a number.
    pub kind: U32,
    /// Zero.
    pub reserved: U32,
    /// Offset in the file, a multiple of 8.
    pub offset: U64,
    /// Length in bytes.
    pub len: U64,
    /// XXH3-64 of the section's bytes.
    pub checksum: U64,
}

/// What a section holds. Every kind occurs exactly once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum SectionKind {
    /// [`InodeRecord`]s. Number 0 is the root directory.
    Inodes = 1,
    /// [`DirentRecord`]s: each directory's entries contiguous, sorted by (hash, name).
    Dirents = 2,
    /// 32-byte SHA-256 digests of file contents.
    Objects = 3,
    /// [`LinkRecord`]s sorted by (inode, dirent): all names of inodes with more than one.
    Links = 4,
    /// A zero byte, then symlink targets, inline file contents, xattr sets and names.
    Heap = 5,
}

impl SectionKind {
    /// Every kind, in the order in which the sections stand in the file.
    pub const ALL: [Self; 5] = [
        Self::Inodes,
        Self::Dirents,
        Self::Objects,
        Self::Links,
        Self::Heap,
    ];
}

impl std::fmt::Display for SectionKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Inodes => "inodes",
            Self::Dirents => "dirents",
            Self::Objects => "objects",
            Self::Links => "links",
            Self::Heap => "heap",
        })
    }
}

/// One inode.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct InodeRecord {
    /// `S_IFMT | 07777` bits, as in `st_mode`.
    pub mode: U16,
    /// See the `FLAG_` constants.
    pub flags: U16,
    /// Owner.
    pub uid: U32,
    /// Group.
    pub gid: U32,
    /// Size in bytes for regular files and symlinks; number of entries in the low half and number
    /// of subdirectories in the high half for directories; else 0.
    pub size: U64,
    /// Modification time: seconds since 1970, may be negative.
    pub mtime_sec: I64,
    /// Modification time: nanoseconds, below 10⁹.
    pub mtime_nsec: U32,
    /// Directory: number of its first dirent. Regular file: number in the object table, or heap
    /// offset of the contents with [`FLAG_INLINE`]. Symlink, or hard link to a lower layer: heap
    /// offset of the target. Device: `rdev` as `major << 20 | minor` (12 + 20 bits).
    pub data: U32,
    /// Heap offset of the xattr set, 0 for none.
    pub xattrs: U32,
    /// Inode number of the directory that holds this inode's first name; the root's is 0.
    pub parent: U32,
    /// Number of the dirent that is this inode's first name; the root's is 0.
    pub dirent: U32,
}

impl InodeRecord {
    /// The `S_IFMT` bits of the mode.
    pub fn file_type(&self) -> u32 {
        u32::from(self.mode.get()) & libc::S_IFMT
    }

    /// Whether this is a directory.
    pub fn is_dir(&self) -> bool {
        self.file_type() == libc::S_IFDIR
    }

    /// Whether any of the `FLAG_` bits in `flags` is set.
    pub fn has(&self, flags: u16) -> bool {
        self.flags.get() & flags != 0
    }

    /// Of a directory: the number of its entries.
    pub fn entry_count(&self) -> u32 {
        self.size.get() as u32
    }

    /// Of a directory: the number of its entries that are directories.
    pub fn subdir_count(&self) -> u32 {
        (self.size.get() >> 32) as u32
    }
}

/// Regular file whose contents are in the heap.
pub const FLAG_INLINE: u16 = 1 << 0;
/// Inode with more than one name; all its names are in the links section.
pub const FLAG_LINKS: u16 = 1 << 1;
/// Layer index only: directory that hides what lower layers have below it.
pub const FLAG_OPAQUE: u16 = 1 << 2;
/// Layer index only: this name is deleted (a character device 0:0 in `mode` and `data`).
pub const FLAG_WHITEOUT: u16 = 1 << 3;
/// Layer index only: directory that the archive did not have, made for an entry below it. The
/// merge takes its attributes from a lower layer where there is one.
pub const FLAG_IMPLICIT: u16 = 1 << 4;
/// Layer index only: a hard link to a name that is not in this layer; the heap has its path,
/// relative to the root, without a leading slash. `size` is the path's length.
pub const FLAG_HARDLINK: u16 = 1 << 5;

/// One name in a directory.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DirentRecord {
    /// High 32 bits of the name's 48-bit hash ([`name_hash`]).
    pub hash_high: U32,
    /// Low 16 bits of the name's hash.
    pub hash_low: U16,
    /// Length of the name, 1 to 255.
    pub name_len: u8,
    /// The inode's file type: `(mode & S_IFMT) >> 12`, as in `d_type`.
    pub file_type: u8,
    /// Heap offset of the name.
    pub name: U32,
    /// Inode number.
    pub inode: U32,
}

impl DirentRecord {
    /// The 48-bit hash of the name.
    pub fn hash(&self) -> u64 {
        u64::from(self.hash_high.get()) << 16 | u64::from(self.hash_low.get())
    }
}

/// One name of an inode that has several.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct LinkRecord {
    /// Inode number.
    pub inode: U32,
    /// Number of the dirent.
    pub dirent: U32,
    /// Inode number of the directory that holds the dirent.
    pub parent: U32,
}

/// The 48-bit hash that orders the entries of a directory: the top 48 bits of XXH3-64 of the
/// name, seed 0. Directory listings on a mount come in this order, and the position in a
/// directory (`d_off`) is made of it, so it may never change.
pub fn name_hash(name: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(name) >> 16
}

/// Whether `name` may name a directory entry: 1 to 255 bytes, no `/`, no NUL, not `.` or `..`.
pub fn name_is_legal(name: &[u8]) -> bool {
    // A fold without an early exit is vectorised.
    let bad = name.iter().fold(0, |bad, byte| {
        bad | u8::from(*byte == 0) | u8::from(*byte == b'/')
    });
    bad == 0 && (1..=NAME_MAX).contains(&name.len()) && name != b"." && name != b".."
}
