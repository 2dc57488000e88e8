//! Entries of directories, and names of inodes.

use super::format::{DirentRecord, FLAG_LINKS, LinkRecord, name_hash};
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
    fn new(record: &'a DirentRecord, heap: &'a [u8]) -> Self {
        let start = record.name.get() as usize;
        let end = start + usize::from(record.name_len);
        Self {
            name: heap.get(start..end).unwrap_or_default(),
            ino: Ino(record.inode.get()),
            file_type: record.file_type,
            hash: record.hash(),
        }
    }
}

/// The entries of a directory, sorted by (hash, name).
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    records: &'a [DirentRecord],
    heap: &'a [u8],
}

impl<'a> Entries<'a> {
    pub(super) fn new(records: &'a [DirentRecord], heap: &'a [u8]) -> Self {
        Self { records, heap }
    }

    /// The entry at a position, counted from the iterator's.
    pub fn get(&self, at: usize) -> Option<Entry<'a>> {
        self.records
            .get(at)
            .map(|record| Entry::new(record, self.heap))
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
        let candidates = self.records.get(self.first_at(hash)..)?.iter();
        candidates
            .take_while(|record| record.hash() == hash)
            .map(|record| Entry::new(record, self.heap))
            .find(|entry| entry.name == name)
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Entry<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let (record, rest) = self.records.split_first()?;
        self.records = rest;
        Some(Entry::new(record, self.heap))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.records.len(), Some(self.records.len()))
    }

    fn nth(&mut self, n: usize) -> Option<Self::Item> {
        self.records = self.records.get(n..).unwrap_or_default();
        self.next()
    }
}

impl ExactSizeIterator for Entries<'_> {}

/// All names of an inode: the directory that holds the name, and the entry in it.
#[derive(Clone)]
pub struct Names<'a> {
    tables: Tables<'a>,
    single: Option<LinkRecord>,
    links: &'a [LinkRecord],
}

impl<'a> Names<'a> {
    pub(super) fn new(tables: Tables<'a>, ino: Ino) -> Self {
        let mut names = Self {
            tables,
            single: None,
            links: &[],
        };
        match tables.inodes.get(ino.0 as usize) {
            Some(inode) if inode.has(FLAG_LINKS) => {
                let start = tables
                    .links
                    .partition_point(|link| link.inode.get() < ino.0);
                let end = tables
                    .links
                    .partition_point(|link| link.inode.get() <= ino.0);
                names.links = tables.links.get(start..end).unwrap_or_default();
            }
            Some(inode) if ino != Ino::ROOT => {
                names.single = Some(LinkRecord {
                    inode: ino.0.into(),
                    dirent: inode.dirent,
                    parent: inode.parent,
                });
            }
            _ => {}
        }
        names
    }
}

impl<'a> Iterator for Names<'a> {
    type Item = (Ino, Entry<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let link = match self.single.take() {
            Some(link) => link,
            None => *self.links.split_off_first()?,
        };
        let dirent = self.tables.dirents.get(link.dirent.get() as usize)?;
        Some((Ino(link.parent.get()), Entry::new(dirent, self.tables.heap)))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.links.len() + usize::from(self.single.is_some());
        (left, Some(left))
    }
}

impl ExactSizeIterator for Names<'_> {}
