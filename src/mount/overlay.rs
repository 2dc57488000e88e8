//! The options of a mount program: those of fuse-overlayfs, and those of overlayfs that its callers
//! pass on.
//!
//! A comma ends an option and a colon a directory of `lowerdir`, unless a backslash is before it; commas
//! between double quotes end nothing. Options that nobody knows are ignored, as callers pass on what
//! they have; one that is known and has a wrong value is an error.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;
use std::str::FromStr;

use super::options::MountOptions;
use crate::ids::{IdMap, IdMapError, Ids};
use crate::upper::stat::StatMark;

/// What is to be mounted, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OverlayOptions {
    /// Lower directories, topmost first.
    pub lowers: Vec<PathBuf>,
    /// Where changes go; without it the mount is read-only.
    pub upper: Option<PathBuf>,
    /// Scratch directory on the same filesystem.
    pub work: Option<PathBuf>,
    /// What `mount(2)` takes.
    pub mount: MountOptions,
    /// Whom files belong to.
    pub ids: Ids,
    /// Whether nothing is synced.
    pub unsynced: bool,
    /// The extended attribute that says whom a file belongs to, instead of the file.
    pub stat_mark: Option<StatMark>,
    /// Whether there are no ACLs.
    pub no_acl: bool,
    /// Whether there are no extended attributes at all.
    pub no_xattrs: bool,
    /// Whether every directory has one link.
    pub static_nlink: bool,
    /// Whether directories of lower layers can be renamed.
    pub redirect_dir: bool,
    /// Whether attributes are copied up without contents.
    pub metacopy: bool,
    /// Number of threads.
    pub threads: Option<u16>,
    /// Whether to log much.
    pub debug: bool,
    /// What is ignored, because nobody knows it.
    pub unknown: Vec<String>,
}

/// A known option with a wrong value.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OverlayOptionError {
    /// The value is not one of those that there are.
    #[error("mount option '{option}={value}' is not possible: give {expected}")]
    Value {
        /// The option.
        option: String,
        /// Its value.
        value: String,
        /// What there is.
        expected: &'static str,
    },
    /// The option needs a value.
    #[error("mount option '{0}' needs a value")]
    NoValue(String),
    /// A map of ids is none.
    #[error("mount option '{option}': {source}")]
    Map {
        /// `uidmapping` or `gidmapping`.
        option: String,
        /// What is wrong.
        source: IdMapError,
    },
    /// The value is no text.
    #[error("mount option {0:?} is not valid UTF-8")]
    NotText(OsString),
}

type Parsed<T> = Result<T, OverlayOptionError>;

/// Options that mean nothing here, as what they do is done always, or never. A value is not looked at.
const WITHOUT_EFFECT: [&str; 20] = [
    "default_permissions",
    "defaults",
    "fast_ialloc",
    "plugins",
    "userxattr",
    "index",
    "nfs_export",
    "uuid",
    "verity",
    "ino32_t",
    "clone_fd",
    "max_read",
    "max_write",
    "kernel_cache",
    "auto_cache",
    "auto_unmount",
    "_netdev",
    "nofail",
    "user",
    "noauto",
];

impl OverlayOptions {
    /// Adds what one `-o` says.
    ///
    /// # Errors
    /// When an option that is known has no value, or a wrong one.
    pub fn add(&mut self, text: &OsStr) -> Parsed<()> {
        for option in split(text.as_bytes(), b',') {
            if !option.is_empty() {
                self.add_one(option)?;
            }
        }
        Ok(())
    }

    fn add_one(&mut self, option: &[u8]) -> Parsed<()> {
        let (key, value) = match option.iter().position(|byte| *byte == b'=') {
            Some(at) => (option.get(..at), option.get(at + 1..)),
            None => (Some(option), None),
        };
        let key = String::from_utf8_lossy(key.unwrap_or_default()).into_owned();
        match (key.as_str(), value) {
            ("lowerdir", Some(value)) => {
                let dirs = split(value, b':').filter(|dir| !dir.is_empty());
                self.lowers = dirs.map(path).collect();
            }
            ("upperdir", Some(value)) => self.upper = Some(path(value)),
            ("workdir", Some(value)) => self.work = Some(path(value)),
            ("lowerdir" | "upperdir" | "workdir", None) => {
                return Err(OverlayOptionError::NoValue(key));
            }
            _ => {
                let value = value.map(|value| text(&key, value)).transpose()?;
                self.add_text(&key, value.as_deref())?;
            }
        }
        Ok(())
    }

    fn add_text(&mut self, key: &str, value: Option<&str>) -> Parsed<()> {
        let needed = || value.ok_or_else(|| OverlayOptionError::NoValue(key.to_owned()));
        match key {
            "uidmapping" => self.ids.users = map(key, needed()?)?,
            "gidmapping" => self.ids.groups = map(key, needed()?)?,
            "squash_to_uid" => self.ids.users.squash(number(key, needed()?)?),
            "squash_to_gid" => self.ids.groups.squash(number(key, needed()?)?),
            "squash_to_root" => {
                self.ids.users.squash(0);
                self.ids.groups.squash(0);
            }
            "xattr_permissions" => {
                self.stat_mark = choice(
                    key,
                    needed()?,
                    "0, 1 (privileged) or 2 (user)",
                    &[
                        ("0", None),
                        ("1", Some(StatMark::Security)),
                        ("2", Some(StatMark::User)),
                    ],
                )?;
            }
            "volatile" => self.unsynced = true,
            "fsync" => self.unsynced = !switch(key, needed()?)?,
            "redirect_dir" => {
                let known = [
                    ("on", true),
                    ("off", false),
                    ("follow", false),
                    ("nofollow", false),
                ];
                self.redirect_dir = choice(key, needed()?, "on, off, follow or nofollow", &known)?;
            }
            "metacopy" => {
                self.metacopy =
                    choice(key, needed()?, "on or off", &[("on", true), ("off", false)])?;
            }
            "xino" => {
                choice(
                    key,
                    needed()?,
                    "on, off or auto",
                    &[("on", ()), ("off", ()), ("auto", ())],
                )?;
            }
            "timeout" | "attr_timeout" | "entry_timeout" | "negative_timeout" => {
                number::<f64>(key, needed()?)?;
            }
            "max_idle_threads" => drop(number::<i64>(key, needed()?)?),
            "threads" => self.threads = Some(number::<u16>(key, needed()?)?.max(1)),
            "noacl" => self.no_acl = true,
            "acl" => self.no_acl = false,
            "noxattrs" => self.no_xattrs = value.is_none_or(|value| value != "0"),
            "static_nlink" => self.static_nlink = true,
            "debug" => self.debug = true,
            _ if WITHOUT_EFFECT.contains(&key) => {}
            _ => {
                let known = self.mount.add_one(key, value);
                if !known.map_err(|_| OverlayOptionError::NoValue(key.to_owned()))? {
                    let value = value.map_or_else(String::new, |value| format!("={value}"));
                    self.unknown.push(format!("{key}{value}"));
                }
            }
        }
        Ok(())
    }
}

fn map(option: &str, text: &str) -> Parsed<IdMap> {
    IdMap::parse(text).map_err(|source| OverlayOptionError::Map {
        option: option.to_owned(),
        source,
    })
}

fn wrong(option: &str, value: &str, expected: &'static str) -> OverlayOptionError {
    OverlayOptionError::Value {
        option: option.to_owned(),
        value: value.to_owned(),
        expected,
    }
}

fn number<T: FromStr>(option: &str, text: &str) -> Parsed<T> {
    text.parse().map_err(|_| wrong(option, text, "a number"))
}

fn switch(option: &str, text: &str) -> Parsed<bool> {
    choice(option, text, "0 or 1", &[("0", false), ("1", true)])
}

fn choice<T: Copy>(
    option: &str,
    text: &str,
    expected: &'static str,
    known: &[(&str, T)],
) -> Parsed<T> {
    let found = known.iter().find(|(word, _)| *word == text);
    let found = found.ok_or_else(|| wrong(option, text, expected))?;
    Ok(found.1)
}

/// The parts of a text between separators that are neither quoted nor after a backslash. Quotes and
/// backslashes stay.
fn split(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut quoted = false;
    let mut escaped = false;
    text.split(move |byte| {
        let is_plain = !std::mem::replace(&mut escaped, false);
        match byte {
            b'\\' if is_plain => escaped = true,
            b'"' if is_plain => quoted = !quoted,
            byte if *byte == separator => return is_plain && !quoted,
            _ => {}
        }
        false
    })
}

/// A value without quotes, and without backslashes before what they kept from ending it.
fn plain(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => plain.extend(bytes.next().or(Some(byte))),
            b'"' => {}
            byte => plain.push(*byte),
        }
    }
    plain
}

fn path(text: &[u8]) -> PathBuf {
    OsString::from_vec(plain(text)).into()
}

fn text(key: &str, value: &[u8]) -> Parsed<String> {
    let not_text = |value: Vec<u8>| {
        let option = [key.as_bytes(), b"=", &value].concat();
        OverlayOptionError::NotText(OsString::from_vec(option))
    };
    String::from_utf8(plain(value)).map_err(|error| not_text(error.into_bytes()))
}

#[cfg(test)]
mod tests {
    use rustix::mount::MountFlags;

    use super::*;

    fn parse(text: &str) -> Parsed<OverlayOptions> {
        let mut options = OverlayOptions::default();
        options.add(OsStr::new(text)).map(|()| options)
    }

    #[test]
    fn directories_may_have_commas_and_colons() {
        let text = "lowerdir=l/A:/with\\:colon:/with\\,comma:/last\\\\,upperdir=/u,workdir=w";
        let options = parse(text).unwrap();
        let lowers = ["l/A", "/with:colon", "/with,comma", "/last\\"];
        assert_eq!(options.lowers, lowers.map(PathBuf::from));
        assert_eq!(options.upper, Some("/u".into()));
        assert_eq!(options.work, Some("w".into()));
        let not_utf8 = OsStr::from_bytes(b"lowerdir=/\xff");
        let mut options = OverlayOptions::default();
        options.add(not_utf8).unwrap();
        assert_eq!(options.lowers, [PathBuf::from(OsStr::from_bytes(b"/\xff"))]);
    }

    #[test]
    fn what_podman_says() {
        let text = "lowerdir=l/A:l/B,upperdir=/u/diff,workdir=/u/work,uidmapping=:0:1000:1:1:0:999,\
             gidmapping=0:0:1,nodev,fsync=0,volatile,noacl,xino=auto,timeout=0.0,static_nlink,\
             context=\"system_u:object_r:container_file_t:s0:c1,c2\"";
        let options = parse(text).unwrap();
        assert_eq!(options.ids.users.shown(0), 1000);
        assert_eq!(options.ids.groups.shown(0), 0);
        assert!(options.unsynced && options.no_acl && options.static_nlink);
        assert_eq!(options.mount.flags, MountFlags::NODEV);
        let label = ["context=system_u:object_r:container_file_t:s0:c1,c2"];
        assert_eq!(options.mount.security, label);
        assert!(options.unknown.is_empty());
    }

    #[test]
    fn what_nobody_knows_is_ignored() {
        let options = parse("private,ro,some=thing,,userxattr,index=off").unwrap();
        assert_eq!(options.unknown, ["private", "some=thing"]);
        assert_eq!(options.mount.flags, MountFlags::RDONLY);
    }

    #[test]
    fn wrong_values_are_named() {
        for (text, words) in [
            ("fsync=maybe", "'fsync=maybe' is not possible: give 0 or 1"),
            ("uidmapping=1:2", "'uidmapping': '1:2' is not"),
            ("xattr_permissions=3", "'xattr_permissions=3'"),
            ("squash_to_uid=me", "'squash_to_uid=me' is not possible"),
            ("timeout=soon", "give a number"),
            ("xino=perhaps", "on, off or auto"),
            ("upperdir", "'upperdir' needs a value"),
            ("fsname=", "'fsname' needs a value"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
