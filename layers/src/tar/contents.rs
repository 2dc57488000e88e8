//! From the data of a file in an archive to an object, or to inline contents.

use std::io::{Seek, Write};

use sha2::{Digest as _, Sha256};

use super::chunk::Slice;
use super::error::Stop;
use super::reader::Reader;
use super::sparse::Map;
use crate::digest::{Digest, ObjectId};
use crate::index::Content;
use crate::index::format::INLINE_MAX;
use crate::store::StoreError;

/// Files with up to this much data, in bytes, are collected before anything is written, so that
/// those that the store has are not written at all.
const COLLECTED_MAX: u64 = 2 << 20;
/// Files with more segments than this are not collected.
const COLLECTED_SEGMENTS: usize = 1000;

/// A part of a file's contents, with its offset.
pub type Piece = (u64, Slice);

/// Takes the contents of files. What it is given has the digest it is given with.
pub trait Sink {
    /// An object that is being given in pieces.
    type Large;

    /// A whole object of `size` bytes; what is not in `pieces` is holes.
    fn put(&self, id: ObjectId, size: u64, pieces: Vec<Piece>) -> Result<(), StoreError>;

    /// Starts an object of `size` bytes whose digest is not known yet.
    fn start(&self, size: u64, sparse: bool) -> Result<Self::Large, StoreError>;

    /// A piece of it.
    fn append(&self, object: &Self::Large, piece: Piece) -> Result<(), StoreError>;

    /// It is complete.
    fn finish(&self, object: Self::Large, id: ObjectId, size: u64) -> Result<(), StoreError>;
}

/// Takes the data of the current entry, which `map` describes.
pub fn take<W: Write + Seek, S: Sink>(
    reader: &mut Reader<W>,
    map: &Map,
    sink: &S,
) -> Result<Content, Stop> {
    if map.size() <= INLINE_MAX {
        return inline(reader, map);
    }
    let mut hasher = Hasher::default();
    let collect = map.data() <= COLLECTED_MAX && map.segments().len() <= COLLECTED_SEGMENTS;
    let id = if collect {
        let mut pieces = Vec::new();
        for_each_piece(reader, map, |piece| {
            hasher.update(&piece);
            pieces.push(piece);
            Ok(())
        })?;
        let id = hasher.finish(map.size());
        sink.put(id, map.size(), pieces)?;
        id
    } else {
        let object = sink.start(map.size(), map.is_sparse())?;
        for_each_piece(reader, map, |piece| {
            hasher.update(&piece);
            sink.append(&object, piece)
        })?;
        let id = hasher.finish(map.size());
        sink.finish(object, id, map.size())?;
        id
    };
    reader.object(map, &id)?;
    Ok(Content::Object {
        id,
        size: map.size(),
    })
}

/// Small contents go into the index, and their data into the tarsplit.
fn inline<W: Write + Seek>(reader: &mut Reader<W>, map: &Map) -> Result<Content, Stop> {
    let mut contents = vec![0; map.size() as usize];
    let mut data = Vec::with_capacity(contents.len());
    for_each_piece(reader, map, |(offset, slice)| {
        let start = offset as usize;
        if let Some(to) = contents.get_mut(start..start + slice.len()) {
            to.copy_from_slice(&slice);
        }
        data.extend_from_slice(&slice);
        Ok(())
    })?;
    reader.raw(&data)?;
    Ok(Content::Inline(contents))
}

/// Takes the data of a file piece by piece, in order.
fn for_each_piece<W: Write + Seek>(
    reader: &mut Reader<W>,
    map: &Map,
    mut each: impl FnMut(Piece) -> Result<(), StoreError>,
) -> Result<(), Stop> {
    let mut slice: Option<Slice> = None;
    for segment in map.segments() {
        let mut offset = segment.offset;
        let end = segment.offset + segment.length;
        while offset < end {
            let Some(rest) = slice.as_mut().filter(|rest| !rest.is_empty()) else {
                slice = reader.data()?;
                if slice.is_none() {
                    // The map says how much data there is.
                    return Ok(());
                }
                continue;
            };
            let piece = rest.split(usize::try_from(end - offset).unwrap_or(usize::MAX));
            let next = offset + piece.len() as u64;
            each((offset, piece))?;
            offset = next;
        }
    }
    Ok(())
}

/// The digest of contents with holes, which are zeros.
#[derive(Default)]
struct Hasher {
    sha: Sha256,
    end: u64,
}

impl Hasher {
    fn update(&mut self, (offset, bytes): &Piece) {
        self.zeros(*offset);
        self.sha.update(&**bytes);
        self.end = offset + bytes.len() as u64;
    }

    /// There is a hole up to this offset.
    fn zeros(&mut self, to: u64) {
        const ZEROS: &[u8] = &[0; 64 << 10];
        while self.end < to {
            let count = (to - self.end).min(ZEROS.len() as u64);
            self.sha
                .update(ZEROS.get(..count as usize).unwrap_or_default());
            self.end += count;
        }
    }

    fn finish(mut self, size: u64) -> ObjectId {
        self.zeros(size);
        ObjectId(Digest(self.sha.finalize().into()))
    }
}
