//! Descriptors of upper objects.
//!
//! An upper object is reached by one of its names, from the descriptor of its parent directory;
//! the inode number is compared, so that a rename in between is noticed and the next name tried.
//! So no path is ever too long, and the daemon need not hold what the kernel holds.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::Union;
use super::node::{Node, NodeName};
use crate::attr::{Attr, Kind};
use crate::error::{FsError, FsResult};
use crate::lower::Number;
use crate::sys;

/// What a cached descriptor is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FdKey {
    number: Number,
    dir: bool,
}

impl FdKey {
    /// The upper part of a directory, open for reading.
    pub fn dir(number: Number) -> Self {
        Self { number, dir: true }
    }

    /// The upper part of a regular file, open for reading and writing.
    pub fn file(number: Number) -> Self {
        Self { number, dir: false }
    }
}

/// How often a name may turn out to have moved before we give up.
const ATTEMPTS: usize = 64;

/// One of the names of a node, another at every attempt, and its upper inode number.
fn name_and_inode(node: &Node, attempt: usize) -> FsResult<(NodeName, u64)> {
    let state = node.state.read();
    let name = state.names.get(attempt % state.names.len().max(1)).cloned();
    match (name, state.upper) {
        (Some(name), Some(upper)) => Ok((name, upper)),
        _ => Err(Errno::STALE.into()),
    }
}

/// Lets a rename that is under way finish.
fn pause(attempt: usize) {
    if attempt > 4 {
        std::thread::sleep(std::time::Duration::from_micros(
            100 << (attempt / 8).min(6),
        ));
    }
}

impl Union {
    /// The upper part of a directory.
    pub(super) fn upper_dir(&self, node: &Arc<Node>) -> FsResult<Arc<OwnedFd>> {
        // Climb to the nearest directory that is open, then open downwards.
        let mut chain = vec![Arc::clone(node)];
        let mut fd = loop {
            let Some(top) = chain.last() else {
                return Err(Errno::STALE.into());
            };
            if top.number == Number::ROOT {
                chain.pop();
                break self.upper_root()?;
            }
            if let Some(fd) = self.fds.get(&FdKey::dir(top.number)) {
                chain.pop();
                break fd;
            }
            let state = top.state.read();
            if let Some(pinned) = &state.pinned {
                let fd = Arc::clone(pinned);
                drop(state);
                chain.pop();
                break fd;
            }
            let parent = state.names.first().map(|name| Arc::clone(&name.parent));
            drop(state);
            chain.push(parent.ok_or_else(|| FsError::from(Errno::NOENT))?);
        };
        while let Some(node) = chain.pop() {
            fd = self.open_child_dir(&fd, &node)?;
        }
        Ok(fd)
    }

    fn open_child_dir(&self, parent: &Arc<OwnedFd>, node: &Arc<Node>) -> FsResult<Arc<OwnedFd>> {
        let mut parent = Arc::clone(parent);
        for attempt in 0..ATTEMPTS {
            let (name, upper) = name_and_inode(node, attempt)?;
            if attempt > 0 {
                parent = self.upper_dir(&name.parent)?;
            }
            match sys::open_dir_at(&*parent, &name.name) {
                Ok(fd) if sys::stat_fd(&fd)?.ino == upper => {
                    let fd = Arc::new(fd);
                    self.fds.insert(FdKey::dir(node.number), &fd);
                    return Ok(fd);
                }
                Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => pause(attempt),
                Err(Errno::ACCESS) => {
                    let fd = sys::open_at(&*parent, &name.name, sys::O_PATH)?;
                    if sys::stat_fd(&fd)?.ino == upper {
                        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
                        let fd = Arc::new(self.open_as_owner(&fd, Kind::Dir, flags)?);
                        self.fds.insert(FdKey::dir(node.number), &fd);
                        return Ok(fd);
                    }
                    pause(attempt);
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        Err(Errno::STALE.into())
    }

    /// Calls `act` with a directory and a name under which the node's upper part is, until one
    /// attempt is not disturbed by a rename. `act` says `None` when what it found is another
    /// object.
    fn by_name<T>(
        &self,
        node: &Arc<Node>,
        mut act: impl FnMut(&OwnedFd, &[u8], u64) -> FsResult<Option<T>>,
    ) -> FsResult<T> {
        for attempt in 0..ATTEMPTS {
            let (NodeName { parent, name }, upper) = name_and_inode(node, attempt)?;
            let dir = match self.upper_dir(&parent) {
                Ok(dir) => dir,
                Err(error) if error.errno() == Errno::NOENT => {
                    pause(attempt);
                    continue;
                }
                Err(error) => return Err(error),
            };
            match act(&dir, &name, upper) {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => pause(attempt),
                Err(error) if matches!(error.errno(), Errno::NOENT | Errno::LOOP) => pause(attempt),
                Err(error) => return Err(error),
            }
        }
        Err(Errno::STALE.into())
    }

    /// Attributes of the node's upper part, as the upper's filesystem has them.
    pub(super) fn upper_stat(&self, node: &Arc<Node>) -> FsResult<Attr> {
        if let Some(pinned) = self.pinned(node) {
            return Ok(sys::stat_fd(&*pinned)?);
        }
        if node.kind == Kind::Dir {
            return Ok(sys::stat_fd(&*self.upper_dir(node)?)?);
        }
        if let Some(fd) = self.fds.get(&FdKey::file(node.number)) {
            return Ok(sys::stat_fd(&*fd)?);
        }
        self.by_name(node, |dir, name, upper| {
            let attr = sys::stat_at(dir, name)?;
            Ok((attr.ino == upper).then_some(attr))
        })
    }

    /// A descriptor of the node's upper part, fit for changing its attributes: `O_PATH`, or one
    /// that was open already.
    pub(super) fn upper_handle(&self, node: &Arc<Node>) -> FsResult<Arc<OwnedFd>> {
        if let Some(pinned) = self.pinned(node) {
            return Ok(pinned);
        }
        if node.kind == Kind::Dir {
            return self.upper_dir(node);
        }
        if let Some(fd) = self.fds.get(&FdKey::file(node.number)) {
            return Ok(fd);
        }
        self.by_name(node, |dir, name, upper| {
            let fd = sys::open_at(dir, name, sys::O_PATH)?;
            Ok((sys::stat_fd(&fd)?.ino == upper).then(|| Arc::new(fd)))
        })
    }

    /// The node's upper part open for reading and writing; a regular file.
    pub(super) fn upper_file(&self, node: &Arc<Node>) -> FsResult<Arc<OwnedFd>> {
        self.fds
            .get_or_open(FdKey::file(node.number), || -> FsResult<OwnedFd> {
                let flags = OFlags::RDWR | OFlags::NONBLOCK;
                if let Some(pinned) = self.pinned(node) {
                    return self.open_as_owner(&pinned, Kind::File, flags);
                }
                self.by_name(node, |dir, name, upper| {
                    let fd = match sys::open_at(dir, name, flags) {
                        Err(Errno::ACCESS | Errno::PERM) => {
                            let fd = sys::open_at(dir, name, sys::O_PATH)?;
                            self.open_as_owner(&fd, Kind::File, flags)?
                        }
                        result => result?,
                    };
                    Ok((sys::stat_fd(&fd)?.ino == upper).then_some(fd))
                })
            })
    }

    /// As [`Union::upper_file`], but one that cannot be written to will do: the upper's filesystem
    /// may have become read-only, or the file be immutable.
    pub(super) fn upper_file_to_read(&self, node: &Arc<Node>) -> FsResult<Arc<OwnedFd>> {
        match self.upper_file(node) {
            Err(error) if matches!(error.errno(), Errno::ROFS | Errno::PERM | Errno::TXTBSY) => {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK;
                let handle = self.upper_handle(node)?;
                Ok(Arc::new(sys::reopen(handle.as_fd(), flags)?))
            }
            result => result,
        }
    }

    fn pinned(&self, node: &Arc<Node>) -> Option<Arc<OwnedFd>> {
        node.state.read().pinned.clone()
    }

    /// Makes sure that the upper part stays reachable when `name` in `dir`, its last known name,
    /// goes.
    pub(super) fn pin(&self, node: &Arc<Node>, dir: &OwnedFd, name: &[u8]) -> FsResult<()> {
        let key = if node.kind == Kind::Dir {
            FdKey::dir(node.number)
        } else {
            FdKey::file(node.number)
        };
        let fd = match self.fds.get(&key) {
            Some(fd) => fd,
            None if node.kind == Kind::Dir => Arc::new(sys::open_dir_at(dir, name)?),
            None => Arc::new(sys::open_at(dir, name, sys::O_PATH)?),
        };
        node.state.write().pinned = Some(fd);
        self.freed.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Opens an object whose mode forbids it to its owner, as root may: the mode is widened for
    /// a moment.
    fn open_as_owner(&self, fd: &OwnedFd, kind: Kind, flags: OFlags) -> FsResult<OwnedFd> {
        match sys::reopen(fd.as_fd(), flags) {
            Err(Errno::ACCESS | Errno::PERM) => {}
            result => return Ok(result?),
        }
        let open = || sys::reopen(fd.as_fd(), flags);
        Ok(self.upper()?.with_access(fd.as_fd(), kind, open)?)
    }
}
