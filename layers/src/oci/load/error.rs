//! What can go wrong when images are read from an archive or a directory.

use std::io;
use std::path::PathBuf;

use super::walk::WalkProblem;
use crate::digest::Digest;
use crate::oci::{DocumentError, IngestError, Platform, UnknownMedia};
use crate::store::StoreError;

/// Why images cannot be read. Every message names the archive, or what in it is wrong.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It cannot be opened.
    #[error("cannot open {}: {source}", .path.display())]
    Open {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The archive is wrong.
    #[error("{name}: {problem}")]
    Archive {
        /// What people call it.
        name: String,
        /// What is wrong with it.
        problem: WalkProblem,
    },
    /// Two files have one name, and programs differ in which of them counts.
    #[error("{name} has '{}' twice", .path.escape_debug())]
    Twice {
        /// What people call it.
        name: String,
        /// The path in it.
        path: String,
    },
    /// There are no images in it.
    #[error(
        "{name} has no images: it has neither an index.json (OCI layout) nor a manifest.json (docker save). Of a root filesystem, 'lamina layer build' makes an image"
    )]
    NoImages {
        /// What people call it.
        name: String,
    },
    /// A file that is referred to is not there.
    #[error("{name} lacks '{}', which {by} refers to", .path.escape_debug())]
    Missing {
        /// What people call the archive.
        name: String,
        /// The path in it.
        path: String,
        /// What refers to it.
        by: &'static str,
    },
    /// A file cannot be read.
    #[error("{name}: cannot read '{}': {source}", .path.escape_debug())]
    Read {
        /// What people call the archive.
        name: String,
        /// The path in it.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// Links that lead to each other or out of the archive.
    #[error("{name}: '{}' is a link that leads nowhere", .path.escape_debug())]
    Link {
        /// What people call the archive.
        name: String,
        /// The path in it.
        path: String,
    },
    /// A document that is too long to be one.
    #[error("{name}: '{}' has {size} bytes (at most {max})", .path.escape_debug())]
    Long {
        /// What people call the archive.
        name: String,
        /// The path in it.
        path: String,
        /// Its length in bytes.
        size: u64,
        /// What it may be.
        max: u64,
    },
    /// A document that cannot be understood.
    #[error("{name}: '{}' {problem}", .path.escape_debug())]
    Document {
        /// What people call the archive.
        name: String,
        /// The path in it.
        path: String,
        /// What is wrong with it.
        problem: DocumentError,
    },
    /// A document that is another than its name says.
    #[error("{name}: '{}' is damaged: its digest is {found}", .path.escape_debug())]
    Digest {
        /// What people call the archive.
        name: String,
        /// The path in it.
        path: String,
        /// Its digest.
        found: Digest,
    },
    /// Indexes in indexes, or very many of them.
    #[error("{name} has indexes in indexes, more than any program makes")]
    Nested {
        /// What people call the archive.
        name: String,
    },
    /// A layer that cannot be named in a manifest.
    #[error("{name}: layer '{}': {source}", .path.escape_debug())]
    Layer {
        /// What people call the archive.
        name: String,
        /// The path in it.
        path: String,
        /// What is wrong.
        source: UnknownMedia,
    },
    /// No image for a machine.
    #[error("{name} has no image for {wanted}, only for {}", list(.found))]
    Platform {
        /// What people call the archive or the image in it.
        name: String,
        /// What was looked for.
        wanted: Platform,
        /// What is there.
        found: Vec<Platform>,
    },
    /// Something that is not there was asked for.
    #[error("{name} has no image '{}'; it has: {}", .wanted.escape_debug(), titles(.found))]
    NoSuchImage {
        /// What people call the archive.
        name: String,
        /// What was asked for.
        wanted: String,
        /// What is there.
        found: Vec<String>,
    },
    /// Several images, and it was not said which.
    #[error(
        "{name} has several images: {}. Name the one to import, or several, or give --all; -t is for one only",
        titles(.found)
    )]
    Several {
        /// What people call the archive.
        name: String,
        /// What is there.
        found: Vec<String>,
    },
    /// An image of it cannot be taken.
    #[error("{name}: {source}")]
    Ingest {
        /// What people call the archive.
        name: String,
        /// Why not.
        source: Box<IngestError>,
    },
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// As many as fit a message.
fn titles(found: &[String]) -> String {
    const MAX: usize = 20;
    let mut text: Vec<_> = found
        .iter()
        .take(MAX)
        .map(|it| it.escape_debug().to_string())
        .collect();
    if found.len() > MAX {
        text.push(format!("and {} more", found.len() - MAX));
    }
    text.join("; ")
}

fn list(found: &[Platform]) -> String {
    let mut names: Vec<_> = found.iter().map(ToString::to_string).collect();
    names.sort();
    names.dedup();
    names.join(", ")
}
