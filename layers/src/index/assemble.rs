//! Numbering inodes and writing the sections: what a builder and a merge have in common.

use std::io::{self, Write};

use zerocopy::FromZeros;

use super::IndexKind;
use super::build::BuildError;
use super::format::{
    AliasRecord, AttributesRecord, EntryKind, EntryRecord, FLAG_IMPLICIT, FLAG_LINKS, FLAG_OPAQUE,
};
use super::intern::{Heap, Table, count};
use super::layout::{self, Tables};
use super::xattrs;
use crate::digest::Digest;

/// What the numbers in an entry record refer to.
#[derive(Clone, Copy, Default)]
pub(super) struct Source<'a> {
    pub attributes: &'a [AttributesRecord],
    pub objects: &'a [[u8; 32]],
    pub heap: &'a [u8],
}

impl<'a> From<&Tables<'a>> for Source<'a> {
    fn from(tables: &Tables<'a>) -> Self {
        Self {
            attributes: tables.attributes,
            objects: tables.objects,
            heap: tables.heap,
        }
    }
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
/// their numbers, and for each of its entries in order [`Self::add_new`] or [`Self::add_alias`].
pub(super) struct Assembler {
    entries: Vec<EntryRecord>,
    attributes: Table<AttributesRecord>,
    objects: Table<[u8; 32]>,
    aliases: Vec<AliasRecord>,
    /// All strings but names. Its first byte is zero, so no string has offset 0.
    strings: Heap,
    /// Names have a heap of their own, so that they stand close together in the file.
    names: Heap,
}

impl Assembler {
    /// `capacity`: about how many entries there will be.
    pub fn new(capacity: usize) -> Self {
        Self {
            entries: Vec::with_capacity(capacity),
            attributes: Table::new("sets of attributes", 0),
            objects: Table::new("objects", capacity / 2),
            aliases: Vec::new(),
            strings: Heap::new(&[0], capacity / 8),
            names: Heap::new(&[], capacity / 2),
        }
    }

    /// Adds the root directory.
    pub fn add_root(&mut self, record: &EntryRecord, source: Source<'_>) -> Result<(), BuildError> {
        let root = self.copy(record, source)?;
        self.entries.push(root);
        Ok(())
    }

    /// Begins the entries of a directory.
    pub fn open_dir(&mut self, dir: u32) {
        let first = self.entries.len() as u32;
        if let Some(dir) = self.entries.get_mut(dir as usize) {
            dir.data = first.into();
        }
    }

    /// Adds an entry and the inode it names. Returns its number.
    pub fn add_new(
        &mut self,
        dir: u32,
        name: HashedName<'_>,
        record: &EntryRecord,
        source: Source<'_>,
    ) -> Result<u32, BuildError> {
        let inode = self.copy(record, source)?;
        self.push(dir, name, inode)
    }

    /// Adds another name for an inode that is there already and is not a directory.
    pub fn add_alias(
        &mut self,
        dir: u32,
        name: HashedName<'_>,
        inode: u32,
    ) -> Result<(), BuildError> {
        let mut entry = blank(EntryKind::Alias, 0);
        entry.data = inode.into();
        let alias = self.push(dir, name, entry)?;
        self.aliases.push(AliasRecord {
            inode: inode.into(),
            alias: alias.into(),
        });
        if let Some(inode) = self.entries.get_mut(inode as usize) {
            inode.kind |= FLAG_LINKS;
        }
        Ok(())
    }

    /// Gives an entry its name and counts it in its directory. Returns its number.
    fn push(
        &mut self,
        dir: u32,
        name: HashedName<'_>,
        entry: EntryRecord,
    ) -> Result<u32, BuildError> {
        let number = count(self.entries.len(), "entries")?;
        self.entries.push(EntryRecord {
            hash_high: ((name.hash >> 16) as u32).into(),
            hash_low: (name.hash as u16).into(),
            name_len: name.name.len() as u8,
            name: self.names.intern(name.name)?.into(),
            parent: dir.into(),
            ..entry
        });
        if let Some(dir) = self.entries.get_mut(dir as usize) {
            dir.size += 1 + (u64::from(entry.is_dir()) << 32);
        }
        Ok(number)
    }

    /// A copy of an inode that refers to this index instead of `source`, without names and
    /// entries.
    fn copy(
        &mut self,
        record: &EntryRecord,
        source: Source<'_>,
    ) -> Result<EntryRecord, BuildError> {
        let (kind, data) = (
            record.kind().unwrap_or(EntryKind::Socket),
            record.data.get(),
        );
        let mut inode = blank(kind, record.kind & (FLAG_OPAQUE | FLAG_IMPLICIT));
        inode.attributes = self.copy_attributes(record, source)?.into();
        if kind == EntryKind::Directory {
            return Ok(inode);
        }
        inode.size = record.size;
        let bytes = || {
            let start = data as usize;
            source
                .heap
                .get(start..start + record.size.get() as usize)
                .unwrap_or_default()
        };
        let data = match kind {
            // Never shared, so that a reader can bound the work of checking them.
            EntryKind::HardLink => self.strings.append(bytes())?,
            EntryKind::Inline | EntryKind::Symlink => self.strings.intern(bytes())?,
            EntryKind::Object => {
                let digest = source
                    .objects
                    .get(data as usize)
                    .copied()
                    .unwrap_or_default();
                self.objects.intern(&digest)?
            }
            _ => data,
        };
        inode.data = data.into();
        Ok(inode)
    }

    fn copy_attributes(
        &mut self,
        record: &EntryRecord,
        source: Source<'_>,
    ) -> Result<u32, BuildError> {
        let number = record.attributes.get() as usize;
        let mut attributes = source
            .attributes
            .get(number)
            .copied()
            .unwrap_or_else(AttributesRecord::new_zeroed);
        if attributes.xattrs.get() != 0 {
            let set = xattrs::check(source.heap, attributes.xattrs.get()).unwrap_or_default();
            attributes.xattrs = self.strings.intern(set)?.into();
        }
        self.attributes.intern(&attributes)
    }

    /// The finished sections. A merged index loses the marks that only layers have.
    pub fn finish(
        mut self,
        kind: IndexKind,
        identity: Option<Digest>,
    ) -> Result<Sections, BuildError> {
        self.aliases
            .sort_unstable_by_key(|alias| (alias.inode.get(), alias.alias.get()));
        let first_name = self.strings.append(self.names.bytes())?;
        let mut entries = self.entries;
        // The root has no name.
        for entry in entries.iter_mut().skip(1) {
            entry.name += first_name;
        }
        if kind == IndexKind::Merged {
            for entry in &mut entries {
                entry.kind &= !(FLAG_IMPLICIT | FLAG_OPAQUE);
            }
        }
        Ok(Sections {
            kind,
            identity: identity.map(|digest| digest.0).unwrap_or_default(),
            entries,
            attributes: self.attributes.into_records(),
            objects: self.objects.into_records(),
            aliases: self.aliases,
            heap: self.strings.into_bytes(),
        })
    }
}

/// A finished index, to be written.
pub(super) struct Sections {
    kind: IndexKind,
    identity: [u8; 32],
    entries: Vec<EntryRecord>,
    attributes: Vec<AttributesRecord>,
    objects: Vec<[u8; 32]>,
    aliases: Vec<AliasRecord>,
    heap: Vec<u8>,
}

impl Sections {
    /// Writes the whole file.
    pub fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        let tables = Tables {
            entries: &self.entries,
            attributes: &self.attributes,
            objects: &self.objects,
            aliases: &self.aliases,
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

/// An entry record of a kind, all else zero.
pub(super) fn blank(kind: EntryKind, flags: u8) -> EntryRecord {
    EntryRecord {
        kind: kind as u8 | flags,
        ..EntryRecord::new_zeroed()
    }
}
