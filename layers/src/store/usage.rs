//! What a store and its images take on the disk.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::gc::disk_usage;
use super::{Image, Store, StoreError};
use crate::digest::{ChainId, DiffId, Digest, ImageId, ObjectId};

/// What an image takes on the disk, in bytes of whole blocks.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ImageUsage {
    /// The image.
    pub id: ImageId,
    /// Its names, sorted.
    pub names: Vec<String>,
    /// All that is there for it: objects, layers, merged index, its own files, kept blobs.
    pub total: u64,
    /// What other images need as well.
    pub shared: u64,
    /// What only it needs: so much is freed when it is removed.
    pub unique: u64,
    /// What it would take alone, every file of every layer stored for itself.
    pub separate: u64,
}

/// What a store takes on the disk, in bytes of whole blocks.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Usage {
    /// Its images, as [`Store::images`] sorts them.
    pub images: Vec<ImageUsage>,
    /// Objects, layers, merged indexes, kept blobs and images together, needed or not.
    pub total: u64,
    /// Of that, what no image needs.
    pub unneeded: u64,
    /// What the images would take if each were stored for itself.
    pub separate: u64,
    /// `separate` divided by what the images take.
    pub factor: f64,
}

/// Something that images share.
#[derive(Clone, Copy)]
struct Part {
    bytes: u64,
    /// How many images need it.
    users: u32,
    /// The last of them, to count each once.
    last: usize,
}

type Parts<K> = HashMap<K, Part>;

/// One more user of a part. Returns its size if the image had not counted it yet.
fn count<K: Eq + Hash>(
    parts: &mut Parts<K>,
    key: K,
    image: usize,
    size: impl FnOnce() -> u64,
) -> Option<u64> {
    let part = parts.entry(key).or_insert_with(|| Part {
        bytes: size(),
        users: 0,
        last: usize::MAX,
    });
    if part.last == image {
        return None;
    }
    part.last = image;
    part.users += 1;
    Some(part.bytes)
}

/// Who needs what.
struct Census<'s> {
    store: &'s Store,
    objects: Parts<ObjectId>,
    layers: Parts<DiffId>,
    merged: Parts<ChainId>,
    blobs: Parts<Digest>,
}

impl Store {
    /// What the store and its images take on the disk.
    ///
    /// # Errors
    /// When a layer of an image is missing or damaged, or a directory cannot be read.
    #[allow(clippy::cast_precision_loss)]
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let mut census = Census {
            store: self,
            objects: HashMap::new(),
            layers: HashMap::new(),
            merged: HashMap::new(),
            blobs: HashMap::new(),
        };
        let _lock = self.lock_shared()?;
        let images = self.images()?;
        let mut usage = Usage::default();
        for (at, image) in images.iter().enumerate() {
            usage.images.push(census.image(at, image)?);
        }
        for (image, row) in images.iter().zip(&mut usage.images) {
            row.unique = census.unique(image)? + self.own_files(image)?;
            row.shared = row.total.saturating_sub(row.unique);
            usage.separate += row.separate;
        }
        let mut needed = census.bytes();
        for image in &images {
            needed += self.own_files(image)?;
        }
        self.for_each_object(|_, entry| {
            usage.total += entry.metadata().map_or(0, |meta| meta.blocks() * 512);
            Ok(())
        })?;
        for part in ["layers", "merged", "images"] {
            usage.total += below(&self.root().join(part))?;
        }
        for (digest, _) in self.blobs()? {
            usage.total += on_disk(&self.blob_path(&digest));
        }
        usage.unneeded = usage.total.saturating_sub(needed);
        if needed > 0 {
            usage.factor = usage.separate as f64 / needed as f64;
        }
        Ok(usage)
    }

    fn own_files(&self, image: &Image) -> Result<u64, StoreError> {
        disk_usage(&self.image_dir(&image.id))
    }

    /// The digests of the blobs of an image's layers, which the store may have kept.
    fn blobs_of(&self, image: &Image) -> Result<BTreeSet<Digest>, StoreError> {
        let layers = self.image_files(&image.id)?.parsed.layers.into_iter();
        Ok(layers.filter_map(|it| it.digest.parse().ok()).collect())
    }
}

/// What a file takes on the disk; nothing if it is not there.
fn on_disk(path: &Path) -> u64 {
    std::fs::symlink_metadata(path).map_or(0, |meta| meta.blocks() * 512)
}

/// What is in a directory, without itself.
fn below(dir: &Path) -> Result<u64, StoreError> {
    let own = std::fs::symlink_metadata(dir).map_err(StoreError::io("examine", dir))?;
    Ok(disk_usage(dir)?.saturating_sub(own.blocks() * 512))
}

impl Census<'_> {
    fn image(&mut self, at: usize, image: &Image) -> Result<ImageUsage, StoreError> {
        let store = self.store;
        let own = store.own_files(image)?;
        let (mut total, mut separate) = (own, own);
        for layer in &image.layers {
            let files = disk_usage(&store.layer_dir(layer))?;
            total += count(&mut self.layers, *layer, at, || files).unwrap_or(0);
            separate += files;
            let objects = &mut self.objects;
            store.mark(layer, |object| {
                let size = || on_disk(&store.object_path(&object));
                total += count(objects, object, at, size).unwrap_or(0);
                separate += objects.get(&object).map_or(0, |part| part.bytes);
            })?;
        }
        let merged = disk_usage(&store.merged_path(&image.chain))?;
        total += count(&mut self.merged, image.chain, at, || merged).unwrap_or(0);
        separate += merged;
        for blob in store.blobs_of(image)? {
            let kept = on_disk(&store.blob_path(&blob));
            total += count(&mut self.blobs, blob, at, || kept).unwrap_or(0);
            separate += kept;
        }
        Ok(ImageUsage {
            id: image.id,
            names: image.names.clone(),
            total,
            shared: 0,
            unique: 0,
            separate,
        })
    }

    /// What only this image needs of what can be shared.
    fn unique(&self, image: &Image) -> Result<u64, StoreError> {
        let alone = |part: Option<&Part>| {
            part.filter(|part| part.users == 1)
                .map_or(0, |part| part.bytes)
        };
        let mut bytes = alone(self.merged.get(&image.chain));
        for blob in self.store.blobs_of(image)? {
            bytes += alone(self.blobs.get(&blob));
        }
        let layers: BTreeSet<DiffId> = image.layers.iter().copied().collect();
        let mut objects = BTreeSet::new();
        for layer in &layers {
            bytes += alone(self.layers.get(layer));
            self.store.mark(layer, |object| {
                if objects.insert(object) {
                    bytes += alone(self.objects.get(&object));
                }
            })?;
        }
        Ok(bytes)
    }

    fn bytes(&self) -> u64 {
        let sum =
            |parts: &mut dyn Iterator<Item = &Part>| parts.map(|part| part.bytes).sum::<u64>();
        sum(&mut self.objects.values())
            + sum(&mut self.layers.values())
            + sum(&mut self.merged.values())
            + sum(&mut self.blobs.values())
    }
}
