//! Names that go: `unlink` and `rmdir`.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{self as rfs, AtFlags};
use rustix::io::Errno;

use super::Union;
use super::node::Node;
use crate::attr::Kind;
use crate::error::{FsError, FsResult};
use crate::lower::Number;

impl Union {
    /// Removes a name of something that is not a directory.
    ///
    /// # Errors
    /// `ENOENT`, `EISDIR`, `EROFS`.
    pub fn unlink(&self, parent: Number, name: &[u8]) -> FsResult<()> {
        let dir = self.writable_dir(parent, name)?;
        let (mut entries, resolved) = loop {
            let entries = dir.entries.write();
            let resolved = self
                .resolve(&dir, name)?
                .ok_or_else(|| FsError::from(Errno::NOENT))?;
            if resolved.kind == Kind::Dir {
                return Err(Errno::ISDIR.into());
            }
            // A lower file with several names is copied up before one of them goes: after that, link
            // counts are the upper filesystem's.
            if resolved.upper.is_some() || !self.has_links(&resolved)? {
                break (entries, resolved);
            }
            let node = self.intern(&dir, name, resolved, false)?;
            drop(entries);
            self.copy_up(&node)?;
        };
        let in_upper = resolved.upper.is_some();
        let node = self.intern(&dir, name, resolved, false)?;
        let fd = self.upper_dir(&dir)?;
        let upper = self.upper()?;
        if in_upper {
            if node.state.read().names.len() <= 1 {
                self.pin(&node, &fd, name)?;
            }
            if self.lower_has(&dir, name)? {
                upper.swap_for_whiteout(fd.as_fd(), name, false)?;
            } else {
                rfs::unlinkat(&*fd, name, AtFlags::empty())?;
            }
        } else {
            upper.place_whiteout(fd.as_fd(), name)?;
        }
        node.remove_name(&dir, name);
        entries.removed(name);
        drop(entries);
        Ok(())
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `ENOTEMPTY`, `EROFS`.
    pub fn rmdir(&self, parent: Number, name: &[u8]) -> FsResult<()> {
        let dir = self.writable_dir(parent, name)?;
        let victim = {
            let _entries = dir.entries.read();
            self.dir_named(&dir, name)?
        };
        let (mut entries, inner) = super::rename::lock_two(&dir, &victim);
        let resolved = self
            .resolve(&dir, name)?
            .ok_or_else(|| FsError::from(Errno::NOENT))?;
        if self.known_number(&resolved) != victim.number {
            return Err(Errno::BUSY.into());
        }
        if !self.build_listing(&victim)?.is_empty() {
            return Err(Errno::NOTEMPTY.into());
        }
        self.drop_empty_dir(&dir, name, &victim, resolved.upper.is_some())?;
        entries.removed(name);
        drop(inner);
        Ok(())
    }

    /// The node of a directory's name. The caller holds `dir.entries`.
    pub(super) fn dir_named(&self, dir: &Arc<Node>, name: &[u8]) -> FsResult<Arc<Node>> {
        let resolved = self
            .resolve(dir, name)?
            .ok_or_else(|| FsError::from(Errno::NOENT))?;
        if resolved.kind != Kind::Dir {
            return Err(Errno::NOTDIR.into());
        }
        self.intern(dir, name, resolved, false)
    }

    /// Removes a directory in which nothing is visible. The caller holds both `entries`.
    fn drop_empty_dir(
        &self,
        dir: &Arc<Node>,
        name: &[u8],
        victim: &Arc<Node>,
        in_upper: bool,
    ) -> FsResult<()> {
        let fd = self.upper_dir(dir)?;
        let upper = self.upper()?;
        let hides = self.lower_has(dir, name)?;
        if in_upper {
            self.pin(victim, &fd, name)?;
            if hides {
                upper.swap_for_whiteout(fd.as_fd(), name, true)?;
            } else {
                upper.remove_dir(fd.as_fd(), name)?;
            }
        } else {
            upper.place_whiteout(fd.as_fd(), name)?;
        }
        self.bury_dir(dir, name, victim);
        Ok(())
    }

    /// Notes that a directory is gone; it may still be open.
    pub(super) fn bury_dir(&self, dir: &Arc<Node>, name: &[u8], victim: &Arc<Node>) {
        victim.remove_name(dir, name);
        victim.state.write().dead = true;
        self.moved.forget(victim);
        self.fds.remove(&super::FdKey::dir(victim.number));
        dir.subdirs_changed(-1);
    }
}
