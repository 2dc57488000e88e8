//! Importing a directory tree as a layer: a deterministic archive of it is made on the way.
//!
//! The tree is taken as it is, attributes included, but for sockets, which an archive cannot hold,
//! and the labels of SELinux, which are the host's. Mount points in it are followed. It is walked
//! by descriptors, one directory at a time, so that paths may be of any length and no symbolic link
//! is ever followed.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, SeekFrom, Stat, fstat, major, minor, openat,
    readlinkat, seek, statat,
};
use rustix::io::Errno;

use super::error::{ImportError, Problem};
use super::import::{ImportOptions, Progress, stage};
use super::sparse::{SEGMENTS_MAX, Segment};
use super::write::{EntryKind, EntryMeta, LayerWriter};
use super::xattrs;
use crate::store::{LayerInfo, Store, Transaction};

/// Imports a directory tree into a store as one layer.
///
/// # Errors
/// As [`super::import_layer`], and when something in the directory cannot be read or changes while
/// it is read.
pub fn import_dir(
    store: &Store,
    dir: &Path,
    options: &ImportOptions<'_>,
) -> Result<LayerInfo, ImportError> {
    let txn = Transaction::begin(store)?;
    let info = stage_dir(&txn, dir, options)?;
    txn.commit()?;
    Ok(info)
}

/// Imports a directory tree as a part of a transaction.
///
/// # Errors
/// As [`import_dir`].
pub fn stage_dir(
    txn: &Transaction<'_>,
    dir: &Path,
    options: &ImportOptions<'_>,
) -> Result<LayerInfo, ImportError> {
    let name = dir.display().to_string();
    let (overlay, progress) = (options.overlay, options.progress);
    stage(txn, &name, options, |out| {
        let written = write_dir(dir, overlay, progress, BufWriter::new(&mut *out));
        match written.and_then(|()| out.flush().map_err(Problem::Read)) {
            // Nobody reads any more: the import has failed for another reason.
            Err(Problem::Read(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => result,
        }
    })
}

/// Writes an archive of a directory tree.
fn write_dir(
    dir: &Path,
    overlay: bool,
    progress: &dyn Progress,
    out: impl Write,
) -> Result<(), Problem> {
    let mut walk = Walk {
        root: dir,
        overlay,
        progress,
        out: LayerWriter::new(out),
        links: HashMap::new(),
    };
    walk.run()?;
    walk.out.finish().map_err(Problem::Read)?;
    Ok(())
}

/// What tells one file from all others.
type Identity = (u64, u64);

fn identity(stat: &Stat) -> Identity {
    (stat.st_dev, stat.st_ino)
}

/// A directory that is being walked: its names are still to be done, last first.
struct Level {
    path: Vec<u8>,
    id: Identity,
    names: Vec<Vec<u8>>,
}

struct Walk<'a, W: Write> {
    root: &'a Path,
    overlay: bool,
    progress: &'a dyn Progress,
    out: LayerWriter<W>,
    /// Paths of the files with several names.
    links: HashMap<Identity, Vec<u8>>,
}

impl<W: Write> Walk<'_, W> {
    fn run(&mut self) -> Result<(), Problem> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut dir = openat(CWD, self.root, flags, Mode::empty())
            .map_err(|errno| self.failed("open", b"", errno))?;
        let first = self.enter(&dir, Vec::new())?;
        let mut levels = vec![first];
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.names.pop() else {
                levels.pop();
                if let Some(parent) = levels.last() {
                    dir = self.back(&dir, parent)?;
                }
                continue;
            };
            let mut path = level.path.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            let stat = statat(&dir, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|errno| self.failed("examine", &path, errno))?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                let flags = flags | OFlags::NOFOLLOW;
                let child = openat(&dir, name.as_slice(), flags, Mode::empty())
                    .map_err(|errno| self.failed("open", &path, errno))?;
                levels.push(self.enter(&child, path)?);
                dir = child;
            } else {
                self.leaf(&dir, &name, &path, &stat)?;
            }
        }
        Ok(())
    }

    /// Adds a directory and reads its names.
    fn enter(&mut self, dir: &OwnedFd, path: Vec<u8>) -> Result<Level, Problem> {
        let stat = fstat(dir).map_err(|errno| self.failed("examine", &path, errno))?;
        let found = xattrs::of_fd(dir.as_fd())
            .map_err(|errno| self.failed("read the attributes of", &path, errno))?;
        let marks = self.marks(&path, &found)?;
        self.add(&path, &stat, found, EntryKind::Directory)?;
        if marks.opaque {
            self.out.opaque(&path).map_err(Problem::Read)?;
        }
        let mut names = Vec::new();
        let entries = Dir::read_from(dir).map_err(|errno| self.failed("read", &path, errno))?;
        for entry in entries {
            let entry = entry.map_err(|errno| self.failed("read", &path, errno))?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        }
        names.sort_unstable_by(|a, b| b.cmp(a));
        Ok(Level {
            path,
            id: identity(&stat),
            names,
        })
    }

    /// Back to the directory above.
    fn back(&self, dir: &OwnedFd, parent: &Level) -> Result<OwnedFd, Problem> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let up = openat(dir, c"..", flags, Mode::empty())
            .map_err(|errno| self.failed("open", &parent.path, errno))?;
        let stat = fstat(&up).map_err(|errno| self.failed("examine", &parent.path, errno))?;
        if identity(&stat) != parent.id {
            return Err(self.unfit(&parent.path, "the directory was moved while it was read"));
        }
        Ok(up)
    }

    /// Adds something that is not a directory.
    fn leaf(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        path: &[u8],
        stat: &Stat,
    ) -> Result<(), Problem> {
        let file_type = FileType::from_raw_mode(stat.st_mode);
        if file_type == FileType::Socket {
            tracing::warn!("{} is a socket and left out", self.full(path).display());
            return Ok(());
        }
        let (major, minor) = (major(stat.st_rdev), minor(stat.st_rdev));
        let device = file_type == FileType::CharacterDevice;
        if self.overlay && device && (major, minor) == (0, 0) {
            return self.out.whiteout(path).map_err(Problem::Read);
        }
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&identity(stat)) {
                let first = first.clone();
                return self.add(path, stat, Vec::new(), EntryKind::HardLink(&first));
            }
            self.links.insert(identity(stat), path.to_vec());
        }
        if file_type == FileType::RegularFile {
            return self.file(dir, name, path);
        }
        let place = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
        let found = xattrs::of_path(&place.join(OsStr::from_bytes(name)))
            .map_err(|errno| self.failed("read the attributes of", path, errno))?;
        match file_type {
            FileType::Symlink => {
                let target = readlinkat(dir, name, Vec::new())
                    .map_err(|errno| self.failed("read", path, errno))?;
                self.add(path, stat, found, EntryKind::Symlink(target.as_bytes()))
            }
            FileType::CharacterDevice => {
                self.add(path, stat, found, EntryKind::CharDevice { major, minor })
            }
            FileType::BlockDevice => {
                self.add(path, stat, found, EntryKind::BlockDevice { major, minor })
            }
            FileType::Fifo => self.add(path, stat, found, EntryKind::Fifo),
            _ => Err(self.unfit(path, "it is of a kind that an archive cannot hold")),
        }
    }

    fn file(&mut self, dir: &OwnedFd, name: &[u8], path: &[u8]) -> Result<(), Problem> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = openat(dir, name, flags, Mode::empty())
            .map_err(|errno| self.failed("open", path, errno))?;
        let stat = fstat(&file).map_err(|errno| self.failed("examine", path, errno))?;
        let found = xattrs::of_fd(file.as_fd())
            .map_err(|errno| self.failed("read the attributes of", path, errno))?;
        let marks = self.marks(path, &found)?;
        if marks.whiteout {
            return self.out.whiteout(path).map_err(Problem::Read);
        }
        let size = stat.st_size as u64;
        let file = File::from(file);
        let holes = (stat.st_blocks as u64).saturating_mul(512) < size;
        let segments = if holes {
            segments(&file, size).map_err(|errno| self.failed("find the holes of", path, errno))?
        } else {
            None
        };
        let mut data = Data {
            file: &file,
            segments: segments.as_deref().unwrap_or_default().to_vec().into(),
            whole: segments.is_none().then_some(0),
            progress: self.progress,
        };
        let kind = EntryKind::File {
            size,
            segments: segments.as_deref(),
            data: &mut data,
        };
        self.add(path, &stat, found, kind)
    }

    fn add(
        &mut self,
        path: &[u8],
        stat: &Stat,
        mut found: Vec<(Vec<u8>, Vec<u8>)>,
        kind: EntryKind<'_>,
    ) -> Result<(), Problem> {
        if self.overlay {
            found = xattrs::without_marks(found);
        }
        let meta = EntryMeta {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: (stat.st_mtime, stat.st_mtime_nsec as u32),
            xattrs: found,
        };
        self.out.add(path, &meta, kind).map_err(|error| {
            let source = match error.kind() {
                io::ErrorKind::BrokenPipe => return Problem::Read(error),
                io::ErrorKind::UnexpectedEof => {
                    io::Error::other("it became shorter while it was read")
                }
                _ => error,
            };
            Problem::Source {
                action: "archive",
                path: self.full(path),
                source,
            }
        })
    }

    /// What overlayfs says of an object; nothing when the tree is taken as it is.
    fn marks(&self, path: &[u8], found: &[(Vec<u8>, Vec<u8>)]) -> Result<xattrs::Marks, Problem> {
        if !self.overlay {
            return Ok(xattrs::Marks::default());
        }
        let marks = xattrs::marks(found);
        if marks.elsewhere {
            return Err(self.unfit(
                path,
                "a part of it is in a lower layer (overlayfs redirect_dir or metacopy)",
            ));
        }
        Ok(marks)
    }

    fn full(&self, path: &[u8]) -> PathBuf {
        if path.is_empty() {
            return self.root.to_owned();
        }
        self.root.join(OsStr::from_bytes(path))
    }

    fn failed(&self, action: &'static str, path: &[u8], errno: Errno) -> Problem {
        Problem::Source {
            action,
            path: self.full(path),
            source: errno.into(),
        }
    }

    fn unfit(&self, path: &[u8], problem: &'static str) -> Problem {
        Problem::Unfit {
            path: self.full(path),
            problem,
        }
    }
}

/// Where a file has data; `None` if it cannot be told, or there are too many holes to list.
fn segments(file: &File, size: u64) -> Result<Option<Vec<Segment>>, Errno> {
    let mut segments = Vec::new();
    let mut end = 0;
    while end < size {
        let offset = match seek(file, SeekFrom::Data(end)) {
            Ok(offset) => offset,
            // Only a hole is left.
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        end = seek(file, SeekFrom::Hole(offset))?.min(size);
        if offset >= end || segments.len() == SEGMENTS_MAX {
            return Ok(None);
        }
        segments.push(Segment {
            offset,
            length: end - offset,
        });
    }
    Ok(Some(segments))
}

/// The data of a file without its holes.
struct Data<'a> {
    file: &'a File,
    segments: std::collections::VecDeque<Segment>,
    /// How far the file has been read, if all of it is data.
    whole: Option<u64>,
    progress: &'a dyn Progress,
}

impl Read for Data<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = match (&mut self.whole, self.segments.front_mut()) {
            (Some(offset), _) => {
                let count = self.file.read_at(buffer, *offset)?;
                *offset += count as u64;
                count
            }
            (None, None) => 0,
            (None, Some(segment)) => {
                let most = segment.length.min(buffer.len() as u64) as usize;
                let part = buffer.get_mut(..most).unwrap_or_default();
                let count = self.file.read_at(part, segment.offset)?;
                segment.offset += count as u64;
                segment.length -= count as u64;
                if segment.length == 0 {
                    self.segments.pop_front();
                }
                count
            }
        };
        self.progress.bytes(count as u64);
        Ok(count)
    }
}
