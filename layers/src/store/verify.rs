//! Checking one image from its manifest down to the contents of its files.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::{Store, StoreError};
use crate::digest::{ChainId, DiffId, ImageId, ObjectId};
use crate::tar::{ExportError, Progress, export_layer, layer_objects};

/// What was checked of an image. Who signed it is not among it: an image that was changed together
/// with its digest is another image, which is right in itself.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Verified {
    /// The image: the digest of its manifest.
    pub id: ImageId,
    /// Length of the manifest in bytes.
    pub manifest_bytes: u64,
    /// Digest of the configuration.
    pub config: String,
    /// Length of the configuration in bytes.
    pub config_bytes: u64,
    /// Its layers, bottom first.
    pub layers: Vec<VerifiedLayer>,
    /// The chain ID of the merged index.
    pub chain: ChainId,
    /// Number of names in it.
    pub entries: u64,
}

/// What was checked of a layer.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct VerifiedLayer {
    /// The digest of its archive.
    pub diff_id: DiffId,
    /// Length of the archive in bytes.
    pub tar_size: u64,
    /// Number of distinct objects.
    pub objects: u64,
}

impl Store {
    /// Checks an image: the digest of its manifest; the digest and the length of its configuration;
    /// that the archive of each layer, made again, has the layer's diffID; the digest of each object;
    /// and the structure of the indexes. Several layers are checked at once.
    ///
    /// # Errors
    /// The first thing that is wrong, in the order of the layers.
    pub fn verify_image(
        &self,
        id: &ImageId,
        progress: &dyn Progress,
    ) -> Result<Verified, ExportError> {
        let files = self.image_files(id)?;
        let image = self.image(id)?;
        let layers = &image.layers;
        let next = AtomicUsize::new(0);
        let results: Vec<_> = layers.iter().map(|_| Mutex::new(None)).collect();
        let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        std::thread::scope(|scope| {
            for _ in 0..threads.min(layers.len()) {
                scope.spawn(|| {
                    loop {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        let (Some(layer), Some(result)) = (layers.get(at), results.get(at)) else {
                            break;
                        };
                        *result.lock() = Some(self.verify_layer(layer, progress));
                    }
                });
            }
        });
        let results = results.into_iter().filter_map(Mutex::into_inner);
        let verified = results.collect::<Result<Vec<_>, _>>()?;
        let merged = self.merged_index(layers)?;
        Ok(Verified {
            id: *id,
            manifest_bytes: files.manifest.len() as u64,
            config: files.parsed.config.digest,
            config_bytes: files.config.len() as u64,
            layers: verified,
            chain: image.chain,
            entries: u64::from(merged.stats().dirents),
        })
    }

    fn verify_layer(
        &self,
        id: &DiffId,
        progress: &dyn Progress,
    ) -> Result<VerifiedLayer, ExportError> {
        self.layer_index(id)?;
        let info = self.layer(id)?;
        let mut written = Count { bytes: 0, progress };
        export_layer(self, id, &mut written)?;
        if written.bytes != info.tar_size {
            return Err(StoreError::LayerFile {
                id: *id,
                path: self.layer_dir(id).join(super::layers::INFO),
                problem: format!(
                    "it says that the archive has {} bytes, it has {}",
                    info.tar_size, written.bytes
                ),
            }
            .into());
        }
        // What the archive has as holes, the objects have as zeros.
        let mut objects: BTreeSet<ObjectId> = BTreeSet::new();
        layer_objects(self, id, |object| {
            objects.insert(object);
        })?;
        for object in &objects {
            self.verify_object(object)?;
            progress.file();
        }
        Ok(VerifiedLayer {
            diff_id: *id,
            tar_size: written.bytes,
            objects: objects.len() as u64,
        })
    }
}

/// Counts what is written.
struct Count<'a> {
    bytes: u64,
    progress: &'a dyn Progress,
}

impl io::Write for Count<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes += bytes.len() as u64;
        self.progress.bytes(bytes.len() as u64);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
