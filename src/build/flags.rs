//! Options of instructions, and platforms.

use std::fmt;
use std::str::FromStr;

use super::containerfile::Flag;
use super::error::{BuildResult, Problem};

/// A CPU and an operating system, by the names of Go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// Operating system.
    pub os: String,
    /// CPU.
    pub arch: String,
    /// Which of its kind.
    pub variant: Option<String>,
}

/// Something is no platform.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is not a platform: give OS/CPU, as in linux/amd64")]
pub struct PlatformError(String);

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let mut parts = text.split('/');
        let wrong = || PlatformError(text.to_owned());
        let (first, second) = (parts.next().unwrap_or_default(), parts.next());
        let (os, arch) = match second {
            Some(arch) => (first, arch),
            None => ("linux", first),
        };
        let variant = parts.next().map(str::to_owned);
        if os != "linux" || arch.is_empty() || parts.next().is_some() {
            return Err(wrong());
        }
        let arch = match arch {
            "x86_64" | "x86-64" => "amd64",
            "aarch64" => "arm64",
            arch => arch,
        };
        Ok(Self {
            os: os.to_owned(),
            arch: arch.to_owned(),
            variant,
        })
    }
}

impl Platform {
    /// This machine's.
    pub fn here() -> Self {
        Self {
            os: "linux".to_owned(),
            arch: lamina_layers::store::oci::architecture().to_owned(),
            variant: None,
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.arch)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// The options of an instruction that are not taken yet.
pub struct Flags {
    left: Vec<Flag>,
}

impl Flags {
    /// All of them.
    pub fn new(flags: &[Flag]) -> Self {
        Self {
            left: flags.to_vec(),
        }
    }

    /// Takes an option that has a value.
    ///
    /// # Errors
    /// When it has none, or is there twice.
    pub fn take(&mut self, name: &str) -> BuildResult<Option<String>> {
        let mut values = self.take_all(name)?;
        if values.len() > 1 {
            return Err(Problem::Syntax(format!("--{name} is there twice")).into());
        }
        Ok(values.pop())
    }

    /// Takes all options of a name, which have values.
    ///
    /// # Errors
    /// When one has none.
    pub fn take_all(&mut self, name: &str) -> BuildResult<Vec<String>> {
        let mut values = Vec::new();
        let mut left = Vec::new();
        for flag in self.left.drain(..) {
            if flag.name != name {
                left.push(flag);
                continue;
            }
            let missing = || Problem::Syntax(format!("--{name} needs a value"));
            values.push(
                flag.value
                    .filter(|value| !value.is_empty())
                    .ok_or_else(missing)?,
            );
        }
        self.left = left;
        Ok(values)
    }

    /// Takes an option that is there or not.
    pub fn take_switch(&mut self, name: &str) -> bool {
        let before = self.left.len();
        self.left.retain(|flag| flag.name != name);
        self.left.len() != before
    }

    /// Refuses what was not taken.
    ///
    /// # Errors
    /// When something is left.
    pub fn end(self) -> BuildResult<()> {
        match self.left.into_iter().next() {
            None => Ok(()),
            Some(flag) => Err(Problem::UnknownFlag(flag.name).into()),
        }
    }
}
