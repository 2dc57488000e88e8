//! Merging the layers of an image into one index.
//!
//! The rules are those of the OCI image specification ("Applying Changesets") and of the kernel's
//! overlayfs, applied to the entries of one name from the topmost layer down:
//!
//! - a whiteout ends the search: what is below is deleted;
//! - something else than a directory is the result, unless a directory was found above it; it
//!   ends the search in any case;
//! - directories merge, down to the first opaque one; the attributes are those of the topmost one
//!   that its layer's archive really had.
//!
//! A hard link to a lower layer is the inode that its path named in the layers below the link's,
//! as if the layers had been unpacked one after the other. Symlinks in that path are not
//! followed.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::Write;

use super::assemble::{Assembler, HashedName, Sections, Source};
use super::build::BuildError;
use super::entries::Entries;
use super::format::{EntryKind, EntryRecord, FLAG_IMPLICIT, FLAG_LINKS, FLAG_OPAQUE};
use super::layout::Tables;
use super::{Index, IndexKind, Ino};
use crate::digest::Digest;

/// Why layers cannot be merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// No layer.
    #[error("an image needs at least one layer")]
    NoLayers,
    /// A hard link to nothing.
    #[error(
        "layer {layer}: '{}' is a hard link to '{}', which the layers below do not have",
        .link.escape_ascii(), .target.escape_ascii()
    )]
    HardLinkToNothing {
        /// Number of the link's layer, the bottom one being 0.
        layer: usize,
        /// Path of the link.
        link: Vec<u8>,
        /// Path it links to.
        target: Vec<u8>,
    },
    /// A hard link to a directory.
    #[error(
        "layer {layer}: '{}' is a hard link to '{}', which is a directory",
        .link.escape_ascii(), .target.escape_ascii()
    )]
    HardLinkToDirectory {
        /// Number of the link's layer, the bottom one being 0.
        layer: usize,
        /// Path of the link.
        link: Vec<u8>,
        /// Path it links to.
        target: Vec<u8>,
    },
    /// The merged index exceeds a limit, or cannot be written.
    #[error("cannot build the merged index: {0}")]
    Build(#[from] BuildError),
}

/// Merges layers, bottom first, into the bytes of one index. The result does not depend on
/// anything but the layers.
///
/// # Errors
/// When a hard link names nothing or a directory, or a limit is exceeded.
pub fn merge(layers: &[&Index], identity: Option<Digest>) -> Result<Vec<u8>, MergeError> {
    Ok(merge_sections(layers, identity)?.into_bytes()?)
}

/// As [`merge`], written to `out` in a few large pieces.
///
/// # Errors
/// As [`merge`], and when writing fails.
pub fn merge_to(
    layers: &[&Index],
    identity: Option<Digest>,
    out: &mut impl Write,
) -> Result<(), MergeError> {
    let sections = merge_sections(layers, identity)?;
    Ok(sections.write_to(out).map_err(BuildError::from)?)
}

fn merge_sections(layers: &[&Index], identity: Option<Digest>) -> Result<Sections, MergeError> {
    let stack = Stack {
        layers: layers.iter().map(|layer| layer.tables()).collect(),
    };
    let hard_links = resolve_hard_links(layers, &stack)?;
    let mut merger = Merger::new(&stack, &hard_links);
    merger.run()?;
    Ok(merger.out.finish(IndexKind::Merged, identity)?)
}

/// An inode of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct LayerInode {
    layer: u32,
    ino: u32,
}

/// What the entries of one name come to.
enum Combined {
    /// Nothing: the name is deleted.
    Nothing,
    /// Something else than a directory.
    Leaf(LayerInode),
    /// A directory with the attributes of this one.
    Directory(LayerInode),
}

/// The roots of the layers below `layer`, topmost first.
fn roots_below(layer: u32) -> impl Iterator<Item = LayerInode> {
    (0..layer).rev().map(|layer| LayerInode { layer, ino: 0 })
}

/// The layers, bottom first.
struct Stack<'a> {
    layers: Vec<Tables<'a>>,
}

impl<'a> Stack<'a> {
    fn layer(&self, layer: u32) -> Option<&Tables<'a>> {
        self.layers.get(layer as usize)
    }

    fn record(&self, at: LayerInode) -> Option<&'a EntryRecord> {
        self.layer(at.layer)?.inode(at.ino)
    }

    fn source(&self, at: LayerInode) -> Source<'a> {
        self.layer(at.layer)
            .map_or_else(Source::default, Source::from)
    }

    /// Combines the entries of one name, topmost first. The directories that make up a merged one
    /// are added to `parts`, topmost first.
    fn combine(
        &self,
        entries: impl Iterator<Item = LayerInode>,
        parts: &mut Vec<LayerInode>,
    ) -> Combined {
        let mut attributes: Option<LayerInode> = None;
        let mut explicit = false;
        let mut opaque = false;
        for at in entries {
            let Some(record) = self.record(at) else {
                break;
            };
            if !record.is_dir() {
                if attributes.is_none() && !record.is(EntryKind::Whiteout) {
                    return Combined::Leaf(at);
                }
                break;
            }
            if !opaque {
                parts.push(at);
            }
            if !explicit && (attributes.is_none() || !record.has(FLAG_IMPLICIT)) {
                attributes = Some(at);
            }
            // Below an opaque directory only attributes are of interest.
            explicit |= !record.has(FLAG_IMPLICIT);
            opaque |= record.has(FLAG_OPAQUE);
            if opaque && explicit {
                break;
            }
        }
        attributes.map_or(Combined::Nothing, Combined::Directory)
    }

    /// What the layers below `layer` have at `path`.
    fn resolve(&self, layer: u32, path: &[u8]) -> Combined {
        let mut parts = Vec::new();
        let mut found = self.combine(roots_below(layer), &mut parts);
        for name in path.split(|byte| *byte == b'/') {
            let dirs = std::mem::take(&mut parts);
            let entries = dirs.iter().filter_map(|dir| {
                let tables = self.layer(dir.layer)?;
                let ino = Entries::new(*tables, dir.ino).find(name)?.ino.0;
                Some(LayerInode {
                    layer: dir.layer,
                    ino,
                })
            });
            found = self.combine(entries, &mut parts);
        }
        found
    }
}

/// Hard links to lower layers, resolved.
#[derive(Default)]
struct HardLinks {
    /// From each hard link to the inode it stands for.
    targets: HashMap<LayerInode, LayerInode>,
    /// The inodes that they stand for.
    targeted: HashSet<LayerInode>,
}

/// Resolves every hard link of every layer, also of those whose name is not in the result: whether
/// a layer can be applied does not depend on the layers above it.
fn resolve_hard_links(layers: &[&Index], stack: &Stack<'_>) -> Result<HardLinks, MergeError> {
    let mut links = HardLinks::default();
    for (number, (layer, tables)) in (0_u32..).zip(layers.iter().zip(&stack.layers)) {
        for (ino, record) in (0_u32..).zip(tables.entries) {
            if !record.is(EntryKind::HardLink) {
                continue;
            }
            let path = tables.heap_at(record.data.get(), record.size.get() as usize);
            let names = || (number as usize, layer.path_of(Ino(ino)), path.to_vec());
            let target = match stack.resolve(number, path) {
                // Of a lower layer, so resolved already if it is a hard link itself.
                Combined::Leaf(found) => links.targets.get(&found).copied().unwrap_or(found),
                Combined::Nothing => {
                    let (layer, link, target) = names();
                    return Err(MergeError::HardLinkToNothing {
                        layer,
                        link,
                        target,
                    });
                }
                Combined::Directory(_) => {
                    let (layer, link, target) = names();
                    return Err(MergeError::HardLinkToDirectory {
                        layer,
                        link,
                        target,
                    });
                }
            };
            links
                .targets
                .insert(LayerInode { layer: number, ino }, target);
            links.targeted.insert(target);
        }
    }
    Ok(links)
}

/// A directory of the result that has been numbered, but whose entries have not been added.
struct Pending {
    number: u32,
    /// The range in `parts` of the directories it is made of, topmost first.
    first_part: usize,
    end_part: usize,
}

/// An entry of one of the directories that are being merged.
#[derive(Clone, Copy)]
struct Candidate<'a> {
    hash: u64,
    name: &'a [u8],
    at: LayerInode,
}

impl<'a> Candidate<'a> {
    fn new(layer: u32, tables: &Tables<'a>, number: u32, record: &EntryRecord) -> Self {
        let ino = Tables::target(number, record);
        Self {
            hash: record.hash(),
            name: tables.name(record),
            at: LayerInode { layer, ino },
        }
    }
}

struct Merger<'a> {
    stack: &'a Stack<'a>,
    hard_links: &'a HardLinks,
    out: Assembler,
    pending: VecDeque<Pending>,
    parts: Vec<LayerInode>,
    /// Numbers of the result's inodes that may have more names.
    shared: HashMap<LayerInode, u32>,
}

impl<'a> Merger<'a> {
    fn new(stack: &'a Stack<'a>, hard_links: &'a HardLinks) -> Self {
        let entries = stack
            .layers
            .iter()
            .map(|layer| layer.entries.len())
            .sum::<usize>();
        Self {
            stack,
            hard_links,
            out: Assembler::new(entries + 1),
            pending: VecDeque::new(),
            parts: Vec::new(),
            shared: HashMap::new(),
        }
    }

    fn run(&mut self) -> Result<(), MergeError> {
        let stack = self.stack;
        let roots = roots_below(stack.layers.len() as u32);
        let Combined::Directory(root) = stack.combine(roots, &mut self.parts) else {
            return Err(MergeError::NoLayers);
        };
        if let Some(record) = stack.record(root) {
            self.out.add_root(record, stack.source(root))?;
        }
        self.push_directory(0, 0);
        let mut candidates = Vec::new();
        while let Some(dir) = self.pending.pop_front() {
            self.out.open_dir(dir.number);
            candidates.clear();
            self.collect(&dir, &mut candidates);
            for group in candidates.chunk_by(|a, b| a.hash == b.hash && a.name == b.name) {
                self.add(dir.number, group)?;
            }
        }
        Ok(())
    }

    /// The entries of all parts of a directory, sorted by (hash, name), those of one name topmost
    /// first.
    fn collect(&self, dir: &Pending, candidates: &mut Vec<Candidate<'a>>) {
        let parts = self
            .parts
            .get(dir.first_part..dir.end_part)
            .unwrap_or_default();
        for part in parts {
            let Some((tables, inode)) = self.stack.layer(part.layer).zip(self.stack.record(*part))
            else {
                continue;
            };
            let numbers = Tables::children(inode);
            let records = numbers.clone().zip(tables.range(&numbers));
            candidates.extend(
                records.map(|(number, record)| Candidate::new(part.layer, tables, number, record)),
            );
        }
        if parts.len() > 1 {
            // A stable sort: entries of one name stay in the order of the layers, and the runs
            // that are sorted already are only merged.
            candidates.sort_by(|a, b| (a.hash, a.name).cmp(&(b.hash, b.name)));
        }
    }

    /// Adds what the entries of one name come to.
    fn add(&mut self, dir: u32, group: &[Candidate<'_>]) -> Result<(), MergeError> {
        let Some(first) = group.first() else {
            return Ok(());
        };
        let name = HashedName {
            name: first.name,
            hash: first.hash,
        };
        let first_part = self.parts.len();
        let entries = group.iter().map(|candidate| candidate.at);
        match self.stack.combine(entries, &mut self.parts) {
            Combined::Nothing => Ok(()),
            Combined::Leaf(at) => self.add_leaf(dir, name, at),
            Combined::Directory(at) => {
                let Some(record) = self.stack.record(at) else {
                    return Ok(());
                };
                let number = self.out.add_new(dir, name, record, self.stack.source(at))?;
                self.push_directory(number, first_part);
                Ok(())
            }
        }
    }

    fn add_leaf(
        &mut self,
        dir: u32,
        name: HashedName<'_>,
        at: LayerInode,
    ) -> Result<(), MergeError> {
        let at = self.hard_links.targets.get(&at).copied().unwrap_or(at);
        let Some(record) = self.stack.record(at) else {
            return Ok(());
        };
        let shared = record.has(FLAG_LINKS) || self.hard_links.targeted.contains(&at);
        if shared && let Some(number) = self.shared.get(&at) {
            return Ok(self.out.add_alias(dir, name, *number)?);
        }
        let number = self.out.add_new(dir, name, record, self.stack.source(at))?;
        if shared {
            self.shared.insert(at, number);
        }
        Ok(())
    }

    fn push_directory(&mut self, number: u32, first_part: usize) {
        self.pending.push_back(Pending {
            number,
            first_part,
            end_part: self.parts.len(),
        });
    }
}

#[cfg(test)]
mod tests;
