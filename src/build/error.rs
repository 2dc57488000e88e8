//! Why an image cannot be built: the problem, and the instruction and line that it is about.

use std::fmt;
use std::path::PathBuf;

use lamina_layers::digest::Digest;

use super::words::WordError;

/// Why an image cannot be built.
#[derive(Debug)]
pub struct BuildError {
    problem: Box<Problem>,
    /// Line and text of the instruction.
    place: Option<(usize, String)>,
}

/// The result of a part of a build.
pub type BuildResult<T> = Result<T, BuildError>;

impl BuildError {
    /// An error that is nowhere yet.
    pub fn new(problem: Problem) -> Self {
        Self {
            problem: Box::new(problem),
            place: None,
        }
    }

    /// Says where, unless it is said already.
    #[must_use]
    pub fn at(mut self, line: usize, text: &str) -> Self {
        self.place.get_or_insert_with(|| (line, text.to_owned()));
        self
    }

    /// The line.
    pub fn line(&self) -> Option<usize> {
        self.place.as_ref().map(|(line, _)| *line)
    }

    /// What is wrong.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// The instruction's text, short enough for a message.
    fn instruction(&self) -> Option<String> {
        let (_, text) = self.place.as_ref().filter(|(_, text)| !text.is_empty())?;
        let mut short: String = text.chars().take(80).collect();
        if short.len() < text.len() {
            short.push('…');
        }
        Some(short)
    }

    /// The whole message, with the name of the file.
    pub fn in_file(&self, file: &str) -> String {
        let line = self
            .line()
            .map_or_else(String::new, |line| format!(":{line}"));
        let instruction = self.instruction();
        let instruction = instruction.map_or_else(String::new, |text| format!(" {text}:"));
        format!("{file}{line}:{instruction} {}", self.problem)
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.problem.fmt(f)
    }
}

impl std::error::Error for BuildError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&*self.problem)
    }
}

impl<P: Into<Problem>> From<P> for BuildError {
    fn from(problem: P) -> Self {
        Self::new(problem.into())
    }
}

/// What is wrong.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The file is malformed.
    #[error("{0}")]
    Syntax(String),
    /// A word of the file is malformed.
    #[error(transparent)]
    Word(#[from] WordError),
    /// Something the file may say, but that cannot be done here.
    #[error("{what} cannot be used here: {hint}")]
    Unsupported {
        /// What.
        what: String,
        /// What to do instead.
        hint: String,
    },
    /// An option is not known.
    #[error("there is no option --{0} here")]
    UnknownFlag(String),
    /// An option's value is none.
    #[error("--{flag}={value} is not possible: {hint}")]
    FlagValue {
        /// The option.
        flag: String,
        /// Its value.
        value: String,
        /// What it has to be.
        hint: String,
    },
    /// An instruction that an image kept for this build is malformed.
    #[error("the image's ONBUILD instruction '{0}' is not one instruction that ONBUILD can keep")]
    Trigger(String),
    /// There is no such stage.
    #[error("no stage is named '{0}'")]
    NoStage(String),
    /// An image to build on is not in the store.
    #[error(
        "image '{0}' is not in the store: import or pull it first ('lamina image ls' lists what is there)"
    )]
    NoImage(String),
    /// An image to build on is not in the store, and cannot be pulled either.
    #[error("image '{image}' is not in the store, and cannot be pulled: {reason}")]
    Pull {
        /// The image.
        image: String,
        /// Why not.
        reason: String,
    },
    /// An image is for other machines.
    #[error(
        "image '{image}' is for {found}, and {wanted} is asked for: import or pull that one, or say --platform {found}"
    )]
    Platform {
        /// The image.
        image: String,
        /// What it is for.
        found: String,
        /// What is wanted.
        wanted: String,
    },
    /// A source of COPY or ADD is not there.
    #[error("'{path}' is not in {place}{hint}")]
    NoSource {
        /// As it was named.
        path: String,
        /// Where it was looked for.
        place: String,
        /// What may be the reason.
        hint: String,
    },
    /// A source of ADD cannot be downloaded.
    #[error(transparent)]
    Download(#[from] lamina_layers::oci::registry::RegistryError),
    /// What was downloaded is something else than was expected.
    #[error(
        "{url} is something else than --checksum says: its digest is {found} instead of {wanted}"
    )]
    Checksum {
        /// Where it is.
        url: String,
        /// The digest that it should have.
        wanted: Digest,
        /// The digest that it has.
        found: Digest,
    },
    /// Nothing says what a file is to be called.
    #[error("{0} has no file name: name the file that it is to be, instead of a directory")]
    NoName(String),
    /// Several sources are copied to something that is no directory.
    #[error("'{0}' must end with '/' when several things are copied there")]
    SeveralSources(String),
    /// A path of the image cannot be used.
    #[error("'{path}' in the image {problem}")]
    Target {
        /// The path.
        path: String,
        /// Why.
        problem: String,
    },
    /// A name is not in the image's `/etc/passwd` or `/etc/group`.
    #[error(transparent)]
    User(#[from] crate::runtime::users::UserError),
    /// Something outside the image cannot be read or written.
    #[error("cannot {action} {path:?}: {source}")]
    Io {
        /// What was done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A command ended with a status that is not 0.
    #[error("the command ended with status {0}")]
    Command(i32),
    /// A command was ended by a signal.
    #[error("the build was interrupted")]
    Interrupted,
    /// A container cannot be run.
    #[error(transparent)]
    Runtime(#[from] crate::runtime::RuntimeError),
    /// The store cannot be read or written.
    #[error(transparent)]
    Store(#[from] lamina_layers::store::StoreError),
    /// A layer cannot be made.
    #[error(transparent)]
    Layer(#[from] lamina_layers::tar::ImportError),
    /// What a command changed cannot be read.
    #[error("cannot read what the command changed: {0}")]
    Changes(std::io::Error),
}

impl Problem {
    /// For `map_err` on system calls.
    pub fn io<E: Into<std::io::Error>>(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source: source.into(),
        }
    }
}
