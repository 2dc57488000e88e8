//! `lamina push`.

use std::num::NonZero;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use lamina_layers::oci::Family;
use lamina_layers::oci::registry::{PushOptions, Pushed, Reference, Repository, Sent};
use lamina_layers::store::Pins;
use lamina_layers::tar::Compression;

use super::progress::LayerBars;
use super::registry::RegistryArgs;
use super::{Context, Usage, out, table};

/// Arguments of `lamina push`.
#[derive(Debug, Args)]
#[command(
    after_help = "Layers that the registry has are not sent; it takes those of images that were \
    pulled from another of its repositories from there. The manifest is sent byte for byte as it \
    was pulled, as long as each layer is in the registry, was kept ('lamina pull --keep-blobs'), or \
    comes out the same when it is packed again; else it is a new one.\n\n\
    Prints the digest of the manifest."
)]
pub struct PushArgs {
    /// Name, digest, or the start of a digest
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Where to: [HOST[:PORT]/]PATH[:TAG], as for 'lamina pull' [default: the image's name]
    #[arg(value_name = "REF")]
    reference: Option<String>,
    /// Whose media types to use [default: those that the image has]
    #[arg(long, value_enum, value_name = "FORMAT")]
    format: Option<Format>,
    /// How to pack the layers [default: as they were when the image was pulled or loaded; those of
    /// other images by gzip]
    #[arg(long, value_enum, value_name = "KIND")]
    compression: Option<Packing>,
    /// How many layers to send at once
    #[arg(short, long, value_name = "COUNT", default_value = "3")]
    jobs: NonZero<usize>,
    /// Write the digest into this file, too
    #[arg(long, value_name = "FILE")]
    digestfile: Option<PathBuf>,
    /// Print the digest only, and no progress
    #[arg(short, long)]
    quiet: bool,
    /// Print JSON: what was sent and what was there
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// Whose media types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// The OCI's
    Oci,
    /// Docker's (version 2, schema 2)
    Docker,
}

/// How layers are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Packing {
    /// gzip, which everybody reads
    Gzip,
    /// Zstandard, smaller and faster; not in docker's format
    Zstd,
    /// Not at all
    None,
}

/// Runs it.
pub fn run(context: &Context, args: &PushArgs) -> anyhow::Result<()> {
    if (args.format, args.compression) == (Some(Format::Docker), Some(Packing::Zstd)) {
        let problem = "--format docker has no layers packed by zstd: use --format oci";
        return Err(Usage(problem.into()).into());
    }
    let store = context.store_to_read()?;
    let image = store.resolve(&args.image)?;
    // A store that cannot be written to needs no protection from removals.
    let writable = context.store().ok();
    let pins = Pins {
        holder: format!("a push (process {})", std::process::id()),
        image: Some(image.id),
        layers: image.layers.clone(),
        blobs: Vec::new(),
    };
    let _lease = writable
        .as_ref()
        .map(|store| store.lease(&pins))
        .transpose()?;
    let reference = match &args.reference {
        Some(text) => text,
        None if image.names.contains(&args.image) => &args.image,
        None => image
            .names
            .first()
            .with_context(|| format!("'{}' has no name: say where to push it", args.image))?,
    };
    let reference: Reference = reference.parse()?;
    if reference.digest().is_some() {
        let problem = format!("'{reference}' has a digest, which cannot be chosen: push to a tag");
        return Err(Usage(problem).into());
    }
    let client = args
        .registry
        .client(reference.registry(), reference.repository())?;
    let repository = Repository::new(&client, &reference);
    let bars = LayerBars::new(args.quiet);
    let options = PushOptions {
        jobs: args.jobs,
        family: args.format.map(|format| match format {
            Format::Oci => Family::Oci,
            Format::Docker => Family::Docker,
        }),
        compression: args.compression.map(|packing| match packing {
            Packing::Gzip => Compression::Gzip,
            Packing::Zstd => Compression::Zstd,
            Packing::None => Compression::None,
        }),
        progress: &bars,
    };
    let pushed = repository.push(&store, &image, &reference.selector(), &options)?;
    drop(bars);
    if let Some(path) = &args.digestfile {
        std::fs::write(path, format!("{}\n", pushed.digest))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    report(args, &reference, &pushed)
}

fn report(args: &PushArgs, reference: &Reference, pushed: &Pushed) -> anyhow::Result<()> {
    let id = pushed.digest;
    let sent = pushed
        .layers
        .iter()
        .filter(|(_, sent)| *sent == Sent::Uploaded);
    let bytes: u64 = sent.clone().map(|(layer, _)| layer.size).sum();
    if args.json {
        let layers = pushed.layers.iter().map(|(layer, sent)| {
            let state = match sent {
                Sent::Present => "present",
                Sent::Mounted => "mounted",
                Sent::Uploaded => "sent",
            };
            serde_json::json!({
                "diff_id": layer.diff_id, "digest": layer.descriptor.digest,
                "size": layer.size, "state": state,
            })
        });
        return out::json(&serde_json::json!({
            "reference": reference.to_string(),
            "digest": id.to_string(),
            "layers": layers.collect::<Vec<_>>(),
            "bytes": bytes,
        }));
    }
    if args.quiet {
        return out::print(format!("{id}\n"));
    }
    let (count, all) = (sent.count(), pushed.layers.len());
    let said = match count {
        0 => "all layers were there".to_owned(),
        count => format!("{count} of {all} layers sent, {}", table::size(bytes)),
    };
    out::print(format!("{reference}: {said}\n{id}\n"))
}
