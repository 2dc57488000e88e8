//! From the tree to the sections of an index.

use std::collections::VecDeque;

use hashbrown::HashTable;

use super::{BuildError, BuildNode, Builder, NO_NODE};
use crate::digest::Digest;
use crate::index::IndexKind;
use crate::index::assemble::{Assembler, HashedName, Sections, Source};
use crate::index::format::{EntryKind, FLAG_OPAQUE};

impl Builder {
    /// Walks the tree breadth first and numbers it.
    pub(super) fn assemble(
        mut self,
        kind: IndexKind,
        identity: Option<Digest>,
    ) -> Result<Sections, BuildError> {
        self.settle_whiteouts();
        self.table = HashTable::new();
        let order = self.sorted_links();
        let source = Source {
            attributes: self.attributes.records(),
            objects: self.objects.records(),
            heap: self.heap.bytes(),
        };
        let mut out = Assembler::new(self.links.len() + 1);
        let root = self.node(BuildNode(0));
        out.add_root(&root, source)?;
        // The number that each node has in the index.
        let mut numbers = vec![NO_NODE; self.nodes.len()];
        // Nodes of the directories in the order of their numbers, and those numbers.
        let mut dirs = VecDeque::from([(0_u32, 0_u32)]);
        while let Some((dir, dir_number)) = dirs.pop_front() {
            out.open_dir(dir_number);
            for link in order
                .links_of(dir)
                .iter()
                .filter_map(|at| self.links.get(*at as usize))
            {
                let record = self.node(BuildNode(link.node));
                if kind == IndexKind::Merged
                    && (record.is(EntryKind::Whiteout) || record.is(EntryKind::HardLink))
                {
                    return Err(BuildError::LayerOnly);
                }
                let name = HashedName {
                    name: self.name(link),
                    hash: link.hash(),
                };
                let Some(number) = numbers.get_mut(link.node as usize) else {
                    continue;
                };
                // A whiteout is never shared: it is not a file that can have several names.
                if *number != NO_NODE && !record.is(EntryKind::Whiteout) {
                    out.add_alias(dir_number, name, *number)?;
                    continue;
                }
                *number = out.add_new(dir_number, name, &record, source)?;
                if record.is_dir() {
                    dirs.push_back((link.node, *number));
                }
            }
        }
        out.finish(kind, identity)
    }

    /// A directory with a whiteout of its own name hides what is below. If nothing says its
    /// attributes, those of the deleted directory are not taken: it is a new one.
    fn settle_whiteouts(&mut self) {
        for link in self
            .links
            .iter()
            .filter(|link| link.whiteout && link.node != NO_NODE)
        {
            if let Some(node) = self.nodes.get_mut(link.node as usize)
                && node.is_dir()
            {
                node.kind = EntryKind::Directory as u8 | FLAG_OPAQUE;
            }
        }
    }

    /// The names of all directories, each directory's sorted by (hash, name).
    fn sorted_links(&self) -> SortedLinks {
        let live = || {
            (0_u32..)
                .zip(&self.links)
                .filter(|(_, link)| link.node != NO_NODE)
        };
        let mut ends = vec![0_u32; self.nodes.len()];
        for (_, link) in live() {
            if let Some(count) = ends.get_mut(link.dir as usize) {
                *count += 1;
            }
        }
        let mut total = 0;
        for end in &mut ends {
            // For now the start; filling it in makes it the end.
            total += std::mem::replace(end, total);
        }
        let mut numbers = vec![0; total as usize];
        for (number, link) in live() {
            if let Some(end) = ends.get_mut(link.dir as usize)
                && let Some(slot) = numbers.get_mut(*end as usize)
            {
                *slot = number;
                *end += 1;
            }
        }
        let mut start = 0;
        for end in &ends {
            let of_dir = numbers.get_mut(start..*end as usize).unwrap_or_default();
            of_dir.sort_unstable_by_key(|number| {
                self.links
                    .get(*number as usize)
                    .map(|link| (link.hash(), self.name(link)))
            });
            start = *end as usize;
        }
        SortedLinks { numbers, ends }
    }
}

/// Numbers of names, by directory.
struct SortedLinks {
    numbers: Vec<u32>,
    /// Where each node's names end; they begin where those of the node before end.
    ends: Vec<u32>,
}

impl SortedLinks {
    fn links_of(&self, dir: u32) -> &[u32] {
        let dir = dir as usize;
        let start = dir
            .checked_sub(1)
            .and_then(|before| self.ends.get(before))
            .copied();
        let end = self.ends.get(dir).copied().unwrap_or_default();
        self.numbers
            .get(start.unwrap_or_default() as usize..end as usize)
            .unwrap_or_default()
    }
}
