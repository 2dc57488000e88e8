//! `lamina diff`: its forms.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::lamina::{Lamina, Mount};
use crate::support::layers::{Archive, noise};
use crate::support::listing::small_image;
use crate::support::sandbox::Sandbox;
use crate::support::tree::{Ignore, Tree};
use crate::support::{describe, needs_root, run};

/// An image with something of every kind, mounted under the name `kept`.
fn mounted(sandbox: &Sandbox, lamina: &Lamina) -> Mount {
    let mut archive = Archive::new(sandbox, "image.tar")
        .dir("etc", 0o755)
        .file("etc/words", b"one\ntwo\nthree\nfour\nfive\n")
        .file("etc/gone", b"gone\n")
        .file("etc/mode", b"mode\n")
        .file("etc/same.conf", b"same\n")
        .file("binary", b"\0\x01\x02")
        .symlink("link", "etc/words")
        .dir("big", 0o755);
    for number in 0..2000 {
        archive = archive.file(&format!("big/{number}"), b"x");
    }
    lamina.build("image", &[archive.finish()]);
    lamina.mount(&["--name", "kept", "image"], &sandbox.join("mnt"))
}

fn change(root: &Path) {
    fs::write(root.join("etc/words"), "one\n2\nthree\nfour\nfive\nsix").unwrap();
    fs::remove_file(root.join("etc/gone")).unwrap();
    fs::set_permissions(root.join("etc/mode"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(root.join("etc/new.conf"), "new\n").unwrap();
    fs::write(root.join("binary"), b"\0\x01\x03").unwrap();
    fs::remove_file(root.join("link")).unwrap();
    symlink("etc/mode", root.join("link")).unwrap();
    fs::remove_dir_all(root.join("big")).unwrap();
}

#[test]
fn every_form_tells_the_same_changes() {
    needs_root!();
    let sandbox = Sandbox::new("diff");
    let lamina = Lamina::new(&sandbox);
    let mount = mounted(&sandbox, &lamina);
    assert_eq!(lamina.ok(["diff", "kept", "--exit-code"]), "");
    assert_eq!(lamina.ok(["diff", "kept", "--stat"]), "");
    assert_eq!(lamina.ok(["diff", "kept", "--patch"]), "");
    change(mount.path());
    let lines = "D /big\nC /binary\nC /etc\nD /etc/gone\nC /etc/mode\nA /etc/new.conf\nC /etc/words\nC /link\n";
    let patch = lamina.ok(["diff", "kept", "--patch"]);
    assert_eq!(lamina.ok(["diff", "kept"]), lines);
    mount.unmount();
    // A mount of another store has the same name.
    let other = lamina.with_store(&sandbox.join("other-store"));
    small_image(&sandbox, &other);
    let other = other.mount(&["--name", "kept", "small"], &sandbox.join("other"));
    assert_eq!(lamina.ok(["diff", "kept"]), lines, "unmounted");
    assert_eq!(lamina.ok(["diff", "kept", "-p"]), patch, "unmounted");

    other.unmount();
    let names = lamina.ok(["diff", "kept", "--name-only"]);
    assert_eq!(
        names,
        lines.replace("A ", "").replace("C ", "").replace("D ", "")
    );
    let zero = lamina.ok(["diff", "kept", "--name-only", "-z"]);
    assert_eq!(zero, names.replace('\n', "\0"));
    let only = |paths: &[&str]| lamina.ok(["diff", "kept", "--name-only"].iter().chain(paths));
    assert_eq!(only(&["*.conf", "/link"]), "/etc/new.conf\n/link\n");
    assert_eq!(only(&["etc/g*"]), "/etc/gone\n");
    assert_eq!(only(&["/nothing"]), "");

    let stat = lamina.ok(["diff", "kept", "--stat"]);
    assert!(stat.contains("24 B -> 25 B  /etc/words"), "{stat}");
    assert!(stat.contains("+4 B  /etc/new.conf"), "{stat}");
    assert!(
        !stat.contains("/etc\n"),
        "nothing but what is in it is different:\n{stat}"
    );
    assert!(
        stat.ends_with("1 added, 4 changed, 2 deleted, +5 B, -6 B\n"),
        "{stat}"
    );

    let all: Value = serde_json::from_str(&lamina.ok(["diff", "kept", "--json"])).unwrap();
    let words = &all[6];
    assert_eq!(
        (
            &words["kind"],
            &words["path"],
            &words["type"],
            &words["size"],
            &words["old_size"]
        ),
        (
            &json!("C"),
            &json!("/etc/words"),
            &json!("file"),
            &json!(25),
            &json!(24)
        )
    );
    assert_eq!(
        (&all[4]["mode"], &all[4]["old_mode"]),
        (&json!("0600"), &json!("0644"))
    );
    assert_eq!(
        (&all[0]["old_type"], &all[0]["type"]),
        (&json!("directory"), &Value::Null)
    );
}

#[test]
fn a_patch_says_all_and_can_be_applied() {
    needs_root!();
    let sandbox = Sandbox::new("patch");
    let lamina = Lamina::new(&sandbox);
    let mount = mounted(&sandbox, &lamina);
    let before = sandbox.join("before");
    run(Command::new("cp").arg("-a").arg(mount.path()).arg(&before));
    change(mount.path());
    let root = mount.path();
    run(Command::new("sh").current_dir(root).args([
        "-ec",
        "chown 5:6 etc/mode; setfattr -n user.note -v text etc/mode; mknod etc/null c 1 3
         mkdir etc/dir; rm etc/same.conf; mkdir etc/same.conf; printf 'a\\nb' > 'etc/odd \"name\"'",
    ]));
    let patch = lamina.ok(["diff", "kept", "--patch"]);
    for part in [
        "diff --git a/etc/words b/etc/words\n--- a/etc/words\n+++ b/etc/words\n@@ -1,5 +1,6 @@\n one\n-two\n+2\n",
        "+six\n\\ No newline at end of file\n",
        "diff --git a/etc/gone b/etc/gone\ndeleted file mode 100644\n--- a/etc/gone\n+++ /dev/null\n",
        "old mode 100644\nnew mode 100600\nold owner 0:0\nnew owner 5:6\nnew xattr user.note=\"text\"\n",
        "new file mode 100644\n--- /dev/null\n+++ b/etc/new.conf\n",
        "Binary files a/binary and b/binary differ\n",
        "-etc/words\n\\ No newline at end of file\n+etc/mode\n\\ No newline at end of file\n",
        "new character device mode 020644\nnew device 1:3\n",
        "new directory mode 040755\n",
        "deleted directory mode 040755\n",
        "diff --git \"a/etc/odd \\\"name\\\"\" \"b/etc/odd \\\"name\\\"\"\n",
    ] {
        assert!(patch.contains(part), "{part}\n--- is not in\n{patch}");
    }
    let patch = lamina.ok([
        "diff",
        "kept",
        "-p",
        "/etc/words",
        "/etc/gone",
        "/etc/new.conf",
    ]);
    let file = sandbox.file("changes.patch", &patch);
    let mut apply = Command::new("patch");
    run(apply
        .args(["-p1", "--force", "-i"])
        .arg(&file)
        .arg("-d")
        .arg(&before));
    for name in ["etc/words", "etc/new.conf"] {
        let (ours, theirs) = (root.join(name), before.join(name));
        assert_eq!(fs::read(ours).unwrap(), fs::read(theirs).unwrap(), "{name}");
    }
    assert!(!before.join("etc/gone").exists());

    // A large file is not read; the limit is 8 MiB.
    fs::write(root.join("large"), noise(1, 9 << 20)).unwrap();
    let patch = lamina.ok(["diff", "kept", "--patch", "/large"]);
    assert!(
        patch.ends_with("Large files /dev/null and b/large differ\n"),
        "{patch}"
    );
    mount.unmount();
}

#[test]
fn the_exit_status_tells_if_asked() {
    needs_root!();
    let sandbox = Sandbox::new("diff-status");
    let lamina = Lamina::new(&sandbox);
    let lower = sandbox.dir("lower");
    fs::write(lower.join("old"), "old").unwrap();
    let options = ["--lower", lower.to_str().unwrap(), "--name", "dirs"];
    let mount = lamina.mount(&options, &sandbox.join("mnt"));
    let status = |arguments: &[&str]| {
        let result = lamina.output(["diff", "--exit-code"].iter().chain(arguments));
        (result.status.code(), describe(&result))
    };
    assert_eq!(status(&["dirs"]).0, Some(0));
    fs::write(mount.path().join("old"), "new").unwrap();
    let (code, said) = status(&["dirs"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("C /old"), "{said}");
    assert_eq!(status(&["dirs", "/other"]).0, Some(0));
    let (code, said) = status(&["nowhere"]);
    assert_eq!(code, Some(2));
    assert!(said.contains("nowhere"), "{said}");
    let patch = lamina.ok(["diff", "dirs", "-p"]);
    assert!(
        patch.contains("-old\n") && patch.contains("+new\n"),
        "{patch}"
    );
    lamina.fails(2, ["diff", "dirs", "--patch", "--json"]);
    lamina.fails(2, ["diff", "dirs", "/etc/[a"]);
    mount.unmount();
}

#[test]
fn a_directory_that_takes_the_place_of_another_is_compared_with_it() {
    needs_root!();
    let sandbox = Sandbox::new("diff-moved");
    let lamina = Lamina::new(&sandbox);
    let archive = Archive::new(&sandbox, "image.tar")
        .dir("new", 0o755)
        .file("new/both", b"new\n")
        .file("new/added", b"new\n")
        .dir("new/sub", 0o755)
        .file("new/sub/both", b"new\n")
        .dir("old", 0o755)
        .file("old/both", b"old\n")
        .file("old/gone", b"old\n")
        .dir("old/sub", 0o755)
        .file("old/sub/both", b"old\n")
        .file("old/sub/gone", b"old\n");
    lamina.build("image", &[archive.finish()]);
    let mount = lamina.mount(&["--name", "kept", "image"], &sandbox.join("mnt"));
    fs::remove_dir_all(mount.path().join("old")).unwrap();
    fs::rename(mount.path().join("new"), mount.path().join("old")).unwrap();
    let tree = Tree::read(mount.path());
    mount.unmount();
    assert_eq!(
        lamina.ok(["diff", "kept"]),
        "D /new\nC /old\nA /old/added\nC /old/both\nD /old/gone\nC /old/sub\nC /old/sub/both\n\
         D /old/sub/gone\n"
    );
    lamina.ok(["commit", "kept", "-t", "moved"]);
    let mount = lamina.mount(&["--read-only", "moved"], &sandbox.join("mnt"));
    let committed = Tree::read(mount.path());
    tree.assert_same("changed", &committed, "committed", Ignore::OTHER_FILESYSTEM);
    mount.unmount();
}

#[test]
fn a_patch_finds_files_with_spaces_in_their_names() {
    needs_root!();
    let sandbox = Sandbox::new("diff-spaces");
    let lamina = Lamina::new(&sandbox);
    let archive = Archive::new(&sandbox, "image.tar")
        .dir("a dir", 0o755)
        .file("a dir/a file", b"one\ntwo\n");
    lamina.build("image", &[archive.finish()]);
    let mount = lamina.mount(&["--name", "kept", "image"], &sandbox.join("mnt"));
    fs::write(mount.path().join("a dir/a file"), "one\n2\n").unwrap();
    mount.unmount();
    let patch = lamina.ok(["diff", "kept", "--patch"]);
    assert!(patch.contains("--- a/a dir/a file\t\n"), "{patch}");
    sandbox.dir("plain/a dir");
    let file = sandbox.file("plain/a dir/a file", "one\ntwo\n");
    let patch = sandbox.file("changes.patch", patch);
    run(Command::new("patch")
        .args(["-p1", "-s", "-d"])
        .arg(sandbox.join("plain"))
        .arg("-i")
        .arg(patch));
    assert_eq!(fs::read_to_string(file).unwrap(), "one\n2\n");
}
