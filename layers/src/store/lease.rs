//! Leases: what a live mount needs, so that it is not removed.
//!
//! A lease is a file in `leases/` on which its holder has a `flock`. It ends with the process that
//! holds it, however that ends; a file that nobody holds means nothing and is cleared away.
//!
//! A lease is taken under the store's lock, shared; leases are looked at, and stale ones cleared,
//! under the same lock, exclusive. So there is no moment in which a lease that is being taken looks
//! stale, or in which something is removed that is being leased.
//!
//! A program that adds layers and is going to make an image of them holds a lease on them meanwhile
//! ([`Store::keep`]): nothing refers to them yet.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::lock::StoreLock;
use super::staging::unique_name;
use super::{Access, Store, StoreError};
use crate::digest::{DiffId, Digest, ImageId};

/// What a lease protects.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Pins {
    /// Who needs it, for people: `the mount on /mnt (process 123)`.
    pub holder: String,
    /// The image that is in use.
    pub image: Option<ImageId>,
    /// The layers that are in use.
    pub layers: Vec<DiffId>,
    /// The kept blobs that are going to be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blobs: Vec<String>,
}

impl Pins {
    /// Whether nobody knows what it is on.
    pub(super) fn is_unknown(&self) -> bool {
        self.image.is_none() && self.layers.is_empty() && self.blobs.is_empty()
    }
}

/// A lease, until it is dropped or the process ends. A child process that inherits its descriptor
/// keeps it alive.
#[derive(Debug)]
pub struct Lease {
    /// Holds the lock. Nothing in a store that is open for reading only.
    held: Option<(File, PathBuf)>,
    owner: u32,
}

impl Lease {
    fn path(&self) -> Option<&Path> {
        self.held.as_ref().map(|(_, path)| path.as_path())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // In the parent of a process that went on to hold it, the file must stay.
        if let Some((_, path)) = &self.held
            && self.owner == std::process::id()
            && let Err(error) = fs::remove_file(path)
        {
            tracing::warn!("cannot remove {}: {error}", path.display());
        }
    }
}

impl Store {
    /// Protects layers and an image from removal. In a store that is open for reading only nothing
    /// is written, and nothing protected.
    ///
    /// # Errors
    /// When a layer is not in the store, or the lease cannot be written.
    pub fn lease(&self, pins: &Pins) -> Result<Lease, StoreError> {
        let owner = std::process::id();
        let lock = self.lock_shared()?;
        if let Some(missing) = pins.layers.iter().find(|id| !self.is_layer(id)) {
            return Err(StoreError::NoLayer(*missing));
        }
        if self.access() == Access::ReadOnly {
            return Ok(Lease { held: None, owner });
        }
        self.write_lease(pins, &lock)
    }

    fn write_lease(&self, pins: &Pins, _lock: &StoreLock) -> Result<Lease, StoreError> {
        let owner = std::process::id();
        let path = self.root().join("leases").join(unique_name()?);
        let write = || -> io::Result<File> {
            let mut file = File::create_new(&path)?;
            flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            file.write_all(&serde_json::to_vec(pins)?)?;
            Ok(file)
        };
        match write() {
            Ok(file) => Ok(Lease {
                held: Some((file, path)),
                owner,
            }),
            Err(error) => {
                // Without its lock it means nothing; it may not be there at all.
                let _ = fs::remove_file(&path);
                Err(StoreError::io("write", path)(error))
            }
        }
    }

    /// Protects layers, blobs, and an image, until the store is dropped.
    pub(super) fn keep(
        &self,
        layers: &[DiffId],
        blobs: &[Digest],
        image: Option<ImageId>,
        lock: &StoreLock,
    ) -> Result<(), StoreError> {
        if layers.is_empty() && blobs.is_empty() && image.is_none() {
            return Ok(());
        }
        let mut kept = self.kept.lock();
        let mut pins = match &*kept {
            Some((pins, _)) => pins.clone(),
            None => Pins {
                holder: format!(
                    "a program that adds to the store (process {})",
                    std::process::id()
                ),
                image: None,
                layers: Vec::new(),
                blobs: Vec::new(),
            },
        };
        let blobs = blobs.iter().map(ToString::to_string);
        let new: Vec<String> = blobs.filter(|blob| !pins.blobs.contains(blob)).collect();
        pins.blobs.extend(new);
        pins.image = image.or(pins.image);
        let new = layers.iter().filter(|id| !pins.layers.contains(id));
        let new: Vec<DiffId> = new.copied().collect();
        pins.layers.extend(new);
        if kept.as_ref().is_none_or(|(old, _)| *old != pins) {
            // The new lease is there before the old one goes.
            let lease = self.write_lease(&pins, lock)?;
            *kept = Some((pins, lease));
        }
        Ok(())
    }

    /// What live mounts protect, and programs that add to the store.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn leases(&self) -> Result<Vec<Pins>, StoreError> {
        let mut live = Vec::new();
        let kept = self.kept.lock();
        let own = kept.as_ref().and_then(|(_, lease)| lease.path());
        for path in self.lease_files()? {
            // What this process added itself it may remove.
            if own == Some(path.as_path()) {
                continue;
            }
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(StoreError::io("open", path)(error)),
            };
            if flock(&file, FlockOperation::NonBlockingLockShared) != Err(Errno::WOULDBLOCK) {
                continue;
            }
            let pins = io::read_to_string(&file)
                .ok()
                .and_then(|text| serde_json::from_str(&text).ok());
            live.push(pins.unwrap_or_else(|| Pins {
                holder: format!("a program that wrote {}", path.display()),
                image: None,
                layers: Vec::new(),
                blobs: Vec::new(),
            }));
        }
        Ok(live)
    }

    /// Whether a lease is held and does not say on what.
    pub(super) fn is_unreadable_lease(path: &Path) -> bool {
        let Ok(file) = File::open(path) else {
            return false;
        };
        flock(&file, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK)
            && io::read_to_string(&file)
                .map_or(true, |text| serde_json::from_str::<Pins>(&text).is_err())
    }

    /// Who holds leases on something; also those that do not say on what.
    pub(super) fn holders(&self, on: impl Fn(&Pins) -> bool) -> Result<Vec<String>, StoreError> {
        let leases = self.leases()?.into_iter();
        let by = leases.filter(|pins| on(pins) || pins.is_unknown());
        Ok(by.map(|pins| pins.holder).collect())
    }

    /// Removes the leases of processes that are gone, unless the store is busy.
    pub(super) fn clear_stale_leases(&self) -> Result<(), StoreError> {
        let files = self.lease_files()?;
        if files.is_empty() {
            return Ok(());
        }
        match self.try_lock_exclusive()? {
            Some(lock) => self.clear_stale_leases_under(&lock).map(drop),
            None => Ok(()),
        }
    }

    /// Removes the leases of processes that are gone, and says how many.
    pub(super) fn clear_stale_leases_under(&self, _lock: &StoreLock) -> Result<u64, StoreError> {
        let mut cleared = 0;
        for path in self.lease_files()? {
            let Ok(file) = File::open(&path) else {
                continue;
            };
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            match fs::remove_file(&path) {
                // Its holder has just ended in order.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => {
                    result.map_err(StoreError::io("remove", path))?;
                    cleared += 1;
                }
            }
        }
        Ok(cleared)
    }

    /// How many leases are left of processes that are gone.
    pub(super) fn stale_leases(&self) -> Result<u64, StoreError> {
        let held = |path: &PathBuf| {
            let file = File::open(path).ok();
            file.is_none_or(|file| flock(&file, FlockOperation::NonBlockingLockShared).is_err())
        };
        let files = self.lease_files()?;
        Ok(files.iter().filter(|path| !held(path)).count() as u64)
    }

    pub(super) fn lease_files(&self) -> Result<Vec<PathBuf>, StoreError> {
        let path = self.root().join("leases");
        let mut files = Vec::new();
        for entry in fs::read_dir(&path).map_err(StoreError::io("read", &path))? {
            files.push(entry.map_err(StoreError::io("read", &path))?.path());
        }
        Ok(files)
    }
}
