//! What a directory tree looks like from outside, and how two trees differ.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, openat, readlinkat, statat};
use xxhash_rust::xxh3::Xxh3Default;

/// Everything a program can learn about one object, except what belongs to the filesystem rather
/// than to the object (device number, block count, access and change time).
#[derive(Clone, PartialEq, Eq)]
pub struct Node {
    kind: FileType,
    mode: u32,
    uid: u32,
    gid: u32,
    /// Bytes of a file or of a symlink's target; 0 for the others.
    size: u64,
    mtime: (i64, u32),
    nlink: u64,
    rdev: u64,
    ino: u64,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// A hash of a file, target of a symlink. `None` for a file that this user may not read.
    content: Option<Vec<u8>>,
    /// The first path, in tree order, that names the same inode.
    identity: Vec<u8>,
}

/// A tree as it was when it was read: path relative to its root → node. The root is the empty path.
#[derive(Clone)]
pub struct Tree {
    nodes: BTreeMap<Vec<u8>, Node>,
    oddities: Vec<String>,
}

/// What a comparison passes over.
#[derive(Clone, Copy, Default)]
#[allow(clippy::struct_excessive_bools)]
pub struct Ignore {
    /// Modification times, where the two trees were written at different moments.
    pub mtime: bool,
    /// Link counts of directories, which union filesystems may give as 1.
    pub dir_nlink: bool,
    /// Inode numbers. Which names share one is compared all the same.
    pub ino: bool,
}

impl Ignore {
    /// For two filesystems that hold the same: only their inode numbers differ.
    pub const OTHER_FILESYSTEM: Self = Self {
        mtime: false,
        dir_nlink: false,
        ino: true,
    };
    /// For one filesystem at two moments: nothing differs.
    pub const NOTHING: Self = Self {
        mtime: false,
        dir_nlink: false,
        ino: false,
    };
}

impl Tree {
    /// Reads the tree at `root`, contents and all.
    pub fn read(root: &Path) -> Self {
        Self::read_except(root, &[])
    }

    /// The same, without what lies below the paths `skip` (relative to the root).
    pub fn read_except(root: &Path, skip: &[&[u8]]) -> Self {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(root, flags, Mode::empty())
            .unwrap_or_else(|error| panic!("cannot open {}: {error}", root.display()));
        let mut reader = Reader {
            tree: Self {
                nodes: BTreeMap::new(),
                oddities: Vec::new(),
            },
            first: HashMap::new(),
            skip,
            buffer: vec![0; 256 << 10],
        };
        let stat = rustix::fs::fstat(&fd).unwrap();
        let node = reader.node(&fd, b"", &stat, &[]);
        reader.tree.nodes.insert(Vec::new(), node);
        reader.directory(&fd, &[]);
        reader.tree
    }

    /// How many objects it holds, the root included.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The paths in it, relative to the root.
    pub fn paths(&self) -> impl Iterator<Item = &[u8]> {
        self.nodes.keys().map(Vec::as_slice)
    }

    /// How `self` and `other` differ, a line each; empty when they do not.
    pub fn differences(&self, other: &Self, ignore: Ignore) -> Vec<String> {
        let mut lines: Vec<String> = self
            .oddities
            .iter()
            .chain(&other.oddities)
            .cloned()
            .collect();
        for (path, node) in &self.nodes {
            match other.nodes.get(path) {
                None => lines.push(format!(
                    "{}: only in the first ({})",
                    show(path),
                    node.describe()
                )),
                Some(twin) if node == twin => {}
                Some(twin) => lines.extend(
                    node.differences(twin, ignore)
                        .map(|line| format!("{}: {line}", show(path))),
                ),
            }
        }
        for (path, node) in &other.nodes {
            if !self.nodes.contains_key(path) {
                lines.push(format!(
                    "{}: only in the second ({})",
                    show(path),
                    node.describe()
                ));
            }
        }
        lines
    }

    /// Replaces every modification time.
    pub fn map_times(&mut self, change: impl Fn((i64, u32)) -> (i64, u32)) {
        self.nodes
            .values_mut()
            .for_each(|node| node.mtime = change(node.mtime));
    }

    /// Leaves out all extended attributes whose names start with `prefix`.
    pub fn forget_xattrs(&mut self, prefix: &[u8]) {
        self.nodes
            .values_mut()
            .for_each(|node| node.xattrs.retain(|name, _| !name.starts_with(prefix)));
    }

    /// Passes over listings whose inode numbers are not those of `stat`, which kernel overlayfs has of
    /// an upper that it did not write itself.
    pub fn forget_listed_inodes(&mut self) {
        self.oddities
            .retain(|line| !line.contains(": is listed as inode "));
    }

    /// Panics with the first differences unless the two are the same.
    #[track_caller]
    pub fn assert_same(&self, label: &str, other: &Self, other_label: &str, ignore: Ignore) {
        let lines = self.differences(other, ignore);
        if !lines.is_empty() {
            let mut message = format!(
                "{label} (first) and {other_label} (second) differ in {} ways:\n",
                lines.len()
            );
            for line in lines.iter().take(30) {
                let _ = writeln!(message, "  {line}");
            }
            panic!("{message}");
        }
    }
}

impl Node {
    fn differences(&self, twin: &Self, ignore: Ignore) -> impl Iterator<Item = String> {
        let (mine, theirs) = (self.shown(ignore), twin.shown(ignore));
        let same_kind = self.kind == twin.kind;
        let pairs = mine.into_iter().zip(theirs);
        // Of another type: that says it all.
        pairs
            .take(if same_kind { usize::MAX } else { 1 })
            .filter(|((_, one), (_, other))| one != other)
            .map(|((what, one), (_, other))| format!("{what}: {one} ≠ {other}"))
    }

    /// What is compared, in words, by name; what `ignore` says is left empty.
    fn shown(&self, ignore: Ignore) -> [(&'static str, String); 11] {
        let unless = |ignored: bool, text: String| if ignored { String::new() } else { text };
        let is_dir = self.kind == FileType::Directory;
        [
            ("type", format!("{:?}", self.kind)),
            ("mode", format!("{:04o}", self.mode)),
            ("size", self.size.to_string()),
            ("device", format!("{:#x}", self.rdev)),
            ("content", show_content(self)),
            (
                "link count",
                unless(ignore.dir_nlink && is_dir, self.nlink.to_string()),
            ),
            ("owner", format!("{}:{}", self.uid, self.gid)),
            ("xattrs", show_xattrs(&self.xattrs)),
            ("same inode as", show(&self.identity)),
            ("mtime", unless(ignore.mtime, show_time(self.mtime))),
            ("inode number", unless(ignore.ino, self.ino.to_string())),
        ]
    }

    fn describe(&self) -> String {
        format!(
            "{:?}, mode {:04o}, {} bytes",
            self.kind, self.mode, self.size
        )
    }
}

struct Reader<'a> {
    tree: Tree,
    first: HashMap<(u64, u64), Vec<u8>>,
    skip: &'a [&'a [u8]],
    /// For the contents of files.
    buffer: Vec<u8>,
}

impl Reader<'_> {
    /// Reads what is in the directory `fd`, whose path is `path`, and below.
    fn directory(&mut self, fd: &OwnedFd, path: &[u8]) {
        if self.skip.contains(&path) {
            return;
        }
        let mut names: Vec<(Vec<u8>, FileType, u64)> = Vec::new();
        let listing = match Dir::read_from(fd) {
            Ok(listing) => listing,
            Err(error) => return self.odd(path, &format!("cannot be listed: {error}")),
        };
        for entry in listing {
            match entry {
                Ok(entry) => names.push((
                    entry.file_name().to_bytes().to_vec(),
                    entry.file_type(),
                    entry.ino(),
                )),
                Err(error) => return self.odd(path, &format!("listing breaks off: {error}")),
            }
        }
        for special in [b".".as_slice(), b".."] {
            if !names.iter().any(|(name, ..)| name == special) {
                self.odd(path, &format!("is listed without {}", show(special)));
            }
        }
        names.retain(|(name, ..)| name != b"." && name != b"..");
        names.sort_by(|one, other| one.0.cmp(&other.0));
        for pair in names.windows(2) {
            if pair[0].0 == pair[1].0 {
                self.odd(path, &format!("lists {} twice", show(&pair[0].0)));
            }
        }
        for (name, listed_type, listed_ino) in names {
            let child = if path.is_empty() {
                name.clone()
            } else {
                [path, b"/", &name].concat()
            };
            self.entry(fd, &name, &child, listed_type, listed_ino);
        }
    }

    fn entry(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        path: &[u8],
        listed_type: FileType,
        listed_ino: u64,
    ) {
        let stat = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(error) => return self.odd(path, &format!("is listed, yet stat says {error}")),
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if listed_type != kind && listed_type != FileType::Unknown {
            self.odd(
                path,
                &format!("is listed as {listed_type:?} and is a {kind:?}"),
            );
        }
        if listed_ino != stat.st_ino {
            self.odd(
                path,
                &format!("is listed as inode {listed_ino} and is {}", stat.st_ino),
            );
        }
        let node = self.node(dir, name, &stat, path);
        self.tree.nodes.insert(path.to_vec(), node);
        if kind == FileType::Directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match openat(dir, name, flags, Mode::empty()) {
                Ok(fd) => self.directory(&fd, path),
                // An ordinary user reads what it may.
                Err(rustix::io::Errno::ACCESS) if !super::is_root() => {}
                Err(error) => self.odd(path, &format!("cannot be opened: {error}")),
            }
        }
    }

    fn node(&mut self, dir: &OwnedFd, name: &[u8], stat: &Stat, path: &[u8]) -> Node {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let content = match kind {
            FileType::RegularFile => self.hash(dir, name, path),
            FileType::Symlink => readlinkat(dir, name, Vec::new())
                .ok()
                .map(std::ffi::CString::into_bytes),
            _ => Some(Vec::new()),
        };
        let identity = self
            .first
            .entry((stat.st_dev, stat.st_ino))
            .or_insert_with(|| path.to_vec())
            .clone();
        let sized = matches!(kind, FileType::RegularFile | FileType::Symlink);
        let is_device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
        Node {
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: if sized { stat.st_size as u64 } else { 0 },
            mtime: (stat.st_mtime, stat.st_mtime_nsec as u32),
            nlink: stat.st_nlink,
            rdev: if is_device { stat.st_rdev } else { 0 },
            ino: stat.st_ino,
            xattrs: self.xattrs(dir, name, path),
            content,
            identity,
        }
    }

    fn hash(&mut self, dir: &OwnedFd, name: &[u8], path: &[u8]) -> Option<Vec<u8>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let mut file = match openat(dir, name, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(rustix::io::Errno::ACCESS) if !super::is_root() => return None,
            Err(error) => {
                self.odd(path, &format!("cannot be opened: {error}"));
                return None;
            }
        };
        let mut hasher = Xxh3Default::new();
        loop {
            match file.read(&mut self.buffer) {
                Ok(0) => return Some(hasher.digest128().to_be_bytes().to_vec()),
                Ok(count) => hasher.update(&self.buffer[..count]),
                Err(error) => {
                    self.odd(path, &format!("cannot be read: {error}"));
                    return None;
                }
            }
        }
    }

    fn xattrs(&mut self, dir: &OwnedFd, name: &[u8], path: &[u8]) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut through = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
        through.extend_from_slice(name);
        match read_xattrs(&through) {
            Ok(found) => found,
            Err(error) => {
                self.odd(path, &format!("its xattrs cannot be read: {error}"));
                BTreeMap::new()
            }
        }
    }

    fn odd(&mut self, path: &[u8], what: &str) {
        self.tree.oddities.push(format!("{}: {what}", show(path)));
    }
}

/// All extended attributes of the object at `path`, symlinks not followed.
pub fn read_xattrs(path: &[u8]) -> rustix::io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let names = match with_room(|room| rustix::fs::llistxattr(path, room)) {
        Ok(names) => names,
        Err(rustix::io::Errno::NOTSUP) => Vec::new(),
        Err(error) => return Err(error),
    };
    let mut found = BTreeMap::new();
    for name in names
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
    {
        let value = with_room(|room| rustix::fs::lgetxattr(path, name, room))?;
        found.insert(name.to_vec(), value);
    }
    Ok(found)
}

/// What `read` puts into a buffer and tells the length of; the first is small, as it mostly is.
fn with_room(
    mut read: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>,
) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = vec![0; 1 << 10];
    let used = read(&mut buffer).or_else(|error| match error {
        rustix::io::Errno::RANGE => {
            buffer.resize(64 << 10, 0);
            read(&mut buffer)
        }
        _ => Err(error),
    })?;
    buffer.truncate(used);
    Ok(buffer)
}

/// A path for a message, whatever bytes are in it.
pub fn show(path: &[u8]) -> String {
    format!("/{}", path.escape_ascii())
}

fn show_time((seconds, nanoseconds): (i64, u32)) -> String {
    format!("{seconds}.{nanoseconds:09}")
}

fn show_content(node: &Node) -> String {
    match (&node.content, node.kind) {
        (None, _) => "(not readable)".into(),
        (Some(target), FileType::Symlink) => show(target),
        (Some(digest), _) => digest.iter().take(6).fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        }),
    }
}

fn show_xattrs(xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> String {
    let shown: Vec<String> = xattrs
        .iter()
        .map(|(name, value)| format!("{}={}", name.escape_ascii(), value.escape_ascii()))
        .collect();
    format!("[{}]", shown.join(", "))
}
