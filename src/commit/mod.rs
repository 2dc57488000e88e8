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

use lamina_layers::store::StoreError;
use lamina_layers::tar::ImportError;

use crate::error::FsError;

mod image;
mod layer;
mod time;

pub use image::Draft;
pub use layer::{LayerOptions, stage_changes, write_layer};
pub use time::{Timestamp, TimestampError};

/// Why there is no layer, or no image.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The changes cannot be read.
    #[error("cannot read the changes: {0}")]
    Read(FsError),
    /// The layer cannot be made.
    #[error(transparent)]
    Layer(#[from] ImportError),
    /// The store does not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
}
