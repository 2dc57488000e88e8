//! Entries of directories, and names of inodes.

use std::ops::Range;

use super::format::{AliasRecord, EntryKind, EntryRecord, FLAG_LINKS, name_hash};
use super::layout::Tables;
use super::view::Ino;

/// One name in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The name.
    pub name: &'a [u8],
    /// The inode it names.
    pub ino: Ino,
    /// The inode's file type, as in `d_type`.
    pub file_type: u8,
    /// The name's 48-bit hash.
    pub hash: u64,
}

impl<'a> Entry<'a> {
    fn new(tables: &Tables<'a>, number: u32, record: &EntryRecord) -> Self {
        let ino = Tables::target(number, record);
        let inode = if ino == number {
            Some(record)
        } else {
            tables.inode(ino)
        };
        let kind = inode.and_then(EntryRecord::kind);
        Self {
            name: tables.name(record),
            ino: Ino(ino),
            file_type: kind.map_or(libc::DT_UNKNOWN, EntryKind::file_type),
            hash: record.hash(),
        }
    }
}

/// The entries of a directory, sorted by (hash, name).
#[derive(Clone)]
pub struct Entries<'a> {
    tables: Tables<'a>,
    /// Numbers of the entries that are left.
    numbers: Range<u32>,
    records: &'a [EntryRecord],
}

impl<'a> Entries<'a> {
    /// The entries of the directory with this number; none for anything else.
    pub(super) fn new(tables: Tables<'a>, dir: u32) -> Self {
        let numbers = tables.inode(dir).map_or(0..0, Tables::children);
        let records = tables.range(&numbers);
        Self {
            tables,
            numbers,
            records,
        }
    }

    /// The entry at a position, counted from the iterator's.
    pub fn get(&self, at: usize) -> Option<Entry<'a>> {
        let record = self.records.get(at)?;
        Some(Entry::new(
            &self.tables,
            self.numbers.start + at as u32,
            record,
        ))
    }

    /// Position of the first entry whose 48-bit hash is not below `hash`; the number of entries
    /// when there is none.
    pub fn first_at(&self, hash: u64) -> usize {
        let records = self.records;
        let below = |at: usize| records.get(at).is_some_and(|record| record.hash() < hash);
        // Hashes are uniform, so the position is near the same fraction of the directory as the
        // hash is of all hashes. From there the range is doubled until it holds the position.
        let len = records.len();
        let guess = ((hash >> 16).saturating_mul(len as u64) >> 32) as usize;
        let mut step = 4;
        let (low, high) = if below(guess) {
            let mut low = guess + 1;
            while low + step < len && below(low + step) {
                low += step + 1;
                step *= 2;
            }
            (low, len.min(low + step))
        } else {
            let mut high = len.min(guess);
            while high > step && !below(high - step) {
                high -= step;
                step *= 2;
            }
            (high.saturating_sub(step), high)
        };
        let range = records.get(low..high).unwrap_or_default();
        low + range.partition_point(|record| record.hash() < hash)
    }

    /// The entry with this name.
    pub(super) fn find(&self, name: &[u8]) -> Option<Entry<'a>> {
        let hash = name_hash(name);
        let first = self.first_at(hash);
        let candidates = self.records.get(first..)?.iter();
        let same_hash = candidates.take_while(|record| record.hash() == hash);
        (first..)
            .zip(same_hash)
            .find(|(_, record)| self.tables.name(record) == name)
            .and_then(|(at, _)| self.get(at))
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Entry<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        self.nth(0)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.records.len(), Some(self.records.len()))
    }

    fn nth(&mut self, n: usize) -> Option<Self::Item> {
        let entry = self.get(n);
        let gone = self.records.len().min(n.saturating_add(1));
        self.records = self.records.get(gone..).unwrap_or_default();
        self.numbers.start += gone as u32;
        entry
    }
}

impl ExactSizeIterator for Entries<'_> {}

/// All names of an inode: the directory that holds the name, and the entry in it.
#[derive(Clone)]
pub struct Names<'a> {
    tables: Tables<'a>,
    first: Option<u32>,
    aliases: &'a [AliasRecord],
}

impl<'a> Names<'a> {
    pub(super) fn new(tables: Tables<'a>, ino: Ino) -> Self {
        let inode = tables.inode(ino.0).filter(|_| ino != Ino::ROOT);
        let aliases = match inode {
            Some(inode) if inode.has(FLAG_LINKS) => tables.aliases_of(ino.0),
            _ => &[],
        };
        Self {
            tables,
            first: inode.map(|_| ino.0),
            aliases,
        }
    }
}

impl<'a> Iterator for Names<'a> {
    type Item = (Ino, Entry<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let number = match self.first.take() {
            Some(number) => number,
            None => self.aliases.split_off_first()?.alias.get(),
        };
        let record = self.tables.entries.get(number as usize)?;
        Some((
            Ino(record.parent.get()),
            Entry::new(&self.tables, number, record),
        ))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.aliases.len() + usize::from(self.first.is_some());
        (left, Some(left))
    }
}

impl ExactSizeIterator for Names<'_> {}
