//! The check of an index at open: after it accessors need no errors.
//!
//! The numbering is canonical: directories are visited in the order of their numbers, entries in
//! the order of their dirents, and every inode gets the next number when its first name is
//! reached. One pass that follows this order therefore shows that every inode is reachable, that
//! there are no cycles, and that a directory has exactly one name.

use std::collections::HashSet;

use super::IndexKind;
use super::error::IndexError;
use super::format::{
    DirentRecord, FLAG_HARDLINK, FLAG_IMPLICIT, FLAG_INLINE, FLAG_LINKS, FLAG_OPAQUE,
    FLAG_WHITEOUT, INLINE_MAX, InodeRecord, LinkRecord, SYMLINK_MAX, SectionKind, name_hash,
    name_is_legal,
};
use super::layout::Tables;
use super::xattrs;

/// Flags of each file type.
const DIRECTORY_FLAGS: u16 = FLAG_OPAQUE | FLAG_IMPLICIT;
const REGULAR_FLAGS: u16 = FLAG_INLINE | FLAG_LINKS | FLAG_HARDLINK;
const CHAR_DEVICE_FLAGS: u16 = FLAG_WHITEOUT | FLAG_LINKS;
/// Flags that only a layer index may have.
const LAYER_FLAGS: u16 = FLAG_OPAQUE | FLAG_IMPLICIT | FLAG_WHITEOUT | FLAG_HARDLINK;

/// Checks every record.
pub(super) fn check(kind: IndexKind, tables: &Tables<'_>) -> Result<(), IndexError> {
    if tables.heap.first() != Some(&0) {
        let problem = "does not begin with a zero byte";
        return Err(IndexError::Section {
            section: SectionKind::Heap,
            problem,
        });
    }
    let mut inodes = InodeCheck {
        kind,
        tables,
        seen_xattrs: HashSet::new(),
        shared_bytes: 0,
    };
    for (number, inode) in tables.inodes.iter().enumerate() {
        inodes
            .check(inode)
            .map_err(|problem| IndexError::inode(number, problem))?;
    }
    let mut tree = TreeCheck {
        tables,
        next_inode: 1,
        next_dirent: 0,
        linked_names: 0,
    };
    tree.check()?;
    if tree.linked_names != tables.links.len() {
        return Err(IndexError::link(
            tables.links.len(),
            "the section does not have every name",
        ));
    }
    check_links(tables)
}

/// Checks what an inode record says by itself.
struct InodeCheck<'a> {
    kind: IndexKind,
    tables: &'a Tables<'a>,
    /// Offsets of the xattr sets that have been checked.
    seen_xattrs: HashSet<u32>,
    /// Bytes of the heap in xattr sets and hard link targets. They never overlap, which bounds the
    /// work on a hostile index.
    shared_bytes: usize,
}

impl<'a> InodeCheck<'a> {
    fn check(&mut self, inode: &InodeRecord) -> Result<(), &'static str> {
        if inode.mtime_nsec.get() >= 1_000_000_000 {
            return Err("mtime has more than 999,999,999 nanoseconds");
        }
        if self.kind == IndexKind::Merged && inode.has(LAYER_FLAGS) {
            return Err("a merged index has a mark that only layers have");
        }
        let (flags, size_used) = match inode.file_type() {
            libc::S_IFDIR => (DIRECTORY_FLAGS, true),
            libc::S_IFREG => (REGULAR_FLAGS, true),
            libc::S_IFLNK => (FLAG_LINKS, true),
            libc::S_IFCHR => (CHAR_DEVICE_FLAGS, false),
            libc::S_IFBLK | libc::S_IFIFO | libc::S_IFSOCK => (FLAG_LINKS, false),
            _ => return Err("unknown file type"),
        };
        if inode.has(!flags) {
            return Err("flags do not fit the file type");
        }
        if !size_used && inode.size.get() != 0 {
            return Err("size does not fit the file type");
        }
        self.check_data(inode)?;
        self.check_xattrs(inode.xattrs.get())
    }

    fn check_data(&mut self, inode: &InodeRecord) -> Result<(), &'static str> {
        match inode.file_type() {
            libc::S_IFREG if inode.has(FLAG_HARDLINK) => self.check_hard_link(inode),
            libc::S_IFREG if inode.has(FLAG_INLINE) => {
                if inode.size.get() > INLINE_MAX {
                    return Err("inline contents too long");
                }
                self.heap_range(inode).map(|_| ())
            }
            libc::S_IFREG if inode.data.get() as usize >= self.tables.objects.len() => {
                Err("no such object")
            }
            libc::S_IFLNK => {
                if !(1..=SYMLINK_MAX as u64).contains(&inode.size.get()) {
                    return Err("length of the symlink target is not 1 to 4095 bytes");
                }
                if self.heap_range(inode)?.contains(&0) {
                    return Err("NUL in a symlink target");
                }
                Ok(())
            }
            libc::S_IFCHR if inode.has(FLAG_WHITEOUT) => {
                let plain = inode.data.get() == 0 && !inode.has(FLAG_LINKS);
                if plain {
                    Ok(())
                } else {
                    Err("malformed whiteout")
                }
            }
            libc::S_IFIFO | libc::S_IFSOCK if inode.data.get() != 0 => {
                Err("data does not fit the file type")
            }
            _ => Ok(()),
        }
    }

    fn check_hard_link(&mut self, inode: &InodeRecord) -> Result<(), &'static str> {
        let path = self.heap_range(inode)?;
        if inode.has(FLAG_INLINE) || inode.xattrs.get() != 0 {
            return Err("malformed hard link to a lower layer");
        }
        self.count_bytes(path.len())?;
        if path.split(|byte| *byte == b'/').all(name_is_legal) {
            Ok(())
        } else {
            Err("target of a hard link is not a normal relative path")
        }
    }

    fn check_xattrs(&mut self, offset: u32) -> Result<(), &'static str> {
        if offset != 0 && self.seen_xattrs.insert(offset) {
            let len = xattrs::check(self.tables.heap, offset)?.len();
            self.count_bytes(len)?;
        }
        Ok(())
    }

    fn count_bytes(&mut self, len: usize) -> Result<(), &'static str> {
        self.shared_bytes = self.shared_bytes.saturating_add(len);
        if self.shared_bytes > self.tables.heap.len() {
            return Err("xattr sets or hard link targets overlap in the heap");
        }
        Ok(())
    }

    /// The `size` bytes at `data` in the heap.
    fn heap_range(&self, inode: &InodeRecord) -> Result<&'a [u8], &'static str> {
        let start = u64::from(inode.data.get());
        start
            .checked_add(inode.size.get())
            .and_then(|end| {
                self.tables
                    .heap
                    .get(start as usize..usize::try_from(end).ok()?)
            })
            .ok_or("data outside of the heap")
    }
}

/// Follows the tree from the root.
struct TreeCheck<'a> {
    tables: &'a Tables<'a>,
    /// Number of the inode that is to get its first name next.
    next_inode: usize,
    /// Number of the next directory's first dirent.
    next_dirent: usize,
    /// Dirents of inodes with [`FLAG_LINKS`].
    linked_names: usize,
}

impl<'a> TreeCheck<'a> {
    fn check(&mut self) -> Result<(), IndexError> {
        let tables = self.tables;
        let root = tables
            .inodes
            .first()
            .ok_or_else(|| IndexError::inode(0, "no root"))?;
        if !root.is_dir() || root.parent.get() != 0 || root.dirent.get() != 0 {
            return Err(IndexError::inode(
                0,
                "the root is not a directory without a name",
            ));
        }
        for (number, inode) in tables.inodes.iter().enumerate() {
            if number >= self.next_inode {
                return Err(IndexError::inode(number, "not reachable from the root"));
            }
            if inode.is_dir() {
                self.check_directory(number, inode)?;
            }
        }
        if self.next_dirent != tables.dirents.len() {
            return Err(IndexError::dirent(
                self.next_dirent,
                "belongs to no directory",
            ));
        }
        Ok(())
    }

    fn check_directory(&mut self, number: usize, dir: &InodeRecord) -> Result<(), IndexError> {
        let fail = |problem| IndexError::inode(number, problem);
        if dir.data.get() as usize != self.next_dirent {
            return Err(fail("entries do not follow those of the directory before"));
        }
        let end = self.next_dirent + dir.entry_count() as usize;
        let entries = self
            .tables
            .dirents
            .get(self.next_dirent..end)
            .ok_or_else(|| fail("entries outside of the dirents section"))?;
        let mut subdirs = 0;
        let mut last: (u64, &[u8]) = (0, &[]);
        for (dirent, record) in (self.next_dirent..end).zip(entries) {
            let fail = |problem| IndexError::dirent(dirent, problem);
            let key = check_name(self.tables, record).map_err(fail)?;
            if key <= last {
                return Err(fail("not sorted by hash and name"));
            }
            last = key;
            let inode = self.check_target(number, dirent, record).map_err(fail)?;
            subdirs += u32::from(inode.is_dir());
        }
        if subdirs != dir.subdir_count() {
            return Err(fail("wrong number of subdirectories"));
        }
        self.next_dirent = end;
        Ok(())
    }

    /// Checks the inode that an entry names.
    fn check_target(
        &mut self,
        dir: usize,
        dirent: usize,
        record: &DirentRecord,
    ) -> Result<&'a InodeRecord, &'static str> {
        let number = record.inode.get() as usize;
        let inode = self.tables.inodes.get(number).ok_or("no such inode")?;
        if u32::from(record.file_type) != inode.file_type() >> 12 {
            return Err("file type differs from the inode's");
        }
        let linked = inode.has(FLAG_LINKS);
        self.linked_names += usize::from(linked);
        if number == self.next_inode {
            if inode.parent.get() as usize != dir || inode.dirent.get() as usize != dirent {
                return Err("the inode does not point back to its first name");
            }
            self.next_inode += 1;
        } else if number > self.next_inode {
            return Err("inodes are not numbered in the order of their names");
        } else if !linked {
            return Err("one name too many for its inode");
        }
        Ok(inode)
    }
}

/// The sort key of an entry: hash and name.
fn check_name<'a>(
    tables: &Tables<'a>,
    record: &DirentRecord,
) -> Result<(u64, &'a [u8]), &'static str> {
    // A name is not empty, so an empty one here is also one outside of the heap.
    let name = tables.name(record);
    if !name_is_legal(name) {
        return Err("illegal name");
    }
    let hash = record.hash();
    if hash != name_hash(name) {
        return Err("wrong hash of the name");
    }
    Ok((hash, name))
}

/// The links section has, sorted, all names of every inode that is marked to have several. The
/// caller has compared the number of records.
fn check_links(tables: &Tables<'_>) -> Result<(), IndexError> {
    let links = tables.links;
    let key = |link: &LinkRecord| (link.inode.get(), link.dirent.get());
    for (number, link) in links.iter().enumerate() {
        let fail = |problem| IndexError::link(number, problem);
        let before = number.checked_sub(1).and_then(|before| links.get(before));
        let after = links.get(number + 1);
        if before.is_some_and(|before| key(before) >= key(link)) {
            return Err(fail("not sorted"));
        }
        if ![before, after]
            .into_iter()
            .flatten()
            .any(|other| other.inode == link.inode)
        {
            return Err(fail("the only name of its inode"));
        }
        let dirent = tables.dirents.get(link.dirent.get() as usize);
        if dirent.is_none_or(|dirent| dirent.inode != link.inode) {
            return Err(fail("the dirent does not name the inode"));
        }
        let inode = tables.inodes.get(link.inode.get() as usize);
        if inode.is_none_or(|inode| !inode.has(FLAG_LINKS)) {
            return Err(fail("the inode is not marked to have several names"));
        }
        let parent = tables.inodes.get(link.parent.get() as usize);
        if parent.is_none_or(|parent| !holds(parent, link.dirent.get())) {
            return Err(fail("the dirent is not in the directory"));
        }
    }
    Ok(())
}

/// Whether `dirent` is one of the entries of `dir`.
fn holds(dir: &InodeRecord, dirent: u32) -> bool {
    dir.is_dir()
        && dirent
            .checked_sub(dir.data.get())
            .is_some_and(|at| at < dir.entry_count())
}
