//! The bytes of an index: a memory-mapped file, or a buffer.
//!
//! The only `unsafe` of this crate is here. An index is written to a new file, published by
//! rename with mode 0444, and never changed in place. Somebody who may write to the store can
//! break that: changed bytes give wrong answers (accessors do not panic on them), and a truncated
//! file ends the process with SIGBUS. The store's permissions keep others out; that is out of scope
//! here.

use std::ffi::c_void;
use std::fs::File;
use std::ops::Deref;
use std::path::Path;
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

use super::error::IndexError;

/// The bytes of an index.
pub(super) enum Bytes {
    /// A mapped file.
    Map(Map),
    /// A buffer.
    Buffer(Vec<u8>),
}

impl Bytes {
    /// All of it was read once, and little of it will be soon: what is in memory need not count as this
    /// process's any more. It stays in the page cache.
    pub(super) fn was_read_through(&self) {
        if let Self::Map(map) = self {
            // SAFETY: pages of a mapping that is never written to are read from the file again when they
            // are needed, and have the same bytes.
            let given = unsafe { madvise(map.start.as_ptr(), map.len, Advice::LinuxDontNeed) };
            debug_assert!(given.is_ok(), "madvise of a whole mapping cannot fail");
        }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Map(map) => map.bytes(),
            Self::Buffer(buffer) => buffer,
        }
    }
}

/// A whole file mapped read-only.
pub(super) struct Map {
    start: NonNull<c_void>,
    len: usize,
}

// SAFETY: the mapping is read-only memory that belongs to this value alone until it is dropped;
// nothing about it is tied to a thread.
unsafe impl Send for Map {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for Map {}

impl Map {
    fn bytes(&self) -> &[u8] {
        // SAFETY: `start` is the start of a live mapping of `len` bytes, readable until `self` is
        // dropped. The file behind it is published read-only and never changed in place (see the
        // module documentation), so the bytes do not change while they are borrowed.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.len) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `open` with this start and length, and no borrow of it
        // outlives `self`.
        let unmapped = unsafe { munmap(self.start.as_ptr(), self.len) };
        debug_assert!(unmapped.is_ok(), "munmap of a whole mapping cannot fail");
    }
}

/// Maps the file at `path`. An empty file gives an empty buffer.
pub(super) fn open(path: &Path) -> Result<Bytes, IndexError> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(IndexError::NotAFile);
    }
    let len = usize::try_from(metadata.len())
        .map_err(|_| IndexError::Header("too long for this machine"))?;
    if len == 0 {
        return Ok(Bytes::Buffer(Vec::new()));
    }
    // SAFETY: a new mapping at an address that the kernel chooses touches no memory in use.
    let start = unsafe {
        mmap(
            std::ptr::null_mut(),
            len,
            ProtFlags::READ,
            MapFlags::PRIVATE,
            &file,
            0,
        )
    }
    .map_err(std::io::Error::from)?;
    let start = NonNull::new(start).ok_or(IndexError::Header("mapped at address 0"))?;
    Ok(Bytes::Map(Map { start, len }))
}
