//! A FUSE filesystem served by the test itself: one directory of files that the test makes up, and
//! that fail when the test wants them to.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyWrite, Request, WriteFlags,
};

use super::sandbox::{detach, mounted_type};

/// What is behind a file.
pub trait Backing: Send + Sync {
    /// Its size in bytes.
    fn size(&self) -> Result<u64, Errno>;
    /// What is at `offset`, at most `size` bytes.
    fn read(&self, offset: u64, size: usize) -> Result<Vec<u8>, Errno>;
    /// Writes all of `data`.
    fn write(&self, _offset: u64, _data: &[u8]) -> Result<(), Errno> {
        Err(Errno::EROFS)
    }
    /// Makes durable what was written.
    fn sync(&self) -> Result<(), Errno> {
        Ok(())
    }
}

/// A live one.
pub struct Fake {
    target: PathBuf,
    session: Option<BackgroundSession>,
}

impl Fake {
    /// Serves `files` at the directory `target`.
    pub fn mount(target: &Path, files: Vec<(String, Arc<dyn Backing>)>) -> Self {
        let session = fuser::spawn_mount(Server { files }, target, &fuser::Config::default())
            .expect("a FUSE mount of the test's own");
        Self {
            target: target.to_owned(),
            session: Some(session),
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        if mounted_type(&self.target).is_some() {
            detach(&self.target);
        }
        // Ends when the kernel lets go of the mount; joining could wait for somebody who has not.
        drop(self.session.take());
    }
}

struct Server {
    files: Vec<(String, Arc<dyn Backing>)>,
}

const NO_TIME: Duration = Duration::ZERO;
const FIRST: u64 = 2;

impl Server {
    fn file(&self, ino: INodeNo) -> Result<&dyn Backing, Errno> {
        let at = ino.0.checked_sub(FIRST).ok_or(Errno::EISDIR)?;
        let file = self.files.get(at as usize).ok_or(Errno::ENOENT)?;
        Ok(&*file.1)
    }

    fn attr(&self, ino: INodeNo) -> Result<FileAttr, Errno> {
        let is_root = ino == INodeNo::ROOT;
        let size = if is_root { 0 } else { self.file(ino)?.size()? };
        Ok(FileAttr {
            ino,
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_root {
                FileType::Directory
            } else {
                FileType::RegularFile
            },
            perm: 0o755,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

impl Filesystem for Server {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let at = (self.files.iter()).position(|(own, _)| own.as_bytes() == name.as_bytes());
        let attr = at
            .ok_or(Errno::ENOENT)
            .and_then(|at| self.attr(INodeNo(at as u64 + FIRST)));
        match attr {
            Ok(attr) => reply.entry(&NO_TIME, &attr, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(ino) {
            Ok(attr) => reply.attr(&NO_TIME, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // Nothing is cached: every read and write is the test's to see.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = self.file(ino);
        match read.and_then(|file| file.read(offset, size as usize)) {
            Ok(data) => reply.data(&data),
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.file(ino).and_then(|file| file.write(offset, data)) {
            Ok(()) => reply.written(data.len() as u32),
            Err(errno) => reply.error(errno),
        }
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        match self.file(ino).and_then(Backing::sync) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: i32,
        reply: ReplyEmpty,
    ) {
        // Zeros are written, then.
        reply.error(Errno::EOPNOTSUPP);
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let dots = [".", ".."].map(|name| (ino.0, FileType::Directory, name));
        let files = (self.files.iter().enumerate())
            .map(|(at, (name, _))| (at as u64 + FIRST, FileType::RegularFile, name.as_str()));
        for (at, (ino, kind, name)) in dots.into_iter().chain(files).enumerate() {
            if (at as u64) >= offset && reply.add(INodeNo(ino), at as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }
}
