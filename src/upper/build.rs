//! Making new objects in the upper's filesystem.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self as rfs, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::Upper;
use super::mark::NodeMark;
use super::stat::StatMark;
use crate::attr::{Attr, Kind, PERMISSIONS};
use crate::sys::{self, SysResult};

/// An object to make.
pub struct NewObject<'a> {
    /// What it is.
    pub kind: Kind,
    /// Permission bits; for a symbolic link without meaning.
    pub mode: u32,
    /// Owner and group; no group for the one the filesystem gives it.
    pub owner: (u32, Option<u32>),
    /// Device number in the encoding of `makedev(3)`, for devices.
    pub rdev: u64,
    /// Target, for a symbolic link.
    pub target: &'a [u8],
}

/// An object that was made.
pub struct NewFd {
    /// A regular file is open for reading and writing, a directory for reading, anything else is
    /// only named (`O_PATH`).
    pub fd: OwnedFd,
    /// Its attributes as users see them, but for `ino`.
    pub attr: Attr,
    /// What the filesystem could not hold.
    pub mark: NodeMark,
}

const SPECIAL_BITS: u32 = libc::S_ISUID | libc::S_ISGID | libc::S_ISVTX;

impl Upper {
    /// Makes an object under a free name. If something fails, nothing is left under the name.
    ///
    /// The filesystem may add what is inherited from the directory (a default ACL changes the
    /// mode, set-group-id is passed on), as for any new file.
    pub fn build(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        object: &NewObject<'_>,
    ) -> SysResult<NewFd> {
        let mut mark = NodeMark::default();
        let fd = self.make(dir, name, object, &mut mark)?;
        match self.finish(fd.as_fd(), object, &mut mark) {
            Ok(attr) => Ok(NewFd { fd, attr, mark }),
            Err(errno) => {
                sys::dir::remove_tree(dir, name)?;
                Err(errno)
            }
        }
    }

    /// Makes a regular file without a name, which inherits what it would in `dir`.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where the filesystem cannot.
    pub fn build_nameless(&self, dir: BorrowedFd<'_>, object: &NewObject<'_>) -> SysResult<NewFd> {
        let mut mark = NodeMark::default();
        let mode = Mode::from_raw_mode(object.mode & 0o777 | self.needs(object.kind));
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let fd = sys::retry(|| rfs::openat(dir, ".", flags, mode))?;
        let attr = self.finish(fd.as_fd(), object, &mut mark)?;
        Ok(NewFd { fd, attr, mark })
    }

    fn finish(
        &self,
        fd: BorrowedFd<'_>,
        object: &NewObject<'_>,
        mark: &mut NodeMark,
    ) -> SysResult<Attr> {
        if self.dialect.stat.is_some() {
            return self.finish_with_stat(fd, object, mark);
        }
        let attr = sys::stat_fd(fd)?;
        let owned = self.own(fd, object, &attr, mark)?;
        // A change of owner takes these away, and mkdir never sets them.
        let special = object.mode & SPECIAL_BITS;
        let needs = self.needs(object.kind);
        let mode = attr.mode & PERMISSIONS | needs | special;
        let chmod = object.kind != Kind::Symlink && mode & !attr.mode != 0;
        if chmod || (owned && special != 0) {
            sys::chmod(fd, mode)?;
        }
        // What we need, but neither the caller nor an inherited ACL gives.
        let ours = needs & !(attr.mode & object.mode);
        mark.mode = (ours != 0).then_some(mode & !ours);
        let marked = *mark != NodeMark::default();
        if marked {
            match self.dialect.write_node(fd, mark) {
                // An owner cannot be noted on such objects; it stays the user's own.
                Err(Errno::PERM) if mark.device.is_none() => *mark = NodeMark::default(),
                result => result?,
            }
        }
        // All of them move the change time, which the kernel remembers from our reply.
        let attr = if owned || chmod || marked {
            sys::stat_fd(fd)?
        } else {
            attr
        };
        Ok(mark.apply(attr))
    }

    /// Notes owner and permissions in an attribute instead of giving them to the object.
    fn finish_with_stat(
        &self,
        fd: BorrowedFd<'_>,
        object: &NewObject<'_>,
        mark: &mut NodeMark,
    ) -> SysResult<Attr> {
        let attr = sys::stat_fd(fd)?;
        if self.can_have_stat(object.kind) {
            let (uid, gid) = object.owner;
            mark.owner = Some((uid, gid.unwrap_or(attr.gid)));
            mark.mode = Some(object.mode & PERMISSIONS);
            if attr.kind() != Kind::Symlink {
                sys::chmod(fd, StatMark::real_mode(object.kind, object.mode))?;
            }
        }
        self.dialect.write_node(fd, mark)?;
        Ok(mark.apply(sys::stat_fd(fd)?))
    }

    /// Whether an object's owner and permissions are noted in an attribute. Users' attributes are possible
    /// on files, which devices are then, and directories alone.
    pub fn can_have_stat(&self, kind: Kind) -> bool {
        match self.dialect.stat {
            None => false,
            Some(StatMark::Security) => true,
            Some(_) => !matches!(kind, Kind::Symlink | Kind::Fifo | Kind::Socket),
        }
    }

    fn make(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        object: &NewObject<'_>,
        mark: &mut NodeMark,
    ) -> SysResult<OwnedFd> {
        let mode = Mode::from_raw_mode(object.mode & 0o777 | self.needs(object.kind));
        match object.kind {
            Kind::File => create_file(dir, name, mode),
            Kind::Dir => {
                rfs::mkdirat(dir, name, mode)?;
                sys::open_dir_at(dir, name)
            }
            Kind::Symlink => {
                rfs::symlinkat(object.target, dir, name)?;
                sys::open_at(dir, name, sys::O_PATH)
            }
            Kind::Fifo | Kind::Socket => {
                let file_type = if object.kind == Kind::Fifo {
                    FileType::Fifo
                } else {
                    FileType::Socket
                };
                rfs::mknodat(dir, name, file_type, mode, 0)?;
                sys::open_at(dir, name, sys::O_PATH)
            }
            Kind::Char | Kind::Block => self.make_device(dir, name, object, mark),
        }
    }

    /// A device, or a file marked as one where devices cannot be made. The character device 0:0
    /// means in an upper that a name is deleted, so 0:1 with a mark stands for it.
    fn make_device(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        object: &NewObject<'_>,
        mark: &mut NodeMark,
    ) -> SysResult<OwnedFd> {
        let file_type = match object.kind {
            Kind::Block => FileType::BlockDevice,
            _ => FileType::CharacterDevice,
        };
        let mode = Mode::from_raw_mode(object.mode & 0o777 | self.needs(object.kind));
        let is_whiteout = object.kind == Kind::Char && object.rdev == 0;
        let stand_in = rfs::makedev(0, 1);
        let rdev = if is_whiteout { stand_in } else { object.rdev };
        let device = Some((
            object.kind,
            rfs::major(object.rdev),
            rfs::minor(object.rdev),
        ));
        let made = if self.dialect.stat.is_some() {
            Err(Errno::PERM)
        } else {
            rfs::mknodat(dir, name, file_type, mode, rdev)
        };
        match made {
            Ok(()) => {
                if is_whiteout {
                    mark.device = device;
                }
                sys::open_at(dir, name, sys::O_PATH)
            }
            Err(Errno::PERM) => {
                mark.device = device;
                create_file(dir, name, mode)
            }
            Err(errno) => Err(errno),
        }
    }

    /// The permissions this process needs on its own objects, whatever users are to see.
    fn needs(&self, kind: Kind) -> u32 {
        match kind {
            _ if self.overrides_modes => 0,
            Kind::Dir => 0o700,
            // A user's device is a file.
            Kind::File | Kind::Char | Kind::Block => 0o600,
            Kind::Symlink | Kind::Fifo | Kind::Socket => 0,
        }
    }

    /// Calls `act` with the permissions that we need on an object but that it does not give.
    pub fn with_access<T>(
        &self,
        fd: BorrowedFd<'_>,
        kind: Kind,
        act: impl FnOnce() -> SysResult<T>,
    ) -> SysResult<T> {
        let mode = sys::stat_fd(fd)?.mode;
        sys::chmod(fd, mode | self.needs(kind))?;
        let result = act();
        sys::chmod(fd, mode)?;
        result
    }

    /// Changes the permission bits users see of an object, whose mark is `mark`.
    pub fn set_mode(
        &self,
        fd: BorrowedFd<'_>,
        kind: Kind,
        mode: u32,
        mark: &mut NodeMark,
    ) -> SysResult<()> {
        let mode = mode & PERMISSIONS;
        let noted = self.can_have_stat(kind);
        let real = if noted {
            StatMark::real_mode(kind, mode)
        } else {
            mode | self.needs(kind)
        };
        sys::chmod(fd, real)?;
        let shown = (noted || real != mode).then_some(mode);
        if shown != mark.mode {
            let mut new = NodeMark {
                mode: shown,
                ..mark.clone()
            };
            if noted && new.owner.is_none() {
                let attr = sys::stat_fd(fd)?;
                new.owner = Some((attr.uid, attr.gid));
            }
            self.dialect.write_node(fd, &new)?;
            *mark = new;
        }
        Ok(())
    }

    /// Gives a new object its owner. Whether that changed anything.
    fn own(
        &self,
        fd: BorrowedFd<'_>,
        object: &NewObject<'_>,
        now: &Attr,
        mark: &mut NodeMark,
    ) -> SysResult<bool> {
        let (uid, gid) = object.owner;
        let gid = gid.unwrap_or(now.gid);
        if (now.uid, now.gid) == (uid, gid) {
            return Ok(false);
        }
        match sys::chown(fd, Some(uid), Some(gid)) {
            Ok(()) => Ok(true),
            Err(Errno::PERM | Errno::INVAL) if !self.privileged => {
                mark.owner = Some((uid, gid));
                Ok(false)
            }
            Err(errno) => Err(errno),
        }
    }
}

fn create_file(dir: BorrowedFd<'_>, name: &[u8], mode: Mode) -> SysResult<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    sys::retry(|| rfs::openat(dir, name, flags, mode))
}
