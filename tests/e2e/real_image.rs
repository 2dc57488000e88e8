//! A Debian image of three layers, mounted, compared with what `tar -x` makes of the same layers,
//! and worked in as a root.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::fixture::{DebianStore, debian_layers, unpack_by_hand};
use crate::support::lamina::{Lamina, Mount, NOBODY};
use crate::support::sandbox::Sandbox;
use crate::support::tree::{Ignore, Tree};
use crate::support::{needs_root, run};

#[test]
fn mounted_tree_equals_the_unpacked_layers() {
    needs_root!();
    let store = DebianStore::shared();
    let sandbox = Sandbox::new("equal");
    let by_hand = sandbox.dir("by-hand");
    unpack_by_hand(&debian_layers(), &by_hand);
    let expected = Tree::read(&by_hand);
    assert!(
        expected.len() > 8_000,
        "the image is small: {} entries",
        expected.len()
    );
    for odd in [
        "srv/odd/not-utf8-\u{fffd}",
        "srv/odd/linked-later",
        "srv/odd/opaque/new",
        "usr/bin/python3",
    ] {
        let found = expected.paths().any(|path| {
            String::from_utf8_lossy(path).starts_with(odd.trim_end_matches('\u{fffd}'))
        });
        assert!(found, "the image has no {odd}");
    }

    let read_only = store
        .lamina
        .mount(&["--read-only", "debian"], &sandbox.join("ro"));
    let mounted = Tree::read(read_only.path());
    expected.assert_same(
        "tar -x",
        &mounted,
        "the read-only mount",
        Ignore::OTHER_FILESYSTEM,
    );
    let refused = fs::write(read_only.path().join("new"), "").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    read_only.unmount();

    let writable = store
        .lamina
        .mount(&["--name", "untouched", "debian"], &sandbox.join("rw"));
    let mounted_writable = Tree::read(writable.path());
    // The same image has the same inode numbers in every mount of it.
    mounted.assert_same(
        "the read-only mount",
        &mounted_writable,
        "the writable one",
        Ignore::NOTHING,
    );
    writable.unmount();
}

#[test]
fn an_ordinary_user_builds_and_mounts_the_same_image() {
    needs_root!();
    let root_store = DebianStore::shared();
    let sandbox = Sandbox::new("user");
    let user = Lamina::as_user(&sandbox, NOBODY);
    user.build("debian", &debian_layers());
    let mount = user.mount(&["--name", "mine", "debian"], &sandbox.join("mnt"));
    let reference = root_store
        .lamina
        .mount(&["--read-only", "debian"], &sandbox.join("reference"));

    // The mount is the user's alone, so the user has to look. What belongs to root in the image
    // belongs to the user in the user's mount; all else is as in root's.
    let seen = list_as(NOBODY, mount.path());
    assert!(
        seen.len() > 8_000,
        "find saw little: {} entries",
        seen.len()
    );
    let expected: BTreeSet<_> = list_as(0, reference.path())
        .iter()
        .map(|line| owned_by(NOBODY, line))
        .collect();
    let wrong: Vec<_> = seen
        .iter()
        .filter(|line| !expected.contains(*line))
        .take(10)
        .collect();
    assert!(wrong.is_empty(), "not so in root's mount: {wrong:#?}");
    // Everything is there but what lies in directories closed to the user.
    let closed = as_user(
        NOBODY,
        "find",
        &[".", "-type", "d", "!", "-executable", "-printf", " %p/\\n"],
        mount.path(),
    );
    let missing: Vec<_> = expected
        .iter()
        .filter(|line| !seen.contains(*line) && !closed.lines().any(|dir| line.contains(dir)))
        .take(10)
        .collect();
    assert!(
        missing.is_empty(),
        "missing in the user's mount: {missing:#?}"
    );

    let said = as_user(
        NOBODY,
        "sh",
        &[
            "-c",
            "cat usr/bin/python3 >/dev/null && echo mine > tmp/new && cat tmp/new",
        ],
        mount.path(),
    );
    assert_eq!(said, "mine\n");
    mount.unmount();
    let mount = user.mount(&["--name", "mine", "debian"], &sandbox.join("mnt"));
    assert_eq!(as_user(NOBODY, "cat", &["tmp/new"], mount.path()), "mine\n");
    mount.unmount();
}

/// Type, mode, owner, links, size, time, target and name of everything below `dir`, as `uid` sees
/// it: a line each.
fn list_as(uid: u32, dir: &Path) -> BTreeSet<String> {
    let script = r"find . -printf '%y %m %U:%G %n %s %T@ %l %p\n' 2>/dev/null; true";
    let lines = as_user(uid, "sh", &["-c", script], dir);
    lines.lines().map(str::to_owned).collect()
}

/// A line of [`list_as`] with `id` in place of root.
fn owned_by(id: u32, line: &str) -> String {
    let mut words: Vec<String> = line.splitn(4, ' ').map(str::to_owned).collect();
    if let Some(owner) = words.get_mut(2) {
        let ids: Vec<_> = owner
            .split(':')
            .map(|part| {
                if part == "0" {
                    id.to_string()
                } else {
                    part.to_owned()
                }
            })
            .collect();
        *owner = ids.join(":");
    }
    words.join(" ")
}

fn as_user(uid: u32, program: &str, arguments: &[&str], dir: &Path) -> String {
    use std::os::unix::process::CommandExt;
    run(Command::new(program)
        .args(arguments)
        .current_dir(dir)
        .uid(uid)
        .gid(uid)
        .env("HOME", "/"))
}

#[test]
fn programs_work_in_the_root_and_the_layers_stay_as_they_were() {
    needs_root!();
    let store = DebianStore::shared();
    let sandbox = Sandbox::new("chroot");
    let mount = store
        .lamina
        .mount(&["--name", "worked-in", "debian"], &sandbox.join("mnt"));
    let parts_before = immutable_parts(store.lamina.store());

    let root = Root { mount: &mount };
    assert_eq!(
        root.run("python3 -c 'import json, sqlite3; print(json.dumps({\"sum\": 1 + 2}))'"),
        "{\"sum\": 3}\n"
    );
    install_and_remove(&root);
    git_clone(&root);
    make_project(&root);

    let before = Tree::read(mount.path());
    mount.unmount();
    let parts_after = immutable_parts(store.lamina.store());
    for (before, after) in parts_before.iter().zip(&parts_after) {
        before.assert_same("the store before", after, "after", Ignore::NOTHING);
    }

    let mount = store
        .lamina
        .mount(&["--name", "worked-in", "debian"], &sandbox.join("mnt"));
    let after = Tree::read(mount.path());
    before.assert_same("before the remount", &after, "after it", Ignore::NOTHING);
    let root = Root { mount: &mount };
    assert_eq!(root.run("hello"), "Hello, world!\n");
    mount.unmount();
}

/// Objects, layer indexes and merged indexes of a store: what no mount may ever change.
fn immutable_parts(store: &Path) -> [Tree; 3] {
    ["objects", "layers", "merged"].map(|part| Tree::read(&store.join(part)))
}

/// A mount as the root directory of commands.
struct Root<'a> {
    mount: &'a Mount,
}

impl Root<'_> {
    /// Runs a shell command in it, with /dev and /proc of the machine in a mount namespace of its
    /// own, so that nothing of them is left.
    fn run(&self, script: &str) -> String {
        let enter = "mount --rbind /dev \"$0/dev\" && mount -t proc proc \"$0/proc\" && exec chroot \"$0\" sh -euc \"$1\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-euc", enter]);
        command.arg(self.mount.path()).arg(script).env_clear();
        command.env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        );
        command
            .env("HOME", "/root")
            .env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive");
        run(&mut command)
    }
}

fn install_and_remove(root: &Root<'_>) {
    root.run("dpkg -i /root/hello_*.deb");
    assert_eq!(root.run("hello"), "Hello, world!\n");
    assert_eq!(root.run("dpkg --verify hello"), "");
    root.run("apt-get -y remove file");
    let script = "dpkg-query -W -f '${db:Status-Status}' file; command -v file || echo ' gone'";
    assert_eq!(root.run(script), "not-installed gone\n");
    root.run("dpkg --audit && apt-get check");
}

fn git_clone(root: &Root<'_>) {
    root.run(
        "git config --global user.name Test && git config --global user.email test@example.org
         mkdir /srv/origin && cp -a /usr/lib/python3.11/json /usr/lib/python3.11/email /srv/origin
         cd /srv/origin && git init -q -b main . && git add . && git commit -q -m 'Two modules'
         git clone -q /srv/origin /srv/clone",
    );
    assert_eq!(
        root.run("cd /srv/clone && git status --porcelain && git fsck --strict 2>&1"),
        ""
    );
    assert_eq!(
        root.run("cd /srv/clone && git log --format=%s"),
        "Two modules\n"
    );
    assert_eq!(
        root.run("diff -r --exclude=.git /srv/origin /srv/clone"),
        ""
    );
}

fn make_project(root: &Root<'_>) {
    let source = root.mount.path().join("srv/project");
    fs::create_dir(&source).unwrap();
    let parts = 20;
    let names = |end: &str| {
        (0..parts)
            .map(|i| format!("part{i}{end}"))
            .collect::<Vec<_>>()
            .join(" ")
    };
    let mut declarations = String::new();
    let mut calls = String::new();
    for i in 0..parts {
        let _ = writeln!(declarations, "int part{i}(int);");
        let _ = writeln!(calls, "sum = part{i}(sum);");
    }
    fs::write(source.join("parts.h"), declarations).unwrap();
    for i in 0..parts {
        let body = format!("#include \"parts.h\"\nint part{i}(int sum) {{ return sum + {i}; }}\n");
        fs::write(source.join(format!("part{i}.c")), body).unwrap();
    }
    let main = format!(
        "#include <stdio.h>\n#include \"parts.h\"\nint main(void) {{ int sum = 0;\n{calls}printf(\"%d\\n\", sum); }}\n"
    );
    fs::write(source.join("main.c"), main).unwrap();
    let makefile = format!(
        "total: main.o {}\n\t$(CC) -o $@ $^\n%.o: %.c parts.h\n\t$(CC) -c -o $@ $<\n",
        names(".o")
    );
    fs::write(source.join("Makefile"), makefile).unwrap();
    root.run("make -s -j2 -C /srv/project");
    assert_eq!(root.run("/srv/project/total"), "190\n");
    // make decides by modification times: nothing is out of date, then exactly one thing is.
    let idle = root.run("make -C /srv/project total");
    assert!(idle.contains("is up to date"), "{idle}");
    root.run("touch /srv/project/part3.c");
    let again = root.run("make -C /srv/project total");
    assert_eq!(again.matches(" -c ").count(), 1, "{again}");
}

#[test]
fn diff_and_commit_carry_the_changes_into_a_new_image() {
    needs_root!();
    // A store of its own: others look whether theirs stays as it is.
    let store = DebianStore::own();
    let sandbox = Sandbox::new("commit");
    let mount = store
        .lamina
        .mount(&["--name", "to-commit", "debian"], &sandbox.join("mnt"));
    let root = mount.path();
    fs::write(root.join("etc/added"), "new\n").unwrap();
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    fs::remove_dir_all(root.join("usr/share/perl5")).unwrap();
    fs::remove_dir_all(root.join("usr/lib/git-core")).unwrap();
    fs::create_dir(root.join("usr/lib/git-core")).unwrap();
    fs::rename(root.join("usr/include"), root.join("usr/moved")).unwrap();

    let said = store.lamina.ok([OsStr::new("diff"), root.as_os_str()]);
    for line in ["A /etc/added", "D /usr/share/perl5"] {
        let found = said
            .lines()
            .any(|said| said.split_whitespace().eq(line.split_whitespace()));
        assert!(found, "lamina diff should say {line:?}:\n{said}");
    }
    assert!(
        !said.contains("/etc/shadow"),
        "an untouched file is in the diff:\n{said}"
    );

    store.lamina.ok([
        OsStr::new("commit"),
        OsStr::new("-t"),
        OsStr::new("committed"),
        root.as_os_str(),
    ]);
    let committed = store
        .lamina
        .mount(&["--read-only", "committed"], &sandbox.join("committed"));
    let changed = Tree::read(root);
    let image = Tree::read(committed.path());
    changed.assert_same(
        "the changed mount",
        &image,
        "the committed image",
        Ignore::OTHER_FILESYSTEM,
    );
    committed.unmount();
    mount.unmount();
}
