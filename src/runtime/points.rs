//! Places to mount at that a root filesystem does not have. The runtime makes them, as empty files and
//! directories, and they must not stay as if the program had made them.
//!
//! The program may have put anything in their place meanwhile: every path is walked within the root.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, openat, openat2,
    statat, unlinkat, utimensat,
};

use crate::sys::{self, SysResult};

/// What is missing, in a root filesystem that is mounted.
pub struct Missing {
    root: OwnedFd,
    /// Parents before what is in them.
    paths: Vec<String>,
    /// The directories that have some in them, with their names and modification times.
    parents: Vec<Parent>,
}

struct Parent {
    path: String,
    names: Vec<Vec<u8>>,
    times: Timestamps,
}

impl Missing {
    /// Looks which of these targets, absolute paths, are not there.
    ///
    /// # Errors
    /// When the root cannot be opened or a directory not be read.
    pub fn look(root: &Path, targets: &[&str]) -> SysResult<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, root, flags, Mode::empty())?;
        let mut missing = Self {
            root,
            paths: Vec::new(),
            parents: Vec::new(),
        };
        for target in targets {
            missing.look_at(target)?;
        }
        Ok(missing)
    }

    fn look_at(&mut self, target: &str) -> SysResult<()> {
        let mut path = String::new();
        for name in target.split('/').filter(|name| !name.is_empty()) {
            let parent = path.clone();
            path.push('/');
            path.push_str(name);
            if self.paths.contains(&path) {
                continue;
            }
            let found = self.open(&path, OFlags::PATH);
            if found.is_ok() {
                continue;
            }
            if !self.paths.contains(&parent) {
                self.remember(parent)?;
            }
            self.paths.push(path.clone());
        }
        Ok(())
    }

    fn remember(&mut self, path: String) -> SysResult<()> {
        if self.parents.iter().any(|known| known.path == path) {
            return Ok(());
        }
        let dir = self.open(&path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let attr = sys::stat_fd(&dir)?;
        let time = |time: crate::attr::Time| Timespec {
            tv_sec: time.sec,
            tv_nsec: i64::from(time.nsec),
        };
        let mut names = sys::dir::names(&dir)?;
        names.sort();
        self.parents.push(Parent {
            path,
            names,
            times: Timestamps {
                last_access: time(attr.atime),
                last_modification: time(attr.mtime),
            },
        });
        Ok(())
    }

    /// Opens a path within the root.
    fn open(&self, path: &str, flags: OFlags) -> SysResult<OwnedFd> {
        let path = if path.is_empty() { "/" } else { path };
        let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        openat2(
            &self.root,
            path,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            within,
        )
    }

    /// Removes what was made for the mounts, if it is as it was made. A directory to which nothing else
    /// happened gets its time back.
    pub fn clear(&self) {
        for path in self.paths.iter().rev() {
            if let Err(errno) = self.clear_one(path) {
                tracing::debug!("{path} stays: {errno}");
            }
        }
        for parent in &self.parents {
            if let Err(errno) = self.reset(parent) {
                tracing::debug!("time of {}: {errno}", parent.path);
            }
        }
    }

    fn clear_one(&self, path: &str) -> SysResult<()> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let dir = self.open(parent, OFlags::PATH | OFlags::DIRECTORY)?;
        let stat = statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => unlinkat(&dir, name, AtFlags::REMOVEDIR),
            FileType::RegularFile if stat.st_size == 0 => unlinkat(&dir, name, AtFlags::empty()),
            _ => Ok(()),
        }
    }

    fn reset(&self, parent: &Parent) -> SysResult<()> {
        let dir = self.open(&parent.path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut names = sys::dir::names(&dir)?;
        names.sort();
        if names == parent.names {
            utimensat(dir.as_fd(), ".", &parent.times, AtFlags::empty())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_was_made_goes_and_the_rest_stays() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("hosts"), "").unwrap();
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        fs::create_dir_all(at("etc")).unwrap();
        let before = fs::metadata(at("etc")).unwrap().modified().unwrap();
        let targets = ["/proc", "/etc/hosts", "/a/b/c", "/kept/x", "/link/hosts"];
        let missing = Missing::look(root.path(), &targets).unwrap();
        for dir in ["proc", "a/b/c", "kept/x"] {
            fs::create_dir_all(at(dir)).unwrap();
        }
        fs::write(at("etc/hosts"), "").unwrap();
        fs::write(at("kept/file"), "by the program").unwrap();
        // An absolute link is one within the root.
        symlink(outside.path(), at("link")).unwrap();
        missing.clear();
        for gone in ["proc", "a", "etc/hosts", "kept/x"] {
            assert!(!at(gone).exists(), "{gone}");
        }
        assert!(at("kept/file").exists());
        assert!(outside.path().join("hosts").exists());
        assert_eq!(fs::metadata(at("etc")).unwrap().modified().unwrap(), before);
    }
}
