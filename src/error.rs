//! The one error of the filesystem: what the kernel is told, and what the log says.

use std::fmt;

use rustix::io::Errno;

/// Why a file operation failed.
///
/// Most failures are answers (no such file, no space) and carry only the `errno`. Damage (an
/// object of the store that is missing or has the wrong size) also carries words for the log,
/// since `EIO` alone would not tell an operator what to do.
#[derive(Debug)]
pub struct FsError {
    errno: Errno,
    damage: Option<Box<str>>,
}

/// The result of a file operation.
pub type FsResult<T> = Result<T, FsError>;

impl FsError {
    /// Something the union relies on is damaged: `EIO`, with an explanation for the log.
    pub fn damage(what: impl fmt::Display) -> Self {
        Self {
            errno: Errno::IO,
            damage: Some(what.to_string().into_boxed_str()),
        }
    }

    /// What the caller of the system call is told.
    pub fn errno(&self) -> Errno {
        self.errno
    }

    /// The explanation for the log, if this is damage and not an answer.
    pub fn explanation(&self) -> Option<&str> {
        self.damage.as_deref()
    }
}

impl From<Errno> for FsError {
    fn from(errno: Errno) -> Self {
        Self {
            errno,
            damage: None,
        }
    }
}

impl From<std::io::Error> for FsError {
    fn from(error: std::io::Error) -> Self {
        match Errno::from_io_error(&error) {
            Some(errno) => errno.into(),
            None => Self::damage(error),
        }
    }
}

impl fmt::Display for FsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.damage {
            Some(what) => f.write_str(what),
            None => fmt::Display::fmt(&self.errno, f),
        }
    }
}

impl std::error::Error for FsError {}
