//! Removing images and layers, and collecting what nothing needs any more.
//!
//! There are no reference counts. What is needed is found out from names, images, leases, the kept
//! changes of mounts and the notes of running transactions; the rest goes, in this order: images,
//! layers and merged indexes, objects. Each step is durable before the next, so that no crash leaves
//! something that refers to nothing.
//!
//! The store's lock is held exclusively for moments: to decide and to take out. Objects are collected
//! in batches with a lock of their own each, and large things are renamed into a staging directory and
//! deleted without the lock. So imports, mounts and other collections go on meanwhile.

use std::collections::HashSet;

use super::lock::StoreLock;
use super::{Store, StoreError, sync_dir};
use crate::digest::{ChainId, DiffId, ImageId};

mod sweep;

pub(super) use sweep::disk_usage;
use sweep::{Candidate, Marks, Trash};

/// What to collect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GcOptions {
    /// Also images that have no name.
    pub all: bool,
    /// Only say what would go.
    pub dry_run: bool,
}

/// What a collection removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Swept {
    /// Images without a name.
    pub images: Vec<ImageId>,
    /// Layers that nothing needed.
    pub layers: Vec<DiffId>,
    /// Number of objects.
    pub objects: u64,
    /// Number of merged indexes.
    pub merged: u64,
    /// Number of kept blobs.
    pub blobs: u64,
    /// Number of leases that processes left that are gone.
    pub leases: u64,
    /// What all of it took on the disk, in bytes.
    pub bytes: u64,
}

/// What nothing in the store may go of, and why.
#[derive(Default)]
struct Roots {
    layers: HashSet<DiffId>,
    chains: HashSet<ChainId>,
    /// As manifests have them.
    blobs: HashSet<String>,
    /// Images that nothing needs.
    unneeded: Vec<ImageId>,
}

impl Roots {
    fn keep(&mut self, layers: &[DiffId]) {
        self.layers.extend(layers);
        self.chains.extend(ChainId::of(layers));
    }
}

impl Store {
    /// Removes what nothing needs: layers, merged indexes and objects, and if it is asked for images
    /// without a name.
    ///
    /// # Errors
    /// When something is damaged, so that nobody knows what it needs, or the store cannot be written.
    /// What was removed before stays removed.
    pub fn gc(&self, options: GcOptions) -> Result<Swept, StoreError> {
        if options.dry_run {
            return self.gc_dry_run(options);
        }
        self.for_writing()?;
        let mut swept = Swept::default();
        let trash = Trash::new(self)?;
        {
            let lock = self.lock_exclusive()?;
            swept.leases = self.clear_stale_leases_under(&lock)?;
            let doomed = self.roots(options.all, &lock)?.unneeded;
            for id in doomed {
                swept.bytes += trash.take(&self.image_dir(&id))?;
                swept.images.push(id);
            }
        }
        self.synced("images")?;
        self.sweep_layers(None, &trash, &mut swept)?;
        trash.empty()?;
        let candidates = self.objects_not_in(&swept.layers, &mut Marks::default())?;
        self.sweep_objects(&candidates, &trash, &mut swept)?;
        Ok(swept)
    }

    /// What [`Self::gc`] would remove now.
    fn gc_dry_run(&self, options: GcOptions) -> Result<Swept, StoreError> {
        let roots = self.roots(options.all, &self.lock_exclusive()?)?;
        let mut swept = Swept {
            images: roots.unneeded.clone(),
            leases: self.stale_leases()?,
            ..Swept::default()
        };
        for id in &roots.unneeded {
            swept.bytes += sweep::disk_usage(&self.image_dir(id))?;
        }
        swept.layers = self.layers()?;
        swept.layers.retain(|id| !roots.layers.contains(id));
        for id in &swept.layers {
            swept.bytes += sweep::disk_usage(&self.layer_dir(id))?;
        }
        for path in self.unneeded_merged(&roots)? {
            swept.merged += 1;
            swept.bytes += sweep::disk_usage(&path)?;
        }
        for path in self.unneeded_blobs(&roots)? {
            swept.blobs += 1;
            swept.bytes += sweep::disk_usage(&path)?;
        }
        let mut marks = Marks::default();
        let candidates = self.objects_not_in(&swept.layers, &mut marks)?;
        let lock = self.lock_exclusive()?;
        marks.refresh(self, &swept.layers)?;
        let needs = self.needs(&lock)?;
        drop(lock);
        for candidate in candidates {
            if !marks.need(&candidate.id) && !needs.contains(&candidate.id) {
                swept.objects += 1;
                swept.bytes += candidate.bytes;
            }
        }
        Ok(swept)
    }

    /// Removes an image with all its names, and what only it needed. Unless `force` is given, not if
    /// there are kept changes that belong on it; with it, the layers that these need stay.
    ///
    /// # Errors
    /// When the store does not have it, something uses it, or the store cannot be written.
    pub fn remove_image(&self, id: &ImageId, force: bool) -> Result<Swept, StoreError> {
        self.for_writing()?;
        let trash = Trash::new(self)?;
        let mut swept = Swept::default();
        let layers = {
            let lock = self.lock_exclusive()?;
            let path = self.image_dir(id);
            if !path.exists() {
                return Err(StoreError::NotFound(id.to_string()));
            }
            let layers = self.image(id).map(|image| image.layers);
            let layers = layers.inspect_err(|error| tracing::warn!("{error}")).ok();
            let layers = layers.unwrap_or_default();
            let by = self.users_of(id, &layers, force, &lock)?;
            if !by.is_empty() {
                let what = format!("image {id}");
                return Err(StoreError::InUse { what, by });
            }
            for (name, other) in self.names()? {
                if other == *id {
                    self.remove_name(&name)?;
                }
            }
            swept.bytes += trash.take(&path)?;
            swept.images.push(*id);
            layers
        };
        self.synced("images")?;
        self.collect(&layers, &trash, &mut swept)?;
        Ok(swept)
    }

    /// Removes a layer, and the objects that only it needed.
    ///
    /// # Errors
    /// When the store does not have it, an image, a live mount or kept changes use it, or the store
    /// cannot be written.
    pub fn remove_layer(&self, id: &DiffId) -> Result<Swept, StoreError> {
        self.for_writing()?;
        let trash = Trash::new(self)?;
        let mut swept = Swept::default();
        {
            let _lock = self.lock_exclusive()?;
            if !self.layer_dir(id).exists() {
                return Err(StoreError::NoLayer(*id));
            }
            let mut by = Vec::new();
            for image in self.images()? {
                if image.layers.contains(id) {
                    let name = image.names.first().cloned();
                    let name = name.unwrap_or_else(|| image.id.to_string());
                    by.push(format!("image {name}"));
                }
            }
            by.extend(self.holders(|pins| pins.layers.contains(id))?);
            let kept = self.kept()?.into_iter();
            let kept = kept.filter(|kept| kept.layers.contains(id));
            by.extend(kept.map(|kept| changes(&kept.name)));
            if !by.is_empty() {
                let what = format!("layer {id}");
                return Err(StoreError::InUse { what, by });
            }
        }
        self.collect(&[*id], &trash, &mut swept)?;
        if !swept.layers.contains(id) {
            return Err(StoreError::InUse {
                what: format!("layer {id}"),
                by: vec!["a program that began to use it just now".into()],
            });
        }
        Ok(swept)
    }

    /// Who needs an image. With `force`, kept changes do not: their layers are enough for them.
    fn users_of(
        &self,
        id: &ImageId,
        layers: &[DiffId],
        force: bool,
        _lock: &StoreLock,
    ) -> Result<Vec<String>, StoreError> {
        let mut by = self.holders(|pins| pins.image == Some(*id))?;
        if !force {
            // Another image of the same layers does as well.
            let others = self.images()?.into_iter();
            let spare = others
                .filter(|image| image.id != *id)
                .any(|image| image.layers == layers);
            let kept = self.kept()?.into_iter();
            let kept = kept
                .filter(|kept| !spare && !layers.is_empty() && kept.layers.as_slice() == layers);
            by.extend(kept.map(|kept| changes(&kept.name)));
        }
        Ok(by)
    }

    /// Removes those of `layers` that nothing needs, with the objects that only they needed.
    fn collect(
        &self,
        layers: &[DiffId],
        trash: &Trash<'_>,
        swept: &mut Swept,
    ) -> Result<(), StoreError> {
        let candidates = self.sweep_layers(Some(layers), trash, swept)?;
        self.sweep_objects(&candidates, trash, swept)
    }

    /// Removes the layers, of these or of all, and the merged indexes and blobs that nothing needs. Returns the
    /// objects of the former, if only these were asked for.
    fn sweep_layers(
        &self,
        only: Option<&[DiffId]>,
        trash: &Trash<'_>,
        swept: &mut Swept,
    ) -> Result<Vec<Candidate>, StoreError> {
        let mut candidates = Vec::new();
        {
            let lock = self.lock_exclusive()?;
            let roots = self.roots(false, &lock)?;
            for id in self.layers()? {
                if roots.layers.contains(&id) || only.is_some_and(|only| !only.contains(&id)) {
                    continue;
                }
                if only.is_some() {
                    self.add_candidates(&id, &mut candidates);
                }
                swept.bytes += trash.take(&self.layer_dir(&id))?;
                swept.layers.push(id);
            }
            for path in self.unneeded_merged(&roots)? {
                swept.bytes += trash.take(&path)?;
                swept.merged += 1;
            }
            for path in self.unneeded_blobs(&roots)? {
                swept.bytes += trash.take(&path)?;
                swept.blobs += 1;
            }
        }
        self.synced("layers")?;
        Ok(candidates)
    }

    /// What must stay. Nameless images are among it unless `all` is given.
    fn roots(&self, all: bool, _lock: &StoreLock) -> Result<Roots, StoreError> {
        let mut roots = Roots::default();
        let leases = self.leases()?;
        if let Some(unknown) = leases.iter().find(|pins| pins.is_unknown()) {
            return Err(StoreError::InUse {
                what: "something in the store".into(),
                by: vec![unknown.holder.clone()],
            });
        }
        let kept = self.kept()?;
        for pins in &leases {
            roots.keep(&pins.layers);
            roots.blobs.extend(pins.blobs.iter().cloned());
        }
        for layers in kept.iter().map(|kept| &kept.layers) {
            roots.keep(layers);
        }
        let named: HashSet<ImageId> = self.all_names()?.into_iter().map(|(_, id)| id).collect();
        for digest in self.digests_in("images")? {
            let id = ImageId(digest);
            let (_, _, image) = self.read_files(&id)?;
            let layers = &image.config.rootfs.diff_ids;
            let in_use = || {
                leases.iter().any(|pins| pins.image == Some(id))
                    || kept.iter().any(|kept| kept.layers == *layers)
            };
            if !all || named.contains(&id) || in_use() {
                roots.keep(layers);
                let blobs = image.manifest.layers.into_iter();
                roots.blobs.extend(blobs.map(|blob| blob.digest));
            } else {
                roots.unneeded.push(id);
            }
        }
        roots.unneeded.sort_unstable();
        Ok(roots)
    }

    fn synced(&self, directory: &str) -> Result<(), StoreError> {
        sync_dir(&self.root().join(directory))
    }
}

/// How messages call the changes of a named mount.
fn changes(name: &str) -> String {
    format!("the changes named '{name}' ('lamina rm {name}' throws them away)")
}

#[cfg(test)]
mod tests;
