//! Leases: what a live mount needs, so that it is not removed.
//!
//! A lease is a file in `leases/` on which its holder has a `flock`. It ends with the process that
//! holds it, however that ends; a file that nobody holds means nothing and is cleared away.
//!
//! A lease is taken under the store's lock, shared; leases are looked at, and stale ones cleared,
//! under the same lock, exclusive. So there is no moment in which a lease that is being taken looks
//! stale, or in which something is removed that is being leased.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::staging::unique_name;
use super::{Access, Store, StoreError};
use crate::digest::{DiffId, ImageId};

/// What a lease protects.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Pins {
    /// Who needs it, for people: `the mount on /mnt (process 123)`.
    pub holder: String,
    /// The image that is in use.
    pub image: Option<ImageId>,
    /// The layers that are in use.
    pub layers: Vec<DiffId>,
}

/// A lease, until it is dropped or the process ends. A child process that inherits its descriptor
/// keeps it alive.
#[derive(Debug)]
pub struct Lease {
    /// Holds the lock. Nothing in a store that is open for reading only.
    held: Option<(File, PathBuf)>,
    owner: u32,
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
        let _lock = self.lock_shared()?;
        if let Some(missing) = pins.layers.iter().find(|id| !self.has_layer(id)) {
            return Err(StoreError::NoLayer(*missing));
        }
        if self.access() == Access::ReadOnly {
            return Ok(Lease { held: None, owner });
        }
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

    /// What live mounts protect.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn leases(&self) -> Result<Vec<Pins>, StoreError> {
        let mut live = Vec::new();
        for path in self.lease_files()? {
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
            }));
        }
        Ok(live)
    }

    /// Who holds leases on something; also those that do not say on what.
    pub(super) fn holders(&self, on: impl Fn(&Pins) -> bool) -> Result<Vec<String>, StoreError> {
        let leases = self.leases()?.into_iter();
        let unknown = |pins: &Pins| pins.image.is_none() && pins.layers.is_empty();
        let by = leases.filter(|pins| on(pins) || unknown(pins));
        Ok(by.map(|pins| pins.holder).collect())
    }

    /// Removes the leases of processes that are gone, unless the store is busy.
    pub(super) fn clear_stale_leases(&self) -> Result<(), StoreError> {
        let files = self.lease_files()?;
        if files.is_empty() {
            return Ok(());
        }
        let Some(_lock) = self.try_lock_exclusive()? else {
            return Ok(());
        };
        for path in files {
            let Ok(file) = File::open(&path) else {
                continue;
            };
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                fs::remove_file(&path).map_err(StoreError::io("remove", path))?;
            }
        }
        Ok(())
    }

    fn lease_files(&self) -> Result<Vec<PathBuf>, StoreError> {
        let path = self.root().join("leases");
        let mut files = Vec::new();
        for entry in fs::read_dir(&path).map_err(StoreError::io("read", &path))? {
            files.push(entry.map_err(StoreError::io("read", &path))?.path());
        }
        Ok(files)
    }
}
