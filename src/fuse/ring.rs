//! Serving requests that arrive by `io_uring`.
//!
//! Each processor has a queue, and each queue a few threads, each with a ring for one request at a time.
//! The kernel takes the ring that was free last: so one request after the other goes to the first thread,
//! which is bound to the processor and need not be woken up on another. The others get what comes
//! at the same time, such as read-ahead, and run wherever there is room, beside who asked. What the kernel
//! sends on no ring (that it forgets a node) still comes by the device.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::thread::CpuSet;
use zerocopy::IntoBytes;

use super::abi::OutHeader;
use super::wire::{MAX_REQUEST, Request, Send, Serve, hire, start};
use crate::crew::Crew;
use crate::stats::Stats;
use crate::sys::fuse_ring::{Message, RingEntry, queues};

/// Threads of each processor that are ready.
const DEPTH: u16 = 2;

/// Serves requests of all rings, and of the device, until the mount ends.
///
/// # Errors
/// When the device cannot be read, or a thread cannot be started.
pub fn run(device: &Arc<OwnedFd>, stats: &Stats, serve: &impl Serve) -> std::io::Result<()> {
    let queues = queues();
    let (crew, hired) = Crew::new(queues, usize::from(DEPTH));
    let work = |queue, bound| {
        crew.join(queue);
        if bound {
            bind(queue);
        }
        work(device, queue, stats, serve).map_err(|errno| {
            // A request that the kernel gives to a ring without a thread would never be answered.
            tracing::error!("serving by io_uring ended: {errno}");
            std::process::abort()
        })
    };
    std::thread::scope(|scope| {
        for queue in 0..queues {
            for number in 0..DEPTH {
                let name = format!("fuse-{queue}.{number}");
                let work = move |queue| work(queue, number == 0);
                if let Err(error) = start(scope, name, queue, work) {
                    // The kernel waits for a ring of each processor before it asks anything.
                    tracing::error!("cannot start a thread for each processor: {error}");
                    std::process::abort();
                }
            }
        }
        scope.spawn(move || hire(scope, &hired, move |queue| work(queue, false)));
        let result = super::wire::work(device, stats, serve);
        crew.dismiss();
        result
    })
}

/// Has this thread stay on a processor, unless that is not there or not for us.
fn bind(queue: u16) {
    let mut processor = CpuSet::new();
    if usize::from(queue) < CpuSet::MAX_CPU {
        processor.set(usize::from(queue));
        if let Err(errno) = rustix::thread::sched_setaffinity(None, &processor) {
            tracing::debug!("cannot stay on processor {queue}: {errno}");
        }
    }
}

fn work(device: &OwnedFd, queue: u16, stats: &Stats, serve: &impl Serve) -> Result<(), Errno> {
    let mut entry = RingEntry::new(device.as_fd(), queue, MAX_REQUEST as usize)?;
    let mut scratch = Vec::new();
    let mut answered = match entry.first() {
        Ok(mut message) => answer(&mut message, &mut scratch, stats, serve),
        Err(errno) => return ended(errno),
    };
    loop {
        match entry.next(answered.header.as_bytes(), answered.size) {
            Ok(mut message) => answered = answer(&mut message, &mut scratch, stats, serve),
            Err(errno) => return ended(errno),
        }
    }
}

/// The mount is gone; anything else is an error.
fn ended(errno: Errno) -> Result<(), Errno> {
    match errno {
        Errno::NOTCONN | Errno::CONNABORTED | Errno::CANCELED | Errno::NODEV => Ok(()),
        errno => Err(errno),
    }
}

#[derive(Default)]
struct Answered {
    header: OutHeader,
    /// Of the payload.
    size: usize,
}

fn answer(
    message: &mut Message<'_>,
    scratch: &mut Vec<u8>,
    stats: &Stats,
    serve: &impl Serve,
) -> Answered {
    let mut answered = Answered::default();
    if message.size == 0 {
        // Nothing of the request is where the answer goes.
        let request = Request::with_op(message.header, message.op, &[]);
        let mut sink = Direct(message.payload, &mut answered);
        super::wire::answer(request, &mut sink, stats, serve);
        return answered;
    }
    scratch.clear();
    let rest = message.payload.get(..message.size).unwrap_or_default();
    let request = Request::with_op(message.header, message.op, rest);
    let mut sink = Apart(scratch, &mut answered);
    super::wire::answer(request, &mut sink, stats, serve);
    match message.payload.get_mut(..scratch.len()) {
        Some(room) => room.copy_from_slice(scratch),
        None => answered.refuse(),
    }
    answered
}

impl Answered {
    /// The answer is larger than anything that was asked for.
    fn refuse(&mut self) {
        tracing::error!("internal error: an answer that is too long");
        self.header.error = -Errno::IO.raw_os_error();
        self.size = 0;
    }
}

/// Answers go straight to the kernel's buffer.
struct Direct<'a>(&'a mut [u8], &'a mut Answered);

impl Send for Direct<'_> {
    fn send(&mut self, header: OutHeader, bytes: &[u8]) -> Result<(), Errno> {
        self.1.header = header;
        self.1.size = bytes.len();
        match self.0.get_mut(..bytes.len()) {
            Some(room) => room.copy_from_slice(bytes),
            None => self.1.refuse(),
        }
        Ok(())
    }

    fn room(&mut self) -> Option<&mut [u8]> {
        Some(self.0)
    }

    fn send_room(&mut self, header: OutHeader, size: usize) -> Result<(), Errno> {
        self.1.header = header;
        self.1.size = size;
        Ok(())
    }
}

/// Answers wait until the request is not needed any more.
struct Apart<'a>(&'a mut Vec<u8>, &'a mut Answered);

impl Send for Apart<'_> {
    fn send(&mut self, header: OutHeader, bytes: &[u8]) -> Result<(), Errno> {
        self.1.header = header;
        self.1.size = bytes.len();
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}
