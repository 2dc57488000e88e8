//! Reading requests from the device and writing replies to it.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread::Scope;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::abi::{self, InHeader, OutHeader};
use crate::attr::{Attr, Kind, Time};
use crate::crew::Crew;
use crate::lower::Number;
use crate::stats::Stats;

/// Largest read or write request in bytes, the kernel's own limit.
pub const MAX_REQUEST: u32 = 1 << 20;
/// Room for any request: the largest write and what comes before its data.
const BUFFER: usize = MAX_REQUEST as usize + 4096;

/// For ever: nobody but us may change what is mounted.
pub const FOREVER: Duration = Duration::from_secs(1 << 30);

/// A request that was read.
pub struct Request<'a> {
    /// What every request has.
    pub header: InHeader,
    /// Its structures, if they do not come in front of the rest.
    op: Option<&'a [u8]>,
    rest: &'a [u8],
}

impl<'a> Request<'a> {
    /// Takes a message apart.
    ///
    /// # Errors
    /// `EIO` for one that is no request.
    pub fn parse(message: &'a [u8]) -> Result<Self, Errno> {
        let (header, rest) = InHeader::read_from_prefix(message).map_err(|_| Errno::IO)?;
        Ok(Self {
            header,
            op: None,
            rest,
        })
    }

    /// A request that comes in parts.
    ///
    /// # Errors
    /// `EIO` for one that is no request.
    pub fn with_op(header: &[u8], op: &'a [u8], rest: &'a [u8]) -> Result<Self, Errno> {
        let (header, _) = InHeader::read_from_prefix(header).map_err(|_| Errno::IO)?;
        Ok(Self {
            header,
            op: Some(op),
            rest,
        })
    }

    /// The next structure of the request.
    ///
    /// # Errors
    /// `EIO` if the request is too short.
    pub fn take<T: FromBytes + KnownLayout + Immutable>(&mut self) -> Result<T, Errno> {
        let from = self.op.as_mut().unwrap_or(&mut self.rest);
        let (value, rest) = T::read_from_prefix(from).map_err(|_| Errno::IO)?;
        *from = rest;
        Ok(value)
    }

    /// The next string of the request, without the NUL that ends it.
    ///
    /// # Errors
    /// `EIO` if it does not end.
    pub fn name(&mut self) -> Result<&'a [u8], Errno> {
        let end = self.rest.iter().position(|&byte| byte == 0);
        let (name, rest) = end
            .and_then(|end| self.rest.split_at_checked(end))
            .ok_or(Errno::IO)?;
        self.rest = rest.get(1..).unwrap_or_default();
        Ok(name)
    }

    /// The next `size` bytes of the request.
    ///
    /// # Errors
    /// `EIO` if there are fewer.
    pub fn bytes(&mut self, size: u32) -> Result<&'a [u8], Errno> {
        let (bytes, rest) = self.rest.split_at_checked(size as usize).ok_or(Errno::IO)?;
        self.rest = rest;
        Ok(bytes)
    }
}

/// Where replies go.
pub trait Send {
    /// Sends a reply, once for each request.
    fn send(&mut self, header: OutHeader, bytes: &[u8]) -> Result<(), Errno>;

    /// Where the bytes of a reply can be put, to be sent by [`Send::send_room`]; `None` if only
    /// [`Send::send`] can.
    fn room(&mut self) -> Option<&mut [u8]> {
        None
    }

    /// Sends a reply whose `size` bytes are in the room.
    fn send_room(&mut self, _header: OutHeader, _size: usize) -> Result<(), Errno> {
        Err(Errno::OPNOTSUPP)
    }
}

/// Replies by writing to the device.
struct Device<'a>(BorrowedFd<'a>);

impl Send for Device<'_> {
    fn send(&mut self, header: OutHeader, bytes: &[u8]) -> Result<(), Errno> {
        let parts = [IoSlice::new(header.as_bytes()), IoSlice::new(bytes)];
        match rustix::io::writev(self.0, &parts) {
            // ENOENT: who asked does not wait any more. ENODEV: it was unmounted.
            Ok(_) | Err(Errno::NOENT | Errno::NODEV) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

/// The reply to one request. Nothing is sent but by [`Reply::send`] and [`Reply::error`].
pub struct Reply<'a> {
    sink: &'a mut dyn Send,
    unique: u64,
    sent: bool,
    failed: bool,
}

impl Reply<'_> {
    /// Whether there is nothing more to reply.
    pub fn is_sent(&self) -> bool {
        self.sent
    }

    /// For requests that are not replied to.
    pub fn none(&mut self) {
        self.sent = true;
    }

    /// Says that it is done, and these bytes.
    pub fn send(&mut self, bytes: &[u8]) {
        self.write(0, bytes);
    }

    /// Says that it is done, and the bytes that `fill` puts into room for `size` of them: the kernel's
    /// own if there is any, else `buffer`. Returns how many there are; nothing is sent if `fill` fails.
    pub fn send_filled<E>(
        &mut self,
        size: usize,
        buffer: &mut Vec<u8>,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        if let Some(room) = self.sink.room().and_then(|room| room.get_mut(..size)) {
            let filled = fill(room)?;
            self.give(0, filled, |sink, header| sink.send_room(header, filled));
            return Ok(filled);
        }
        if buffer.len() < size {
            buffer.resize(size, 0);
        }
        let filled = fill(buffer.get_mut(..size).unwrap_or_default())?;
        self.send(buffer.get(..filled).unwrap_or_default());
        Ok(filled)
    }

    /// Says that it failed.
    pub fn error(&mut self, errno: Errno) {
        self.failed = true;
        self.write(-errno.raw_os_error(), &[]);
    }

    fn write(&mut self, error: i32, bytes: &[u8]) {
        self.give(error, bytes.len(), |sink, header| sink.send(header, bytes));
    }

    fn give(
        &mut self,
        error: i32,
        size: usize,
        send: impl FnOnce(&mut dyn Send, OutHeader) -> Result<(), Errno>,
    ) {
        if std::mem::replace(&mut self.sent, true) {
            tracing::error!("internal error: a second reply to one request");
            return;
        }
        let header = OutHeader {
            len: (size_of::<OutHeader>() + size) as u32,
            error,
            unique: self.unique,
        };
        if let Err(errno) = send(self.sink, header) {
            tracing::error!("cannot reply to the kernel: {errno}");
        }
    }
}

/// What is given each request, and replies.
pub trait Serve: Fn(Request<'_>, &mut Reply<'_>) + Sync {}

impl<T: Fn(Request<'_>, &mut Reply<'_>) + Sync> Serve for T {}

/// Serves requests with `threads` threads, more while some are busy for long, until the mount ends.
///
/// # Errors
/// When the device cannot be read, or a thread cannot be started.
pub fn run(
    device: &Arc<OwnedFd>,
    threads: usize,
    stats: &Stats,
    serve: &impl Serve,
) -> std::io::Result<()> {
    let (crew, hired) = Crew::new(1, threads);
    let work = |_| {
        crew.join(0);
        work(device, stats, serve)
    };
    std::thread::scope(|scope| {
        for number in 1..threads {
            start(scope, format!("fuse-{number}"), 0, work)?;
        }
        scope.spawn(move || hire(scope, &hired, work));
        let result = work(0);
        crew.dismiss();
        result
    })
}

/// Starts threads that are asked for until nobody asks any more.
pub fn hire<'scope>(
    scope: &'scope Scope<'scope, '_>,
    hired: &Receiver<Option<u16>>,
    work: impl Fn(u16) -> std::io::Result<()> + Copy + std::marker::Send + 'scope,
) {
    while let Ok(Some(post)) = hired.recv() {
        if let Err(error) = start(scope, format!("fuse-{post}+"), post, work) {
            tracing::warn!("cannot start one more thread: {error}");
        }
    }
}

/// Starts a thread at a post.
///
/// # Errors
/// When it cannot be started.
pub fn start<'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: String,
    post: u16,
    work: impl Fn(u16) -> std::io::Result<()> + std::marker::Send + 'scope,
) -> std::io::Result<()> {
    let thread = std::thread::Builder::new().name(name);
    let started = thread.spawn_scoped(scope, move || {
        if let Err(error) = work(post) {
            tracing::error!("a thread cannot serve requests any more: {error}");
        }
    });
    started.map(drop)
}

/// Serves requests that are read from the device until the mount ends.
///
/// # Errors
/// When the device cannot be read.
pub fn work(device: &OwnedFd, stats: &Stats, serve: &impl Serve) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let size = match rustix::io::read(device, &mut buffer) {
            Ok(size) => size,
            // Interrupted, or who asked does not wait any more.
            Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => continue,
            // Unmounted.
            Err(Errno::NODEV) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        let request = Request::parse(buffer.get(..size).unwrap_or_default());
        answer(request, &mut Device(device.as_fd()), stats, serve);
    }
}

/// Has a request served, and sees to it that there is a reply.
pub fn answer(
    request: Result<Request<'_>, Errno>,
    sink: &mut dyn Send,
    stats: &Stats,
    serve: &impl Serve,
) {
    let Ok(request) = request else {
        tracing::error!("the kernel sent what is no request");
        return;
    };
    let started = Instant::now();
    let opcode = request.header.opcode;
    let mut reply = Reply {
        sink,
        unique: request.header.unique,
        sent: false,
        failed: false,
    };
    let serving = std::panic::AssertUnwindSafe(|| serve(request, &mut reply));
    if std::panic::catch_unwind(serving).is_err() {
        tracing::error!("internal error: a request was given up");
    }
    // Nobody may wait for ever.
    if !reply.is_sent() {
        reply.error(Errno::IO);
    }
    stats.request(opcode, started.elapsed(), reply.failed);
}

/// Attributes in the protocol's form.
pub fn attr(attr: &Attr) -> abi::Attr {
    abi::Attr {
        ino: attr.ino,
        size: attr.size,
        blocks: attr.blocks,
        atime: attr.atime.sec,
        mtime: attr.mtime.sec,
        ctime: attr.ctime.sec,
        atimensec: attr.atime.nsec,
        mtimensec: attr.mtime.nsec,
        ctimensec: attr.ctime.nsec,
        mode: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: encode_device(attr.rdev),
        blksize: attr.blksize,
        flags: 0,
    }
}

/// Attributes in the form for `statx(2)`.
pub fn statx(attr: &Attr) -> abi::Statx {
    let time = |time: Time| abi::StatxTime {
        sec: time.sec,
        nsec: time.nsec,
        reserved: 0,
    };
    let known = attr.birth.map_or(0, |_| libc::STATX_BTIME);
    abi::Statx {
        mask: libc::STATX_BASIC_STATS | known,
        blksize: attr.blksize,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        mode: attr.mode as u16,
        ino: attr.ino,
        size: attr.size,
        blocks: attr.blocks,
        atime: time(attr.atime),
        btime: time(attr.birth.unwrap_or_default()),
        ctime: time(attr.ctime),
        mtime: time(attr.mtime),
        rdev_major: rustix::fs::major(attr.rdev),
        rdev_minor: rustix::fs::minor(attr.rdev),
        ..abi::Statx::default()
    }
}

/// Tells apart the objects that have one number one after the other, so that a file handle of a
/// deleted file does not open the next. Only the upper's numbers are given again. The kernel takes
/// 32 bits.
fn generation(attr: &Attr) -> u64 {
    match attr.birth {
        Some(birth) if Number(attr.ino).space() == Number::SPACE_UPPER => {
            let time = (birth.sec as u64).wrapping_mul(1_000_000_000) + u64::from(birth.nsec);
            (time ^ time >> 32) & u64::from(u32::MAX)
        }
        _ => 0,
    }
}

/// What the kernel is told of an entry: its node id, and for how long its attributes are valid.
pub fn entry(nodeid: u64, attributes: &Attr, valid: Duration) -> abi::EntryOut {
    abi::EntryOut {
        nodeid,
        generation: generation(attributes),
        entry_valid: FOREVER.as_secs(),
        attr_valid: valid.as_secs(),
        entry_valid_nsec: 0,
        attr_valid_nsec: 0,
        attr: attr(attributes),
    }
}

/// Appends an entry to a listing unless it would be longer than `limit` then.
pub fn push_dirent(
    listing: &mut Vec<u8>,
    limit: usize,
    plus: Option<&abi::EntryOut>,
    dirent: (u64, u64, Kind),
    name: &[u8],
) -> bool {
    let (ino, off, kind) = dirent;
    let before = plus.map_or(0, |_| size_of::<abi::EntryOut>());
    let length = (before + size_of::<abi::Dirent>() + name.len()).next_multiple_of(8);
    if listing.len() + length > limit {
        return false;
    }
    let end = listing.len() + length;
    if let Some(entry) = plus {
        listing.extend_from_slice(entry.as_bytes());
    }
    let head = abi::Dirent {
        ino,
        off,
        namelen: name.len() as u32,
        kind: kind.mode_bits() >> 12,
    };
    listing.extend_from_slice(head.as_bytes());
    listing.extend_from_slice(name);
    listing.resize(end, 0);
    true
}

/// A device number as the protocol has it, from `makedev(3)`'s encoding.
fn encode_device(rdev: u64) -> u32 {
    let (major, minor) = (rustix::fs::major(rdev), rustix::fs::minor(rdev));
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

/// A device number in `makedev(3)`'s encoding.
pub fn decode_device(rdev: u32) -> u64 {
    rustix::fs::makedev(rdev >> 8 & 0xfff, rdev & 0xff | rdev >> 12 & 0xfff00)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_taken_apart() {
        let header = InHeader {
            nodeid: 7,
            ..InHeader::default()
        };
        let mut message = header.as_bytes().to_vec();
        message.extend_from_slice(abi::LinkIn { oldnodeid: 9 }.as_bytes());
        message.extend_from_slice(b"name\0\0rest");
        let mut request = Request::parse(&message).unwrap();
        assert_eq!(request.header.nodeid, 7);
        assert_eq!(request.take::<abi::LinkIn>().unwrap().oldnodeid, 9);
        assert_eq!(request.name(), Ok(&b"name"[..]));
        assert_eq!(request.name(), Ok(&b""[..]));
        assert_eq!(request.bytes(3), Ok(&b"res"[..]));
        assert_eq!(request.bytes(2), Err(Errno::IO));
        assert_eq!(request.name(), Err(Errno::IO));
        assert!(request.take::<abi::OpenIn>().is_err());
        assert!(Request::parse(&message[..39]).is_err());
    }

    #[test]
    fn a_listing_is_padded_and_bounded() {
        let mut listing = Vec::new();
        let room = 2 * 32;
        assert!(push_dirent(
            &mut listing,
            room,
            None,
            (1, 2, Kind::Dir),
            b"a"
        ));
        assert!(push_dirent(
            &mut listing,
            room,
            None,
            (1, 2, Kind::Dir),
            b"12345678"
        ));
        assert!(!push_dirent(
            &mut listing,
            room,
            None,
            (1, 2, Kind::Dir),
            b"b"
        ));
        assert_eq!(listing.len(), room);
        assert_eq!(listing.get(20..25), Some(&[4, 0, 0, 0, b'a'][..]));
    }

    #[test]
    fn device_numbers_round_trip() {
        for (major, minor) in [(0, 0), (1, 3), (8, 300), (4095, 0xf_ffff)] {
            let rdev = rustix::fs::makedev(major, minor);
            assert_eq!(decode_device(encode_device(rdev)), rdev);
        }
    }
}
