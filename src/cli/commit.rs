//! `lamina commit`.

use std::path::PathBuf;

use clap::Args;
use lamina_layers::store::oci::History;
use lamina_layers::store::{self, Access, LayerInfo, Source, Store, Transaction};

use super::diff;
use super::progress::Bars;
use super::{Context, image, out};
use crate::commit::{Draft, LayerOptions, stage_changes};
use crate::union::Union;

/// Arguments of `lamina commit`.
#[derive(Debug, Args)]
pub struct CommitArgs {
    /// Mount point, or name of a mount (which need not be mounted)
    #[arg(value_name = "MOUNTPOINT|NAME")]
    mount: PathBuf,
    /// Name for the new image
    #[arg(short, long, value_name = "NAME")]
    tag: String,
}

/// Makes the layer and the image, and prints the layer's diffID and the image's digest.
pub fn run(context: &Context, args: &CommitArgs) -> anyhow::Result<()> {
    let stack = diff::find(context, &args.mount)?;
    if !stack.config.lowers.is_empty() {
        anyhow::bail!(
            "{:?} has plain directories under its changes, which are no part of an image: build \
             layers from them first ('lamina layer build --dir')",
            args.mount
        );
    }
    store::check_name(&args.tag)?;
    let store = Store::open(&stack.store, Access::ReadWrite)?;
    let union = Union::open_for_diff(&stack.config)?;
    let layer = make_layer(&store, &union)?;
    // How to run it, and its history, stay those of the image below.
    let base = match &stack.image {
        Some(name) => store
            .resolve(name)
            .ok()
            .filter(|image| image.layers == stack.layers),
        None => None,
    };
    let mut draft = match &base {
        Some(base) => Draft::on(base),
        None => Draft::of_layers(stack.layers),
    };
    let entry = History {
        created_by: Some("lamina commit".to_owned()),
        ..History::default()
    };
    let diff_id = layer.map(|layer| layer.diff_id);
    draft.add(diff_id, entry);
    let made = draft.publish(&store, Some(&args.tag))?;
    store.set_source(&made.id, &Source::Committed { base: stack.image })?;
    let id = image::short(&made.id.to_string());
    let layer = diff_id.map_or_else(|| "no changes".to_owned(), |id| id.to_string());
    out::print(format!("{layer}\n{}  {id}\n", args.tag))
}

fn make_layer(store: &Store, union: &Union) -> anyhow::Result<Option<LayerInfo>> {
    let bars = Bars::new();
    let bar = bars.bar("changes", None);
    let options = LayerOptions {
        progress: &bar,
        ..LayerOptions::default()
    };
    let txn = Transaction::begin(store)?;
    let layer = stage_changes(&txn, union, &options)?;
    txn.commit()?;
    bar.finish();
    Ok(layer)
}
