//! The content-addressed store of image layers: objects, layer indexes, merged indexes, tar
//! import and bit-exact export. Knows nothing of FUSE.
//!
//! Nothing read from disk or from an archive is trusted: parsers take `&[u8]` or `Read`, report
//! errors that name what is wrong, and never panic.

pub mod digest;
pub mod index;
pub mod json_path;
pub mod new_file;
pub mod oci;
pub mod store;
pub mod tar;
