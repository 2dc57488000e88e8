//! The parts of a collection that take time: what objects are needed, and removing the others.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, unlinkat};
use rustix::io::Errno;

use super::{Roots, Swept};
use crate::digest::{DiffId, Digest, ObjectId};
use crate::store::staging::Staging;
use crate::store::{Store, StoreError, objects};
use crate::tar::layer_objects;

/// Objects that are removed under one lock at most.
const BATCH: usize = 512;
/// How long objects are removed under one lock.
const HOLD: Duration = Duration::from_millis(5);
/// How long others get the lock in between: whoever waits is only woken when it is given up, and would
/// find it taken again.
const PAUSE: Duration = Duration::from_millis(1);
/// From this size on, in bytes, an object is renamed first and deleted without the lock.
const LARGE: u64 = 1 << 20;

/// An object that may not be needed.
pub(super) struct Candidate {
    pub id: ObjectId,
    /// What it takes on the disk.
    pub bytes: u64,
}

/// What was taken out of the store and is still to be deleted.
pub(super) struct Trash<'s> {
    store: &'s Store,
    staging: RefCell<Option<Staging>>,
    taken: RefCell<u64>,
}

impl<'s> Trash<'s> {
    pub fn new(store: &'s Store) -> Result<Self, StoreError> {
        Ok(Self {
            store,
            staging: RefCell::new(Some(Self::bin(store)?)),
            taken: RefCell::default(),
        })
    }

    fn bin(store: &Store) -> Result<Staging, StoreError> {
        Staging::create(&store.root().join("staging"))
    }

    /// Takes a file or directory out of the store, and says what it took on the disk. What another
    /// collection took first counts nothing.
    pub fn take(&self, path: &Path) -> Result<u64, StoreError> {
        let bytes = disk_usage(path)?;
        let mut taken = self.taken.borrow_mut();
        *taken += 1;
        let staging = self.staging.borrow();
        let Some(staging) = &*staging else {
            return Ok(0);
        };
        match fs::rename(path, staging.path().join(taken.to_string())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            result => {
                result.map_err(StoreError::io("remove", path))?;
                Ok(bytes)
            }
        }
    }

    /// Deletes what was taken so far.
    pub fn empty(&self) -> Result<(), StoreError> {
        if *self.taken.borrow() > 0 {
            let full = self.staging.replace(Some(Self::bin(self.store)?));
            drop(full);
            *self.taken.borrow_mut() = 0;
        }
        Ok(())
    }
}

/// What a file or a directory with files takes on the disk, in bytes. What is not there takes none.
pub(in crate::store) fn disk_usage(path: &Path) -> Result<u64, StoreError> {
    let meta = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        result => result.map_err(StoreError::io("examine", path))?,
    };
    let mut bytes = meta.blocks() * 512;
    if meta.is_dir() {
        let entries = match fs::read_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            result => result.map_err(StoreError::io("read", path))?,
        };
        for entry in entries {
            bytes += disk_usage(&entry.map_err(StoreError::io("read", path))?.path())?;
        }
    }
    Ok(bytes)
}

/// The objects that layers need.
#[derive(Default)]
pub(super) struct Marks {
    layers: HashSet<DiffId>,
    objects: HashSet<ObjectId>,
}

impl Marks {
    /// Adds those of the layers that have come since the last time, but for `left_out`.
    pub fn refresh(&mut self, store: &Store, left_out: &[DiffId]) -> Result<(), StoreError> {
        for id in store.layers()? {
            if left_out.contains(&id) || !self.layers.insert(id) {
                continue;
            }
            let marked = store.mark(&id, |object| {
                self.objects.insert(object);
            });
            match marked {
                // It was removed just now.
                Err(_) if !store.layer_dir(&id).exists() => {
                    self.layers.remove(&id);
                }
                result => result?,
            }
        }
        Ok(())
    }

    /// Whether one of the layers needs an object.
    pub fn need(&self, id: &ObjectId) -> bool {
        self.objects.contains(id)
    }
}

impl Store {
    /// Calls `each` for every object that a layer needs.
    pub(crate) fn mark(
        &self,
        id: &DiffId,
        mut each: impl FnMut(ObjectId),
    ) -> Result<(), StoreError> {
        if layer_objects(self, id, &mut each).is_err() {
            // Those of the index are what a mount needs, and most often all.
            self.layer_index(id)?.objects().for_each(each);
        }
        Ok(())
    }

    /// Adds the objects of a layer. If it is damaged, they are left for the next collection of all.
    pub(super) fn add_candidates(&self, id: &DiffId, candidates: &mut Vec<Candidate>) {
        let mut ids = Vec::new();
        if let Err(error) = self.mark(id, |object| ids.push(object)) {
            tracing::warn!("objects may be left for 'lamina gc': {error}");
        }
        ids.sort_unstable();
        ids.dedup();
        candidates.extend(ids.into_iter().map(|id| Candidate {
            id,
            bytes:
                fs::symlink_metadata(self.object_path(&id)).map_or(0, |meta| meta.blocks() * 512),
        }));
    }

    /// The objects that no layer but `left_out` needs. Those that layers need are left in `marks`.
    pub(super) fn objects_not_in(
        &self,
        left_out: &[DiffId],
        marks: &mut Marks,
    ) -> Result<Vec<Candidate>, StoreError> {
        marks.refresh(self, left_out)?;
        let mut candidates = Vec::new();
        self.for_each_object(|id, entry| {
            if marks.need(&id) {
                return Ok(());
            }
            let meta = match entry.metadata() {
                // Another collection was quicker.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                result => result.map_err(StoreError::io("examine", entry.path()))?,
            };
            // What is no file is not ours: 'lamina fsck' tells.
            if meta.is_file() {
                candidates.push(Candidate {
                    id,
                    bytes: meta.blocks() * 512,
                });
            }
            Ok(())
        })?;
        Ok(candidates)
    }

    /// Removes those of the candidates that nothing needs, also nothing that came meanwhile.
    pub(super) fn sweep_objects(
        &self,
        candidates: &[Candidate],
        trash: &Trash<'_>,
        swept: &mut Swept,
    ) -> Result<(), StoreError> {
        let mut marks = Marks::default();
        if !candidates.is_empty() {
            marks.refresh(self, &[])?;
        }
        let mut left = candidates;
        while !left.is_empty() {
            {
                let lock = self.lock_exclusive()?;
                marks.refresh(self, &[])?;
                let needs = self.needs(&lock)?;
                let until = Instant::now() + HOLD;
                for number in 0..BATCH {
                    let Some((candidate, rest)) = left.split_first() else {
                        break;
                    };
                    if number > 0 && Instant::now() > until {
                        break;
                    }
                    left = rest;
                    let id = &candidate.id;
                    if !marks.need(id) && !needs.contains(id) {
                        self.remove_object(candidate, trash, swept)?;
                    }
                }
            }
            trash.empty()?;
            if !left.is_empty() {
                std::thread::sleep(PAUSE);
            }
        }
        Ok(())
    }

    fn remove_object(
        &self,
        candidate: &Candidate,
        trash: &Trash<'_>,
        swept: &mut Swept,
    ) -> Result<(), StoreError> {
        let (id, bytes) = (&candidate.id, candidate.bytes);
        if bytes >= LARGE {
            if trash.take(&self.object_path(id))? == 0 {
                return Ok(());
            }
        } else {
            match unlinkat(self.objects_dir(), objects::name(id), AtFlags::empty()) {
                Ok(()) => {}
                Err(Errno::NOENT) => return Ok(()),
                Err(errno) => return Err(StoreError::io("remove", self.object_path(id))(errno)),
            }
        }
        swept.objects += 1;
        swept.bytes += bytes;
        Ok(())
    }

    /// Calls `each` for everything in `objects/` that has the name of an object.
    pub(crate) fn for_each_object(
        &self,
        mut each: impl FnMut(ObjectId, &fs::DirEntry) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let objects = self.root().join("objects");
        for prefix in 0..=255_u8 {
            let dir = objects.join(format!("{prefix:02x}"));
            let entries = match fs::read_dir(&dir) {
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                    ) =>
                {
                    continue;
                }
                result => result.map_err(StoreError::io("read", &dir))?,
            };
            for entry in entries {
                let entry = entry.map_err(StoreError::io("read", &dir))?;
                let name = entry.file_name();
                let hex = format!("{prefix:02x}{}", name.to_string_lossy());
                if let Ok(digest) = Digest::from_hex(&hex) {
                    each(ObjectId(digest), &entry)?;
                }
            }
        }
        Ok(())
    }

    /// The kept blobs that no manifest of an image names.
    pub(super) fn unneeded_blobs(&self, roots: &Roots) -> Result<Vec<PathBuf>, StoreError> {
        let blobs = self.blobs()?.into_iter().map(|(digest, _)| digest);
        let unneeded = blobs.filter(|digest| !roots.blobs.contains(&digest.to_string()));
        Ok(unneeded.map(|digest| self.blob_path(&digest)).collect())
    }

    /// The merged indexes that nothing needs, and what else is beside them. One that is mounted stays
    /// mapped when it goes.
    pub(super) fn unneeded_merged(&self, roots: &Roots) -> Result<Vec<PathBuf>, StoreError> {
        let needed: HashSet<PathBuf> = roots
            .chains
            .iter()
            .map(|chain| self.merged_path(chain))
            .collect();
        let dir = self.root().join("merged");
        let mut unneeded = Vec::new();
        for entry in fs::read_dir(&dir).map_err(StoreError::io("read", &dir))? {
            let path = entry.map_err(StoreError::io("read", &dir))?.path();
            if !needed.contains(&path) {
                unneeded.push(path);
            }
        }
        Ok(unneeded)
    }
}
