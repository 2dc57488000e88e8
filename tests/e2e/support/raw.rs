//! System calls that have no safe wrapper: mappings of files, and locks of open file descriptions.
//! All `unsafe` of the tests is here.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};

/// A mapping of a part of a file. What is in it is reached by system calls only, so that a page
/// that cannot be had is an error (`EFAULT`) rather than a signal.
pub struct Mapping {
    address: *mut libc::c_void,
    length: usize,
}

impl Mapping {
    /// Maps `length` bytes from `offset` on, for reading and, if `writable`, writing.
    pub fn new(
        file: &File,
        offset: u64,
        length: usize,
        writable: bool,
        shared: bool,
    ) -> io::Result<Self> {
        let protection = if writable {
            libc::PROT_READ | libc::PROT_WRITE
        } else {
            libc::PROT_READ
        };
        let flags = if shared {
            libc::MAP_SHARED
        } else {
            libc::MAP_PRIVATE
        };
        // SAFETY: the kernel chooses where; nothing of ours is there.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                protection,
                flags,
                file.as_raw_fd(),
                offset as libc::off_t,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { address, length })
    }

    /// Writes `data` at the start of the mapping.
    pub fn write(&self, data: &[u8]) -> io::Result<()> {
        assert!(data.len() <= self.length);
        let carrier = carrier()?;
        std::os::unix::fs::FileExt::write_all_at(&carrier, data, 0)?;
        // SAFETY: the mapping is at least that long, lives as long as `self`, and no reference
        // points into it.
        let count = unsafe { libc::pread(carrier.as_raw_fd(), self.address, data.len(), 0) };
        whole(count, data.len())
    }

    /// Reads all of it.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        let carrier = carrier()?;
        // SAFETY: as in `write`.
        let count = unsafe { libc::pwrite(carrier.as_raw_fd(), self.address, self.length, 0) };
        whole(count, self.length)?;
        let mut data = vec![0; self.length];
        std::os::unix::fs::FileExt::read_exact_at(&carrier, &mut data, 0)?;
        Ok(data)
    }

    /// msync(2), waiting for the data to be written.
    pub fn sync(&self) -> io::Result<()> {
        // SAFETY: exactly what was mapped.
        match unsafe { libc::msync(self.address, self.length, libc::MS_SYNC) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what was mapped, and nothing points into it.
        unsafe { libc::munmap(self.address, self.length) };
    }
}

/// A file in memory through which data passes.
fn carrier() -> io::Result<File> {
    // SAFETY: the name is a string with its end, and the descriptor is a new one.
    unsafe {
        match libc::memfd_create(c"carrier".as_ptr(), libc::MFD_CLOEXEC) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(File::from_raw_fd(fd)),
        }
    }
}

fn whole(count: isize, wanted: usize) -> io::Result<()> {
    match usize::try_from(count) {
        Err(_) => Err(io::Error::last_os_error()),
        Ok(count) if count == wanted => Ok(()),
        Ok(_) => Err(io::Error::from_raw_os_error(libc::EFAULT)),
    }
}

/// Takes (`F_RDLCK`, `F_WRLCK`) or drops (`F_UNLCK`) a lock of an open file description, without
/// waiting.
pub fn lock(file: &File, kind: i16, start: i64, length: i64) -> io::Result<()> {
    // SAFETY: all fields are numbers, for which 0 is a value.
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    range.l_type = kind;
    range.l_whence = libc::SEEK_SET as i16;
    range.l_start = start;
    range.l_len = length;
    // SAFETY: the kernel reads the range, which outlives the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const range) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
