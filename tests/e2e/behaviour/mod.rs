//! What a program meets in daily life, on a mount and in a plain directory: permissions, ACLs,
//! attributes, times, locks, events, names, contents, deleted files.
//!
//! Each topic is a script beside this file. Its `fill` makes a tree, in the plain directory and in
//! the lower of the mount; its `check` then does things in both and says line by line what comes of
//! them. The lines must be the same.

use std::path::Path;
use std::process::Command;

use crate::support::needs_root;
use crate::support::pair::Pair;
use crate::support::run;

const COMMON: &str = include_str!("common.py");

/// Whether a line may differ, natively and on the mount; `docs/semantics.md` says why.
type Known = fn(native: &str, mounted: &str) -> bool;

/// A daemon's write for a memory mapping is a write like any other.
fn set_ids(native: &str, mounted: &str) -> bool {
    let of = |line: &str| line.split_whitespace().last().map(str::to_owned);
    let mapping = native.starts_with("  mmap-") && of(mounted).as_deref() == Some("ENODATA");
    mapping && native.replace(" 20", " ENODATA") == mounted
}

/// FUSE carries no fallocate that moves what comes after it.
fn no_shifting(native: &str, mounted: &str) -> bool {
    native.ends_with(": 0") && ["collapse: ENOTSUP", "insert: ENOTSUP"].contains(&mounted)
}

/// In passthrough mode a file is another one for the kernel after its copy-up, so that old locks are
/// not seen; and it does not know that a mapping changed the time.
fn is_passthrough(native: &str, mounted: &str) -> bool {
    native == "flock over a copy-up: EAGAIN" && mounted == "flock over a copy-up: None"
        || native == "write to memory: None: dir/mapped mc"
            && mounted == "write to memory: None: dir/mapped -"
}

fn none(_: &str, _: &str) -> bool {
    false
}

fn python(dir: &Path, script: &str, part: &str, io: &str) -> Vec<String> {
    let said = run(Command::new("python3")
        .args(["-c", &format!("{COMMON}\n{script}\n{part}()")])
        .current_dir(dir)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("LAMINA_IO", io)
        .env("LC_ALL", "C.UTF-8"));
    said.lines().map(str::to_owned).collect()
}

/// Compares what `script` sees on both; `at_least` is how many lines it has to say.
fn compare(topic: &str, io: &'static str, script: &str, at_least: usize, known: Known) {
    let fill = |dir: &Path| {
        python(dir, script, "fill", io);
    };
    let pair = Pair::new(topic, io, fill);
    let native = python(pair.native(), script, "check", io);
    let mounted = python(pair.mount(), script, "check", io);
    let through = io == "passthrough";
    let mut differences = Vec::new();
    for (native, mounted) in native.iter().zip(&mounted) {
        if native != mounted
            && !known(native, mounted)
            && !(through && is_passthrough(native, mounted))
        {
            differences.push(format!("native: {native}\nmount:  {mounted}"));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert_eq!(native.len(), mounted.len(), "lines");
    assert!(native.len() >= at_least, "only {} lines", native.len());
}

macro_rules! topics {
    ($($topic:ident: $at_least:literal lines, $known:expr;)*) => {$(
        mod $topic {
            use super::*;

            const SCRIPT: &str = include_str!(concat!(stringify!($topic), ".py"));

            #[test]
            fn cached() {
                needs_root!();
                compare(stringify!($topic), "cached", SCRIPT, $at_least, $known);
            }

            #[test]
            fn passthrough() {
                needs_root!();
                compare(stringify!($topic), "passthrough", SCRIPT, $at_least, $known);
            }
        }
    )*};
}

topics! {
    permissions: 800 lines, set_ids;
    acls: 30 lines, none;
    xattrs: 60 lines, none;
    times: 60 lines, none;
    locks: 80 lines, none;
    events: 80 lines, none;
    names: 500 lines, none;
    renames: 1280 lines, none;
    deleted: 60 lines, none;
    contents: 60 lines, no_shifting;
    handles: 9 lines, none;
}
