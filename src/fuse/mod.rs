//! The FUSE boundary. fuser exchanges greetings with the kernel and notifies it; requests are read
//! and answered here ([`wire`]), which no library does without losing some of what they say: who may
//! keep set-id bits, times far from 1970, a node id that is not `st_ino`.
//!
//! What the kernel is told: everything is valid for ever, since nobody else changes the tree.
//! OPENDIR, FLUSH and ACCESS are answered `ENOSYS` once; the kernel then does them alone.
//! Permissions are the kernel's to check (`default_permissions`). Nothing is tied to a file handle:
//! every request names a node.
//!
//! In *cached* mode OPEN and CREATE are answered `ENOSYS` as well (the kernel then creates with
//! MKNOD), so files are opened and closed without us, and read through the page cache. In
//! *passthrough* mode we are asked to open files, and the kernel does their I/O on the files that
//! have the contents.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::union::Union;

mod abi;
pub(crate) mod aliases;
mod greeting;
mod handler;
mod memory;
mod opens;
mod ring;
mod view;
mod wire;

pub use abi::op::name as request_name;
use handler::Handler;
pub use memory::InMemory;
use opens::Opens;
pub use view::View;

/// How the contents of files are read and written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoMode {
    /// By the daemon, through the page cache of the mount.
    #[default]
    Cached,
    /// By the kernel, on the files of the store, the lowers and the upper. Needs `CAP_SYS_ADMIN` in
    /// the initial user namespace, and Linux 6.9.
    Passthrough,
}

/// How requests and replies go between the kernel and us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// By `io_uring` where the kernel offers it and it may be used, else by the device.
    #[default]
    Auto,
    /// By reading and writing `/dev/fuse`.
    Device,
    /// By `io_uring`; an error where that cannot be.
    IoUring,
}

/// How to serve a mount.
#[derive(Clone, Debug, Default)]
pub struct ServeOptions {
    /// Number of threads; as many as processors if not given.
    pub threads: Option<usize>,
    /// How contents are read and written.
    pub io: IoMode,
    /// How requests arrive.
    pub transport: Transport,
    /// What users see otherwise than it is.
    pub view: View,
}

/// Serves a union over an open `/dev/fuse` that is already mounted, until it is unmounted.
/// `on_live` is called when the kernel's greeting was answered.
pub fn serve(
    device: OwnedFd,
    union: &Arc<Union>,
    options: &ServeOptions,
    on_live: impl FnOnce(),
) -> io::Result<()> {
    // Modes come from requests.
    rustix::process::umask(rustix::fs::Mode::empty());
    let processors = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let threads = options.threads.unwrap_or(processors).max(1);
    let greeted = greeting::greet(device, options)?;
    let opens = match options.io {
        IoMode::Cached => None,
        IoMode::Passthrough => Some(Arc::new(Opens::new(
            Arc::clone(union),
            Arc::clone(&greeted.device),
            greeted.session.notifier(),
        ))),
    };
    on_live();
    let handler = Handler {
        union: Arc::clone(union),
        opens,
        setxattr_ext: greeted.setxattr_ext,
        view: options.view.clone(),
    };
    let serve = |request: wire::Request<'_>, reply: &mut wire::Reply<'_>| {
        handler.serve(request, reply);
    };
    let result = if greeted.by_io_uring {
        ring::run(&greeted.device, &union.stats, &serve)
    } else {
        wire::run(&greeted.device, threads, &union.stats, &serve)
    };
    if let Err(error) = union.close() {
        tracing::error!("cannot sync the upper directory: {error}");
    }
    result
}
