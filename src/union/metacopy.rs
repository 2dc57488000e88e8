//! Files that overlayfs copied up without their data (its option `metacopy`): attributes and a mark
//! in one layer, the contents in a layer below, under the same name or where a redirect mark says.
//!
//! In a lower they are read where they are. In the upper they get their data when they are looked
//! up, so that nothing else needs to know of them; Lamina never makes such files.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{self as rfs, OFlags, Timestamps, XattrFlags};

use super::Union;
use super::attributes::CAPABILITY;
use super::node::LowerParts;
use super::resolve::Steps;
use crate::attr::Kind;
use crate::crew::stand_in;
use crate::error::{FsError, FsResult};
use crate::lower::dir::DataPlace;
use crate::lower::{Contents, LowerObject, LowerRef};
use crate::sys;
use crate::upper::{UpperEntry, UpperFound};

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
        let name = redirect.as_deref().unwrap_or(name);
        let found = self.redirected(name, dirs, &part, steps)?;
        let data = found.filter(|found| found.kind == Kind::File);
        let data = data.and_then(|found| found.lowers.into_iter().next());
        let data = data.ok_or_else(|| no_data(name))?;
        self.check_size(&data, self.lowers.attr(&part)?.size, name)?;
        let mut part = part;
        if let LowerObject::Dir(object) = &mut part.object {
            object.data = DataPlace::At(Arc::new(data));
        }
        Ok(part)
    }

    /// Without this a file would end in zeros, or too early.
    fn check_size(&self, data: &LowerRef, size: u64, name: &[u8]) -> FsResult<()> {
        let found = self.lowers.attr(data)?.size;
        if found == size {
            return Ok(());
        }
        Err(FsError::damage(format_args!(
            "the data of {:?}, of which an upper layer has the attributes alone (overlayfs's \
             metacopy), should be {size} bytes and are {found}",
            name.escape_ascii().to_string()
        )))
    }

    /// An entry of the upper, which is first given its data if it has none of its own. The caller
    /// holds the directory's `entries`.
    pub(super) fn completed(
        &self,
        dir: &OwnedFd,
        name: &[u8],
        entry: UpperEntry,
        parent: &LowerParts,
    ) -> FsResult<UpperEntry> {
        if !entry.marks.metacopy || entry.attr.kind() != Kind::File {
            return Ok(entry);
        }
        let upper = self.upper()?;
        // One at a time: whoever comes second must not write over what users have written since.
        let _away = stand_in();
        let _completing = self.completing.lock();
        let entry = match upper.examine(dir.as_fd(), name)? {
            UpperFound::Object(entry) if entry.marks.metacopy => entry,
            UpperFound::Object(entry) => return Ok(entry),
            _ => return Err(rustix::io::Errno::NOENT.into()),
        };
        if upper.is_only_looked_at() {
            return Err(FsError::damage(format_args!(
                "{:?} was copied up without its data (overlayfs's metacopy): mount the upper once \
                 and read the file, which completes it",
                name.escape_ascii().to_string()
            )));
        }
        let found = self.resolve_marked(&entry, parent, name)?;
        let data = found.filter(|found| found.kind == Kind::File);
        let data = data.and_then(|found| found.lowers.into_iter().next());
        let data = data.ok_or_else(|| no_data(name))?;
        self.check_size(&data, entry.attr.size, name)?;

        let named = sys::open_at(dir, name, sys::O_PATH)?;
        let file = upper.with_access(named.as_fd(), Kind::File, || {
            sys::reopen(named.as_fd(), OFlags::RDWR | OFlags::NONBLOCK)
        })?;
        // The kernel takes it away when data is written.
        let capability = sys::get_xattr(file.as_fd(), CAPABILITY)?;
        match self.lowers.contents(&data)? {
            Contents::Inline(bytes) => sys::copy::write_all_at(&file, bytes, 0)?,
            Contents::File(from, size) => sys::copy::copy_contents(&*from, &file, size)?,
        }
        if let Some(value) = capability {
            sys::set_xattr(file.as_fd(), CAPABILITY, &value, XattrFlags::empty())?;
        }
        let times = Timestamps {
            last_access: entry.attr.atime.into(),
            last_modification: entry.attr.mtime.into(),
        };
        sys::set_times(file.as_fd(), &times)?;
        if !upper.is_volatile() {
            rfs::fdatasync(&file)?;
        }
        // Last, so that a crash in between leaves what can be done again.
        upper.namespace().clear_metacopy(file.as_fd())?;
        match upper.examine(dir.as_fd(), name)? {
            UpperFound::Object(entry) => Ok(entry),
            _ => Err(rustix::io::Errno::NOENT.into()),
        }
    }
}

fn no_data(name: &[u8]) -> FsError {
    FsError::damage(format_args!(
        "{:?} has its data in a layer below (overlayfs's metacopy), and no layer below has such a \
         file",
        name.escape_ascii().to_string()
    ))
}
