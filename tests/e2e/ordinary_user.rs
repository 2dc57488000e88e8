//! Mounts of users who are not root: by fusermount3, or in a user namespace of their own.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::process::{Signal, kill_process};

use crate::support::device::OpenDevice;
use crate::support::lamina::{Lamina, NOBODY, wait_until};
use crate::support::listing::{mounts, pid_of, small_image, the_mount, words};
use crate::support::sandbox::{Sandbox, mounted_type};
use crate::support::{needs_root, output, run};

#[test]
fn an_ordinary_user_mounts_by_the_helper() {
    needs_root!();
    let _device = OpenDevice::new();
    let sandbox = Sandbox::new("helper");
    let user = Lamina::as_user(&sandbox, NOBODY);
    small_image(&sandbox, &user);
    let target = sandbox.join("mnt");
    let mount = user.mount(&["--rm", "-o", "noatime,fsname=my\\,own", "small"], &target);
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table
        .lines()
        .find(|line| line.contains(target.to_str().unwrap()))
        .unwrap();
    for word in [
        "nosuid",
        "nodev",
        "noatime",
        "my,own",
        "default_permissions",
    ] {
        assert!(line.contains(word), "{word}: {line}");
    }
    assert!(!line.contains("allow_other"), "{line}");

    // A directory that its owner cannot write to does not outlive the mount.
    let script = format!(
        "mkdir -p '{0}/new/in' && echo x >'{0}/new/in/file' && chmod -R a-w '{0}/new'",
        target.display()
    );
    run(Command::new("sh")
        .args(["-c", &script])
        .uid(NOBODY)
        .gid(NOBODY));
    assert_eq!(the_mount(&user, &sandbox)["state"], "live");
    assert!(user.ok(words(&["stats"], &target)).contains("MKDIR "));
    user.ok(words(&["umount"], &target));
    assert_eq!(mounted_type(&target), None);
    assert!(mounts(&user, &sandbox).is_empty());
    assert_eq!(
        fs::read_dir(user.store().join("mounts")).unwrap().count(),
        0
    );
    drop(mount);

    // Killed, listed, cleared.
    let mount = user.mount(&["--rm", "small"], &target);
    kill_process(pid_of(&the_mount(&user, &sandbox)), Signal::KILL).unwrap();
    wait_until("the daemon to die", || {
        the_mount(&user, &sandbox)["state"] == "dead"
    });
    user.ok(words(&["umount"], &target));
    assert_eq!(mounted_type(&target), None);
    assert!(mounts(&user, &sandbox).is_empty());
    drop(mount);

    // What the helper refuses is told in its words, and what to do.
    let conf = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    if !conf.lines().any(|line| line.trim() == "user_allow_other") {
        let message = user.fails(1, words(&["mount", "-o", "allow_other", "small"], &target));
        assert!(message.contains("user_allow_other"), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
    let mut without_helper = user.command(words(&["mount", "small"], &target));
    let result = output(without_helper.env("PATH", "/nonexistent"));
    let message = String::from_utf8_lossy(&result.stderr).into_owned();
    assert_eq!(result.status.code(), Some(1));
    assert!(
        message.contains("fusermount3") && message.contains("fuse3"),
        "{message}"
    );
    assert!(mounts(&user, &sandbox).is_empty());
    // Root's mounts are none of the user's business.
    let root = Lamina::new(&sandbox);
    small_image(&sandbox, &root);
    let mount = root.mount(&["--rm", "small"], &sandbox.join("roots"));
    assert!(!user.ok(["ps"]).contains("roots"));
    user.fails(1, words(&["umount"], mount.path()));
    assert!(mounted_type(mount.path()).is_some());
    mount.unmount();
}

#[test]
fn a_user_namespace_needs_no_helper() {
    needs_root!();
    let may = Command::new("unshare")
        .args(["-Urm", "true"])
        .uid(NOBODY)
        .gid(NOBODY)
        .output();
    if !may.is_ok_and(|result| result.status.success()) {
        eprintln!("skipped: ordinary users may not make user namespaces here");
        return;
    }
    let _device = OpenDevice::new();
    let sandbox = Sandbox::new("userns");
    let user = Lamina::as_user(&sandbox, NOBODY);
    small_image(&sandbox, &user);
    let target = sandbox.dir("mnt");
    std::os::unix::fs::chown(&target, Some(NOBODY), Some(NOBODY)).unwrap();
    let inside = |script: &str| {
        let program = user.command([""; 0]).get_program().to_owned();
        // No helper can be found on this path.
        let bin = sandbox.dir("bin");
        for tool in ["cat", "stat", "rm", "mkdir"] {
            std::os::unix::fs::symlink(Path::new("/usr/bin").join(tool), bin.join(tool)).unwrap();
        }
        let mut shell = Command::new("/usr/bin/unshare");
        shell.args(["-Urm", "/bin/sh", "-ec", script]);
        shell.env("L", program).env("M", &target).env("PATH", bin);
        shell.env("LAMINA_STORE", user.store());
        run(shell.uid(NOBODY).gid(NOBODY))
    };
    let said = inside(
        "\"$L\" mount --name kept small \"$M\"; cat \"$M/dir/file\"; echo new > \"$M/new\"
         stat -c %u \"$M/dir/file\"; \"$L\" diff kept
         rm -r \"$M/dir\"; mkdir \"$M/dir\"; \"$L\" diff kept
         \"$L\" umount \"$M\"; \"$L\" diff kept",
    );
    let changes = "C /dir\nD /dir/file\nA /new\n";
    assert_eq!(said, format!("from the image0\nA /new\n{changes}{changes}"));
    // Outside, what was root's in there is the user's own.
    assert_eq!(
        fs::metadata(user.store().join("mounts/kept/upper/new"))
            .unwrap()
            .uid(),
        NOBODY
    );
    assert!(
        mounts(&user, &sandbox)
            .iter()
            .all(|mount| mount["state"] == "kept")
    );

    // Root, who could have marks of another kind, reads these and goes on with them.
    let root = Lamina::new(&sandbox).with_store(user.store());
    assert_eq!(root.ok(["diff", "kept"]), changes);
    let mount = root.mount(&["--name", "kept", "small"], &sandbox.join("roots"));
    assert_eq!(fs::read_dir(mount.path().join("dir")).unwrap().count(), 0);
    mount.unmount();
}

#[test]
fn what_an_ordinary_user_commits_is_roots_in_the_image() {
    needs_root!();
    let _device = OpenDevice::new();
    let sandbox = Sandbox::new("user-commit");
    let user = Lamina::as_user(&sandbox, NOBODY);
    small_image(&sandbox, &user);
    let target = sandbox.join("mnt");
    let mount = user.mount(&["--name", "users", "small"], &target);
    let script = format!(
        "echo new >'{0}/new'; echo more >>'{0}/dir/file'",
        target.display()
    );
    run(Command::new("sh")
        .args(["-ec", &script])
        .uid(NOBODY)
        .gid(NOBODY));
    assert_eq!(user.ok(["diff", "users"]), "C /dir\nC /dir/file\nA /new\n");
    let live = user.ok(["commit", "users", "-t", "live"]);
    mount.unmount();
    let kept = user.ok(["commit", "users", "-t", "kept"]);
    assert_eq!(live.lines().next(), kept.lines().next(), "another layer");

    let root = Lamina::new(&sandbox).with_store(user.store());
    let mount = root.mount(&["--read-only", "live"], &sandbox.join("roots"));
    for name in ["new", "dir/file", "dir"] {
        let meta = fs::metadata(mount.path().join(name)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (0, 0), "{name}");
    }
    mount.unmount();
}
