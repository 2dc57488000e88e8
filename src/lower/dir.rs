//! A plain directory as a lower layer, with overlayfs's and AUFS's marks understood.
//!
//! Objects are named by path; a lower does not change while mounted, so a path stays right. Paths
//! are resolved beneath the root without following symbolic links, in pieces, so that none is too
//! long.

use std::borrow::Cow;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{Contents, Found, LayerIx, LowerEntry, LowerObject, LowerRef, Number};
use crate::attr::{Attr, Kind, PERMISSIONS};
use crate::error::FsResult;
use crate::fdcache::FdCache;
use crate::stats::Stats;
use crate::sys::{self, SysResult};
use crate::upper::mark::{Dialect, Namespace, WH_OPAQUE, WH_PREFIX};
use crate::upper::stat::StatMark;

/// Longest piece of a path given to one system call.
const PIECE: usize = 2048;
/// A file that takes more blocks (of 512 bytes) than this has data of its own.
const MOST_XATTR_BLOCKS: u64 = 256;

/// One object of a plain directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirObject {
    /// Path from the layer's root, without a leading slash; empty for the root.
    pub path: Arc<[u8]>,
    /// The number it has in the mount.
    pub number: Number,
    /// Where its contents are.
    pub data: DataPlace,
}

/// Where the contents of a regular file of a layer are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataPlace {
    /// In the file.
    Own,
    /// In a layer below, which is not known yet: overlayfs, of whose making the layer is, copied up
    /// nothing but attributes (its option `metacopy`).
    Below,
    /// In this file.
    At(Arc<LowerRef>),
}

/// A plain directory.
pub struct DirLayer {
    root: OwnedFd,
    dev: u64,
    space: u16,
    dialect: Dialect,
    /// Whether there may be whiteouts that are marked files.
    marked_whiteouts: bool,
    dirs: FdCache<Arc<[u8]>>,
    files: FdCache<Arc<[u8]>>,
    /// All names of files that have several, found by one walk when first asked for.
    links: OnceLock<HashMap<Number, Vec<Vec<u8>>>>,
}

impl DirLayer {
    /// The directory at `path`. `space` is the number space of its objects.
    pub fn open(
        path: &Path,
        space: u16,
        dialect: Dialect,
        descriptors: (usize, &Arc<Stats>),
    ) -> SysResult<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
        let dev = sys::stat_fd(&root)?.dev;
        let dialect = Dialect {
            stat: dialect
                .shared
                .then(|| StatMark::of_layer(root.as_fd()))
                .flatten(),
            ..dialect
        };
        let marked_whiteouts = dialect.has_marked_whiteouts(root.as_fd())?;
        Ok(Self {
            root,
            dev,
            space,
            dialect,
            marked_whiteouts,
            dirs: FdCache::new(descriptors.0 / 2, descriptors.1),
            files: FdCache::new(descriptors.0 / 2, descriptors.1),
            links: OnceLock::new(),
        })
    }

    /// The layer's root directory.
    pub fn root(&self) -> DirObject {
        let number = match sys::stat_fd(&self.root) {
            Ok(attr) => self.number(&attr),
            Err(_) => Number::ROOT,
        };
        DirObject {
            path: Arc::from(&b""[..]),
            number,
            data: DataPlace::Own,
        }
    }

    /// Numbers are unique per layer, also where other filesystems are mounted in it.
    fn number(&self, attr: &Attr) -> Number {
        Number::new(self.space, attr.ino ^ (attr.dev ^ self.dev) << 32)
    }

    fn open_path(&self, path: &[u8], flags: OFlags) -> SysResult<OwnedFd> {
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let mut base: Option<OwnedFd> = None;
        let mut rest = if path.is_empty() { b"." } else { path };
        loop {
            let (piece, tail) = match rest.get(..PIECE) {
                Some(window) => match window.iter().rposition(|&byte| byte == b'/') {
                    Some(at) => (rest.get(..at), rest.get(at + 1..)),
                    None => (Some(rest), None),
                },
                None => (Some(rest), None),
            };
            let piece = piece.unwrap_or_default();
            let how = if tail.is_some() {
                OFlags::PATH | OFlags::DIRECTORY
            } else {
                flags
            };
            let how = how | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let dir = base.as_ref().unwrap_or(&self.root);
            let fd = sys::retry(|| {
                match rustix::fs::openat2(dir, piece, how, Mode::empty(), resolve) {
                    // A rename elsewhere in the system can make the kernel unsure.
                    Err(Errno::AGAIN) => Err(Errno::INTR),
                    result => result,
                }
            })?;
            match tail {
                Some(tail) => {
                    rest = tail;
                    base = Some(fd);
                }
                None => return Ok(fd),
            }
        }
    }

    fn dir(&self, object: &DirObject) -> SysResult<Arc<OwnedFd>> {
        self.dirs.get_or_open(Arc::clone(&object.path), || {
            self.open_path(&object.path, OFlags::RDONLY | OFlags::DIRECTORY)
        })
    }

    fn node(&self, object: &DirObject) -> SysResult<OwnedFd> {
        self.open_path(&object.path, OFlags::PATH)
    }

    pub(super) fn attr(&self, object: &DirObject) -> FsResult<Attr> {
        let node = self.node(object)?;
        let attr = self.with_marks(node.as_fd(), sys::stat_fd(&node)?)?;
        Ok(Attr {
            ino: object.number.0,
            ..attr
        })
    }

    /// What an upper that became a layer could not say but by a mark: that a device is 0:0, and
    /// owners and modes where an ordinary user made it.
    fn with_marks(&self, fd: BorrowedFd<'_>, attr: Attr) -> SysResult<Attr> {
        let is_plain = matches!(attr.kind(), Kind::File | Kind::Dir);
        let marked = match (self.dialect.stat, self.dialect.namespace) {
            (Some(StatMark::Security), _) => true,
            (None, Namespace::Trusted) => attr.kind() == Kind::Char,
            (_, Namespace::User) | (Some(_), _) => is_plain,
        };
        if !marked {
            return Ok(attr);
        }
        if self.dialect.stat.is_some() {
            return match self.dialect.node(fd) {
                Ok(mark) => Ok(mark.apply(attr)),
                Err(Errno::ACCESS | Errno::PERM | Errno::OPNOTSUPP) => Ok(attr),
                Err(errno) => Err(errno),
            };
        }
        match self.dialect.node(fd) {
            Ok(mark) => Ok(Attr {
                mode: attr.kind().mode_bits() | mark.apply(attr).mode & PERMISSIONS,
                ..mark.apply(attr)
            }),
            // Attributes of somebody else's file, or none at all.
            Err(Errno::ACCESS | Errno::PERM | Errno::OPNOTSUPP) => Ok(attr),
            Err(errno) => Err(errno),
        }
    }

    pub(super) fn child(&self, layer: LayerIx, at: &DirObject, name: &[u8]) -> FsResult<Found> {
        if name.starts_with(WH_PREFIX) {
            return Ok(Found::Nothing);
        }
        let dir = self.dir(at)?;
        let Some(attr) = sys::find_at(&*dir, name)? else {
            let whiteout = [WH_PREFIX, name].concat();
            let hidden = whiteout.len() <= 255 && sys::find_at(&*dir, &whiteout)?.is_some();
            return Ok(if hidden {
                Found::Whiteout
            } else {
                Found::Nothing
            });
        };
        if self.is_whiteout(&dir, name, &attr)? {
            return Ok(Found::Whiteout);
        }
        let object = DirObject {
            path: join(&at.path, name).into(),
            number: self.number(&attr),
            data: self.data_place(&dir, name, &attr)?,
        };
        Ok(Found::Object(
            LowerRef {
                layer,
                object: LowerObject::Dir(object),
            },
            self.kind(&dir, name, &attr)?,
        ))
    }

    /// What an object is. An empty file may stand for what an ordinary user cannot make.
    fn kind(&self, dir: &OwnedFd, name: &[u8], attr: &Attr) -> SysResult<Kind> {
        if self.dialect.stat.is_none() || attr.kind() != Kind::File || attr.size != 0 {
            return Ok(attr.kind());
        }
        let fd = sys::open_at(dir, name, sys::O_PATH)?;
        Ok(self.with_marks(fd.as_fd(), *attr)?.kind())
    }

    fn is_whiteout(&self, dir: &OwnedFd, name: &[u8], attr: &Attr) -> SysResult<bool> {
        if attr.is_whiteout() {
            return Ok(true);
        }
        if !self.marked_whiteouts || attr.kind() != Kind::File || attr.size != 0 {
            return Ok(false);
        }
        let fd = sys::open_at(dir, name, sys::O_PATH)?;
        Ok(self.dialect.has_marked_whiteouts(dir.as_fd())?
            && self.dialect.is_marked_whiteout(fd.as_fd())?)
    }

    /// Whether a file has its own contents. One that does not is all hole: it takes no more blocks
    /// than extended attributes may.
    fn data_place(&self, dir: &OwnedFd, name: &[u8], attr: &Attr) -> SysResult<DataPlace> {
        if attr.kind() != Kind::File || attr.size == 0 || attr.blocks > MOST_XATTR_BLOCKS {
            return Ok(DataPlace::Own);
        }
        let fd = sys::open_at(dir, name, sys::O_PATH)?;
        Ok(if self.dialect.is_metacopy(fd.as_fd())? {
            DataPlace::Below
        } else {
            DataPlace::Own
        })
    }

    /// Where the redirect mark of a file without data says that they are.
    pub(super) fn data_redirect(&self, object: &DirObject) -> FsResult<Option<Vec<u8>>> {
        Ok(self.dialect.redirect(self.node(object)?.as_fd())?)
    }

    pub(super) fn for_each_entry(
        &self,
        at: &DirObject,
        each: &mut dyn FnMut(LowerEntry<'_>) -> FsResult<()>,
    ) -> FsResult<()> {
        let dir = self.dir(at)?;
        let marked_whiteouts =
            self.marked_whiteouts && self.dialect.has_marked_whiteouts(dir.as_fd())?;
        let looks_at_files = marked_whiteouts || self.dialect.stat.is_some();
        sys::dir::for_each_entry(&*dir, |entry| {
            if entry.name == WH_OPAQUE {
                return Ok(());
            }
            if let Some(deleted) = entry.name.strip_prefix(WH_PREFIX) {
                return each(whiteout(deleted));
            }
            let number = Number::new(self.space, entry.ino);
            match entry.kind {
                // Whiteouts are devices, and mount points show the number of what they cover.
                Some(kind)
                    if kind != Kind::Char
                        && kind != Kind::Dir
                        && !(looks_at_files && kind == Kind::File) =>
                {
                    each(LowerEntry {
                        name: entry.name,
                        kind: Some(kind),
                        number,
                    })
                }
                _ => match sys::find_at(&*dir, entry.name)? {
                    None => Ok(()),
                    Some(attr) if self.is_whiteout(&dir, entry.name, &attr)? => {
                        each(whiteout(entry.name))
                    }
                    Some(attr) => each(LowerEntry {
                        name: entry.name,
                        kind: Some(self.kind(&dir, entry.name, &attr)?),
                        number: self.number(&attr),
                    }),
                },
            }
        })
    }

    pub(super) fn is_opaque(&self, object: &DirObject) -> FsResult<bool> {
        let dir = self.dir(object)?;
        if self.dialect.is_opaque(dir.as_fd())? {
            return Ok(true);
        }
        Ok(sys::find_at(&*dir, WH_OPAQUE)?.is_some())
    }

    pub(super) fn redirect(&self, object: &DirObject) -> FsResult<Option<Vec<u8>>> {
        Ok(self.dialect.redirect(self.dir(object)?.as_fd())?)
    }

    pub(super) fn readlink(&self, object: &DirObject) -> FsResult<Cow<'_, [u8]>> {
        let target = rustix::fs::readlinkat(self.node(object)?, "", Vec::new())?;
        Ok(Cow::Owned(target.into_bytes()))
    }

    pub(super) fn xattr(&self, object: &DirObject, name: &[u8]) -> FsResult<Option<Cow<'_, [u8]>>> {
        let stored = self.dialect.stored_name(name);
        Ok(sys::get_xattr(self.node(object)?.as_fd(), &stored)?.map(Cow::Owned))
    }

    pub(super) fn xattr_names(&self, object: &DirObject) -> FsResult<Vec<Vec<u8>>> {
        let names = sys::list_xattrs(self.node(object)?.as_fd())?;
        Ok(names
            .iter()
            .filter_map(|name| self.dialect.shown_name(name))
            .collect())
    }

    pub(super) fn contents(&self, object: &DirObject) -> FsResult<Contents<'_>> {
        let fd = self.files.get_or_open(Arc::clone(&object.path), || {
            // What was a file when it was looked up may by now be a pipe or a terminal.
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
            // Reading a layer should not change even its access times; only an owner may ask.
            let fd = match self.open_path(&object.path, flags | OFlags::NOATIME) {
                Err(Errno::PERM) => self.open_path(&object.path, flags),
                result => result,
            }?;
            match sys::stat_fd(&fd)?.kind() {
                Kind::File => Ok(fd),
                _ => Err(Errno::IO),
            }
        })?;
        let size = sys::stat_fd(&*fd)?.size;
        Ok(Contents::File(fd, size))
    }

    pub(super) fn names_of(&self, object: &DirObject) -> FsResult<Vec<Vec<u8>>> {
        if sys::stat_fd(self.node(object)?)?.nlink <= 1 {
            return Ok(vec![object.path.to_vec()]);
        }
        let links = if let Some(links) = self.links.get() {
            links
        } else {
            let found = self.find_links()?;
            self.links.get_or_init(|| found)
        };
        let alone = || vec![object.path.to_vec()];
        Ok(links.get(&object.number).cloned().unwrap_or_else(alone))
    }

    /// One walk of the whole layer for the names of files that have several.
    fn find_links(&self) -> FsResult<HashMap<Number, Vec<Vec<u8>>>> {
        let mut links: HashMap<Number, Vec<Vec<u8>>> = HashMap::new();
        let mut pending = vec![Vec::new()];
        while let Some(path) = pending.pop() {
            let dir = self.open_path(&path, OFlags::RDONLY | OFlags::DIRECTORY)?;
            sys::dir::for_each_entry(&dir, |entry| -> FsResult<()> {
                if entry.kind == Some(Kind::Dir) {
                    pending.push(join(&path, entry.name));
                    return Ok(());
                }
                let Some(attr) = sys::find_at(&dir, entry.name)? else {
                    return Ok(());
                };
                if attr.kind() == Kind::Dir {
                    pending.push(join(&path, entry.name));
                } else if attr.nlink > 1 && !attr.is_whiteout() {
                    links
                        .entry(self.number(&attr))
                        .or_default()
                        .push(join(&path, entry.name));
                }
                Ok(())
            })?;
        }
        Ok(links)
    }

    pub(super) fn path_of(&self, object: &DirObject) -> Vec<u8> {
        object.path.to_vec()
    }
}

/// An entry that deletes a name of the layers below.
fn whiteout(name: &[u8]) -> LowerEntry<'_> {
    LowerEntry {
        name,
        kind: None,
        number: Number(0),
    }
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(dir.len() + 1 + name.len());
    path.extend_from_slice(dir);
    if !dir.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}
