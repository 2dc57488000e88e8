//! `lamina image`.

use clap::{Args, Subcommand};
use lamina_layers::store::{Image, Store, StoreError};

use super::{Context, out, table};

/// Commands for images.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// List images
    Ls(LsArgs),
    /// Show an image: its digests, layers and configuration
    Inspect(InspectArgs),
    /// Remove a name of an image; the image goes with its last name
    Rm(RmArgs),
}

/// Arguments of `lamina image ls`.
#[derive(Debug, Args)]
pub struct LsArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `lamina image inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Name, digest, or the start of a digest
    image: String,
}

/// Arguments of `lamina image rm`.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// Names, digests, or starts of digests
    #[arg(required = true)]
    images: Vec<String>,
}

/// Runs one.
pub fn run(context: &Context, command: ImageCommand) -> anyhow::Result<()> {
    match command {
        ImageCommand::Ls(args) => list(context, &args),
        ImageCommand::Inspect(args) => inspect(context, &args),
        ImageCommand::Rm(args) => {
            let store = context.store()?;
            for name in &args.images {
                remove(&store, name)?;
            }
            Ok(())
        }
    }
}

/// Removes a name, and with the last name the image and those of its layers that nothing else has.
fn remove(store: &Store, name: &str) -> anyhow::Result<()> {
    let image = store.resolve(name)?;
    if image.names.len() > 1 && image.names.iter().any(|known| known == name) {
        store.untag(name)?;
        return Ok(());
    }
    store.remove_image(&image.id)?;
    for layer in image.layers.iter().rev() {
        match store.remove_layer(layer) {
            Ok(_) | Err(StoreError::InUse { .. } | StoreError::NoLayer(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn list(context: &Context, args: &LsArgs) -> anyhow::Result<()> {
    let images = context.store_to_read()?.images()?;
    if args.json {
        let values: Vec<_> = images.iter().map(json).collect();
        return out::json(&values);
    }
    let row = |image: &Image| {
        let name = if image.names.is_empty() {
            "-".to_owned()
        } else {
            image.names.join(", ")
        };
        let layers = image.layers.len().to_string();
        vec![
            name,
            short(&image.id.to_string()),
            layers,
            table::size(image.size),
        ]
    };
    let rows: Vec<_> = images.iter().map(row).collect();
    table::print(&["NAME", "IMAGE ID", "LAYERS", "SIZE"], &rows)
}

fn inspect(context: &Context, args: &InspectArgs) -> anyhow::Result<()> {
    let image = context.store_to_read()?.resolve(&args.image)?;
    out::json(&json(&image))
}

fn json(image: &Image) -> serde_json::Value {
    serde_json::json!({
        "id": image.id,
        "names": image.names,
        "chain_id": image.chain,
        "layers": image.layers,
        "size": image.size,
        "config": image.config,
    })
}

/// The first 12 digits of a digest, as docker shows them.
pub fn short(digest: &str) -> String {
    digest
        .trim_start_matches("sha256:")
        .chars()
        .take(12)
        .collect()
}
