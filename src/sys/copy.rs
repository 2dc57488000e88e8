//! Copying file contents: by reference where the filesystem can, without page cache where it can,
//! with holes kept.

use std::ops::Range;
use std::os::fd::AsFd;

use rustix::fs::{self as rfs, SeekFrom};
use rustix::io::Errno;

use super::{SysResult, retry};

/// How much is copied before the disk is told to begin with it.
const PIECE: u64 = 16 << 20;

/// Copies `size` bytes from the start of `from` to the start of the empty file `to`, and gives
/// `to` that size. Holes of `from` stay holes. If it is `to_be_synced`, the disk is kept at work meanwhile.
pub fn copy_contents(
    from: impl AsFd,
    to: impl AsFd,
    size: u64,
    to_be_synced: bool,
) -> SysResult<()> {
    if size == 0 {
        return Ok(());
    }
    if rfs::ioctl_ficlone(&to, &from).is_ok() {
        // The source grows or shrinks only if someone changes a layer behind our back.
        if super::stat_fd(&to)?.size < size {
            return Err(Errno::IO);
        }
        return rfs::ftruncate(&to, size);
    }
    rfs::ftruncate(&to, size)?;
    let mut position = 0;
    while position < size {
        let Some((start, end)) = next_data(&from, position, size)? else {
            break;
        };
        let end = end.min(start + PIECE);
        copy_range(&from, start..end, &to, start)?;
        if to_be_synced && size > PIECE {
            super::start_writing(&to, start, end - start);
        }
        position = end;
    }
    // Beyond its end there is no data either, which is no hole.
    if super::stat_fd(&from)?.size < size {
        return Err(Errno::IO);
    }
    Ok(())
}

/// The next extent of data at or after `position`, cut to `size`; `None` if only a hole follows.
pub fn next_data(file: impl AsFd, position: u64, size: u64) -> SysResult<Option<(u64, u64)>> {
    let start = match rfs::seek(&file, SeekFrom::Data(position)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        // The filesystem cannot tell: all of it is data.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((position, size))),
        Err(errno) => return Err(errno),
    };
    if start >= size {
        return Ok(None);
    }
    let end = rfs::seek(&file, SeekFrom::Hole(start))?.min(size);
    Ok(Some((start, end.max(start + 1))))
}

/// Copies a range of bytes to the offset `at`, by reference where the filesystem can.
pub fn copy_range(from: impl AsFd, range: Range<u64>, to: impl AsFd, at: u64) -> SysResult<()> {
    let (mut off_in, mut off_out) = (range.start, at);
    while off_in < range.end {
        let want = usize::try_from(range.end - off_in)
            .unwrap_or(usize::MAX)
            .min(PIECE as usize);
        let done =
            retry(|| rfs::copy_file_range(&from, Some(&mut off_in), &to, Some(&mut off_out), want));
        match done {
            // The source is shorter than it was said to be: a hole would pass for its contents.
            Ok(0) => return Err(Errno::IO),
            Ok(_) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM) => {
                return copy_by_buffer(from, off_in..range.end, to, off_out);
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn copy_by_buffer(from: impl AsFd, range: Range<u64>, to: impl AsFd, at: u64) -> SysResult<()> {
    let mut buffer = vec![0u8; 1 << 20];
    let (mut position, mut at) = (range.start, at);
    while position < range.end {
        let want = usize::try_from(range.end - position)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let Some(window) = buffer.get_mut(..want) else {
            break;
        };
        let got = retry(|| rustix::io::pread(&from, &mut *window, position))?;
        if got == 0 {
            return Err(Errno::IO);
        }
        write_all_at(&to, window.get(..got).unwrap_or_default(), at)?;
        position += got as u64;
        at += got as u64;
    }
    Ok(())
}

/// Writes all of `data` at `offset`.
pub fn write_all_at(file: impl AsFd, mut data: &[u8], mut offset: u64) -> SysResult<()> {
    while !data.is_empty() {
        let written = retry(|| rustix::io::pwrite(&file, data, offset))?;
        if written == 0 {
            return Err(Errno::IO);
        }
        data = data.get(written..).unwrap_or_default();
        offset += written as u64;
    }
    Ok(())
}
