//! `lamina image verify`.

use anyhow::Context as _;
use clap::Args;
use lamina_layers::store::{Store, Verified};

use super::each;
use crate::cli::progress::Bars;
use crate::cli::{Context, out, table};

/// Arguments of `lamina image verify`.
#[derive(Debug, Args)]
#[command(
    after_help = "Checks that the manifest has the image's digest and the configuration the one that \
    the manifest says; makes the archive of each layer again and compares its digest with the \
    configuration's; checks the digest of each object and the structure of the indexes. It does not say \
    who made the image: signatures are not looked at."
)]
pub struct VerifyArgs {
    /// Names, digests, or starts of digests
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Verifies images and prints what was checked.
pub fn run(context: &Context, args: &VerifyArgs) -> anyhow::Result<()> {
    let store = context.store_to_read()?;
    let mut verified = Vec::new();
    let result = each(&args.images, |name| {
        let one = verify(&store, name).with_context(|| format!("image {name} is not right"))?;
        if !args.json {
            out::print(text(name, &one))?;
        }
        verified.push(one);
        Ok(())
    });
    if args.json {
        out::json(&verified)?;
    }
    result
}

fn verify(store: &Store, name: &str) -> anyhow::Result<Verified> {
    let image = store.resolve(name)?;
    let bars = Bars::new();
    let bar = bars.bar(name, Some(super::ls::size(store, &image)));
    let verified = store.verify_image(&image.id, &bar)?;
    bar.finish();
    Ok(verified)
}

fn text(name: &str, one: &Verified) -> String {
    let size = table::size;
    let head = [
        format!("{name}: right\n"),
        format!("  manifest {}  {}\n", one.id, size(one.manifest_bytes)),
        format!("  config   {}  {}\n", one.config, size(one.config_bytes)),
    ];
    let layers = one.layers.iter().map(|layer| {
        let (archive, objects) = (size(layer.tar_size), layer.objects);
        let id = layer.diff_id;
        format!("  layer    {id}  archive of {archive}, {objects} objects\n")
    });
    let merged = format!("  merged   {}  {} names\n", one.chain, one.entries);
    head.into_iter().chain(layers).chain([merged]).collect()
}
