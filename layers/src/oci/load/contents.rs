//! What an archive or a directory of images has, by path.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

use super::LoadError;
use super::walk::{Kind, Part, Walk, normal};
use crate::digest::Digest;
use crate::tar::Compression;

/// Links that are followed from one name.
const LINKS_MAX: usize = 16;
/// Bytes that tell what a file is.
const START: usize = 512;

/// A file that may be a layer.
pub struct Look {
    /// Its length in bytes.
    pub size: u64,
    /// How it is packed.
    pub compression: Compression,
    /// Its digest, if that is known without reading it.
    pub digest: Option<Digest>,
}

/// Files by path.
pub trait Contents: Sync {
    /// What people call it.
    fn name(&self) -> &str;

    /// All bytes of a file, if it is there; at most `max`.
    fn read(&self, path: &str, max: u64) -> Result<Option<Vec<u8>>, LoadError>;

    /// What a file is, if it is there.
    fn look(&self, path: &str) -> Result<Option<Look>, LoadError>;

    /// Opens a file, if it is there.
    fn open(&self, path: &str) -> Result<Option<Box<dyn Read + Send + '_>>, LoadError>;
}

/// The error for a file that cannot be read.
pub fn unreadable<'a>(name: &'a str, path: &'a str) -> impl Fn(io::Error) -> LoadError + 'a {
    |source| LoadError::Read {
        name: name.to_owned(),
        path: path.to_owned(),
        source,
    }
}

/// Reads a file of `size` bytes that is short enough.
fn read_short(
    name: &str,
    path: &str,
    (size, max): (u64, u64),
    from: impl Read,
) -> Result<Vec<u8>, LoadError> {
    if size > max {
        return Err(LoadError::Long {
            name: name.to_owned(),
            path: path.to_owned(),
            size,
            max,
        });
    }
    let mut bytes = Vec::new();
    from.take(size)
        .read_to_end(&mut bytes)
        .map_err(unreadable(name, path))?;
    Ok(bytes)
}

/// How a file is packed.
fn packing(from: impl Read) -> io::Result<Compression> {
    let mut start = Vec::with_capacity(START);
    from.take(START as u64).read_to_end(&mut start)?;
    Ok(Compression::of(&start))
}

/// Files and links by path.
pub struct Items<T> {
    name: String,
    items: BTreeMap<String, Item<T>>,
}

enum Item<T> {
    File(T),
    Link(String),
}

impl<T> Items<T> {
    /// None yet, of what people call `name`.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            items: BTreeMap::new(),
        }
    }

    /// What people call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether something has this path.
    pub fn has(&self, path: &str) -> bool {
        self.items.contains_key(path)
    }

    /// Adds a file.
    pub fn add_file(&mut self, path: String, file: T) -> Result<(), LoadError> {
        self.add(path, Item::File(file))
    }

    /// Adds a link.
    pub fn add_link(&mut self, path: String, target: String) -> Result<(), LoadError> {
        self.add(path, Item::Link(target))
    }

    fn add(&mut self, path: String, item: Item<T>) -> Result<(), LoadError> {
        if self.has(&path) {
            let name = self.name.clone();
            return Err(LoadError::Twice { name, path });
        }
        self.items.insert(path, item);
        Ok(())
    }

    /// The file at a path, links followed.
    pub fn file(&self, path: &str) -> Result<Option<&T>, LoadError> {
        let nowhere = || LoadError::Link {
            name: self.name.clone(),
            path: path.to_owned(),
        };
        let mut at = normal(path).ok_or_else(nowhere)?;
        for followed in 0..LINKS_MAX {
            match self.items.get(&at) {
                Some(Item::File(file)) => return Ok(Some(file)),
                Some(Item::Link(target)) => at = normal(target).ok_or_else(nowhere)?,
                None if followed == 0 => return Ok(None),
                None => break,
            }
        }
        Err(nowhere())
    }
}

/// An archive in a file that is not packed: its files are read where they are, in any order.
pub struct Indexed {
    items: Items<(u64, u64)>,
    file: Arc<File>,
}

impl Indexed {
    /// Goes through an archive.
    pub fn read(file: File, name: &str) -> Result<Self, LoadError> {
        let wrong = |problem| LoadError::Archive {
            name: name.to_owned(),
            problem,
        };
        let meta = file.metadata().map_err(|error| wrong(error.into()))?;
        let file = Arc::new(file);
        let mut walk = Walk::new(Part::new(&file, 0, meta.len()));
        let mut items = Items::new(name);
        while let Some(entry) = walk.next().map_err(wrong)? {
            match entry.kind {
                Kind::File(size) => items.add_file(entry.path, (walk.position(), size))?,
                Kind::Link(target) => items.add_link(entry.path, target)?,
            }
        }
        Ok(Self { items, file })
    }

    fn part(&self, path: &str) -> Result<Option<(u64, Part)>, LoadError> {
        let found = self.items.file(path)?;
        Ok(found.map(|(start, size)| (*size, Part::new(&self.file, *start, *size))))
    }
}

impl Contents for Indexed {
    fn name(&self) -> &str {
        self.items.name()
    }

    fn read(&self, path: &str, max: u64) -> Result<Option<Vec<u8>>, LoadError> {
        let part = self.part(path)?;
        part.map(|(size, part)| read_short(self.name(), path, (size, max), part))
            .transpose()
    }

    fn look(&self, path: &str) -> Result<Option<Look>, LoadError> {
        let Some((size, part)) = self.part(path)? else {
            return Ok(None);
        };
        let compression = packing(part).map_err(unreadable(self.name(), path))?;
        Ok(Some(Look {
            size,
            compression,
            digest: None,
        }))
    }

    fn open(&self, path: &str) -> Result<Option<Box<dyn Read + Send + '_>>, LoadError> {
        let part = self.part(path)?;
        Ok(part.map(|(_, part)| Box::new(part) as Box<dyn Read + Send>))
    }
}

/// A directory in OCI's image layout.
pub struct Directory {
    name: String,
    dir: OwnedFd,
}

impl Directory {
    /// Opens one.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(CWD, path, flags, Mode::empty()).map_err(|errno| LoadError::Open {
            path: path.to_owned(),
            source: errno.into(),
        })?;
        let name = path.display().to_string();
        Ok(Self { name, dir })
    }

    /// A regular file in it. Links may lead to others in it, not out of it.
    fn file(&self, path: &str) -> Result<Option<(u64, File)>, LoadError> {
        let failed = unreadable(&self.name, path);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let file = match openat2(&self.dir, path, flags, Mode::empty(), resolve) {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::XDEV | Errno::LOOP) => {
                return Err(LoadError::Link {
                    name: self.name.clone(),
                    path: path.to_owned(),
                });
            }
            Err(errno) => return Err(failed(errno.into())),
        };
        let meta = file.metadata().map_err(&failed)?;
        if !meta.is_file() {
            return Err(failed(io::Error::other("it is not a regular file")));
        }
        Ok(Some((meta.len(), file)))
    }
}

impl Contents for Directory {
    fn name(&self) -> &str {
        &self.name
    }

    fn read(&self, path: &str, max: u64) -> Result<Option<Vec<u8>>, LoadError> {
        let file = self.file(path)?;
        file.map(|(size, file)| read_short(&self.name, path, (size, max), file))
            .transpose()
    }

    fn look(&self, path: &str) -> Result<Option<Look>, LoadError> {
        let Some((size, file)) = self.file(path)? else {
            return Ok(None);
        };
        let compression = packing(file).map_err(unreadable(&self.name, path))?;
        Ok(Some(Look {
            size,
            compression,
            digest: None,
        }))
    }

    fn open(&self, path: &str) -> Result<Option<Box<dyn Read + Send + '_>>, LoadError> {
        let file = self.file(path)?;
        Ok(file.map(|(_, file)| Box::new(file) as Box<dyn Read + Send>))
    }
}
