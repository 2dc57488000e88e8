//! What an upper changes: the list that `lamina diff` shows, and the layer that `lamina commit`
//! makes. Takes time by the number of changes, not of files: only the upper is walked, and moved
//! directories, which a layer must hold in full.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::node::{LowerParts, Node};
use super::readdir::Listed;
use super::resolve::Resolved;
use super::{Cookie, Union};
use crate::attr::{Attr, Kind};
use crate::error::FsResult;
use crate::lower::{LowerRef, Number};
use crate::sys;
use crate::upper::UpperFound;

/// One thing a layer made of the upper has to say, in an order in which it can be unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerItem {
    /// Path from the root, without a leading slash; empty for the root.
    pub path: Vec<u8>,
    /// What is said of it.
    pub what: LayerWhat,
}

/// What a layer says of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayerWhat {
    /// The name is deleted from the lowers, where it is this.
    Whiteout(LowerRef),
    /// The directory (an item before) hides all that the lowers have in it.
    Opaque,
    /// A name that an opaque directory hides and that is not there any more. For the list of
    /// changes; in a layer the opaque directory says it.
    Hidden(LowerRef),
    /// An object.
    Object {
        /// Its node.
        number: Number,
        /// Its attributes.
        attr: Attr,
        /// What the lowers have under the name.
        replaces: Option<LowerRef>,
        /// Another path it has and that came before: a hard link.
        link_to: Option<Vec<u8>>,
    },
}

/// A directory that is being walked: its names are still to be done, in reverse order.
struct Level {
    path: Vec<u8>,
    names: Vec<Vec<u8>>,
    source: Source,
}

/// What is walked of a directory.
enum Source {
    /// Only what the upper has; and what the lowers have under the same path, seen or not.
    Upper(Arc<Node>, LowerParts),
    /// Everything: it was moved, and its lower parts with it; and what the lowers have under the same path.
    Whole(Number, LowerParts),
}

type Visit<'a> = dyn FnMut(LayerItem) -> FsResult<()> + 'a;

impl Union {
    /// Whether the upper says anything at all. That directories were looked into does not count, nor
    /// the time when something was last made in the root and removed again.
    pub fn has_changes(&self) -> FsResult<bool> {
        if self.upper.is_none() {
            return Ok(false);
        }
        let mut found = !self.root_is_as_below()?;
        if !found {
            let walked = self.visit_changes(&mut |item| {
                if item.path.is_empty() {
                    return Ok(());
                }
                found = true;
                // One is enough.
                Err(Errno::CANCELED.into())
            });
            if !found {
                walked?;
            }
        }
        Ok(found)
    }

    /// Whether the root has the mode, the owner and the xattrs that it has in the lowers.
    fn root_is_as_below(&self) -> FsResult<bool> {
        let Some(below) = self.lowers.roots().into_iter().next() else {
            return Ok(false);
        };
        let (now, was) = (
            self.node_attr(&self.root)?,
            self.present(self.lowers.attr(&below)?),
        );
        if (now.mode, now.uid, now.gid) != (was.mode, was.uid, was.gid) {
            return Ok(false);
        }
        let (mut names, mut before) = (
            self.xattr_names(Number::ROOT)?,
            self.lowers.xattr_names(&below)?,
        );
        names.sort();
        before.sort();
        if names != before {
            return Ok(false);
        }
        for name in &names {
            if Some(self.getxattr(Number::ROOT, name)?) != self.lowers.xattr(&below, name)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Calls `visit` for everything the upper says, directories before what is in them, names in
    /// order of their bytes. The same upper always gives the same sequence.
    pub fn visit_changes(&self, visit: &mut Visit<'_>) -> FsResult<()> {
        if self.upper.is_none() {
            return Ok(());
        }
        let attr = self.node_attr(&self.root)?;
        let names = self.upper_names(&self.root)?;
        let below = self.lowers.roots();
        visit(object(Vec::new(), attr, below.first().cloned(), None))?;
        let root = Source::Upper(Arc::clone(&self.root), below.into());
        let levels = vec![Level {
            path: Vec::new(),
            names,
            source: root,
        }];
        self.walk(levels, visit)
    }

    /// Calls `visit` for everything that is seen in the union, in the same order.
    pub fn visit_all(&self, visit: &mut Visit<'_>) -> FsResult<()> {
        visit(object(Vec::new(), self.node_attr(&self.root)?, None, None))?;
        let levels = vec![Level {
            path: Vec::new(),
            names: self.visible_names(Number::ROOT)?,
            source: Source::Whole(Number::ROOT, LowerParts::new()),
        }];
        self.walk(levels, visit)
    }

    fn walk(&self, levels: Vec<Level>, visit: &mut Visit<'_>) -> FsResult<()> {
        let mut levels = levels;
        let mut seen = HashMap::new();
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.names.pop() else {
                levels.pop();
                continue;
            };
            let mut path = level.path.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            let next = match &level.source {
                Source::Upper(dir, below) => {
                    let (dir, below) = (Arc::clone(dir), below.clone());
                    let below = self.resolve_lower(&below, &name)?;
                    self.visit_upper(&dir, &name, path, below, &mut seen, visit)?
                }
                Source::Whole(dir, below) => {
                    let (dir, below) = (*dir, below.clone());
                    let below = self.resolve_lower(&below, &name)?;
                    self.visit_whole(dir, &name, path, below, &mut seen, visit)?
                }
            };
            levels.extend(next);
        }
        Ok(())
    }

    /// One entry of the upper, and what the lowers have under its path.
    fn visit_upper(
        &self,
        dir: &Arc<Node>,
        name: &[u8],
        path: Vec<u8>,
        below: Option<Resolved>,
        seen: &mut HashMap<u64, Vec<u8>>,
        visit: &mut Visit<'_>,
    ) -> FsResult<Option<Level>> {
        let found = self.upper()?.examine(self.upper_dir(dir)?.as_fd(), name)?;
        let entry = match found {
            // Gone since the directory was listed: the mount is live.
            UpperFound::Nothing => return Ok(None),
            UpperFound::Whiteout => {
                if let Some(gone) = below.and_then(first_part) {
                    visit(LayerItem {
                        path,
                        what: LayerWhat::Whiteout(gone),
                    })?;
                }
                return Ok(None);
            }
            UpperFound::Object(entry) => entry,
        };
        let Some(resolved) = self.resolve(dir, name)? else {
            return Ok(None);
        };
        let is_dir = entry.attr.kind() == Kind::Dir;
        let (replaces, lower_dir) = replaced(below);
        let merged_here = is_dir && lower_dir.as_ref() == Some(&resolved.lowers);
        let moved = is_dir && !merged_here && !resolved.lowers.is_empty();
        let hides = is_dir && !merged_here;
        let node = self.intern(dir, name, resolved, false)?;
        let attr = self.node_attr(&node)?;
        let link_to = first_path(seen, &attr, &path);
        visit(object(path.clone(), attr, replaces, link_to))?;
        if !is_dir {
            return Ok(None);
        }
        if let Some(hidden) = lower_dir.as_ref().filter(|_| hides) {
            visit(LayerItem {
                path: path.clone(),
                what: LayerWhat::Opaque,
            })?;
            self.visit_hidden(node.number, hidden, &path, visit)?;
        }
        Ok(Some(if moved {
            Level {
                path,
                names: self.visible_names(node.number)?,
                source: Source::Whole(node.number, lower_dir.unwrap_or_default()),
            }
        } else {
            Level {
                path,
                names: self.upper_names(&node)?,
                source: Source::Upper(node, lower_dir.unwrap_or_default()),
            }
        }))
    }

    /// The names that a directory hides of those the lowers have in its place.
    fn visit_hidden(
        &self,
        dir: Number,
        hidden: &LowerParts,
        path: &[u8],
        visit: &mut Visit<'_>,
    ) -> FsResult<()> {
        let mut names = Vec::new();
        for part in hidden {
            self.lowers.for_each_entry(part, &mut |entry| {
                names.push(entry.name.to_vec());
                Ok(())
            })?;
        }
        names.sort();
        names.dedup();
        for name in names {
            let was = self.resolve_lower(hidden, &name)?.and_then(first_part);
            if let Some(was) = was
                && self.lookup(dir, &name)?.is_none()
            {
                let path = [path, b"/", name.as_slice()].concat();
                visit(LayerItem {
                    path,
                    what: LayerWhat::Hidden(was),
                })?;
            }
        }
        Ok(())
    }

    /// One entry of a moved directory, and what the lowers have under its path.
    fn visit_whole(
        &self,
        dir: Number,
        name: &[u8],
        path: Vec<u8>,
        below: Option<Resolved>,
        seen: &mut HashMap<u64, Vec<u8>>,
        visit: &mut Visit<'_>,
    ) -> FsResult<Option<Level>> {
        let Some(attr) = self.lookup(dir, name)? else {
            return Ok(None);
        };
        let number = Number(attr.ino);
        let link_to = first_path(seen, &attr, &path);
        let (replaces, lower_dir) = replaced(below);
        visit(object(path.clone(), attr, replaces, link_to))?;
        if attr.kind() != Kind::Dir {
            return Ok(None);
        }
        if let Some(hidden) = &lower_dir {
            self.visit_hidden(number, hidden, &path, visit)?;
        }
        Ok(Some(Level {
            path,
            names: self.visible_names(number)?,
            source: Source::Whole(number, lower_dir.unwrap_or_default()),
        }))
    }

    /// The names of a directory's entries in the upper, last first.
    fn upper_names(&self, dir: &Arc<Node>) -> FsResult<Vec<Vec<u8>>> {
        let mut names = sys::dir::names(&*self.upper_dir(dir)?)?;
        names.sort_by(|a, b| b.cmp(a));
        Ok(names)
    }

    /// The names that are seen in a directory, last first.
    fn visible_names(&self, dir: Number) -> FsResult<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        self.readdir(dir, Cookie::DOTDOT, &mut |item| {
            names.push(item.name.to_vec());
            Listed::Taken
        })?;
        names.sort_by(|a, b| b.cmp(a));
        Ok(names)
    }
}

/// What the lowers have under a path: the object itself, and if it is a directory, all that is merged in it.
fn replaced(below: Option<Resolved>) -> (Option<LowerRef>, Option<LowerParts>) {
    let first = below
        .as_ref()
        .and_then(|below| below.lowers.first().cloned());
    let dir = below.filter(|below| below.kind == Kind::Dir);
    (first, dir.map(|dir| dir.lowers))
}

/// The object itself, of all that is merged under a name.
fn first_part(found: Resolved) -> Option<LowerRef> {
    found.lowers.into_iter().next()
}

fn object(
    path: Vec<u8>,
    attr: Attr,
    replaces: Option<LowerRef>,
    link_to: Option<Vec<u8>>,
) -> LayerItem {
    let number = Number(attr.ino);
    LayerItem {
        path,
        what: LayerWhat::Object {
            number,
            attr,
            replaces,
            link_to,
        },
    }
}

/// Notes the path of a file of several names; returns an earlier path of it.
fn first_path(seen: &mut HashMap<u64, Vec<u8>>, attr: &Attr, path: &[u8]) -> Option<Vec<u8>> {
    if attr.kind() == Kind::Dir || attr.nlink <= 1 {
        return None;
    }
    if let Some(first) = seen.get(&attr.ino) {
        return Some(first.clone());
    }
    seen.insert(attr.ino, path.to_vec());
    None
}
