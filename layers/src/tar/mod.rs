//! Tar archives: importing one as a layer, making it again bit for bit, and writing new ones.
//!
//! Nothing in an archive is trusted. Reading one takes bounded memory, whatever it says.

mod chunk;
mod contents;
mod dir;
mod error;
mod export;
pub(crate) mod header;
mod import;
mod input;
mod number;
pub(crate) mod pax;
mod reader;
mod sparse;
mod split;
mod tree;
mod write;
mod writers;
mod xattrs;

pub use dir::{import_dir, stage_dir};
pub use error::{ArchiveError, ExportError, ImportError, Problem, SplitError};
pub(crate) use export::{check_split, split_objects};
pub use export::{export_layer, layer_objects};
pub use header::FieldError;
pub use import::{
    DEFAULT_MAX_SIZE, ImportOptions, Progress, import_layer, stage_layer, stage_written,
};
pub use input::{Compression, is_archive};
pub use pax::PaxError;
pub use sparse::{Segment, SparseError};
pub use write::{EntryKind, EntryMeta, LayerWriter};

#[cfg(test)]
#[allow(
    clippy::large_stack_arrays,
    clippy::type_complexity,
    clippy::match_same_arms,
    clippy::format_push_string,
    clippy::semicolon_if_nothing_returned
)]
pub(crate) mod tests;
