//! `lamina ps`.

use clap::Args;
use serde::Serialize;

use super::table;
use crate::mount::record::{self, Found, Record};

/// Arguments of `lamina ps`.
#[derive(Debug, Args)]
pub struct PsArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Row {
    #[serde(flatten)]
    record: Record,
    /// Whether the daemon lives.
    live: bool,
    /// Resident memory of the daemon in bytes.
    memory: Option<u64>,
}

/// Lists live mounts, and those whose daemon died.
pub fn run(args: &PsArgs) -> anyhow::Result<()> {
    let rows: Vec<Row> = record::all()?.into_iter().map(row).collect();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    let header = [
        "NAME",
        "IMAGE",
        "MOUNT POINT",
        "UPPER",
        "PID",
        "SINCE",
        "MEMORY",
    ];
    let dash = || "-".to_owned();
    let cells = |row: &Row| {
        let record = &row.record;
        let memory = if row.live {
            row.memory.map_or_else(dash, table::size)
        } else {
            "dead: lamina umount it".to_owned()
        };
        vec![
            record.name.clone().unwrap_or_else(dash),
            record.image.clone().unwrap_or_else(dash),
            record.target.display().to_string(),
            record
                .upper
                .as_ref()
                .map_or_else(dash, |upper| upper.display().to_string()),
            record.pid.to_string(),
            table::ago(record.since),
            memory,
        ]
    };
    table::print(&header, &rows.iter().map(cells).collect::<Vec<_>>());
    Ok(())
}

fn row(found: Found) -> Row {
    let memory = found.live.then(|| resident(found.record.pid)).flatten();
    Row {
        record: found.record,
        live: found.live,
        memory,
    }
}

/// Resident memory of a process in bytes (`proc(5)`).
fn resident(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").trim().parse().ok()?;
    Some(kilobytes * 1024)
}
