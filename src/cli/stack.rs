//! What a mount is made of, mounted or not: for commands that look at its changes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use lamina_layers::digest::DiffId;
use lamina_layers::store::{Access, Store};

use super::{Context, named, umount};
use crate::mount::record::State;
use crate::union::{Config, ImageLower};
use crate::upper::UpperDirs;

/// A stack of layers with an upper, mounted or not.
pub struct Stack {
    /// What is stacked.
    pub config: Config,
    /// Where its image is.
    pub store: PathBuf,
    /// The image as the user named it.
    pub image: Option<String>,
    /// The image's layers, bottom first.
    pub layers: Vec<DiffId>,
    /// Its daemon, if it has one.
    pub live: Option<Live>,
}

/// A daemon that serves a mount.
pub struct Live {
    /// The socket by which it can be asked to hold changes back.
    pub control: PathBuf,
    /// Where it is mounted, unless it was detached.
    pub target: Option<PathBuf>,
}

/// The stack of a mount point or of a name.
pub fn find(context: &Context, wanted: &Path) -> anyhow::Result<Stack> {
    let kept = match (
        Store::open(&context.store, Access::ReadOnly),
        wanted.to_str(),
    ) {
        (Ok(store), Some(name)) => named::find(&store, name)?,
        _ => None,
    };
    if let Some(found) = umount::find(context, wanted)? {
        let live = (found.state != State::Dead).then(|| Live {
            control: found.control(),
            target: (found.state == State::Live).then(|| found.record.target.clone()),
        });
        let record = found.record;
        let (Some(upper), Some(work)) = (record.upper, record.work) else {
            bail!("{wanted:?} is mounted read-only: it has no changes");
        };
        let places = [&record.store, &upper, &work];
        if let Some(hidden) = record.lowers.iter().chain(places).find(|dir| {
            // A store plays no part if there is no image.
            dir.starts_with(&record.target) && (record.image.is_some() || *dir != &record.store)
        }) {
            bail!(
                "{hidden:?} cannot be looked at while it is covered by the mount at {:?}: unmount \
                 that first",
                record.target
            );
        }
        let upper = UpperDirs { upper, work };
        return stack(
            record.store,
            record.image,
            &record.layers,
            record.lowers,
            upper,
            live,
        );
    }
    let Some((base, upper)) = kept else {
        bail!("{wanted:?} is neither a live mount nor the name of one (see 'lamina ps')");
    };
    stack(
        context.store.clone(),
        base.image,
        &base.layers,
        base.lowers,
        upper,
        None,
    )
}

fn stack(
    store: PathBuf,
    image: Option<String>,
    layers: &[String],
    lowers: Vec<PathBuf>,
    upper: UpperDirs,
    live: Option<Live>,
) -> anyhow::Result<Stack> {
    let layers: Vec<DiffId> = layers
        .iter()
        .map(|id| id.parse())
        .collect::<Result<_, _>>()
        .context("damaged record")?;
    let mut config = Config {
        lowers,
        upper: Some(upper),
        ..Config::default()
    };
    if !layers.is_empty() {
        let opened = Arc::new(Store::open(&store, Access::ReadOnly)?);
        config.image = Some(ImageLower {
            store: opened,
            layers: layers.clone(),
        });
    }
    Ok(Stack {
        config,
        store,
        image,
        layers,
        live,
    })
}
