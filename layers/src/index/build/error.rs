//! Why a tree cannot become an index.

use std::io;

use crate::index::format::{
    INLINE_MAX, MAJOR_MAX, MINOR_MAX, NAME_MAX, SYMLINK_MAX, XATTR_NAME_MAX, XATTR_VALUE_MAX,
};

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
