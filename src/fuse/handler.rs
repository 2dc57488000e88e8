//! Requests: decode, call [`Union`], reply.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FallocateFlags, XattrFlags};
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::abi::{self, fattr, op};
use super::opens::{Opened, Opens};
use super::view::View;
use super::wire::{self, FOREVER, Reply, Request};
use crate::attr::{Attr, Kind, PERMISSIONS, Time};
use crate::error::{FsError, FsResult};
use crate::lower::Number;
use crate::stats::Counter;
use crate::union::{Caller, Cookie, Listed, NewNode, RenameMode, Seek, SetAttr, SetTime, Union};

thread_local! {
    /// Room for one read, kept by each thread.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Serves the requests of a mount.
pub struct Handler {
    /// What is mounted.
    pub union: Arc<Union>,
    /// The open files in passthrough mode; in cached mode we are not told of any.
    pub opens: Option<Arc<Opens>>,
    /// Whether SETXATTR has a [`abi::SetxattrExt`].
    pub setxattr_ext: bool,
    /// What users see of it.
    pub view: View,
}

fn reply_written(reply: &mut Reply<'_>, count: usize) {
    let written = abi::WriteOut {
        size: count as u32,
        padding: 0,
    };
    reply.send(written.as_bytes());
}

fn reply_xattr(reply: &mut Reply<'_>, size: u32, value: &[u8]) -> FsResult<()> {
    if size == 0 {
        let size = value.len() as u32;
        reply.send(abi::GetxattrOut { size, padding: 0 }.as_bytes());
    } else if value.len() > size as usize {
        return Err(Errno::RANGE.into());
    } else {
        reply.send(value);
    }
    Ok(())
}

/// Whether a request may change something, whatever else it says. OPEN says it in its flags.
fn changes(opcode: u32) -> bool {
    matches!(
        opcode,
        op::WRITE
            | op::SETATTR
            | op::SYMLINK
            | op::MKNOD
            | op::MKDIR
            | op::UNLINK
            | op::RMDIR
            | op::RENAME
            | op::RENAME2
            | op::LINK
            | op::CREATE
            | op::TMPFILE
            | op::SETXATTR
            | op::REMOVEXATTR
            | op::FALLOCATE
            | op::COPY_FILE_RANGE
    )
}

/// What the kernel is told of a failure. Damage is also logged: its errno explains nothing.
fn reply_error(reply: &mut Reply<'_>, opcode: u32, error: &FsError) {
    if let Some(what) = error.explanation() {
        tracing::error!("{what}");
    } else {
        tracing::debug!("request {opcode}: {error}");
    }
    reply.error(error.errno());
}

impl Handler {
    /// Serves one request.
    pub fn serve(&self, mut request: Request<'_>, reply: &mut Reply<'_>) {
        let opcode = request.header.opcode;
        if let Err(error) = self.dispatch(&mut request, reply) {
            reply_error(reply, opcode, &error);
        } else if !reply.is_sent() {
            reply.send(&[]);
        }
    }

    /// Serves one request. Without a reply, it is done and there is nothing to say.
    fn dispatch(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> FsResult<()> {
        let _inside = changes(request.header.opcode).then(|| self.union.gate.enter());
        match request.header.opcode {
            op::LOOKUP => self.lookup(request, reply),
            op::GETATTR => {
                let attr = self.union.getattr(self.node(request.header.nodeid))?;
                self.reply_attr(reply, &attr);
                Ok(())
            }
            op::READ => self.read(request, reply),
            op::READDIR | op::READDIRPLUS => self.readdir(request, reply),
            op::FORGET => {
                let count = request.take::<abi::ForgetIn>()?.nlookup;
                self.forget(request.header.nodeid, count);
                reply.none();
                Ok(())
            }
            op::BATCH_FORGET => {
                for _ in 0..request.take::<abi::BatchForgetIn>()?.count {
                    let one = request.take::<abi::ForgetOne>()?;
                    self.forget(one.nodeid, one.nlookup);
                }
                reply.none();
                Ok(())
            }
            op::WRITE => self.write(request, reply),
            op::SETATTR => self.setattr(request, reply),
            op::READLINK => {
                let node = self.node(request.header.nodeid);
                reply.send(&self.union.readlink(node)?);
                Ok(())
            }
            op::SYMLINK | op::MKNOD | op::MKDIR => self.make(request, reply),
            op::UNLINK => {
                let name = request.name()?;
                self.union.unlink(self.node(request.header.nodeid), name)
            }
            op::RMDIR => {
                let name = request.name()?;
                self.union.rmdir(self.node(request.header.nodeid), name)
            }
            op::RENAME | op::RENAME2 => self.rename(request),
            op::LINK => {
                let from = request.take::<abi::LinkIn>()?.oldnodeid;
                let (from, parent) = (self.node(from), self.node(request.header.nodeid));
                let attr = self.union.link(from, parent, request.name()?)?;
                self.reply_entry(reply, &attr);
                Ok(())
            }
            op::OPEN => self.open(request, reply),
            op::CREATE | op::TMPFILE => self.create(request, reply),
            op::STATX => {
                let number = self.node(request.header.nodeid);
                let attr = self.union.statx(number)?;
                let out = abi::StatxOut {
                    attr_valid: self.attr_ttl(number).as_secs(),
                    stat: wire::statx(&self.view.attr(&attr)),
                    ..abi::StatxOut::default()
                };
                reply.send(out.as_bytes());
                Ok(())
            }
            op::RELEASE => {
                if let Some(opens) = &self.opens {
                    opens.release(request.header.nodeid);
                }
                Ok(())
            }
            op::STATFS => self.statfs(reply),
            op::FSYNC | op::FSYNCDIR => {
                let flags = request.take::<abi::FsyncIn>()?.flags;
                let node = self.node(request.header.nodeid);
                self.union.fsync(node, flags & abi::FSYNC_FDATASYNC != 0)
            }
            op::SETXATTR | op::GETXATTR | op::LISTXATTR | op::REMOVEXATTR => {
                self.xattr(request, reply)
            }
            op::FALLOCATE => {
                let arg = request.take::<abi::FallocateIn>()?;
                let mode = FallocateFlags::from_bits_retain(arg.mode);
                let node = self.node(request.header.nodeid);
                let without = self.without_privileges(request);
                self.union
                    .fallocate(node, arg.offset, arg.length, mode, without)
            }
            op::LSEEK => self.lseek(request, reply),
            op::COPY_FILE_RANGE => self.copy_file_range(request, reply),
            // Answered so once, the kernel does FLUSH, ACCESS and OPENDIR alone.
            _ => Err(Errno::NOSYS.into()),
        }
    }

    /// Who asks.
    fn caller(&self, request: &Request<'_>) -> Caller {
        let header = &request.header;
        let ids = &self.view.ids;
        Caller {
            uid: ids.users.stored(header.uid),
            gid: ids.groups.stored(header.gid),
            // The thread's other groups are ids that users see.
            tid: if ids.is_identity() { header.pid } else { 0 },
        }
    }

    /// The caller, if a request without a flag for it takes set-id bits away. The kernel asks about
    /// `CAP_FSETID`; the protocol tells only the user.
    fn without_privileges(&self, request: &Request<'_>) -> Option<Caller> {
        (request.header.uid != 0).then(|| self.caller(request))
    }

    /// The number of a node id.
    fn node(&self, id: u64) -> Number {
        let number = self.opens.as_ref().map(|opens| opens.aliases.number(id));
        // The union knows no such number, and says so.
        number.flatten().unwrap_or(Number(id))
    }

    /// For how long attributes are valid.
    fn attr_ttl(&self, number: Number) -> Duration {
        match &self.opens {
            Some(opens) if opens.aliases.has_alias(number) => Duration::ZERO,
            _ => FOREVER,
        }
    }

    /// What the kernel is told of an entry that it will know once more.
    fn entry(&self, attr: &Attr) -> abi::EntryOut {
        let attr = &self.view.attr(attr);
        let opens = self.opens.as_ref();
        match opens.and_then(|opens| opens.aliases.look_up(Number(attr.ino))) {
            Some(alias) => wire::entry(alias, attr, Duration::ZERO),
            None => wire::entry(attr.ino, attr, FOREVER),
        }
    }

    fn reply_entry(&self, reply: &mut Reply<'_>, attr: &Attr) {
        reply.send(self.entry(attr).as_bytes());
    }

    fn reply_attr(&self, reply: &mut Reply<'_>, attr: &Attr) {
        let out = abi::AttrOut {
            attr_valid: self.attr_ttl(Number(attr.ino)).as_secs(),
            attr_valid_nsec: 0,
            padding: 0,
            attr: wire::attr(&self.view.attr(attr)),
        };
        reply.send(out.as_bytes());
    }

    fn forget(&self, id: u64, count: u64) {
        match &self.opens {
            Some(opens) => opens.forget(id, count),
            None => self.union.forget(Number(id), count),
        }
    }

    fn lookup(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> FsResult<()> {
        let parent = self.node(request.header.nodeid);
        if let Some(attr) = self.union.lookup(parent, request.name()?)? {
            self.reply_entry(reply, &attr);
        } else {
            // Node id 0: there is none, and the kernel may remember that.
            let nothing = abi::EntryOut {
                entry_valid: FOREVER.as_secs(),
                ..abi::EntryOut::default()
            };
            reply.send(nothing.as_bytes());
        }
        Ok(())
    }

    fn setattr(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> FsResult<()> {
        let arg = request.take::<abi::SetattrIn>()?;
        let ids = &self.view.ids;
        let given = |bit, value: u32| (arg.valid & bit != 0).then_some(value);
        let time = |bit, now, sec, nsec| match arg.valid & (bit | now) {
            0 => None,
            bits if bits & now != 0 => Some(SetTime::Now),
            _ => Some(SetTime::At(Time { sec, nsec })),
        };
        let set = SetAttr {
            mode: given(fattr::MODE, arg.mode).map(|mode| mode & PERMISSIONS),
            uid: given(fattr::UID, arg.uid).map(|uid| ids.users.stored(uid)),
            gid: given(fattr::GID, arg.gid).map(|gid| ids.groups.stored(gid)),
            size: (arg.valid & fattr::SIZE != 0).then_some(arg.size),
            atime: time(fattr::ATIME, fattr::ATIME_NOW, arg.atime, arg.atimensec),
            mtime: time(fattr::MTIME, fattr::MTIME_NOW, arg.mtime, arg.mtimensec),
            drops_privileges: arg.valid & fattr::KILL_SUIDGID != 0,
            caller: self.caller(request),
        };
        let change = |number| self.union.setattr(number, &set);
        let id = request.header.nodeid;
        let attr = match &self.opens {
            Some(opens) if set.size.is_some() => opens.truncate(id, change)?,
            _ => change(self.node(id))?,
        };
        self.reply_attr(reply, &attr);
        Ok(())
    }

    /// MKNOD, MKDIR and SYMLINK.
    fn make(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> FsResult<()> {
        let (kind, mode, umask, rdev) = match request.header.opcode {
            op::MKNOD => {
                let arg = request.take::<abi::MknodIn>()?;
                let kind = Kind::of_mode(arg.mode).filter(|kind| *kind != Kind::Dir);
                let kind = kind.ok_or(Errno::INVAL)?;
                (kind, arg.mode, arg.umask, wire::decode_device(arg.rdev))
            }
            op::MKDIR => {
                let arg = request.take::<abi::MkdirIn>()?;
                (Kind::Dir, arg.mode, arg.umask, 0)
            }
            _ => (Kind::Symlink, 0o777, 0, 0),
        };
        let name = request.name()?;
        let target = match kind {
            Kind::Symlink => request.name()?,
            _ => b"",
        };
        let new = NewNode {
            kind,
            mode: mode & PERMISSIONS,
            umask,
            rdev,
            target,
        };
        let parent = self.node(request.header.nodeid);
        let attr = self
            .union
            .create(parent, name, &new, self.caller(request))?;
        self.reply_entry(reply, &attr);
        Ok(())
    }

    fn rename(&self, request: &mut Request<'_>) -> FsResult<()> {
        let (newdir, flags) = if request.header.opcode == op::RENAME {
            (request.take::<abi::RenameIn>()?.newdir, 0)
        } else {
            let arg = request.take::<abi::Rename2In>()?;
            (arg.newdir, arg.flags)
        };
        let mode = match flags {
            0 => RenameMode::Replace,
            libc::RENAME_NOREPLACE => RenameMode::NoReplace,
            libc::RENAME_EXCHANGE => RenameMode::Exchange,
            // With NOREPLACE, the kernel has seen that there is nothing to replace.
            flags if flags & !libc::RENAME_NOREPLACE == libc::RENAME_WHITEOUT => {
                RenameMode::Whiteout(self.caller(request))
            }
            _ => return Err(Errno::INVAL.into()),
        };
        let (parent, newdir) = (self.node(request.header.nodeid), self.node(newdir));
        let (name, newname) = (request.name()?, request.name()?);
        self.union.rename(parent, name, newdir, newname, mode)
    }

    fn open(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> FsResult<()> {
        let opens = self.opens.as_ref().ok_or(Errno::NOSYS)?;
        let arg = request.take::<abi::OpenIn>()?;
        let reads = libc::O_RDONLY as u32;
        let changes = arg.flags & (libc::O_ACCMODE | libc::O_TRUNC) as u32 != reads;
        // It may copy the file up.
        let _inside = changes.then(|| self.union.gate.enter());
        let drops = arg.open_flags & abi::OPEN_KILL_SUIDGID != 0;
        let without_privileges = drops.then(|| self.caller(request));
        let opened = opens.open(request.header.nodeid, arg.flags, without_privileges)?;
        reply.send(opened.out().as_bytes());
        Ok(())
    }

    /// CREATE and TMPFILE, which also open the new file.
    fn create(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> FsResult<()> {
        let named = request.header.opcode == op::CREATE;
        if named && self.opens.is_none() {
            return Err(Errno::NOSYS.into());
        }
        let arg = request.take::<abi::CreateIn>()?;
        let new = NewNode {
            kind: Kind::File,
            mode: arg.mode & PERMISSIONS,
            umask: arg.umask,
            rdev: 0,
            target: b"",
        };
        let (parent, caller) = (self.node(request.header.nodeid), self.caller(request));
        let attr = if named {
            self.union.create(parent, request.name()?, &new, caller)?
        } else {
            self.union.create_nameless(parent, &new, caller)?
        };
        let opened = match &self.opens {
            None => Opened::Cached(0),
            Some(opens) => {
                let flags = arg.flags & !(libc::O_TRUNC as u32);
                opens.open(attr.ino, flags, None).inspect_err(|_| {
                    // The kernel does not hear of it.
                    opens.forget(attr.ino, 1);
                })?
            }
        };
        let mut out = self.entry(&attr).as_bytes().to_vec();
        out.extend_from_slice(opened.out().as_bytes());
        reply.send(&out);
        Ok(())
    }

    fn read(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> FsResult<()> {
        let arg = request.take::<abi::ReadIn>()?;
        let node = self.node(request.header.nodeid);
        let size = arg.size.min(wire::MAX_REQUEST) as usize;
        let read = |room: &mut [u8]| self.union.read(node, arg.offset, room);
        let count = BUFFER.with_borrow_mut(|buffer| reply.send_filled(size, buffer, read))?;
        self.union.stats.add(Counter::BytesRead, count as u64);
        Ok(())
    }

    fn write(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> FsResult<()> {
        let arg = request.take::<abi::WriteIn>()?;
        let data = request.bytes(arg.size)?;
        let drops = arg.write_flags & abi::WRITE_KILL_SUIDGID != 0;
        let without_privileges = drops.then(|| self.caller(request));
        let node = self.node(request.header.nodeid);
        let written = self
            .union
            .write(node, arg.offset, data, without_privileges)?;
        self.union.stats.add(Counter::BytesWritten, written as u64);
        reply_written(reply, written);
        Ok(())
    }

    fn readdir(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> FsResult<()> {
        let arg = request.take::<abi::ReadIn>()?;
        let node = self.node(request.header.nodeid);
        let (cookie, limit) = (Cookie(arg.offset), arg.size.min(wire::MAX_REQUEST) as usize);
        BUFFER.with_borrow_mut(|listing| {
            listing.clear();
            if request.header.opcode == op::READDIR {
                self.union.readdir(node, cookie, &mut |item| {
                    let dirent = (item.number.0, item.next.0, item.kind);
                    Listed::taken_if(wire::push_dirent(listing, limit, None, dirent, item.name))
                })?;
            } else {
                self.union.readdirplus(node, cookie, &mut |item, attr| {
                    let dirent = (item.number.0, item.next.0, item.kind);
                    let ttl = self.attr_ttl(item.number);
                    let mut entry = wire::entry(item.number.0, &self.view.attr(attr), ttl);
                    // One with an alias is looked up again before it is used.
                    entry.entry_valid = ttl.as_secs();
                    if item.number.space() == Number::SPACE_UNKNOWN {
                        // Only its name is known: the kernel asks when it needs more.
                        entry = abi::EntryOut::default();
                    }
                    let entry = Some(&entry);
                    Listed::taken_if(wire::push_dirent(listing, limit, entry, dirent, item.name))
                })?;
            }
            reply.send(listing);
            Ok(())
        })
    }

    fn statfs(&self, reply: &mut Reply<'_>) -> FsResult<()> {
        let stat = self.union.statfs()?;
        let [blocks, bfree, bavail] = stat.blocks;
        let [files, ffree] = stat.files;
        let out = abi::StatfsOut {
            blocks,
            bfree,
            bavail,
            files,
            ffree,
            bsize: stat.block_size as u32,
            namelen: 255,
            frsize: stat.block_size as u32,
            ..abi::StatfsOut::default()
        };
        reply.send(out.as_bytes());
        Ok(())
    }

    /// SETXATTR, GETXATTR, LISTXATTR and REMOVEXATTR.
    fn xattr(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> FsResult<()> {
        if self.view.no_xattrs {
            // Answered so once, the kernel does not ask again.
            return Err(Errno::NOSYS.into());
        }
        let node = self.node(request.header.nodeid);
        match request.header.opcode {
            op::SETXATTR => {
                let arg = request.take::<abi::SetxattrIn>()?;
                let more = if self.setxattr_ext {
                    request.take::<abi::SetxattrExt>()?.flags
                } else {
                    0
                };
                let (name, value) = (request.name()?, request.bytes(arg.size)?);
                let flags = XattrFlags::from_bits_retain(arg.flags);
                let drops_sgid = more & abi::SETXATTR_ACL_KILL_SGID != 0;
                let value = self.view.stored_xattr(name, value)?;
                self.union.setxattr(node, name, &value, flags, drops_sgid)
            }
            op::GETXATTR => {
                let size = request.take::<abi::GetxattrIn>()?.size;
                let name = request.name()?;
                let value = self.union.getxattr(node, name)?;
                reply_xattr(reply, size, &self.view.shown_xattr(name, &value)?)
            }
            op::LISTXATTR => {
                let size = request.take::<abi::GetxattrIn>()?.size;
                let names = self.union.listxattr(node, self.caller(request))?;
                reply_xattr(reply, size, names.as_ref())
            }
            _ => self.union.removexattr(node, request.name()?),
        }
    }

    fn lseek(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> FsResult<()> {
        let arg = request.take::<abi::LseekIn>()?;
        let whence = match arg.whence as i32 {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return Err(Errno::INVAL.into()),
        };
        if i64::try_from(arg.offset).is_err() {
            return Err(Errno::NXIO.into());
        }
        let node = self.node(request.header.nodeid);
        let offset = self.union.lseek(node, arg.offset, whence)?;
        reply.send(abi::LseekOut { offset }.as_bytes());
        Ok(())
    }

    fn copy_file_range(&self, request: &mut Request<'_>, reply: &mut Reply<'_>) -> FsResult<()> {
        let arg = request.take::<abi::CopyFileRangeIn>()?;
        // The reply counts in 32 bits.
        let length = usize::try_from(arg.len).unwrap_or(usize::MAX).min(1 << 30);
        let from = (self.node(request.header.nodeid), arg.off_in);
        let to = (self.node(arg.nodeid_out), arg.off_out);
        let without_privileges = self.without_privileges(request);
        let copied = self
            .union
            .copy_file_range(from, to, length, without_privileges)?;
        reply_written(reply, copied);
        Ok(())
    }
}
