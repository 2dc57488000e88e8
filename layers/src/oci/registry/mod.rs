//! Registries: the OCI distribution specification, and what registries of docker's time do besides.
//!
//! ```text
//! Reference ─> Repository ─> Client ─> HTTP
//!   pull: Repository::image, a BlobSource for `ingest`
//!   push: Repository::push
//! ```
//!
//! Nothing that a registry says is trusted: sizes have bounds, and what is named by a digest is
//! compared with it, blobs by [`ingest`](super::ingest). All of it blocks; layers are read and sent
//! by threads, as everything of a store is.

mod answer;
mod auth;
mod blob;
mod client;
pub mod credentials;
mod download;
mod error;
mod image;
mod push;
mod reference;
mod upload;

pub use blob::RepositoryBlobs;
pub use client::{Client, ClientOptions};
pub use credentials::Credential;
pub use download::{Downloaded, download};
pub use error::RegistryError;
pub use image::{Fetched, RemoteImage, Repository};
pub use push::{PushOptions, Pushed};
pub use reference::{Reference, canonical_registry};
pub use upload::{Contents, Sent};
