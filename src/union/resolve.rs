//! What a name in a directory means, and which node that is.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use lamina_layers::index::Ino;
use rustix::io::Errno;

use super::node::{LowerParts, Node, State};
use super::{Target, Union};
use crate::attr::{Attr, Kind};
use crate::error::{FsError, FsResult};
use crate::lower::{Found, LowerObject, LowerRef, Number};
use crate::sys;
use crate::upper::mark::Marks;
use crate::upper::{UpperEntry, UpperFound};

/// Longest name of a directory entry in bytes (`NAME_MAX`).
pub(super) const NAME_MAX: usize = 255;

/// What a name in a directory means.
pub(super) struct Resolved {
    /// What it is.
    pub kind: Kind,
    /// The entry in the upper, if there is one.
    pub upper: Option<UpperEntry>,
    /// The parts in the lowers that are seen (merged, for a directory); for a file of the upper, the
    /// one that has its contents if it has none itself.
    pub lowers: LowerParts,
    /// How often files had been completed before this was looked at.
    pub completions: u64,
}

/// What the upper has under a name, whether or not it can be seen.
pub(super) enum UpperName {
    /// No entry.
    Free,
    /// A whiteout.
    Whiteout,
    /// An object.
    Taken,
}

/// How many names one lookup may look at. Redirect marks of layers made with malice can send a lookup
/// through ever more paths, each of which has further marks on its way.
const MOST_STEPS: u32 = 1 << 16;

/// What is left of them.
pub(super) struct Steps(u32);

impl Steps {
    fn new() -> Self {
        Self(MOST_STEPS)
    }

    fn take(&mut self) -> FsResult<()> {
        match self.0.checked_sub(1) {
            Some(left) => self.0 = left,
            None => return Err(FsError::from(Errno::LOOP)),
        }
        Ok(())
    }
}

/// Refuses a redirect mark that has a part which is no name: it could lead out of the layers.
fn check_redirect(redirect: &[u8], part: &[u8]) -> FsResult<()> {
    if matches!(part, b"" | b"." | b"..") || part.contains(&b'/') || part.len() > NAME_MAX {
        return Err(FsError::damage(format_args!(
            "a directory's redirect mark is no path within the layers: {}",
            redirect.escape_ascii()
        )));
    }
    Ok(())
}

impl Union {
    /// Looks up a name; `None` if it does not exist. The kernel now knows the node once more.
    ///
    /// # Errors
    /// `ENOENT` if the directory was removed, `ENAMETOOLONG`, and what the filesystems below say.
    pub fn lookup(&self, parent: Number, name: &[u8]) -> FsResult<Option<Attr>> {
        if name.len() > NAME_MAX {
            return Err(Errno::NAMETOOLONG.into());
        }
        match self.target(parent)? {
            Target::Image(dir) => {
                let Some((_, image)) = self.lowers.image() else {
                    return Ok(None);
                };
                let Some(entry) = image.index().lookup(dir, name) else {
                    return Ok(None);
                };
                self.image_entry(entry.ino).map(Some)
            }
            Target::Node(dir) => {
                let entries = dir.entries.read();
                if let Some(listing) = &entries.listing {
                    match listing.find(name) {
                        None => return Ok(None),
                        Some(entry) => {
                            if let Some(ino) = self.untouched(entry.number, entry.kind) {
                                return self.image_attr(ino).map(Some);
                            }
                        }
                    }
                }
                match self.resolve(&dir, name)? {
                    Some(resolved) => self.entry(&dir, name, resolved).map(Some),
                    None => Ok(None),
                }
            }
        }
    }

    /// The inode behind a listing's number, if it is an image inode that needs no node.
    fn untouched(&self, number: Option<Number>, kind: Kind) -> Option<Ino> {
        let number = number?;
        let ino = number.image_ino()?;
        // A directory may be merged with plain directories above the image.
        let alone = kind != Kind::Dir || self.lowers.is_single();
        (alone && self.table.get(number).is_none()).then_some(ino)
    }

    /// Attributes of an image inode that the kernel gets to know: from its node if it has one.
    pub(super) fn image_entry(&self, ino: Ino) -> FsResult<Attr> {
        match self.table.get_counted(Number::of_image(ino)) {
            Some(node) => self.node_attr(&node),
            None => self.image_attr(ino),
        }
    }

    /// What a name means. The caller holds `dir.entries`.
    pub(super) fn resolve(&self, dir: &Arc<Node>, name: &[u8]) -> FsResult<Option<Resolved>> {
        let (has_upper, lowers, dead) = {
            let state = dir.state.read();
            (state.upper.is_some(), state.lowers.clone(), state.dead)
        };
        if dir.kind != Kind::Dir {
            return Err(Errno::NOTDIR.into());
        }
        if dead {
            return Ok(None);
        }
        let completions = self.completions.load(Ordering::SeqCst);
        if has_upper && let Some(upper) = &self.upper {
            let fd = self.upper_dir(dir)?;
            if upper.is_hidden(name) {
                return Ok(None);
            }
            let found = match sys::find_at(&*fd, name)? {
                None => upper.examine_missing(fd.as_fd(), name)?,
                Some(attr) => {
                    if let Some(known) = self.known(attr) {
                        return Ok(Some(known));
                    }
                    upper.examine_found(fd.as_fd(), name, attr)?
                }
            };
            match found {
                UpperFound::Nothing => {}
                UpperFound::Whiteout => return Ok(None),
                UpperFound::Object(entry) => {
                    let kind = entry.attr.kind();
                    let lowers = match kind {
                        Kind::Dir => self.lowers_under(&entry, &lowers, name)?,
                        Kind::File => self.contents_under(&entry, &lowers, name)?,
                        _ => LowerParts::new(),
                    };
                    return Ok(Some(Resolved {
                        kind,
                        upper: Some(entry),
                        lowers,
                        completions,
                    }));
                }
            }
        }
        self.resolve_lower(&lowers, name)
    }

    /// An object of the upper alone that has a node: its marks, which cost a few system calls, need
    /// not be read again.
    fn known(&self, attr: Attr) -> Option<Resolved> {
        let node = self.table.get(Number::new(Number::SPACE_UPPER, attr.ino))?;
        let state = node.state.read();
        let is_same = state.upper == Some(attr.ino) && state.lowers.is_empty() && !state.dead;
        let entry = UpperEntry {
            attr: state.mark.apply(attr),
            marks: Marks {
                node: state.mark.clone(),
                ..Marks::default()
            },
        };
        (is_same && entry.attr.kind() == node.kind).then_some(Resolved {
            kind: node.kind,
            upper: Some(entry),
            lowers: LowerParts::new(),
            completions: 0,
        })
    }

    /// The lower parts of a directory of the upper.
    fn lowers_under(
        &self,
        entry: &UpperEntry,
        parent: &LowerParts,
        name: &[u8],
    ) -> FsResult<LowerParts> {
        if entry.marks.opaque {
            return Ok(LowerParts::new());
        }
        let found = self.resolve_marked(entry, parent, name)?;
        Ok(match found {
            Some(found) if found.kind == Kind::Dir => found.lowers,
            _ => LowerParts::new(),
        })
    }

    /// What the lowers have for an object of the upper: under its own name, or where its redirect
    /// mark says.
    pub(super) fn resolve_marked(
        &self,
        entry: &UpperEntry,
        parent: &LowerParts,
        name: &[u8],
    ) -> FsResult<Option<Resolved>> {
        match &entry.marks.redirect {
            Some(redirect) => {
                let roots = LowerParts::from(self.lowers.roots());
                self.follow(redirect, parent, &roots, &mut Steps::new())
            }
            None => self.resolve_lower(parent, name),
        }
    }

    /// What a redirect mark means: a path from `roots`, or a name in `dirs`.
    fn follow(
        &self,
        redirect: &[u8],
        dirs: &LowerParts,
        roots: &LowerParts,
        steps: &mut Steps,
    ) -> FsResult<Option<Resolved>> {
        let Some(path) = redirect.strip_prefix(b"/") else {
            check_redirect(redirect, redirect)?;
            return self.resolve_within(dirs, redirect, steps);
        };
        let mut parts = roots.clone();
        let mut found = None;
        for name in path.split(|&byte| byte == b'/') {
            check_redirect(redirect, name)?;
            match self.resolve_within(&parts, name, steps)? {
                Some(next) => {
                    parts.clone_from(&next.lowers);
                    found = Some(next);
                }
                None => return Ok(None),
            }
        }
        Ok(found)
    }

    /// What a name means in the lower parts of a directory.
    pub(super) fn resolve_lower(
        &self,
        dirs: &LowerParts,
        name: &[u8],
    ) -> FsResult<Option<Resolved>> {
        self.resolve_within(dirs, name, &mut Steps::new())
    }

    pub(super) fn resolve_within(
        &self,
        dirs: &LowerParts,
        name: &[u8],
        steps: &mut Steps,
    ) -> FsResult<Option<Resolved>> {
        steps.take()?;
        let mut lowers = LowerParts::new();
        let mut redirect: Option<Vec<u8>> = None;
        for dir in dirs {
            let found = match &redirect {
                None => self.lowers.child(dir, name)?,
                Some(_) => break,
            };
            match found {
                Found::Nothing => {}
                Found::Whiteout => break,
                Found::Object(part, Kind::Dir) => {
                    // A redirect leads to layers below even if they have nothing under this name.
                    let last = self.lowers.is_bottom(part.layer);
                    let opaque = !last && self.lowers.is_opaque(&part)?;
                    if !last && !opaque {
                        redirect = self.lowers.redirect(&part)?;
                    }
                    lowers.push(part);
                    if opaque {
                        break;
                    }
                }
                Found::Object(part, kind) => {
                    if lowers.is_empty() {
                        lowers.push(self.with_data(part, dirs, name, steps)?);
                        return Ok(Some(Resolved {
                            kind,
                            upper: None,
                            lowers,
                            completions: 0,
                        }));
                    }
                    break;
                }
            }
        }
        if let (Some(redirect), Some(last)) = (redirect, lowers.last().cloned()) {
            let found = self.redirected(&redirect, dirs, &last, steps)?;
            if let Some(found) = found.filter(|found| found.kind == Kind::Dir) {
                lowers.extend(found.lowers);
            }
        }
        let found = !lowers.is_empty();
        Ok(found.then_some(Resolved {
            kind: Kind::Dir,
            upper: None,
            lowers,
            completions: 0,
        }))
    }

    /// What a redirect mark of `above` means in the layers below it.
    pub(super) fn redirected(
        &self,
        redirect: &[u8],
        dirs: &LowerParts,
        above: &LowerRef,
        steps: &mut Steps,
    ) -> FsResult<Option<Resolved>> {
        let below = |part: &LowerRef| part.layer.0 > above.layer.0;
        let dirs: LowerParts = dirs.iter().filter(|part| below(part)).cloned().collect();
        let roots: LowerParts = self.lowers.roots().into_iter().filter(below).collect();
        self.follow(redirect, &dirs, &roots, steps)
    }

    /// Whether the lowers have something under a name, so that a whiteout is needed to hide it.
    /// The caller holds `dir.entries`.
    pub(super) fn lower_has(&self, dir: &Node, name: &[u8]) -> FsResult<bool> {
        let lowers = dir.state.read().lowers.clone();
        Ok(self.resolve_lower(&lowers, name)?.is_some())
    }

    /// Whether a name has an entry in the upper.
    pub(super) fn upper_name(&self, dir: &Arc<Node>, name: &[u8]) -> FsResult<UpperName> {
        let fd = self.upper_dir(dir)?;
        Ok(match sys::find_at(&*fd, name)? {
            None if self.upper()?.has_whiteout_file(fd.as_fd(), name)? => UpperName::Whiteout,
            None => UpperName::Free,
            Some(attr) if attr.is_whiteout() => UpperName::Whiteout,
            Some(_) => UpperName::Taken,
        })
    }

    /// Attributes of what a name means, known to the kernel once more. The caller holds
    /// `dir.entries`.
    pub(super) fn entry(&self, dir: &Arc<Node>, name: &[u8], resolved: Resolved) -> FsResult<Attr> {
        if let Some(ino) = self.plain_image(&resolved) {
            return self.image_entry(ino);
        }
        let upper = resolved.upper.as_ref().map(|entry| entry.attr);
        let node = self.intern(dir, name, resolved, true)?;
        match upper {
            Some(attr) => self.finish_attr(&node, attr),
            None => self.node_attr(&node),
        }
    }

    /// The image inode, if this is one and nothing else is merged with it.
    fn plain_image(&self, resolved: &Resolved) -> Option<Ino> {
        match (&resolved.upper, resolved.lowers.as_slice()) {
            (
                None,
                [
                    LowerRef {
                        object: LowerObject::Image(ino),
                        ..
                    },
                ],
            ) => Some(*ino),
            _ => None,
        }
    }

    /// The number of an object.
    pub(super) fn number_of(&self, resolved: &Resolved) -> Number {
        let lower = resolved.lowers.first().map(LowerRef::number);
        let Some(entry) = &resolved.upper else {
            return lower.unwrap_or(Number(0));
        };
        let own = Number::new(Number::SPACE_UPPER, entry.attr.ino);
        match (&entry.marks.node.origin, lower) {
            // A merged directory is known by its lower part, which it always has; so is a file of which
            // the upper has the attributes alone.
            (_, Some(lower)) => lower,
            (Some(origin), None) if origin.tag == self.tag => origin.number,
            _ => own,
        }
    }

    /// The number an object is known by: its own where another object has the one it claims, as in
    /// an upper that was copied with its marks, or made by hand.
    pub(super) fn known_number(&self, resolved: &Resolved) -> Number {
        let number = self.number_of(resolved);
        let Some(entry) = &resolved.upper else {
            return number;
        };
        let ino = entry.attr.ino;
        match self.table.get(number) {
            Some(node) if node.kind != resolved.kind || node.state.read().upper != Some(ino) => {
                Number::new(Number::SPACE_UPPER, ino)
            }
            _ => number,
        }
    }

    /// The node of what a name means. The caller holds `dir.entries`.
    pub(super) fn intern(
        &self,
        dir: &Arc<Node>,
        name: &[u8],
        resolved: Resolved,
        counted: bool,
    ) -> FsResult<Arc<Node>> {
        let completions = resolved.completions;
        let number = self.known_number(&resolved);
        let state = State {
            upper: resolved.upper.as_ref().map(|entry| entry.attr.ino),
            lowers: resolved.lowers,
            mark: resolved
                .upper
                .map(|entry| entry.marks.node)
                .unwrap_or_default(),
            ..State::default()
        };
        let node = self
            .table
            .get_or_insert(Node::new(number, resolved.kind, state), counted);
        node.add_name(dir, name);
        self.recheck_contents(&node, completions)?;
        Ok(node)
    }

    /// The node of a number, made if it was an untouched image inode until now.
    pub(super) fn touch(&self, number: Number) -> FsResult<Arc<Node>> {
        match self.target(number)? {
            Target::Node(node) => Ok(node),
            Target::Image(ino) => self.touch_image(ino),
        }
    }

    /// As [`Union::touch`], for a directory.
    pub(super) fn touch_dir(&self, number: Number) -> FsResult<Arc<Node>> {
        let node = self.touch(number)?;
        if node.kind == Kind::Dir {
            Ok(node)
        } else {
            Err(Errno::NOTDIR.into())
        }
    }

    fn touch_image(&self, ino: Ino) -> FsResult<Arc<Node>> {
        let Some((_, image)) = self.lowers.image() else {
            return Err(Errno::STALE.into());
        };
        let is_dir = |ino| {
            image
                .index()
                .inode(ino)
                .is_some_and(|inode| Kind::of_mode(inode.mode()) == Some(Kind::Dir))
        };
        let mut error = FsError::from(Errno::STALE);
        // Of a file with several names some may be deleted: any that is left will do.
        for (parent, entry) in image.index().names_of(ino) {
            // The directories above that have no node yet, innermost first.
            let mut missing = Vec::new();
            let mut dir = parent;
            let mut node = loop {
                if let Some(node) = self.image_node(dir) {
                    break node;
                }
                if dir == Ino::ROOT || !is_dir(dir) {
                    return Err(Errno::STALE.into());
                }
                missing.push(dir);
                dir = image
                    .index()
                    .inode(dir)
                    .map_or(Ino::ROOT, |inode| inode.parent());
            };
            let mut failed = false;
            for dir in missing.into_iter().rev() {
                let name = image
                    .index()
                    .names_of(dir)
                    .next()
                    .map(|(_, entry)| entry.name);
                match self.touch_child(&node, name.unwrap_or_default(), dir) {
                    Ok(next) => node = next,
                    Err(cause) => {
                        error = cause;
                        failed = true;
                        break;
                    }
                }
            }
            if failed {
                continue;
            }
            match self.touch_child(&node, entry.name, ino) {
                Ok(node) => return Ok(node),
                Err(cause) => error = cause,
            }
        }
        Err(error)
    }

    /// The node that has the image inode `ino` as a part.
    fn image_node(&self, ino: Ino) -> Option<Arc<Node>> {
        if ino == Ino::ROOT {
            return Some(Arc::clone(&self.root));
        }
        self.table.get(Number::of_image(ino))
    }

    /// The node of a name, which must mean the image inode `ino`.
    fn touch_child(&self, dir: &Arc<Node>, name: &[u8], ino: Ino) -> FsResult<Arc<Node>> {
        let _entries = dir.entries.read();
        let resolved = self
            .resolve(dir, name)?
            .ok_or_else(|| FsError::from(Errno::STALE))?;
        let is_it = resolved
            .lowers
            .iter()
            .any(|part| part.object == LowerObject::Image(ino));
        if !is_it && self.number_of(&resolved) != Number::of_image(ino) {
            return Err(Errno::STALE.into());
        }
        self.intern(dir, name, resolved, false)
    }
}
