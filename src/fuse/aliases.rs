//! Second node ids of files whose contents moved to the upper while somebody reads the lower file.
//!
//! As long as a file is open in passthrough mode, the kernel lets no other file back it. So when it
//! is opened for writing, its node id is *retired*: it can be used for everything but opening, and
//! opening it is answered `ESTALE`, on which the kernel looks the name up again and finds the file
//! under another node id, its *alias*. `st_ino` stays: the number that attributes have is
//! the file's own. Attributes of neither id are valid for longer than the moment, since
//! changes through one are not seen through the other.

use std::collections::HashMap;

use crate::lower::Number;
use crate::sync::RwLock;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// The high bits of aliases: a space that no number is in.
const SPACE: u16 = u16::MAX;

/// The aliases of a mount.
#[derive(Default)]
pub struct Aliases {
    maps: RwLock<Maps>,
    /// How many there are, to be looked at without the lock.
    count: AtomicUsize,
    next: AtomicU64,
}

#[derive(Default)]
struct Maps {
    by_number: HashMap<Number, u64>,
    by_id: HashMap<u64, Alias>,
}

struct Alias {
    number: Number,
    /// How often the kernel has been told of it.
    lookups: u64,
}

impl Aliases {
    fn any(&self) -> bool {
        self.count.load(Ordering::Acquire) != 0
    }

    /// The number behind a node id; `None` for an alias that is none any more.
    pub fn number(&self, id: u64) -> Option<Number> {
        if Number(id).space() != SPACE {
            return Some(Number(id));
        }
        let maps = self.maps.read();
        maps.by_id.get(&id).map(|alias| alias.number)
    }

    /// The alias of a number that the kernel is about to be told of once more, if it has one.
    pub fn look_up(&self, number: Number) -> Option<u64> {
        if !self.any() {
            return None;
        }
        let mut maps = self.maps.write();
        let id = maps.by_number.get(&number).copied()?;
        if let Some(alias) = maps.by_id.get_mut(&id) {
            alias.lookups += 1;
        }
        Some(id)
    }

    /// Whether a number has two node ids.
    pub fn has_alias(&self, number: Number) -> bool {
        self.any() && self.maps.read().by_number.contains_key(&number)
    }

    /// Retires the number's own node id.
    pub fn retire(&self, number: Number) {
        let id = Number::new(SPACE, self.next.fetch_add(1, Ordering::Relaxed)).0;
        let mut maps = self.maps.write();
        if let std::collections::hash_map::Entry::Vacant(entry) = maps.by_number.entry(number) {
            entry.insert(id);
            let alias = Alias { number, lookups: 0 };
            maps.by_id.insert(id, alias);
            self.count.fetch_add(1, Ordering::Release);
        }
    }

    /// The kernel gave back `count` lookups of a node id. Returns its number.
    pub fn forget(&self, id: u64, count: u64) -> Option<Number> {
        if Number(id).space() != SPACE {
            return Some(Number(id));
        }
        let mut maps = self.maps.write();
        let alias = maps.by_id.get_mut(&id)?;
        alias.lookups = alias.lookups.saturating_sub(count);
        Some(alias.number)
    }

    /// Uses a number's own node id again, if the kernel does not know its alias. Whoever has it open
    /// must be excluded by the caller.
    pub fn reinstate(&self, number: Number) -> bool {
        let mut maps = self.maps.write();
        let Some(id) = maps.by_number.get(&number).copied() else {
            return true;
        };
        if maps.by_id.get(&id).is_some_and(|alias| alias.lookups > 0) {
            return false;
        }
        maps.by_id.remove(&id);
        maps.by_number.remove(&number);
        self.count.fetch_sub(1, Ordering::Release);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_lasts_as_long_as_the_kernel_knows_it() {
        let aliases = Aliases::default();
        let number = Number(77);
        assert_eq!(aliases.look_up(number), None);
        assert_eq!(aliases.number(77), Some(number));
        aliases.retire(number);
        let alias = aliases.look_up(number).unwrap();
        assert_ne!(alias, 77);
        assert_eq!(aliases.look_up(number), Some(alias));
        assert_eq!(aliases.number(alias), Some(number));
        assert!(aliases.has_alias(number) && !aliases.has_alias(Number(78)));
        assert_eq!(aliases.forget(alias, 1), Some(number));
        assert!(!aliases.reinstate(number));
        assert_eq!(aliases.forget(alias, 1), Some(number));
        assert!(aliases.reinstate(number));
        assert_eq!(aliases.look_up(number), None);
        assert_eq!(aliases.number(alias), None);
    }
}
