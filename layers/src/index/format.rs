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
    /// [`EntryRecord`]s. Number 0 is the root directory.
    Entries = 1,
    /// [`AttributesRecord`]s, each once.
    Attributes = 2,
    /// 32-byte SHA-256 digests of file contents, each once.
    Objects = 3,
    /// [`AliasRecord`]s sorted by (inode, alias).
    Aliases = 4,
    /// A zero byte, then symlink targets, inline file contents, xattr sets and names.
    Heap = 5,
}

impl SectionKind {
    /// Every kind, in the order in which the sections stand in the file.
    pub const ALL: [Self; 5] = [
        Self::Entries,
        Self::Attributes,
        Self::Objects,
        Self::Aliases,
        Self::Heap,
    ];
}

impl std::fmt::Display for SectionKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Entries => "entries",
            Self::Attributes => "attributes",
            Self::Objects => "objects",
            Self::Aliases => "aliases",
            Self::Heap => "heap",
        })
    }
}

/// A name in a directory, and the inode it names. The number of the record is the number of the
/// inode. The entries of a directory have consecutive numbers, sorted by (hash, name).
///
/// A further name of an inode that has several is an *alias*: a record that only refers to the
/// first name's.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct EntryRecord {
    /// High 32 bits of the name's 48-bit hash ([`name_hash`]).
    pub hash_high: U32,
    /// Low 16 bits of the name's hash.
    pub hash_low: U16,
    /// Length of the name, 1 to 255; 0 for the root.
    pub name_len: u8,
    /// An [`EntryKind`] in the low four bits, and the `FLAG_` bits.
    pub kind: u8,
    /// Heap offset of the name.
    pub name: U32,
    /// Number of the inode's [`AttributesRecord`]; 0 for an alias.
    pub attributes: U32,
    /// Directory: number of entries in the low half, number of those that are directories in the
    /// high half. Regular file, symlink or hard link: length of the contents, of the target or of
    /// the path in bytes. Else 0.
    pub size: U64,
    /// Meaning depends on the kind, see [`EntryKind`].
    pub data: U32,
    /// Number of the directory; 0 for the root.
    pub parent: U32,
}

/// What an [`EntryRecord`] is, and what its `data` means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EntryKind {
    /// A directory. `data` is the number of its first entry.
    Directory = 1,
    /// A regular file whose contents are at the heap offset `data`.
    Inline = 2,
    /// A regular file whose contents are the object with the number `data`.
    Object = 3,
    /// A symbolic link whose target is at the heap offset `data`.
    Symlink = 4,
    /// A character device. `data` is `major << 20 | minor` (12 + 20 bits).
    CharDevice = 5,
    /// A block device. `data` as for a character device.
    BlockDevice = 6,
    /// A named pipe. `data` is 0.
    Fifo = 7,
    /// A socket. `data` is 0.
    Socket = 8,
    /// Layer index only: lower layers' entry of this name is deleted. `data` is 0.
    Whiteout = 9,
    /// Layer index only: a hard link to a name that is not in this layer. Its path, relative to
    /// the root without a leading slash, is at the heap offset `data`.
    HardLink = 10,
    /// A further name of the inode with the number `data`, which is lower than this record's.
    Alias = 11,
}

impl EntryKind {
    /// The low four bits of [`EntryRecord::kind`] as a kind.
    pub fn from_bits(kind: u8) -> Option<Self> {
        Some(match kind & 15 {
            1 => Self::Directory,
            2 => Self::Inline,
            3 => Self::Object,
            4 => Self::Symlink,
            5 => Self::CharDevice,
            6 => Self::BlockDevice,
            7 => Self::Fifo,
            8 => Self::Socket,
            9 => Self::Whiteout,
            10 => Self::HardLink,
            11 => Self::Alias,
            _ => return None,
        })
    }

    /// The file type as in `d_type`; shifted left by 12 it is that of `st_mode`. 0 for an alias.
    pub fn file_type(self) -> u8 {
        match self {
            Self::Directory => libc::DT_DIR,
            Self::Inline | Self::Object | Self::HardLink => libc::DT_REG,
            Self::Symlink => libc::DT_LNK,
            Self::CharDevice | Self::Whiteout => libc::DT_CHR,
            Self::BlockDevice => libc::DT_BLK,
            Self::Fifo => libc::DT_FIFO,
            Self::Socket => libc::DT_SOCK,
            Self::Alias => libc::DT_UNKNOWN,
        }
    }
}

/// Inode with more than one name: the others are in the aliases section.
pub const FLAG_LINKS: u8 = 1 << 4;
/// Layer index only: directory that hides what lower layers have below it.
pub const FLAG_OPAQUE: u8 = 1 << 5;
/// Layer index only: directory that the archive did not have, made for an entry below it. The
/// merge takes its attributes from a lower layer where there is one.
pub const FLAG_IMPLICIT: u8 = 1 << 6;
/// Every flag.
pub const FLAGS: u8 = FLAG_LINKS | FLAG_OPAQUE | FLAG_IMPLICIT;

impl EntryRecord {
    /// What this is; `None` for bits that mean nothing.
    pub fn kind(&self) -> Option<EntryKind> {
        EntryKind::from_bits(self.kind)
    }

    /// Whether this is of a kind.
    pub fn is(&self, kind: EntryKind) -> bool {
        self.kind & 15 == kind as u8
    }

    /// Whether this is a directory.
    pub fn is_dir(&self) -> bool {
        self.is(EntryKind::Directory)
    }

    /// Whether any of these `FLAG_` bits is set.
    pub fn has(&self, flags: u8) -> bool {
        self.kind & flags & FLAGS != 0
    }

    /// The 48-bit hash of the name.
    pub fn hash(&self) -> u64 {
        u64::from(self.hash_high.get()) << 16 | u64::from(self.hash_low.get())
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

/// Attributes that inodes have in common.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct AttributesRecord {
    /// Permissions, setuid, setgid and sticky bit: the low 12 bits of `st_mode`.
    pub permissions: U16,
    /// Zero.
    pub reserved: U16,
    /// Owner.
    pub uid: U32,
    /// Group.
    pub gid: U32,
    /// Heap offset of the xattr set, 0 for none.
    pub xattrs: U32,
    /// Modification time: seconds since 1970, may be negative.
    pub mtime_sec: I64,
    /// Modification time: nanoseconds, below 10⁹.
    pub mtime_nsec: U32,
}

/// A further name of an inode.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct AliasRecord {
    /// Inode number, which is the number of its first name.
    pub inode: U32,
    /// Number of the entry that is the alias.
    pub alias: U32,
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
