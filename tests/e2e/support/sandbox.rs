//! A directory of a test's own. Whatever is still mounted below it when the test ends, however it
//! ends, is unmounted, and the directory is removed.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};
use tempfile::TempDir;

/// A scratch directory that any user may enter.
pub struct Sandbox {
    dir: TempDir,
}

impl Sandbox {
    /// A new, empty one; `name` shows in its path.
    pub fn new(name: &str) -> Self {
        let home =
            std::env::var_os("LAMINA_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let dir = tempfile::Builder::new()
            .prefix(&format!("lamina-{name}-"))
            .tempdir_in(home)
            .expect("a directory to test in");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self { dir }
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A path in it; nothing is made there.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A new directory in it, with its parents.
    pub fn dir(&self, name: impl AsRef<Path>) -> PathBuf {
        let path = self.join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// A new file in it, and the directories that it takes.
    pub fn file(&self, name: impl AsRef<Path>, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        for target in mounts_under(self.path()).into_iter().rev() {
            detach(&target);
        }
        // A daemon that was detached a moment ago may still be putting things away.
        let deadline = Instant::now() + Duration::from_secs(10);
        while let Err(error) = fs::remove_dir_all(self.path()) {
            if error.kind() == std::io::ErrorKind::NotFound {
                break;
            }
            if Instant::now() > deadline {
                eprintln!("left behind: {}: {error}", self.path().display());
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Unmounts lazily, as root or through the setuid helper.
pub fn detach(target: &Path) {
    if unmount(target, UnmountFlags::DETACH).is_err() {
        let helper = std::process::Command::new("fusermount3")
            .arg("-uz")
            .arg(target)
            .output();
        if !helper.is_ok_and(|output| output.status.success()) {
            eprintln!("left mounted: {}", target.display());
        }
    }
}

/// The mount points at or below `dir`, in the order they were mounted.
pub fn mounts_under(dir: &Path) -> Vec<PathBuf> {
    let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
    table
        .split(|&byte| byte == b'\n')
        .filter_map(|line| line.split(|&byte| byte == b' ').nth(4))
        .map(unescape)
        .filter(|target| target.starts_with(dir))
        .collect()
}

/// The filesystem type mounted at exactly `target` (the topmost one).
pub fn mounted_type(target: &Path) -> Option<String> {
    // Mount points may be any bytes.
    let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let mut lines = table.split(|&byte| byte == b'\n').rev();
    lines.find_map(|line| {
        let mut fields = line.split(|&byte| byte == b' ');
        let path = unescape(fields.nth(4)?);
        let fs_type = fields.skip_while(|field| *field != b"-").nth(1)?;
        (path == target).then(|| String::from_utf8_lossy(fs_type).into_owned())
    })
}

/// Undoes the octal escapes of /proc/self/mountinfo.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = (first == b'\\').then(|| tail.get(..3)).flatten();
        let value =
            octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(value.unwrap_or(first));
        rest = if value.is_some() { &tail[3..] } else { tail };
    }
    PathBuf::from(OsString::from_vec(bytes))
}
