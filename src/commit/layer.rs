//! The layer: a tar stream that is imported while it is written.
//!
//! The same upper gives the same stream, byte for byte, whoever makes it and whenever.

use std::collections::VecDeque;
use std::io::{self, Read, Write};

use lamina_layers::store::{LayerInfo, Transaction};
use lamina_layers::tar::{
    EntryKind, EntryMeta, ImportOptions, LayerWriter, Progress, Segment, stage_written,
};

use super::CommitError;

use crate::attr::{Attr, Kind};
use crate::error::{FsError, FsResult};
use crate::lower::Number;
use crate::union::{LayerItem, LayerWhat, Seek, Union};

/// How a layer is made.
#[derive(Clone, Copy)]
pub struct LayerOptions<'a> {
    /// Files that were changed later than this (seconds since 1970) get this time instead.
    pub latest: Option<i64>,
    /// Is told how far it is.
    pub progress: &'a dyn Progress,
}

impl Default for LayerOptions<'_> {
    fn default() -> Self {
        Self {
            latest: None,
            progress: &(),
        }
    }
}

/// Makes a layer of what the upper changes, as a part of a transaction; `None` if that is nothing.
///
/// # Errors
/// When the upper cannot be read, has what a layer cannot hold, or the store cannot be written.
pub fn stage_changes(
    txn: &Transaction<'_>,
    union: &Union,
    options: &LayerOptions<'_>,
) -> Result<Option<LayerInfo>, CommitError> {
    if !union.has_changes().map_err(CommitError::Read)? {
        return Ok(None);
    }
    let import = ImportOptions {
        progress: options.progress,
        ..ImportOptions::default()
    };
    let layer = stage_written(txn, "the changes", &import, |out| {
        write_layer(union, out, options.latest)
    })?;
    Ok(Some(layer))
}

/// Writes the layer as a tar stream. Times are no later than `latest`.
///
/// # Errors
/// What reading the upper gives, and whatever `out` gives.
pub fn write_layer(union: &Union, out: impl Write, latest: Option<i64>) -> io::Result<()> {
    let mut writer = LayerWriter::new(out);
    union
        .visit_changes(&mut |item| write_item(union, &mut writer, &item, latest))
        .map_err(into_io)?;
    writer.finish()?;
    Ok(())
}

fn into_io(error: FsError) -> io::Error {
    match error.explanation() {
        Some(_) => io::Error::other(error),
        None => error.errno().into(),
    }
}

fn write_item<W: Write>(
    union: &Union,
    writer: &mut LayerWriter<W>,
    item: &LayerItem,
    latest: Option<i64>,
) -> FsResult<()> {
    let path = item.path.as_slice();
    match &item.what {
        LayerWhat::Whiteout => writer.whiteout(path)?,
        LayerWhat::Opaque => writer.opaque(path)?,
        LayerWhat::Hidden => {}
        LayerWhat::Object {
            number,
            attr,
            link_to,
            ..
        } => {
            if attr.kind() == Kind::Socket {
                tracing::warn!(
                    "{}: sockets are not part of a layer",
                    String::from_utf8_lossy(path)
                );
                return Ok(());
            }
            let mut meta = meta_of(union, *number, attr)?;
            if let Some(latest) = latest.filter(|latest| meta.mtime.0 >= *latest) {
                meta.mtime = (latest, 0);
            }
            if let Some(first) = link_to {
                writer.add(path, &meta, EntryKind::HardLink(first))?;
                return Ok(());
            }
            write_object(union, writer, path, &meta, *number, attr)?;
        }
    }
    Ok(())
}

fn meta_of(union: &Union, number: Number, attr: &Attr) -> FsResult<EntryMeta> {
    let mut xattrs = Vec::new();
    for name in union.xattr_names(number)? {
        let value = union.getxattr(number, &name)?.into_owned();
        xattrs.push((name, value));
    }
    xattrs.sort();
    Ok(EntryMeta {
        mode: attr.mode & crate::attr::PERMISSIONS,
        uid: attr.uid,
        gid: attr.gid,
        mtime: (attr.mtime.sec, attr.mtime.nsec),
        xattrs,
    })
}

fn write_object<W: Write>(
    union: &Union,
    writer: &mut LayerWriter<W>,
    path: &[u8],
    meta: &EntryMeta,
    number: Number,
    attr: &Attr,
) -> FsResult<()> {
    let (major, minor) = (rustix::fs::major(attr.rdev), rustix::fs::minor(attr.rdev));
    match attr.kind() {
        Kind::Dir => writer.add(path, meta, EntryKind::Directory)?,
        Kind::Symlink => {
            let target = union.readlink(number)?;
            writer.add(path, meta, EntryKind::Symlink(&target))?;
        }
        Kind::Char => writer.add(path, meta, EntryKind::CharDevice { major, minor })?,
        Kind::Block => writer.add(path, meta, EntryKind::BlockDevice { major, minor })?,
        Kind::Fifo => writer.add(path, meta, EntryKind::Fifo)?,
        Kind::Socket => {}
        Kind::File => {
            let segments = segments(union, number, attr.size)?;
            let whole = [Segment {
                offset: 0,
                length: attr.size,
            }];
            let sparse = (segments != whole && attr.size > 0).then_some(segments.as_slice());
            let pieces = sparse.unwrap_or(&whole).iter().copied();
            let mut data = Data {
                union,
                number,
                pieces: pieces.collect(),
            };
            let kind = EntryKind::File {
                size: attr.size,
                segments: sparse,
                data: &mut data,
            };
            writer.add(path, meta, kind)?;
        }
    }
    Ok(())
}

/// The data of a file of the union, holes left out.
struct Data<'a> {
    union: &'a Union,
    number: Number,
    /// What is still to be read.
    pieces: VecDeque<Segment>,
}

impl Read for Data<'_> {
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
fn segments(union: &Union, number: Number, size: u64) -> FsResult<Vec<Segment>> {
    let mut segments = Vec::new();
    let mut position = 0;
    while position < size {
        let start = match union.lseek(number, position, Seek::Data) {
            Err(error) if error.errno() == rustix::io::Errno::NXIO => break,
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
