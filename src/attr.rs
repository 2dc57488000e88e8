//! Attributes of a file as every part of the filesystem passes them on.

use rustix::fs::{Statx, StatxFlags};

/// What kind of object an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Regular file.
    File,
    /// Directory.
    Dir,
    /// Symbolic link.
    Symlink,
    /// Character device.
    Char,
    /// Block device.
    Block,
    /// Named pipe.
    Fifo,
    /// Socket.
    Socket,
}

/// Bits of `st_mode` that say the file type (`S_IFMT`).
pub const S_IFMT: u32 = libc::S_IFMT;
/// Bits of `st_mode` that are permissions, set-id and sticky.
pub const PERMISSIONS: u32 = 0o7777;

impl Kind {
    /// The kind in a `st_mode`; `None` for a type this system does not know.
    pub fn of_mode(mode: u32) -> Option<Self> {
        Self::of_dirent((mode >> 12) as u8 & 0xf)
    }

    /// The kind in a `d_type`; `None` for `DT_UNKNOWN` and whiteouts.
    pub fn of_dirent(d_type: u8) -> Option<Self> {
        Some(match d_type {
            libc::DT_REG => Self::File,
            libc::DT_DIR => Self::Dir,
            libc::DT_LNK => Self::Symlink,
            libc::DT_CHR => Self::Char,
            libc::DT_BLK => Self::Block,
            libc::DT_FIFO => Self::Fifo,
            libc::DT_SOCK => Self::Socket,
            _ => return None,
        })
    }

    /// The type bits for `st_mode`.
    pub fn mode_bits(self) -> u32 {
        match self {
            Self::File => libc::S_IFREG,
            Self::Dir => libc::S_IFDIR,
            Self::Symlink => libc::S_IFLNK,
            Self::Char => libc::S_IFCHR,
            Self::Block => libc::S_IFBLK,
            Self::Fifo => libc::S_IFIFO,
            Self::Socket => libc::S_IFSOCK,
        }
    }
}

/// A time stamp: seconds since 1970 (may be negative) and nanoseconds below 10⁹.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Seconds.
    pub sec: i64,
    /// Nanoseconds.
    pub nsec: u32,
}

impl From<Time> for rustix::fs::Timespec {
    fn from(time: Time) -> Self {
        Self {
            tv_sec: time.sec,
            tv_nsec: time.nsec.into(),
        }
    }
}

/// The attributes of an inode, as `stat` shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// `st_ino`. In an attribute from a lower or the upper: that filesystem's own number.
    pub ino: u64,
    /// Device number of the filesystem that holds it; 0 for an image.
    pub dev: u64,
    /// Type and permissions, as in `st_mode`.
    pub mode: u32,
    /// Number of names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number, for devices, in the encoding of `makedev(3)`.
    pub rdev: u64,
    /// Size in bytes.
    pub size: u64,
    /// Space in units of 512 bytes.
    pub blocks: u64,
    /// Preferred size of I/O in bytes.
    pub blksize: u32,
    /// Last access.
    pub atime: Time,
    /// Last change of the contents.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// When it was made, if its filesystem knows.
    pub birth: Option<Time>,
}

impl Attr {
    /// The kind of object; a type the system does not know counts as a regular file.
    pub fn kind(&self) -> Kind {
        Kind::of_mode(self.mode).unwrap_or(Kind::File)
    }

    /// Whether this is a character device 0:0, overlayfs's mark for a deleted name.
    pub fn is_whiteout(&self) -> bool {
        self.mode & S_IFMT == libc::S_IFCHR && self.rdev == 0
    }
}

impl From<&Statx> for Attr {
    fn from(found: &Statx) -> Self {
        let time = |time: rustix::fs::StatxTimestamp| Time {
            sec: time.tv_sec,
            nsec: time.tv_nsec,
        };
        let has_birth = found.stx_mask & StatxFlags::BTIME.bits() != 0;
        Self {
            ino: found.stx_ino,
            dev: rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor),
            mode: found.stx_mode.into(),
            nlink: found.stx_nlink,
            uid: found.stx_uid,
            gid: found.stx_gid,
            rdev: rustix::fs::makedev(found.stx_rdev_major, found.stx_rdev_minor),
            size: found.stx_size,
            blocks: found.stx_blocks,
            blksize: found.stx_blksize,
            atime: time(found.stx_atime),
            mtime: time(found.stx_mtime),
            ctime: time(found.stx_ctime),
            birth: has_birth.then(|| time(found.stx_btime)),
        }
    }
}
