//! What can be wrong with an index file.

use std::io;

use super::format::{SectionKind, VERSION};

/// An index that cannot be read. Says what is wrong and where in the file; the caller knows the
/// path, or the digest of the layer, and adds it.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The file cannot be opened or mapped.
    #[error("cannot read the index: {0}")]
    Io(#[from] io::Error),
    /// The path names something else than a regular file.
    #[error("not a regular file")]
    NotAFile,
    /// The file does not begin as an index does.
    #[error("not an index (it does not begin with LAMINDEX)")]
    Magic,
    /// Another version of the format.
    #[error("the index has format version {0}; this version of lamina reads version {VERSION}")]
    Version(u32),
    /// Feature bits that this version does not know.
    #[error("the index uses features {0:#x} that this version of lamina does not know")]
    Features(u32),
    /// The file ends early, or has something after its end.
    #[error("the index is {actual} bytes long instead of {expected}")]
    Length {
        /// What the header or the section table asks for, in bytes.
        expected: u64,
        /// Length of the file, in bytes.
        actual: u64,
    },
    /// The header or the section table is wrong.
    #[error("index header: {0}")]
    Header(&'static str),
    /// A section as a whole is wrong.
    #[error("index section {section}: {problem}")]
    Section {
        /// Which section.
        section: SectionKind,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// One record is wrong.
    #[error("index section {section}, record {number}: {problem}")]
    Record {
        /// Which section.
        section: SectionKind,
        /// Number of the record in the section, from 0.
        number: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl IndexError {
    /// An error in one entry record.
    pub(super) fn entry(number: usize, problem: &'static str) -> Self {
        Self::Record {
            section: SectionKind::Entries,
            number,
            problem,
        }
    }

    /// An error in one alias record.
    pub(super) fn alias(number: usize, problem: &'static str) -> Self {
        Self::Record {
            section: SectionKind::Aliases,
            number,
            problem,
        }
    }
}
