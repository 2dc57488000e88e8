//! Kept blobs: layers as they came, compressed, so that they go out again with the same digest.
//!
//! Nothing needs them to read or to mount an image, and most stores have none: an import keeps them
//! only where it is asked to.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, fchmod, openat};

use super::{Access, Store, StoreError};
use crate::digest::Digest;

/// A blob that is being written, before its digest is known.
pub struct BlobStage {
    path: PathBuf,
    file: File,
}

impl BlobStage {
    /// Makes its file.
    pub(super) fn create(path: PathBuf, mode: Mode) -> Result<Self, StoreError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = openat(CWD, &path, flags, mode).map_err(StoreError::io("create", &path))?;
        // The umask may have taken permissions away.
        fchmod(&file, mode).map_err(StoreError::io("change the mode of", &path))?;
        let file = File::from(file);
        Ok(Self { path, file })
    }

    /// Its path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds bytes at its end.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.file
            .write_all(bytes)
            .map_err(StoreError::io("write", &self.path))
    }
}

impl Store {
    /// Path of a kept blob.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root().join("blobs").join(digest.hex())
    }

    /// Opens a kept blob of `size` bytes; `None` if the store does not have it, or has it with
    /// another size. Its contents are not read.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open_blob(&self, digest: &Digest, size: u64) -> Result<Option<File>, StoreError> {
        let path = self.blob_path(digest);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = match openat(CWD, &path, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::LOOP) => return Ok(None),
            Err(errno) => return Err(StoreError::io("open", path)(errno)),
        };
        let meta = file.metadata().map_err(StoreError::io("examine", path))?;
        Ok((meta.is_file() && meta.len() == size).then_some(file))
    }

    /// Whether a kept blob of `size` bytes is there. One that is stays until the store is dropped, if
    /// that was opened for writing.
    pub fn has_blob(&self, digest: &Digest, size: u64) -> bool {
        let there = || {
            fs::symlink_metadata(self.blob_path(digest))
                .is_ok_and(|meta| meta.is_file() && meta.len() == size)
        };
        if self.access() == Access::ReadOnly || !there() {
            return there();
        }
        let lock = self.lock_shared();
        let kept = lock.and_then(|lock| self.keep(&[], &[*digest], None, &lock));
        if let Err(error) = kept {
            tracing::warn!("blob {digest} may be removed any moment: {error}");
        }
        there()
    }

    /// The kept blobs, with their sizes in bytes.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn blobs(&self) -> Result<Vec<(Digest, u64)>, StoreError> {
        let dir = self.root().join("blobs");
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            // A store of an older lamina that is open for reading only.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(StoreError::io("read", dir)(error)),
        };
        let mut blobs = Vec::new();
        for entry in entries {
            let entry = entry.map_err(StoreError::io("read", &dir))?;
            let name = entry.file_name();
            let Some(digest) = name.to_str().and_then(|hex| Digest::from_hex(hex).ok()) else {
                continue;
            };
            let meta = entry
                .metadata()
                .map_err(StoreError::io("examine", entry.path()))?;
            blobs.push((digest, meta.len()));
        }
        blobs.sort_unstable();
        Ok(blobs)
    }
}
