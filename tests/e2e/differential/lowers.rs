//! The two lower layers of a case, in the two forms they are given in: plain directories with
//! overlayfs marks, and archives with OCI marks.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, mknodat, utimensat,
};

use super::rng::Rng;
use crate::support::layers::archive_of;
use crate::support::sandbox::Sandbox;

/// All times in the lowers lie in 2020, so that a copy-up which loses one shows.
pub const LOWER_TIME: i64 = 1_580_000_000;

/// The lowers of a case.
pub struct Lowers {
    /// Plain directories, topmost first.
    pub dirs: Vec<PathBuf>,
    /// The same as archives, bottom first.
    pub archives: Vec<PathBuf>,
}

#[derive(Clone, Copy, PartialEq)]
enum Form {
    Overlay,
    Oci,
}

/// Makes the lowers of several cases, each in the place it names: what their seeds say, with or
/// without files of several names.
pub fn make(sandbox: &Sandbox, cases: &[(&str, u64)], hard_links: bool) -> Lowers {
    let mut dirs = Vec::new();
    let mut archives = Vec::new();
    for (layer, fill) in [(0, bottom as Fill), (1, top as Fill)] {
        let make = |root: &Path, form| {
            for &(place, seed) in cases {
                let dir = root.join(place);
                fs::create_dir_all(&dir).unwrap();
                fill(&dir, form, &mut Rng::new(seed));
                if layer == 0 {
                    link_or_copy(&dir, hard_links);
                }
            }
            settle(root, layer);
        };
        let dir = sandbox.dir(format!("lower{layer}"));
        make(&dir, Form::Overlay);
        dirs.insert(0, dir);
        let oci = sandbox.dir(format!("oci{layer}"));
        make(&oci, Form::Oci);
        let archive = sandbox.join(format!("layer{layer}.tar"));
        archive_of(&oci, &archive);
        archives.push(archive);
    }
    Lowers { dirs, archives }
}

type Fill = fn(&Path, Form, &mut Rng);

fn bottom(root: &Path, _: Form, rng: &mut Rng) {
    for dir in [
        "a",
        "a/deep",
        "a/deep/er",
        "b",
        "b/sub",
        "c",
        "gone",
        "replaced",
        "opaque",
        "opaque/under",
        "empty",
    ] {
        fs::create_dir(root.join(dir)).unwrap();
    }
    for (count, path) in [
        "f0",
        "a/f1",
        "a/f2",
        "a/deep/f3",
        "a/deep/er/f4",
        "b/f5",
        "b/sub/f6",
        "c/f7",
    ]
    .iter()
    .enumerate()
    {
        let size = [0, 1, 300, 513, 4096, 70_000, 8_000, 200_000][(count + rng.below(8)) % 8];
        fs::write(root.join(path), rng.bytes(size)).unwrap();
    }
    for path in [
        "gone/file",
        "replaced/file",
        "opaque/file",
        "opaque/under/file",
        "a/hidden",
        "c/turns-dir",
    ] {
        fs::write(root.join(path), path).unwrap();
    }
    let sparse = fs::File::create(root.join("b/sparse")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"an island", 300_000).unwrap();
    sparse.set_len(1_000_000).unwrap();
    std::os::unix::fs::symlink("f1", root.join("a/link")).unwrap();
    std::os::unix::fs::symlink("../a/deep", root.join("b/dirlink")).unwrap();
    std::os::unix::fs::symlink("nothing", root.join("dangling")).unwrap();
    mknodat(
        CWD,
        root.join("c/fifo"),
        FileType::Fifo,
        Mode::from_raw_mode(0o640),
        0,
    )
    .unwrap();
    set_mode(root, "a/f1", 0o4755);
    set_mode(root, "a/deep/f3", 0o600);
    set_mode(root, "b", 0o1777);
    set_mode(root, "c", 0o2775);
    set_owner(root, "b/f5", 1000);
    set_owner(root, "c", 1000);
    set_owner(root, "c/f7", 1000);
    set_owner(root, "b/dirlink", 1000);
    set_xattr(root, "a/f1", "user.one", b"1");
    set_xattr(root, "a/f1", "user.binary", &[0, 255, 10, 0]);
    set_xattr(root, "a/deep", "user.dir", b"on a directory");
    set_xattr(root, "c/fifo", "trusted.root", b"only");
}

/// Gives a file of the bottom layer its other names.
fn link_or_copy(root: &Path, hard_links: bool) {
    for name in ["b/linked", "a/deep/linked"] {
        if hard_links {
            fs::hard_link(root.join("a/f2"), root.join(name)).unwrap();
        } else {
            fs::copy(root.join("a/f2"), root.join(name)).unwrap();
        }
    }
}

fn top(root: &Path, form: Form, rng: &mut Rng) {
    for dir in [
        "a",
        "a/deep",
        "b",
        "c",
        "c/turns-dir",
        "opaque",
        "opaque/new",
        "only-top",
    ] {
        fs::create_dir(root.join(dir)).unwrap();
    }
    let size = rng.below(5000);
    for path in [
        "a/f1b",
        "a/deep/f3",
        "opaque/new/file",
        "only-top/f8",
        "replaced",
        "c/turns-dir/file",
    ] {
        fs::write(root.join(path), rng.bytes(size)).unwrap();
    }
    whiteout(root, "gone", form);
    whiteout(root, "a/hidden", form);
    opaque(root, "opaque", form);
    set_mode(root, "b", 0o1777);
    set_mode(root, "c", 0o2775);
    set_owner(root, "c", 1000);
    set_mode(root, "a/deep", 0o711);
    set_xattr(root, "a/deep", "user.dir", b"the upper of the two");
}

fn whiteout(root: &Path, path: &str, form: Form) {
    let path = root.join(path);
    match form {
        Form::Overlay => mknodat(CWD, &path, FileType::CharacterDevice, Mode::empty(), 0).unwrap(),
        Form::Oci => {
            let mut name = std::ffi::OsString::from(".wh.");
            name.push(path.file_name().unwrap());
            fs::write(path.with_file_name(name), "").unwrap();
        }
    }
}

fn opaque(root: &Path, path: &str, form: Form) {
    match form {
        Form::Overlay => set_xattr(root, path, "trusted.overlay.opaque", b"y"),
        Form::Oci => fs::write(root.join(path).join(".wh..wh..opq"), "").unwrap(),
    }
}

fn set_mode(root: &Path, path: &str, mode: u32) {
    fs::set_permissions(
        root.join(path),
        std::os::unix::fs::PermissionsExt::from_mode(mode),
    )
    .unwrap();
}

fn set_owner(root: &Path, path: &str, uid: u32) {
    std::os::unix::fs::lchown(root.join(path), Some(uid), Some(uid)).unwrap();
}

fn set_xattr(root: &Path, path: &str, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(root.join(path), name, value, XattrFlags::empty()).unwrap();
}

/// Gives everything in `dir` a time of its own in 2020, the same in both forms of a layer.
fn settle(dir: &Path, layer: i64) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.symlink_metadata().unwrap().is_dir() {
            settle(&path, layer);
        }
        set_time(&path, layer);
    }
    set_time(dir, layer);
}

fn set_time(path: &Path, layer: i64) {
    let name: i64 = path.file_name().map_or(0, |name| {
        name.as_bytes().iter().map(|&byte| i64::from(byte)).sum()
    });
    let time = Timespec {
        tv_sec: LOWER_TIME + layer * 10_000 + name,
        tv_nsec: 123_456_000 + name,
    };
    let name_is_root = path.file_name().is_some_and(|name| {
        name.as_bytes().starts_with(b"lower") || name.as_bytes().starts_with(b"oci")
    });
    let time = if name_is_root {
        Timespec {
            tv_sec: LOWER_TIME + layer,
            tv_nsec: 7,
        }
    } else {
        time
    };
    utimensat(
        CWD,
        path,
        &Timestamps {
            last_access: time,
            last_modification: time,
        },
        AtFlags::SYMLINK_NOFOLLOW,
    )
    .unwrap();
}
