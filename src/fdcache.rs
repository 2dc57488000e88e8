//! A bounded cache of open descriptors.

use std::hash::{BuildHasher, Hash, RandomState};
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use lru::LruCache;

use crate::stats::{Counter, Stats};
use crate::sync::Mutex;

const SHARDS: usize = 8;

/// Open descriptors by key, the least recently used closed first.
///
/// A descriptor that was handed out stays open until its user drops it, whatever the cache does.
/// Locks: one per shard, a leaf; nothing is opened or closed under it.
pub struct FdCache<K: Hash + Eq> {
    shards: Vec<Mutex<LruCache<K, Arc<OwnedFd>>>>,
    hasher: RandomState,
    stats: Arc<Stats>,
}

impl<K: Hash + Eq> FdCache<K> {
    /// A cache of about `capacity` descriptors.
    pub fn new(capacity: usize, stats: &Arc<Stats>) -> Self {
        let each = NonZeroUsize::new(capacity / SHARDS).unwrap_or(NonZeroUsize::MIN);
        let shards = (0..SHARDS)
            .map(|_| Mutex::new(LruCache::new(each)))
            .collect();
        Self {
            shards,
            hasher: RandomState::new(),
            stats: Arc::clone(stats),
        }
    }

    fn shard(&self, key: &K) -> Option<&Mutex<LruCache<K, Arc<OwnedFd>>>> {
        self.shards.get(self.hasher.hash_one(key) as usize % SHARDS)
    }

    /// The descriptor kept under `key`.
    pub fn get(&self, key: &K) -> Option<Arc<OwnedFd>> {
        let found = self.shard(key)?.lock().get(key).cloned();
        let counter = match found {
            Some(_) => Counter::DescriptorHits,
            None => Counter::DescriptorMisses,
        };
        self.stats.add(counter, 1);
        found
    }

    /// The descriptor kept under `key`, or else the one that `open` gives, which is kept.
    pub fn get_or_open<E>(
        &self,
        key: K,
        open: impl FnOnce() -> Result<OwnedFd, E>,
    ) -> Result<Arc<OwnedFd>, E> {
        if let Some(fd) = self.get(&key) {
            return Ok(fd);
        }
        let fd = Arc::new(open()?);
        self.insert(key, &fd);
        Ok(fd)
    }

    /// Keeps a descriptor.
    pub fn insert(&self, key: K, fd: &Arc<OwnedFd>) {
        let displaced = self
            .shard(&key)
            .and_then(|shard| shard.lock().push(key, Arc::clone(fd)));
        // Closed here, after the lock.
        drop(displaced);
    }

    /// Forgets the descriptor kept under `key`.
    pub fn remove(&self, key: &K) {
        let displaced = self.shard(key).and_then(|shard| shard.lock().pop(key));
        drop(displaced);
    }
}

/// How many descriptors all caches of this process together may keep open: a good part of the
/// limit, which is first raised as far as the system allows.
pub fn budget() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let current = match setrlimit(Resource::Nofile, wanted) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    usize::try_from(current.unwrap_or(1 << 16))
        .unwrap_or(1 << 16)
        .clamp(64, 1 << 16)
        / 2
}
