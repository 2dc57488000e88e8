//! The FUSE protocol's messages (kernel header `include/uapi/linux/fuse.h`), version 7.31 and newer,
//! as far as we take part in it. Integers have the byte order of the machine.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

macro_rules! messages {
    ($($(#[$meta:meta])* struct $name:ident { $($field:ident: $type:ty,)* })*) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct $name { $(pub $field: $type,)* }
    )*};
}

messages! {
    /// Begins every request.
    struct InHeader {
        len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32,
        extension: u32,
    }
    /// Begins every reply.
    struct OutHeader { len: u32, error: i32, unique: u64, }
    struct Attr {
        ino: u64, size: u64, blocks: u64, atime: i64, mtime: i64, ctime: i64,
        atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32,
        rdev: u32, blksize: u32, flags: u32,
    }
    struct EntryOut {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64,
        entry_valid_nsec: u32, attr_valid_nsec: u32, attr: Attr,
    }
    struct AttrOut { attr_valid: u64, attr_valid_nsec: u32, padding: u32, attr: Attr, }
    struct ForgetIn { nlookup: u64, }
    struct BatchForgetIn { count: u32, padding: u32, }
    struct ForgetOne { nodeid: u64, nlookup: u64, }
    struct SetattrIn {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64,
        atime: i64, mtime: i64, ctime: i64, atimensec: u32, mtimensec: u32, ctimensec: u32,
        mode: u32, unused: u32, uid: u32, gid: u32, unused2: u32,
    }
    struct MknodIn { mode: u32, rdev: u32, umask: u32, padding: u32, }
    struct MkdirIn { mode: u32, umask: u32, }
    struct RenameIn { newdir: u64, }
    struct Rename2In { newdir: u64, flags: u32, padding: u32, }
    struct LinkIn { oldnodeid: u64, }
    struct OpenIn { flags: u32, open_flags: u32, }
    struct CreateIn { flags: u32, mode: u32, umask: u32, open_flags: u32, }
    struct OpenOut { fh: u64, open_flags: u32, backing_id: u32, }
    struct ReadIn {
        fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32,
        padding: u32,
    }
    struct WriteIn {
        fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32,
        padding: u32,
    }
    struct WriteOut { size: u32, padding: u32, }
    struct StatfsOut {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64,
        bsize: u32, namelen: u32, frsize: u32, padding: u32, spare: [u32; 6],
    }
    struct FsyncIn { fh: u64, flags: u32, padding: u32, }
    struct SetxattrIn { size: u32, flags: u32, }
    /// After [`SetxattrIn`], if that was agreed on.
    struct SetxattrExt { flags: u32, padding: u32, }
    struct GetxattrIn { size: u32, padding: u32, }
    struct GetxattrOut { size: u32, padding: u32, }
    struct FallocateIn { fh: u64, offset: u64, length: u64, mode: u32, padding: u32, }
    struct LseekIn { fh: u64, offset: u64, whence: u32, padding: u32, }
    struct LseekOut { offset: u64, }
    struct CopyFileRangeIn {
        fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64,
    }
    struct StatxTime { sec: i64, nsec: u32, reserved: u32, }
    struct Statx {
        mask: u32, blksize: u32, attributes: u64, nlink: u32, uid: u32, gid: u32, mode: u16,
        spare: u16, ino: u64, size: u64, blocks: u64, attributes_mask: u64,
        atime: StatxTime, btime: StatxTime, ctime: StatxTime, mtime: StatxTime,
        rdev_major: u32, rdev_minor: u32, dev_major: u32, dev_minor: u32, spare2: [u64; 14],
    }
    struct StatxOut {
        attr_valid: u64, attr_valid_nsec: u32, flags: u32, spare: [u64; 2], stat: Statx,
    }
    /// Begins an entry of a listing; the name follows, and zeros up to a multiple of 8.
    struct Dirent { ino: u64, off: u64, namelen: u32, kind: u32, }
}

macro_rules! opcodes {
    ($($name:ident = $number:literal,)*) => {
        /// Numbers of requests.
        #[expect(dead_code, reason = "some are only named, and answered ENOSYS")]
        pub mod op {
            $(pub const $name: u32 = $number;)*

            /// The kernel's name of an opcode.
            pub fn name(opcode: u32) -> Option<&'static str> {
                match opcode {
                    $($number => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

opcodes! {
    LOOKUP = 1,
    FORGET = 2,
    GETATTR = 3,
    SETATTR = 4,
    READLINK = 5,
    SYMLINK = 6,
    MKNOD = 8,
    MKDIR = 9,
    UNLINK = 10,
    RMDIR = 11,
    RENAME = 12,
    LINK = 13,
    OPEN = 14,
    READ = 15,
    WRITE = 16,
    STATFS = 17,
    RELEASE = 18,
    FSYNC = 20,
    SETXATTR = 21,
    GETXATTR = 22,
    LISTXATTR = 23,
    REMOVEXATTR = 24,
    FLUSH = 25,
    OPENDIR = 27,
    READDIR = 28,
    RELEASEDIR = 29,
    FSYNCDIR = 30,
    GETLK = 31,
    SETLK = 32,
    SETLKW = 33,
    ACCESS = 34,
    CREATE = 35,
    INTERRUPT = 36,
    BMAP = 37,
    DESTROY = 38,
    IOCTL = 39,
    POLL = 40,
    BATCH_FORGET = 42,
    FALLOCATE = 43,
    READDIRPLUS = 44,
    RENAME2 = 45,
    LSEEK = 46,
    COPY_FILE_RANGE = 47,
    SYNCFS = 50,
    TMPFILE = 51,
    STATX = 52,
}

/// Bits of [`SetattrIn`]: what is to be set.
pub mod fattr {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    /// The caller may not keep set-id bits.
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// Bit of [`OpenIn`] and [`CreateIn`]: the file is truncated by one who may not keep set-id bits.
pub const OPEN_KILL_SUIDGID: u32 = 1 << 0;
/// Bit of [`WriteIn`]: the writer may not keep set-id bits.
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// Bit of [`SetxattrExt`]: who sets the ACL may not keep the set-group-id bit.
pub const SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;
/// Bit of [`FsyncIn`]: only what is needed to read the data again.
pub const FSYNC_FDATASYNC: u32 = 1 << 0;
/// Bit of [`OpenOut`]: what the page cache has of the file is still true.
pub const FOPEN_KEEP_CACHE: u32 = 1 << 1;
/// Bit of [`OpenOut`]: the kernel does the I/O on the backing file.
pub const FOPEN_PASSTHROUGH: u32 = 1 << 7;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_sizes_of_the_protocol() {
        let sizes = [
            (size_of::<InHeader>(), 40),
            (size_of::<OutHeader>(), 16),
            (size_of::<Attr>(), 88),
            (size_of::<EntryOut>(), 128),
            (size_of::<AttrOut>(), 104),
            (size_of::<SetattrIn>(), 88),
            (size_of::<ReadIn>(), 40),
            (size_of::<WriteIn>(), 40),
            (size_of::<StatfsOut>(), 80),
            (size_of::<CopyFileRangeIn>(), 56),
            (size_of::<Statx>(), 256),
            (size_of::<StatxOut>(), 288),
            (size_of::<Dirent>(), 24),
        ];
        for (size, expected) in sizes {
            assert_eq!(size, expected);
        }
    }
}
