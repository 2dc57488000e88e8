//! The header and the section table: where in the file the records are.

use std::ops::Range;

use xxhash_rust::xxh3::{Xxh3, xxh3_64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::IndexKind;
use super::error::IndexError;
use super::format::{
    AliasRecord, AttributesRecord, EntryKind, EntryRecord, Header, MAGIC, Section, SectionKind,
    VERSION,
};

/// Number of sections: every kind once.
const SECTIONS: usize = SectionKind::ALL.len();
/// Sections begin at multiples of this many bytes.
const ALIGN: u64 = 8;

/// The record tables of an index, borrowed from its bytes.
#[derive(Clone, Copy)]
pub(super) struct Tables<'a> {
    pub entries: &'a [EntryRecord],
    pub attributes: &'a [AttributesRecord],
    pub objects: &'a [[u8; 32]],
    pub aliases: &'a [AliasRecord],
    pub heap: &'a [u8],
}

impl<'a> Tables<'a> {
    /// `len` bytes of the heap at `offset`; empty when they are not there, which the check at
    /// open has ruled out.
    pub fn heap_at(&self, offset: u32, len: usize) -> &'a [u8] {
        let start = offset as usize;
        self.heap
            .get(start..start.saturating_add(len))
            .unwrap_or_default()
    }

    /// The name of an entry; empty for the root.
    pub fn name(&self, entry: &EntryRecord) -> &'a [u8] {
        self.heap_at(entry.name.get(), usize::from(entry.name_len))
    }

    /// The inode with a number; `None` for an alias.
    pub fn inode(&self, number: u32) -> Option<&'a EntryRecord> {
        self.entries
            .get(number as usize)
            .filter(|entry| !entry.is(EntryKind::Alias))
    }

    /// The number of the inode that an entry names.
    pub fn target(number: u32, entry: &EntryRecord) -> u32 {
        if entry.is(EntryKind::Alias) {
            entry.data.get()
        } else {
            number
        }
    }

    /// The numbers of a directory's entries; empty for anything else.
    pub fn children(entry: &EntryRecord) -> Range<u32> {
        if !entry.is_dir() {
            return 0..0;
        }
        let first = entry.data.get();
        first..first.saturating_add(entry.entry_count())
    }

    /// The entries with these numbers.
    pub fn range(&self, numbers: &Range<u32>) -> &'a [EntryRecord] {
        let range = numbers.start as usize..numbers.end as usize;
        self.entries.get(range).unwrap_or_default()
    }

    /// The attributes of an inode.
    pub fn attributes_of(&self, inode: &EntryRecord) -> Option<&'a AttributesRecord> {
        self.attributes.get(inode.attributes.get() as usize)
    }

    /// The aliases of an inode.
    pub fn aliases_of(&self, inode: u32) -> &'a [AliasRecord] {
        let start = self
            .aliases
            .partition_point(|alias| alias.inode.get() < inode);
        let end = self
            .aliases
            .partition_point(|alias| alias.inode.get() <= inode);
        self.aliases.get(start..end).unwrap_or_default()
    }
}

/// Byte ranges of the sections.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    entries: Range<usize>,
    attributes: Range<usize>,
    objects: Range<usize>,
    aliases: Range<usize>,
    heap: Range<usize>,
}

impl Layout {
    pub fn tables<'a>(&self, file: &'a [u8]) -> Tables<'a> {
        Tables {
            entries: records(file, &self.entries),
            attributes: records(file, &self.attributes),
            objects: records(file, &self.objects),
            aliases: records(file, &self.aliases),
            heap: file.get(self.heap.clone()).unwrap_or_default(),
        }
    }
}

/// The records in a section. [`read`] has checked that their number is whole.
fn records<'a, T>(file: &'a [u8], range: &Range<usize>) -> &'a [T]
where
    T: FromBytes + Immutable + KnownLayout + Unaligned,
{
    file.get(range.clone())
        .and_then(|bytes| <[T]>::ref_from_bytes(bytes).ok())
        .unwrap_or_default()
}

/// What the header says.
pub(super) struct Parsed {
    pub kind: IndexKind,
    pub identity: [u8; 32],
    pub layout: Layout,
}

/// Reads and checks the header and the section table, and every section's checksum. The records
/// in them are not looked at.
pub(super) fn read(file: &[u8]) -> Result<Parsed, IndexError> {
    let (header, rest) = Header::ref_from_prefix(file).map_err(|_| short(file))?;
    if header.magic != MAGIC {
        return Err(IndexError::Magic);
    }
    if header.version.get() != VERSION {
        return Err(IndexError::Version(header.version.get()));
    }
    if header.incompat.get() != 0 {
        return Err(IndexError::Features(header.incompat.get()));
    }
    if header.section_count.get() as usize != SECTIONS {
        return Err(IndexError::Header("wrong number of sections"));
    }
    let (table, _) = <[Section; SECTIONS]>::ref_from_prefix(rest).map_err(|_| short(file))?;
    if header_checksum(header, table) != header.checksum.get() {
        return Err(IndexError::Header("checksum does not match"));
    }
    if header.file_len.get() != file.len() as u64 {
        return Err(IndexError::Length {
            expected: header.file_len.get(),
            actual: file.len() as u64,
        });
    }
    let kind = match header.kind.get() {
        0 => IndexKind::Layer,
        1 => IndexKind::Merged,
        _ => return Err(IndexError::Header("unknown kind of index")),
    };
    Ok(Parsed {
        kind,
        identity: header.identity,
        layout: read_sections(file, table)?,
    })
}

fn short(file: &[u8]) -> IndexError {
    if !file.starts_with(&MAGIC) {
        return IndexError::Magic;
    }
    IndexError::Length {
        expected: sections_start(),
        actual: file.len() as u64,
    }
}

/// Offset of the first section.
fn sections_start() -> u64 {
    (size_of::<Header>() + SECTIONS * size_of::<Section>()) as u64
}

fn header_checksum(header: &Header, table: &[Section]) -> u64 {
    let mut header = *header;
    header.checksum.zero();
    let mut hash = Xxh3::new();
    hash.update(header.as_bytes());
    hash.update(table.as_bytes());
    hash.digest()
}

/// Sections stand in the order of [`SectionKind::ALL`], each at the next multiple of 8 after the
/// one before, with zeros between them.
fn read_sections(file: &[u8], table: &[Section; SECTIONS]) -> Result<Layout, IndexError> {
    let record_sizes = [
        size_of::<EntryRecord>(),
        size_of::<AttributesRecord>(),
        size_of::<[u8; 32]>(),
        size_of::<AliasRecord>(),
        1,
    ];
    let mut ranges: [Range<usize>; SECTIONS] = Default::default();
    let mut end = sections_start();
    let sections = SectionKind::ALL.into_iter().zip(record_sizes);
    for ((record, (section, record_size)), range) in table.iter().zip(sections).zip(&mut ranges) {
        let fail = |problem| IndexError::Section { section, problem };
        if record.kind.get() != section as u32 || record.reserved.get() != 0 {
            return Err(fail("not where it should be in the section table"));
        }
        let start = end.next_multiple_of(ALIGN);
        if record.offset.get() != start {
            return Err(fail("does not follow the section before it"));
        }
        let padding = file.get(end as usize..start as usize);
        end = start
            .checked_add(record.len.get())
            .ok_or_else(|| fail("too long"))?;
        let bytes = file
            .get(start as usize..end as usize)
            .ok_or_else(|| fail("cut off"))?;
        if padding.is_none_or(|zeros| zeros.iter().any(|byte| *byte != 0)) {
            return Err(fail("not zero in the padding before it"));
        }
        if bytes.len() % record_size != 0 {
            return Err(fail("not a whole number of records"));
        }
        if bytes.len() / record_size > u32::MAX as usize {
            return Err(fail("too many records"));
        }
        if xxh3_64(bytes) != record.checksum.get() {
            return Err(fail("checksum does not match"));
        }
        *range = start as usize..end as usize;
    }
    if end != file.len() as u64 {
        return Err(IndexError::Length {
            expected: end,
            actual: file.len() as u64,
        });
    }
    let [entries, attributes, objects, aliases, heap] = ranges;
    Ok(Layout {
        entries,
        attributes,
        objects,
        aliases,
        heap,
    })
}

/// The header and the section table for these tables, ready to be written.
pub(super) fn head(kind: IndexKind, identity: [u8; 32], tables: &Tables<'_>) -> Vec<u8> {
    let mut table = [Section::new_zeroed(); SECTIONS];
    let mut end = sections_start();
    for ((record, kind), bytes) in table
        .iter_mut()
        .zip(SectionKind::ALL)
        .zip(section_bytes(tables))
    {
        let start = end.next_multiple_of(ALIGN);
        end = start + bytes.len() as u64;
        *record = Section {
            kind: (kind as u32).into(),
            reserved: 0.into(),
            offset: start.into(),
            len: (bytes.len() as u64).into(),
            checksum: xxh3_64(bytes).into(),
        };
    }
    let mut header = Header {
        magic: MAGIC,
        version: VERSION.into(),
        kind: u32::from(kind == IndexKind::Merged).into(),
        file_len: end.into(),
        incompat: 0.into(),
        section_count: (SECTIONS as u32).into(),
        identity,
        checksum: 0.into(),
    };
    header.checksum = header_checksum(&header, &table).into();
    [header.as_bytes(), table.as_bytes()].concat()
}

/// The bytes of each section, in file order.
pub(super) fn section_bytes<'a>(tables: &Tables<'a>) -> [&'a [u8]; SECTIONS] {
    [
        tables.entries.as_bytes(),
        tables.attributes.as_bytes(),
        tables.objects.as_bytes(),
        tables.aliases.as_bytes(),
        tables.heap,
    ]
}

/// Zeros that bring `len` bytes to a section boundary.
pub(super) fn padding(len: u64) -> &'static [u8] {
    const ZEROS: [u8; ALIGN as usize] = [0; ALIGN as usize];
    let missing = (len.next_multiple_of(ALIGN) - len) as usize;
    ZEROS.get(..missing).unwrap_or_default()
}
