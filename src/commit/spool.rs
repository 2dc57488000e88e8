//! Copies of contents, made in a moment: one file without a name, which goes with the process.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use lamina_layers::tar::Segment;
use rustix::fs::{self as rfs, CWD, Mode, OFlags};

use crate::sys;
use crate::sys::SysResult;

/// Every segment begins at a multiple of this: a multiple of the block size, so that filesystems that
/// can share blocks between files do.
const UNIT: u64 = 64 << 10;

/// Copies of segments of files, one after the other.
pub struct Spool {
    file: OwnedFd,
    end: u64,
    /// Whether a copy takes no time by its size: blocks are shared.
    shares: bool,
    /// How many bytes may still be copied where they are not.
    room: u64,
}

impl Spool {
    /// An empty one on the filesystem of `dir`, for so many bytes unless they need not be copied.
    pub fn new(dir: &Path, room: u64) -> SysResult<Self> {
        let file = nameless(dir)?;
        let shares = shares_blocks(dir, &file)?;
        Ok(Self {
            file,
            end: 0,
            shares,
            room,
        })
    }

    /// Whether blocks are shared: then what is to be copied should be on disk before.
    pub fn shares(&self) -> bool {
        self.shares
    }

    /// Copies segments of a file; returns where they are, `None` if there is no room.
    pub fn put(&mut self, from: impl AsFd, data: &[Segment]) -> SysResult<Option<u64>> {
        let length = data.iter().map(|segment| segment.length).sum();
        if !self.shares {
            let Some(room) = self.room.checked_sub(length) else {
                return Ok(None);
            };
            self.room = room;
        }
        let start = self.end;
        for segment in data {
            let range = segment.offset..segment.offset + segment.length;
            sys::copy::copy_range(&from, range, &self.file, self.end)?;
            self.end += segment.length.next_multiple_of(UNIT);
        }
        Ok(Some(start))
    }
}

impl AsFd for Spool {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn nameless(dir: &Path) -> SysResult<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    rfs::openat(CWD, dir, flags, Mode::RUSR | Mode::WUSR)
}

fn shares_blocks(dir: &Path, file: &OwnedFd) -> SysResult<bool> {
    let other = nameless(dir)?;
    sys::copy::write_all_at(file, &[0; 4096], 0)?;
    let shares = rfs::ioctl_ficlone(&other, file).is_ok();
    rfs::ftruncate(file, 0)?;
    Ok(shares)
}

/// The copy of a file, holes left out.
pub struct Copied<'a> {
    spool: BorrowedFd<'a>,
    /// Where in the spool the current segment goes on, and where the next begins.
    position: u64,
    next: u64,
    /// What is still to be read.
    pieces: VecDeque<Segment>,
}

impl<'a> Copied<'a> {
    /// What was put at `start`.
    pub fn new(spool: BorrowedFd<'a>, start: u64, pieces: VecDeque<Segment>) -> Self {
        let first = pieces.front().map_or(0, |piece| piece.length);
        Self {
            spool,
            position: start,
            next: start + first.next_multiple_of(UNIT),
            pieces,
        }
    }
}

impl Read for Copied<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while let Some(piece) = self.pieces.front_mut() {
            if piece.length == 0 {
                self.pieces.pop_front();
                self.position = self.next;
                let length = self.pieces.front().map_or(0, |piece| piece.length);
                self.next += length.next_multiple_of(UNIT);
                continue;
            }
            let size = usize::try_from(piece.length)
                .unwrap_or(usize::MAX)
                .min(into.len());
            let room = into.get_mut(..size).unwrap_or_default();
            let got = sys::retry(|| rustix::io::pread(self.spool, &mut *room, self.position))?;
            self.position += got as u64;
            piece.length -= got as u64;
            return Ok(got);
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn copies_are_what_was_there_when_they_were_made() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(dir.path(), 1 << 20).unwrap();
        let file = tempfile::tempfile_in(dir.path()).unwrap();
        let text: Vec<u8> = (0..200_000u32).map(|n| (n * 7 % 251) as u8).collect();
        file.write_all_at(&text, 0).unwrap();
        let segment = |offset, length| Segment { offset, length };
        let pieces = [
            segment(0, 100_000),
            segment(131_072, 10),
            segment(150_000, 50_000),
        ];
        spool.put(&file, &pieces[1..2]).unwrap();
        let start = spool.put(&file, &pieces).unwrap().unwrap();
        file.write_all_at(&vec![0; 200_000], 0).unwrap();

        let mut read = Vec::new();
        let copied = Copied::new(spool.as_fd(), start, pieces.iter().copied().collect());
        io::BufReader::with_capacity(7000, copied)
            .read_to_end(&mut read)
            .unwrap();
        let expected = [&text[..100_000], &text[131_072..131_082], &text[150_000..]].concat();
        assert!(read == expected);
    }

    #[test]
    fn there_is_only_so_much_room() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(dir.path(), 1000).unwrap();
        let file = tempfile::tempfile_in(dir.path()).unwrap();
        file.write_all_at(&[1; 600], 0).unwrap();
        let all = [Segment {
            offset: 0,
            length: 600,
        }];
        assert!(spool.put(&file, &all).unwrap().is_some());
        assert_eq!(spool.put(&file, &all).unwrap().is_some(), spool.shares());
    }
}
