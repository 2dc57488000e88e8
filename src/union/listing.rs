//! The entries of a merged or upper directory, in the order in which they are listed.

use lamina_layers::index::format::name_hash;

use crate::attr::Kind;
use crate::lower::Number;

/// A position in a directory: what `telldir` gives. Made of the name alone, so it stays right when
/// the directory changes and when every cache is dropped: 0 is the start, 1 is after `.`, 2 after
/// `..`, else it is after the name with that hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cookie(pub u64);

impl Cookie {
    /// After `.`.
    pub const DOT: Self = Self(1);
    /// After `..`.
    pub const DOTDOT: Self = Self(2);
    const BASE: u64 = 3;

    /// The position after the `rank`th of the names with this 48-bit hash.
    pub fn after(hash: u64, rank: usize) -> Self {
        Self((hash << 8 | (rank as u64).min(0xff)) + Self::BASE)
    }

    /// The 48-bit hash of the name this is the position after; `None` before the first name.
    pub fn hash(self) -> Option<u64> {
        self.0.checked_sub(Self::BASE).map(|key| key >> 8)
    }
}

/// One entry.
#[derive(Clone, Debug)]
pub struct ListEntry {
    /// The 48-bit hash of the name.
    pub hash: u64,
    /// The name.
    pub name: Box<[u8]>,
    /// What it names.
    pub kind: Kind,
    /// Its number; `None` for an entry of the upper, where it must be looked up.
    pub number: Option<Number>,
    removed: bool,
}

impl ListEntry {
    /// An entry.
    pub fn new(name: &[u8], kind: Kind, number: Option<Number>) -> Self {
        Self {
            hash: name_hash(name),
            name: name.into(),
            kind,
            number,
            removed: false,
        }
    }
}

/// All entries of a directory, sorted by (hash, name).
#[derive(Debug, Default)]
pub struct Listing {
    entries: Vec<ListEntry>,
}

impl Listing {
    /// Sorts entries, whose names are different.
    pub fn new(mut entries: Vec<ListEntry>) -> Self {
        entries.sort_unstable_by(|a, b| (a.hash, &a.name).cmp(&(b.hash, &b.name)));
        Self { entries }
    }

    fn position(&self, name: &[u8]) -> Option<usize> {
        let hash = name_hash(name);
        let found = self
            .entries
            .binary_search_by(|entry| (entry.hash, &*entry.name).cmp(&(hash, name)));
        found
            .ok()
            .filter(|&at| self.entries.get(at).is_some_and(|entry| !entry.removed))
    }

    /// The entry of a name.
    pub fn find(&self, name: &[u8]) -> Option<&ListEntry> {
        self.position(name).and_then(|at| self.entries.get(at))
    }

    /// Takes a name out.
    pub fn remove(&mut self, name: &[u8]) {
        if let Some(entry) = self.position(name).and_then(|at| self.entries.get_mut(at)) {
            entry.removed = true;
        }
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.entries.iter().all(|entry| entry.removed)
    }

    /// Number of directories in it.
    pub fn subdirs(&self) -> u32 {
        let dirs = self
            .entries
            .iter()
            .filter(|entry| !entry.removed && entry.kind == Kind::Dir);
        dirs.count() as u32
    }

    /// The entries after a position, each with the position after it.
    pub fn after(&self, cookie: Cookie) -> impl Iterator<Item = (Cookie, &ListEntry)> {
        let start = match cookie.hash() {
            None => 0,
            Some(hash) => self.entries.partition_point(|entry| entry.hash < hash),
        };
        let mut rank = 0;
        let mut last = None;
        let rest = self.entries.get(start..).unwrap_or_default();
        rest.iter().filter_map(move |entry| {
            rank = if last == Some(entry.hash) {
                rank + 1
            } else {
                0
            };
            last = Some(entry.hash);
            let at = Cookie::after(entry.hash, rank);
            (at > cookie && !entry.removed).then_some((at, entry))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(names: &[&str]) -> Listing {
        let entry = |name: &&str| ListEntry::new(name.as_bytes(), Kind::File, None);
        Listing::new(names.iter().map(entry).collect())
    }

    #[test]
    fn a_position_stays_right_when_other_names_come_and_go() {
        let names = ["a", "b", "c", "d", "e", "f"];
        let before = listing(&names);
        let all: Vec<_> = before.after(Cookie::DOTDOT).collect();
        let (cookie, third) = all[2];
        let mut after = listing(&["a", "b", "c", "d", "e", "f", "g", "h"]);
        after.remove(&third.name);
        let rest: Vec<_> = after
            .after(cookie)
            .map(|(_, entry)| entry.name.clone())
            .collect();
        for (_, entry) in &all[3..] {
            assert!(rest.contains(&entry.name));
        }
        for (_, entry) in &all[..3] {
            assert!(!rest.contains(&entry.name));
        }
    }

    #[test]
    fn removed_names_are_not_found() {
        let mut list = listing(&["a", "b"]);
        list.remove(b"a");
        assert!(list.find(b"a").is_none());
        assert!(list.find(b"b").is_some());
        list.remove(b"b");
        assert!(list.is_empty());
    }
}
