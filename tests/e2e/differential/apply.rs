//! Carrying out an operation on one filesystem.

use std::fmt::Write as _;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{
    Access, AtFlags, Dir, FileType, Gid, Mode, OFlags, RenameFlags, SeekFrom, Stat, Timespec,
    Timestamps, Uid,
};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::known::passes_through;
use super::lowers::LOWER_TIME;
use super::op::{Op, Outcome, Step, Time, Who};
use super::side::{Kind, Side};

impl Step {
    /// Asks `side` for it.
    pub fn apply(&self, side: &mut Side) -> Outcome {
        let umask = rustix::process::umask(Mode::from_raw_mode(self.umask));
        let before = side.touched_in_vain(&self.op);
        become_who(self.who);
        let outcome = side.apply(&self.op);
        become_who(Who::Root);
        rustix::process::umask(umask);
        if let (Err(_), Some((dir, times))) = (&outcome, before) {
            rustix::fs::utimensat(side.root(), dir, &times, AtFlags::empty()).expect("utimensat");
        }
        outcome
    }
}

/// Switches this thread's effective ids; its real ones stay root's, so that it can come back.
fn become_who(who: Who) {
    let (uid, gid, groups): (u32, u32, &[u32]) = match who {
        Who::Root => (0, 0, &[]),
        Who::User => (1000, 1000, &[]),
        Who::Grouped => (1000, 2000, &[1000, 3000]),
        Who::Stranger => (2000, 2000, &[]),
    };
    let groups: Vec<Gid> = groups.iter().map(|&gid| Gid::from_raw(gid)).collect();
    let set_uid = || rustix::thread::set_thread_res_uid(None, Uid::from_raw(uid), None);
    let set_gid = || rustix::thread::set_thread_res_gid(None, Gid::from_raw(gid), None);
    let set_groups = || rustix::thread::set_thread_groups(&groups);
    // The groups first on the way down, the user first on the way up: each needs root's rights.
    let switched = if uid == 0 {
        set_uid()
            .and_then(|()| set_gid())
            .and_then(|()| set_groups())
    } else {
        set_groups()
            .and_then(|()| set_gid())
            .and_then(|()| set_uid())
    };
    switched.expect("switching ids");
}

impl Side {
    /// A directory of which ext4 changes the time even if the operation fails, and its times: the old
    /// one of a rename that leaves a whiteout.
    fn touched_in_vain(&self, op: &Op) -> Option<(String, Timestamps)> {
        let Op::Rename { from, flags, .. } = op else {
            return None;
        };
        if self.kind != Kind::Native || !flags.contains(RenameFlags::WHITEOUT) {
            return None;
        }
        let dir = from.rsplit_once('/').map_or(".", |(dir, _)| dir);
        let stat = rustix::fs::statat(self.root(), dir, AtFlags::empty()).ok()?;
        let time = |tv_sec, tv_nsec: u64| Timespec {
            tv_sec,
            tv_nsec: tv_nsec as i64,
        };
        let times = Timestamps {
            last_access: time(stat.st_atime, stat.st_atime_nsec),
            last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
        };
        Some((dir.to_owned(), times))
    }

    fn apply(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Write { .. }
            | Op::Read { .. }
            | Op::Truncate { .. }
            | Op::Segments { .. }
            | Op::Fallocate { .. }
            | Op::CopyRange { .. }
            | Op::Syncfs
            | Op::Fsync { .. } => self.apply_to_data(op),
            Op::SetXattr { .. }
            | Op::GetXattr { .. }
            | Op::ListXattr { .. }
            | Op::XattrRoom { .. }
            | Op::RemoveXattr { .. } => self.apply_to_xattrs(op),
            Op::Mkdir { .. }
            | Op::Mknod { .. }
            | Op::Symlink { .. }
            | Op::Readlink { .. }
            | Op::Link { .. }
            | Op::Unlink { .. }
            | Op::Rmdir { .. }
            | Op::RemoveTree { .. }
            | Op::Rename { .. }
            | Op::Chmod { .. }
            | Op::Chown { .. }
            | Op::Utimens { .. } => self.apply_to_names(op),
            Op::List { .. }
            | Op::ListSeeking { .. }
            | Op::Stat { .. }
            | Op::Access { .. }
            | Op::Statfs { .. } => self.ask(op),
            _ => self.apply_to_slot(op),
        }
    }

    pub(super) fn open(&self, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        self.open_with(path, flags, 0o644)
    }

    pub(super) fn open_with(&self, path: &str, flags: OFlags, mode: u32) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::NONBLOCK | OFlags::CLOEXEC;
        rustix::fs::openat(self.root(), path, flags, Mode::from_raw_mode(mode))
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
            Op::Syncfs => done(rustix::fs::syncfs(self.root())),
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
            Op::Chmod { path, mode, follow } => done(rustix::fs::chmodat(
                root,
                path,
                self.settable(*mode),
                follow_flag(*follow),
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
                times,
                follow,
            } => done(rustix::fs::utimensat(
                root,
                path,
                &timestamps(times),
                follow_flag(*follow),
            )),
            other => unreachable!("{other:?} is not about names"),
        }
    }

    fn ask(&self, op: &Op) -> Outcome {
        let root = self.root();
        match op {
            Op::List { path } => list(root, path),
            Op::Stat { path, follow } => {
                rustix::fs::statat(root, path, follow_flag(*follow)).map(|stat| show_stat(&stat))
            }
            Op::Access { path, mode } => {
                let access = Access::from_bits_retain(*mode);
                done(rustix::fs::accessat(root, path, access, AtFlags::EACCESS))
            }
            Op::ListSeeking { path, every } => list_seeking(root, path, *every),
            Op::Statfs { path } => {
                let fd = self.open(path, OFlags::RDONLY)?;
                let found = rustix::fs::fstatvfs(fd)?;
                Ok(format!(
                    "names to {} bytes, {} blocks of {}, {} files",
                    found.f_namemax, found.f_blocks, found.f_frsize, found.f_files
                ))
            }
            other => unreachable!("{other:?} is no question"),
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
                Ok(show_names(&names[..length]))
            }
            Op::XattrRoom { path, name, room } => {
                let mut value = vec![0; *room];
                let length = rustix::fs::lgetxattr(self.absolute(path), name, &mut value[..])?;
                Ok(format!("{length} bytes"))
            }
            Op::RemoveXattr { path, name } => {
                done(rustix::fs::lremovexattr(self.absolute(path), name))
            }
            other => unreachable!("{other:?} is not about extended attributes"),
        }
    }
}

pub(super) fn done(result: rustix::io::Result<()>) -> Outcome {
    result.map(|()| String::new())
}

pub(super) fn follow_flag(follow: bool) -> AtFlags {
    if follow {
        AtFlags::empty()
    } else {
        AtFlags::SYMLINK_NOFOLLOW
    }
}

pub(super) fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

pub(super) fn write(file: &File, offset: u64, length: usize, seed: u8) -> Outcome {
    let data: Vec<u8> = (0..length)
        .map(|at| seed.wrapping_add((at * 7 % 251) as u8))
        .collect();
    if is_fifo(file) {
        return Err(Errno::SPIPE);
    }
    file.write_all_at(&data, offset)
        .map(|()| String::new())
        .map_err(|error| errno(&error))
}

pub(super) fn is_fifo(file: &File) -> bool {
    rustix::fs::fstat(file)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo)
}

pub(super) fn read(file: &File, offset: u64, length: usize) -> Outcome {
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
pub(super) fn digest(data: &[u8]) -> String {
    let digest = Sha256::digest(data);
    let first = digest.first_chunk().copied().map(u64::from_be_bytes);
    format!("{:016x}", first.unwrap_or_default())
}

pub(super) fn segments(fd: &OwnedFd) -> Outcome {
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
    pub(super) fn settable(&self, mode: u32) -> Mode {
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

pub(super) fn copy_range(
    source: impl AsFd,
    target: impl AsFd,
    mut from: u64,
    mut to: u64,
    length: usize,
) -> Outcome {
    let mut copied = 0;
    while copied < length {
        let count = rustix::fs::copy_file_range(
            &source,
            Some(&mut from),
            &target,
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

/// A list of extended attributes, in order.
pub(super) fn show_names(list: &[u8]) -> String {
    let mut names: Vec<_> = list
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| name.escape_ascii().to_string())
        .collect();
    names.sort();
    names.join(" ")
}

pub(super) fn timestamps(times: &[Time; 2]) -> Timestamps {
    let [last_access, last_modification] = times.map(|time| match time {
        Time::At(tv_sec, tv_nsec) => Timespec { tv_sec, tv_nsec },
        Time::Now => Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_NOW,
        },
        Time::Omit => Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_OMIT,
        },
    });
    Timestamps {
        last_access,
        last_modification,
    }
}

/// Lists with room for few entries at a time, and after every `every` of them goes back by one and
/// wants to be told the same name again.
fn list_seeking(root: impl AsFd, path: &str, every: usize) -> Outcome {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(root, path, flags, Mode::empty())?;
    let next = || -> Result<Option<(String, u64)>, Errno> {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 280]; // one entry with the longest name
        let mut raw = rustix::fs::RawDir::new(&dir, &mut buffer);
        let Some(entry) = raw.next().transpose()? else {
            return Ok(None);
        };
        let name = entry.file_name().to_bytes().escape_ascii().to_string();
        Ok(Some((name, entry.next_entry_cookie())))
    };
    let (mut names, mut at) = (Vec::new(), 0);
    loop {
        rustix::fs::seek(&dir, SeekFrom::Start(at))?;
        let Some((name, after)) = next()? else { break };
        if names.len() % every == 0 {
            rustix::fs::seek(&dir, SeekFrom::Start(at))?;
            let again = next()?.map(|(name, _)| name);
            if again.as_ref() != Some(&name) {
                return Ok(format!("at {at} first {name}, then {again:?}"));
            }
        }
        names.push(name);
        at = after;
    }
    names.sort();
    Ok(names.join(" "))
}

fn list(root: impl AsFd, path: &str) -> Outcome {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(root, path, flags, Mode::empty())?;
    list_open(&dir)
}

/// What a directory that is open lists.
pub(super) fn list_open(dir: impl AsFd) -> Outcome {
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
pub(super) fn show_stat(stat: &Stat) -> String {
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
