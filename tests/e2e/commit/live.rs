//! `lamina commit` of a mount in which programs go on writing: the image is of one moment.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::commit;
use crate::support::lamina::{Lamina, Mount, wait_until};
use crate::support::layers::noise;
use crate::support::listing::{small_image, the_mount};
use crate::support::needs_root;
use crate::support::sandbox::Sandbox;

/// Programs that write until the end, and how often they did.
struct Writers<'a> {
    root: &'a Path,
    end: &'a AtomicBool,
    rounds: &'a AtomicU64,
}

impl Writers<'_> {
    fn until_the_end(&self, mut act: impl FnMut(u64)) {
        let mut number = 1;
        while !self.end.load(Ordering::Relaxed) {
            act(number);
            number += 1;
            self.rounds.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn open(&self, name: &str) -> File {
        let mut options = OpenOptions::new();
        options.create(true).write(true).truncate(false);
        options.open(self.root.join(name)).unwrap()
    }

    /// Two files, of which the second never is ahead of the first.
    fn in_step(&self) {
        let (first, second) = (self.open("first"), self.open("second"));
        self.until_the_end(|number| {
            for file in [&first, &second] {
                file.write_all_at(&number.to_le_bytes(), 0).unwrap();
            }
        });
    }

    /// A file that is written in one go, all of it the same byte.
    fn whole(&self) {
        let file = self.open("whole");
        self.until_the_end(|number| file.write_all_at(&vec![number as u8; 32 << 10], 0).unwrap());
    }

    /// A file that grows, line by line.
    fn log(&self) {
        let mut file = self.open("log");
        self.until_the_end(|number| {
            let line = format!("line {number}\n");
            file.write_all(line.as_bytes()).unwrap();
        });
    }

    /// A file that is always in exactly one of two directories.
    fn moving(&self) {
        for dir in ["left", "right"] {
            fs::create_dir_all(self.root.join(dir)).unwrap();
        }
        let at = |dir: &str| self.root.join(dir).join("moving");
        fs::write(at("left"), "moves").unwrap();
        self.until_the_end(|number| {
            let (from, to) = if number % 2 == 1 {
                ("left", "right")
            } else {
                ("right", "left")
            };
            fs::rename(at(from), at(to)).unwrap();
        });
    }

    /// A file that is replaced as programs do it: written beside, renamed over.
    fn replaced(&self) {
        let (new, old) = (self.root.join("saved.new"), self.root.join("saved"));
        self.until_the_end(|number| {
            fs::write(&new, number.to_string().repeat(500)).unwrap();
            fs::rename(&new, &old).unwrap();
        });
    }
}

fn number_in(root: &Path, name: &str) -> u64 {
    let bytes = fs::read(root.join(name)).unwrap();
    bytes.try_into().map_or(0, u64::from_le_bytes)
}

/// Whether a tree is one that the writers could have seen between two of their steps.
fn assert_one_moment(root: &Path) {
    let (first, second) = (number_in(root, "first"), number_in(root, "second"));
    assert!(
        first == second || first == second + 1,
        "the first file is at {first}, the second at {second}"
    );
    let whole = fs::read(root.join("whole")).unwrap();
    assert!(
        whole.windows(2).all(|pair| pair[0] == pair[1]),
        "a file is of two moments"
    );
    let log = fs::read_to_string(root.join("log")).unwrap();
    for (at, line) in log.lines().enumerate() {
        assert_eq!(line, format!("line {}", at + 1));
    }
    assert!(log.ends_with('\n') || log.is_empty(), "half a line");
    let there = ["left", "right"].map(|dir| root.join(dir).join("moving").exists());
    assert_ne!(
        there[0], there[1],
        "a file that moves is in both places, or in none"
    );
    if let Ok(saved) = fs::read_to_string(root.join("saved")) {
        let digits = saved.len() / 500;
        assert_eq!(saved, saved[..digits].repeat(500));
    }
}

fn commits_beside_writers(lamina: &Lamina, sandbox: &Sandbox, mount: &Mount) {
    let end = AtomicBool::new(false);
    let rounds: [AtomicU64; 5] = Default::default();
    let writers = |at: usize| Writers {
        root: mount.path(),
        end: &end,
        rounds: &rounds[at],
    };
    let all_went_on = |than: &[u64]| {
        let mut pairs = rounds.iter().zip(than);
        pairs.all(|(now, than)| now.load(Ordering::Relaxed) > *than)
    };
    let commits = || {
        wait_until("the writers to begin", || all_went_on(&[3; 5]));
        (0..12)
            .map(|number| {
                let before: Vec<_> = rounds.iter().map(|n| n.load(Ordering::Relaxed)).collect();
                let tag = format!("moment{number}");
                let said = commit(lamina, &[mount.path().to_str().unwrap(), "-t", &tag]);
                assert!(said["paused_ms"].as_f64().is_some(), "{said}");
                wait_until("the writers to go on", || all_went_on(&before));
                tag
            })
            .collect::<Vec<_>>()
    };
    let tags = std::thread::scope(|scope| {
        scope.spawn(|| writers(0).in_step());
        scope.spawn(|| writers(1).whole());
        scope.spawn(|| writers(2).log());
        scope.spawn(|| writers(3).moving());
        scope.spawn(|| writers(4).replaced());
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(commits));
        end.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    for tag in tags {
        let image = lamina.mount(&["--read-only", &tag], &sandbox.join("image"));
        assert_one_moment(image.path());
        image.unmount();
    }
}

/// Where changes are few they are taken down in a moment.
#[test]
fn a_commit_beside_writers_is_of_one_moment() {
    needs_root!();
    let sandbox = Sandbox::new("moment");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let mount = lamina.mount(&["--io", "cached", "--rm", "small"], &sandbox.join("mnt"));
    commits_beside_writers(&lamina, &sandbox, &mount);
    mount.unmount();
}

/// Where they are more, they are read while writers wait.
#[test]
fn a_commit_of_much_is_of_one_moment() {
    needs_root!();
    let sandbox = Sandbox::new("much");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let mount = lamina.mount(&["--io", "cached", "--rm", "small"], &sandbox.join("mnt"));
    // More than is copied: 257 MiB, most of it the same.
    let mut file = File::create(mount.path().join("large")).unwrap();
    let piece = noise(1, 1 << 20);
    (0..257).for_each(|_| file.write_all(&piece).unwrap());
    drop(file);
    one_commit_of_much(&lamina, &sandbox, &mount);
    mount.unmount();
}

fn one_commit_of_much(lamina: &Lamina, sandbox: &Sandbox, mount: &Mount) {
    let (end, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    let writers = Writers {
        root: mount.path(),
        end: &end,
        rounds: &rounds,
    };
    std::thread::scope(|scope| {
        scope.spawn(|| writers.in_step());
        wait_until("the writer to begin", || rounds.load(Ordering::Relaxed) > 3);
        let said = lamina.output(["commit", mount.path().to_str().unwrap(), "-t", "much"]);
        end.store(true, Ordering::Relaxed);
        assert!(said.status.success(), "{}", crate::support::describe(&said));
    });
    let image = lamina.mount(&["--read-only", "much"], &sandbox.join("image"));
    let (first, second) = (
        number_in(image.path(), "first"),
        number_in(image.path(), "second"),
    );
    assert!(first == second || first == second + 1, "{first} {second}");
    image.unmount();
}

/// In this mode the kernel writes to open files without asking, so only what is asked is of one
/// moment: names, attributes, files that were opened, written and closed.
#[test]
fn names_are_of_one_moment_in_passthrough_mode_too() {
    needs_root!();
    let sandbox = Sandbox::new("moment-passthrough");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let mount = lamina.mount(
        &["--io", "passthrough", "--rm", "small"],
        &sandbox.join("mnt"),
    );
    let (end, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    let writers = Writers {
        root: mount.path(),
        end: &end,
        rounds: &rounds,
    };
    std::thread::scope(|scope| {
        scope.spawn(|| writers.moving());
        wait_until("the writer to begin", || rounds.load(Ordering::Relaxed) > 3);
        let target = mount.path().to_str().unwrap();
        let results: Vec<_> = (0..8)
            .map(|number| lamina.output(["commit", target, "-t", &format!("moment{number}")]))
            .collect();
        end.store(true, Ordering::Relaxed);
        assert!(results.iter().all(|result| result.status.success()));
    });
    for number in 0..8 {
        let tag = format!("moment{number}");
        let image = lamina.mount(&["--read-only", &tag], &sandbox.join("image"));
        let there = ["left", "right"].map(|dir| image.path().join(dir).join("moving").exists());
        assert_ne!(there[0], there[1]);
        image.unmount();
    }
    mount.unmount();
}

/// What was stored to mapped memory is in the image.
#[test]
fn mapped_files_are_written_back_first() {
    needs_root!();
    let sandbox = Sandbox::new("mapped");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let mount = lamina.mount(&["--io", "cached", "--rm", "small"], &sandbox.join("mnt"));
    let path = mount.path().join("mapped");
    fs::write(&path, [b'.'; 8192]).unwrap();
    let script = "import mmap, os, sys
file = os.open(sys.argv[1], os.O_RDWR)
memory = mmap.mmap(file, 8192)
memory[4090:4100] = b'0123456789'
print('stored', flush=True)
sys.stdin.read()";
    let mut child = std::process::Command::new("python3")
        .args(["-c", script])
        .arg(&path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut said)
        .unwrap();
    assert_eq!(said, "stored\n");
    commit(&lamina, &[mount.path().to_str().unwrap(), "-t", "made"]);
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    let image = lamina.mount(&["--read-only", "made"], &sandbox.join("image"));
    assert_eq!(
        &fs::read(image.path().join("mapped")).unwrap()[4088..4102],
        b"..0123456789.."
    );
    image.unmount();
    mount.unmount();
}

/// The socket of a mount, beside its log.
fn socket(lamina: &Lamina, sandbox: &Sandbox) -> PathBuf {
    let log = the_mount(lamina, sandbox)["log"]
        .as_str()
        .unwrap()
        .to_owned();
    Path::new(&log).with_extension("sock")
}

#[test]
fn who_holds_changes_back_and_dies_lets_them_go_on() {
    needs_root!();
    let sandbox = Sandbox::new("dies");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let mount = lamina.mount(&["--rm", "small"], &sandbox.join("mnt"));
    fs::create_dir(mount.path().join("new")).unwrap();
    let socket = socket(&lamina, &sandbox);
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream.write_all(b"pause 600\n").unwrap();
    let mut said = [0; 7];
    stream.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"paused\n");
    let written = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for number in 0..40 {
            let (written, path) = (&written, mount.path().join(format!("new/{number}")));
            scope.spawn(move || {
                fs::write(path, "x").unwrap();
                written.store(true, Ordering::SeqCst);
            });
        }
        // Whoever reads is served; whoever writes is not.
        for _ in 0..20 {
            assert_eq!(
                fs::read(mount.path().join("dir/file")).unwrap(),
                b"from the image"
            );
            assert_eq!(fs::read_dir(mount.path().join("dir")).unwrap().count(), 1);
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(!written.load(Ordering::SeqCst));
        // Another commit waits for its turn.
        let other = [
            "commit",
            "--json",
            mount.path().to_str().unwrap(),
            "-t",
            "other",
        ];
        let mut other = lamina.command(other).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(200));
        assert!(other.try_wait().unwrap().is_none());
        // As the kernel does for a process that is killed.
        drop(stream);
        assert!(other.wait().unwrap().success());
    });
    assert_eq!(fs::read_dir(mount.path().join("new")).unwrap().count(), 40);
    commit(&lamina, &[mount.path().to_str().unwrap(), "-t", "made"]);
    mount.unmount();
    assert!(!socket.exists());
}

#[test]
fn a_killed_commit_leaves_nothing_and_nobody_waiting() {
    needs_root!();
    let sandbox = Sandbox::new("killed-commit");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let mount = lamina.mount(&["--name", "kept", "small"], &sandbox.join("mnt"));
    fs::create_dir(mount.path().join("new")).unwrap();
    for number in 0..300u16 {
        fs::write(
            mount.path().join(format!("new/{number}")),
            noise(number as u8, 40_000),
        )
        .unwrap();
    }
    for delay in [1, 2, 4, 6, 8, 10, 15, 20, 30, 40, 60, 80, 120] {
        let mut command = lamina.command(["commit", "kept", "-t", "made"]);
        let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = quiet.stdin(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        child.kill().unwrap();
        child.wait().unwrap();
        fs::write(mount.path().join("after"), delay.to_string()).unwrap();
    }
    let said = commit(&lamina, &["kept", "-t", "made"]);
    let staged = fs::read_dir(lamina.store().join("staging")).unwrap();
    assert_eq!(staged.count(), 0, "left in the staging area");
    let image = lamina.mount(&["--read-only", "made"], &sandbox.join("image"));
    assert_eq!(fs::read(image.path().join("after")).unwrap(), b"120");
    assert_eq!(fs::read_dir(image.path().join("new")).unwrap().count(), 300);
    image.unmount();
    mount.unmount();
    // As it is when nobody is there.
    let kept = commit(&lamina, &["kept", "-t", "kept"]);
    assert_eq!(said["layer"], kept["layer"]);
}

/// A program may write what a commit says to a file in the very mount that it holds back.
#[test]
fn a_commit_says_nothing_while_it_holds_changes_back() {
    needs_root!();
    let sandbox = Sandbox::new("told");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let mount = lamina.mount(&["--name", "kept", "small"], &sandbox.join("mnt"));
    let socket = UnixListener::bind(mount.path().join("socket")).unwrap();
    let log = mount.path().join("log");
    let mut command = lamina.command(["commit", "kept", "-t", "image"]);
    command
        .stdout(Stdio::null())
        .stderr(File::create(&log).unwrap());
    let mut child = command.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let status = loop {
        match child.try_wait().unwrap() {
            None if Instant::now() > deadline => {
                child.kill().unwrap();
                panic!("the commit waits for itself");
            }
            None => std::thread::sleep(Duration::from_millis(10)),
            Some(status) => break status,
        }
    };
    drop((command, socket));
    assert!(status.success());
    let said = fs::read_to_string(&log).unwrap();
    assert_eq!(said.matches("socket: sockets are not").count(), 1, "{said}");
    mount.unmount();
}
