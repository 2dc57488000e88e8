//! Staging directories: everything is written in one first.
//!
//! `staging/<unique>/` belongs to the process that holds a `flock` on it. One that nobody holds is
//! what a killed process left, and may be removed by anyone.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::rand::{GetRandomFlags, getrandom};

use super::StoreError;

/// A directory of one's own in `staging/`. It is removed with all that is in it when this is
/// dropped.
pub struct Staging {
    path: PathBuf,
    dir: File,
}

impl Staging {
    /// Makes one in the directory `parent`.
    pub fn create(parent: &Path) -> Result<Self, StoreError> {
        loop {
            let path = parent.join(unique_name()?);
            match fs::create_dir(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(StoreError::io("create", path)(error)),
            }
            // Between the two calls somebody may take it for rubbish.
            if let Some(dir) = lock_dir(&path, EXCLUSIVE)? {
                return Ok(Self { path, dir });
            }
        }
    }

    /// Makes the one with this name, unless another thread or process has it: then `None`.
    pub fn try_claim(parent: &Path, name: &str) -> Result<Option<Self>, StoreError> {
        let path = parent.join(name);
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(StoreError::io("create", path)(error))
            }
            _ => Ok(lock_dir(&path, EXCLUSIVE)?.map(|dir| Self { path, dir })),
        }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory itself.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Removes what killed processes left in the directory `parent`. What cannot be removed stays for
/// the next time.
pub fn clear_abandoned(parent: &Path) -> Result<(), StoreError> {
    let entries = fs::read_dir(parent).map_err(StoreError::io("read", parent))?;
    for entry in entries {
        let path = entry.map_err(StoreError::io("read", parent))?.path();
        if let Some(dir) = lock_dir(&path, EXCLUSIVE)? {
            drop(Staging { path, dir });
        }
    }
    Ok(())
}

const EXCLUSIVE: FlockOperation = FlockOperation::NonBlockingLockExclusive;

/// Locks the directory that has this path, without waiting; `None` if another process holds it or it is
/// gone.
///
/// # Errors
/// When it cannot be opened or looked at.
pub fn lock_dir(path: &Path, operation: FlockOperation) -> Result<Option<File>, StoreError> {
    let dir = match File::open(path) {
        Ok(dir) => dir,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::io("open", path)(error)),
    };
    if flock(&dir, operation).is_err() {
        return Ok(None);
    }
    // It may have been removed or renamed in between: then the lock keeps nobody from the path.
    let locked = dir.metadata().map_err(StoreError::io("examine", path))?;
    let still_there = fs::symlink_metadata(path)
        .is_ok_and(|found| (found.dev(), found.ino()) == (locked.dev(), locked.ino()));
    Ok(still_there.then_some(dir))
}

/// A name that no other process has.
pub(super) fn unique_name() -> Result<String, StoreError> {
    let mut random = [0; 8];
    getrandom(&mut random, GetRandomFlags::empty())
        .map_err(StoreError::io("read", "/dev/urandom"))?;
    let random = u64::from_le_bytes(random);
    Ok(format!("{}-{random:016x}", std::process::id()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_had_by_one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = Staging::try_claim(dir.path(), "claim").unwrap();
        assert!(first.is_some());
        assert!(Staging::try_claim(dir.path(), "claim").unwrap().is_none());
        clear_abandoned(dir.path()).unwrap();
        assert!(Staging::try_claim(dir.path(), "claim").unwrap().is_none());
        drop(first);
        // What a killed process left.
        fs::create_dir(dir.path().join("claim")).unwrap();
        assert!(Staging::try_claim(dir.path(), "claim").unwrap().is_some());
    }

    #[test]
    fn what_nobody_holds_is_cleared_and_the_rest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let held = Staging::create(dir.path()).unwrap();
        fs::write(held.path().join("file"), "kept").unwrap();
        let left = dir.path().join("123-left");
        fs::create_dir_all(left.join("deep/er")).unwrap();
        fs::write(left.join("deep/file"), "left").unwrap();

        clear_abandoned(dir.path()).unwrap();
        assert!(!left.exists());
        assert!(held.path().join("file").exists());
        drop(held);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
