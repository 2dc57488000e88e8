//! What `/dev/fuse` can do besides reading and writing.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;

use super::SysResult;

/// `struct fuse_backing_map`.
#[repr(C)]
struct BackingMap {
    fd: i32,
    flags: u32,
    padding: u64,
}

/// `_IOW(229, 1, struct fuse_backing_map)`.
const BACKING_OPEN: libc::c_ulong = 0x4010_e501;
/// `_IOW(229, 2, uint32_t)`.
const BACKING_CLOSE: libc::c_ulong = 0x4004_e502;

/// A file that the kernel knows as a backing file of a mount, until this is dropped. Files that are
/// open on it stay usable.
#[derive(Debug)]
pub struct Backing {
    device: Arc<OwnedFd>,
    id: u32,
}

impl Backing {
    /// Makes a file known to the kernel.
    ///
    /// # Errors
    /// `EPERM` without `CAP_SYS_ADMIN` in the initial user namespace, `ELOOP` for a file on a stacked
    /// filesystem.
    pub fn register(device: &Arc<OwnedFd>, file: BorrowedFd<'_>) -> SysResult<Self> {
        let map = BackingMap {
            fd: file.as_raw_fd(),
            flags: 0,
            padding: 0,
        };
        // SAFETY: the request reads a `fuse_backing_map`, and keeps no pointer to it.
        let id = unsafe { libc::ioctl(device.as_raw_fd(), BACKING_OPEN as _, &raw const map) };
        match u32::try_from(id) {
            Ok(id) => Ok(Self {
                device: Arc::clone(device),
                id,
            }),
            Err(_) => Err(super::last_error()),
        }
    }

    /// By what the kernel is told of it.
    pub fn id(&self) -> u32 {
        self.id
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        // SAFETY: the request reads a number of 32 bits, and keeps no pointer to it.
        let closed = unsafe {
            libc::ioctl(
                self.device.as_raw_fd(),
                BACKING_CLOSE as _,
                &raw const self.id,
            )
        };
        if closed < 0 {
            let errno = super::last_error();
            // After the end of the mount there is nothing to close.
            if errno != Errno::PERM {
                tracing::debug!("cannot close backing file {}: {errno}", self.id);
            }
        }
    }
}
