//! Which paths a diff is about.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use super::from_root;

/// Paths, and patterns of paths; nothing for all.
pub struct Filter {
    all: bool,
    paths: Vec<Vec<u8>>,
    patterns: GlobSet,
}

impl Filter {
    /// A filter for what a user wants.
    ///
    /// # Errors
    /// In words, what is wrong with a pattern.
    pub fn new(wanted: &[PathBuf]) -> Result<Self, String> {
        let mut paths = Vec::new();
        let mut patterns = GlobSetBuilder::new();
        for path in wanted {
            let whole = from_root(path);
            let is_pattern = |byte: &u8| b"*?[{".contains(byte);
            if !whole.iter().any(is_pattern) {
                paths.push(whole);
                continue;
            }
            let wrong = |why: String| format!("{path:?} is no pattern of paths: {why}");
            let text = String::from_utf8(whole).map_err(|_| wrong("it is not UTF-8".into()))?;
            let has_slash = path.as_os_str().as_bytes().contains(&b'/');
            let start = if has_slash { "" } else { "/**" };
            for end in ["", "/**"] {
                let glob = GlobBuilder::new(&format!("{start}{text}{end}"))
                    .literal_separator(true)
                    .backslash_escape(true)
                    .build();
                patterns.add(glob.map_err(|error| wrong(error.kind().to_string()))?);
            }
        }
        Ok(Self {
            all: wanted.is_empty(),
            paths,
            patterns: patterns.build().map_err(|error| error.to_string())?,
        })
    }

    /// Whether a path, from the root, is wanted.
    pub fn takes(&self, path: &[u8]) -> bool {
        let below = |start: &Vec<u8>| {
            path.strip_prefix(start.as_slice())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        };
        self.all
            || self.paths.iter().any(below)
            || self.patterns.is_match(Path::new(OsStr::from_bytes(path)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken<'a>(wanted: &[&str], paths: &[&'a str]) -> Vec<&'a str> {
        let wanted: Vec<_> = wanted.iter().map(PathBuf::from).collect();
        let filter = Filter::new(&wanted).unwrap();
        let paths = paths.iter().copied();
        paths.filter(|path| filter.takes(path.as_bytes())).collect()
    }

    #[test]
    fn paths_take_what_is_below_them() {
        let paths = [
            "/etc",
            "/etc/a.conf",
            "/etc2",
            "/usr/etc/b.conf",
            "/usr/lib/x",
        ];
        assert_eq!(taken(&[], &paths), paths);
        assert_eq!(taken(&["/"], &paths), paths);
        assert_eq!(taken(&["etc/"], &paths), paths[..2]);
        assert_eq!(
            taken(&["/etc2", "./usr//lib"], &paths),
            ["/etc2", "/usr/lib/x"]
        );
        assert_eq!(
            taken(&["*.conf"], &paths),
            ["/etc/a.conf", "/usr/etc/b.conf"]
        );
        assert_eq!(taken(&["/etc/*"], &paths), ["/etc/a.conf"]);
        assert_eq!(taken(&["/us?"], &paths), ["/usr/etc/b.conf", "/usr/lib/x"]);
        assert_eq!(taken(&["/nothing"], &paths), [""; 0]);
    }

    #[test]
    fn a_pattern_that_is_none_is_told() {
        let wrong = Filter::new(&[PathBuf::from("/etc/[a")]).err();
        assert!(wrong.is_some_and(|words| words.contains("/etc/[a")));
    }
}
