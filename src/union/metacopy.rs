//! Files in the upper without their contents (overlayfs's option `metacopy`): a copy-up for `chmod`
//! and the like makes attributes and a mark, and the contents stay in a lower, under the same name or
//! where a redirect mark says, until somebody writes.
//!
//! A node of such a file has its part in the upper and, among its lower parts, the one that has the
//! contents ([`State::contents_below`](super::node::State::contents_below)).

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{self as rfs, Timestamps, XattrFlags};

use super::Union;
use super::attributes::CAPABILITY;
use super::copyup::Wanted;
use super::node::{LowerParts, Node};
use super::resolve::Steps;
use crate::attr::{Attr, Kind, PERMISSIONS};
use crate::crew::stand_in;
use crate::error::{FsError, FsResult};
use crate::lower::dir::DataPlace;
use crate::lower::{Contents, LowerObject, LowerRef};
use crate::stats::Counter;
use crate::sys;
use crate::upper::{Upper, UpperEntry};

impl Union {
    /// A file of a lower together with the place of its data, if that is in a layer below.
    pub(super) fn with_data(
        &self,
        part: LowerRef,
        dirs: &LowerParts,
        name: &[u8],
        steps: &mut Steps,
    ) -> FsResult<LowerRef> {
        let Some(redirect) = self.lowers.lacks_data(&part)? else {
            return Ok(part);
        };
        let size = self.lowers.attr(&part)?.size;
        if size == 0 {
            // Cut off: nothing is left of the data below.
            return Ok(part);
        }
        let name = redirect.as_deref().unwrap_or(name);
        let found = self.redirected(name, dirs, &part, steps)?;
        let found = found.map(|found| (found.kind, found.lowers));
        let data = self.data_in(found, size, name)?;
        // Several layers may have attributes of one file; the data is where none says so.
        let data = match &data.object {
            LowerObject::Dir(object) => match &object.data {
                DataPlace::At(deeper) => Arc::clone(deeper),
                _ => Arc::new(data),
            },
            LowerObject::Image(_) => Arc::new(data),
        };
        let mut part = part;
        if let LowerObject::Dir(object) = &mut part.object {
            object.data = DataPlace::At(data);
        }
        Ok(part)
    }

    /// The part of a lower that has the contents of a file of the upper; none if it has them itself.
    pub(super) fn contents_under(
        &self,
        entry: &UpperEntry,
        parent: &LowerParts,
        name: &[u8],
    ) -> FsResult<LowerParts> {
        // One that was cut off has no need of them any more.
        if !entry.marks.metacopy || entry.attr.size == 0 {
            return Ok(LowerParts::new());
        }
        let found = self.resolve_marked(entry, parent, name)?;
        let found = found.map(|found| (found.kind, found.lowers));
        Ok([self.data_in(found, entry.attr.size, name)?]
            .into_iter()
            .collect())
    }

    /// The file that was found where the data of `size` bytes of a file called `name` should be. With
    /// another size, the file would end in zeros, or too early.
    fn data_in(
        &self,
        found: Option<(Kind, LowerParts)>,
        size: u64,
        name: &[u8],
    ) -> FsResult<LowerRef> {
        let data = found.filter(|(kind, _)| *kind == Kind::File);
        let data = data.and_then(|(_, lowers)| lowers.into_iter().next());
        let data = data.ok_or_else(|| no_data(name))?;
        let found = self.lowers.attr(&data)?.size;
        if found == size {
            return Ok(data);
        }
        Err(FsError::damage(format_args!(
            "the data of {:?}, of which an upper layer has the attributes alone (overlayfs's \
             metacopy), should be {size} bytes and are {found}",
            name.escape_ascii().to_string()
        )))
    }

    /// Whether a copy-up of this lower file is to leave the contents where they are.
    pub(super) fn leaves_contents(&self, upper: &Upper, attr: &Attr, wanted: Wanted) -> bool {
        self.metacopy
            // overlayfs has no such files with marks of users either, and who reads an upper
            // without privileges does not expect them.
            && upper.is_privileged()
            && matches!(wanted, Wanted::Attributes | Wanted::Mode(_))
            && attr.kind() == Kind::File
            && attr.size > 0
    }

    /// Gives a file of the upper its contents, if they are still below: all of them, or none if it
    /// is about to be cut to `keep` bytes that are none. The caller holds `node.copy_up`.
    pub(super) fn complete(&self, node: &Arc<Node>, keep: u64) -> FsResult<()> {
        let below = node.state.read().contents_below().cloned();
        let Some(below) = below.filter(|_| node.lacks_contents()) else {
            return Ok(());
        };
        let upper = self.upper()?;
        let file = self.upper_file(node)?;
        if upper.dialect().is_metacopy(file.as_fd())? {
            let _away = stand_in();
            if keep == 0 {
                // An empty file needs no contents from below, marked or not: no crash can come
                // between.
                sys::retry(|| rfs::ftruncate(&*file, 0))?;
            } else {
                self.with_room(|| self.fill(upper, &file, &below))?;
            }
            // Before the mark goes, by which the number was known.
            let mut mark = node.state.read().mark.clone();
            mark.origin = Some(self.origin(node));
            upper.dialect().write_node(file.as_fd(), &mark)?;
            node.state.write().mark = mark;
            upper.dialect().clear_metacopy(file.as_fd())?;
            self.completions.fetch_add(1, Ordering::SeqCst);
        }
        node.state.write().lowers.clear();
        Ok(())
    }

    /// Copies the contents into a file that has everything else. Nobody sees them before the mark is
    /// taken away, so it can be done again after a crash.
    fn fill(&self, upper: &Upper, file: &OwnedFd, below: &LowerRef) -> FsResult<()> {
        let before = sys::stat_fd(file)?;
        // The kernel takes these away when data is written.
        let capability = sys::get_xattr(file.as_fd(), CAPABILITY)?;
        let size = match self.lowers.contents(below)? {
            Contents::Inline(bytes) => {
                sys::copy::write_all_at(file, bytes, 0)?;
                bytes.len() as u64
            }
            Contents::File(from, size) => {
                sys::copy::copy_contents(&*from, file, size, !upper.is_volatile())?;
                size
            }
        };
        self.stats.add(Counter::CopyUpBytes, size);
        if let Some(value) = capability {
            sys::set_xattr(file.as_fd(), CAPABILITY, &value, XattrFlags::empty())?;
        }
        if sys::stat_fd(file)?.mode != before.mode {
            sys::chmod(file.as_fd(), before.mode & PERMISSIONS)?;
        }
        let times = Timestamps {
            last_access: before.atime.into(),
            last_modification: before.mtime.into(),
        };
        sys::set_times(file.as_fd(), &times)?;
        // The mark goes after the data is there for good.
        if !upper.is_volatile() {
            rfs::fdatasync(file)?;
        }
        Ok(())
    }

    /// Looks at the mark of a new node's file again if any file was completed since it was looked at,
    /// `completions` having been counted then: if it was this one, under a node that the kernel has
    /// forgotten meanwhile, the new one must not read below what is above now.
    pub(super) fn recheck_contents(&self, node: &Arc<Node>, completions: u64) -> FsResult<()> {
        if completions == self.completions.load(Ordering::SeqCst) || !node.lacks_contents() {
            return Ok(());
        }
        let handle = self.upper_handle(node)?;
        if !self.upper()?.dialect().is_metacopy(handle.as_fd())? {
            node.state.write().lowers.clear();
        }
        Ok(())
    }
}

fn no_data(name: &[u8]) -> FsError {
    FsError::damage(format_args!(
        "{:?} has its data in a layer below (overlayfs's metacopy), and no layer below has such a \
         file",
        name.escape_ascii().to_string()
    ))
}
