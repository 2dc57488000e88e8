//! Attaching a FUSE connection to a mount point, and taking it off again.
//!
//! A process that may call `mount(2)` does; anyone else asks fusermount3, the set-user-id helper of
//! libfuse, which mounts and passes the open `/dev/fuse` back over a socket.

use std::ffi::CString;
use std::fs;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};

pub mod options;
pub mod record;
pub mod table;

use options::MountOptions;

/// Why something cannot be mounted or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mount point is not there.
    #[error("mount point {0:?} does not exist: make it first (mkdir)")]
    Missing(PathBuf),
    /// The mount point is no directory.
    #[error("mount point {0:?} is not a directory")]
    NotADirectory(PathBuf),
    /// A Lamina mount is there already.
    #[error("{0:?} already has a live lamina mount: 'lamina umount' it first")]
    Mounted(PathBuf),
    /// The mount point cannot be looked at.
    #[error("cannot use mount point {path:?}: {source}")]
    Unusable {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// `/dev/fuse` cannot be opened.
    #[error("cannot open /dev/fuse: {0} (is the fuse kernel module there, and may you use it?)")]
    Device(Errno),
    /// `mount(2)` failed.
    #[error("cannot mount at {path:?}: {source}")]
    Mount {
        /// The mount point.
        path: PathBuf,
        /// Why.
        source: Errno,
    },
    /// fusermount3 is missing.
    #[error(
        "cannot run fusermount3, which mounts for ordinary users: {0} (Debian and Fedora have it in \
         the package fuse3)"
    )]
    NoHelper(io::Error),
    /// fusermount3 failed.
    #[error("fusermount3 refused: {0}")]
    Helper(String),
    /// There is nothing to unmount.
    #[error("nothing is mounted at {0:?}")]
    NotMounted(PathBuf),
    /// It is in use.
    #[error("{0:?} is in use: end what uses it (see 'fuser -vm'), or detach it with --lazy")]
    Busy(PathBuf),
}

/// Looks at a mount point, and returns its path without symbolic links.
pub fn check_target(target: &Path) -> Result<PathBuf, MountError> {
    let unusable = |source| MountError::Unusable {
        path: target.to_owned(),
        source,
    };
    let meta = match fs::metadata(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(MountError::Missing(target.to_owned()));
        }
        // What a dead FUSE daemon leaves.
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => {
            return Err(MountError::Mounted(target.to_owned()));
        }
        result => result.map_err(unusable)?,
    };
    if !meta.is_dir() {
        return Err(MountError::NotADirectory(target.to_owned()));
    }
    let target = target.canonicalize().map_err(unusable)?;
    let mounted = table::mount_at(&target).map_err(unusable)?;
    if mounted.is_some_and(|mount| mount.fs_type == "fuse.lamina") {
        return Err(MountError::Mounted(target));
    }
    Ok(target)
}

/// Mounts at `target`; the result is the open `/dev/fuse` to serve.
pub fn attach(target: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    if may_mount() {
        match attach_directly(target, options) {
            // In a container without the right to; the helper may still do.
            Err(MountError::Mount {
                source: Errno::PERM,
                ..
            }) => {}
            result => return result,
        }
    }
    attach_by_helper(target, options)
}

fn may_mount() -> bool {
    rustix::thread::capabilities(None).is_ok_and(|sets| {
        sets.effective
            .contains(rustix::thread::CapabilitySet::SYS_ADMIN)
    })
}

fn attach_directly(target: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let device = rustix::fs::open("/dev/fuse", flags, Mode::empty()).map_err(MountError::Device)?;
    let uid = rustix::process::getuid().as_raw();
    let gid = rustix::process::getgid().as_raw();
    let mut data = format!(
        "fd={},rootmode=40000,user_id={uid},group_id={gid},default_permissions,max_read=1048576",
        device.as_raw_fd()
    );
    if options.allow_other.unwrap_or(true) {
        data.push_str(",allow_other");
    }
    for label in &options.security {
        let (key, value) = label.split_once('=').unwrap_or((label, ""));
        data.extend([",", key, "=\"", value, "\""]);
    }
    let fail = |source| MountError::Mount {
        path: target.to_owned(),
        source,
    };
    let data = CString::new(data).map_err(|_| fail(Errno::INVAL))?;
    let source = options.source.as_deref().unwrap_or("lamina");
    let fs_type = format!("fuse.{}", options.subtype);
    rustix::mount::mount(
        source,
        target,
        fs_type.as_str(),
        options.flags,
        data.as_c_str(),
    )
    .map_err(fail)?;
    Ok(device)
}

fn attach_by_helper(target: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let io_error = |errno: Errno| MountError::NoHelper(errno.into());
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::empty(),
        None,
    )
    .map_err(io_error)?;
    rustix::io::fcntl_setfd(&ours, rustix::io::FdFlags::CLOEXEC).map_err(io_error)?;
    let mut words = vec![
        format!(
            "fsname={}",
            options
                .source
                .as_deref()
                .unwrap_or("lamina")
                .replace(',', "\\,")
        ),
        format!("subtype={}", options.subtype),
        "default_permissions".to_owned(),
        "max_read=1048576".to_owned(),
    ];
    if options.allow_other == Some(true) {
        words.push("allow_other".to_owned());
    }
    for (flag, word) in [
        (MountFlags::RDONLY, "ro"),
        (MountFlags::NOEXEC, "noexec"),
        (MountFlags::NOATIME, "noatime"),
    ] {
        if options.flags.contains(flag) {
            words.push(word.to_owned());
        }
    }
    let output = Command::new("fusermount3")
        .args(["-o", &words.join(","), "--"])
        .arg(target)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .output()
        .map_err(MountError::NoHelper)?;
    drop(theirs);
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let hint = if said.contains("user_allow_other") {
            " (an administrator must allow it in /etc/fuse.conf)"
        } else {
            ""
        };
        return Err(MountError::Helper(format!("{said}{hint}")));
    }
    receive_device(&ours)
        .map_err(io_error)?
        .ok_or_else(|| MountError::Helper("it passed no descriptor of /dev/fuse".to_owned()))
}

fn receive_device(socket: &OwnedFd) -> Result<Option<OwnedFd>, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0u8; 1];
    let mut parts = [IoSliceMut::new(&mut byte)];
    rustix::net::recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
            return Ok(descriptors.next());
        }
    }
    Ok(None)
}

/// Unmounts. `lazy` detaches a mount that is in use; it goes when its last user ends.
pub fn detach(target: &Path, lazy: bool) -> Result<(), MountError> {
    let flags = if lazy {
        UnmountFlags::DETACH
    } else {
        UnmountFlags::empty()
    };
    match rustix::mount::unmount(target, flags | UnmountFlags::NOFOLLOW) {
        Ok(()) => return Ok(()),
        Err(Errno::BUSY) => return Err(MountError::Busy(target.to_owned())),
        Err(Errno::INVAL) => return Err(MountError::NotMounted(target.to_owned())),
        Err(Errno::PERM) => {}
        Err(source) => {
            return Err(MountError::Mount {
                path: target.to_owned(),
                source,
            });
        }
    }
    let mut helper = Command::new("fusermount3");
    helper
        .arg("-u")
        .args(lazy.then_some("-z"))
        .arg("--")
        .arg(target);
    let output = helper
        .stdin(Stdio::null())
        .output()
        .map_err(MountError::NoHelper)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(if said.contains("busy") {
        MountError::Busy(target.to_owned())
    } else if said.contains("not found") {
        MountError::NotMounted(target.to_owned())
    } else {
        MountError::Helper(said)
    })
}
