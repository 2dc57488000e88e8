//! The operations: what a program can ask of a filesystem, as plain data, and what came of it.

use std::fmt;

use rustix::fs::{FallocateFlags, FileType, FlockOperation, OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;

/// How many files a case can hold open at once.
pub const SLOTS: usize = 4;

/// The usual umask.
pub const UMASK: u32 = 0o022;

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
        follow: bool,
    },
    Chown {
        path: String,
        uid: Option<u32>,
        gid: Option<u32>,
        follow: bool,
    },
    Utimens {
        path: String,
        times: [Time; 2],
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
    /// getxattr with a buffer of `room` bytes.
    XattrRoom {
        path: String,
        name: String,
        room: usize,
    },
    /// Lists with a small buffer, going back to a remembered position after every `every` entries.
    ListSeeking {
        path: String,
        every: usize,
    },
    Syncfs,
    /// Opens a file and keeps it open.
    Open {
        slot: usize,
        path: String,
        flags: OFlags,
        mode: u32,
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
    SlotListXattr {
        slot: usize,
    },
    SlotSync {
        slot: usize,
    },
    /// write(2), at the file's own position (the end, with `O_APPEND`).
    SlotWriteHere {
        slot: usize,
        length: usize,
        seed: u8,
    },
    /// lseek from the start, the current position or the end; tells the new position.
    SlotSeek {
        slot: usize,
        whence: Whence,
        offset: i64,
    },
    /// preadv into buffers of these lengths.
    SlotReadVec {
        slot: usize,
        offset: u64,
        lengths: [usize; 3],
    },
    /// pwritev from them.
    SlotWriteVec {
        slot: usize,
        offset: u64,
        lengths: [usize; 3],
        seed: u8,
    },
    /// Writes to a mapping of the file, as far as the file goes, and tells what is in it after.
    SlotMap {
        slot: usize,
        page: u64,
        length: usize,
        seed: u8,
        shared: bool,
        sync: bool,
    },
    SlotFallocate {
        slot: usize,
        flags: FallocateFlags,
        offset: u64,
        length: u64,
    },
    SlotCopyRange {
        from: usize,
        to: usize,
        offset_in: u64,
        offset_out: u64,
        length: usize,
    },
    SlotChown {
        slot: usize,
        uid: Option<u32>,
        gid: Option<u32>,
    },
    SlotUtimens {
        slot: usize,
        times: [Time; 2],
    },
    /// Lists an open directory from the start.
    SlotList {
        slot: usize,
    },
    /// readlinkat with an empty path.
    SlotReadlink {
        slot: usize,
    },
    SlotFlock {
        slot: usize,
        operation: FlockOperation,
    },
    /// An open file description lock on a range.
    SlotLock {
        slot: usize,
        kind: i16,
        start: i64,
        length: i64,
    },
    /// Gives an open, perhaps nameless, file a name again.
    SlotLink {
        slot: usize,
        to: String,
    },
    /// Not an operation: compare the whole trees, before and after `then`.
    Check {
        then: Then,
    },
}

/// What happens between two comparisons of whole trees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    DropCaches,
    Remount,
    /// The upper becomes the topmost lower, and a new one takes its place.
    Rotate,
}

/// A time to set.
#[derive(Clone, Copy, Debug)]
pub enum Time {
    /// Seconds and nanoseconds.
    At(i64, i64),
    Now,
    Omit,
}

/// What a position counts from.
#[derive(Clone, Copy, Debug)]
pub enum Whence {
    Start,
    Here,
    End,
    /// The first data at or after the offset.
    Data,
    /// The first hole.
    Hole,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Root,
    /// User and group 1000, in no other group.
    User,
    /// User 1000 with group 2000 first and group 1000 among the others.
    Grouped,
    /// User and group 2000, who owns little.
    Stranger,
}

/// An operation and who asks for it.
#[derive(Clone, Debug)]
pub struct Step {
    pub op: Op,
    pub who: Who,
    pub umask: u32,
}

impl fmt::Display for Step {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.who != Who::Root {
            write!(out, "[{:?}] ", self.who)?;
        }
        if self.umask != UMASK {
            write!(out, "[umask {:03o}] ", self.umask)?;
        }
        let mut text = format!("{:?}", self.op);
        if let Some((end, _)) = text.char_indices().nth(240) {
            text.truncate(end);
            text.push('…'); // a long value; the seed has it all
        }
        out.write_str(&text)
    }
}
