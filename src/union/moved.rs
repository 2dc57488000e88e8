//! Where moved directories are: from the path of a directory in the lowers to its node, wherever
//! its part in the upper has been renamed to.
//!
//! Needed only to find the other names of a lower file that has several. What was moved before
//! the mount is found by one walk of the upper's directories, the first time.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::Union;
use super::node::Node;
use crate::attr::Kind;
use crate::error::FsResult;
use crate::sync::Mutex;
use crate::sys;

/// Directories that were moved, by the path from the lowers' roots, with a leading slash.
#[derive(Default)]
pub struct MovedDirs {
    by_path: Mutex<HashMap<Vec<u8>, Arc<Node>>>,
    /// Held while the upper is walked; whether it was.
    walked: Mutex<bool>,
}

impl MovedDirs {
    /// Notes that the directory with this lower path is, or is about to be, elsewhere.
    pub fn note(&self, path: &[u8], node: &Arc<Node>) {
        let before = self.by_path.lock().insert(path.to_vec(), Arc::clone(node));
        if !before
            .as_ref()
            .is_some_and(|before| Arc::ptr_eq(before, node))
        {
            node.keep();
            if let Some(before) = before {
                before.release();
            }
        }
    }

    /// Lets go of a directory that was removed.
    pub fn forget(&self, node: &Arc<Node>) {
        // An empty directory is referred to by nobody but us, if at all.
        if !node.is_referred_to() {
            return;
        }
        self.by_path.lock().retain(|_, kept| {
            let gone = Arc::ptr_eq(kept, node);
            if gone {
                kept.release();
            }
            !gone
        });
    }

    fn get(&self, path: &[u8]) -> Option<Arc<Node>> {
        let mut by_path = self.by_path.lock();
        let dead = by_path.get(path).is_some_and(|node| node.state.read().dead);
        if dead && let Some(node) = by_path.remove(path) {
            node.release();
        }
        by_path.get(path).cloned()
    }
}

impl Union {
    /// The directory that has the lower directory at `path` as a part, wherever it is now.
    pub(super) fn dir_of_lower_path(&self, path: &[u8]) -> FsResult<Option<Arc<Node>>> {
        let mut dir = Arc::clone(&self.root);
        let mut above = Vec::new();
        for name in path
            .split(|&byte| byte == b'/')
            .filter(|name| !name.is_empty())
        {
            above.push(b'/');
            above.extend_from_slice(name);
            let here = {
                let _entries = dir.entries.read();
                match self.resolve(&dir, name)? {
                    Some(found)
                        if found.kind == Kind::Dir && self.is_at(&found.lowers, &above)? =>
                    {
                        Some(self.intern(&dir, name, found, false)?)
                    }
                    _ => None,
                }
            };
            dir = match here {
                Some(here) => here,
                None => match self.moved_dir(&above)? {
                    Some(moved) => moved,
                    None => return Ok(None),
                },
            };
        }
        Ok(Some(dir))
    }

    /// Whether one of the parts of a directory is the one with this lower path.
    fn is_at(&self, parts: &super::node::LowerParts, path: &[u8]) -> FsResult<bool> {
        for part in parts {
            if path.strip_prefix(b"/") == Some(self.lowers.path_of(part)?.as_slice()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn moved_dir(&self, path: &[u8]) -> FsResult<Option<Arc<Node>>> {
        let mut walked = self.moved.walked.lock();
        if !*walked {
            self.find_moved()?;
            *walked = true;
        }
        drop(walked);
        Ok(self.moved.get(path))
    }

    /// Walks the upper for directories that are marked as moved.
    fn find_moved(&self) -> FsResult<()> {
        let Some(upper) = &self.upper else {
            return Ok(());
        };
        let mut pending = vec![Arc::clone(&self.root)];
        while let Some(dir) = pending.pop() {
            let fd = self.upper_dir(&dir)?;
            for name in sys::dir::names(&*fd)? {
                let is_dir =
                    sys::find_at(&*fd, &name)?.is_some_and(|attr| attr.kind() == Kind::Dir);
                if !is_dir {
                    continue;
                }
                let child = {
                    let _entries = dir.entries.read();
                    let Some(found) = self.resolve(&dir, &name)? else {
                        continue;
                    };
                    self.intern(&dir, &name, found, false)?
                };
                let redirect = upper.dialect().redirect(self.upper_dir(&child)?.as_fd())?;
                if let Some(path) = redirect.filter(|path| path.first() == Some(&b'/')) {
                    self.moved.note(&path, &child);
                }
                pending.push(child);
            }
        }
        Ok(())
    }
}
