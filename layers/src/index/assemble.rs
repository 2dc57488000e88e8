//! Numbering inodes and writing the sections: what a builder and a merge have in common.

use std::io::{self, Write};

use zerocopy::FromZeros;

use super::IndexKind;
use super::build::BuildError;
use super::format::{
    DirentRecord, FLAG_HARDLINK, FLAG_IMPLICIT, FLAG_INLINE, FLAG_LINKS, FLAG_OPAQUE, InodeRecord,
    LinkRecord,
};
use super::intern::{Heap, Objects, count};
use super::layout::{self, Tables};
use super::xattrs;
use crate::digest::Digest;

/// What the numbers in an inode record refer to.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub heap: &'a [u8],
    pub objects: &'a [[u8; 32]],
}

/// A name of an entry and its 48-bit hash.
#[derive(Clone, Copy)]
pub(super) struct HashedName<'a> {
    pub name: &'a [u8],
    pub hash: u64,
}

/// An index under construction.
///
/// The caller walks the tree breadth first: [`Self::open_dir`] for each directory in the order of
/// inode numbers, and for each of its entries in order [`Self::add_new`] or
/// [`Self::add_existing`].
pub(super) struct Assembler {
    inodes: Vec<InodeRecord>,
    dirents: Vec<DirentRecord>,
    links: Vec<LinkRecord>,
    objects: Objects,
    /// All strings but names. Its first byte is zero, so no string has offset 0.
    strings: Heap,
    /// Names have a heap of their own, so that they stand close together in the file.
    names: Heap,
}

impl Assembler {
    /// `capacity`: about how many entries there will be.
    pub fn new(capacity: usize) -> Self {
        Self {
            inodes: Vec::with_capacity(capacity),
            dirents: Vec::with_capacity(capacity),
            links: Vec::new(),
            objects: Objects::new(capacity / 2),
            strings: Heap::new(&[0], capacity / 8),
            names: Heap::new(&[], capacity / 2),
        }
    }

    /// Adds the root directory.
    pub fn add_root(&mut self, record: &InodeRecord, source: Source<'_>) -> Result<(), BuildError> {
        let root = self.copy(record, source)?;
        self.inodes.push(root);
        Ok(())
    }

    /// Begins the entries of a directory.
    pub fn open_dir(&mut self, dir: u32) {
        let first = self.dirents.len() as u32;
        if let Some(inode) = self.inodes.get_mut(dir as usize) {
            inode.data = first.into();
        }
    }

    /// Adds an entry and the inode it names. Returns the inode's number.
    pub fn add_new(
        &mut self,
        dir: u32,
        name: HashedName<'_>,
        record: &InodeRecord,
        source: Source<'_>,
    ) -> Result<u32, BuildError> {
        let number = count(self.inodes.len(), "inodes")?;
        let mut inode = self.copy(record, source)?;
        inode.parent = dir.into();
        inode.dirent = self.add_dirent(dir, name, number, &inode)?.into();
        self.inodes.push(inode);
        Ok(number)
    }

    /// Adds another name for an inode that is there already and is not a directory.
    pub fn add_existing(
        &mut self,
        dir: u32,
        name: HashedName<'_>,
        number: u32,
    ) -> Result<(), BuildError> {
        let Some(mut inode) = self.inodes.get(number as usize).copied() else {
            return Ok(());
        };
        let dirent = self.add_dirent(dir, name, number, &inode)?;
        if !inode.has(FLAG_LINKS) {
            self.links.push(LinkRecord {
                inode: number.into(),
                dirent: inode.dirent,
                parent: inode.parent,
            });
            inode.flags = (inode.flags.get() | FLAG_LINKS).into();
            if let Some(slot) = self.inodes.get_mut(number as usize) {
                *slot = inode;
            }
        }
        let link = LinkRecord {
            inode: number.into(),
            dirent: dirent.into(),
            parent: dir.into(),
        };
        self.links.push(link);
        Ok(())
    }

    /// Adds a dirent and counts it in its directory. Returns its number.
    fn add_dirent(
        &mut self,
        dir: u32,
        name: HashedName<'_>,
        number: u32,
        inode: &InodeRecord,
    ) -> Result<u32, BuildError> {
        let dirent = count(self.dirents.len(), "names")?;
        self.dirents.push(DirentRecord {
            hash_high: ((name.hash >> 16) as u32).into(),
            hash_low: (name.hash as u16).into(),
            name_len: name.name.len() as u8,
            file_type: (inode.file_type() >> 12) as u8,
            name: self.names.intern(name.name)?.into(),
            inode: number.into(),
        });
        if let Some(dir) = self.inodes.get_mut(dir as usize) {
            dir.size += 1 + (u64::from(inode.is_dir()) << 32);
        }
        Ok(dirent)
    }

    /// A copy of an inode record that refers to this index instead of `source`, for now without
    /// names and entries.
    fn copy(
        &mut self,
        record: &InodeRecord,
        source: Source<'_>,
    ) -> Result<InodeRecord, BuildError> {
        let mut inode = *record;
        inode.flags = (inode.flags.get() & !FLAG_LINKS).into();
        inode.parent = 0.into();
        inode.dirent = 0.into();
        let data = record.data.get();
        let bytes = || {
            let start = data as usize;
            source
                .heap
                .get(start..start + record.size.get() as usize)
                .unwrap_or_default()
        };
        match record.file_type() {
            libc::S_IFDIR => {
                inode.data = 0.into();
                inode.size = 0.into();
            }
            libc::S_IFREG if record.has(FLAG_HARDLINK) => {
                // Never shared, so that a reader can bound the work of checking them.
                inode.data = self.strings.append(bytes())?.into();
            }
            libc::S_IFREG if record.has(FLAG_INLINE) => {
                inode.data = self.strings.intern(bytes())?.into();
            }
            libc::S_IFREG => {
                let digest = source
                    .objects
                    .get(data as usize)
                    .copied()
                    .unwrap_or_default();
                inode.data = self.objects.intern(&digest)?.into();
            }
            libc::S_IFLNK => inode.data = self.strings.intern(bytes())?.into(),
            _ => {}
        }
        if record.xattrs.get() != 0 {
            let set = xattrs::check(source.heap, record.xattrs.get()).unwrap_or_default();
            inode.xattrs = self.strings.intern(set)?.into();
        }
        Ok(inode)
    }

    /// The finished sections. A merged index loses the marks that only layers have.
    pub fn finish(
        mut self,
        kind: IndexKind,
        identity: Option<Digest>,
    ) -> Result<Sections, BuildError> {
        self.links
            .sort_unstable_by_key(|link| (link.inode.get(), link.dirent.get()));
        if kind == IndexKind::Merged {
            for inode in self.inodes.iter_mut().filter(|inode| inode.is_dir()) {
                inode.flags = (inode.flags.get() & !(FLAG_IMPLICIT | FLAG_OPAQUE)).into();
            }
        }
        let first_name = self.strings.append(self.names.bytes())?;
        for dirent in &mut self.dirents {
            dirent.name += first_name;
        }
        Ok(Sections {
            kind,
            identity: identity.map(|digest| digest.0).unwrap_or_default(),
            inodes: self.inodes,
            dirents: self.dirents,
            objects: self.objects.into_digests(),
            links: self.links,
            heap: self.strings.into_bytes(),
        })
    }
}

/// A finished index, to be written.
pub(super) struct Sections {
    kind: IndexKind,
    identity: [u8; 32],
    inodes: Vec<InodeRecord>,
    dirents: Vec<DirentRecord>,
    objects: Vec<[u8; 32]>,
    links: Vec<LinkRecord>,
    heap: Vec<u8>,
}

impl Sections {
    /// Writes the whole file.
    pub fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        let tables = Tables {
            inodes: &self.inodes,
            dirents: &self.dirents,
            objects: &self.objects,
            links: &self.links,
            heap: &self.heap,
        };
        let head = layout::head(self.kind, self.identity, &tables);
        out.write_all(&head)?;
        let mut len = head.len() as u64;
        for bytes in layout::section_bytes(&tables) {
            let padding = layout::padding(len);
            out.write_all(padding)?;
            out.write_all(bytes)?;
            len += (padding.len() + bytes.len()) as u64;
        }
        Ok(())
    }

    /// The whole file in memory.
    pub fn into_bytes(self) -> Result<Vec<u8>, BuildError> {
        let mut bytes = Vec::new();
        self.write_to(&mut bytes)?;
        Ok(bytes)
    }
}

/// An inode record with only its type, permissions and flags set.
pub(super) fn blank(mode: u32, flags: u16) -> InodeRecord {
    InodeRecord {
        mode: (mode as u16).into(),
        flags: flags.into(),
        ..InodeRecord::new_zeroed()
    }
}
