//! `lamina stats`.

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::{Map, Value, json};

use super::{Context, out, table, umount};
use crate::fuse::request_name;
use crate::mount::record::{Record, State};
use crate::stats::{Counter, Requests, Snapshot};

/// Arguments of `lamina stats`.
#[derive(Debug, Args)]
#[command(
    after_help = "Times are those that the daemon worked, in microseconds; what the kernel needs to wake \
    it and to be woken comes on top. Whatever the kernel answers from its caches is not a request."
)]
pub struct StatsArgs {
    /// Mount point, or name of a mount
    #[arg(value_name = "MOUNTPOINT|NAME")]
    mount: PathBuf,
    /// Print JSON
    #[arg(long, conflicts_with = "prometheus")]
    json: bool,
    /// Print the text format of Prometheus
    #[arg(long)]
    prometheus: bool,
}

/// Shows what the daemon of a mount has been asked.
pub fn run(context: &Context, args: &StatsArgs) -> anyhow::Result<()> {
    let Some(found) = umount::find(context, &args.mount)? else {
        return Err(umount::not_mounted(context, &args.mount));
    };
    if found.state == State::Dead {
        bail!(
            "the daemon of {:?} is dead: 'lamina umount' clears it",
            found.record.target
        );
    }
    let record = found.record;
    let snapshot = read(&record)?;
    if args.json {
        return out::json(&as_json(&record, &snapshot));
    }
    if args.prometheus {
        return out::print(as_prometheus(&record, &snapshot));
    }
    out::print(as_text(&snapshot))
}

/// What was counted, as a table.
pub fn as_text(snapshot: &Snapshot) -> String {
    let header = [
        "REQUEST", "COUNT", "ERRORS", "P50", "P90", "P99", "MAX", "TOTAL",
    ];
    let rows: Vec<_> = snapshot.requests.iter().map(cells).collect();
    let count = |counter| snapshot.counter(counter);
    format!(
        "{}\nread {}, written {}; {} copy-ups of {}; descriptors: {} found open, {} opened; \
         {} notifications\n",
        table::text(&header, &rows),
        table::size(count(Counter::BytesRead)),
        table::size(count(Counter::BytesWritten)),
        count(Counter::CopyUps),
        table::size(count(Counter::CopyUpBytes)),
        count(Counter::DescriptorHits),
        count(Counter::DescriptorMisses),
        count(Counter::Notifications),
    )
}

fn read(record: &Record) -> anyhow::Result<Snapshot> {
    let Some(descriptor) = record.stats else {
        bail!("the daemon of {:?} keeps no statistics", record.target);
    };
    let path = format!("/proc/{}/fd/{descriptor}", record.pid);
    let bytes = read_some(&path)
        .with_context(|| format!("cannot read {path}, the statistics of the daemon"))?;
    let snapshot = Snapshot::of_bytes(&bytes);
    snapshot.map_err(|_| {
        anyhow::anyhow!(
            "the daemon of {:?}, process {}, is of another version of lamina: its statistics cannot \
             be read",
            record.target,
            record.pid
        )
    })
}

/// Reads as much as statistics can be. In another PID namespace the process of that number may be any,
/// and what it has open there may be anything.
fn read_some(path: &str) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let mut bytes = Vec::new();
    if file.metadata()?.is_file() {
        file.take(1 << 24).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

#[expect(clippy::cast_precision_loss, reason = "to be read by people")]
fn micros(nanos: u64) -> String {
    let micros = nanos as f64 / 1000.0;
    let digits = usize::from(micros < 100.0);
    format!("{micros:.digits$}")
}

fn cells(requests: &Requests) -> Vec<String> {
    let percentile = |percent| micros(requests.percentile(percent));
    vec![
        name(requests.opcode),
        requests.count.to_string(),
        requests.failed.to_string(),
        percentile(50),
        percentile(90),
        percentile(99),
        micros(requests.longest),
        micros(requests.nanos),
    ]
}

fn as_json(record: &Record, snapshot: &Snapshot) -> Value {
    let kinds = snapshot.requests.iter().map(|requests| {
        let of = json!({
            "count": requests.count,
            "errors": requests.failed,
            "total_ns": requests.nanos,
            "p50_ns": requests.percentile(50),
            "p90_ns": requests.percentile(90),
            "p99_ns": requests.percentile(99),
            "max_ns": requests.longest,
        });
        (name(requests.opcode), of)
    });
    let mut all = json!({
        "target": record.target.to_string_lossy(),
        "name": record.name,
        "pid": record.pid,
        "since": record.since,
        "requests": kinds.collect::<Map<_, _>>(),
    });
    for counter in Counter::ALL {
        all[counter.name()] = snapshot.counter(counter).into();
    }
    all
}

/// Bounds of the histogram for Prometheus, in nanoseconds: from 1 µs to 1 s, each four times the last.
const BOUNDS: [u64; 11] = [
    1 << 10,
    1 << 12,
    1 << 14,
    1 << 16,
    1 << 18,
    1 << 20,
    1 << 22,
    1 << 24,
    1 << 26,
    1 << 28,
    1 << 30,
];

#[expect(clippy::cast_precision_loss, reason = "the format has floating point")]
fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

fn as_prometheus(record: &Record, snapshot: &Snapshot) -> String {
    let target = record.target.to_string_lossy();
    let mount = target
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n");
    let mut lines = vec!["# TYPE lamina_request_errors_total counter".to_owned()];
    for requests in &snapshot.requests {
        let labels = format!("mount=\"{mount}\",kind=\"{}\"", name(requests.opcode));
        let failed = requests.failed;
        lines.push(format!("lamina_request_errors_total{{{labels}}} {failed}"));
    }
    lines.push("# TYPE lamina_request_seconds histogram".to_owned());
    for requests in &snapshot.requests {
        let labels = format!("mount=\"{mount}\",kind=\"{}\"", name(requests.opcode));
        let (count, sum) = (requests.count, seconds(requests.nanos));
        let metric = "lamina_request_seconds";
        for bound in BOUNDS {
            let (le, below) = (seconds(bound), requests.below(bound));
            lines.push(format!("{metric}_bucket{{{labels},le=\"{le}\"}} {below}"));
        }
        lines.push(format!("{metric}_bucket{{{labels},le=\"+Inf\"}} {count}"));
        lines.push(format!("{metric}_sum{{{labels}}} {sum}"));
        lines.push(format!("{metric}_count{{{labels}}} {count}"));
    }
    for counter in Counter::ALL {
        let metric = format!("lamina_{}_total", counter.name());
        lines.push(format!("# TYPE {metric} counter"));
        let value = snapshot.counter(counter);
        lines.push(format!("{metric}{{mount=\"{mount}\"}} {value}"));
    }
    lines.join("\n") + "\n"
}

/// The kernel's name of a kind of request, or else its number.
fn name(opcode: u32) -> String {
    match request_name(opcode) {
        Some(name) => name.to_owned(),
        None if opcode == 0 => "OTHER".to_owned(),
        None => opcode.to_string(),
    }
}
