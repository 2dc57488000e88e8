//! Other people's test suites on a Lamina mount: pjdfstest for what each system call does and
//! refuses, fsx for the contents of a file under every kind of write.
//!
//! `scripts/setup test` puts both into `target/tools/bin`. `LAMINA_FSX_OPERATIONS` and
//! `LAMINA_FSX_SEED` make longer and other runs of fsx (`make soak`).

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::mount::{MountFlags, mount};

use crate::support::lamina::{Lamina, Mount};
use crate::support::layers::noise;
use crate::support::listing::words;
use crate::support::sandbox::Sandbox;
use crate::support::{describe, needs_root, output};

/// All features that Linux has. The two entries are the users whom the tests become.
const PJDFSTEST: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
stat_st_birthtime = {}
utime_now = {}
utimensat = {}

[settings]
# A kernel clock tick is up to 10 ms.
naptime = 0.01
allow_remount = REMOUNT

[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// Everything fsx can do, so that each kind of write meets each other one.
const FSX: &str = "
flen = 1048576

[opsize]
min = 1
max = 131072

[weights]
close_open = 2
invalidate = 2
mapread = 10
mapwrite = 10
read = 10
write = 10
truncate = 5
fsync = 0.2
fdatasync = 0.2
posix_fallocate = 3
punch_hole = 5
sendfile = 5
posix_fadvise = 2
copy_file_range = 5
";

/// The same without what changes the size: fsx then takes the file as it is.
const FSX_FIXED_SIZE: &str = "
blockmode = true

[opsize]
min = 1
max = 131072

[weights]
close_open = 0
truncate = 0
invalidate = 2
mapread = 10
mapwrite = 10
read = 10
write = 10
fsync = 0.2
fdatasync = 0.2
punch_hole = 5
sendfile = 5
posix_fadvise = 2
copy_file_range = 5
";

/// A program of `target/tools/bin`; says so if it is not there.
fn tool(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("target/tools/bin")
        .join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!(
        "skipped: there is no {} (scripts/setup test makes it)",
        path.display()
    );
    None
}

/// A mount over `lower` with an upper of its own.
fn over(sandbox: &Sandbox, lower: &Path, io: &str) -> Mount {
    let options = [
        "--io".into(),
        io.into(),
        "--lower".into(),
        lower.as_os_str().to_owned(),
        "--upper".into(),
        sandbox.dir("upper").into_os_string(),
        "--work".into(),
        sandbox.dir("work").into_os_string(),
    ];
    Lamina::new(sandbox).mount(&options, &sandbox.join("mnt"))
}

/// Runs the whole suite in `dir`, which is on a Lamina mount.
fn pjdfstest(sandbox: &Sandbox, program: &Path, dir: &Path) {
    // What is said to be on another filesystem has to be.
    let other = sandbox.dir("other");
    mount("none", &other, "tmpfs", MountFlags::empty(), None).unwrap();
    // mount(8) would leave a remount of this type to mount.fuse3, which cannot do it for any.
    sandbox.dir("bin");
    let shim = sandbox.file("bin/mount", "#!/bin/sh\nexec /bin/mount -i \"$@\"\n");
    fs::set_permissions(&shim, fs::Permissions::from_mode(0o755)).unwrap();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::iter::once(sandbox.join("bin")).chain(std::env::split_paths(&path));
    let path = std::env::join_paths(dirs).unwrap();
    let run = |remount: &str, only: &[&str]| {
        let config = sandbox.file("pjdfstest.toml", PJDFSTEST.replace("REMOUNT", remount));
        let mut command = Command::new(program);
        command
            .args(words(&["-c"], &config))
            .args(words(&["-s"], &other))
            .args(words(&["-p"], dir))
            .args(only)
            .env("PATH", &path);
        Results::of(&output(&mut command))
    };
    // Some of its tests leave a deleted file open, which makes the filesystem, any filesystem, too
    // busy to become read-only: the tests that want that run in a process of their own.
    let read_only = run("true", &["erofs"]);
    let rest = run("false", &[]);
    assert_eq!(read_only.skipped, BTreeSet::new());
    let mut skipped: Vec<_> = rest.skipped.difference(&read_only.passed).collect();
    // ext4 skips none; FUSE cannot say what the upper's limit is.
    skipped.retain(|name| *name != "link::link_count_max");
    assert_eq!(skipped, Vec::<&String>::new());
    assert_eq!(rest.passed.union(&read_only.passed).count(), 397);
}

/// The tests by how they ended.
#[derive(Default)]
struct Results {
    passed: BTreeSet<String>,
    skipped: BTreeSet<String>,
}

impl Results {
    /// Of a run in which none failed.
    fn of(run: &Output) -> Self {
        assert!(run.status.success(), "{}", describe(run));
        let mut results = Self::default();
        for line in String::from_utf8_lossy(&run.stdout).lines() {
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                [name, "ok"] => results.passed.insert(name.to_owned()),
                [name, "skipped"] => results.skipped.insert(name.to_owned()),
                _ => continue,
            };
        }
        results
    }
}

#[test]
fn pjdfstest_over_nothing() {
    needs_root!();
    let Some(program) = tool("pjdfstest") else {
        return;
    };
    for io in ["cached", "passthrough"] {
        let sandbox = Sandbox::new("pjd");
        let mount = over(&sandbox, &sandbox.dir("lower"), io);
        pjdfstest(&sandbox, &program, mount.path());
    }
}

#[test]
fn pjdfstest_below_directories_of_the_lower() {
    needs_root!();
    let Some(program) = tool("pjdfstest") else {
        return;
    };
    for io in ["cached", "passthrough"] {
        let sandbox = Sandbox::new("pjd");
        let lower = sandbox.dir("lower");
        // Paths of sockets must be short.
        sandbox.dir("lower/a/b");
        for file in ["a/x", "a/b/x"] {
            fs::write(lower.join(file), "lower").unwrap();
        }
        let mount = over(&sandbox, &lower, io);
        pjdfstest(&sandbox, &program, &mount.path().join("a"));
    }
}

/// Runs fsx on a file that starts in the lower.
/// Operations of one run: fsx 0.3 never unmaps what it maps, so that longer ones end for want of maps.
const FSX_RUN: u64 = 20_000;

fn fsx(name: &str, config: &str, io: &str) {
    let Some(program) = tool("fsx") else {
        return;
    };
    let number = |name: &str, default: u64| match std::env::var(name) {
        Ok(value) => value
            .parse()
            .unwrap_or_else(|_| panic!("{name} is no number: {value}")),
        Err(_) => default,
    };
    let operations = number("LAMINA_FSX_OPERATIONS", FSX_RUN);
    let seed = number("LAMINA_FSX_SEED", 1);
    for run in 0..operations.div_ceil(FSX_RUN) {
        let operations = FSX_RUN.min(operations - run * FSX_RUN);
        fsx_run(&program, name, config, io, operations, seed + run);
    }
}

fn fsx_run(program: &Path, name: &str, config: &str, io: &str, operations: u64, seed: u64) {
    let sandbox = Sandbox::new(name);
    let lower = sandbox.dir("lower");
    let content = noise(7, 700_000);
    fs::write(lower.join("file"), &content).unwrap();
    let mount = over(&sandbox, &lower, io);
    let mut command = Command::new(program);
    command
        .args(["-N", &operations.to_string(), "-S", &seed.to_string()])
        .args(words(&["-f"], &sandbox.file("fsx.toml", config)))
        .args(words(&["-P"], sandbox.path()))
        .arg(mount.path().join("file"));
    let result = output(&mut command);
    assert!(
        result.status.success(),
        "seed {seed}: {}",
        describe(&result)
    );
    let below = fs::read(lower.join("file")).unwrap();
    assert!(below == content, "the lower file was written to");
    assert!(sandbox.join("upper/file").exists());
}

#[test]
fn fsx_on_a_file_of_the_lower() {
    needs_root!();
    fsx("fsx", FSX, "cached");
}

#[test]
fn fsx_on_a_file_of_the_lower_in_passthrough_mode() {
    needs_root!();
    fsx("fsx-passthrough", FSX, "passthrough");
}

#[test]
fn fsx_on_a_file_of_the_lower_whose_size_stays() {
    needs_root!();
    fsx("fsx-fixed", FSX_FIXED_SIZE, "cached");
}

#[test]
fn fsx_on_a_file_of_the_lower_whose_size_stays_in_passthrough_mode() {
    needs_root!();
    fsx("fsx-fixed-passthrough", FSX_FIXED_SIZE, "passthrough");
}
