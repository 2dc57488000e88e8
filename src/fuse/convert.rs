//! Between fuser's types and ours.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileType, INodeNo, TimeOrNow};

use crate::attr::{Attr, Kind, PERMISSIONS, Time};
use crate::error::FsError;
use crate::union::SetTime;

/// For ever: nobody but us may change what is mounted.
pub const FOREVER: Duration = Duration::from_secs(1 << 30);

/// What the kernel is told of a failure. Damage is also logged: its errno explains nothing.
pub fn errno(op: &str, error: &FsError) -> Errno {
    if let Some(what) = error.explanation() {
        tracing::error!("{op}: {what}");
    } else {
        tracing::debug!("{op}: {error}");
    }
    Errno::from_i32(error.errno().raw_os_error())
}

/// A device number as the FUSE protocol has it, from `makedev(3)`'s encoding.
fn encode_device(rdev: u64) -> u32 {
    let (major, minor) = (rustix::fs::major(rdev), rustix::fs::minor(rdev));
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

/// A device number in `makedev(3)`'s encoding.
pub fn decode_device(rdev: u32) -> u64 {
    rustix::fs::makedev(rdev >> 8 & 0xfff, rdev & 0xff | rdev >> 12 & 0xfff00)
}

/// The kind of object, in fuser's words.
pub fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Dir => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Char => FileType::CharDevice,
        Kind::Block => FileType::BlockDevice,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
    }
}

fn system_time(time: Time) -> SystemTime {
    let whole = Duration::from_secs(time.sec.unsigned_abs());
    let base = if time.sec < 0 {
        UNIX_EPOCH.checked_sub(whole)
    } else {
        UNIX_EPOCH.checked_add(whole)
    };
    let nanoseconds = Duration::from_nanos(time.nsec.into());
    base.and_then(|base| base.checked_add(nanoseconds))
        .unwrap_or(UNIX_EPOCH)
}

/// A time from a request. fuser takes the nanoseconds, which count forwards, from times before
/// 1970 as if they counted backwards: this puts back together what the kernel sent.
fn time_of(time: SystemTime) -> Time {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Time {
            sec: after.as_secs() as i64,
            nsec: after.subsec_nanos(),
        },
        Err(before) => Time {
            sec: -(before.duration().as_secs() as i64),
            nsec: before.duration().subsec_nanos(),
        },
    }
}

/// A time to set.
pub fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(time_of(time)),
    }
}

/// Attributes in fuser's form. The node id is `st_ino`.
pub fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(attr.kind()),
        perm: (attr.mode & PERMISSIONS) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: encode_device(attr.rdev),
        blksize: attr.blksize,
        flags: 0,
    }
}

/// What a LOOKUP that finds nothing is answered with, so that the kernel remembers it.
pub fn nothing() -> FileAttr {
    let time = Time::default();
    file_attr(&Attr {
        ino: 0,
        dev: 0,
        mode: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        blocks: 0,
        blksize: 0,
        atime: time,
        mtime: time,
        ctime: time,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_and_far_ahead_are_told_to_fuser() {
        let before = |sec, nsec| UNIX_EPOCH - Duration::new(sec, nsec);
        for (sec, nsec, expected) in [
            (0, 0, UNIX_EPOCH),
            (-1, 1, before(0, 999_999_999)),
            (-1, 999_999_999, before(0, 1)),
            (-86_400, 0, before(86_400, 0)),
            (1 << 34, 5, UNIX_EPOCH + Duration::new(1 << 34, 5)),
        ] {
            assert_eq!(system_time(Time { sec, nsec }), expected);
        }
    }

    #[test]
    fn times_before_1970_are_taken_from_fuser_as_it_gives_them() {
        for (sec, nsec) in [(-1, 0), (-1, 1), (-1, 999_999_999), (-86_400, 5)] {
            let given = UNIX_EPOCH - Duration::new(-sec as u64, nsec);
            assert_eq!(time_of(given), Time { sec, nsec });
        }
    }

    #[test]
    fn device_numbers_round_trip() {
        for (major, minor) in [(0, 0), (1, 3), (8, 300), (4095, 0xf_ffff)] {
            let rdev = rustix::fs::makedev(major, minor);
            assert_eq!(decode_device(encode_device(rdev)), rdev);
        }
    }
}
