//! The index: all metadata of a layer, or of a whole image, in one memory-mapped file.
//!
//! `docs/format.md` gives the bytes. A *layer* index may hold whiteouts, opaque directories,
//! implicit directories and hard links to a lower layer; a *merged* index (an image) never does:
//! the merge has resolved them.

pub mod format;
