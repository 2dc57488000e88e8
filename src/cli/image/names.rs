//! `lamina image tag`, `untag` and `rm`.

use anyhow::bail;
use clap::Args;
use lamina_layers::digest::ImageId;
use lamina_layers::store::{Store, StoreError, check_name};

use super::each;
use crate::cli::{Context, out};

/// Arguments of `lamina image tag`.
#[derive(Debug, Args)]
pub struct TagArgs {
    /// Name, digest, or the start of a digest
    #[arg(value_name = "IMAGE")]
    image: String,
    /// New names; another image that has one loses it
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// Arguments of `lamina image untag`.
#[derive(Debug, Args)]
#[command(
    after_help = "An image without a name is removed by 'lamina gc --all', or by its digest with \
    'lamina image rm'."
)]
pub struct UntagArgs {
    /// Names
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// Arguments of `lamina image rm`.
#[derive(Debug, Args)]
#[command(
    after_help = "With the image go those of its layers and objects that nothing else needs. An image \
    that is mounted is never removed; one that has kept changes ('lamina ps --all') only with --force, \
    and then its layers stay for them."
)]
pub struct RmArgs {
    /// Names, digests, or starts of digests
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Remove an image that is given by digest also if it has several names, and one that has kept
    /// changes
    #[arg(short, long)]
    force: bool,
}

/// Gives an image names.
pub fn tag(context: &Context, args: &TagArgs) -> anyhow::Result<()> {
    let store = context.store()?;
    args.names.iter().try_for_each(|name| check_name(name))?;
    let image = store.resolve(&args.image)?;
    for name in &args.names {
        store.tag_image(name, &image.id)?;
    }
    Ok(())
}

/// Takes names away.
pub fn untag(context: &Context, args: &UntagArgs) -> anyhow::Result<()> {
    let store = context.store()?;
    each(&args.names, |name| {
        store.untag(name)?;
        out::print(format!("Untagged: {name}\n"))
    })
}

/// Removes names, and with the last name the image.
pub fn remove(context: &Context, args: &RmArgs) -> anyhow::Result<()> {
    let store = context.store()?;
    each(&args.images, |name| remove_one(&store, name, args.force))
}

fn remove_one(store: &Store, wanted: &str, force: bool) -> anyhow::Result<()> {
    // By its name also an image that is damaged can be removed.
    if let Some(id) = store.named(wanted)? {
        if store.names_of(&id)?.len() > 1 {
            store.untag(wanted)?;
            return out::print(format!("Untagged: {wanted}\n"));
        }
        return remove_image(store, &id, force);
    }
    let image = store.resolve(wanted)?;
    if image.names.len() > 1 && !force {
        bail!(
            "image {wanted} has several names ({}): remove these, or all with --force",
            image.names.join(", ")
        );
    }
    remove_image(store, &image.id, force)
}

fn remove_image(store: &Store, id: &ImageId, force: bool) -> anyhow::Result<()> {
    let names = store.names_of(id)?;
    match store.remove_image(id, force) {
        Err(StoreError::NotFound(_)) if names.is_empty() => {
            bail!("{id} is a layer and no image: 'lamina layer rm' removes layers")
        }
        result => result?,
    };
    let lines = names.iter().map(|name| format!("Untagged: {name}\n"));
    out::print(lines.collect::<String>() + &format!("Deleted: {id}\n"))
}
