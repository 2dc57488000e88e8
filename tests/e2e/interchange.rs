//! Uppers that Lamina and kernel overlayfs take turns with, and overlayfs on top of a Lamina mount.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::lamina::{Lamina, NOBODY};
use crate::support::overlayfs::{Layers, Overlayfs, assert_same_tree};
use crate::support::sandbox::Sandbox;
use crate::support::tree::Tree;
use crate::support::{describe, needs_root, output, run};

/// The options under which overlayfs is to show what Lamina wrote, and to write what Lamina is to
/// show.
const OPTIONS: [&str; 5] = [
    "redirect_dir=on,index=off,metacopy=off,xino=off",
    "redirect_dir=on,index=off,metacopy=off,xino=on",
    "redirect_dir=on,index=on,metacopy=off,xino=auto,nfs_export=off",
    "redirect_dir=on,index=off,metacopy=on,xino=on",
    "redirect_dir=on,index=on,metacopy=on,xino=on",
];

/// Fills one lower part: all that [`CHANGES`] works on.
const LOWER: &str = r#"
mkdir -p "$1" && cd "$1"
for f in file gone cut meta owned tagged moved-meta dated h1; do
    { echo "lower $f of $1"; head -c 20000 /dev/zero | tr '\0' "${f%"${f#?}"}"; } > $f
done
ln h1 h2
mkdir -p dir/sub/deep gonedir replaced/old swapped stays
for d in dir dir/sub dir/sub/deep gonedir replaced replaced/old swapped stays; do echo $d > $d/in; done
ln -s file link; ln -s nowhere dangling; mkfifo pipe
touch -d '2001-02-03 04:05:06.789' dated file stays
chmod 750 stays
"#;

/// What the second layer from the bottom changes: a whiteout, an opaque directory, a merged one.
const SECOND: &str = r#"
mkdir -p "$1" && cd "$1"
mkdir -p dir swapped; echo second > dir/second; echo second > swapped/second
echo over > second-file
"#;

/// Changes of every kind, in a directory made by [`LOWER`].
const CHANGES: &str = r#"
cd "$1"
echo more >> file
rm gone; rm -r gonedir
rm -r replaced; mkdir replaced; echo new > replaced/new
mkdir new new/er; echo content > new/er/file; ln new/er/file new/link; mkfifo new/pipe
ln -s file new/symlink
ln file linked
truncate -s 10 cut
chmod 4711 meta; chmod 600 moved-meta; touch -d '1999-09-09 09:09:09' moved-meta dated
mv moved-meta new/moved-meta
mv link renamed-link; rm dangling
echo x >> swapped/second
chmod 700 stays
"#;

/// Changes that take root.
const ROOTS: &str = r#"
cd "$1"
chown 1:2 owned; setfattr -n user.key -v value tagged; setfattr -n trusted.key -v value tagged
mknod new/device c 1 3
"#;

/// Directories with lower parts that move.
const MOVES: &str = r#"
cd "$1"
mv dir/sub moved; mv moved/deep new/deep; echo x > moved/added
mv dir renamed; mkdir dir; echo y > dir/other
mv swapped new/swapped; mv new/swapped new/again
rm new/deep/in
"#;

fn sh(script: &str, at: &Path) {
    run(Command::new("sh").args(["-euc", script, "sh"]).arg(at));
}

/// Two lower directories in `sandbox`, each with the parts `one`, `two` and `three`.
fn lowers(sandbox: &Sandbox) -> Vec<PathBuf> {
    let (second, bottom) = (sandbox.dir("second"), sandbox.dir("bottom"));
    for part in ["one", "two", "three"] {
        sh(LOWER, &bottom.join(part));
        sh(SECOND, &second.join(part));
    }
    vec![second, bottom]
}

fn layers(sandbox: &Sandbox, lowers: &[PathBuf], name: &str) -> Layers {
    let layers = Layers {
        lowers: lowers.to_vec(),
        upper: sandbox.dir(format!("{name}/upper")),
        work: sandbox.dir(format!("{name}/work")),
    };
    as_old(&layers.upper);
    layers
}

/// Gives the root of a mount, which looks as the upper does, a time from before the test.
fn as_old(dir: &Path) {
    run(Command::new("touch").args(["-d", "2002-02-02"]).arg(dir));
}

fn change_everything(part: &Path) {
    for script in [CHANGES, ROOTS, MOVES] {
        sh(script, part);
    }
}

/// Appends to one name of a file that has two.
fn change_hard_link(part: &Path) {
    sh("cd \"$1\"; echo more >> h1", part);
}

#[test]
fn uppers_go_from_lamina_to_overlayfs_and_back() {
    needs_root!();
    let sandbox = Sandbox::new("turns");
    let lamina = Lamina::new(&sandbox);
    let lowers = lowers(&sandbox);
    let target = sandbox.dir("mnt");
    for (at, options) in OPTIONS.iter().enumerate() {
        let layers = layers(&sandbox, &lowers, &format!("lamina-first-{at}"));
        let mut ours = layers.lamina_options();
        if options.contains("metacopy=off") {
            ours.push("--metacopy=off".into());
        }
        let mount = lamina.mount(&ours, &target);
        change_everything(&target.join("one"));
        change_hard_link(&target.join("one"));
        let shown = Tree::read(&target);
        mount.unmount();

        let overlayfs = Overlayfs::mount(&layers, options, &target);
        assert_same_tree(shown, Tree::read(&target));
        change_everything(&target.join("two"));
        let theirs = Tree::read(&target);
        overlayfs.unmount();

        let mount = lamina.mount(&ours, &target);
        assert_same_tree(Tree::read(&target), theirs);
        change_everything(&target.join("three"));
        let shown = Tree::read(&target);
        mount.unmount();

        let overlayfs = Overlayfs::mount(&layers, options, &target);
        assert_same_tree(shown, Tree::read(&target));
        overlayfs.unmount();
    }
}

#[test]
fn layers_that_overlayfs_wrote_can_be_lowers() {
    needs_root!();
    let sandbox = Sandbox::new("rotated");
    let lamina = Lamina::new(&sandbox);
    let mut lowers = lowers(&sandbox);
    let target = sandbox.dir("mnt");
    // Two uppers of overlayfs, one over the other, files without data in both.
    for (part, name) in [("one", "first"), ("two", "next")] {
        let layers = layers(&sandbox, &lowers, name);
        let overlayfs = Overlayfs::mount(&layers, OPTIONS[3], &target);
        change_everything(&target.join(part));
        overlayfs.unmount();
        lowers.insert(0, layers.upper);
    }
    let layers = layers(&sandbox, &lowers, "last");
    let overlayfs = Overlayfs::mount(&layers, OPTIONS[3], &target);
    let theirs = Tree::read(&target);
    overlayfs.unmount();
    let mount = lamina.mount(&layers.lamina_options(), &target);
    assert_same_tree(Tree::read(&target), theirs);
    // Copied up, a file without data of its own has all of it.
    let before = fs::read(target.join("one/meta")).unwrap();
    sh(
        "cd \"$1\"; chmod 600 meta; mv meta other",
        &target.join("one"),
    );
    assert_eq!(fs::read(target.join("one/other")).unwrap(), before);
    assert!(before.len() > 20_000 && before.starts_with(b"lower meta"));
    mount.unmount();
}

#[test]
fn names_that_only_overlayfs_can_join_are_refused() {
    needs_root!();
    let sandbox = Sandbox::new("index");
    let lamina = Lamina::new(&sandbox);
    let lowers = lowers(&sandbox);
    let target = sandbox.dir("mnt");
    let layers = layers(&sandbox, &lowers, "changes");
    let overlayfs = Overlayfs::mount(&layers, "index=on,redirect_dir=on", &target);
    change_hard_link(&target.join("one"));
    overlayfs.unmount();
    let mut arguments = vec!["mount".to_owned()];
    arguments.extend(layers.lamina_options());
    arguments.push(target.display().to_string());
    let message = lamina.fails(1, &arguments);
    for word in ["index", "hard link", layers.work.to_str().unwrap()] {
        assert!(message.contains(word), "{word}: {message}");
    }
    // Once all its names are in the upper, nothing is lost.
    let overlayfs = Overlayfs::mount(&layers, "index=on,redirect_dir=on", &target);
    sh("cd \"$1\"; echo more >> h2", &target.join("one"));
    let content = fs::read(target.join("one/h1")).unwrap();
    overlayfs.unmount();
    let mount = lamina.mount(&layers.lamina_options(), &target);
    let [one, other] = ["one/h1", "one/h2"].map(|name| target.join(name));
    assert_eq!(fs::read(&one).unwrap(), content);
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    assert_eq!(inode(&one), inode(&other));
    mount.unmount();
}

/// What an ordinary user sees of a tree: the same inside a user namespace and outside.
const SHOW: &str =
    "cd \"$1\"; find . -printf '%P %y %m %s %l %T@\\n' | sed '/ d /s/ [0-9]*  / /' | sort;
    find . -type f -exec sha256sum {} + | sort -k2";

/// Runs `script`, `$1` being `target`, as an ordinary user; with `layers` in a user namespace of
/// his in which overlayfs is mounted at `target`.
fn as_user(script: &str, target: &Path, layers: Option<&Layers>) -> String {
    let mut command = Command::new("unshare");
    match layers {
        None => {
            command = Command::new("sh");
            command.args(["-euc", script, "sh"]).arg(target);
        }
        Some(layers) => {
            let script = format!("mount -t overlay overlay -o \"$2\" \"$1\"\n{script}");
            command.args(["-Urm", "sh", "-euc", &script, "sh"]);
            command
                .arg(target)
                .arg(layers.overlayfs_options("userxattr"));
        }
    }
    run(command.uid(NOBODY).gid(NOBODY))
}

#[test]
fn an_ordinary_users_uppers_are_overlayfs_userxattr() {
    needs_root!();
    let may = output(
        Command::new("unshare")
            .args(["-Urm", "true"])
            .uid(NOBODY)
            .gid(NOBODY),
    );
    if !may.status.success() {
        eprintln!(
            "skipped: no user namespaces for ordinary users: {}",
            describe(&may)
        );
        return;
    }
    let sandbox = Sandbox::new("userxattr");
    let user = Lamina::as_user(&sandbox, NOBODY);
    let lowers = lowers(&sandbox);
    let target = sandbox.dir("mnt");
    for lamina_first in [true, false] {
        let layers = layers(&sandbox, &lowers, &format!("lamina-first-{lamina_first}"));
        run(Command::new("chown")
            .arg("-R")
            .arg(format!("{NOBODY}:{NOBODY}"))
            .arg(sandbox.path()));
        let mut shown = String::new();
        for (part, by_lamina) in [
            ("one", lamina_first),
            ("two", !lamina_first),
            ("three", lamina_first),
        ] {
            let change = CHANGES.replace("cd \"$1\"", &format!("cd \"$1/{part}\""));
            let script = format!("{SHOW}\necho ===\n{change}\ncd /\n{SHOW}");
            let said = if by_lamina {
                let mount = user.mount(&layers.lamina_options(), &target);
                let said = as_user(&script, &target, None);
                mount.unmount();
                said
            } else {
                as_user(&script, &target, Some(&layers))
            };
            let (before, after) = said.split_once("===\n").unwrap();
            if !shown.is_empty() {
                let differences = similar(&shown, before);
                assert!(
                    differences.is_empty(),
                    "{part}:\n{}",
                    differences.join("\n")
                );
            }
            after.clone_into(&mut shown);
        }
    }
    // What overlayfs cannot show in this form, it refuses; nothing else is shown in its place.
    let layers = layers(&sandbox, &lowers, "moved");
    run(Command::new("chown")
        .arg("-R")
        .arg(format!("{NOBODY}:{NOBODY}"))
        .arg(sandbox.path()));
    let mount = user.mount(&layers.lamina_options(), &target);
    as_user("mv \"$1/one/dir\" \"$1/moved\"", &target, None);
    mount.unmount();
    let script = "! ls \"$1/moved\" 2>&1; cat \"$1/two/file\"";
    let said = as_user(script, &target, Some(&layers));
    assert!(said.contains("not permitted"), "{said}");
    assert!(said.contains("lower file"), "{said}");
}

/// Lines of one text that the other lacks.
fn similar(one: &str, other: &str) -> Vec<String> {
    let missing = |a: &str, b: &str, mark: &str| -> Vec<String> {
        let there: std::collections::HashSet<&str> = b.lines().collect();
        let lines = a.lines().filter(|line| !there.contains(line));
        lines.map(|line| format!("{mark} {line}")).collect()
    };
    let mut lines = missing(one, other, "-");
    lines.extend(missing(other, one, "+"));
    lines
}

#[test]
fn overlayfs_can_have_a_mount_as_its_lower() {
    needs_root!();
    let sandbox = Sandbox::new("nested-lower");
    let lamina = Lamina::new(&sandbox);
    let lowers = lowers(&sandbox);
    let own = layers(&sandbox, &lowers, "own");
    let mount = lamina.mount(&own.lamina_options(), &sandbox.join("mnt"));
    change_everything(&mount.path().join("three"));

    let target = sandbox.dir("nested");
    let nested = layers(&sandbox, &[mount.path().to_owned()], "above");
    run(Command::new("touch")
        .arg("-r")
        .args([mount.path(), &nested.upper]));
    let overlayfs = Overlayfs::mount(&nested, "redirect_dir=on,metacopy=off", &target);
    assert_same_tree(Tree::read(mount.path()), Tree::read(&target));
    change_everything(&target.join("one"));
    overlayfs.unmount();
    let overlayfs = Overlayfs::mount(&nested, "redirect_dir=on,metacopy=off", &target);
    let theirs = Tree::read(&target);
    overlayfs.unmount();
    // The same through Lamina alone.
    change_everything(&mount.path().join("one"));
    assert_same_but_for_new_times(Tree::read(mount.path()), theirs);
    mount.unmount();
}

#[test]
fn overlayfs_can_have_a_mount_as_its_upper() {
    needs_root!();
    let sandbox = Sandbox::new("nested-upper");
    let lamina = Lamina::new(&sandbox);
    let lowers = lowers(&sandbox);
    let empty = sandbox.dir("empty");
    let own = layers(&sandbox, &[empty], "own");
    let mount = lamina.mount(&own.lamina_options(), &sandbox.join("mnt"));
    let nested = Layers {
        lowers: lowers.clone(),
        upper: mount.path().join("upper"),
        work: mount.path().join("work"),
    };
    for dir in [&nested.upper, &nested.work] {
        fs::create_dir(dir).unwrap();
    }
    as_old(&nested.upper);
    let target = sandbox.dir("nested");
    let options = "redirect_dir=on,metacopy=off,index=off";
    let overlayfs = Overlayfs::mount(&nested, options, &target);
    change_everything(&target.join("one"));
    let mut shown = Tree::read(&target);
    shown.forget_listed_inodes();
    overlayfs.unmount();

    // What overlayfs keeps in attributes and devices is there after a remount of both.
    mount.unmount();
    let mount = lamina.mount(&own.lamina_options(), &sandbox.join("mnt"));
    let overlayfs = Overlayfs::mount(&nested, options, &target);
    let again = Tree::read(&target);
    assert_same_tree(shown, again);
    change_everything(&target.join("two"));
    let mut shown = Tree::read(&target);
    shown.forget_listed_inodes();
    overlayfs.unmount();

    // And what a plain directory as the upper would have given.
    let plain = layers(&sandbox, &lowers, "plain");
    let overlayfs = Overlayfs::mount(&plain, options, &target);
    change_everything(&target.join("one"));
    change_everything(&target.join("two"));
    assert_same_but_for_new_times(shown, Tree::read(&target));
    overlayfs.unmount();
    mount.unmount();
}

/// For trees that were made by the same changes at different moments.
#[track_caller]
fn assert_same_but_for_new_times(mut ours: Tree, mut theirs: Tree) {
    for tree in [&mut ours, &mut theirs] {
        tree.map_times(|time| {
            // Files from before the test have the time that touch gave them.
            if time.0 > 1_100_000_000 {
                (i64::MAX, 0)
            } else {
                time
            }
        });
    }
    assert_same_tree(ours, theirs);
}
