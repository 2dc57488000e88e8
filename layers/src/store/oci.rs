//! The JSON of images: as much of the OCI image specification as a store needs.
//!
//! The files are kept as they were written, byte for byte: their digests name them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::{DiffId, Digest};

/// Media type of an uncompressed layer, which is what a layer's diffID is the digest of.
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Media type of a layer packed by gzip.
pub const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Media type of a layer packed by zstd.
pub const LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
/// What the media types of layers begin with that were not to be redistributed.
pub const LAYER_FOREIGN: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar";
/// Media type of an image manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an image index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of an image configuration.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Docker's media type of an uncompressed layer.
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
/// What docker's media types of layers begin with that come from elsewhere.
pub const DOCKER_LAYER_FOREIGN: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar";
/// Docker's media type of an image manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's media type of an image index.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker's media type of an image configuration.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// Refers to contents by digest ("Content Descriptors").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What they are.
    pub media_type: String,
    /// Their digest.
    pub digest: String,
    /// Their length in bytes.
    pub size: u64,
    /// What else it says (`annotations`, `urls`, `platform`, …).
    #[serde(flatten)]
    pub other: Other,
}

/// An image: its configuration and its layers ("Image Manifest").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    schema_version: u32,
    /// Docker's or the OCI's; the OCI's may be left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The configuration.
    pub config: Descriptor,
    /// The layers, bottom first.
    pub layers: Vec<Descriptor>,
    /// What else it says (`annotations`, …).
    #[serde(flatten)]
    pub other: Other,
}

/// Images for several platforms, or just several ("Image Index").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    schema_version: u32,
    /// Docker's or the OCI's; the OCI's may be left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// Manifests of images, and further indexes.
    pub manifests: Vec<Descriptor>,
    /// What else it says (`annotations`, …).
    #[serde(flatten)]
    pub other: Other,
}

impl Index {
    /// One with these manifests.
    pub fn new(manifests: Vec<Descriptor>) -> Self {
        Self {
            schema_version: 2,
            media_type: Some(INDEX.into()),
            manifests,
            other: Other::new(),
        }
    }
}

impl Descriptor {
    /// The value of an annotation.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.other.get("annotations")?.get(key)?.as_str()
    }
}

impl Manifest {
    /// That of an image with this configuration and these layers.
    pub fn new(config: &[u8], layers: Vec<Descriptor>) -> Self {
        Self {
            schema_version: 2,
            media_type: Some(MANIFEST.into()),
            config: Descriptor {
                media_type: CONFIG.into(),
                digest: Digest::of(config).to_string(),
                size: config.len() as u64,
                other: Other::new(),
            },
            layers,
            other: Other::new(),
        }
    }
}

/// What to know for running an image ("Image Configuration").
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// When it was made (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// CPU, by the names of Go.
    #[serde(default)]
    pub architecture: String,
    /// Operating system, by the names of Go.
    #[serde(default)]
    pub os: String,
    /// How to run it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<ContainerConfig>,
    /// Its layers.
    pub rootfs: RootFs,
    /// How the layers were made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<History>,
    /// What else it says (`variant`, `author`, …), so that an image made on top says it too.
    #[serde(flatten)]
    pub other: Other,
}

/// Fields that are not interpreted here, kept as they are.
pub type Other = serde_json::Map<String, serde_json::Value>;

/// The layers of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Bottom first.
    pub diff_ids: Vec<DiffId>,
}

/// How a layer was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// When (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// By what command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// By whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// What its maker says about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Whether it changed nothing in the filesystem, so that there is no layer for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

/// How to run a container of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerConfig {
    /// User, or user and group, by name or number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Environment, each `NAME=value`.
    #[serde(skip_serializing_if = "null_or_empty")]
    pub env: Option<Vec<String>>,
    /// Program, with its first arguments.
    #[serde(skip_serializing_if = "null_or_empty")]
    pub entrypoint: Option<Vec<String>>,
    /// Arguments of the entrypoint, or a program with its arguments.
    #[serde(skip_serializing_if = "null_or_empty")]
    pub cmd: Option<Vec<String>>,
    /// Working directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// Anything else people want to say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// Ports it listens on, each `port/protocol`; the values are empty objects.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exposed_ports: Option<BTreeMap<String, Other>>,
    /// Directories whose contents are not the image's; the values are empty objects.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volumes: Option<BTreeMap<String, Other>>,
    /// Signal that ends it, by name or number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// What else it says: docker's `Healthcheck`, `OnBuild`, `Shell`, …
    #[serde(flatten)]
    pub other: Other,
}

// serde gives a reference to the field.
#[allow(clippy::ref_option)]
fn null_or_empty(list: &Option<Vec<String>>) -> bool {
    list.as_ref().is_none_or(Vec::is_empty)
}

/// This machine's CPU, by the name that Go has for it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        "powerpc64" => "ppc64",
        "mips64" if cfg!(target_endian = "little") => "mips64le",
        "loongarch64" => "loong64",
        other => other,
    }
}
