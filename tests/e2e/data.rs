//! What is in files: holes, copy-up under open readers, appending, numbers of files that are gone.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::disk::Mounted;
use crate::support::lamina::{Lamina, Mount, wait_until};
use crate::support::layers::{archive_of, noise};
use crate::support::listing::{pid_of, the_mount};
use crate::support::raw::Mapping;
use crate::support::sandbox::Sandbox;
use crate::support::{needs_root, run};

/// Both ways to give a lower: `fill` makes it, and `check` gets the mount and the upper.
fn over_each_lower(fill: impl Fn(&Path), check: impl Fn(&Path, &Path)) {
    for as_image in [false, true] {
        let sandbox = Sandbox::new("data");
        let lower = sandbox.dir("lower");
        fill(&lower);
        let lamina = Lamina::new(&sandbox);
        let mut options: Vec<OsString> = vec![
            "--upper".into(),
            sandbox.dir("upper").into(),
            "--work".into(),
            sandbox.dir("work").into(),
        ];
        if as_image {
            let archive = sandbox.join("layer.tar");
            archive_of(&lower, &archive);
            lamina.build("data", &[archive]);
            options.push("data".into());
        } else {
            options.extend(["--lower".into(), lower.into()]);
        }
        let mount = lamina.mount(&options, &sandbox.join("merged"));
        check(mount.path(), &sandbox.join("upper"));
        mount.unmount();
    }
}

/// A mount over an empty lower.
fn empty_mount(sandbox: &Sandbox) -> Mount {
    let option =
        |name: &str| -> [OsString; 2] { [format!("--{name}").into(), sandbox.dir(name).into()] };
    let options = [option("lower"), option("upper"), option("work")].concat();
    Lamina::new(sandbox).mount(&options, &sandbox.join("merged"))
}

const MIB: u64 = 1 << 20;

/// The data segments of a file.
fn segments(path: &Path) -> Vec<(u64, u64)> {
    let file = File::open(path).unwrap();
    let mut found = Vec::new();
    let mut at = 0;
    while let Ok(start) = seek(&file, SeekFrom::Data(at)) {
        let end = seek(&file, SeekFrom::Hole(start)).unwrap();
        found.push((start, end));
        at = end;
    }
    found
}

#[test]
fn sparse_files_stay_sparse_through_copy_up() {
    needs_root!();
    let islands = [0, 7 * MIB, 5000 * MIB];
    over_each_lower(
        |lower| {
            let file = File::create(lower.join("sparse")).unwrap();
            for at in islands {
                file.write_all_at(b"island", at).unwrap();
            }
            file.set_len(6000 * MIB).unwrap();
        },
        |root, upper| {
            let (path, copy) = (root.join("sparse"), upper.join("sparse"));
            let before = segments(&path);
            fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .open(&path)
                .unwrap();
            file.write_all_at(b"more", 3000 * MIB).unwrap();
            file.sync_all().unwrap();
            assert_eq!(copy.metadata().unwrap().len(), 6000 * MIB);
            let used = copy.metadata().unwrap().blocks() * 512;
            assert!(used <= MIB, "the copy takes {used} bytes");
            let mut expected = before;
            expected.push((3000 * MIB, 3000 * MIB + 4096));
            expected.sort_unstable();
            assert_eq!(segments(&path), expected);
            for at in islands {
                let mut data = [0; 8];
                file.read_exact_at(&mut data, at).unwrap();
                assert_eq!(&data, b"island\0\0", "at {at}");
            }
        },
    );
}

#[test]
fn fallocate_does_what_fuse_carries_and_refuses_the_rest() {
    needs_root!();
    over_each_lower(
        |lower| fs::write(lower.join("f"), vec![b'x'; 40_960]).unwrap(),
        |root, _| {
            let path = root.join("f");
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .open(&path)
                .unwrap();
            let keep = FallocateFlags::KEEP_SIZE;
            let expect = |content: &[(u8, usize)]| {
                let bytes = content.iter().flat_map(|&(byte, count)| vec![byte; count]);
                assert!(
                    fs::read(&path).unwrap() == bytes.collect::<Vec<u8>>(),
                    "{content:?}"
                );
            };
            fallocate(&file, FallocateFlags::PUNCH_HOLE | keep, 4096, 8192).unwrap();
            expect(&[(b'x', 4096), (0, 8192), (b'x', 28_672)]);
            fallocate(&file, FallocateFlags::ZERO_RANGE, 40_000, 2000).unwrap();
            expect(&[(b'x', 4096), (0, 8192), (b'x', 27_712), (0, 2000)]);
            fallocate(&file, keep, 0, 100_000).unwrap();
            assert_eq!(file.metadata().unwrap().len(), 42_000);
            fallocate(&file, FallocateFlags::empty(), 0, 50_000).unwrap();
            expect(&[(b'x', 4096), (0, 8192), (b'x', 27_712), (0, 10_000)]);
            for flags in [FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE] {
                let refused = fallocate(&file, flags, 4096, 4096);
                assert_eq!(refused, Err(Errno::OPNOTSUPP), "{flags:?}");
            }
            expect(&[(b'x', 4096), (0, 8192), (b'x', 27_712), (0, 10_000)]);
        },
    );
}

#[test]
fn readers_from_before_a_copy_up_see_what_is_written_after_it() {
    needs_root!();
    over_each_lower(
        |lower| fs::write(lower.join("f"), vec![b'l'; 10_000]).unwrap(),
        |root, _| {
            let path = root.join("f");
            let reader = File::open(&path).unwrap();
            let mapping = Mapping::new(&reader, 0, 8192, false, true).unwrap();
            assert_eq!(mapping.read().unwrap(), vec![b'l'; 8192]);
            let number = reader.metadata().unwrap().ino();
            let writer = OpenOptions::new().append(true).open(&path).unwrap();
            (&writer).write_all(b"appended").unwrap();
            drop(writer);
            let writer = OpenOptions::new().write(true).open(&path).unwrap();
            writer.write_all_at(b"UPPER", 4000).unwrap();
            let mut data = [0; 5];
            reader.read_exact_at(&mut data, 4000).unwrap();
            assert_eq!(&data, b"UPPER");
            reader.read_exact_at(&mut data, 10_003).unwrap();
            assert_eq!(&data, b"ended");
            assert_eq!(&mapping.read().unwrap()[4000..4005], b"UPPER");
            let meta = reader.metadata().unwrap();
            assert_eq!((meta.len(), meta.ino()), (10_008, number));
            fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
            assert_eq!(&mapping.read().unwrap()[4000..4005], b"UPPER");
            writer.set_len(3).unwrap();
            assert_eq!(reader.read_at(&mut data, 0).unwrap(), 3);
            // And the name may go: what is open stays.
            fs::remove_file(&path).unwrap();
            writer.write_all_at(b"gone", 0).unwrap();
            assert_eq!(reader.read_at(&mut data, 0).unwrap(), 4);
            assert_eq!(reader.metadata().unwrap().nlink(), 0);
        },
    );
}

#[test]
fn many_who_append_lose_nothing() {
    needs_root!();
    over_each_lower(
        |lower| fs::write(lower.join("log"), "begin\n").unwrap(),
        |root, _| {
            let path = root.join("log");
            std::thread::scope(|scope| {
                for writer in 0..6 {
                    let path = &path;
                    scope.spawn(move || {
                        let mut file = OpenOptions::new().append(true).open(path).unwrap();
                        for line in 0..200 {
                            // Longer than a page now and then.
                            let filler = "x".repeat(line * 37 % 6000);
                            let text = format!("{writer} {line} {filler}\n");
                            file.write_all(text.as_bytes()).unwrap();
                        }
                    });
                }
            });
            let text = fs::read_to_string(&path).unwrap();
            let mut lines: Vec<_> = text.lines().skip(1).collect();
            lines.sort_unstable();
            let mut expected: Vec<_> = (0..6)
                .flat_map(|writer| (0..200).map(move |line| (writer, line)))
                .map(|(writer, line)| format!("{writer} {line} {}", "x".repeat(line * 37 % 6000)))
                .collect();
            expected.sort_unstable();
            assert!(lines == expected, "each line once, and whole");
        },
    );
}

/// The upper's filesystem gives inode numbers again; nobody may take two files for one.
#[test]
fn a_number_is_given_again_only_when_nobody_has_the_old_file_open() {
    needs_root!();
    let sandbox = Sandbox::new("data");
    let mount = empty_mount(&sandbox);
    let path = |number: usize| -> PathBuf { mount.path().join(format!("f{number}")) };
    let mut open = Vec::new();
    for at in 0..50 {
        fs::write(path(at), format!("old {at}")).unwrap();
        let file = File::open(path(at)).unwrap();
        fs::remove_file(path(at)).unwrap();
        open.push(file);
    }
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    let taken: HashSet<u64> = open
        .iter()
        .map(|file| file.metadata().unwrap().ino())
        .collect();
    assert_eq!(taken.len(), 50);
    for at in 0..100 {
        fs::write(path(at), format!("new {at}")).unwrap();
        let number = path(at).metadata().unwrap().ino();
        assert!(!taken.contains(&number), "{number} is still open");
    }
    for (at, file) in open.iter().enumerate() {
        let mut data = [0; 10];
        let count = file.read_at(&mut data, 0).unwrap();
        assert_eq!(&data[..count], format!("old {at}").as_bytes());
    }
    drop(open);
    // Now they are free, and whoever gets one is a new file in every way.
    let mut reused = 0;
    for at in 100..250 {
        fs::write(path(at), format!("{at} is new")).unwrap();
        let meta = path(at).metadata().unwrap();
        reused += usize::from(taken.contains(&meta.ino()));
        assert_eq!(meta.nlink(), 1);
        assert_eq!(
            fs::read_to_string(path(at)).unwrap(),
            format!("{at} is new")
        );
    }
    assert!(
        reused > 0,
        "the filesystem below gives no number again: nothing was tested"
    );
    mount.unmount();
}

/// What is used of a filesystem, in bytes, when everything is written out.
fn used(at: &Path) -> u64 {
    run(Command::new("sync").arg("-f").arg(at));
    let stat = rustix::fs::statvfs(at).unwrap();
    (stat.f_blocks - stat.f_bfree) * stat.f_frsize
}

#[test]
fn data_is_shared_where_the_upper_can() {
    needs_root!();
    let sandbox = Sandbox::new("reflink");
    let image = sandbox.join("btrfs.img");
    File::create(&image).unwrap().set_len(1 << 30).unwrap();
    run(Command::new("mkfs.btrfs").arg("-q").arg(&image));
    let below = Mounted::new(&image, &sandbox.join("below"), "");
    let at = |name: &str| below.path().join(name);
    for dir in ["lower", "upper", "work"] {
        fs::create_dir(at(dir)).unwrap();
    }
    let size = 64 * MIB;
    let content = noise(3, size as usize);
    fs::write(at("lower/large"), &content).unwrap();
    let layers = ["lower", "upper", "work"].map(|dir| [format!("--{dir}").into(), at(dir).into()]);
    for io in ["cached", "passthrough"] {
        let mut options: Vec<OsString> = layers.concat();
        options.extend(["--io".into(), io.into()]);
        let mount = Lamina::new(&sandbox).mount(&options, &sandbox.join("merged"));
        let before = used(below.path());
        let append = OpenOptions::new()
            .append(true)
            .open(mount.path().join("large"));
        let large = append.unwrap();
        (&large).write_all(b"x").unwrap();
        large.sync_all().unwrap();
        assert!(
            used(below.path()) < before + size / 4,
            "{io}: a copy-up copied the data"
        );

        let from = File::open(mount.path().join("large")).unwrap();
        let to = File::create(mount.path().join("copy")).unwrap();
        let mut copied = 0;
        while copied < size {
            let rest = (size - copied) as usize;
            copied += rustix::fs::copy_file_range(&from, None, &to, None, rest).unwrap() as u64;
        }
        to.sync_all().unwrap();
        assert!(
            used(below.path()) < before + size / 4,
            "{io}: copy_file_range copied the data"
        );
        assert!(fs::read(mount.path().join("copy")).unwrap() == content);
        assert!(
            fs::read(mount.path().join("large"))
                .unwrap()
                .strip_suffix(b"x")
                == Some(&content)
        );
        drop((large, from, to));
        mount.unmount();
        for name in ["large", "copy"] {
            fs::remove_file(at("upper").join(name)).unwrap();
        }
    }
    assert!(fs::read(at("lower/large")).unwrap() == content);
    below.unmount();
}

/// Lets a stopped process go on, also when the test fails.
struct Stopped(Pid);

impl Stopped {
    fn new(process: Pid) -> Self {
        kill_process(process, Signal::STOP).unwrap();
        Self(process)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        kill_process(self.0, Signal::CONT).unwrap();
    }
}

/// The lower is another mount, whose daemon is stopped while many files are copied up from it.
#[test]
fn copy_ups_that_take_long_hold_up_nobody_else() {
    needs_root!();
    long_copy_ups("device", 12);
    // By io_uring, if that is enabled, as many as there are threads of one processor.
    long_copy_ups("auto", 2);
}

fn long_copy_ups(transport: &str, files: usize) {
    let sandbox = Sandbox::new("long");
    let lamina = Lamina::new(&sandbox);
    let dir = sandbox.dir("dir");
    let data = noise(7, 3 << 20);
    for number in 0..files {
        fs::write(dir.join(format!("file{number}")), &data).unwrap();
    }
    fs::write(dir.join("small"), "small").unwrap();
    let slow = lamina.mount(
        &["--rm", "--io", "cached", "--lower", dir.to_str().unwrap()],
        &sandbox.join("slow"),
    );
    let process = pid_of(&the_mount(&lamina, &sandbox));
    let lower = slow.path().to_str().unwrap();
    let mount = lamina.mount(
        &[
            "--rm",
            "--metacopy=off",
            "--transport",
            transport,
            "--lower",
            lower,
        ],
        &sandbox.join("mnt"),
    );
    let root = mount.path().to_owned();
    for entry in fs::read_dir(&root).unwrap() {
        assert!(entry.unwrap().metadata().unwrap().len() > 0);
    }
    assert_eq!(fs::read_to_string(root.join("small")).unwrap(), "small");
    // What is in it need not be looked for in the lower.
    let own = root.join("own");
    fs::create_dir(&own).unwrap();
    fs::write(own.join("new"), "new").unwrap();

    let stopped = Stopped::new(process);
    let writers: Vec<_> = (0..files)
        .map(|number| {
            let path = root.join(format!("file{number}"));
            // Not a write, before which the kernel asks for capabilities, which is quick elsewhere.
            std::thread::spawn(move || fs::set_permissions(path, Permissions::from_mode(0o600)))
        })
        .collect();
    std::thread::sleep(std::time::Duration::from_millis(500));
    let others = std::thread::spawn(move || {
        for number in 0..50 {
            fs::write(own.join(format!("new{number}")), b"new").unwrap();
        }
        fs::rename(own.join("new"), own.join("renamed")).unwrap();
        assert_eq!(fs::read_to_string(own.join("renamed")).unwrap(), "new");
    });
    wait_until("the others to finish", || others.is_finished());
    assert!(
        writers.iter().all(|writer| !writer.is_finished()),
        "the lower was not slow"
    );
    drop(stopped);
    others.join().unwrap();
    for writer in writers {
        writer.join().unwrap().unwrap();
    }
    for number in 0..files {
        let path = root.join(format!("file{number}"));
        assert!(fs::read(&path).unwrap() == data);
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
    }
    mount.unmount();
    slow.unmount();
}
