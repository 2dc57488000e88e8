//! The union in the hands of an ordinary user: no capabilities, marks in `user.*`.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::PathBuf;

use rustix::fs::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use tempfile::TempDir;

use super::*;

/// The user.
const USER: u32 = 65534;
const ME: Caller = Caller {
    uid: USER,
    gid: USER,
    tid: 0,
};

/// A lower of root's with objects of many modes, and an upper of the user's.
struct Fixture {
    dir: TempDir,
    config: Config,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["lower", "lower/d", "lower/ro", "upper", "work"] {
            fs::create_dir(path(name)).unwrap();
        }
        fs::write(path("lower/f"), "lower f").unwrap();
        fs::write(path("lower/ro/g"), "lower g").unwrap();
        symlink("f", path("lower/link")).unwrap();
        for name in ["upper", "work"] {
            chown(path(name), Some(USER), Some(USER)).unwrap();
        }
        let mode = |name: &str, mode| {
            fs::set_permissions(path(name), Permissions::from_mode(mode)).unwrap();
        };
        mode("", 0o755);
        mode("lower/f", 0o444);
        mode("lower/ro", 0o555);
        let config = Config {
            lowers: vec![path("lower")],
            upper: Some(UpperDirs {
                upper: path("upper"),
                work: path("work"),
            }),
            ..Config::default()
        };
        Self { dir, config }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Calls `act` with the union, as the user. A credential is a thread's own.
    fn as_user(&self, act: impl FnOnce(&Union) + Send) {
        std::thread::scope(|scope| {
            let user = scope.spawn(|| {
                let (uid, gid) = (Uid::from_raw(USER), Gid::from_raw(USER));
                set_thread_groups(&[]).unwrap();
                set_thread_res_gid(gid, gid, gid).unwrap();
                set_thread_res_uid(uid, uid, uid).unwrap();
                act(&Union::open(&self.config).unwrap());
            });
            user.join().unwrap();
        });
    }
}

fn find(union: &Union, path: &str) -> Attr {
    path.split('/').filter(|name| !name.is_empty()).fold(
        union.getattr(Number::ROOT).unwrap(),
        |dir, name| {
            let found = union.lookup(Number(dir.ino), name.as_bytes());
            found
                .unwrap()
                .unwrap_or_else(|| panic!("{path} is not there"))
        },
    )
}

fn number(union: &Union, path: &str) -> Number {
    Number(find(union, path).ino)
}

fn chmod(union: &Union, path: &str, mode: u32) {
    let set = SetAttr {
        mode: Some(mode),
        ..SetAttr::default()
    };
    let attr = union.setattr(number(union, path), &set).unwrap();
    assert_eq!(attr.mode & 0o7777, mode);
}

fn create(union: &Union, dir: &str, name: &str, kind: Kind, mode: u32) -> Number {
    let new = NewNode {
        kind,
        mode,
        umask: 0,
        rdev: 0,
        target: b"t",
    };
    let attr = union
        .create(number(union, dir), name.as_bytes(), &new, ME)
        .unwrap();
    assert_eq!(
        attr.mode & 0o7777,
        if kind == Kind::Symlink { 0o777 } else { mode }
    );
    Number(attr.ino)
}

fn read(union: &Union, path: &str) -> Vec<u8> {
    let mut data = vec![0; 99];
    let size = union.read(number(union, path), 0, &mut data).unwrap();
    data.truncate(size);
    data
}

const MODES: [u32; 8] = [0o000, 0o100, 0o200, 0o300, 0o444, 0o500, 0o555, 0o755];

#[test]
fn files_and_directories_of_any_mode_are_made_changed_and_found_again() {
    let t = Fixture::new();
    t.as_user(|u| {
        for mode in MODES {
            create(u, "", &format!("f{mode:o}"), Kind::File, mode);
            create(u, "", &format!("d{mode:o}"), Kind::Dir, mode);
            create(u, "", &format!("c{mode:o}"), Kind::Char, mode);
            create(u, "", &format!("p{mode:o}"), Kind::Fifo, mode);
        }
    });
    for before in MODES {
        t.as_user(|u| {
            for letter in ["f", "d", "c", "p"] {
                let path = format!("{letter}{before:o}");
                assert_eq!(find(u, &path).mode & 0o7777, before, "{path}");
                for after in MODES {
                    chmod(u, &path, after);
                }
                chmod(u, &path, before);
            }
            let file = number(u, &format!("f{before:o}"));
            u.write(file, 0, b"data", None).unwrap();
            let xattr = rustix::fs::XattrFlags::empty();
            u.setxattr(file, b"user.x", b"1", xattr, false).unwrap();
            assert_eq!(&*u.getxattr(file, b"user.x").unwrap(), b"1");
        });
    }
    t.as_user(|u| {
        for mode in MODES {
            assert_eq!(read(u, &format!("f{mode:o}")), b"data");
            u.unlink(Number::ROOT, format!("f{mode:o}").as_bytes())
                .unwrap();
            u.rmdir(Number::ROOT, format!("d{mode:o}").as_bytes())
                .unwrap();
        }
    });
}

#[test]
fn read_only_lower_objects_of_others_are_copied_up() {
    let t = Fixture::new();
    t.as_user(|u| {
        let before = number(u, "f");
        u.write(before, 0, b"UPPER", None).unwrap();
        assert_eq!(number(u, "f"), before);
        u.write(number(u, "ro/g"), 0, b"UPPER", None).unwrap();
        assert_eq!(find(u, "ro").mode & 0o7777, 0o555);
    });
    t.as_user(|u| {
        assert_eq!(find(u, "f").mode & 0o7777, 0o444);
        assert_eq!(read(u, "f"), b"UPPER f");
        assert_eq!(find(u, "ro").mode & 0o7777, 0o555);
        assert_eq!(read(u, "ro/g"), b"UPPER g");
        // Moved, emptied and removed, read-only as it is.
        u.rename(
            Number::ROOT,
            b"ro",
            number(u, "d"),
            b"r2",
            RenameMode::Replace,
        )
        .unwrap();
    });
    t.as_user(|u| {
        assert_eq!(read(u, "d/r2/g"), b"UPPER g");
        u.unlink(number(u, "d/r2"), b"g").unwrap();
        u.rmdir(number(u, "d"), b"r2").unwrap();
    });
    t.as_user(|u| {
        assert!(u.lookup(number(u, "d"), b"r2").unwrap().is_none());
        assert!(u.lookup(Number::ROOT, b"ro").unwrap().is_none());
        let left = fs::read_dir(t.path("work/work")).unwrap().count();
        assert_eq!(left, 0, "left in the work directory");
    });
}
