//! `lamina commit`.

use std::io;
use std::path::PathBuf;

use clap::Args;
use lamina_layers::store::oci::History;
use lamina_layers::store::{self, Access, Image, ImageSpec, LayerInfo, Source, Store};
use lamina_layers::tar::{ImportOptions, import_layer};

use super::diff;
use super::progress::Bars;
use super::{Context, image, out};
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
    let layer = import_changes(&store, &union)?;
    let mut layers = stack.layers;
    // How to run it, and its history, stay those of the image below.
    let base = match &stack.image {
        Some(name) => store
            .resolve(name)
            .ok()
            .filter(|image| image.layers == layers),
        None => None,
    };
    let spec = base.map_or_else(ImageSpec::default, |image| spec_on(&image));
    layers.push(layer.diff_id);
    let made = store.tag(&args.tag, &layers, &spec)?;
    store.set_source(&made.id, &Source::Committed { base: stack.image })?;
    let id = image::short(&made.id.to_string());
    out::print(format!("{}\n{}  {id}\n", layer.diff_id, args.tag))
}

fn spec_on(base: &Image) -> ImageSpec {
    let mut history = base.config.history.clone();
    history.push(History {
        created_by: Some("lamina commit".to_owned()),
        ..History::default()
    });
    ImageSpec {
        created: None,
        architecture: Some(base.config.architecture.clone()),
        config: base.config.config.clone(),
        history,
        other: base.config.other.clone(),
    }
}

/// Imports the layer while it is being written, through a pipe.
fn import_changes(store: &Store, union: &Union) -> anyhow::Result<LayerInfo> {
    let (reader, writer) = io::pipe()?;
    let bars = Bars::new();
    let bar = bars.bar("changes", None);
    let options = ImportOptions {
        progress: &bar,
        ..ImportOptions::default()
    };
    std::thread::scope(|scope| {
        let written = scope.spawn(|| crate::commit::write_layer(union, io::BufWriter::new(writer)));
        let imported = import_layer(store, reader, "the changes", &options);
        let written = written
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the reader failed")));
        // When the import fails first, the writer's pipe breaks: then the import's reason counts.
        if let Err(error) = written
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            anyhow::bail!("cannot read the changes: {error}");
        }
        bar.finish();
        Ok(imported?)
    })
}
