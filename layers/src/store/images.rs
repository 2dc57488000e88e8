//! Temporary: images, names and leases until the real ones land.

use std::fs::{self, File};
use std::io;

use super::{Store, StoreError};
use crate::digest::{ChainId, DiffId, Digest, ImageId};

/// An image.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its digest.
    pub id: ImageId,
    /// Its names.
    pub names: Vec<String>,
    /// Its layers, bottom first.
    pub layers: Vec<DiffId>,
    /// Its chain.
    pub chain: ChainId,
}

/// What a lease pins.
pub struct Pins {
    /// Layers.
    pub layers: Vec<DiffId>,
}

/// A lease.
pub struct Lease(#[expect(dead_code, reason = "held")] File);

impl Store {
    /// Finds an image.
    pub fn resolve(&self, name: &str) -> Result<Image, StoreError> {
        let path = self.root().join("refs").join(name);
        let text = fs::read(&path).map_err(StoreError::io("find image", &path))?;
        let layers: Vec<DiffId> = serde_json::from_slice(&text)
            .map_err(|error| StoreError::io("read", &path)(io::Error::other(error)))?;
        let id = ImageId(Digest::of(&text));
        let chain = ChainId::of(&layers).unwrap_or(ChainId(id.0));
        Ok(Image {
            id,
            names: vec![name.to_owned()],
            layers,
            chain,
        })
    }

    /// All images.
    pub fn images(&self) -> Result<Vec<Image>, StoreError> {
        let path = self.root().join("refs");
        let mut images = Vec::new();
        for entry in fs::read_dir(&path).map_err(StoreError::io("read", &path))? {
            let name = entry.map_err(StoreError::io("read", &path))?.file_name();
            images.push(self.resolve(&name.to_string_lossy())?);
        }
        Ok(images)
    }

    /// Names an image.
    pub fn tag(&self, name: &str, layers: &[DiffId]) -> Result<Image, StoreError> {
        let path = self.root().join("refs").join(name);
        let text = serde_json::to_vec(layers).unwrap_or_default();
        fs::write(&path, text).map_err(StoreError::io("write", &path))?;
        self.resolve(name)
    }

    /// Takes a lease.
    pub fn lease(&self, _: &Pins) -> Result<Lease, StoreError> {
        let path = self.root().join("store.json");
        Ok(Lease(
            File::open(&path).map_err(StoreError::io("open", &path))?,
        ))
    }

    /// Removes a name.
    pub fn remove_image(&self, name: &str) -> Result<(), StoreError> {
        let path = self.root().join("refs").join(name);
        fs::remove_file(&path).map_err(StoreError::io("remove", &path))
    }

    /// Finds a layer.
    pub fn resolve_layer(&self, name: &str) -> Result<DiffId, StoreError> {
        let found = self
            .layers()?
            .into_iter()
            .find(|id| id.0.hex().starts_with(name) || id.to_string() == name);
        found.ok_or_else(|| StoreError::io("find layer", self.root())(io::Error::other(name)))
    }

    /// Removes a layer.
    pub fn remove_layer(&self, id: &DiffId) -> Result<(), StoreError> {
        let path = self.layer_dir(id);
        fs::remove_dir_all(&path).map_err(StoreError::io("remove", &path))
    }
}
