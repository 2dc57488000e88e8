//! Layer archives made by the tests themselves.

use std::path::{Path, PathBuf};

use super::sandbox::Sandbox;

/// An archive being written.
pub struct Archive {
    builder: tar::Builder<std::fs::File>,
    path: PathBuf,
}

impl Archive {
    /// A new one called `name` in `sandbox`.
    pub fn new(sandbox: &Sandbox, name: &str) -> Self {
        let path = sandbox.join(name);
        Self {
            builder: tar::Builder::new(std::fs::File::create(&path).unwrap()),
            path,
        }
    }

    /// Adds a directory.
    pub fn dir(self, path: &str, mode: u32) -> Self {
        self.entry(path, tar::EntryType::Directory, mode, b"")
    }

    /// Adds a file of root's.
    pub fn file(self, path: &str, content: &[u8]) -> Self {
        self.entry(path, tar::EntryType::Regular, 0o644, content)
    }

    /// Adds a hard link.
    pub fn hard_link(mut self, path: &str, target: &str) -> Self {
        let mut header = header(tar::EntryType::Link, 0o644, 0);
        self.builder.append_link(&mut header, path, target).unwrap();
        self
    }

    /// Adds a symlink.
    pub fn symlink(mut self, path: &str, target: &str) -> Self {
        let mut header = header(tar::EntryType::Symlink, 0o777, 0);
        self.builder.append_link(&mut header, path, target).unwrap();
        self
    }

    /// Adds a file under a name of any bytes (100 at most), wrong ones included.
    pub fn raw_file(mut self, path: &[u8], content: &[u8]) -> Self {
        let mut header = header(tar::EntryType::Regular, 0o644, content.len() as u64);
        header.as_old_mut().name[..path.len()].copy_from_slice(path);
        header.set_cksum();
        self.builder.append(&header, content).unwrap();
        self
    }

    fn entry(mut self, path: &str, kind: tar::EntryType, mode: u32, content: &[u8]) -> Self {
        let mut header = header(kind, mode, content.len() as u64);
        self.builder
            .append_data(&mut header, path, content)
            .unwrap();
        self
    }

    /// Writes the end of the archive and returns its path.
    pub fn finish(self) -> PathBuf {
        self.builder.into_inner().unwrap().sync_all().unwrap();
        self.path
    }
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header.set_size(size);
    header
}

/// An archive of everything in `dir`, by GNU tar.
pub fn archive_of(dir: &Path, archive: &Path) {
    let mut tar = std::process::Command::new("tar");
    tar.args([
        "--create",
        "--sparse",
        "--format=posix",
        "--sort=name",
        "--numeric-owner",
        "--xattrs",
        "--xattrs-include=*",
    ]);
    tar.args(["--pax-option=delete=atime,delete=ctime", "--file"]);
    super::run(tar.arg(archive).arg("-C").arg(dir).arg("."));
}

/// `length` bytes that do not compress, the same for the same seed.
pub fn noise(seed: u8, length: usize) -> Vec<u8> {
    let mut state = u64::from(seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// `archive` as `program` packs it (gzip, zstd, xz or bzip2).
pub fn pack(program: &str, archive: &Path, packed: &Path) {
    let mut command = std::process::Command::new(program);
    command
        .arg("-c")
        .stdin(std::fs::File::open(archive).unwrap())
        .stdout(std::fs::File::create(packed).unwrap());
    assert!(command.status().unwrap().success(), "{program} failed");
}
