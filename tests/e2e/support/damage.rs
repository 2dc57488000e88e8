//! Damage to stores.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

pub fn flip(path: &Path) {
    // Whatever its permissions, the tests may.
    let mode = fs::metadata(path).unwrap().permissions();
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let middle = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle).unwrap();
    file.write_all_at(&[byte[0] ^ 0x20], middle).unwrap();
    fs::set_permissions(path, mode).unwrap();
}

/// The directory of an image.
pub fn image(store: &Path, name: &str) -> PathBuf {
    let id = fs::read_to_string(store.join("refs").join(name)).unwrap();
    let hex = id.trim().strip_prefix("sha256:").unwrap().to_owned();
    store.join("images").join(hex)
}

/// The largest object.
pub fn large_object(store: &Path) -> PathBuf {
    let dirs = fs::read_dir(store.join("objects")).unwrap();
    let files = dirs.flat_map(|dir| fs::read_dir(dir.unwrap().path()).unwrap());
    let paths = files.map(|file| file.unwrap().path());
    paths
        .max_by_key(|path| (fs::metadata(path).unwrap().len(), path.clone()))
        .unwrap()
}
