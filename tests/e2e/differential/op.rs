//! The operations: what a program can ask of a filesystem, as plain data, and what came of it.

use std::fmt;

use rustix::fs::{FallocateFlags, FileType, OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;

/// How many files a case can hold open at once.
pub const SLOTS: usize = 4;

/// What an operation returned: its result in words, or the error.
pub type Outcome = Result<String, Errno>;

/// One operation. Paths are relative to the root of the filesystem.
#[derive(Clone, Debug)]
pub enum Op {
    /// open, write what `seed` and `length` say at `offset`, close.
    Write {
        path: String,
        flags: OFlags,
        mode: u32,
        offset: u64,
        length: usize,
        seed: u8,
    },
    /// open, read, close.
    Read {
        path: String,
        offset: u64,
        length: usize,
    },
    /// open for writing, ftruncate, close.
    Truncate {
        path: String,
        length: u64,
    },
    /// Lists the data and hole segments.
    Segments {
        path: String,
    },
    Fallocate {
        path: String,
        flags: FallocateFlags,
        offset: u64,
        length: u64,
    },
    CopyRange {
        from: String,
        to: String,
        offset_in: u64,
        offset_out: u64,
        length: usize,
    },
    Fsync {
        path: String,
    },
    Mkdir {
        path: String,
        mode: u32,
    },
    Mknod {
        path: String,
        kind: FileType,
        mode: u32,
        device: u64,
    },
    Symlink {
        target: String,
        path: String,
    },
    Readlink {
        path: String,
    },
    Link {
        from: String,
        to: String,
        follow: bool,
    },
    Unlink {
        path: String,
    },
    Rmdir {
        path: String,
    },
    /// rm -rf.
    RemoveTree {
        path: String,
    },
    Rename {
        from: String,
        to: String,
        flags: RenameFlags,
    },
    Chmod {
        path: String,
        mode: u32,
    },
    Chown {
        path: String,
        uid: Option<u32>,
        gid: Option<u32>,
        follow: bool,
    },
    Utimens {
        path: String,
        seconds: i64,
        nanoseconds: i64,
        follow: bool,
    },
    SetXattr {
        path: String,
        name: String,
        value: Vec<u8>,
        flags: XattrFlags,
    },
    GetXattr {
        path: String,
        name: String,
    },
    ListXattr {
        path: String,
    },
    RemoveXattr {
        path: String,
        name: String,
    },
    List {
        path: String,
    },
    Stat {
        path: String,
        follow: bool,
    },
    Access {
        path: String,
        mode: u32,
    },
    Statfs {
        path: String,
    },
    /// Opens a file and keeps it open.
    Open {
        slot: usize,
        path: String,
        flags: OFlags,
    },
    Close {
        slot: usize,
    },
    SlotRead {
        slot: usize,
        offset: u64,
        length: usize,
    },
    SlotWrite {
        slot: usize,
        offset: u64,
        length: usize,
        seed: u8,
    },
    SlotTruncate {
        slot: usize,
        length: u64,
    },
    SlotStat {
        slot: usize,
    },
    SlotChmod {
        slot: usize,
        mode: u32,
    },
    SlotXattr {
        slot: usize,
        name: String,
        value: Vec<u8>,
    },
    SlotSync {
        slot: usize,
    },
    /// Gives an open, perhaps nameless, file a name again.
    SlotLink {
        slot: usize,
        to: String,
    },
    /// Not an operation: compare the whole trees, with the caches dropped, perhaps after a remount.
    Check {
        remount: bool,
    },
}

/// An operation and who asks for it.
#[derive(Clone, Debug)]
pub struct Step {
    pub op: Op,
    /// As user and group 1000 rather than as root.
    pub as_user: bool,
}

impl fmt::Display for Step {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.as_user {
            out.write_str("[uid 1000] ")?;
        }
        let mut text = format!("{:?}", self.op);
        if let Some((end, _)) = text.char_indices().nth(240) {
            text.truncate(end);
            text.push('…'); // a long value; the seed has it all
        }
        out.write_str(&text)
    }
}
