//! Tar archives: importing one as a layer, making it again bit for bit, and writing new ones.
//!
//! Nothing in an archive is trusted. Reading one takes bounded memory, whatever it says.

mod chunk;
mod contents;
mod error;
mod header;
mod import;
mod input;
mod number;
mod pax;
mod reader;
mod sparse;
mod split;
mod tree;
mod write;
mod writers;

pub use error::{ArchiveError, ExportError, ImportError, Problem, SplitError};
pub use header::FieldError;
pub use import::{DEFAULT_MAX_SIZE, ImportOptions, Progress, import_layer, stage_layer};
pub use input::Compression;
pub use pax::PaxError;
pub use sparse::{Segment, SparseError};
/// tmp
pub fn stage_dir(
    txn: &crate::store::Transaction<'_>,
    _dir: &std::path::Path,
    o: &ImportOptions<'_>,
) -> Result<crate::store::LayerInfo, ImportError> {
    stage_layer(txn, std::io::empty(), "x", o)
}
