//! `lamina diff`.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::Args;
use lamina_layers::digest::DiffId;
use lamina_layers::store::{Access, Store};
use serde::Serialize;

use super::{Context, named, umount};
use crate::union::{ChangeKind, Config, ImageLower, Union};
use crate::upper::UpperDirs;

/// Arguments of `lamina diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// Mount point, or name of a mount (which need not be mounted)
    #[arg(value_name = "MOUNTPOINT|NAME")]
    mount: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Line {
    kind: &'static str,
    path: String,
}

/// Prints a line for every path that differs: A (added), C (changed) or D (deleted).
pub fn run(context: &Context, args: &DiffArgs) -> anyhow::Result<()> {
    let stack = find(context, &args.mount)?;
    let changes = Union::open_for_diff(&stack.config)?.changes()?;
    let letter = |kind| match kind {
        ChangeKind::Added => "A",
        ChangeKind::Changed => "C",
        ChangeKind::Deleted => "D",
    };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    if args.json {
        let line = |change: &crate::union::Change| Line {
            kind: letter(change.kind),
            path: String::from_utf8_lossy(&change.path).into_owned(),
        };
        let lines: Vec<Line> = changes.iter().map(line).collect();
        serde_json::to_writer_pretty(&mut out, &lines)?;
        writeln!(out)?;
    } else {
        for change in &changes {
            out.write_all(letter(change.kind).as_bytes())?;
            out.write_all(b" ")?;
            out.write_all(&change.path)?;
            out.write_all(b"\n")?;
        }
    }
    Ok(out.flush()?)
}

/// A stack of layers with an upper, mounted or not.
pub struct Stack {
    /// What is stacked.
    pub config: Config,
    /// Where its image is.
    pub store: PathBuf,
    /// The image as the user named it.
    pub image: Option<String>,
    /// The image's layers, bottom first.
    pub layers: Vec<DiffId>,
}

/// The stack of a mount point or of a name.
pub fn find(context: &Context, wanted: &Path) -> anyhow::Result<Stack> {
    if let Some(found) = umount::find(wanted)? {
        let record = found.record;
        let (Some(upper), Some(work)) = (record.upper, record.work) else {
            bail!("{wanted:?} is mounted read-only: it has no changes");
        };
        let upper = UpperDirs { upper, work };
        return stack(
            record.store,
            record.image,
            &record.layers,
            record.lowers,
            upper,
        );
    }
    let kept = match (
        Store::open(&context.store, Access::ReadOnly),
        wanted.to_str(),
    ) {
        (Ok(store), Some(name)) => named::find(&store, name)?,
        _ => None,
    };
    let Some((base, upper)) = kept else {
        bail!("{wanted:?} is neither a live mount nor the name of one (see 'lamina ps')");
    };
    stack(
        context.store.clone(),
        base.image,
        &base.layers,
        base.lowers,
        upper,
    )
}

fn stack(
    store: PathBuf,
    image: Option<String>,
    layers: &[String],
    lowers: Vec<PathBuf>,
    upper: UpperDirs,
) -> anyhow::Result<Stack> {
    let layers: Vec<DiffId> = layers
        .iter()
        .map(|id| id.parse())
        .collect::<Result<_, _>>()
        .context("damaged record")?;
    let mut config = Config {
        lowers,
        upper: Some(upper),
        ..Config::default()
    };
    if !layers.is_empty() {
        let opened = Arc::new(Store::open(&store, Access::ReadOnly)?);
        config.image = Some(ImageLower {
            store: opened,
            layers: layers.clone(),
        });
    }
    Ok(Stack {
        config,
        store,
        image,
        layers,
    })
}
