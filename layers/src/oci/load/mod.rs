//! Reading images from files: OCI layouts as directories and archives, and what `docker save` writes.
//!
//! An archive in a file that is not packed is read in place, several layers at once. One that comes by
//! a pipe or is packed is read once (`stream.rs`).

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::Path;

use super::{BlobSource, IngestError, IngestOptions, Ingested, Platform, SourceError, ingest};
use crate::digest::{Digest, ImageId};
use crate::store::oci::{Descriptor, ImageConfig, Manifest};
use crate::store::{Store, StoreError, check_name};
use crate::tar::Compression;

mod contents;
mod error;
mod list;
mod stream;
mod walk;

pub use error::LoadError;
pub use walk::WalkProblem;

use contents::{Contents, Directory, Indexed};
use list::{Found, Lister};
use stream::{Staged, Streamed};

/// Where images are.
pub enum Origin<'a> {
    /// In an archive or a directory.
    Path(&'a Path),
    /// In an archive that is read once. The text is what error messages call it.
    Stream(Box<dyn Read + Send + 'a>, &'a str),
}

/// Which images to load, and how.
#[derive(Clone, Default)]
pub struct LoadOptions<'a> {
    /// How their layers are taken.
    pub ingest: IngestOptions<'a>,
    /// A name instead of those that the image has there. It can only be one image then.
    pub name: Option<&'a str>,
    /// For what machine, of images for several.
    pub platform: Option<Platform>,
    /// Those with one of these names, or with manifests that have these digests.
    pub wanted: &'a [String],
    /// All of them, if none are named. Otherwise it must be one.
    pub all: bool,
    /// The one with this digest, whatever it is for, and without any name.
    pub exactly: Option<ImageId>,
}

/// An image that was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// What it is called there.
    pub title: String,
    /// The names that it got now, as they are written in the store.
    pub given: Vec<String>,
    /// What became of it. The image has the names that it has in the store now.
    pub ingested: Ingested,
}

/// Loads images into a store.
///
/// # Errors
/// When the archive or directory is wrong, does not have what is wanted, or has several images and it
/// is not said which; when a layer is not what it should be; when the store cannot be written.
pub fn load(
    store: &Store,
    from: Origin<'_>,
    options: &LoadOptions<'_>,
) -> Result<Vec<Loaded>, LoadError> {
    if let Some(name) = options.name {
        // Before the work, not after it.
        check_name(name)?;
    }
    match from {
        Origin::Stream(input, name) => stream(store, input, name, options),
        Origin::Path(path) if path.is_dir() => take(store, &Directory::open(path)?, None, options),
        Origin::Path(path) => {
            let open = || -> io::Result<(File, Compression)> {
                let mut file = File::open(path)?;
                let mut start = Vec::new();
                (&mut file).take(512).read_to_end(&mut start)?;
                if file.metadata()?.is_file() {
                    file.rewind()?;
                }
                Ok((file, Compression::of(&start)))
            };
            let failed = |source| LoadError::Open {
                path: path.to_owned(),
                source,
            };
            let name = path.display().to_string();
            if !path.metadata().map_err(failed)?.is_file() {
                let file = File::open(path).map_err(failed)?;
                return stream(store, Box::new(file), &name, options);
            }
            match open().map_err(failed)? {
                (file, Compression::None) => {
                    take(store, &Indexed::read(file, &name)?, None, options)
                }
                (file, _) => stream(store, Box::new(file), &name, options),
            }
        }
    }
}

/// Loads images from an archive that is read once.
fn stream(
    store: &Store,
    input: Box<dyn Read + Send + '_>,
    name: &str,
    options: &LoadOptions<'_>,
) -> Result<Vec<Loaded>, LoadError> {
    let wrong = |error: io::Error| LoadError::Archive {
        name: name.to_owned(),
        problem: error.into(),
    };
    let input = unpacked(input).map_err(wrong)?;
    let streamed = Streamed::read(store, input, name, options)?;
    take(store, &streamed, Some(&streamed), options)
}

/// An archive, packed or not, unpacked.
fn unpacked<'a>(mut input: Box<dyn Read + Send + 'a>) -> io::Result<Box<dyn Read + Send + 'a>> {
    let mut start = Vec::new();
    (&mut input).take(512).read_to_end(&mut start)?;
    let compression = Compression::of(&start);
    let input = BufReader::with_capacity(128 << 10, io::Cursor::new(start).chain(input));
    compression.unpacked(input)
}

/// Loads what is wanted of what is there.
fn take(
    store: &Store,
    contents: &dyn Contents,
    streamed: Option<&Streamed<'_>>,
    options: &LoadOptions<'_>,
) -> Result<Vec<Loaded>, LoadError> {
    let found = choose(contents, options)?;
    let mut fresh = Vec::new();
    if let Some(streamed) = streamed {
        let mut needed = Vec::new();
        for image in &found {
            needed.extend(staged(streamed, image)?);
        }
        let layers = streamed.commit(&needed)?;
        needed.retain(|staged| layers.contains(&staged.diff_id));
        fresh = needed;
    }
    let mut loaded = Vec::new();
    for image in found {
        let mut image = put(store, contents, image, options.name, &options.ingest)?;
        let ingested = &mut image.ingested;
        // Those that were staged are in the store already when the image is put there.
        fresh.retain(|staged| {
            let new = ingested.image.layers.contains(&staged.diff_id);
            if new && !ingested.taken.contains(&staged.diff_id) {
                ingested.taken.push(staged.diff_id);
                ingested.bytes += staged.size;
            }
            !new
        });
        loaded.push(image);
    }
    Ok(loaded)
}

/// The images that are wanted.
fn choose(contents: &dyn Contents, options: &LoadOptions<'_>) -> Result<Vec<Found>, LoadError> {
    let lister = Lister::new(contents);
    let mut groups = lister.groups()?;
    let name = || contents.name().to_owned();
    if let Some(id) = options.exactly {
        for group in &groups {
            let mut images = lister.images(group)?.into_iter();
            if let Some((_, found)) = images.find(|(_, found)| Digest::of(&found.manifest) == id.0)
            {
                return Ok(vec![found]);
            }
        }
        return Err(LoadError::NoSuchImage {
            name: name(),
            wanted: id.to_string(),
            found: groups.iter().map(list::Group::title).collect(),
        });
    }
    for wanted in options.wanted {
        if !groups.iter().any(|group| group.is(wanted)) {
            return Err(LoadError::NoSuchImage {
                name: name(),
                wanted: wanted.clone(),
                found: groups.iter().map(list::Group::title).collect(),
            });
        }
    }
    if !options.wanted.is_empty() {
        groups.retain(|group| options.wanted.iter().any(|wanted| group.is(wanted)));
    }
    let titles: Vec<_> = groups.iter().map(list::Group::title).collect();
    let mut found: Vec<Found> = Vec::new();
    for group in groups {
        let image = lister.choose(group, options.platform.as_ref())?;
        match found
            .iter_mut()
            .find(|other| other.manifest == image.manifest)
        {
            // Docker lists it once for each of its names.
            Some(other) => other.names.extend(image.names),
            None => found.push(image),
        }
    }
    match found.len() {
        0 => Err(LoadError::NoImages { name: name() }),
        1 => Ok(found),
        _ if options.name.is_some() || (!options.all && options.wanted.is_empty()) => {
            Err(LoadError::Several {
                name: name(),
                found: titles,
            })
        }
        _ => Ok(found),
    }
}

/// The layers of an image that are staged, and are what they should be.
fn staged(streamed: &Streamed<'_>, image: &Found) -> Result<Vec<Staged>, LoadError> {
    // They are parsed and checked when the image is put into the store.
    let (Ok(manifest), Ok(config)) = (
        serde_json::from_slice::<Manifest>(&image.manifest),
        serde_json::from_slice::<ImageConfig>(&image.config),
    ) else {
        return Ok(Vec::new());
    };
    let mut all = Vec::new();
    for (layer, diff_id) in manifest.layers.iter().zip(config.rootfs.diff_ids) {
        let Ok(digest) = layer.digest.parse::<Digest>() else {
            continue;
        };
        let Some(path) = image.layers.get(&digest) else {
            continue;
        };
        let Some(staged) = streamed.staged(path)? else {
            continue;
        };
        let wrong = match (layer.size, staged.size) {
            _ if staged.digest != digest => Some(IngestError::Digest {
                digest,
                found: staged.digest,
            }),
            (size, found) if size > found => Some(IngestError::Short {
                digest,
                size,
                found,
            }),
            (size, found) if size < found => Some(IngestError::Long { digest, size }),
            _ if staged.diff_id != diff_id => Some(IngestError::DiffId {
                digest,
                diff_id,
                found: staged.diff_id,
            }),
            _ => None,
        };
        if let Some(source) = wrong {
            let name = streamed.name().to_owned();
            return Err(LoadError::Ingest {
                name,
                source: Box::new(source),
            });
        }
        all.push(staged);
    }
    Ok(all)
}

/// Puts an image into the store, with all its names that it can have there.
fn put(
    store: &Store,
    contents: &dyn Contents,
    found: Found,
    name: Option<&str>,
    options: &IngestOptions<'_>,
) -> Result<Loaded, LoadError> {
    let source = Blobs {
        contents,
        found: &found,
    };
    let result = ingest(
        store,
        &source,
        name,
        &found.manifest,
        &found.config,
        options,
    );
    let mut ingested = result.map_err(|source| LoadError::Ingest {
        name: contents.name().to_owned(),
        source: Box::new(source),
    })?;
    let mut given: Vec<String> = name.map(ToOwned::to_owned).into_iter().collect();
    if name.is_none() {
        for name in &found.names {
            match store.tag_image(name, &ingested.image.id) {
                Ok(()) => given.push(name.clone()),
                Err(error @ StoreError::ImageName { .. }) => tracing::warn!("{error}"),
                Err(error) => return Err(error.into()),
            }
        }
        ingested.image = store.image(&ingested.image.id)?;
    }
    let short = |name: String| {
        name.strip_suffix(":latest")
            .map_or(name.clone(), str::to_owned)
    };
    Ok(Loaded {
        given: given.into_iter().map(short).collect(),
        title: found.title,
        ingested,
    })
}

/// The layers of an image.
struct Blobs<'a> {
    contents: &'a dyn Contents,
    found: &'a Found,
}

impl BlobSource for Blobs<'_> {
    fn open(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>, SourceError> {
        let digest: Digest = descriptor.digest.parse()?;
        let path = self.found.layers.get(&digest);
        let path = path.map_or(descriptor.digest.as_str(), String::as_str);
        let file = self.contents.open(path)?;
        let missing = || LoadError::Missing {
            name: self.contents.name().to_owned(),
            path: path.to_owned(),
            by: "the manifest",
        };
        Ok(file.ok_or_else(missing)?)
    }
}

#[cfg(test)]
mod tests;
