//! Taking an image into the store.
//!
//! Layers are taken several at once, each in a transaction of its own: one that is complete stays,
//! so that a second try after a failure need not read it again. Nothing else stays. What is found in
//! the store or added is kept from removals until the store is closed.
//!
//! A blob is read once: it is unpacked, digested and, where wanted, kept as it comes. A layer gets
//! into the store only if its blob has the digest and the size that the manifest says, and the
//! archive in it the diffID that the configuration says.

use std::collections::HashSet;
use std::io::{self, Read};
use std::num::NonZero;
use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;

use super::parallel::{default_jobs, on_all};
use super::verify::{Verified, Wrong};
use super::{Document, DocumentError};
use crate::digest::{DiffId, Digest, ImageId};
use crate::store::oci::Descriptor;
use crate::store::{Image, Store, StoreError, Transaction, check_name, parse_image};
use crate::tar::{ImportError, ImportOptions, Progress, stage_layer};

/// Why a source cannot give a blob: an error whose text is for people.
pub type SourceError = Box<dyn std::error::Error + Send + Sync>;

/// Where the blobs of an image are.
pub trait BlobSource: Sync {
    /// Opens a blob. What it says of itself is checked by who reads it.
    ///
    /// # Errors
    /// When it is not there, or cannot be read.
    fn open(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>, SourceError>;
}

/// How an image is taken.
#[derive(Clone, Copy)]
pub struct IngestOptions<'a> {
    /// How many layers are read at once; each takes up to 16 MiB of memory.
    pub jobs: NonZero<usize>,
    /// How much one layer may expand to, in bytes; see [`ImportOptions::max_size`].
    pub max_size: Option<u64>,
    /// Keep the blobs as they came, so that they can be given out with the same digests.
    pub keep_blobs: bool,
    /// Is told how far it is.
    pub progress: &'a dyn IngestProgress,
}

impl Default for IngestOptions<'_> {
    fn default() -> Self {
        Self {
            jobs: default_jobs(),
            max_size: None,
            keep_blobs: false,
            progress: &(),
        }
    }
}

/// A layer of an image that is being taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerBlob {
    /// The digest of its blob.
    pub digest: Digest,
    /// The length of its blob in bytes.
    pub size: u64,
    /// The digest of the archive in it.
    pub diff_id: DiffId,
    /// What the manifest says of it.
    pub descriptor: Descriptor,
}

/// Is told by [`ingest`] how far it is, from several threads.
pub trait IngestProgress: Sync {
    /// A layer is about to be read. What is returned is told how far it is, and dropped when it is
    /// done or has failed.
    fn start<'a>(&'a self, layer: &LayerBlob) -> Box<dyn Progress + 'a>;

    /// As [`Self::start`], of a layer of which only this is known: a name, and the number of bytes.
    fn stream<'a>(&'a self, _name: &str, _size: u64) -> Box<dyn Progress + 'a> {
        Box::new(())
    }

    /// The store has a layer already.
    fn present(&self, _layer: &LayerBlob) {}
}

/// Nobody wants to know.
impl IngestProgress for () {
    fn start<'a>(&'a self, _: &LayerBlob) -> Box<dyn Progress + 'a> {
        Box::new(())
    }
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ingested {
    /// The image.
    pub image: Image,
    /// Its layers that were read, in their order. The others were there.
    pub taken: Vec<DiffId>,
    /// The lengths of their blobs together, in bytes.
    pub bytes: u64,
}

/// Why an image cannot be taken. Every message names the digest that it is about.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The manifest is not one of an image, or of one that cannot be read.
    #[error("image {id}: its manifest {problem}")]
    Manifest {
        /// The digest of the manifest.
        id: ImageId,
        /// What is wrong.
        problem: DocumentError,
    },
    /// The configuration is too long.
    #[error(
        "image {id}: its configuration has {size} bytes (at most {})",
        super::MAX_DOCUMENT
    )]
    ConfigSize {
        /// The digest of the manifest.
        id: ImageId,
        /// Its length in bytes.
        size: u64,
    },
    /// The source does not give a blob.
    #[error("layer {digest}: {source}")]
    Open {
        /// The digest of the blob.
        digest: Digest,
        /// What the source says.
        source: SourceError,
    },
    /// A blob cannot be read to its end.
    #[error("layer {digest}: cannot read it: {source}")]
    Read {
        /// The digest of the blob.
        digest: Digest,
        /// Why not.
        source: io::Error,
    },
    /// A blob ends early.
    #[error("layer {digest} is truncated: it has {found} bytes, and the manifest says {size}")]
    Short {
        /// The digest of the blob.
        digest: Digest,
        /// The length that it should have, in bytes.
        size: u64,
        /// The length that it has, in bytes.
        found: u64,
    },
    /// A blob goes on after its end.
    #[error("layer {digest} has more than the {size} bytes that the manifest says")]
    Long {
        /// The digest of the blob.
        digest: Digest,
        /// The length that it should have, in bytes.
        size: u64,
    },
    /// A blob is another.
    #[error("layer {digest} is damaged: its digest is {found}")]
    Digest {
        /// The digest that the manifest says.
        digest: Digest,
        /// The digest that it has.
        found: Digest,
    },
    /// The archive in a blob is another.
    #[error(
        "layer {digest}: the archive in it has the diffID {found}, and the image's configuration says {diff_id}"
    )]
    DiffId {
        /// The digest of the blob.
        digest: Digest,
        /// The diffID that the configuration says.
        diff_id: DiffId,
        /// The diffID that it has.
        found: DiffId,
    },
    /// The archive in a blob is wrong.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// The image is wrong, or the store does not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Takes an image into the store: its layers as far as the store lacks them, and its manifest and
/// configuration byte for byte. `name` is given to it; another image that has the name loses it.
///
/// # Errors
/// When manifest, configuration or a layer is wrong, the source does not give a layer, or the store
/// cannot be written. Layers that were complete stay in the store then, until they are collected.
pub fn ingest(
    store: &Store,
    source: &dyn BlobSource,
    name: Option<&str>,
    manifest: &[u8],
    config: &[u8],
    options: &IngestOptions<'_>,
) -> Result<Ingested, IngestError> {
    if let Some(name) = name {
        // Before the work, not after it.
        check_name(name)?;
    }
    let layers = plan(manifest, config)?;
    let taking = Taking {
        store,
        source,
        options,
        stop: AtomicBool::new(false),
        taken: Mutex::default(),
    };
    let mut seen = HashSet::new();
    let mut wanted = Vec::new();
    for layer in &layers {
        if taking.has(layer) {
            options.progress.present(layer);
        } else if seen.insert((layer.diff_id, layer.digest)) {
            wanted.push(layer);
        }
    }
    on_all(options.jobs, &wanted, &taking.stop, |layer| {
        taking.take(layer)
    })?;
    let image = store.put_image(name, manifest, config)?;
    let taken = taking.taken.into_inner();
    wanted.retain(|layer| taken.contains(&layer.digest));
    Ok(Ingested {
        image,
        taken: wanted.iter().map(|layer| layer.diff_id).collect(),
        bytes: wanted.iter().map(|layer| layer.size).sum(),
    })
}

/// The layers of an image, after a look at all that can be checked without them.
fn plan(manifest: &[u8], config: &[u8]) -> Result<Vec<LayerBlob>, IngestError> {
    let id = ImageId(Digest::of(manifest));
    let wrong = |problem| IngestError::Manifest { id, problem };
    if let Document::Index(_) = Document::parse(manifest).map_err(wrong)? {
        let problem = "it is an index of images, not an image".into();
        return Err(StoreError::ImageWrong { id, problem }.into());
    }
    let size = config.len() as u64;
    if size > super::MAX_DOCUMENT {
        return Err(IngestError::ConfigSize { id, size });
    }
    let parsed = parse_image(&id, manifest, config)?;
    if parsed.manifest.layers.is_empty() {
        let problem = "it has no layers".into();
        return Err(StoreError::ImageWrong { id, problem }.into());
    }
    let pairs = parsed.manifest.layers.into_iter();
    let pairs = pairs.zip(parsed.config.rootfs.diff_ids);
    let layers = pairs.map(|(descriptor, diff_id)| {
        let digest = descriptor.digest.parse();
        Ok(LayerBlob {
            digest: digest.map_err(|error| wrong(DocumentError::Digest(error)))?,
            size: descriptor.size,
            diff_id,
            descriptor,
        })
    });
    layers.collect()
}

/// The work on an image.
struct Taking<'a> {
    store: &'a Store,
    source: &'a dyn BlobSource,
    options: &'a IngestOptions<'a>,
    /// One layer failed: the others need not go on.
    stop: AtomicBool,
    /// Those that were read. Others came from somebody else meanwhile.
    taken: Mutex<HashSet<Digest>>,
}

impl Taking<'_> {
    /// Takes one layer, unless somebody else does.
    fn take(&self, layer: &LayerBlob) -> Result<(), IngestError> {
        let Some(_claim) = self.store.claim_layer(&layer.diff_id, &self.stop)? else {
            return Err(layer.error(Wrong::Stopped));
        };
        if self.has(layer) {
            self.options.progress.present(layer);
            return Ok(());
        }
        self.read(layer)?;
        self.taken.lock().insert(layer.digest);
        Ok(())
    }

    /// Whether the store has all of a layer that is wanted.
    fn has(&self, layer: &LayerBlob) -> bool {
        let kept = !self.options.keep_blobs || self.store.has_blob(&layer.digest, layer.size);
        kept && self.store.has_layer(&layer.diff_id)
    }

    fn read(&self, layer: &LayerBlob) -> Result<(), IngestError> {
        let progress = self.options.progress.start(layer);
        let options = ImportOptions {
            max_size: self.options.max_size,
            progress: &*progress,
            ..ImportOptions::default()
        };
        let opened = self.source.open(&layer.descriptor);
        let opened = opened.map_err(|source| IngestError::Open {
            digest: layer.digest,
            source,
        })?;
        let txn = Transaction::begin(self.store)?;
        let keep = self
            .options
            .keep_blobs
            .then(|| txn.new_blob())
            .transpose()?;
        let mut blob = Verified::new(opened, layer.digest, layer.size, keep, &self.stop);
        let staged = stage_layer(
            &txn,
            &mut blob,
            &format!("layer {}", layer.digest),
            &options,
        );
        let info = match (staged, blob.wrong()) {
            (_, Some(wrong)) => return Err(layer.error(wrong)),
            // What cannot be read may just not be the blob, which its end tells.
            (Err(error @ ImportError::Archive { .. }), None) => {
                let whole = blob.finish().map_err(|wrong| layer.error(wrong));
                return Err(whole.err().unwrap_or_else(|| error.into()));
            }
            (staged, None) => staged?,
        };
        let kept = blob.finish().map_err(|wrong| layer.error(wrong))?;
        if info.diff_id != layer.diff_id {
            return Err(IngestError::DiffId {
                digest: layer.digest,
                diff_id: layer.diff_id,
                found: info.diff_id,
            });
        }
        if let Some(kept) = &kept {
            txn.add_blob(kept, &layer.digest)?;
        }
        txn.commit()?;
        Ok(())
    }
}

impl LayerBlob {
    /// The error for what is wrong with its blob.
    fn error(&self, wrong: Wrong) -> IngestError {
        let (digest, size) = (self.digest, self.size);
        match wrong {
            Wrong::Short(found) => IngestError::Short {
                digest,
                size,
                found,
            },
            Wrong::Long => IngestError::Long { digest, size },
            Wrong::Digest(found) => IngestError::Digest { digest, found },
            Wrong::Read(source) => IngestError::Read { digest, source },
            Wrong::Keep(error) => error.into(),
            Wrong::Stopped => IngestError::Read {
                digest,
                source: io::ErrorKind::Interrupted.into(),
            },
        }
    }
}

#[cfg(test)]
mod tests;
