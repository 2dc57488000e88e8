//! What is below a mount fails: the upper is full or becomes read-only, a lower cannot be read, the
//! daemon runs out of descriptors or memory. Each time whoever asked is told why, nothing that was
//! written is lost, nothing half made is left, and all works again when the fault is gone.

mod starved;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fuser::Errno;
use rustix::process::Pid;

use crate::support::disk::Mounted;
use crate::support::fake::{Backing, Fake};
use crate::support::lamina::{Lamina, Mount, wait_until};
use crate::support::layers::{Archive, noise};
use crate::support::listing::{deleted_files, descriptors, pid_of, the_mount, words};
use crate::support::overlayfs::Layers;
use crate::support::sandbox::Sandbox;
use crate::support::{needs_root, output, run};

/// How often an upper is filled.
const ROUNDS: usize = 6;
/// How many files of a lower fail.
const FILES: usize = 16;

/// A lower directory, and an upper on a filesystem of its own.
struct Small {
    // Unmounted before the image goes.
    below: Mounted,
    image: PathBuf,
    layers: Layers,
    lamina: Lamina,
    sandbox: Sandbox,
}

impl Small {
    fn new(name: &str, megabytes: u64, mkfs: &[&str], options: &str) -> Self {
        let sandbox = Sandbox::new(name);
        let image = sandbox.join("upper.img");
        File::create(&image)
            .unwrap()
            .set_len(megabytes << 20)
            .unwrap();
        run(Command::new(mkfs[0]).args(&mkfs[1..]).arg(&image));
        let below = Mounted::new(&image, &sandbox.join("below"), options);
        Self {
            layers: Layers {
                lowers: vec![sandbox.dir("lower")],
                upper: sandbox.dir("below/upper"),
                work: sandbox.dir("below/work"),
            },
            lamina: Lamina::new(&sandbox),
            below,
            image,
            sandbox,
        }
    }

    fn lower(&self, name: &str, content: &[u8]) {
        fs::write(self.layers.lowers[0].join(name), content).unwrap();
    }

    fn mount(&self) -> Mount {
        let target = self.sandbox.join("mnt");
        self.lamina.mount(&self.layers.lamina_options(), &target)
    }

    fn daemon(&self) -> Pid {
        let mount = the_mount(&self.lamina, &self.sandbox);
        assert_eq!(mount["state"], "live");
        pid_of(&mount)
    }

    /// Nothing of a copy-up that failed is to be found.
    fn assert_nothing_half_made(&self, name: &str) {
        let scratch = fs::read_dir(self.layers.work.join("work")).unwrap();
        assert_eq!(scratch.count(), 0, "left in the work directory");
        assert!(
            !self.layers.upper.join(name).exists(),
            "{name} is in the upper"
        );
    }
}

/// The error number of something that must fail.
#[track_caller]
fn errno<T>(result: io::Result<T>) -> i32 {
    let error = result.err().expect("this should have failed");
    error.raw_os_error().expect("an error of the system")
}

fn append(path: &Path, data: &[u8]) -> io::Result<()> {
    OpenOptions::new().append(true).open(path)?.write_all(data)
}

/// What was deleted and is not open is given up, a moment later.
fn assert_nothing_deleted_is_open(daemon: Pid) {
    wait_until("deleted files to be closed", || {
        deleted_files(daemon).is_empty()
    });
}

/// Writes to a new file until there is no room, and returns the error and what was written.
fn fill(path: &Path) -> (i32, Vec<u8>) {
    let mut file = File::create(path).unwrap();
    let block = noise(3, 100_000);
    let mut written = Vec::new();
    loop {
        match file.write(&block) {
            Ok(count) => written.extend_from_slice(&block[..count]),
            Err(error) => return (error.raw_os_error().unwrap(), written),
        }
        assert!(written.len() < 1 << 30, "there is room without end");
    }
}

/// The upper runs out of what `error` says, again and again, and is emptied again.
fn fills_and_empties(small: &Small, error: i32) {
    let big = noise(1, 4_000_000);
    for round in 0..ROUNDS {
        small.lower(&format!("big{round}"), &big);
    }
    let mount = small.mount();
    let root = mount.path();
    let kept = noise(2, 500_000);
    fs::write(root.join("kept"), &kept).unwrap();
    let mut open = Vec::new();
    for round in 0..ROUNDS {
        let filler = root.join("filler");
        let (found, written) = fill(&filler);
        assert_eq!(found, error);
        assert!(
            fs::read(&filler).unwrap() == written,
            "not what was written"
        );

        let name = format!("big{round}");
        assert_eq!(errno(append(&root.join(&name), b"more")), error);
        assert!(
            fs::read(root.join(&name)).unwrap() == big,
            "{name} is damaged"
        );
        small.assert_nothing_half_made(&name);
        assert!(
            fs::read(root.join("kept")).unwrap() == kept,
            "what was there is damaged"
        );

        fs::remove_file(&filler).unwrap();
        if error == libc::EDQUOT {
            // btrfs itself counts late.
            wait_until("the quota to notice", || {
                append(&root.join(&name), b"").is_ok()
            });
        }
        append(&root.join(&name), b"more").unwrap();
        let now = fs::read(root.join(&name)).unwrap();
        assert!(
            now.strip_prefix(&big[..]) == Some(b"more"),
            "{name} is damaged"
        );
        fs::remove_file(root.join(&name)).unwrap();
        assert_nothing_deleted_is_open(small.daemon());
        open.push(descriptors(small.daemon()).len());
    }
    // It may keep the lower files open that it has met, one a round.
    assert!(
        open[ROUNDS - 1] <= open[1] + ROUNDS,
        "descriptors leak: {open:?}"
    );
    mount.unmount();
    let mount = small.mount();
    assert!(fs::read(mount.path().join("kept")).unwrap() == kept);
    mount.unmount();
}

#[test]
fn a_full_upper_is_told_to_the_writer_and_nothing_is_lost() {
    needs_root!();
    let small = Small::new("full", 24, &["mkfs.ext4", "-q", "-F"], "");
    fills_and_empties(&small, libc::ENOSPC);
}

#[test]
fn a_quota_is_told_to_the_writer_and_nothing_is_lost() {
    needs_root!();
    // Most kernels have quotas for root's files on btrfs alone.
    let quota = |small: &Small| {
        let below = small.below.path();
        run(Command::new("btrfs").args(["quota", "enable"]).arg(below));
        let limit = ["qgroup", "limit", "24M", "0/5"];
        run(Command::new("btrfs").args(limit).arg(below));
    };
    let there = |program| {
        output(Command::new("sh").args(["-c", program]))
            .status
            .success()
    };
    if !there("command -v mkfs.btrfs && { modprobe btrfs; grep -qw btrfs /proc/filesystems; }") {
        eprintln!("skipped: no btrfs here, so no quota");
        return;
    }
    let small = Small::new("quota", 256, &["mkfs.btrfs", "-q"], "");
    quota(&small);
    fills_and_empties(&small, libc::EDQUOT);
}

#[test]
fn an_upper_without_inodes_is_told_and_nothing_is_lost() {
    needs_root!();
    let small = Small::new("inodes", 24, &["mkfs.ext4", "-q", "-F", "-N", "96"], "");
    for name in ["lower", "doomed", "other"] {
        small.lower(name, b"content");
    }
    let mount = small.mount();
    let root = mount.path();
    let mut made = Vec::new();
    let error = loop {
        let path = root.join(format!("new{}", made.len()));
        match File::create(&path) {
            Ok(_) => made.push(path),
            Err(error) => break error.raw_os_error().unwrap(),
        }
        assert!(made.len() < 1000, "there are inodes without end");
    };
    assert_eq!(error, libc::ENOSPC);
    assert_eq!(errno(append(&root.join("lower"), b"more")), libc::ENOSPC);
    assert_eq!(errno(fs::create_dir(root.join("dir"))), libc::ENOSPC);
    small.assert_nothing_half_made("lower");
    assert_eq!(fs::read(root.join("lower")).unwrap(), b"content");
    // A deletion takes an inode for the whiteout: it happens or it is refused.
    match fs::remove_file(root.join("doomed")) {
        Ok(()) => assert!(!root.join("doomed").exists()),
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
            assert_eq!(fs::read(root.join("doomed")).unwrap(), b"content");
        }
    }
    for path in &made {
        fs::remove_file(path).unwrap();
    }
    append(&root.join("lower"), b" and more").unwrap();
    fs::rename(root.join("other"), root.join("renamed")).unwrap();
    fs::remove_file(root.join("renamed")).unwrap();
    assert_eq!(fs::read(root.join("lower")).unwrap(), b"content and more");
    mount.unmount();
}

#[test]
fn an_upper_that_becomes_read_only_refuses_changes_until_it_is_not() {
    needs_root!();
    let small = Small::new("readonly", 24, &["mkfs.ext4", "-q", "-F"], "");
    small.lower("lower", b"content");
    fs::create_dir(small.layers.upper.join("dir")).unwrap();
    fs::write(small.layers.upper.join("dir/file"), "in the upper").unwrap();
    let mount = small.mount();
    let root = mount.path();
    let remount = |how: &str| {
        run(Command::new("mount")
            .args(["-o", &format!("remount,{how}")])
            .arg(small.below.path()));
    };
    for round in 0..3 {
        remount("ro");
        let new = root.join(format!("new{round}"));
        let changes: [(&str, io::Result<()>); 7] = [
            ("create", fs::write(&new, "new")),
            ("copy up", append(&root.join("lower"), b"more")),
            ("write", append(&root.join("dir/file"), b"more")),
            ("mkdir", fs::create_dir(&new)),
            ("unlink", fs::remove_file(root.join("lower"))),
            ("rename", fs::rename(root.join("dir"), &new)),
            ("symlink", std::os::unix::fs::symlink("x", &new)),
        ];
        for (what, result) in changes {
            assert_eq!(errno(result), libc::EROFS, "{what}");
        }
        assert_eq!(fs::read(root.join("lower")).unwrap(), b"content");
        assert_eq!(fs::read(root.join("dir/file")).unwrap(), b"in the upper");
        small.assert_nothing_half_made("lower");
        remount("rw");
        fs::create_dir(&new).unwrap();
        small.daemon();
    }
    append(&root.join("lower"), b" and more").unwrap();
    mount.unmount();
}

/// What ext4 does when it finds itself damaged.
#[test]
fn an_upper_that_gives_up_keeps_what_was_synced() {
    needs_root!();
    let small = Small::new(
        "gives-up",
        24,
        &["mkfs.ext4", "-q", "-F"],
        "errors=remount-ro",
    );
    small.lower("lower", b"content");
    let source = run(Command::new("findmnt")
        .args(["-no", "SOURCE"])
        .arg(small.below.path()));
    let device = source.trim().trim_start_matches("/dev/");
    let trigger = format!("/sys/fs/ext4/{device}/trigger_fs_error");
    if !Path::new(&trigger).exists() {
        eprintln!("skipped: this kernel has no {trigger}");
        return;
    }
    let mount = small.mount();
    let root = mount.path();
    let synced = noise(5, 300_000);
    let mut file = File::create(root.join("synced")).unwrap();
    file.write_all(&synced).unwrap();
    file.sync_all().unwrap();
    fs::write(&trigger, "a fault made by a test").unwrap();
    let refused = [libc::EROFS, libc::EIO];
    for _ in 0..3 {
        assert!(refused.contains(&errno(append(&root.join("lower"), b"more"))));
        assert!(refused.contains(&errno(fs::write(root.join("new"), "new"))));
        let result = file.write_all(b"x").and_then(|()| file.sync_all());
        assert!(refused.contains(&errno(result)));
        assert_eq!(fs::read(root.join("lower")).unwrap(), b"content");
    }
    small.daemon();
    drop(file);
    small.lamina.ok(words(&["umount"], root));
    drop(mount);

    // It works again once the filesystem does.
    run(Command::new("umount").arg(small.below.path()));
    let checked = output(Command::new("e2fsck").args(["-f", "-y"]).arg(&small.image));
    assert!(
        checked.status.code().is_some_and(|code| code < 4),
        "{checked:?}"
    );
    let below = Mounted::new(&small.image, small.below.path(), "");
    let mount = small.mount();
    let now = fs::read(mount.path().join("synced")).unwrap();
    assert!(now.starts_with(&synced), "synced data is lost");
    append(&mount.path().join("lower"), b" and more").unwrap();
    mount.unmount();
    below.unmount();
}

/// A file of a lower that can be read up to a point.
struct Failing {
    content: Vec<u8>,
    /// Reads beyond fail.
    good: AtomicU64,
}

const ALL: u64 = u64::MAX;
/// Even its attributes cannot be had.
const NOTHING: u64 = u64::MAX - 1;

impl Backing for Failing {
    fn size(&self) -> Result<u64, Errno> {
        if self.good.load(Ordering::SeqCst) == NOTHING {
            return Err(Errno::EIO);
        }
        Ok(self.content.len() as u64)
    }

    fn read(&self, offset: u64, size: usize) -> Result<Vec<u8>, Errno> {
        let good = self.good.load(Ordering::SeqCst);
        let start = (offset as usize).min(self.content.len());
        let end = (start + size).min(self.content.len());
        if good == NOTHING || end as u64 > good {
            return Err(Errno::EIO);
        }
        Ok(self.content[start..end].to_vec())
    }
}

#[test]
fn a_lower_that_cannot_be_read_is_an_io_error_while_it_lasts() {
    needs_root!();
    let mut small = Small::new("eio", 24, &["mkfs.ext4", "-q", "-F"], "");
    let content = noise(8, 700_000);
    let files: Vec<_> = (0..FILES)
        .map(|_| {
            Arc::new(Failing {
                content: content.clone(),
                good: AtomicU64::new(ALL),
            })
        })
        .collect();
    let served = files.iter().enumerate();
    let served =
        served.map(|(at, file)| (format!("file{at}"), Arc::clone(file) as Arc<dyn Backing>));
    let lower = small.sandbox.dir("fake");
    let fake = Fake::mount(&lower, served.collect());
    small.layers.lowers = vec![lower];
    let mount = small.mount();
    let root = mount.path();
    let mut open = Vec::new();
    for (at, file) in files.iter().enumerate() {
        let name = format!("file{at}");
        let path = root.join(&name);
        file.good.store(NOTHING, Ordering::SeqCst);
        assert_eq!(errno(fs::metadata(&path)), libc::EIO);
        assert_eq!(errno(append(&path, b"more")), libc::EIO);
        // Half of it can be read: half of it must not be copied up.
        for good in [300_000, 0] {
            file.good.store(good, Ordering::SeqCst);
            assert_eq!(errno(fs::read(&path)), libc::EIO);
            assert_eq!(errno(append(&path, b"more")), libc::EIO);
            small.assert_nothing_half_made(&name);
        }
        file.good.store(ALL, Ordering::SeqCst);
        assert!(fs::read(&path).unwrap() == content, "{name}");
        append(&path, b"more").unwrap();
        let now = fs::read(&path).unwrap();
        assert!(now.strip_prefix(&content[..]) == Some(b"more"), "{name}");
        fs::remove_file(&path).unwrap();
        assert_nothing_deleted_is_open(small.daemon());
        open.push(descriptors(small.daemon()).len());
    }
    assert!(
        open[FILES - 1] <= open[1] + FILES,
        "descriptors leak: {open:?}"
    );
    fs::write(root.join("own"), "own").unwrap();
    assert_eq!(fs::read(root.join("own")).unwrap(), b"own");
    small.daemon();
    mount.unmount();
    drop(fake);
}

#[test]
fn an_object_that_lost_its_end_is_no_file_of_zeros() {
    needs_root!();
    let sandbox = Sandbox::new("cut");
    let lamina = Lamina::new(&sandbox);
    let content = noise(4, 300_000);
    let archive = Archive::new(&sandbox, "layer.tar")
        .file("file", &content)
        .finish();
    lamina.build("image", &[archive]);
    let mount = lamina.mount(&["--name", "kept", "image"], &sandbox.join("mnt"));
    let path = mount.path().join("file");
    // The daemon has it open, so that its size is not looked at again.
    let mut start = [0; 10];
    io::Read::read_exact(&mut File::open(&path).unwrap(), &mut start).unwrap();
    let find = "find \"$1/objects\" -type f -size +100k";
    let object = run(Command::new("sh")
        .args(["-c", find, "sh"])
        .arg(lamina.store()));
    let object = Path::new(object.trim());
    OpenOptions::new()
        .write(true)
        .open(object)
        .unwrap()
        .set_len(100_000)
        .unwrap();
    assert_eq!(errno(append(&path, b"more")), libc::EIO);
    let upper = lamina.store().join("mounts/kept/upper/file");
    assert!(!upper.exists(), "half a file was copied up");
    fs::write(object, &content).unwrap();
    append(&path, b"more").unwrap();
    let now = fs::read(&path).unwrap();
    assert!(now.strip_prefix(&content[..]) == Some(b"more"));
    mount.unmount();
}
