//! The FUSE boundary, the only place that names `fuser`: decode, call [`Union`], reply.
//!
//! What the kernel is told: everything is valid for ever, since nobody else changes the tree.
//! OPEN, OPENDIR, CREATE, FLUSH and ACCESS are answered `ENOSYS` once; the kernel then does them
//! alone (and creates with MKNOD). So there are no file handles: every request names a node.
//! Permissions are the kernel's to check (`default_permissions`).

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, SessionACL, TimeOrNow, WriteFlags,
};
use rustix::fs::{FallocateFlags, XattrFlags};

use crate::attr::{Attr, Kind};
use crate::error::FsResult;
use crate::lower::Number;
use crate::union::{Caller, Cookie, Listed, NewNode, RenameMode, Seek, SetAttr, Union};

mod convert;

use convert::{FOREVER, errno, file_attr, file_type, nothing};

/// How to serve a mount.
#[derive(Clone, Copy, Debug, Default)]
pub struct ServeOptions {
    /// Number of threads; as many as processors if not given.
    pub threads: Option<usize>,
}

/// Largest read or write request in bytes, the kernel's own limit.
const MAX_REQUEST: u32 = 1 << 20;

/// Serves a union over an open `/dev/fuse` that is already mounted, until it is unmounted.
/// `on_live` is called when the kernel's greeting was answered.
pub fn serve(
    device: OwnedFd,
    union: Arc<Union>,
    options: &ServeOptions,
    on_live: impl FnOnce(),
) -> io::Result<()> {
    // Modes come from requests.
    rustix::process::umask(rustix::fs::Mode::empty());
    let processors = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let mut config = fuser::Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(options.threads.unwrap_or(processors).max(1));
    let handler = Handler { union };
    let session = fuser::Session::from_fd(handler, device, SessionACL::All, config)?;
    on_live();
    session.run()
}

struct Handler {
    union: Arc<Union>,
}

thread_local! {
    /// Room for one read, kept by each thread.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn node(ino: INodeNo) -> Number {
    Number(ino.0)
}

fn caller(req: &Request) -> Caller {
    Caller {
        uid: req.uid(),
        gid: req.gid(),
    }
}

/// Whether a request without a flag for it takes set-id bits away. The kernel asks about
/// `CAP_FSETID`; the protocol, as fuser has it, tells only the user.
fn drops_privileges(req: &Request) -> bool {
    req.uid() != 0
}

fn reply_entry(op: &str, reply: ReplyEntry, result: FsResult<Attr>) {
    match result {
        Ok(attr) => reply.entry(&FOREVER, &file_attr(&attr), Generation(0)),
        Err(error) => reply.error(errno(op, &error)),
    }
}

fn reply_empty(op: &str, reply: ReplyEmpty, result: FsResult<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(op, &error)),
    }
}

fn reply_written(op: &str, reply: ReplyWrite, result: FsResult<usize>) {
    match result {
        Ok(count) => reply.written(count as u32),
        Err(error) => reply.error(errno(op, &error)),
    }
}

fn reply_xattr(reply: ReplyXattr, size: u32, result: FsResult<impl AsRef<[u8]>>) {
    match result {
        Ok(value) => match value.as_ref() {
            value if size == 0 => reply.size(value.len() as u32),
            value if value.len() > size as usize => reply.error(Errno::ERANGE),
            value => reply.data(value),
        },
        Err(error) => reply.error(errno("xattr", &error)),
    }
}

impl Handler {
    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        new: &NewNode<'_>,
        reply: ReplyEntry,
    ) {
        let made = self
            .union
            .create(node(parent), name.as_bytes(), new, caller(req));
        reply_entry("create", reply, made);
    }
}

impl Filesystem for Handler {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_BIG_WRITES,
            InitFlags::FUSE_MAX_PAGES,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_NO_OPEN_SUPPORT,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_DONT_MASK,
            InitFlags::FUSE_POSIX_ACL,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ];
        for flag in wanted {
            if config.add_capabilities(flag).is_err() {
                tracing::debug!("the kernel does not offer {flag:?}");
            }
        }
        // Both take what the kernel allows, if that is less.
        let limit = config
            .set_max_write(MAX_REQUEST)
            .or_else(|max| config.set_max_write(max));
        if limit.is_err() {
            return Err(io::Error::other("the kernel allows no writes of any size"));
        }
        Ok(())
    }

    fn destroy(&mut self) {
        if let Err(error) = self.union.close() {
            tracing::error!("cannot sync the upper directory: {error}");
        }
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.union.lookup(node(parent), name.as_bytes()) {
            Ok(None) => reply.entry(&FOREVER, &nothing(), Generation(0)),
            Ok(Some(attr)) => reply_entry("lookup", reply, Ok(attr)),
            Err(error) => reply_entry("lookup", reply, Err(error)),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, count: u64) {
        self.union.forget(node(ino), count);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.union.getattr(node(ino)) {
            Ok(attr) => reply.attr(&FOREVER, &file_attr(&attr)),
            Err(error) => reply.error(errno("getattr", &error)),
        }
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttr {
            mode,
            uid,
            gid,
            size,
            atime: atime.map(convert::set_time),
            mtime: mtime.map(convert::set_time),
        };
        match self.union.setattr(node(ino), &set, caller(req)) {
            Ok(attr) => reply.attr(&FOREVER, &file_attr(&attr)),
            Err(error) => reply.error(errno("setattr", &error)),
        }
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.union.readlink(node(ino)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno("readlink", &error)),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let Some(kind) = Kind::of_mode(mode).filter(|kind| *kind != Kind::Dir) else {
            return reply.error(Errno::EINVAL);
        };
        let rdev = convert::decode_device(rdev);
        let new = NewNode {
            kind,
            mode: mode & 0o7777,
            umask,
            rdev,
            target: b"",
        };
        self.create(req, parent, name, &new, reply);
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let mode = mode & 0o7777;
        let new = NewNode {
            kind: Kind::Dir,
            mode,
            umask,
            rdev: 0,
            target: b"",
        };
        self.create(req, parent, name, &new, reply);
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let target = target.as_os_str().as_bytes();
        let new = NewNode {
            kind: Kind::Symlink,
            mode: 0o777,
            umask: 0,
            rdev: 0,
            target,
        };
        self.create(req, parent, name, &new, reply);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(
            "unlink",
            reply,
            self.union.unlink(node(parent), name.as_bytes()),
        );
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(
            "rmdir",
            reply,
            self.union.rmdir(node(parent), name.as_bytes()),
        );
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            flags if flags.is_empty() => RenameMode::Replace,
            RenameFlags::RENAME_NOREPLACE => RenameMode::NoReplace,
            RenameFlags::RENAME_EXCHANGE => RenameMode::Exchange,
            RenameFlags::RENAME_WHITEOUT => RenameMode::Whiteout,
            _ => return reply.error(Errno::EINVAL),
        };
        let (name, newname) = (name.as_bytes(), newname.as_bytes());
        let renamed = self
            .union
            .rename(node(parent), name, node(newparent), newname, mode);
        reply_empty("rename", reply, renamed);
    }

    fn link(
        &self,
        _req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let linked = self
            .union
            .link(node(ino), node(newparent), newname.as_bytes());
        reply_entry("link", reply, linked);
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn create(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        BUFFER.with_borrow_mut(|buffer| {
            let mut reply = Some(reply);
            let read = self
                .union
                .read(node(ino), offset, size as usize, buffer, |data| {
                    if let Some(reply) = reply.take() {
                        reply.data(data);
                    }
                });
            if let (Err(error), Some(reply)) = (read, reply) {
                reply.error(errno("read", &error));
            }
        });
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let drops = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        reply_written(
            "write",
            reply,
            self.union.write(node(ino), offset, data, drops),
        );
    }

    fn fsync(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        reply_empty("fsync", reply, self.union.fsync(node(ino), datasync));
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        reply_empty("fsyncdir", reply, self.union.fsync(node(ino), datasync));
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listed = self.union.readdir(node(ino), Cookie(offset), &mut |item| {
            let name = OsStr::from_bytes(item.name);
            let (ino, next) = (INodeNo(item.number.0), item.next.0);
            if reply.add(ino, next, file_type(item.kind), name) {
                Listed::Full
            } else {
                Listed::Taken
            }
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno("readdir", &error)),
        }
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let listed = self
            .union
            .readdirplus(node(ino), Cookie(offset), &mut |item, attr| {
                let name = OsStr::from_bytes(item.name);
                let (ino, next, attr) = (INodeNo(item.number.0), item.next.0, file_attr(attr));
                if reply.add(ino, next, name, &FOREVER, &attr, Generation(0)) {
                    Listed::Full
                } else {
                    Listed::Taken
                }
            });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno("readdirplus", &error)),
        }
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match self.union.statfs() {
            Ok(stat) => {
                let [blocks, free, available] = stat.blocks;
                let [files, files_free] = stat.files;
                let size = stat.block_size as u32;
                reply.statfs(blocks, free, available, files, files_free, size, 255, size);
            }
            Err(error) => reply.error(errno("statfs", &error)),
        }
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let flags = XattrFlags::from_bits_retain(flags as u32);
        let set = self
            .union
            .setxattr(node(ino), name.as_bytes(), value, flags, caller(req));
        reply_empty("setxattr", reply, set);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        reply_xattr(reply, size, self.union.getxattr(node(ino), name.as_bytes()));
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        reply_xattr(reply, size, self.union.listxattr(node(ino), caller(req)));
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(
            "removexattr",
            reply,
            self.union.removexattr(node(ino), name.as_bytes()),
        );
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let mode = FallocateFlags::from_bits_retain(mode as u32);
        let drops = drops_privileges(req);
        let done = self.union.fallocate(node(ino), offset, length, mode, drops);
        reply_empty("fallocate", reply, done);
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let whence = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(Errno::ENXIO);
        };
        match self.union.lseek(node(ino), offset, whence) {
            Ok(at) => reply.offset(at as i64),
            Err(error) => reply.error(errno("lseek", &error)),
        }
    }

    fn copy_file_range(
        &self,
        req: &Request,
        ino_in: INodeNo,
        _fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The reply counts in 32 bits.
        let length = usize::try_from(len).unwrap_or(usize::MAX).min(1 << 30);
        let (from, to) = ((node(ino_in), offset_in), (node(ino_out), offset_out));
        let copied = self
            .union
            .copy_file_range(from, to, length, drops_privileges(req));
        reply_written("copy_file_range", reply, copied);
    }
}
