//! The Debian image of `scripts/fixture-image`, and a reference tree of it that Lamina had no part
//! in.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use super::lamina::Lamina;
use super::run;
use super::sandbox::Sandbox;

/// The layer archives, bottom first; made on first use (about 40 s).
pub fn debian_layers() -> Vec<PathBuf> {
    static HOME: OnceLock<PathBuf> = OnceLock::new();
    let home = HOME.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/fixture-image");
        let output = Command::new(&script).stderr(std::process::Stdio::inherit()).output().unwrap();
        assert!(output.status.success(), "{} failed", script.display());
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim_end())
    });
    ["1-base.tar", "2-tools.tar", "3-pruned.tar"].iter().map(|name| home.join(name)).collect()
}

/// A store in which the Debian image is known as `debian`, shared by the tests that run together.
pub struct DebianStore {
    pub sandbox: Sandbox,
    pub lamina: Lamina,
}

impl DebianStore {
    /// The shared one, built by whoever asks first and removed when the last is done with it.
    pub fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<DebianStore>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let sandbox = Sandbox::new("debian");
            let lamina = Lamina::new(&sandbox);
            lamina.build("debian", &debian_layers());
            let store = Arc::new(Self { sandbox, lamina });
            *shared = Arc::downgrade(&store);
            store
        })
    }
}

/// Lays `layers` over each other in `root` with GNU tar, applying the whiteouts by hand.
pub fn unpack_by_hand(layers: &[PathBuf], root: &Path) {
    for layer in layers {
        for mark in whiteouts(layer) {
            let relative = Path::new(std::ffi::OsStr::from_bytes(&mark));
            let dir = root.join(relative.parent().unwrap());
            let name = relative.file_name().unwrap().as_bytes();
            if name == b".wh..wh..opq" {
                for child in fs::read_dir(&dir).into_iter().flatten() {
                    remove(&child.unwrap().path());
                }
            } else {
                remove(&dir.join(std::ffi::OsStr::from_bytes(&name[b".wh.".len()..])));
            }
        }
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--same-permissions", "--same-owner", "--numeric-owner", "--recursive-unlink"]);
        tar.args(["--delay-directory-restore", "--xattrs", "--xattrs-include=*", "--exclude=.wh.*", "--file"]);
        run(tar.arg(layer).arg("-C").arg(root));
    }
}

/// The names of the whiteouts in an archive.
fn whiteouts(layer: &Path) -> Vec<Vec<u8>> {
    let mut archive = tar::Archive::new(fs::File::open(layer).unwrap());
    let names = archive.entries().unwrap().map(|entry| entry.unwrap().path_bytes().into_owned());
    names.filter(|name| name.rsplit(|&byte| byte == b'/').next().is_some_and(|last| last.starts_with(b".wh."))).collect()
}

fn remove(path: &Path) {
    let is_dir = fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir());
    let removed = if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.unwrap_or_else(|error| panic!("the whiteout of {} hides nothing: {error}", path.display()));
}
