//! Where COPY and ADD take from: the build context, or an image of the store. Both are read-only trees in
//! which symbolic links lead nowhere but within.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lamina_layers::index::{Data, Index, Ino};
use lamina_layers::store::{Lease, Store, Transaction};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2, readlinkat};
use rustix::io::Errno;

use super::error::{BuildResult, Problem};
use super::ignore::Ignore;
use super::pattern::{Pattern, is_pattern};
use super::root::split;
use crate::attr::{Attr, Kind};
use crate::sys;

/// A tree to copy from.
pub enum Tree<'a> {
    /// A directory of the caller's.
    Context(&'a Context),
    /// An image, or a layer that is just being made.
    Image(Image<'a>),
}

/// The build context.
pub struct Context {
    /// As the user named it, for messages.
    path: PathBuf,
    root: OwnedFd,
    ignore: Ignore,
}

/// An image of the store.
pub struct Image<'a> {
    /// How messages call it.
    pub name: String,
    /// Its merged index.
    pub index: Arc<Index>,
    /// Where its objects are.
    pub objects: Objects<'a>,
    /// Keeps its layers from being removed.
    pub _lease: Option<Lease>,
}

/// Where objects are.
#[derive(Clone, Copy)]
pub enum Objects<'a> {
    /// In the store.
    Store(&'a Store),
    /// In the store or on their way into it.
    Transaction(&'a Transaction<'a>),
}

/// An object of a tree.
pub struct Node {
    place: Place,
    /// What it is.
    pub kind: Kind,
    /// Its path in the tree, without a leading slash and without symbolic links.
    pub path: Vec<u8>,
    /// The path by which it was found.
    pub asked: Vec<u8>,
}

enum Place {
    Open(OwnedFd),
    Ino(Ino),
}

/// Attributes and contents of an object.
pub struct Contents<'a> {
    /// Permissions.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Modification time.
    pub mtime: (i64, u32),
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The same for all names of a file with several.
    pub identity: Option<(u64, u64)>,
    /// What it holds.
    pub data: Holds<'a>,
}

/// What an object holds.
pub enum Holds<'a> {
    /// A directory's entries are asked for by [`Tree::names`].
    Dir,
    /// The size and the bytes of a file.
    File(u64, Box<dyn Read + Send + 'a>),
    /// The target of a symbolic link.
    Symlink(Vec<u8>),
    /// Major and minor number of a block device.
    Block(u32, u32),
    /// Major and minor number of a character device.
    Char(u32, u32),
    /// Nothing.
    Fifo,
    /// Nothing that can be copied.
    Socket,
}

impl Context {
    /// Opens a directory.
    ///
    /// # Errors
    /// When it is none, or what it leaves out cannot be read.
    pub fn open(path: &Path, containerfile: Option<&Path>) -> BuildResult<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())
            .map_err(Problem::io("open the build context", path))?;
        Ok(Self {
            path: path.to_owned(),
            root,
            ignore: Ignore::of(path, containerfile)?,
        })
    }

    /// Opens a path within it; a symbolic link is followed only on the way.
    fn open_within(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        sys::retry(|| {
            openat2(
                &self.root,
                path,
                flags | OFlags::CLOEXEC,
                Mode::empty(),
                within,
            )
        })
    }

    /// Its own path of a descriptor in it.
    fn path_of(&self, fd: &OwnedFd) -> Option<Vec<u8>> {
        let link = |fd: &OwnedFd| {
            let path = sys::proc_path(fd.as_fd());
            rustix::fs::readlink(path, Vec::new())
                .ok()
                .map(std::ffi::CString::into_bytes)
        };
        let (root, path) = (link(&self.root)?, link(fd)?);
        let rest = path.strip_prefix(root.as_slice())?;
        Some(rest.strip_prefix(b"/").unwrap_or(rest).to_vec())
    }

    /// A path of the caller's, for messages.
    fn full(&self, path: &[u8]) -> PathBuf {
        self.path.join(OsStr::from_bytes(path))
    }
}

impl Tree<'_> {
    /// How messages call it.
    pub fn name(&self) -> String {
        match self {
            Self::Context(context) => format!("the build context {:?}", context.path),
            Self::Image(image) => image.name.clone(),
        }
    }

    /// What an instruction means by a path or a pattern, sorted. Symbolic links are followed.
    ///
    /// # Errors
    /// When there is nothing.
    pub fn find(&self, wanted: &[u8]) -> BuildResult<Vec<Node>> {
        let mut found = if is_pattern(wanted) {
            self.matching(wanted)?
        } else {
            let cleaned = clean(wanted);
            self.at(&cleaned)?.into_iter().collect()
        };
        let seen = !found.is_empty();
        found.retain(|node| !self.is_left_out(node));
        if found.is_empty() {
            let hint = if seen {
                ": it is left out by .containerignore or .dockerignore"
            } else {
                ""
            };
            return Err(Problem::NoSource {
                path: String::from_utf8_lossy(wanted).into_owned(),
                place: self.name(),
                hint: hint.to_owned(),
            }
            .into());
        }
        Ok(found)
    }

    /// Whether the context leaves it out, with all that is in it.
    fn is_left_out(&self, node: &Node) -> bool {
        match self {
            Self::Context(context) if !node.path.is_empty() => {
                let ignore = &context.ignore;
                // A link is left out also if what it leads to is.
                (ignore.excludes(&node.path) || ignore.excludes(&node.asked))
                    && (node.kind != Kind::Dir || !ignore.may_include_below())
            }
            _ => false,
        }
    }

    /// Whether the context leaves out a name in a directory that is copied, but not all below it.
    pub fn excludes(&self, path: &[u8]) -> bool {
        match self {
            Self::Context(context) => context.ignore.excludes(path),
            Self::Image(_) => false,
        }
    }

    /// Whether something in an excluded directory may be included again.
    pub fn may_include_below(&self) -> bool {
        match self {
            Self::Context(context) => context.ignore.may_include_below(),
            Self::Image(_) => true,
        }
    }

    /// Whether anything below a directory that is left out is taken in again.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn includes_something(&self, dir: &Node) -> BuildResult<bool> {
        for name in self.names(dir)? {
            if !self.excludes(&join(&dir.path, &name)) {
                return Ok(true);
            }
            let child = self.child(dir, &name)?;
            if child.kind == Kind::Dir && self.includes_something(&child)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether it is a directory that an archive says nothing of, but has something in.
    pub fn is_implicit(&self, node: &Node) -> bool {
        match (self, &node.place) {
            (Self::Image(image), Place::Ino(ino)) => {
                let inode = image.index.inode(*ino);
                inode.is_some_and(|inode| inode.is_implicit())
            }
            _ => false,
        }
    }

    fn matching(&self, wanted: &[u8]) -> BuildResult<Vec<Node>> {
        let mut found = self.at(b"")?.into_iter().collect::<Vec<_>>();
        for name in split(wanted) {
            let mut next = Vec::new();
            for dir in found {
                if dir.kind != Kind::Dir {
                    continue;
                }
                if !is_pattern(name) {
                    next.extend(self.at(&join(&dir.asked, name))?);
                    continue;
                }
                let pattern = Pattern::name(name).ok_or_else(|| {
                    Problem::Syntax(format!("'{}' is not a pattern", wanted.escape_ascii()))
                })?;
                for child in self.names(&dir)? {
                    if pattern.matches(&child) {
                        next.extend(self.at(&join(&dir.asked, &child))?);
                    }
                }
            }
            found = next;
        }
        Ok(found)
    }

    /// What is at a path, symbolic links followed within the tree.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn at(&self, path: &[u8]) -> BuildResult<Option<Node>> {
        match self {
            Self::Context(context) => {
                let fd = match context.open_within(path, OFlags::PATH) {
                    Ok(fd) => fd,
                    Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
                    Err(errno) => return Err(Problem::io("open", context.full(path))(errno).into()),
                };
                let attr = sys::stat_fd(&fd).map_err(Problem::io("examine", context.full(path)))?;
                Ok(Some(Node {
                    kind: attr.kind(),
                    path: context.path_of(&fd).unwrap_or_else(|| path.to_vec()),
                    asked: path.to_vec(),
                    place: Place::Open(fd),
                }))
            }
            Self::Image(image) => {
                let node = image.resolve(path);
                Ok(node.map(|node| Node {
                    asked: path.to_vec(),
                    ..node
                }))
            }
        }
    }

    /// The names in a directory, sorted.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn names(&self, dir: &Node) -> BuildResult<Vec<Vec<u8>>> {
        let mut names = match (self, &dir.place) {
            (Self::Context(context), Place::Open(fd)) => {
                let failed = Problem::io("read", context.full(&dir.path));
                sys::dir::names(fd).map_err(failed)?
            }
            (Self::Image(image), Place::Ino(ino)) => image
                .index
                .entries(*ino)
                .map(|entry| entry.name.to_vec())
                .collect(),
            _ => Vec::new(),
        };
        names.sort_unstable();
        Ok(names)
    }

    /// One name in a directory; a symbolic link is not followed.
    ///
    /// # Errors
    /// When it is gone or cannot be looked at.
    pub fn child(&self, dir: &Node, name: &[u8]) -> BuildResult<Node> {
        let path = join(&dir.path, name);
        match (self, &dir.place) {
            (Self::Context(context), Place::Open(fd)) => {
                let place = sys::open_at(fd, name, OFlags::PATH)
                    .map_err(Problem::io("open", context.full(&path)))?;
                let attr =
                    sys::stat_fd(&place).map_err(Problem::io("examine", context.full(&path)))?;
                Ok(Node {
                    place: Place::Open(place),
                    kind: attr.kind(),
                    asked: path.clone(),
                    path,
                })
            }
            (Self::Image(image), Place::Ino(ino)) => {
                let entry = image.index.lookup(*ino, name);
                let node = entry.and_then(|entry| image.node(entry.ino, path.clone()));
                node.ok_or_else(|| self.gone(&path).into())
            }
            _ => Err(self.gone(&path).into()),
        }
    }

    fn gone(&self, path: &[u8]) -> Problem {
        Problem::NoSource {
            path: String::from_utf8_lossy(path).into_owned(),
            place: self.name(),
            hint: String::new(),
        }
    }

    /// Attributes and contents of an object.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn contents<'t>(&'t self, node: &'t Node) -> BuildResult<Contents<'t>> {
        match (self, &node.place) {
            (Self::Context(context), Place::Open(fd)) => context
                .contents(fd, node.kind)
                .map_err(|errno| Problem::io("read", context.full(&node.path))(errno).into()),
            (Self::Image(image), Place::Ino(ino)) => image.contents(*ino, &node.path),
            _ => Err(self.gone(&node.path).into()),
        }
    }
}

impl Context {
    fn contents(&self, fd: &OwnedFd, kind: Kind) -> Result<Contents<'static>, Errno> {
        let (attr, data): (Attr, Holds<'static>) = match kind {
            Kind::File => {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK;
                let file = sys::reopen(fd.as_fd(), flags)?;
                let attr = sys::stat_fd(&file)?;
                (attr, Holds::File(attr.size, Box::new(File::from(file))))
            }
            Kind::Symlink => {
                let target = readlinkat(fd, "", Vec::new())?;
                (sys::stat_fd(fd)?, Holds::Symlink(target.into_bytes()))
            }
            Kind::Dir => (sys::stat_fd(fd)?, Holds::Dir),
            Kind::Fifo => (sys::stat_fd(fd)?, Holds::Fifo),
            Kind::Socket => (sys::stat_fd(fd)?, Holds::Socket),
            Kind::Char | Kind::Block => {
                let attr = sys::stat_fd(fd)?;
                let (major, minor) = (rustix::fs::major(attr.rdev), rustix::fs::minor(attr.rdev));
                let block = kind == Kind::Block;
                let holds = if block { Holds::Block } else { Holds::Char };
                (attr, holds(major, minor))
            }
        };
        let mut xattrs = Vec::new();
        if matches!(kind, Kind::File | Kind::Dir) {
            for name in sys::list_xattrs(fd.as_fd())? {
                // The others are this machine's own.
                if name.starts_with(b"user.") || name == b"security.capability" {
                    let value = sys::get_xattr(fd.as_fd(), &name)?;
                    xattrs.extend(value.map(|value| (name, value)));
                }
            }
        }
        let several = attr.nlink > 1 && kind != Kind::Dir;
        Ok(Contents {
            mode: attr.mode & 0o7777,
            owner: (attr.uid, attr.gid),
            mtime: (attr.mtime.sec, attr.mtime.nsec),
            xattrs,
            identity: several.then_some((attr.dev, attr.ino)),
            data,
        })
    }
}

impl Image<'_> {
    fn node(&self, ino: Ino, path: Vec<u8>) -> Option<Node> {
        let inode = self.index.inode(ino)?;
        Some(Node {
            kind: Kind::of_dirent(inode.file_type())?,
            place: Place::Ino(ino),
            asked: path.clone(),
            path,
        })
    }

    fn resolve(&self, path: &[u8]) -> Option<Node> {
        let mut at = vec![(Ino::ROOT, Vec::new())];
        let mut ahead: Vec<Vec<u8>> = split(path).rev().map(<[u8]>::to_vec).collect();
        let mut links = 40_u32;
        while let Some(name) = ahead.pop() {
            if name == b".." {
                if at.len() > 1 {
                    at.pop();
                }
                continue;
            }
            let (dir, path) = at.last()?;
            let entry = self.index.lookup(*dir, &name)?;
            if let Data::Symlink(target) = self.index.inode(entry.ino)?.data() {
                links = links.checked_sub(1)?;
                if target.starts_with(b"/") {
                    at.truncate(1);
                }
                ahead.extend(split(target).rev().map(<[u8]>::to_vec));
                continue;
            }
            let path = join(path, &name);
            at.push((entry.ino, path));
        }
        let (ino, path) = at.pop()?;
        self.node(ino, path)
    }

    fn contents(&self, ino: Ino, path: &[u8]) -> BuildResult<Contents<'_>> {
        let gone = || Problem::NoSource {
            path: String::from_utf8_lossy(path).into_owned(),
            place: self.name.clone(),
            hint: String::new(),
        };
        let inode = self.index.inode(ino).ok_or_else(gone)?;
        let data = match inode.data() {
            Data::Directory { .. } => Holds::Dir,
            Data::Inline(bytes) => {
                Holds::File(bytes.len() as u64, Box::new(io::Cursor::new(bytes)))
            }
            Data::Object(id) => {
                let file = match self.objects {
                    Objects::Store(store) => store.open_object(&id, inode.size())?,
                    Objects::Transaction(txn) => txn.open_object(&id, inode.size())?,
                };
                Holds::File(inode.size(), Box::new(file))
            }
            Data::Symlink(target) => Holds::Symlink(target.to_vec()),
            Data::Device { major, minor } if inode.mode() & libc::S_IFMT == libc::S_IFBLK => {
                Holds::Block(major, minor)
            }
            Data::Device { major, minor } => Holds::Char(major, minor),
            Data::Fifo => Holds::Fifo,
            Data::Socket | Data::Whiteout | Data::HardLink(_) => Holds::Socket,
        };
        let several = inode.nlink() > 1 && !matches!(data, Holds::Dir);
        Ok(Contents {
            mode: inode.mode() & 0o7777,
            owner: (inode.uid(), inode.gid()),
            mtime: inode.mtime(),
            xattrs: inode
                .xattrs()
                .map(|(name, value)| (name.to_vec(), value.to_vec()))
                .collect(),
            identity: several.then_some((0, u64::from(ino.0))),
            data,
        })
    }
}

/// Paths of files with several names, to copy them as such.
pub type Links = HashMap<(u64, u64), Vec<u8>>;

/// A path in a directory.
pub fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() {
        return name.to_vec();
    }
    [dir, b"/", name].concat()
}

/// A path without `.`, and without `..` as far as it can be told by looking at it: as docker does it,
/// so that what is meant is always in the context.
fn clean(path: &[u8]) -> Vec<u8> {
    let mut names: Vec<&[u8]> = Vec::new();
    for name in split(path) {
        if name == b".." {
            names.pop();
        } else {
            names.push(name);
        }
    }
    names.join(&b'/')
}
