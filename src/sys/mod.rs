//! Thin helpers over system calls: what rustix has, in the shape the filesystem needs it.
//!
//! Everything works on descriptors and single names, so that no path is too long and no symbolic
//! link is followed. Where the system wants a descriptor that is open for something, one opened with
//! `O_PATH` goes by its path in `/proc/self/fd`, which takes longer.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{self as rfs, AtFlags, CWD, Mode, OFlags, StatxFlags, XattrFlags};
use rustix::io::Errno;

use crate::attr::Attr;

pub mod copy;
pub mod dir;
pub mod fuse_dev;
pub mod fuse_ring;
pub mod mount;
pub mod process;
pub mod shared;

/// Result of a system call.
pub type SysResult<T> = Result<T, Errno>;

/// Why a call that is not rustix's failed.
fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

/// Flags for a descriptor that only names an object: nothing is opened, no permission needed.
pub const O_PATH: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The path by which any system call can reach the object of `fd`.
pub fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Opens one name in a directory, never following a symbolic link.
pub fn open_at(dir: impl AsFd, name: &[u8], flags: OFlags) -> SysResult<OwnedFd> {
    retry(|| {
        rfs::openat(
            &dir,
            name,
            flags | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )
    })
}

/// Opens a directory for reading its entries and for use as a base.
pub fn open_dir_at(dir: impl AsFd, name: &[u8]) -> SysResult<OwnedFd> {
    open_at(dir, name, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// Opens the object of an `O_PATH` descriptor anew.
pub fn reopen(fd: BorrowedFd<'_>, flags: OFlags) -> SysResult<OwnedFd> {
    let path = proc_path(fd);
    retry(|| rfs::openat(CWD, path.as_str(), flags | OFlags::CLOEXEC, Mode::empty()))
}

/// Attributes of one name in a directory; a symbolic link's own.
pub fn stat_at(dir: impl AsFd, name: &[u8]) -> SysResult<Attr> {
    statx(dir, name, AtFlags::SYMLINK_NOFOLLOW)
}

/// As [`stat_at`], with `None` for a name that does not exist.
pub fn find_at(dir: impl AsFd, name: &[u8]) -> SysResult<Option<Attr>> {
    match stat_at(dir, name) {
        Ok(attr) => Ok(Some(attr)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Attributes of an open object.
pub fn stat_fd(fd: impl AsFd) -> SysResult<Attr> {
    statx(fd, b"", AtFlags::EMPTY_PATH)
}

fn statx(at: impl AsFd, name: &[u8], flags: AtFlags) -> SysResult<Attr> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    rfs::statx(at, name, flags, wanted).map(|found| Attr::from(&found))
}

/// Repeats a system call that a signal interrupted.
pub fn retry<T>(mut call: impl FnMut() -> SysResult<T>) -> SysResult<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// The value of an extended attribute of any object, `None` if it has none of that name or its
/// filesystem has none at all.
pub fn get_xattr(fd: BorrowedFd<'_>, name: &[u8]) -> SysResult<Option<Vec<u8>>> {
    let mut value = vec![0; 256];
    loop {
        match read_xattr(fd, name, &mut value) {
            Ok(size) => {
                value.truncate(size);
                return Ok(Some(value));
            }
            Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
            // Whoever may not read it may still know that it is not there.
            Err(Errno::ACCESS) if !list_xattrs(fd)?.iter().any(|known| known == name) => {
                return Ok(None);
            }
            Err(Errno::RANGE) => {
                let size = read_xattr(fd, name, &mut [])?;
                value.resize(size.max(value.len() * 2), 0);
            }
            Err(errno) => return Err(errno),
        }
    }
}

fn read_xattr(fd: BorrowedFd<'_>, name: &[u8], into: &mut [u8]) -> SysResult<usize> {
    match rfs::fgetxattr(fd, name, &mut *into) {
        Err(Errno::BADF) => rfs::getxattr(proc_path(fd), name, into),
        result => result,
    }
}

/// The names of all extended attributes of an object, none if its filesystem has none.
pub fn list_xattrs(fd: BorrowedFd<'_>) -> SysResult<Vec<Vec<u8>>> {
    let mut names = vec![0; 1024];
    loop {
        match read_xattr_names(fd, &mut names) {
            Ok(size) => {
                names.truncate(size);
                break;
            }
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(Errno::RANGE) if names.len() < 1 << 20 => names.resize(names.len() * 2, 0),
            Err(errno) => return Err(errno),
        }
    }
    Ok(names
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
        .map(<[u8]>::to_vec)
        .collect())
}

fn read_xattr_names(fd: BorrowedFd<'_>, into: &mut [u8]) -> SysResult<usize> {
    match rfs::flistxattr(fd, &mut *into) {
        Err(Errno::BADF) => rfs::listxattr(proc_path(fd), into),
        result => result,
    }
}

/// Sets an extended attribute of any object.
pub fn set_xattr(
    fd: BorrowedFd<'_>,
    name: &[u8],
    value: &[u8],
    flags: XattrFlags,
) -> SysResult<()> {
    match rfs::fsetxattr(fd, name, value, flags) {
        Err(Errno::BADF) => rfs::setxattr(proc_path(fd), name, value, flags),
        result => result,
    }
}

/// Removes an extended attribute of any object.
pub fn remove_xattr(fd: BorrowedFd<'_>, name: &[u8]) -> SysResult<()> {
    match rfs::fremovexattr(fd, name) {
        Err(Errno::BADF) => rfs::removexattr(proc_path(fd), name),
        result => result,
    }
}

/// Changes the permission bits of any object but a symbolic link.
pub fn chmod(fd: BorrowedFd<'_>, mode: u32) -> SysResult<()> {
    let mode = Mode::from_raw_mode(mode & 0o7777);
    match rfs::fchmod(fd, mode) {
        Err(Errno::BADF) => rfs::chmod(proc_path(fd), mode),
        result => result,
    }
}

/// Changes owner and group of any object; `None` leaves one as it is.
pub fn chown(fd: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>) -> SysResult<()> {
    let uid = uid.map(rfs::Uid::from_raw);
    let gid = gid.map(rfs::Gid::from_raw);
    rfs::chownat(fd, "", uid, gid, AtFlags::EMPTY_PATH)
}

/// Sets access and modification time of any object.
pub fn set_times(fd: BorrowedFd<'_>, times: &rfs::Timestamps) -> SysResult<()> {
    rfs::utimensat(fd, "", times, AtFlags::EMPTY_PATH)
}

/// Has the disk begin with a part of a file, without waiting for it. Whoever has to be sure syncs later, so
/// that it does not work is no failure.
pub fn start_writing(fd: impl AsFd, offset: u64, length: u64) {
    // SAFETY: takes no pointers.
    unsafe {
        libc::sync_file_range(
            fd.as_fd().as_raw_fd(),
            offset as i64,
            length as i64,
            libc::SYNC_FILE_RANGE_WRITE,
        );
    }
}

/// Gives the object of a descriptor one more name, or the first.
pub fn link_fd(fd: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &[u8]) -> SysResult<()> {
    match rfs::linkat(fd, "", dir, name, AtFlags::EMPTY_PATH) {
        // Also for want of privileges.
        Err(Errno::NOENT) => rfs::linkat(CWD, proc_path(fd), dir, name, AtFlags::SYMLINK_FOLLOW),
        result => result,
    }
}
