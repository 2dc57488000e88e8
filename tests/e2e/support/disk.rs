//! A disk that remembers, in order, every write and every flush, and can tell what would be on it
//! had the power failed at any moment: what dm-log-writes does where the kernel has it.
//!
//! The disk is a file of a FUSE filesystem that the test serves, with a loop device on it. A real
//! disk has a cache that loses what was not flushed: so all writes before the last flush count, and
//! of those after it any may or may not have reached the disk. Writes are whole or not at all,
//! which is less than disks do (they tear between sectors); ext4's checksums are for that.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use fuser::Errno;

use super::fake::{Backing, Fake};
use super::run;
use super::sandbox::{Sandbox, detach, mounted_type};
use crate::differential::rng::Rng;

enum Event {
    Write(u64, Vec<u8>),
    Flush,
}

/// A mounted ext4 on such a disk.
pub struct Disk {
    log: Arc<Log>,
    blank: PathBuf,
    target: PathBuf,
    device: String,
    _fake: Fake,
}

struct Log {
    live: File,
    size: u64,
    events: Mutex<Vec<Event>>,
}

impl Backing for Log {
    fn size(&self) -> Result<u64, Errno> {
        Ok(self.size)
    }

    fn read(&self, offset: u64, size: usize) -> Result<Vec<u8>, Errno> {
        let size = size.min(self.size.saturating_sub(offset) as usize);
        let mut data = vec![0; size];
        match self.live.read_exact_at(&mut data, offset) {
            Ok(()) => Ok(data),
            Err(_) => Err(Errno::EIO),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let written = self.live.write_all_at(data, offset);
        written.map_err(|_| Errno::EIO)?;
        let mut events = self.events.lock().unwrap();
        events.push(Event::Write(offset, data.to_vec()));
        Ok(())
    }

    fn sync(&self) -> Result<(), Errno> {
        self.events.lock().unwrap().push(Event::Flush);
        Ok(())
    }
}

impl Disk {
    /// An empty ext4 of `megabytes`, mounted at a new directory of `sandbox`.
    pub fn new(sandbox: &Sandbox, megabytes: u64) -> Self {
        let size = megabytes << 20;
        let blank = sandbox.join("blank.img");
        File::create(&blank).unwrap().set_len(size).unwrap();
        run(Command::new("mkfs.ext4")
            .args(["-q", "-F", "-E", "nodiscard,lazy_itable_init=0"])
            .arg(&blank));
        let live = sandbox.join("live.img");
        copy_sparse(&blank, &live);
        let live = File::options().read(true).write(true).open(live).unwrap();
        let log = Arc::new(Log {
            live,
            size,
            events: Mutex::default(),
        });
        let files: Vec<(String, Arc<dyn Backing>)> = vec![("disk".into(), Arc::clone(&log) as _)];
        let served = sandbox.dir("disk");
        let fake = Fake::mount(&served, files);
        let device = run(Command::new("losetup")
            .args(["--find", "--show"])
            .arg(served.join("disk")));
        let mut disk = Self {
            log,
            blank,
            target: sandbox.dir("disk-mounted"),
            device: device.trim().to_owned(),
            _fake: fake,
        };
        disk.mount();
        disk
    }

    fn mount(&mut self) {
        run(Command::new("mount")
            .args(["-t", "ext4"])
            .args([Path::new(&self.device), &self.target]));
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.target
    }

    /// How many writes and flushes there were: the present, as a moment.
    pub fn now(&self) -> usize {
        self.log.events.lock().unwrap().len()
    }

    /// The same, for threads.
    pub fn clock(&self) -> Arc<dyn Fn() -> usize + Send + Sync> {
        let log = Arc::clone(&self.log);
        Arc::new(move || log.events.lock().unwrap().len())
    }

    /// Writes to the file `image` what the disk may have held had the power failed at `moment`.
    pub fn image_at(&self, moment: usize, rng: &mut Rng, image: &Path) {
        copy_sparse(&self.blank, image);
        let file = File::options().write(true).open(image).unwrap();
        let events = self.log.events.lock().unwrap();
        let before = &events[..moment];
        let flushed = (before.iter()).rposition(|event| matches!(event, Event::Flush));
        // None of what was in the cache, all of it, or some.
        let luck = [0, 100, 50][rng.below(3)];
        for (at, event) in before.iter().enumerate() {
            let Event::Write(offset, data) = event else {
                continue;
            };
            if flushed.is_some_and(|flushed| at < flushed) || rng.chance(luck) {
                file.write_all_at(data, *offset).unwrap();
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if mounted_type(&self.target).is_some() {
            detach(&self.target);
        }
        // What is detached and in use keeps the device until it is not.
        let released = Command::new("losetup").args(["-d", &self.device]).status();
        if !released.is_ok_and(|status| status.success()) {
            eprintln!("left: {}", self.device);
        }
    }
}

/// A filesystem image, mounted while this lives.
pub struct Mounted {
    target: PathBuf,
}

impl Mounted {
    /// Mounts the image of a filesystem at `target`, which is made.
    pub fn new(image: &Path, target: &Path, options: &str) -> Self {
        fs::create_dir_all(target).unwrap();
        let options = format!("loop,{options}");
        let options = options.trim_end_matches(',');
        run(Command::new("mount")
            .args(["-o", options])
            .args([image, target]));
        Self {
            target: target.to_owned(),
        }
    }

    /// Where.
    pub fn path(&self) -> &Path {
        &self.target
    }

    /// Unmounts it, which must be possible.
    pub fn unmount(self) {
        run(Command::new("umount").arg(&self.target));
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if mounted_type(&self.target).is_some() {
            detach(&self.target);
        }
    }
}

fn copy_sparse(from: &Path, to: &Path) {
    run(Command::new("cp")
        .args(["--sparse=always", "--reflink=auto"])
        .args([from, to]));
}
