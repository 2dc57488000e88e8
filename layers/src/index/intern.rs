//! Byte strings and records stored once each.

use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64;
use zerocopy::{Immutable, IntoBytes};

use super::build::BuildError;

/// A heap of byte strings in which equal strings are stored once.
pub(super) struct Heap {
    bytes: Vec<u8>,
    table: HashTable<(u32, u32)>,
}

impl Heap {
    /// A heap that begins with `start`, with room in its table for `capacity` distinct strings.
    pub fn new(start: &[u8], capacity: usize) -> Self {
        Self {
            bytes: start.to_vec(),
            table: HashTable::with_capacity(capacity),
        }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// `len` bytes at `offset`; empty when they are not there.
    pub fn at(&self, offset: u32, len: u64) -> &[u8] {
        slice(&self.bytes, offset, len as u32)
    }

    /// Adds a string at the end. Returns its offset.
    pub fn append(&mut self, string: &[u8]) -> Result<u32, BuildError> {
        let offset = self.bytes.len();
        if offset + string.len() > u32::MAX as usize {
            return Err(BuildError::Full {
                what: "bytes of names, targets and inline contents",
            });
        }
        self.bytes.extend_from_slice(string);
        Ok(offset as u32)
    }

    /// The offset of a string; adds it when it is not there. The empty string is at 0.
    pub fn intern(&mut self, string: &[u8]) -> Result<u32, BuildError> {
        if string.is_empty() {
            return Ok(0);
        }
        let hash = xxh3_64(string);
        let Self { bytes, table } = self;
        let found = table.find(hash, |&(offset, len)| slice(bytes, offset, len) == string);
        if let Some((offset, _)) = found {
            return Ok(*offset);
        }
        let offset = self.append(string)?;
        let Self { bytes, table } = self;
        let rehash = |&(offset, len): &(u32, u32)| xxh3_64(slice(bytes, offset, len));
        table.insert_unique(hash, (offset, string.len() as u32), rehash);
        Ok(offset)
    }
}

fn slice(bytes: &[u8], offset: u32, len: u32) -> &[u8] {
    let start = offset as usize;
    bytes.get(start..start + len as usize).unwrap_or_default()
}

/// A table of records stored once each.
pub(super) struct Table<T> {
    records: Vec<T>,
    numbers: HashTable<u32>,
    /// What the records are, for the error when there are too many.
    what: &'static str,
}

impl<T: IntoBytes + Immutable + PartialEq + Copy> Table<T> {
    /// A table with room for `capacity` distinct records.
    pub fn new(what: &'static str, capacity: usize) -> Self {
        Self {
            records: Vec::new(),
            numbers: HashTable::with_capacity(capacity),
            what,
        }
    }

    pub fn records(&self) -> &[T] {
        &self.records
    }

    pub fn into_records(self) -> Vec<T> {
        self.records
    }

    /// The number of a record; adds it when it is not there.
    pub fn intern(&mut self, record: &T) -> Result<u32, BuildError> {
        let Self {
            records,
            numbers,
            what,
        } = self;
        let hash = xxh3_64(record.as_bytes());
        if let Some(at) = numbers.find(hash, |&at| records.get(at as usize) == Some(record)) {
            return Ok(*at);
        }
        let number = count(records.len(), what)?;
        records.push(*record);
        numbers.insert_unique(hash, number, |&at| {
            records
                .get(at as usize)
                .map(|record| xxh3_64(record.as_bytes()))
                .unwrap_or_default()
        });
        Ok(number)
    }
}

/// A number of things as the index has it: 32 bits, one value left free.
pub(super) fn count(number: usize, what: &'static str) -> Result<u32, BuildError> {
    u32::try_from(number)
        .ok()
        .filter(|number| *number < u32::MAX)
        .ok_or(BuildError::Full { what })
}
