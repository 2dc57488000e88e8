//! `store.json`: which version of the store's format this is, and what else a program must know
//! to use it.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use super::{Access, StoreError};

/// Name of the file.
pub const FILE: &str = "store.json";
/// The version this program writes, and the newest it reads.
const VERSION: u64 = 1;
/// Features this program knows. None exist yet.
const KNOWN: &[&str] = &[];

/// Contents of the file.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
struct Superblock {
    version: u64,
    /// Features that may be ignored.
    #[serde(default)]
    compat: Vec<String>,
    /// Features that must be known to change the store.
    #[serde(default)]
    ro_compat: Vec<String>,
    /// Features that must be known to use the store at all.
    #[serde(default)]
    incompat: Vec<String>,
}

/// Whether there is a store at `root`, one that this program can use.
///
/// # Errors
/// When the file is damaged, or the store needs a newer program.
pub fn check(root: &Path, access: Access) -> Result<bool, StoreError> {
    let path = root.join(FILE);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(StoreError::io("read", path)(error)),
    };
    let superblock: Superblock =
        serde_json::from_slice(&text).map_err(|error| StoreError::Superblock {
            path,
            problem: error.to_string(),
        })?;
    if superblock.version > VERSION {
        return Err(StoreError::Version {
            path: root.to_owned(),
            found: superblock.version,
            known: VERSION,
        });
    }
    refuse_unknown(root, &superblock.incompat, false)?;
    if access == Access::ReadWrite {
        refuse_unknown(root, &superblock.ro_compat, true)?;
    }
    Ok(true)
}

fn refuse_unknown(root: &Path, features: &[String], read_only: bool) -> Result<(), StoreError> {
    match features
        .iter()
        .find(|feature| !KNOWN.contains(&feature.as_str()))
    {
        Some(feature) => Err(StoreError::Feature {
            path: root.to_owned(),
            feature: feature.clone(),
            read_only,
        }),
        None => Ok(()),
    }
}

/// Makes `root`, a directory that is not there or empty, a store. Several processes may do so at
/// once.
///
/// # Errors
/// When the directory holds something else, or cannot be written.
pub fn create(root: &Path) -> Result<(), StoreError> {
    make_private_dir(root)?;
    let entries = fs::read_dir(root).map_err(StoreError::io("read", root))?;
    for entry in entries {
        let name = entry.map_err(StoreError::io("read", root))?.file_name();
        // Another process is making the store.
        if name.as_encoded_bytes().starts_with(FILE.as_bytes()) {
            continue;
        }
        // It was the first to make it, and has gone on from there.
        if root.join(FILE).exists() {
            return Ok(());
        }
        return Err(StoreError::NotAStore(root.to_owned()));
    }
    let path = root.join(FILE);
    let write = || -> io::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let mut file = tempfile::Builder::new()
            .prefix(&format!("{FILE}."))
            .permissions(fs::Permissions::from_mode(0o644))
            .tempfile_in(root)?;
        let superblock = Superblock {
            version: VERSION,
            ..Superblock::default()
        };
        let mut text = serde_json::to_vec_pretty(&superblock)?;
        text.push(b'\n');
        file.write_all(&text)?;
        file.as_file().sync_all()?;
        // The file is what the store's lock is on: whoever made it first keeps it.
        match file.persist_noclobber(&path) {
            Err(error) if error.error.kind() != io::ErrorKind::AlreadyExists => Err(error.error),
            _ => Ok(()),
        }
    };
    write().map_err(StoreError::io("write", path.clone()))
}

/// Images have files that are not for everybody (`/etc/shadow`), so only the owner gets in.
fn make_private_dir(root: &Path) -> Result<(), StoreError> {
    use std::os::unix::fs::DirBuilderExt;
    if root.is_dir() {
        return Ok(());
    }
    if let Some(parent) = root.parent() {
        fs::create_dir_all(parent).map_err(StoreError::io("create", parent))?;
    }
    match fs::DirBuilder::new().mode(0o700).create(root) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(StoreError::io("create", root)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::sync::Barrier;

    use super::*;
    use crate::store::Store;

    #[test]
    fn a_store_is_made_once_by_many_at_the_same_time() {
        for _ in 0..100 {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path().join("store");
            let barrier = Barrier::new(4);
            let files: Vec<u64> = std::thread::scope(|scope| {
                let open = || {
                    barrier.wait();
                    let store = Store::open(&root, Access::ReadWrite).unwrap();
                    fs::metadata(store.root().join(FILE)).unwrap().ino()
                };
                let openers: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
                openers.into_iter().map(|it| it.join().unwrap()).collect()
            });
            assert!(
                files.iter().all(|ino| *ino == files[0]),
                "the file with the lock was replaced"
            );
        }
    }
}
