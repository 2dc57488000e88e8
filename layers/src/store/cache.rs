//! What a build remembers: the result of an instruction, under a digest of all that it depends on.
//!
//! `cache/build/<digest hex>` is a file with a few lines of JSON, `cache/mounts/<digest hex>/` the
//! directory of a `RUN --mount=type=cache`. Both can be deleted at any time. An entry does not keep
//! its layer: one whose layer is gone means nothing.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::staging::Staging;
use super::{Access, Store, StoreError};
use crate::digest::{DiffId, Digest};

/// The result of an instruction of a build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedStep {
    /// The layer it made, if it made one.
    pub layer: Option<DiffId>,
    /// When (RFC 3339).
    pub created: String,
}

impl Store {
    fn cache_dir(&self, kind: &str) -> PathBuf {
        self.root().join("cache").join(kind)
    }

    /// The result that is remembered under a key, if its layer is there.
    ///
    /// # Errors
    /// When it cannot be read. One that is malformed counts as none.
    pub fn cached_step(&self, key: &Digest) -> Result<Option<CachedStep>, StoreError> {
        let path = self.cache_dir("build").join(key.hex());
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io("read", path)(error)),
        };
        let step: Option<CachedStep> = serde_json::from_slice(&text).ok();
        let step = step.filter(|step| step.layer.as_ref().is_none_or(|id| self.has_layer(id)));
        if step.is_none() && self.access() == Access::ReadWrite {
            // Its layer was collected. Another build may have written it anew just now: then that
            // one's step is done once more. Or it has seen the same, and removed it.
            remove_if_there(path)?;
        }
        Ok(step)
    }

    /// Remembers a result. It is not synced: one that a crash has cut off counts as none.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn cache_step(&self, key: &Digest, step: &CachedStep) -> Result<(), StoreError> {
        self.for_writing()?;
        let dir = self.cache_dir("build");
        fs::create_dir_all(&dir).map_err(StoreError::io("create", &dir))?;
        let staging = Staging::create(&self.root().join("staging"))?;
        let (staged, path) = (staging.path().join("step"), dir.join(key.hex()));
        let write = || -> io::Result<()> {
            let mut file = File::create(&staged)?;
            file.write_all(&serde_json::to_vec(step)?)?;
            fs::rename(&staged, &path)
        };
        write().map_err(StoreError::io("write", &path))
    }

    /// The directory of a cache that commands of builds share, made if it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn cache_mount(&self, key: &Digest) -> Result<PathBuf, StoreError> {
        self.for_writing()?;
        let dir = self.cache_dir("mounts").join(key.hex());
        fs::create_dir_all(&dir).map_err(StoreError::io("create", &dir))?;
        Ok(dir)
    }

    /// Forgets the merged index of layers that no image has: those in the middle of a build.
    ///
    /// # Errors
    /// When the images cannot be listed, or it cannot be removed.
    pub fn forget_merged(&self, layers: &[DiffId]) -> Result<(), StoreError> {
        let Some(chain) = crate::digest::ChainId::of(layers) else {
            return Ok(());
        };
        if self.images()?.iter().any(|image| image.chain == chain) {
            return Ok(());
        }
        remove_if_there(self.merged_path(&chain))
    }
}

fn remove_if_there(path: PathBuf) -> Result<(), StoreError> {
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn several_may_find_the_same_stale_entry() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Access::ReadWrite).unwrap();
        let barrier = Barrier::new(4);
        let step = CachedStep {
            layer: Some(DiffId(Digest::of(b"collected"))),
            created: String::new(),
        };
        let look = |writes: bool| {
            let look_once = |round: u32| {
                let key = Digest::of(&round.to_le_bytes());
                if writes {
                    store.cache_step(&key, &step).unwrap();
                }
                barrier.wait();
                store.cached_step(&key)
            };
            (0..200).map(look_once).collect::<Vec<_>>()
        };
        let found = std::thread::scope(|scope| {
            let others = [(); 3].map(|()| scope.spawn(|| look(false)));
            let mut found = look(true);
            found.extend(others.into_iter().flat_map(|other| other.join().unwrap()));
            found
        });
        for result in found {
            assert_eq!(result.unwrap(), None);
        }
    }
}
