//! Records of live mounts: one file each in the runtime directory, locked by its daemon for as
//! long as it lives. They do not lie in the store, so that a read-only store can be mounted.
//!
//! What a record says is checked against the lock and the table of mounts whenever it is read: a
//! daemon that was killed leaves a file that nobody has locked, and one whose mount is gone too
//! is cleared away. The device number in it tells the mount from others at the same place.

use std::fs::{self, DirEntry, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::json_path;
use super::table::{self, Mounted};
use crate::sys;

/// What is written down of a live mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Where it is mounted.
    #[serde(with = "json_path")]
    pub target: PathBuf,
    /// Its device number, `major:minor`.
    pub device: String,
    /// Its name, if its upper is in the store.
    pub name: Option<String>,
    /// The store.
    #[serde(with = "json_path")]
    pub store: PathBuf,
    /// The image as the user named it.
    pub image: Option<String>,
    /// The image's layers, bottom first, as diffIDs.
    pub layers: Vec<String>,
    /// Plain directories above the image, topmost first.
    #[serde(with = "json_path::list")]
    pub lowers: Vec<PathBuf>,
    /// The upper directory.
    #[serde(with = "json_path::option")]
    pub upper: Option<PathBuf>,
    /// The work directory.
    #[serde(with = "json_path::option")]
    pub work: Option<PathBuf>,
    /// Whether the named upper is to be thrown away when it is unmounted.
    pub throw_away: bool,
    /// The file that the daemon writes its messages to, unless it runs in the foreground.
    #[serde(with = "json_path::option")]
    pub log: Option<PathBuf>,
    /// The daemon.
    pub pid: u32,
    /// When it was mounted: seconds since 1970.
    pub since: u64,
    /// The daemon's descriptor of its statistics.
    #[serde(default)]
    pub stats: Option<i32>,
}

/// How a mount is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is mounted and its daemon serves it.
    Live,
    /// It is mounted, but its daemon is gone: every use of it fails.
    Dead,
    /// Its daemon serves it, but it is not mounted here any more: it was detached while in use, or
    /// is mounted in another mount namespace.
    Detached,
}

/// A record and how its mount is.
#[derive(Clone, Debug)]
pub struct Found {
    /// What was written down.
    pub record: Record,
    /// How the mount is.
    pub state: State,
    path: PathBuf,
}

/// Where the files of one mount are: nobody else uses the names. When this is dropped, a log with
/// nothing in it goes.
#[derive(Debug)]
pub struct Place {
    stem: PathBuf,
}

/// Keeps a record for as long as it lives; the file goes with it, and the log if nothing is in it.
#[derive(Debug)]
pub struct Keeper {
    path: PathBuf,
    _lock: File,
}

/// Ending of the name of a socket.
const CONTROL: &str = "sock";

/// How long the log of a mount is kept after its end.
const KEEP_LOGS: Duration = Duration::from_secs(7 * 24 * 3600);

impl Place {
    /// Names in the runtime directory that are not taken.
    ///
    /// # Errors
    /// When there is no directory that can be used.
    pub fn new() -> io::Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let nanos = now.map_or(0, |time| time.as_nanos());
        let name = format!("{}-{nanos:x}", std::process::id());
        let stem = directory()?.join(name);
        Ok(Self { stem })
    }

    /// The file for the daemon's messages.
    pub fn log(&self) -> PathBuf {
        self.stem.with_extension("log")
    }

    /// The socket by which the daemon can be asked to hold changes back.
    pub fn control(&self) -> PathBuf {
        self.stem.with_extension(CONTROL)
    }

    /// Writes a record down.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn keep(&self, record: &Record) -> io::Result<Keeper> {
        let path = self.stem.with_extension("json");
        let temp = self.stem.with_extension("new");
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temp)?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        file.write_all(&serde_json::to_vec(record)?)?;
        fs::rename(&temp, &path)?;
        Ok(Keeper { path, _lock: file })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = remove_if_empty(&self.log()) {
            tracing::warn!("cannot remove {}: {error}", self.log().display());
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Err(error) = clear(&self.path) {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

impl Found {
    /// Whether the daemon still lives.
    pub fn is_held(&self) -> bool {
        File::open(&self.path).is_ok_and(|file| is_locked(&file))
    }

    /// The socket by which the daemon can be asked to hold changes back.
    pub fn control(&self) -> PathBuf {
        self.path.with_extension(CONTROL)
    }

    /// Removes the record of a mount whose daemon is dead.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn clear(&self) -> io::Result<()> {
        clear(&self.path)
    }
}

/// Removes a record, and the log beside it if it is empty.
fn clear(path: &Path) -> io::Result<()> {
    remove_if_empty(&path.with_extension("log"))?;
    remove(&path.with_extension(CONTROL))?;
    remove(path)
}

fn remove_if_empty(path: &Path) -> io::Result<()> {
    if fs::metadata(path).is_ok_and(|meta| meta.len() == 0) {
        remove(path)?;
    }
    Ok(())
}

/// Removes a file that someone else may be removing too.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether a process has an upper locked.
pub fn is_dir_locked(dir: &Path) -> bool {
    File::open(dir).is_ok_and(|dir| is_locked(&dir))
}

fn is_locked(file: &File) -> bool {
    rustix::fs::flock(file, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK)
}

/// Where records may be, the best place first: `/run/lamina` for root, then a directory `lamina`
/// in `$XDG_RUNTIME_DIR` or `/run/user/UID`, then `/tmp/lamina-UID`. For root in a user namespace
/// of an ordinary user, that is this user's id.
fn candidates() -> Vec<PathBuf> {
    let uid = rustix::process::geteuid();
    let mut places = Vec::new();
    if uid.is_root() {
        places.push(PathBuf::from("/run/lamina"));
    }
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let outside = sys::process::uid_outside(uid.as_raw());
    let of_user = Path::new("/run/user").join(outside.to_string());
    let mine = |dir: &PathBuf| {
        dir.is_absolute()
            && fs::metadata(dir).is_ok_and(|meta| meta.is_dir() && meta.uid() == uid.as_raw())
    };
    let dirs = runtime.into_iter().chain([of_user]).filter(mine);
    places.extend(dirs.map(|dir| dir.join("lamina")));
    places.push(PathBuf::from(format!("/tmp/lamina-{outside}")));
    places.dedup();
    places
}

/// The directory of the records of this user's mounts, made if it is not there.
fn directory() -> io::Result<PathBuf> {
    let mut reason = None;
    for dir in candidates() {
        match fs::DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                let words = format!("cannot make {}: {error}", dir.display());
                reason.get_or_insert_with(|| io::Error::new(error.kind(), words));
            }
            _ if is_mine(&dir) => return Ok(dir),
            _ => {
                let words = format!(
                    "{} is not a directory that only you can write to: remove it",
                    dir.display()
                );
                reason
                    .get_or_insert_with(|| io::Error::new(io::ErrorKind::PermissionDenied, words));
            }
        }
    }
    Err(reason.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
}

/// Whether what is in a directory can be believed: nobody else can have put it there.
fn is_mine(dir: &Path) -> bool {
    fs::symlink_metadata(dir).is_ok_and(|meta| {
        let uid = rustix::process::geteuid().as_raw();
        meta.is_dir() && meta.uid() == uid && meta.mode() & 0o022 == 0
    })
}

/// Holds off other processes of the user that want to mount, until the file is dropped: what is
/// mounted at a place does not change between a look and a mount.
///
/// # Errors
/// When there is no directory for records, or the file cannot be locked.
pub fn lock_mounting() -> io::Result<File> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(directory()?.join("lock"))?;
    loop {
        match rustix::fs::flock(&file, FlockOperation::LockExclusive) {
            Err(Errno::INTR) => {}
            result => return Ok(result.map(|()| file)?),
        }
    }
}

/// All records, oldest first. Those of daemons that ended without a mount left are cleared.
///
/// # Errors
/// When the table of mounts or a directory of records cannot be read.
pub fn all() -> io::Result<Vec<Found>> {
    let mounts = table::mounts()?;
    let mut found = Vec::new();
    for dir in candidates().iter().filter(|dir| is_mine(dir)) {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            match entry.path().extension().and_then(|name| name.to_str()) {
                Some("json") => found.extend(examine(&entry.path(), &mounts)?),
                Some("log" | "new") => remove_old(&entry)?,
                _ => {}
            }
        }
    }
    found.sort_by_key(|found| (found.record.since, found.path.clone()));
    Ok(found)
}

/// One record; `None` if it was cleared.
fn examine(path: &Path, mounts: &[Mounted]) -> io::Result<Option<Found>> {
    let Ok(file) = File::open(path) else {
        // Its daemon has just ended.
        return Ok(None);
    };
    let live = is_locked(&file);
    let record: Option<Record> = fs::read(path)
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok());
    let Some(record) = record else {
        if !live {
            remove(path)?;
        }
        return Ok(None);
    };
    let mounted = mounts
        .iter()
        .any(|mount| mount.is(&record.target, &record.device));
    let state = match (live, mounted) {
        (true, true) => State::Live,
        (true, false) => State::Detached,
        (false, true) => State::Dead,
        (false, false) => {
            clear(path)?;
            return Ok(None);
        }
    };
    let path = path.to_owned();
    Ok(Some(Found {
        record,
        state,
        path,
    }))
}

/// Removes a file that belongs to no record any more, when nobody will want to read it.
fn remove_old(entry: &DirEntry) -> io::Result<()> {
    let path = entry.path();
    let age = entry.metadata().and_then(|meta| meta.modified());
    let old = age.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > KEEP_LOGS));
    if old && !path.with_extension("json").exists() {
        remove(&path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(target: &str) -> Record {
        Record {
            target: target.into(),
            device: "0:50".into(),
            name: None,
            store: "/store".into(),
            image: None,
            layers: Vec::new(),
            lowers: Vec::new(),
            upper: None,
            work: None,
            throw_away: false,
            log: None,
            pid: 1,
            since: 7,
            stats: None,
        }
    }

    fn mounted(target: &str) -> Mounted {
        Mounted {
            target: target.into(),
            fs_type: "fuse.lamina".into(),
            device: "0:50".into(),
        }
    }

    fn place(dir: &Path) -> Place {
        Place {
            stem: dir.join("1-a"),
        }
    }

    #[test]
    fn the_state_is_told_by_lock_and_mount() {
        let dir = tempfile::tempdir().unwrap();
        let keeper = place(dir.path()).keep(&record("/mnt")).unwrap();
        let path = dir.path().join("1-a.json");
        let state = |mounts: &[Mounted]| examine(&path, mounts).unwrap().map(|found| found.state);
        assert_eq!(state(&[mounted("/mnt")]), Some(State::Live));
        assert_eq!(state(&[]), Some(State::Detached));
        // As when the daemon is killed: the lock goes, the file stays.
        let kept = fs::read(&path).unwrap();
        drop(keeper);
        assert!(!path.exists());
        fs::write(&path, kept).unwrap();
        assert_eq!(state(&[mounted("/mnt")]), Some(State::Dead));
        let other = Mounted {
            fs_type: "tmpfs".into(),
            ..mounted("/mnt")
        };
        assert_eq!(state(&[other]), None);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_no_record_is_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1-a.json");
        for text in ["", "{}", "[1]", "{\"target\":"] {
            fs::write(&path, text).unwrap();
            assert!(examine(&path, &[mounted("/mnt")]).unwrap().is_none());
            assert!(!path.exists(), "{text}");
        }
    }

    #[test]
    fn a_log_with_something_in_it_stays() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path());
        for (text, stays) in [("", false), ("damaged", true)] {
            fs::write(place.log(), text).unwrap();
            drop(place.keep(&record("/mnt")).unwrap());
            assert_eq!(place.log().exists(), stays);
        }
    }
}
