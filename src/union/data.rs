//! Contents of regular files, and syncing.
//!
//! All I/O is by node; nothing is tied to an open file. A request looks at where the contents are
//! and does its I/O under the node's `state` lock (shared), so that a copy-up, which changes where
//! they are under the exclusive lock, comes wholly before or after it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{self as rfs, FallocateFlags, SeekFrom, StatVfs};
use rustix::io::Errno;

use super::node::Node;
use super::{Caller, SetAttr, Target, Union};
use crate::attr::Kind;
use crate::crew::stand_in;
use crate::error::FsResult;
use crate::lower::{Contents, LowerRef, Number};
use crate::sys;

/// Which way `lseek` looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// The next data at or after the offset.
    Data,
    /// The next hole at or after the offset.
    Hole,
}

/// Where the contents of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the index.
    Index,
    /// In a file of a lower.
    Lower,
    /// In a file of the upper.
    Upper,
}

/// The part of a file that has its contents.
enum Part {
    Lower(LowerRef),
    Upper(Arc<Node>),
}

/// What `statfs` shows.
#[derive(Clone, Copy, Debug)]
pub struct FsStat {
    /// Size of a block in bytes.
    pub block_size: u64,
    /// Blocks in all, free, and free for ordinary users.
    pub blocks: [u64; 3],
    /// Inodes in all and free.
    pub files: [u64; 2],
}

impl Union {
    /// Reads at `offset` into `room` and returns how many bytes there are: fewer than fit only at the
    /// end.
    ///
    /// # Errors
    /// `EISDIR`, `EINVAL` for what has no contents, `EIO` with an explanation for a damaged
    /// object of the store.
    pub fn read(&self, number: Number, offset: u64, room: &mut [u8]) -> FsResult<usize> {
        match self.target(number)? {
            Target::Image(ino) => {
                let Some((_, image)) = self.lowers.image() else {
                    return Err(Errno::STALE.into());
                };
                read_contents(image.contents(ino)?, offset, room)
            }
            Target::Node(node) => self.read_node(&node, offset, room),
        }
    }

    fn read_node(&self, node: &Arc<Node>, offset: u64, room: &mut [u8]) -> FsResult<usize> {
        check_file(node)?;
        let state = node.state.read();
        if let Some(lower) = state.contents_below() {
            return read_contents(self.lowers.contents(lower)?, offset, room);
        }
        drop(state);
        // From here on it stays in the upper.
        let file = self.upper_file_to_read(node)?;
        read_contents(Contents::File(file, u64::MAX), offset, room)
    }

    /// Writes at `offset`; returns how many bytes were written. With `without_privileges` the file
    /// loses set-id bits and capabilities, as when someone without `CAP_FSETID` writes.
    ///
    /// # Errors
    /// `ENOSPC`, `EDQUOT`, `EFBIG`, `EROFS`, also from a copy-up.
    pub fn write(
        &self,
        number: Number,
        offset: u64,
        data: &[u8],
        without_privileges: Option<Caller>,
    ) -> FsResult<usize> {
        let (node, file) = self.writable_file(number)?;
        let written =
            self.with_room(|| Ok(sys::retry(|| rustix::io::pwrite(&*file, data, offset))?))?;
        if let Some(writer) = without_privileges {
            self.drop_privileges(&node, writer)?;
        }
        Ok(written)
    }

    fn writable_file(&self, number: Number) -> FsResult<(Arc<Node>, Arc<OwnedFd>)> {
        self.upper()?;
        let node = self.touch(number)?;
        check_file(&node)?;
        self.copy_up_contents(&node, u64::MAX)?;
        let file = self.upper_file(&node)?;
        Ok((node, file))
    }

    /// `fallocate(2)`.
    pub fn fallocate(
        &self,
        number: Number,
        offset: u64,
        length: u64,
        mode: FallocateFlags,
        without_privileges: Option<Caller>,
    ) -> FsResult<()> {
        let (node, file) = self.writable_file(number)?;
        self.with_room(|| Ok(sys::retry(|| rfs::fallocate(&*file, mode, offset, length))?))?;
        if let Some(writer) = without_privileges {
            self.drop_privileges(&node, writer)?;
        }
        Ok(())
    }

    /// `lseek(2)` for data and holes.
    ///
    /// # Errors
    /// `ENXIO` beyond the end, or if there is no more data.
    pub fn lseek(&self, number: Number, offset: u64, whence: Seek) -> FsResult<u64> {
        let part = self.part(number)?;
        seek_contents(&self.part_contents(&part)?, offset, whence)
    }

    /// `copy_file_range(2)` between two files of the mount; returns how many bytes were copied.
    pub fn copy_file_range(
        &self,
        from: (Number, u64),
        to: (Number, u64),
        length: usize,
        without_privileges: Option<Caller>,
    ) -> FsResult<usize> {
        let (node, target) = self.writable_file(to.0)?;
        let part = self.part(from.0)?;
        let _away = stand_in();
        let (mut off_in, mut off_out) = (from.1, to.1);
        let copied = match self.part_contents(&part)? {
            Contents::File(source, _) => sys::retry(|| {
                let (off_in, off_out) = (Some(&mut off_in), Some(&mut off_out));
                rfs::copy_file_range(&*source, off_in, &*target, off_out, length)
            })?,
            Contents::Inline(bytes) => {
                let window = window(bytes, off_in, length);
                sys::copy::write_all_at(&*target, window, off_out)?;
                window.len()
            }
        };
        if let Some(writer) = without_privileges {
            self.drop_privileges(&node, writer)?;
        }
        Ok(copied)
    }

    /// Which part of a file has its contents.
    fn part(&self, number: Number) -> FsResult<Part> {
        let node = match self.target(number)? {
            Target::Image(ino) => return Ok(Part::Lower(self.image_ref(ino)?)),
            Target::Node(node) => node,
        };
        check_file(&node)?;
        let lower = node.state.read().contents_below().cloned();
        Ok(lower.map_or(Part::Upper(node), Part::Lower))
    }

    fn part_contents(&self, part: &Part) -> FsResult<Contents<'_>> {
        match part {
            Part::Lower(lower) => self.lowers.contents(lower),
            Part::Upper(node) => Ok(Contents::File(self.upper_file_to_read(node)?, u64::MAX)),
        }
    }

    /// Where a file's contents are. They stay there until somebody opens it for writing, truncates
    /// it or changes its attributes.
    ///
    /// # Errors
    /// `EISDIR`, `EINVAL` for what has no contents.
    pub fn place_of(&self, number: Number) -> FsResult<Place> {
        Ok(match self.part(number)? {
            Part::Upper(_) => Place::Upper,
            Part::Lower(lower) if self.lowers.is_in_index(&lower) => Place::Index,
            Part::Lower(_) => Place::Lower,
        })
    }

    /// Whether a file's contents are those of this lower object.
    pub(super) fn reads_from(&self, number: Number, below: &LowerRef) -> FsResult<bool> {
        Ok(match self.part(number)? {
            Part::Lower(lower) => lower == *below,
            Part::Upper(_) => false,
        })
    }

    /// The file that has a file's contents, and where it is; `None` for contents in the index.
    pub fn open_contents(&self, number: Number) -> FsResult<Option<(Place, Arc<OwnedFd>)>> {
        let part = self.part(number)?;
        let place = match part {
            Part::Upper(_) => Place::Upper,
            Part::Lower(_) => Place::Lower,
        };
        Ok(match self.part_contents(&part)? {
            Contents::Inline(_) => None,
            Contents::File(file, _) => Some((place, file)),
        })
    }

    /// Gives a file that is being opened for writing a part in the upper; an empty one if it is
    /// to be truncated, which takes set-id bits away if it is done `without_privileges`.
    pub fn make_writable(
        &self,
        number: Number,
        truncate: bool,
        without_privileges: Option<Caller>,
    ) -> FsResult<()> {
        if truncate {
            let set = SetAttr {
                size: Some(0),
                caller: without_privileges.unwrap_or_default(),
                drops_privileges: without_privileges.is_some(),
                ..SetAttr::default()
            };
            return self.setattr(number, &set).map(drop);
        }
        self.writable_file(number).map(drop)
    }

    /// Makes a file's or directory's contents durable, and its name with them.
    pub fn fsync(&self, number: Number, data_only: bool) -> FsResult<()> {
        let Some(upper) = &self.upper else {
            return Ok(());
        };
        let Target::Node(node) = self.target(number)? else {
            return Ok(());
        };
        if upper.is_volatile() || !node.has_upper() {
            return Ok(());
        }
        let _away = stand_in();
        match node.kind {
            Kind::Dir => rfs::fsync(&*self.upper_dir(&node)?)?,
            Kind::File if data_only => rfs::fdatasync(&*self.upper_file(&node)?)?,
            Kind::File => rfs::fsync(&*self.upper_file(&node)?)?,
            _ => {}
        }
        Ok(())
    }

    /// Size and free space: the upper's.
    pub fn statfs(&self) -> FsResult<FsStat> {
        let stat: StatVfs = match &self.upper {
            Some(upper) => rfs::fstatvfs(upper.root())?,
            None => {
                return Ok(FsStat {
                    block_size: 4096,
                    blocks: [0; 3],
                    files: [0; 2],
                });
            }
        };
        Ok(FsStat {
            block_size: stat.f_frsize,
            blocks: [stat.f_blocks, stat.f_bfree, stat.f_bavail],
            files: [stat.f_files, stat.f_ffree],
        })
    }
}

fn check_file(node: &Node) -> FsResult<()> {
    match node.kind {
        Kind::File => Ok(()),
        Kind::Dir => Err(Errno::ISDIR.into()),
        _ => Err(Errno::INVAL.into()),
    }
}

fn window(bytes: &[u8], offset: u64, size: usize) -> &[u8] {
    let start = usize::try_from(offset)
        .unwrap_or(usize::MAX)
        .min(bytes.len());
    let end = start.saturating_add(size).min(bytes.len());
    bytes.get(start..end).unwrap_or_default()
}

pub(super) fn read_contents(
    contents: Contents<'_>,
    offset: u64,
    room: &mut [u8],
) -> FsResult<usize> {
    let (file, size) = match contents {
        Contents::Inline(bytes) => {
            let found = window(bytes, offset, room.len());
            if let Some(room) = room.get_mut(..found.len()) {
                room.copy_from_slice(found);
            }
            return Ok(found.len());
        }
        Contents::File(file, size) => (file, size),
    };
    // No more than there is, so that the end need not be found by one more system call.
    let rest = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
    let wanted = rest.min(room.len());
    let mut filled = 0;
    while let Some(room) = room.get_mut(filled..wanted).filter(|room| !room.is_empty()) {
        let got = sys::retry(|| rustix::io::pread(&*file, &mut *room, offset + filled as u64))?;
        if got == 0 {
            break;
        }
        filled += got;
    }
    Ok(filled)
}

fn seek_contents(contents: &Contents<'_>, offset: u64, whence: Seek) -> FsResult<u64> {
    match contents {
        Contents::Inline(bytes) => {
            if offset >= bytes.len() as u64 {
                return Err(Errno::NXIO.into());
            }
            Ok(if whence == Seek::Data {
                offset
            } else {
                bytes.len() as u64
            })
        }
        Contents::File(file, _) => {
            let to = match whence {
                Seek::Data => SeekFrom::Data(offset),
                Seek::Hole => SeekFrom::Hole(offset),
            };
            Ok(rfs::seek(&**file, to)?)
        }
    }
}
