//! What users see of an object in an extended attribute instead of in the object's own owner and mode,
//! as fuse-overlayfs and containers-storage have it where a layer's files cannot have those.
//!
//! The value is `UID:GID:MODE`, the mode in octal, and after it may come `:TYPE`: `file`, `dir`, `symlink`,
//! `pipe`, `socket`, `block-MAJOR-MINOR` or `char-MAJOR-MINOR`. The root directory of a layer that has
//! the attribute says that all of the layer does.

use std::os::fd::BorrowedFd;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::attr::{Attr, Kind, PERMISSIONS};
use crate::sys::{self, SysResult};

/// Which attribute it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatMark {
    /// That of containers-storage.
    Containers,
    /// Another program's, for who may set attributes of users.
    User,
    /// The same for who may set those of security modules.
    Security,
}

/// What the attribute says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Owner and group.
    pub owner: (u32, u32),
    /// Permissions.
    pub mode: u32,
    /// What the object is, and its device number, if it is something else than it seems.
    pub kind: Option<(Kind, u64)>,
}

impl StatMark {
    /// Its name.
    pub fn name(self) -> &'static [u8] {
        match self {
            Self::Containers => b"user.containers.override_stat",
            Self::User => b"user.fuseoverlayfs.override_stat",
            Self::Security => b"security.fuseoverlayfs.override_stat",
        }
    }

    /// The one that a layer has by its root directory.
    pub fn of_layer(root: BorrowedFd<'_>) -> Option<Self> {
        let mut all = [Self::Security, Self::Containers, Self::User].into_iter();
        all.find(|mark| sys::get_xattr(root, mark.name()).is_ok_and(|value| value.is_some()))
    }

    /// What it says of an object; nothing if the object does not have it.
    ///
    /// # Errors
    /// When the attribute cannot be read.
    pub fn read(self, fd: BorrowedFd<'_>) -> SysResult<Option<Shown>> {
        let value = sys::get_xattr(fd, self.name())?;
        Ok(value.and_then(|text| Shown::parse(&text)))
    }

    /// Says it of an object.
    ///
    /// # Errors
    /// When the attribute cannot be set.
    pub fn write(self, fd: BorrowedFd<'_>, shown: &Shown) -> SysResult<()> {
        let text = shown.to_string();
        match sys::set_xattr(fd, self.name(), text.as_bytes(), XattrFlags::empty()) {
            // Users' attributes are not possible on links and special files: they stay as they are.
            Err(Errno::PERM | Errno::OPNOTSUPP) if shown.kind.is_none() => Ok(()),
            result => result,
        }
    }

    /// The permissions that an object needs so that whoever shares the layer can read it.
    pub fn real_mode(kind: Kind, mode: u32) -> u32 {
        let shared = match kind {
            Kind::Dir => 0o755,
            _ => 0o644,
        };
        mode & 0o777 | shared
    }
}

impl Shown {
    fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let mut words = text.trim_end_matches('\0').splitn(4, ':');
        let owner = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let mode = u32::from_str_radix(words.next()?, 8).ok()?;
        let kind = match words.next() {
            Some(word) => Some(parse_kind(word)?),
            // As it was before there were types.
            None => None,
        };
        Some(Self {
            owner,
            mode: mode & PERMISSIONS,
            kind,
        })
    }

    /// An object's attributes as users see them.
    pub fn apply(&self, attr: Attr) -> Attr {
        let mut attr = Attr {
            uid: self.owner.0,
            gid: self.owner.1,
            mode: attr.kind().mode_bits() | self.mode,
            ..attr
        };
        // Only a file stands for what it is not.
        if let Some((kind, rdev)) = self.kind
            && attr.kind() == Kind::File
            && kind != Kind::Dir
        {
            attr.mode = kind.mode_bits() | self.mode;
            attr.rdev = rdev;
        }
        attr
    }
}

fn parse_kind(word: &str) -> Option<(Kind, u64)> {
    let device = |rest: &str| {
        let (major, minor) = rest.split_once('-')?;
        Some(rustix::fs::makedev(
            major.parse().ok()?,
            minor.parse().ok()?,
        ))
    };
    if let Some(rest) = word.strip_prefix("block-") {
        return Some((Kind::Block, device(rest)?));
    }
    if let Some(rest) = word.strip_prefix("char-") {
        return Some((Kind::Char, device(rest)?));
    }
    let kind = match word {
        "file" => Kind::File,
        "dir" => Kind::Dir,
        "symlink" => Kind::Symlink,
        "pipe" => Kind::Fifo,
        "socket" => Kind::Socket,
        _ => return None,
    };
    Some((kind, 0))
}

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (uid, gid) = self.owner;
        write!(f, "{uid}:{gid}:{:04o}", self.mode)?;
        let Some((kind, rdev)) = self.kind else {
            return Ok(());
        };
        let (major, minor) = (rustix::fs::major(rdev), rustix::fs::minor(rdev));
        match kind {
            Kind::File => f.write_str(":file"),
            Kind::Dir => f.write_str(":dir"),
            Kind::Symlink => f.write_str(":symlink"),
            Kind::Fifo => f.write_str(":pipe"),
            Kind::Socket => f.write_str(":socket"),
            Kind::Block => write!(f, ":block-{major}-{minor}"),
            Kind::Char => write!(f, ":char-{major}-{minor}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for (text, mode, kind) in [
            ("0:0:0755", 0o755, None),
            ("1000:5:4711:file", 0o4711, Some((Kind::File, 0))),
            ("1:2:1777:dir", 0o1777, Some((Kind::Dir, 0))),
            (
                "1:2:0660:block-8-17",
                0o660,
                Some((Kind::Block, rustix::fs::makedev(8, 17))),
            ),
            (
                "1:2:0666:char-1-300",
                0o666,
                Some((Kind::Char, rustix::fs::makedev(1, 300))),
            ),
            ("1:2:0600:pipe", 0o600, Some((Kind::Fifo, 0))),
        ] {
            let shown = Shown::parse(text.as_bytes()).unwrap();
            assert_eq!((shown.mode, shown.kind), (mode, kind), "{text}");
            assert_eq!(shown.to_string(), text);
        }
        // With the type of the object in the mode, and with a zero at the end.
        let shown = Shown::parse(b"7:8:100644\0").unwrap();
        assert_eq!((shown.owner, shown.mode), ((7, 8), 0o644));
    }

    #[test]
    fn what_says_nothing_is_passed_over() {
        for text in [
            &b""[..],
            b"0:0",
            b"a:0:755",
            b"0:0:9",
            b"0:0:755:what",
            b"0:0:755:char-1",
            b"0:0:755:block-x-1",
            b"\xff:0:755",
        ] {
            assert_eq!(Shown::parse(text), None, "{:?}", text.escape_ascii());
        }
    }
}
