//! The check of an index at open: after it accessors need no errors.
//!
//! The numbering is canonical: directories are visited in the order of their numbers, and each
//! directory's entries take the next numbers. One pass that follows this order therefore shows
//! that every entry is in exactly one directory, that every inode is reachable from the root, and
//! that there are no cycles.

use std::collections::HashSet;
use std::ops::Range;

use super::IndexKind;
use super::error::IndexError;
use super::format::{
    AliasRecord, AttributesRecord, EntryKind, EntryRecord, FLAG_IMPLICIT, FLAG_LINKS, FLAG_OPAQUE,
    INLINE_MAX, SYMLINK_MAX, SectionKind, name_hash, name_is_legal,
};
use super::layout::Tables;
use super::xattrs;

/// Checks every record.
pub(super) fn check(kind: IndexKind, tables: &Tables<'_>) -> Result<(), IndexError> {
    if tables.heap.first() != Some(&0) {
        return Err(IndexError::Section {
            section: SectionKind::Heap,
            problem: "does not begin with a zero byte",
        });
    }
    check_attributes(tables)?;
    let mut inodes = InodeCheck {
        kind,
        tables,
        aliases: 0,
        linked: 0,
        hard_link_bytes: 0,
    };
    for (number, entry) in tables.entries.iter().enumerate() {
        inodes
            .check(number, entry)
            .map_err(|problem| IndexError::entry(number, problem))?;
    }
    let (aliases, linked) = (inodes.aliases, inodes.linked);
    check_tree(tables)?;
    check_aliases(tables, aliases, linked)
}

fn check_attributes(tables: &Tables<'_>) -> Result<(), IndexError> {
    // Sets of xattrs are in the heap once each and do not overlap. That bounds the work on a
    // hostile index.
    let mut sets = HashSet::new();
    let mut set_bytes = 0;
    for (number, attributes) in tables.attributes.iter().enumerate() {
        let fail = |problem| IndexError::Record {
            section: SectionKind::Attributes,
            number,
            problem,
        };
        check_plain_attributes(attributes).map_err(fail)?;
        let xattrs = attributes.xattrs.get();
        if xattrs != 0 && sets.insert(xattrs) {
            set_bytes += xattrs::check(tables.heap, xattrs).map_err(fail)?.len();
            if set_bytes > tables.heap.len() {
                return Err(fail("xattr sets overlap in the heap"));
            }
        }
    }
    Ok(())
}

fn check_plain_attributes(attributes: &AttributesRecord) -> Result<(), &'static str> {
    if attributes.permissions.get() > 0o7777 {
        return Err("permissions have more than 12 bits");
    }
    if attributes.reserved.get() != 0 {
        return Err("reserved field is not zero");
    }
    if attributes.mtime_nsec.get() >= 1_000_000_000 {
        return Err("mtime has more than 999,999,999 nanoseconds");
    }
    Ok(())
}

/// Checks what an entry says of its inode.
struct InodeCheck<'a> {
    kind: IndexKind,
    tables: &'a Tables<'a>,
    /// Number of aliases.
    aliases: usize,
    /// Number of inodes with [`FLAG_LINKS`].
    linked: usize,
    /// Bytes of the heap in paths of hard links. They never overlap, which bounds the work on a
    /// hostile index.
    hard_link_bytes: usize,
}

impl<'a> InodeCheck<'a> {
    fn check(&mut self, number: usize, entry: &EntryRecord) -> Result<(), &'static str> {
        let kind = entry.kind().ok_or("unknown kind of entry")?;
        let flags = match kind {
            EntryKind::Directory => FLAG_OPAQUE | FLAG_IMPLICIT,
            EntryKind::Whiteout | EntryKind::Alias => 0,
            _ => FLAG_LINKS,
        };
        if entry.kind & !(15 | flags) != 0 {
            return Err("flags do not fit the kind of entry");
        }
        let of_layer = matches!(kind, EntryKind::Whiteout | EntryKind::HardLink)
            || entry.has(FLAG_OPAQUE | FLAG_IMPLICIT);
        if of_layer && self.kind == IndexKind::Merged {
            return Err("a merged index has a mark that only layers have");
        }
        if entry.attributes.get() as usize >= self.tables.attributes.len() {
            return Err("no such attributes");
        }
        self.linked += usize::from(entry.has(FLAG_LINKS));
        self.check_data(number, entry, kind)
    }

    fn check_data(
        &mut self,
        number: usize,
        entry: &EntryRecord,
        kind: EntryKind,
    ) -> Result<(), &'static str> {
        let (size, data) = (entry.size.get(), entry.data.get());
        match kind {
            EntryKind::Directory => Ok(()),
            EntryKind::Object if (data as usize) < self.tables.objects.len() => Ok(()),
            EntryKind::Object => Err("no such object"),
            EntryKind::Inline if size > INLINE_MAX => Err("inline contents too long"),
            EntryKind::Inline => self.heap_range(entry).map(|_| ()),
            EntryKind::Symlink => check_target(self.heap_range(entry)?),
            EntryKind::HardLink => self.check_hard_link(entry),
            _ if size != 0 => Err("size does not fit the kind of entry"),
            EntryKind::Alias => self.check_alias(number, entry),
            EntryKind::Fifo | EntryKind::Socket | EntryKind::Whiteout if data != 0 => {
                Err("data does not fit the kind of entry")
            }
            _ => Ok(()),
        }
    }

    fn check_hard_link(&mut self, entry: &EntryRecord) -> Result<(), &'static str> {
        let path = self.heap_range(entry)?;
        self.hard_link_bytes += path.len();
        if self.hard_link_bytes > self.tables.heap.len() {
            return Err("paths of hard links overlap in the heap");
        }
        if path.split(|byte| *byte == b'/').all(name_is_legal) {
            Ok(())
        } else {
            Err("target of a hard link is not a normal relative path")
        }
    }

    fn check_alias(&mut self, number: usize, entry: &EntryRecord) -> Result<(), &'static str> {
        self.aliases += 1;
        let target = entry.data.get() as usize;
        if target >= number || entry.attributes.get() != 0 {
            return Err("malformed alias");
        }
        // Only kinds that may have several names have the flag.
        match self.tables.entries.get(target) {
            Some(inode) if inode.has(FLAG_LINKS) => Ok(()),
            _ => Err("alias of an inode that is not marked to have several names"),
        }
    }

    /// The `size` bytes at `data` in the heap.
    fn heap_range(&self, entry: &EntryRecord) -> Result<&'a [u8], &'static str> {
        let start = u64::from(entry.data.get());
        start
            .checked_add(entry.size.get())
            .and_then(|end| {
                self.tables
                    .heap
                    .get(start as usize..usize::try_from(end).ok()?)
            })
            .ok_or("data outside of the heap")
    }
}

fn check_target(target: &[u8]) -> Result<(), &'static str> {
    if !(1..=SYMLINK_MAX).contains(&target.len()) {
        return Err("symlink target does not have 1 to 4095 bytes");
    }
    if target.contains(&0) {
        return Err("NUL in a symlink target");
    }
    Ok(())
}

/// Follows the tree from the root.
fn check_tree(tables: &Tables<'_>) -> Result<(), IndexError> {
    let root = tables
        .entries
        .first()
        .ok_or_else(|| IndexError::entry(0, "no root"))?;
    let named = root.hash() != 0 || root.name_len != 0 || root.name.get() != 0;
    if !root.is_dir() || named || root.parent.get() != 0 {
        return Err(IndexError::entry(
            0,
            "the root is not a directory without a name",
        ));
    }
    // Number of the next directory's first entry. All before it are in a directory.
    let mut next: u32 = 1;
    for (number, dir) in (0_u32..).zip(tables.entries) {
        let fail = |problem| IndexError::entry(number as usize, problem);
        if number >= next {
            return Err(fail("in no directory"));
        }
        if dir.is_dir() {
            let children = Tables::children(dir);
            if children.start != next {
                return Err(fail("entries do not follow those of the directory before"));
            }
            if children.end as usize > tables.entries.len() {
                return Err(fail("entries outside of the entries section"));
            }
            if check_directory(tables, number, &children)? != dir.subdir_count() {
                return Err(fail("wrong number of subdirectories"));
            }
            next = children.end;
        }
    }
    Ok(())
}

/// Checks names and order of a directory's entries. Returns how many of them are directories.
fn check_directory(
    tables: &Tables<'_>,
    dir: u32,
    children: &Range<u32>,
) -> Result<u32, IndexError> {
    let mut last: (u64, &[u8]) = (0, &[]);
    let mut subdirs = 0;
    for (number, entry) in children.clone().zip(tables.range(children)) {
        let fail = |problem| IndexError::entry(number as usize, problem);
        if entry.parent.get() != dir {
            return Err(fail("names another directory than the one it is in"));
        }
        // A name that is not in the heap is empty here, so illegal.
        let name = tables.name(entry);
        if !name_is_legal(name) {
            return Err(fail("illegal name"));
        }
        let key = (entry.hash(), name);
        if key.0 != name_hash(name) {
            return Err(fail("wrong hash of the name"));
        }
        if key <= last {
            return Err(fail("not sorted by hash and name"));
        }
        last = key;
        subdirs += u32::from(entry.is_dir());
    }
    Ok(subdirs)
}

/// The aliases section has, sorted, every alias, and every inode that is marked to have several
/// names.
fn check_aliases(tables: &Tables<'_>, aliases: usize, linked: usize) -> Result<(), IndexError> {
    let key = |alias: &AliasRecord| (alias.inode.get(), alias.alias.get());
    let mut inodes = 0;
    let mut last = None;
    for (number, alias) in tables.aliases.iter().enumerate() {
        let fail = |problem| IndexError::alias(number, problem);
        if last.is_some_and(|last| last >= key(alias)) {
            return Err(fail("not sorted"));
        }
        inodes += usize::from(last.is_none_or(|(inode, _)| inode != alias.inode.get()));
        last = Some(key(alias));
        let entry = tables.entries.get(alias.alias.get() as usize);
        let entry = entry.filter(|entry| entry.is(EntryKind::Alias));
        if entry.is_none_or(|entry| entry.data != alias.inode) {
            return Err(fail("the entry is not an alias of the inode"));
        }
    }
    if tables.aliases.len() != aliases {
        return Err(IndexError::alias(
            tables.aliases.len(),
            "an alias is missing",
        ));
    }
    if inodes != linked {
        let problem = "an inode that is marked to have several names is missing";
        return Err(IndexError::alias(tables.aliases.len(), problem));
    }
    Ok(())
}
