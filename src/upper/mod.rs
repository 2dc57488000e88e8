//! The writable directory of a mount, in overlayfs's own format: whiteouts are character devices
//! 0:0, marks are extended attributes ([`mark`]).
//!
//! Everything here works on open directories and single names; which node they belong to is the
//! union's business. Nothing becomes visible in the upper half made: it is built in the work
//! directory, on the same filesystem, and renamed into place.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{self as rfs, AtFlags, CWD, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use crate::attr::{Attr, Kind, PERMISSIONS};
use crate::error::FsResult;
use crate::sys::{self, SysResult};

pub mod build;
pub mod mark;
pub mod stat;
mod whiteout;

use mark::{Dialect, Marks, Namespace, NodeMark, WH_PREFIX};
use stat::{Shown, StatMark};

/// Where an upper is.
#[derive(Clone, Debug)]
pub struct UpperDirs {
    /// What was changed.
    pub upper: PathBuf,
    /// Scratch space on the same filesystem.
    pub work: PathBuf,
}

/// How an upper is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UpperOptions {
    /// Skip all syncing. If the machine stops, or the mount is not ended in order, the upper is refused
    /// from then on.
    pub volatile: bool,
    /// Skip all syncing, and use the upper again whatever happened.
    pub unsynced: bool,
    /// fuse-overlayfs uses it too, at other times: its marks count, and it gets none that it does not
    /// understand.
    pub shared: bool,
    /// The attribute that is to say whom objects belong to, and their permissions, unless the upper has
    /// one already. Only with `shared`.
    pub stat: Option<StatMark>,
}

/// Why an upper cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UpperError {
    /// It cannot be opened.
    #[error("cannot open {what} directory {path:?}: {source}")]
    Open {
        /// `upper` or `work`.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// Why.
        source: Errno,
    },
    /// They must be renamed between.
    #[error(
        "upper directory {upper:?} and work directory {work:?} are on different filesystems: \
         put them on one"
    )]
    DifferentFilesystems {
        /// The upper directory.
        upper: PathBuf,
        /// The work directory.
        work: PathBuf,
    },
    /// One must not be part of the other.
    #[error("{inner:?} lies inside {outer:?}: upper and work directory must lie beside each other")]
    Nested {
        /// The one inside.
        inner: PathBuf,
        /// The one around it.
        outer: PathBuf,
    },
    /// Another mount uses it.
    #[error(
        "{what} directory {path:?} is in use by another live mount, or is being committed: unmount \
         that, or use other directories ('lamina ps' lists mounts)"
    )]
    InUse {
        /// `upper` or `work`.
        what: &'static str,
        /// Its path.
        path: PathBuf,
    },
    /// A mount with `--volatile` ended without syncing.
    #[error(
        "upper directory {upper:?} was last mounted volatile and not unmounted in order, so it may \
         be damaged: throw it away, or remove {mark:?} to use it all the same"
    )]
    Volatile {
        /// The upper directory.
        upper: PathBuf,
        /// What says so.
        mark: PathBuf,
    },
    /// Some names of a file are joined by overlayfs's index alone.
    #[error(
        "overlayfs with index=on changed hard links in upper directory {upper:?} whose other names \
         only its index knows, which Lamina does not read: with overlayfs, write to the other names \
         too (or copy what you need), or remove {index:?} to give those names their old contents"
    )]
    Index {
        /// The upper directory.
        upper: PathBuf,
        /// The index.
        index: PathBuf,
    },
    /// The filesystem lacks something.
    #[error(
        "the filesystem of upper directory {upper:?} cannot hold extended attributes ({tried}): \
         use one that can (ext4, xfs, btrfs, tmpfs)"
    )]
    NoXattrs {
        /// The upper directory.
        upper: PathBuf,
        /// What was tried.
        tried: &'static str,
    },
}

/// What the upper has under a name.
#[derive(Debug)]
pub struct UpperEntry {
    /// The object's attributes as users see them, but for `ino`.
    pub attr: Attr,
    /// Its marks.
    pub marks: Marks,
}

/// What is under a name of the upper.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "it is passed once and taken apart"
)]
pub enum UpperFound {
    /// Nothing: the lowers decide.
    Nothing,
    /// A whiteout: the name does not exist, whatever the lowers have.
    Whiteout,
    /// An object.
    Object(UpperEntry),
}

/// An upper and its work directory.
pub struct Upper {
    root: OwnedFd,
    work: OwnedFd,
    dialect: Dialect,
    dev: u64,
    options: UpperOptions,
    /// Whether file ownership can be changed at will.
    privileged: bool,
    /// Whether modes do not bind this process.
    overrides_modes: bool,
    /// Whether whiteouts are files, as devices cannot be made.
    whiteout_files: bool,
    counter: AtomicU64,
    /// Locked for as long as the mount lives.
    _work_lock: OwnedFd,
}

/// Where overlayfs keeps a name for each file with hard links that it copied up.
const INDEX: &str = "index";
/// So often a lock is tried for again, after so long.
const PATIENCE: u32 = 1000;
const PAUSE: Duration = Duration::from_millis(10);
const VOLATILE_MARK: &str = "work/incompat/volatile";

impl Upper {
    /// Opens an upper for a mount, takes it for this process, and clears the work directory.
    pub fn open(dirs: &UpperDirs, options: UpperOptions) -> Result<Self, UpperError> {
        let root = open_dir("upper", &dirs.upper)?;
        let work_base = open_dir("work", &dirs.work)?;
        check_places(dirs, &root, &work_base)?;
        lock("upper", &dirs.upper, &root, options.shared)?;
        lock("work", &dirs.work, &work_base, options.shared)?;
        let mark = dirs.work.join(VOLATILE_MARK);
        if mark.exists() && !options.shared {
            return Err(UpperError::Volatile {
                upper: dirs.upper.clone(),
                mark,
            });
        }
        let fail = |source| UpperError::Open {
            what: "work",
            path: dirs.work.clone(),
            source,
        };
        if index_joins_names(&work_base).map_err(fail)? {
            return Err(UpperError::Index {
                upper: dirs.upper.clone(),
                index: dirs.work.join(INDEX),
            });
        }
        let work = scratch_dir(&work_base).map_err(fail)?;
        let upper = Self::with(dirs, root, work, work_base, options)?;
        if options.volatile {
            upper.mark_volatile().map_err(fail)?;
        }
        upper.note_stat().map_err(fail)?;
        Ok(upper)
    }

    /// Opens an upper to look at, beside a mount that may be using it.
    pub fn open_read_only(dirs: &UpperDirs) -> Result<Self, UpperError> {
        let root = open_dir("upper", &dirs.upper)?;
        let work = open_dir("work", &dirs.work)?;
        let work_base = open_dir("work", &dirs.work)?;
        let namespace = if Namespace::User.is_noted(work.as_fd()) {
            Namespace::User
        } else {
            reading_namespace()
        };
        let dev = device(&root);
        Ok(Self {
            root,
            work,
            dialect: Dialect::own(namespace),
            dev,
            options: UpperOptions {
                unsynced: true,
                ..UpperOptions::default()
            },
            privileged: namespace == Namespace::Trusted,
            overrides_modes: has_capability(CapabilitySet::DAC_OVERRIDE),
            whiteout_files: false,
            counter: AtomicU64::new(0),
            _work_lock: work_base,
        })
    }

    fn with(
        dirs: &UpperDirs,
        root: OwnedFd,
        work: OwnedFd,
        work_base: OwnedFd,
        options: UpperOptions,
    ) -> Result<Self, UpperError> {
        // What an ordinary user began goes on as it is when root mounts it.
        let namespaces = if Namespace::User.is_noted(work_base.as_fd()) {
            &[Namespace::User][..]
        } else {
            &[Namespace::Trusted, Namespace::User]
        };
        let mut namespaces = namespaces.iter().copied();
        let Some(namespace) = namespaces.find(|namespace| namespace.works_on(work.as_fd())) else {
            return Err(UpperError::NoXattrs {
                upper: dirs.upper.clone(),
                tried: "trusted.* and user.*",
            });
        };
        if namespace == Namespace::User
            && let Err(errno) = namespace.note(work_base.as_fd())
        {
            tracing::warn!("root will not see what was deleted in this upper: {errno}");
        }
        let dev = device(&root);
        let stat = if options.shared {
            StatMark::of_layer(root.as_fd()).or(options.stat)
        } else {
            None
        };
        let dialect = Dialect {
            namespace,
            stat,
            shared: options.shared,
        };
        let whiteout_files = options.shared && whiteout::must_be_files(&work);
        Ok(Self {
            root,
            work,
            dialect,
            dev,
            options,
            privileged: namespace == Namespace::Trusted,
            overrides_modes: has_capability(CapabilitySet::DAC_OVERRIDE),
            whiteout_files,
            counter: AtomicU64::new(0),
            _work_lock: work_base,
        })
    }

    /// Says by the root directory how owners and permissions are noted.
    fn note_stat(&self) -> SysResult<()> {
        let Some(stat) = self.dialect.stat else {
            return Ok(());
        };
        if stat.read(self.root())?.is_some() {
            return Ok(());
        }
        let attr = sys::stat_fd(&self.root)?;
        let shown = Shown {
            owner: (attr.uid, attr.gid),
            mode: attr.mode & PERMISSIONS,
            kind: None,
        };
        stat.write(self.root(), &shown)
    }

    fn mark_volatile(&self) -> SysResult<()> {
        for name in ["incompat", "incompat/volatile"] {
            match rfs::mkdirat(&self.work, name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Ends the use of the upper in order: everything is on disk afterwards.
    pub fn close(&self) -> SysResult<()> {
        if !self.options.unsynced {
            rfs::syncfs(&self.root)?;
        }
        if self.options.volatile {
            sys::dir::remove_tree(self.work.as_fd(), b"incompat")?;
        }
        Ok(())
    }

    /// The upper's root directory.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// What the marks of the root directory say.
    pub fn root_mark(&self) -> NodeMark {
        let marks = self.dialect.read(self.root(), Kind::Dir);
        marks.map_or_else(|_| NodeMark::default(), |marks| marks.node)
    }

    /// Where objects are built.
    pub fn work(&self) -> BorrowedFd<'_> {
        self.work.as_fd()
    }

    /// How marks are written.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// The device number of the filesystem.
    pub fn dev(&self) -> u64 {
        self.dev
    }

    /// Whether `fsync` and the like are to be skipped.
    pub fn is_volatile(&self) -> bool {
        self.options.volatile || self.options.unsynced
    }

    /// Whether owners can be set and devices be made, so that no mark need stand for them.
    pub fn is_privileged(&self) -> bool {
        self.privileged
    }

    /// A name not used in the work directory yet.
    pub fn temp_name(&self) -> Vec<u8> {
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        format!("#{number:x}").into_bytes()
    }

    /// Removes what is left of an object in the work directory. Failure leaves rubbish that the
    /// next mount clears, so it is only logged.
    pub fn discard(&self, temp: &[u8]) {
        if let Err(errno) = sys::dir::remove_tree(self.work(), temp) {
            let name = String::from_utf8_lossy(temp);
            tracing::warn!("cannot remove {name} from the work directory: {errno}");
        }
    }

    /// What the upper has under `name` in the directory `dir`.
    pub fn examine(&self, dir: BorrowedFd<'_>, name: &[u8]) -> FsResult<UpperFound> {
        if self.is_hidden(name) {
            return Ok(UpperFound::Nothing);
        }
        match sys::find_at(dir, name)? {
            Some(attr) => self.examine_found(dir, name, attr),
            None => self.examine_missing(dir, name),
        }
    }

    /// Whether a name is not for users to see.
    pub fn is_hidden(&self, name: &[u8]) -> bool {
        self.dialect.shared && name.starts_with(WH_PREFIX)
    }

    /// As [`Upper::examine`], where there is nothing of that name.
    pub fn examine_missing(&self, dir: BorrowedFd<'_>, name: &[u8]) -> FsResult<UpperFound> {
        Ok(if self.has_whiteout_file(dir, name)? {
            UpperFound::Whiteout
        } else {
            UpperFound::Nothing
        })
    }

    /// As [`Upper::examine`], where its attributes are known.
    pub fn examine_found(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        attr: Attr,
    ) -> FsResult<UpperFound> {
        if attr.is_whiteout() {
            return Ok(UpperFound::Whiteout);
        }
        let fd = match sys::open_at(dir, name, sys::O_PATH) {
            // Removed a moment ago.
            Err(Errno::NOENT) => return Ok(UpperFound::Nothing),
            result => result?,
        };
        Ok(UpperFound::Object(self.describe(fd.as_fd(), attr)?))
    }

    /// Marks of an object, and its attributes with the marks applied.
    pub fn describe(&self, fd: BorrowedFd<'_>, attr: Attr) -> FsResult<UpperEntry> {
        let marks = match attr.kind() {
            // Only privileged marks are possible on these.
            Kind::Symlink | Kind::Fifo | Kind::Socket | Kind::Char | Kind::Block
                if self.dialect.namespace == Namespace::User
                    && self.dialect.stat != Some(StatMark::Security) =>
            {
                Marks::default()
            }
            kind => match self.dialect.read(fd, kind) {
                // Made by someone else, who did not leave us the permissions we need.
                Err(Errno::ACCESS) => self.with_access(fd, kind, || self.dialect.read(fd, kind))?,
                marks => marks?,
            },
        };
        Ok(UpperEntry {
            attr: marks.node.apply(attr),
            marks,
        })
    }

    /// Moves an object from the work directory to a name that has no entry in the upper.
    pub fn publish(&self, temp: &[u8], dir: BorrowedFd<'_>, name: &[u8]) -> SysResult<()> {
        rfs::renameat_with(self.work(), temp, dir, name, RenameFlags::NOREPLACE)
    }

    /// Moves an object from the work directory over a non-directory that has the name.
    pub fn publish_over(&self, temp: &[u8], dir: BorrowedFd<'_>, name: &[u8]) -> SysResult<()> {
        rfs::renameat(self.work(), temp, dir, name)
    }

    /// Moves an object from the work directory to a name held by a whiteout.
    pub fn publish_over_whiteout(
        &self,
        temp: &[u8],
        dir: BorrowedFd<'_>,
        name: &[u8],
        kind: Kind,
    ) -> SysResult<()> {
        if self.dialect.shared && self.has_whiteout_file(dir, name)? {
            match self.publish(temp, dir, name) {
                Err(Errno::EXIST) => {}
                result => {
                    result?;
                    return self.remove_whiteout_file(dir, name);
                }
            }
        }
        if kind != Kind::Dir {
            return self.publish_over(temp, dir, name);
        }
        // A directory cannot be renamed over a device: exchange the two, in one step.
        rfs::renameat_with(self.work(), temp, dir, name, RenameFlags::EXCHANGE)?;
        rfs::unlinkat(self.work(), temp, AtFlags::empty())
    }
}

fn open_dir(what: &'static str, path: &Path) -> Result<OwnedFd, UpperError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rfs::openat(CWD, path, flags, Mode::empty()).map_err(|source| UpperError::Open {
        what,
        path: path.to_owned(),
        source,
    })
}

fn device(fd: impl AsFd) -> u64 {
    sys::stat_fd(fd).map_or(0, |attr| attr.dev)
}

fn check_places(dirs: &UpperDirs, upper: &OwnedFd, work: &OwnedFd) -> Result<(), UpperError> {
    if device(upper) != device(work) {
        return Err(UpperError::DifferentFilesystems {
            upper: dirs.upper.clone(),
            work: dirs.work.clone(),
        });
    }
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let (real_upper, real_work) = (real(&dirs.upper), real(&dirs.work));
    for (inner, outer, words) in [
        (&real_upper, &real_work, (&dirs.upper, &dirs.work)),
        (&real_work, &real_upper, (&dirs.work, &dirs.upper)),
    ] {
        if inner.starts_with(outer) {
            return Err(UpperError::Nested {
                inner: words.0.clone(),
                outer: words.1.clone(),
            });
        }
    }
    Ok(())
}

/// Takes a directory for this process. With `patience`, the daemon of a mount that was just taken off gets
/// the time to end.
fn lock(what: &'static str, path: &Path, fd: &OwnedFd, patience: bool) -> Result<(), UpperError> {
    let mut left = if patience { PATIENCE } else { 0 };
    let locked = loop {
        match rfs::flock(fd, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if left > 0 => {
                left -= 1;
                std::thread::sleep(PAUSE);
            }
            result => break result,
        }
    };
    match locked {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(UpperError::InUse {
            what,
            path: path.to_owned(),
        }),
        Err(source) => Err(UpperError::Open {
            what,
            path: path.to_owned(),
            source,
        }),
    }
}

/// Whether overlayfs has copied up a file whose names are not all in the upper.
/// Its index has one more name for each file with hard links, and marks the file.
fn index_joins_names(base: &OwnedFd) -> SysResult<bool> {
    let index = match sys::open_dir_at(base, INDEX.as_bytes()) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(false),
        index => index?,
    };
    let namespace = reading_namespace();
    let mut joins = false;
    sys::dir::for_each_entry(&index, |entry| -> SysResult<()> {
        let fd = sys::open_at(&index, entry.name, sys::O_PATH)?;
        let attr = sys::stat_fd(&fd)?;
        if attr.kind() != Kind::Dir && !attr.is_whiteout() {
            joins |= namespace.has_names_below(fd.as_fd())?;
        }
        Ok(())
    })?;
    Ok(joins)
}

/// The empty directory `work/work`, as overlayfs has it.
fn scratch_dir(base: &OwnedFd) -> SysResult<OwnedFd> {
    sys::dir::remove_tree(base.as_fd(), b"work")?;
    rfs::mkdirat(base, "work", Mode::RWXU)?;
    sys::open_dir_at(base, b"work")
}

/// The namespace this process can read. Root of a user namespace has the capability, and yet the kernel
/// keeps `trusted.*` from it.
pub fn reading_namespace() -> Namespace {
    if has_capability(CapabilitySet::SYS_ADMIN) && sys::process::is_in_initial_namespace() {
        Namespace::Trusted
    } else {
        Namespace::User
    }
}

fn has_capability(capability: CapabilitySet) -> bool {
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(capability))
}
