//! Extended attributes as users see them.

use std::borrow::Cow;
use std::os::fd::AsFd;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::node::Node;
use super::{Caller, SetAttr, Target, Union};
use crate::attr::PERMISSIONS;
use crate::error::{FsError, FsResult};
use crate::lower::{LowerObject, LowerRef, Number};
use crate::sys;

/// The ACL whose first entries are the permission bits.
pub(super) const ACCESS_ACL: &[u8] = b"system.posix_acl_access";

/// The set-group-id bit of a mode.
const SET_GROUP_ID: u32 = 0o2000;

/// Where a node's attributes are.
enum Source {
    Upper,
    Lower(LowerRef),
}

impl Union {
    fn xattr_source(&self, node: &Node) -> FsResult<Source> {
        let state = node.state.read();
        match (state.upper, state.lowers.first()) {
            (Some(_), _) => Ok(Source::Upper),
            (None, Some(lower)) => Ok(Source::Lower(lower.clone())),
            (None, None) => Err(Errno::STALE.into()),
        }
    }

    pub(super) fn image_ref(&self, ino: lamina_layers::index::Ino) -> FsResult<LowerRef> {
        match self.lowers.image() {
            Some((layer, _)) => Ok(LowerRef {
                layer,
                object: LowerObject::Image(ino),
            }),
            None => Err(Errno::STALE.into()),
        }
    }

    /// The value of an extended attribute.
    ///
    /// # Errors
    /// `ENODATA` if there is none of that name.
    pub fn getxattr(&self, number: Number, name: &[u8]) -> FsResult<Cow<'_, [u8]>> {
        let missing = || FsError::from(Errno::NODATA);
        let lower = match self.target(number)? {
            Target::Image(ino) => self.image_ref(ino)?,
            Target::Node(node) => match self.xattr_source(&node)? {
                Source::Lower(lower) => lower,
                Source::Upper => {
                    let stored = self.upper()?.namespace().stored_name(name);
                    let value = sys::get_xattr(self.upper_handle(&node)?.as_fd(), &stored)?;
                    return value.map(Cow::Owned).ok_or_else(missing);
                }
            },
        };
        self.lowers.xattr(&lower, name)?.ok_or_else(missing)
    }

    /// The names of all extended attributes the caller may see, each followed by a NUL byte:
    /// `trusted.*` is for the privileged alone.
    pub fn listxattr(&self, number: Number, caller: Caller) -> FsResult<Vec<u8>> {
        let mut names = self.xattr_names(number)?;
        if caller.uid != 0 {
            names.retain(|name| !name.starts_with(b"trusted."));
        }
        Ok(names.into_iter().fold(Vec::new(), |mut list, name| {
            list.extend_from_slice(&name);
            list.push(0);
            list
        }))
    }

    /// The names of all extended attributes.
    pub fn xattr_names(&self, number: Number) -> FsResult<Vec<Vec<u8>>> {
        let lower = match self.target(number)? {
            Target::Image(ino) => self.image_ref(ino)?,
            Target::Node(node) => match self.xattr_source(&node)? {
                Source::Lower(lower) => lower,
                Source::Upper => {
                    let namespace = self.upper()?.namespace();
                    let stored = sys::list_xattrs(self.upper_handle(&node)?.as_fd())?;
                    let shown = stored.iter().filter_map(|name| namespace.shown_name(name));
                    return Ok(shown.collect());
                }
            },
        };
        self.lowers.xattr_names(&lower)
    }

    /// Sets an extended attribute.
    ///
    /// # Errors
    /// `EEXIST` and `ENODATA` as the flags ask, `ENOSPC`, `EOPNOTSUPP`, `EROFS`.
    pub fn setxattr(
        &self,
        number: Number,
        name: &[u8],
        value: &[u8],
        flags: XattrFlags,
        caller: Caller,
    ) -> FsResult<()> {
        let upper = self.upper()?;
        let node = self.touch(number)?;
        self.copy_up(&node)?;
        *node.inherit.lock() = None;
        node.set_unprivileged(false);
        let stored = upper.namespace().stored_name(name);
        let handle = self.upper_handle(&node)?;
        sys::set_xattr(handle.as_fd(), &stored, value, flags)?;
        if name != ACCESS_ACL {
            return Ok(());
        }
        if !upper.is_privileged() {
            self.mode_was_set(&node, handle.as_fd())?;
        }
        // The kernel leaves this to us, as it does with chmod by one who is not of the group. Of
        // the caller's groups only the first is known.
        let attr = self.node_attr(&node)?;
        if caller.uid != 0 && attr.mode & SET_GROUP_ID != 0 && caller.gid != attr.gid {
            let set = SetAttr {
                mode: Some(attr.mode & PERMISSIONS & !SET_GROUP_ID),
                ..SetAttr::default()
            };
            self.setattr(number, &set, caller)?;
        }
        Ok(())
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// `ENODATA`, `EROFS`.
    pub fn removexattr(&self, number: Number, name: &[u8]) -> FsResult<()> {
        let upper = self.upper()?;
        // What is not there need not be copied up to be removed.
        self.getxattr(number, name)?;
        let node = self.touch(number)?;
        self.copy_up(&node)?;
        *node.inherit.lock() = None;
        let stored = upper.namespace().stored_name(name);
        Ok(sys::remove_xattr(
            self.upper_handle(&node)?.as_fd(),
            &stored,
        )?)
    }
}
