//! Archives that GNU tar makes of a real tree, in each of its formats.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use super::*;

/// A tree with something of everything.
fn make_tree(dir: &Path) {
    let deep = dir.join("a-directory").join("x".repeat(200));
    std::fs::create_dir_all(&deep).unwrap();
    std::fs::write(deep.join("y".repeat(200)), noise(1, 70_000)).unwrap();
    std::fs::write(dir.join("small"), b"small").unwrap();
    std::fs::write(dir.join("large"), noise(2, 5 << 20)).unwrap();
    std::fs::hard_link(dir.join("large"), dir.join("other-name")).unwrap();
    symlink("small", dir.join("symlink")).unwrap();
    symlink("t".repeat(300), dir.join("long-symlink")).unwrap();
    std::fs::write(dir.join("setuid"), b"#!").unwrap();
    let mode = std::fs::Permissions::from_mode(0o6755);
    std::fs::set_permissions(dir.join("setuid"), mode).unwrap();
    let sparse = std::fs::File::create(dir.join("sparse")).unwrap();
    for part in 0..40_u64 {
        use std::os::unix::fs::FileExt;
        sparse.write_all_at(b"data", part * 200_000).unwrap();
    }
    sparse.set_len(20_000_000).unwrap();
    let fifo = Command::new("mkfifo").arg(dir.join("fifo")).status();
    assert!(fifo.unwrap().success());
}

/// What the index must say, by asking the system about the tree.
#[track_caller]
fn compare(index: &Index, store: &Store, dir: &Path, whole_seconds: bool) {
    use std::os::unix::fs::MetadataExt;
    let mut seen = 0;
    for inode in index.inodes() {
        let path = String::from_utf8(index.path_of(inode.ino())).unwrap();
        let real = dir.join(&path);
        let metadata = std::fs::symlink_metadata(&real).unwrap();
        assert_eq!(inode.mode(), metadata.mode(), "{path}");
        assert_eq!((inode.uid(), inode.gid()), (metadata.uid(), metadata.gid()));
        let nanoseconds = if whole_seconds {
            0
        } else {
            metadata.mtime_nsec()
        };
        assert_eq!(
            inode.mtime(),
            (metadata.mtime(), nanoseconds as u32),
            "{path}"
        );
        match inode.data() {
            Data::Directory { .. } => {}
            Data::Symlink(target) => {
                use std::os::unix::ffi::OsStrExt;
                let real = std::fs::read_link(&real).unwrap();
                assert_eq!(target, real.as_os_str().as_bytes());
            }
            Data::Inline(bytes) => assert_eq!(bytes, std::fs::read(&real).unwrap()),
            Data::Object(id) => {
                store.verify_object(&id).unwrap();
                assert_eq!(id.0, Digest::of(&std::fs::read(&real).unwrap()), "{path}");
                assert_eq!(u64::from(inode.nlink()), metadata.nlink(), "{path}");
            }
            Data::Fifo => {}
            _ => panic!("{path}: unexpected kind"),
        }
        seen += 1;
    }
    assert!(seen > 8, "only {seen} files");
}

#[test]
fn every_format_of_gnu_tar() {
    let scratch = scratch();
    let tree = scratch.dir.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    make_tree(&tree);
    // ustar and v7 cannot hold the long names.
    let short = scratch.dir.path().join("short");
    std::fs::create_dir(&short).unwrap();
    std::fs::write(short.join("file"), noise(4, 3000)).unwrap();
    std::fs::create_dir(short.join("dir")).unwrap();
    for number in 0..10 {
        std::fs::write(short.join(format!("dir/{number}")), b"x").unwrap();
    }
    for options in [
        &["--format=gnu"][..],
        &["--format=gnu", "--sparse"],
        &["--format=oldgnu", "--sparse"],
        &["--format=posix"],
        &["--format=posix", "--sparse", "--sparse-version=0.0"],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
        &["--format=posix", "--sparse", "--sparse-version=1.0"],
        &["--format=ustar"],
        &["--format=v7"],
    ] {
        let posix = options[0] == "--format=posix";
        let long = posix || options[0].ends_with("gnu");
        let source = if long { &tree } else { &short };
        let archive = scratch.dir.path().join("archive.tar");
        let status = Command::new("tar")
            .args(options)
            .args(["--create", "--numeric-owner", "--file"])
            .arg(&archive)
            .arg("-C")
            .arg(source)
            .arg(".")
            .status()
            .unwrap();
        assert!(status.success(), "{options:?}");
        let (info, index) = scratch.import(&std::fs::read(&archive).unwrap());
        assert!(info.entries > 10, "{options:?}");
        compare(&index, &scratch.store, source, !posix);
        if options.contains(&"--sparse") {
            assert!(
                info.tar_size < 15_000_000,
                "{options:?} made no sparse archive"
            );
        }
    }
}
