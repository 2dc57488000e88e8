//! Making a layer of what an upper changes, and an image with it on top: what `lamina commit` does.
//! No command line here.
//!
//! ```ignore
//! let txn = Transaction::begin(&store)?;
//! let layer = stage_changes(&txn, &union, &LayerOptions::default())?;
//! txn.commit()?;
//! let mut draft = Draft::on(&base);
//! draft.add(layer.map(|layer| layer.diff_id), entry);
//! draft.publish(&store, Some("name"))?;
//! ```
//!
//! Of an upper that somebody changes meanwhile, a [`Snapshot`] is taken while they are held back.

use std::io;
use std::path::PathBuf;

use lamina_layers::store::StoreError;
use lamina_layers::tar::ImportError;
use rustix::io::Errno;

use crate::error::FsError;

mod entry;
mod image;
mod instruction;
mod layer;
mod snapshot;
mod spool;
mod time;

pub use image::Draft;
pub use instruction::{Instruction, InstructionError, apply};
pub use layer::{LayerOptions, LeftOut, stage_changes, stage_snapshot, write_layer};
pub use snapshot::Snapshot;
pub use time::{Timestamp, TimestampError};

/// Why there is no layer, or no image.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The changes cannot be read.
    #[error("cannot read the changes: {0}")]
    Read(FsError),
    /// The changes cannot be copied.
    #[error("cannot copy the changes in the work directory {0:?}: {1}")]
    Copy(PathBuf, Errno),
    /// The layer cannot be made.
    #[error(transparent)]
    Layer(#[from] ImportError),
    /// The store does not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn into_io(error: FsError) -> io::Error {
    match error.explanation() {
        Some(_) => io::Error::other(error),
        None => error.errno().into(),
    }
}
