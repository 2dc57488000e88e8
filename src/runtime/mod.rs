//! Running a program in a root filesystem of ours, by an OCI runtime (crun, runc).
//!
//! [`spec`] says how, as the runtime specification has it; [`container`] makes the mount and runs the
//! runtime, in namespaces that end with the caller; [`users`] knows whom a name means in an image.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub mod container;
pub mod points;
pub mod rootless;
mod seccomp;
pub mod spec;
pub mod users;
mod worker;

/// Why something cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// No runtime is installed.
    #[error("there is no OCI runtime: install crun or runc, or name one with --runtime")]
    None,
    /// The one that is named is not there.
    #[error("there is no OCI runtime '{0}': give a path, or the name of a program in PATH")]
    Missing(String),
    /// It cannot be started.
    #[error("cannot start {program:?}: {source}")]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Namespaces cannot be made, or the root not be mounted.
    #[error("cannot {action}: {source}")]
    Prepare {
        /// What was done.
        action: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The process that was to run it says this.
    #[error("{0}")]
    Worker(String),
}

impl RuntimeError {
    fn prepare<E: Into<std::io::Error>>(action: impl Into<String>) -> impl FnOnce(E) -> Self {
        let action = action.into();
        move |source| Self::Prepare {
            action,
            source: source.into(),
        }
    }
}

/// An OCI runtime.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runtime {
    /// The program.
    program: PathBuf,
}

/// Runtimes that are looked for, best first: crun takes half the time.
const KNOWN: [&str; 2] = ["crun", "runc"];

impl Runtime {
    /// The one of this name or path, or the best that is installed.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(wanted: Option<&str>) -> Result<Self, RuntimeError> {
        let of = |name: &str| in_path(name).map(|program| Self { program });
        match wanted {
            Some(wanted) => of(wanted).ok_or_else(|| RuntimeError::Missing(wanted.to_owned())),
            None => KNOWN.into_iter().find_map(of).ok_or(RuntimeError::None),
        }
    }

    /// Whether it is crun, which can do without control groups.
    fn is_crun(&self) -> bool {
        let name = self.program.file_stem().unwrap_or_default();
        name.to_string_lossy().contains("crun")
    }
}

fn in_path(name: &str) -> Option<PathBuf> {
    let is_file = |path: &Path| path.is_file();
    if name.contains('/') {
        let path = std::path::absolute(name).ok()?;
        return Some(path).filter(|path| is_file(path));
    }
    // Ordinary users may not have sbin in theirs, where some systems put runtimes.
    let mut dirs = std::env::var_os("PATH").unwrap_or_default();
    dirs.push(":/usr/sbin:/usr/local/sbin");
    let mut places = std::env::split_paths(&dirs).map(|dir| dir.join(name));
    places.find(|path| is_file(path))
}
