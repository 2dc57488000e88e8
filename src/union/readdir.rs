//! Listing directories.

use std::collections::HashSet;
use std::sync::Arc;

use rustix::io::Errno;

use lamina_layers::index::Ino;

use super::listing::{Cookie, ListEntry, Listing};
use super::node::Node;
use super::{Target, Union};
use crate::attr::{Attr, Kind, Time};
use crate::error::{FsError, FsResult};
use crate::lower::Number;
use crate::sys;
use crate::upper::mark::WH_PREFIX;

/// One entry of a directory.
#[derive(Clone, Copy, Debug)]
pub struct DirItem<'a> {
    /// The name.
    pub name: &'a [u8],
    /// The position after it.
    pub next: Cookie,
    /// `st_ino` of what it names.
    pub number: Number,
    /// What it names.
    pub kind: Kind,
}

/// Whether the reader can take more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listed {
    /// It took the entry.
    Taken,
    /// It has no room for the entry.
    Full,
}

impl Listed {
    /// Whether there was room.
    pub fn taken_if(room: bool) -> Self {
        if room { Self::Taken } else { Self::Full }
    }
}

/// Takes an entry of an image directory.
type EmitImage<'a> = dyn FnMut(&[u8], Cookie, Ino, Kind) -> FsResult<Listed> + 'a;

/// A number for an entry of which nothing but the name is known. The kernel must look such an entry
/// up when it is used, and then gets the error.
fn unknown(dir: &Node, next: Cookie) -> Number {
    Number::new(Number::SPACE_UNKNOWN, next.0 ^ dir.number.0.rotate_left(24))
}

/// Goes on after an error that is of one entry alone: it must not hide the others.
fn pass_over(name: &[u8], error: FsError) -> FsResult<()> {
    if error.explanation().is_none() && !matches!(error.errno(), Errno::IO | Errno::LOOP) {
        return Err(error);
    }
    let name = name.escape_ascii();
    tracing::warn!("of the listed {name} nothing but the name can be told: {error}");
    Ok(())
}

fn nothing_known(number: Number, kind: Kind) -> Attr {
    let time = Time::default();
    Attr {
        ino: number.0,
        dev: 0,
        mode: kind.mode_bits(),
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        blocks: 0,
        blksize: 4096,
        atime: time,
        mtime: time,
        ctime: time,
        birth: None,
    }
}

impl Union {
    /// Lists a directory from a position on, `.` and `..` included.
    ///
    /// # Errors
    /// `ENOTDIR`, and what the filesystems below say.
    pub fn readdir(
        &self,
        number: Number,
        from: Cookie,
        emit: &mut dyn FnMut(DirItem<'_>) -> Listed,
    ) -> FsResult<()> {
        match self.target(number)? {
            Target::Image(dir) => self.read_image_dir(dir, from, &mut |name, next, ino, kind| {
                let number = Number::of_image(ino);
                Ok(emit(DirItem {
                    name,
                    next,
                    number,
                    kind,
                }))
            }),
            Target::Node(dir) => {
                let listing = self.listing(&dir)?;
                if self.emit_dots(&dir, from, emit) == Listed::Full {
                    return Ok(());
                }
                for (next, entry) in listing.after(from) {
                    let number = match self.number_in(&dir, entry) {
                        Ok(Some(number)) => number,
                        Ok(None) => continue,
                        Err(error) => {
                            pass_over(&entry.name, error)?;
                            unknown(&dir, next)
                        }
                    };
                    let item = DirItem {
                        name: &entry.name,
                        next,
                        number,
                        kind: entry.kind,
                    };
                    if emit(item) == Listed::Full {
                        break;
                    }
                }
                Ok(())
            }
        }
    }

    /// As [`Union::readdir`], with attributes. The kernel knows every entry that was taken, but
    /// `.` and `..`, once more.
    pub fn readdirplus(
        &self,
        number: Number,
        from: Cookie,
        emit: &mut dyn FnMut(DirItem<'_>, &Attr) -> Listed,
    ) -> FsResult<()> {
        let mut give = |name: &[u8], next, attr: &Attr| {
            let number = Number(attr.ino);
            let listed = emit(
                DirItem {
                    name,
                    next,
                    number,
                    kind: attr.kind(),
                },
                attr,
            );
            if listed == Listed::Full && next > Cookie::DOTDOT {
                self.forget(number, 1);
            }
            listed
        };
        match self.target(number)? {
            Target::Image(dir) => self.read_image_dir(dir, from, &mut |name, next, ino, _| {
                let attr = if next <= Cookie::DOTDOT {
                    self.getattr(Number::of_image(ino))?
                } else {
                    self.image_entry(ino)?
                };
                Ok(give(name, next, &attr))
            }),
            Target::Node(dir) => {
                let listing = self.listing(&dir)?;
                let mut dots = Vec::new();
                self.emit_dots(&dir, from, &mut |item| {
                    dots.push((item.name.to_vec(), item.next, item.number));
                    Listed::Taken
                });
                for (name, next, number) in dots {
                    if give(&name, next, &self.getattr(number)?) == Listed::Full {
                        return Ok(());
                    }
                }
                for (next, entry) in listing.after(from) {
                    let attr = match self.lookup(number, &entry.name) {
                        Ok(Some(attr)) => attr,
                        // Gone since the listing was made.
                        Ok(None) => continue,
                        Err(error) => {
                            pass_over(&entry.name, error)?;
                            nothing_known(unknown(&dir, next), entry.kind)
                        }
                    };
                    if give(&entry.name, next, &attr) == Listed::Full {
                        break;
                    }
                }
                Ok(())
            }
        }
    }

    /// Lists an image directory that nothing was done to, straight from the index.
    fn read_image_dir(&self, dir: Ino, from: Cookie, emit: &mut EmitImage<'_>) -> FsResult<()> {
        let Some((_, image)) = self.lowers.image() else {
            return Err(Errno::STALE.into());
        };
        let index = image.index();
        let inode = index
            .inode(dir)
            .ok_or_else(|| FsError::from(Errno::STALE))?;
        if Kind::of_mode(inode.mode()) != Some(Kind::Dir) {
            return Err(Errno::NOTDIR.into());
        }
        for (name, next, ino) in [
            (&b"."[..], Cookie::DOT, dir),
            (&b".."[..], Cookie::DOTDOT, inode.parent()),
        ] {
            if from < next && emit(name, next, ino, Kind::Dir)? == Listed::Full {
                return Ok(());
            }
        }
        let entries = index.entries(dir);
        let start = from.hash().map_or(0, |hash| entries.first_at(hash));
        let mut rank = 0;
        let mut last = None;
        for at in start..entries.len() {
            let Some(entry) = entries.get(at) else { break };
            rank = if last == Some(entry.hash) {
                rank + 1
            } else {
                0
            };
            last = Some(entry.hash);
            let next = Cookie::after(entry.hash, rank);
            let Some(kind) = Kind::of_dirent(entry.file_type) else {
                continue;
            };
            if next > from && emit(entry.name, next, entry.ino, kind)? == Listed::Full {
                break;
            }
        }
        Ok(())
    }

    fn emit_dots(
        &self,
        dir: &Arc<Node>,
        from: Cookie,
        emit: &mut dyn FnMut(DirItem<'_>) -> Listed,
    ) -> Listed {
        let parent = dir.any_name().map_or(dir.number, |name| name.parent.number);
        for (name, next, number) in [
            (&b"."[..], Cookie::DOT, dir.number),
            (&b".."[..], Cookie::DOTDOT, parent),
        ] {
            if from < next
                && emit(DirItem {
                    name,
                    next,
                    number,
                    kind: Kind::Dir,
                }) == Listed::Full
            {
                return Listed::Full;
            }
        }
        Listed::Taken
    }

    /// The number of a listed entry; `None` if it is gone.
    fn number_in(&self, dir: &Arc<Node>, entry: &ListEntry) -> FsResult<Option<Number>> {
        if let Some(number) = entry.number {
            return Ok(Some(number));
        }
        let _entries = dir.entries.read();
        let resolved = self.resolve(dir, &entry.name)?;
        Ok(resolved.map(|resolved| self.known_number(&resolved)))
    }

    /// All entries of a directory, remembered until it changes.
    fn listing(&self, dir: &Arc<Node>) -> FsResult<Arc<Listing>> {
        if dir.kind != Kind::Dir {
            return Err(Errno::NOTDIR.into());
        }
        if let Some(listing) = &dir.entries.read().listing {
            return Ok(Arc::clone(listing));
        }
        let mut entries = dir.entries.write();
        if let Some(listing) = &entries.listing {
            return Ok(Arc::clone(listing));
        }
        let listing = Arc::new(self.build_listing(dir)?);
        entries.listing = Some(Arc::clone(&listing));
        Ok(listing)
    }

    /// Reads the entries of all parts of a directory. The caller holds its `entries`, or does
    /// not mind if it changes meanwhile.
    pub(super) fn build_listing(&self, dir: &Arc<Node>) -> FsResult<Listing> {
        let (lowers, has_upper, dead) = {
            let state = dir.state.read();
            (state.lowers.clone(), state.upper.is_some(), state.dead)
        };
        if dead {
            return Ok(Listing::default());
        }
        let mut list = Vec::new();
        let mut hidden: HashSet<Box<[u8]>> = HashSet::new();
        if has_upper {
            self.list_upper(dir, &mut list, &mut hidden, lowers.is_empty())?;
        }
        for (at, part) in lowers.iter().enumerate() {
            let last = at + 1 == lowers.len();
            self.lowers.for_each_entry(part, &mut |entry| {
                if hidden.contains(entry.name) {
                    return Ok(());
                }
                if !last {
                    hidden.insert(entry.name.into());
                }
                if let Some(kind) = entry.kind {
                    list.push(ListEntry::new(entry.name, kind, Some(entry.number)));
                }
                Ok(())
            })?;
        }
        Ok(Listing::new(list))
    }

    fn list_upper(
        &self,
        dir: &Arc<Node>,
        list: &mut Vec<ListEntry>,
        hidden: &mut HashSet<Box<[u8]>>,
        pure: bool,
    ) -> FsResult<()> {
        let fd = self.upper_dir(dir)?;
        let upper = self.upper()?;
        let namespace_is_plain = upper.is_privileged();
        let shared = upper.dialect().shared;
        sys::dir::for_each_entry(&*fd, |entry| -> FsResult<()> {
            if let Some(deleted) = entry.name.strip_prefix(WH_PREFIX)
                && shared
            {
                hidden.insert(deleted.into());
                return Ok(());
            }
            if !pure {
                hidden.insert(entry.name.into());
            }
            // Regular files may stand for devices; only looking tells.
            let certain = match entry.kind {
                Some(Kind::Char) | None => None,
                Some(Kind::File) if !namespace_is_plain => None,
                kind => kind,
            };
            let kind = match certain {
                Some(kind) => kind,
                None => match upper.examine(std::os::fd::AsFd::as_fd(&*fd), entry.name)? {
                    crate::upper::UpperFound::Object(found) => found.attr.kind(),
                    _ => return Ok(()),
                },
            };
            list.push(ListEntry::new(entry.name, kind, None));
            Ok(())
        })
    }
}
