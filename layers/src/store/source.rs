//! Where an image came from: `images/HEX/source.json`, so that what is damaged can be had again.
//!
//! It is not part of the image: no digest covers it, it may be missing, and what it says may have
//! changed since. Who uses it compares digests.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::staging::Staging;
use super::{Store, StoreError, sync_dir};
use crate::digest::ImageId;
use crate::json_path;

const FILE: &str = "source.json";

/// Where an image came from.
///
/// Fields that a later version adds are ignored here, and are left out by default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Source {
    /// Pulled from a registry.
    Registry {
        /// What was asked for, in full: `registry.example:5000/team/app:tag`.
        reference: String,
        /// The digest that the reference stood for then: of the manifest, or of an index that lists
        /// it. The manifest's own is the image's id.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        digest: Option<String>,
    },
    /// Loaded from an archive of an image (OCI's or docker's).
    Archive {
        /// The archive, an absolute path.
        #[serde(with = "json_path")]
        path: PathBuf,
        /// Which of several images in it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        image: Option<String>,
    },
    /// Loaded from a directory in OCI's image layout.
    Layout {
        /// The directory, an absolute path.
        #[serde(with = "json_path")]
        path: PathBuf,
        /// Which of several images in it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        image: Option<String>,
    },
    /// Built here.
    Built {
        /// Archives and directories that layers were made of, absolute paths.
        #[serde(
            default,
            skip_serializing_if = "Vec::is_empty",
            with = "json_path::list"
        )]
        from: Vec<PathBuf>,
    },
    /// Made of the changes of a mount.
    Committed {
        /// The image that was mounted, as the user named it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        base: Option<String>,
    },
    /// Something that a later version knows.
    #[serde(other)]
    Unknown,
}

impl Store {
    /// Records where an image came from; what was recorded before is forgotten.
    ///
    /// # Errors
    /// When the store does not have the image, or cannot be written.
    pub fn set_source(&self, id: &ImageId, source: &Source) -> Result<(), StoreError> {
        self.for_writing()?;
        let _lock = self.lock_shared()?;
        let dir = self.image_dir(id);
        if !dir.exists() {
            return Err(StoreError::NotFound(id.to_string()));
        }
        let staging = Staging::create(&self.root().join("staging"))?;
        let (staged, path) = (staging.path().join(FILE), dir.join(FILE));
        let write = || -> io::Result<()> {
            let mut text = serde_json::to_vec_pretty(source)?;
            text.push(b'\n');
            write_synced(&staged, &text)?;
            fs::rename(&staged, &path)
        };
        write().map_err(StoreError::io("write", &path))?;
        sync_dir(&dir)
    }

    /// Where an image came from, if that was recorded.
    ///
    /// # Errors
    /// When what was recorded cannot be read.
    pub fn source(&self, id: &ImageId) -> Result<Option<Source>, StoreError> {
        let path = self.image_dir(id).join(FILE);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            result => result.map_err(StoreError::io("read", &path))?,
        };
        match serde_json::from_slice(&text) {
            Ok(source) => Ok(Some(source)),
            Err(error) => Err(StoreError::ImageDamaged {
                path,
                problem: error.to_string(),
            }),
        }
    }
}

/// Copies the record of the image in the directory `from`, if there is one, to `to`, which is going
/// to replace it.
pub(super) fn keep(from: &Path, to: &Path) -> Result<(), StoreError> {
    let Ok(text) = fs::read(from.join(FILE)) else {
        return Ok(());
    };
    let path = to.join(FILE);
    write_synced(&path, &text).map_err(StoreError::io("write", path))
}

fn write_synced(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut file = fs::File::create(path)?;
    file.write_all(text)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;
    use crate::digest::DiffId;
    use crate::store::{Access, ImageSpec};
    use crate::tar::{ImportOptions, import_layer};

    fn image(store: &Store) -> (DiffId, ImageId) {
        let tar = vec![0; 1024];
        let options = ImportOptions::default();
        let layer = import_layer(store, tar.as_slice(), "empty", &options).unwrap();
        let spec = ImageSpec::default();
        let image = store.tag("image", &[layer.diff_id], &spec).unwrap();
        (layer.diff_id, image.id)
    }

    #[test]
    fn every_kind_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), Access::ReadWrite).unwrap();
        let (_, id) = image(&store);
        assert_eq!(store.source(&id).unwrap(), None);
        let odd = PathBuf::from(OsStr::from_bytes(b"/odd \xff"));
        for source in [
            Source::Registry {
                reference: "registry.example:5000/team/app:1".into(),
                digest: Some(id.to_string()),
            },
            Source::Archive {
                path: odd.clone(),
                image: Some("app:1".into()),
            },
            Source::Layout {
                path: "/layout".into(),
                image: None,
            },
            Source::Built {
                from: vec!["/layer.tar".into(), odd],
            },
            Source::Built { from: Vec::new() },
            Source::Committed {
                base: Some("debian".into()),
            },
        ] {
            store.set_source(&id, &source).unwrap();
            assert_eq!(store.source(&id).unwrap(), Some(source));
        }
        let none = ImageId(crate::digest::Digest::of(b"none"));
        assert!(store.set_source(&none, &Source::Unknown).is_err());
    }

    #[test]
    fn an_image_that_is_replaced_keeps_its_source() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), Access::ReadWrite).unwrap();
        let (layer, id) = image(&store);
        let source = Source::Committed { base: None };
        store.set_source(&id, &source).unwrap();
        let config = store.image_dir(&id).join("config.json");
        fs::write(&config, "damaged").unwrap();
        store.tag("image", &[layer], &ImageSpec::default()).unwrap();
        assert_ne!(fs::read(&config).unwrap(), b"damaged");
        assert_eq!(store.source(&id).unwrap(), Some(source));
    }

    #[test]
    fn a_source_of_a_later_version_is_unknown_and_a_damaged_one_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), Access::ReadWrite).unwrap();
        let (_, id) = image(&store);
        let path = store.image_dir(&id).join(FILE);
        fs::write(&path, r#"{"kind": "peer", "who": {"deep": [1]}}"#).unwrap();
        assert_eq!(store.source(&id).unwrap(), Some(Source::Unknown));
        let later = r#"{"kind": "committed", "base": "x", "later": 1}"#;
        fs::write(&path, later).unwrap();
        let base = Some("x".to_owned());
        assert_eq!(store.source(&id).unwrap(), Some(Source::Committed { base }));
        fs::write(&path, "{").unwrap();
        let message = store.source(&id).unwrap_err().to_string();
        assert!(message.contains("source.json"), "{message}");
    }
}
