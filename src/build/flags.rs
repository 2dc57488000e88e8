//! Options of instructions.

use super::containerfile::Flag;
use super::error::{BuildResult, Problem};

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
