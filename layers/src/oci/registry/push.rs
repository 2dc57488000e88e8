//! Pushing an image: its layers as far as the registry lacks them, its configuration, its manifest.
//!
//! A layer goes out as its maker packed it where that can be had: the registry may have it already,
//! or in another repository, or the store kept its blob. Else it is packed anew, twice: once for its
//! digest, which has to be known first, once to send it; nothing is put down on a disk meanwhile. If
//! the digest is another then, so is the manifest's.

use std::collections::HashMap;
use std::io::{self, Write};
use std::num::NonZero;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::upload::{Contents, Sent};
use super::{Reference, RegistryError, Repository};
use crate::digest::{DiffId, Digest};
use crate::oci::packing::{Digesting, Told, write_packed};
use crate::oci::{Family, IngestProgress, LayerBlob, LayerMedia, SourceError};
use crate::store::oci::{CONFIG, DOCKER_CONFIG, DOCKER_MANIFEST, Descriptor, MANIFEST, Manifest};
use crate::store::{Image, ImageFiles, Source, Store};
use crate::tar::{Compression, Progress};

/// How an image is pushed.
#[derive(Clone, Copy)]
pub struct PushOptions<'a> {
    /// How many layers are sent at once.
    pub jobs: NonZero<usize>,
    /// Whose media types it is to have; as it has if not given.
    pub family: Option<Family>,
    /// How its layers are to be packed. If not given, as they were; those of images that were made
    /// here by gzip.
    pub compression: Option<Compression>,
    /// Is told how far it is.
    pub progress: &'a dyn IngestProgress,
}

/// What became of it.
#[derive(Clone, Debug)]
pub struct Pushed {
    /// The digest of the manifest in the registry.
    pub digest: Digest,
    /// The layers there, bottom first, and how they got there.
    pub layers: Vec<(LayerBlob, Sent)>,
}

impl Repository<'_> {
    /// Sends an image of a store, under a tag.
    ///
    /// # Errors
    /// When the store does not have all of it, or the registry does not take it.
    pub fn push(
        &self,
        store: &Store,
        image: &Image,
        tag: &str,
        options: &PushOptions<'_>,
    ) -> Result<Pushed, RegistryError> {
        let files = store.image_files(&image.id)?;
        let family = match files.parsed.config.media_type.as_str() {
            DOCKER_CONFIG => Family::Docker,
            _ => Family::Oci,
        };
        let work = Pushing {
            repository: self,
            store,
            known: Known::of(self, store),
            made_here: !matches!(
                store.source(&image.id)?,
                Some(Source::Registry { .. } | Source::Archive { .. } | Source::Layout { .. })
            ),
            family: options.family.unwrap_or(family),
            options,
            stop: AtomicBool::new(false),
        };
        let pairs = files.parsed.layers.iter().zip(&image.layers);
        let layers = work.send_all(&pairs.collect::<Vec<_>>())?;
        let manifest = if family == work.family && is_same(&files, &layers) {
            files.manifest
        } else {
            rewrite(files.parsed, work.family, &layers)
        };
        let config = Digest::of(&files.config);
        if !self.has_blob(&config)? {
            let contents = Bytes(&files.config);
            self.upload_blob(&config, files.config.len() as u64, &contents)?;
        }
        let kind = match work.family {
            Family::Oci => MANIFEST,
            Family::Docker => DOCKER_MANIFEST,
        };
        let digest = self.put_manifest(tag, kind, &manifest)?;
        Ok(Pushed { digest, layers })
    }
}

/// What the images of the store tell of layers.
#[derive(Default)]
struct Known {
    /// Where in the same registry they were pulled from: repositories by digest of the blob.
    elsewhere: HashMap<String, Vec<String>>,
    /// How they are packed. An image that was made here on top of another one does not say how the other's
    /// layers are.
    packed: HashMap<DiffId, Vec<Descriptor>>,
}

impl Known {
    fn of(repository: &Repository<'_>, store: &Store) -> Self {
        let mut known = Self::default();
        // It only saves work: an image that cannot be read is none to take layers from.
        for image in store.images().unwrap_or_default() {
            let Ok(files) = store.image_files(&image.id) else {
                continue;
            };
            let there = other_repository(repository, store, &image);
            for (layer, diff_id) in files.parsed.layers.into_iter().zip(&image.layers) {
                if let Some(there) = &there {
                    let repositories = known.elsewhere.entry(layer.digest.clone()).or_default();
                    if !repositories.contains(there) {
                        repositories.push(there.clone());
                    }
                }
                let all = known.packed.entry(*diff_id).or_default();
                if compression_of(&layer) != Compression::None && !all.contains(&layer) {
                    all.push(layer);
                }
            }
        }
        known
    }
}

/// The repository that an image was pulled from, if it is another one of the same registry.
fn other_repository(repository: &Repository<'_>, store: &Store, image: &Image) -> Option<String> {
    let Ok(Some(Source::Registry { reference, .. })) = store.source(&image.id) else {
        return None;
    };
    let reference = reference.parse::<Reference>().ok()?;
    let there = reference.repository();
    let other =
        reference.registry() == repository.client().registry() && there != repository.path();
    other.then(|| there.to_owned())
}

fn compression_of(layer: &Descriptor) -> Compression {
    LayerMedia::parse(&layer.media_type).map_or(Compression::None, |media| media.compression)
}

/// Whether the layers went out as the manifest says.
fn is_same(files: &ImageFiles, layers: &[(LayerBlob, Sent)]) -> bool {
    let sent = layers.iter().map(|(layer, _)| &layer.descriptor);
    files.parsed.layers.iter().eq(sent)
}

/// The manifest of the same image with other layers or media types.
fn rewrite(manifest: Manifest, family: Family, layers: &[(LayerBlob, Sent)]) -> Vec<u8> {
    let (kind, config) = match family {
        Family::Oci => (MANIFEST, CONFIG),
        Family::Docker => (DOCKER_MANIFEST, DOCKER_CONFIG),
    };
    let mut manifest = manifest;
    manifest.media_type = Some(kind.to_owned());
    config.clone_into(&mut manifest.config.media_type);
    let sent = layers.iter().map(|(layer, _)| layer.descriptor.clone());
    manifest.layers = sent.collect();
    // Maps have strings for keys, so this cannot fail.
    serde_json::to_vec(&manifest).unwrap_or_default()
}

/// The work on an image.
struct Pushing<'a> {
    repository: &'a Repository<'a>,
    store: &'a Store,
    known: Known,
    made_here: bool,
    family: Family,
    options: &'a PushOptions<'a>,
    /// One layer failed: the others need not begin.
    stop: AtomicBool,
}

type Results = Vec<Mutex<Option<Result<(LayerBlob, Sent), RegistryError>>>>;

impl Pushing<'_> {
    /// Sends all layers; the first failure counts.
    fn send_all(
        &self,
        layers: &[(&Descriptor, &DiffId)],
    ) -> Result<Vec<(LayerBlob, Sent)>, RegistryError> {
        let next = AtomicUsize::new(0);
        let results: Results = layers.iter().map(|_| Mutex::new(None)).collect();
        let work = || {
            while let Some((number, (descriptor, diff_id))) = {
                let number = next.fetch_add(1, Ordering::Relaxed);
                layers.get(number).map(|layer| (number, *layer))
            } {
                if self.stop.load(Ordering::Relaxed) {
                    return;
                }
                let result = self.send(descriptor, diff_id);
                if result.is_err() {
                    self.stop.store(true, Ordering::Relaxed);
                }
                if let Some(place) = results.get(number) {
                    *place.lock() = Some(result);
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.options.jobs.get().min(layers.len()) {
                scope.spawn(work);
            }
            work();
        });
        let mut done = Vec::new();
        let results = results.into_iter().filter_map(Mutex::into_inner);
        for result in results {
            done.push(result?);
        }
        Ok(done)
    }

    /// Sends one layer.
    fn send(
        &self,
        descriptor: &Descriptor,
        diff_id: &DiffId,
    ) -> Result<(LayerBlob, Sent), RegistryError> {
        let packed = compression_of(descriptor);
        let wanted = self.options.compression.unwrap_or(match packed {
            Compression::None if self.made_here => Compression::Gzip,
            // Docker has no media type for it.
            packed if LayerMedia::name(self.family, packed).is_none() => Compression::Gzip,
            packed => packed,
        });
        let own = [descriptor].into_iter().filter(|_| wanted == packed);
        let others = self.known.packed.get(diff_id).into_iter().flatten();
        let others = others.filter(|other| {
            let packed = compression_of(other);
            let fits = match self.options.compression {
                Some(wanted) => packed == wanted,
                None => LayerMedia::name(self.family, packed).is_some(),
            };
            fits && self.made_here
        });
        for descriptor in own.chain(others) {
            let Ok(digest) = descriptor.digest.parse() else {
                continue;
            };
            let (packed, size) = (compression_of(descriptor), descriptor.size);
            let as_it_was = LayerBlob {
                digest,
                size,
                diff_id: *diff_id,
                descriptor: self.describe(descriptor, packed, digest, size),
            };
            if let Some(sent) = self.send_as_it_was(&as_it_was)? {
                return Ok((as_it_was, sent));
            }
        }
        self.send_packed(descriptor, diff_id, wanted)
    }

    /// Sends a layer as the manifest has it, if that can be had.
    fn send_as_it_was(&self, layer: &LayerBlob) -> Result<Option<Sent>, RegistryError> {
        if self.repository.has_blob(&layer.digest)? {
            self.options.progress.present(layer);
            return Ok(Some(Sent::Present));
        }
        let elsewhere = self.known.elsewhere.get(&layer.descriptor.digest);
        for from in elsewhere.into_iter().flatten() {
            if self.repository.mount_blob(&layer.digest, from)? {
                self.options.progress.present(layer);
                return Ok(Some(Sent::Mounted));
            }
        }
        if self.store.open_blob(&layer.digest, layer.size)?.is_none() {
            return Ok(None);
        }
        let progress = self.options.progress.start(layer);
        let contents = Kept {
            store: self.store,
            layer,
            progress: &*progress,
        };
        self.repository
            .upload_blob(&layer.digest, layer.size, &contents)?;
        Ok(Some(Sent::Uploaded))
    }

    /// Packs a layer and sends it.
    fn send_packed(
        &self,
        descriptor: &Descriptor,
        diff_id: &DiffId,
        compression: Compression,
    ) -> Result<(LayerBlob, Sent), RegistryError> {
        let mut counted = Digesting::new(io::sink());
        let packed = Packed {
            store: self.store,
            diff_id,
            compression,
            progress: &(),
        };
        packed
            .write(&mut counted)
            .map_err(|source| RegistryError::Source {
                registry: self.repository.client().registry().to_owned(),
                what: format!("layer {diff_id}"),
                source,
            })?;
        let (_, digest, size) = counted.finish();
        let layer = LayerBlob {
            digest,
            size,
            diff_id: *diff_id,
            descriptor: self.describe(descriptor, compression, digest, size),
        };
        if self.repository.has_blob(&digest)? {
            self.options.progress.present(&layer);
            return Ok((layer, Sent::Present));
        }
        let progress = self.options.progress.start(&layer);
        let contents = Packed {
            progress: &*progress,
            ..packed
        };
        self.repository.upload_blob(&digest, size, &contents)?;
        drop(progress);
        Ok((layer, Sent::Uploaded))
    }

    /// What the manifest will say of a layer.
    fn describe(
        &self,
        descriptor: &Descriptor,
        compression: Compression,
        digest: Digest,
        size: u64,
    ) -> Descriptor {
        let digest = digest.to_string();
        let media = LayerMedia::parse(&descriptor.media_type);
        let keeps = media
            .is_ok_and(|media| media.family == self.family && media.compression == compression);
        if keeps && descriptor.digest == digest {
            return descriptor.clone();
        }
        let name = LayerMedia::name(self.family, compression);
        let mut other = descriptor.other.clone();
        // They name the blob that it was.
        other.remove("urls");
        Descriptor {
            media_type: name.map_or_else(|| descriptor.media_type.clone(), str::to_owned),
            digest,
            size,
            other,
        }
    }
}

/// Bytes in memory.
struct Bytes<'a>(&'a [u8]);

impl Contents for Bytes<'_> {
    fn write(&self, to: &mut dyn Write) -> Result<(), SourceError> {
        Ok(to.write_all(self.0)?)
    }
}

/// A blob that the store kept.
struct Kept<'a> {
    store: &'a Store,
    layer: &'a LayerBlob,
    progress: &'a dyn Progress,
}

impl Contents for Kept<'_> {
    fn write(&self, to: &mut dyn Write) -> Result<(), SourceError> {
        let opened = self.store.open_blob(&self.layer.digest, self.layer.size)?;
        let mut file = opened.ok_or("it is gone")?;
        let mut out = Told::new(to, self.progress);
        io::copy(&mut file, &mut out)?;
        Ok(())
    }
}

/// The archive of a layer, packed.
#[derive(Clone, Copy)]
struct Packed<'a> {
    store: &'a Store,
    diff_id: &'a DiffId,
    compression: Compression,
    progress: &'a dyn Progress,
}

impl Contents for Packed<'_> {
    fn write(&self, to: &mut dyn Write) -> Result<(), SourceError> {
        let out = Told::new(to, self.progress);
        Ok(write_packed(
            self.store,
            self.diff_id,
            self.compression,
            out,
            &(),
        )?)
    }
}
