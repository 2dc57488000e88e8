//! `lamina ps`.

use std::io;
use std::path::PathBuf;

use clap::Args;
use lamina_layers::store::{Access, Store, StoreError};
use serde::Serialize;

use super::{Context, named, out, table};
use crate::mount::json_path;
use crate::mount::record::{self, Found, Record, State};

/// Arguments of `lamina ps`.
#[derive(Debug, Args)]
#[command(
    after_help = "A mount is live, dead (its daemon was killed: 'lamina umount' clears it) or \
    detached (unmounted with --lazy and still in use, or mounted in another mount namespace). \
    MEMORY is what the daemon has resident. Root does not see the mounts of other users."
)]
pub struct PsArgs {
    /// Also list changes that the store keeps and that are not mounted
    #[arg(short, long)]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A mount, as JSON has it.
#[derive(Serialize)]
struct Mount {
    state: State,
    #[serde(flatten)]
    record: Record,
    /// Resident memory of the daemon in bytes.
    memory: Option<u64>,
}

/// Changes that are not mounted, as JSON has them.
#[derive(Serialize)]
struct Kept {
    state: &'static str,
    name: String,
    #[serde(with = "json_path")]
    store: PathBuf,
    #[serde(flatten)]
    base: named::Base,
    #[serde(with = "json_path")]
    upper: PathBuf,
    #[serde(with = "json_path")]
    work: PathBuf,
}

const KEPT: &str = "kept";
/// Nobody knows what they belong on.
const DAMAGED: &str = "damaged";

#[derive(Serialize)]
#[serde(untagged)]
enum Row {
    Mount(Box<Mount>),
    Kept(Kept),
}

/// Lists live mounts, and those whose daemon died.
pub fn run(context: &Context, args: &PsArgs) -> anyhow::Result<()> {
    let found = record::all()?;
    let kept = if args.all {
        kept(context, &found)?
    } else {
        Vec::new()
    };
    let mounts = found.into_iter().map(|found| Row::Mount(mount(found)));
    let rows: Vec<Row> = mounts.chain(kept.into_iter().map(Row::Kept)).collect();
    if args.json {
        return out::json(&rows);
    }
    let header = [
        "NAME",
        "IMAGE",
        "MOUNT POINT",
        "UPPER",
        "STATE",
        "PID",
        "SINCE",
        "MEMORY",
    ];
    table::print(&header, &rows.iter().map(cells).collect::<Vec<_>>())
}

fn cells(row: &Row) -> Vec<String> {
    let dash = || "-".to_owned();
    match row {
        Row::Mount(mount) => {
            let record = &mount.record;
            let state = match mount.state {
                State::Live => "live",
                State::Dead => "dead: lamina umount it",
                State::Detached => "detached",
            };
            let upper = record.upper.as_ref();
            vec![
                record.name.clone().unwrap_or_else(dash),
                record.image.clone().unwrap_or_else(dash),
                record.target.display().to_string(),
                upper.map_or_else(dash, |upper| upper.display().to_string()),
                state.to_owned(),
                record.pid.to_string(),
                table::ago(record.since),
                mount.memory.map_or_else(dash, table::size),
            ]
        }
        Row::Kept(kept) => vec![
            kept.name.clone(),
            kept.base.image.clone().unwrap_or_else(dash),
            dash(),
            kept.upper.display().to_string(),
            match kept.state {
                DAMAGED => "damaged: lamina rm it".to_owned(),
                state => state.to_owned(),
            },
            dash(),
            dash(),
            dash(),
        ],
    }
}

fn mount(found: Found) -> Box<Mount> {
    let served = found.state != State::Dead;
    Box::new(Mount {
        state: found.state,
        memory: served.then(|| resident(found.record.pid)).flatten(),
        record: found.record,
    })
}

/// What the store keeps, without what is mounted of it.
fn kept(context: &Context, mounts: &[Found]) -> anyhow::Result<Vec<Kept>> {
    let store = match Store::open(&context.store, Access::ReadOnly) {
        Err(StoreError::Missing(_)) => return Ok(Vec::new()),
        result => result?,
    };
    let mut kept = Vec::new();
    for name in named::all(&store)? {
        let dirs = named::dirs(&store, &name);
        let mounted = |found: &Found| found.record.upper.as_ref() == Some(&dirs.upper);
        if mounts.iter().any(mounted) {
            continue;
        }
        let (state, base) = match named::find(&store, &name) {
            Ok(Some((base, _))) => (KEPT, base),
            // Thrown away just now.
            Ok(None) => continue,
            Err(_) => (DAMAGED, named::Base::default()),
        };
        kept.push(Kept {
            state,
            name,
            store: context.store.clone(),
            base,
            upper: dirs.upper,
            work: dirs.work,
        });
    }
    Ok(kept)
}

/// Resident memory of a process in bytes (`proc(5)`).
fn resident(pid: u32) -> Option<u64> {
    let status = read_status(pid).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").trim().parse().ok()?;
    Some(kilobytes * 1024)
}

fn read_status(pid: u32) -> io::Result<String> {
    std::fs::read_to_string(format!("/proc/{pid}/status"))
}
