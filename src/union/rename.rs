//! `rename`, in all its modes, of anything onto anything.
//!
//! A directory with lower parts is moved by moving its part in the upper and marking that with a
//! `redirect` to where the lower parts are; a whiteout hides the old name. So it costs the same
//! whatever is in it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{self as rfs, AtFlags, RenameFlags};
use rustix::io::Errno;

use super::node::{DirState, Node, NodeName};
use super::resolve::{Resolved, UpperName};
use super::{Caller, NewNode, Union};
use crate::attr::Kind;
use crate::error::{FsError, FsResult};
use crate::lower::Number;
use crate::sync::RwLockWriteGuard;
use crate::upper::build::NewObject;

/// What a rename does about the two names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    /// Replace what has the new name.
    Replace,
    /// `RENAME_NOREPLACE`: fail if the new name exists.
    NoReplace,
    /// `RENAME_EXCHANGE`: both must exist.
    Exchange,
    /// `RENAME_WHITEOUT`: leave a character device 0:0 under the old name, for the caller.
    Whiteout(Caller),
}

/// Longest path a redirect can name.
const REDIRECT_MAX: usize = 4000;
/// How often either name may change while we prepare before we give up.
const ATTEMPTS: usize = 64;

/// One of the two names.
#[derive(Clone, Copy)]
struct Place<'a> {
    dir: &'a Arc<Node>,
    name: &'a [u8],
}

/// What is moved, and what it replaces or is exchanged with.
struct Plan {
    source: Arc<Node>,
    target: Option<Target>,
}

struct Target {
    node: Arc<Node>,
    in_upper: bool,
}

/// Locks the entries of two directories in the order of their numbers.
pub(super) fn lock_two<'a>(
    a: &'a Arc<Node>,
    b: &'a Arc<Node>,
) -> (
    RwLockWriteGuard<'a, DirState>,
    RwLockWriteGuard<'a, DirState>,
) {
    if a.number < b.number {
        let first = a.entries.write();
        (first, b.entries.write())
    } else {
        let second = b.entries.write();
        (a.entries.write(), second)
    }
}

impl Union {
    /// Renames.
    ///
    /// # Errors
    /// `ENOENT`, `EEXIST` (no replace), `ENOTEMPTY`, `ENOTDIR`, `EISDIR`, `EINVAL` (a directory
    /// into itself), `EROFS`.
    pub fn rename(
        &self,
        parent: Number,
        name: &[u8],
        new_parent: Number,
        new_name: &[u8],
        mode: RenameMode,
    ) -> FsResult<()> {
        let from_dir = self.writable_dir(parent, name)?;
        let to_dir = self.writable_dir(new_parent, new_name)?;
        let from = Place {
            dir: &from_dir,
            name,
        };
        let to = Place {
            dir: &to_dir,
            name: new_name,
        };
        if self.rename_at_once(from, to, mode)? {
            return Ok(());
        }
        for _ in 0..ATTEMPTS {
            let Some(plan) = self.plan(from, to, mode)? else {
                return Ok(());
            };
            if self.execute(from, to, &plan, mode)? {
                return Ok(());
            }
        }
        Err(Errno::BUSY.into())
    }

    /// Renames what is no directory, if nothing has to be prepared for that: `false` if something
    /// has.
    fn rename_at_once(&self, from: Place<'_>, to: Place<'_>, mode: RenameMode) -> FsResult<bool> {
        if !matches!(mode, RenameMode::Replace | RenameMode::NoReplace) {
            return Ok(false);
        }
        let (mut old, mut new) = if Arc::ptr_eq(from.dir, to.dir) {
            (from.dir.entries.write(), None)
        } else {
            let (old, new) = lock_two(from.dir, to.dir);
            (old, Some(new))
        };
        let movable = |found: &Resolved| found.kind != Kind::Dir && found.upper.is_some();
        let Some(source) = self.resolve(from.dir, from.name)?.filter(movable) else {
            return Ok(false);
        };
        let target = match self.resolve(to.dir, to.name)? {
            Some(found) if !movable(&found) || mode == RenameMode::NoReplace => return Ok(false),
            found => found,
        };
        let plan = Plan {
            source: self.intern(from.dir, from.name, source, false)?,
            target: match target {
                Some(found) => Some(Target {
                    node: self.intern(to.dir, to.name, found, false)?,
                    in_upper: true,
                }),
                None => None,
            },
        };
        let is_same = |target: &Target| Arc::ptr_eq(&target.node, &plan.source);
        if !plan.target.as_ref().is_some_and(is_same) {
            self.replace(from, to, &plan, true)?;
            old.removed(from.name);
            new.as_mut().unwrap_or(&mut old).changed();
        }
        Ok(true)
    }

    /// Finds out what is to be done, checks it, and copies up what must be. `None` if there is
    /// nothing to do.
    fn plan(&self, from: Place<'_>, to: Place<'_>, mode: RenameMode) -> FsResult<Option<Plan>> {
        let source = {
            let _entries = from.dir.entries.read();
            let found = self.resolve(from.dir, from.name)?;
            let found = found.ok_or_else(|| FsError::from(Errno::NOENT))?;
            self.intern(from.dir, from.name, found, false)?
        };
        let (target, shared) = {
            let _entries = to.dir.entries.read();
            match self.resolve(to.dir, to.name)? {
                Some(found) => {
                    let in_upper = found.upper.is_some();
                    let shared = found.kind != Kind::Dir && !in_upper && self.has_links(&found)?;
                    let node = self.intern(to.dir, to.name, found, false)?;
                    (Some(Target { node, in_upper }), shared)
                }
                None => (None, false),
            }
        };
        if mode == RenameMode::Exchange && target.is_none() {
            return Err(Errno::NOENT.into());
        }
        if let Some(target) = &target {
            if mode == RenameMode::NoReplace {
                return Err(Errno::EXIST.into());
            }
            if Arc::ptr_eq(&target.node, &source) {
                return Ok(None);
            }
            if mode != RenameMode::Exchange {
                check_kinds(source.kind, target.node.kind)?;
            }
        }
        check_no_loop(&source, to.dir)?;
        self.check_movable(&source)?;
        if let Some(target) = &target
            && mode == RenameMode::Exchange
        {
            self.check_movable(&target.node)?;
        }
        self.copy_up(&source)?;
        if let Some(target) = &target {
            if mode == RenameMode::Exchange {
                check_no_loop(&target.node, from.dir)?;
            }
            // A file of several names is shared out before one of them goes, as for unlink.
            if mode == RenameMode::Exchange || shared {
                self.copy_up(&target.node)?;
            }
        }
        Ok(Some(Plan { source, target }))
    }

    /// Whether the lower file has other names.
    pub(super) fn has_links(&self, found: &Resolved) -> FsResult<bool> {
        match found.lowers.first() {
            Some(lower) => Ok(self.lowers.attr(lower)?.nlink > 1),
            None => Ok(false),
        }
    }

    /// Does what was planned, if both names still mean what they did. `false` if not.
    fn execute(
        &self,
        from: Place<'_>,
        to: Place<'_>,
        plan: &Plan,
        mode: RenameMode,
    ) -> FsResult<bool> {
        let mut locked = vec![from.dir, to.dir];
        let target_dir = plan.target.as_ref().map(|target| &target.node);
        locked.extend(target_dir.filter(|node| node.kind == Kind::Dir));
        locked.sort_by_key(|node| node.number);
        locked.dedup_by_key(|node| node.number);
        let mut guards: Vec<_> = locked
            .iter()
            .map(|node| (node.number, node.entries.write()))
            .collect();

        let Some(target_in_upper) = self.still_so(from, to, plan)? else {
            return Ok(false);
        };
        if let Some(target) = &plan.target
            && mode != RenameMode::Exchange
            && target.node.kind == Kind::Dir
            && !self.build_listing(&target.node)?.is_empty()
        {
            return Err(Errno::NOTEMPTY.into());
        }
        if mode == RenameMode::Exchange {
            self.exchange(from, to, plan)?;
        } else {
            self.replace(from, to, plan, target_in_upper)?;
        }
        for (number, guard) in &mut guards {
            if *number == from.dir.number && mode != RenameMode::Exchange {
                guard.removed(from.name);
            }
            if *number == to.dir.number || mode == RenameMode::Exchange {
                guard.changed();
            }
        }
        if let RenameMode::Whiteout(caller) = mode {
            self.leave_device(from, caller)?;
            for (_, guard) in &mut guards {
                guard.changed();
            }
        }
        Ok(true)
    }

    /// Whether both names mean what they did when the plan was made; and if so, whether the
    /// target has a part in the upper.
    fn still_so(&self, from: Place<'_>, to: Place<'_>, plan: &Plan) -> FsResult<Option<bool>> {
        let Some(source) = self.resolve(from.dir, from.name)? else {
            return Ok(None);
        };
        if source.upper.is_none() || self.known_number(&source) != plan.source.number {
            return Ok(None);
        }
        match (self.resolve(to.dir, to.name)?, &plan.target) {
            (None, None) => Ok(Some(false)),
            (Some(found), Some(target)) if self.known_number(&found) == target.node.number => {
                // Copied up since the plan was made: as good.
                Ok(Some(found.upper.is_some() || target.in_upper))
            }
            _ => Ok(None),
        }
    }

    fn replace(
        &self,
        from: Place<'_>,
        to: Place<'_>,
        plan: &Plan,
        target_in_upper: bool,
    ) -> FsResult<()> {
        let from_fd = self.upper_dir(from.dir)?;
        let to_fd = self.upper_dir(to.dir)?;
        self.mark_moved(&plan.source, to)?;
        if let Some(target) = &plan.target
            && target_in_upper
            && target.node.state.read().names.len() <= 1
        {
            self.pin(&target.node, &to_fd, to.name)?;
        }
        plan.source.add_second_name(to.dir, to.name);
        let moved = self.move_upper(from, to, (&from_fd, &to_fd), plan.source.kind);
        if let Err(error) = moved {
            plan.source.remove_name(to.dir, to.name);
            return Err(error);
        }
        plan.source.remove_name(from.dir, from.name);
        if plan.source.kind == Kind::Dir {
            from.dir.subdirs_changed(-1);
            to.dir.subdirs_changed(1);
        }
        if let Some(Target { node, .. }) = &plan.target {
            if node.kind == Kind::Dir {
                self.bury_dir(to.dir, to.name, node);
            } else {
                node.remove_name(to.dir, to.name);
            }
        }
        Ok(())
    }

    /// The move itself, in one step wherever the system can.
    fn move_upper(
        &self,
        from: Place<'_>,
        to: Place<'_>,
        fds: (&OwnedFd, &OwnedFd),
        kind: Kind,
    ) -> FsResult<()> {
        let upper = self.upper()?;
        let hide_old = self.lower_has(from.dir, from.name)?;
        let over_whiteout =
            kind == Kind::Dir && matches!(self.upper_name(to.dir, to.name)?, UpperName::Whiteout);
        // It may be a file beside the name.
        if over_whiteout && crate::sys::find_at(fds.1, to.name)?.is_some() {
            // The whiteout of the new name becomes that of the old one.
            rfs::renameat_with(fds.0, from.name, fds.1, to.name, RenameFlags::EXCHANGE)?;
            if !hide_old {
                rfs::unlinkat(fds.0, from.name, AtFlags::empty())?;
            }
            return Ok(());
        }
        let attempt = || {
            if hide_old {
                upper.move_leaving_whiteout((fds.0.as_fd(), from.name), (fds.1.as_fd(), to.name))
            } else {
                rfs::renameat(fds.0, from.name, fds.1, to.name)
            }
        };
        match attempt() {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                self.empty_in_place(fds.1, to.name)?;
                attempt()?;
            }
            result => result?,
        }
        Ok(upper.remove_whiteout_file(fds.1.as_fd(), to.name)?)
    }

    /// Replaces a directory of the upper that has only whiteouts in it by an empty opaque one, so
    /// that it can be renamed over and never shows what the whiteouts hid.
    fn empty_in_place(&self, dir: &OwnedFd, name: &[u8]) -> FsResult<()> {
        let upper = self.upper()?;
        let attr = crate::sys::stat_at(dir, name)?;
        let temp = upper.temp_name();
        let empty = NewObject {
            kind: Kind::Dir,
            mode: attr.mode,
            owner: (attr.uid, Some(attr.gid)),
            rdev: 0,
            target: b"",
        };
        let made = upper.build(upper.work(), &temp, &empty)?;
        upper.dialect().set_opaque(made.fd.as_fd())?;
        let exchanged = rfs::renameat_with(
            upper.work(),
            temp.as_slice(),
            dir,
            name,
            RenameFlags::EXCHANGE,
        );
        upper.discard(&temp);
        Ok(exchanged?)
    }

    fn exchange(&self, from: Place<'_>, to: Place<'_>, plan: &Plan) -> FsResult<()> {
        let Some(Target { node: target, .. }) = &plan.target else {
            return Err(Errno::NOENT.into());
        };
        let source = &plan.source;
        let from_fd = self.upper_dir(from.dir)?;
        let to_fd = self.upper_dir(to.dir)?;
        self.mark_moved(source, to)?;
        self.mark_moved(target, from)?;
        source.add_second_name(to.dir, to.name);
        target.add_second_name(from.dir, from.name);
        let swapped = rfs::renameat_with(
            &*from_fd,
            from.name,
            &*to_fd,
            to.name,
            RenameFlags::EXCHANGE,
        );
        if let Err(errno) = swapped {
            source.remove_name(to.dir, to.name);
            target.remove_name(from.dir, from.name);
            return Err(errno.into());
        }
        source.remove_name(from.dir, from.name);
        target.remove_name(to.dir, to.name);
        let is_dir = |node: &Node| i32::from(node.kind == Kind::Dir);
        let gain = is_dir(source) - is_dir(target);
        from.dir.subdirs_changed(-gain);
        to.dir.subdirs_changed(gain);
        Ok(())
    }

    /// Marks an object that is about to get a new name: where its lower parts are, or for a directory
    /// that it has none though the lowers may have something under the new name.
    fn mark_moved(&self, node: &Arc<Node>, to: Place<'_>) -> FsResult<()> {
        let dialect = self.upper()?.dialect();
        match node.kind {
            Kind::Dir => {}
            Kind::File => return self.mark_moved_file(node),
            _ => return Ok(()),
        }
        let dir = self.upper_dir(node)?;
        let has_lowers = !node.state.read().lowers.is_empty();
        if has_lowers {
            let path = self.path_in_lowers(node)?;
            if path.len() > REDIRECT_MAX {
                return Err(Errno::XDEV.into());
            }
            dialect.set_redirect(dir.as_fd(), &path)?;
            self.moved.note(&path, node);
        } else if self.lower_has(to.dir, to.name)? {
            dialect.set_opaque(dir.as_fd())?;
        }
        Ok(())
    }

    /// Marks a file that is about to get another name with where its contents are, if it has none of
    /// its own.
    pub(super) fn mark_moved_file(&self, node: &Arc<Node>) -> FsResult<()> {
        if !node.lacks_contents() {
            return Ok(());
        }
        let path = self.path_in_lowers(node)?;
        if path.is_empty() || path.len() > REDIRECT_MAX {
            return self.copy_up_contents(node, u64::MAX);
        }
        let handle = self.upper_handle(node)?;
        Ok(self
            .upper()?
            .dialect()
            .set_redirect(handle.as_fd(), &path)?)
    }

    /// Where the lower parts of a directory, or the contents of a file, are in the lowers merged,
    /// which need not be where each layer has them: a layer may have moved what is below it. Starts
    /// with a slash. The object is in the upper.
    fn path_in_lowers(&self, node: &Arc<Node>) -> FsResult<Vec<u8>> {
        let dialect = self.upper()?.dialect();
        let mut names = Vec::new();
        let mut at = Arc::clone(node);
        let mut path = loop {
            let Some(NodeName { parent, name }) = at.any_name() else {
                break Vec::new(); // the root
            };
            match dialect.redirect(self.upper_handle(&at)?.as_fd())? {
                Some(path) if path.first() == Some(&b'/') => break path,
                Some(other_name) => names.push(other_name),
                None => names.push(name.to_vec()),
            }
            at = parent;
        };
        for name in names.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        Ok(path)
    }

    /// Refuses to move a directory that would need a mark where marks are not wanted. Programs then copy
    /// it.
    fn check_movable(&self, node: &Node) -> FsResult<()> {
        let needs_mark = node.kind == Kind::Dir && !node.state.read().lowers.is_empty();
        if self.no_redirect && needs_mark {
            return Err(Errno::XDEV.into());
        }
        Ok(())
    }

    /// For `RENAME_WHITEOUT`: the device that the caller wants under the old name.
    fn leave_device(&self, from: Place<'_>, caller: Caller) -> FsResult<()> {
        let device = NewNode {
            kind: Kind::Char,
            mode: 0,
            umask: 0,
            rdev: 0,
            target: b"",
        };
        self.make(from.dir, from.name, &device, caller).map(drop)
    }
}

fn check_kinds(source: Kind, target: Kind) -> FsResult<()> {
    match (source == Kind::Dir, target == Kind::Dir) {
        (true, false) => Err(Errno::NOTDIR.into()),
        (false, true) => Err(Errno::ISDIR.into()),
        _ => Ok(()),
    }
}

/// A directory must not be moved below itself.
fn check_no_loop(moved: &Arc<Node>, into: &Arc<Node>) -> FsResult<()> {
    if moved.kind != Kind::Dir {
        return Ok(());
    }
    let mut at = Some(Arc::clone(into));
    while let Some(dir) = at {
        if Arc::ptr_eq(&dir, moved) {
            return Err(Errno::INVAL.into());
        }
        at = dir.any_name().map(|name| name.parent);
    }
    Ok(())
}
