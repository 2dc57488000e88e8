//! What a build context leaves out: `.containerignore`, or else `.dockerignore`, by docker's rules.
//!
//! Each line is a pattern of paths; what it matches is left out, with all that is below it. After a `!` it
//! is taken in again. The last line that matches counts.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::{BuildResult, Problem};
use super::pattern::Pattern;
use super::root::split;

/// The files that say it, the one that counts first.
const FILES: [&str; 2] = [".containerignore", ".dockerignore"];

/// What a context leaves out.
#[derive(Debug, Default)]
pub struct Ignore {
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    pattern: Pattern,
    include: bool,
}

impl Ignore {
    /// Reads the file of a context, if it has one; that of the Containerfile (`NAME.dockerignore` beside
    /// it) counts before.
    ///
    /// # Errors
    /// When it cannot be read, or a pattern is malformed.
    pub fn of(context: &Path, containerfile: Option<&Path>) -> BuildResult<Self> {
        let own = containerfile.into_iter().flat_map(|file| {
            [".containerignore", ".dockerignore"].map(|suffix| {
                let mut name = file.as_os_str().to_owned();
                name.push(suffix);
                PathBuf::from(name)
            })
        });
        let common = FILES.map(|name| context.join(name));
        for path in own.chain(common) {
            match fs::read_to_string(&path) {
                Ok(text) => {
                    return Self::parse(&text).map_err(|pattern| {
                        let name = path.display();
                        Problem::Syntax(format!("{name}: '{pattern}' is not a pattern")).into()
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Problem::io("read", path)(error).into()),
            }
        }
        Ok(Self::default())
    }

    /// Parses one; the error is a pattern that is none.
    fn parse(text: &str) -> Result<Self, String> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut rules = Vec::new();
        for line in text.lines() {
            if line.starts_with('#') {
                continue;
            }
            let line = line.trim();
            let (line, include) = match line.strip_prefix('!') {
                Some(rest) => (rest.trim(), true),
                None => (line, false),
            };
            let names = cleaned(line.as_bytes());
            if names.is_empty() {
                continue;
            }
            let pattern = Pattern::path(&names).ok_or_else(|| line.to_owned())?;
            rules.push(Rule { pattern, include });
        }
        Ok(Self { rules })
    }

    /// Whether a path of the context, or a directory that it is in, is left out.
    pub fn excludes(&self, path: &[u8]) -> bool {
        let mut excluded = false;
        for rule in self.rules.iter().filter(|_| !path.is_empty()) {
            // Only a rule that changes something has to be looked at.
            if rule.include == excluded && rule.matches(path) {
                excluded = !rule.include;
            }
        }
        excluded
    }

    /// Whether something below what is left out may be taken in again.
    pub fn may_include_below(&self) -> bool {
        self.rules.iter().any(|rule| rule.include)
    }
}

impl Rule {
    /// Whether it matches a path or a directory above it.
    fn matches(&self, path: &[u8]) -> bool {
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        let mut ends = slashes.map(|(at, _)| at).chain([path.len()]);
        ends.any(|end| self.pattern.matches(path.get(..end).unwrap_or_default()))
    }
}

/// A pattern without `.` and `..`; it is relative to the context, with a leading slash or without.
fn cleaned(line: &[u8]) -> Vec<u8> {
    let mut names: Vec<&[u8]> = Vec::new();
    for name in split(line) {
        if name == b".." {
            names.pop();
        } else {
            names.push(name);
        }
    }
    names.join(&b'/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_are_dockers() {
        let text = "# a comment\n\n*/temp*\n*/*/temp*\ntemp?\n/abs\nsub/\n**/*.o\n!keep.o\n dir/../x \n\
                    docs/*\n!docs/README*\ndocs/README-secret\n";
        let ignore = Ignore::parse(text).unwrap();
        for (path, expected) in [
            ("a/temp.txt", true),
            ("temp.txt", false),
            ("a/b/temporary", true),
            ("a/b/c/temp", false),
            ("tempa", true),
            ("tempaa", false),
            ("abs", true),
            ("abs/below", true),
            ("b/abs", false),
            ("sub/x/y", true),
            ("x.o", true),
            ("a/b/x.o", true),
            ("keep.o", false),
            ("a/keep.o", true),
            ("x", true),
            ("docs", false),
            ("docs/a", true),
            ("docs/README.md", false),
            ("docs/README-secret", true),
            ("# a comment", false),
        ] {
            assert_eq!(ignore.excludes(path.as_bytes()), expected, "{path}");
        }
        assert!(ignore.may_include_below());
    }

    #[test]
    fn everything_but_something() {
        let ignore = Ignore::parse("*\n!src\nsrc/*.tmp\n").unwrap();
        for (path, expected) in [
            ("a", true),
            ("src", false),
            ("src/x", false),
            ("src/x.tmp", true),
        ] {
            assert_eq!(ignore.excludes(path.as_bytes()), expected, "{path}");
        }
        assert!(!ignore.excludes(b""));
        assert!(Ignore::parse("a[").is_err());
        assert!(!Ignore::parse("a\n").unwrap().may_include_below());
    }
}
