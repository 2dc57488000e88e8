//! `lamina image history`.

use clap::Args;
use lamina_layers::digest::DiffId;
use lamina_layers::store::oci::History;
use lamina_layers::store::{Image, Store};
use serde::Serialize;

use super::{short, when};
use crate::cli::{Context, out, table};

/// Arguments of `lamina image history`.
#[derive(Debug, Args)]
#[command(
    after_help = "A step that changed nothing in the filesystem has no layer and no size. SIZE is the \
    contents of the layer's files."
)]
pub struct HistoryArgs {
    /// Name, digest, or the start of a digest
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Show all of each command and digest
    #[arg(long)]
    no_trunc: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A step in the making of an image.
#[derive(Serialize)]
struct Step {
    /// What it says of itself.
    #[serde(flatten)]
    history: History,
    /// Its layer, if it has one.
    layer: Option<DiffId>,
    /// Length of the files in the layer in bytes.
    size: u64,
}

/// How wide commands are shown.
const WIDTH: usize = 60;

/// Shows the steps, the newest first.
pub fn run(context: &Context, args: &HistoryArgs) -> anyhow::Result<()> {
    let store = context.store_to_read()?;
    let image = store.resolve(&args.image)?;
    let steps = steps(&store, &image);
    if args.json {
        return out::json(&steps);
    }
    let row = |step: &Step| {
        let layer = step.layer.map(|id| id.to_string());
        let mut layer = layer.unwrap_or_else(|| "-".to_owned());
        let by = step
            .history
            .created_by
            .clone()
            .unwrap_or_else(|| "-".to_owned());
        let mut by = by.split_whitespace().collect::<Vec<_>>().join(" ");
        if !args.no_trunc {
            layer = short(&layer);
            if by.chars().count() > WIDTH {
                by = by.chars().take(WIDTH - 1).chain(['…']).collect();
            }
        }
        vec![
            layer,
            when(step.history.created.as_deref()),
            by,
            table::size(step.size),
            step.history.comment.clone().unwrap_or_default(),
        ]
    };
    let rows: Vec<_> = steps.iter().map(row).collect();
    table::print(
        &["LAYER", "CREATED", "CREATED BY", "SIZE", "COMMENT"],
        &rows,
    )
}

/// The steps, the newest first. Layers that the history does not mention come as steps of their own,
/// on top: it may be incomplete.
fn steps(store: &Store, image: &Image) -> Vec<Step> {
    let mut layers = image.layers.iter().copied();
    let mut step = |history: History| {
        let layer = if history.empty_layer {
            None
        } else {
            layers.next()
        };
        let info = layer.and_then(|id| store.layer(&id).ok());
        Step {
            history,
            layer,
            size: info.map_or(0, |info| info.file_bytes),
        }
    };
    let mut steps: Vec<Step> = image
        .config
        .history
        .iter()
        .cloned()
        .map(&mut step)
        .collect();
    let said = steps.iter().filter(|step| step.layer.is_some()).count();
    for _ in said..image.layers.len() {
        steps.push(step(History::default()));
    }
    steps.reverse();
    steps
}
