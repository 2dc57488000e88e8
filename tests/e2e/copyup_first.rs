//! Every kind of operation as the first that is done to an object of a lower: each combination of
//! operation, object, directory and user meets a tree of its own that nothing has touched, so that
//! it starts with the copy-up. A plain directory with the same tree says what is right: the result
//! or error, and what is then seen of the object, its directory and its neighbours.

mod ops;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Stat, Timespec, Timestamps, XattrFlags, lsetxattr, makedev,
    mknodat, statat, utimensat,
};
use rustix::io::Errno;

use crate::support::needs_root;
use crate::support::pair::{Pair, User};
use crate::support::tree::{Ignore, Tree};

/// How many cases stand for one that is tried. No divisor of the numbers of objects, directories and
/// users, so that each meets each.
const SHARE: usize = 5;

/// Owner of the objects and, but for the sticky one, of their directory.
const OWNER: u32 = 1000;
/// Time of last change of everything in the lower.
const OLD: i64 = 1_000_000_000;

/// What the object is that the operation is about: its name is `o`.
const OBJECTS: &[&str] = &[
    "file",
    "empty",
    "linked",
    "setid",
    "unreadable",
    "capable",
    "dir",
    "full",
    "shared",
    "link",
    "dangling",
    "dirlink",
    "fifo",
    "socket",
    "char",
    "block",
    "nothing",
];

/// Which rights its directory has.
const DIRECTORIES: &[(&str, u32, u32)] = &[
    ("own", 0o755, OWNER),
    ("sticky", 0o1777, 0),
    ("group", 0o2775, OWNER),
];

const USERS: &[(&str, User)] = &[
    ("root", User::ROOT),
    ("owner", User::new(OWNER, OWNER)),
    ("member", User::new(1001, 1001).and(OWNER)),
    ("other", User::new(1002, 1002)),
];

/// Makes `dir` with an object and its neighbours: `s`, a file; `e`, an empty directory; `d`, a
/// full one.
fn fill_case(dir: &Path, object: &str, mode: u32, owner: u32) {
    fs::create_dir(dir).unwrap();
    let at = |name: &str| dir.join(name);
    let o = at("o");
    let file = |name: &str, content: &str, mode: u32| {
        fs::write(at(name), content).unwrap();
        chown(at(name), Some(OWNER), Some(OWNER)).unwrap();
        fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    let subdir = |name: &str, mode: u32| {
        fs::create_dir(at(name)).unwrap();
        chown(at(name), Some(OWNER), Some(OWNER)).unwrap();
        fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    let node = |kind: FileType, mode: u32, device: u64| {
        mknodat(CWD, &o, kind, Mode::from_raw_mode(mode), device).unwrap();
        chown(&o, Some(OWNER), Some(OWNER)).unwrap();
    };
    file("s", "neighbour", 0o644);
    subdir("e", 0o755);
    subdir("d", 0o755);
    file("d/in", "in d", 0o644);
    match object {
        "file" => {
            file("o", &"lower ".repeat(2000), 0o664);
            lsetxattr(&o, c"user.kept", b"value", XattrFlags::empty()).unwrap();
        }
        "empty" => file("o", "", 0o644),
        "linked" => {
            file("o", "two names", 0o660);
            fs::hard_link(&o, at("second")).unwrap();
        }
        "setid" => file("o", "#!/bin/true\n", 0o6775),
        "unreadable" => file("o", "secret", 0o200),
        "capable" => {
            file("o", "program", 0o777);
            // Version 2, effective: CAP_NET_RAW.
            let mut value = [0; 20];
            value[..8].copy_from_slice(&[1, 0, 0, 2, 0, 0x20, 0, 0]);
            lsetxattr(&o, c"security.capability", &value, XattrFlags::empty()).unwrap();
        }
        "dir" => subdir("o", 0o755),
        "full" => {
            subdir("o", 0o775);
            subdir("o/sub", 0o755);
            file("o/in", "in o", 0o644);
        }
        "shared" => subdir("o", 0o3777),
        "link" => symlink("s", &o).unwrap(),
        "dangling" => symlink("nowhere", &o).unwrap(),
        "dirlink" => symlink("d", &o).unwrap(),
        "fifo" => node(FileType::Fifo, 0o644, 0),
        "socket" => node(FileType::Socket, 0o644, 0),
        "char" => node(FileType::CharacterDevice, 0o666, makedev(1, 3)),
        "block" => node(FileType::BlockDevice, 0o644, makedev(7, 250)),
        "nothing" => {}
        other => unreachable!("{other}"),
    }
    if object.contains("link") && object != "linked" {
        rustix::fs::chownat(
            CWD,
            &o,
            Some(rustix::fs::Uid::from_raw(OWNER)),
            Some(rustix::fs::Gid::from_raw(OWNER)),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .unwrap();
    }
    chown(dir, Some(owner), Some(OWNER)).unwrap();
    fs::set_permissions(dir, fs::Permissions::from_mode(mode)).unwrap();
    make_old(dir);
}

/// Sets the times of everything below `dir`, and of itself.
fn make_old(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            make_old(&entry.path());
        }
        set_old(&entry.path());
    }
    set_old(dir);
}

fn set_old(path: &Path) {
    let old = Timespec {
        tv_sec: OLD,
        tv_nsec: 5,
    };
    let times = Timestamps {
        last_access: old,
        last_modification: old,
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Attributes of one name that must be alike. A time of the test's own is only "now".
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    nlink: u64,
    size: u64,
    device: u64,
    mtime: Time,
    /// Whether the change time moved.
    changed: bool,
    content: Option<Vec<u8>>,
    /// Which names of the case are the same file as this one.
    same_as: Vec<String>,
}

impl Seen {
    fn differences(&self, native: &Self) -> impl Iterator<Item = String> {
        let field = |name: &str, one: &dyn std::fmt::Debug, two: &dyn std::fmt::Debug| {
            let (one, two) = (format!("{one:?}"), format!("{two:?}"));
            (one != two).then(|| format!("{name} {one:.80}, natively {two:.80}"))
        };
        // A copy-up is a change of the object and of the directories above it, which nobody can
        // hide: a change time may move where it natively does not, never the other way round.
        let changed = self.changed || !native.changed;
        [
            field(
                "mode",
                &format_args!("{:o}", self.mode),
                &format_args!("{:o}", native.mode),
            ),
            field("owner", &self.owner, &native.owner),
            field("link count", &self.nlink, &native.nlink),
            field("size", &self.size, &native.size),
            field("device", &self.device, &native.device),
            field("mtime", &self.mtime, &native.mtime),
            field("change time moved", &changed, &true),
            field("content", &self.content, &native.content),
            field("same file as", &self.same_as, &native.same_as),
        ]
        .into_iter()
        .flatten()
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Time {
    Now,
    At(i64, i64),
}

/// The names in a case's directory, and it itself as the empty name.
type Look = BTreeMap<String, Stat>;

fn look(dir: &Path) -> Look {
    let mut all = Look::new();
    add(dir, "", &mut all);
    all
}

fn add(path: &Path, name: &str, all: &mut Look) {
    let stat = statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        for entry in fs::read_dir(path).unwrap().map(Result::unwrap) {
            let below = format!("{name}/{}", entry.file_name().to_string_lossy());
            add(&entry.path(), &below, all);
        }
    }
    all.insert(name.to_owned(), stat);
}

/// What is seen of a case after the operation, compared with `before`.
fn seen(dir: &Path, before: &Look, start: i64) -> BTreeMap<String, Seen> {
    let after = look(dir);
    let old_of: BTreeMap<u64, &Stat> = before.values().map(|stat| (stat.st_ino, stat)).collect();
    after
        .iter()
        .map(|(name, stat)| {
            let path = dir.join(name.trim_start_matches('/'));
            let same_as = after
                .iter()
                .filter(|(_, other)| other.st_ino == stat.st_ino)
                .map(|(other, _)| other.clone())
                .collect();
            // An object that was there keeps its number, so a new one has no time before.
            let changed = old_of.get(&stat.st_ino).is_none_or(|old| {
                (old.st_ctime, old.st_ctime_nsec) != (stat.st_ctime, stat.st_ctime_nsec)
            });
            let content = match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => Some(fs::read(&path).unwrap()),
                FileType::Symlink => Some(
                    fs::read_link(&path)
                        .unwrap()
                        .into_os_string()
                        .into_encoded_bytes(),
                ),
                _ => None,
            };
            let seen = Seen {
                mode: stat.st_mode,
                owner: (stat.st_uid, stat.st_gid),
                nlink: stat.st_nlink,
                size: stat.st_size.cast_unsigned(),
                device: stat.st_rdev,
                mtime: time(stat.st_mtime, stat.st_mtime_nsec.cast_signed(), start),
                changed,
                content,
                same_as,
            };
            (name.clone(), seen)
        })
        .collect()
}

fn time(seconds: i64, nanoseconds: i64, start: i64) -> Time {
    // Within the run; times that operations set are long before or after.
    if (start..start + 86_400).contains(&seconds) {
        Time::Now
    } else {
        Time::At(seconds, nanoseconds)
    }
}

/// One combination; its number is the name of its directory.
struct Case {
    op: &'static ops::Op,
    object: &'static str,
    directory: &'static (&'static str, u32, u32),
    user: &'static (&'static str, User),
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for op in ops::OPS {
        for &object in OBJECTS {
            for directory in DIRECTORIES {
                for user in USERS {
                    cases.push(Case {
                        op,
                        object,
                        directory,
                        user,
                    });
                }
            }
        }
    }
    cases
}

impl Case {
    /// Does it in `dir` and tells what came of it.
    fn run(&self, dir: &Path, start: i64) -> Outcome {
        let before = look(dir);
        let result = self.user.1.act(|| (self.op.act)(dir));
        (result, seen(dir, &before, start))
    }

    /// Intended differences, which `docs/semantics.md` has.
    fn is_known(&self) -> bool {
        // chown(-1, -1): a stranger's is to be EPERM, and root's to take set-id bits away.
        self.op.name == "chown nothing" && self.object == "setid" && self.user.0 != "owner"
    }
}

type Outcome = (Result<String, Errno>, BTreeMap<String, Seen>);

/// What differs, in words.
fn difference(mounted: &Outcome, native: &Outcome) -> Option<String> {
    let mut lines = Vec::new();
    if mounted.0 != native.0 {
        lines.push(format!("{:?}, natively {:?}", mounted.0, native.0));
    }
    let names: std::collections::BTreeSet<_> = mounted.1.keys().chain(native.1.keys()).collect();
    for name in names {
        match (mounted.1.get(name), native.1.get(name)) {
            (Some(one), Some(two)) => lines.extend(one.differences(two).map(|line| {
                let name = if name.is_empty() { "." } else { name };
                format!("{name}: {line}")
            })),
            (one, two) => lines.push(format!("{name}: {one:?}, natively {two:?}")),
        }
    }
    if lines.is_empty() {
        return None;
    }
    Some(lines.join("\n    "))
}

#[test]
fn every_operation_as_the_first_on_each_object() {
    needs_root!();
    compare("cached", 0);
}

#[test]
fn every_operation_as_the_first_on_each_object_in_passthrough_mode() {
    needs_root!();
    compare("passthrough", 1);
}

/// Every `SHARE`th case, another share for each `turn`; all of them if `LAMINA_ALL_CASES` is set.
fn compare(io: &'static str, turn: usize) {
    let mut cases = cases();
    if std::env::var_os("LAMINA_ALL_CASES").is_none() {
        let mut number = turn;
        cases.retain(|_| {
            number += 1;
            number.is_multiple_of(SHARE)
        });
    }
    let mut pair = Pair::new("first", io, |root| {
        for (number, case) in cases.iter().enumerate() {
            let (_, mode, owner) = *case.directory;
            fill_case(&root.join(number.to_string()), case.object, mode, owner);
        }
        make_old(root);
    });
    let lower = Tree::read(pair.lower());
    // Later than anything above, by more than a tick of the clock.
    std::thread::sleep(Duration::from_millis(20));
    let start = rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec - 3600;
    let mut different = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        let name = number.to_string();
        let native = case.run(&pair.native().join(&name), start);
        let mounted = case.run(&pair.mount().join(&name), start);
        if let Some(difference) = difference(&mounted, &native)
            && !case.is_known()
        {
            different.push(format!(
                "{} on {} in {} as {}:\n    {difference}",
                case.op.name, case.object, case.directory.0, case.user.0
            ));
        }
    }
    let count = different.len();
    different.truncate(40);
    assert!(
        different.is_empty(),
        "{count} of {} cases differ:\n{}",
        cases.len(),
        different.join("\n")
    );

    let lower_after = Tree::read(pair.lower());
    lower.assert_same("the lower", &lower_after, "afterwards", Ignore::NOTHING);

    // And it stays so.
    let before = Tree::read(pair.mount());
    pair.remount();
    let after = Tree::read(pair.mount());
    before.assert_same("before", &after, "after a remount", Ignore::NOTHING);
}
