//! What can go wrong with a store.

use std::io;
use std::path::{Path, PathBuf};

use crate::digest::{DiffId, ImageId, ObjectId};
use crate::index::{IndexError, MergeError};

/// Why a store cannot do what it was asked for. Every message names the path, the digest or the
/// name that it is about.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A system call failed.
    #[error("cannot {action} {}: {source}{}", .path.display(), hint(.source))]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is nothing at the path of the store.
    #[error("there is no store at {}; 'lamina layer build' makes one", .0.display())]
    Missing(PathBuf),
    /// The directory holds something else.
    #[error("{} is not a store: it has no store.json, and is not empty", .0.display())]
    NotAStore(PathBuf),
    /// `store.json` cannot be understood.
    #[error("{} is damaged: {problem}", .path.display())]
    Superblock {
        /// Path of `store.json`.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A later version of lamina made the store.
    #[error(
        "the store {} has version {found}; this lamina knows versions up to {known}. Use a newer lamina, or another store (--store)",
        .path.display()
    )]
    Version {
        /// Root of the store.
        path: PathBuf,
        /// The store's version.
        found: u64,
        /// The newest version that is known.
        known: u64,
    },
    /// The store uses something that this version does not know.
    #[error(
        "the store {} uses the feature '{feature}', which this lamina does not know{}. Use a newer lamina, or another store (--store)",
        .path.display(),
        if *.read_only { " well enough to change it" } else { "" }
    )]
    Feature {
        /// Root of the store.
        path: PathBuf,
        /// Name of the feature.
        feature: String,
        /// Whether the store can be read all the same.
        read_only: bool,
    },
    /// Something was to be written to a store that was opened for reading.
    #[error("the store {} was opened for reading only", .0.display())]
    ReadOnly(PathBuf),
    /// A layer is not in the store.
    #[error("layer {0} is not in the store; import it with 'lamina layer build'")]
    NoLayer(DiffId),
    /// The index of a layer cannot be read.
    #[error("layer {id} is damaged: {}: {source}. Import it again", .path.display())]
    LayerIndex {
        /// The layer.
        id: DiffId,
        /// Path of its index.
        path: PathBuf,
        /// What is wrong with it.
        source: IndexError,
    },
    /// Another file of a layer cannot be read.
    #[error("layer {id} is damaged: {}: {problem}. Import it again", .path.display())]
    LayerFile {
        /// The layer.
        id: DiffId,
        /// Path of the file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// An object is not in the store.
    #[error("object {id} is missing ({}). Import the layer it belongs to again", .path.display())]
    ObjectMissing {
        /// The object.
        id: ObjectId,
        /// Where it should be.
        path: PathBuf,
    },
    /// An object has other contents than its name says.
    #[error("object {id} is damaged ({}): {problem}. Import the layer it belongs to again", .path.display())]
    ObjectDamaged {
        /// The object.
        id: ObjectId,
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The layers of an image do not fit together.
    #[error("{}: {source}", named(*.layer))]
    Merge {
        /// The layer that the problem is in, if it is in one.
        layer: Option<DiffId>,
        /// What is wrong.
        source: MergeError,
    },
    /// A name that no image can have.
    #[error("'{name}' cannot be the name of an image: {problem}")]
    ImageName {
        /// The name.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Nothing has this name.
    #[error(
        "there is no image or layer '{0}' in the store ('lamina image ls' lists what there is)"
    )]
    NotFound(String),
    /// The beginning of several digests.
    #[error("'{name}' could be any of {}", .candidates.join(", "))]
    Ambiguous {
        /// What was given.
        name: String,
        /// What it could mean.
        candidates: Vec<String>,
    },
    /// A file of an image cannot be understood.
    #[error("image file {} is damaged: {problem}. Build the image again", .path.display())]
    ImageDamaged {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// What kept changes belong on cannot be understood.
    #[error("the changes named '{name}' are damaged: {}: {problem}. 'lamina rm {name}' throws them away", .path.display())]
    KeptDamaged {
        /// Their name.
        name: String,
        /// Path of `mount.json`.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// An image that is to be added is none.
    #[error("image {id} cannot be added: {problem}")]
    ImageWrong {
        /// The digest of its manifest.
        id: ImageId,
        /// What is wrong with it.
        problem: String,
    },
    /// Something is still needed.
    #[error("{what} is in use by {}", .by.join(", "))]
    InUse {
        /// What was to be removed.
        what: String,
        /// What uses it.
        by: Vec<String>,
    },
}

impl StoreError {
    /// For `map_err`: a system call on `path` failed.
    pub(crate) fn io<E: Into<io::Error>>(
        action: &'static str,
        path: impl AsRef<Path>,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::Io {
            action,
            path: path.as_ref().to_owned(),
            source: source.into(),
        }
    }

    /// The kind of the system error, if it is one.
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        match self {
            Self::Io { source, .. } => Some(source.kind()),
            _ => None,
        }
    }
}

/// What to do about a system error, if there is something to be said.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ". Free some space, or use a store elsewhere (--store)"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            ". Another place for the store can be given with --store"
        }
        _ => "",
    }
}

fn named(layer: Option<DiffId>) -> String {
    layer.map_or_else(
        || "cannot merge the layers".into(),
        |id| format!("layer {id}"),
    )
}
