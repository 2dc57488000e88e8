//! Images: a stack of layers with a manifest and a configuration, and finding them.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use super::lock::StoreLock;
use super::oci::{self, ContainerConfig, Descriptor, History, ImageConfig, Manifest, RootFs};
use super::refs::Name;
use super::staging::Staging;
use super::{Store, StoreError, source, sync_dir, txn};
use crate::digest::{ChainId, DiffId, Digest, ImageId};

const MANIFEST: &str = "manifest.json";
const CONFIG: &str = "config.json";
/// The shortest beginning of a digest that names something.
const PREFIX_MIN: usize = 4;

/// An image of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The digest of its manifest. Of a bare layer, which has no manifest, its diffID.
    pub id: ImageId,
    /// The digest of its configuration, which is docker's image id. Of a bare layer, its diffID.
    pub config_digest: Digest,
    /// Its names, sorted.
    pub names: Vec<String>,
    /// Its layers, bottom first; at least one.
    pub layers: Vec<DiffId>,
    /// The chain ID of all layers.
    pub chain: ChainId,
    /// CPU, operating system, how to run it, and how it was made.
    pub config: ImageConfig,
    /// Length of the layers' uncompressed archives together, in bytes.
    pub size: u64,
}

/// What an image says besides its layers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageSpec {
    /// When it was made (RFC 3339). Left out, the same layers always make the same image.
    pub created: Option<String>,
    /// CPU, by the names of Go; this machine's if not given.
    pub architecture: Option<String>,
    /// How to run it.
    pub config: Option<ContainerConfig>,
    /// How each layer was made.
    pub history: Vec<History>,
    /// What else its configuration says.
    pub other: oci::Other,
}

/// The files of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFiles {
    /// The manifest as it is in the store; its digest is the image's.
    pub manifest: Vec<u8>,
    /// The configuration as it is in the store.
    pub config: Vec<u8>,
    /// What the manifest says.
    pub parsed: Manifest,
}

/// A manifest and its configuration.
pub(crate) struct Parsed {
    pub manifest: Manifest,
    pub config: ImageConfig,
}

/// Reads the manifest and the configuration of an image, and checks that they belong together.
pub(crate) fn parse_image(
    id: &ImageId,
    manifest: &[u8],
    config: &[u8],
) -> Result<Parsed, StoreError> {
    let wrong = |problem: String| StoreError::ImageWrong { id: *id, problem };
    let manifest: Manifest = serde_json::from_slice(manifest)
        .map_err(|error| wrong(format!("its manifest is not one of an image: {error}")))?;
    let found = Digest::of(config).to_string();
    if manifest.config.digest != found || manifest.config.size != config.len() as u64 {
        return Err(wrong(format!(
            "its manifest wants a configuration of {} bytes with digest {}, this one has {} and {found}",
            manifest.config.size,
            manifest.config.digest,
            config.len()
        )));
    }
    let config: ImageConfig = serde_json::from_slice(config)
        .map_err(|error| wrong(format!("its configuration is not one of an image: {error}")))?;
    let (listed, layers) = (manifest.layers.len(), config.rootfs.diff_ids.len());
    if listed != layers {
        return Err(wrong(format!(
            "its manifest lists {listed} layers, its configuration {layers}"
        )));
    }
    Ok(Parsed { manifest, config })
}

impl Store {
    /// Makes layers, bottom first, an image with a name. Another image that has the name loses it.
    ///
    /// # Errors
    /// As [`Store::make_image`].
    pub fn tag(
        &self,
        name: &str,
        layers: &[DiffId],
        spec: &ImageSpec,
    ) -> Result<Image, StoreError> {
        let config = ImageConfig {
            created: spec.created.clone(),
            architecture: spec
                .architecture
                .clone()
                .unwrap_or_else(|| oci::architecture().to_owned()),
            os: "linux".into(),
            config: spec.config.clone(),
            rootfs: RootFs {
                kind: "layers".into(),
                diff_ids: layers.to_vec(),
            },
            history: spec.history.clone(),
            other: spec.other.clone(),
        };
        self.make_image(Some(name), &config)
    }

    /// Adds an image with this configuration; its manifest is made here. Another image that has the
    /// name loses it.
    ///
    /// # Errors
    /// When the name is not possible, a layer is missing or damaged, the layers do not fit
    /// together, or the store cannot be written.
    pub fn make_image(
        &self,
        name: Option<&str>,
        config: &ImageConfig,
    ) -> Result<Image, StoreError> {
        let name = name.map(Name::parse).transpose()?;
        self.for_writing()?;
        let lock = self.lock_shared()?;
        self.merged_index(&config.rootfs.diff_ids)?;
        self.publish_made(name.as_ref(), config, &lock)
    }

    /// As [`Store::make_image`], of layers that are known to fit together, since the last one was made
    /// on top of the others. Their index is merged when they are first mounted.
    ///
    /// # Errors
    /// When the name is not possible, a layer is missing, or the store cannot be written.
    pub fn make_image_unmerged(
        &self,
        name: Option<&str>,
        config: &ImageConfig,
    ) -> Result<Image, StoreError> {
        let name = name.map(Name::parse).transpose()?;
        self.for_writing()?;
        let lock = self.lock_shared()?;
        self.publish_made(name.as_ref(), config, &lock)
    }

    fn publish_made(
        &self,
        name: Option<&Name>,
        config: &ImageConfig,
        lock: &StoreLock,
    ) -> Result<Image, StoreError> {
        let layers = &config.rootfs.diff_ids;
        let config = to_json(config);
        let descriptors = layers.iter().map(|id| self.describe(id));
        let manifest = Manifest::new(&config, descriptors.collect::<Result<_, _>>()?);
        let manifest = to_json(&manifest);
        let id = ImageId(Digest::of(&manifest));
        self.keep(layers, &[], Some(id), lock)?;
        self.publish_image(&id, &manifest, &config)?;
        if let Some(name) = name {
            self.set_name(name, &id)?;
        }
        self.image(&id)
    }

    /// Adds an image as somebody else made it: its manifest and its configuration are kept byte for
    /// byte. Its layers, uncompressed, are in the store already. Another image that has the name loses
    /// it. Without a name, the image stays at least until the store is dropped.
    ///
    /// # Errors
    /// When the name is not possible, manifest and configuration do not belong together or are not
    /// those of an image, a layer is missing or damaged, the layers do not fit together, or the store
    /// cannot be written.
    pub fn put_image(
        &self,
        name: Option<&str>,
        manifest: &[u8],
        config: &[u8],
    ) -> Result<Image, StoreError> {
        let name = name.map(Name::parse).transpose()?;
        self.for_writing()?;
        let lock = self.lock_shared()?;
        let id = ImageId(Digest::of(manifest));
        let parsed = parse_image(&id, manifest, config)?;
        self.merged_index(&parsed.config.rootfs.diff_ids)?;
        self.keep(&[], &[], Some(id), &lock)?;
        self.publish_image(&id, manifest, config)?;
        if let Some(name) = &name {
            self.set_name(name, &id)?;
        }
        self.image(&id)
    }

    /// The manifest and the configuration of an image, as they were written.
    ///
    /// # Errors
    /// When the store does not have it, or has it damaged.
    pub fn image_files(&self, id: &ImageId) -> Result<ImageFiles, StoreError> {
        let (manifest, config, parsed) = self.read_files(id)?;
        Ok(ImageFiles {
            manifest,
            config,
            parsed: parsed.manifest,
        })
    }

    /// The files of an image, and what they say.
    pub(super) fn read_files(
        &self,
        id: &ImageId,
    ) -> Result<(Vec<u8>, Vec<u8>, Parsed), StoreError> {
        let dir = self.image_dir(id);
        if !dir.exists() {
            return Err(StoreError::NotFound(id.to_string()));
        }
        let read = |name: &str| {
            let path = dir.join(name);
            fs::read(&path).map_err(StoreError::io("read", path))
        };
        let (manifest, config) = (read(MANIFEST)?, read(CONFIG)?);
        let problem = match Digest::of(&manifest) {
            found if found == id.0 => None,
            found => Some(format!("its digest is {found} instead of {}", id.0)),
        };
        if let Some(problem) = problem {
            let path = dir.join(MANIFEST);
            return Err(StoreError::ImageDamaged { path, problem });
        }
        let parsed = parse_image(id, &manifest, &config).map_err(|error| match error {
            StoreError::ImageWrong { problem, .. } => StoreError::ImageDamaged {
                path: dir.clone(),
                problem,
            },
            error => error,
        })?;
        Ok((manifest, config, parsed))
    }

    /// Gives an image another name.
    ///
    /// # Errors
    /// When the name is not possible, there is no such image, or the store cannot be written.
    pub fn tag_image(&self, name: &str, id: &ImageId) -> Result<(), StoreError> {
        let name = Name::parse(name)?;
        self.for_writing()?;
        let _lock = self.lock_shared()?;
        self.image(id)?;
        self.set_name(&name, id)
    }

    /// The image that has this name, not a digest; `None` also for what is no name.
    ///
    /// # Errors
    /// When the name is damaged.
    pub fn named(&self, name: &str) -> Result<Option<ImageId>, StoreError> {
        match Name::parse(name) {
            Ok(name) => self.named_image(&name),
            Err(_) => Ok(None),
        }
    }

    /// The names of an image, sorted.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn names_of(&self, id: &ImageId) -> Result<Vec<String>, StoreError> {
        let names = self.names()?.into_iter().filter(|(_, other)| other == id);
        Ok(names.map(|(name, _)| name.as_str().to_owned()).collect())
    }

    /// The image with this digest.
    ///
    /// # Errors
    /// When the store does not have it, or has it damaged.
    pub fn image(&self, id: &ImageId) -> Result<Image, StoreError> {
        let mut image = self.read_image(id)?;
        let names = self.names()?.into_iter();
        image.names = names
            .filter(|(_, other)| other == id)
            .map(|(name, _)| name.as_str().to_owned())
            .collect();
        Ok(image)
    }

    /// All images, those with names first, sorted by name. Damaged ones are left out, with a
    /// warning.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn images(&self) -> Result<Vec<Image>, StoreError> {
        let names = self.names()?;
        let mut images = Vec::new();
        for digest in self.digests_in("images")? {
            match self.read_image(&ImageId(digest)) {
                Ok(image) => images.push(image),
                Err(error) => tracing::warn!("{error}"),
            }
        }
        for image in &mut images {
            let own = names.iter().filter(|(_, id)| *id == image.id);
            image.names = own.map(|(name, _)| name.as_str().to_owned()).collect();
        }
        images.sort_by(|a, b| {
            let key = |image: &Image| (image.names.is_empty(), image.names.first().cloned());
            key(a).cmp(&key(b)).then(a.id.cmp(&b.id))
        });
        Ok(images)
    }

    /// What a person calls by a name, a digest, or the beginning of one: an image, by the digest of its
    /// manifest or configuration or its chain ID, or a layer, as an image of one layer.
    ///
    /// # Errors
    /// When there is no such thing, there are several, or it is damaged.
    pub fn resolve(&self, name: &str) -> Result<Image, StoreError> {
        if let Ok(parsed) = Name::parse(name)
            && let Some(id) = self.named_image(&parsed)?
        {
            return self.image(&id);
        }
        let not_found = || StoreError::NotFound(name.to_owned());
        let prefix = name.strip_prefix("sha256:").unwrap_or(name);
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if prefix.len() < PREFIX_MIN || !prefix.bytes().all(is_hex) {
            return Err(not_found());
        }
        let mut found = Vec::new();
        for image in self.images()? {
            for digest in [image.id.0, image.config_digest, image.chain.0] {
                if digest.hex().starts_with(prefix) {
                    found.push((digest, image));
                    break;
                }
            }
        }
        for id in self.layers()? {
            // An image of this one layer is the better answer.
            let known = found.iter().any(|(_, image)| image.layers == [id]);
            if id.0.hex().starts_with(prefix) && !known {
                found.push((id.0, self.bare_layer(&id)?));
            }
        }
        match found.len() {
            0 | 1 => found.pop().map(|(_, image)| image).ok_or_else(not_found),
            _ => Err(StoreError::Ambiguous {
                name: name.to_owned(),
                candidates: found.iter().map(|(digest, _)| digest.to_string()).collect(),
            }),
        }
    }

    /// Takes a name from an image, which stays. Returns the image.
    ///
    /// # Errors
    /// When nothing has the name, or the store cannot be written.
    pub fn untag(&self, name: &str) -> Result<ImageId, StoreError> {
        self.for_writing()?;
        let parsed = Name::parse(name)?;
        let not_found = || StoreError::NotFound(name.to_owned());
        let _lock = self.lock_shared()?;
        let id = self.named_image(&parsed)?.ok_or_else(not_found)?;
        match self.remove_name(&parsed) {
            // Somebody else was quicker.
            Err(error) if error.io_kind() == Some(io::ErrorKind::NotFound) => Err(not_found()),
            result => result.map(|()| id),
        }
    }

    pub(super) fn image_dir(&self, id: &ImageId) -> std::path::PathBuf {
        self.root().join("images").join(id.0.hex())
    }

    fn describe(&self, id: &DiffId) -> Result<Descriptor, StoreError> {
        Ok(Descriptor {
            media_type: oci::LAYER.into(),
            digest: id.to_string(),
            size: self.layer(id)?.tar_size,
            other: oci::Other::new(),
        })
    }

    fn publish_image(
        &self,
        id: &ImageId,
        manifest: &[u8],
        config: &[u8],
    ) -> Result<(), StoreError> {
        let to = self.image_dir(id);
        let has = |name, bytes: &[u8]| fs::read(to.join(name)).is_ok_and(|found| found == bytes);
        if has(MANIFEST, manifest) && has(CONFIG, config) {
            return Ok(());
        }
        let staging = Staging::create(&self.root().join("staging"))?;
        let dir = staging.path().join("image");
        fs::create_dir(&dir).map_err(StoreError::io("create", &dir))?;
        for (name, bytes) in [(MANIFEST, manifest), (CONFIG, config)] {
            let path = dir.join(name);
            let write = || -> io::Result<()> {
                let mut file = fs::File::create(&path)?;
                file.write_all(bytes)?;
                file.sync_all()
            };
            write().map_err(StoreError::io("write", &path))?;
        }
        source::keep(&to, &dir)?;
        sync_dir(&dir)?;
        txn::publish_dir(&dir, &to)?;
        sync_dir(&self.root().join("images"))
    }

    /// An image without its names.
    pub(super) fn read_image(&self, id: &ImageId) -> Result<Image, StoreError> {
        let dir = self.image_dir(id);
        if !dir.exists() {
            return Err(StoreError::NotFound(id.to_string()));
        }
        let path = dir.join(MANIFEST);
        let manifest: Manifest = read_json(&path, &id.0)?;
        let config_path = dir.join(CONFIG);
        let damaged = |path: &Path, problem: String| StoreError::ImageDamaged {
            path: path.to_owned(),
            problem,
        };
        let digest = manifest.config.digest.parse();
        let digest: Digest = digest.map_err(|error| damaged(&path, format!("{error}")))?;
        let config: ImageConfig = read_json(&config_path, &digest)?;
        let layers = config.rootfs.diff_ids.clone();
        let chain =
            ChainId::of(&layers).ok_or_else(|| damaged(&config_path, "it has no layers".into()))?;
        Ok(Image {
            id: *id,
            config_digest: digest,
            names: Vec::new(),
            layers,
            chain,
            config,
            size: manifest.layers.iter().map(|layer| layer.size).sum(),
        })
    }

    /// A layer as an image.
    fn bare_layer(&self, id: &DiffId) -> Result<Image, StoreError> {
        Ok(Image {
            id: ImageId(id.0),
            config_digest: id.0,
            names: Vec::new(),
            layers: vec![*id],
            chain: ChainId(id.0),
            config: ImageConfig::default(),
            size: self.layer(id)?.tar_size,
        })
    }
}

/// Reads a file that a digest names.
fn read_json<T: serde::de::DeserializeOwned>(
    path: &Path,
    digest: &Digest,
) -> Result<T, StoreError> {
    let text = fs::read(path).map_err(StoreError::io("read", path))?;
    let damaged = |problem| StoreError::ImageDamaged {
        path: path.to_owned(),
        problem,
    };
    let found = Digest::of(&text);
    if found != *digest {
        return Err(damaged(format!(
            "its digest is {found} instead of {digest}"
        )));
    }
    serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))
}

fn to_json(value: &impl serde::Serialize) -> Vec<u8> {
    // Maps have strings for keys, so this cannot fail.
    serde_json::to_vec(value).unwrap_or_default()
}
