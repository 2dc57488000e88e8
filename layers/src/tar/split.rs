//! The tarsplit: what an archive has besides the contents of its files, in such a way that the two
//! together give the archive again, byte for byte.
//!
//! ```text
//! header     88 bytes
//! records    one zstd frame
//! objects    32 bytes each: the objects that the records refer to, in order
//! ```
//!
//! `docs/format.md` has the bytes. Contents that are not objects are among the raw bytes.

use std::io::{self, Read, Seek, SeekFrom, Write};

use xxhash_rust::xxh3::{Xxh3, xxh3_64};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::error::SplitError;
use super::sparse::{Map, SEGMENTS_MAX, Segment};
use crate::digest::{DiffId, Digest, ObjectId};

const MAGIC: [u8; 8] = *b"LAMSPLIT";
const VERSION: u32 = 1;
/// Length of the header in bytes.
const HEADER: u64 = size_of::<Header>() as u64;
/// Most bytes in one raw record.
const RAW_MAX: usize = 64 << 10;
/// Level of compression: headers are so regular that higher ones gain little.
const LEVEL: i32 = 1;

const RAW: u8 = 0;
const FILE: u8 = 1;
const SPARSE: u8 = 2;

/// The beginning of the file.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: U32,
    /// Features a reader must know: none yet.
    incompat: U32,
    /// Length of the records in bytes, compressed.
    records: U64,
    /// Number of objects.
    objects: U64,
    /// Length of the archive in bytes.
    tar_size: U64,
    diff_id: [u8; 32],
    /// XXH3-64 of the objects.
    objects_checksum: U64,
    /// XXH3-64 of the header with zero in this field.
    checksum: U64,
}

impl Header {
    fn sum(&self) -> u64 {
        let blank = Self {
            checksum: 0.into(),
            ..*self
        };
        xxh3_64(blank.as_bytes())
    }
}

/// Writes a tarsplit while the archive is read.
pub struct SplitWriter<W: Write> {
    records: zstd::stream::write::Encoder<'static, Counted<W>>,
    raw: Vec<u8>,
    objects: Vec<[u8; 32]>,
}

impl<W: Write + Seek> SplitWriter<W> {
    /// Writes to `out`, which is empty.
    pub fn new(mut out: W) -> io::Result<Self> {
        out.write_all(&[0; HEADER as usize])?;
        let mut records = zstd::stream::write::Encoder::new(Counted { out, count: 0 }, LEVEL)?;
        records.include_checksum(true)?;
        Ok(Self {
            records,
            raw: Vec::with_capacity(RAW_MAX),
            objects: Vec::new(),
        })
    }

    /// The next bytes of the archive, as they are.
    pub fn raw(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = RAW_MAX - self.raw.len();
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.raw.extend_from_slice(now);
            if self.raw.len() == RAW_MAX {
                self.flush_raw()?;
            }
            bytes = later;
        }
        Ok(())
    }

    /// The next bytes of the archive are the data of a file whose contents are an object.
    pub fn file(&mut self, map: &Map, id: &ObjectId) -> io::Result<()> {
        self.flush_raw()?;
        let mut record = Vec::new();
        if map.is_sparse() {
            record.push(SPARSE);
            push_number(&mut record, map.size());
            push_number(&mut record, map.segments().len() as u64);
            let mut end = 0;
            for segment in map.segments() {
                push_number(&mut record, segment.offset - end);
                push_number(&mut record, segment.length);
                end = segment.offset + segment.length;
            }
        } else {
            record.push(FILE);
            push_number(&mut record, map.size());
        }
        self.objects.push(id.0.0);
        self.records.write_all(&record)
    }

    /// The objects that were referred to so far.
    pub fn objects(&self) -> &[[u8; 32]] {
        &self.objects
    }

    /// Writes the rest.
    pub fn finish(mut self, diff_id: &DiffId, tar_size: u64) -> io::Result<()> {
        self.flush_raw()?;
        let Counted { mut out, count } = self.records.finish()?;
        let objects = self.objects.as_bytes();
        out.write_all(objects)?;
        let mut header = Header {
            magic: MAGIC,
            version: VERSION.into(),
            incompat: 0.into(),
            records: count.into(),
            objects: (self.objects.len() as u64).into(),
            tar_size: tar_size.into(),
            diff_id: diff_id.0.0,
            objects_checksum: xxh3_64(objects).into(),
            checksum: 0.into(),
        };
        header.checksum = header.sum().into();
        out.seek(SeekFrom::Start(0))?;
        out.write_all(header.as_bytes())?;
        out.flush()
    }

    fn flush_raw(&mut self) -> io::Result<()> {
        if self.raw.is_empty() {
            return Ok(());
        }
        let mut head = vec![RAW];
        push_number(&mut head, self.raw.len() as u64);
        self.records.write_all(&head)?;
        self.records.write_all(&self.raw)?;
        self.raw.clear();
        Ok(())
    }
}

/// Counts what is written.
struct Counted<W> {
    out: W,
    count: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.count += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Seven bits in a byte, the lowest first; the highest bit says that there are more.
fn push_number(to: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

/// A part of an archive.
#[derive(Debug, PartialEq, Eq)]
pub enum Part {
    /// These bytes.
    Raw(Vec<u8>),
    /// The data of the next object.
    File(Map),
}

/// Reads a tarsplit.
pub struct SplitReader<R> {
    from: R,
    header: Header,
}

impl<R: Read + Seek> SplitReader<R> {
    /// Reads and checks the header.
    pub fn open(mut from: R) -> Result<Self, SplitError> {
        let mut bytes = [0; HEADER as usize];
        from.read_exact(&mut bytes)
            .map_err(|_| SplitError::Length)?;
        let header = Header::read_from_bytes(&bytes).map_err(|_| SplitError::Length)?;
        if header.magic != MAGIC {
            return Err(SplitError::Magic);
        }
        if header.version.get() != VERSION || header.incompat.get() != 0 {
            return Err(SplitError::Version(header.version.get()));
        }
        if header.checksum.get() != header.sum() {
            return Err(SplitError::Checksum);
        }
        let length = from.seek(SeekFrom::End(0)).map_err(SplitError::Unpack)?;
        let expected = header
            .objects
            .get()
            .checked_mul(32)
            .and_then(|objects| objects.checked_add(header.records.get()))
            .and_then(|rest| rest.checked_add(HEADER));
        if expected != Some(length) {
            return Err(SplitError::Length);
        }
        Ok(Self { from, header })
    }

    /// The layer it belongs to.
    pub fn diff_id(&self) -> DiffId {
        DiffId(Digest(self.header.diff_id))
    }

    /// Length of the archive in bytes.
    pub fn tar_size(&self) -> u64 {
        self.header.tar_size.get()
    }

    /// Calls `each` for every object that the archive needs, in order; one may come several times.
    pub fn for_each_object(&mut self, mut each: impl FnMut(ObjectId)) -> Result<(), SplitError> {
        let start = HEADER + self.header.records.get();
        self.from
            .seek(SeekFrom::Start(start))
            .map_err(SplitError::Unpack)?;
        let mut table = io::BufReader::new(&mut self.from);
        let mut checksum = Xxh3::new();
        for _ in 0..self.header.objects.get() {
            let mut digest = [0; 32];
            table.read_exact(&mut digest).map_err(SplitError::Unpack)?;
            checksum.update(&digest);
            each(ObjectId(Digest(digest)));
        }
        if checksum.digest() != self.header.objects_checksum.get() {
            return Err(SplitError::Checksum);
        }
        Ok(())
    }

    /// Calls `each` for every part of the archive, in order; for data of a file with the object
    /// that has it.
    pub fn for_each_part<E: From<SplitError>>(
        mut self,
        mut each: impl FnMut(Part, Option<ObjectId>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut objects = Vec::new();
        self.for_each_object(|id| objects.push(id))?;
        let mut objects = objects.into_iter();
        self.from
            .seek(SeekFrom::Start(HEADER))
            .map_err(SplitError::Unpack)?;
        let packed = (&mut self.from).take(self.header.records.get());
        let records = zstd::stream::read::Decoder::new(packed).map_err(SplitError::Unpack)?;
        let mut records = io::BufReader::with_capacity(RAW_MAX, records);
        while let Some(part) = read_part(&mut records)? {
            let object = match part {
                Part::Raw(_) => None,
                Part::File(_) => Some(objects.next().ok_or(SplitError::Record)?),
            };
            each(part, object)?;
        }
        if objects.next().is_some() {
            return Err(SplitError::Record.into());
        }
        Ok(())
    }
}

fn read_part(records: &mut impl Read) -> Result<Option<Part>, SplitError> {
    let mut tag = [0];
    if records.read(&mut tag).map_err(SplitError::Unpack)? == 0 {
        return Ok(None);
    }
    match tag {
        [RAW] => {
            let length = read_number(records)?;
            if length > RAW_MAX as u64 {
                return Err(SplitError::Record);
            }
            let mut bytes = vec![0; length as usize];
            records.read_exact(&mut bytes).map_err(SplitError::Unpack)?;
            Ok(Some(Part::Raw(bytes)))
        }
        [FILE] => Ok(Some(Part::File(Map::whole(read_number(records)?)))),
        [SPARSE] => Ok(Some(Part::File(read_map(records)?))),
        _ => Err(SplitError::Record),
    }
}

fn read_map(records: &mut impl Read) -> Result<Map, SplitError> {
    let size = read_number(records)?;
    let count = read_number(records)?;
    if count > SEGMENTS_MAX as u64 {
        return Err(SplitError::Record);
    }
    let (mut end, mut stored) = (0_u64, 0_u64);
    let mut segments = Vec::new();
    for _ in 0..count {
        let gap = read_number(records)?;
        let length = read_number(records)?;
        let offset = end.checked_add(gap).ok_or(SplitError::Record)?;
        end = offset.checked_add(length).ok_or(SplitError::Record)?;
        stored = stored.saturating_add(length);
        segments.push(Segment { offset, length });
    }
    Map::new(size, segments, stored).map_err(|_| SplitError::Record)
}

fn read_number(records: &mut impl Read) -> Result<u64, SplitError> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let mut byte = [0];
        records.read_exact(&mut byte).map_err(SplitError::Unpack)?;
        let bits = u64::from(byte[0] & 0x7F);
        if bits << shift >> shift != bits {
            return Err(SplitError::Record);
        }
        value |= bits << shift;
        if byte[0] & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(SplitError::Record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn collect(bytes: Vec<u8>) -> Result<Vec<(Part, Option<ObjectId>)>, SplitError> {
        let mut parts = Vec::new();
        let reader = SplitReader::open(Cursor::new(bytes))?;
        reader.for_each_part(|part, id| {
            parts.push((part, id));
            Ok::<_, SplitError>(())
        })?;
        Ok(parts)
    }

    fn sample() -> (Vec<u8>, Map, Map) {
        let segments = [(0, 5), (1 << 40, 7)].map(|(offset, length)| Segment { offset, length });
        let (whole, sparse) = (Map::whole(1000), Map::new(1 << 50, segments, 12).unwrap());
        let mut bytes = Cursor::new(Vec::new());
        let mut writer = SplitWriter::new(&mut bytes).unwrap();
        writer.raw(&vec![7; RAW_MAX + 10]).unwrap();
        writer.raw(b"more").unwrap();
        writer.file(&whole, &ObjectId(Digest::of(b"a"))).unwrap();
        writer.file(&sparse, &ObjectId(Digest::of(b"b"))).unwrap();
        writer.raw(b"end").unwrap();
        writer.finish(&DiffId(Digest::of(b"tar")), 123).unwrap();
        (bytes.into_inner(), whole, sparse)
    }

    #[test]
    fn what_is_written_is_read() {
        let (bytes, whole, sparse) = sample();
        let reader = SplitReader::open(Cursor::new(&bytes)).unwrap();
        assert_eq!(reader.diff_id(), DiffId(Digest::of(b"tar")));
        let parts = collect(bytes).unwrap();
        let mut tail = vec![7; 10];
        tail.extend_from_slice(b"more");
        let expected = [
            (Part::Raw(vec![7; RAW_MAX]), None),
            (Part::Raw(tail), None),
            (Part::File(whole), Some(ObjectId(Digest::of(b"a")))),
            (Part::File(sparse), Some(ObjectId(Digest::of(b"b")))),
            (Part::Raw(b"end".to_vec()), None),
        ];
        assert_eq!(parts, expected);
    }

    #[test]
    fn damage_is_noticed() {
        let (bytes, ..) = sample();
        let parts = collect(bytes.clone()).unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            // A zstd frame has a bit that means nothing.
            let result = collect(damaged);
            assert!(result.is_err() || result.unwrap() == parts, "byte {at}");
            assert!(collect(bytes[..at].to_vec()).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn numbers_of_all_sizes() {
        for value in [0, 1, 0x7F, 0x80, 1 << 35, u64::MAX] {
            let mut bytes = Vec::new();
            push_number(&mut bytes, value);
            assert_eq!(read_number(&mut bytes.as_slice()).unwrap(), value);
        }
        let too_large = [0xFF; 9].into_iter().chain([2]).collect::<Vec<_>>();
        assert!(read_number(&mut too_large.as_slice()).is_err());
    }
}
