//! The first exchange with the kernel, by fuser: which version, and what each side can.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use fuser::{Config, Filesystem, InitFlags, KernelConfig, Request, Session, SessionACL};

use super::IoMode;
use super::wire::MAX_REQUEST;

/// Says what we want.
pub struct Greeter(IoMode);

/// Answers the kernel's greeting. Requests are then read from the descriptor that is returned; the
/// session gives notifiers.
///
/// # Errors
/// When the mount is gone, or the kernel cannot what is asked of it.
pub fn greet(device: OwnedFd, mode: IoMode) -> io::Result<(Session<Greeter>, Arc<OwnedFd>)> {
    let mut config = Config::default();
    config.acl = SessionACL::All;
    let session = Session::from_fd(Greeter(mode), device, SessionACL::All, config)?;
    let device = session.as_fd().try_clone_to_owned()?;
    Ok((session, Arc::new(device)))
}

impl Filesystem for Greeter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
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
        let by_mode = match self.0 {
            IoMode::Cached => InitFlags::FUSE_NO_OPEN_SUPPORT,
            IoMode::Passthrough => InitFlags::FUSE_ATOMIC_O_TRUNC,
        };
        for flag in wanted.into_iter().chain([by_mode]) {
            if config.add_capabilities(flag).is_err() {
                tracing::debug!("the kernel does not offer {flag:?}");
            }
        }
        if self.0 == IoMode::Passthrough {
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
