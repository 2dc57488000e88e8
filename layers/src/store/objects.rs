//! Objects: the contents of regular files, each a file named by its SHA-256.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, fstat, openat, statat};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::{Store, StoreError};
use crate::digest::{Digest, ObjectId};

/// Path of an object in `objects/`: `ab/cdef…`.
pub(super) fn name(id: &ObjectId) -> String {
    let mut name = id.0.hex();
    name.insert(2, '/');
    name
}

impl Store {
    /// Path of an object.
    pub fn object_path(&self, id: &ObjectId) -> PathBuf {
        self.root().join("objects").join(name(id))
    }

    /// Opens an object that has `size` bytes. Its contents are not read.
    ///
    /// # Errors
    /// When it is missing, is not a regular file, has another size, or cannot be opened.
    pub fn open_object(&self, id: &ObjectId, size: u64) -> Result<File, StoreError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let opened = openat(self.objects_dir(), name(id), flags, Mode::empty());
        let fd: OwnedFd = match opened {
            Ok(fd) => fd,
            Err(Errno::NOENT) => {
                return Err(StoreError::ObjectMissing {
                    id: *id,
                    path: self.object_path(id),
                });
            }
            Err(errno) => return Err(StoreError::io("open", self.object_path(id))(errno)),
        };
        let stat = fstat(&fd).map_err(StoreError::io("examine", self.object_path(id)))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(self.object_damage(id, "it is not a regular file".into()));
        }
        if stat.st_size as u64 != size {
            let problem = format!("it has {} bytes instead of {size}", stat.st_size);
            return Err(self.object_damage(id, problem));
        }
        Ok(File::from(fd))
    }

    /// Whether an object is there and has `size` bytes.
    pub(crate) fn has_object(&self, id: &ObjectId, size: u64) -> bool {
        statat(self.objects_dir(), name(id), AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| {
            FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
                && stat.st_size as u64 == size
        })
    }

    /// Reads a whole object and compares its digest with its name.
    ///
    /// # Errors
    /// When it is missing, cannot be read, or has other contents.
    pub fn verify_object(&self, id: &ObjectId) -> Result<(), StoreError> {
        let path = self.object_path(id);
        let mut file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::ObjectMissing { id: *id, path });
            }
            result => result.map_err(StoreError::io("open", &path))?,
        };
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 128 << 10];
        loop {
            let count = file
                .read(&mut buffer)
                .map_err(StoreError::io("read", &path))?;
            match buffer.get(..count) {
                Some(bytes) if count > 0 => hasher.update(bytes),
                _ => break,
            }
        }
        let found = Digest(hasher.finalize().into());
        if found != id.0 {
            return Err(self.object_damage(id, format!("its contents have the digest {found}")));
        }
        Ok(())
    }

    fn object_damage(&self, id: &ObjectId, problem: String) -> StoreError {
        StoreError::ObjectDamaged {
            id: *id,
            path: self.object_path(id),
            problem,
        }
    }
}
