//! Lamina: a copy-on-write union filesystem in FUSE.
//!
//! The arrows of dependency are `cli → fuse → union → {upper, lower} → {sys, lamina-layers}`;
//! nothing points back. See `docs/architecture.md`.

pub mod attr;
pub mod build;
pub mod cli;
pub mod commit;
pub mod crew;
pub mod error;
pub mod fdcache;
pub mod fuse;
pub mod gate;
pub mod ids;
pub mod lower;
pub mod mount;
pub mod runtime;
pub mod stats;
pub mod sync;
pub mod sys;
pub mod union;
pub mod upper;
