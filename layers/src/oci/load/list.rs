//! Which images an archive or a directory has, told by what is in it: an OCI layout has an
//! `index.json`, what `docker save` writes a `manifest.json`. Newer versions of docker write both; then
//! the OCI layout counts.

use std::cell::Cell;
use std::collections::HashMap;

use serde::Deserialize;

use super::LoadError;
use super::contents::Contents;
use super::stream::DOCUMENTS_MAX;
use crate::digest::Digest;
use crate::oci::{
    Document, DocumentError, Family, LayerMedia, MAX_DOCUMENT, Platform, UnknownMedia,
};
use crate::store::oci::{DOCKER_CONFIG, DOCKER_MANIFEST, Descriptor, ImageConfig, Manifest, Other};
use crate::tar::Compression;

/// Indexes within indexes.
const DEPTH_MAX: usize = 4;
/// Documents that are looked at.
const LOOKS_MAX: usize = 2000;
/// The annotation that docker and containerd have for the whole name of an image.
const NAME: &str = "io.containerd.image.name";
/// That of the OCI image specification, for a name or the tag of one.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// An image that was found.
pub struct Found {
    /// What it is called there.
    pub title: String,
    /// Its names, as they stand there.
    pub names: Vec<String>,
    /// Its manifest: as it is there, or made of what there is instead.
    pub manifest: Vec<u8>,
    /// Its configuration.
    pub config: Vec<u8>,
    /// Where its layers are, by the digests that the manifest has for them.
    pub layers: HashMap<Digest, String>,
}

/// Images of which one is to be chosen by platform.
pub struct Group {
    /// Its names.
    pub names: Vec<String>,
    images: Vec<(Option<Platform>, Leaf)>,
}

/// One of them.
enum Leaf {
    /// What an index refers to.
    Oci(Descriptor),
    /// An entry of docker's `manifest.json`.
    Docker(Saved),
}

/// An entry of docker's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Finds the images of an archive or a directory.
pub struct Lister<'a> {
    contents: &'a dyn Contents,
    /// Bytes of documents that may still be read, and the number of those documents.
    bytes: Cell<u64>,
    looks: Cell<usize>,
}

impl<'a> Lister<'a> {
    /// Of these.
    pub fn new(contents: &'a dyn Contents) -> Self {
        Self {
            contents,
            bytes: Cell::new(DOCUMENTS_MAX),
            looks: Cell::new(LOOKS_MAX),
        }
    }

    /// All there are, in their order.
    pub fn groups(&self) -> Result<Vec<Group>, LoadError> {
        if let Some(index) = self.read("index.json")? {
            return self.oci_groups(&index);
        }
        match self.read("manifest.json")? {
            Some(saved) => self.docker_groups(&saved),
            None => Err(LoadError::NoImages {
                name: self.contents.name().to_owned(),
            }),
        }
    }

    /// The images of a group, and what they are for.
    pub fn images(&self, group: &Group) -> Result<Vec<(Platform, Found)>, LoadError> {
        let mut images = Vec::new();
        for (platform, leaf) in &group.images {
            let found = match leaf {
                Leaf::Oci(descriptor) => self.oci_image(descriptor),
                Leaf::Docker(saved) => self.docker_image(saved).map(Some),
            };
            if let Some((found, config)) = found? {
                let platform = platform.clone();
                images.push((platform.unwrap_or(Platform::of_config(&config)), found));
            }
        }
        Ok(images)
    }

    /// The image of a group for a platform: this machine's if none is given, unless there is only one.
    pub fn choose(&self, group: Group, platform: Option<&Platform>) -> Result<Found, LoadError> {
        let title = group.title();
        let mut images = self.images(&group)?;
        let host = Platform::host();
        let wanted = match platform {
            None if images.len() == 1 => None,
            wanted => Some(wanted.unwrap_or(&host)),
        };
        let all: Vec<_> = images
            .iter()
            .map(|(platform, _)| platform.clone())
            .collect();
        let chosen = match wanted {
            None => images.pop().map(|(_, found)| found),
            Some(wanted) => wanted.choose(images.into_iter()),
        };
        let name = || self.contents.name().to_owned();
        let mut chosen = chosen.ok_or_else(|| match (all.is_empty(), wanted) {
            (false, Some(wanted)) => LoadError::Platform {
                name: name(),
                wanted: wanted.clone(),
                found: all,
            },
            _ => LoadError::NoImages { name: name() },
        })?;
        chosen.names = group.names;
        chosen.title = title;
        Ok(chosen)
    }

    fn oci_groups(&self, index: &[u8]) -> Result<Vec<Group>, LoadError> {
        let Document::Index(index) = self.parse("index.json", index)? else {
            return Err(self.wrong("index.json", DocumentError::Neither));
        };
        // Where nothing has a name, and everything is for another platform, it is one image.
        let unnamed: Vec<_> = index
            .manifests
            .iter()
            .filter(|it| name_of(it).is_none())
            .collect();
        let one = unnamed.len() > 1 && unnamed.iter().all(|it| Platform::of(it).is_some());
        let mut groups: Vec<(Option<String>, Group)> = Vec::new();
        for descriptor in &index.manifests {
            let name = name_of(descriptor);
            let mut images = Vec::new();
            self.leaves(descriptor, 0, &mut images)?;
            let known = groups.iter_mut().find(|(other, _)| match (other, &name) {
                (Some(other), Some(name)) => other == name,
                (None, None) => one,
                _ => false,
            });
            if let Some((_, group)) = known {
                group.images.extend(images);
            } else {
                let names = name.clone().into_iter().collect();
                groups.push((name, Group { names, images }));
            }
        }
        let groups = groups.into_iter().map(|(_, group)| group);
        // Signatures and the like.
        Ok(groups.filter(|group| !group.images.is_empty()).collect())
    }

    /// The images that a descriptor leads to.
    fn leaves(
        &self,
        descriptor: &Descriptor,
        depth: usize,
        into: &mut Vec<(Option<Platform>, Leaf)>,
    ) -> Result<(), LoadError> {
        let platform = Platform::of(descriptor);
        // Docker puts what it says of how an image was built among the images.
        let unknown = |platform: &Platform| platform.os == "unknown";
        if depth > DEPTH_MAX {
            return Err(self.nested());
        }
        if platform.as_ref().is_some_and(unknown) {
            return Ok(());
        }
        let path = blob_path(descriptor);
        let document = match self.read_blob(descriptor) {
            // Those of other platforms may have been left out.
            Err(LoadError::Missing { .. }) if depth > 0 => return Ok(()),
            document => self.parse(&path, &document?),
        };
        match document {
            Ok(Document::Index(index)) => {
                for inner in &index.manifests {
                    self.leaves(inner, depth + 1, into)?;
                }
            }
            Ok(Document::Image(_)) => into.push((platform, Leaf::Oci(descriptor.clone()))),
            Err(LoadError::Document {
                problem: problem @ (DocumentError::Artifact(_) | DocumentError::Layer { .. }),
                ..
            }) => tracing::info!("{}: '{path}' {problem}", self.contents.name()),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The image of a descriptor; `None` if its configuration is not there.
    fn oci_image(
        &self,
        descriptor: &Descriptor,
    ) -> Result<Option<(Found, ImageConfig)>, LoadError> {
        let manifest = self.read_blob(descriptor)?;
        let path = blob_path(descriptor);
        let Document::Image(parsed) = self.parse(&path, &manifest)? else {
            return Ok(None);
        };
        let config = match self.read_blob(&parsed.config) {
            Err(LoadError::Missing { .. }) if Platform::of(descriptor).is_some() => {
                return Ok(None);
            }
            config => config?,
        };
        let platform = self.parse_config(&blob_path(&parsed.config), &config)?;
        let layers = parsed.layers.iter().filter_map(|layer| {
            let digest = layer.digest.parse().ok()?;
            Some((digest, blob_path(layer)))
        });
        let found = Found {
            title: String::new(),
            names: Vec::new(),
            layers: layers.collect(),
            manifest,
            config,
        };
        Ok(Some((found, platform)))
    }

    fn docker_groups(&self, saved: &[u8]) -> Result<Vec<Group>, LoadError> {
        let parsed: Result<Vec<Saved>, _> = serde_json::from_slice(saved);
        let saved = parsed.map_err(|error| self.wrong("manifest.json", error.into()))?;
        let groups = saved.into_iter().map(|mut saved| Group {
            names: saved.repo_tags.take().unwrap_or_default(),
            images: vec![(None, Leaf::Docker(saved))],
        });
        Ok(groups.collect())
    }

    /// An image that docker saved. It has no manifest, so one is made: docker's, as the configuration
    /// is docker's.
    fn docker_image(&self, saved: &Saved) -> Result<(Found, ImageConfig), LoadError> {
        let config = self.read(&saved.config)?;
        let config = config.ok_or_else(|| self.missing(&saved.config, "manifest.json"))?;
        let parsed = self.parse_config(&saved.config, &config)?;
        let diff_ids = &parsed.rootfs.diff_ids;
        if diff_ids.len() != saved.layers.len() {
            let problem = DocumentError::Count {
                layers: saved.layers.len(),
                diff_ids: diff_ids.len(),
            };
            return Err(self.wrong("manifest.json", problem));
        }
        let mut layers = HashMap::new();
        let mut descriptors = Vec::new();
        for (path, diff_id) in saved.layers.iter().zip(diff_ids) {
            let descriptor = self.describe(path, diff_id.0)?;
            if let Ok(digest) = descriptor.digest.parse() {
                layers.insert(digest, path.clone());
            }
            descriptors.push(descriptor);
        }
        let mut manifest = Manifest::new(&config, descriptors);
        manifest.media_type = Some(DOCKER_MANIFEST.into());
        manifest.config.media_type = DOCKER_CONFIG.into();
        let found = Found {
            title: String::new(),
            names: Vec::new(),
            // It has strings for keys, so this cannot fail.
            manifest: serde_json::to_vec(&manifest).unwrap_or_default(),
            config,
            layers,
        };
        Ok((found, parsed))
    }

    /// A descriptor for a layer that docker saved, usually as it is, sometimes packed.
    fn describe(&self, path: &str, diff_id: Digest) -> Result<Descriptor, LoadError> {
        let look = self.contents.look(path)?;
        let look = look.ok_or_else(|| self.missing(path, "manifest.json"))?;
        let family = match look.compression {
            Compression::Zstd => Family::Oci,
            _ => Family::Docker,
        };
        let media_type = LayerMedia::name(family, look.compression);
        let media_type = media_type.ok_or_else(|| LoadError::Layer {
            name: self.contents.name().to_owned(),
            path: path.to_owned(),
            source: UnknownMedia(look.compression.name().to_owned()),
        })?;
        let digest = match (look.digest, look.compression) {
            (Some(digest), _) => digest,
            (None, Compression::None) => diff_id,
            (None, _) => self.digest(path)?,
        };
        Ok(Descriptor {
            media_type: media_type.into(),
            digest: digest.to_string(),
            size: look.size,
            other: Other::new(),
        })
    }

    fn digest(&self, path: &str) -> Result<Digest, LoadError> {
        let file = self.contents.open(path)?;
        let mut file = file.ok_or_else(|| self.missing(path, "manifest.json"))?;
        Digest::of_reader(&mut file)
            .map_err(super::contents::unreadable(self.contents.name(), path))
    }

    /// A document among the blobs, which must be what its name says.
    fn read_blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, LoadError> {
        let path = blob_path(descriptor);
        let bytes = self.read(&path)?;
        let bytes = bytes.ok_or_else(|| self.missing(&path, "a manifest or an index"))?;
        let found = Digest::of(&bytes);
        if found.to_string() != descriptor.digest {
            let name = self.contents.name().to_owned();
            return Err(LoadError::Digest { name, path, found });
        }
        let (size, found) = (descriptor.size, bytes.len() as u64);
        if found != size {
            return Err(self.wrong(&path, DocumentError::Size { size, found }));
        }
        Ok(bytes)
    }

    /// A document. All of them together have a limit.
    fn read(&self, path: &str) -> Result<Option<Vec<u8>>, LoadError> {
        let looks = self
            .looks
            .get()
            .checked_sub(1)
            .ok_or_else(|| self.nested())?;
        self.looks.set(looks);
        let bytes = self.contents.read(path, MAX_DOCUMENT)?;
        let size = bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
        let left = self
            .bytes
            .get()
            .checked_sub(size)
            .ok_or_else(|| self.nested())?;
        self.bytes.set(left);
        Ok(bytes)
    }

    fn parse(&self, path: &str, bytes: &[u8]) -> Result<Document, LoadError> {
        Document::parse(bytes).map_err(|problem| self.wrong(path, problem))
    }

    fn parse_config(&self, path: &str, bytes: &[u8]) -> Result<ImageConfig, LoadError> {
        serde_json::from_slice(bytes).map_err(|error| self.wrong(path, error.into()))
    }

    fn wrong(&self, path: &str, problem: DocumentError) -> LoadError {
        LoadError::Document {
            name: self.contents.name().to_owned(),
            path: path.to_owned(),
            problem,
        }
    }

    fn missing(&self, path: &str, by: &'static str) -> LoadError {
        LoadError::Missing {
            name: self.contents.name().to_owned(),
            path: path.to_owned(),
            by,
        }
    }

    fn nested(&self) -> LoadError {
        LoadError::Nested {
            name: self.contents.name().to_owned(),
        }
    }
}

impl Group {
    /// What to call it when people have to choose.
    pub fn title(&self) -> String {
        match (self.names.as_slice(), self.images.first()) {
            ([], Some((_, Leaf::Oci(descriptor)))) => descriptor.digest.clone(),
            ([], Some((_, Leaf::Docker(saved)))) => saved.config.clone(),
            (names, _) => names.join(", "),
        }
    }

    /// Whether this is what people call `wanted`.
    pub fn is(&self, wanted: &str) -> bool {
        let short = |name: &str| name.strip_suffix(":latest").unwrap_or(name).to_owned();
        let mut images = self.images.iter();
        self.names.iter().any(|name| short(name) == short(wanted))
            || images.any(|(_, leaf)| match leaf {
                Leaf::Oci(descriptor) => descriptor.digest == wanted,
                Leaf::Docker(saved) => saved.config == wanted,
            })
    }
}

/// What a descriptor calls its image.
fn name_of(descriptor: &Descriptor) -> Option<String> {
    let name = descriptor.annotation(NAME);
    name.or_else(|| descriptor.annotation(REF_NAME))
        .map(ToOwned::to_owned)
}

/// Where a layout has what a descriptor refers to.
fn blob_path(descriptor: &Descriptor) -> String {
    // Descriptors have been checked to have SHA-256 digests.
    let hex = descriptor.digest.trim_start_matches("sha256:");
    format!("blobs/sha256/{hex}")
}
