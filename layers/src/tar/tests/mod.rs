//! Tests of importing and exporting, by subject. Every archive that is imported is exported again
//! and compared, byte for byte.

use std::io::Write as _;

use crate::digest::{DiffId, Digest};
use crate::index::{Data, Index, Ino};
use crate::store::{Access, LayerInfo, Store};

use super::{ImportError, ImportOptions, export_layer, import_layer};

mod formats;
mod hostile;
mod meaning;
mod packed;
mod real;

/// A store of its own, in memory where there is such a place.
pub struct Scratch {
    pub store: Store,
    pub dir: tempfile::TempDir,
}

pub fn scratch() -> Scratch {
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    let dir = dir.unwrap();
    let store = Store::open(&dir.path().join("store"), Access::ReadWrite).unwrap();
    Scratch { store, dir }
}

impl Scratch {
    /// Imports an archive that must be good, and exports it.
    #[track_caller]
    pub fn import(&self, archive: &[u8]) -> (LayerInfo, Index) {
        let options = ImportOptions::default();
        let info = match import_layer(&self.store, archive, "archive", &options) {
            Ok(info) => info,
            Err(error) => panic!("{error}"),
        };
        assert_eq!(info.diff_id, DiffId(Digest::of(archive)));
        assert_eq!(info.tar_size, archive.len() as u64);
        let mut exported = Vec::new();
        export_layer(&self.store, &info.diff_id, &mut exported).unwrap();
        assert!(exported == archive, "the export is not what was imported");
        let index = self.store.layer_index(&info.diff_id).unwrap();
        (info, index)
    }

    /// Imports an archive that must be refused, and leave nothing.
    #[track_caller]
    pub fn refused(&self, archive: &[u8]) -> String {
        self.refused_with(archive, &ImportOptions::default())
            .to_string()
    }

    #[track_caller]
    pub fn refused_with(&self, archive: &[u8], options: &ImportOptions<'_>) -> ImportError {
        let before = files(self.store.root());
        let result = import_layer(&self.store, archive, "the archive", options);
        let error = result.expect_err("it was imported");
        assert!(error.to_string().contains("the archive"), "{error}");
        assert_eq!(files(self.store.root()), before, "something is left");
        error
    }

    /// A line for every entry of a layer, in the order of their paths.
    pub fn listing(&self, index: &Index) -> Vec<String> {
        let mut lines: Vec<_> = index
            .inodes()
            .flat_map(|inode| self.lines(index, inode.ino()))
            .collect();
        lines.sort();
        lines
    }

    /// One line per name: path, kind and contents, mode, owner, time, attributes.
    fn lines(&self, index: &Index, ino: Ino) -> Vec<String> {
        let inode = index.inode(ino).unwrap();
        let what = match inode.data() {
            Data::Directory { .. } => {
                let mut what = "dir".to_owned();
                if inode.is_opaque() {
                    what.push_str(" opaque");
                }
                if inode.is_implicit() {
                    what.push_str(" implicit");
                }
                what
            }
            Data::Inline(bytes) => format!("file {}", short(bytes)),
            Data::Object(id) => {
                let file = self.store.open_object(&id, inode.size()).unwrap();
                let bytes = std::io::read_to_string(file).unwrap_or_default();
                format!("object {}", short(bytes.as_bytes()))
            }
            Data::Symlink(target) => format!("-> {}", target.escape_ascii()),
            Data::Device { major, minor } => {
                let letter = if inode.mode() & libc::S_IFMT == libc::S_IFBLK {
                    'b'
                } else {
                    'c'
                };
                format!("{letter} {major}:{minor}")
            }
            Data::Fifo => "fifo".into(),
            Data::Socket => "socket".into(),
            Data::Whiteout => "whiteout".into(),
            Data::HardLink(path) => format!("link to lower {}", path.escape_ascii()),
        };
        let mut tail = format!(
            "{what} {:o} {}:{} {}.{}",
            inode.mode() & 0o7777,
            inode.uid(),
            inode.gid(),
            inode.mtime().0,
            inode.mtime().1
        );
        if matches!(inode.data(), Data::Whiteout | Data::HardLink(_)) || inode.is_implicit() {
            tail = what;
        }
        for (name, value) in inode.xattrs() {
            tail.push_str(&format!(
                " {}={}",
                name.escape_ascii(),
                value.escape_ascii()
            ));
        }
        let mut paths: Vec<_> = index
            .names_of(ino)
            .map(|(dir, entry)| {
                let mut path = index.path_of(dir);
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(entry.name);
                path.escape_ascii().to_string()
            })
            .collect();
        if ino == Ino::ROOT {
            paths.push("/".into());
        }
        if paths.len() > 1 {
            paths.sort();
            tail.push_str(&format!(" names {}", paths.join("=")));
        }
        paths.iter().map(|path| format!("{path} {tail}")).collect()
    }
}

/// Long contents as their length and digest.
fn short(bytes: &[u8]) -> String {
    if bytes.len() <= 20 {
        return format!("'{}'", bytes.escape_ascii());
    }
    format!("{}/{}", bytes.len(), &Digest::of(bytes).hex()[..8])
}

/// All files below a directory, and empty directories.
pub fn files(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        found.push(dir.clone());
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.is_symlink() {
                dirs.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// An archive under construction. Headers are made by the `tar` crate, which knows nothing of this
/// crate's own writer.
#[derive(Default, Clone)]
pub struct Archive(pub Vec<u8>);

/// A header to be changed by a test.
pub struct Head(pub ::tar::Header);

impl Archive {
    /// Any entry: `change` gets a header with the mode 0644 and the time 1.
    pub fn entry(mut self, path: &[u8], flag: u8, data: &[u8], change: impl Fn(&mut Head)) -> Self {
        let mut head = Head(::tar::Header::new_ustar());
        head.0.as_mut_bytes()[..path.len()].copy_from_slice(path);
        head.0.as_mut_bytes()[156] = flag;
        head.0.set_mode(0o644);
        head.0.set_uid(0);
        head.0.set_gid(0);
        head.0.set_mtime(1);
        head.0.set_size(data.len() as u64);
        change(&mut head);
        head.0.set_cksum();
        self.0.write_all(head.0.as_bytes()).unwrap();
        self.data(data)
    }

    /// Data and its padding.
    pub fn data(mut self, data: &[u8]) -> Self {
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, path: &str, data: &[u8]) -> Self {
        self.entry(path.as_bytes(), b'0', data, |_| ())
    }

    pub fn dir(self, path: &str) -> Self {
        self.entry(path.as_bytes(), b'5', b"", |head| head.0.set_mode(0o755))
    }

    pub fn link(self, flag: u8, path: &str, target: &str) -> Self {
        self.entry(path.as_bytes(), flag, b"", |head| {
            head.link(target.as_bytes())
        })
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.link(b'2', path, target)
    }

    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.link(b'1', path, target)
    }

    /// An extended header for the next entry.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        self.extended(b'x', records)
    }

    pub fn extended(self, flag: u8, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (keyword, value) in records {
            super::write::pax_record(&mut data, keyword.as_bytes(), value);
        }
        self.entry(b"PaxHeaders/x", flag, &data, |_| ())
    }

    /// The archive with its end.
    pub fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

impl Head {
    pub fn link(&mut self, target: &[u8]) {
        self.0.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target);
    }

    pub fn set(&mut self, at: usize, bytes: &[u8]) {
        self.0.as_mut_bytes()[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub fn gnu(&mut self) {
        self.set(257, b"ustar  \0");
    }
}

/// Bytes that do not repeat.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
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
