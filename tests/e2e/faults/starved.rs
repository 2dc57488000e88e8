//! A daemon that gets too few descriptors or too little memory.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

use rustix::process::Pid;

use super::{Small, append};
use crate::support::layers::noise;
use crate::support::listing::descriptors;
use crate::support::{needs_root, run};

/// Many directories and files of a lower.
fn many(small: &Small) -> Vec<String> {
    let mut names = Vec::new();
    for dir in 0..60 {
        let dir = format!("dir{dir}/sub");
        fs::create_dir_all(small.layers.lowers[0].join(&dir)).unwrap();
        for file in 0..5 {
            let name = format!("{dir}/file{file}");
            small.lower(&name, name.as_bytes());
            names.push(name);
        }
    }
    names
}

#[test]
fn a_daemon_with_few_descriptors_makes_do() {
    needs_root!();
    let mut small = Small::new("few", 64, &["mkfs.ext4", "-q", "-F"], "");
    let names = many(&small);
    small.lamina = small.lamina.under(&["prlimit", "--nofile=64:64"]);
    let mount = small.mount();
    let root = mount.path();
    let opened: Vec<_> = names
        .iter()
        .map(|name| File::open(root.join(name)).unwrap())
        .collect();
    for name in &names {
        assert_eq!(fs::read(root.join(name)).unwrap(), name.as_bytes());
        append(&root.join(name), b" more").unwrap();
    }
    for name in &names {
        assert_eq!(
            fs::read_to_string(root.join(name)).unwrap(),
            format!("{name} more")
        );
    }
    drop(opened);
    small.daemon();
    mount.unmount();
}

#[test]
fn a_daemon_without_descriptors_says_so_and_recovers() {
    needs_root!();
    let small = Small::new("none", 64, &["mkfs.ext4", "-q", "-F"], "");
    let names = many(&small);
    let mount = small.mount();
    let root = mount.path();
    let daemon = small.daemon();
    let limit = |count: usize| {
        run(Command::new("prlimit")
            .args(["--pid", &daemon.as_raw_nonzero().to_string()])
            .arg(format!("--nofile={count}:")));
    };
    let (before, after) = names.split_at(names.len() / 2);
    for name in before {
        append(&root.join(name), b" more").unwrap();
    }
    let allowed = [libc::EMFILE, libc::ENFILE];
    let mut failed = 0;
    limit(descriptors(daemon).len().saturating_sub(4));
    for name in names.iter().rev() {
        let path = root.join(name);
        for result in [
            append(&path, b""),
            fs::read(&path).map(drop),
            append(&path, b""),
        ] {
            if let Err(error) = result {
                failed += 1;
                assert!(allowed.contains(&error.raw_os_error().unwrap()), "{error}");
            }
        }
        if let Err(error) = fs::write(path.with_extension("new"), "new") {
            failed += 1;
            assert!(allowed.contains(&error.raw_os_error().unwrap()), "{error}");
        }
    }
    assert!(failed > 0, "it needs no descriptors?");
    limit(4096);
    for name in before {
        assert_eq!(
            fs::read_to_string(root.join(name)).unwrap(),
            format!("{name} more")
        );
    }
    for name in after {
        append(&root.join(name), b" more").unwrap();
        assert_eq!(
            fs::read_to_string(root.join(name)).unwrap(),
            format!("{name} more")
        );
    }
    small.daemon();
    mount.unmount();
}

/// A memory cgroup (version 1) of the test's own.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(limit: &str) -> Option<Self> {
        let dir = format!("/sys/fs/cgroup/memory/lamina-test-{}", std::process::id());
        let dir = PathBuf::from(dir);
        fs::create_dir(&dir).ok()?;
        let cgroup = Self(dir);
        fs::write(cgroup.0.join("memory.limit_in_bytes"), limit).ok()?;
        Some(cgroup)
    }

    fn take(&self, process: Pid) {
        let raw = process.as_raw_nonzero().to_string();
        fs::write(self.0.join("cgroup.procs"), raw).unwrap();
    }

    fn value(&self, file: &str, key: &str) -> u64 {
        let text = fs::read_to_string(self.0.join(file)).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap().trim().parse().unwrap()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Empty when the daemon has ended, which a failed test does not wait for.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        eprintln!("left behind: {}", self.0.display());
    }
}

#[test]
fn a_daemon_with_little_memory_goes_on() {
    needs_root!();
    let Some(cgroup) = Cgroup::new("64M") else {
        eprintln!("skipped: no memory cgroups (version 1) here");
        return;
    };
    let small = Small::new("memory", 1500, &["mkfs.ext4", "-q", "-F"], "");
    let big = noise(6, 200_000_000);
    small.lower("big", &big);
    let names = small.sandbox.dir("lower/names");
    for at in 0..30_000 {
        File::create(names.join(format!("a-name-of-some-length-{at}"))).unwrap();
    }
    let mount = small.mount();
    let root = mount.path();
    cgroup.take(small.daemon());
    append(&root.join("big"), b"more").unwrap();
    fs::write(root.join("new"), &big).unwrap();
    assert_eq!(fs::read_dir(root.join("names")).unwrap().count(), 30_000);
    run(Command::new("ls").arg("-l").arg(root.join("names")));
    let mut open = Vec::new();
    for at in 0..500 {
        let path = root.join(format!("names/a-name-of-some-length-{at}"));
        append(&path, b"x").unwrap();
        open.push(File::open(&path).unwrap());
        fs::remove_file(&path).unwrap();
    }
    assert!(fs::read(root.join("new")).unwrap() == big, "new is damaged");
    let now = fs::read(root.join("big")).unwrap();
    assert!(
        now.strip_prefix(&big[..]) == Some(b"more"),
        "big is damaged"
    );
    assert!(
        cgroup.value("memory.failcnt", "") > 0,
        "the limit was never met"
    );
    assert_eq!(cgroup.value("memory.oom_control", "oom_kill "), 0);
    small.daemon();
    drop(open);
    mount.unmount();
}
