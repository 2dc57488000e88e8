//! A directory as output. Into an OCI layout that is there, images are added: another one that has the
//! same name loses it, as with skopeo.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::{
    ArchiveFormat, LAYOUT, LAYOUT_CONTENT, Output, REF_NAME, SaveError, SaveImage, SaveOptions,
    Saved, add_blobs, descriptors, prepare, saved, to_json,
};
use crate::new_file::NewFile;
use crate::oci::blob::OutError;
use crate::oci::{Document, MAX_DOCUMENT};
use crate::store::Store;
use crate::store::oci::{Descriptor, Index};

/// Writes images into a directory in OCI's image layout, which is made if it is not there. The index is
/// written last, so that the layout is whole at any moment.
///
/// # Errors
/// As [`super::save_archive`]; also when the directory holds something else.
pub fn save_to_dir(
    store: &Store,
    images: &[SaveImage],
    dir: &Path,
    options: &SaveOptions<'_>,
) -> Result<Vec<Saved>, SaveError> {
    let mut layout = Layout::open(dir)?;
    let prepared = prepare(store, images, ArchiveFormat::Oci, options)?;
    layout.make()?;
    add_blobs(store, &mut layout, &prepared)?;
    layout.add_to_index(descriptors(&prepared))?;
    Ok(saved(&prepared, ArchiveFormat::Oci))
}

/// A layout that is being added to.
struct Layout<'a> {
    dir: &'a Path,
    index: Index,
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> SaveError + 'a {
    move |source| SaveError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

impl<'a> Layout<'a> {
    /// Looks at what is there.
    fn open(dir: &'a Path) -> Result<Self, SaveError> {
        let mut layout = Self {
            dir,
            index: Index::new(Vec::new()),
        };
        if dir.exists() {
            // Somebody else may just be making it.
            let _lock = lock(dir, FlockOperation::LockShared)?;
            layout.index = Self::read_index(dir)?;
        }
        Ok(layout)
    }

    /// What is in the directory, which is locked.
    fn read_index(dir: &Path) -> Result<Index, SaveError> {
        let empty = Index::new(Vec::new());
        let mut entries = fs::read_dir(dir).map_err(failed("read", dir))?;
        if entries.next().is_none() {
            return Ok(empty);
        }
        let wrong = |problem: String| SaveError::NotALayout {
            path: dir.to_owned(),
            problem,
        };
        let read = |name: &str| {
            let file =
                File::open(dir.join(name)).map_err(|error| wrong(format!("{name}: {error}")))?;
            let mut bytes = Vec::new();
            let read =
                io::Read::read_to_end(&mut io::Read::take(file, MAX_DOCUMENT + 1), &mut bytes);
            read.map_err(|error| wrong(format!("{name}: {error}")))?;
            Ok::<_, SaveError>(bytes)
        };
        let version: serde_json::Value = serde_json::from_slice(&read(LAYOUT)?)
            .map_err(|error| wrong(format!("{LAYOUT}: {error}")))?;
        let version = version.get("imageLayoutVersion").and_then(|it| it.as_str());
        if version != Some("1.0.0") {
            return Err(wrong(format!("{LAYOUT}: its version is not 1.0.0")));
        }
        // Somebody else is still writing what it will list.
        if !dir.join("index.json").exists() {
            return Ok(empty);
        }
        match Document::parse(&read("index.json")?) {
            Ok(Document::Index(index)) => Ok(index),
            Ok(Document::Image(_)) => Err(wrong("index.json is not an index".into())),
            Err(problem) => Err(wrong(format!("index.json {problem}"))),
        }
    }

    /// Makes what is missing of the layout.
    fn make(&mut self) -> Result<(), SaveError> {
        fs::create_dir_all(self.dir).map_err(failed("create", self.dir))?;
        let _lock = lock(self.dir, FlockOperation::LockExclusive)?;
        let blobs = self.dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(failed("create", &blobs))?;
        if self.has(LAYOUT, LAYOUT_CONTENT.len() as u64) {
            return Ok(());
        }
        self.add_bytes(LAYOUT, LAYOUT_CONTENT)
    }

    /// Says what was added, when all of it is on the disk. Others may have added something meanwhile.
    fn add_to_index(&mut self, new: Vec<Descriptor>) -> Result<(), SaveError> {
        let _lock = lock(self.dir, FlockOperation::LockExclusive)?;
        self.index = Self::read_index(self.dir)?;
        let mut manifests = std::mem::take(&mut self.index.manifests);
        let name = |it: &Descriptor| it.annotation(REF_NAME).map(ToOwned::to_owned);
        for descriptor in new {
            match name(&descriptor) {
                Some(new) => manifests.retain(|old| name(old).as_ref() != Some(&new)),
                None => manifests.retain(|old| *old != descriptor),
            }
            manifests.push(descriptor);
        }
        self.index.manifests = manifests;
        sync(&self.dir.join("blobs/sha256"))?;
        let bytes = to_json(&self.index);
        self.add_bytes("index.json", &bytes)?;
        sync(self.dir)
    }
}

fn lock(dir: &Path, operation: FlockOperation) -> Result<File, SaveError> {
    let file = File::open(dir).map_err(failed("open", dir))?;
    rustix::fs::flock(&file, operation).map_err(|errno| failed("lock", dir)(errno.into()))?;
    Ok(file)
}

fn sync(dir: &Path) -> Result<(), SaveError> {
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(failed("sync", dir))
}

impl Output for Layout<'_> {
    fn has(&self, path: &str, size: u64) -> bool {
        fs::symlink_metadata(self.dir.join(path)).is_ok_and(|it| it.is_file() && it.len() == size)
    }

    fn add(
        &mut self,
        path: &str,
        _: u64,
        fill: &mut dyn FnMut(&mut dyn Write) -> Result<(), OutError>,
    ) -> Result<(), SaveError> {
        let path: PathBuf = self.dir.join(path);
        let parent = path.parent().unwrap_or(self.dir);
        let mut file = NewFile::new(parent, 0o644).map_err(failed("write in", parent))?;
        fill(file.file()).map_err(|error| match error {
            OutError::Write(source) => failed("write", &path)(source),
            error => error.into(),
        })?;
        file.publish(&path).map_err(failed("write", &path))?;
        Ok(())
    }
}
