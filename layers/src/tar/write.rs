//! Writing layers: the same entries always give the same bytes.
//!
//! Headers are POSIX ustar; what does not fit in one is in an extended header before it. Nothing
//! depends on who writes or when.

use std::io::{self, Read, Write};

use super::header::BLOCK;
use super::number::write_octal;
use super::sparse::{Map, Segment};
use super::tree::{OPAQUE, WHITEOUT};

/// Attributes of an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EntryMeta {
    /// Permissions, set-user-ID, set-group-ID and sticky bit; a file type is ignored.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes, in any order.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What an entry is.
pub enum EntryKind<'a> {
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// Its size in bytes, holes included.
        size: u64,
        /// Where it has data, in order; `None` for everywhere.
        segments: Option<&'a [Segment]>,
        /// Gives the data, without the holes.
        data: &'a mut dyn Read,
    },
    /// Another name for the file at this path, which came before or is in a lower layer.
    HardLink(&'a [u8]),
    /// A symbolic link to this target.
    Symlink(&'a [u8]),
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

impl EntryKind<'_> {
    fn typeflag(&self) -> u8 {
        match self {
            Self::File { .. } => b'0',
            Self::HardLink(_) => b'1',
            Self::Symlink(_) => b'2',
            Self::CharDevice { .. } => b'3',
            Self::BlockDevice { .. } => b'4',
            Self::Directory => b'5',
            Self::Fifo => b'6',
        }
    }
}

/// Writes a layer entry by entry, in the order in which it is to be unpacked.
///
/// Paths are relative to the root, without a leading slash; the root's own is empty.
pub struct LayerWriter<W: Write> {
    out: W,
}

impl<W: Write> LayerWriter<W> {
    /// Writes to `out`, in many small pieces.
    pub fn new(out: W) -> Self {
        Self { out }
    }

    /// Adds an entry.
    ///
    /// # Errors
    /// When writing or reading the data fails, there is less data than its size says
    /// (`UnexpectedEof`), the segments are not in order, or the name begins with `.wh.`, which a
    /// layer cannot hold (`InvalidInput`).
    pub fn add(
        &mut self,
        path: &[u8],
        meta: &EntryMeta,
        mut kind: EntryKind<'_>,
    ) -> io::Result<()> {
        if last_name(path).starts_with(WHITEOUT) {
            return Err(invalid(format!(
                "'{}' cannot be put in a layer: names that begin with .wh. mean deleted files there",
                path.escape_ascii()
            )));
        }
        self.add_any(path, meta, &mut kind)
    }

    /// Says that a path of the layers below is deleted.
    ///
    /// # Errors
    /// When writing fails.
    pub fn whiteout(&mut self, path: &[u8]) -> io::Result<()> {
        let name = last_name(path);
        let dir = path.get(..path.len() - name.len()).unwrap_or_default();
        self.mark(&[dir, WHITEOUT, name].concat())
    }

    /// Says that a directory hides all that the layers below have in it.
    ///
    /// # Errors
    /// When writing fails.
    pub fn opaque(&mut self, dir: &[u8]) -> io::Result<()> {
        let slash: &[u8] = if dir.is_empty() { b"" } else { b"/" };
        self.mark(&[dir, slash, OPAQUE].concat())
    }

    /// Writes the end of the archive.
    ///
    /// # Errors
    /// When writing fails.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()?;
        Ok(self.out)
    }

    /// An empty file whose name says something.
    fn mark(&mut self, path: &[u8]) -> io::Result<()> {
        let mut nothing = EntryKind::File {
            size: 0,
            segments: None,
            data: &mut io::empty(),
        };
        self.add_any(path, &EntryMeta::default(), &mut nothing)
    }

    fn add_any(
        &mut self,
        path: &[u8],
        meta: &EntryMeta,
        kind: &mut EntryKind<'_>,
    ) -> io::Result<()> {
        let mut pax = Vec::new();
        let mut path = match path {
            b"" => b"./".to_vec(),
            path => path.to_vec(),
        };
        if matches!(kind, EntryKind::Directory) && !path.ends_with(b"/") {
            path.push(b'/');
        }
        let sparse = Sparse::of(kind)?;
        let (stored, path) = match &sparse {
            Some(sparse) => (sparse.stored(), sparse.describe(&mut pax, &path)),
            None => (file_size(kind), path),
        };
        if sparse.is_none() && path.len() > NAME.len() {
            pax_record(&mut pax, b"path", &path);
        }
        let header = header(&mut pax, &path, meta, kind, stored)?;
        if !pax.is_empty() {
            self.extended_header(&path, &pax)?;
        }
        self.out.write_all(&header)?;
        if let Some(sparse) = &sparse {
            self.out.write_all(&sparse.map)?;
        }
        if let EntryKind::File { data, .. } = kind {
            let expected = sparse.as_ref().map_or(stored, |sparse| sparse.data);
            let copied = io::copy(&mut data.take(expected), &mut self.out)?;
            if copied < expected {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.pad(stored)?;
        }
        Ok(())
    }

    fn extended_header(&mut self, path: &[u8], pax: &[u8]) -> io::Result<()> {
        let path = path.strip_suffix(b"/").unwrap_or(path);
        let name = [b"PaxHeaders/", last_name(path)].concat();
        let mut header = blank(&name, b'x');
        set(&mut header, SIZE, pax.len() as u64);
        finish(&mut header);
        self.out.write_all(&header)?;
        self.out.write_all(pax)?;
        self.pad(pax.len() as u64)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let padding = (size.wrapping_neg() % BLOCK as u64) as usize;
        self.out
            .write_all([0; BLOCK].get(..padding).unwrap_or_default())
    }
}

/// How a sparse file is put: GNU's format 1.0.
struct Sparse {
    /// Size of the file.
    size: u64,
    /// Length of the data.
    data: u64,
    /// The map, in whole blocks.
    map: Vec<u8>,
}

impl Sparse {
    /// `None` for anything but a file with holes.
    fn of(kind: &EntryKind<'_>) -> io::Result<Option<Self>> {
        let EntryKind::File {
            size,
            segments: Some(segments),
            ..
        } = kind
        else {
            return Ok(None);
        };
        let data = segments.iter().map(|segment| segment.length).sum();
        let checked = Map::new(*size, segments.iter().copied(), data)
            .map_err(|error| invalid(error.to_string()))?;
        if !checked.is_sparse() {
            return Ok(None);
        }
        // GNU tar ends the map with an empty segment at the end of the file.
        let end = Segment {
            offset: *size,
            length: 0,
        };
        let listed = checked.segments().iter().chain([&end]);
        let mut map = format!("{}\n", checked.segments().len() + 1).into_bytes();
        for segment in listed {
            write!(map, "{}\n{}\n", segment.offset, segment.length)?;
        }
        map.resize(map.len().next_multiple_of(BLOCK), 0);
        Ok(Some(Self {
            size: *size,
            data,
            map,
        }))
    }

    fn stored(&self) -> u64 {
        self.map.len() as u64 + self.data
    }

    /// Adds what the extended header must say; returns the path for the header itself, which is for
    /// programs that do not know the format.
    fn describe(&self, pax: &mut Vec<u8>, path: &[u8]) -> Vec<u8> {
        pax_record(pax, b"GNU.sparse.major", b"1");
        pax_record(pax, b"GNU.sparse.minor", b"0");
        pax_record(pax, b"GNU.sparse.name", path);
        pax_record(
            pax,
            b"GNU.sparse.realsize",
            self.size.to_string().as_bytes(),
        );
        let name = last_name(path);
        let dir = path.get(..path.len() - name.len()).unwrap_or_default();
        [dir, b"GNUSparseFile.0/", name].concat()
    }
}

type Field = std::ops::Range<usize>;
const NAME: Field = 0..100;
const MODE: Field = 100..108;
const UID: Field = 108..116;
const GID: Field = 116..124;
const SIZE: Field = 124..136;
const MTIME: Field = 136..148;
const CHECKSUM: Field = 148..156;
const TYPEFLAG: Field = 156..157;
const LINKNAME: Field = 157..257;
const MAGIC: Field = 257..265;
const DEVMAJOR: Field = 329..337;
const DEVMINOR: Field = 337..345;

/// The header of an entry; what it cannot hold is added to the extended header.
fn header(
    pax: &mut Vec<u8>,
    path: &[u8],
    meta: &EntryMeta,
    kind: &EntryKind<'_>,
    stored: u64,
) -> io::Result<[u8; BLOCK]> {
    let mut header = blank(path, kind.typeflag());
    let mut number = |field: Field, keyword: &[u8], value: u64| {
        if !set(&mut header, field, value) {
            pax_record(pax, keyword, value.to_string().as_bytes());
        }
    };
    number(UID, b"uid", meta.uid.into());
    number(GID, b"gid", meta.gid.into());
    number(SIZE, b"size", stored);
    set(&mut header, MODE, u64::from(meta.mode & 0o7777));
    let whole = u64::try_from(meta.mtime.0).ok();
    if meta.mtime.1 != 0 || !set(&mut header, MTIME, whole.unwrap_or(u64::MAX)) {
        set(&mut header, MTIME, whole.unwrap_or(0).min((1 << 33) - 1));
        pax_record(pax, b"mtime", decimal(meta.mtime).as_bytes());
    }
    match kind {
        EntryKind::HardLink(target) | EntryKind::Symlink(target) => {
            put(&mut header, LINKNAME, target);
            if target.len() > LINKNAME.len() {
                pax_record(pax, b"linkpath", target);
            }
        }
        EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor }
            if !set(&mut header, DEVMAJOR, u64::from(*major))
                || !set(&mut header, DEVMINOR, u64::from(*minor)) =>
        {
            return Err(invalid(format!(
                "'{}': a tar archive cannot hold the device {major}:{minor}",
                path.escape_ascii()
            )));
        }
        _ => {}
    }
    let mut xattrs: Vec<_> = meta.xattrs.iter().collect();
    xattrs.sort();
    for (name, value) in xattrs {
        pax_record(pax, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
    }
    finish(&mut header);
    Ok(header)
}

/// A header that has only its path and its kind.
fn blank(path: &[u8], typeflag: u8) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    put(&mut header, NAME, path);
    put(&mut header, TYPEFLAG, &[typeflag]);
    put(&mut header, MAGIC, b"ustar\x0000");
    for field in [MODE, UID, GID, SIZE, MTIME, DEVMAJOR, DEVMINOR] {
        set(&mut header, field, 0);
    }
    header
}

/// Writes the checksum.
fn finish(header: &mut [u8; BLOCK]) {
    put(header, CHECKSUM, b"        ");
    let sum = header.iter().map(|byte| u64::from(*byte)).sum();
    set(header, CHECKSUM.start..CHECKSUM.end - 1, sum);
}

/// Puts text into a field, as much as there is room for.
fn put(header: &mut [u8; BLOCK], field: Field, text: &[u8]) {
    if let Some(field) = header.get_mut(field) {
        for (to, from) in field.iter_mut().zip(text) {
            *to = *from;
        }
    }
}

/// Puts a number into a field; zero, and `false`, if there is no room for it.
fn set(header: &mut [u8; BLOCK], field: Field, value: u64) -> bool {
    let Some(field) = header.get_mut(field) else {
        return false;
    };
    write_octal(field, value) || {
        write_octal(field, 0);
        false
    }
}

/// A time as an extended header has it.
fn decimal((seconds, nanoseconds): (i64, u32)) -> String {
    let (sign, seconds, nanoseconds) = match (seconds, nanoseconds) {
        (_, 0) | (0.., _) => ("", i128::from(seconds), nanoseconds),
        _ => ("-", -i128::from(seconds) - 1, 1_000_000_000 - nanoseconds),
    };
    let text = format!("{sign}{seconds}.{nanoseconds:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn file_size(kind: &EntryKind<'_>) -> u64 {
    match kind {
        EntryKind::File { size, .. } => *size,
        _ => 0,
    }
}

/// The last name of a path, with the slash that may be after it.
fn last_name(path: &[u8]) -> &[u8] {
    let end = path.len() - usize::from(path.ends_with(b"/"));
    let slash = path
        .get(..end)
        .and_then(|path| path.iter().rposition(|byte| *byte == b'/'));
    path.get(slash.map_or(0, |at| at + 1)..).unwrap_or_default()
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

/// Adds a record to the data of an extended header.
pub fn pax_record(data: &mut Vec<u8>, keyword: &[u8], value: &[u8]) {
    // The length counts its own digits.
    let rest = keyword.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length += 1;
    }
    data.extend_from_slice(length.to_string().as_bytes());
    data.push(b' ');
    data.extend_from_slice(keyword);
    data.push(b'=');
    data.extend_from_slice(value);
    data.push(b'\n');
}
