//! The union without FUSE, over plain directories.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use rustix::fs::XattrFlags;
use tempfile::TempDir;

use super::*;
use crate::lower::Number;
use crate::sys;

/// A lower with a few files, an upper, and the union of both.
struct Fixture {
    dir: TempDir,
    config: Config,
    union: Option<Union>,
}

const ME: Caller = Caller {
    uid: 0,
    gid: 0,
    tid: 0,
};

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "lower",
            "lower/d",
            "lower/d/sub",
            "lower/e",
            "upper",
            "work",
        ] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let lower = dir.path().join("lower");
        fs::write(lower.join("f"), "lower f").unwrap();
        fs::write(lower.join("d/g"), "lower g").unwrap();
        fs::write(lower.join("d/sub/h"), "lower h").unwrap();
        fs::hard_link(lower.join("f"), lower.join("d/f2")).unwrap();
        symlink("f", lower.join("link")).unwrap();
        let config = Config {
            lowers: vec![lower],
            upper: Some(UpperDirs {
                upper: dir.path().join("upper"),
                work: dir.path().join("work"),
            }),
            metacopy: true,
            ..Config::default()
        };
        let union = Some(Union::open(&config).unwrap());
        Self { dir, config, union }
    }

    fn u(&self) -> &Union {
        self.union.as_ref().unwrap()
    }

    fn remount(&mut self) {
        self.union = None;
        self.union = Some(Union::open(&self.config).unwrap());
    }

    /// The upper becomes the topmost lower.
    fn rotate(&mut self) {
        self.union = None;
        let dirs = self.config.upper.as_mut().unwrap();
        let old = dirs.upper.clone();
        let number = self.config.lowers.len();
        dirs.upper = old.with_file_name(format!("upper{number}"));
        dirs.work = old.with_file_name(format!("work{number}"));
        fs::create_dir(&dirs.upper).unwrap();
        fs::create_dir(&dirs.work).unwrap();
        self.config.lowers.insert(0, old);
        self.union = Some(Union::open(&self.config).unwrap());
    }

    fn upper(&self, path: &str) -> std::path::PathBuf {
        self.dir.path().join("upper").join(path)
    }

    /// Looks a path up.
    fn find(&self, path: &str) -> Option<Attr> {
        let mut attr = self.u().getattr(Number::ROOT).unwrap();
        for name in path.split('/').filter(|name| !name.is_empty()) {
            attr = self
                .u()
                .lookup(Number(attr.ino), name.as_bytes())
                .unwrap()?;
        }
        Some(attr)
    }

    fn number(&self, path: &str) -> Number {
        Number(
            self.find(path)
                .unwrap_or_else(|| panic!("{path} is not there"))
                .ino,
        )
    }

    fn read(&self, path: &str) -> String {
        self.read_node(self.number(path))
    }

    fn read_node(&self, number: Number) -> String {
        let mut data = vec![0; 1 << 16];
        let size = self.u().read(number, 0, &mut data).unwrap();
        data.truncate(size);
        String::from_utf8(data).unwrap()
    }

    fn create(&self, dir: &str, name: &str, kind: Kind) -> Number {
        let new = NewNode {
            kind,
            mode: 0o755,
            umask: 0,
            rdev: 0,
            target: b"t",
        };
        Number(
            self.u()
                .create(self.number(dir), name.as_bytes(), &new, ME)
                .unwrap()
                .ino,
        )
    }

    fn rename(&self, from: (&str, &str), to: (&str, &str), mode: RenameMode) {
        let (dir, new_dir) = (self.number(from.0), self.number(to.0));
        self.u()
            .rename(dir, from.1.as_bytes(), new_dir, to.1.as_bytes(), mode)
            .unwrap();
    }

    fn names(&self, path: &str) -> Vec<String> {
        let mut names = Vec::new();
        let number = self.number(path);
        self.u()
            .readdir(number, Cookie::DOTDOT, &mut |item| {
                let found = self.u().lookup(number, item.name).unwrap().unwrap();
                assert_eq!(found.ino, item.number.0, "d_ino is st_ino");
                assert_eq!(found.kind(), item.kind, "d_type is right");
                names.push(String::from_utf8(item.name.to_vec()).unwrap());
                Listed::Taken
            })
            .unwrap();
        names.sort();
        names
    }

    fn changes(&self) -> Vec<String> {
        let line = |change: Change| {
            format!(
                "{:?} {}",
                change.kind(),
                String::from_utf8(change.path).unwrap()
            )
        };
        self.u().changes().unwrap().into_iter().map(line).collect()
    }
}

#[test]
fn numbers_survive_copy_up_rename_and_remount() {
    let mut t = Fixture::new();
    let number = t.number("d/g");
    assert_eq!(t.u().write(number, 0, b"upper", None).unwrap(), 5);
    assert_eq!(t.number("d/g"), number);
    assert_eq!(t.read("d/g"), "upper g");
    t.rename(("d", "g"), ("e", "g2"), RenameMode::Replace);
    assert_eq!(t.number("e/g2"), number);
    assert!(t.find("d/g").is_none());
    let dir = t.number("d");
    t.rename(("", "d"), ("e", "moved"), RenameMode::Replace);
    assert_eq!(t.number("e/moved"), dir);
    t.remount();
    assert_eq!(t.number("e/g2"), number);
    assert_eq!(t.number("e/moved"), dir);
    assert_eq!(t.names("e/moved"), ["f2", "sub"]);
    assert_eq!(t.read("e/moved/sub/h"), "lower h");
    assert!(t.find("d").is_none());
    let lower = t.dir.path().join("lower/d/g");
    assert_eq!(fs::read_to_string(lower).unwrap(), "lower g");
}

#[test]
fn hard_links_survive_copy_up_through_any_name() {
    let mut t = Fixture::new();
    let number = t.number("d/f2");
    t.u().write(number, 0, b"UPPER", None).unwrap();
    for _ in 0..2 {
        assert_eq!(t.number("f"), t.number("d/f2"));
        assert_eq!(t.read("f"), "UPPER f");
        assert_eq!(t.find("f").unwrap().nlink, 2);
        t.remount();
    }
    let ino = |path| fs::metadata(t.upper(path)).unwrap().ino();
    assert_eq!(ino("f"), ino("d/f2"));
    t.u().unlink(Number::ROOT, b"f").unwrap();
    assert_eq!(t.find("d/f2").unwrap().nlink, 1);
}

#[test]
fn hard_links_into_a_moved_directory_survive_copy_up() {
    for remount in [false, true] {
        let mut t = Fixture::new();
        t.rename(("", "d"), ("e", "moved"), RenameMode::Replace);
        if remount {
            t.remount();
        }
        let number = t.number("f");
        t.u().write(number, 0, b"UPPER", None).unwrap();
        for _ in 0..2 {
            assert_eq!(t.read("e/moved/f2"), "UPPER f");
            assert_eq!(t.number("e/moved/f2"), number);
            assert_eq!(t.find("f").unwrap().nlink, 2);
            t.remount();
        }
    }
}

#[test]
fn directories_that_a_layer_moved_are_found_and_can_be_moved_again() {
    let mut t = Fixture::new();
    t.create("", "new", Kind::Dir);
    t.rename(("", "d"), ("new", "d"), RenameMode::Replace);
    t.rotate();
    assert_eq!(t.read("new/d/sub/h"), "lower h");
    t.rename(("new/d", "sub"), ("e", "sub"), RenameMode::Replace);
    t.rename(("", "new"), ("e", "new"), RenameMode::Replace);
    for _ in 0..2 {
        assert_eq!(t.read("e/sub/h"), "lower h");
        assert_eq!(t.read("e/new/d/g"), "lower g");
        assert!(t.find("e/new/d/sub").is_none());
        t.rotate();
    }
}

#[test]
fn attributes_in_several_layers_lead_to_the_contents_below_them() {
    let mut t = Fixture::new();
    for mode in [0o600, 0o640, 0o644] {
        let set = SetAttr {
            mode: Some(mode),
            ..SetAttr::default()
        };
        t.u().setattr(t.number("d/f2"), &set).unwrap();
        t.rotate();
        assert_eq!(t.read("f"), "lower f");
    }
    t.u().write(t.number("f"), 0, b"UPPER", None).unwrap();
    assert_eq!(t.read("d/f2"), "UPPER f");
}

/// A lookup that sees a file without contents, and comes to an end when the file has got them and the
/// kernel has forgotten it.
#[test]
fn contents_that_came_during_a_lookup_are_seen() {
    let t = Fixture::new();
    let number = t.number("d/g");
    let set = SetAttr {
        mode: Some(0o600),
        ..SetAttr::default()
    };
    t.u().setattr(number, &set).unwrap();
    let dir = t.u().touch(t.number("d")).unwrap();
    let found = t.u().resolve(&dir, b"g").unwrap().unwrap();
    t.u().write(number, 0, b"UPPER", None).unwrap();
    t.u().forget(number, u64::from(u32::MAX));
    assert!(t.u().table.get(number).is_none(), "still known");
    let node = t.u().intern(&dir, b"g", found, true).unwrap();
    assert_eq!(t.read_node(node.number), "UPPER g");
}

#[test]
fn a_device_of_a_layer_that_was_an_upper_stays_what_it_is() {
    let mut t = Fixture::new();
    if !rustix::process::geteuid().is_root() {
        return; // nobody else can make devices
    }
    t.create("d", "null", Kind::Char);
    t.rotate();
    let found = t.find("d/null").unwrap();
    assert_eq!((found.kind(), found.rdev), (Kind::Char, 0));
    assert!(t.names("d").contains(&"null".to_owned()));
}

#[test]
fn unlinking_one_of_several_lower_names_leaves_the_others() {
    let t = Fixture::new();
    let number = t.number("f");
    t.u().unlink(Number::ROOT, b"f").unwrap();
    assert!(t.find("f").is_none());
    assert_eq!(t.number("d/f2"), number);
    assert_eq!(t.find("d/f2").unwrap().nlink, 1);
    assert_eq!(t.read("d/f2"), "lower f");
}

#[test]
fn a_deleted_lower_file_can_still_be_used() {
    let t = Fixture::new();
    let number = t.number("d/g");
    let dir = t.number("d");
    t.u().unlink(dir, b"g").unwrap();
    assert_eq!(t.u().getattr(number).unwrap().nlink, 0);
    assert_eq!(t.read_node(number), "lower g");
    t.u().write(number, 0, b"still", None).unwrap();
    assert_eq!(t.read_node(number), "still g");
    assert_eq!(t.u().getattr(number).unwrap().nlink, 0);
    assert!(t.find("d/g").is_none());
    t.u().forget(number, 1);
    assert!(t.u().getattr(number).is_err());
}

#[test]
fn a_deleted_upper_file_can_still_be_used() {
    let t = Fixture::new();
    let number = t.create("", "new", Kind::File);
    t.u().unlink(Number::ROOT, b"new").unwrap();
    t.u().write(number, 0, b"data", None).unwrap();
    assert_eq!(t.read_node(number), "data");
    assert_eq!(t.u().getattr(number).unwrap().nlink, 0);
}

#[test]
fn a_directory_made_over_a_deleted_one_is_empty() {
    let mut t = Fixture::new();
    t.rename(("", "d"), ("", "d2"), RenameMode::Replace);
    t.create("", "d", Kind::Dir);
    for _ in 0..2 {
        assert_eq!(t.names("d"), [""; 0]);
        assert_eq!(t.names("d2"), ["f2", "g", "sub"]);
        assert_eq!(t.find("d").unwrap().nlink, 2);
        assert_eq!(t.find("d2").unwrap().nlink, 3);
        assert_eq!(t.find("").unwrap().nlink, 5);
        t.remount();
    }
}

#[test]
fn exchange_of_a_lower_directory_and_a_file() {
    let mut t = Fixture::new();
    t.rename(("", "d"), ("", "f"), RenameMode::Exchange);
    for _ in 0..2 {
        assert_eq!(t.read("d"), "lower f");
        assert_eq!(t.names("f"), ["f2", "g", "sub"]);
        assert_eq!(t.number("f/f2"), t.number("d"));
        t.remount();
    }
}

#[test]
fn only_empty_directories_can_be_removed_or_replaced() {
    let mut t = Fixture::new();
    let errno = |result: FsResult<()>| result.unwrap_err().errno();
    assert_eq!(errno(t.u().rmdir(Number::ROOT, b"d")), Errno::NOTEMPTY);
    let root = Number::ROOT;
    let onto = t.u().rename(root, b"e", root, b"d", RenameMode::Replace);
    assert_eq!(errno(onto), Errno::NOTEMPTY);
    for name in ["g", "f2"] {
        t.u().unlink(t.number("d"), name.as_bytes()).unwrap();
    }
    t.u().unlink(t.number("d/sub"), b"h").unwrap();
    t.u().rmdir(t.number("d"), b"sub").unwrap();
    t.create("e", "x", Kind::File);
    t.rename(("", "e"), ("", "d"), RenameMode::Replace);
    for _ in 0..2 {
        assert_eq!(t.names("d"), ["x"]);
        assert!(t.find("e").is_none());
        t.remount();
    }
}

#[test]
fn a_directory_cannot_be_moved_into_itself() {
    let t = Fixture::new();
    let sub = t.number("d/sub");
    let moved = t
        .u()
        .rename(Number::ROOT, b"d", sub, b"x", RenameMode::Replace);
    assert_eq!(moved.unwrap_err().errno(), Errno::INVAL);
}

#[test]
fn an_upper_copied_with_its_marks_does_not_confuse_two_files() {
    let mut t = Fixture::new();
    let number = t.number("d/g");
    t.u().write(number, 0, b"one", None).unwrap();
    t.union = None;
    fs::write(t.upper("d/copy"), "two").unwrap();
    // No other program is started: it would hold the locks of other tests for a moment.
    let [from, to] = ["d/g", "d/copy"].map(|path| fs::File::open(t.upper(path)).unwrap());
    let marks = sys::list_xattrs(from.as_fd()).unwrap();
    assert!(!marks.is_empty());
    for name in marks {
        let value = sys::get_xattr(from.as_fd(), &name).unwrap().unwrap();
        sys::set_xattr(to.as_fd(), &name, &value, XattrFlags::empty()).unwrap();
    }
    t.union = Some(Union::open(&t.config).unwrap());
    assert_ne!(t.number("d/g"), t.number("d/copy"));
    assert_eq!(t.read("d/copy"), "two");
    assert_eq!(t.read("d/g"), "oneer g");
}

#[test]
fn the_upper_is_refused_while_another_union_has_it() {
    let t = Fixture::new();
    let second = Union::open(&t.config).err().unwrap().to_string();
    assert!(second.contains("in use by another live mount"), "{second}");
    assert!(Union::open_for_diff(&t.config).is_ok());
}

#[test]
fn changes_name_what_was_added_changed_and_deleted() {
    let t = Fixture::new();
    t.create("", "new", Kind::File);
    t.u().write(t.number("d/g"), 0, b"x", None).unwrap();
    t.u().unlink(t.number("d/sub"), b"h").unwrap();
    assert_eq!(
        t.changes(),
        [
            "Changed /d",
            "Changed /d/g",
            "Changed /d/sub",
            "Deleted /d/sub/h",
            "Added /new"
        ]
    );
}

#[test]
fn changes_show_a_moved_directory_in_full() {
    let t = Fixture::new();
    t.rename(("", "d"), ("", "moved"), RenameMode::Replace);
    let moved = [
        "/moved",
        "/moved/f2",
        "/moved/g",
        "/moved/sub",
        "/moved/sub/h",
    ];
    let mut expected = vec!["Deleted /d".to_owned()];
    expected.extend(moved.iter().map(|path| format!("Added {path}")));
    assert_eq!(t.changes(), expected);
}

#[test]
fn changes_name_what_an_opaque_directory_hides() {
    let t = Fixture::new();
    t.rename(("", "d"), ("e", "away"), RenameMode::Replace);
    t.create("", "d", Kind::Dir);
    t.create("d", "g", Kind::File);
    let changes = t.changes();
    for line in [
        "Changed /d",
        "Changed /d/g",
        "Deleted /d/f2",
        "Deleted /d/sub",
    ] {
        assert!(
            changes.iter().any(|change| change == line),
            "{line}: {changes:?}"
        );
    }
}

#[test]
fn names_deeper_than_path_max_work() {
    let t = Fixture::new();
    let long = "n".repeat(255);
    let mut at = Number::ROOT;
    let new = NewNode {
        kind: Kind::Dir,
        mode: 0o755,
        umask: 0,
        rdev: 0,
        target: b"",
    };
    for _ in 0..40 {
        at = Number(t.u().create(at, long.as_bytes(), &new, ME).unwrap().ino);
    }
    let file = NewNode {
        kind: Kind::File,
        ..new
    };
    let deep = t.u().create(at, b"deep", &file, ME).unwrap();
    t.u().write(Number(deep.ino), 0, b"x", None).unwrap();
    let fresh = Union::open_for_diff(&t.config).unwrap();
    assert_eq!(fresh.changes().unwrap().len(), 41);
    let too_long = [b'n'; 256];
    let refused = t
        .u()
        .create(Number::ROOT, &too_long, &file, ME)
        .unwrap_err();
    assert_eq!(refused.errno(), Errno::NAMETOOLONG);
}

#[test]
fn places_of_upper_and_work_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for name in ["lower", "upper", "upper/work"] {
        fs::create_dir(path(name)).unwrap();
    }
    let open = |upper: &Path, work: &Path| {
        let upper = Some(UpperDirs {
            upper: upper.into(),
            work: work.into(),
        });
        let config = Config {
            lowers: vec![path("lower")],
            upper,
            ..Config::default()
        };
        Union::open(&config)
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    };
    assert!(open(&path("upper"), &path("upper/work")).contains("lies inside"));
    assert!(open(&path("upper"), &path("upper")).contains("lies inside"));
    assert!(open(&path("upper"), Path::new("/proc")).contains("different filesystems"));
    assert!(open(&path("missing"), &path("upper")).contains("missing"));
}

#[test]
fn what_a_creation_returns_is_what_is_there() {
    let fixture = Fixture::new();
    let union = fixture.u();
    union.unlink(Number::ROOT, b"f").unwrap();
    // A free name, and one over a whiteout. The kernel remembers the reply, change time and all.
    for name in [&b"new"[..], b"f"] {
        for kind in [Kind::File, Kind::Dir, Kind::Fifo, Kind::Char, Kind::Symlink] {
            if kind == Kind::Char && !rustix::process::geteuid().is_root() {
                continue;
            }
            let new = NewNode {
                kind,
                mode: 0o640,
                umask: 0,
                rdev: 0,
                target: b"target",
            };
            let made = union.create(Number::ROOT, name, &new, ME).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(11));
            let seen = union.getattr(Number(made.ino)).unwrap();
            assert_eq!(format!("{made:?}"), format!("{seen:?}"), "{kind:?}");
            match kind {
                Kind::Dir => union.rmdir(Number::ROOT, name).unwrap(),
                _ => union.unlink(Number::ROOT, name).unwrap(),
            }
        }
    }
}
