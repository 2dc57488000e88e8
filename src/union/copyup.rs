//! Copy-up: giving a lower object a part in the upper before it is changed.
//!
//! The copy is made in the work directory and renamed into place, complete. While data is copied
//! only the node's `copy_up` mutex is held, so nobody who works on other files waits; the name is
//! looked at again before the copy is published, since it may have been renamed or deleted.
//!
//! For what changes no contents (`chmod`, `rename`), a large file's contents stay where they are
//! (`metacopy.rs`).
//!
//! A lower file with several names is copied once, and all names that are still visible become
//! links to the copy, so that hard links survive and link counts are the upper filesystem's own.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{self as rfs, AtFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::descriptors::FdKey;
use super::node::{DirState, Node, NodeName};
use super::{Union, attributes};
use crate::attr::{Attr, Kind, PERMISSIONS};
use crate::crew::stand_in;
use crate::error::{FsError, FsResult};
use crate::lower::{Contents, LowerRef, Number};
use crate::stats::Counter;
use crate::sync::{MutexGuard, RwLockWriteGuard};
use crate::sys;
use crate::upper::Upper;
use crate::upper::build::{NewFd, NewObject};
use crate::upper::mark::Origin;

/// How often a node may be renamed while we copy it before we give up.
const ATTEMPTS: usize = 64;

/// What is to be changed of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Attributes or names.
    Attributes,
    /// The permission bits, which become these.
    Mode(u32),
    /// A file's contents, of which no more than this many first bytes are needed.
    Contents(u64),
}

/// What came of a copy-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copied {
    /// It was done.
    Now,
    /// Somebody else had done it.
    Before,
    /// The object was renamed meanwhile: it must be tried again.
    Moved,
}

impl Union {
    /// Makes sure that a node has a part in the upper. It may be without a file's contents.
    pub(super) fn copy_up(&self, node: &Arc<Node>) -> FsResult<()> {
        if node.has_upper() {
            return Ok(());
        }
        self.copy_up_for(node, Wanted::Attributes).map(drop)
    }

    /// Copies a node up with other permission bits than it has. `false` if that is not needed to change
    /// them.
    pub(super) fn copy_up_changing_mode(&self, node: &Arc<Node>, mode: u32) -> FsResult<bool> {
        Ok(!node.has_upper() && self.copy_up_for(node, Wanted::Mode(mode))?)
    }

    /// Makes sure that a file has its contents in the upper, of which only the first `keep` bytes are
    /// wanted.
    pub(super) fn copy_up_contents(&self, node: &Arc<Node>, keep: u64) -> FsResult<()> {
        if !node.has_upper() {
            self.copy_up_for(node, Wanted::Contents(keep))?;
        }
        if node.lacks_contents() {
            let _copying = lock_copying(node);
            self.complete(node, keep)?;
        }
        Ok(())
    }

    /// Whether it was copied up now, by this call.
    fn copy_up_for(&self, node: &Arc<Node>, wanted: Wanted) -> FsResult<bool> {
        self.upper()?;
        for _ in 0..ATTEMPTS {
            self.with_room(|| self.copy_up_parents(node))?;
            match self.with_room(|| self.copy_up_one(node, wanted))? {
                Copied::Now => return Ok(true),
                Copied::Before => return Ok(false),
                Copied::Moved => {}
            }
        }
        Err(Errno::BUSY.into())
    }

    /// Gives all directories above a node a part in the upper, outermost first.
    fn copy_up_parents(&self, node: &Arc<Node>) -> FsResult<()> {
        let mut chain = Vec::new();
        let mut at = node.any_name();
        while let Some(NodeName { parent, .. }) = at {
            if parent.has_upper() {
                break;
            }
            at = parent.any_name();
            chain.push(parent);
        }
        while let Some(dir) = chain.pop() {
            self.copy_up_one(&dir, Wanted::Attributes)?;
        }
        Ok(())
    }

    /// Copies one node up whose parents are in the upper.
    fn copy_up_one(&self, node: &Arc<Node>, wanted: Wanted) -> FsResult<Copied> {
        let _copying = lock_copying(node);
        let lower = {
            let state = node.state.read();
            if state.upper.is_some() {
                return Ok(Copied::Before);
            }
            state
                .lowers
                .first()
                .cloned()
                .ok_or_else(|| FsError::from(Errno::STALE))?
        };
        let mut attr = self.lowers.attr(&lower)?;
        if let Wanted::Mode(mode) = wanted {
            attr.mode = attr.mode & !PERMISSIONS | mode & PERMISSIONS;
        }
        let several = node.kind != Kind::Dir && attr.nlink > 1;
        if several && !self.prepare_other_names(node, &lower)? {
            return Ok(Copied::Moved);
        }
        let upper = self.upper()?;
        let attributes_alone = self.leaves_contents(upper, &attr, wanted);
        // What takes long is copying contents, and waiting for the disk to have them.
        let _away = (node.kind == Kind::File && !attributes_alone).then(stand_in);
        let keep = match wanted {
            _ if attributes_alone => None,
            Wanted::Attributes | Wanted::Mode(_) => Some(u64::MAX),
            Wanted::Contents(keep) => Some(keep),
        };
        let mut temp = None;
        let built = self.build_copy(upper, &mut temp, node, &lower, &attr, keep);
        let published =
            built.and_then(|built| self.publish_copy(node, temp.as_deref(), built, keep));
        if matches!(published, Ok(Copied::Now)) {
            self.stats.add(Counter::CopyUps, 1);
        } else if let Some(temp) = temp {
            upper.discard(&temp);
        }
        published
    }

    /// Builds the copy of a lower object: of a file's contents the first `keep` bytes, or only their
    /// size. A file has no name yet, if the upper's filesystem can do that; all else is called `temp`
    /// in the work directory.
    fn build_copy(
        &self,
        upper: &Upper,
        temp: &mut Option<Vec<u8>>,
        node: &Node,
        lower: &LowerRef,
        attr: &Attr,
        keep: Option<u64>,
    ) -> FsResult<NewFd> {
        let target = match node.kind {
            Kind::Symlink => self.lowers.readlink(lower)?.into_owned(),
            _ => Vec::new(),
        };
        let shown = self.present(*attr);
        let object = NewObject {
            kind: node.kind,
            mode: attr.mode,
            owner: (shown.uid, Some(shown.gid)),
            rdev: attr.rdev,
            target: &target,
        };
        let NewFd {
            fd,
            attr: built,
            mut mark,
        } = match node.kind {
            Kind::File => upper.build_nameless(upper.work(), &object),
            _ => Err(Errno::OPNOTSUPP),
        }
        .or_else(|errno| match errno {
            Errno::OPNOTSUPP | Errno::ISDIR => {
                upper.build(upper.work(), temp.insert(upper.temp_name()), &object)
            }
            _ => Err(errno),
        })?;
        if node.kind == Kind::File {
            if let Some(keep) = keep {
                self.copy_data(upper, &fd, lower, keep)?;
            } else {
                sys::retry(|| rfs::ftruncate(&fd, attr.size))?;
                upper.dialect().set_metacopy(fd.as_fd())?;
            }
        }
        // An ACL sets the mode, and takes part of it.
        // A write without CAP_FSETID takes set-id bits away.
        let written = node.kind == Kind::File && attr.mode & (libc::S_ISUID | libc::S_ISGID) != 0;
        if self.copy_xattrs(upper, &fd, lower)? || written {
            upper.set_mode(fd.as_fd(), node.kind, attr.mode, &mut mark)?;
        }
        // A directory, and a file with its contents below, are known by what is below.
        if node.kind != Kind::Dir && keep.is_some() {
            mark.origin = Some(self.origin(node));
            match upper.dialect().write_node(fd.as_fd(), &mark) {
                // Users' marks are not possible on such objects: their number lasts for this mount.
                Err(Errno::PERM | Errno::OPNOTSUPP) if node.kind != Kind::File => {}
                result => result?,
            }
        }
        let times = Timestamps {
            last_access: Timespec::from(attr.atime),
            last_modification: Timespec::from(attr.mtime),
        };
        sys::set_times(fd.as_fd(), &times)?;
        Ok(NewFd {
            fd,
            attr: built,
            mark,
        })
    }

    /// What keeps a node's number when nothing below tells it any more.
    pub(super) fn origin(&self, node: &Node) -> Origin {
        Origin {
            tag: self.tag.clone(),
            number: node.number,
        }
    }

    fn copy_data(&self, upper: &Upper, to: &OwnedFd, lower: &LowerRef, keep: u64) -> FsResult<()> {
        let copied = match self.lowers.contents(lower)? {
            Contents::Inline(bytes) => {
                let keep = usize::try_from(keep).unwrap_or(usize::MAX).min(bytes.len());
                sys::copy::write_all_at(to, bytes.get(..keep).unwrap_or_default(), 0)?;
                keep as u64
            }
            Contents::File(from, size) => {
                sys::copy::copy_contents(&*from, to, size.min(keep), !upper.is_volatile())?;
                size.min(keep)
            }
        };
        self.stats.add(Counter::CopyUpBytes, copied);
        // Without this a power cut could leave the name with no data, though nothing was written
        // to the file.
        if !upper.is_volatile() && keep > 0 {
            rfs::fdatasync(to)?;
        }
        Ok(())
    }

    /// Copies extended attributes; whether they set the mode.
    fn copy_xattrs(&self, upper: &Upper, to: &OwnedFd, lower: &LowerRef) -> FsResult<bool> {
        let mut xattrs = Vec::new();
        let mut sets_mode = false;
        for name in self.lowers.xattr_names(lower)? {
            sets_mode |= name == super::xattr::ACCESS_ACL;
            if let Some(value) = self.lowers.xattr(lower, &name)? {
                xattrs.push((upper.dialect().stored_name(&name), value.into_owned()));
            }
        }
        attributes::set_xattrs(to.as_fd(), &xattrs)?;
        Ok(sets_mode)
    }

    /// Gives a finished copy its place, if the node's names are those whose parents were copied up.
    fn publish_copy(
        &self,
        node: &Arc<Node>,
        temp: Option<&[u8]>,
        built: NewFd,
        keep: Option<u64>,
    ) -> FsResult<Copied> {
        let upper = self.upper()?;
        let NewFd { fd, attr, mark } = built;
        let fd = Arc::new(fd);
        let names = node.state.read().names.clone();
        let parents = distinct_parents(&names);
        let guards: Vec<RwLockWriteGuard<'_, DirState>> = parents
            .iter()
            .map(|parent| parent.entries.write())
            .collect();
        let mut state = node.state.write();
        if !same_names(&state.names, &names) {
            return Ok(Copied::Moved);
        }
        if names.is_empty() {
            // Deleted while it was copied: the copy has no name either.
            match (temp, node.kind) {
                (None, _) => {}
                (Some(temp), Kind::Dir) => {
                    rfs::unlinkat(upper.work(), temp, AtFlags::REMOVEDIR)?;
                }
                (Some(temp), _) => rfs::unlinkat(upper.work(), temp, AtFlags::empty())?,
            }
            state.pinned = Some(fd);
        } else {
            drop(state);
            self.place_copy(temp, &fd, &names)?;
            if node.kind == Kind::File {
                self.fds.insert(FdKey::file(node.number), &fd);
            }
            state = node.state.write();
        }
        state.upper = Some(attr.ino);
        state.mark = mark;
        if node.kind != Kind::Dir && keep.is_some() {
            state.lowers.clear();
        }
        drop(state);
        drop(guards);
        Ok(Copied::Now)
    }

    /// Gives a finished copy all its names; all or none.
    fn place_copy(&self, temp: Option<&[u8]>, fd: &OwnedFd, names: &[NodeName]) -> FsResult<()> {
        let upper = self.upper()?;
        let mut linked: Vec<(Arc<OwnedFd>, &[u8])> = Vec::new();
        let placed = (|| {
            // The one with a temporary name gets its first by a rename.
            for NodeName { parent, name } in names.iter().skip(usize::from(temp.is_some())) {
                let dir = self.upper_dir(parent)?;
                keeping_mtime(&dir, || sys::link_fd(fd.as_fd(), dir.as_fd(), name))?;
                linked.push((dir, name));
            }
            let (Some(NodeName { parent, name }), Some(temp)) = (names.first(), temp) else {
                return Ok(());
            };
            let dir = self.upper_dir(parent)?;
            keeping_mtime(&dir, || upper.publish(temp, dir.as_fd(), name))
        })();
        if placed.is_err() {
            for (dir, name) in linked {
                if let Err(errno) = rfs::unlinkat(&*dir, name, AtFlags::empty()) {
                    tracing::warn!("cannot take back a link made for a copy-up: {errno}");
                }
            }
        }
        placed
    }

    /// Finds all visible names of a lower file that has several, and gives their directories a
    /// part in the upper. `false` if the node was renamed meanwhile.
    fn prepare_other_names(&self, node: &Arc<Node>, lower: &LowerRef) -> FsResult<bool> {
        if node.state.read().names.is_empty() {
            return Ok(true);
        }
        for path in self.lowers.names_of(lower)? {
            let Some((parent, name)) = self.visible_parent(&path, node.number)? else {
                continue;
            };
            node.add_name(&parent, &name);
        }
        let names = node.state.read().names.clone();
        for NodeName { parent, .. } in &names {
            if !parent.has_upper() {
                self.copy_up_parent_chain(parent)?;
            }
        }
        Ok(same_names(&node.state.read().names, &names))
    }

    fn copy_up_parent_chain(&self, dir: &Arc<Node>) -> FsResult<()> {
        self.copy_up_parents(dir)?;
        self.copy_up_one(dir, Wanted::Attributes).map(|_| ())
    }

    /// The directory of a lower path as it is now in the union, and the name in it, if that still
    /// means the object with this number.
    fn visible_parent(
        &self,
        path: &[u8],
        number: Number,
    ) -> FsResult<Option<(Arc<Node>, Vec<u8>)>> {
        let (dir, name) = match path.iter().rposition(|&byte| byte == b'/') {
            Some(at) => path.split_at(at + 1),
            None => (&b""[..], path),
        };
        let Some(dir) = self.dir_of_lower_path(dir)? else {
            return Ok(None);
        };
        let found = {
            let _entries = dir.entries.read();
            self.resolve(&dir, name)?
        };
        let same = found.is_some_and(|found| self.number_of(&found) == number);
        Ok(same.then(|| (dir, name.to_vec())))
    }
}

/// Held by who copies a node up, or gives it its contents.
fn lock_copying(node: &Node) -> MutexGuard<'_, ()> {
    if let Some(guard) = node.copy_up.try_lock() {
        return guard;
    }
    let _away = stand_in();
    node.copy_up.lock()
}

/// The parents of some names in the order in which their locks are taken, each once.
fn distinct_parents(names: &[NodeName]) -> Vec<Arc<Node>> {
    let mut parents: Vec<_> = names.iter().map(|name| Arc::clone(&name.parent)).collect();
    parents.sort_by_key(|parent| parent.number);
    parents.dedup_by_key(|parent| parent.number);
    parents
}

fn same_names(a: &[NodeName], b: &[NodeName]) -> bool {
    a.len() == b.len()
        && a.iter()
            .zip(b)
            .all(|(a, b)| Arc::ptr_eq(&a.parent, &b.parent) && a.name == b.name)
}

/// Changes the entries of a directory without users seeing it: a copy-up is no change to them.
fn keeping_mtime(dir: &OwnedFd, change: impl FnOnce() -> sys::SysResult<()>) -> FsResult<()> {
    let before = sys::stat_fd(dir)?;
    change()?;
    let times = Timestamps {
        last_access: before.atime.into(),
        last_modification: before.mtime.into(),
    };
    Ok(sys::set_times(dir.as_fd(), &times)?)
}
