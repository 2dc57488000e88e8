//! The operations, each a function of the directory of a case (see the parent module).

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{
    Access, AtFlags, CWD, FallocateFlags, FileType, Gid, Mode, OFlags, RenameFlags, Timespec,
    Timestamps, UTIME_NOW, UTIME_OMIT, Uid, XattrFlags,
};
use rustix::io::Errno;

/// One operation.
pub struct Op {
    /// What a failure calls it.
    pub name: &'static str,
    /// Does it; the result in words.
    pub act: fn(&Path) -> Result<String, Errno>,
}

const fn op(name: &'static str, act: fn(&Path) -> Result<String, Errno>) -> Op {
    Op { name, act }
}

const RENAME: RenameFlags = RenameFlags::empty();
const NOFOLLOW: AtFlags = AtFlags::SYMLINK_NOFOLLOW;
/// Before 1970, and more seconds after it than 32 bits hold.
const PAST: (i64, i64) = (-300_000_000, 123_456_789);
const FUTURE: (i64, i64) = (5_000_000_000, 999_999_999);

/// All of them.
pub static OPS: &[Op] = &[
    op("chmod 0640", |dir| chmod(dir, 0o640)),
    op("chmod 06755", |dir| chmod(dir, 0o6755)),
    op("chmod 01777", |dir| chmod(dir, 0o1777)),
    op("chown nothing", |dir| chown(dir, None, None, false)),
    op("chown user", |dir| chown(dir, Some(1001), None, false)),
    op("chown group", |dir| chown(dir, None, Some(1001), false)),
    op("chown to its group", |dir| {
        chown(dir, None, Some(1000), false)
    }),
    op("chown both, following", |dir| {
        chown(dir, Some(1000), Some(1000), true)
    }),
    op("truncate to 0", |dir| truncate(dir, 0)),
    op("truncate to 3", |dir| truncate(dir, 3)),
    op("truncate to 70000", |dir| truncate(dir, 70_000)),
    op("utimensat now", |dir| {
        times(dir, (0, UTIME_NOW), (0, UTIME_NOW))
    }),
    op("utimensat past", |dir| times(dir, PAST, PAST)),
    op("utimensat future", |dir| {
        times(dir, (0, UTIME_OMIT), FUTURE)
    }),
    op("utimensat now and omit", |dir| {
        times(dir, (0, UTIME_NOW), (0, UTIME_OMIT))
    }),
    op("utimensat omit both", |dir| {
        times(dir, (0, UTIME_OMIT), (0, UTIME_OMIT))
    }),
    op("link", |dir| link(dir, "o", "n")),
    op("link over a file", |dir| link(dir, "o", "s")),
    op("link of another over it", |dir| link(dir, "s", "o")),
    op("link into a directory", |dir| link(dir, "o", "d/n")),
    op("unlink", |dir| unlink(dir, AtFlags::empty())),
    op("rmdir", |dir| unlink(dir, AtFlags::REMOVEDIR)),
    op("rename", |dir| rename(dir, "o", "n", RENAME)),
    op("rename onto a file", |dir| rename(dir, "o", "s", RENAME)),
    op("rename onto an empty directory", |dir| {
        rename(dir, "o", "e", RENAME)
    }),
    op("rename onto a full directory", |dir| {
        rename(dir, "o", "d", RENAME)
    }),
    op("rename into a directory", |dir| {
        rename(dir, "o", "d/n", RENAME)
    }),
    op("rename a file onto it", |dir| rename(dir, "s", "o", RENAME)),
    op("rename a directory onto it", |dir| {
        rename(dir, "e", "o", RENAME)
    }),
    op("rename onto its other name", |dir| {
        rename(dir, "o", "second", RENAME)
    }),
    op("rename below it", |dir| rename(dir, "s", "o/n", RENAME)),
    op("rename it below itself", |dir| {
        rename(dir, "o", "o/n", RENAME)
    }),
    op("rename NOREPLACE", |dir| {
        rename(dir, "o", "n", RenameFlags::NOREPLACE)
    }),
    op("rename NOREPLACE onto a file", |dir| {
        rename(dir, "o", "s", RenameFlags::NOREPLACE)
    }),
    op("exchange with a file", |dir| {
        rename(dir, "o", "s", RenameFlags::EXCHANGE)
    }),
    op("exchange with a directory", |dir| {
        rename(dir, "o", "d", RenameFlags::EXCHANGE)
    }),
    op("mkdir", |dir| make(dir, "o", FileType::Directory)),
    op("mkdir in it", |dir| make(dir, "o/n", FileType::Directory)),
    op("mknod", |dir| make(dir, "o", FileType::Fifo)),
    op("create in it", |dir| {
        make(dir, "o/n", FileType::RegularFile)
    }),
    op("socket in it", |dir| make(dir, "o/n", FileType::Socket)),
    op("symlink", |dir| {
        done(rustix::fs::symlinkat("s", CWD, dir.join("o")))
    }),
    op("remove from it", |dir| {
        done(rustix::fs::unlinkat(
            CWD,
            dir.join("o/in"),
            AtFlags::empty(),
        ))
    }),
    op("readlink", |dir| {
        let target = rustix::fs::readlinkat(CWD, dir.join("o"), Vec::new())?;
        Ok(format!("{target:?}"))
    }),
    op("open O_RDONLY", |dir| open(dir, OFlags::RDONLY)),
    op("open O_WRONLY", |dir| open(dir, OFlags::WRONLY)),
    op("open O_RDWR", |dir| open(dir, OFlags::RDWR)),
    op("open O_RDONLY O_TRUNC", |dir| {
        open(dir, OFlags::RDONLY | OFlags::TRUNC)
    }),
    op("open O_WRONLY O_TRUNC", |dir| {
        open(dir, OFlags::WRONLY | OFlags::TRUNC)
    }),
    op("open O_CREAT", |dir| {
        open(dir, OFlags::WRONLY | OFlags::CREATE)
    }),
    op("open O_CREAT O_TRUNC", |dir| {
        open(dir, OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC)
    }),
    op("open O_CREAT O_EXCL", |dir| {
        open(dir, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)
    }),
    op("open O_CREAT O_DIRECTORY", |dir| {
        open(dir, OFlags::CREATE | OFlags::DIRECTORY)
    }),
    op("open O_DIRECTORY", |dir| open(dir, OFlags::DIRECTORY)),
    op("open O_NOFOLLOW", |dir| {
        open(dir, OFlags::RDWR | OFlags::NOFOLLOW)
    }),
    op("open O_PATH", |dir| {
        open(dir, OFlags::PATH | OFlags::NOFOLLOW)
    }),
    op("open O_NOATIME", |dir| open(dir, OFlags::NOATIME)),
    op("write", |dir| write(dir, OFlags::WRONLY, 2)),
    op("write far out", |dir| write(dir, OFlags::WRONLY, 100_000)),
    op("append", |dir| {
        write(dir, OFlags::WRONLY | OFlags::APPEND, 0)
    }),
    op("write with O_SYNC", |dir| {
        write(dir, OFlags::WRONLY | OFlags::SYNC, 1)
    }),
    op("write nothing", |dir| {
        let file = File::from(opened(dir, OFlags::WRONLY)?);
        done(rustix::io::pwrite(&file, b"", 0))
    }),
    op("fallocate", |dir| {
        fallocate(dir, FallocateFlags::empty(), 9000)
    }),
    op("fallocate KEEP_SIZE", |dir| {
        fallocate(dir, FallocateFlags::KEEP_SIZE, 90_000)
    }),
    op("fallocate PUNCH_HOLE", |dir| {
        fallocate(
            dir,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            1000,
        )
    }),
    op("fallocate ZERO_RANGE", |dir| {
        fallocate(dir, FallocateFlags::ZERO_RANGE, 5000)
    }),
    op("copy_file_range into it", |dir| {
        let from = rustix::fs::open(dir.join("s"), OFlags::RDONLY, Mode::empty())?;
        let to = opened(dir, OFlags::WRONLY)?;
        let copied = rustix::fs::copy_file_range(&from, None, &to, Some(&mut 1), 5)?;
        Ok(copied.to_string())
    }),
    op("fsync", |dir| {
        done(rustix::fs::fsync(opened(dir, OFlags::RDONLY)?))
    }),
    op("fchmod of a reader", |dir| {
        let fd = opened(dir, OFlags::RDONLY)?;
        done(rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o711)))
    }),
    op("unlink while open, then write", |dir| {
        let file = opened(dir, OFlags::RDWR)?;
        rustix::fs::unlinkat(CWD, dir.join("o"), AtFlags::empty())?;
        rustix::io::pwrite(&file, b"gone", 2)?;
        let mut content = [0; 8];
        let got = rustix::io::pread(&file, &mut content, 0)?;
        let stat = rustix::fs::fstat(&file)?;
        Ok(format!(
            "{:?} {} {}",
            &content[..got],
            stat.st_nlink,
            stat.st_size
        ))
    }),
    op("setxattr user", |dir| set_xattr(dir, "user.new")),
    op("setxattr user, following", |dir| {
        let flags = XattrFlags::empty();
        done(rustix::fs::setxattr(
            dir.join("o"),
            c"user.new",
            b"value",
            flags,
        ))
    }),
    op("setxattr trusted", |dir| set_xattr(dir, "trusted.new")),
    op("setxattr security", |dir| set_xattr(dir, "security.new")),
    op("setxattr of no namespace", |dir| {
        set_xattr(dir, "other.new")
    }),
    op("setxattr REPLACE", |dir| {
        let flags = XattrFlags::REPLACE;
        done(rustix::fs::lsetxattr(
            dir.join("o"),
            "user.kept",
            b"new",
            flags,
        ))
    }),
    op("getxattr", |dir| {
        let mut value = [0; 100];
        let length = rustix::fs::lgetxattr(dir.join("o"), "user.kept", &mut value)?;
        Ok(format!("{:?}", &value[..length]))
    }),
    op("removexattr", |dir| {
        done(rustix::fs::lremovexattr(dir.join("o"), "user.kept"))
    }),
    op("removexattr capability", |dir| {
        let name = "security.capability";
        done(rustix::fs::lremovexattr(dir.join("o"), name))
    }),
    op("access", |dir| {
        let may =
            |access: Access| rustix::fs::accessat(CWD, dir.join("o"), access, AtFlags::EACCESS);
        let answers =
            [Access::READ_OK, Access::WRITE_OK, Access::EXEC_OK].map(|access| may(access).is_ok());
        Ok(format!("{answers:?}"))
    }),
    op("list", |dir| {
        let fd = opened(dir, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&fd)? {
            names.push(entry?.file_name().to_owned());
        }
        names.sort();
        Ok(format!("{names:?}"))
    }),
];

fn done<T>(result: Result<T, Errno>) -> Result<String, Errno> {
    result.map(|_| String::new())
}

fn chmod(dir: &Path, mode: u32) -> Result<String, Errno> {
    done(rustix::fs::chmod(dir.join("o"), Mode::from_raw_mode(mode)))
}

fn chown(dir: &Path, uid: Option<u32>, gid: Option<u32>, follow: bool) -> Result<String, Errno> {
    let flags = if follow { AtFlags::empty() } else { NOFOLLOW };
    let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
    done(rustix::fs::chownat(CWD, dir.join("o"), uid, gid, flags))
}

/// By name, which may follow a link.
fn truncate(dir: &Path, length: i64) -> Result<String, Errno> {
    let path = std::ffi::CString::new(dir.join("o").into_os_string().into_encoded_bytes())
        .map_err(|_| Errno::INVAL)?;
    // SAFETY: a path that ends with NUL.
    match unsafe { libc::truncate(path.as_ptr(), length) } {
        0 => Ok(String::new()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}

fn times(dir: &Path, access: (i64, i64), modification: (i64, i64)) -> Result<String, Errno> {
    let timespec = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
    let times = Timestamps {
        last_access: timespec(access),
        last_modification: timespec(modification),
    };
    rustix::fs::utimensat(CWD, dir.join("o"), &times, NOFOLLOW)?;
    let stat = rustix::fs::statat(CWD, dir.join("o"), NOFOLLOW)?;
    // Other access times are those of what the test itself read.
    let given = !matches!(access.1, UTIME_NOW | UTIME_OMIT);
    Ok(if given {
        format!("{}.{}", stat.st_atime, stat.st_atime_nsec)
    } else {
        String::new()
    })
}

fn link(dir: &Path, from: &str, to: &str) -> Result<String, Errno> {
    let (from, to) = (dir.join(from), dir.join(to));
    done(rustix::fs::linkat(CWD, from, CWD, to, AtFlags::empty()))
}

fn unlink(dir: &Path, flags: AtFlags) -> Result<String, Errno> {
    done(rustix::fs::unlinkat(CWD, dir.join("o"), flags))
}

fn rename(dir: &Path, from: &str, to: &str, flags: RenameFlags) -> Result<String, Errno> {
    let (from, to) = (dir.join(from), dir.join(to));
    done(rustix::fs::renameat_with(CWD, from, CWD, to, flags))
}

fn make(dir: &Path, name: &str, kind: FileType) -> Result<String, Errno> {
    let (path, mode) = (dir.join(name), Mode::from_raw_mode(0o664));
    done(match kind {
        FileType::Directory => rustix::fs::mkdirat(CWD, path, Mode::from_raw_mode(0o775)),
        kind => rustix::fs::mknodat(CWD, path, kind, mode, 0),
    })
}

fn opened(dir: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    // Block devices of no driver and FIFOs without a reader answer at once.
    let flags = flags | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    rustix::fs::openat(CWD, dir.join("o"), flags, Mode::from_raw_mode(0o666))
}

fn open(dir: &Path, flags: OFlags) -> Result<String, Errno> {
    let fd = opened(dir, flags)?;
    let stat = rustix::fs::fstat(fd.as_fd())?;
    Ok(format!("{:o} {}", stat.st_mode, stat.st_size))
}

fn write(dir: &Path, flags: OFlags, offset: u64) -> Result<String, Errno> {
    let file = File::from(opened(dir, flags)?);
    let written = file
        .write_at(b"written", offset)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    let stat = rustix::fs::fstat(&file)?;
    Ok(format!("{written} {:o} {}", stat.st_mode, stat.st_size))
}

fn fallocate(dir: &Path, flags: FallocateFlags, length: u64) -> Result<String, Errno> {
    let fd = opened(dir, OFlags::RDWR)?;
    done(rustix::fs::fallocate(&fd, flags, 100, length))
}

fn set_xattr(dir: &Path, name: &str) -> Result<String, Errno> {
    let flags = XattrFlags::empty();
    done(rustix::fs::lsetxattr(dir.join("o"), name, b"value", flags))
}
