//! `lamina diff --patch`: the format of git, with lines of its own for what git does not keep (owners,
//! extended attributes, devices, directories), which `patch` skips.

use std::io::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use similar::TextDiff;

use super::{is_different, word};
use crate::attr::{Kind, PERMISSIONS};
use crate::cli::out;
use crate::error::FsResult;
use crate::union::{Change, Side, Union};

/// Files larger than this are only said to differ, in bytes.
const LARGEST: u64 = 8 << 20;
/// How long the shortest difference is looked for; then a longer one will do.
const PATIENCE: Duration = Duration::from_secs(5);
/// How much of the start is looked at to tell text from other data, as git does.
const START: usize = 8000;
/// How much is shown of the value of an extended attribute, in bytes.
const VALUE: usize = 256;

/// Prints what is different in each.
pub fn print(union: &Union, changes: &[Change]) -> anyhow::Result<()> {
    for change in changes {
        let text = || -> anyhow::Result<Vec<u8>> {
            if is_different(union, change)? {
                return one(union, change);
            }
            Ok(Vec::new())
        };
        let failed = || format!("cannot show '{}'", change.path.escape_ascii());
        out::print(text().with_context(failed)?)?;
    }
    Ok(())
}

fn one(union: &Union, change: &Change) -> anyhow::Result<Vec<u8>> {
    let mut text = Vec::new();
    match (&change.was, &change.now) {
        (Some(was), Some(now)) if was.kind() != now.kind() => {
            // Another thing in its place.
            let old = (change.path.as_slice(), Some(was), None);
            let new = (change.path.as_slice(), None, Some(now));
            write(union, old, false, &mut text)?;
            write(union, new, false, &mut text)?;
        }
        (was, now) => {
            let same = union.is_same_contents(change)?;
            let sides = (change.path.as_slice(), was.as_ref(), now.as_ref());
            write(union, sides, same, &mut text)?;
        }
    }
    Ok(text)
}

type Sides<'a> = (&'a [u8], Option<&'a Side>, Option<&'a Side>);

fn write(
    union: &Union,
    (path, was, now): Sides<'_>,
    same: bool,
    text: &mut Vec<u8>,
) -> anyhow::Result<()> {
    let mut headers = Vec::new();
    describe(union, was, now, &mut headers)?;
    let (a, b) = (quoted(b"a", path), quoted(b"b", path));
    let mut body = Vec::new();
    if !same {
        contents(union, (&a, was), (&b, now), &mut body)?;
    }
    if headers.is_empty() && body.is_empty() {
        return Ok(());
    }
    writeln!(text, "diff --git {a} {b}")?;
    text.append(&mut headers);
    text.append(&mut body);
    Ok(())
}

/// Lines about everything but contents.
fn describe(
    union: &Union,
    was: Option<&Side>,
    now: Option<&Side>,
    text: &mut Vec<u8>,
) -> anyhow::Result<()> {
    let mode = |side: &Side| {
        format!(
            "{:06o}",
            side.kind().mode_bits() | side.attr.mode & PERMISSIONS
        )
    };
    let owner = |side: &Side| format!("{}:{}", side.attr.uid, side.attr.gid);
    // git has no other kinds.
    let what = |side: &Side| match side.kind() {
        Kind::File | Kind::Symlink => "file",
        kind => word(kind),
    };
    match (was, now) {
        (Some(was), Some(now)) => {
            for (name, old, new) in [
                ("mode", mode(was), mode(now)),
                ("owner", owner(was), owner(now)),
            ] {
                if old != new {
                    writeln!(text, "old {name} {old}\nnew {name} {new}")?;
                }
            }
        }
        (None, Some(now)) => writeln!(text, "new {} mode {}", what(now), mode(now))?,
        (Some(was), None) => writeln!(text, "deleted {} mode {}", what(was), mode(was))?,
        (None, None) => {}
    }
    if let (None, Some(now)) = (was, now)
        && (now.attr.uid, now.attr.gid) != (0, 0)
    {
        writeln!(text, "new owner {}", owner(now))?;
    }
    for (word, side) in [("old", was), ("new", now)] {
        if let Some(side) = side.filter(|side| matches!(side.kind(), Kind::Char | Kind::Block)) {
            let (major, minor) = (
                rustix::fs::major(side.attr.rdev),
                rustix::fs::minor(side.attr.rdev),
            );
            if was.map(|was| was.attr.rdev) != now.map(|now| now.attr.rdev) {
                writeln!(text, "{word} device {major}:{minor}")?;
            }
        }
    }
    xattrs(union, was, now, text)
}

fn xattrs(
    union: &Union,
    was: Option<&Side>,
    now: Option<&Side>,
    text: &mut Vec<u8>,
) -> anyhow::Result<()> {
    let Some(now) = now else {
        return Ok(());
    };
    let old = was.map_or(Ok(Vec::new()), |was| union.xattrs_of_side(was))?;
    let new = union.xattrs_of_side(now)?;
    for (word, these, others) in [("old", &old, &new), ("new", &new, &old)] {
        for (name, value) in these.iter().filter(|pair| !others.contains(pair)) {
            let name = name.escape_ascii();
            let shown = value.get(..VALUE).unwrap_or(value).escape_ascii();
            let more = if value.len() > VALUE {
                format!(" ({} bytes)", value.len())
            } else {
                String::new()
            };
            writeln!(text, "{word} xattr {name}=\"{shown}\"{more}")?;
        }
    }
    Ok(())
}

/// What is different in the contents.
fn contents(
    union: &Union,
    (a, was): (&str, Option<&Side>),
    (b, now): (&str, Option<&Side>),
    text: &mut Vec<u8>,
) -> anyhow::Result<()> {
    let name = |side: Option<&Side>, name: &str| match side {
        Some(_) => name.to_owned(),
        None => "/dev/null".to_owned(),
    };
    let (a, b) = (name(was, a), name(now, b));
    let size = |side: &Side| side.attr.size;
    let largest = was.into_iter().chain(now).map(size).max().unwrap_or(0);
    if largest > LARGEST {
        // Nobody reads them to find out that they are the same.
        writeln!(text, "Large files {a} and {b} differ")?;
        return Ok(());
    }
    let (old, new) = (read(union, was)?, read(union, now)?);
    if old == new {
        return Ok(());
    }
    let is_binary = |bytes: &[u8]| bytes.iter().take(START).any(|byte| *byte == 0);
    if is_binary(&old) || is_binary(&new) {
        writeln!(text, "Binary files {a} and {b} differ")?;
        return Ok(());
    }
    // As git does: patch would take a name to end at its first space.
    let end = |name: &str| if name.contains(' ') { "\t" } else { "" };
    writeln!(text, "--- {a}{}\n+++ {b}{}", end(&a), end(&b))?;
    let diff = TextDiff::configure()
        .timeout(PATIENCE)
        .diff_lines(old.as_slice(), new.as_slice());
    diff.unified_diff().to_writer(text)?;
    Ok(())
}

/// What git takes for contents: those of a file, or the target of a symbolic link.
fn read(union: &Union, side: Option<&Side>) -> FsResult<Vec<u8>> {
    let Some(side) = side else {
        return Ok(Vec::new());
    };
    match side.kind() {
        Kind::Symlink => Ok(union.target_of_side(side)?.into_owned()),
        Kind::File => {
            // As long as it was when it was looked at: the mount may be live.
            let mut bytes = vec![0; side.attr.size.min(LARGEST) as usize];
            let got = union.read_side(side, 0, &mut bytes)?;
            bytes.truncate(got);
            Ok(bytes)
        }
        _ => Ok(Vec::new()),
    }
}

/// A path with a prefix, in quotes if there is something in it that needs them, as git writes it.
fn quoted(prefix: &[u8], path: &[u8]) -> String {
    let plain = |byte: &u8| (b' '..0x7f).contains(byte) && !b"\"\\".contains(byte);
    let whole = [prefix, path].concat();
    if let (true, Ok(text)) = (whole.iter().all(plain), std::str::from_utf8(&whole)) {
        return text.to_owned();
    }
    let mut text = String::from("\"");
    for byte in whole {
        match byte {
            b'\n' => text.push_str("\\n"),
            b'\t' => text.push_str("\\t"),
            b'"' | b'\\' => text.extend(['\\', char::from(byte)]),
            byte if plain(&byte) => text.push(char::from(byte)),
            byte => text.extend(format!("\\{byte:03o}").chars()),
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn paths_are_quoted_as_git_does() {
        assert_eq!(quoted(b"a", b"/etc/a b"), "a/etc/a b");
        assert_eq!(
            quoted(b"b", b"/x\ny\"\xc3\xa9\x01"),
            "\"b/x\\ny\\\"\\303\\251\\001\""
        );
    }
}
