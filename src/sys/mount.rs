//! Mounts that are nowhere in the tree, and what tells those apart that are.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxFlags};

use super::{SysResult, last_error};

/// A view of the directory `dir`, without what is mounted below it, through which nothing can be
/// written and reading changes no access times. It lasts as long as something in it is open.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`, `ENOSYS` before Linux 5.12.
pub fn read_only_view(dir: BorrowedFd<'_>) -> SysResult<OwnedFd> {
    let empty_path = libc::AT_EMPTY_PATH as u32;
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | empty_path;
    // SAFETY: the path is a string that ends in NUL; the call keeps no pointer.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, dir.as_raw_fd(), c"".as_ptr(), flags) };
    if fd < 0 {
        return Err(last_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else knows of it.
    let tree = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOATIME,
        attr_clr: libc::MOUNT_ATTR__ATIME,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    // SAFETY: the path ends in NUL, the structure is as large as the size says, and the call keeps
    // neither.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            empty_path,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if result < 0 {
        return Err(last_error());
    }
    Ok(tree)
}

/// The kernel's number of the topmost mount at `path`, which no other mount ever has. The filesystem
/// is not asked. `None` before Linux 6.8, or if there is nothing.
pub fn id(path: &Path) -> Option<u64> {
    // `STATX_MNT_ID_UNIQUE`
    let wanted = StatxFlags::from_bits_retain(0x4000);
    // `AT_STATX_DONT_SYNC`: its daemon may be ourselves.
    let flags = AtFlags::SYMLINK_NOFOLLOW
        | AtFlags::NO_AUTOMOUNT
        | AtFlags::from_bits_retain(libc::AT_STATX_DONT_SYNC as u32);
    let found = rustix::fs::statx(CWD, path, flags, wanted).ok()?;
    (found.stx_mask & wanted.bits() != 0).then_some(found.stx_mnt_id)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::fs::{Mode, OFlags, openat};
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn nothing_is_written_through_a_read_only_view() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "data").unwrap();
        let fd = std::fs::File::open(dir.path()).unwrap();
        let view = match read_only_view(fd.as_fd()) {
            Err(Errno::PERM | Errno::NOSYS) => return eprintln!("skipped: needs CAP_SYS_ADMIN"),
            view => view.unwrap(),
        };
        let open = |flags| openat(&view, "file", flags, Mode::empty());
        assert!(open(OFlags::RDONLY).is_ok());
        assert_eq!(open(OFlags::RDWR).unwrap_err(), Errno::ROFS);
        let make = openat(&view, "new", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU);
        assert_eq!(make.unwrap_err(), Errno::ROFS);
    }
}
