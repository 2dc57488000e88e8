//! Random sequences of operations that mostly make sense: the generator keeps a rough idea of
//! what exists, and most paths are chosen from it.

use rustix::fs::{FallocateFlags, FileType, OFlags, RenameFlags, XattrFlags};

use super::generate_open::ON_OPEN_FILES;
use super::op::{Op, Step, Time, UMASK, Who};
use super::rng::Rng;

/// What the generator thinks there is. It need not be right.
pub struct Generator {
    pub(super) rng: Rng,
    pub(super) files: Vec<String>,
    dirs: Vec<String>,
    links: Vec<String>,
    range: Range,
}

/// Which operations may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// Those that kernel overlayfs has too.
    Common,
    /// All but hard links and sockets; the upper becomes a lower now and then.
    Rotating,
}

/// A way to make one operation.
pub(super) type Make = fn(&mut Generator) -> Op;

/// Every kind of operation and how often it comes.
const KINDS: &[(usize, Make)] = &[
    (6, Generator::create),
    (4, Generator::overwrite),
    (4, Generator::append),
    (2, Generator::create_or_truncate),
    (6, Generator::read),
    (4, Generator::truncate),
    (2, Generator::segments),
    (2, Generator::fallocate),
    (2, Generator::copy_range),
    (1, Generator::fsync),
    (5, Generator::mkdir),
    (2, Generator::mknod),
    (2, Generator::symlink),
    (2, Generator::readlink),
    (5, Generator::link),
    (6, Generator::unlink),
    (3, Generator::rmdir),
    (1, Generator::remove_tree),
    (6, Generator::rename_file),
    (5, Generator::rename_dir),
    (3, Generator::rename_flagged),
    (4, Generator::chmod),
    (4, Generator::chown),
    (3, Generator::utimens),
    (4, Generator::set_xattr),
    (2, Generator::get_xattr),
    (2, Generator::list_xattr),
    (2, Generator::remove_xattr),
    (2, Generator::set_acl),
    (6, Generator::list),
    (6, Generator::stat),
    (2, Generator::access),
    (1, Generator::statfs),
    (1, Generator::xattr_room),
    (2, Generator::list_seeking),
    (1, Generator::syncfs),
];

const NAMES: &[&str] = &[
    "f1", "f2", "n1", "n2", "n3", "x", "sub", "deep", "gone", "hidden", "opaque", "linked", "new",
];

const XATTRS: &[&str] = &[
    "user.one",
    "user.two",
    "user.dir",
    "trusted.root",
    "security.test",
    "user.overlay.fake",
];

impl Generator {
    /// A generator for `seed` that knows the paths of the starting tree.
    pub fn new(
        seed: u64,
        range: Range,
        files: Vec<String>,
        dirs: Vec<String>,
        links: Vec<String>,
    ) -> Self {
        Self {
            rng: Rng::new(seed ^ 0x5EED),
            files,
            dirs,
            links,
            range,
        }
    }

    /// The next step.
    pub fn step(&mut self) -> Step {
        let kinds = || KINDS.iter().chain(ON_OPEN_FILES);
        let total: usize = kinds().map(|(weight, _)| weight).sum();
        let mut choice = self.rng.below(total);
        let mut kinds = kinds();
        let make = loop {
            let (weight, make) = kinds.next().expect("the choice is below the total");
            if choice < *weight {
                break make;
            }
            choice -= weight;
        };
        let mut op = make(self);
        if self.range == Range::Rotating && !stands_rotation(&op) {
            op = self.stat();
        }
        Step {
            op,
            who: match self.rng.below(20) {
                0 | 1 => Who::User,
                2 => Who::Grouped,
                3 => Who::Stranger,
                _ => Who::Root,
            },
            umask: *self
                .rng
                .pick(&[UMASK, UMASK, UMASK, UMASK, 0, 0o002, 0o077]),
        }
    }

    pub(super) fn fresh(&mut self) -> String {
        let name = *self.rng.pick(NAMES);
        match self.rng.below(10) {
            0 => name.to_owned(),
            _ => format!("{}/{name}", self.dir()),
        }
    }

    pub(super) fn dir(&mut self) -> String {
        if self.dirs.is_empty() {
            "a".into()
        } else {
            self.rng.pick(&self.dirs).clone()
        }
    }

    pub(super) fn file(&mut self) -> String {
        match self.rng.below(12) {
            0 => self.fresh(),
            1 if !self.links.is_empty() => self.rng.pick(&self.links).clone(),
            _ if self.files.is_empty() => self.fresh(),
            _ => self.rng.pick(&self.files).clone(),
        }
    }

    pub(super) fn any(&mut self) -> String {
        match self.rng.below(10) {
            0..=4 => self.file(),
            5..=7 => self.dir(),
            8 if !self.links.is_empty() => self.rng.pick(&self.links).clone(),
            _ => self.fresh(),
        }
    }

    fn forget(&mut self, path: &str) {
        let below = format!("{path}/");
        for known in [&mut self.files, &mut self.dirs, &mut self.links] {
            known.retain(|other| other != path && !other.starts_with(&below));
        }
    }

    fn moved(&mut self, from: &str, to: &str) {
        let below = format!("{from}/");
        for known in [&mut self.files, &mut self.dirs, &mut self.links] {
            for path in known.iter_mut() {
                if path == from {
                    to.clone_into(path);
                } else if let Some(rest) = path.strip_prefix(&below) {
                    *path = format!("{to}/{rest}");
                }
            }
        }
    }

    pub(super) fn length(&mut self) -> usize {
        *self.rng.pick(&[0, 1, 10, 511, 513, 4096, 5000, 70_000])
    }

    pub(super) fn offset(&mut self) -> u64 {
        *self
            .rng
            .pick(&[0, 1, 100, 4095, 4096, 10_000, 131_072, 300_000])
    }

    pub(super) fn seed(&mut self) -> u8 {
        self.rng.below(256) as u8
    }

    pub(super) fn mode(&mut self) -> u32 {
        *self.rng.pick(&[
            0o644, 0o600, 0o755, 0o777, 0o000, 0o4755, 0o2755, 0o1777, 0o6777, 0o444,
        ])
    }

    pub(super) fn id(&mut self) -> Option<u32> {
        *self
            .rng
            .pick(&[None, Some(0), Some(1000), Some(1000), Some(2000)])
    }

    fn write_op(&mut self, path: String, flags: OFlags) -> Op {
        let (offset, length) = (
            if self.rng.chance(50) {
                0
            } else {
                self.offset()
            },
            self.length(),
        );
        Op::Write {
            path,
            flags,
            mode: self.mode(),
            offset,
            length,
            seed: self.seed(),
        }
    }

    fn create(&mut self) -> Op {
        let path = if self.rng.chance(80) {
            self.fresh()
        } else {
            self.any()
        };
        self.files.push(path.clone());
        self.write_op(path, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)
    }

    fn create_or_truncate(&mut self) -> Op {
        let path = self.file();
        self.write_op(path, OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC)
    }

    fn overwrite(&mut self) -> Op {
        let path = self.file();
        let flags = *self.rng.pick(&[
            OFlags::WRONLY,
            OFlags::RDWR,
            OFlags::WRONLY.union(OFlags::TRUNC),
            OFlags::WRONLY.union(OFlags::CREATE),
        ]);
        self.write_op(path, flags)
    }

    fn append(&mut self) -> Op {
        let path = self.file();
        self.write_op(path, OFlags::WRONLY | OFlags::APPEND)
    }

    fn read(&mut self) -> Op {
        Op::Read {
            path: self.file(),
            offset: self.offset() / 2,
            length: 1 << 20,
        }
    }

    fn truncate(&mut self) -> Op {
        Op::Truncate {
            path: self.file(),
            length: self.offset(),
        }
    }

    fn segments(&mut self) -> Op {
        Op::Segments { path: self.file() }
    }

    pub(super) fn fallocate_flags(&mut self) -> FallocateFlags {
        *self.rng.pick(&[
            FallocateFlags::empty(),
            FallocateFlags::KEEP_SIZE,
            FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE),
            FallocateFlags::PUNCH_HOLE,
            FallocateFlags::ZERO_RANGE,
            FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE),
            // Alone, FUSE does not carry them, and the files would differ from then on.
            FallocateFlags::COLLAPSE_RANGE.union(FallocateFlags::KEEP_SIZE),
            FallocateFlags::INSERT_RANGE.union(FallocateFlags::KEEP_SIZE),
        ])
    }

    fn fallocate(&mut self) -> Op {
        Op::Fallocate {
            path: self.file(),
            flags: self.fallocate_flags(),
            offset: self.offset(),
            length: self.length() as u64,
        }
    }

    fn copy_range(&mut self) -> Op {
        let (from, to) = (self.file(), self.file());
        Op::CopyRange {
            from,
            to,
            offset_in: self.offset() / 4,
            offset_out: self.offset(),
            length: self.length(),
        }
    }

    fn fsync(&mut self) -> Op {
        Op::Fsync { path: self.any() }
    }

    fn mkdir(&mut self) -> Op {
        let path = self.fresh();
        self.dirs.push(path.clone());
        Op::Mkdir {
            path,
            mode: self.mode() | 0o700,
        }
    }

    fn mknod(&mut self) -> Op {
        let path = self.fresh();
        self.files.push(path.clone());
        let beyond = self.range != Range::Common;
        if beyond && self.rng.chance(30) {
            return Op::Mknod {
                path,
                kind: FileType::CharacterDevice,
                mode: self.mode(),
                device: 0,
            };
        }
        let (kind, device) = *self.rng.pick(&[
            (FileType::Fifo, 0),
            (FileType::Socket, 0),
            (FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
            (FileType::BlockDevice, rustix::fs::makedev(7, 200)),
            (FileType::RegularFile, 0),
        ]);
        Op::Mknod {
            path,
            kind,
            mode: self.mode(),
            device,
        }
    }

    fn symlink(&mut self) -> Op {
        let path = self.fresh();
        self.links.push(path.clone());
        Op::Symlink {
            target: (*self.rng.pick(NAMES)).to_owned(),
            path,
        }
    }

    fn readlink(&mut self) -> Op {
        Op::Readlink {
            path: if self.rng.chance(80) && !self.links.is_empty() {
                self.rng.pick(&self.links).clone()
            } else {
                self.any()
            },
        }
    }

    fn link(&mut self) -> Op {
        let (from, to) = (self.file(), self.fresh());
        self.files.push(to.clone());
        Op::Link {
            from,
            to,
            follow: self.rng.chance(20),
        }
    }

    fn unlink(&mut self) -> Op {
        let path = if self.rng.chance(90) {
            self.file()
        } else {
            self.any()
        };
        self.forget(&path);
        Op::Unlink { path }
    }

    fn rmdir(&mut self) -> Op {
        Op::Rmdir {
            path: if self.rng.chance(90) {
                self.dir()
            } else {
                self.any()
            },
        }
    }

    fn remove_tree(&mut self) -> Op {
        let path = self.any();
        self.forget(&path);
        Op::RemoveTree { path }
    }

    fn rename_file(&mut self) -> Op {
        let from = self.file();
        let to = if self.rng.chance(60) {
            self.fresh()
        } else {
            self.file()
        };
        self.moved(&from, &to);
        Op::Rename {
            from,
            to,
            flags: RenameFlags::empty(),
        }
    }

    fn rename_dir(&mut self) -> Op {
        let from = self.dir();
        let to = if self.rng.chance(70) {
            self.fresh()
        } else {
            self.dir()
        };
        if !to.starts_with(&format!("{from}/")) {
            self.moved(&from, &to);
        }
        Op::Rename {
            from,
            to,
            flags: RenameFlags::empty(),
        }
    }

    fn rename_flagged(&mut self) -> Op {
        let (from, to) = (self.any(), self.any());
        let flags = match self.rng.below(8) {
            // Kernel overlayfs has no whiteouts for its users.
            0 if self.range != Range::Common => RenameFlags::WHITEOUT,
            0..=2 => RenameFlags::NOREPLACE,
            3 => RenameFlags::EXCHANGE | RenameFlags::NOREPLACE,
            _ => RenameFlags::EXCHANGE,
        };
        Op::Rename { from, to, flags }
    }

    fn chmod(&mut self) -> Op {
        Op::Chmod {
            path: self.any(),
            mode: self.mode(),
            follow: self.rng.chance(85),
        }
    }

    fn chown(&mut self) -> Op {
        let (uid, mut gid) = (self.id(), self.id());
        // By chown(-1, -1), only the owner takes set-id bits away: see `known.rs`.
        if uid.is_none() && gid.is_none() {
            gid = Some(0);
        }
        Op::Chown {
            path: self.any(),
            uid,
            gid,
            follow: self.rng.chance(50),
        }
    }

    pub(super) fn times(&mut self) -> [Time; 2] {
        let mut time = || match self.rng.below(6) {
            0 => Time::Now,
            1 => Time::Omit,
            2 => Time::At(-1_000_000_000, 1), // before 1970
            _ => Time::At(
                *self.rng.pick(&[0, 1_234_567_890, 1_577_000_000]),
                self.rng.below(1_000_000_000) as i64,
            ),
        };
        [time(), time()]
    }

    fn utimens(&mut self) -> Op {
        Op::Utimens {
            path: self.any(),
            times: self.times(),
            follow: self.rng.chance(50),
        }
    }

    fn xattr_room(&mut self) -> Op {
        Op::XattrRoom {
            path: self.any(),
            name: self.xattr(),
            room: *self.rng.pick(&[0, 1, 20, 600]),
        }
    }

    fn list_seeking(&mut self) -> Op {
        Op::ListSeeking {
            path: self.dir(),
            every: 1 + self.rng.below(3),
        }
    }

    fn syncfs(&mut self) -> Op {
        Op::Syncfs
    }

    pub(super) fn xattr(&mut self) -> String {
        (*self.rng.pick(XATTRS)).to_owned()
    }

    fn set_xattr(&mut self) -> Op {
        let flags = *self.rng.pick(&[
            XattrFlags::empty(),
            XattrFlags::empty(),
            XattrFlags::CREATE,
            XattrFlags::REPLACE,
        ]);
        let length = *self.rng.pick(&[0, 1, 20, 600]);
        Op::SetXattr {
            path: self.any(),
            name: self.xattr(),
            value: self.rng.bytes(length),
            flags,
        }
    }

    /// An access or default ACL that gives user 1000 something of its own.
    fn set_acl(&mut self) -> Op {
        let default = self.rng.chance(50);
        let path = if default { self.dir() } else { self.any() };
        let name = if default {
            "system.posix_acl_default"
        } else {
            "system.posix_acl_access"
        };
        let mut value = 2u32.to_le_bytes().to_vec();
        // Tags of linux/posix_acl.h: owner, one user, group, mask, others.
        for (tag, id) in [
            (0x01u16, u32::MAX),
            (0x02, 1000),
            (0x04, u32::MAX),
            (0x10, u32::MAX),
            (0x20, u32::MAX),
        ] {
            let permissions = if tag == 1 {
                7
            } else {
                self.rng.below(8) as u16
            };
            value.extend_from_slice(&tag.to_le_bytes());
            value.extend_from_slice(&permissions.to_le_bytes());
            value.extend_from_slice(&id.to_le_bytes());
        }
        Op::SetXattr {
            path,
            name: name.to_owned(),
            value,
            flags: XattrFlags::empty(),
        }
    }

    fn get_xattr(&mut self) -> Op {
        Op::GetXattr {
            path: self.any(),
            name: self.xattr(),
        }
    }

    fn list_xattr(&mut self) -> Op {
        Op::ListXattr { path: self.any() }
    }

    fn remove_xattr(&mut self) -> Op {
        Op::RemoveXattr {
            path: self.any(),
            name: self.xattr(),
        }
    }

    fn list(&mut self) -> Op {
        Op::List {
            path: if self.rng.chance(90) {
                self.dir()
            } else {
                self.any()
            },
        }
    }

    fn stat(&mut self) -> Op {
        Op::Stat {
            path: self.any(),
            follow: self.rng.chance(50),
        }
    }

    fn access(&mut self) -> Op {
        Op::Access {
            path: self.any(),
            mode: self.rng.below(8) as u32,
        }
    }

    fn statfs(&mut self) -> Op {
        Op::Statfs { path: self.any() }
    }
}

fn stands_rotation(op: &Op) -> bool {
    !matches!(
        op,
        Op::Link { .. }
            | Op::SlotLink { .. }
            | Op::Segments { .. } // space that was allocated and not written is not copied
            | Op::Mknod {
                kind: FileType::Socket,
                ..
            }
    )
}
