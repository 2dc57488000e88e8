//! The first exchange with the kernel, by fuser: which version, and what each side can.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fuser::{Config, Filesystem, InitFlags, KernelConfig, Request, Session, SessionACL};

use super::wire::MAX_REQUEST;
use super::{IoMode, ServeOptions, Transport};
use crate::sys::fuse_ring;

/// Says what we want.
pub struct Greeter {
    mode: IoMode,
    transport: Transport,
    acl: bool,
    setxattr_ext: Arc<AtomicBool>,
    by_io_uring: Arc<AtomicBool>,
}

/// What came of the greeting.
pub struct Greeted {
    /// Gives notifiers.
    pub session: Session<Greeter>,
    /// Where requests are read from.
    pub device: Arc<OwnedFd>,
    /// Whether requests to set an extended attribute say more.
    pub setxattr_ext: bool,
    /// Whether requests arrive by `io_uring`.
    pub by_io_uring: bool,
}

/// Answers the kernel's greeting.
///
/// # Errors
/// When the mount is gone, or the kernel cannot what is asked of it.
pub fn greet(device: OwnedFd, options: &ServeOptions) -> io::Result<Greeted> {
    let mut config = Config::default();
    config.acl = SessionACL::All;
    let setxattr_ext = Arc::new(AtomicBool::new(false));
    let by_io_uring = Arc::new(AtomicBool::new(false));
    let greeter = Greeter {
        mode: options.io,
        transport: options.transport,
        acl: !options.view.no_acl,
        setxattr_ext: Arc::clone(&setxattr_ext),
        by_io_uring: Arc::clone(&by_io_uring),
    };
    let session = Session::from_fd(greeter, device, SessionACL::All, config)?;
    let device = Arc::new(session.as_fd().try_clone_to_owned()?);
    Ok(Greeted {
        session,
        device,
        setxattr_ext: setxattr_ext.load(Ordering::Relaxed),
        by_io_uring: by_io_uring.load(Ordering::Relaxed),
    })
}

impl Filesystem for Greeter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_BIG_WRITES,
            InitFlags::FUSE_MAX_PAGES,
            InitFlags::FUSE_ASYNC_DIO,
            // Always: what is listed is mostly looked at next, and a LOOKUP costs ten times what the
            // attributes of an entry do.
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_DONT_MASK,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ];
        let by_mode = match self.mode {
            IoMode::Cached => InitFlags::FUSE_NO_OPEN_SUPPORT,
            IoMode::Passthrough => InitFlags::FUSE_ATOMIC_O_TRUNC,
        };
        let acl = self.acl.then_some(InitFlags::FUSE_POSIX_ACL);
        for flag in wanted.into_iter().chain([by_mode]).chain(acl) {
            if config.add_capabilities(flag).is_err() {
                tracing::debug!("the kernel does not offer {flag:?}");
            }
        }
        let ext = config.add_capabilities(InitFlags::FUSE_SETXATTR_EXT);
        self.setxattr_ext.store(ext.is_ok(), Ordering::Relaxed);
        if self.transport != Transport::Device {
            let can = fuse_ring::is_available()
                && config
                    .add_capabilities(InitFlags::FUSE_OVER_IO_URING)
                    .is_ok();
            if !can && self.transport == Transport::IoUring {
                return Err(io::Error::other(
                    "the kernel does not offer FUSE over io_uring: it needs Linux 6.14, and \
                     /sys/module/fuse/parameters/enable_uring set to Y",
                ));
            }
            self.by_io_uring.store(can, Ordering::Relaxed);
        }
        if self.mode == IoMode::Passthrough {
            let offered = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH);
            // Overlayfs can still be mounted on top.
            if offered.is_err() || config.set_max_stack_depth(1).is_err() {
                return Err(io::Error::other(
                    "the kernel has no FUSE passthrough (Linux 6.9): use --io cached",
                ));
            }
        }
        // Takes what the kernel allows, if that is less.
        let limit = config
            .set_max_write(MAX_REQUEST)
            .or_else(|max| config.set_max_write(max));
        if limit.is_err() {
            return Err(io::Error::other("the kernel allows no writes of any size"));
        }
        Ok(())
    }
}
