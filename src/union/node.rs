//! Nodes: what the kernel knows by a node id, and the table of those that have state.
//!
//! A node's id is its `st_ino` ([`Number`]). An image inode that was never touched has no node
//! here; it is answered from the index.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use smallvec::SmallVec;

use super::listing::Listing;
use crate::attr::Kind;
use crate::lower::{LowerRef, Number};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, RwLock};
use crate::upper::mark::NodeMark;

/// The lower parts of a node, topmost first.
pub type LowerParts = SmallVec<[LowerRef; 1]>;

/// One object of the mount.
///
/// Locks, in the order they may be taken: `copy_up`, then `entries` of directories (two in order
/// of number), then `state`. `state` of one node is never held while that of another is taken.
pub struct Node {
    /// Node id and `st_ino`.
    pub number: Number,
    /// What it is; never changes.
    pub kind: Kind,
    /// How often the kernel was given this node, less what it gave back.
    lookups: AtomicU64,
    /// How many nodes have this one as a parent of one of their names.
    children: AtomicU64,
    /// Whether it is known to have no set-id bits and no file capabilities.
    unprivileged: AtomicBool,
    /// Held while the node is being copied up.
    pub copy_up: Mutex<()>,
    /// Held to read (shared) or change (exclusive) the names in this directory.
    pub entries: RwLock<DirState>,
    /// Where its parts are.
    pub state: RwLock<State>,
    /// Number of visible subdirectories of a merged directory. A leaf among the locks.
    subdirs: Mutex<SubdirCount>,
    /// What new entries inherit from this directory, if known. A leaf among the locks.
    pub inherit: Mutex<Option<Inherit>>,
}

/// What new entries get from their directory.
#[derive(Clone, Copy, Debug)]
pub struct Inherit {
    /// Its group, if it has set-group-id.
    pub gid: Option<u32>,
    /// Whether it has a default ACL, which takes the place of the umask.
    pub acl: bool,
}

/// How many subdirectories a directory has.
#[derive(Default)]
struct SubdirCount {
    /// Goes up when a subdirectory comes or goes, so that a count taken meanwhile is not kept.
    changes: u64,
    known: Option<u32>,
}

/// What is remembered of a directory's entries.
#[derive(Default)]
pub struct DirState {
    /// All entries in order, if someone listed them and nothing was added since.
    pub listing: Option<Arc<Listing>>,
}

impl DirState {
    /// A name came, or what it names was replaced by another kind of thing.
    pub fn changed(&mut self) {
        self.listing = None;
    }

    /// A name went.
    pub fn removed(&mut self, name: &[u8]) {
        if let Some(listing) = &mut self.listing {
            // A listing that is being read stays as it is; its reader began before.
            match Arc::get_mut(listing) {
                Some(listing) => listing.remove(name),
                None => self.listing = None,
            }
        }
    }
}

/// A name of a node.
#[derive(Clone)]
pub struct NodeName {
    /// The directory.
    pub parent: Arc<Node>,
    /// The name in it.
    pub name: Box<[u8]>,
}

/// Where the parts of a node are.
#[derive(Default)]
pub struct State {
    /// Inode number in the upper's filesystem, if it has a part there.
    pub upper: Option<u64>,
    /// Its parts in the lowers: all that are merged for a directory, else the one that is seen. Of a
    /// regular file, the one that has its contents, also when its attributes are in the upper.
    pub lowers: LowerParts,
    /// The names known so far. Others may exist; none means that it is deleted or that those
    /// known are.
    pub names: SmallVec<[NodeName; 1]>,
    /// Keeps an upper object reachable that has no known name.
    pub pinned: Option<Arc<OwnedFd>>,
    /// What the upper's filesystem could not hold.
    pub mark: NodeMark,
    /// Whether this is a directory that was removed.
    pub dead: bool,
}

impl State {
    /// The part of a lower that has a regular file's contents; `None` if the upper has them.
    pub fn contents_below(&self) -> Option<&LowerRef> {
        self.lowers.first()
    }

    /// Whether it is a directory with parts both above and below, or with several below.
    pub fn is_merged(&self) -> bool {
        self.lowers.len() + usize::from(self.upper.is_some()) > 1
    }
}

impl Node {
    /// A node with these parts and no name yet.
    pub fn new(number: Number, kind: Kind, state: State) -> Self {
        Self {
            number,
            kind,
            lookups: AtomicU64::new(0),
            children: AtomicU64::new(0),
            unprivileged: AtomicBool::new(false),
            copy_up: Mutex::new(()),
            entries: RwLock::default(),
            state: RwLock::new(state),
            subdirs: Mutex::default(),
            inherit: Mutex::new(None),
        }
    }

    /// `by` subdirectories came, or went if negative.
    pub fn subdirs_changed(&self, by: i32) {
        let mut subdirs = self.subdirs.lock();
        subdirs.changes += 1;
        subdirs.known = subdirs.known.map(|count| count.saturating_add_signed(by));
    }

    /// The number of visible subdirectories: the one remembered, or what `count` finds.
    pub fn subdirs<E>(&self, count: impl FnOnce() -> Result<u32, E>) -> Result<u32, E> {
        let before = {
            let subdirs = self.subdirs.lock();
            match subdirs.known {
                Some(known) => return Ok(known),
                None => subdirs.changes,
            }
        };
        let counted = count()?;
        let mut subdirs = self.subdirs.lock();
        if subdirs.changes == before {
            subdirs.known = Some(counted);
        }
        Ok(counted)
    }

    /// Whether it is known to have no set-id bits and no file capabilities, so that a write need
    /// not look for them.
    pub fn is_unprivileged(&self) -> bool {
        self.unprivileged.load(Ordering::Acquire)
    }

    /// Notes whether it is known to have no set-id bits and no file capabilities.
    pub fn set_unprivileged(&self, known: bool) {
        self.unprivileged.store(known, Ordering::Release);
    }

    /// Whether it has a part in the upper.
    pub fn has_upper(&self) -> bool {
        self.state.read().upper.is_some()
    }

    /// Whether it is a regular file of which the upper has the attributes alone.
    pub fn lacks_contents(&self) -> bool {
        let state = self.state.read();
        self.kind == Kind::File && state.upper.is_some() && state.contents_below().is_some()
    }

    /// Some name of it.
    pub fn any_name(&self) -> Option<NodeName> {
        self.state.read().names.first().cloned()
    }

    /// Adds a name, if it is not known yet. A directory has but one.
    pub fn add_name(&self, parent: &Arc<Node>, name: &[u8]) {
        if self
            .state
            .read()
            .names
            .iter()
            .any(|known| known.is(parent, name))
        {
            return;
        }
        let mut state = self.state.write();
        if state.names.iter().any(|known| known.is(parent, name)) {
            return;
        }
        if self.kind == Kind::Dir {
            self.release_names(&mut state);
        }
        parent.children.fetch_add(1, Ordering::Relaxed);
        state.names.push(NodeName {
            parent: Arc::clone(parent),
            name: name.into(),
        });
        state.pinned = None;
    }

    /// Adds the name it is about to be moved to; until [`Node::remove_name`] takes the old one it
    /// has both, so that it can be reached at any time.
    pub fn add_second_name(&self, parent: &Arc<Node>, name: &[u8]) {
        parent.children.fetch_add(1, Ordering::Relaxed);
        let new = NodeName {
            parent: Arc::clone(parent),
            name: name.into(),
        };
        self.state.write().names.push(new);
    }

    /// Keeps the node in the table: something refers to it that is no name.
    pub fn keep(&self) {
        self.children.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes one [`Node::keep`] back.
    pub fn release(&self) {
        self.children.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether something but the kernel refers to it.
    pub fn is_referred_to(&self) -> bool {
        self.children.load(Ordering::Relaxed) > 0
    }

    /// Removes a name; returns whether none is left.
    pub fn remove_name(&self, parent: &Arc<Node>, name: &[u8]) -> bool {
        let mut state = self.state.write();
        state.names.retain(|known| {
            let gone = known.is(parent, name);
            if gone {
                known.parent.children.fetch_sub(1, Ordering::Relaxed);
            }
            !gone
        });
        state.names.is_empty()
    }

    fn release_names(&self, state: &mut State) {
        for known in state.names.drain(..) {
            known.parent.children.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl NodeName {
    fn is(&self, parent: &Arc<Node>, name: &[u8]) -> bool {
        Arc::ptr_eq(&self.parent, parent) && *self.name == *name
    }
}

const SHARDS: usize = 64;

/// All nodes with state. The shards' locks are leaves: nothing else is taken under one.
pub struct Table {
    shards: Vec<RwLock<HashMap<Number, Arc<Node>>>>,
}

impl Table {
    /// An empty table.
    pub fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
        }
    }

    fn shard(&self, number: Number) -> Option<&RwLock<HashMap<Number, Arc<Node>>>> {
        let mixed = number.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        self.shards.get(mixed as usize % SHARDS)
    }

    /// The node of a number.
    pub fn get(&self, number: Number) -> Option<Arc<Node>> {
        self.shard(number)?.read().get(&number).cloned()
    }

    /// The node of a number and one more lookup of it, if there is one.
    pub fn get_counted(&self, number: Number) -> Option<Arc<Node>> {
        let shard = self.shard(number)?.read();
        let node = shard.get(&number)?;
        node.lookups.fetch_add(1, Ordering::Relaxed);
        Some(Arc::clone(node))
    }

    /// The node of `new`'s number: that in the table, or else `new`, which is put there. Counts
    /// a lookup if `counted`.
    pub fn get_or_insert(&self, new: Node, counted: bool) -> Arc<Node> {
        let number = new.number;
        let Some(shard) = self.shard(number) else {
            return Arc::new(new);
        };
        let mut shard = shard.write();
        let node = shard.entry(number).or_insert_with(|| Arc::new(new));
        if counted {
            node.lookups.fetch_add(1, Ordering::Relaxed);
        }
        Arc::clone(node)
    }

    /// The kernel gave back `count` lookups of a node. Nodes that nothing refers to any more are
    /// dropped; returns their numbers.
    ///
    /// A node of the image space stays: lookups of it before it had state were not counted, so
    /// its end cannot be told. Unless it has no name any more: then there can be but one FORGET.
    pub fn forget(&self, number: Number, count: u64) -> SmallVec<[Number; 2]> {
        let mut dropped = SmallVec::new();
        let Some(node) = self.get(number) else {
            return dropped;
        };
        if number.space() == Number::SPACE_IMAGE {
            if !node.state.read().names.is_empty() || number == Number::ROOT {
                return dropped;
            }
            node.lookups.store(0, Ordering::Relaxed);
        } else {
            let sub = |now: u64| Some(now.saturating_sub(count));
            // The closure always gives a value, so this cannot fail.
            let _ = node
                .lookups
                .fetch_update(Ordering::AcqRel, Ordering::Relaxed, sub);
        }
        let mut next = Some(node);
        while let Some(node) = next.take() {
            if !self.remove_unused(&node) {
                break;
            }
            dropped.push(node.number);
            let mut state = node.state.write();
            next = state.names.first().map(|name| Arc::clone(&name.parent));
            node.release_names(&mut state);
            next = next.filter(|parent| parent.number.space() != Number::SPACE_IMAGE);
        }
        dropped
    }

    /// Another thread may have done it before, and its number may have a new node now.
    fn remove_unused(&self, node: &Arc<Node>) -> bool {
        let Some(shard) = self.shard(node.number) else {
            return false;
        };
        let mut shard = shard.write();
        let ours = (shard.get(&node.number)).is_some_and(|known| Arc::ptr_eq(known, node));
        let unused =
            node.lookups.load(Ordering::Acquire) == 0 && node.children.load(Ordering::Acquire) == 0;
        ours && unused && shard.remove(&node.number).is_some()
    }

    /// Number of nodes with state.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().len()).sum()
    }
}
