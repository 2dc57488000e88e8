//! Layers: an index, what is needed to make the archive again, and a summary of both.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use super::staging::Staging;
use super::{Access, Store, StoreError};
use crate::digest::{ChainId, DiffId, Digest};
use crate::index::{Index, IndexError, IndexKind, MergeError, merge};

/// File of the index.
pub(crate) const INDEX: &str = "index";
/// File that says how the archive is made of the objects.
pub(crate) const TARSPLIT: &str = "tarsplit";
/// File of the summary.
pub(crate) const INFO: &str = "layer.json";
/// All files of a layer.
pub(super) const FILES: [&str; 3] = [INDEX, TARSPLIT, INFO];

/// Summary of a layer: the file `layer.json`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LayerInfo {
    /// The digest of the uncompressed archive, which names the layer.
    pub diff_id: DiffId,
    /// Length of the uncompressed archive in bytes.
    pub tar_size: u64,
    /// Number of entries of the archive, whiteouts included.
    pub entries: u64,
    /// Number of those that delete something from the layers below.
    pub whiteouts: u64,
    /// Number of distinct files that are objects of their own.
    pub objects: u64,
    /// Length of all regular files in bytes, holes and repetitions included.
    pub file_bytes: u64,
}

impl LayerInfo {
    /// The bytes of `layer.json`.
    pub(super) fn to_json(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).unwrap_or_default();
        text.push(b'\n');
        text
    }
}

impl Store {
    /// The summary of a layer.
    ///
    /// # Errors
    /// When the store does not have the layer, or has it damaged.
    pub fn layer(&self, id: &DiffId) -> Result<LayerInfo, StoreError> {
        let path = self.layer_dir(id).join(INFO);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(self.no_file(id, path));
            }
            Err(error) => return Err(StoreError::io("read", path)(error)),
        };
        let damaged = |problem| StoreError::LayerFile {
            id: *id,
            path: path.clone(),
            problem,
        };
        let info: LayerInfo =
            serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        if info.diff_id != *id {
            return Err(damaged(format!("it is about layer {}", info.diff_id)));
        }
        Ok(info)
    }

    /// Whether the store has a layer, and it is not known to be damaged. One that it has stays until the store is dropped, if that was
    /// opened for writing: whoever asks is going to rely on it.
    pub fn has_layer(&self, id: &DiffId) -> bool {
        if self.distrusted.lock().layers.contains(id) {
            return false;
        }
        if self.access() == Access::ReadOnly || !self.is_layer(id) {
            return self.is_layer(id);
        }
        let kept = self
            .lock_shared()
            .and_then(|lock| self.keep(&[*id], &[], None, &lock));
        if let Err(error) = kept {
            tracing::warn!("layer {id} may be removed any moment: {error}");
        }
        self.is_layer(id)
    }

    /// Whether the store has a layer at this moment.
    pub(super) fn is_layer(&self, id: &DiffId) -> bool {
        self.layer_dir(id).join(INFO).exists()
    }

    /// All layers, in the order of their digests.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn layers(&self) -> Result<Vec<DiffId>, StoreError> {
        let mut layers: Vec<_> = self.digests_in("layers")?.into_iter().map(DiffId).collect();
        layers.sort_unstable();
        Ok(layers)
    }

    /// The names in a directory of the store that are digests.
    pub(super) fn digests_in(&self, dir: &str) -> Result<Vec<Digest>, StoreError> {
        let path = self.root().join(dir);
        let mut digests = Vec::new();
        for entry in fs::read_dir(&path).map_err(StoreError::io("read", &path))? {
            let name = entry.map_err(StoreError::io("read", &path))?.file_name();
            digests.extend(name.to_str().and_then(|hex| Digest::from_hex(hex).ok()));
        }
        Ok(digests)
    }

    /// Opens the index of a layer and checks it.
    ///
    /// # Errors
    /// When the store does not have the layer, or has it damaged.
    pub fn layer_index(&self, id: &DiffId) -> Result<Index, StoreError> {
        let path = self.layer_dir(id).join(INDEX);
        let index = match Index::open(&path) {
            Ok(index) => index,
            Err(IndexError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
                return Err(self.no_file(id, path));
            }
            Err(source) => {
                return Err(StoreError::LayerIndex {
                    id: *id,
                    path,
                    source,
                });
            }
        };
        if index.kind() != IndexKind::Layer || index.identity() != Some(id.0) {
            return Err(StoreError::LayerFile {
                id: *id,
                path,
                problem: "it is the index of something else".into(),
            });
        }
        Ok(index)
    }

    /// The error for a file of a layer that is not there.
    pub(crate) fn no_file(&self, id: &DiffId, path: PathBuf) -> StoreError {
        if self.layer_dir(id).exists() {
            let problem = "it is missing".into();
            return StoreError::LayerFile {
                id: *id,
                path,
                problem,
            };
        }
        StoreError::NoLayer(*id)
    }

    /// The merged index of a stack of layers, bottom first. It is made when the store does not
    /// have it, or has it damaged: it is a cache. If it cannot be stored it is kept in memory.
    ///
    /// # Errors
    /// When there is no layer, one is missing or damaged, or they do not fit together.
    pub fn merged_index(&self, layers: &[DiffId]) -> Result<Index, StoreError> {
        let no_layers = || StoreError::Merge {
            layer: None,
            source: MergeError::NoLayers,
        };
        let chain = ChainId::of(layers).ok_or_else(no_layers)?;
        let path = self.merged_path(&chain);
        match Index::open(&path) {
            Ok(index) if index.kind() == IndexKind::Merged && index.identity() == Some(chain.0) => {
                return Ok(index);
            }
            Ok(_) => tracing::warn!("{} belongs to something else", path.display()),
            Err(IndexError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!("{} is made anew: {error}", path.display()),
        }
        let bytes = self.merge(layers, &chain)?;
        if self.access() == Access::ReadWrite {
            match self.publish_merged(&chain, &bytes) {
                Ok(index) => return Ok(index),
                Err(error) => tracing::warn!("the merged index is not kept: {error}"),
            }
        }
        Index::from_bytes(bytes).map_err(|error| merged_damage(&path, &error))
    }

    fn merge(&self, layers: &[DiffId], chain: &ChainId) -> Result<Vec<u8>, StoreError> {
        let indexes: Vec<_> = layers
            .iter()
            .map(|id| self.layer_index(id))
            .collect::<Result<_, _>>()?;
        let indexes: Vec<_> = indexes.iter().collect();
        merge(&indexes, Some(chain.0)).map_err(|source| {
            let number = match &source {
                MergeError::HardLinkToNothing { layer, .. }
                | MergeError::HardLinkToDirectory { layer, .. } => Some(*layer),
                _ => None,
            };
            let layer = number.and_then(|number| layers.get(number)).copied();
            StoreError::Merge { layer, source }
        })
    }

    /// Puts a merged index into the store. It is opened before, as a collection may remove it at once. It
    /// is not synced: a cache that does not survive a crash whole is recognised and made again.
    fn publish_merged(&self, chain: &ChainId, bytes: &[u8]) -> Result<Index, StoreError> {
        let path = self.merged_path(chain);
        let staging = Staging::create(&self.root().join("staging"))?;
        let staged = staging.path().join(INDEX);
        let write = || -> io::Result<()> {
            let mut file = fs::File::create(&staged)?;
            file.write_all(bytes)
        };
        write().map_err(StoreError::io("write", &path))?;
        let index = Index::open(&staged).map_err(|error| merged_damage(&path, &error))?;
        fs::rename(&staged, &path).map_err(StoreError::io("write", &path))?;
        Ok(index)
    }
}

/// A merged index that is wrong as soon as it is made, or cannot be read back.
fn merged_damage(path: &std::path::Path, error: &IndexError) -> StoreError {
    StoreError::io("use", path)(io::Error::other(error.to_string()))
}
