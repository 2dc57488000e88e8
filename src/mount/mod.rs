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

pub mod control;
pub mod options;
pub mod overlay;
pub mod record;
pub mod table;

pub use lamina_layers::json_path;

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
    /// The daemon of the mount that is there is gone.
    #[error(
        "{0:?} is mounted, but the program that served it is gone: 'lamina umount' it first (or \
         umount, fusermount3 -u)"
    )]
    Dead(PathBuf),
    /// The daemon would meet its own mount.
    #[error(
        "mount point {target:?} lies in {what} directory {dir:?}, which would then hold itself: \
         mount elsewhere"
    )]
    Inside {
        /// The mount point.
        target: PathBuf,
        /// `lower`, `upper` or `work`.
        what: &'static str,
        /// The directory.
        dir: PathBuf,
    },
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
    #[error("cannot mount at {path:?}: {source}{hint}")]
    Mount {
        /// The mount point.
        path: PathBuf,
        /// Why.
        source: Errno,
        /// What may be the reason, if it can be guessed.
        hint: &'static str,
    },
    /// `umount(2)` failed.
    #[error("cannot unmount {path:?}: {source}")]
    Unmount {
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
    /// Something else is mounted above it.
    #[error("{0:?} is covered by another mount: unmount that first (umount)")]
    Covered(PathBuf),
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
            return Err(MountError::Dead(target.to_owned()));
        }
        result => result.map_err(unusable)?,
    };
    if !meta.is_dir() {
        return Err(MountError::NotADirectory(target.to_owned()));
    }
    let target = target.canonicalize().map_err(unusable)?;
    let mounted = table::mount_at(&target).map_err(unusable)?;
    if mounted.is_some_and(|mount| mount.is_lamina()) {
        return Err(MountError::Mounted(target));
    }
    Ok(target)
}

/// Refuses a mount point in a directory that the daemon reads: it would wait for itself when it
/// comes to it. A lower directory itself may be the mount point, since the daemon has it open and
/// goes on from there; an upper may not, since `lamina diff` could not see it any more.
pub fn check_apart(
    target: &Path,
    lowers: &[PathBuf],
    upper: Option<(&Path, &Path)>,
) -> Result<(), MountError> {
    let lowers = lowers.iter().map(|dir| ("lower", dir.as_path()));
    let changes = upper.into_iter();
    let changes = changes.flat_map(|(upper, work)| [("upper", upper), ("work", work)]);
    for (what, dir) in lowers.chain(changes) {
        // One that cannot be found is told when it is opened.
        let Ok(real) = dir.canonicalize() else {
            continue;
        };
        if target.starts_with(&real) && (what != "lower" || target != real) {
            return Err(MountError::Inside {
                target: target.to_owned(),
                what,
                dir: dir.to_owned(),
            });
        }
    }
    Ok(())
}

/// A mount of this process, by which it is known again.
#[derive(Clone, Debug)]
pub struct Attached {
    /// Where it is.
    pub target: PathBuf,
    /// Its device number, `major:minor`; empty if it was gone at once.
    pub device: String,
    /// The kernel's number of it, which is never given again; device numbers are. Linux 6.8.
    pub id: Option<u64>,
}

impl Attached {
    /// Detaches it if it still is where it was mounted; returns whether it was. Others at the same
    /// place are left alone.
    pub fn detach(&self) -> Result<bool, MountError> {
        let unusable = |source| MountError::Unusable {
            path: self.target.clone(),
            source,
        };
        let mounts = table::mounts().map_err(unusable)?;
        let mut here = mounts.iter().rev();
        match here.find(|mount| mount.target == self.target) {
            Some(top) if top.is(&self.target, &self.device) && !self.was_replaced() => {}
            _ if here.any(|mount| mount.is(&self.target, &self.device)) => {
                return Err(MountError::Covered(self.target.clone()));
            }
            _ => return Ok(false),
        }
        detach(&self.target, true).map(|()| true)
    }

    /// Has the kernel ask for contents in pieces of up to a megabyte, the most that a request can bring;
    /// it takes 128 KiB otherwise. Only root may say so.
    fn read_further_ahead(&self) {
        let setting = format!("/sys/class/bdi/{}/read_ahead_kb", self.device);
        if let Err(error) = fs::write(&setting, "1024") {
            tracing::debug!("{setting}: {error}");
        }
    }

    /// Whether another mount is on top, for sure.
    fn was_replaced(&self) -> bool {
        match (self.id, crate::sys::mount::id(&self.target)) {
            (Some(own), Some(found)) => own != found,
            _ => false,
        }
    }
}

/// Mounts at `target`; the result is the open `/dev/fuse` to serve.
pub fn attach(target: &Path, options: &MountOptions) -> Result<(OwnedFd, Attached), MountError> {
    let device = attach_somehow(target, options)?;
    let mounted = table::mount_at(target).ok().flatten();
    let attached = Attached {
        target: target.to_owned(),
        device: mounted.map(|mount| mount.device).unwrap_or_default(),
        id: crate::sys::mount::id(target),
    };
    attached.read_further_ahead();
    Ok((device, attached))
}

fn attach_somehow(target: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    if !may_mount() {
        return attach_by_helper(target, options);
    }
    match attach_directly(target, options) {
        // In a container without the right to; the helper may still do, if there is one.
        Err(
            refused @ MountError::Mount {
                source: Errno::PERM,
                ..
            },
        ) => match attach_by_helper(target, options) {
            Err(MountError::NoHelper(_)) => Err(refused),
            result => result,
        },
        result => result,
    }
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
        hint: match source {
            Errno::INVAL if !options.security.is_empty() => {
                " (context= and its like need a kernel with SELinux)"
            }
            _ => "",
        },
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
    let words = helper_options(options).join(",");
    let output = Command::new("fusermount3")
        .args(["-o", &words, "--"])
        .arg(target)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .output()
        .map_err(MountError::NoHelper)?;
    drop(theirs);
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let hint = if said.contains("user_allow_other") {
            " (ask an administrator for it, or mount without -o allow_other)"
        } else {
            ""
        };
        return Err(MountError::Helper(format!("{said}{hint}")));
    }
    receive_device(&ours)
        .map_err(io_error)?
        .ok_or_else(|| MountError::Helper("it passed no descriptor of /dev/fuse".to_owned()))
}

/// The options as fusermount3 takes them. It adds `nosuid` and `nodev` itself.
fn helper_options(options: &MountOptions) -> Vec<String> {
    let escaped = |text: &str| text.replace('\\', "\\\\").replace(',', "\\,");
    let source = options.source.as_deref().unwrap_or("lamina");
    let mut words = vec![
        format!("fsname={}", escaped(source)),
        format!("subtype={}", escaped(&options.subtype)),
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
        (MountFlags::NODIRATIME, "nodiratime"),
        (MountFlags::STRICTATIME, "strictatime"),
        (MountFlags::SYNCHRONOUS, "sync"),
        (MountFlags::DIRSYNC, "dirsync"),
    ] {
        if options.flags.contains(flag) {
            words.push(word.to_owned());
        }
    }
    words.extend(options.security.iter().map(|label| escaped(label)));
    words
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
            return Err(MountError::Unmount {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_options_reach_the_helper() {
        let mut options = MountOptions::default();
        options
            .add("ro,noatime,sync,allow_other,fsname=a\\,b,context=\"x:c0,c1\"")
            .unwrap();
        let words = helper_options(&options).join(",");
        for word in [
            "fsname=a\\,b",
            "ro",
            "noatime",
            "sync",
            "allow_other",
            "context=x:c0\\,c1",
        ] {
            assert!(
                format!(",{words},").contains(&format!(",{word},")),
                "{word}: {words}"
            );
        }
    }

    #[test]
    fn a_mount_point_lies_in_nothing_that_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| {
            let path = dir.path().canonicalize().unwrap().join(name);
            fs::create_dir_all(&path).unwrap();
            path
        };
        let (lower, upper, work) = (at("lower"), at("upper"), at("work"));
        let lowers = [lower.clone()];
        let check = |target: &Path| check_apart(target, &lowers, Some((&upper, &work)));
        for right in [at("mnt"), at("lower2"), lower.clone()] {
            assert!(check(&right).is_ok(), "{right:?}");
        }
        for wrong in [
            at("lower/in"),
            upper.clone(),
            at("upper/in"),
            at("work/work"),
        ] {
            assert!(
                matches!(check(&wrong), Err(MountError::Inside { .. })),
                "{wrong:?}"
            );
        }
    }
}
