//! Many threads on few names: creating, deleting, renaming, linking, copying up and listing at the
//! same time. Nobody can say what the outcome must be, so invariants are checked: during the storm
//! by the threads themselves, and after it on the tree that is left.
//!
//! `LAMINA_STRESS_ROUNDS` sets how many operations each thread does (default 3000).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Read;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, RawDir, RenameFlags, SeekFrom, renameat_with};
use rustix::process::Pid;

use crate::differential::rng::Rng;
use crate::support::lamina::{Lamina, Mount};
use crate::support::listing::{deleted_files, descriptors, pid_of, the_mount};
use crate::support::sandbox::Sandbox;
use crate::support::tree::{Ignore, Tree};
use crate::support::{needs_root, output, run};

/// Threads that change things.
const WRITERS: u64 = 8;
/// Bytes of a value: more than a page, in one write.
const VALUE: usize = 6000;
/// Files in each directory whose names nobody changes.
const STEADY: usize = 150;
/// The directories the storm is in. `low` and `deep/low` have lower parts, `new` has none.
const DIRS: [&str; 3] = ["low", "deep/low", "new"];
/// Names of files that are written in place, linked, renamed and deleted.
const LOOSE: [&str; 5] = ["x0", "x1", "x2", "x3", "x4"];
/// Names of files that are only ever replaced as a whole.
const WHOLE: [&str; 3] = ["w0", "w1", "w2"];
/// Names of directories that come, go and move.
const BRANCHES: [&str; 3] = ["g0", "g1", "g2"];

struct Arena {
    sandbox: Sandbox,
    lamina: Lamina,
    lower: PathBuf,
    upper: PathBuf,
    work: PathBuf,
    mount: Option<Mount>,
}

impl Arena {
    fn new() -> Self {
        let sandbox = Sandbox::new("stress");
        let lower = sandbox.dir("lower");
        for dir in ["low", "deep/low"] {
            let dir = lower.join(dir);
            fs::create_dir_all(&dir).unwrap();
            fill(&dir);
            for (seed, name) in LOOSE.iter().chain(&WHOLE).enumerate() {
                fs::write(dir.join(name), value(1000 + seed as u64)).unwrap();
            }
            fs::hard_link(dir.join("x0"), dir.join("x4-too")).unwrap();
            fs::rename(dir.join("x4-too"), dir.join("x4")).unwrap();
            for branch in BRANCHES {
                fs::create_dir_all(dir.join(branch).join("inner")).unwrap();
                fs::write(dir.join(branch).join("inner/leaf"), value(7)).unwrap();
            }
        }
        let (upper, work) = (sandbox.dir("upper"), sandbox.dir("work"));
        let lamina = Lamina::new(&sandbox);
        let mut arena = Self {
            sandbox,
            lamina,
            lower,
            upper,
            work,
            mount: None,
        };
        arena.mount();
        let new = arena.root().join("new");
        fs::create_dir(&new).unwrap();
        fill(&new);
        arena
    }

    fn mount(&mut self) {
        let option = |name: &str, path: &Path| [name.into(), path.as_os_str().to_owned()];
        let options: Vec<OsString> = [
            option("--lower", &self.lower),
            option("--upper", &self.upper),
            option("--work", &self.work),
        ]
        .concat();
        self.mount = Some(self.lamina.mount(&options, &self.sandbox.join("merged")));
    }

    fn unmount(&mut self) {
        self.mount.take().into_iter().for_each(Mount::unmount);
    }

    fn root(&self) -> &Path {
        self.mount.as_ref().unwrap().path()
    }

    fn daemon(&self) -> Pid {
        pid_of(&the_mount(&self.lamina, &self.sandbox))
    }
}

fn fill(dir: &Path) {
    for at in 0..STEADY {
        fs::write(dir.join(steady(at)), steady(at)).unwrap();
    }
}

fn steady(at: usize) -> String {
    format!("steady-{at:03}")
}

/// A value that shows when it is torn: one number, all the way.
fn value(seed: u64) -> Vec<u8> {
    let number = seed.to_le_bytes();
    number.iter().copied().cycle().take(VALUE).collect()
}

/// Whether `data` is one value as it was written.
fn is_whole(data: &[u8]) -> bool {
    data.len() == VALUE && data.chunks(8).all(|part| part == &data[..part.len()])
}

fn drop_caches(what: &str) {
    fs::write("/proc/sys/vm/drop_caches", what).unwrap();
}

fn rounds() -> u64 {
    std::env::var("LAMINA_STRESS_ROUNDS").map_or(3000, |text| text.parse().expect("a number"))
}

/// The entries of a directory in one pass with a buffer that holds few of them.
fn pass(dir: &Path) -> Vec<String> {
    let fd = File::open(dir).unwrap();
    let mut buffer = [MaybeUninit::uninit(); 700];
    let mut names = Vec::new();
    let mut raw = RawDir::new(&fd, &mut buffer);
    while let Some(entry) = raw.next() {
        let name = entry.unwrap().file_name().to_bytes().to_vec();
        names.push(OsString::from_vec(name).into_string().unwrap());
    }
    names
}

/// Every name that may ever be seen.
fn allowed() -> HashSet<String> {
    let mut names: HashSet<String> = (0..STEADY).map(steady).collect();
    for name in LOOSE.iter().chain(&WHOLE).chain(&BRANCHES) {
        names.insert((*name).to_owned());
    }
    names.extend([".".to_owned(), "..".to_owned()]);
    names.extend((0..WRITERS).map(staged));
    names
}

/// Where a writer prepares what it then renames over another name.
fn staged(writer: u64) -> String {
    format!("staged-{writer}")
}

/// What one writer does; errors are expected, as the others get in between.
fn write_storm(root: &Path, writer: u64) {
    let mut rng = Rng::new(writer);
    let mut held: Option<(File, u64)> = None;
    for round in 0..rounds() {
        let dir = |rng: &mut Rng| root.join(rng.pick(&DIRS));
        let loose = |rng: &mut Rng| root.join(rng.pick(&DIRS)).join(rng.pick(&LOOSE));
        let number = writer << 32 | round;
        match rng.below(17) {
            0 => {
                let file = OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(loose(&mut rng));
                let _ = file.and_then(|file| file.write_all_at(&value(number), 0));
            }
            1 => {
                let _ = File::create_new(loose(&mut rng));
            }
            2 => {
                let file = OpenOptions::new().write(true).open(loose(&mut rng));
                let _ = file.and_then(|file| file.write_all_at(&value(number), 0));
            }
            3 => {
                let _ = fs::remove_file(loose(&mut rng));
            }
            4 => {
                let _ = fs::hard_link(loose(&mut rng), loose(&mut rng));
            }
            5 => {
                let _ = fs::rename(loose(&mut rng), loose(&mut rng));
            }
            6 => {
                let (from, to) = (loose(&mut rng), loose(&mut rng));
                let _ = renameat_with(CWD, from, CWD, to, RenameFlags::EXCHANGE);
            }
            7 => {
                let dir = dir(&mut rng);
                let staged = dir.join(staged(writer));
                fs::write(&staged, value(number)).unwrap();
                fs::rename(&staged, dir.join(rng.pick(&WHOLE))).unwrap();
            }
            8 => {
                let path = dir(&mut rng).join(rng.pick(&WHOLE));
                match fs::read(&path) {
                    Ok(data) => assert!(is_whole(&data), "{} is torn", path.display()),
                    Err(error) => assert!(
                        path.starts_with(root.join("new")),
                        "{}: {error}",
                        path.display()
                    ),
                }
            }
            9 => {
                let path = dir(&mut rng).join(steady(rng.below(STEADY)));
                let mode = *rng.pick(&[0o644, 0o600, 0o755]);
                fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            }
            10 => {
                let _ = fs::create_dir(dir(&mut rng).join(rng.pick(&BRANCHES)));
            }
            11 => {
                let (from, to) = (dir(&mut rng), dir(&mut rng));
                let _ = fs::rename(from.join(rng.pick(&BRANCHES)), to.join(rng.pick(&BRANCHES)));
            }
            12 => {
                let branch = dir(&mut rng).join(rng.pick(&BRANCHES));
                let _ = fs::remove_dir_all(branch);
            }
            13 => {
                let (branch, file) = (dir(&mut rng).join(rng.pick(&BRANCHES)), loose(&mut rng));
                let _ = renameat_with(CWD, branch, CWD, file, RenameFlags::EXCHANGE);
                // Names of files stay names of files.
                let _ = renameat_with(
                    CWD,
                    dir(&mut rng).join("g0"),
                    CWD,
                    loose(&mut rng),
                    RenameFlags::NOREPLACE,
                );
            }
            14 => {
                let _ = symlink("steady-000", loose(&mut rng));
            }
            15 => {
                held = File::open(loose(&mut rng)).ok().map(|file| {
                    let number = file.metadata().unwrap().ino();
                    (file, number)
                });
            }
            _ => {
                if let Some((file, number)) = &mut held {
                    assert_eq!(
                        file.metadata().unwrap().ino(),
                        *number,
                        "an open file's number"
                    );
                    let _ = file.read(&mut [0; 100]);
                }
            }
        }
    }
}

/// Lists until the writers are done, and looks at what nobody changes.
fn watch(root: &Path, done: &AtomicBool) {
    let allowed = allowed();
    let mut numbers: HashMap<PathBuf, u64> = HashMap::new();
    while !done.load(Ordering::Relaxed) {
        for dir in DIRS.map(|dir| root.join(dir)) {
            let mut count: BTreeMap<String, usize> = BTreeMap::new();
            for name in pass(&dir) {
                assert!(allowed.contains(&name), "{}: has {name}", dir.display());
                *count.entry(name).or_default() += 1;
            }
            for name in (0..STEADY).map(steady) {
                let seen = count.get(&name).copied().unwrap_or(0);
                assert_eq!(seen, 1, "{}: {name} is listed {seen} times", dir.display());
                let path = dir.join(name);
                let number = fs::metadata(&path).unwrap().ino();
                let before = *numbers.entry(path.clone()).or_insert(number);
                assert_eq!(number, before, "{} has another number", path.display());
            }
        }
    }
}

/// Every file's link count is the number of names it has.
fn check_links(root: &Path) {
    let mut found: HashMap<u64, (u64, Vec<PathBuf>)> = HashMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            if meta.is_dir() {
                pending.push(path);
            } else {
                let file = found
                    .entry(meta.ino())
                    .or_insert((meta.nlink(), Vec::new()));
                assert_eq!(file.0, meta.nlink(), "{}", path.display());
                file.1.push(path);
            }
        }
    }
    for (links, names) in found.values() {
        assert_eq!(*links, names.len() as u64, "the links of {names:?}");
    }
}

/// Every value is whole, or the file was made and nothing was written to it yet.
fn check_values(root: &Path) {
    for dir in DIRS.map(|dir| root.join(dir)) {
        for name in LOOSE.iter().chain(&WHOLE) {
            let path = dir.join(name);
            if path.symlink_metadata().is_ok_and(|meta| meta.is_file()) {
                let data = fs::read(&path).unwrap();
                let made = data.is_empty() && LOOSE.contains(name);
                assert!(made || is_whole(&data), "{} is torn", path.display());
            }
        }
    }
}

#[test]
fn a_storm_on_few_names_leaves_everything_right() {
    needs_root!();
    let mut arena = Arena::new();
    let before = descriptors(arena.daemon()).len();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let root = arena.root();
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| scope.spawn(move || write_storm(root, writer)))
            .collect();
        let done = &done;
        let watchers = [(); 2].map(|()| scope.spawn(move || watch(root, done)));
        let dropper = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                drop_caches("2");
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
        });
        let results: Vec<_> = writers
            .into_iter()
            .map(std::thread::ScopedJoinHandle::join)
            .collect();
        done.store(true, Ordering::Relaxed);
        for result in results
            .into_iter()
            .chain(watchers.map(std::thread::ScopedJoinHandle::join))
        {
            result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        dropper.join().unwrap();
    });
    check_links(arena.root());
    check_values(arena.root());
    let left = Tree::read(arena.root());
    left.assert_same("the tree", &left, "itself", Ignore::NOTHING); // shows oddities
    drop_caches("2");
    let again = Tree::read(arena.root());
    left.assert_same("the tree", &again, "without caches", Ignore::NOTHING);

    // Deleted files are let go of when nobody has them open any more.
    drop_caches("2");
    let mut deleted = Vec::new();
    for _ in 0..100 {
        drop_caches("2");
        deleted = deleted_files(arena.daemon());
        if deleted.is_empty() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert!(deleted.is_empty(), "still open: {deleted:#?}");
    let after = descriptors(arena.daemon()).len();
    assert!(
        after < before + 1024,
        "{after} descriptors, and {before} before"
    );

    arena.unmount();
    arena.mount();
    let again = Tree::read(arena.root());
    left.assert_same("the tree", &again, "after a remount", Ignore::NOTHING);
    arena.unmount();
    check_work(&arena.work);
    check_with_overlayfs(&arena, left);
}

/// Nothing half-made is left.
fn check_work(work: &Path) {
    let left: Vec<_> = Tree::read(work)
        .paths()
        .map(|path| String::from_utf8_lossy(path).into_owned())
        .filter(|path| !path.is_empty() && path != "work")
        .collect();
    assert!(left.is_empty(), "left in the work directory: {left:?}");
}

/// The kernel finds the same in the same upper.
fn check_with_overlayfs(arena: &Arena, mut ours: Tree) {
    let work = arena.sandbox.dir("kernel-work");
    let view = arena.sandbox.dir("kernel-view");
    let options = format!(
        "lowerdir={},upperdir={},workdir={},redirect_dir=on,index=off,metacopy=on,xino=on",
        arena.lower.display(),
        arena.upper.display(),
        work.display()
    );
    run(Command::new("mount")
        .args(["-t", "overlay", "overlay", "-o", &options])
        .arg(&view));
    let mut kernels = Tree::read(&view);
    run(Command::new("umount").arg(&view));
    for tree in [&mut ours, &mut kernels] {
        tree.forget_xattrs(b"trusted.lamina.");
    }
    let ignore = Ignore {
        dir_nlink: true,
        ..Ignore::OTHER_FILESYSTEM
    };
    let mut lines = ours.differences(&kernels, ignore);
    // Names that were not copied up: overlayfs without an index does not know they are one file.
    lines.retain(|line| !crate::differential::known::is_known_of_uppers(line));
    assert!(lines.is_empty(), "Lamina (first) and overlayfs: {lines:#?}");
}

const ENTRIES: usize = 100_000;

/// Entries keep their places while others come and go, in a directory of 100,000 with lower parts.
#[test]
fn positions_in_a_large_directory_hold_while_it_changes() {
    needs_root!();
    let sandbox = Sandbox::new("large");
    let big = sandbox.dir("lower/big");
    for at in 0..ENTRIES {
        rustix::fs::mknodat(
            CWD,
            big.join(format!("entry-{at:06}")),
            rustix::fs::FileType::RegularFile,
            rustix::fs::Mode::from_raw_mode(0o644),
            0,
        )
        .unwrap();
    }
    let options = [
        OsString::from("--lower"),
        sandbox.join("lower").into(),
        "--upper".into(),
        sandbox.dir("upper").into(),
        "--work".into(),
        sandbox.dir("work").into(),
    ];
    let mount = Lamina::new(&sandbox).mount(&options, &sandbox.join("merged"));
    let big = mount.path().join("big");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let changing = scope.spawn(|| {
            let mut round = 0;
            while !done.load(Ordering::Relaxed) {
                let name = big.join(format!("guest-{:03}", round % 500));
                let _ = File::create(&name);
                let _ = fs::remove_file(big.join(format!("guest-{:03}", (round + 250) % 500)));
                // Copied up and replaced while they are listed.
                let entry = big.join(format!("entry-{:06}", round * 37 % ENTRIES));
                fs::set_permissions(entry, Permissions::from_mode(0o600)).unwrap();
                round += 1;
            }
        });
        for _ in 0..2 {
            check_positions(&big, ENTRIES);
        }
        done.store(true, Ordering::Relaxed);
        changing.join().unwrap();
    });
    mount.unmount();
}

/// One pass in pieces; every position is gone back to later, with the caches dropped in between.
fn check_positions(dir: &Path, entries: usize) {
    let fd = File::open(dir).unwrap();
    let mut seen = vec![0u8; entries];
    let mut marks: Vec<(u64, usize)> = Vec::new();
    let mut buffer = vec![MaybeUninit::uninit(); 32 << 10];
    let number = |name: &[u8]| -> Option<usize> {
        std::str::from_utf8(name.strip_prefix(b"entry-")?)
            .ok()?
            .parse()
            .ok()
    };
    let mut at = 0;
    loop {
        rustix::fs::seek(&fd, SeekFrom::Start(at)).unwrap();
        let mut raw = RawDir::new(&fd, &mut buffer);
        let mut first = None;
        let start = at;
        while let Some(entry) = raw.next() {
            let entry = entry.unwrap();
            at = entry.next_entry_cookie();
            if let Some(entry) = number(entry.file_name().to_bytes()) {
                seen[entry] += 1;
                first.get_or_insert(entry);
            }
            if raw.is_buffer_empty() {
                break;
            }
        }
        if at == start {
            break;
        }
        marks.extend(first.map(|first| (start, first)));
        if marks.len() == 20 {
            drop_caches("2");
        }
    }
    let wrong = seen.iter().enumerate().find(|(_, times)| **times != 1);
    assert_eq!(wrong, None, "each entry once");
    drop_caches("2");
    let mut rng = Rng::new(5);
    for _ in 0..50 {
        let (at, first) = *rng.pick(&marks);
        rustix::fs::seek(&fd, SeekFrom::Start(at)).unwrap();
        let mut raw = RawDir::new(&fd, &mut buffer);
        let mut found = None;
        while let Some(entry) = raw.next() {
            found = number(entry.unwrap().file_name().to_bytes());
            if found.is_some() {
                break;
            }
        }
        assert_eq!(found, Some(first), "what is at {at}");
    }
}

/// Other people's load generators, for some seconds each, on files that come from a lower.
#[test]
fn dbench_and_stress_ng_find_no_fault() {
    needs_root!();
    let mut arena = Arena::new();
    let place = arena.root().join("deep/load");
    fs::create_dir(&place).unwrap();
    let mut commands = vec![{
        let mut dbench = Command::new("dbench");
        dbench.args(["-t", "5", "-D"]).arg(&place).arg("4");
        dbench
    }];
    let stressors = [
        "access",
        "chmod",
        "chown",
        "copy-file",
        "dentry",
        "dir",
        "dirdeep",
        "dirmany",
        "dnotify",
        "fallocate",
        "fcntl",
        "fiemap",
        "file-ioctl",
        "filename",
        "flock",
        "fpunch",
        "fsize",
        "fstat",
        "getdent",
        "handle",
        "hdd",
        "inotify",
        "io",
        "iomix",
        "lease",
        "link",
        "locka",
        "lockf",
        "lockofd",
        "mknod",
        "mmap",
        "open",
        "rename",
        "seek",
        "symlink",
        "sync-file",
        "touch",
        "utime",
        "xattr",
    ];
    // Several at once: that is more of a load, and each takes a moment to begin and to end.
    for several in stressors.chunks(10) {
        let mut stress = Command::new("stress-ng");
        for stressor in several {
            stress.args([&format!("--{stressor}"), "1"]);
        }
        stress.args(["--timeout", "2s", "--verify", "--temp-path"]);
        stress.arg(&place);
        commands.push(stress);
    }
    for command in &mut commands {
        if output(Command::new("which").arg(command.get_program()))
            .status
            .success()
        {
            run(command);
        } else {
            eprintln!("skipped: {:?} is not installed", command.get_program());
        }
    }
    let left = Tree::read(arena.root());
    left.assert_same("the tree", &left, "itself", Ignore::NOTHING);
    arena.unmount();
    check_work(&arena.work);
}
