//! The Debian image of `scripts/fixture-image`, and a reference tree of it that Lamina had no part
//! in.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::SystemTime;

use super::lamina::Lamina;
use super::run;
use super::sandbox::Sandbox;

/// The layer archives, bottom first; made on first use (about 40 s).
pub fn debian_layers() -> Vec<PathBuf> {
    static HOME: OnceLock<PathBuf> = OnceLock::new();
    let home = HOME.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/fixture-image");
        let output = Command::new(&script)
            .stderr(std::process::Stdio::inherit())
            .output()
            .unwrap();
        assert!(output.status.success(), "{} failed", script.display());
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim_end())
    });
    ["1-base.tar", "2-tools.tar", "3-pruned.tar"]
        .iter()
        .map(|name| home.join(name))
        .collect()
}

/// A store in which the Debian image is known as `debian`, shared by the tests that run together.
pub struct DebianStore {
    _sandbox: Sandbox,
    pub lamina: Lamina,
}

impl DebianStore {
    /// One that nobody else uses.
    pub fn own() -> Self {
        let sandbox = Sandbox::new("debian");
        let lamina = Lamina::new(&sandbox);
        lamina.build("debian", &debian_layers());
        Self {
            _sandbox: sandbox,
            lamina,
        }
    }

    /// The shared one, built by whoever asks first and removed when the last is done with it.
    pub fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<DebianStore>> = Mutex::new(Weak::new());
        let mut shared = SHARED
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let store = Arc::new(Self::own());
            *shared = Arc::downgrade(&store);
            store
        })
    }
}

/// Lays `layers` over each other in `root` with GNU tar, applying the whiteouts by hand.
pub fn unpack_by_hand(layers: &[PathBuf], root: &Path) {
    for layer in layers {
        // A directory that the layer does not hold keeps its time, whatever tar does in it.
        let mut times = BTreeMap::new();
        directory_times(root, &mut times);
        for held in make_way(layer, root) {
            times.remove(&held);
        }
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--same-permissions", "--same-owner"]);
        tar.args(["--numeric-owner", "--delay-directory-restore", "--xattrs"]);
        tar.args(["--xattrs-include=*", "--exclude=.wh.*", "--file"]);
        run(tar.arg(layer).arg("-C").arg(root));
        for (dir, time) in times.into_iter().filter(|(dir, _)| dir.is_dir()) {
            let opened = fs::File::open(dir).unwrap();
            opened
                .set_times(fs::FileTimes::new().set_modified(time))
                .unwrap();
        }
    }
}

/// The modification time of `dir` and of every directory below.
fn directory_times(dir: &Path, times: &mut BTreeMap<PathBuf, SystemTime>) {
    times.insert(
        dir.to_owned(),
        dir.symlink_metadata().unwrap().modified().unwrap(),
    );
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            directory_times(&entry.path(), times);
        }
    }
}

/// Removes from `root` what `layer` hides, and what tar would not replace: a directory by something
/// else, or something else by a directory. Returns where the entries of the layer go.
fn make_way(layer: &Path, root: &Path) -> Vec<PathBuf> {
    let mut archive = tar::Archive::new(fs::File::open(layer).unwrap());
    let mut held = Vec::new();
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        let bytes = entry.path_bytes().into_owned();
        let path: PathBuf = root.join(OsStr::from_bytes(&bytes)).components().collect();
        let name = path.file_name().unwrap_or_default().as_bytes().to_vec();
        if name == b".wh..wh..opq" {
            for child in fs::read_dir(path.parent().unwrap()).into_iter().flatten() {
                remove(&child.unwrap().path());
            }
        } else if let Some(hidden) = name.strip_prefix(b".wh.") {
            remove(&path.with_file_name(OsStr::from_bytes(hidden)));
        } else {
            let there = path.symlink_metadata();
            if there.is_ok_and(|there| there.is_dir() != entry.header().entry_type().is_dir()) {
                remove(&path);
            }
            held.push(path);
        }
    }
    held
}

fn remove(path: &Path) {
    let is_dir = fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir());
    let removed = if is_dir {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    removed.unwrap_or_else(|error| {
        panic!("the whiteout of {} hides nothing: {error}", path.display())
    });
}
