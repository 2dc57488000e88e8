//! The life of a mount: how it is listed, ended, killed, and what of it stays.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{FlockOperation, Timespec, Timestamps};

use crate::differential::rng::Rng;
use crate::support::disk::{Disk, Mounted};
use crate::support::lamina::{Lamina, NOBODY, wait_until};
use crate::support::listing::{mounts, pid_of, small_image, the_mount, words};
use crate::support::sandbox::{Sandbox, mounted_type};
use crate::support::{describe, needs_root, output, run};

/// Whether `lamina ps` lists a mount at `target`.
fn listed(lamina: &Lamina, target: &Path) -> bool {
    lamina.ok(["ps"]).contains(target.to_str().unwrap())
}

#[test]
fn every_way_of_unmounting_ends_the_daemon() {
    needs_root!();
    let sandbox = Sandbox::new("unmount");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let target = sandbox.dir("mnt");
    for (number, words) in [&["umount"][..], &["umount", "-l"], &["fusermount3", "-u"]]
        .iter()
        .enumerate()
    {
        let mount = lamina.mount(&["--name", "kept", "small"], &target);
        assert!(listed(&lamina, &target), "{}", lamina.ok(["ps"]));
        fs::write(target.join(format!("new{number}")), "kept").unwrap();
        run(Command::new(words[0]).args(&words[1..]).arg(&target));
        wait_until("the daemon to end", || !listed(&lamina, &target));
        assert_eq!(mounted_type(&target), None);
        drop(mount);
    }
    let mount = lamina.mount(&["--name", "kept", "small"], &target);
    for number in 0..3 {
        assert_eq!(
            fs::read_to_string(target.join(format!("new{number}"))).unwrap(),
            "kept"
        );
    }
    mount.unmount();
}

/// The kernel gives the device number of a mount that is gone to the next one.
#[test]
fn a_daemon_that_ends_late_leaves_the_next_mount_alone() {
    needs_root!();
    let sandbox = Sandbox::new("late");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let target = sandbox.dir("mnt");
    for transport in ["device", "auto"] {
        let options = ["--rm", "--transport", transport, "small"];
        let first = lamina.mount(&options, &target);
        let daemon = pid_of(&the_mount(&lamina, &sandbox));
        let signal = |signal| rustix::process::kill_process(daemon, signal).unwrap();
        signal(rustix::process::Signal::STOP);
        run(Command::new("umount").arg("-l").arg(&target));
        let second = lamina.mount(&options, &target);
        signal(rustix::process::Signal::CONT);
        wait_until("the first daemon to end", || {
            !Path::new(&format!("/proc/{}", daemon.as_raw_pid())).exists()
        });
        assert_eq!(mounted_type(&target).as_deref(), Some("fuse.lamina"));
        assert!(target.join("dir/file").exists());
        second.unmount();
        drop(first);
    }
}

#[test]
fn a_mount_that_is_in_use_is_not_torn_down() {
    needs_root!();
    let sandbox = Sandbox::new("busy");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let mount = lamina.mount(&["small"], &sandbox.join("mnt"));
    let held = fs::File::open(mount.path().join("dir")).unwrap();
    let message = lamina.fails(1, [OsStr::new("umount"), mount.path().as_os_str()]);
    assert!(
        message.contains("busy") || message.contains("in use"),
        "{message}"
    );
    assert_eq!(
        fs::read_to_string(mount.path().join("dir/file")).unwrap(),
        "from the image"
    );
    drop(held);
    mount.unmount();
}

#[test]
fn rm_drops_the_upper_and_a_name_keeps_it() {
    needs_root!();
    let sandbox = Sandbox::new("names");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let target = sandbox.dir("mnt");
    let kept = lamina.store().join("mounts");
    let names = || fs::read_dir(&kept).map_or(0, Iterator::count);

    let mount = lamina.mount(&["--rm", "small"], &target);
    fs::write(target.join("new"), "").unwrap();
    mount.unmount();
    wait_until("the upper to be dropped", || names() == 0);

    let mount = lamina.mount(&["--name", "kept", "small"], &target);
    assert!(!target.join("new").exists());
    fs::remove_file(target.join("dir/file")).unwrap();
    mount.unmount();
    assert_eq!(names(), 1);
    let mount = lamina.mount(&["--name", "kept", "small"], &target);
    assert!(!target.join("dir/file").exists());
    mount.unmount();

    // Without a name it gets one, another each time.
    lamina.mount(&["small"], &target).unmount();
    lamina.mount(&["small"], &target).unmount();
    assert_eq!(names(), 3);
}

#[test]
fn what_is_mounted_cannot_be_removed_from_the_store() {
    needs_root!();
    let sandbox = Sandbox::new("pinned");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let layers = fs::read_dir(lamina.store().join("layers")).unwrap();
    let layer = layers
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .next()
        .unwrap();

    let message = lamina.fails(1, ["layer", "rm", &layer]);
    assert!(
        message.contains("small"),
        "the image that uses it is not named: {message}"
    );
    let mount = lamina.mount(&["--read-only", "small"], &sandbox.join("mnt"));
    lamina.fails(1, ["layer", "rm", &layer]);
    assert_eq!(
        fs::read_to_string(mount.path().join("dir/file")).unwrap(),
        "from the image"
    );
    mount.unmount();
}

#[test]
fn a_foreground_mount_ends_on_a_signal_and_keeps_its_changes() {
    needs_root!();
    let sandbox = Sandbox::new("signal");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let target = sandbox.dir("mnt");
    let mut command = lamina.command(["mount", "-f", "--name", "kept", "small"]);
    command
        .arg(&target)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let daemon = command.spawn().unwrap();
    wait_until("the mount", || {
        mounted_type(&target).is_some() && target.join("dir").exists()
    });
    fs::write(target.join("new"), "kept").unwrap();
    let pid = rustix::process::Pid::from_raw(daemon.id().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let result = daemon.wait_with_output().unwrap();
    assert!(result.status.success(), "{}", describe(&result));
    assert_eq!(mounted_type(&target), None);
    let mount = lamina.mount(&["--name", "kept", "small"], &target);
    assert_eq!(fs::read_to_string(target.join("new")).unwrap(), "kept");
    mount.unmount();
}

#[test]
fn a_killed_daemon_leaves_an_upper_that_mounts_again() {
    needs_root!();
    let sandbox = Sandbox::new("crash");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let target = sandbox.dir("mnt");
    let mut command = lamina.command(["mount", "-f", "--name", "kept", "small"]);
    command
        .arg(&target)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut daemon = command.spawn().unwrap();
    wait_until("the mount", || {
        mounted_type(&target).is_some() && target.join("dir").exists()
    });
    fs::write(target.join("new"), "kept").unwrap();
    fs::write(target.join("dir/file"), "changed").unwrap();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    assert!(fs::read_dir(&target).is_err(), "the dead mount answers");
    // It is listed as what it is, and unmounted as any other.
    let said = lamina.ok(["ps"]);
    let line = said
        .lines()
        .find(|line| line.contains(target.to_str().unwrap()));
    assert!(line.is_some_and(|line| line.contains("dead")), "{said}");
    lamina.ok([OsStr::new("umount"), target.as_os_str()]);
    assert!(!listed(&lamina, &target));
    let mount = lamina.mount(&["--name", "kept", "small"], &target);
    assert_eq!(fs::read_to_string(target.join("new")).unwrap(), "kept");
    assert_eq!(
        fs::read_to_string(target.join("dir/file")).unwrap(),
        "changed"
    );
    mount.unmount();
}

/// Without a sync, a new name is not there after a power cut; with one, all of it is.
#[test]
fn a_new_name_outlives_a_power_cut() {
    needs_root!();
    let sandbox = Sandbox::new("power");
    let disk = Disk::new(&sandbox, 256);
    let store = Path::new("store");
    let lamina = Lamina::new(&sandbox).with_store(&disk.path().join(store));
    small_image(&sandbox, &lamina);
    let mount = lamina.mount(&["--name", "kept", "small"], &sandbox.join("mnt"));
    let file = fs::File::create(mount.path().join("new")).unwrap();
    file.sync_all().unwrap();
    drop(file);
    let moment = disk.now();
    let mut rng = Rng::new(1);
    for number in 0..3 {
        let image = sandbox.join(format!("cut-{number}.img"));
        disk.image_at(moment, &mut rng, &image);
        let cut = Mounted::new(&image, &sandbox.join("cut"), "");
        let after = lamina.with_store(&cut.path().join(store));
        assert_eq!(after.ok(["diff", "kept"]), "A /new\n");
        cut.unmount();
    }
    mount.unmount();
}

#[test]
fn changes_of_which_nobody_knows_what_they_belong_on_can_be_thrown_away() {
    needs_root!();
    let sandbox = Sandbox::new("damaged");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    lamina
        .mount(&["--name", "kept", "small"], &sandbox.join("mnt"))
        .unmount();
    fs::write(lamina.store().join("mounts/kept/mount.json"), "").unwrap();
    let message = lamina.fails(1, ["gc"]);
    assert!(message.contains("lamina rm kept"), "{message}");
    assert_eq!(the_mount(&lamina, &sandbox)["state"], "damaged");
    let said = lamina.ok(["ps", "--all"]);
    assert!(said.contains("damaged: lamina rm it"), "{said}");
    lamina.ok(["rm", "kept"]);
    assert!(mounts(&lamina, &sandbox).is_empty());
    lamina.ok(["gc"]);
}

#[test]
fn what_is_thrown_away_goes_in_one_step() {
    needs_root!();
    let sandbox = Sandbox::new("thrown");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let target = sandbox.dir("mnt");
    let all = lamina.store().join("mounts");
    let mount = lamina.mount(&["--name", "kept", "small"], &target);
    fs::write(target.join("new"), "").unwrap();
    mount.unmount();
    // It ends half way.
    let chattr = |flag: &str, path: &Path| {
        run(Command::new("chattr").arg(flag).arg(path));
    };
    chattr("+i", &all.join("kept/upper/new"));
    lamina.fails(1, ["rm", "kept"]);
    assert_eq!(fs::read_dir(&all).unwrap().count(), 0);
    let staging = lamina.store().join("staging");
    let left = run(Command::new("find").arg(&staging).args(["-name", "new"]));
    chattr("-i", Path::new(left.trim()));
    lamina.ok(["gc"]);
    assert_eq!(fs::read_dir(&staging).unwrap().count(), 0);

    // Nothing of a directory that is not complete is mounted.
    fs::create_dir_all(all.join("kept/upper/half")).unwrap();
    let mount = lamina.mount(&["--name", "kept", "small"], &target);
    assert!(!target.join("half").exists());
    mount.unmount();
}

#[test]
fn of_two_who_want_a_new_name_one_gets_it() {
    needs_root!();
    let sandbox = Sandbox::new("both");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let targets = [sandbox.dir("left"), sandbox.dir("right")];
    // Somebody has taken it and is not ready yet.
    let dir = lamina.store().join("mounts/new");
    fs::create_dir_all(dir.join("upper/live")).unwrap();
    let lock = fs::File::open(&dir).unwrap();
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    let refused = words(&["mount", "--name", "new", "small"], &targets[0]);
    let message = lamina.fails(1, refused);
    assert!(message.contains("in use"), "{message}");
    assert!(dir.join("upper/live").exists());
    drop(lock);
    for _ in 0..10 {
        let start = |target: &PathBuf| {
            let mut command = lamina.command(["mount", "--name", "new", "small"]);
            command.arg(target).stderr(Stdio::piped());
            command.spawn().unwrap()
        };
        let both = targets.each_ref().map(start);
        let results = both.map(|child| child.wait_with_output().unwrap());
        let succeeded = results.each_ref().map(|result| result.status.success());
        assert!(succeeded[0] != succeeded[1], "{results:?}");
        let (winner, loser) = if succeeded[0] { (0, 1) } else { (1, 0) };
        let message = describe(&results[loser]);
        assert!(message.contains("in use"), "{message}");
        fs::write(targets[winner].join("file"), "").unwrap();
        lamina.ok([OsStr::new("umount"), targets[winner].as_os_str()]);
        assert_eq!(lamina.ok(["diff", "new"]), "A /file\n");
        lamina.ok(["rm", "new"]);
    }
}

#[test]
fn umount_waits_for_what_a_killed_daemon_still_has() {
    needs_root!();
    let sandbox = Sandbox::new("killed-rm");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let target = sandbox.dir("mnt");
    let mount = lamina.mount(&["--rm", "small"], &target);
    let upper = lamina.store().join("mounts/small-1/upper");
    rustix::process::kill_process(
        pid_of(&the_mount(&lamina, &sandbox)),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    wait_until("the daemon to die", || {
        the_mount(&lamina, &sandbox)["state"] == "dead"
    });
    // As the kernel, when it is slow.
    let held = fs::File::open(upper).unwrap();
    wait_until("the lock", || {
        rustix::fs::flock(&held, FlockOperation::NonBlockingLockExclusive).is_ok()
    });
    let slow = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(500));
        drop(held);
    });
    lamina.ok([OsStr::new("umount"), target.as_os_str()]);
    slow.join().unwrap();
    assert!(mounts(&lamina, &sandbox).is_empty());
    drop(mount);
}

#[test]
fn a_name_that_is_kept_here_is_not_that_of_another_stores_mount() {
    needs_root!();
    let sandbox = Sandbox::new("stores");
    let lamina = Lamina::new(&sandbox);
    let other = lamina.with_store(&sandbox.join("other"));
    for lamina in [&lamina, &other] {
        small_image(&sandbox, lamina);
    }
    lamina
        .mount(&["--name", "same", "small"], &sandbox.join("mnt"))
        .unmount();
    let mount = other.mount(&["--name", "same", "small"], &sandbox.join("mnt"));
    for command in ["umount", "stats"] {
        let message = lamina.fails(1, [command, "same"]);
        assert!(message.contains("are not mounted"), "{message}");
    }
    mount.unmount();
}

#[test]
fn mount_options_reach_the_kernel() {
    needs_root!();
    let sandbox = Sandbox::new("options");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let mount = lamina.mount(
        &["-o", "noexec,nosuid", "--rm", "small"],
        &sandbox.join("mnt"),
    );
    let script = mount.path().join("script");
    fs::write(&script, "#!/bin/sh\n").unwrap();
    run(Command::new("chmod").arg("755").arg(&script));
    let refused = Command::new(&script).status().unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
    mount.unmount();
}

#[test]
fn roots_mount_is_open_to_others_within_their_rights() {
    needs_root!();
    let sandbox = Sandbox::new("others");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let mount = lamina.mount(&["--rm", "small"], &sandbox.join("mnt"));
    fs::write(mount.path().join("secret"), "root's").unwrap();
    run(Command::new("chmod")
        .arg("600")
        .arg(mount.path().join("secret")));
    let as_nobody = |path: &str| {
        use std::os::unix::process::CommandExt;
        output(
            Command::new("cat")
                .arg(mount.path().join(path))
                .uid(NOBODY)
                .gid(NOBODY),
        )
    };
    assert_eq!(as_nobody("dir/file").stdout, b"from the image");
    assert!(
        !as_nobody("secret").status.success(),
        "nobody reads root's file"
    );
    mount.unmount();
}

#[test]
fn times_as_far_as_they_go_do_no_harm() {
    needs_root!();
    let sandbox = Sandbox::new("far-times");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let mount = lamina.mount(&["small"], &sandbox.join("mnt"));
    let there = fs::File::open(mount.path().join("dir/file")).unwrap();
    let here = fs::File::open(sandbox.file("plain", "x")).unwrap();
    for tv_sec in [i64::MIN, i64::MIN + 1, -1, 0, 1 << 34, i64::MAX] {
        for tv_nsec in [0, 5, 999_999_999] {
            let time = Timespec { tv_sec, tv_nsec };
            let times = Timestamps {
                last_access: time,
                last_modification: time,
            };
            let set = |file: &fs::File| {
                rustix::fs::futimens(file, &times)?;
                let stat = rustix::fs::fstat(file)?;
                Ok::<_, rustix::io::Errno>((stat.st_mtime, stat.st_mtime_nsec))
            };
            assert_eq!(set(&there), set(&here), "{tv_sec} s, {tv_nsec} ns");
        }
    }
    drop(there);
    mount.unmount();
}

/// Whether root lets FUSE use `io_uring`; set back when dropped.
struct Enabled(String);

impl Enabled {
    const SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";

    fn set(enabled: bool) -> Option<Self> {
        let before = fs::read_to_string(Self::SWITCH).ok()?;
        fs::write(Self::SWITCH, if enabled { "Y" } else { "N" }).ok()?;
        Some(Self(before))
    }
}

impl Drop for Enabled {
    fn drop(&mut self) {
        fs::write(Self::SWITCH, &self.0).unwrap();
    }
}

#[test]
fn requests_come_by_io_uring_where_that_is_enabled() {
    needs_root!();
    let Some(_disabled) = Enabled::set(false) else {
        return eprintln!("skipped: this kernel has no FUSE over io_uring");
    };
    let sandbox = Sandbox::new("transport");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let target = sandbox.dir("mnt");
    let threads = |mount: &Path| {
        let daemon = pid_of(&the_mount(&lamina, &sandbox)).as_raw_pid();
        assert!(mount.join("dir/file").exists());
        let names = fs::read_dir(format!("/proc/{daemon}/task")).unwrap();
        let names =
            names.map(|task| fs::read_to_string(task.unwrap().path().join("comm")).unwrap());
        names.filter(|name| name.starts_with("fuse-0.")).count()
    };

    let words = ["mount", "--transport", "io-uring", "small"];
    let words = words.iter().map(OsStr::new).chain([target.as_os_str()]);
    let message = lamina.fails(1, words);
    assert!(message.contains("enable_uring"), "{message}");
    assert_eq!(mounted_type(&target), None);
    let mount = lamina.mount(&["--rm", "--transport", "auto", "small"], &target);
    assert_eq!(threads(&target), 0, "it is disabled");
    mount.unmount();

    let _enabled = Enabled::set(true);
    for (transport, by_ring) in [("auto", true), ("io-uring", true), ("device", false)] {
        let mount = lamina.mount(&["--rm", "--transport", transport, "small"], &target);
        assert_eq!(threads(&target) > 0, by_ring, "{transport}");
        // Larger than a request, and as many names as do not fit into one.
        let data: Vec<u8> = (0..3_000_000_u32).map(|number| number as u8).collect();
        fs::write(target.join("large"), &data).unwrap();
        for number in 0..3000 {
            fs::write(target.join(format!("dir/{number:0200}")), b"").unwrap();
        }
        std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
        assert!(fs::read(target.join("large")).unwrap() == data);
        assert_eq!(fs::read_dir(target.join("dir")).unwrap().count(), 3001);
        mount.unmount();
    }
}
