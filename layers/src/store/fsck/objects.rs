//! Objects: that they are there, are regular files, and have the size and the digest they should.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags, SeekFrom, openat, seek};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::{Check, Damage, Subject};
use crate::digest::{DiffId, Digest, ObjectId};
use crate::store::{Store, StoreError, objects};
use crate::tar::Progress;

/// Length of the buffer for reading, in bytes.
const BUFFER: usize = 256 << 10;

/// What is wrong with an object.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("it is missing")]
    Missing,
    #[error("it is {0} instead of a file")]
    Kind(&'static str),
    #[error("it has {found} bytes instead of {expected}")]
    Size { found: u64, expected: u64 },
    #[error("its contents have the digest {0}")]
    Contents(Digest),
    #[error("it cannot be read: {0}")]
    Read(io::Error),
}

/// Checks one object; returns its length in bytes.
pub(super) fn check_object(
    store: &Store,
    id: &ObjectId,
    size: Option<u64>,
    quick: bool,
    progress: &dyn Progress,
) -> Result<u64, Fault> {
    let path = store.object_path(id);
    let meta = match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Fault::Missing),
        result => result.map_err(Fault::Read)?,
    };
    if !meta.is_file() {
        return Err(Fault::Kind(kind_of(&meta)));
    }
    if let Some(expected) = size
        && meta.len() != expected
    {
        return Err(Fault::Size {
            found: meta.len(),
            expected,
        });
    }
    if quick {
        return Ok(meta.len());
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = match openat(store.objects_dir(), objects::name(id), flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(Errno::NOENT) => return Err(Fault::Missing),
        Err(errno) => return Err(Fault::Read(errno.into())),
    };
    let found = digest(&file, meta.len(), progress).map_err(Fault::Read)?;
    if found != id.0 {
        return Err(Fault::Contents(found));
    }
    Ok(meta.len())
}

fn kind_of(meta: &fs::Metadata) -> &'static str {
    let kind = meta.file_type();
    if kind.is_dir() {
        "a directory"
    } else if kind.is_symlink() {
        "a symbolic link"
    } else if kind.is_fifo() {
        "a named pipe"
    } else {
        "a special file"
    }
}

/// The digest of a file. Holes are not read.
fn digest(file: &File, size: u64, progress: &dyn Progress) -> io::Result<Digest> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; BUFFER];
    let mut position = 0;
    while position < size {
        // A filesystem that does not know says that all is data.
        let data = match seek(file.as_fd(), SeekFrom::Data(position)) {
            Ok(data) => data.min(size),
            Err(Errno::NXIO) => size,
            Err(_) => position,
        };
        if data > position {
            buffer.fill(0);
            while position < data {
                let part = (data - position).min(BUFFER as u64);
                hasher.update(buffer.get(..part as usize).unwrap_or_default());
                position += part;
            }
            continue;
        }
        let hole = seek(file.as_fd(), SeekFrom::Hole(position)).unwrap_or(size);
        let end = if hole > position {
            hole.min(size)
        } else {
            size
        };
        while position < end {
            let wanted = (end - position).min(BUFFER as u64) as usize;
            let part = buffer.get_mut(..wanted).unwrap_or_default();
            let count = file.read_at(part, position)?;
            if count == 0 {
                // It was cut short meanwhile; the digest will not fit.
                return Ok(Digest(hasher.finalize().into()));
            }
            hasher.update(part.get(..count).unwrap_or_default());
            progress.bytes(count as u64);
            position += count as u64;
        }
    }
    Ok(Digest(hasher.finalize().into()))
}

impl Check<'_> {
    /// Checks all objects that are there, and that those are which layers need.
    pub(super) fn objects(&mut self) -> Result<(), StoreError> {
        let mut ids: Vec<ObjectId> = self.expected.keys().copied().collect();
        self.store.for_each_object(|id, _| {
            if !self.expected.contains_key(&id) {
                ids.push(id);
            }
            Ok(())
        })?;
        ids.sort_unstable();
        let faults = self.check_all(&ids);
        if faults.is_empty() {
            return Ok(());
        }
        let damaged: Vec<ObjectId> = faults.iter().map(|(id, _)| *id).collect();
        let layers = self.layers_with(&damaged);
        for (id, fault) in faults {
            let path = self.store.object_path(&id);
            let mut damage = Damage::new(Subject::Object(id), path, fault.to_string());
            damage.layers = layers
                .iter()
                .filter(|(_, objects)| objects.contains(&id))
                .map(|(layer, _)| *layer)
                .collect();
            self.found(damage);
        }
        Ok(())
    }

    /// Checks the kept blobs.
    pub(super) fn blobs(&mut self) -> Result<(), StoreError> {
        for (id, size) in self.store.blobs()? {
            self.report.blobs += 1;
            let path = self.store.blob_path(&id);
            let problem = match fs::symlink_metadata(&path) {
                // It was removed just now.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => Fault::Read(error),
                Ok(meta) if !meta.is_file() => Fault::Kind(kind_of(&meta)),
                Ok(_) if self.options.quick => continue,
                Ok(_) => {
                    let read = File::open(&path)
                        .and_then(|file| digest(&file, size, self.options.progress));
                    match read {
                        Ok(found) if found == id => continue,
                        Ok(found) => Fault::Contents(found),
                        Err(error) => Fault::Read(error),
                    }
                }
            };
            let subject = Subject::Blob(id.to_string());
            self.found(Damage::new(subject, path, problem.to_string()));
        }
        Ok(())
    }

    fn check_all(&mut self, ids: &[ObjectId]) -> Vec<(ObjectId, Fault)> {
        let next = AtomicUsize::new(0);
        let faults = Mutex::new(Vec::new());
        let sums = Mutex::new((0_u64, 0_u64));
        let check = &*self;
        std::thread::scope(|scope| {
            for _ in 0..check.options.threads.clamp(1, 256) {
                scope.spawn(|| {
                    let (mut objects, mut bytes) = (0, 0);
                    while let Some(id) = ids.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let size = check.expected.get(id).and_then(|expected| expected.size);
                        let options = check.options;
                        match check_object(check.store, id, size, options.quick, options.progress) {
                            Ok(size) => bytes += size,
                            Err(fault) => faults.lock().push((*id, fault)),
                        }
                        objects += 1;
                        options.progress.file();
                    }
                    let mut sums = sums.lock();
                    sums.0 += objects;
                    sums.1 += bytes;
                });
            }
        });
        (self.report.objects, self.report.object_bytes) = sums.into_inner();
        faults.into_inner()
    }

    /// The layers that have any of these objects, each with those it has.
    fn layers_with(&self, ids: &[ObjectId]) -> Vec<(DiffId, Vec<ObjectId>)> {
        let mut layers = Vec::new();
        for layer in self.store.layers().unwrap_or_default() {
            let mut found = Vec::new();
            // A layer that cannot be read is reported as damaged itself.
            let _ = self.store.mark(&layer, |object| {
                if ids.contains(&object) && !found.contains(&object) {
                    found.push(object);
                }
            });
            if !found.is_empty() {
                layers.push((layer, found));
            }
        }
        layers
    }
}
