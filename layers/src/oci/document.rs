//! Manifests and indexes, told apart by content.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::LayerMedia;
use crate::digest::{Digest, ParseDigestError};
use crate::store::oci::{
    CONFIG, DOCKER_CONFIG, DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, INDEX, Index, MANIFEST,
    Manifest,
};

/// The longest manifest, index or configuration that is read, in bytes: what registries and other
/// programs take.
pub const MAX_DOCUMENT: u64 = 4 << 20;

/// The most layers of an image.
pub const MAX_LAYERS: usize = 2048;

/// A manifest or an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// The manifest of an image whose layers have media types that are known.
    Image(Manifest),
    /// An index.
    Index(Index),
}

/// What is wrong with a manifest or an index, worded to follow "its manifest" or a path.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// It is too long.
    #[error("has {0} bytes (at most {MAX_DOCUMENT})")]
    TooLong(u64),
    /// It is not JSON, or has fields of wrong types.
    #[error("is not one of an image: {0}")]
    Json(#[from] serde_json::Error),
    /// A manifest of docker's before 2016.
    #[error(
        "has docker's old schema 1, which is not read; pull or save the image with a newer program"
    )]
    Schema1,
    /// A schema version that does not exist.
    #[error("has the schema version {0} instead of 2")]
    Schema(u32),
    /// It says that it is something else.
    #[error("says that it is '{}', which is neither an image nor an index", .0.escape_debug())]
    MediaType(String),
    /// It could be read as an image and as an index, by different programs.
    #[error("is both that of an image and an index")]
    Both,
    /// Neither.
    #[error("is neither that of an image nor an index")]
    Neither,
    /// Something else than an image, in the form of one.
    #[error("is one of an artifact, not of an image: its configuration is '{}'", .0.escape_debug())]
    Artifact(String),
    /// More layers than anybody makes.
    #[error("lists {0} layers (at most {MAX_LAYERS})")]
    Layers(usize),
    /// A layer that cannot be read.
    #[error("lists as layer {number} something else: {source}")]
    Layer {
        /// Which one, from 1.
        number: usize,
        /// What is wrong with it.
        source: super::UnknownMedia,
    },
    /// Another number of layers than the configuration has.
    #[error("lists {layers} layers, and the configuration {diff_ids}")]
    Count {
        /// How many it lists.
        layers: usize,
        /// How many the configuration lists.
        diff_ids: usize,
    },
    /// It has another length than what refers to it says.
    #[error("has {found} bytes, and what refers to it says {size}")]
    Size {
        /// The length that it should have, in bytes.
        size: u64,
        /// The length that it has, in bytes.
        found: u64,
    },
    /// A digest that cannot be checked.
    #[error("refers to something by a digest that is not supported: {0}")]
    Digest(#[from] ParseDigestError),
}

/// What tells them apart.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    schema_version: Option<u32>,
    media_type: Option<String>,
    manifests: Option<IgnoredAny>,
    config: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
    fs_layers: Option<IgnoredAny>,
}

impl Document {
    /// Reads one.
    ///
    /// # Errors
    /// When it is neither, or is not as it should be.
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        if bytes.len() as u64 > MAX_DOCUMENT {
            return Err(DocumentError::TooLong(bytes.len() as u64));
        }
        let probe: Probe = serde_json::from_slice(bytes)?;
        if probe.schema_version == Some(1) || probe.fs_layers.is_some() {
            return Err(DocumentError::Schema1);
        }
        if let Some(version) = probe.schema_version.filter(|version| *version != 2) {
            return Err(DocumentError::Schema(version));
        }
        // OCI image specification, "Image Manifest": who gets one with the fields of both must
        // refuse it (CVE-2021-41190).
        let is_image = probe.config.is_some() || probe.layers.is_some();
        let (is_image, named) = match (is_image, probe.manifests.is_some()) {
            (true, true) => return Err(DocumentError::Both),
            (true, false) => (true, [MANIFEST, DOCKER_MANIFEST]),
            (false, true) => (false, [INDEX, DOCKER_INDEX]),
            (false, false) => return Err(DocumentError::Neither),
        };
        if let Some(media_type) = probe.media_type
            && !named.contains(&media_type.as_str())
        {
            return Err(DocumentError::MediaType(media_type));
        }
        if is_image {
            let manifest = serde_json::from_slice(bytes)?;
            check_image(&manifest)?;
            Ok(Self::Image(manifest))
        } else {
            let index: Index = serde_json::from_slice(bytes)?;
            check_digests(&index.manifests)?;
            Ok(Self::Index(index))
        }
    }
}

fn check_image(manifest: &Manifest) -> Result<(), DocumentError> {
    let config = &manifest.config;
    if ![CONFIG, DOCKER_CONFIG].contains(&config.media_type.as_str()) {
        return Err(DocumentError::Artifact(config.media_type.clone()));
    }
    if manifest.layers.len() > MAX_LAYERS {
        return Err(DocumentError::Layers(manifest.layers.len()));
    }
    for (layer, number) in manifest.layers.iter().zip(1..) {
        LayerMedia::parse(&layer.media_type)
            .map_err(|source| DocumentError::Layer { number, source })?;
    }
    check_digests(std::slice::from_ref(config))?;
    check_digests(&manifest.layers)
}

fn check_digests(descriptors: &[Descriptor]) -> Result<(), DocumentError> {
    for descriptor in descriptors {
        descriptor.digest.parse::<Digest>()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::store::oci::LAYER;

    fn descriptor(media_type: &str) -> Value {
        let digest = Digest::of(b"").to_string();
        json!({ "mediaType": media_type, "digest": digest, "size": 0 })
    }

    fn parse(value: &Value) -> Result<Document, String> {
        Document::parse(&serde_json::to_vec(value).unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn images_and_indexes_are_told_apart() {
        for (manifest, config) in [(MANIFEST, CONFIG), (DOCKER_MANIFEST, DOCKER_CONFIG)] {
            let image = json!({
                "schemaVersion": 2, "mediaType": manifest,
                "config": descriptor(config), "layers": [descriptor(LAYER)],
            });
            assert!(matches!(parse(&image), Ok(Document::Image(_))));
        }
        let mut index = json!({ "schemaVersion": 2, "manifests": [descriptor(MANIFEST)] });
        assert!(matches!(parse(&index), Ok(Document::Index(_))));
        index["mediaType"] = DOCKER_INDEX.into();
        assert!(matches!(parse(&index), Ok(Document::Index(_))));
    }

    #[test]
    fn what_is_neither_says_so() {
        let image = |config: &str, layer: &str| {
            json!({
                "schemaVersion": 2,
                "config": descriptor(config), "layers": [descriptor(layer)],
            })
        };
        let mut both = image(CONFIG, LAYER);
        both["manifests"] = json!([]);
        let mut lying = image(CONFIG, LAYER);
        lying["mediaType"] = INDEX.into();
        let mut sha512 = image(CONFIG, LAYER);
        sha512["layers"][0]["digest"] = "sha512:00".into();
        for (value, said) in [
            (json!([]), "not one of an image"),
            (json!({}), "neither"),
            (json!({ "schemaVersion": 1, "fsLayers": [] }), "schema 1"),
            (json!({ "schemaVersion": 3, "manifests": [] }), "version 3"),
            (both, "both"),
            (lying, "says that it is"),
            (
                image("application/vnd.oci.empty.v1+json", LAYER),
                "artifact",
            ),
            (image(CONFIG, "text/plain"), "layer 1"),
            (sha512, "not supported"),
        ] {
            let error = parse(&value).unwrap_err();
            assert!(error.contains(said), "{value}: {error}");
        }
        let mut many = image(CONFIG, LAYER);
        many["layers"] = vec![descriptor(LAYER); MAX_LAYERS + 1].into();
        assert!(parse(&many).unwrap_err().contains("2049 layers"));
        let long = vec![b' '; MAX_DOCUMENT as usize + 1];
        assert!(
            Document::parse(&long)
                .unwrap_err()
                .to_string()
                .contains("at most")
        );
    }
}
