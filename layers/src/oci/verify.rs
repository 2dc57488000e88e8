//! Reading a blob of which digest and size are known, and believing neither.

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest as _, Sha256};

use crate::digest::Digest;
use crate::store::{BlobStage, StoreError};

/// What is wrong with a blob.
#[derive(Debug)]
pub enum Wrong {
    /// It ends after so many bytes.
    Short(u64),
    /// It goes on after the bytes that it should have.
    Long,
    /// It has another digest.
    Digest(Digest),
    /// It cannot be read.
    Read(io::Error),
    /// It cannot be kept.
    Keep(StoreError),
    /// Something else failed meanwhile, so nobody needs it.
    Stopped,
}

/// A blob that is being read. At its end, it has been compared with its digest and size; what comes
/// before was not.
pub struct Verified<'a, R> {
    inner: R,
    digest: Digest,
    size: u64,
    count: u64,
    hasher: Sha256,
    keep: Option<BlobStage>,
    stop: &'a AtomicBool,
    outcome: Option<Result<(), Wrong>>,
}

impl<'a, R: Read> Verified<'a, R> {
    /// Reads `inner`, and writes it to `keep` too. Fails as soon as `stop` is set.
    pub fn new(
        inner: R,
        digest: Digest,
        size: u64,
        keep: Option<BlobStage>,
        stop: &'a AtomicBool,
    ) -> Self {
        Self {
            inner,
            digest,
            size,
            count: 0,
            hasher: Sha256::new(),
            keep,
            stop,
            outcome: None,
        }
    }

    /// What is wrong with the blob, as far as it was read.
    pub fn wrong(&mut self) -> Option<Wrong> {
        match self.outcome.take() {
            Some(Err(wrong)) => Some(wrong),
            other => {
                self.outcome = other;
                None
            }
        }
    }

    /// Reads what is left, and says whether the blob is what it should be. Returns what was kept.
    pub fn finish(mut self) -> Result<Option<BlobStage>, Wrong> {
        let mut buffer = [0; 8 << 10];
        loop {
            match self.outcome.take() {
                Some(outcome) => return outcome.map(|()| self.keep),
                // An error is in the outcome, too.
                None => drop(self.read(&mut buffer)),
            }
        }
    }

    /// Reads some bytes; none are left if there are 0.
    fn step(&mut self, buffer: &mut [u8]) -> Result<usize, Wrong> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Wrong::Stopped);
        }
        let left = self.size - self.count;
        if left == 0 {
            return self.end().map(|()| 0);
        }
        let max = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let count = self
            .inner
            .read(buffer.get_mut(..max).unwrap_or_default())
            .map_err(Wrong::Read)?;
        if count == 0 {
            return Err(Wrong::Short(self.count));
        }
        let bytes = buffer.get(..count).unwrap_or_default();
        self.hasher.update(bytes);
        if let Some(keep) = &mut self.keep {
            keep.write(bytes).map_err(Wrong::Keep)?;
        }
        self.count += count as u64;
        Ok(count)
    }

    /// All that should be there was read.
    fn end(&mut self) -> Result<(), Wrong> {
        if self.inner.read(&mut [0]).map_err(Wrong::Read)? > 0 {
            return Err(Wrong::Long);
        }
        let found = Digest(std::mem::take(&mut self.hasher).finalize().into());
        if found == self.digest {
            Ok(())
        } else {
            Err(Wrong::Digest(found))
        }
    }
}

impl<R: Read> Read for Verified<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.outcome {
            Some(Ok(())) => return Ok(0),
            Some(Err(_)) => return Err(io::ErrorKind::InvalidData.into()),
            None if buffer.is_empty() => return Ok(0),
            None => {}
        }
        match self.step(buffer) {
            Err(Wrong::Read(error)) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(wrong) => {
                self.outcome = Some(Err(wrong));
                Err(io::ErrorKind::InvalidData.into())
            }
            Ok(0) => {
                self.outcome = Some(Ok(()));
                Ok(0)
            }
            Ok(count) => Ok(count),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: &[u8] = b"what a blob has";

    fn read(bytes: &[u8], digest: &[u8], size: u64) -> (Vec<u8>, Result<(), Wrong>) {
        let stop = AtomicBool::new(false);
        let mut blob = Verified::new(bytes, Digest::of(digest), size, None, &stop);
        let mut read = Vec::new();
        let _ = blob.read_to_end(&mut read);
        (read, blob.finish().map(drop))
    }

    #[test]
    fn a_blob_is_what_it_says_or_fails_at_its_end() {
        let size = BYTES.len() as u64;
        assert!(matches!(read(BYTES, BYTES, size), (read, Ok(())) if read == BYTES));
        assert!(matches!(read(b"", b"", 0), (_, Ok(()))));
        assert!(matches!(
            read(BYTES, BYTES, size + 1).1,
            Err(Wrong::Short(15))
        ));
        let (read_long, long) = read(BYTES, BYTES, size - 1);
        assert!(matches!(long, Err(Wrong::Long)));
        assert_eq!(
            read_long.len() as u64,
            size - 1,
            "more was read than there should be"
        );
        assert!(matches!(
            read(BYTES, b"other", size).1,
            Err(Wrong::Digest(_))
        ));
    }

    #[test]
    fn what_nobody_needs_stops() {
        let stop = AtomicBool::new(true);
        let blob = Verified::new(io::repeat(0), Digest::of(b""), u64::MAX, None, &stop);
        assert!(matches!(blob.finish(), Err(Wrong::Stopped)));
    }

    #[test]
    fn an_unread_end_counts() {
        let stop = AtomicBool::new(false);
        let bytes = vec![7; 100_000];
        let digest = Digest::of(&bytes);
        let mut blob = Verified::new(bytes.as_slice(), digest, 100_000, None, &stop);
        blob.read_exact(&mut [0; 10]).unwrap();
        assert!(blob.finish().is_ok());
    }
}
