//! `lamina diff`.

use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use super::{Context, Status, Usage, complain, out, stack};
use crate::attr::{Kind, PERMISSIONS};
use crate::error::FsResult;
use crate::mount::json_path::JsonPath;
use crate::union::{Change, ChangeKind, Side, Union};

mod filter;
mod patch;
mod stat;

use filter::Filter;

/// Arguments of `lamina diff`.
#[derive(Debug, Args)]
#[command(
    after_help = "Prints a line for every path that differs: A (added), C (changed) or D (deleted), as \
    docker diff does. A directory is changed if something in it is. What is in a deleted directory is \
    not listed.\n\n\
    Takes time by the number of changes, not of files in the image."
)]
pub struct DiffArgs {
    /// Mount point, or name of a mount (which need not be mounted)
    #[arg(value_name = "MOUNTPOINT|NAME")]
    mount: PathBuf,
    /// Only these paths, from the mount's root, and what is below them. *, ?, [...] and {...} stand
    /// for what they do in a shell; without a slash, at any depth
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Show sizes before and after, and their sum
    #[arg(long, group = "form")]
    stat: bool,
    /// Show what is different in text files, modes, owners and extended attributes, as git does
    #[arg(short, long, group = "form")]
    patch: bool,
    /// Print paths only
    #[arg(long, group = "form")]
    name_only: bool,
    /// Print JSON: a list with kind, path, and type, size, mode, uid, gid and mtime now and (old_...)
    /// before
    #[arg(long, group = "form")]
    json: bool,
    /// End lines with a zero byte, so that any name can be told
    #[arg(short = 'z', long, conflicts_with_all = ["stat", "patch", "json"])]
    null: bool,
    /// Exit with 1 if there are changes, 0 if there are none, and 2 after a failure
    #[arg(long)]
    exit_code: bool,
}

/// Prints what differs.
pub fn run(context: &Context, args: &DiffArgs) -> anyhow::Result<()> {
    let filter = Filter::new(&args.paths).map_err(Usage)?;
    match show(context, args, &filter) {
        Ok(0) => Ok(()),
        Ok(_) if args.exit_code => Err(Status(1).into()),
        Err(error) if args.exit_code && !error.is::<out::ReaderGone>() => {
            complain(&error);
            Err(Status(2).into())
        }
        result => result.map(drop),
    }
}

/// Prints what differs; returns how many paths do.
fn show(context: &Context, args: &DiffArgs, filter: &Filter) -> anyhow::Result<usize> {
    let stack = stack::find(context, &args.mount)?;
    let union = Union::open_for_diff(&stack.config)?;
    let failed = || format!("cannot read the changes of {:?}", args.mount);
    let mut changes = union.changes().with_context(failed)?;
    changes.retain(|change| filter.takes(&change.path));
    if args.json {
        let all: Vec<_> = changes.iter().map(Json::of).collect();
        out::json(&all)?;
    } else if args.stat {
        stat::print(&union, &changes)?;
    } else if args.patch {
        patch::print(&union, &changes)?;
    } else {
        out::print(list(&changes, args))?;
    }
    Ok(changes.len())
}

fn list(changes: &[Change], args: &DiffArgs) -> Vec<u8> {
    let mut text = Vec::new();
    for change in changes {
        if !args.name_only {
            text.extend_from_slice(letter(change.kind()).as_bytes());
            text.push(b' ');
        }
        text.extend_from_slice(&change.path);
        text.push(if args.null { 0 } else { b'\n' });
    }
    text
}

fn letter(kind: ChangeKind) -> &'static str {
    match kind {
        ChangeKind::Added => "A",
        ChangeKind::Changed => "C",
        ChangeKind::Deleted => "D",
    }
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "file",
        Kind::Dir => "directory",
        Kind::Symlink => "symlink",
        Kind::Char => "character device",
        Kind::Block => "block device",
        Kind::Fifo => "fifo",
        Kind::Socket => "socket",
    }
}

/// Whether anything but the time is different: a directory is also listed because of what is in it.
fn is_different(union: &Union, change: &Change) -> FsResult<bool> {
    let (Some(was), Some(now)) = (&change.was, &change.now) else {
        return Ok(true);
    };
    let basics = |side: &Side| (side.attr.mode, side.attr.uid, side.attr.gid);
    Ok(now.kind() != Kind::Dir
        || basics(was) != basics(now)
        || union.xattrs_of_side(was)? != union.xattrs_of_side(now)?)
}

#[derive(Serialize)]
struct Json {
    kind: &'static str,
    path: JsonPath,
    #[serde(flatten)]
    now: Option<Now>,
    #[serde(flatten)]
    was: Option<Was>,
}

#[derive(Serialize)]
struct Now {
    r#type: &'static str,
    size: u64,
    mode: String,
    uid: u32,
    gid: u32,
    mtime: f64,
}

// The names are those in the JSON.
#[allow(clippy::struct_field_names)]
#[derive(Serialize)]
struct Was {
    old_type: &'static str,
    old_size: u64,
    old_mode: String,
    old_uid: u32,
    old_gid: u32,
    old_mtime: f64,
}

impl Json {
    fn of(change: &Change) -> Self {
        let now = change.now.as_ref().map(Now::of);
        let was = change.was.as_ref().map(|side| {
            let old = Now::of(side);
            Was {
                old_type: old.r#type,
                old_size: old.size,
                old_mode: old.mode,
                old_uid: old.uid,
                old_gid: old.gid,
                old_mtime: old.mtime,
            }
        });
        Self {
            kind: letter(change.kind()),
            path: JsonPath::of(&change.path),
            now,
            was,
        }
    }
}

impl Now {
    #[allow(clippy::cast_precision_loss)]
    fn of(side: &Side) -> Self {
        let attr = &side.attr;
        Self {
            r#type: word(side.kind()),
            size: attr.size,
            mode: format!("{:04o}", attr.mode & PERMISSIONS),
            uid: attr.uid,
            gid: attr.gid,
            mtime: attr.mtime.sec as f64 + f64::from(attr.mtime.nsec) / 1e9,
        }
    }
}

/// The bytes of a path that a user named, from the root.
fn from_root(path: &std::path::Path) -> Vec<u8> {
    let bytes = path.as_os_str().as_bytes();
    let names = bytes.split(|byte| *byte == b'/');
    let mut whole = Vec::new();
    for name in names.filter(|name| !name.is_empty() && *name != b".") {
        whole.push(b'/');
        whole.extend_from_slice(name);
    }
    whole
}
