//! Media types of layers.

use crate::store::oci::{
    DOCKER_LAYER, DOCKER_LAYER_FOREIGN, LAYER, LAYER_FOREIGN, LAYER_GZIP, LAYER_ZSTD,
};
use crate::tar::Compression;

/// Whose media types an image has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// The OCI's.
    Oci,
    /// Docker's, of its manifests of version 2, schema 2.
    Docker,
}

/// What a layer's media type says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerMedia {
    /// Whose it is.
    pub family: Family,
    /// How the layer is packed. Not to be relied on: some programs say another than they use, so
    /// unpacking goes by content.
    pub compression: Compression,
    /// Whether it was not to be redistributed ("nondistributable", docker's "foreign"), so that its
    /// blob may be elsewhere.
    pub foreign: bool,
}

/// A media type that is not one of a layer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "its media type '{}' is not one of a layer{}",
    .0.escape_debug(),
    if .0.contains("+encrypted") { "; encrypted layers have to be decrypted first" } else { "" }
)]
pub struct UnknownMedia(pub String);

impl LayerMedia {
    /// What a media type says.
    ///
    /// # Errors
    /// When it is not one of a layer.
    pub fn parse(media_type: &str) -> Result<Self, UnknownMedia> {
        let kinds = [
            (LAYER_FOREIGN, Family::Oci, true),
            (LAYER, Family::Oci, false),
            (DOCKER_LAYER_FOREIGN, Family::Docker, true),
            (DOCKER_LAYER, Family::Docker, false),
        ];
        let known = kinds.into_iter().find_map(|(start, family, foreign)| {
            let compression = compression(family, media_type.strip_prefix(start)?)?;
            Some(Self {
                family,
                compression,
                foreign,
            })
        });
        known.ok_or_else(|| UnknownMedia(media_type.to_owned()))
    }

    /// The media type of a layer that is packed so; `None` if there is none.
    pub fn name(family: Family, compression: Compression) -> Option<&'static str> {
        Some(match (family, compression) {
            (Family::Oci, Compression::None) => LAYER,
            (Family::Oci, Compression::Gzip) => LAYER_GZIP,
            (Family::Oci, Compression::Zstd) => LAYER_ZSTD,
            (Family::Docker, Compression::None) => DOCKER_LAYER,
            (Family::Docker, Compression::Gzip) => {
                "application/vnd.docker.image.rootfs.diff.tar.gzip"
            }
            // Docker has none for zstd that others read.
            _ => return None,
        })
    }
}

/// The end of a media type.
fn compression(family: Family, end: &str) -> Option<Compression> {
    Some(match (family, end) {
        (_, "") => Compression::None,
        (Family::Oci, "+gzip") | (Family::Docker, ".gzip") => Compression::Gzip,
        (Family::Oci, "+zstd") | (Family::Docker, ".zstd") => Compression::Zstd,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_media_types_say() {
        let said = |media_type| {
            let media = LayerMedia::parse(media_type).unwrap();
            (media.family, media.compression, media.foreign)
        };
        for (media_type, family, compression, foreign) in [
            (LAYER, Family::Oci, Compression::None, false),
            (LAYER_GZIP, Family::Oci, Compression::Gzip, false),
            (LAYER_ZSTD, Family::Oci, Compression::Zstd, false),
            (
                "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
                Family::Oci,
                Compression::Gzip,
                true,
            ),
            (
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
                Family::Docker,
                Compression::Gzip,
                false,
            ),
            (
                "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
                Family::Docker,
                Compression::Gzip,
                true,
            ),
        ] {
            assert_eq!(said(media_type), (family, compression, foreign));
            if !foreign {
                assert_eq!(LayerMedia::name(family, compression), Some(media_type));
            }
        }
        for wrong in [
            "",
            "application/vnd.oci.image.layer.v1.tar.gzip",
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
            "application/vnd.cncf.helm.chart.content.v1.tar+gzip",
            "application/octet-stream",
        ] {
            assert!(LayerMedia::parse(wrong).is_err(), "{wrong}");
        }
    }
}
