//! An entry of a layer: taken down from the union, then written.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use lamina_layers::tar::{EntryKind, EntryMeta, LayerWriter, Segment};
use rustix::io::Errno;

use super::into_io;
use super::layer::{LayerOptions, LeftOut};
use super::spool::Copied;
use crate::attr::{Attr, Kind, PERMISSIONS};
use crate::error::FsResult;
use crate::lower::Number;
use crate::union::{LayerItem, LayerWhat, Place, Seek, Union};

/// What a layer says of a path, with all that is needed to write it.
pub struct Entry {
    /// Path from the root, without a leading slash.
    path: Vec<u8>,
    meta: EntryMeta,
    pub body: Body,
}

/// What an entry is.
pub enum Body {
    Whiteout,
    Opaque,
    Link(Vec<u8>),
    Symlink(Vec<u8>),
    Dir,
    Device(Kind, u32, u32),
    Fifo,
    File(Contents),
}

/// The contents of a regular file.
pub struct Contents {
    /// Its size in bytes.
    pub size: u64,
    /// Where it has data, in order; looked for when it is written if nobody knows yet.
    pub data: Option<Vec<Segment>>,
    pub at: Where,
}

/// Where contents are read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    /// The node itself.
    Node(Number),
    /// A copy: each segment at a whole multiple of [`super::spool::UNIT`], the first at this offset.
    Spool(u64),
}

impl Entry {
    /// What a layer says of an item; `None` for what is no part of a layer.
    pub fn of(
        union: &Union,
        item: LayerItem,
        options: &LayerOptions<'_>,
    ) -> FsResult<Option<Self>> {
        let LayerItem { path, what } = item;
        let (number, attr, link_to) = match what {
            LayerWhat::Hidden(_) => return Ok(None),
            LayerWhat::Whiteout(_) => return Ok(Some(Self::mark(path, Body::Whiteout))),
            LayerWhat::Opaque => return Ok(Some(Self::mark(path, Body::Opaque))),
            LayerWhat::Object {
                number,
                attr,
                link_to,
                ..
            } => (number, attr, link_to),
        };
        let (major, minor) = (rustix::fs::major(attr.rdev), rustix::fs::minor(attr.rdev));
        let body = match (link_to, attr.kind()) {
            (_, Kind::Socket) => {
                options.left_out.unwrap_or(&LeftOut::default()).note(path);
                return Ok(None);
            }
            (Some(first), _) => Body::Link(first),
            (None, Kind::Dir) => Body::Dir,
            (None, Kind::Symlink) => Body::Symlink(union.readlink(number)?.into_owned()),
            (None, kind @ (Kind::Char | Kind::Block)) => Body::Device(kind, major, minor),
            (None, Kind::Fifo) => Body::Fifo,
            (None, Kind::File) => Body::File(Contents {
                size: attr.size,
                data: None,
                at: Where::Node(number),
            }),
        };
        let meta = meta_of(union, number, &attr, options.latest)?;
        Ok(Some(Self { path, meta, body }))
    }

    fn mark(path: Vec<u8>, body: Body) -> Self {
        let meta = EntryMeta::default();
        Self { path, meta, body }
    }

    /// Writes the entry. `spool` has the copies.
    pub fn write<W: Write>(
        &self,
        union: &Union,
        spool: Option<BorrowedFd<'_>>,
        writer: &mut LayerWriter<W>,
    ) -> io::Result<()> {
        let (path, meta) = (self.path.as_slice(), &self.meta);
        let kind = match &self.body {
            Body::Whiteout => return writer.whiteout(path),
            Body::Opaque => return writer.opaque(path),
            Body::Link(first) => EntryKind::HardLink(first),
            Body::Symlink(target) => EntryKind::Symlink(target),
            Body::Dir => EntryKind::Directory,
            &Body::Device(Kind::Block, major, minor) => EntryKind::BlockDevice { major, minor },
            &Body::Device(_, major, minor) => EntryKind::CharDevice { major, minor },
            Body::Fifo => EntryKind::Fifo,
            Body::File(contents) => return contents.write(union, spool, writer, path, meta),
        };
        writer.add(path, meta, kind)
    }
}

impl Contents {
    fn write<W: Write>(
        &self,
        union: &Union,
        spool: Option<BorrowedFd<'_>>,
        writer: &mut LayerWriter<W>,
        path: &[u8],
        meta: &EntryMeta,
    ) -> io::Result<()> {
        let whole = [Segment {
            offset: 0,
            length: self.size,
        }];
        let data = match (&self.data, self.at) {
            (None, Where::Node(number)) => segments(union, number, self.size).map_err(into_io)?,
            (data, _) => data.clone().unwrap_or_default(),
        };
        let sparse = (data != whole && self.size > 0).then_some(data.as_slice());
        let pieces = sparse.unwrap_or(&whole).iter().copied().collect();
        let mut data: Box<dyn Read> = match (self.at, spool) {
            (Where::Spool(start), Some(file)) => Box::new(Copied::new(file, start, pieces)),
            (Where::Spool(_), None) => return Err(io::ErrorKind::NotFound.into()),
            (Where::Node(number), _) => Box::new(Live {
                union,
                number,
                pieces,
            }),
        };
        let kind = EntryKind::File {
            size: self.size,
            segments: sparse,
            data: &mut *data,
        };
        writer
            .add(path, meta, kind)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => io::Error::other(format!(
                    "'{}' became shorter while it was read",
                    path.escape_ascii()
                )),
                _ => error,
            })
    }
}

fn meta_of(union: &Union, number: Number, attr: &Attr, latest: Option<i64>) -> FsResult<EntryMeta> {
    let mut xattrs = Vec::new();
    for name in union.xattr_names(number)? {
        let value = union.getxattr(number, &name)?.into_owned();
        xattrs.push((name, value));
    }
    xattrs.sort();
    let (uid, gid) = union.owner_in_image(attr);
    let mtime = match latest {
        Some(latest) if attr.mtime.sec >= latest => (latest, 0),
        _ => (attr.mtime.sec, attr.mtime.nsec),
    };
    Ok(EntryMeta {
        mode: attr.mode & PERMISSIONS,
        uid,
        gid,
        mtime,
        xattrs,
    })
}

/// The data of a file of the union, holes left out.
struct Live<'a> {
    union: &'a Union,
    number: Number,
    /// What is still to be read.
    pieces: VecDeque<Segment>,
}

impl Read for Live<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while let Some(piece) = self.pieces.front_mut() {
            if piece.length == 0 {
                self.pieces.pop_front();
                continue;
            }
            let size = usize::try_from(piece.length)
                .unwrap_or(usize::MAX)
                .min(into.len());
            let room = into.get_mut(..size).unwrap_or_default();
            let read = self.union.read(self.number, piece.offset, room);
            let got = read.map_err(into_io)?;
            piece.offset += got as u64;
            piece.length -= got as u64;
            return Ok(got);
        }
        Ok(0)
    }
}

/// Where a file has data, in order.
pub fn segments(union: &Union, number: Number, size: u64) -> FsResult<Vec<Segment>> {
    let mut segments = Vec::new();
    let mut position = 0;
    while position < size {
        let start = match union.lseek(number, position, Seek::Data) {
            Err(error) if error.errno() == Errno::NXIO => break,
            result => result?.min(size),
        };
        let end = union.lseek(number, start, Seek::Hole)?.min(size);
        if end <= start {
            break;
        }
        segments.push(Segment {
            offset: start,
            length: end - start,
        });
        position = end;
    }
    Ok(segments)
}

/// The file in the upper that has a file's contents, if that is where they are.
pub fn open_upper(union: &Union, number: Number) -> FsResult<Option<Arc<OwnedFd>>> {
    if union.place_of(number)? != Place::Upper {
        return Ok(None);
    }
    Ok(union.open_contents(number)?.map(|(_, file)| file))
}
