//! `lamina image df`.

use clap::Args;
use lamina_layers::store::{ImageUsage, Usage};

use super::short;
use crate::cli::{Context, out, table};

/// Arguments of `lamina image df`.
#[derive(Debug, Args)]
#[command(
    after_help = "All sizes are of blocks on the disk. TOTAL is all that the image needs: contents of \
    files, metadata, its own description, kept blobs; SHARED what other images need as well; UNIQUE what \
    is freed when it is removed. Changes of mounts are not counted."
)]
pub struct DfArgs {
    /// Print JSON, sizes in bytes
    #[arg(long)]
    json: bool,
}

/// Shows what images take.
pub fn run(context: &Context, args: &DfArgs) -> anyhow::Result<()> {
    let usage = context.store_to_read()?.usage()?;
    if args.json {
        return out::json(&usage);
    }
    let row = |image: &ImageUsage| {
        let name = if image.names.is_empty() {
            "-".to_owned()
        } else {
            image.names.join(", ")
        };
        vec![
            name,
            short(&image.id.to_string()),
            table::size(image.total),
            table::size(image.shared),
            table::size(image.unique),
        ]
    };
    let rows: Vec<_> = usage.images.iter().map(row).collect();
    table::print(&["NAME", "IMAGE ID", "TOTAL", "SHARED", "UNIQUE"], &rows)?;
    out::print(summary(&usage))
}

fn summary(usage: &Usage) -> String {
    let total = table::size(usage.total);
    let unneeded = match usage.unneeded {
        0 => String::new(),
        bytes => format!(", {} of it for no image ('lamina gc')", table::size(bytes)),
    };
    let separate = table::size(usage.separate);
    let factor = usage.factor;
    format!(
        "\nThe store takes {total}{unneeded}.\n\
        Each image stored for itself would take {separate}: {factor:.1} times what they take.\n"
    )
}
