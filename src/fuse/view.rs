//! What users see otherwise than the union has it: other ids, fewer attributes.

use std::borrow::Cow;
use std::sync::Arc;

use rustix::io::Errno;

use crate::attr::{Attr, Kind};
use crate::ids::{IdMap, Ids};

/// How a mount is shown.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Whom files belong to.
    pub ids: Arc<Ids>,
    /// Whether every directory has one link.
    pub static_nlink: bool,
    /// Whether there are no ACLs.
    pub no_acl: bool,
    /// Whether there are no extended attributes.
    pub no_xattrs: bool,
}

const ACLS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];
const CAPABILITY: &[u8] = b"security.capability";
/// The length of an ACL's version, and of each entry: `struct posix_acl_xattr_entry`.
const ACL_HEADER: usize = 4;
const ACL_ENTRY: usize = 8;
/// Tags of entries for a user, and for a group.
const ACL_USER: u16 = 0x02;
const ACL_GROUP: u16 = 0x08;
/// `struct vfs_ns_cap_data`: its length, and where the user is whom the capabilities are root's.
const CAPABILITY_V3: usize = 24;
const CAPABILITY_ROOT: usize = 20;

impl View {
    /// Attributes as users see them.
    pub fn attr<'a>(&self, attr: &'a Attr) -> Cow<'a, Attr> {
        if self.ids.is_identity() && !self.static_nlink {
            return Cow::Borrowed(attr);
        }
        let fixed = self.static_nlink && attr.kind() == Kind::Dir;
        Cow::Owned(Attr {
            uid: self.ids.users.shown(attr.uid),
            gid: self.ids.groups.shown(attr.gid),
            nlink: if fixed { 1 } else { attr.nlink },
            ..*attr
        })
    }

    /// The value of an extended attribute as users see it.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for an ACL if there are none.
    pub fn shown_xattr<'v>(&self, name: &[u8], value: &'v [u8]) -> Result<Cow<'v, [u8]>, Errno> {
        self.with_ids(name, value, IdMap::shown)
    }

    /// The value of an extended attribute as it is stored.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for an ACL if there are none.
    pub fn stored_xattr<'v>(&self, name: &[u8], value: &'v [u8]) -> Result<Cow<'v, [u8]>, Errno> {
        self.with_ids(name, value, IdMap::stored)
    }

    fn with_ids<'v>(
        &self,
        name: &[u8],
        value: &'v [u8],
        map: impl Fn(&IdMap, u32) -> u32,
    ) -> Result<Cow<'v, [u8]>, Errno> {
        let is_acl = ACLS.contains(&name);
        if is_acl && self.no_acl {
            return Err(Errno::OPNOTSUPP);
        }
        if self.ids.is_identity() || !(is_acl || name == CAPABILITY) {
            return Ok(Cow::Borrowed(value));
        }
        let mut value = value.to_vec();
        if is_acl {
            let entries = value.get_mut(ACL_HEADER..).unwrap_or_default();
            for entry in entries.chunks_exact_mut(ACL_ENTRY) {
                let Some((&mut [low, high, ..], id)) = entry.split_first_chunk_mut::<4>() else {
                    continue;
                };
                match u16::from_le_bytes([low, high]) {
                    ACL_USER => change(id, |id| map(&self.ids.users, id)),
                    ACL_GROUP => change(id, |id| map(&self.ids.groups, id)),
                    _ => {}
                }
            }
        } else if value.len() == CAPABILITY_V3 {
            let root = value.get_mut(CAPABILITY_ROOT..).unwrap_or_default();
            change(root, |id| map(&self.ids.users, id));
        }
        Ok(Cow::Owned(value))
    }
}

/// Changes an id, four bytes with the lowest first.
fn change(bytes: &mut [u8], map: impl FnOnce(u32) -> u32) {
    if let Some(id) = bytes.first_chunk_mut::<4>() {
        *id = map(u32::from_le_bytes(*id)).to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> View {
        let map = |text| IdMap::parse(text).unwrap();
        View {
            ids: Arc::new(Ids {
                users: map("0:1000:10"),
                groups: map("0:2000:10"),
            }),
            ..View::default()
        }
    }

    fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut bytes = 2_u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(permissions.to_le_bytes());
            bytes.extend(id.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn ids_in_attributes_are_mapped_too() {
        let (view, none) = (view(), u32::MAX);
        let stored = acl(&[
            (1, 6, none),
            (2, 4, 5),
            (4, 4, none),
            (8, 4, 6),
            (32, 4, none),
        ]);
        let shown = acl(&[
            (1, 6, none),
            (2, 4, 1005),
            (4, 4, none),
            (8, 4, 2006),
            (32, 4, none),
        ]);
        for name in ACLS {
            assert_eq!(&*view.shown_xattr(name, &stored).unwrap(), shown);
            assert_eq!(&*view.stored_xattr(name, &shown).unwrap(), stored);
        }
        let capability = |root: u32| [&[0; CAPABILITY_ROOT][..], &root.to_le_bytes()].concat();
        let seen = view
            .shown_xattr(CAPABILITY, &capability(0))
            .unwrap()
            .into_owned();
        assert_eq!(seen, capability(1000));
        // What is cut off, and what has no id.
        for (name, value) in [
            (ACLS[0], &b"\x02\0\0"[..]),
            (ACLS[0], b"\x02\0\0\0\x02\0\0"),
            (CAPABILITY, &[0; 20]),
            (b"user.x", b"\0\0\0\0"),
        ] {
            assert_eq!(&*view.shown_xattr(name, value).unwrap(), value);
        }
    }

    #[test]
    fn there_need_be_no_acls() {
        let view = View {
            no_acl: true,
            ..View::default()
        };
        assert_eq!(view.shown_xattr(ACLS[0], b""), Err(Errno::OPNOTSUPP));
        assert!(view.shown_xattr(b"user.x", b"").is_ok());
    }
}
