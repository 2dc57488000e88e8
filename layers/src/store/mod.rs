//! The store: objects, layers, images and what protects them, in one directory.
//!
//! ```text
//! store.json                    version and features
//! objects/ab/cdef…              file contents, named by SHA-256, mode 0444
//! layers/<diffid hex>/{index,tarsplit,layer.json}
//! merged/<chainid hex>-v1.index the layers of an image in one index: a cache
//! blobs/<digest hex>             layers as they came, compressed; only where asked for
//! images/<digest hex>/{manifest,config,source}.json
//! refs/<name>                   names of images
//! mounts/<name>/                kept uppers
//! leases/<id>                   what a live mount pins; held by flock
//! cache/{build,mounts}/          what builds remember; can be deleted
//! staging/<unique>/             everything is written here first
//! quarantine/<unique>/          damaged things, out of the way
//! ```
//!
//! Several processes use a store at once. Files in it never change: they are written in staging,
//! made durable, and renamed into place, objects before the layers that name them, layers before
//! images, images before names. So a crash at any moment leaves a store in which everything that
//! is there is whole; `docs/format.md` has the details.
//!
//! Nothing read from the store is trusted: damage is found and named.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::digest::{ChainId, DiffId, ObjectId};

mod blobs;
mod cache;
mod claim;
mod error;
mod fsck;
mod gc;
mod images;
mod kept;
mod layers;
mod lease;
mod lock;
mod needs;
mod objects;
pub mod oci;
mod refs;
mod source;
mod staging;
mod superblock;
mod txn;
mod usage;
mod verify;

pub(crate) use blobs::BlobStage;
pub use cache::CachedStep;
pub use error::StoreError;
pub use fsck::{Damage, FsckOptions, Outcome, Refetch, Report, Subject};
pub use gc::{GcOptions, Swept};
pub(crate) use images::parse_image;
pub use images::{Image, ImageFiles, ImageSpec};
pub use kept::Kept;
pub use layers::LayerInfo;
pub(crate) use layers::{INDEX, TARSPLIT};
pub use lease::{Lease, Pins};
pub use refs::check_name;
#[cfg(feature = "registry")]
pub(crate) use refs::{check_path, check_tag, familiar};
pub use source::Source;
pub use staging::{Staging, lock_dir};
pub use txn::{Committed, Transaction};
pub(crate) use txn::{LargeObject, LayerStage};
pub use usage::{ImageUsage, Usage};
pub use verify::{Verified, VerifiedLayer};

/// How a store is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing in it is changed; it may lie on a read-only filesystem.
    ReadOnly,
    /// It is made if it is not there.
    ReadWrite,
}

/// A store of layers and images. Cheap to share between threads.
pub struct Store {
    root: PathBuf,
    access: Access,
    objects: OwnedFd,
    /// The lease on what this process found or added, and is going to refer to.
    kept: Mutex<Option<(Pins, Lease)>>,
    distrusted: Mutex<Distrusted>,
}

/// What is known to be damaged, and is written again by an import instead of being reused.
#[derive(Default)]
struct Distrusted {
    objects: HashSet<ObjectId>,
    layers: HashSet<DiffId>,
}

/// The directories of a store.
const DIRECTORIES: [&str; 9] = [
    "objects", "layers", "merged", "blobs", "images", "refs", "mounts", "leases", "staging",
];

impl Store {
    /// Opens the store at `root`. For reading and writing, it is made first if there is nothing,
    /// and what killed processes left in it is cleared away.
    ///
    /// # Errors
    /// When there is no store, something else is there, it needs a newer program, or a system call
    /// fails.
    pub fn open(root: &Path, access: Access) -> Result<Self, StoreError> {
        if !superblock::check(root, access)? {
            if access == Access::ReadOnly {
                return Err(if root.exists() {
                    StoreError::NotAStore(root.to_owned())
                } else {
                    StoreError::Missing(root.to_owned())
                });
            }
            superblock::create(root)?;
        }
        let root = root.canonicalize().map_err(StoreError::io("open", root))?;
        if access == Access::ReadWrite {
            for name in DIRECTORIES {
                make_dir(&root.join(name))?;
            }
            staging::clear_abandoned(&root.join("staging"))?;
        }
        let objects = root.join("objects");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let objects = openat(CWD, &objects, flags, Mode::empty())
            .map_err(StoreError::io("open", &objects))?;
        let store = Self {
            root,
            access,
            objects,
            kept: Mutex::default(),
            distrusted: Mutex::default(),
        };
        if access == Access::ReadWrite {
            store.clear_stale_leases()?;
        }
        Ok(store)
    }

    /// Opens objects through another descriptor of their directory, for instance of a mount that is
    /// read-only.
    #[must_use]
    pub fn with_objects_dir(self, view: impl FnOnce(BorrowedFd<'_>) -> Option<OwnedFd>) -> Self {
        let objects = view(self.objects.as_fd()).unwrap_or(self.objects);
        Self { objects, ..self }
    }

    /// The directory of the store, an absolute path.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// How it was opened.
    pub fn access(&self) -> Access {
        self.access
    }

    /// The directory of the named mount `name`.
    pub fn mount_dir(&self, name: &str) -> PathBuf {
        self.root.join("mounts").join(name)
    }

    /// The directory of a layer.
    pub fn layer_dir(&self, id: &DiffId) -> PathBuf {
        self.root.join("layers").join(id.0.hex())
    }

    /// Path of a merged index.
    fn merged_path(&self, chain: &ChainId) -> PathBuf {
        self.root
            .join("merged")
            .join(format!("{}-v1.index", chain.0.hex()))
    }

    /// A new directory on the store's filesystem, for work that leaves nothing. It goes when it is
    /// dropped, or if the process is killed with the next that opens the store.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn scratch(&self) -> Result<Staging, StoreError> {
        self.for_writing()?;
        Staging::create(&self.root.join("staging"))
    }

    fn objects_dir(&self) -> BorrowedFd<'_> {
        self.objects.as_fd()
    }

    /// Refuses to go on if the store is open for reading only.
    fn for_writing(&self) -> Result<(), StoreError> {
        match self.access {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => Err(StoreError::ReadOnly(self.root.clone())),
        }
    }
}

/// Makes a directory unless it is there.
fn make_dir(path: &Path) -> Result<(), StoreError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(StoreError::io("create", path)(error))
        }
        _ => Ok(()),
    }
}

/// Makes the names in a directory durable.
fn sync_dir(path: &Path) -> Result<(), StoreError> {
    fs::File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(StoreError::io("sync", path))
}
