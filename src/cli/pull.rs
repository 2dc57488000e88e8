//! `lamina pull`.

use std::num::NonZero;

use clap::Args;
use lamina_layers::digest::DiffId;
use lamina_layers::oci::registry::Reference;
use lamina_layers::oci::{IngestOptions, Ingested, Platform};
use lamina_layers::store;

use super::layer::parse_size;
use super::progress::LayerBars;
use super::registry::RegistryArgs;
use super::{Context, out, table};

/// Arguments of `lamina pull`.
#[derive(Debug, Args)]
#[command(
    after_help = "REF is [HOST[:PORT]/]PATH[:TAG][@DIGEST]. Without a host it is one of Docker Hub \
    (docker.io), there without a directory one of library/; without a tag and a digest, the tag is \
    latest. The image gets this name, without docker.io/ and library/; if all that is said is a \
    digest, it gets none.\n\n\
    Layers that are in the store are not fetched. A layer that has arrived stays, whatever happens \
    to the others, until the next pull or 'lamina gc'. When a connection breaks, the layer goes on \
    where it was.\n\n\
    Prints the digest of the image's manifest, which is its id."
)]
pub struct PullArgs {
    /// The image
    #[arg(value_name = "REF")]
    reference: String,
    /// Which of several images: OS/CPU or OS/CPU/VARIANT, by the names of Go, as in linux/arm64
    /// [default: this machine's]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// Another name for the image
    #[arg(short, long, value_name = "NAME")]
    tag: Option<String>,
    /// How many layers to fetch at once
    #[arg(short, long, value_name = "COUNT", default_value = "3")]
    jobs: NonZero<usize>,
    /// Refuse a layer whose files are larger than this together when unpacked (bytes, or with K,
    /// M, G, T)
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_size: Option<u64>,
    /// Keep the layers as they come, too, so that they can be given out with the same digests
    #[arg(long)]
    keep_blobs: bool,
    /// Print the digest only, and no progress
    #[arg(short, long)]
    quiet: bool,
    /// Print JSON: what was fetched and what was there
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// Runs it.
pub fn run(context: &Context, args: &PullArgs) -> anyhow::Result<()> {
    let reference: Reference = args.reference.parse()?;
    let name = args.tag.clone().or_else(|| reference.name());
    if let Some(name) = &name {
        // Before the work, not after it.
        store::check_name(name)?;
    }
    let store = context.store()?;
    let bars = LayerBars::new(args.quiet);
    let options = IngestOptions {
        jobs: args.jobs,
        max_size: args.max_size,
        keep_blobs: args.keep_blobs,
        progress: &bars,
    };
    let wanted = args.platform.as_ref();
    let pulled = args
        .registry
        .pull(&store, &reference, wanted, name.as_deref(), &options)?;
    drop(bars);
    report(args, &reference, name.as_deref(), &pulled)
}

fn report(
    args: &PullArgs,
    reference: &Reference,
    name: Option<&str>,
    pulled: &Ingested,
) -> anyhow::Result<()> {
    let id = pulled.image.id;
    let taken = |layer: &DiffId| pulled.taken.contains(layer);
    if args.json {
        let layer = |layer: &DiffId| {
            let state = if taken(layer) { "fetched" } else { "present" };
            serde_json::json!({ "diff_id": layer, "state": state })
        };
        return out::json(&serde_json::json!({
            "name": name,
            "reference": reference.to_string(),
            "digest": id,
            "layers": pulled.image.layers.iter().map(layer).collect::<Vec<_>>(),
            "bytes": pulled.bytes,
        }));
    }
    if args.quiet {
        return out::print(format!("{id}\n"));
    }
    let all = pulled.image.layers.len();
    let fetched = pulled
        .image
        .layers
        .iter()
        .filter(|layer| taken(layer))
        .count();
    let said = match (fetched, all) {
        (0, _) => "all layers were there".to_owned(),
        (fetched, all) => {
            let size = table::size(pulled.bytes);
            format!("{fetched} of {all} layers fetched, {size}")
        }
    };
    let named = name.map_or_else(|| reference.to_string(), str::to_owned);
    out::print(format!("{named}: {said}\n{id}\n"))
}
