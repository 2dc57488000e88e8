//! Buffers that go round between the threads of an import.
//!
//! A [`Pool`] has a fixed number of buffers, so that the memory of an import is bounded: the thread
//! that fills them waits while all are in use. Slices of a filled buffer are shared; when the last
//! one is dropped the buffer is free again.

use std::io::{self, Read, Write};
use std::ops::Deref;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded};

/// Length of a buffer in bytes.
pub const CHUNK: usize = 256 << 10;

/// Buffers for one import.
pub struct Pool {
    free: Receiver<Box<[u8]>>,
    home: Sender<Box<[u8]>>,
}

impl Pool {
    /// A pool of `count` buffers.
    pub fn new(count: usize) -> Self {
        let (home, free) = bounded(count);
        for _ in 0..count {
            // There is room for all of them. Their memory is taken when it is first written to.
            let _ = home.try_send(vec![0; CHUNK].into_boxed_slice());
        }
        Self { free, home }
    }
}

/// A buffer that has been filled.
struct Chunk {
    buffer: Box<[u8]>,
    home: Option<Sender<Box<[u8]>>>,
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if let Some(home) = &self.home {
            // There is room for it. If the pool is gone, so is the need for it.
            let _ = home.try_send(std::mem::take(&mut self.buffer));
        }
    }
}

/// A part of a filled buffer.
#[derive(Clone)]
pub struct Slice {
    chunk: Arc<Chunk>,
    start: usize,
    end: usize,
}

impl Slice {
    /// Takes at most the first `count` bytes off.
    pub fn split(&mut self, count: usize) -> Self {
        let middle = self.start.saturating_add(count).min(self.end);
        let first = Self {
            chunk: Arc::clone(&self.chunk),
            start: self.start,
            end: middle,
        };
        self.start = middle;
        first
    }
}

impl From<Vec<u8>> for Slice {
    fn from(bytes: Vec<u8>) -> Self {
        let buffer = bytes.into_boxed_slice();
        Self {
            start: 0,
            end: buffer.len(),
            chunk: Arc::new(Chunk { buffer, home: None }),
        }
    }
}

impl Deref for Slice {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.chunk
            .buffer
            .get(self.start..self.end)
            .unwrap_or_default()
    }
}

/// Fills buffers and sends each to all of the receivers. Fails with `BrokenPipe` when the first of
/// them is gone: nobody is interested any more.
pub struct ChunkWriter {
    pool: Pool,
    to: Vec<Sender<Slice>>,
    buffer: Box<[u8]>,
    filled: usize,
}

impl ChunkWriter {
    /// Takes its buffers from `pool`.
    pub fn new(pool: Pool, to: Vec<Sender<Slice>>) -> Self {
        Self {
            pool,
            to,
            buffer: Box::default(),
            filled: 0,
        }
    }

    /// Passes on everything that `reader` gives.
    pub fn copy_from(&mut self, reader: &mut dyn Read) -> io::Result<()> {
        loop {
            match reader.read(self.space()?) {
                Ok(0) => return Ok(()),
                Ok(count) => self.filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // What came before the error may explain it.
                    self.send()?;
                    return Err(error);
                }
            }
        }
    }

    /// The free part of the current buffer, which is never empty.
    fn space(&mut self) -> io::Result<&mut [u8]> {
        if self.filled == self.buffer.len() {
            self.send()?;
            // The pool holds a sender itself, so this cannot fail.
            self.buffer = self.pool.free.recv().map_err(io::Error::other)?;
        }
        Ok(self.buffer.get_mut(self.filled..).unwrap_or_default())
    }

    fn send(&mut self) -> io::Result<()> {
        if self.filled == 0 {
            return Ok(());
        }
        let slice = Slice {
            chunk: Arc::new(Chunk {
                buffer: std::mem::take(&mut self.buffer),
                home: Some(self.pool.home.clone()),
            }),
            start: 0,
            end: std::mem::take(&mut self.filled),
        };
        let mut receivers = self.to.iter();
        if let Some(first) = receivers.next() {
            first
                .send(slice.clone())
                .map_err(|_| io::ErrorKind::BrokenPipe)?;
        }
        for other in receivers {
            // It ends early only if the first does.
            let _ = other.send(slice.clone());
        }
        Ok(())
    }
}

impl Write for ChunkWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let space = self.space()?;
        let count = bytes.len().min(space.len());
        if let (Some(space), Some(bytes)) = (space.get_mut(..count), bytes.get(..count)) {
            space.copy_from_slice(bytes);
        }
        self.filled += count;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

/// The bytes of an archive as they arrive.
pub struct Stream {
    from: Receiver<Slice>,
    current: Option<Slice>,
    /// What comes after `current`, when bytes were put back.
    after: Option<Slice>,
    position: u64,
}

impl Stream {
    /// A stream of what a [`ChunkWriter`] sends.
    pub fn new(from: Receiver<Slice>) -> Self {
        Self {
            from,
            current: None,
            after: None,
            position: 0,
        }
    }

    /// Number of bytes taken so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next bytes, at least one and at most `max`; `None` at the end.
    pub fn take(&mut self, max: u64) -> Option<Slice> {
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        let current = self.fill()?;
        let slice = current.split(max);
        self.position += slice.len() as u64;
        Some(slice)
    }

    /// Fills `out` with the next bytes as far as there are any; returns how many.
    pub fn read(&mut self, out: &mut [u8]) -> usize {
        let mut filled = 0;
        while let Some(rest) = out.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let Some(slice) = self.take(rest.len() as u64) else {
                break;
            };
            if let Some(to) = rest.get_mut(..slice.len()) {
                to.copy_from_slice(&slice);
            }
            filled += slice.len();
        }
        filled
    }

    /// As [`Self::read`], but the bytes will come again.
    pub fn peek(&mut self, out: &mut [u8]) -> usize {
        let position = self.position;
        let count = self.read(out);
        let seen = out.get(..count).unwrap_or_default().to_vec();
        // Only one slice can be waiting: a peek takes what was put back before.
        self.after = self.current.replace(seen.into());
        self.position = position;
        count
    }

    /// The slice that the next bytes are in, not empty; `None` at the end.
    fn fill(&mut self) -> Option<&mut Slice> {
        if self.current.as_deref().is_none_or(<[u8]>::is_empty) {
            // Free the buffer before waiting for another.
            self.current = None;
            self.current = self.after.take().or_else(|| self.from.recv().ok());
        }
        self.current.as_mut().filter(|slice| !slice.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::unbounded;

    #[test]
    fn what_is_written_is_read_and_buffers_come_back() {
        let bytes: Vec<u8> = (0..CHUNK * 7 + 123).map(|n| (n / 7) as u8).collect();
        let (send, receive) = unbounded();
        let mut writer = ChunkWriter::new(Pool::new(2), vec![send]);
        let read = std::thread::scope(|scope| {
            scope.spawn(|| {
                writer.write_all(&bytes).unwrap();
                writer.flush().unwrap();
                drop(writer);
            });
            let mut stream = Stream::new(receive);
            let mut read = vec![0; bytes.len() + 1];
            let count = stream.read(&mut read);
            assert_eq!(stream.position(), count as u64);
            read.truncate(count);
            read
        });
        assert!(read == bytes);
    }

    #[test]
    fn a_writer_that_nobody_reads_from_stops() {
        let (send, receive) = unbounded();
        drop(receive);
        let mut writer = ChunkWriter::new(Pool::new(1), vec![send]);
        let error = writer.copy_from(&mut io::repeat(0)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
