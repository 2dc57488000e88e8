//! Fetching FUSE requests by `io_uring` (Linux 6.14, `Documentation/filesystems/fuse/fuse-io-uring.rst`):
//! one system call gives an answer and waits for the next request, and who asked on a processor is
//! answered on it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use io_uring::squeue::Entry128;
use io_uring::{IoUring, cqueue, opcode, types};
use rustix::io::Errno;

use super::SysResult;

/// `FUSE_IO_URING_CMD_REGISTER` and `FUSE_IO_URING_CMD_COMMIT_AND_FETCH`.
const REGISTER: u32 = 1;
const COMMIT_AND_FETCH: u32 = 2;

/// `struct fuse_uring_req_header`: what is in front of the payload of a request or an answer.
#[repr(C)]
struct Header {
    /// `fuse_in_header`, or `fuse_out_header`.
    in_out: [u8; 128],
    /// The structure that belongs to the kind of request.
    op: [u8; 128],
    flags: u64,
    commit_id: u64,
    payload_size: u32,
    padding: u32,
    reserved: u64,
}

/// `struct fuse_uring_cmd_req`, in the 80 bytes that a command has.
#[repr(C)]
struct Command {
    flags: u64,
    commit_id: u64,
    queue: u16,
    padding: [u8; 62],
}

/// What the kernel fills and reads while it waits for us, or we for it; never both at once.
#[repr(C)]
struct Shared {
    header: Header,
    iovecs: [libc::iovec; 2],
    payload: Box<[u8]>,
}

/// A request, and room for the answer to it.
pub struct Message<'a> {
    /// Begins with `fuse_in_header`.
    pub header: &'a [u8],
    /// Begins with the structure of the kind of request, if it has one.
    pub op: &'a [u8],
    /// What follows it. The payload of the answer takes its place.
    pub payload: &'a mut [u8],
    /// How many bytes of the payload are the request's.
    pub size: usize,
}

/// A place where one request at a time arrives. Belongs to the thread that made it.
pub struct RingEntry<'a> {
    // Before what it may write to: it is dropped first, which ends all the kernel does.
    ring: IoUring<Entry128, cqueue::Entry>,
    device: BorrowedFd<'a>,
    queue: u16,
    shared: Box<Shared>,
}

impl<'a> RingEntry<'a> {
    /// Prepares to fetch requests that are made on the processor `queue`, with payloads of up to
    /// `payload` bytes, in either direction.
    ///
    /// # Errors
    /// When there is no `io_uring` here: it is turned off, or forbidden to containers.
    pub fn new(device: BorrowedFd<'a>, queue: u16, payload: usize) -> SysResult<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(2)
            .map_err(|error| errno(&error))?;
        let shared = Box::new(Shared {
            header: Header {
                in_out: [0; 128],
                op: [0; 128],
                flags: 0,
                commit_id: 0,
                payload_size: 0,
                padding: 0,
                reserved: 0,
            },
            iovecs: [libc::iovec {
                iov_base: std::ptr::null_mut(),
                iov_len: 0,
            }; 2],
            payload: vec![0; payload].into_boxed_slice(),
        });
        Ok(Self {
            ring,
            device,
            queue,
            shared,
        })
    }

    /// Waits for the first request. The kernel uses the ring once every processor has an entry.
    ///
    /// # Errors
    /// `ENOTCONN` when the mount is gone.
    pub fn first(&mut self) -> SysResult<Message<'_>> {
        let shared = &mut *self.shared;
        shared.iovecs = [
            libc::iovec {
                iov_base: (&raw mut shared.header).cast(),
                iov_len: size_of::<Header>(),
            },
            libc::iovec {
                iov_base: shared.payload.as_mut_ptr().cast(),
                iov_len: shared.payload.len(),
            },
        ];
        let iovecs = shared.iovecs.as_ptr() as u64;
        self.submit(REGISTER, 0, Some(iovecs))
    }

    /// Gives the answer, `header` (a `fuse_out_header`) and so many bytes of the payload, and waits for
    /// the next request.
    ///
    /// # Errors
    /// `ENOTCONN` when the mount is gone.
    pub fn next(&mut self, header: &[u8], payload: usize) -> SysResult<Message<'_>> {
        let out = &mut self.shared.header;
        for (to, from) in out.in_out.iter_mut().zip(header) {
            *to = *from;
        }
        out.payload_size = payload as u32;
        let commit_id = out.commit_id;
        self.submit(COMMIT_AND_FETCH, commit_id, None)
    }

    fn submit(&mut self, what: u32, commit_id: u64, iovecs: Option<u64>) -> SysResult<Message<'_>> {
        let command = Command {
            flags: 0,
            commit_id,
            queue: self.queue,
            padding: [0; 62],
        };
        // SAFETY: both are 80 bytes without padding between fields, of which any value is allowed.
        let command: [u8; 80] = unsafe { std::mem::transmute(command) };
        let device = types::Fd(self.device.as_fd().as_raw_fd());
        let mut entry = opcode::UringCmd80::new(device, what)
            .cmd(command)
            .addr(iovecs)
            .build();
        if iovecs.is_some() {
            // SAFETY: an entry is a `struct io_uring_sqe`, whose `len` lies there: two iovecs.
            unsafe { (&raw mut entry).cast::<u32>().add(6).write(2) };
        }
        // SAFETY: what it points to is in `shared`, which lives longer than the ring, and is not
        // touched until the kernel is done with the command.
        unsafe { self.ring.submission().push(&entry) }.map_err(|_| Errno::BUSY)?;
        loop {
            match self.ring.submit_and_wait(1).map_err(|error| errno(&error)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
            let Some(done) = self.ring.completion().next() else {
                continue;
            };
            if done.result() < 0 {
                return Err(Errno::from_raw_os_error(-done.result()));
            }
            let shared = &mut *self.shared;
            return Ok(Message {
                header: &shared.header.in_out,
                op: &shared.header.op,
                size: (shared.header.payload_size as usize).min(shared.payload.len()),
                payload: &mut shared.payload,
            });
        }
    }
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// Whether rings can be made, which may be forbidden.
pub fn is_available() -> bool {
    let ring: std::io::Result<IoUring<Entry128, cqueue::Entry>> = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(2);
    ring.is_ok()
}

/// How many queues the kernel wants: one for each processor that there may ever be.
pub fn queues() -> u16 {
    // A list of ranges, as in "0-3,8-11".
    let possible = std::fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
    let last = possible.trim().rsplit([',', '-']).next().unwrap_or("");
    last.parse().map_or(1, |last: u16| last.saturating_add(1))
}
