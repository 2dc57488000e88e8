//! `lamina image inspect`.

use clap::{Args, ValueEnum};
use lamina_layers::store::{Image, Store};
use serde_json::{Value, json};

use super::{ls, tagged};
use crate::cli::{Context, out};

/// Arguments of `lamina image inspect`.
#[derive(Debug, Args)]
#[command(
    after_help = "Prints a list with an object for each image. Fields with a capital are named as \
    docker and podman name them; \"Id\" is the digest of the configuration there, \"id\" that of the \
    manifest."
)]
pub struct InspectArgs {
    /// Names, digests (of a manifest or a configuration), or starts of digests
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// How to print
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Format {
    #[default]
    Json,
}

/// Shows images.
pub fn run(context: &Context, args: &InspectArgs) -> anyhow::Result<()> {
    let store = context.store_to_read()?;
    let images = args.images.iter();
    let values = images.map(|name| Ok(full(&store, &store.resolve(name)?)));
    let values = values.collect::<anyhow::Result<Vec<Value>>>()?;
    match args.format {
        Format::Json => out::json(&values),
    }
}

/// All there is to know of an image.
fn full(store: &Store, image: &Image) -> Value {
    let mut value = ls::json(store, image);
    let config = &image.config;
    let digests = image.names.iter().map(|name| {
        let (path, _) = super::parts(name);
        format!("{path}@{}", image.id)
    });
    let files = store.image_files(&image.id).ok();
    let manifest = files.as_ref().map(|files| &files.parsed);
    let source = store.source(&image.id).unwrap_or_else(|error| {
        tracing::warn!("{error}");
        None
    });
    let more = json!({
        "source": source,
        "Id": image.config_digest.to_string(),
        "Digest": image.id,
        "RepoTags": tagged(image),
        "RepoDigests": digests.collect::<Vec<_>>(),
        "Created": config.created,
        "Author": config.other.get("author"),
        "Architecture": config.architecture,
        "Variant": config.other.get("variant"),
        "Os": config.os,
        "Size": ls::size(store, image),
        "Config": config.config.clone().unwrap_or_default(),
        "RootFS": { "Type": "layers", "Layers": image.layers },
        "History": config.history,
        "ManifestType": manifest.and_then(|manifest| manifest.media_type.clone()),
        "Annotations": manifest.and_then(|manifest| manifest.other.get("annotations")),
    });
    if let (Value::Object(all), Value::Object(more)) = (&mut value, more) {
        all.extend(more);
    }
    value
}
