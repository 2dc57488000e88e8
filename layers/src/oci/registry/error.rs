//! What can go wrong with a registry.

use std::io;
use std::path::PathBuf;

use crate::digest::{DiffId, Digest};
use crate::oci::{DocumentError, IngestError, SourceError};
use crate::store::StoreError;

/// Why something cannot be had from a registry or given to one. Every message names the registry and
/// what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// Not the name of an image.
    #[error("'{text}' does not name an image in a registry: {problem}")]
    Reference {
        /// What was given.
        text: String,
        /// What is wrong with it.
        problem: String,
    },
    /// No connection, or it broke too often.
    #[error("cannot reach {registry}: {source}{hint}")]
    Unreachable {
        /// The registry.
        registry: String,
        /// Why not.
        source: io::Error,
        /// What to do about it, or nothing.
        hint: &'static str,
    },
    /// The connections on which a blob comes always break.
    #[error(
        "{what}: {registry} broke off {times} times in a row, the last time after {position}{} bytes: {source}",
        of(*.size)
    )]
    Broken {
        /// The registry.
        registry: String,
        /// What was read.
        what: String,
        /// How often.
        times: u32,
        /// How far it got, in bytes.
        position: u64,
        /// The length, in bytes, if it is known.
        size: Option<u64>,
        /// Why, the last time.
        source: io::Error,
    },
    /// Nobody is logged in, or without the right to it.
    #[error(
        "{registry} gives no access to {what} without a login (401{}). 'lamina login {registry}' logs in; many registries say the same of what does not exist",
        said(.message)
    )]
    LoginNeeded {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// What the registry says.
        message: String,
    },
    /// Who is logged in is not believed.
    #[error(
        "{registry} does not accept the credentials of {origin} for {what} ({status}{}): they are wrong, or have no right to it. 'lamina login {registry}' replaces them",
        said(.message)
    )]
    Credentials {
        /// The registry.
        registry: String,
        /// Where the credentials are from.
        origin: String,
        /// What was asked for.
        what: String,
        /// The HTTP status.
        status: u16,
        /// What the registry says.
        message: String,
    },
    /// Not allowed.
    #[error("{registry} forbids access to {what} (403{})", said(.message))]
    Forbidden {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// What the registry says.
        message: String,
    },
    /// It is not there.
    #[error("{registry} does not have {what} (404{})", said(.message))]
    NotFound {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// What the registry says.
        message: String,
    },
    /// Asked too often.
    #[error(
        "{registry} gives no more of {what} for now (429{}). {}",
        said(.message),
        later(*.wait)
    )]
    TooMany {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// What the registry says.
        message: String,
        /// After how many seconds to ask again, if it says so.
        wait: Option<u64>,
    },
    /// The registry has a problem.
    #[error(
        "{registry} failed {times} times to serve {what}, the last time with {status}{}. Try again later",
        said(.message)
    )]
    Server {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// How often.
        times: u32,
        /// The HTTP status.
        status: u16,
        /// What the registry says.
        message: String,
    },
    /// Another answer that means no.
    #[error("{registry} refuses {what} with {status}{}", said(.message))]
    Refused {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// The HTTP status.
        status: u16,
        /// What the registry says.
        message: String,
    },
    /// Something that no registry answers.
    #[error("{registry} does not answer like a registry when asked for {what}: {problem}")]
    Protocol {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// What is wrong.
        problem: String,
    },
    /// A manifest is not one.
    #[error("the manifest of {what} in {registry} {problem}")]
    Manifest {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// What is wrong with it.
        problem: DocumentError,
    },
    /// Other contents than those that were asked for.
    #[error(
        "{registry} gives something else than {what}: its digest is {found} instead of {wanted}"
    )]
    Digest {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// The digest that it should have.
        wanted: Digest,
        /// The digest that it has.
        found: Digest,
    },
    /// No image for the machine.
    #[error("{what} has no image for {platform}; there {}", are(.found))]
    Platform {
        /// What was asked for.
        what: String,
        /// The platform that was asked for.
        platform: String,
        /// Those that there are.
        found: Vec<String>,
    },
    /// A file with credentials cannot be used.
    #[error("cannot use the credentials in {}: {problem}", .path.display())]
    AuthFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A credential helper does not work.
    #[error("the credential helper docker-credential-{helper}, which {} names, {problem}", .path.display())]
    Helper {
        /// The helper, without the beginning of its name.
        helper: String,
        /// The file that names it.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A file of certificates cannot be used.
    #[error("cannot use the certificates in {}: {problem}", .path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A layer of an image that was to be had again is not in it.
    #[error("{what} does not have layer {layer}")]
    OtherLayers {
        /// The image.
        what: String,
        /// The layer.
        layer: DiffId,
    },
    /// What was to be sent cannot be read.
    #[error("cannot send {what} to {registry}: {source}")]
    Source {
        /// The registry.
        registry: String,
        /// What was to be sent.
        what: String,
        /// Why not.
        source: SourceError,
    },
    /// What came cannot be written.
    #[error("cannot write what comes from {what}: {source}")]
    Keep {
        /// Where it comes from.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// The image does not get into the store.
    #[error(transparent)]
    Ingest(#[from] IngestError),
    /// The store has a problem.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl RegistryError {
    /// Whether it says that something is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Whether it may not be there the next time.
    pub(super) fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::Server { .. } | Self::TooMany { .. }
        )
    }

    /// After how many seconds the registry wants to be asked again.
    pub(super) fn wait(&self) -> Option<u64> {
        match self {
            Self::TooMany { wait, .. } => *wait,
            _ => None,
        }
    }
}

/// What the registry says, with what goes before it.
fn said(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(": {message}")
    }
}

fn of(size: Option<u64>) -> String {
    size.map_or_else(String::new, |size| format!(" of {size}"))
}

fn later(wait: Option<u64>) -> String {
    match wait {
        Some(seconds) => format!("It says to ask again in {seconds} s"),
        None => "Try again later".into(),
    }
}

fn are(found: &[String]) -> String {
    match found {
        [] => "are none that say their platform".into(),
        [one] => format!("is only {one}"),
        all => format!("are {}", all.join(", ")),
    }
}
