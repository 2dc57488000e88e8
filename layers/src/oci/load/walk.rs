//! Walking through an archive that carries images: which files are in it, and where.
//!
//! Nothing is ever unpacked from it by name. Memory is bounded: an entry's names and extended
//! headers have a limit, and so has the number of entries.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::tar::header::{BLOCK, FieldError, Header};
use crate::tar::pax::{Pax, PaxError};

/// Most entries of an archive.
const ENTRIES_MAX: usize = 100_000;
/// Most bytes of an extended header or a long name.
const EXTENSION_MAX: u64 = 1 << 20;
/// Those of one entry may not take more memory, in bytes.
const LOCAL_MAX: u64 = 4 << 20;
/// The longest path, in bytes.
const PATH_MAX: usize = 4096;

/// What is wrong with an archive.
#[derive(Debug, thiserror::Error)]
pub enum WalkProblem {
    /// It cannot be read.
    #[error("cannot read it: {0}")]
    Read(#[from] io::Error),
    /// It has no end.
    #[error("it is truncated")]
    Truncated,
    /// A header is not one.
    #[error("it is damaged, or not a tar archive: a header has a wrong checksum")]
    Checksum,
    /// A field of a header.
    #[error("{0}")]
    Field(#[from] FieldError),
    /// An extended header.
    #[error("{0}")]
    Pax(#[from] PaxError),
    /// Too long a name or extended header.
    #[error("a name or an extended header has {0} bytes")]
    Long(u64),
    /// Too many entries.
    #[error("it has more than {ENTRIES_MAX} entries")]
    Many,
    /// A path that leads out of it.
    #[error("the path '{}' leads out of it", .0.escape_debug())]
    Outside(String),
    /// A file in several pieces, or with holes.
    #[error("'{}' is a sparse file or part of one, which no program writes for images", .0.escape_debug())]
    Sparse(String),
}

/// An entry that means something for an archive of images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its path, in the form of [`normal`].
    pub path: String,
    /// What it is.
    pub kind: Kind,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file of so many bytes.
    File(u64),
    /// Another name for the file at this path, hard or symbolic link.
    Link(String),
}

/// Where an archive comes from.
pub trait Input: Read {
    /// Passes over bytes. Fails with `UnexpectedEof` if there are not so many.
    fn skip(&mut self, count: u64) -> io::Result<()>;
}

/// An archive that comes by a pipe, or is unpacked as it is read.
pub struct Piped<R>(pub R);

impl<R: Read> Read for Piped<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl<R: Read> Input for Piped<R> {
    fn skip(&mut self, count: u64) -> io::Result<()> {
        match io::copy(&mut (&mut self.0).take(count), &mut io::sink())? {
            skipped if skipped == count => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// A part of a file, read without moving the file's own position.
pub struct Part {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Part {
    /// `length` bytes from `start`.
    pub fn new(file: &Arc<File>, start: u64, length: u64) -> Self {
        Self {
            file: Arc::clone(file),
            at: start,
            end: start.saturating_add(length),
        }
    }
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let max = left.min(buffer.len());
        let count = self
            .file
            .read_at(buffer.get_mut(..max).unwrap_or_default(), self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Input for Part {
    fn skip(&mut self, count: u64) -> io::Result<()> {
        if count > self.end - self.at {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += count;
        Ok(())
    }
}

/// Goes through an archive.
pub struct Walk<R> {
    input: R,
    /// Number of bytes read or passed over.
    position: u64,
    /// Data of the current entry that was not read, and padding after it.
    left: u64,
    padding: u64,
    entries: usize,
}

/// What comes before an entry and describes it.
#[derive(Default)]
struct Extensions {
    pax: Pax,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl<R: Input> Walk<R> {
    /// Begins.
    pub fn new(input: R) -> Self {
        Self {
            input,
            position: 0,
            left: 0,
            padding: 0,
            entries: 0,
        }
    }

    /// Number of bytes before the data of the current entry.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next entry that is a file or a link; `None` at the end.
    pub fn next(&mut self) -> Result<Option<Entry>, WalkProblem> {
        let mut extensions = Extensions::default();
        loop {
            self.pass()?;
            let mut block = [0; BLOCK];
            self.read_exact(&mut block)?;
            if block == [0; BLOCK] {
                return Ok(None);
            }
            let header = Header::parse(&block).ok_or(WalkProblem::Checksum)?;
            self.entries += 1;
            if self.entries > ENTRIES_MAX {
                return Err(WalkProblem::Many);
            }
            match header.typeflag() {
                b'x' | b'X' => {
                    extensions.pax.apply(&self.extension(&header)?)?;
                    let weight = extensions.pax.weight() as u64;
                    if weight > LOCAL_MAX {
                        return Err(WalkProblem::Long(weight));
                    }
                }
                b'L' => extensions.name = Some(self.text(&header)?),
                b'K' => extensions.link = Some(self.text(&header)?),
                _ => {
                    let size = match extensions.pax.size {
                        Some(size) => size,
                        None => header.size()?,
                    };
                    if let Some(entry) =
                        self.entry(&header, std::mem::take(&mut extensions), size)?
                    {
                        return Ok(Some(entry));
                    }
                }
            }
        }
    }

    /// The data of the current entry.
    pub fn data(&mut self) -> Data<'_, R> {
        Data(self)
    }

    /// What is left of the input.
    pub fn into_inner(self) -> R {
        self.input
    }

    /// An entry, if it is one that means something here.
    fn entry(
        &mut self,
        header: &Header,
        extensions: Extensions,
        size: u64,
    ) -> Result<Option<Entry>, WalkProblem> {
        let pax = extensions.pax;
        let sparse = pax.sparse.has_map || pax.sparse.major.is_some();
        let path = pax.path.or(extensions.name);
        let path = path.unwrap_or_else(|| header.path());
        // Nothing that has another kind of name is ever referred to.
        let path = String::from_utf8(path).ok();
        let kind = match header.typeflag() {
            b'0' | 0 | b'7' => {
                self.begin(size)?;
                Kind::File(size)
            }
            flag @ (b'1' | b'2') => {
                let link = pax.link_path.or(extensions.link);
                let link = link.unwrap_or_else(|| header.link_name());
                match (String::from_utf8(link), &path) {
                    (Ok(link), Some(path)) if flag == b'2' => Kind::Link(beside(path, &link)),
                    (Ok(link), _) => Kind::Link(link),
                    _ => return Ok(None),
                }
            }
            b'S' | b'M' => return Err(WalkProblem::Sparse(path.unwrap_or_default())),
            b'3'..=b'6' => return Ok(None),
            // Volume labels, global headers and the like.
            _ => {
                self.begin(size)?;
                return Ok(None);
            }
        };
        let Some(path) = path.filter(|path| !path.ends_with('/')) else {
            return Ok(None);
        };
        if sparse {
            return Err(WalkProblem::Sparse(path));
        }
        let path = normal(&path).ok_or(WalkProblem::Outside(path))?;
        Ok((!path.is_empty()).then_some(Entry { path, kind }))
    }

    fn begin(&mut self, size: u64) -> Result<(), WalkProblem> {
        if size > i64::MAX as u64 {
            return Err(WalkProblem::Truncated);
        }
        self.left = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
        Ok(())
    }

    /// Passes over what is left of the current entry.
    fn pass(&mut self) -> Result<(), WalkProblem> {
        let count = std::mem::take(&mut self.left) + std::mem::take(&mut self.padding);
        self.input.skip(count).map_err(truncated)?;
        self.position += count;
        Ok(())
    }

    fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), WalkProblem> {
        self.input.read_exact(buffer).map_err(truncated)?;
        self.position += buffer.len() as u64;
        Ok(())
    }

    fn extension(&mut self, header: &Header) -> Result<Vec<u8>, WalkProblem> {
        let size = header.size()?;
        if size > EXTENSION_MAX {
            return Err(WalkProblem::Long(size));
        }
        let mut data = vec![0; size as usize];
        self.read_exact(&mut data)?;
        self.padding = size.wrapping_neg() % BLOCK as u64;
        Ok(data)
    }

    fn text(&mut self, header: &Header) -> Result<Vec<u8>, WalkProblem> {
        let mut text = self.extension(header)?;
        let end = text.iter().position(|byte| *byte == 0);
        text.truncate(end.unwrap_or(text.len()));
        if text.len() > PATH_MAX {
            return Err(WalkProblem::Long(text.len() as u64));
        }
        Ok(text)
    }
}

/// The data of an entry.
pub struct Data<'a, R>(&'a mut Walk<R>);

impl<R: Input> Read for Data<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.0.left).unwrap_or(usize::MAX);
        let max = left.min(buffer.len());
        if max == 0 {
            return Ok(0);
        }
        let count = self
            .0
            .input
            .read(buffer.get_mut(..max).unwrap_or_default())?;
        if count == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the archive is truncated",
            ));
        }
        self.0.left -= count as u64;
        self.0.position += count as u64;
        Ok(count)
    }
}

/// The problem behind an error of reading.
pub fn truncated(error: io::Error) -> WalkProblem {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => WalkProblem::Truncated,
        _ => error.into(),
    }
}

/// What a symbolic link at `path` leads to.
fn beside(path: &str, link: &str) -> String {
    match path.rsplit_once('/') {
        Some((dir, _)) if !link.starts_with('/') => format!("{dir}/{link}"),
        _ => link.to_owned(),
    }
}

/// A path without `.`, `..` and empty parts; `None` if it is absolute or leads out of where it starts.
pub fn normal(path: &str) -> Option<String> {
    if path.starts_with('/') || path.len() > PATH_MAX {
        return None;
    }
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}
