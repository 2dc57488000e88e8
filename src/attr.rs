//! Attributes of a file as every part of the filesystem passes them on.

use rustix::fs::Stat;

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

impl From<&Stat> for Attr {
    fn from(stat: &Stat) -> Self {
        let time = |sec: i64, nsec: u64| Time {
            sec,
            nsec: nsec as u32,
        };
        Self {
            ino: stat.st_ino,
            dev: stat.st_dev,
            mode: stat.st_mode,
            nlink: stat.st_nlink as u32,
            uid: stat.st_uid,
            gid: stat.st_gid,
            rdev: stat.st_rdev,
            size: stat.st_size as u64,
            blocks: stat.st_blocks as u64,
            blksize: stat.st_blksize as u32,
            atime: time(stat.st_atime, stat.st_atime_nsec),
            mtime: time(stat.st_mtime, stat.st_mtime_nsec),
            ctime: time(stat.st_ctime, stat.st_ctime_nsec),
        }
    }
}
