//! What an archive is packed with, told by its first bytes, and unpacking it.

use std::io::{self, BufRead, BufReader, Read};

use super::chunk::ChunkWriter;
use super::error::Problem;
use super::header::{BLOCK, Header};

/// How an archive is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, of one or several members.
    Gzip,
    /// Zstandard, of one or several frames.
    Zstd,
    /// xz, of one or several streams.
    Xz,
    /// bzip2, of one or several streams.
    Bzip2,
}

/// Memory that xz may take: enough for what `xz -9` makes.
const XZ_MEMORY: u64 = 128 << 20;
/// Length of the buffer for compressed data.
const INPUT_BUFFER: usize = 128 << 10;

impl Compression {
    /// Tells by the beginning of an archive, at least its first block if it has one.
    pub fn of(start: &[u8]) -> Self {
        // A tar archive may begin with any bytes: they are a file's name.
        if start.get(257..262) == Some(b"ustar") {
            return Self::None;
        }
        match start {
            [0x1F, 0x8B, ..] => Self::Gzip,
            [0x28, 0xB5, 0x2F, 0xFD, ..] | [0x50..=0x5F, 0x2A, 0x4D, 0x18, ..] => Self::Zstd,
            [0xFD, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [
                b'B',
                b'Z',
                b'h',
                b'1'..=b'9',
                0x31,
                0x41,
                0x59,
                0x26,
                0x53,
                0x59,
                ..,
            ]
            | [
                b'B',
                b'Z',
                b'h',
                b'1'..=b'9',
                0x17,
                0x72,
                0x45,
                0x38,
                0x50,
                0x90,
                ..,
            ] => Self::Bzip2,
            _ => Self::None,
        }
    }

    /// Unpacks what comes from `packed`.
    pub(crate) fn unpacked<'a>(
        self,
        packed: impl BufRead + Send + 'a,
    ) -> io::Result<Box<dyn Read + Send + 'a>> {
        Ok(match self {
            Self::None => Box::new(packed),
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(packed)),
            Self::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(packed)?),
            Self::Xz => {
                let flags = liblzma::stream::CONCATENATED;
                let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, flags)?;
                Box::new(liblzma::bufread::XzDecoder::new_stream(packed, stream))
            }
            Self::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(packed)),
        })
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "tar",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
            Self::Bzip2 => "bzip2",
        }
    }
}

/// Whether something is a tar archive, packed or not: its first block is the header of an entry.
pub fn is_archive(mut input: impl Read) -> bool {
    let mut start = vec![0; INPUT_BUFFER];
    let mut length = 0;
    while let Some(room) = start.get_mut(length..).filter(|room| !room.is_empty()) {
        match input.read(room) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
    let start = start.get(..length).unwrap_or_default();
    let mut block = [0; BLOCK];
    let unpacked = match Compression::of(start) {
        Compression::None => io::Cursor::new(start).read_exact(&mut block),
        Compression::Gzip => flate2::bufread::GzDecoder::new(start).read_exact(&mut block),
        Compression::Zstd => zstd::stream::read::Decoder::with_buffer(start)
            .and_then(|mut unpacked| unpacked.read_exact(&mut block)),
        Compression::Xz => liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, 0)
            .map_err(io::Error::from)
            .and_then(|stream| {
                liblzma::bufread::XzDecoder::new_stream(start, stream).read_exact(&mut block)
            }),
        Compression::Bzip2 => bzip2::bufread::BzDecoder::new(start).read_exact(&mut block),
    };
    unpacked.is_ok() && block != [0; BLOCK] && Header::parse(&block).is_some()
}

/// Unpacks `input` into `out`. Stops without an error when nobody reads from `out` any more.
pub fn unpack(input: impl Read, out: &mut ChunkWriter) -> Result<(), Problem> {
    match unpack_all(input, out) {
        Err(Problem::Read(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

fn unpack_all(input: impl Read, out: &mut ChunkWriter) -> Result<(), Problem> {
    let mut input = Recorded {
        inner: input,
        failed: None,
    };
    let begun = begin(&mut input);
    let (start, compression) = begun.map_err(|problem| prefer(&mut input, problem))?;
    let mut packed = BufReader::with_capacity(INPUT_BUFFER, start.as_slice().chain(&mut input));
    let result = match compression {
        Compression::None => out.copy_from(&mut packed),
        Compression::Gzip => {
            return gzip(packed, out).map_err(|problem| prefer(&mut input, problem));
        }
        Compression::Zstd => zstd::stream::read::Decoder::with_buffer(packed)
            .and_then(|mut unpacked| out.copy_from(&mut unpacked)),
        Compression::Xz => {
            let flags = liblzma::stream::CONCATENATED;
            liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, flags)
                .map_err(io::Error::from)
                .and_then(|stream| {
                    let mut unpacked = liblzma::bufread::XzDecoder::new_stream(packed, stream);
                    out.copy_from(&mut unpacked)
                })
        }
        Compression::Bzip2 => {
            let mut unpacked = bzip2::bufread::MultiBzDecoder::new(packed);
            out.copy_from(&mut unpacked)
        }
    };
    result
        .and_then(|()| io::Write::flush(out))
        .map_err(|error| prefer(&mut input, problem(compression, error)))
}

/// Reads the first block, or all if there is less.
fn begin(input: &mut impl Read) -> Result<(Vec<u8>, Compression), Problem> {
    let mut start = Vec::with_capacity(BLOCK);
    input
        .take(BLOCK as u64)
        .read_to_end(&mut start)
        .map_err(Problem::Read)?;
    if start.is_empty() {
        return Err(Problem::Empty);
    }
    let compression = Compression::of(&start);
    Ok((start, compression))
}

/// Members one after the other. Zeros after the last one are padding.
fn gzip(mut packed: impl BufRead, out: &mut ChunkWriter) -> Result<(), Problem> {
    let wrong = |error| problem(Compression::Gzip, error);
    loop {
        let mut member = flate2::bufread::GzDecoder::new(packed);
        out.copy_from(&mut member).map_err(wrong)?;
        packed = member.into_inner();
        match packed.fill_buf().map_err(wrong)?.first() {
            Some(0x1F) => {}
            Some(_) => {
                skip_zeros(packed)?;
                break;
            }
            None => break,
        }
    }
    io::Write::flush(out).map_err(wrong)
}

fn skip_zeros(mut packed: impl BufRead) -> Result<(), Problem> {
    loop {
        let buffer = packed.fill_buf().map_err(Problem::Read)?;
        if buffer.iter().any(|byte| *byte != 0) {
            return Err(Problem::Trailing(Compression::Gzip.name()));
        }
        match buffer.len() {
            0 => return Ok(()),
            count => packed.consume(count),
        }
    }
}

/// What an error while unpacking means.
fn problem(compression: Compression, source: io::Error) -> Problem {
    if compression == Compression::None || source.kind() == io::ErrorKind::BrokenPipe {
        return Problem::Read(source);
    }
    Problem::Compressed {
        kind: compression.name(),
        source,
    }
}

/// A reader that remembers its error: it is not the decompressor's.
struct Recorded<R> {
    inner: R,
    failed: Option<io::Error>,
}

impl<R: Read> Read for Recorded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer).map_err(|error| {
            let kind = error.kind();
            if kind != io::ErrorKind::Interrupted {
                self.failed = Some(error);
            }
            kind.into()
        })
    }
}

/// The reader's own error if it had one.
fn prefer<R>(input: &mut Recorded<R>, problem: Problem) -> Problem {
    input.failed.take().map_or(problem, Problem::Read)
}
