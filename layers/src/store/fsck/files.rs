//! What does not belong into a store, and permissions.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{Check, Damage, Subject};
use crate::digest::Digest;
use crate::store::{DIRECTORIES, StoreError, layers, superblock};

/// What else may be at the top: the quarantine, what builds remember, and what the filesystem has if it is
/// the store's own.
const OTHERS: [&str; 3] = ["quarantine", "cache", "lost+found"];
/// Permissions of objects and the files of layers.
pub(super) const MODE: u32 = 0o444;

impl Check<'_> {
    /// Looks for what does not belong into a store, and for wrong permissions.
    pub(super) fn files(&mut self) -> Result<(), StoreError> {
        let root = self.store.root().to_owned();
        let owner = fs::symlink_metadata(root.join(superblock::FILE)).map(|meta| meta.uid());
        let owner = owner.map_err(StoreError::io("examine", &root))?;
        self.each_in(&root, |check, name, path| {
            let text = name.to_string_lossy();
            let known = DIRECTORIES.contains(&&*text)
                || OTHERS.contains(&&*text)
                || text.starts_with(superblock::FILE);
            if !known {
                check.stray(path);
            }
        })?;
        self.each_in(&root.join("objects"), |check, name, path| {
            let is_prefix = name.len() == 2 && is_hex(name);
            if !is_prefix || !is_real_dir(path) {
                check.stray(path);
                return;
            }
            let walked = check.each_in(path, |check, rest, path| {
                let hex = [name, rest].map(OsStr::to_string_lossy).concat();
                if Digest::from_hex(&hex).is_err() {
                    check.stray(path);
                } else {
                    check.mode(path, owner);
                }
            });
            if let Err(error) = walked {
                check.found(Damage::new(
                    Subject::Stray,
                    path.to_owned(),
                    error.to_string(),
                ));
            }
        })?;
        self.each_in(&root.join("blobs"), |check, name, path| {
            if name
                .to_str()
                .is_none_or(|hex| Digest::from_hex(hex).is_err())
            {
                check.stray(path);
            } else {
                check.mode(path, owner);
            }
        })?;
        self.digests("layers", &layers::FILES, Some(owner))?;
        self.digests(
            "images",
            &["manifest.json", "config.json", "source.json"],
            None,
        )
    }

    /// Looks into a directory of directories that are named by digests, and have these files.
    fn digests(
        &mut self,
        name: &str,
        files: &[&str],
        owner: Option<u32>,
    ) -> Result<(), StoreError> {
        let dir = self.store.root().join(name);
        self.each_in(&dir, |check, name, path| {
            let is_digest = name
                .to_str()
                .is_some_and(|hex| Digest::from_hex(hex).is_ok());
            if !is_digest || !is_real_dir(path) {
                check.stray(path);
                return;
            }
            let walked = check.each_in(path, |check, name, path| {
                if !files.iter().any(|file| name == *file) {
                    check.stray(path);
                } else if let Some(owner) = owner {
                    check.mode(path, owner);
                }
            });
            if let Err(error) = walked {
                check.found(Damage::new(
                    Subject::Stray,
                    path.to_owned(),
                    error.to_string(),
                ));
            }
        })
    }

    fn each_in(
        &mut self,
        dir: &Path,
        mut each: impl FnMut(&mut Self, &OsStr, &Path),
    ) -> Result<(), StoreError> {
        let entries = match fs::read_dir(dir) {
            // It was removed meanwhile.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            result => result.map_err(StoreError::io("read", dir))?,
        };
        for entry in entries {
            let entry = entry.map_err(StoreError::io("read", dir))?;
            each(self, &entry.file_name(), &entry.path());
        }
        Ok(())
    }

    fn stray(&mut self, path: &Path) {
        let problem = "it does not belong into a store";
        self.found(Damage::new(Subject::Stray, path.to_owned(), problem));
    }

    fn mode(&mut self, path: &Path, owner: u32) {
        let Ok(meta) = fs::symlink_metadata(path) else {
            return;
        };
        if !meta.is_file() {
            return;
        }
        let mode = meta.mode() & 0o7777;
        let problem = if mode != MODE {
            format!("its permissions are {mode:04o} instead of {MODE:04o}")
        } else if meta.uid() != owner {
            let found = meta.uid();
            format!("it belongs to user {found}, the store to user {owner}")
        } else {
            return;
        };
        self.found(Damage::new(Subject::Mode, path.to_owned(), problem));
    }
}

/// Whether something is a directory, and not a symbolic link to one, which may lead anywhere.
fn is_real_dir(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir())
}

fn is_hex(name: &OsStr) -> bool {
    let is_digit = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
    name.as_encoded_bytes().iter().all(is_digit)
}
