//! Ids as the upper and the lowers have them (*stored*), and as users see them (*shown*).
//!
//! A map is what `uidmapping=` and `gidmapping=` of fuse-overlayfs say: ranges of three numbers, the
//! first stored id, the first shown id and the length, all joined by colons. What no range has is
//! shown as the kernel's overflow id, and an id that no range shows is stored as that.

use std::fs;

/// A map of users or of groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdMap {
    /// Sorted by `stored`; empty if every id is itself.
    by_stored: Vec<Range>,
    /// The same, sorted by `shown`.
    by_shown: Vec<Range>,
    /// All are shown as this one.
    squash: Option<u32>,
    /// Stands for ids without a place in the map.
    overflow: u32,
}

/// Users and groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    /// Users.
    pub users: IdMap,
    /// Groups.
    pub groups: IdMap,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    stored: u32,
    shown: u32,
    count: u32,
}

/// A text that is no map.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IdMapError {
    /// A number is missing, or is none.
    #[error("'{0}' is not STORED:SHOWN:LENGTH (more ranges follow after a colon)")]
    Malformed(String),
    /// An id would mean two things.
    #[error("two ranges have id {0}")]
    Overlap(u32),
    /// A range ends after the last id.
    #[error("the range from {0} on is longer than there are ids")]
    TooLong(u32),
}

impl Default for IdMap {
    fn default() -> Self {
        Self {
            by_stored: Vec::new(),
            by_shown: Vec::new(),
            squash: None,
            overflow: DEFAULT_OVERFLOW,
        }
    }
}

/// The kernel's overflow id, unless it is told another.
const DEFAULT_OVERFLOW: u32 = 65534;
/// Not an id: `chown` takes it for "as it is".
const NO_ID: u32 = u32::MAX;

impl IdMap {
    /// Reads a map. A colon at the beginning or the end is not part of it.
    ///
    /// # Errors
    /// When the text is no map, or an id would be two.
    pub fn parse(text: &str) -> Result<Self, IdMapError> {
        let malformed = || IdMapError::Malformed(text.to_owned());
        let numbers = text.trim_matches(':').split(':').map(str::parse::<u32>);
        let numbers: Vec<u32> = numbers.collect::<Result<_, _>>().map_err(|_| malformed())?;
        let mut by_stored = Vec::new();
        for range in numbers.chunks(3) {
            let &[stored, shown, count] = range else {
                return Err(malformed());
            };
            if count == 0 {
                continue;
            }
            for first in [stored, shown] {
                if u64::from(first) + u64::from(count) > u64::from(NO_ID) {
                    return Err(IdMapError::TooLong(first));
                }
            }
            by_stored.push(Range {
                stored,
                shown,
                count,
            });
        }
        if by_stored.is_empty() {
            return Err(malformed());
        }
        let mut by_shown = by_stored.clone();
        by_stored.sort_by_key(|range| range.stored);
        by_shown.sort_by_key(|range| range.shown);
        overlap(&by_stored, |range| range.stored)?;
        overlap(&by_shown, |range| range.shown)?;
        Ok(Self {
            by_stored,
            by_shown,
            ..Self::default()
        })
    }

    /// Shows all as one.
    pub fn squash(&mut self, id: u32) {
        self.squash = Some(id);
    }

    /// Stands `id` for what the map does not have.
    pub fn set_overflow(&mut self, id: u32) {
        self.overflow = id;
    }

    /// Whether every id is shown as it is stored.
    pub fn is_identity(&self) -> bool {
        self.by_stored.is_empty() && self.squash.is_none()
    }

    /// How a stored id is shown.
    pub fn shown(&self, id: u32) -> u32 {
        if let Some(squashed) = self.squash {
            return squashed;
        }
        if self.by_stored.is_empty() {
            return id;
        }
        let found = find(&self.by_stored, id, |range| range.stored);
        found.map_or(self.overflow, |(range, at)| range.shown + at)
    }

    /// How an id is stored that users see, or bring along.
    pub fn stored(&self, id: u32) -> u32 {
        if self.by_shown.is_empty() || id == NO_ID {
            return id;
        }
        let found = find(&self.by_shown, id, |range| range.shown);
        found.map_or(self.overflow, |(range, at)| range.stored + at)
    }
}

impl Ids {
    /// Whether every id is shown as it is stored.
    pub fn is_identity(&self) -> bool {
        self.users.is_identity() && self.groups.is_identity()
    }

    /// Stands for what the maps do not have what the kernel's own do.
    pub fn use_kernels_overflow(&mut self) {
        for (map, file) in [
            (&mut self.users, "overflowuid"),
            (&mut self.groups, "overflowgid"),
        ] {
            let text = fs::read_to_string(format!("/proc/sys/kernel/{file}"));
            let id = text.ok().and_then(|text| text.trim().parse().ok());
            map.set_overflow(id.unwrap_or(DEFAULT_OVERFLOW));
        }
    }
}

/// The range that has an id, and where in it.
fn find(sorted: &[Range], id: u32, first: impl Fn(&Range) -> u32) -> Option<(Range, u32)> {
    let after = sorted.partition_point(|range| first(range) <= id);
    let range = *sorted.get(after.checked_sub(1)?)?;
    let at = id - first(&range);
    (at < range.count).then_some((range, at))
}

fn overlap(sorted: &[Range], first: impl Fn(&Range) -> u32) -> Result<(), IdMapError> {
    let next = sorted.iter().skip(1);
    for (range, next) in sorted.iter().zip(next) {
        if first(next) - first(range) < range.count {
            return Err(IdMapError::Overlap(first(next)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_map_both_ways() {
        let map = IdMap::parse(":0:1000:1:1:110000:65536").unwrap();
        for (stored, shown) in [(0, 1000), (1, 110_000), (65_536, 175_535)] {
            assert_eq!(map.shown(stored), shown);
            assert_eq!(map.stored(shown), stored);
        }
        assert_eq!(map.shown(65_537), DEFAULT_OVERFLOW);
        assert_eq!(map.stored(0), DEFAULT_OVERFLOW);
        assert_eq!(map.stored(NO_ID), NO_ID);
    }

    #[test]
    fn squashed_ids_are_stored_as_they_come() {
        let mut map = IdMap::default();
        assert!(map.is_identity());
        map.squash(7);
        assert_eq!((map.shown(0), map.shown(1000)), (7, 7));
        assert_eq!(map.stored(1000), 1000);
    }

    #[test]
    fn what_is_no_map_is_named() {
        for text in ["", ":", "0", "0:1", "0:1:x", "0:1:-1", "0:0:0", "0:1:1:2"] {
            let error = IdMap::parse(text);
            assert_eq!(error, Err(IdMapError::Malformed(text.into())));
        }
        for (text, error) in [
            ("0:0:10:9:100:1", IdMapError::Overlap(9)),
            ("0:0:10:100:9:1", IdMapError::Overlap(9)),
            ("0:4294967295:1", IdMapError::TooLong(u32::MAX)),
            ("1:2:4294967294", IdMapError::TooLong(2)),
        ] {
            assert_eq!(IdMap::parse(text), Err(error), "{text}");
        }
        assert!(IdMap::parse("0:0:4294967295").is_ok());
    }

    proptest! {
        #[test]
        fn what_is_shown_is_stored_again(
            count in 1..200_u32,
            length in 1..1000_u32,
            step in 0..50_u32,
            id: u32,
        ) {
            let range = |at: u32| format!("{}:{}:{length}", at * (length + step), 5_000_000 - at * length);
            let ranges: Vec<String> = (0..count).map(range).collect();
            let map = IdMap::parse(&ranges.join(":")).unwrap();
            let id = id % (count * (length + step));
            let shown = map.shown(id);
            if id % (length + step) < length {
                prop_assert_eq!(map.stored(shown), id);
            } else {
                prop_assert_eq!(shown, DEFAULT_OVERFLOW);
            }
        }
    }
}
