//! Carrying out an operation on one filesystem.

use std::fmt::Write as _;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{
    Access, AtFlags, Dir, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid,
    XattrFlags,
};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::known::passes_through;
use super::lowers::LOWER_TIME;
use super::op::{Op, Outcome, Step};
use super::side::Side;

impl Step {
    /// Asks `side` for it.
    pub fn apply(&self, side: &mut Side) -> Outcome {
        if self.as_user {
            become_user(1000);
        }
        let outcome = side.apply(&self.op);
        if self.as_user {
            become_user(0);
        }
        outcome
    }
}

/// Switches this thread's effective ids; its real ones stay root's, so that it can come back.
fn become_user(id: u32) {
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    let set_uid = || rustix::thread::set_thread_res_uid(None, uid, None);
    let set_gid = || rustix::thread::set_thread_res_gid(None, gid, None);
    // The group first on the way down, the user first on the way up: each needs root's rights.
    let switched = if id == 0 {
        set_uid().and_then(|()| set_gid())
    } else {
        set_gid().and_then(|()| set_uid())
    };
    switched.expect("switching ids");
}

impl Side {
    fn apply(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Open { .. }
            | Op::Close { .. }
            | Op::SlotRead { .. }
            | Op::SlotWrite { .. }
            | Op::SlotTruncate { .. }
            | Op::SlotStat { .. }
            | Op::SlotChmod { .. }
            | Op::SlotXattr { .. }
            | Op::SlotSync { .. }
            | Op::SlotLink { .. } => self.apply_to_slot(op),
            Op::Write { .. }
            | Op::Read { .. }
            | Op::Truncate { .. }
            | Op::Segments { .. }
            | Op::Fallocate { .. }
            | Op::CopyRange { .. }
            | Op::Fsync { .. } => self.apply_to_data(op),
            Op::SetXattr { .. }
            | Op::GetXattr { .. }
            | Op::ListXattr { .. }
            | Op::RemoveXattr { .. } => self.apply_to_xattrs(op),
            _ => self.apply_to_names(op),
        }
    }

    fn open(&self, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::NONBLOCK | OFlags::CLOEXEC;
        rustix::fs::openat(self.root(), path, flags, Mode::from_raw_mode(0o644))
    }

    fn apply_to_data(&self, op: &Op) -> Outcome {
        match op {
            Op::Write {
                path,
                flags,
                mode,
                offset,
                length,
                seed,
            } => {
                let flags = *flags | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let fd = rustix::fs::openat(self.root(), path, flags, Mode::from_raw_mode(*mode))?;
                write(&File::from(fd), *offset, *length, *seed)
            }
            Op::Read {
                path,
                offset,
                length,
            } => read(
                &File::from(self.open(path, OFlags::RDONLY)?),
                *offset,
                *length,
            ),
            Op::Truncate { path, length } => done(rustix::fs::ftruncate(
                self.open(path, OFlags::WRONLY)?,
                *length,
            )),
            Op::Segments { path } => segments(&self.open(path, OFlags::RDONLY)?),
            Op::Fallocate {
                path,
                flags,
                offset,
                length,
            } => done(rustix::fs::fallocate(
                self.open(path, OFlags::RDWR)?,
                *flags,
                *offset,
                *length,
            )),
            Op::CopyRange {
                from,
                to,
                offset_in,
                offset_out,
                length,
            } => {
                let source = self.open(from, OFlags::RDONLY)?;
                let target = self.open(to, OFlags::WRONLY)?;
                if same_file(&source, &target)? {
                    // Who reads what he had opened before it was first opened for writing is
                    // another test's subject.
                    drop((source, target));
                    let both = self.open(to, OFlags::RDWR)?;
                    return copy_range(&both, &both, *offset_in, *offset_out, *length);
                }
                copy_range(&source, &target, *offset_in, *offset_out, *length)
            }
            Op::Fsync { path } => done(rustix::fs::fsync(self.open(path, OFlags::RDONLY)?)),
            other => unreachable!("{other:?} is not about data"),
        }
    }

    fn apply_to_names(&self, op: &Op) -> Outcome {
        let root = self.root();
        match op {
            Op::Mkdir { path, mode } => {
                done(rustix::fs::mkdirat(root, path, Mode::from_raw_mode(*mode)))
            }
            Op::Mknod {
                path,
                kind,
                mode,
                device,
            } => done(rustix::fs::mknodat(
                root,
                path,
                *kind,
                Mode::from_raw_mode(*mode),
                *device,
            )),
            Op::Symlink { target, path } => done(rustix::fs::symlinkat(target, root, path)),
            Op::Readlink { path } => {
                rustix::fs::readlinkat(root, path, Vec::new()).map(|target| format!("{target:?}"))
            }
            Op::Link { from, to, follow } => {
                let flags = if *follow {
                    AtFlags::SYMLINK_FOLLOW
                } else {
                    AtFlags::empty()
                };
                done(rustix::fs::linkat(root, from, root, to, flags))
            }
            Op::Unlink { path } => done(rustix::fs::unlinkat(root, path, AtFlags::empty())),
            Op::Rmdir { path } => done(rustix::fs::unlinkat(root, path, AtFlags::REMOVEDIR)),
            Op::RemoveTree { path } => remove_tree(root, path.as_bytes()),
            Op::Rename { from, to, flags } => {
                done(rustix::fs::renameat_with(root, from, root, to, *flags))
            }
            Op::Chmod { path, mode } => done(rustix::fs::chmodat(
                root,
                path,
                self.settable(*mode),
                AtFlags::empty(),
            )),
            Op::Chown {
                path,
                uid,
                gid,
                follow,
            } => {
                let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
                done(rustix::fs::chownat(
                    root,
                    path,
                    uid,
                    gid,
                    follow_flag(*follow),
                ))
            }
            Op::Utimens {
                path,
                seconds,
                nanoseconds,
                follow,
            } => {
                let time = Timespec {
                    tv_sec: *seconds,
                    tv_nsec: *nanoseconds,
                };
                let times = Timestamps {
                    last_access: time,
                    last_modification: time,
                };
                done(rustix::fs::utimensat(
                    root,
                    path,
                    &times,
                    follow_flag(*follow),
                ))
            }
            Op::List { path } => list(root, path),
            Op::Stat { path, follow } => {
                rustix::fs::statat(root, path, follow_flag(*follow)).map(|stat| show_stat(&stat))
            }
            Op::Access { path, mode } => {
                let access = Access::from_bits_retain(*mode);
                done(rustix::fs::accessat(root, path, access, AtFlags::EACCESS))
            }
            Op::Statfs { path } => {
                let fd = self.open(path, OFlags::RDONLY)?;
                rustix::fs::fstatvfs(fd).map(|found| format!("names to {} bytes", found.f_namemax))
            }
            other => unreachable!("{other:?} is not about names"),
        }
    }

    fn apply_to_xattrs(&self, op: &Op) -> Outcome {
        // There are no *at calls for these before Linux 6.13.
        match op {
            Op::SetXattr {
                path,
                name,
                value,
                flags,
            } => done(rustix::fs::lsetxattr(
                self.absolute(path),
                name,
                value,
                *flags,
            )),
            Op::GetXattr { path, name } => {
                let mut value = vec![0; 64 << 10];
                let length = rustix::fs::lgetxattr(self.absolute(path), name, &mut value[..])?;
                Ok(value[..length].escape_ascii().to_string())
            }
            Op::ListXattr { path } => {
                let mut names = vec![0; 64 << 10];
                let length = rustix::fs::llistxattr(self.absolute(path), &mut names[..])?;
                let mut names: Vec<_> = names[..length]
                    .split(|&byte| byte == 0)
                    .map(<[u8]>::escape_ascii)
                    .map(|name| name.to_string())
                    .collect();
                names.sort();
                Ok(names.join(" ").trim().to_owned())
            }
            Op::RemoveXattr { path, name } => {
                done(rustix::fs::lremovexattr(self.absolute(path), name))
            }
            other => unreachable!("{other:?} is not about extended attributes"),
        }
    }

    fn apply_to_slot(&mut self, op: &Op) -> Outcome {
        if let Op::Open { slot, path, flags } = op {
            self.slots[*slot] = None;
            let fd = self.open(path, *flags)?;
            self.slots[*slot] = Some(File::from(fd));
            return Ok(String::new());
        }
        if let Op::Close { slot } = op {
            self.slots[*slot] = None;
            return Ok(String::new());
        }
        let slot = match op {
            Op::SlotRead { slot, .. }
            | Op::SlotWrite { slot, .. }
            | Op::SlotTruncate { slot, .. }
            | Op::SlotStat { slot }
            | Op::SlotChmod { slot, .. }
            | Op::SlotXattr { slot, .. }
            | Op::SlotSync { slot }
            | Op::SlotLink { slot, .. } => *slot,
            other => unreachable!("{other:?} is not about an open file"),
        };
        let Some(file) = &self.slots[slot] else {
            return Err(Errno::BADF);
        };
        let is_file = rustix::fs::fstat(file)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
        if !is_file && matches!(op, Op::SlotChmod { .. } | Op::SlotXattr { .. }) {
            return Err(Errno::INVAL); // overlayfs gives a removed fifo its name back
        }
        match op {
            Op::SlotRead { offset, length, .. } => read(file, *offset, *length),
            Op::SlotWrite {
                offset,
                length,
                seed,
                ..
            } => write(file, *offset, *length, *seed),
            Op::SlotTruncate { length, .. } => done(rustix::fs::ftruncate(file, *length)),
            Op::SlotChmod { mode, .. } => done(rustix::fs::fchmod(file, self.settable(*mode))),
            Op::SlotXattr { name, value, .. } => done(rustix::fs::fsetxattr(
                file,
                name,
                value,
                XattrFlags::empty(),
            )),
            Op::SlotSync { .. } => done(rustix::fs::fdatasync(file)),
            Op::SlotLink { to, .. } => done(rustix::fs::linkat(
                file,
                "",
                self.root(),
                to,
                AtFlags::EMPTY_PATH,
            )),
            _ => rustix::fs::fstat(file).map(|stat| show_stat(&stat)),
        }
    }
}

fn done(result: rustix::io::Result<()>) -> Outcome {
    result.map(|()| String::new())
}

fn follow_flag(follow: bool) -> AtFlags {
    if follow {
        AtFlags::empty()
    } else {
        AtFlags::SYMLINK_NOFOLLOW
    }
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

fn write(file: &File, offset: u64, length: usize, seed: u8) -> Outcome {
    let data: Vec<u8> = (0..length)
        .map(|at| seed.wrapping_add((at * 7 % 251) as u8))
        .collect();
    file.write_all_at(&data, offset)
        .map(|()| String::new())
        .map_err(|error| errno(&error))
}

fn read(file: &File, offset: u64, length: usize) -> Outcome {
    let mut data = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match file.read_at(&mut data[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) => return Err(errno(&error)),
        }
    }
    Ok(format!("{filled} bytes, {}", digest(&data[..filled])))
}

/// The first bytes of a SHA-256, as a number.
fn digest(data: &[u8]) -> String {
    let digest = Sha256::digest(data);
    let first = digest.first_chunk().copied().map(u64::from_be_bytes);
    format!("{:016x}", first.unwrap_or_default())
}

fn segments(fd: &OwnedFd) -> Outcome {
    let stat = rustix::fs::fstat(fd)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL); // positions in a directory mean nothing
    }
    // ext4 calls allocated, unwritten space data when it is in the page cache, else a hole: have it
    // there on all sides, the filesystem below a union included.
    rustix::fs::fadvise(fd, 0, None, rustix::fs::Advice::DontNeed)?;
    let mut buffer = vec![0; 1 << 16];
    let mut offset = 0;
    while let count @ 1.. = rustix::io::pread(fd, &mut buffer[..], offset)? {
        offset += count as u64;
    }
    let mut found = Vec::new();
    let mut at = 0;
    loop {
        match rustix::fs::seek(fd, SeekFrom::Data(at)) {
            Ok(start) => {
                let end = rustix::fs::seek(fd, SeekFrom::Hole(start))?;
                found.push(format!("{start}..{end}"));
                at = end;
            }
            Err(Errno::NXIO) => return Ok(found.join(" ")),
            Err(error) => return Err(error),
        }
    }
}

impl Side {
    /// A mode to change to. In passthrough mode, files that are open when they get set-id bits lose
    /// them by anybody's write.
    fn settable(&self, mode: u32) -> Mode {
        let mode = Mode::from_raw_mode(mode);
        if passes_through() && self.slots.iter().any(Option::is_some) {
            return mode - (Mode::SUID | Mode::SGID);
        }
        mode
    }
}

fn same_file(a: &OwnedFd, b: &OwnedFd) -> rustix::io::Result<bool> {
    let (a, b) = (rustix::fs::fstat(a)?, rustix::fs::fstat(b)?);
    Ok((a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
}

fn copy_range(
    source: &OwnedFd,
    target: &OwnedFd,
    mut from: u64,
    mut to: u64,
    length: usize,
) -> Outcome {
    let mut copied = 0;
    while copied < length {
        let count = rustix::fs::copy_file_range(
            source,
            Some(&mut from),
            target,
            Some(&mut to),
            length - copied,
        )?;
        if count == 0 {
            break;
        }
        copied += count;
    }
    Ok(format!("{copied} copied"))
}

fn list(root: impl AsFd, path: &str) -> Outcome {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(root, path, flags, Mode::empty())?;
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        names.push(format!(
            "{}:{:?}",
            entry.file_name().to_bytes().escape_ascii(),
            entry.file_type()
        ));
    }
    names.sort();
    Ok(names.join(" "))
}

fn remove_tree(dir: impl AsFd + Copy, name: &[u8]) -> Outcome {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        other => return done(other),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    let mut names: Vec<Vec<u8>> = Vec::new();
    for entry in Dir::read_from(&fd)? {
        names.push(entry?.file_name().to_bytes().to_vec());
    }
    names.sort(); // so that all sides have done the same when they fail half-way
    for child in names
        .iter()
        .filter(|child| *child != b"." && *child != b"..")
    {
        remove_tree(&fd, child)?;
    }
    done(rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR))
}

/// What of a stat all filesystems must agree on. Times of this test's own writes become "now".
fn show_stat(stat: &Stat) -> String {
    let kind = FileType::from_raw_mode(stat.st_mode);
    let mut text = format!(
        "{kind:?} {:04o} {}:{}",
        stat.st_mode & 0o7777,
        stat.st_uid,
        stat.st_gid
    );
    if kind != FileType::Directory {
        let _ = write!(text, " {} bytes {} links", stat.st_size, stat.st_nlink);
    }
    if matches!(kind, FileType::CharacterDevice | FileType::BlockDevice) {
        let _ = write!(text, " device {:#x}", stat.st_rdev);
    }
    let chosen = stat.st_mtime < LOWER_TIME + 100_000_000;
    text + &if chosen {
        format!(" {}.{:09}", stat.st_mtime, stat.st_mtime_nsec)
    } else {
        " now".into()
    }
}
