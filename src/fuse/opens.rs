//! Open files in passthrough mode.
//!
//! The kernel reads and writes an open file's *backing file* without asking: the object in the
//! store, the file in the lower directory, or that in the upper. All who have one inode open at one
//! time must have the same backing file; contents in the index have none and go through the page
//! cache. So for every file that is open we know how, and whoever opens it next gets the same;
//! only when a file that is read from a lower is opened for writing or truncated, it is copied up
//! and gets a second node id ([`Aliases`]): who reads goes on with what was there, as in overlayfs,
//! and no write can reach a lower.
//!
//! Locks: a file's own is held while it is opened, truncated by name or released, also during a
//! copy-up; those of the maps are leaves.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use fuser::{INodeNo, Notifier};
use lru::LruCache;
use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use super::abi;
use super::aliases::Aliases;
use crate::error::FsResult;
use crate::lower::Number;
use crate::stats::Counter;
use crate::sys;
use crate::sys::fuse_dev::Backing;
use crate::union::{Caller, Place, Union};

/// How many backing files are kept registered that nobody has open.
const IDLE: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
const SHARDS: usize = 16;

/// What the kernel is told of an opened file.
pub enum Opened {
    /// It goes through the page cache, with these flags.
    Cached(u32),
    /// The kernel does its I/O on the backing file.
    Backed(Arc<Backing>),
}

impl Opened {
    /// The kernel's words for it.
    pub fn out(&self) -> abi::OpenOut {
        let (open_flags, backing_id) = match self {
            Self::Cached(flags) => (*flags, 0),
            Self::Backed(backing) => (abi::FOPEN_PASSTHROUGH, backing.id()),
        };
        abi::OpenOut {
            fh: 0,
            open_flags,
            backing_id,
        }
    }
}

/// How a file is open.
#[derive(Clone)]
enum Io {
    Cached(u32),
    Backed(Place, Arc<Backing>),
}

#[derive(Default)]
struct OpenFile {
    handles: u64,
    io: Option<Io>,
    /// Its node id can no longer be opened.
    retired: bool,
    /// It was taken from the map.
    gone: bool,
}

type OpenFiles = HashMap<u64, Arc<Mutex<OpenFile>>>;

/// The open files of a mount in passthrough mode.
pub struct Opens {
    union: Arc<Union>,
    device: Arc<OwnedFd>,
    notifier: Notifier,
    files: [Mutex<OpenFiles>; SHARDS],
    /// Backing files of what was open, by node id.
    idle: Mutex<LruCache<u64, (Place, Arc<Backing>)>>,
    /// Second node ids.
    pub aliases: Aliases,
}

impl Opens {
    /// Nothing is open yet.
    pub fn new(union: Arc<Union>, device: Arc<OwnedFd>, notifier: Notifier) -> Self {
        Self {
            union,
            device,
            notifier,
            files: Default::default(),
            idle: Mutex::new(LruCache::new(IDLE)),
            aliases: Aliases::default(),
        }
    }

    /// Opens a node. `without_privileges`, truncating it takes set-id bits away.
    ///
    /// # Errors
    /// `ESTALE` if the kernel must look the name up again, and what a copy-up says.
    pub fn open(
        &self,
        id: u64,
        flags: u32,
        without_privileges: Option<Caller>,
    ) -> FsResult<Opened> {
        let number = self.number(id)?;
        let truncate = flags & libc::O_TRUNC as u32 != 0;
        let writes = flags & libc::O_ACCMODE as u32 != libc::O_RDONLY as u32 || truncate;
        self.with_file(id, |file| {
            if file.retired {
                return Err(Errno::STALE.into());
            }
            if writes {
                self.union
                    .make_writable(number, truncate, without_privileges)?;
                if let Some(Io::Backed(Place::Lower, _)) = file.io {
                    self.retire(id, number, file);
                    return Err(Errno::STALE.into());
                }
            }
            let io = match &file.io {
                Some(io) => io.clone(),
                None => self.begin(id, number)?,
            };
            file.io = Some(io.clone());
            file.handles += 1;
            Ok(match io {
                Io::Cached(flags) => Opened::Cached(flags),
                Io::Backed(_, backing) => Opened::Backed(backing),
            })
        })
    }

    /// Calls `truncate`, which changes a file's size, when that disturbs nobody who reads.
    ///
    /// # Errors
    /// `ESTALE` if the kernel must look the name up again, and those of `truncate`.
    pub fn truncate<T>(
        &self,
        id: u64,
        truncate: impl FnOnce(Number) -> FsResult<T>,
    ) -> FsResult<T> {
        let number = self.number(id)?;
        self.with_file(id, |file| {
            if let Some(Io::Backed(Place::Lower, _)) = file.io {
                self.union.make_writable(number, false, None)?;
                self.retire(id, number, file);
            }
            if file.retired {
                return Err(Errno::STALE.into());
            }
            truncate(number)
        })
    }

    /// One who had it open has closed it.
    pub fn release(&self, id: u64) {
        self.with_file(id, |file| {
            file.handles = file.handles.saturating_sub(1);
            if file.handles > 0 {
                return;
            }
            let io = file.io.take();
            if file.retired {
                file.retired = !self.aliases.reinstate(Number(id));
            } else if let Some(Io::Backed(place, backing)) = io {
                let displaced = self.idle.lock().push(id, (place, backing));
                // Closed here, after the lock.
                drop(displaced);
            }
        });
    }

    /// The kernel gave back `count` lookups of a node id.
    pub fn forget(&self, id: u64, count: u64) {
        let Some(number) = self.aliases.forget(id, count) else {
            return;
        };
        let idle = self.idle.lock().pop(&id);
        drop(idle);
        if number.0 != id {
            self.with_file(number.0, |file| {
                if file.handles == 0 {
                    file.retired = !self.aliases.reinstate(number);
                }
            });
        }
        self.union.forget(number, count);
    }

    /// The number behind a node id.
    pub fn number(&self, id: u64) -> FsResult<Number> {
        let number = self.aliases.number(id);
        number.ok_or_else(|| Errno::STALE.into())
    }

    /// How a file that nobody has open is to be opened.
    fn begin(&self, id: u64, number: Number) -> FsResult<Io> {
        let place = self.union.place_of(number)?;
        let idle = self.idle.lock().pop(&id);
        // Whether a write takes set-user-id away depends on who writes. The kernel tells us that of
        // each write, but does not consider it when it writes to a backing file itself.
        if place == Place::Upper && self.union.has_set_id(number)? {
            return Ok(Io::Cached(0));
        }
        if let Some((known, backing)) = idle
            && known == place
        {
            return Ok(Io::Backed(place, backing));
        }
        let Some((place, fd)) = self.union.open_contents(number)? else {
            return Ok(Io::Cached(abi::FOPEN_KEEP_CACHE));
        };
        // The kernel writes with the rights of whoever registers the file. With this one, nobody's
        // write would take set-user-id away.
        let register = || Backing::register(&self.device, fd.as_fd());
        match sys::process::without_capability(CapabilitySet::FSETID, register).flatten() {
            Ok(backing) => Ok(Io::Backed(place, Arc::new(backing))),
            Err(error) => {
                // Files on a stacked filesystem cannot back another. What the page cache has of
                // this one may be from another time.
                tracing::debug!("no passthrough for node {}: {error}", number.0);
                Ok(Io::Cached(0))
            }
        }
    }

    fn retire(&self, id: u64, number: Number, file: &mut OpenFile) {
        file.retired = true;
        self.aliases.retire(number);
        self.union.stats.add(Counter::Notifications, 1);
        if let Err(error) = self.notifier.inval_inode(INodeNo(id), -1, 0) {
            // The kernel does not know it any more.
            tracing::debug!("cannot invalidate the attributes of node {}: {error}", id);
        }
    }

    fn shard(&self, id: u64) -> &Mutex<OpenFiles> {
        let [first, ..] = &self.files;
        self.files.get(id as usize % SHARDS).unwrap_or(first)
    }

    /// Calls `act` with what is known of an open file, under its lock.
    fn with_file<T>(&self, id: u64, act: impl FnOnce(&mut OpenFile) -> T) -> T {
        let shard = self.shard(id);
        loop {
            let file = Arc::clone(shard.lock().entry(id).or_default());
            let mut file = file.lock();
            if file.gone {
                continue;
            }
            let result = act(&mut file);
            if file.handles == 0 && !file.retired {
                file.gone = true;
                shard.lock().remove(&id);
            }
            return result;
        }
    }
}
