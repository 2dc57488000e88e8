//! What can be wrong with an archive.

use std::io;
use std::path::PathBuf;

use super::header::FieldError;
use super::pax::PaxError;
use super::sparse::SparseError;
use crate::digest::DiffId;
use crate::index::BuildError;
use crate::index::format::{NAME_MAX, SYMLINK_MAX};
use crate::store::StoreError;

/// Why a layer cannot be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The archive is wrong.
    #[error("{name}: {source}")]
    Archive {
        /// What the caller calls the archive.
        name: String,
        /// What is wrong with it.
        source: ArchiveError,
    },
    /// The archive expands to more than is allowed.
    #[error(
        "{name} expands to more than {limit} bytes; --max-size allows more if that is what you want"
    )]
    TooLarge {
        /// What the caller calls the archive.
        name: String,
        /// The limit, in bytes.
        limit: u64,
    },
    /// The store does not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The index does not take it.
    #[error("{name}: {source}")]
    Index {
        /// What the caller calls the archive.
        name: String,
        /// Why not.
        source: BuildError,
    },
    /// A bug: a thread of the import panicked.
    #[error("{0}: a thread of the import panicked; this is a bug in lamina")]
    Panicked(String),
}

/// What is wrong with an archive, and where.
#[derive(Debug, thiserror::Error)]
#[error("{}{problem}", place(.path.as_deref(), *.position))]
pub struct ArchiveError {
    /// How far the uncompressed archive had been read, in bytes.
    pub position: Option<u64>,
    /// The entry it happened in.
    pub path: Option<Vec<u8>>,
    /// What is wrong.
    pub problem: Problem,
}

/// What is wrong with an archive or an entry of it.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// Reading it failed.
    #[error("cannot read it: {0}")]
    Read(io::Error),
    /// Something in a directory that a layer is made of cannot be read.
    #[error("cannot {action} {}: {source}", .path.display())]
    Source {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Something in a directory that a layer cannot hold.
    #[error("{}: {problem}", .path.display())]
    Unfit {
        /// What.
        path: PathBuf,
        /// Why.
        problem: &'static str,
    },
    /// The compressed data is wrong.
    #[error("the {kind} data is truncated or damaged: {source}")]
    Compressed {
        /// The compression.
        kind: &'static str,
        /// What the decompressor says.
        source: io::Error,
    },
    /// Something else follows compressed data.
    #[error("something that is not {0} data follows the {0} data")]
    Trailing(&'static str),
    /// Zero bytes.
    #[error("it is empty (even an archive without entries has two blocks of zeros)")]
    Empty,
    /// It does not begin with a tar header.
    #[error("it is not a tar archive, nor one compressed by gzip, zstd, xz or bzip2")]
    NotTar,
    /// The checksum of a header is wrong.
    #[error("the archive is damaged: a header has a wrong checksum")]
    Checksum,
    /// It ends early.
    #[error("the archive is truncated: it ends in the middle of {0}")]
    Truncated(&'static str),
    /// A block of zeros, and then something else.
    #[error("the archive is damaged: it goes on after a single block of zeros")]
    LoneZeroBlock,
    /// A field of a header.
    #[error("{0}")]
    Field(#[from] FieldError),
    /// An extended header.
    #[error("{0}")]
    Pax(#[from] PaxError),
    /// The map of a sparse file.
    #[error("{0}")]
    Sparse(#[from] SparseError),
    /// A size that no file can have.
    #[error("a size of {0} bytes is not possible")]
    Size(u64),
    /// An owner or group out of range.
    #[error("{0} {1} is out of range")]
    Owner(&'static str, i64),
    /// A header that describes another one is too large.
    #[error("{what} of {size} bytes is too large (at most {max})")]
    ExtensionSize {
        /// What kind of header.
        what: &'static str,
        /// Its size, in bytes.
        size: u64,
        /// What it may be.
        max: u64,
    },
    /// A kind of entry that is for archives over several volumes.
    #[error("it is a part of an archive over several volumes")]
    MultiVolume,
    /// A NUL in a path.
    #[error("the path has a NUL in it")]
    Nul,
    /// A name too long.
    #[error("the path has a name of {0} bytes in it (at most {NAME_MAX})")]
    NameLength(usize),
    /// Something else than a directory with the root's path.
    #[error("the root can only be a directory")]
    Root,
    /// Something is below a file.
    #[error("'{}' in its path is not a directory", .0.escape_ascii())]
    NotADirectory(Vec<u8>),
    /// Symlinks in a path that lead to each other.
    #[error("too many symbolic links in its path")]
    SymlinkLoop,
    /// A target too long or empty.
    #[error("a symbolic link's target must have 1 to {SYMLINK_MAX} bytes without NUL")]
    SymlinkTarget,
    /// A whiteout of nothing.
    #[error("it is a whiteout without the name of what it deletes")]
    Whiteout,
    /// A whiteout that has something below it.
    #[error("the whiteout '{}' in its path cannot be a directory", .0.escape_ascii())]
    WhiteoutParent(Vec<u8>),
    /// A hard link to a directory or to the root.
    #[error("it is a hard link to '{}', which is a directory", .0.escape_ascii())]
    LinkToDirectory(Vec<u8>),
    /// The index does not take the entry.
    #[error("{0}")]
    Build(#[from] BuildError),
}

/// Why the archive of a layer cannot be made again.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The store does not have what is needed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What says how the archive is put together is damaged.
    #[error("layer {id} is damaged: its tarsplit {problem}. Import it again")]
    Split {
        /// The layer.
        id: DiffId,
        /// What is wrong.
        problem: SplitError,
    },
    /// What came out is not the layer.
    #[error("layer {id} is damaged: its archive comes out as {found}. Import it again")]
    Digest {
        /// The layer.
        id: DiffId,
        /// The digest of what came out.
        found: DiffId,
    },
    /// Reading an object failed.
    #[error("cannot read from the store: {0}")]
    Read(io::Error),
    /// Nobody takes it.
    #[error("cannot write the archive: {0}")]
    Write(io::Error),
}

/// What is wrong with a tarsplit.
#[derive(Debug, thiserror::Error)]
pub enum SplitError {
    /// It does not begin as it should.
    #[error("is not one (it does not begin with LAMSPLIT)")]
    Magic,
    /// Another version of the format.
    #[error("has version {0}, which this lamina does not know")]
    Version(u32),
    /// Its header or its table of objects is wrong.
    #[error("has a wrong checksum")]
    Checksum,
    /// Sizes that do not fit.
    #[error("has a wrong length")]
    Length,
    /// The records cannot be unpacked.
    #[error("cannot be unpacked: {0}")]
    Unpack(io::Error),
    /// A record that means nothing.
    #[error("has a record that means nothing")]
    Record,
    /// It says that it is another layer's.
    #[error("belongs to another layer")]
    Other,
}

/// The beginning of an error message. Long paths are cut.
fn place(path: Option<&[u8]>, position: Option<u64>) -> String {
    const MAX: usize = 300;
    match (path, position) {
        (Some(path), _) => match path.split_at_checked(MAX) {
            Some((start, rest)) if !rest.is_empty() => {
                format!("entry '{}…': ", start.escape_ascii())
            }
            _ => format!("entry '{}': ", path.escape_ascii()),
        },
        (None, Some(position)) => format!("at byte {position}: "),
        (None, None) => String::new(),
    }
}

impl Problem {
    /// The error for this, without a place.
    pub(crate) fn nowhere(self) -> ArchiveError {
        ArchiveError {
            position: None,
            path: None,
            problem: self,
        }
    }
}

/// Why reading an archive stops, inside an import.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The archive is wrong.
    Archive(ArchiveError),
    /// It expands to more than is allowed.
    TooLarge,
    /// The tarsplit cannot be written.
    Split(io::Error),
    /// The store does not take an object.
    Store(StoreError),
}

impl From<ArchiveError> for Stop {
    fn from(error: ArchiveError) -> Self {
        Self::Archive(error)
    }
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}
