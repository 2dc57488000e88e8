//! `lamina image ls`.

use clap::Args;
use lamina_layers::store::{Image, Store};
use serde_json::{Value, json};

use super::{parts, short, tagged, when};
use crate::cli::{Context, out, table};

/// Arguments of `lamina image ls`.
#[derive(Debug, Args)]
#[command(
    after_help = "IMAGE ID is the start of the digest of the image's manifest. SIZE is what its layers \
    have as uncompressed archives; 'lamina image df' shows what images take on the disk."
)]
pub struct LsArgs {
    /// Only images with this name, whatever their tags; with a tag, only that one
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Only images without a name
    #[arg(long, conflicts_with = "name")]
    dangling: bool,
    /// Also show the digests of manifests in full
    #[arg(long)]
    digests: bool,
    /// Print only the digests of images, each once
    #[arg(short, long, conflicts_with_all = ["json", "digests"])]
    quiet: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Lists images, one line for each name.
pub fn run(context: &Context, args: &LsArgs) -> anyhow::Result<()> {
    let store = context.store_to_read()?;
    let mut images = store.images()?;
    for image in &mut images {
        if let Some(wanted) = &args.name {
            image.names.retain(|name| is_wanted(name, wanted));
        }
    }
    if args.dangling {
        images.retain(|image| image.names.is_empty());
    } else if args.name.is_some() {
        images.retain(|image| !image.names.is_empty());
    }
    if args.json {
        let values: Vec<_> = images.iter().map(|image| json(&store, image)).collect();
        return out::json(&values);
    }
    if args.quiet {
        let lines = images.iter().map(|image| format!("{}\n", image.id));
        return out::print(lines.collect::<String>());
    }
    let mut header = vec!["NAME", "TAG", "IMAGE ID", "CREATED", "SIZE"];
    if args.digests {
        header.insert(2, "DIGEST");
    }
    let rows: Vec<_> = images
        .iter()
        .flat_map(|image| rows(&store, image, args.digests))
        .collect();
    table::print(&header, &rows)
}

fn is_wanted(name: &str, wanted: &str) -> bool {
    let (path, tag) = parts(name);
    let (wanted_path, wanted_tag) = parts(wanted);
    let any_tag = wanted_path == wanted;
    path == wanted_path && (any_tag || tag == wanted_tag)
}

fn rows(store: &Store, image: &Image, digests: bool) -> Vec<Vec<String>> {
    let id = image.id.to_string();
    let mut names: Vec<(&str, &str)> = image.names.iter().map(|name| parts(name)).collect();
    if names.is_empty() {
        names.push(("-", "-"));
    }
    let row = |(path, tag): (&str, &str)| {
        let mut row = vec![path.to_owned(), tag.to_owned()];
        if digests {
            row.push(id.clone());
        }
        row.push(short(&id));
        row.push(when(image.config.created.as_deref()));
        row.push(table::size(size(store, image)));
        row
    };
    names.into_iter().map(row).collect()
}

/// Length of the uncompressed archives of the layers together. A manifest that was pulled has
/// compressed ones.
pub fn size(store: &Store, image: &Image) -> u64 {
    let layers = image.layers.iter();
    layers
        .map(|id| store.layer(id).map_or(0, |layer| layer.tar_size))
        .sum()
}

/// An image as JSON.
pub fn json(store: &Store, image: &Image) -> Value {
    json!({
        "id": image.id,
        "config_digest": image.config_digest.to_string(),
        "names": image.names,
        "tags": tagged(image),
        "created": image.config.created,
        "chain_id": image.chain,
        "layers": image.layers,
        "size": size(store, image),
        "config": image.config,
    })
}

#[cfg(test)]
mod tests {
    use super::is_wanted;

    #[test]
    fn a_name_without_a_tag_stands_for_all_tags() {
        assert!(is_wanted("a/b", "a/b") && is_wanted("a/b:1", "a/b"));
        assert!(is_wanted("a/b:1", "a/b:1") && is_wanted("a/b", "a/b:latest"));
        assert!(!is_wanted("a/b:2", "a/b:1") && !is_wanted("a/b", "b"));
    }
}
