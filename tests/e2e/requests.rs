//! What the kernel asks the daemon for: the cheapest request is the one that is never sent. The
//! counts are exact, so that one that comes back is noticed.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::{Signal, kill_process};

use crate::support::lamina::{Lamina, Mount, wait_until};
use crate::support::layers::archive_of;
use crate::support::listing::{pid_of, the_mount, words};
use crate::support::sandbox::Sandbox;
use crate::support::{needs_root, run};

type Counts = BTreeMap<String, u64>;

/// A mount of an image, whose requests are counted.
struct Counted {
    lamina: Lamina,
    mount: Mount,
    passthrough: bool,
    sandbox: Sandbox,
}

impl Counted {
    fn new(io: &str) -> Self {
        let sandbox = Sandbox::new("requests");
        let lower = sandbox.dir("lower");
        for dir in 0..4 {
            let dir = lower.join(format!("d{dir}"));
            fs::create_dir(&dir).unwrap();
            for file in 0..50 {
                fs::write(dir.join(format!("f{file}")), format!("{file}")).unwrap();
            }
        }
        // Too large for the index, so that there is something to open.
        fs::write(lower.join("large"), vec![7; 300_000]).unwrap();
        fs::write(lower.join("program"), "#!/bin/sh\nexit 0\n").unwrap();
        fs::set_permissions(lower.join("program"), Permissions::from_mode(0o755)).unwrap();
        symlink("large", lower.join("link")).unwrap();
        let lamina = Lamina::new(&sandbox);
        let archive = sandbox.join("layer.tar");
        archive_of(&lower, &archive);
        lamina.build("counted", &[archive]);
        let options = ["--io", io, "--rm", "counted"];
        let mount = lamina.mount(&options, &sandbox.join("mnt"));
        let counted = Self {
            lamina,
            mount,
            passthrough: io == "passthrough",
            sandbox,
        };
        // What the kernel asks once to hear that it need not: not to be counted below.
        assert_eq!(fs::read_dir(counted.path("d0")).unwrap().count(), 50);
        drop(fs::read(counted.path("d0/f0")).unwrap());
        fs::write(counted.path("first"), "first").unwrap();
        assert!(stat_all(&counted.path("d0")) > 0);
        // Making a file made these unknown.
        drop((
            fs::metadata(counted.path("")),
            fs::metadata(counted.path("first")),
        ));
        counted
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.mount.path().join(name)
    }

    /// A request is counted when it was answered, which may be a moment after whoever asked goes on.
    fn counts(&self) -> Counts {
        let mut last = Counts::new();
        loop {
            let stats = words(&["stats", "--json"], self.mount.path());
            let stats: serde_json::Value = serde_json::from_str(&self.lamina.ok(stats)).unwrap();
            let requests = stats["requests"].as_object().unwrap();
            let count = |of: &serde_json::Value| of["count"].as_u64().unwrap();
            let now = requests.iter().map(|(kind, of)| (kind.clone(), count(of)));
            let now: Counts = now.collect();
            if now == last {
                return now;
            }
            last = now;
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What is asked while `act` is done, but for FORGET, which comes when it likes.
    fn during(&self, act: impl FnOnce()) -> Counts {
        let before = self.counts();
        act();
        let mut counts = self.counts();
        counts.retain(|kind, count| {
            *count -= before.get(kind).copied().unwrap_or(0);
            *count > 0 && !kind.ends_with("FORGET")
        });
        counts
    }

    /// Demands that exactly these requests are sent.
    #[track_caller]
    fn asks(
        &self,
        what: &str,
        cached: &[(&str, u64)],
        passthrough: &[(&str, u64)],
        act: impl FnOnce(),
    ) {
        let expected = if self.passthrough {
            passthrough
        } else {
            cached
        };
        let expected: Counts = expected
            .iter()
            .map(|(kind, count)| ((*kind).to_owned(), *count))
            .collect();
        assert_eq!(self.during(act), expected, "{what}");
    }

    #[track_caller]
    fn asks_alike(&self, what: &str, requests: &[(&str, u64)], act: impl FnOnce()) {
        self.asks(what, requests, requests, act);
    }

    #[track_caller]
    fn asks_nothing(&self, what: &str, act: impl FnOnce()) {
        self.asks_alike(what, &[], act);
    }
}

fn stat_all(dir: &Path) -> usize {
    let output = run(Command::new("find").arg(dir).args(["-printf", "%s\n"]));
    output.lines().count()
}

/// Reads a file of `size` bytes without a `statx`, which the standard library does to learn the size,
/// and which asks for the time of birth: no other reply has that.
fn read(path: &Path, size: usize) {
    let mut data = vec![0; size];
    File::open(path).unwrap().read_exact(&mut data).unwrap();
}

fn mode_of(path: &Path) -> u32 {
    rustix::fs::stat(path).unwrap().st_mode & 0o7777
}

const OPENED: &[(&str, u64)] = &[("OPEN", 1), ("RELEASE", 1)];

fn reading(counted: &Counted) {
    let path = |name: &str| counted.path(name);
    let root = counted.mount.path();
    // find wants to know what filesystem it is on. A directory is listed by two requests; the second
    // says that there is no more. d0 is known already.
    let walk = [("READDIRPLUS", 2 * 4), ("STATFS", 1)];
    counted.asks_alike("a cold walk with attributes", &walk, || {
        assert_eq!(stat_all(root), 1 + 4 + 200 + 4);
    });
    // Listing a directory makes its access time unknown.
    let warm = [("GETATTR", 4), ("STATFS", 1)];
    counted.asks_alike("a warm walk", &warm, || assert!(stat_all(root) > 0));
    let warm = [("STATFS", 1)];
    counted.asks_alike("another", &warm, || assert!(stat_all(root) > 0));
    counted.asks("a cold read", &[("READ", 3)], OPENED, || {
        read(&path("large"), 300_000);
    });
    counted.asks("a warm read", &[], OPENED, || read(&path("large"), 300_000));
    let readlink = || assert!(fs::read_link(path("link")).is_ok());
    counted.asks_alike("a link is read once", &[("READLINK", 1)], readlink);
    counted.asks_nothing("and then known", readlink);
    let look = || assert!(!path("none").exists());
    counted.asks_alike(
        "a name that is not there is looked up once",
        &[("LOOKUP", 1)],
        look,
    );
    counted.asks_nothing("and then known not to be there", look);
}

fn running(counted: &Counted) {
    let program = counted.path("program");
    let run = || assert!(Command::new(&program).status().unwrap().success());
    run();
    // The kernel opens the program, and the shell the script.
    let opened = [("OPEN", 2), ("RELEASE", 2)];
    counted.asks("a program that ran before", &[], &opened, run);
}

/// Where a directory changed, its attributes are unknown until somebody needs them: these are the
/// GETATTR. Names that are to be made are looked up even if they are known not to be there.
fn writing(counted: &Counted) {
    let path = |name: &str| counted.path(name);
    let made = [("LOOKUP", 1), ("MKDIR", 1)];
    counted.asks_alike("a directory", &made, || {
        fs::create_dir(path("new")).unwrap();
    });
    let mut file = None;
    let cached = [("GETATTR", 1), ("LOOKUP", 1), ("MKNOD", 1)];
    let passthrough = [("CREATE", 1), ("GETATTR", 1), ("LOOKUP", 1)];
    counted.asks("a file", &cached, &passthrough, || {
        file = Some(File::create(path("new/file")).unwrap());
    });
    let mut file = file.unwrap();
    let mut write = |data: &[u8]| file.write_all(data).unwrap();
    // Whether it has capabilities that a write takes away.
    let first = [("GETXATTR", 1), ("WRITE", 1)];
    counted.asks("its first write", &first, &first[..1], || write(b"some"));
    counted.asks("its second", &[("WRITE", 1)], &[], || write(b"more"));
    // They do not begin at a page.
    counted.asks("eight megabytes", &[("WRITE", 9)], &[], || {
        write(&vec![1; 8 << 20]);
    });
    counted.asks("its end", &[], &[("RELEASE", 1)], || drop(file));
    // Pages that were not written as a whole: the first and the last.
    let cached = [("GETATTR", 1), ("READ", 2)];
    let passthrough = [("GETATTR", 1), ("OPEN", 1), ("RELEASE", 1)];
    counted.asks("reading what was written", &cached, &passthrough, || {
        read(&path("new/file"), 8 + (8 << 20));
    });
    counted.asks_alike("its mode", &[("SETATTR", 1)], || {
        fs::set_permissions(path("new/file"), Permissions::from_mode(0o600)).unwrap();
    });
    counted.asks_alike("a lower file's mode", &[("SETATTR", 1)], || {
        fs::set_permissions(path("d1/f1"), Permissions::from_mode(0o600)).unwrap();
    });
    counted.asks_nothing("which is known then", || {
        assert_eq!(mode_of(&path("d1/f1")), 0o600);
    });
    let renamed = [("LOOKUP", 1), ("RENAME", 1)];
    counted.asks_alike("a new name", &renamed, || {
        fs::rename(path("new/file"), path("new/other")).unwrap();
    });
    counted.asks_alike("a lower directory's new name", &renamed, || {
        fs::rename(path("d2"), path("moved")).unwrap();
    });
    let linked = [("GETATTR", 2), ("LINK", 1), ("LOOKUP", 1)];
    counted.asks_alike("a link", &linked, || {
        fs::hard_link(path("new/other"), path("new/link")).unwrap();
    });
    let removed = [("GETATTR", 1), ("UNLINK", 1)];
    counted.asks_alike("no name", &removed, || {
        fs::remove_file(path("new/link")).unwrap();
    });
    changing_lower_files(counted);
    let symlink_made = [("GETATTR", 1), ("LOOKUP", 1), ("SYMLINK", 1)];
    counted.asks_alike("a symbolic link", &symlink_made, || {
        symlink("target", path("new/symlink")).unwrap();
    });
    fs::create_dir(path("new/empty")).unwrap();
    let removed = [("GETATTR", 1), ("RMDIR", 1)];
    counted.asks_alike("an empty directory's end", &removed, || {
        fs::remove_dir(path("new/empty")).unwrap();
    });
    // Whatever was done, the kernel heard once that it need not ask.
    let counts = counted.counts();
    let never: &[&str] = if counted.passthrough {
        &["ACCESS", "FLUSH", "OPENDIR", "RELEASEDIR"]
    } else {
        &[
            "ACCESS",
            "CREATE",
            "FLUSH",
            "OPEN",
            "OPENDIR",
            "RELEASE",
            "RELEASEDIR",
        ]
    };
    for kind in never {
        assert!(
            counts.get(*kind).is_none_or(|count| *count <= 1),
            "{kind}: {counts:?}"
        );
    }
}

fn changing_lower_files(counted: &Counted) {
    let path = |name: &str| counted.path(name);
    let append = |name: &str| {
        let mut file = OpenOptions::new().append(true).open(path(name)).unwrap();
        file.write_all(b"more").unwrap();
    };
    let cached = [("GETXATTR", 1), ("WRITE", 1)];
    let passthrough = [("GETXATTR", 1), ("OPEN", 1), ("RELEASE", 1)];
    counted.asks("appending to a lower file", &cached, &passthrough, || {
        append("d1/f2");
    });
    counted.asks("and once more", &cached[1..], OPENED, || append("d1/f2"));
    // Whether it has capabilities that go with its contents.
    let cached = [("GETXATTR", 1), ("SETATTR", 1)];
    let passthrough = [("GETXATTR", 1), ("OPEN", 1), ("RELEASE", 1), ("SETATTR", 1)];
    counted.asks("shortening one", &cached, &passthrough, || {
        let file = OpenOptions::new().write(true).open(path("d1/f20")).unwrap();
        file.set_len(1).unwrap();
    });
    let passthrough = [("GETXATTR", 1), ("OPEN", 1), ("RELEASE", 1)];
    counted.asks("emptying one", &cached, &passthrough, || {
        let mut options = OpenOptions::new();
        drop(
            options
                .write(true)
                .truncate(true)
                .open(path("d1/f4"))
                .unwrap(),
        );
    });
}

#[test]
fn cached() {
    needs_root!();
    let counted = Counted::new("cached");
    reading(&counted);
    running(&counted);
    writing(&counted);
}

#[test]
fn passthrough() {
    needs_root!();
    let counted = Counted::new("passthrough");
    reading(&counted);
    running(&counted);
    writing(&counted);
}

/// What `lamina stats` says, in its three forms, to who may know.
#[test]
fn statistics_are_told() {
    needs_root!();
    let counted = Counted::new("cached");
    read(&counted.path("large"), 300_000);
    // The attributes alone, then the contents too.
    fs::set_permissions(counted.path("large"), Permissions::from_mode(0o600)).unwrap();
    let table = counted.lamina.ok(words(&["stats"], counted.mount.path()));
    assert!(table.contains("1 copy-ups of 0 B"), "{table}");
    OpenOptions::new()
        .append(true)
        .open(counted.path("large"))
        .unwrap()
        .write_all(b"x")
        .unwrap();
    let lamina = &counted.lamina;
    let root = counted.mount.path();
    let counts = counted.counts();

    let table = lamina.ok(words(&["stats"], root));
    let row = table
        .lines()
        .find(|line| line.starts_with("MKNOD "))
        .unwrap();
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert_eq!((cells.len(), cells[1], cells[2]), (8, "1", "0"), "{table}");
    assert!(table.contains("1 copy-ups of 300 kB"), "{table}");

    let text = lamina.ok(words(&["stats", "--prometheus"], root));
    let value = |metric: &str, kind: &str, more: &str| {
        let start = format!(
            "{metric}{{mount=\"{}\",kind=\"{kind}\"{more}}} ",
            root.display()
        );
        let line = text.lines().find_map(|line| line.strip_prefix(&start));
        line.unwrap_or_else(|| panic!("no {start} in {text}"))
            .to_owned()
    };
    for (kind, count) in &counts {
        let count = count.to_string();
        assert_eq!(value("lamina_request_seconds_count", kind, ""), count);
        assert_eq!(
            value("lamina_request_seconds_bucket", kind, ",le=\"+Inf\""),
            count
        );
    }
    assert_eq!(value("lamina_request_errors_total", "OPENDIR", ""), "1");
    assert!(text.contains("# TYPE lamina_request_seconds histogram\n"));
    let copied = format!(
        "lamina_copy_up_bytes_total{{mount=\"{}\"}} 300000",
        root.display()
    );
    assert!(text.contains(&copied), "{text}");
    // Each line is a comment or a sample.
    let samples = text.lines().filter(|line| !line.starts_with("# TYPE "));
    for line in samples {
        let (metric, value) = line.rsplit_once(' ').unwrap();
        assert!(
            metric.starts_with("lamina_") && value.parse::<f64>().is_ok(),
            "{line}"
        );
    }

    let message = lamina.fails(1, ["stats", "/nowhere"]);
    assert!(message.contains("/nowhere"), "{message}");
    lamina.fails(2, words(&["stats", "--json", "--prometheus"], root));
    kill_process(pid_of(&the_mount(lamina, &counted.sandbox)), Signal::KILL).unwrap();
    wait_until("the daemon to die", || {
        the_mount(lamina, &counted.sandbox)["state"] == "dead"
    });
    let message = lamina.fails(1, words(&["stats"], root));
    assert!(message.contains("dead"), "{message}");
    lamina.ok(words(&["umount"], root));
}
