//! Reading an archive entry by entry.
//!
//! Every byte that is read goes either into the tarsplit or, as data of a file, to the caller, who
//! says afterwards which object it became.

use std::io::{Seek, Write};

use super::chunk::{Slice, Stream};
use super::error::{ArchiveError, Problem, Stop};
use super::header::{BLOCK, Header, sparse_extension};
use super::pax::Pax;
use super::sparse::{self, Map, SEGMENTS_MAX, Segment, SparseError};
use super::split::SplitWriter;
use crate::digest::ObjectId;
use crate::index::Meta;

/// Most bytes of an extended header or a long name: room for many attributes, or a large map.
const EXTENSION_MAX: u64 = 16 << 20;
/// All that describe one entry may not take more memory, in bytes.
const LOCAL_MAX: usize = 64 << 20;
/// Most bytes that global extended headers may say: they are looked at for every entry.
const GLOBAL_MAX: usize = 64 << 10;

/// An entry of an archive.
#[derive(Debug)]
pub struct Entry {
    /// Its path, as it is in the archive.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Its attributes. The mode has no file type.
    pub meta: Meta,
    /// Its extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What an entry is.
#[derive(Debug)]
pub enum Kind {
    /// A regular file; its data follows.
    File(Map),
    /// A directory.
    Directory,
    /// Another name for the file at this path. If it is followed by data, that is the contents.
    HardLink(Vec<u8>, Option<Map>),
    /// A symbolic link to this target.
    Symlink(Vec<u8>),
    /// A character device.
    CharDevice(u32, u32),
    /// A block device.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
}

/// Reads an archive.
pub struct Reader<W: Write> {
    stream: Stream,
    split: SplitWriter<W>,
    global: Pax,
    /// Data of the current entry that was not taken yet.
    data_left: u64,
    /// Padding after it.
    padding: u64,
    /// How much the archive may expand to, in bytes.
    limit: u64,
    /// How much the holes of sparse files add to the length of the archive.
    holes: u64,
}

/// What comes before an entry and describes it.
#[derive(Default)]
struct Extensions {
    pax: Option<Pax>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<W: Write + Seek> Reader<W> {
    /// Reads from `stream` and writes the tarsplit. The archive, and the files with their holes,
    /// may be at most `limit` bytes.
    pub fn new(stream: Stream, split: SplitWriter<W>, limit: u64) -> Self {
        Self {
            stream,
            split,
            global: Pax::default(),
            data_left: 0,
            padding: 0,
            limit,
            holes: 0,
        }
    }

    /// The next entry; `None` after the last, when the whole stream has been read.
    pub fn next(&mut self) -> Result<Option<Entry>, Stop> {
        self.finish_entry()?;
        let mut extensions = Extensions::default();
        loop {
            let start = self.stream.position();
            let Some(block) = self.block("a header")? else {
                return Ok(None);
            };
            if block == [0; BLOCK] {
                self.end()?;
                return Ok(None);
            }
            let header = Header::parse(&block).ok_or_else(|| {
                self.wrong(if start == 0 {
                    Problem::NotTar
                } else {
                    Problem::Checksum
                })
            })?;
            match header.typeflag() {
                b'x' | b'X' => {
                    let data = self.extension(&header, "an extended header")?;
                    let global = &self.global;
                    let pax = extensions.pax.get_or_insert_with(|| global.clone());
                    pax.apply(&data).map_err(|error| self.wrong(error))?;
                    // There may be several before one entry.
                    let weight = pax.weight();
                    if weight > LOCAL_MAX {
                        return Err(self.too_heavy(
                            "the extended headers of an entry",
                            weight,
                            LOCAL_MAX,
                        ));
                    }
                }
                b'g' => {
                    let data = self.extension(&header, "a global extended header")?;
                    let mut global = std::mem::take(&mut self.global);
                    global.apply(&data).map_err(|error| self.wrong(error))?;
                    if global.weight() > GLOBAL_MAX {
                        let weight = global.weight();
                        return Err(self.too_heavy(
                            "a set of global extended headers",
                            weight,
                            GLOBAL_MAX,
                        ));
                    }
                    self.global = global;
                }
                b'L' => extensions.long_name = Some(self.long_text(&header, "a long name")?),
                b'K' => extensions.long_link = Some(self.long_text(&header, "a long link name")?),
                b'M' => return Err(self.wrong(Problem::MultiVolume)),
                // Volume labels, and what Solaris and old versions of GNU tar say of an entry.
                b'V' | b'A' | b'E' | b'I' | b'N' => {
                    self.begin_data(header.size().map_err(|error| self.wrong(error))?)?;
                    self.finish_entry()?;
                    extensions = Extensions::default();
                }
                _ => return self.entry(&header, extensions).map(Some),
            }
        }
    }

    /// The next bytes of the current entry's data; `None` when all has been taken. The caller has
    /// to say what became of them: [`Self::raw`] or [`Self::object`].
    pub fn data(&mut self) -> Result<Option<Slice>, Stop> {
        if self.data_left == 0 {
            return Ok(None);
        }
        let slice = self
            .stream
            .take(self.data_left)
            .ok_or_else(|| self.wrong(Problem::Truncated("a file")))?;
        self.data_left -= slice.len() as u64;
        Ok(Some(slice))
    }

    /// Puts bytes into the tarsplit.
    pub fn raw(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        self.split.raw(bytes).map_err(Stop::Split)
    }

    /// The data that was taken is this object's.
    pub fn object(&mut self, map: &Map, id: &ObjectId) -> Result<(), Stop> {
        self.split.file(map, id).map_err(Stop::Split)
    }

    /// The tarsplit and the length of the archive, when all has been read.
    pub fn into_split(self) -> (SplitWriter<W>, u64) {
        (self.split, self.stream.position())
    }

    /// An error at the current position.
    fn wrong(&self, problem: impl Into<Problem>) -> Stop {
        Stop::Archive(ArchiveError {
            position: Some(self.stream.position()),
            path: None,
            problem: problem.into(),
        })
    }

    /// Reads a block; `None` at the end of the stream.
    fn block(&mut self, what: &'static str) -> Result<Option<[u8; BLOCK]>, Stop> {
        let mut block = [0; BLOCK];
        match self.stream.read(&mut block) {
            0 => Ok(None),
            BLOCK => {
                self.raw(&block)?;
                Ok(Some(block))
            }
            _ if self.stream.position() < BLOCK as u64 => Err(self.wrong(Problem::NotTar)),
            _ => Err(self.wrong(Problem::Truncated(what))),
        }
    }

    /// Reads a block that must be there.
    fn needed_block(&mut self, what: &'static str) -> Result<[u8; BLOCK], Stop> {
        self.block(what)?
            .ok_or_else(|| self.wrong(Problem::Truncated(what)))
    }

    /// After the first block of zeros: there must be a second one, or nothing. What follows belongs
    /// to the layer's digest, but means nothing.
    fn end(&mut self) -> Result<(), Stop> {
        let mut block = [0; BLOCK];
        let count = self.stream.read(&mut block);
        if count == BLOCK && block != [0; BLOCK] {
            return Err(self.wrong(Problem::LoneZeroBlock));
        }
        self.raw(block.get(..count).unwrap_or_default())?;
        while let Some(slice) = self.stream.take(u64::MAX) {
            self.check_limit(0)?;
            self.raw(&slice)?;
        }
        self.check_limit(0)
    }

    /// Expects `size` bytes of data.
    fn begin_data(&mut self, size: u64) -> Result<(), Stop> {
        if size > i64::MAX as u64 {
            return Err(self.wrong(Problem::Size(size)));
        }
        self.data_left = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
        self.check_limit(size)
    }

    /// Skips what is left of the current entry.
    fn finish_entry(&mut self) -> Result<(), Stop> {
        while let Some(slice) = self.data()? {
            self.raw(&slice)?;
        }
        let mut padding = [0; BLOCK];
        let padding = padding.get_mut(..self.padding as usize).unwrap_or_default();
        let count = self.stream.read(padding);
        // The last entry's padding is missing in archives of some programs.
        self.split
            .raw(padding.get(..count).unwrap_or_default())
            .map_err(Stop::Split)?;
        self.padding = 0;
        Ok(())
    }

    fn check_limit(&self, more: u64) -> Result<(), Stop> {
        let expanded = self
            .stream
            .position()
            .saturating_add(self.holes)
            .saturating_add(more);
        if expanded > self.limit {
            return Err(Stop::TooLarge);
        }
        Ok(())
    }

    /// The data of a header that describes another one.
    fn extension(&mut self, header: &Header, what: &'static str) -> Result<Vec<u8>, Stop> {
        let size = header.size().map_err(|error| self.wrong(error))?;
        if size > EXTENSION_MAX {
            return Err(self.wrong(Problem::ExtensionSize {
                what,
                size,
                max: EXTENSION_MAX,
            }));
        }
        self.begin_data(size)?;
        let mut data = Vec::new();
        while let Some(slice) = self
            .data()
            .map_err(|_| self.wrong(Problem::Truncated(what)))?
        {
            self.raw(&slice)?;
            data.extend_from_slice(&slice);
        }
        self.finish_entry()?;
        Ok(data)
    }

    fn long_text(&mut self, header: &Header, what: &'static str) -> Result<Vec<u8>, Stop> {
        let mut text = self.extension(header, what)?;
        let end = text.iter().position(|byte| *byte == 0);
        text.truncate(end.unwrap_or(text.len()));
        Ok(text)
    }

    fn too_heavy(&self, what: &'static str, size: usize, max: usize) -> Stop {
        self.wrong(Problem::ExtensionSize {
            what,
            size: size as u64,
            max: max as u64,
        })
    }

    /// The entry of a header and what came before it.
    fn entry(&mut self, header: &Header, extensions: Extensions) -> Result<Entry, Stop> {
        let mut pax = extensions.pax.unwrap_or_else(|| self.global.clone());
        let path = pax.sparse.name.take().or_else(|| pax.path.take());
        let path = path
            .or(extensions.long_name)
            .unwrap_or_else(|| header.path());
        let build = || -> Result<(Kind, Meta), Stop> {
            if path.contains(&0) {
                return Err(self.wrong(Problem::Nul));
            }
            let meta = meta(header, &pax).map_err(|problem| self.wrong(problem))?;
            let link = pax.link_path.take().or(extensions.long_link);
            let link = link.unwrap_or_else(|| header.link_name());
            Ok((self.kind(header, &pax, &path, link)?, meta))
        };
        match build() {
            Ok((kind, meta)) => Ok(Entry {
                path,
                kind,
                meta,
                xattrs: pax.xattrs,
            }),
            Err(Stop::Archive(error)) => Err(Stop::Archive(ArchiveError {
                path: Some(path),
                ..error
            })),
            Err(stop) => Err(stop),
        }
    }

    fn kind(
        &mut self,
        header: &Header,
        pax: &Pax,
        path: &[u8],
        link: Vec<u8>,
    ) -> Result<Kind, Stop> {
        let wrong_field = |this: &Self, error| this.wrong(Problem::Field(error));
        Ok(match header.typeflag() {
            b'1' => {
                let map = self.link_data(header, pax)?;
                Kind::HardLink(link, map)
            }
            b'2' => Kind::Symlink(link),
            b'3' | b'4' => {
                let (major, minor) = header.device().map_err(|error| wrong_field(self, error))?;
                if header.typeflag() == b'3' {
                    Kind::CharDevice(major, minor)
                } else {
                    Kind::BlockDevice(major, minor)
                }
            }
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            // A directory of an incremental dump, with a list of its names.
            b'D' => {
                let size = self.stored_size(header, pax)?;
                self.begin_data(size)?;
                Kind::Directory
            }
            b'S' => Kind::File(self.old_sparse(header, pax)?),
            // Regular, contiguous, and what nobody knows (POSIX: like regular files).
            flag => {
                if !matches!(flag, b'0' | 0 | b'7') {
                    tracing::warn!(
                        "'{}' is of the unknown kind '{}'; it is taken for a regular file",
                        path.escape_ascii(),
                        flag.escape_ascii()
                    );
                }
                let map = self.file(header, pax)?;
                if path.ends_with(b"/") {
                    Kind::Directory
                } else {
                    Kind::File(map)
                }
            }
        })
    }

    fn stored_size(&self, header: &Header, pax: &Pax) -> Result<u64, Stop> {
        match pax.size {
            Some(size) => Ok(size),
            None => header.size().map_err(|error| self.wrong(error)),
        }
    }

    /// A regular file, sparse if the extended headers say so.
    fn file(&mut self, header: &Header, pax: &Pax) -> Result<Map, Stop> {
        let stored = self.stored_size(header, pax)?;
        self.begin_data(stored)?;
        let version = (pax.sparse.major, pax.sparse.minor);
        let segments = match version {
            (Some(1), Some(0)) => self.map_before_data()?,
            (None | Some(0), _) if pax.sparse.has_map => pax.sparse.segments.clone(),
            (None | Some(0), _) => return Ok(Map::whole(stored)),
            (major, minor) => {
                let (major, minor) = (major.unwrap_or(0), minor.unwrap_or(0));
                return Err(self.wrong(SparseError::Version(major, minor)));
            }
        };
        let size = pax.sparse.real_size;
        let size = size.ok_or_else(|| self.wrong(SparseError::Number))?;
        self.sparse(size, segments)
    }

    /// The map of format 1.0, in whole blocks before the data.
    fn map_before_data(&mut self) -> Result<Vec<Segment>, Stop> {
        let mut block = [0; BLOCK];
        let mut at = BLOCK;
        let mut stop = None;
        let segments = sparse::parse_1_0(|| {
            if at == BLOCK {
                match self.map_block() {
                    Ok(next) => block = next?,
                    Err(error) => {
                        stop = Some(error);
                        return None;
                    }
                }
                at = 0;
            }
            at += 1;
            block.get(at - 1).copied()
        });
        match stop {
            Some(stop) => Err(stop),
            None => segments.map_err(|error| self.wrong(error)),
        }
    }

    /// A block of the current entry's data that is part of the map; `None` if there is none left.
    fn map_block(&mut self) -> Result<Option<[u8; BLOCK]>, Stop> {
        let Some(left) = self.data_left.checked_sub(BLOCK as u64) else {
            return Ok(None);
        };
        self.data_left = left;
        self.needed_block("the map of a sparse file").map(Some)
    }

    /// A sparse file in GNU's old format.
    fn old_sparse(&mut self, header: &Header, pax: &Pax) -> Result<Map, Stop> {
        let (size, (mut segments, mut more)) =
            header.sparse().map_err(|error| self.wrong(error))?;
        while more {
            let block = self.needed_block("the map of a sparse file")?;
            let (further, extended) =
                sparse_extension(&block).map_err(|error| self.wrong(error))?;
            segments.extend(further);
            more = extended;
            if segments.len() > SEGMENTS_MAX {
                return Err(self.wrong(SparseError::Segments));
            }
        }
        let stored = self.stored_size(header, pax)?;
        self.begin_data(stored)?;
        let segments = segments
            .into_iter()
            .map(|(offset, length)| Segment { offset, length });
        self.sparse(size, segments)
    }

    fn sparse(
        &mut self,
        size: u64,
        segments: impl IntoIterator<Item = Segment>,
    ) -> Result<Map, Stop> {
        if size > i64::MAX as u64 {
            return Err(self.wrong(Problem::Size(size)));
        }
        let map = Map::new(size, segments, self.data_left).map_err(|error| self.wrong(error))?;
        self.holes = self.holes.saturating_add(map.size() - map.data());
        self.check_limit(self.data_left)?;
        Ok(map)
    }

    /// The data of a hard link. POSIX says since 2001 that there may be some; before, it said that
    /// there is none whatever the size field says, and old programs put the file's size there. So
    /// there is none if a header or the end of the archive follows (libarchive does the same).
    fn link_data(&mut self, header: &Header, pax: &Pax) -> Result<Option<Map>, Stop> {
        let size = match pax.size {
            Some(size) => size,
            None => header.size().unwrap_or(0),
        };
        if size == 0 || header.is_gnu() {
            return Ok(None);
        }
        let mut next = [0; BLOCK];
        let count = self.stream.peek(&mut next);
        if count < BLOCK || next == [0; BLOCK] || Header::parse(&next).is_some() {
            return Ok(None);
        }
        self.begin_data(size)?;
        Ok(Some(Map::whole(size)))
    }
}

/// Attributes of an entry, from the extended headers before the header.
fn meta(header: &Header, pax: &Pax) -> Result<Meta, Problem> {
    let owner = |pax: Option<i64>, field, what| {
        let value = match pax {
            Some(value) => value,
            None => field?,
        };
        // Some programs write the owner "nobody" as -2.
        let signed = i32::try_from(value).ok().map(i32::cast_unsigned);
        let id = u32::try_from(value).ok().or(signed);
        id.ok_or(Problem::Owner(what, value))
    };
    Ok(Meta {
        mode: header.permissions()?,
        uid: owner(pax.uid, header.uid(), "owner")?,
        gid: owner(pax.gid, header.gid(), "group")?,
        mtime: match pax.mtime {
            Some(mtime) => mtime,
            None => (header.mtime()?, 0),
        },
    })
}
