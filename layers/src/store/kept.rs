//! The changes of named mounts, `mounts/NAME/`, as far as the store must know of them: they need the
//! layers that they belong on, mounted or not.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;

use serde::Deserialize;

use super::{Store, StoreError};
use crate::digest::DiffId;

/// Changes that are kept under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Their name.
    pub name: String,
    /// The image they belong on, as the user named it.
    pub image: Option<String>,
    /// The layers they belong on, bottom first; none if they belong on plain directories.
    pub layers: Vec<DiffId>,
}

/// As much of `mount.json` as counts here.
#[derive(Deserialize)]
struct Base {
    #[serde(default)]
    image: Option<String>,
    layers: Vec<DiffId>,
}

impl Store {
    /// The changes of all named mounts, sorted by name.
    ///
    /// # Errors
    /// When one cannot be read: then nobody knows which layers it needs.
    pub fn kept(&self) -> Result<Vec<Kept>, StoreError> {
        let mut all = Vec::new();
        for name in self.kept_names()? {
            all.extend(self.read_kept(&name)?);
        }
        Ok(all)
    }

    /// The names in `mounts/`, sorted.
    pub(super) fn kept_names(&self) -> Result<Vec<OsString>, StoreError> {
        let dir = self.root().join("mounts");
        let mut names = Vec::new();
        for entry in fs::read_dir(&dir).map_err(StoreError::io("read", &dir))? {
            names.push(entry.map_err(StoreError::io("read", &dir))?.file_name());
        }
        names.sort();
        Ok(names)
    }

    /// The changes of a name. Without `mount.json` they are being made or removed, and count as none.
    pub(super) fn read_kept(&self, name: &OsStr) -> Result<Option<Kept>, StoreError> {
        let path = self.root().join("mounts").join(name).join("mount.json");
        let text = match fs::read(&path) {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(None);
            }
            result => result.map_err(StoreError::io("read", &path))?,
        };
        let name = name.to_string_lossy().into_owned();
        match serde_json::from_slice::<Base>(&text) {
            Ok(base) => Ok(Some(Kept {
                name,
                image: base.image,
                layers: base.layers,
            })),
            Err(error) => Err(StoreError::KeptDamaged {
                name,
                path,
                problem: error.to_string(),
            }),
        }
    }
}
