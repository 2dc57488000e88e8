//! The lock of the whole store.
//!
//! Whoever publishes something that refers to other things in the store (layers, an image, a name)
//! or notes down what must stay (a lease, the needs of a transaction) holds the lock of `store.json`
//! shared meanwhile; whoever decides what goes, and takes it out, holds it exclusively. Both are
//! moments: what lasts (an import, a mount, the deletion of what was taken out) is done without it.

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
