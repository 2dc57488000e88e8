//! What an operator meets: daemons that are killed, detached, hung up on or started by scripts;
//! other mounts at the same place; ordinary users; messages and exit statuses.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::FlockOperation;
use rustix::process::{Signal, kill_process};
use serde_json::Value;

use crate::support::lamina::{Lamina, wait_until};
use crate::support::listing::{mounts, pid_of, small_image, the_mount, words};
use crate::support::sandbox::{Sandbox, mounted_type};
use crate::support::{describe, needs_root, output, run};

#[test]
fn a_killed_daemon_is_listed_as_dead_until_it_is_unmounted() {
    needs_root!();
    let sandbox = Sandbox::new("dead");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let mount = lamina.mount(&["--name", "kept", "small"], &sandbox.join("mnt"));
    fs::write(mount.path().join("new"), "kept").unwrap();
    let listed = the_mount(&lamina, &sandbox);
    assert_eq!(
        (&listed["state"], &listed["image"]),
        (&"live".into(), &"small".into())
    );
    assert!(listed["memory"].as_u64().unwrap() > 100_000);

    kill_process(pid_of(&listed), Signal::KILL).unwrap();
    wait_until("the daemon to die", || {
        the_mount(&lamina, &sandbox)["state"] == "dead"
    });
    let table = lamina.ok(["ps"]);
    assert!(table.contains("dead: lamina umount it"), "{table}");
    let message = lamina.fails(1, words(&["mount", "small"], mount.path()));
    assert!(message.contains("lamina umount"), "{message}");

    lamina.ok(["umount", "kept"]);
    assert_eq!(mounted_type(mount.path()), None);
    assert_eq!(the_mount(&lamina, &sandbox)["state"], "kept");
    let again = lamina.mount(&["--name", "kept", "small"], &sandbox.join("mnt"));
    assert_eq!(
        fs::read_to_string(again.path().join("new")).unwrap(),
        "kept"
    );
    again.unmount();
}

#[test]
fn unmounting_for_a_killed_daemon_throws_away_what_it_should_have() {
    needs_root!();
    let sandbox = Sandbox::new("deadrm");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let mount = lamina.mount(&["--rm", "small"], &sandbox.join("mnt"));
    fs::write(mount.path().join("new"), "gone").unwrap();
    kill_process(pid_of(&the_mount(&lamina, &sandbox)), Signal::KILL).unwrap();
    wait_until("the daemon to die", || {
        the_mount(&lamina, &sandbox)["state"] == "dead"
    });
    lamina.ok(words(&["umount"], mount.path()));
    assert!(mounts(&lamina, &sandbox).is_empty());
    assert_eq!(
        fs::read_dir(lamina.store().join("mounts")).unwrap().count(),
        0
    );
}

#[test]
fn what_others_mount_is_never_taken_off() {
    needs_root!();
    let sandbox = Sandbox::new("foreign");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let target = sandbox.dir("mnt");
    let mount = lamina.mount(&["--name", "kept", "small"], &target);
    let cover = || {
        run(Command::new("mount")
            .args(["-t", "tmpfs", "other"])
            .arg(&target))
    };

    // Above a live mount: neither the command nor the daemon unmounts what is not theirs.
    cover();
    let message = lamina.fails(1, words(&["umount"], &target));
    assert!(message.contains("covered"), "{message}");
    let daemon = pid_of(&the_mount(&lamina, &sandbox));
    kill_process(daemon, Signal::TERM).unwrap();
    let log = PathBuf::from(the_mount(&lamina, &sandbox)["log"].as_str().unwrap());
    wait_until("the daemon to say why it does not end", || {
        fs::read_to_string(&log).unwrap().contains("covered")
    });
    assert_eq!(mounted_type(&target).as_deref(), Some("tmpfs"));
    run(Command::new("umount").arg(&target));

    // In the place of a dead one: what is left of that is not taken for the new mount.
    kill_process(daemon, Signal::KILL).unwrap();
    wait_until("the daemon to die", || {
        the_mount(&lamina, &sandbox)["state"] == "dead"
    });
    run(Command::new("umount").arg(&target));
    cover();
    assert_eq!(the_mount(&lamina, &sandbox)["state"], "kept");
    let message = lamina.fails(1, words(&["umount"], &target));
    assert!(message.contains("tmpfs"), "{message}");
    assert_eq!(mounted_type(&target).as_deref(), Some("tmpfs"));
    run(Command::new("umount").arg(&target));
    drop(mount);
    fs::remove_file(log).unwrap();
}

#[test]
fn a_daemon_keeps_nothing_of_its_caller() {
    needs_root!();
    let sandbox = Sandbox::new("inherit");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let target = sandbox.dir("mnt");
    let lock = sandbox.file("lock", "");
    // As scripts do: a lock held on a descriptor, and all output read to its end.
    let script = format!(
        "exec 9>'{}'; flock 9; cd '{}'; exec {} mount --rm small mnt",
        lock.display(),
        sandbox.path().display(),
        env!("CARGO_BIN_EXE_lamina")
    );
    let mut shell = Command::new("sh");
    shell
        .args(["-c", &script])
        .env("LAMINA_STORE", lamina.store());
    let result = output(&mut shell);
    assert!(result.status.success(), "{}", describe(&result));
    let file = fs::File::open(&lock).unwrap();
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
        .expect("the daemon holds the lock");
    let pid = pid_of(&the_mount(&lamina, &sandbox)).as_raw_nonzero();
    assert_eq!(
        fs::read_link(format!("/proc/{pid}/cwd")).unwrap(),
        Path::new("/")
    );
    assert_eq!(
        fs::read_to_string(format!("/proc/{pid}/comm")).unwrap(),
        "lamina\n"
    );

    // Nor does it end with its caller's terminal.
    kill_process(pid_of(&the_mount(&lamina, &sandbox)), Signal::HUP).unwrap();
    assert_eq!(
        fs::read_to_string(target.join("dir/file")).unwrap(),
        "from the image"
    );
    kill_process(pid_of(&the_mount(&lamina, &sandbox)), Signal::TERM).unwrap();
    wait_until("the daemon to end", || mounts(&lamina, &sandbox).is_empty());
    assert_eq!(mounted_type(&target), None);
}

#[test]
fn a_detached_mount_lives_as_long_as_it_is_used() {
    needs_root!();
    let sandbox = Sandbox::new("lazy");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let target = sandbox.dir("mnt");
    let mount = lamina.mount(&["--name", "kept", "small"], &target);
    let used = fs::File::create(target.join("used")).unwrap();
    lamina.ok(words(&["umount", "--lazy"], &target));
    assert_eq!(mounted_type(&target), None);
    assert_eq!(the_mount(&lamina, &sandbox)["state"], "detached");
    used.set_len(5).unwrap();
    // Its upper is not free, and to unmount it once more is an error.
    let message = lamina.fails(1, words(&["mount", "--name", "kept", "small"], &target));
    assert!(message.contains("in use"), "{message}");
    let message = lamina.fails(1, ["umount", "kept"]);
    assert!(message.contains("not mounted here any more"), "{message}");
    drop(used);
    wait_until("the daemon to end", || {
        the_mount(&lamina, &sandbox)["state"] == "kept"
    });
    drop(mount);

    // Who does not want to wait for the last user tells the daemon to end.
    let mount = lamina.mount(&["--name", "kept", "small"], &target);
    assert_eq!(fs::metadata(target.join("used")).unwrap().len(), 5);
    let used = fs::File::create(target.join("used")).unwrap();
    let listed = the_mount(&lamina, &sandbox);
    let (daemon, log) = (pid_of(&listed), listed["log"].as_str().unwrap().to_owned());
    kill_process(daemon, Signal::TERM).unwrap();
    wait_until("the mount to be detached", || {
        mounted_type(&target).is_none()
    });
    assert_eq!(the_mount(&lamina, &sandbox)["state"], "detached");
    kill_process(daemon, Signal::TERM).unwrap();
    wait_until("the daemon to end", || {
        the_mount(&lamina, &sandbox)["state"] == "kept"
    });
    assert!(used.set_len(7).is_err(), "a mount without a daemon answers");
    drop(mount);
    let said = fs::read_to_string(&log).unwrap();
    assert!(said.contains("ending while the mount is in use"), "{said}");
    fs::remove_file(log).unwrap();
}

#[test]
fn a_mount_that_fails_leaves_nothing() {
    needs_root!();
    let sandbox = Sandbox::new("failed");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let target = sandbox.dir("mnt");
    let message = lamina.fails(
        1,
        words(&["mount", "--lower", "/no/such", "small"], &target),
    );
    assert!(message.contains("/no/such"), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    let option = ["mount", "-o", "context=system_u:object_r:none:s0", "small"];
    if !Path::new("/sys/fs/selinux").exists() {
        let message = lamina.fails(1, words(&option, &target));
        assert!(message.contains("SELinux"), "{message}");
    }
    assert!(mounts(&lamina, &sandbox).is_empty());
    assert_eq!(
        fs::read_dir(lamina.store().join("mounts")).unwrap().count(),
        0
    );
    assert_eq!(mounted_type(&target), None);

    // What was there before stays, whatever it was to become of it.
    lamina
        .mount(&["--name", "kept", "small"], &target)
        .unmount();
    let message = lamina.fails(
        1,
        words(
            &[
                "mount", "--rm", "--name", "kept", "--lower", "/no/such", "small",
            ],
            &target,
        ),
    );
    assert!(message.contains("kept"), "{message}");
    assert_eq!(the_mount(&lamina, &sandbox)["name"], "kept");
}

#[test]
fn a_caller_that_is_killed_leaves_no_mount() {
    needs_root!();
    let sandbox = Sandbox::new("caller");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let target = sandbox.dir("mnt");
    // The daemon itself, with nobody at the other end of its standard output.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut daemon = lamina.command(words(&["mount", "--rm", "small"], &target));
    daemon
        .env("LAMINA_IS_DAEMON", "1")
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(Stdio::null());
    daemon.spawn().unwrap().wait().unwrap();
    assert_eq!(mounted_type(&target), None);
    assert!(mounts(&lamina, &sandbox).is_empty());
}

#[test]
fn names_of_bytes_that_are_no_text() {
    needs_root!();
    let sandbox = Sandbox::new("bytes");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let odd = OsString::from_vec(b"a\xff \n".to_vec());
    let lower = sandbox.dir(&odd);
    fs::write(lower.join("below"), "").unwrap();
    let target = sandbox.dir("odd").join(&odd);
    let options = [
        "--name".as_ref(),
        "kept".as_ref(),
        "--lower".as_ref(),
        lower.as_os_str(),
    ];
    let options = options.into_iter().chain([OsStr::new("small")]);
    let mount = lamina.mount(&options.collect::<Vec<_>>(), &target);
    fs::write(target.join(&odd), "").unwrap();
    assert_eq!(lamina.output(["diff", "kept"]).stdout, b"A /a\xff \n\n");
    let changes: Value = serde_json::from_str(&lamina.ok(["diff", "--json", "kept"])).unwrap();
    assert_eq!(changes[0]["path"]["hex"], "2f61ff200a");
    lamina.ok(words(&["umount"], &target));
    assert_eq!(mounted_type(&target), None);
    drop(mount);
    let mount = lamina.mount(
        &[
            OsStr::new("--name"),
            "kept".as_ref(),
            "--lower".as_ref(),
            lower.as_os_str(),
            "small".as_ref(),
        ],
        &target,
    );
    assert!(target.join("below").exists() && target.join(&odd).exists());
    lamina.ok(["umount", "kept"]);
    drop(mount);
}

#[test]
fn a_mount_point_is_not_inside_what_is_mounted() {
    needs_root!();
    let sandbox = Sandbox::new("inside");
    let lamina = Lamina::new(&sandbox);
    let lower = sandbox.dir("lower");
    let inside = sandbox.dir("lower/sub");
    let (upper, work) = (sandbox.dir("upper"), sandbox.dir("work"));
    let mount_at = |target: &Path| {
        let dirs = [("--lower", &lower), ("--upper", &upper), ("--work", &work)];
        let mut all = vec![OsString::from("mount")];
        all.extend(
            dirs.iter()
                .flat_map(|(name, dir)| [name.into(), dir.as_os_str().to_owned()]),
        );
        all.push(target.into());
        all
    };
    for target in [&inside, &upper, &sandbox.dir("work/x")] {
        let message = lamina.fails(1, mount_at(target));
        assert!(message.contains("mount elsewhere"), "{message}");
    }
    // Over a lower itself it works; only to look at the changes from outside it is in the way.
    lamina.ok(mount_at(&lower));
    fs::write(lower.join("new"), "changed").unwrap();
    let message = lamina.fails(1, words(&["diff"], &lower));
    assert!(message.contains("covered by the mount"), "{message}");
    lamina.ok(words(&["umount"], &lower));
    assert!(!lower.join("new").exists() && upper.join("new").exists());
}

#[test]
fn several_mounts_are_unmounted_also_if_one_cannot_be() {
    needs_root!();
    let sandbox = Sandbox::new("several");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let first = lamina.mount(&["--name", "first", "small"], &sandbox.join("first"));
    let second = lamina.mount(&["--name", "second", "small"], &sandbox.join("second"));
    let message = lamina.fails(
        1,
        ["umount", "first", "no-such-mount", "/no/such", "second"],
    );
    assert_eq!(message.lines().count(), 2, "{message}");
    assert!(
        message.contains("no-such-mount") && message.contains("/no/such"),
        "{message}"
    );
    for mount in [first, second] {
        assert_eq!(mounted_type(mount.path()), None);
    }

    // Names are thrown away when they are not mounted.
    let first = lamina.mount(&["--name", "first", "small"], &sandbox.join("first"));
    let message = lamina.fails(1, ["rm", "first"]);
    assert!(message.contains("lamina umount first"), "{message}");
    first.unmount();
    lamina.ok(["rm", "first"]);
    let message = lamina.fails(1, ["rm", "first"]);
    assert!(message.contains("'first'"), "{message}");
    assert_eq!(the_mount(&lamina, &sandbox)["name"], "second");
}

#[test]
fn a_read_only_mount_protects_its_image() {
    needs_root!();
    let sandbox = Sandbox::new("lease");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let mount = lamina.mount(&["--read-only", "small"], &sandbox.join("mnt"));
    let message = lamina.fails(1, ["image", "rm", "small"]);
    assert!(
        message.contains(mount.path().to_str().unwrap()),
        "{message}"
    );
    mount.unmount();
    lamina.ok(["image", "rm", "small"]);
}
