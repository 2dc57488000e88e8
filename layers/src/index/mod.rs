//! The index: all metadata of a layer, or of a whole image, in one memory-mapped file.
//!
//! `docs/format.md` gives the bytes. A *layer* index may hold whiteouts, opaque directories,
//! implicit directories and hard links to a lower layer; a *merged* index (an image) never does:
//! the merge has resolved them.
//!
//! - [`Index`] reads one. It is checked completely when it is opened; nothing after that fails.
//! - [`Builder`] makes one from a tree that grows entry by entry, as a tar import does.
//! - [`merge()`] makes one from the indexes of a stack of layers.

mod assemble;
mod build;
mod check;
mod entries;
mod error;
pub mod format;
mod inode;
mod intern;
mod layout;
mod map;
mod merge;
mod view;
mod xattrs;

#[cfg(test)]
mod testing;

pub use build::{BuildError, BuildNode, Builder, Content, Meta};
pub use entries::{Entries, Entry, Names};
pub use error::IndexError;
pub use inode::{Data, Inode};
#[doc(hidden)]
pub use layout::seal;
pub use merge::{MergeError, merge, merge_to};
pub use view::{Index, IndexKind, IndexStats, Ino};
pub use xattrs::Xattrs;
