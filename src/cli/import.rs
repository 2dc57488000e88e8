//! `lamina image import`.

use std::io;
use std::path::PathBuf;

use clap::Args;
use lamina_layers::oci::{
    IngestOptions, LoadOptions, Loaded, Origin, ParsePlatformError, Platform, load,
};
use lamina_layers::store::{self, Store};

use super::progress::LayerBars;
use super::{Context, Usage, layer, out};

/// Arguments of `lamina image import`.
#[derive(Debug, Args)]
#[command(
    after_help = "Prints a line for each image: its ID (the digest of its manifest), then its names."
)]
pub struct ImportArgs {
    /// An OCI layout, as a directory or an archive, or an archive by 'docker save' or 'podman save',
    /// packed or not; - is standard input. They are told apart by content
    #[arg(value_name = "FILE|DIR|-")]
    from: PathBuf,
    /// Of several images, those to import: their names or digests there
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
    /// Import all of several images
    #[arg(long, conflicts_with = "images")]
    all: bool,
    /// Name for the image, instead of those that it has there
    #[arg(short, long, value_name = "NAME", conflicts_with = "all")]
    tag: Option<String>,
    /// Of an image for several platforms, the one for this: OS/CPU or OS/CPU/VARIANT, by the names
    /// of Go [default: this machine's]
    #[arg(long, value_name = "PLATFORM", value_parser = parse_platform)]
    platform: Option<Platform>,
    /// Keep the layers as they came, too, so that 'lamina image export' gives them out with the same
    /// digests. Takes as much room again as they have there
    #[arg(long)]
    keep_blobs: bool,
    /// Refuse a layer whose files are larger than this together when unpacked (bytes, or with K,
    /// M, G, T)
    #[arg(long, value_name = "SIZE", value_parser = layer::parse_size)]
    max_size: Option<u64>,
    /// Print JSON: a list of objects with id, names, layers, taken (layers that the store did not
    /// have) and bytes (of those, as they came)
    #[arg(long)]
    json: bool,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

fn parse_platform(text: &str) -> Result<Platform, ParsePlatformError> {
    text.parse()
}

/// Runs it.
pub fn run(context: &Context, args: &ImportArgs) -> anyhow::Result<()> {
    let is_stdin = args.from.as_os_str() == "-";
    if is_stdin && io::IsTerminal::is_terminal(&io::stdin()) {
        return Err(Usage("standard input is a terminal: give a file, or a pipe".into()).into());
    }
    let store = context.store()?;
    let bars = LayerBars::new(args.quiet);
    let options = LoadOptions {
        ingest: IngestOptions {
            max_size: args.max_size,
            keep_blobs: args.keep_blobs,
            progress: &bars,
            ..IngestOptions::default()
        },
        name: args.tag.as_deref(),
        platform: args.platform.clone(),
        wanted: &args.images,
        all: args.all,
        exactly: None,
    };
    let origin = if is_stdin {
        Origin::Stream(Box::new(io::stdin()), "standard input")
    } else {
        Origin::Path(&args.from)
    };
    let loaded = load(&store, origin, &options)?;
    for image in &loaded {
        record(&store, args, image, loaded.len() > 1)?;
    }
    if args.json {
        return out::json(&loaded.iter().map(json).collect::<Vec<_>>());
    }
    let lines = loaded.iter().map(|loaded| {
        let image = &loaded.ingested.image;
        let mut words = vec![image.id.to_string()];
        words.extend(loaded.given.iter().cloned());
        words.join(" ") + "\n"
    });
    out::print(lines.collect::<String>())
}

/// Records where an image came from, if it can be had there again.
fn record(store: &Store, args: &ImportArgs, loaded: &Loaded, several: bool) -> anyhow::Result<()> {
    // A pipe is gone when it was read, whatever its name.
    let Ok(path) = args.from.canonicalize() else {
        return Ok(());
    };
    let image = Some(loaded.title.clone()).filter(|_| several || !args.images.is_empty());
    let source = if path.is_dir() {
        store::Source::Layout { path, image }
    } else if path.is_file() && args.from.as_os_str() != "-" {
        store::Source::Archive { path, image }
    } else {
        return Ok(());
    };
    store.set_source(&loaded.ingested.image.id, &source)?;
    Ok(())
}

fn json(loaded: &Loaded) -> serde_json::Value {
    let image = &loaded.ingested.image;
    serde_json::json!({
        "id": image.id,
        "names": loaded.given,
        "layers": image.layers,
        "taken": loaded.ingested.taken,
        "bytes": loaded.ingested.bytes,
    })
}
