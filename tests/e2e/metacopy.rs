//! Copy-ups of attributes alone: what changes no contents moves none, and the contents follow when
//! somebody writes.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::support::disk::Mounted;
use crate::support::lamina::{Lamina, Mount};
use crate::support::layers::{archive_of, noise};
use crate::support::overlayfs::{Layers, Overlayfs, assert_same_tree};
use crate::support::raw::Mapping;
use crate::support::sandbox::Sandbox;
use crate::support::tree::{Ignore, Tree};
use crate::support::{needs_root, run};

/// Not a whole number of blocks, and too long for an image's index.
const SIZE: usize = 200_001;
const FILES: [&str; 12] = [
    "chmod", "chown", "times", "xattr", "acl", "moved", "linked", "hard", "small", "cut",
    "emptied", "written",
];

/// A mount over a lower with [`FILES`], whose upper can be looked at.
struct Fixture {
    sandbox: Sandbox,
    lamina: Lamina,
    options: Vec<OsString>,
}

impl Fixture {
    fn new(as_image: bool, more: &[&str]) -> Self {
        let sandbox = Sandbox::new("metacopy");
        let lamina = Lamina::new(&sandbox);
        let lower = sandbox.dir("lower");
        let dir = sandbox.dir("lower/dir");
        for name in FILES {
            fs::write(dir.join(name), data(name)).unwrap();
        }
        fs::hard_link(dir.join("hard"), dir.join("hard2")).unwrap();
        let mut options: Vec<OsString> = more.iter().map(OsString::from).collect();
        for name in ["upper", "work"] {
            options.push(format!("--{name}").into());
            options.push(sandbox.dir(name).into());
        }
        if as_image {
            let archive = sandbox.join("layer.tar");
            archive_of(&lower, &archive);
            lamina.build("image", &[archive]);
            options.push("image".into());
        } else {
            options.extend(["--lower".into(), lower.into()]);
        }
        Self {
            sandbox,
            lamina,
            options,
        }
    }

    fn mount(&self) -> Mount {
        self.lamina
            .mount(&self.options, &self.sandbox.join("merged"))
    }

    fn upper(&self, name: &str) -> PathBuf {
        self.sandbox.join("upper/dir").join(name)
    }

    /// Whether the upper has a file without its contents.
    fn lacks_contents(&self, name: &str) -> bool {
        let path = self.upper(name);
        let mut found = [0; 16];
        let marked = rustix::fs::getxattr(&path, "trusted.overlay.metacopy", &mut found).is_ok();
        let blocks = fs::metadata(&path).unwrap().blocks();
        assert!(!marked || blocks <= 8, "{name}: {blocks} blocks");
        marked
    }
}

fn data(name: &str) -> Vec<u8> {
    let size = if name == "small" { 20 } else { SIZE };
    noise(name.len() as u8, size)
}

/// One change of attributes or names of each file but the last three.
fn change_attributes(dir: &Path) {
    let file = |name: &str| dir.join(name);
    fs::set_permissions(file("chmod"), Permissions::from_mode(0o4711)).unwrap();
    chown(file("chown"), Some(7), Some(8)).unwrap();
    let then = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123);
    File::open(file("times"))
        .unwrap()
        .set_modified(then)
        .unwrap();
    let xattr = |name, value: &[u8]| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(file("xattr"), name, value, flags).unwrap();
    };
    xattr("user.key", b"value");
    xattr(
        "security.capability",
        b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
    );
    run(Command::new("setfacl")
        .args(["-m", "u:9:rwx"])
        .arg(file("acl")));
    fs::create_dir(file("new")).unwrap();
    fs::rename(file("moved"), file("new/moved")).unwrap();
    fs::hard_link(file("linked"), file("new/linked")).unwrap();
    fs::set_permissions(file("hard2"), Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(file("small"), Permissions::from_mode(0o600)).unwrap();
}

/// Where the files are after [`change_attributes`].
const PLACES: [(&str, &str); 12] = [
    ("chmod", "chmod"),
    ("chown", "chown"),
    ("times", "times"),
    ("xattr", "xattr"),
    ("acl", "acl"),
    ("new/moved", "moved"),
    ("linked", "linked"),
    ("new/linked", "linked"),
    ("hard", "hard"),
    ("hard2", "hard"),
    ("small", "small"),
    ("written", "written"),
];

fn assert_contents(dir: &Path) {
    for (place, name) in PLACES {
        let path = dir.join(place);
        assert!(
            fs::read(&path).unwrap() == data(name),
            "contents of {place}"
        );
        let found = fs::metadata(&path).unwrap();
        assert_eq!(found.len(), data(name).len() as u64, "size of {place}");
        if name != "small" {
            assert!(
                found.blocks() * 512 >= SIZE as u64 / 4096 * 4096,
                "blocks of {place}"
            );
        }
    }
}

#[test]
fn what_changes_no_contents_moves_none() {
    needs_root!();
    for (as_image, io) in [
        (true, "cached"),
        (false, "passthrough"),
        (true, "passthrough"),
    ] {
        let fixture = Fixture::new(as_image, &["--io", io]);
        let mount = fixture.mount();
        let dir = mount.path().join("dir");
        let inodes =
            |dir: &Path| PLACES.map(|(place, _)| fs::metadata(dir.join(place)).unwrap().ino());
        let open: Vec<File> = ["chmod", "moved"]
            .map(|name| File::open(dir.join(name)).unwrap())
            .into();
        let before = fs::metadata(dir.join("chmod")).unwrap();
        change_attributes(&dir);
        assert_contents(&dir);
        for (file, name) in open.iter().zip(["chmod", "moved"]) {
            let mut found = Vec::new();
            { file }.read_to_end(&mut found).unwrap();
            assert!(found == data(name), "{name}, open since before");
        }
        drop(open);
        let after = fs::metadata(dir.join("chmod")).unwrap();
        assert_eq!((after.ino(), after.mtime()), (before.ino(), before.mtime()));
        for (place, name) in PLACES {
            if !["small", "written"].contains(&name) {
                assert!(fixture.lacks_contents(place), "{place} was copied, {io}");
            }
        }
        let (tree, numbers) = (Tree::read(mount.path()), inodes(&dir));
        mount.unmount();
        let mount = fixture.mount();
        assert_contents(&dir);
        assert_eq!(inodes(&dir), numbers);
        Tree::read(mount.path()).assert_same("after a remount", &tree, "before", Ignore::NOTHING);
        mount.unmount();
    }
}

/// Each way in which contents change, and what is then there.
fn write_all(dir: &Path) {
    let file = |name: &str| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(dir.join(name))
            .unwrap()
    };
    for (place, name) in PLACES {
        let mut wanted = data(name);
        match name {
            "chmod" => file(place).set_len(5).unwrap(),
            "times" => rustix::fs::fallocate(
                file(place),
                rustix::fs::FallocateFlags::KEEP_SIZE | rustix::fs::FallocateFlags::PUNCH_HOLE,
                0,
                4096,
            )
            .unwrap(),
            "acl" => fs::write(dir.join(place), b"all new").unwrap(),
            "moved" => {
                let from = File::open(dir.join("written")).unwrap();
                let (mut at_in, mut at_out) = (3, 7);
                let (at_in, at_out) = (Some(&mut at_in), Some(&mut at_out));
                rustix::fs::copy_file_range(from, at_in, file(place), at_out, 11).unwrap();
            }
            "xattr" => {
                let opened = file(place);
                let mapping = Mapping::new(&opened, 0, SIZE, true, true).unwrap();
                mapping.write(b"mapped").unwrap();
                mapping.sync().unwrap();
            }
            _ => file(place).write_all_at(b"written", 3).unwrap(),
        }
        match name {
            "chmod" => wanted.truncate(5),
            "times" => wanted[..4096].fill(0),
            "acl" => wanted = b"all new".to_vec(),
            "moved" => wanted[7..18].copy_from_slice(&data("written")[3..14]),
            "xattr" => wanted[..6].copy_from_slice(b"mapped"),
            _ => wanted[3..10].copy_from_slice(b"written"),
        }
        assert!(
            fs::read(dir.join(place)).unwrap() == wanted,
            "{place} after the write"
        );
    }
}

#[test]
fn the_contents_follow_when_somebody_writes() {
    needs_root!();
    for (as_image, io) in [
        (true, "cached"),
        (false, "passthrough"),
        (true, "passthrough"),
    ] {
        for remount in [false, true] {
            let fixture = Fixture::new(as_image, &["--io", io]);
            let lower = Tree::read(&fixture.sandbox.join("lower"));
            let mut mount = fixture.mount();
            let dir = mount.path().join("dir");
            change_attributes(&dir);
            if remount {
                mount.unmount();
                mount = fixture.mount();
            }
            let attributes = |place: &str| {
                let found = fs::metadata(dir.join(place)).unwrap();
                (
                    found.ino(),
                    found.nlink(),
                    found.uid(),
                    found.gid(),
                    found.mode() & 0o1777,
                )
            };
            let before = PLACES.map(|(place, _)| attributes(place));
            write_all(&dir);
            assert_eq!(PLACES.map(|(place, _)| attributes(place)), before);
            for (place, _) in PLACES {
                assert!(
                    !fixture.lacks_contents(place) || place == "chmod",
                    "{place}"
                );
            }
            let tree = Tree::read(mount.path());
            mount.unmount();
            let mount = fixture.mount();
            Tree::read(mount.path()).assert_same(
                "after a remount",
                &tree,
                "before",
                Ignore::NOTHING,
            );
            mount.unmount();
            let now = Tree::read(&fixture.sandbox.join("lower"));
            now.assert_same("the lower now", &lower, "before", Ignore::NOTHING);
        }
    }
}

/// Opening for writing, without a write, and truncating to the same size leave the times alone.
#[test]
fn what_is_only_opened_for_writing_keeps_its_times() {
    needs_root!();
    for io in ["cached", "passthrough"] {
        let fixture = Fixture::new(true, &["--io", io]);
        let mount = fixture.mount();
        let path = mount.path().join("dir/times");
        change_attributes(&mount.path().join("dir"));
        let times = |path: &Path| {
            let found = fs::metadata(path).unwrap();
            (found.mtime(), found.mtime_nsec())
        };
        drop(OpenOptions::new().write(true).open(&path).unwrap());
        assert_eq!(times(&path), (1_000_000_000, 123));
        drop(
            OpenOptions::new()
                .read(true)
                .append(true)
                .open(&path)
                .unwrap(),
        );
        assert!(fs::read(&path).unwrap() == data("times"));
        mount.unmount();
        let mount = fixture.mount();
        assert_eq!(times(&path), (1_000_000_000, 123));
        mount.unmount();
    }
}

#[test]
fn overlayfs_with_metacopy_shows_and_completes_them() {
    needs_root!();
    let fixture = Fixture::new(false, &[]);
    let mount = fixture.mount();
    change_attributes(&mount.path().join("dir"));
    let ours = Tree::read(mount.path());
    let target = mount.path().to_owned();
    mount.unmount();
    let layers = Layers {
        lowers: vec![fixture.sandbox.join("lower")],
        upper: fixture.sandbox.join("upper"),
        work: fixture.sandbox.join("work"),
    };
    let theirs = Overlayfs::mount(&layers, "metacopy=on,redirect_dir=on,index=off", &target);
    assert_same_tree(ours, Tree::read(&target));
    assert_contents(&target.join("dir"));
    write_all(&target.join("dir"));
    let shown = Tree::read(&target);
    theirs.unmount();
    let mount = fixture.mount();
    assert_same_tree(Tree::read(mount.path()), shown);
    mount.unmount();
}

#[test]
fn contents_are_copied_at_once_where_that_is_asked_for() {
    needs_root!();
    let fixture = Fixture::new(true, &["--metacopy=off"]);
    let mount = fixture.mount();
    change_attributes(&mount.path().join("dir"));
    for (place, _) in PLACES
        .iter()
        .filter(|(_, name)| !["small", "written"].contains(name))
    {
        assert!(!fixture.lacks_contents(place), "{place}");
    }
    // Then overlayfs needs no option to show them: the upper alone has all of it.
    let upper = fixture.sandbox.join("upper/dir");
    assert!(fs::read(upper.join("chmod")).unwrap() == data("chmod"));
    mount.unmount();
}

#[test]
fn diff_and_commit_know_the_contents() {
    needs_root!();
    let fixture = Fixture::new(true, &[]);
    let mount = fixture.mount();
    change_attributes(&mount.path().join("dir"));
    let diff = fixture
        .lamina
        .ok([OsString::from("diff"), mount.path().into()]);
    for line in [
        "C /dir/chmod",
        "D /dir/moved",
        "A /dir/new/moved",
        "A /dir/new/linked",
    ] {
        assert!(diff.lines().any(|found| found == line), "{line} in {diff}");
    }
    let commit: [OsString; 4] = [
        "commit".into(),
        mount.path().into(),
        "-t".into(),
        "committed".into(),
    ];
    fixture.lamina.ok(&commit);
    let tree = Tree::read(mount.path());
    mount.unmount();
    let options = ["--read-only", "committed"];
    let mount = fixture
        .lamina
        .mount(&options, &fixture.sandbox.join("merged"));
    assert_contents(&mount.path().join("dir"));
    let ignore = Ignore::OTHER_FILESYSTEM;
    Tree::read(mount.path()).assert_same("the image", &tree, "the mount", ignore);
    mount.unmount();
}

#[test]
fn no_room_for_the_contents_is_told_and_loses_nothing() {
    needs_root!();
    for io in ["cached", "passthrough"] {
        let sandbox = Sandbox::new("metacopy-full");
        let image = sandbox.join("disk");
        File::create(&image).unwrap().set_len(16 << 20).unwrap();
        run(Command::new("mkfs.ext4").arg("-q").arg(&image));
        let disk = Mounted::new(&image, &sandbox.join("disk-mnt"), "");
        for name in ["upper", "work"] {
            fs::create_dir(disk.path().join(name)).unwrap();
        }
        let lower = sandbox.dir("lower");
        let big = noise(3, 24 << 20);
        fs::write(lower.join("big"), &big).unwrap();
        let lamina = Lamina::new(&sandbox);
        let option = |name: &str| disk.path().join(name).into_os_string();
        let options: [OsString; 8] = [
            "--io".into(),
            io.into(),
            "--lower".into(),
            lower.into(),
            "--upper".into(),
            option("upper"),
            "--work".into(),
            option("work"),
        ];
        let mount = lamina.mount(&options, &sandbox.join("merged"));
        let path = mount.path().join("big");
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let error = OpenOptions::new()
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(b"x"))
            .unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{io}: {error}");
        assert!(fs::read(&path).unwrap() == big, "{io}");
        mount.unmount();
        let mount = lamina.mount(&options, &sandbox.join("merged"));
        assert!(fs::read(&path).unwrap() == big, "{io}, after a remount");
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o640);
        // To throw it away needs no room.
        fs::write(&path, b"short").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"short");
        mount.unmount();
        disk.unmount();
    }
}
