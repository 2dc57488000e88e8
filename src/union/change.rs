//! How paths differ from the lowers: what `lamina diff` shows.

use std::borrow::Cow;

use super::data::read_contents;
use super::diff::LayerWhat;
use super::{LayerItem, Union};
use crate::attr::{Attr, Kind};
use crate::error::FsResult;
use crate::lower::{LowerRef, Number};

/// How a path differs from the lowers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    /// It is new.
    Added,
    /// It, or something in it, is different.
    Changed,
    /// It is gone.
    Deleted,
}

/// A path that differs: at least one of the two sides is there.
#[derive(Clone, Debug)]
pub struct Change {
    /// Path from the root, with a leading slash.
    pub path: Vec<u8>,
    /// What the lowers have there.
    pub was: Option<Side>,
    /// What is there now.
    pub now: Option<Side>,
}

/// An object as it was or as it is.
#[derive(Clone, Debug)]
pub struct Side {
    /// Its attributes.
    pub attr: Attr,
    at: Place,
}

#[derive(Clone, Debug)]
enum Place {
    Below(LowerRef),
    Seen(Number),
}

impl Change {
    /// How it differs.
    pub fn kind(&self) -> ChangeKind {
        match (&self.was, &self.now) {
            (None, _) => ChangeKind::Added,
            (Some(_), Some(_)) => ChangeKind::Changed,
            (Some(_), None) => ChangeKind::Deleted,
        }
    }
}

impl Side {
    /// What it is.
    pub fn kind(&self) -> Kind {
        self.attr.kind()
    }
}

impl Union {
    /// The paths that differ from the lowers, sorted.
    pub fn changes(&self) -> FsResult<Vec<Change>> {
        let mut changes = Vec::new();
        self.visit_changes(&mut |item| {
            changes.extend(self.change_of(item)?);
            Ok(())
        })?;
        changes.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(changes)
    }

    fn change_of(&self, item: LayerItem) -> FsResult<Option<Change>> {
        let (was, now) = match item.what {
            LayerWhat::Opaque => return Ok(None),
            LayerWhat::Whiteout(was) | LayerWhat::Hidden(was) => (Some(was), None),
            LayerWhat::Object {
                number,
                attr,
                replaces,
                ..
            } => {
                let at = Place::Seen(number);
                (replaces, Some(Side { attr, at }))
            }
        };
        if item.path.is_empty() {
            return Ok(None);
        }
        let below = |at: LowerRef| -> FsResult<Side> {
            let attr = self.present(self.lowers.attr(&at)?);
            let at = Place::Below(at);
            Ok(Side { attr, at })
        };
        Ok(Some(Change {
            path: [b"/", item.path.as_slice()].concat(),
            was: was.map(below).transpose()?,
            now,
        }))
    }

    /// Reads contents of a regular file at `offset`; fewer bytes than fit only at its end.
    pub fn read_side(&self, side: &Side, offset: u64, room: &mut [u8]) -> FsResult<usize> {
        match &side.at {
            Place::Seen(number) => self.read(*number, offset, room),
            Place::Below(at) => read_contents(self.lowers.contents(at)?, offset, room),
        }
    }

    /// The target of a symbolic link.
    pub fn target_of_side(&self, side: &Side) -> FsResult<Cow<'_, [u8]>> {
        match &side.at {
            Place::Seen(number) => self.readlink(*number),
            Place::Below(at) => self.lowers.readlink(at),
        }
    }

    /// The extended attributes, sorted by name.
    pub fn xattrs_of_side(&self, side: &Side) -> FsResult<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut names = match &side.at {
            Place::Seen(number) => self.xattr_names(*number)?,
            Place::Below(at) => self.lowers.xattr_names(at)?,
        };
        names.sort();
        let mut xattrs = Vec::with_capacity(names.len());
        for name in names {
            let value = match &side.at {
                Place::Seen(number) => Some(self.getxattr(*number, &name)?.into_owned()),
                Place::Below(at) => self.lowers.xattr(at, &name)?.map(Cow::into_owned),
            };
            xattrs.extend(value.map(|value| (name, value)));
        }
        Ok(xattrs)
    }

    /// Whether two regular files are known to have the same contents: nothing was written to the
    /// one that is seen.
    pub fn is_same_contents(&self, change: &Change) -> FsResult<bool> {
        let (Some(was), Some(now)) = (&change.was, &change.now) else {
            return Ok(false);
        };
        match (&was.at, &now.at) {
            (Place::Below(below), Place::Seen(number)) if now.kind() == Kind::File => {
                self.reads_from(*number, below)
            }
            _ => Ok(false),
        }
    }
}
