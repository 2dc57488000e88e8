//! What a daemon counts: requests by kind, how long they took, and what was done for them.
//!
//! The counters lie in memory that other processes can read ([`Stats::descriptor`]), so that looking
//! at them costs the daemon nothing, and works when it hangs. Threads have counters of their own, as
//! long as there are not too many of them; a reader adds them up. What it sees is of nearly one
//! moment only.
//!
//! Layout, in words of 64 bits: magic, version, number of shards, number of kinds, number of
//! buckets; then the shards. A shard is its [`Counter`]s, then for each kind: failed requests,
//! nanoseconds in all, the longest in nanoseconds, and the buckets of the histogram, whose sum is the number of requests.

use std::cell::Cell;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::io::Errno;

use crate::sys::SysResult;
use crate::sys::shared::SharedWords;

const MAGIC: u64 = u64::from_le_bytes(*b"lamistat");
const VERSION: u64 = 1;
const HEADER: usize = 5;
const SHARDS: usize = 8;
/// Kinds are opcodes of FUSE; larger ones are counted under 0.
const KINDS: usize = 64;
/// Four for each power of two, up to some 70 s.
const BUCKETS: usize = 4 * 37;
const KIND: usize = 3 + BUCKETS;
const SHARD: usize = Counter::ALL.len() + KINDS * KIND;

/// What is counted besides requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Bytes that READ was answered with.
    BytesRead,
    /// Bytes that WRITE wrote.
    BytesWritten,
    /// Objects that were copied up.
    CopyUps,
    /// Bytes that this copied, holes included.
    CopyUpBytes,
    /// Descriptors that were open already when they were needed.
    DescriptorHits,
    /// Descriptors that had to be opened.
    DescriptorMisses,
    /// Notifications sent to the kernel.
    Notifications,
}

impl Counter {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::BytesRead,
        Self::BytesWritten,
        Self::CopyUps,
        Self::CopyUpBytes,
        Self::DescriptorHits,
        Self::DescriptorMisses,
        Self::Notifications,
    ];

    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::BytesRead => "bytes_read",
            Self::BytesWritten => "bytes_written",
            Self::CopyUps => "copy_ups",
            Self::CopyUpBytes => "copy_up_bytes",
            Self::DescriptorHits => "descriptor_hits",
            Self::DescriptorMisses => "descriptor_misses",
            Self::Notifications => "notifications",
        }
    }
}

/// The counters of a mount.
#[derive(Debug)]
pub struct Stats {
    /// `None` where the kernel has no files in memory: nothing is counted.
    words: Option<SharedWords>,
}

thread_local! {
    static THREAD: Cell<Option<usize>> = const { Cell::new(None) };
}

/// A number of this thread.
fn thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    THREAD.with(|known| {
        known.get().unwrap_or_else(|| {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            known.set(Some(number));
            number
        })
    })
}

fn bucket(nanos: u64) -> usize {
    if nanos < 4 {
        return nanos as usize;
    }
    let power = nanos.ilog2() as usize;
    let quarter = (nanos >> (power - 2)) as usize & 3;
    (4 * (power - 1) + quarter).min(BUCKETS - 1)
}

/// The first time, in nanoseconds, that is in a later bucket.
fn bucket_end(bucket: usize) -> u64 {
    let next = bucket as u64 + 1;
    if next < 8 {
        return next;
    }
    (4 + next % 4) << (next / 4 - 1)
}

impl Default for Stats {
    fn default() -> Self {
        Self::new()
    }
}

impl Stats {
    /// Nothing was counted yet.
    pub fn new() -> Self {
        let words = SharedWords::new(HEADER + SHARDS * SHARD);
        let words = words.inspect_err(|errno| tracing::warn!("no statistics: memfd: {errno}"));
        let stats = Self { words: words.ok() };
        let header = [MAGIC, VERSION, SHARDS as u64, KINDS as u64, BUCKETS as u64];
        for (word, value) in stats.words().iter().zip(header) {
            word.store(value, Ordering::Relaxed);
        }
        stats
    }

    fn words(&self) -> &[AtomicU64] {
        self.words.as_ref().map_or(&[], SharedWords::words)
    }

    /// The descriptor of this process through which others can read the counters.
    pub fn descriptor(&self) -> Option<i32> {
        self.words.as_ref().map(|words| words.fd().as_raw_fd())
    }

    fn word(&self, place: usize) -> Option<&AtomicU64> {
        self.words().get(HEADER + thread() % SHARDS * SHARD + place)
    }

    fn add_at(&self, place: usize, by: u64) {
        if let Some(word) = self.word(place) {
            word.fetch_add(by, Ordering::Relaxed);
        }
    }

    /// Counts something.
    pub fn add(&self, counter: Counter, by: u64) {
        self.add_at(counter as usize, by);
    }

    /// Counts a request.
    pub fn request(&self, opcode: u32, took: Duration, failed: bool) {
        let opcode = opcode as usize;
        let kind = if opcode < KINDS { opcode } else { 0 };
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let at = Counter::ALL.len() + kind * KIND;
        if failed {
            self.add_at(at, 1);
        }
        self.add_at(at + 1, nanos);
        if let Some(longest) = self.word(at + 2) {
            longest.fetch_max(nanos, Ordering::Relaxed);
        }
        self.add_at(at + 3 + bucket(nanos), 1);
    }

    /// What was counted so far.
    pub fn snapshot(&self) -> Snapshot {
        let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
        let words: Vec<u64> = self.words().iter().map(load).collect();
        Snapshot::of_words(&words).unwrap_or_default()
    }
}

/// The requests of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requests {
    /// FUSE's number of the kind; 0 for one that nobody knows.
    pub opcode: u32,
    /// How many there were.
    pub count: u64,
    /// How many of them failed.
    pub failed: u64,
    /// How long all of them took, in nanoseconds.
    pub nanos: u64,
    /// How long the longest took, in nanoseconds.
    pub longest: u64,
    buckets: Vec<u64>,
}

/// What was counted up to a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Requests by kind, those that there were.
    pub requests: Vec<Requests>,
    counters: [u64; Counter::ALL.len()],
}

impl Snapshot {
    /// Reads what a daemon counted from the file that [`Stats::descriptor`] is.
    ///
    /// # Errors
    /// `EINVAL` if it is of another version of Lamina, or none.
    pub fn of_bytes(bytes: &[u8]) -> SysResult<Self> {
        let words = bytes.chunks_exact(8);
        let word = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_ne_bytes);
        Self::of_words(&words.map(word).collect::<Vec<_>>()).ok_or(Errno::INVAL)
    }

    fn of_words(words: &[u64]) -> Option<Self> {
        let expected = [MAGIC, VERSION, SHARDS as u64, KINDS as u64, BUCKETS as u64];
        let shards = words.strip_prefix(&expected)?;
        if shards.len() != SHARDS * SHARD {
            return None;
        }
        let values = |place: usize| {
            let shards = shards.chunks(SHARD);
            shards.filter_map(move |shard| shard.get(place).copied())
        };
        let sum = |place: usize| values(place).fold(0, u64::wrapping_add);
        let requests = (0..KINDS).map(|kind| {
            let at = Counter::ALL.len() + kind * KIND;
            let buckets: Vec<u64> = (0..BUCKETS).map(|bucket| sum(at + 3 + bucket)).collect();
            Requests {
                opcode: kind as u32,
                count: buckets.iter().copied().fold(0, u64::wrapping_add),
                failed: sum(at),
                nanos: sum(at + 1),
                longest: values(at + 2).max().unwrap_or(0),
                buckets,
            }
        });
        Some(Self {
            requests: requests.filter(|requests| requests.count > 0).collect(),
            counters: Counter::ALL.map(|counter| sum(counter as usize)),
        })
    }

    /// How often something was counted.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters.get(counter as usize).copied().unwrap_or(0)
    }
}

impl Requests {
    /// The time in nanoseconds that `percent` of the requests did not exceed, rounded up by an
    /// quarter at most.
    pub fn percentile(&self, percent: u64) -> u64 {
        let wanted = self.count.saturating_mul(percent).div_ceil(100).max(1);
        let mut seen: u64 = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen = seen.wrapping_add(*count);
            if seen >= wanted {
                return bucket_end(bucket).min(self.longest);
            }
        }
        self.longest
    }

    /// How many requests took less than `nanos`, a power of two.
    pub fn below(&self, nanos: u64) -> u64 {
        self.buckets.iter().take(bucket(nanos)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other() {
        let mut end = 0;
        for at in 0..BUCKETS - 1 {
            let next = bucket_end(at);
            assert!(next > end, "{at}");
            assert_eq!(bucket(end), at, "the first of {at}");
            assert_eq!(bucket(next - 1), at, "the last of {at}");
            assert!(end < 8 || (next - end) * 4 <= end, "{at} is too wide");
            end = next;
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        assert!(end > 60_000_000_000, "a minute fits in");
    }

    #[test]
    fn what_is_counted_is_read() {
        let stats = Stats::new();
        std::thread::scope(|scope| {
            for _ in 0..12 {
                scope.spawn(|| {
                    for micros in 1..=100 {
                        stats.request(3, Duration::from_micros(micros), micros == 7);
                    }
                    stats.add(Counter::CopyUps, 2);
                });
            }
        });
        stats.request(4096, Duration::from_secs(3600), false);
        let seen = stats.snapshot();
        assert_eq!(seen.counter(Counter::CopyUps), 24);
        assert_eq!(seen.counter(Counter::BytesRead), 0);
        let [unknown, getattr] = &seen.requests[..] else {
            panic!("{:?}", seen.requests);
        };
        assert_eq!((unknown.opcode, unknown.count), (0, 1));
        assert_eq!(
            (getattr.opcode, getattr.count, getattr.failed),
            (3, 1200, 12)
        );
        assert_eq!(getattr.nanos, 12 * 5050 * 1000);
        let near =
            |value: u64, micros: u64| (micros * 1000..=micros * 1000 * 5 / 4 + 1).contains(&value);
        assert!(
            near(getattr.percentile(50), 50),
            "{}",
            getattr.percentile(50)
        );
        assert!(near(getattr.percentile(99), 99));
        assert_eq!(getattr.longest, 100_000);
        assert_eq!(getattr.percentile(100), 100_000);
        // 16.384 µs
        assert_eq!(getattr.below(1 << 14), 12 * 16);
    }

    #[test]
    fn what_is_no_statistics_is_refused() {
        let stats = Stats::new();
        let words = stats.words();
        let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
        let bytes: Vec<u8> = words
            .iter()
            .flat_map(|word| load(word).to_ne_bytes())
            .collect();
        assert_eq!(Snapshot::of_bytes(&bytes).unwrap(), Snapshot::default());
        for wrong in [&bytes[8..], &bytes[..bytes.len() - 8], &[], b"12345"] {
            assert_eq!(Snapshot::of_bytes(wrong), Err(Errno::INVAL));
        }
        words[1].store(VERSION + 1, Ordering::Relaxed);
        assert_eq!(stats.snapshot(), Snapshot::default());
    }
}
