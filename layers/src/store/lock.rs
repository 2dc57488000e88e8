//! The lock of the whole store.
//!
//! Whoever adds to the store or relies on what it found there (an import that reuses objects, a
//! tag, a lease) holds the lock of `store.json` shared for that time; whoever removes something
//! holds it exclusively. A mount holds it for a moment only, when it takes its lease.

use std::fs::File;

use rustix::fs::{FlockOperation, flock};

use super::{Store, StoreError, superblock};

/// The lock, until it is dropped.
pub struct StoreLock(#[expect(dead_code, reason = "closing it gives up the lock")] File);

impl Store {
    /// Waits until nobody removes anything from the store, and keeps it so.
    pub(crate) fn lock_shared(&self) -> Result<StoreLock, StoreError> {
        self.lock(FlockOperation::LockShared)
    }

    /// Waits until nobody else uses the store, and keeps it so.
    pub(crate) fn lock_exclusive(&self) -> Result<StoreLock, StoreError> {
        self.lock(FlockOperation::LockExclusive)
    }

    /// As [`Self::lock_exclusive`]; `None` instead of waiting.
    pub(super) fn try_lock_exclusive(&self) -> Result<Option<StoreLock>, StoreError> {
        match self.lock(FlockOperation::NonBlockingLockExclusive) {
            Err(error) if error.io_kind() == Some(std::io::ErrorKind::WouldBlock) => Ok(None),
            result => result.map(Some),
        }
    }

    fn lock(&self, operation: FlockOperation) -> Result<StoreLock, StoreError> {
        let path = self.root().join(superblock::FILE);
        let file = File::open(&path).map_err(StoreError::io("open", &path))?;
        loop {
            match flock(&file, operation) {
                Ok(()) => return Ok(StoreLock(file)),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(StoreError::io("lock", path)(errno)),
            }
        }
    }
}
