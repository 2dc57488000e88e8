//! Patterns of names as Go's `filepath.Match` and docker's `.dockerignore` have them, which differ
//! from what the crates for globs do: a `**` may stand in the middle of a name, a backslash escapes,
//! and nothing is special about a leading dot.

use regex::bytes::{NoExpand, Regex, RegexBuilder};

/// A pattern, ready to use.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

/// What `*` and `?` stand for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// Anything but a slash; `**` for anything.
    Paths,
    /// Anything but a slash; `**` is the same as `*`.
    Name,
    /// Anything.
    Text,
}

impl Pattern {
    /// A pattern of whole paths, in which `**` goes through directories. `None` if it is malformed.
    pub fn path(pattern: &[u8]) -> Option<Self> {
        let inner = translate(pattern, Reach::Paths)?;
        compile(&format!("^(?:{inner})$"))
    }

    /// A pattern of one name. `None` if it is malformed.
    pub fn name(pattern: &[u8]) -> Option<Self> {
        let inner = translate(pattern, Reach::Name)?;
        compile(&format!("^(?:{inner})$"))
    }

    /// A pattern of a whole text.
    pub fn text(pattern: &str) -> Option<Self> {
        let inner = translate(pattern.as_bytes(), Reach::Text)?;
        compile(&format!("^(?:{inner})$"))
    }

    /// A pattern of a part of a text.
    pub fn anywhere(pattern: &str) -> Option<Self> {
        compile(&translate(pattern.as_bytes(), Reach::Text)?)
    }

    /// Whether it matches.
    pub fn matches(&self, text: &[u8]) -> bool {
        self.0.is_match(text)
    }

    /// The text with what matches replaced: the first part, or all.
    pub fn replace(&self, text: &str, with: &str, all: bool) -> String {
        let limit = usize::from(!all);
        let with = NoExpand(with.as_bytes());
        let replaced = self.0.replacen(text.as_bytes(), limit, with);
        String::from_utf8_lossy(&replaced).into_owned()
    }
}

/// Whether a name has characters that make it a pattern.
pub fn is_pattern(name: &[u8]) -> bool {
    name.iter().any(|byte| b"*?[\\".contains(byte))
}

fn compile(expression: &str) -> Option<Pattern> {
    let mut builder = RegexBuilder::new(expression);
    builder.unicode(false).dot_matches_new_line(true);
    builder.build().ok().map(Pattern)
}

/// A regular expression for a pattern.
fn translate(pattern: &[u8], reach: Reach) -> Option<String> {
    let one = if reach == Reach::Text { "." } else { "[^/]" };
    let mut out = String::new();
    let mut rest = pattern;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        match byte {
            b'*' if reach == Reach::Paths && rest.first() == Some(&b'*') => {
                rest = rest.get(1..).unwrap_or_default();
                match rest.split_first() {
                    // Any number of directories, none as well.
                    Some((b'/', after)) => {
                        rest = after;
                        out.push_str("(?:.*/)?");
                    }
                    _ => out.push_str(".*"),
                }
            }
            b'*' => {
                out.push_str(one);
                out.push('*');
            }
            b'?' => out.push_str(one),
            b'[' => rest = class(rest, &mut out)?,
            b'\\' => {
                let (&escaped, tail) = rest.split_first()?;
                literal(escaped, &mut out);
                rest = tail;
            }
            other => literal(other, &mut out),
        }
    }
    Some(out)
}

fn literal(byte: u8, out: &mut String) {
    let hex = format!("\\x{byte:02x}");
    out.push_str(&hex);
}

/// After a `[`: a set of characters and ranges, `^` (or `!`) for all others. Returns what follows.
fn class<'a>(mut rest: &'a [u8], out: &mut String) -> Option<&'a [u8]> {
    out.push('[');
    if let Some((b'^' | b'!', tail)) = rest.split_first() {
        out.push('^');
        rest = tail;
    }
    let mut count = 0;
    loop {
        let (first, tail) = member(rest)?;
        if first == Member::End && count > 0 {
            out.push(']');
            return Some(tail);
        }
        let Member::Byte(low) = first else {
            return None;
        };
        rest = tail;
        let mut high = low;
        if let Some((b'-', tail)) = rest.split_first() {
            let (Member::Byte(end), tail) = member(tail)? else {
                return None;
            };
            (high, rest) = (end, tail);
        }
        if low > high {
            return None;
        }
        literal(low, out);
        out.push('-');
        literal(high, out);
        count += 1;
    }
}

#[derive(PartialEq, Eq)]
enum Member {
    Byte(u8),
    End,
}

fn member(rest: &[u8]) -> Option<(Member, &[u8])> {
    let (&byte, tail) = rest.split_first()?;
    Some(match byte {
        b']' => (Member::End, tail),
        b'\\' => {
            let (&escaped, tail) = tail.split_first()?;
            (Member::Byte(escaped), tail)
        }
        byte => (Member::Byte(byte), tail),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_as_in_go() {
        for (pattern, name, expected) in [
            ("*", "abc", true),
            ("*", ".hidden", true),
            ("*.rs", "a.rs", true),
            ("*.rs", "a/b.rs", false),
            ("a?c", "abc", true),
            ("a?c", "a/c", false),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("[\\]]", "]", true),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("a.c", "abc", false),
            ("**", "a/b", false),
        ] {
            let found = Pattern::name(pattern.as_bytes()).unwrap();
            assert_eq!(found.matches(name.as_bytes()), expected, "{pattern} {name}");
        }
        for wrong in ["[", "[a", "a\\", "[]", "[b-a]", "[-a]x["] {
            assert!(Pattern::name(wrong.as_bytes()).is_none(), "{wrong}");
        }
    }

    #[test]
    fn paths_have_two_stars() {
        for (pattern, path, expected) in [
            ("**/x", "x", true),
            ("**/x", "a/b/x", true),
            ("**/x", "a/bx", false),
            ("a/**", "a/b/c", true),
            ("a/**/c", "a/c", true),
            ("a/**/c", "a/b/d/c", true),
            ("a**c", "a/b/c", true),
            ("*/x", "a/x", true),
            ("*/x", "a/b/x", false),
        ] {
            let found = Pattern::path(pattern.as_bytes()).unwrap();
            assert_eq!(found.matches(path.as_bytes()), expected, "{pattern} {path}");
        }
    }
}
