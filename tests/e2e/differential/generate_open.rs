//! Random operations on files that are held open.

use rustix::fs::{FlockOperation, OFlags};

use super::generate::{Generator, Make};
use super::op::{Op, SLOTS, Whence};

/// Every kind of them and how often it comes.
pub const ON_OPEN_FILES: &[(usize, Make)] = &[
    (6, Generator::open),
    (3, Generator::open_creating),
    (2, Generator::open_oddly),
    (2, Generator::close),
    (4, Generator::slot_read),
    (4, Generator::slot_write),
    (2, Generator::slot_read_vec),
    (2, Generator::slot_write_vec),
    (2, Generator::slot_write_here),
    (2, Generator::slot_seek),
    (3, Generator::slot_map),
    (2, Generator::slot_truncate),
    (2, Generator::slot_fallocate),
    (2, Generator::slot_copy_range),
    (3, Generator::slot_stat),
    (2, Generator::slot_chmod),
    (1, Generator::slot_chown),
    (1, Generator::slot_utimens),
    (1, Generator::slot_xattr),
    (1, Generator::slot_list_xattr),
    (1, Generator::slot_sync),
    (1, Generator::slot_link),
    (2, Generator::slot_list),
    (1, Generator::slot_readlink),
    (2, Generator::slot_flock),
    (2, Generator::slot_lock),
];

impl Generator {
    fn slot(&mut self) -> usize {
        self.rng.below(SLOTS)
    }

    fn open(&mut self) -> Op {
        let flags = *self
            .rng
            .pick(&[OFlags::RDONLY, OFlags::RDWR, OFlags::RDWR, OFlags::WRONLY]);
        let more = *self.rng.pick(&[
            OFlags::empty(),
            OFlags::empty(),
            OFlags::empty(),
            OFlags::APPEND,
            OFlags::TRUNC,
            OFlags::SYNC,
        ]);
        Op::Open {
            slot: self.slot(),
            path: self.any(),
            // Truncating what is open for reading only is not defined.
            flags: if flags == OFlags::RDONLY {
                flags
            } else {
                flags | more
            },
            mode: 0,
        }
    }

    fn open_creating(&mut self) -> Op {
        let path = if self.rng.chance(60) {
            self.fresh()
        } else {
            self.any()
        };
        self.files.push(path.clone());
        let access = *self
            .rng
            .pick(&[OFlags::RDONLY, OFlags::RDWR, OFlags::WRONLY]);
        let more = *self.rng.pick(&[
            OFlags::empty(),
            OFlags::EXCL,
            OFlags::APPEND,
            OFlags::NOFOLLOW,
            OFlags::EXCL.union(OFlags::APPEND),
            OFlags::DIRECTORY,
        ]);
        Op::Open {
            slot: self.slot(),
            path,
            flags: access | OFlags::CREATE | more,
            mode: self.mode(),
        }
    }

    fn open_oddly(&mut self) -> Op {
        let flags = *self.rng.pick(&[
            OFlags::RDONLY.union(OFlags::DIRECTORY),
            OFlags::RDONLY.union(OFlags::NOFOLLOW),
            OFlags::WRONLY.union(OFlags::DIRECTORY),
            OFlags::PATH,
            OFlags::PATH.union(OFlags::NOFOLLOW),
            OFlags::PATH.union(OFlags::DIRECTORY),
        ]);
        Op::Open {
            slot: self.slot(),
            path: self.any(),
            flags,
            mode: 0,
        }
    }

    fn close(&mut self) -> Op {
        Op::Close { slot: self.slot() }
    }

    fn slot_read(&mut self) -> Op {
        Op::SlotRead {
            slot: self.slot(),
            offset: self.offset() / 2,
            length: 1 << 20,
        }
    }

    fn slot_write(&mut self) -> Op {
        Op::SlotWrite {
            slot: self.slot(),
            offset: self.offset(),
            length: self.length(),
            seed: self.seed(),
        }
    }

    fn slot_read_vec(&mut self) -> Op {
        Op::SlotReadVec {
            slot: self.slot(),
            offset: self.offset() / 2,
            lengths: [self.length(), self.length(), self.length()],
        }
    }

    fn slot_write_vec(&mut self) -> Op {
        Op::SlotWriteVec {
            slot: self.slot(),
            offset: self.offset(),
            lengths: [self.length(), self.length(), self.length()],
            seed: self.seed(),
        }
    }

    fn slot_write_here(&mut self) -> Op {
        Op::SlotWriteHere {
            slot: self.slot(),
            length: self.length(),
            seed: self.seed(),
        }
    }

    fn slot_seek(&mut self) -> Op {
        let whence = *self.rng.pick(&[
            Whence::Start,
            Whence::Here,
            Whence::End,
            Whence::Data,
            Whence::Hole,
        ]);
        Op::SlotSeek {
            slot: self.slot(),
            whence,
            offset: *self.rng.pick(&[0, 0, 1, -1, 4096, -4096, 100_000]),
        }
    }

    fn slot_map(&mut self) -> Op {
        Op::SlotMap {
            slot: self.slot(),
            page: self.rng.below(4) as u64,
            length: 1 + self.length(),
            seed: self.seed(),
            shared: self.rng.chance(80),
            sync: self.rng.chance(50),
        }
    }

    fn slot_truncate(&mut self) -> Op {
        Op::SlotTruncate {
            slot: self.slot(),
            length: self.offset(),
        }
    }

    fn slot_fallocate(&mut self) -> Op {
        Op::SlotFallocate {
            slot: self.slot(),
            flags: self.fallocate_flags(),
            offset: self.offset(),
            length: self.length() as u64,
        }
    }

    fn slot_copy_range(&mut self) -> Op {
        Op::SlotCopyRange {
            from: self.slot(),
            to: self.slot(),
            offset_in: self.offset() / 4,
            offset_out: self.offset(),
            length: self.length(),
        }
    }

    fn slot_stat(&mut self) -> Op {
        Op::SlotStat { slot: self.slot() }
    }

    fn slot_chmod(&mut self) -> Op {
        Op::SlotChmod {
            slot: self.slot(),
            mode: self.mode(),
        }
    }

    fn slot_chown(&mut self) -> Op {
        let (uid, gid) = (self.id(), self.id());
        Op::SlotChown {
            slot: self.slot(),
            uid,
            // As in `chown`: not both left as they are.
            gid: if uid.is_none() { Some(0) } else { gid },
        }
    }

    fn slot_utimens(&mut self) -> Op {
        Op::SlotUtimens {
            slot: self.slot(),
            times: self.times(),
        }
    }

    fn slot_xattr(&mut self) -> Op {
        Op::SlotXattr {
            slot: self.slot(),
            name: self.xattr(),
            value: vec![self.seed(); 5],
        }
    }

    fn slot_list_xattr(&mut self) -> Op {
        Op::SlotListXattr { slot: self.slot() }
    }

    fn slot_sync(&mut self) -> Op {
        Op::SlotSync { slot: self.slot() }
    }

    fn slot_link(&mut self) -> Op {
        let to = self.fresh();
        self.files.push(to.clone());
        Op::SlotLink {
            slot: self.slot(),
            to,
        }
    }

    fn slot_list(&mut self) -> Op {
        Op::SlotList { slot: self.slot() }
    }

    fn slot_readlink(&mut self) -> Op {
        Op::SlotReadlink { slot: self.slot() }
    }

    fn slot_flock(&mut self) -> Op {
        let operation = *self.rng.pick(&[
            FlockOperation::NonBlockingLockShared,
            FlockOperation::NonBlockingLockExclusive,
            FlockOperation::NonBlockingUnlock,
        ]);
        Op::SlotFlock {
            slot: self.slot(),
            operation,
        }
    }

    fn slot_lock(&mut self) -> Op {
        Op::SlotLock {
            slot: self.slot(),
            kind: *self
                .rng
                .pick(&[libc::F_RDLCK, libc::F_WRLCK, libc::F_WRLCK, libc::F_UNLCK])
                as i16,
            start: self.rng.below(3) as i64 * 10,
            length: self.rng.below(20) as i64,
        }
    }
}
