//! An image as a lower layer: everything but file contents comes from its merged index.

// Both kinds of layer have the same operations; these cannot fail where the other's can.
#![allow(clippy::unnecessary_wraps)]

use std::borrow::Cow;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use lamina_layers::index::{Data, Index, Ino, Inode};
use lamina_layers::store::Store;
use rustix::io::Errno;

use super::{Contents, Found, LayerIx, LowerEntry, LowerObject, LowerRef, Number};
use crate::attr::{Attr, Kind, Time};
use crate::error::{FsError, FsResult};
use crate::fdcache::FdCache;
use crate::stats::Stats;

/// An image's index and the objects it names.
pub struct ImageLayer {
    index: Index,
    store: Arc<Store>,
    files: FdCache<Ino>,
}

impl ImageLayer {
    /// The image of a merged index whose objects are in `store`; at most about as many of
    /// them as `descriptors` says are kept open.
    pub fn new(index: Index, store: Arc<Store>, descriptors: (usize, &Arc<Stats>)) -> Self {
        Self {
            index,
            store,
            files: FdCache::new(descriptors.0, descriptors.1),
        }
    }

    /// The merged index.
    pub fn index(&self) -> &Index {
        &self.index
    }

    fn inode(&self, ino: Ino) -> FsResult<Inode<'_>> {
        self.index.inode(ino).ok_or_else(|| Errno::STALE.into())
    }

    /// Attributes of an inode. Access and change time are the modification time.
    pub fn attr(&self, ino: Ino) -> FsResult<Attr> {
        Ok(attr_of(ino, self.inode(ino)?))
    }

    pub(super) fn child(&self, layer: LayerIx, dir: Ino, name: &[u8]) -> FsResult<Found> {
        Ok(match self.index.lookup(dir, name) {
            Some(entry) => match Kind::of_dirent(entry.file_type) {
                Some(kind) => Found::Object(
                    LowerRef {
                        layer,
                        object: LowerObject::Image(entry.ino),
                    },
                    kind,
                ),
                None => Found::Nothing,
            },
            None => Found::Nothing,
        })
    }

    pub(super) fn for_each_entry(
        &self,
        dir: Ino,
        each: &mut dyn FnMut(LowerEntry<'_>) -> FsResult<()>,
    ) -> FsResult<()> {
        for entry in self.index.entries(dir) {
            each(LowerEntry {
                name: entry.name,
                kind: Kind::of_dirent(entry.file_type),
                number: Number::of_image(entry.ino),
            })?;
        }
        Ok(())
    }

    // The merge has resolved what these two ask for.
    pub(super) fn is_opaque(&self, _: Ino) -> FsResult<bool> {
        Ok(false)
    }

    pub(super) fn redirect(&self, _: Ino) -> FsResult<Option<Vec<u8>>> {
        Ok(None)
    }

    pub(super) fn readlink(&self, ino: Ino) -> FsResult<Cow<'_, [u8]>> {
        match self.inode(ino)?.data() {
            Data::Symlink(target) => Ok(Cow::Borrowed(target)),
            _ => Err(Errno::INVAL.into()),
        }
    }

    pub(super) fn xattr(&self, ino: Ino, name: &[u8]) -> FsResult<Option<Cow<'_, [u8]>>> {
        Ok(self.inode(ino)?.xattr(name).map(Cow::Borrowed))
    }

    pub(super) fn xattr_names(&self, ino: Ino) -> FsResult<Vec<Vec<u8>>> {
        Ok(self
            .inode(ino)?
            .xattrs()
            .map(|(name, _)| name.to_vec())
            .collect())
    }

    /// The contents of a regular file.
    pub fn contents(&self, ino: Ino) -> FsResult<Contents<'_>> {
        let inode = self.inode(ino)?;
        match inode.data() {
            Data::Inline(bytes) => Ok(Contents::Inline(bytes)),
            Data::Object(id) => {
                let open = || -> FsResult<OwnedFd> {
                    let file = self.store.open_object(&id, inode.size());
                    Ok(file.map_err(FsError::damage)?.into())
                };
                Ok(Contents::File(
                    self.files.get_or_open(ino, open)?,
                    inode.size(),
                ))
            }
            _ => Err(Errno::INVAL.into()),
        }
    }

    pub(super) fn is_in_index(&self, ino: Ino) -> bool {
        let inode = self.index.inode(ino);
        inode.is_some_and(|inode| matches!(inode.data(), Data::Inline(_)))
    }

    pub(super) fn names_of(&self, ino: Ino) -> FsResult<Vec<Vec<u8>>> {
        let path = |(parent, entry): (Ino, lamina_layers::index::Entry<'_>)| {
            let mut path = self.index.path_of(parent);
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(entry.name);
            path
        };
        Ok(self.index.names_of(ino).map(path).collect())
    }

    pub(super) fn path_of(&self, ino: Ino) -> Vec<u8> {
        self.index.path_of(ino)
    }
}

/// Attributes of an index inode.
pub fn attr_of(ino: Ino, inode: Inode<'_>) -> Attr {
    let (sec, nsec) = inode.mtime();
    let time = Time { sec, nsec };
    let rdev = match inode.data() {
        Data::Device { major, minor } => rustix::fs::makedev(major, minor),
        _ => 0,
    };
    let (size, blocks) = match inode.mode() & libc::S_IFMT {
        libc::S_IFREG => (inode.size(), inode.size().div_ceil(512)),
        // A directory takes no space here; this is what one takes elsewhere.
        libc::S_IFDIR => (4096, 8),
        _ => (inode.size(), 0),
    };
    Attr {
        ino: Number::of_image(ino).0,
        dev: 0,
        mode: inode.mode(),
        nlink: inode.nlink(),
        uid: inode.uid(),
        gid: inode.gid(),
        rdev,
        size,
        blocks,
        blksize: 4096,
        atime: time,
        mtime: time,
        ctime: time,
        birth: None,
    }
}
