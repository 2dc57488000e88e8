//! `lamina diff`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::Args;
use lamina_layers::digest::DiffId;
use lamina_layers::store::{Access, Store};
use serde::Serialize;

use super::{Context, named, out, umount};
use crate::mount::json_path::JsonPath;
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
    path: JsonPath,
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
    if args.json {
        let line = |change: &crate::union::Change| Line {
            kind: letter(change.kind),
            path: JsonPath::of(&change.path),
        };
        return out::json(&changes.iter().map(line).collect::<Vec<Line>>());
    }
    let mut text = Vec::new();
    for change in &changes {
        text.extend_from_slice(letter(change.kind).as_bytes());
        text.push(b' ');
        text.extend_from_slice(&change.path);
        text.push(b'\n');
    }
    out::print(text)
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
    if let Some(found) = umount::find(context, wanted)? {
        let record = found.record;
        let (Some(upper), Some(work)) = (record.upper, record.work) else {
            bail!("{wanted:?} is mounted read-only: it has no changes");
        };
        let places = [&record.store, &upper, &work];
        if let Some(hidden) = record.lowers.iter().chain(places).find(|dir| {
            // A store plays no part if there is no image.
            dir.starts_with(&record.target) && (record.image.is_some() || *dir != &record.store)
        }) {
            bail!(
                "{hidden:?} cannot be looked at while it is covered by the mount at {:?}: unmount \
                 that first",
                record.target
            );
        }
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
