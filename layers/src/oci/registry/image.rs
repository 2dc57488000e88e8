//! An image in a registry: its manifest, chosen from an index if need be, and its configuration.

use std::io::Read;

use ureq::Body;
use ureq::http::header::{ACCEPT, CONTENT_TYPE};
use ureq::http::{HeaderName, Method, Response};

use super::blob::BlobReader;
use super::client::{Call, Client, Content};
use super::{Reference, RegistryError, RepositoryBlobs};
use crate::digest::{Digest, ImageId};
use crate::oci::{Document, IngestOptions, Ingested, MAX_DOCUMENT, Platform, ingest};
use crate::store::Store;
use crate::store::oci::{
    DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, INDEX, ImageConfig, Index, MANIFEST, Manifest,
};

/// One repository of a registry.
pub struct Repository<'c> {
    client: &'c Client,
    path: String,
    /// As people write it.
    name: String,
    pull: Vec<String>,
}

/// A manifest or an index as a registry gave it.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// Byte for byte.
    pub bytes: Vec<u8>,
    /// Its digest.
    pub digest: Digest,
    /// What it says.
    pub document: Document,
}

/// An image as a registry has it; its layers are still there.
#[derive(Clone, Debug)]
pub struct RemoteImage {
    /// Its manifest, byte for byte.
    pub manifest: Vec<u8>,
    /// Its configuration, byte for byte.
    pub config: Vec<u8>,
    /// What the manifest says.
    pub parsed: Manifest,
    /// The digest of what was asked for: of the manifest, or of an index that it is in.
    pub digest: Digest,
}

/// An index may be in an index, so deep.
const MAX_DEPTH: usize = 2;

impl<'c> Repository<'c> {
    /// That of a reference. Nothing is sent yet.
    pub fn new(client: &'c Client, reference: &Reference) -> Self {
        let path = reference.repository().to_owned();
        Self {
            client,
            name: format!("{}/{path}", reference.registry()),
            pull: vec![format!("repository:{path}:pull")],
            path,
        }
    }

    /// The connections to its registry.
    pub fn client(&self) -> &'c Client {
        self.client
    }

    /// Its path in the registry.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Registry and path.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The address of something in it.
    pub(super) fn url(&self, path: &str) -> String {
        self.client.url(&format!("{}/{path}", self.path))
    }

    /// What has to be allowed for reading.
    pub(super) fn pull_scopes(&self) -> &[String] {
        &self.pull
    }

    /// The image that `reference` stands for: of an index the one for `platform`, by default for this
    /// machine. An image alone that is for another is taken, with a warning, if none was asked for.
    ///
    /// # Errors
    /// When the registry does not give it, there is none for the platform, or it is not an image.
    pub fn image(
        &self,
        reference: &Reference,
        platform: Option<&Platform>,
    ) -> Result<RemoteImage, RegistryError> {
        let what = reference.to_string();
        let wanted = platform.cloned().unwrap_or_else(Platform::host);
        let asked = self.fetch(&reference.selector(), &what)?;
        let digest = asked.digest;
        let mut found = asked;
        let mut depth = 0;
        let parsed = loop {
            let index = match found.document {
                Document::Image(manifest) => break manifest,
                Document::Index(index) => index,
            };
            let chosen = choose(&index, &wanted).filter(|_| depth < MAX_DEPTH);
            let chosen = chosen.ok_or_else(|| RegistryError::Platform {
                what: what.clone(),
                platform: wanted.to_string(),
                found: platforms(&index),
            })?;
            depth += 1;
            found = self.fetch(&chosen.digest, &what)?;
        };
        let config = self.config(&parsed.config)?;
        // An image alone says for what it is in its configuration.
        if depth == 0
            && let Some(found) = misfit(&config, &wanted)
        {
            if platform.is_some() {
                return Err(RegistryError::Platform {
                    what,
                    platform: wanted.to_string(),
                    found: vec![found.to_string()],
                });
            }
            tracing::warn!("{what} is for {found}, not for {wanted}");
        }
        Ok(RemoteImage {
            manifest: found.bytes,
            config,
            parsed,
            digest,
        })
    }

    /// A manifest or an index, by tag or digest. `what` is what messages call it.
    ///
    /// # Errors
    /// When the registry does not give it, or it is neither.
    pub fn fetch(&self, selector: &str, what: &str) -> Result<Fetched, RegistryError> {
        let accepted = [MANIFEST, DOCKER_MANIFEST, INDEX, DOCKER_INDEX];
        let response = self.client.send(&Call {
            method: Method::GET,
            url: &self.url(&format!("manifests/{selector}")),
            headers: &[(ACCEPT, &accepted.join(", "))],
            scopes: &self.pull,
            what,
            content: Content::None,
        })?;
        let said = header(&response, &CONTENT_TYPE);
        let promised = header(&response, &DOCKER_CONTENT_DIGEST);
        let bytes = self.read(response, what)?;
        let digest = Digest::of(&bytes);
        let wanted = selector.parse().ok();
        if let Some(wanted) = wanted.or_else(|| promised?.parse().ok())
            && wanted != digest
        {
            return Err(RegistryError::Digest {
                registry: self.client.registry().to_owned(),
                what: format!("the manifest of {what}"),
                wanted,
                found: digest,
            });
        }
        let document = Document::parse(&bytes).map_err(|problem| {
            let registry = self.client.registry().to_owned();
            let what = what.to_owned();
            // Something between us and the registry may answer with a page of its own.
            match said.filter(|said| !is_json(said)) {
                Some(said) => RegistryError::Protocol {
                    registry,
                    what,
                    problem: format!("it sends '{}', not a manifest", said.escape_debug()),
                },
                None => RegistryError::Manifest {
                    registry,
                    what,
                    problem,
                },
            }
        })?;
        Ok(Fetched {
            bytes,
            digest,
            document,
        })
    }

    /// Reads a document whose length is not to be believed.
    fn read(&self, response: Response<Body>, what: &str) -> Result<Vec<u8>, RegistryError> {
        let mut bytes = Vec::new();
        let body = response.into_body().into_with_config().limit(u64::MAX);
        let read = body.reader().take(MAX_DOCUMENT + 1).read_to_end(&mut bytes);
        let protocol = |problem: String| RegistryError::Protocol {
            registry: self.client.registry().to_owned(),
            what: what.to_owned(),
            problem,
        };
        match read {
            Ok(length) if length as u64 > MAX_DOCUMENT => Err(protocol(format!(
                "it sends more than {MAX_DOCUMENT} bytes, too much for a manifest"
            ))),
            Ok(_) => Ok(bytes),
            Err(error) => Err(protocol(format!("the connection broke: {error}"))),
        }
    }

    /// The configuration of an image.
    fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>, RegistryError> {
        let what = format!("the configuration {} of {}", descriptor.digest, self.name);
        let protocol = |problem: String| RegistryError::Protocol {
            registry: self.client.registry().to_owned(),
            what: what.clone(),
            problem,
        };
        if descriptor.size > MAX_DOCUMENT {
            let size = descriptor.size;
            return Err(protocol(format!(
                "it has {size} bytes (at most {MAX_DOCUMENT})"
            )));
        }
        let mut config = Vec::new();
        BlobReader::new(self, descriptor)
            .take(descriptor.size + 1)
            .read_to_end(&mut config)
            .map_err(|error| match error.downcast::<RegistryError>() {
                Ok(error) => error,
                Err(error) => protocol(error.to_string()),
            })?;
        let found = Digest::of(&config);
        match descriptor.digest.parse::<Digest>() {
            Ok(wanted) if wanted == found => Ok(config),
            Ok(wanted) => Err(RegistryError::Digest {
                registry: self.client.registry().to_owned(),
                what,
                wanted,
                found,
            }),
            Err(error) => Err(protocol(error.to_string())),
        }
    }

    /// Takes an image into a store, under a name.
    ///
    /// # Errors
    /// When a layer cannot be had or is wrong, or the store cannot be written. Layers that are
    /// complete stay in the store then.
    pub fn pull(
        &self,
        store: &Store,
        image: &RemoteImage,
        name: Option<&str>,
        options: &IngestOptions<'_>,
    ) -> Result<Ingested, RegistryError> {
        let blobs = RepositoryBlobs::new(self);
        let (manifest, config) = (&image.manifest, &image.config);
        Ok(ingest(store, &blobs, name, manifest, config, options)?)
    }

    /// Fetches the layers again that a store does not have, or does not believe to have, of an image
    /// that it pulled from here.
    ///
    /// # Errors
    /// As [`Self::image`] and [`Self::pull`].
    pub fn refetch(
        &self,
        store: &Store,
        id: &ImageId,
        options: &IngestOptions<'_>,
    ) -> Result<Ingested, RegistryError> {
        let reference: Reference = format!("{}@{id}", self.name).parse()?;
        let image = self.image(&reference, None)?;
        self.pull(store, &image, None, options)
    }
}

/// Docker's header for the digest of what is sent.
pub(super) const DOCKER_CONTENT_DIGEST: HeaderName =
    HeaderName::from_static("docker-content-digest");

fn header(response: &Response<Body>, name: &HeaderName) -> Option<String> {
    let value = response.headers().get(name)?.to_str().ok()?;
    Some(value.to_owned())
}

fn is_json(media_type: &str) -> bool {
    let bare = media_type.split(';').next().unwrap_or_default().trim();
    bare.ends_with("json") || bare.ends_with("jws") || bare == "application/octet-stream"
}

/// The image of an index that is for a platform. One that is alone and does not say for what it is
/// is for all.
fn choose<'i>(index: &'i Index, platform: &Platform) -> Option<&'i Descriptor> {
    let all = index.manifests.iter();
    let said = all.filter_map(|descriptor| Some((Platform::of(descriptor)?, descriptor)));
    platform
        .choose(said)
        .or_else(|| match index.manifests.as_slice() {
            [only] if Platform::of(only).is_none() => Some(only),
            _ => None,
        })
}

/// What an index has images for. What is no image (attestations) says `unknown`.
fn platforms(index: &Index) -> Vec<String> {
    let platforms = index.manifests.iter().filter_map(Platform::of);
    let known = platforms.filter(|platform| platform.os != "unknown");
    known.map(|platform| platform.to_string()).collect()
}

/// What an image is for, if it is for another machine than wanted.
fn misfit(config: &[u8], wanted: &Platform) -> Option<Platform> {
    // What takes it into the store says what else is wrong.
    let config = serde_json::from_slice::<ImageConfig>(config).ok()?;
    let found = Platform::of_config(&config);
    (!wanted.takes(&found)).then_some(found)
}
