//! New names: files, directories, symbolic links, devices and hard links.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{self as rfs, AtFlags, XattrFlags};
use rustix::io::Errno;

use super::descriptors::FdKey;
use super::node::{Inherit, Node, State};
use super::resolve::{NAME_MAX, UpperName};
use super::{Caller, Union};
use crate::attr::{Attr, Kind};
use crate::error::FsResult;
use crate::lower::Number;
use crate::sys;
use crate::upper::build::{NewFd, NewObject};

/// Something to be created under a new name.
#[derive(Clone, Copy, Debug)]
pub struct NewNode<'a> {
    /// What it is.
    pub kind: Kind,
    /// Permission bits before the umask.
    pub mode: u32,
    /// The caller's umask.
    pub umask: u32,
    /// Device number in the encoding of `makedev(3)`, for devices.
    pub rdev: u64,
    /// Target, for a symbolic link.
    pub target: &'a [u8],
}

const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

/// What stands where a new name is to be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nothing at all.
    Free,
    /// A whiteout in the upper, over nothing or over something in the lowers.
    Whiteout { over_lower: bool },
}

impl Inherit {
    /// What is asked for, as it becomes in a directory that passes this on.
    fn apply<'a>(self, new: &NewNode<'a>, caller: Caller) -> NewObject<'a> {
        let passes_on = self.gid.is_some() && new.kind == Kind::Dir;
        let passed_on = if passes_on { libc::S_ISGID } else { 0 };
        NewObject {
            kind: new.kind,
            mode: passed_on
                | if self.acl {
                    new.mode
                } else {
                    new.mode & !new.umask
                },
            owner: (caller.uid, Some(self.gid.unwrap_or(caller.gid))),
            rdev: new.rdev,
            target: new.target,
        }
    }
}

impl Union {
    /// Creates an object; the kernel now knows it.
    ///
    /// # Errors
    /// `EEXIST`, `ENAMETOOLONG`, `ENOENT` in a removed directory, `EROFS`, `ENOSPC`.
    pub fn create(
        &self,
        parent: Number,
        name: &[u8],
        new: &NewNode<'_>,
        caller: Caller,
    ) -> FsResult<Attr> {
        let dir = self.writable_dir(parent, name)?;
        let mut entries = dir.entries.write();
        let made = self.make(&dir, name, new, caller)?;
        entries.changed();
        if new.kind == Kind::Dir {
            dir.subdirs_changed(1);
        }
        drop(entries);
        Ok(self.adopt(Some((&dir, name)), new.kind, made))
    }

    /// Makes an object in a directory whose entries are locked.
    pub(super) fn make(
        &self,
        dir: &Arc<Node>,
        name: &[u8],
        new: &NewNode<'_>,
        caller: Caller,
    ) -> FsResult<NewFd> {
        if self.upper()?.is_hidden(name) {
            return Err(Errno::INVAL.into());
        }
        let place = self.place_for(dir, name)?;
        let fd = self.upper_dir(dir)?;
        let inherit = self.inherit(dir, &fd)?;
        let object = inherit.apply(new, caller);
        match place {
            Place::Free => match self.upper()?.build(fd.as_fd(), name, &object) {
                // A whiteout with nothing below it, which nobody looked for.
                Err(Errno::EXIST) => {
                    let place = self.place_over(dir, name)?;
                    self.build_over(&fd, name, &object, inherit, place)
                }
                result => Ok(result?),
            },
            Place::Whiteout { .. } => self.build_over(&fd, name, &object, inherit, place),
        }
    }

    /// Makes a regular file without a name, in the filesystem and with the inheritance of a directory
    /// (`O_TMPFILE`). [`Union::link`] can give it one.
    ///
    /// # Errors
    /// `ENOENT` in a removed directory, `EOPNOTSUPP`, `EROFS`, `ENOSPC`.
    pub fn create_nameless(
        &self,
        parent: Number,
        new: &NewNode<'_>,
        caller: Caller,
    ) -> FsResult<Attr> {
        let dir = self.writable_dir(parent, b"")?;
        let fd = self.upper_dir(&dir)?;
        let object = self.inherit(&dir, &fd)?.apply(new, caller);
        let made = self.upper()?.build_nameless(fd.as_fd(), &object)?;
        Ok(self.adopt(None, Kind::File, made))
    }

    /// A directory that is to get a new name, in the upper.
    pub(super) fn writable_dir(&self, parent: Number, name: &[u8]) -> FsResult<Arc<Node>> {
        if name.len() > NAME_MAX {
            return Err(Errno::NAMETOOLONG.into());
        }
        self.upper()?;
        let dir = self.touch_dir(parent)?;
        self.copy_up(&dir)?;
        if dir.state.read().dead {
            return Err(Errno::NOENT.into());
        }
        Ok(dir)
    }

    /// What a new name would replace; `EEXIST` if it exists. A name that only the upper can have
    /// is not looked for: making it will tell.
    fn place_for(&self, dir: &Arc<Node>, name: &[u8]) -> FsResult<Place> {
        if self.lower_has(dir, name)? {
            self.place_over(dir, name)
        } else {
            Ok(Place::Free)
        }
    }

    fn place_over(&self, dir: &Arc<Node>, name: &[u8]) -> FsResult<Place> {
        match self.upper_name(dir, name)? {
            UpperName::Whiteout => Ok(Place::Whiteout {
                over_lower: self.lower_has(dir, name)?,
            }),
            UpperName::Free if !self.lower_has(dir, name)? => Ok(Place::Free),
            UpperName::Free | UpperName::Taken => Err(Errno::EXIST.into()),
        }
    }

    /// What new entries of a directory inherit.
    fn inherit(&self, dir: &Arc<Node>, fd: &OwnedFd) -> FsResult<Inherit> {
        if let Some(known) = *dir.inherit.lock() {
            return Ok(known);
        }
        let attr = sys::stat_fd(fd)?;
        let attr = dir.state.read().mark.apply(attr);
        let inherit = Inherit {
            gid: (attr.mode & libc::S_ISGID != 0).then_some(attr.gid),
            acl: sys::get_xattr(fd.as_fd(), DEFAULT_ACL)?.is_some(),
        };
        *dir.inherit.lock() = Some(inherit);
        Ok(inherit)
    }

    /// Makes an object in the work directory and puts it in the place of a whiteout.
    fn build_over(
        &self,
        dir: &OwnedFd,
        name: &[u8],
        object: &NewObject<'_>,
        inherit: Inherit,
        place: Place,
    ) -> FsResult<NewFd> {
        let upper = self.upper()?;
        let temp = upper.temp_name();
        let made = if inherit.acl || inherit.gid.is_some() {
            self.build_inheriting(dir, &temp, object)
        } else {
            upper.build(upper.work(), &temp, object).map_err(Into::into)
        };
        let placed = made.and_then(|made| {
            if object.kind == Kind::Dir && place == (Place::Whiteout { over_lower: true }) {
                upper.dialect().set_opaque(made.fd.as_fd())?;
            }
            upper.publish_over_whiteout(&temp, dir.as_fd(), name, object.kind)?;
            // The rename moved the change time.
            let attr = made.mark.apply(sys::stat_fd(&made.fd)?);
            Ok(NewFd { attr, ..made })
        });
        if placed.is_err() {
            upper.discard(&temp);
        }
        placed
    }

    /// Makes an object in the work directory that inherits what it would in `dir`: inside a
    /// directory of its own that has the same group, set-group-id and default ACL.
    fn build_inheriting(
        &self,
        dir: &OwnedFd,
        temp: &[u8],
        object: &NewObject<'_>,
    ) -> FsResult<NewFd> {
        let upper = self.upper()?;
        let attr = sys::stat_fd(dir)?;
        let nest = upper.temp_name();
        let like_parent = NewObject {
            kind: Kind::Dir,
            mode: 0o700 | attr.mode & libc::S_ISGID,
            owner: (attr.uid, Some(attr.gid)),
            rdev: 0,
            target: b"",
        };
        let nest_fd = upper.build(upper.work(), &nest, &like_parent)?.fd;
        let made = (|| {
            if let Some(acl) = sys::get_xattr(dir.as_fd(), DEFAULT_ACL)? {
                sys::set_xattr(nest_fd.as_fd(), DEFAULT_ACL, &acl, XattrFlags::empty())?;
            }
            let made = upper.build(nest_fd.as_fd(), b"new", object)?;
            rfs::renameat(&nest_fd, "new", upper.work(), temp)?;
            Ok(made)
        })();
        upper.discard(&nest);
        made
    }

    /// The node of an object that was just made.
    fn adopt(&self, place: Option<(&Arc<Node>, &[u8])>, kind: Kind, made: NewFd) -> Attr {
        let NewFd { fd, attr, mark } = made;
        let fd = Arc::new(fd);
        let number = Number::new(Number::SPACE_UPPER, attr.ino);
        let state = State {
            upper: Some(attr.ino),
            mark,
            pinned: place.is_none().then(|| Arc::clone(&fd)),
            ..State::default()
        };
        let node = self
            .table
            .get_or_insert(Node::new(number, kind, state), true);
        if let Some((dir, name)) = place {
            node.add_name(dir, name);
        }
        node.set_unprivileged(attr.mode & (libc::S_ISUID | libc::S_ISGID) == 0);
        match kind {
            Kind::File => self.fds.insert(FdKey::file(number), &fd),
            Kind::Dir => self.fds.insert(FdKey::dir(number), &fd),
            _ => {}
        }
        Attr {
            ino: number.0,
            ..attr
        }
    }

    /// Gives an object one more name; the kernel knows it once more.
    ///
    /// # Errors
    /// As [`Union::create`], `EPERM` for a directory, `EMLINK`.
    pub fn link(&self, number: Number, parent: Number, name: &[u8]) -> FsResult<Attr> {
        self.upper()?;
        let node = self.touch(number)?;
        if node.kind == Kind::Dir {
            return Err(Errno::PERM.into());
        }
        self.copy_up(&node)?;
        let dir = self.writable_dir(parent, name)?;
        let mut entries = dir.entries.write();
        let place = self.place_for(&dir, name)?;
        let fd = self.upper_dir(&dir)?;
        self.mark_moved_file(&node)?;
        let handle = self.upper_handle(&node)?;
        let linked = match place {
            Place::Free => sys::link_fd(handle.as_fd(), fd.as_fd(), name),
            Place::Whiteout { .. } => Err(Errno::EXIST),
        };
        match linked {
            Err(Errno::EXIST) => {
                self.place_over(&dir, name)?;
                self.link_over_whiteout(&handle, &fd, name)?;
            }
            result => result?,
        }
        entries.changed();
        node.add_name(&dir, name);
        drop(entries);
        // Counted: the reply gives the kernel the node once more.
        match self.table.get_counted(node.number) {
            Some(node) => self.node_attr(&node),
            None => Err(Errno::STALE.into()),
        }
    }

    fn link_over_whiteout(&self, handle: &OwnedFd, dir: &OwnedFd, name: &[u8]) -> FsResult<()> {
        let upper = self.upper()?;
        let temp = upper.temp_name();
        sys::link_fd(handle.as_fd(), upper.work(), &temp)?;
        let placed = upper
            .publish_over(&temp, dir.as_fd(), name)
            .and_then(|()| upper.remove_whiteout_file(dir.as_fd(), name));
        if placed.is_err() {
            // Only the extra name: the file has others.
            rfs::unlinkat(upper.work(), temp.as_slice(), AtFlags::empty())?;
        }
        Ok(placed?)
    }
}
