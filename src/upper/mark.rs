//! Marks on objects of an upper (or of a layer made from one): extended attributes that are ours
//! or overlayfs's, hidden from users.
//!
//! overlayfs keeps its marks in `trusted.overlay.*`, or with its option `userxattr` in
//! `user.overlay.*`; so do we, and ours are beside them in `{trusted,user}.lamina.*`. A user's own
//! attribute with such a name is escaped, as overlayfs does it: `trusted.overlay.x` is stored as
//! `trusted.overlay.overlay.x`. So an upper can itself lie on a Lamina mount.

use std::os::fd::BorrowedFd;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::stat::{Shown, StatMark};
use crate::attr::{Attr, Kind, PERMISSIONS};
use crate::lower::Number;
use crate::sys::{self, SysResult};

/// Which attributes carry the marks: those only privileged processes see, or an owner's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespace {
    /// `trusted.*`; needs `CAP_SYS_ADMIN` in the initial user namespace.
    Trusted,
    /// `user.*`; not possible on symbolic links and special files.
    User,
}

const OVERLAY: &[u8] = b"overlay.";
const LAMINA: &[u8] = b"lamina.";
/// Names that begin so are fuse-overlayfs's and containers-storage's, and overlayfs's in either namespace.
const FOREIGN: [&[u8]; 5] = [
    b"user.fuseoverlayfs.",
    b"security.fuseoverlayfs.",
    b"user.containers.override_",
    b"trusted.overlay.",
    b"user.overlay.",
];
/// Where containers-storage keeps `security.*` that an ordinary user may not set.
const OVERRIDDEN: &[u8] = b"user.containers.override_security.";
const SECURITY: &[u8] = b"security.";
/// What AUFS's whiteouts begin with, which are files: of fuse-overlayfs where devices cannot be made, of OCI
/// archives always.
pub const WH_PREFIX: &[u8] = b".wh.";
/// AUFS's mark of an opaque directory: a file in it.
pub const WH_OPAQUE: &[u8] = b".wh..wh..opq";

/// What a directory's `redirect` mark may hold: a path of at most this many bytes.
const REDIRECT_MAX: usize = 4096;

/// How the marks of an upper, or of a layer, are written and read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialect {
    /// Which attributes carry them.
    pub namespace: Namespace,
    /// The attribute that says whom objects belong to, if they do not say it themselves.
    pub stat: Option<StatMark>,
    /// Whether fuse-overlayfs's marks count too, and none may be left that it would not understand.
    pub shared: bool,
}

impl Namespace {
    fn prefix(self) -> &'static [u8] {
        match self {
            Self::Trusted => b"trusted.",
            Self::User => b"user.",
        }
    }

    fn mark(self, family: &[u8], name: &[u8]) -> Vec<u8> {
        [self.prefix(), family, name].concat()
    }

    /// Whether a file in overlayfs's index has names that are not in the upper. Its mark has the
    /// difference between the link count users see and the upper's, which counts the index too:
    /// `U-1` when all names are there. (`L…`, relative to the lower's, is what a crash leaves.)
    pub fn has_names_below(self, fd: BorrowedFd<'_>) -> SysResult<bool> {
        let nlink = sys::get_xattr(fd, &self.mark(OVERLAY, b"nlink"))?;
        Ok(nlink.is_some_and(|value| value != b"U-1"))
    }

    /// Whether a work directory says that the marks of its upper are in this namespace.
    pub fn is_noted(self, work: BorrowedFd<'_>) -> bool {
        sys::get_xattr(work, &self.mark(LAMINA, b"marks")).is_ok_and(|value| value.is_some())
    }

    /// Says it.
    pub fn note(self, work: BorrowedFd<'_>) -> SysResult<()> {
        let name = self.mark(LAMINA, b"marks");
        sys::set_xattr(work, &name, b"y", XattrFlags::empty())
    }

    /// Whether marks of this namespace can be set on `dir`.
    pub fn works_on(self, dir: BorrowedFd<'_>) -> bool {
        let name = self.mark(LAMINA, b"probe");
        sys::set_xattr(dir, &name, b"y", XattrFlags::empty()).is_ok()
            && sys::remove_xattr(dir, &name).is_ok()
    }
}

impl Dialect {
    /// The one of this namespace, without anything of others.
    pub fn own(namespace: Namespace) -> Self {
        Self {
            namespace,
            stat: None,
            shared: false,
        }
    }

    /// The stored name of the attribute a user calls `name`.
    pub fn stored_name(self, name: &[u8]) -> Vec<u8> {
        if self.stat == Some(StatMark::Containers)
            && let Some(rest) = name.strip_prefix(SECURITY)
        {
            return [OVERRIDDEN, rest].concat();
        }
        if let Some(rest) = name.strip_prefix(self.namespace.prefix()) {
            for family in [OVERLAY, LAMINA] {
                if rest.starts_with(family) {
                    return [self.namespace.prefix(), family, rest].concat();
                }
            }
        }
        name.to_vec()
    }

    /// The stored name of a file's capabilities.
    pub fn capability(self) -> &'static [u8] {
        match self.stat {
            Some(StatMark::Containers) => b"user.containers.override_security.capability",
            _ => b"security.capability",
        }
    }

    /// What users call the attribute stored as `name`; `None` if it is not for them to see.
    pub fn shown_name(self, name: &[u8]) -> Option<Vec<u8>> {
        if let Some(rest) = name.strip_prefix(self.namespace.prefix()) {
            for family in [OVERLAY, LAMINA] {
                if let Some(rest) = rest.strip_prefix(family) {
                    // Escaped twice or more: one level is taken off.
                    return rest
                        .starts_with(family)
                        .then(|| [self.namespace.prefix(), rest].concat());
                }
            }
        }
        if self.stat == Some(StatMark::Containers)
            && let Some(rest) = name.strip_prefix(OVERRIDDEN)
        {
            return Some([SECURITY, rest].concat());
        }
        (!self.is_reserved(name)).then(|| name.to_vec())
    }

    /// Whether users can neither see nor set an attribute, as it means something to others.
    pub fn is_reserved(self, name: &[u8]) -> bool {
        let is_own = |family: &[u8]| {
            let rest = name.strip_prefix(self.namespace.prefix());
            rest.is_some_and(|rest| rest.starts_with(family))
        };
        // Those of our own namespace are escaped.
        self.shared && !is_own(OVERLAY) && FOREIGN.iter().any(|prefix| name.starts_with(prefix))
    }

    /// The name of the mark `node`. fuse-overlayfs shows every name that is not overlayfs's.
    fn node_name(self) -> Vec<u8> {
        let family: &[u8] = if self.shared {
            b"overlay.lamina."
        } else {
            LAMINA
        };
        self.namespace.mark(family, b"node")
    }

    /// Whether a directory hides what lower layers have under its name.
    pub fn is_opaque(self, dir: BorrowedFd<'_>) -> SysResult<bool> {
        let says = |name: &[u8]| {
            let value = sys::get_xattr(dir, name)?;
            Ok(value.is_some_and(|value| value == b"y"))
        };
        if says(&self.namespace.mark(OVERLAY, b"opaque"))? {
            return Ok(true);
        }
        if !self.shared {
            return Ok(false);
        }
        for name in [
            &b"trusted.overlay.opaque"[..],
            b"user.overlay.opaque",
            b"user.fuseoverlayfs.opaque",
        ] {
            match says(name) {
                Ok(true) => return Ok(true),
                // What this process may not read, it does not have.
                Ok(false) | Err(Errno::PERM | Errno::OPNOTSUPP) => {}
                Err(errno) => return Err(errno),
            }
        }
        match sys::find_at(dir, WH_OPAQUE) {
            Err(Errno::NOTDIR) => Ok(false),
            found => Ok(found?.is_some()),
        }
    }

    /// Marks a directory so that it hides what lower layers have under its name.
    pub fn set_opaque(self, dir: BorrowedFd<'_>) -> SysResult<()> {
        sys::set_xattr(
            dir,
            &self.namespace.mark(OVERLAY, b"opaque"),
            b"y",
            XattrFlags::empty(),
        )
    }

    /// The path, from the roots of the lower layers and starting with a slash, or the name in the
    /// same directory, under which the lower parts of a moved directory, or the data of a moved file
    /// without data, are.
    pub fn redirect(self, dir: BorrowedFd<'_>) -> SysResult<Option<Vec<u8>>> {
        let value = sys::get_xattr(dir, &self.namespace.mark(OVERLAY, b"redirect"))?;
        Ok(value.filter(|path| !path.is_empty() && path.len() <= REDIRECT_MAX))
    }

    /// Marks where the lower parts of a moved directory, or a moved file's data, are.
    pub fn set_redirect(self, dir: BorrowedFd<'_>, path: &[u8]) -> SysResult<()> {
        sys::set_xattr(
            dir,
            &self.namespace.mark(OVERLAY, b"redirect"),
            path,
            XattrFlags::empty(),
        )
    }

    /// Whether a regular file has its attributes only, and its data is in a layer below (overlayfs's
    /// option `metacopy`).
    pub fn is_metacopy(self, fd: BorrowedFd<'_>) -> SysResult<bool> {
        Ok(sys::get_xattr(fd, &self.namespace.mark(OVERLAY, b"metacopy"))?.is_some())
    }

    /// Marks a regular file whose data is in a layer below.
    pub fn set_metacopy(self, fd: BorrowedFd<'_>) -> SysResult<()> {
        let name = self.namespace.mark(OVERLAY, b"metacopy");
        sys::set_xattr(fd, &name, b"", XattrFlags::empty())
    }

    /// Takes the mark away that says that a file's data is elsewhere, and the one that says where.
    pub fn clear_metacopy(self, fd: BorrowedFd<'_>) -> SysResult<()> {
        for name in [&b"metacopy"[..], b"redirect"] {
            match sys::remove_xattr(fd, &self.namespace.mark(OVERLAY, name)) {
                Err(Errno::NODATA) => {}
                result => result?,
            }
        }
        Ok(())
    }

    /// Whether whiteouts in a directory may be empty files with a mark, as overlayfs allows in
    /// layers: then it is marked, and so is the root of the layer.
    pub fn has_marked_whiteouts(self, dir: BorrowedFd<'_>) -> SysResult<bool> {
        Ok(
            sys::get_xattr(dir, &self.namespace.mark(OVERLAY, b"opaque"))?
                .is_some_and(|value| value == b"x"),
        )
    }

    /// Whether an empty file is marked as a whiteout.
    pub fn is_marked_whiteout(self, fd: BorrowedFd<'_>) -> SysResult<bool> {
        Ok(sys::get_xattr(fd, &self.namespace.mark(OVERLAY, b"whiteout"))?.is_some())
    }

    /// The `node` mark of an object of a layer that was an upper.
    pub fn node(self, fd: BorrowedFd<'_>) -> SysResult<NodeMark> {
        let value = sys::get_xattr(fd, &self.node_name())?;
        let mut node = value.map_or_else(NodeMark::default, |text| NodeMark::parse(&text));
        self.read_stat(fd, &mut node)?;
        Ok(node)
    }

    fn read_stat(self, fd: BorrowedFd<'_>, node: &mut NodeMark) -> SysResult<()> {
        let Some(stat) = self.stat else {
            return Ok(());
        };
        if let Some(shown) = stat.read(fd)? {
            node.owner = Some(shown.owner);
            node.mode = Some(shown.mode);
            node.device = shown.kind.and_then(|(kind, rdev)| {
                let number = (kind, rustix::fs::major(rdev), rustix::fs::minor(rdev));
                let is_other = !matches!(kind, Kind::File | Kind::Dir | Kind::Symlink);
                is_other.then_some(number)
            });
        }
        Ok(())
    }

    /// All marks of an object of the upper.
    pub fn read(self, fd: BorrowedFd<'_>, kind: Kind) -> SysResult<Marks> {
        let mut marks = Marks::default();
        let names = sys::list_xattrs(fd)?;
        let node: &[u8] = if self.shared {
            b"overlay.lamina.node"
        } else {
            b"lamina.node"
        };
        for name in &names {
            let Some(rest) = name.strip_prefix(self.namespace.prefix()) else {
                continue;
            };
            match rest {
                b"overlay.opaque" if !self.shared => marks.opaque = self.is_opaque(fd)?,
                b"overlay.redirect" => marks.redirect = self.redirect(fd)?,
                b"overlay.metacopy" => marks.metacopy = true,
                rest if rest == node => {
                    if let Some(text) = sys::get_xattr(fd, name)? {
                        marks.node = NodeMark::parse(&text);
                    }
                }
                _ => {}
            }
        }
        if self.shared && kind == Kind::Dir {
            marks.opaque = self.is_opaque(fd)?;
        }
        self.read_stat(fd, &mut marks.node)?;
        Ok(marks)
    }

    /// Writes the `node` mark, or removes it if there is nothing to say.
    pub fn write_node(self, fd: BorrowedFd<'_>, node: &NodeMark) -> SysResult<()> {
        match self.stat {
            None => self.write_words(fd, node),
            Some(stat) => self.write_words(fd, &write_stat(stat, fd, node)?),
        }
    }

    fn write_words(self, fd: BorrowedFd<'_>, node: &NodeMark) -> SysResult<()> {
        let name = self.node_name();
        if *node == NodeMark::default() {
            return match sys::remove_xattr(fd, &name) {
                Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => Ok(()),
                result => result,
            };
        }
        sys::set_xattr(fd, &name, node.to_string().as_bytes(), XattrFlags::empty())
    }
}

/// Writes what an attribute of others says; returns what it does not.
fn write_stat(stat: StatMark, fd: BorrowedFd<'_>, node: &NodeMark) -> SysResult<NodeMark> {
    let (Some(owner), Some(mode)) = (node.owner, node.mode) else {
        return Ok(node.clone());
    };
    let kind = node.device.map(|(kind, major, minor)| {
        let rdev = rustix::fs::makedev(major, minor);
        (kind, rdev)
    });
    stat.write(fd, &Shown { owner, mode, kind })?;
    Ok(NodeMark {
        origin: node.origin.clone(),
        ..NodeMark::default()
    })
}

/// The marks of one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// Hides what lower layers have under its name.
    pub opaque: bool,
    /// Where its lower parts are.
    pub redirect: Option<Vec<u8>>,
    /// A regular file whose data is in a layer below.
    pub metacopy: bool,
    /// What the upper's filesystem could not hold.
    pub node: NodeMark,
}

/// Where a copied-up object came from: `tag` tells one stack of layers from another, so that an
/// upper put over other layers is not given their numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The stack of layers.
    pub tag: String,
    /// The number the object had, and keeps.
    pub number: Number,
}

/// What the upper's filesystem could not hold of an object: the value of the mark `node`, a text
/// of words `key=value`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeMark {
    /// `origin=TAG:NUMBER`, the number in hex.
    pub origin: Option<Origin>,
    /// `device=KIND:MAJOR:MINOR`: a regular file that stands for a device.
    pub device: Option<(Kind, u32, u32)>,
    /// `owner=UID:GID`, where the daemon may not change owners.
    pub owner: Option<(u32, u32)>,
    /// `mode=OCTAL`: the permission bits users see, where the daemon itself needs more.
    pub mode: Option<u32>,
}

impl NodeMark {
    fn parse(text: &[u8]) -> Self {
        let mut mark = Self::default();
        let Ok(text) = std::str::from_utf8(text) else {
            return mark;
        };
        for word in text.split_ascii_whitespace() {
            match word.split_once('=') {
                Some(("origin", value)) => mark.origin = parse_origin(value),
                Some(("device", value)) => mark.device = parse_device(value),
                Some(("owner", value)) => mark.owner = parse_owner(value),
                Some(("mode", value)) => mark.mode = parse_mode(value),
                // A later version's word: not needed to read the file.
                _ => {}
            }
        }
        mark
    }

    /// The attributes users see of an object whose own are `attr`.
    pub fn apply(&self, attr: Attr) -> Attr {
        let mut attr = attr;
        if let Some(mode) = self.mode {
            attr.mode = attr.mode & !PERMISSIONS | mode;
        }
        if let Some((kind, major, minor)) = self.device {
            attr.mode = kind.mode_bits() | attr.mode & PERMISSIONS;
            attr.rdev = rustix::fs::makedev(major, minor);
        }
        if let Some((uid, gid)) = self.owner {
            attr.uid = uid;
            attr.gid = gid;
        }
        attr
    }
}

fn parse_origin(value: &str) -> Option<Origin> {
    let (tag, number) = value.rsplit_once(':')?;
    let number = u64::from_str_radix(number, 16).ok()?;
    Some(Origin {
        tag: tag.to_owned(),
        number: Number(number),
    })
}

fn parse_device(value: &str) -> Option<(Kind, u32, u32)> {
    let mut parts = value.splitn(3, ':');
    let kind = match parts.next()? {
        "c" => Kind::Char,
        "b" => Kind::Block,
        _ => return None,
    };
    Some((
        kind,
        parts.next()?.parse().ok()?,
        parts.next()?.parse().ok()?,
    ))
}

fn parse_mode(value: &str) -> Option<u32> {
    u32::from_str_radix(value, 8)
        .ok()
        .filter(|mode| mode & !PERMISSIONS == 0)
}

fn parse_owner(value: &str) -> Option<(u32, u32)> {
    let (uid, gid) = value.split_once(':')?;
    Some((uid.parse().ok()?, gid.parse().ok()?))
}

impl std::fmt::Display for NodeMark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut words = Vec::new();
        if let Some(origin) = &self.origin {
            words.push(format!("origin={}:{:x}", origin.tag, origin.number.0));
        }
        if let Some((kind, major, minor)) = self.device {
            let letter = if kind == Kind::Block { 'b' } else { 'c' };
            words.push(format!("device={letter}:{major}:{minor}"));
        }
        if let Some((uid, gid)) = self.owner {
            words.push(format!("owner={uid}:{gid}"));
        }
        if let Some(mode) = self.mode {
            words.push(format!("mode={mode:o}"));
        }
        f.write_str(&words.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_names_are_escaped_and_marks_are_hidden() {
        let ns = Dialect::own(Namespace::Trusted);
        for name in [
            &b"trusted.overlay.opaque"[..],
            b"trusted.lamina.node",
            b"user.overlay.x",
        ] {
            let stored = ns.stored_name(name);
            assert_eq!(ns.shown_name(&stored).as_deref(), Some(name));
            assert_eq!(stored == name, !name.starts_with(b"trusted."));
        }
        assert_eq!(ns.shown_name(b"trusted.overlay.opaque"), None);
        assert_eq!(ns.shown_name(b"trusted.lamina.node"), None);
        let twice = ns.stored_name(&ns.stored_name(b"trusted.overlay.opaque"));
        assert_eq!(
            ns.shown_name(&twice),
            Some(b"trusted.overlay.overlay.opaque".to_vec())
        );
    }

    #[test]
    fn what_others_mean_is_neither_seen_nor_set() {
        let shared = Dialect {
            namespace: Namespace::User,
            stat: Some(StatMark::Containers),
            shared: true,
        };
        for name in [
            &b"user.fuseoverlayfs.origin"[..],
            b"trusted.overlay.opaque",
            b"user.containers.override_stat",
        ] {
            assert!(shared.is_reserved(name));
            assert_eq!(shared.shown_name(name), None);
            assert!(!Dialect::own(Namespace::User).is_reserved(name));
        }
        for name in [
            &b"user.overlay.opaque"[..],
            b"security.capability",
            b"user.x",
        ] {
            let stored = shared.stored_name(name);
            assert_eq!(stored == name, name == b"user.x");
            assert_eq!(shared.shown_name(&stored).as_deref(), Some(name));
        }
        assert_eq!(shared.shown_name(&shared.node_name()), None);
        assert_eq!(
            shared.stored_name(b"security.capability"),
            shared.capability()
        );
    }

    #[test]
    fn node_mark_round_trips() {
        let mark = NodeMark {
            origin: Some(Origin {
                tag: "image:0123".into(),
                number: Number(42),
            }),
            device: Some((Kind::Char, 0, 0)),
            owner: Some((33, 44)),
            mode: Some(0o4555),
        };
        assert_eq!(NodeMark::parse(mark.to_string().as_bytes()), mark);
        assert_eq!(
            NodeMark::parse(b"owner=x:y junk origin= device=z:1:1 mode=17777"),
            NodeMark::default()
        );
    }
}
