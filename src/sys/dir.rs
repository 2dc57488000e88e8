//! Reading directories, and removing trees.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self as rfs, AtFlags, OFlags, RawDir};
use rustix::io::Errno;

use super::{SysResult, open_at, open_dir_at};
use crate::attr::Kind;

/// One entry of a directory on disk.
pub struct DirEntry<'a> {
    /// Its name, never `.` or `..`.
    pub name: &'a [u8],
    /// Its type, where the filesystem says it.
    pub kind: Option<Kind>,
    /// Its inode number.
    pub ino: u64,
}

/// Calls `each` for all entries of an open directory, from its beginning.
pub fn for_each_entry<E: From<Errno>>(
    dir: impl AsFd,
    mut each: impl FnMut(DirEntry<'_>) -> Result<(), E>,
) -> Result<(), E> {
    // A descriptor of its own: the position of a shared one belongs to nobody.
    let own = open_dir_at(&dir, b".")?;
    let mut buffer = vec![MaybeUninit::<u8>::uninit(); 32 << 10];
    let mut entries = RawDir::new(own, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        each(DirEntry {
            name,
            kind: kind_of(entry.file_type()),
            ino: entry.ino(),
        })?;
    }
    Ok(())
}

fn kind_of(file_type: rfs::FileType) -> Option<Kind> {
    Some(match file_type {
        rfs::FileType::RegularFile => Kind::File,
        rfs::FileType::Directory => Kind::Dir,
        rfs::FileType::Symlink => Kind::Symlink,
        rfs::FileType::CharacterDevice => Kind::Char,
        rfs::FileType::BlockDevice => Kind::Block,
        rfs::FileType::Fifo => Kind::Fifo,
        rfs::FileType::Socket => Kind::Socket,
        rfs::FileType::Unknown => return None,
    })
}

/// The names in a directory.
pub fn names(dir: impl AsFd) -> SysResult<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for_each_entry(dir, |entry| {
        names.push(entry.name.to_vec());
        Ok::<(), Errno>(())
    })?;
    Ok(names)
}

/// Removes whatever has this name, with all below it. Works to any depth: directories are
/// emptied by moving their subdirectories up beside them.
pub fn remove_tree(dir: BorrowedFd<'_>, name: &[u8]) -> SysResult<()> {
    match rfs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    let mut pending = vec![name.to_vec()];
    let mut moved = 0u64;
    while let Some(victim) = pending.pop() {
        match rfs::unlinkat(dir, victim.as_slice(), AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        let inner = open_to_empty(dir, &victim)?;
        pending.push(victim);
        for child in names(&inner)? {
            match rfs::unlinkat(&inner, child.as_slice(), AtFlags::empty()) {
                Ok(()) => continue,
                Err(Errno::ISDIR | Errno::PERM) => {}
                Err(errno) => return Err(errno),
            }
            let aside = loop {
                moved += 1;
                let aside = format!("#remove-{:x}-{moved:x}", std::process::id()).into_bytes();
                match rfs::renameat_with(
                    &inner,
                    child.as_slice(),
                    dir,
                    aside.as_slice(),
                    rfs::RenameFlags::NOREPLACE,
                ) {
                    Ok(()) => break aside,
                    Err(Errno::EXIST) => {}
                    // A directory that moves is written to itself.
                    Err(Errno::ACCESS) if allow_all(inner.as_fd(), &child)? => {}
                    Err(errno) => return Err(errno),
                }
            };
            pending.push(aside);
        }
    }
    Ok(())
}

/// Opens a directory whose entries are to be removed, whatever its permissions are.
fn open_to_empty(dir: BorrowedFd<'_>, name: &[u8]) -> SysResult<OwnedFd> {
    allow_all(dir, name)?;
    open_dir_at(dir, name)
}

/// Lets the owner do everything with a directory; returns whether that was not so before.
fn allow_all(dir: BorrowedFd<'_>, name: &[u8]) -> SysResult<bool> {
    let found = open_at(dir, name, super::O_PATH | OFlags::DIRECTORY)?;
    let mode = super::stat_fd(&found)?.mode;
    let closed = mode & 0o700 != 0o700;
    if closed {
        super::chmod(found.as_fd(), mode | 0o700)?;
    }
    Ok(closed)
}
