//! Extended attributes as users see them.

use std::borrow::Cow;
use std::os::fd::AsFd;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::attributes::CAPABILITY;
use super::node::Node;
use super::{Caller, Target, Union};
use crate::attr::PERMISSIONS;
use crate::error::{FsError, FsResult};
use crate::lower::{LowerObject, LowerRef, Number};
use crate::sys;

/// The ACL whose first entries are the permission bits.
pub(super) const ACCESS_ACL: &[u8] = b"system.posix_acl_access";

const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

/// Refuses names in no namespace that filesystems on disk have, as they do.
fn check_name(name: &[u8]) -> FsResult<()> {
    let spaces: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    if spaces.iter().any(|space| name.starts_with(space))
        || [ACCESS_ACL, DEFAULT_ACL].contains(&name)
    {
        return Ok(());
    }
    Err(Errno::OPNOTSUPP.into())
}

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
    /// `ENODATA` if there is none of that name, `EOPNOTSUPP` if there cannot be.
    pub fn getxattr(&self, number: Number, name: &[u8]) -> FsResult<Cow<'_, [u8]>> {
        check_name(name)?;
        let missing = || FsError::from(Errno::NODATA);
        let lower = match self.target(number)? {
            Target::Image(ino) => self.image_ref(ino)?,
            Target::Node(node) => match self.xattr_source(&node)? {
                Source::Lower(lower) => lower,
                // The kernel asks before the first write to a file.
                Source::Upper if name == CAPABILITY && node.is_unprivileged() => {
                    return Err(missing());
                }
                Source::Upper => {
                    let dialect = self.upper()?.dialect();
                    if dialect.is_reserved(name) {
                        return Err(missing());
                    }
                    let stored = dialect.stored_name(name);
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
                    let dialect = self.upper()?.dialect();
                    let stored = sys::list_xattrs(self.upper_handle(&node)?.as_fd())?;
                    let shown = stored.iter().filter_map(|name| dialect.shown_name(name));
                    return Ok(shown.collect());
                }
            },
        };
        self.lowers.xattr_names(&lower)
    }

    /// Sets an extended attribute. With `drop_sgid`, a file that gets an ACL loses its set-group-id
    /// bit, as when `chmod` is called by one who is not in the file's group.
    ///
    /// # Errors
    /// `EEXIST` and `ENODATA` as the flags ask, `ENOSPC`, `EOPNOTSUPP`, `EROFS`.
    pub fn setxattr(
        &self,
        number: Number,
        name: &[u8],
        value: &[u8],
        flags: XattrFlags,
        drop_sgid: bool,
    ) -> FsResult<()> {
        let upper = self.upper()?;
        if upper.dialect().is_reserved(name) {
            return Err(Errno::PERM.into());
        }
        let node = self.touch(number)?;
        self.copy_up(&node)?;
        *node.inherit.lock() = None;
        node.set_unprivileged(false);
        let stored = upper.dialect().stored_name(name);
        let handle = self.upper_handle(&node)?;
        sys::set_xattr(handle.as_fd(), &stored, value, flags)?;
        if name == ACCESS_ACL && !upper.is_privileged() {
            self.mode_was_set(&node, handle.as_fd())?;
        }
        if drop_sgid && name == ACCESS_ACL {
            let mode = self.node_attr(&node)?.mode;
            self.change_mode(&node, handle.as_fd(), mode & PERMISSIONS & !libc::S_ISGID)?;
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
        let stored = upper.dialect().stored_name(name);
        Ok(sys::remove_xattr(
            self.upper_handle(&node)?.as_fd(),
            &stored,
        )?)
    }
}
