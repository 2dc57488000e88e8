//! Requests: decode, call [`Union`], reply.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use rustix::fs::{FallocateFlags, XattrFlags};

use super::convert::{self, FOREVER, errno, file_attr, file_type, nothing};
use super::opens::{Opened, Opens};
use crate::attr::{Attr, Kind};
use crate::error::FsResult;
use crate::lower::Number;
use crate::union::{Caller, Cookie, Listed, NewNode, RenameMode, Seek, SetAttr, Union};

/// Largest read or write request in bytes, the kernel's own limit.
const MAX_REQUEST: u32 = 1 << 20;

/// Serves the requests of a mount.
pub struct Handler {
    pub union: Arc<Union>,
    /// The open files in passthrough mode; in cached mode we are not told of any.
    pub opens: Option<Arc<Opens>>,
}

thread_local! {
    /// Room for one read, kept by each thread.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
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
    /// The number of a node id.
    fn node(&self, id: INodeNo) -> Number {
        let number = self.opens.as_ref().map(|opens| opens.aliases.number(id));
        // The union knows no such number, and says so.
        number.flatten().unwrap_or(Number(id.0))
    }

    /// For how long attributes are valid.
    fn attr_ttl(&self, number: Number) -> Duration {
        match &self.opens {
            Some(opens) if opens.aliases.has_alias(number) => Duration::ZERO,
            _ => FOREVER,
        }
    }

    fn reply_entry(&self, op: &str, reply: ReplyEntry, result: FsResult<Attr>) {
        let attr = match result {
            Ok(attr) => attr,
            Err(error) => return reply.error(errno(op, &error)),
        };
        let mut shown = file_attr(&attr);
        let opens = self.opens.as_ref();
        let alias = opens.and_then(|opens| opens.aliases.look_up(Number(attr.ino)));
        let ttl = match alias {
            Some(alias) => {
                shown.ino = alias;
                Duration::ZERO
            }
            None => FOREVER,
        };
        reply.entry_with_ttls(&ttl, &FOREVER, &shown, Generation(0));
    }

    fn reply_attr(&self, op: &str, reply: ReplyAttr, result: FsResult<Attr>) {
        match result {
            Ok(attr) => reply.attr(&self.attr_ttl(Number(attr.ino)), &file_attr(&attr)),
            Err(error) => reply.error(errno(op, &error)),
        }
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        new: &NewNode<'_>,
        reply: ReplyEntry,
    ) {
        let parent = self.node(parent);
        let made = self.union.create(parent, name.as_bytes(), new, caller(req));
        self.reply_entry("create", reply, made);
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
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_DONT_MASK,
            InitFlags::FUSE_POSIX_ACL,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ];
        let by_mode = match &self.opens {
            None => InitFlags::FUSE_NO_OPEN_SUPPORT,
            Some(_) => InitFlags::FUSE_ATOMIC_O_TRUNC,
        };
        for flag in wanted.into_iter().chain([by_mode]) {
            if config.add_capabilities(flag).is_err() {
                tracing::debug!("the kernel does not offer {flag:?}");
            }
        }
        if self.opens.is_some() {
            let offered = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH);
            // Overlayfs can still be mounted on top.
            if offered.is_err() || config.set_max_stack_depth(1).is_err() {
                return Err(io::Error::other(
                    "the kernel has no FUSE passthrough (Linux 6.9): use --io cached",
                ));
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
        match self.union.lookup(self.node(parent), name.as_bytes()) {
            Ok(None) => reply.entry(&FOREVER, &nothing(), Generation(0)),
            Ok(Some(attr)) => self.reply_entry("lookup", reply, Ok(attr)),
            Err(error) => self.reply_entry("lookup", reply, Err(error)),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, count: u64) {
        match &self.opens {
            Some(opens) => opens.forget(ino, count),
            None => self.union.forget(Number(ino.0), count),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.reply_attr("getattr", reply, self.union.getattr(self.node(ino)));
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
        let caller = caller(req);
        let change = |number| self.union.setattr(number, &set, caller);
        let changed = match &self.opens {
            Some(opens) if size.is_some() => opens.truncate(ino, caller, change),
            _ => change(self.node(ino)),
        };
        self.reply_attr("setattr", reply, changed);
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.union.readlink(self.node(ino)) {
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
            self.union.unlink(self.node(parent), name.as_bytes()),
        );
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(
            "rmdir",
            reply,
            self.union.rmdir(self.node(parent), name.as_bytes()),
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
        let renamed =
            self.union
                .rename(self.node(parent), name, self.node(newparent), newname, mode);
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
            .link(self.node(ino), self.node(newparent), newname.as_bytes());
        self.reply_entry("link", reply, linked);
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let Some(opens) = &self.opens else {
            return reply.error(Errno::ENOSYS);
        };
        let opened = opens.open(ino, flags.0, caller(req), &|fd| reply.open_backing(fd));
        let none = FileHandle(0);
        match opened {
            Ok(Opened::Cached(flags)) => reply.opened(none, flags),
            Ok(Opened::Backed(id)) => reply.opened_passthrough(none, FopenFlags::empty(), &id),
            Err(error) => reply.error(errno("open", &error)),
        }
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        if let Some(opens) = &self.opens {
            opens.release(ino);
        }
        reply.ok();
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let Some(opens) = &self.opens else {
            return reply.error(Errno::ENOSYS);
        };
        let new = NewNode {
            kind: Kind::File,
            mode: mode & 0o7777,
            umask,
            rdev: 0,
            target: b"",
        };
        let caller = caller(req);
        let parent = self.node(parent);
        let attr = match self.union.create(parent, name.as_bytes(), &new, caller) {
            Ok(attr) => attr,
            Err(error) => return reply.error(errno("create", &error)),
        };
        let ino = INodeNo(attr.ino);
        let flags = flags & !libc::O_TRUNC;
        let opened = opens.open(ino, flags, caller, &|fd| reply.open_backing(fd));
        let (none, new, attr) = (FileHandle(0), Generation(0), file_attr(&attr));
        match opened {
            Ok(Opened::Cached(flags)) => reply.created(&FOREVER, &attr, new, none, flags),
            Ok(Opened::Backed(id)) => {
                let flags = FopenFlags::empty();
                reply.created_passthrough(&FOREVER, &attr, new, none, flags, &id);
            }
            Err(error) => {
                // The kernel does not hear of it.
                opens.forget(ino, 1);
                reply.error(errno("create", &error));
            }
        }
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
                .read(self.node(ino), offset, size as usize, buffer, |data| {
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
            self.union.write(self.node(ino), offset, data, drops),
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
        reply_empty("fsync", reply, self.union.fsync(self.node(ino), datasync));
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        reply_empty(
            "fsyncdir",
            reply,
            self.union.fsync(self.node(ino), datasync),
        );
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listed = self
            .union
            .readdir(self.node(ino), Cookie(offset), &mut |item| {
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
            .readdirplus(self.node(ino), Cookie(offset), &mut |item, attr| {
                let name = OsStr::from_bytes(item.name);
                let (ino, next) = (INodeNo(item.number.0), item.next.0);
                // An entry with an alias is looked up again before it is used, and so is one of
                // which only the name is known.
                let ttl = match item.number.space() {
                    Number::SPACE_UNKNOWN => Duration::ZERO,
                    _ => self.attr_ttl(item.number),
                };
                let attr = file_attr(attr);
                if reply.add(ino, next, name, &ttl, &attr, Generation(0)) {
                    return Listed::Full;
                }
                Listed::Taken
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
        _req: &Request,
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
            .setxattr(self.node(ino), name.as_bytes(), value, flags);
        reply_empty("setxattr", reply, set);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        reply_xattr(
            reply,
            size,
            self.union.getxattr(self.node(ino), name.as_bytes()),
        );
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        reply_xattr(
            reply,
            size,
            self.union.listxattr(self.node(ino), caller(req)),
        );
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(
            "removexattr",
            reply,
            self.union.removexattr(self.node(ino), name.as_bytes()),
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
        let done = self
            .union
            .fallocate(self.node(ino), offset, length, mode, drops);
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
        match self.union.lseek(self.node(ino), offset, whence) {
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
        let (from, to) = (
            (self.node(ino_in), offset_in),
            (self.node(ino_out), offset_out),
        );
        let copied = self
            .union
            .copy_file_range(from, to, length, drops_privileges(req));
        reply_written("copy_file_range", reply, copied);
    }
}
