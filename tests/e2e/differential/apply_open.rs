//! Carrying out operations on files that are held open.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Write as _};

use rustix::fs::{AtFlags, FileType, Gid, SeekFrom, Uid, XattrFlags};
use rustix::io::Errno;

use super::apply::{
    copy_range, digest, done, errno, is_fifo, list_open, read, show_names, show_stat, timestamps,
    write,
};
use super::op::{Op, Outcome, Whence};
use super::side::{Held, Side};
use crate::support::raw::{self, Mapping};

impl Side {
    pub(super) fn apply_to_slot(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Open {
                slot,
                path,
                flags,
                mode,
            } => {
                self.slots[*slot] = None;
                let file = File::from(self.open_with(path, *flags, *mode)?);
                let number = rustix::fs::fstat(&file)?.st_ino;
                self.slots[*slot] = Some(Held { file, number });
                Ok(String::new())
            }
            Op::Close { slot } => {
                self.slots[*slot] = None;
                Ok(String::new())
            }
            Op::SlotCopyRange {
                from,
                to,
                offset_in,
                offset_out,
                length,
            } => copy_range(
                self.held(*from)?,
                self.held(*to)?,
                *offset_in,
                *offset_out,
                *length,
            ),
            Op::SlotMap { .. }
            | Op::SlotRead { .. }
            | Op::SlotReadVec { .. }
            | Op::SlotWrite { .. }
            | Op::SlotWriteVec { .. }
            | Op::SlotWriteHere { .. }
            | Op::SlotSeek { .. } => self.transfer(op),
            _ => self.manage(op),
        }
    }

    fn held(&self, slot: usize) -> Result<&File, Errno> {
        let held = self.slots[slot].as_ref().ok_or(Errno::BADF)?;
        Ok(&held.file)
    }

    fn transfer(&self, op: &Op) -> Outcome {
        match op {
            Op::SlotRead {
                slot,
                offset,
                length,
            } => read(self.held(*slot)?, *offset, *length),
            Op::SlotReadVec {
                slot,
                offset,
                lengths,
            } => {
                let mut buffers = lengths.map(|length| vec![0; length]);
                let mut slices: Vec<_> = buffers.iter_mut().map(|b| IoSliceMut::new(b)).collect();
                let count = rustix::io::preadv(self.held(*slot)?, &mut slices, *offset)?;
                Ok(format!("{count} bytes, {}", digest(&buffers.concat())))
            }
            Op::SlotWrite {
                slot,
                offset,
                length,
                seed,
            } => write(self.held(*slot)?, *offset, *length, *seed),
            Op::SlotWriteVec {
                slot,
                offset,
                lengths,
                seed,
            } => {
                let buffers = lengths.map(|length| vec![*seed; length]);
                let slices: Vec<_> = buffers.iter().map(|b| IoSlice::new(b)).collect();
                let count = rustix::io::pwritev(self.held(*slot)?, &slices, *offset)?;
                Ok(format!("{count} written"))
            }
            Op::SlotWriteHere { slot, length, seed } => {
                let mut file = self.held(*slot)?;
                if is_fifo(file) {
                    return Err(Errno::SPIPE);
                }
                file.write_all(&vec![*seed; *length])
                    .map_err(|error| errno(&error))?;
                self.position(*slot)
            }
            Op::SlotSeek {
                slot,
                whence,
                offset,
            } => self.seek(*slot, *whence, *offset),
            Op::SlotMap { .. } => self.map(op),
            other => unreachable!("{other:?} does not move data"),
        }
    }

    fn position(&self, slot: usize) -> Outcome {
        let at = rustix::fs::seek(self.held(slot)?, SeekFrom::Current(0))?;
        Ok(format!("now at {at}"))
    }

    fn seek(&self, slot: usize, whence: Whence, offset: i64) -> Outcome {
        let file = self.held(slot)?;
        let stat = rustix::fs::fstat(file)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Err(Errno::INVAL); // positions in a directory mean nothing
        }
        let from_start = offset.unsigned_abs();
        let to = match whence {
            Whence::Start => SeekFrom::Start(from_start),
            Whence::Here => SeekFrom::Current(offset),
            Whence::End => SeekFrom::End(offset),
            // What is data is asked by `Segments`, with the page cache alike; here, where it ends.
            Whence::Data => SeekFrom::Data(from_start.max(stat.st_size.unsigned_abs())),
            Whence::Hole => SeekFrom::Hole(from_start.max(stat.st_size.unsigned_abs())),
        };
        rustix::fs::seek(file, to).map(|at| format!("now at {at}"))
    }

    fn map(&self, op: &Op) -> Outcome {
        let Op::SlotMap {
            slot,
            page,
            length,
            seed,
            shared,
            sync,
        } = op
        else {
            unreachable!("{op:?} is no mapping")
        };
        let file = self.held(*slot)?;
        let size = rustix::fs::fstat(file)?.st_size.unsigned_abs();
        let offset = page * 4096;
        let room = usize::try_from(size.saturating_sub(offset)).unwrap_or(0);
        let length = (*length).min(room);
        let writable = !*shared || seed % 4 != 0;
        let mapping = Mapping::new(file, offset, length.max(1), writable, *shared)
            .map_err(|error| errno(&error))?;
        if length == 0 {
            return Ok("nothing to map".into());
        }
        let before = mapping.read().map_err(|error| errno(&error))?;
        if writable {
            mapping
                .write(&vec![*seed; length.div_ceil(2)])
                .map_err(|error| errno(&error))?;
        }
        if *sync {
            mapping.sync().map_err(|error| errno(&error))?;
        }
        let after = mapping.read().map_err(|error| errno(&error))?;
        Ok(format!("{}, then {}", digest(&before), digest(&after)))
    }

    fn manage(&self, op: &Op) -> Outcome {
        match op {
            Op::SlotTruncate { slot, length } => {
                done(rustix::fs::ftruncate(self.held(*slot)?, *length))
            }
            Op::SlotFallocate {
                slot,
                flags,
                offset,
                length,
            } => {
                let file = self.held(*slot)?;
                done(rustix::fs::fallocate(file, *flags, *offset, *length))
            }
            Op::SlotSync { slot } => done(rustix::fs::fdatasync(self.held(*slot)?)),
            Op::SlotList { slot } => {
                let file = self.held(*slot)?;
                rustix::fs::seek(file, SeekFrom::Start(0))?;
                list_open(file)
            }
            Op::SlotReadlink { slot } => rustix::fs::readlinkat(self.held(*slot)?, "", Vec::new())
                .map(|target| format!("{target:?}")),
            Op::SlotFlock { slot, operation } => {
                done(rustix::fs::flock(self.held(*slot)?, *operation))
            }
            Op::SlotLock {
                slot,
                kind,
                start,
                length,
            } => raw::lock(self.held(*slot)?, *kind, *start, *length)
                .map(|()| String::new())
                .map_err(|error| errno(&error)),
            Op::SlotLink { slot, to } => done(rustix::fs::linkat(
                self.held(*slot)?,
                "",
                self.root(),
                to,
                AtFlags::EMPTY_PATH,
            )),
            Op::SlotListXattr { slot } => {
                let mut names = vec![0; 64 << 10];
                let length = rustix::fs::flistxattr(self.held(*slot)?, &mut names[..])?;
                Ok(show_names(&names[..length]))
            }
            Op::SlotStat { slot } => {
                let held = self.slots[*slot].as_ref().ok_or(Errno::BADF)?;
                let stat = rustix::fs::fstat(&held.file)?;
                let same = if stat.st_ino == held.number {
                    ""
                } else {
                    " with another number than when it was opened"
                };
                Ok(show_stat(&stat) + same)
            }
            _ => self.change_attributes(op),
        }
    }

    fn change_attributes(&self, op: &Op) -> Outcome {
        let (Op::SlotChmod { slot, .. }
        | Op::SlotXattr { slot, .. }
        | Op::SlotChown { slot, .. }
        | Op::SlotUtimens { slot, .. }) = op
        else {
            unreachable!("{op:?} is not about an open file")
        };
        let file = self.held(*slot)?;
        let is_file = rustix::fs::fstat(file)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
        if !is_file {
            return Err(Errno::INVAL); // overlayfs gives a removed fifo its name back
        }
        match op {
            Op::SlotChmod { mode, .. } => done(rustix::fs::fchmod(file, self.settable(*mode))),
            Op::SlotChown { uid, gid, .. } => {
                let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
                done(rustix::fs::fchown(file, uid, gid))
            }
            Op::SlotUtimens { times, .. } => done(rustix::fs::futimens(file, &timestamps(times))),
            Op::SlotXattr { name, value, .. } => done(rustix::fs::fsetxattr(
                file,
                name,
                value,
                XattrFlags::empty(),
            )),
            other => unreachable!("{other:?} changes no attributes"),
        }
    }
}
