//! Writing images to files: OCI layouts as directories and archives, and what `docker load` reads.
//!
//! All that has to be packed is packed before the first byte is written, so that documents come first: who
//! reads the archive as a stream then knows what the layers are before they come.

use std::collections::HashSet;
use std::io::Write;
use std::path::Path;

use serde_json::json;

use super::blob::{OutBlob, OutError, OutOptions, Outgoing, outgoing};
use super::{Family, IngestProgress};
use crate::digest::{Digest, ImageId};
use crate::store::oci::{Descriptor, Index, MANIFEST, Other};
use crate::store::{Store, StoreError};
use crate::tar::Compression;

mod dir;
mod tarball;

pub use dir::save_to_dir;

/// The annotation with the name of an image.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The file that says that a directory is an OCI layout.
const LAYOUT: &str = "oci-layout";

/// The kinds of archives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveFormat {
    /// An OCI layout.
    Oci,
    /// What docker reads: layers are not packed.
    Docker,
}

/// How images are saved.
#[derive(Clone, Copy)]
pub struct SaveOptions<'a> {
    /// How layers of OCI layouts are packed; as each manifest says if not given.
    pub compression: Option<Compression>,
    /// A directory for files without names, which layers are packed into.
    pub scratch: &'a Path,
    /// Is told how far it is.
    pub progress: &'a dyn IngestProgress,
}

/// An image to be saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaveImage {
    /// Which one.
    pub id: ImageId,
    /// The name that it gets there, if any.
    pub name: Option<String>,
}

/// An image that was saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// The digest of its manifest there. A docker archive has none: that in the store.
    pub manifest: Digest,
    /// Whether that is another than in the store, as a layer is packed in another way.
    pub changed: bool,
}

/// Why images cannot be saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// An image or a layer cannot go out.
    #[error(transparent)]
    Out(#[from] OutError),
    /// The store does not have it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The output cannot be written.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A directory that holds something else.
    #[error("{} is not empty, and not an OCI layout: {problem}", .path.display())]
    NotALayout {
        /// The directory.
        path: std::path::PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

/// Takes the files of a layout, one after the other.
trait Output {
    /// Whether a file is there already, with so many bytes.
    fn has(&self, path: &str, size: u64) -> bool;

    /// Adds a file of `size` bytes, which `fill` writes.
    fn add(
        &mut self,
        path: &str,
        size: u64,
        fill: &mut dyn FnMut(&mut dyn Write) -> Result<(), OutError>,
    ) -> Result<(), SaveError>;

    /// Adds a short file.
    fn add_bytes(&mut self, path: &str, bytes: &[u8]) -> Result<(), SaveError> {
        self.add(path, bytes.len() as u64, &mut |out| {
            out.write_all(bytes).map_err(OutError::Write)
        })
    }
}

/// Writes an archive of images.
///
/// # Errors
/// When an image or a layer is missing or damaged, there is no room to pack, or `out` fails.
pub fn save_archive(
    store: &Store,
    images: &[SaveImage],
    format: ArchiveFormat,
    out: impl Write,
    options: &SaveOptions<'_>,
) -> Result<Vec<Saved>, SaveError> {
    let prepared = prepare(store, images, format, options)?;
    let mut archive = tarball::Tarball::new(out);
    match format {
        ArchiveFormat::Oci => {
            archive.add_bytes(LAYOUT, LAYOUT_CONTENT)?;
            let index = Index::new(descriptors(&prepared));
            archive.add_bytes("index.json", &to_json(&index))?;
            add_blobs(store, &mut archive, &prepared)?;
        }
        ArchiveFormat::Docker => docker(store, &mut archive, &prepared)?,
    }
    archive.finish()?;
    Ok(saved(&prepared, format))
}

const LAYOUT_CONTENT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// An image that is ready to be written.
struct Prepared<'a> {
    image: &'a SaveImage,
    out: Outgoing,
}

/// Makes all images ready.
fn prepare<'a>(
    store: &Store,
    images: &'a [SaveImage],
    format: ArchiveFormat,
    options: &SaveOptions<'_>,
) -> Result<Vec<Prepared<'a>>, SaveError> {
    let usual = OutOptions::new(options.scratch);
    let how = OutOptions {
        // An OCI layout has the OCI's media types only.
        family: Some(match format {
            ArchiveFormat::Oci => Family::Oci,
            ArchiveFormat::Docker => Family::Docker,
        }),
        compression: match format {
            ArchiveFormat::Oci => options.compression,
            ArchiveFormat::Docker => Some(Compression::None),
        },
        progress: options.progress,
        ..usual
    };
    let prepare = |image: &'a SaveImage| {
        let files = store.image_files(&image.id)?;
        let out = outgoing(store, files, &how)?;
        Ok(Prepared { image, out })
    };
    images.iter().map(prepare).collect()
}

fn saved(prepared: &[Prepared<'_>], format: ArchiveFormat) -> Vec<Saved> {
    let one = |it: &Prepared<'_>| match format {
        ArchiveFormat::Oci => Saved {
            manifest: Digest::of(&it.out.manifest),
            changed: it.out.changed,
        },
        ArchiveFormat::Docker => Saved {
            manifest: it.image.id.0,
            changed: false,
        },
    };
    prepared.iter().map(one).collect()
}

/// What an index says of images.
fn descriptors(prepared: &[Prepared<'_>]) -> Vec<Descriptor> {
    let one = |it: &Prepared<'_>| {
        let mut other = Other::new();
        if let Some(name) = &it.image.name {
            other.insert("annotations".into(), json!({ REF_NAME: name }));
        }
        Descriptor {
            media_type: MANIFEST.into(),
            digest: Digest::of(&it.out.manifest).to_string(),
            size: it.out.manifest.len() as u64,
            other,
        }
    };
    prepared.iter().map(one).collect()
}

/// Adds all blobs, those of several images once.
fn add_blobs(
    store: &Store,
    output: &mut dyn Output,
    prepared: &[Prepared<'_>],
) -> Result<(), SaveError> {
    let mut written = HashSet::new();
    for Prepared { out, .. } in prepared {
        for bytes in [&out.manifest, &out.config] {
            let path = blob_path(&Digest::of(bytes).to_string());
            if written.insert(path.clone()) && !output.has(&path, bytes.len() as u64) {
                output.add_bytes(&path, bytes)?;
            }
        }
    }
    for blob in prepared.iter().flat_map(|it| &it.out.layers) {
        let path = blob_path(&blob.descriptor.digest);
        if written.insert(path.clone()) && !output.has(&path, blob.descriptor.size) {
            add_layer(store, output, &path, blob)?;
        }
    }
    Ok(())
}

fn add_layer(
    store: &Store,
    output: &mut dyn Output,
    path: &str,
    blob: &OutBlob,
) -> Result<(), SaveError> {
    output.add(path, blob.descriptor.size, &mut |out| {
        blob.write_to(store, out)
    })
}

/// Adds images in docker's form.
fn docker(
    store: &Store,
    output: &mut dyn Output,
    prepared: &[Prepared<'_>],
) -> Result<(), SaveError> {
    let config_path = |it: &Prepared<'_>| format!("{}.json", Digest::of(&it.out.config).hex());
    let layer_path = |blob: &OutBlob| format!("{}.tar", blob.diff_id.0.hex());
    let mut entries: Vec<serde_json::Value> = Vec::new();
    for it in prepared {
        let layers: Vec<_> = it.out.layers.iter().map(layer_path).collect();
        // Docker does not read a name without a tag.
        let tags: Vec<_> = it.image.name.iter().map(|name| with_tag(name)).collect();
        entries.push(json!({ "Config": config_path(it), "RepoTags": tags, "Layers": layers }));
    }
    output.add_bytes("manifest.json", &to_json(&entries))?;
    let mut written = HashSet::new();
    for it in prepared {
        let path = config_path(it);
        if written.insert(path.clone()) {
            output.add_bytes(&path, &it.out.config)?;
        }
    }
    for blob in prepared.iter().flat_map(|it| &it.out.layers) {
        let path = layer_path(blob);
        if written.insert(path.clone()) {
            add_layer(store, output, &path, blob)?;
        }
    }
    Ok(())
}

/// A name with a tag: `latest` if it has none.
fn with_tag(name: &str) -> String {
    match name.rsplit_once(':') {
        Some((_, tag)) if !tag.contains('/') => name.to_owned(),
        _ => format!("{name}:latest"),
    }
}

fn blob_path(digest: &str) -> String {
    format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"))
}

fn to_json(value: &impl serde::Serialize) -> Vec<u8> {
    // Maps have strings for keys, so this cannot fail.
    serde_json::to_vec(value).unwrap_or_default()
}

#[cfg(test)]
mod tests;
