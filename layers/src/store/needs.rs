//! What a transaction relies on: objects that the store had already, and those that it is adding.
//!
//! They are noted in `staging/ID/needs`, under the store's lock, shared, before they are relied on.
//! A collection reads these files under the same lock, exclusive. So the lock is held for moments
//! only, however long an import takes, and still no object goes that is going to be needed.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use parking_lot::Mutex;

use super::lock::StoreLock;
use super::{Store, StoreError};
use crate::digest::{Digest, ObjectId};

const FILE: &str = "needs";

/// The notes of one transaction: 32 bytes for each object, in no order.
pub(super) struct Needs(Mutex<File>);

impl Needs {
    /// Starts them in a staging directory.
    pub fn create(staging: &Path) -> Result<Self, StoreError> {
        let path = staging.join(FILE);
        let file = File::create(&path).map_err(StoreError::io("create", path))?;
        Ok(Self(Mutex::new(file)))
    }

    /// Notes objects. From then on they stay, those that are there.
    pub fn add(&self, ids: &[ObjectId], _lock: &StoreLock) -> Result<(), StoreError> {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.0.0).collect();
        let written = self.0.lock().write_all(&bytes);
        written.map_err(StoreError::io("write", FILE))
    }
}

impl Store {
    /// The objects that running transactions rely on.
    pub(super) fn needs(&self, _exclusive: &StoreLock) -> Result<HashSet<ObjectId>, StoreError> {
        let staging = self.root().join("staging");
        let mut needs = HashSet::new();
        for entry in fs::read_dir(&staging).map_err(StoreError::io("read", &staging))? {
            let entry = entry.map_err(StoreError::io("read", &staging))?;
            let path = entry.path().join(FILE);
            let bytes = match fs::read(&path) {
                // Others have no notes, or end now.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                    ) =>
                {
                    continue;
                }
                result => result.map_err(StoreError::io("read", path))?,
            };
            let ids = bytes.chunks_exact(32);
            needs.extend(ids.filter_map(|id| Some(ObjectId(Digest(id.try_into().ok()?)))));
        }
        Ok(needs)
    }
}
