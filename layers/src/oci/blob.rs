//! The way out: the blobs of an image, and the manifest that fits them.
//!
//! A blob that was kept goes out as it came. Without one, the layer's archive is made again, which
//! always has the same diffID, and packed as the manifest says. If that has the digest that the manifest
//! says, the manifest stays as it is, byte for byte: always so for layers that are not packed, and for
//! those that this program packed. Else the image goes out with another manifest, and the same
//! configuration.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, Write};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use super::packing::{Digesting, write_packed};
use super::parallel::{default_jobs, on_all};
use super::{Family, IngestProgress, LayerMedia};
use crate::digest::{DiffId, Digest};
use crate::store::oci::{
    CONFIG, DOCKER_CONFIG, DOCKER_MANIFEST, Descriptor, ImageConfig, MANIFEST, Manifest, Other,
};
use crate::store::{ImageFiles, Store, StoreError};
use crate::tar::{Compression, ExportError, export_layer};

/// How images go out.
#[derive(Clone, Copy)]
pub struct OutOptions<'a> {
    /// How layers are packed; as each manifest says if not given.
    pub compression: Option<Compression>,
    /// Whose media types there may be; those that the image has if not given.
    pub family: Option<Family>,
    /// How many layers are packed at once.
    pub jobs: NonZero<usize>,
    /// A directory for files without names, which layers are packed into.
    pub scratch: &'a Path,
    /// Is told how far it is: of bytes of the archives that layers have unpacked.
    pub progress: &'a dyn IngestProgress,
}

impl<'a> OutOptions<'a> {
    /// The usual ones.
    pub fn new(scratch: &'a Path) -> Self {
        Self {
            compression: None,
            family: None,
            jobs: default_jobs(),
            scratch,
            progress: &(),
        }
    }
}

/// Why an image cannot go out.
#[derive(Debug, thiserror::Error)]
pub enum OutError {
    /// The store does not have it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A layer cannot be made again.
    #[error(transparent)]
    Layer(#[from] ExportError),
    /// Something that there is no media type for.
    #[error("there is no media type for layers packed by {0}")]
    Media(&'static str),
    /// A kept blob is not what it was.
    #[error("the kept blob {} is damaged: its digest is {found}. Remove it; the layer is packed anew then", .path.display())]
    Damaged {
        /// Its path.
        path: PathBuf,
        /// Its digest.
        found: Digest,
    },
    /// No room to pack a layer.
    #[error("cannot pack a layer in {}: {source}", .path.display())]
    Scratch {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Nobody takes it.
    #[error("cannot write it: {0}")]
    Write(#[source] io::Error),
}

/// An image that can go out.
pub struct Outgoing {
    /// The manifest: as it is in the store if [`Self::changed`] is not set.
    pub manifest: Vec<u8>,
    /// The configuration, as it is in the store.
    pub config: Vec<u8>,
    /// What the manifest says.
    pub parsed: Manifest,
    /// The blobs of its layers, bottom first.
    pub layers: Vec<OutBlob>,
    /// Whether the manifest is another than in the store.
    pub changed: bool,
}

/// The blob of a layer.
pub struct OutBlob {
    /// What the manifest says of it.
    pub descriptor: Descriptor,
    /// The digest of the archive in it.
    pub diff_id: DiffId,
    content: Content,
}

enum Content {
    /// It was kept, here.
    Kept(File, PathBuf),
    /// It was packed into this file.
    Packed(File),
    /// It is the layer's archive, not packed.
    Archive,
}

/// Makes an image ready to go out: what has to be packed is packed.
///
/// # Errors
/// When the store lacks something or has it damaged, or there is no room to pack.
pub fn outgoing(
    store: &Store,
    files: ImageFiles,
    options: &OutOptions<'_>,
) -> Result<Outgoing, OutError> {
    let ImageFiles {
        manifest,
        config,
        mut parsed,
    } = files;
    let parsed_config: ImageConfig =
        serde_json::from_slice(&config).map_err(|error| StoreError::ImageDamaged {
            path: store.root().join("images"),
            problem: error.to_string(),
        })?;
    let diff_ids = parsed_config.rootfs.diff_ids;
    let family = options
        .family
        .unwrap_or(match parsed.media_type.as_deref() {
            Some(DOCKER_MANIFEST) => Family::Docker,
            _ => Family::Oci,
        });
    let pairs: Vec<_> = parsed.layers.iter().zip(diff_ids).collect();
    let stop = AtomicBool::new(false);
    let layers = on_all(options.jobs, &pairs, &stop, |(descriptor, diff_id)| {
        prepare(store, descriptor, *diff_id, family, options)
    })?;
    let descriptors: Vec<_> = layers.iter().map(|it| it.descriptor.clone()).collect();
    let (media_type, config_type) = match family {
        Family::Oci => (MANIFEST, CONFIG),
        Family::Docker => (DOCKER_MANIFEST, DOCKER_CONFIG),
    };
    let is_docker = parsed.media_type.as_deref() == Some(DOCKER_MANIFEST);
    let changed = descriptors != parsed.layers
        || is_docker != (family == Family::Docker)
        || options.family.is_some() && parsed.config.media_type != config_type;
    if !changed {
        return Ok(Outgoing {
            manifest,
            config,
            parsed,
            layers,
            changed,
        });
    }
    parsed.layers = descriptors;
    parsed.media_type = Some(media_type.into());
    parsed.config.media_type = config_type.into();
    Ok(Outgoing {
        // It has strings for keys, so this cannot fail.
        manifest: serde_json::to_vec(&parsed).unwrap_or_default(),
        config,
        parsed,
        layers,
        changed,
    })
}

/// Makes the blob of a layer ready.
fn prepare(
    store: &Store,
    listed: &Descriptor,
    diff_id: DiffId,
    family: Family,
    options: &OutOptions<'_>,
) -> Result<OutBlob, OutError> {
    let media = LayerMedia::parse(&listed.media_type).ok();
    let says = media.map_or(Compression::None, |media| media.compression);
    let compression = options.compression.unwrap_or(says);
    let media_type = LayerMedia::name(family, compression);
    let media_type = media_type.ok_or(OutError::Media(compression.name()))?;
    let own = media.is_some_and(|media| media.family == family);
    let blob = |digest: Digest, size, content| {
        let same = digest.to_string() == listed.digest && size == listed.size;
        let descriptor = if same && own && says == compression {
            listed.clone()
        } else {
            Descriptor {
                media_type: media_type.into(),
                digest: digest.to_string(),
                size,
                // What else was said may have been about the blob as it was.
                other: if same {
                    listed.other.clone()
                } else {
                    Other::new()
                },
            }
        };
        OutBlob {
            descriptor,
            diff_id,
            content,
        }
    };
    if says == compression
        && let Ok(digest) = listed.digest.parse()
        && let Some(file) = store.open_blob(&digest, listed.size)?
    {
        let content = Content::Kept(file, store.blob_path(&digest));
        return Ok(blob(digest, listed.size, content));
    }
    if compression == Compression::None {
        let size = store.layer(&diff_id)?.tar_size;
        return Ok(blob(diff_id.0, size, Content::Archive));
    }
    let (file, digest, size) = pack(store, diff_id, compression, options)?;
    Ok(blob(digest, size, Content::Packed(file)))
}

/// Packs a layer into a file without a name.
fn pack(
    store: &Store,
    diff_id: DiffId,
    compression: Compression,
    options: &OutOptions<'_>,
) -> Result<(File, Digest, u64), OutError> {
    let failed = |source| OutError::Scratch {
        path: options.scratch.to_owned(),
        source,
    };
    let progress = options
        .progress
        .stream(&diff_id.to_string(), store.layer(&diff_id)?.tar_size);
    let file = tempfile::tempfile_in(options.scratch).map_err(failed)?;
    let mut out = Digesting::new(BufWriter::new(file));
    let packed = write_packed(store, &diff_id, compression, &mut out, &*progress);
    packed.map_err(|error| match error {
        ExportError::Write(source) => failed(source),
        error => error.into(),
    })?;
    let (out, digest, size) = out.finish();
    let file = out.into_inner().map_err(|error| failed(error.into()))?;
    Ok((file, digest, size))
}

impl OutBlob {
    /// Writes it. Its digest is compared at the end.
    ///
    /// # Errors
    /// When it is damaged, or `out` fails.
    pub fn write_to(&self, store: &Store, out: &mut dyn Write) -> Result<(), OutError> {
        let file = match &self.content {
            Content::Archive => {
                return export_layer(store, &self.diff_id, out).map_err(|error| match error {
                    ExportError::Write(error) => OutError::Write(error),
                    error => error.into(),
                });
            }
            Content::Kept(file, _) | Content::Packed(file) => file,
        };
        let mut out = Digesting::new(out);
        let mut reader = rewound(file)?;
        io::copy(&mut reader, &mut out).map_err(OutError::Write)?;
        let (_, found, _) = out.finish();
        match &self.content {
            Content::Kept(_, path) if found.to_string() != self.descriptor.digest => {
                let path = path.clone();
                Err(OutError::Damaged { path, found })
            }
            _ => Ok(()),
        }
    }

    /// A file with it, which several can read at once; `None` if it is the archive of a layer that is
    /// not packed, so that it is in no file.
    pub fn file(&self) -> Option<&File> {
        match &self.content {
            Content::Kept(file, _) | Content::Packed(file) => Some(file),
            Content::Archive => None,
        }
    }
}

/// The file from its start.
fn rewound(file: &File) -> Result<impl Read + '_, OutError> {
    let mut reader = file;
    reader.rewind().map_err(OutError::Write)?;
    Ok(reader)
}
