//! `lamina gc`.

use clap::Args;
use lamina_layers::store::{GcOptions, Swept};

use super::{Context, out, table};

/// Arguments of `lamina gc`.
#[derive(Debug, Args)]
#[command(
    after_help = "What stays: images that have a name, and without --all also those without one; the \
    layers of these, of live mounts, and of kept changes ('lamina ps --all'); what running builds and \
    imports use; and the contents of files of all these layers. Layers that were built without a name \
    for an image go. Others can use the store meanwhile."
)]
pub struct GcArgs {
    /// Also remove images without a name
    #[arg(short, long)]
    all: bool,
    /// Only say what would be removed
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Collects.
pub fn run(context: &Context, args: &GcArgs) -> anyhow::Result<()> {
    let store = if args.dry_run {
        context.store_to_read()?
    } else {
        context.store()?
    };
    let swept = store.gc(GcOptions {
        all: args.all,
        dry_run: args.dry_run,
    })?;
    if args.json {
        return out::json(&swept);
    }
    out::print(text(&swept, args.dry_run))
}

fn text(swept: &Swept, dry_run: bool) -> String {
    let verb = if dry_run { "Would remove" } else { "Removed" };
    let images = swept.images.iter().map(|id| format!("{verb} image {id}\n"));
    let layers = swept.layers.iter().map(|id| format!("{verb} layer {id}\n"));
    let counts = [
        (swept.images.len() as u64, "image", "images"),
        (swept.layers.len() as u64, "layer", "layers"),
        (swept.objects, "object", "objects"),
        (swept.merged, "merged index", "merged indexes"),
        (swept.blobs, "kept blob", "kept blobs"),
        (swept.leases, "stale lease", "stale leases"),
    ];
    let parts = counts.iter().filter(|(count, ..)| *count > 0);
    let parts: Vec<_> = parts
        .map(|(count, one, many)| format!("{count} {}", if *count == 1 { one } else { many }))
        .collect();
    if parts.is_empty() {
        return "Nothing to remove\n".to_owned();
    }
    let sum = format!(
        "{verb} {}: {}\n",
        parts.join(", "),
        table::size(swept.bytes)
    );
    images.chain(layers).chain([sum]).collect()
}
