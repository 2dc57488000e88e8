//! Uppers go from fuse-overlayfs to us and back, whatever marks they have.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::layers;
use crate::support::program::Program;
use crate::support::sandbox::Sandbox;
use crate::support::tree::{Ignore, Tree};
use crate::support::{needs_root, run};

/// A lower with what is to be deleted, replaced and changed.
fn lower(sandbox: &Sandbox) {
    for (path, text) in [
        ("lower/keep/file", "keep"),
        ("lower/gone/a", "a"),
        ("lower/gone/b/c", "c"),
        ("lower/replaced/old", "old"),
        ("lower/replaced/deep/old", "old"),
        ("lower/file-to-dir", "file"),
        ("lower/dir-to-file/x", "x"),
        ("lower/changed", "before"),
        ("lower/deleted", "x"),
        ("lower/again", "first"),
        ("lower/linked", "linked"),
    ] {
        sandbox.file(path, text);
    }
}

/// Every kind of change.
const CHANGES: &str = "
    rm deleted again; rm -r gone replaced dir-to-file file-to-dir
    mkdir replaced file-to-dir; echo new > replaced/new; echo in > file-to-dir/in
    mkdir gone; echo d > gone/d; rm -r gone
    echo file > dir-to-file; echo second > again
    echo after >> changed; chmod 4711 keep/file; chown 12:34 linked
    ln linked linked-too; ln -s nowhere link; mkfifo pipe
    mkdir new; chmod 2770 new; chown 5:6 new; echo x > new/x; mkdir new/sub; mv new/x new/y
    setfattr -n user.mine -v value keep";
/// More, on top of them. (fuse-overlayfs 1.10 shows again what is below an opaque directory that it moves
/// away.)
const MORE: &str = "
    rm again replaced/new; rm -r file-to-dir; echo back > deleted; mkdir gone; echo e > gone/e
    mv new older; echo file > new; mkdir dir; mv dir-to-file dir/; chmod 600 older/y";

fn change(script: &str, root: &Path) {
    run(Command::new("sh").args(["-ec", script]).current_dir(root));
}

/// What is seen. fuse-overlayfs 1.10 shows its own attribute to root.
fn tree(root: &Path) -> Tree {
    let mut tree = Tree::read(root);
    tree.forget_xattrs(b"security.fuseoverlayfs.");
    tree
}

/// What both show. Numbers of inodes are each one's own; fuse-overlayfs shows times that it remembers from
/// before a write, and no `..` in the root.
fn assert_same(label: &str, ours: &Tree, theirs: &Tree) {
    let ignore = Ignore {
        mtime: true,
        ..Ignore::OTHER_FILESYSTEM
    };
    let mut differences = ours.differences(theirs, ignore);
    differences.retain(|line| !line.contains("is listed without"));
    assert!(differences.is_empty(), "{label}: {differences:#?}");
}

/// One program after the other on one upper: what the second shows is what the first did, before and
/// after more changes.
fn hand_over(sandbox: &Sandbox, name: &str, programs: [&Program; 2], options: &str) {
    let layers = layers(sandbox, name, vec![sandbox.join("lower")]);
    let target = sandbox.join(format!("mnt-{name}"));
    let [first, second] = programs;
    let mount = first.mount(&layers, options, &target);
    change(CHANGES, &target);
    let before = tree(&target);
    mount.unmount();
    let mount = second.mount(&layers, options, &target);
    assert_same(&format!("{name}, after the first"), &tree(&target), &before);
    change(MORE, &target);
    let before = tree(&target);
    mount.unmount();
    let mount = first.mount(&layers, options, &target);
    assert_same(
        &format!("{name}, after the second"),
        &tree(&target),
        &before,
    );
    mount.unmount();
}

#[test]
fn an_upper_is_used_by_both_in_turn() {
    needs_root!();
    let sandbox = Sandbox::new("overlay-formats");
    lower(&sandbox);
    let ours = Program::lamina(&sandbox, "lamina-overlay");
    let theirs = Program::fuse_overlayfs();
    let files = ("FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT", "1");
    for (name, options) in [
        ("plain", ""),
        ("privileged", "xattr_permissions=1"),
        ("user", "xattr_permissions=2"),
        ("mapped", "uidmapping=0:0:65536,gidmapping=0:0:65536"),
    ] {
        let in_turn = |kind: &str, ours: &Program, theirs: &Program| {
            // fuse-overlayfs 1.10 makes no symbolic links with it.
            if name != "privileged" {
                let name = format!("{name}{kind}-theirs");
                hand_over(&sandbox, &name, [theirs, ours], options);
            }
            let name = format!("{name}{kind}-ours");
            hand_over(&sandbox, &name, [ours, theirs], options);
        };
        in_turn("", &ours, &theirs);
        let (ours, theirs) = (ours.clone(), theirs.clone());
        let with_files = |program: Program| program.with(files.0, files.1);
        in_turn("-files", &with_files(ours), &with_files(theirs));
    }
}

#[test]
fn an_upper_becomes_a_layer() {
    needs_root!();
    let sandbox = Sandbox::new("overlay-layers");
    lower(&sandbox);
    let ours = Program::lamina(&sandbox, "lamina-overlay");
    let theirs = Program::fuse_overlayfs();
    let target = sandbox.join("mnt");
    for (name, first, second) in [("ours", &ours, &theirs), ("theirs", &theirs, &ours)] {
        for options in ["", "xattr_permissions=2"] {
            let name = format!("{name}-{options}");
            let bottom = layers(&sandbox, &format!("{name}/1"), vec![sandbox.join("lower")]);
            let mount = first.mount(&bottom, options, &target);
            change(CHANGES, &target);
            let before = tree(&target);
            mount.unmount();
            let lowers = vec![bottom.upper.clone(), sandbox.join("lower")];
            let top = layers(&sandbox, &format!("{name}/2"), lowers);
            let mount = second.mount(&top, options, &target);
            assert_same(&name, &tree(&target), &before);
            change(MORE, &target);
            let before = tree(&target);
            mount.unmount();
            let mount = first.mount(&top, options, &target);
            assert_same(&format!("{name}, changed"), &tree(&target), &before);
            mount.unmount();
        }
    }
}

#[test]
fn devices_are_noted_where_they_cannot_be_made() {
    needs_root!();
    let sandbox = Sandbox::new("overlay-devices");
    lower(&sandbox);
    let program = Program::lamina(&sandbox, "lamina-overlay");
    let target = sandbox.join("mnt");
    let layers = layers(&sandbox, "devices", vec![sandbox.join("lower")]);
    let options = "xattr_permissions=2";
    let mount = program.mount(&layers, options, &target);
    change(
        "mknod c c 1 3; mknod b b 8 17; mkfifo p; echo x > f; chmod 640 c; chown 7:8 b",
        &target,
    );
    let before = tree(&target);
    mount.unmount();
    for (name, value) in [
        ("c", "0:0:0640:char-1-3"),
        ("b", "7:8:0644:block-8-17"),
        ("f", "0:0:0644"),
    ] {
        let path = layers.upper.join(name);
        assert!(fs::symlink_metadata(&path).unwrap().is_file(), "{name}");
        let mut get = Command::new("getfattr");
        get.args(["--only-values", "-n", "user.fuseoverlayfs.override_stat"]);
        assert_eq!(run(get.arg(&path)), value, "{name}");
    }
    let mount = program.mount(&layers, "", &target);
    assert_same("mounted again", &tree(&target), &before);
    mount.unmount();
    // As a layer.
    let lowers = vec![layers.upper.clone(), sandbox.join("lower")];
    let top = super::layers(&sandbox, "top", lowers);
    let mount = program.mount(&top, "", &target);
    assert_same("as a layer", &tree(&target), &before);
    mount.unmount();
    // Those of containers-storage are read too.
    let name = "user.containers.override_stat";
    let set = |path: &Path, value: &str| {
        run(Command::new("setfattr")
            .args(["-n", name, "-v", value])
            .arg(path));
    };
    let lower = sandbox.dir("containers");
    set(&lower, "0:0:0755");
    set(&sandbox.file("containers/device", ""), "3:4:0600:char-5-1");
    set(&sandbox.file("containers/file", "text"), "3:4:04755:file");
    let mount = program.mount_options(&format!("lowerdir={}", lower.display()), &target);
    let shown = run(Command::new("stat")
        .args(["-c", "%n %F %a %u %g %t %T", "device", "file"])
        .current_dir(&target));
    assert_eq!(
        shown,
        "device character special file 600 3 4 5 1\nfile regular file 4755 3 4 0 0\n"
    );
    mount.unmount();
}
