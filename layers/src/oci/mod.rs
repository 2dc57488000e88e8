//! Images of others: taking them into the store and giving them out, whatever carries them.
//!
//! ```text
//! archive or directory ─┐                            ┌─> archive or directory
//!                       ├─> ingest ─> store ─> blob ─┤
//! registry ─────────────┘                            └─> registry
//! ```
//!
//! [`ingest`] is the one way in: a carrier gives it a manifest, a configuration and a
//! [`BlobSource`], and need not check anything itself. Nothing that a carrier says is trusted.

mod blob;
mod document;
mod ingest;
mod load;
mod media;
mod packing;
mod parallel;
mod platform;
#[cfg(feature = "registry")]
pub mod registry;
mod save;
mod verify;

pub use blob::{OutBlob, OutError, OutOptions, Outgoing, outgoing};
pub use document::{Document, DocumentError, MAX_DOCUMENT, MAX_LAYERS};
pub use ingest::{
    BlobSource, IngestError, IngestOptions, IngestProgress, Ingested, LayerBlob, SourceError,
    ingest,
};
pub use load::{LoadError, LoadOptions, Loaded, Origin, WalkProblem, load};
pub use media::{Family, LayerMedia, UnknownMedia};
pub use platform::{ParsePlatformError, Platform};
pub use save::{
    ArchiveFormat, SaveError, SaveImage, SaveOptions, Saved, save_archive, save_to_dir,
};
