//! Attributes: what `stat` shows, and `chmod`, `chown`, `truncate` and `utimensat`.

use std::borrow::Cow;
use std::os::fd::AsFd;
use std::sync::Arc;

use lamina_layers::index::Data;
use rustix::fs::{self as rfs, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, XattrFlags};
use rustix::io::Errno;

use super::node::Node;
use super::{Caller, Target, Union};
use crate::attr::{Attr, Kind, PERMISSIONS, Time};
use crate::error::{FsError, FsResult};
use crate::lower::{LowerObject, LowerRef, Number};
use crate::sys;

/// A time to set.
#[derive(Clone, Copy, Debug)]
pub enum SetTime {
    /// The time of the change.
    Now,
    /// This time.
    At(Time),
}

/// Attributes to change; `None` leaves one as it is. With all `None` it takes set-id bits away:
/// so the kernel sends `chown(-1, -1)`, and what comes before a write that does it.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of the contents.
    pub mtime: Option<SetTime>,
    /// With a size: the file loses set-id bits and capabilities, as when someone without
    /// `CAP_FSETID` sets it.
    pub drops_privileges: bool,
    /// Who changes them.
    pub caller: Caller,
}

impl SetAttr {
    fn is_nothing(&self) -> bool {
        let times = self.atime.is_some() || self.mtime.is_some();
        !(self.names_owner() || times || self.mode.is_some() || self.size.is_some())
    }

    fn names_owner(&self) -> bool {
        self.uid.is_some() || self.gid.is_some()
    }
}

/// The mode that a file is left with by one who may not keep set-id bits.
fn mode_without_privileges(attr: &Attr, caller: Caller) -> u32 {
    let mut mode = attr.mode & !SUID;
    if mode & SGID != 0 && (mode & GROUP_EXECUTE != 0 || !caller.is_in_group(attr.gid)) {
        mode &= !SGID;
    }
    mode
}

const SUID: u32 = libc::S_ISUID;
const SGID: u32 = libc::S_ISGID;
const GROUP_EXECUTE: u32 = libc::S_IXGRP;
/// The attribute that holds file capabilities.
pub(super) const CAPABILITY: &[u8] = b"security.capability";

impl Union {
    /// Attributes of a node.
    pub fn getattr(&self, number: Number) -> FsResult<Attr> {
        match self.target(number)? {
            Target::Image(ino) => self.image_attr(ino),
            Target::Node(node) => self.node_attr(&node),
        }
    }

    /// Attributes of a node as `statx(2)` shows them: with the time of birth if it is in the upper. A
    /// lower's would change with the copy-up, which makes the file anew.
    pub fn statx(&self, number: Number) -> FsResult<Attr> {
        let Target::Node(node) = self.target(number)? else {
            return self.getattr(number);
        };
        let had_upper = node.has_upper();
        let attr = self.node_attr(&node)?;
        Ok(Attr {
            birth: attr.birth.filter(|_| had_upper),
            ..attr
        })
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// `EINVAL` for anything else.
    pub fn readlink(&self, number: Number) -> FsResult<Cow<'_, [u8]>> {
        let lower = match self.target(number)? {
            Target::Image(ino) => self.image_ref(ino)?,
            Target::Node(node) => {
                if node.kind != Kind::Symlink {
                    return Err(Errno::INVAL.into());
                }
                if node.has_upper() {
                    let target = rfs::readlinkat(&*self.upper_handle(&node)?, "", Vec::new())?;
                    return Ok(Cow::Owned(target.into_bytes()));
                }
                let lower = node.state.read().lowers.first().cloned();
                lower.ok_or_else(|| FsError::from(Errno::STALE))?
            }
        };
        self.lowers.readlink(&lower)
    }

    pub(super) fn node_attr(&self, node: &Arc<Node>) -> FsResult<Attr> {
        let (mark, lower) = {
            let state = node.state.read();
            match state.upper {
                Some(_) => (Some(state.mark.clone()), None),
                None => (None, state.lowers.first().cloned()),
            }
        };
        match (mark, lower) {
            (Some(mark), _) => {
                let attr = mark.apply(self.upper_stat(node)?);
                self.finish_attr(node, attr)
            }
            (None, Some(lower)) => {
                let attr = self.present(self.lowers.attr(&lower)?);
                self.finish_attr(node, attr)
            }
            (None, None) => Err(Errno::STALE.into()),
        }
    }

    /// What users see of the attributes one part of a node has.
    pub(super) fn finish_attr(&self, node: &Arc<Node>, attr: Attr) -> FsResult<Attr> {
        let mut attr = attr;
        attr.ino = node.number.0;
        let (merged, deleted) = {
            let state = node.state.read();
            if node.kind == Kind::File
                && let Some(lower) = state.contents_below()
            {
                attr.blocks = self.lowers.attr(lower)?.blocks;
            }
            let nameless = state.names.is_empty() && node.number != Number::ROOT;
            (
                state.is_merged(),
                nameless && (state.upper.is_none() || state.dead),
            )
        };
        if deleted {
            attr.nlink = 0;
        } else if node.kind == Kind::Dir && merged {
            attr.nlink = 2 + node.subdirs(|| self.count_subdirs(node))?;
        }
        Ok(attr)
    }

    /// Counts the visible subdirectories of a merged directory.
    fn count_subdirs(&self, node: &Arc<Node>) -> FsResult<u32> {
        let (lowers, has_upper) = {
            let state = node.state.read();
            (state.lowers.clone(), state.upper.is_some())
        };
        let (
            Some(image),
            [
                LowerRef {
                    object: LowerObject::Image(ino),
                    ..
                },
            ],
            true,
        ) = (self.lowers.image(), lowers.as_slice(), has_upper)
        else {
            return Ok(self.build_listing(node)?.subdirs());
        };
        // The index knows the number below; what the upper has changes it.
        let below = match image.1.index().inode(*ino).map(|inode| inode.data()) {
            Some(Data::Directory { subdirs, .. }) => subdirs,
            _ => 0,
        };
        let mut count = i64::from(below);
        let dir = self.upper_dir(node)?;
        sys::dir::for_each_entry(&*dir, |entry| -> FsResult<()> {
            let hides = image.1.index().lookup(*ino, entry.name);
            let hides_dir = hides.is_some_and(|hidden| hidden.file_type == libc::DT_DIR);
            let kind = match entry.kind {
                Some(kind) => Some(kind),
                None => sys::find_at(&*dir, entry.name)?.map(|attr| attr.kind()),
            };
            count += i64::from(kind == Some(Kind::Dir)) - i64::from(hides_dir);
            Ok(())
        })?;
        Ok(u32::try_from(count).unwrap_or(0))
    }

    /// Gives the root of a new upper the attributes of the lowers' root.
    pub fn copy_root_attributes(&self) -> FsResult<()> {
        let upper = self.upper()?;
        let lower = self.root.state.read().lowers.first().cloned();
        let Some(lower) = lower else { return Ok(()) };
        let attr = self.present(self.lowers.attr(&lower)?);
        match sys::chown(upper.root(), Some(attr.uid), Some(attr.gid)) {
            Err(Errno::PERM) if !upper.is_privileged() => {}
            result => result?,
        }
        sys::chmod(upper.root(), attr.mode)?;
        let mut xattrs = Vec::new();
        for name in self.lowers.xattr_names(&lower)? {
            if let Some(value) = self.lowers.xattr(&lower, &name)? {
                xattrs.push((upper.dialect().stored_name(&name), value.into_owned()));
            }
        }
        set_xattrs(upper.root(), &xattrs)?;
        let times = Timestamps {
            last_access: attr.atime.into(),
            last_modification: attr.mtime.into(),
        };
        Ok(sys::set_times(upper.root(), &times)?)
    }

    /// Changes attributes; returns those the node has then.
    ///
    /// # Errors
    /// `EROFS`, `ENOSPC` from a copy-up, and what the upper's filesystem says.
    pub fn setattr(&self, number: Number, set: &SetAttr) -> FsResult<Attr> {
        self.upper()?;
        let node = self.touch(number)?;
        if set.is_nothing() {
            // chown(-1, -1) may not change the mode for a stranger, and root's write takes only
            // capabilities away, for which the kernel sends the same once they are gone.
            let attr = self.node_attr(&node)?;
            let owner = set.caller.uid != 0 && set.caller.uid == attr.uid;
            let changes_mode = mode_without_privileges(&attr, set.caller) != attr.mode;
            if !owner && changes_mode && node.kind != Kind::Dir {
                return Ok(attr);
            }
        }
        let mut mode = set.mode;
        match (set.size, mode) {
            // Data that is about to be cut off need not be copied.
            (Some(size), _) if node.kind == Kind::File => self.copy_up_contents(&node, size)?,
            // A change of owner, which takes bits away, comes before.
            (_, Some(new)) if !set.names_owner() => {
                if self.copy_up_changing_mode(&node, new)? {
                    mode = None;
                }
            }
            _ => self.copy_up(&node)?,
        }
        if let Some(size) = set.size {
            let file = self.upper_file(&node)?;
            sys::retry(|| rfs::ftruncate(&*file, size))?;
            if set.drops_privileges {
                self.drop_privileges(&node, set.caller)?;
            }
        }
        *node.inherit.lock() = None;
        if set.mode.is_some() {
            node.set_unprivileged(false);
        }
        let handle = self.upper_handle(&node)?;
        if set.names_owner() || set.is_nothing() {
            self.change_owner(&node, handle.as_fd(), set)?;
        }
        if set.is_nothing() && node.kind != Kind::Dir {
            self.drop_privileges(&node, set.caller)?;
        }
        if let Some(mode) = mode {
            self.change_mode(&node, handle.as_fd(), mode)?;
        }
        if set.atime.is_some() || set.mtime.is_some() {
            let times = Timestamps {
                last_access: timespec(set.atime),
                last_modification: timespec(set.mtime),
            };
            sys::set_times(handle.as_fd(), &times)?;
        }
        self.node_attr(&node)
    }

    /// Changes the permission bits.
    pub(super) fn change_mode(
        &self,
        node: &Node,
        fd: std::os::fd::BorrowedFd<'_>,
        mode: u32,
    ) -> FsResult<()> {
        let mut mark = node.state.read().mark.clone();
        self.upper()?.set_mode(fd, node.kind, mode, &mut mark)?;
        node.state.write().mark = mark;
        Ok(())
    }

    /// After an ACL was set, which also sets the mode.
    pub(super) fn mode_was_set(
        &self,
        node: &Node,
        fd: std::os::fd::BorrowedFd<'_>,
    ) -> FsResult<()> {
        let mode = sys::stat_fd(fd)?.mode;
        self.change_mode(node, fd, mode)
    }

    /// Whether a regular file has set-id bits that a write can take away.
    pub fn has_set_id(&self, number: Number) -> FsResult<bool> {
        Ok(self.getattr(number)?.mode & (SUID | SGID) != 0)
    }

    /// Changes the owner, or where this process may not, notes it in a mark.
    fn change_owner(
        &self,
        node: &Arc<Node>,
        fd: std::os::fd::BorrowedFd<'_>,
        set: &SetAttr,
    ) -> FsResult<()> {
        let (uid, gid) = (set.uid, set.gid);
        let upper = self.upper()?;
        let marked = node.state.read().mark.owner.is_some();
        if !marked && !upper.can_have_stat(node.kind) {
            match sys::chown(fd, uid, gid) {
                Err(Errno::PERM | Errno::INVAL) if !upper.is_privileged() => {}
                result => return Ok(result?),
            }
        }
        let attr = node.state.read().mark.apply(sys::stat_fd(fd)?);
        let mut mark = node.state.read().mark.clone();
        mark.owner = Some((uid.unwrap_or(attr.uid), gid.unwrap_or(attr.gid)));
        if upper.can_have_stat(node.kind) {
            mark.mode.get_or_insert(attr.mode & PERMISSIONS);
        }
        upper.dialect().write_node(fd, &mark)?;
        node.state.write().mark = mark;
        if node.kind == Kind::File {
            self.drop_privileges(node, set.caller)?;
        }
        Ok(())
    }

    /// Takes set-user-id, set-group-id and file capabilities from a file, as a native filesystem
    /// does when someone without `CAP_FSETID` writes to it.
    pub(super) fn drop_privileges(&self, node: &Arc<Node>, caller: Caller) -> FsResult<()> {
        if node.is_unprivileged() {
            return Ok(());
        }
        let handle = self.upper_handle(node)?;
        let attr = node.state.read().mark.apply(sys::stat_fd(&*handle)?);
        let kept = mode_without_privileges(&attr, caller);
        if kept != attr.mode {
            self.change_mode(node, handle.as_fd(), kept)?;
        }
        let capability = self.upper()?.dialect().capability();
        match sys::remove_xattr(handle.as_fd(), capability) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => {
                // Who is in the group leaves a bit that another takes away.
                node.set_unprivileged(kept & SGID == 0);
                Ok(())
            }
            Err(errno) => Err(FsError::from(errno)),
        }
    }
}

fn timespec(time: Option<SetTime>) -> Timespec {
    match time {
        None => Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        Some(SetTime::Now) => Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        },
        Some(SetTime::At(time)) => time.into(),
    }
}

/// Sets all of an object's extended attributes that its filesystem can hold.
pub(super) fn set_xattrs(
    fd: std::os::fd::BorrowedFd<'_>,
    xattrs: &[(Vec<u8>, Vec<u8>)],
) -> FsResult<()> {
    for (name, value) in xattrs {
        match sys::set_xattr(fd, name, value, XattrFlags::empty()) {
            // As overlayfs has it: what the upper cannot hold or we may not set is left behind,
            // but never for want of space.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
