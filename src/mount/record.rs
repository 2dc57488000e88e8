//! Records of live mounts: one file each in the runtime directory, locked by its daemon for as
//! long as it lives. They do not lie in the store, so that a read-only store can be mounted.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

/// What is written down of a live mount.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Where it is mounted.
    pub target: PathBuf,
    /// Its name, if its upper is in the store.
    pub name: Option<String>,
    /// The store.
    pub store: PathBuf,
    /// The image as the user named it.
    pub image: Option<String>,
    /// The image's layers, bottom first, as diffIDs.
    pub layers: Vec<String>,
    /// Plain directories above the image, topmost first.
    pub lowers: Vec<PathBuf>,
    /// The upper directory.
    pub upper: Option<PathBuf>,
    /// The work directory.
    pub work: Option<PathBuf>,
    /// The daemon.
    pub pid: u32,
    /// When it was mounted: seconds since 1970.
    pub since: u64,
}

/// A record and whether its daemon lives.
#[derive(Clone, Debug)]
pub struct Found {
    /// What was written down.
    pub record: Record,
    /// Whether the daemon lives.
    pub live: bool,
    path: PathBuf,
}

/// Keeps a record for as long as it lives; the file goes with it.
#[derive(Debug)]
pub struct Keeper {
    path: PathBuf,
    _lock: File,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// The directory of the records of this user's mounts: `/run/lamina` for root, else
/// `$XDG_RUNTIME_DIR/lamina` or `/tmp/lamina-UID`; made if it is not there.
pub fn directory() -> io::Result<PathBuf> {
    let uid = rustix::process::geteuid();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| Path::new(dir).is_absolute());
    let dir = match runtime {
        _ if uid.is_root() => PathBuf::from("/run/lamina"),
        Some(runtime) => PathBuf::from(runtime).join("lamina"),
        None => std::env::temp_dir().join(format!("lamina-{}", uid.as_raw())),
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)?;
    if fs::symlink_metadata(&dir)?.uid() != uid.as_raw() {
        let words = format!("{} belongs to someone else: remove it", dir.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, words));
    }
    Ok(dir)
}

impl Record {
    /// Writes the record down.
    pub fn keep(&self) -> io::Result<Keeper> {
        let path = directory()?.join(format!("{}.json", self.pid));
        let temp = path.with_extension("new");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temp)?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        fs::rename(&temp, &path)?;
        Ok(Keeper { path, _lock: file })
    }
}

impl Found {
    /// Whether the daemon still lives.
    pub fn is_held(&self) -> bool {
        let Ok(file) = File::open(&self.path) else {
            return false;
        };
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_err()
    }

    /// Removes the record of a mount whose daemon is dead.
    pub fn clear(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// All records, oldest first. Those of daemons that ended without a mount left are cleared.
pub fn all() -> io::Result<Vec<Found>> {
    let mounts = super::table::mounts()?;
    let mut found = Vec::new();
    for entry in fs::read_dir(directory()?)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let Ok(file) = File::open(&path) else {
            continue;
        };
        let live = rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_err();
        let record: Option<Record> = fs::read(&path)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok());
        let mounted = |record: &Record| mounts.iter().any(|mount| mount.target == record.target);
        match record {
            Some(record) if live || mounted(&record) => found.push(Found { record, live, path }),
            _ => fs::remove_file(&path)?,
        }
    }
    found.sort_by_key(|found| (found.record.since, found.record.pid));
    Ok(found)
}
