//! Numbers that other processes can read while they are counted.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

use super::SysResult;

/// An array of counters in a file in memory. Who may look into this process's `/proc/PID/fd` can
/// read them there.
#[derive(Debug)]
pub struct SharedWords {
    fd: OwnedFd,
    start: NonNull<AtomicU64>,
    count: usize,
}

// SAFETY: what it points to is atomics that live as long as it does.
unsafe impl Send for SharedWords {}
// SAFETY: the same.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// `count` zeros. Pages that nobody counts in take no memory.
    ///
    /// # Errors
    /// When there is no room, or the kernel has no files in memory.
    pub fn new(count: usize) -> SysResult<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create(c"lamina-stats", flags)?;
        let length = count * size_of::<AtomicU64>();
        rustix::fs::ftruncate(&fd, length as u64)?;
        // It cannot be cut off under us.
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        // SAFETY: a new mapping at a place that the kernel chooses; nothing else is there.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &fd,
                0,
            )?
        };
        let start = NonNull::new(start.cast()).ok_or(rustix::io::Errno::NOMEM)?;
        Ok(Self { fd, start, count })
    }

    /// The counters.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping has `count` of them, starts at a page, and lives as long as `self`. Other
        // processes may change them at any time, which atomics allow.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.count) }
    }

    /// The file.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        let length = self.count * size_of::<AtomicU64>();
        // SAFETY: it is our mapping, and nobody has a reference into it any more.
        let unmapped = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), length) };
        if let Err(errno) = unmapped {
            tracing::warn!("munmap: {errno}");
        }
    }
}
