//! Removing layers, and the objects that no layer needs any more.
//!
//! There are no reference counts: the objects of all layers are marked, the others swept. The
//! store is locked meanwhile, so that no import relies on an object that is about to go.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use super::{Store, StoreError};
use crate::digest::{ChainId, DiffId, Digest, ObjectId};
use crate::tar::{ExportError, layer_objects};

/// What a collection removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Number of objects.
    pub objects: u64,
    /// The sizes of objects and kept blobs together, in bytes.
    pub bytes: u64,
    /// Number of merged indexes.
    pub merged: u64,
    /// Number of kept blobs.
    pub blobs: u64,
}

impl Store {
    /// Removes a layer, and the objects that only it needed.
    ///
    /// # Errors
    /// When the store does not have it, an image or a live mount uses it, or the store cannot be
    /// written.
    pub fn remove_layer(&self, id: &DiffId) -> Result<Swept, StoreError> {
        self.for_writing()?;
        let _lock = self.lock_exclusive()?;
        let path = self.layer_dir(id);
        if !path.exists() {
            return Err(StoreError::NoLayer(*id));
        }
        let mut by = Vec::new();
        for image in self.images()? {
            if image.layers.contains(id) {
                let name = image.names.first().cloned();
                by.push(format!(
                    "image {}",
                    name.unwrap_or_else(|| image.id.to_string())
                ));
            }
        }
        by.extend(self.holders(|pins| pins.layers.contains(id))?);
        if !by.is_empty() {
            let what = format!("layer {id}");
            return Err(StoreError::InUse { what, by });
        }
        self.discard(&path)?;
        self.sweep()
    }

    /// Removes the objects that no layer needs, and the merged indexes that no image needs.
    ///
    /// # Errors
    /// When a layer is damaged, so that nobody knows what it needs, or the store cannot be written.
    pub fn gc(&self) -> Result<Swept, StoreError> {
        self.for_writing()?;
        let _lock = self.lock_exclusive()?;
        self.sweep()
    }

    fn sweep(&self) -> Result<Swept, StoreError> {
        let mut needed = HashSet::new();
        for id in self.layers()? {
            layer_objects(self, &id, |object| {
                needed.insert(object);
            })
            .map_err(|error| self.split_damage(&id, error))?;
        }
        let mut swept = Swept::default();
        let objects = self.root().join("objects");
        for prefix in 0..=255_u8 {
            let dir = objects.join(format!("{prefix:02x}"));
            if dir.is_dir() {
                sweep_dir(&dir, prefix, &needed, &mut swept)?;
            }
        }
        self.sweep_merged(&mut swept)?;
        self.sweep_blobs(&mut swept)?;
        Ok(swept)
    }

    /// Removes the kept blobs that no image's manifest names.
    fn sweep_blobs(&self, swept: &mut Swept) -> Result<(), StoreError> {
        let blobs = self.blobs()?;
        if blobs.is_empty() {
            return Ok(());
        }
        let mut needed = HashSet::new();
        for image in self.images()? {
            let layers = self.image_files(&image.id)?.parsed.layers;
            needed.extend(layers.into_iter().map(|layer| layer.digest));
        }
        for (digest, size) in blobs {
            if !needed.contains(&digest.to_string()) {
                let path = self.blob_path(&digest);
                fs::remove_file(&path).map_err(StoreError::io("remove", path))?;
                swept.blobs += 1;
                swept.bytes += size;
            }
        }
        Ok(())
    }

    /// A mounted index that is removed stays mapped.
    fn sweep_merged(&self, swept: &mut Swept) -> Result<(), StoreError> {
        let images = self.images()?.into_iter().map(|image| image.chain);
        let leased = self.leases()?.into_iter();
        let leased = leased.filter_map(|pins| ChainId::of(&pins.layers));
        let needed: HashSet<_> = images
            .chain(leased)
            .map(|chain| self.merged_path(&chain))
            .collect();
        let dir = self.root().join("merged");
        for entry in fs::read_dir(&dir).map_err(StoreError::io("read", &dir))? {
            let path = entry.map_err(StoreError::io("read", &dir))?.path();
            if !needed.contains(&path) {
                fs::remove_file(&path).map_err(StoreError::io("remove", path))?;
                swept.merged += 1;
            }
        }
        Ok(())
    }

    fn split_damage(&self, id: &DiffId, error: ExportError) -> StoreError {
        match error {
            ExportError::Store(error) => error,
            error => StoreError::LayerFile {
                id: *id,
                path: self.layer_dir(id).join(super::TARSPLIT),
                problem: error.to_string(),
            },
        }
    }
}

fn sweep_dir(
    dir: &Path,
    prefix: u8,
    needed: &HashSet<ObjectId>,
    swept: &mut Swept,
) -> Result<(), StoreError> {
    for entry in fs::read_dir(dir).map_err(StoreError::io("read", dir))? {
        let entry = entry.map_err(StoreError::io("read", dir))?;
        let name = entry.file_name();
        let hex = format!("{prefix:02x}{}", name.to_string_lossy());
        let object = Digest::from_hex(&hex).ok().map(ObjectId);
        if object.is_some_and(|object| needed.contains(&object)) {
            continue;
        }
        let path = entry.path();
        let size = entry
            .metadata()
            .map_err(StoreError::io("examine", &path))?
            .len();
        fs::remove_file(&path).map_err(StoreError::io("remove", path))?;
        swept.objects += 1;
        swept.bytes += size;
    }
    Ok(())
}
