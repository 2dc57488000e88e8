//! From a stage to an image of the store.

use lamina_layers::digest::DiffId;
use lamina_layers::store::oci::{self, Descriptor, ImageConfig, Manifest, Other, RootFs};
use lamina_layers::store::{Image, Store, Transaction};

use super::error::BuildResult;
use super::layer;
use super::stage::Stage;
use super::{Options, Surroundings};

/// Publishes the image of a stage, with its names.
pub fn publish(
    mut stage: Stage,
    options: &Options,
    around: &Surroundings<'_>,
) -> BuildResult<Image> {
    let store = around.store;
    let mut layers = stage.root.layers();
    if layers.is_empty() {
        // An image has at least one.
        layers.push(empty_layer(store)?);
        if let Some(last) = stage.state.history.last_mut() {
            last.empty_layer = false;
        } else {
            stage.state.history.push(oci::History::default());
        }
    }
    if !options.labels.is_empty() {
        let labels = stage.state.config.labels.get_or_insert_default();
        labels.extend(options.labels.iter().cloned());
    }
    let mut other = stage.state.other;
    match stage.platform.variant {
        Some(variant) => other.insert("variant".into(), variant.into()),
        None => other.remove("variant"),
    };
    let created = stage
        .state
        .history
        .last()
        .and_then(|last| last.created.clone());
    let config = ImageConfig {
        created,
        architecture: stage.platform.architecture,
        os: stage.platform.os,
        config: Some(stage.state.config),
        rootfs: RootFs {
            kind: "layers".into(),
            diff_ids: layers.clone(),
        },
        history: stage.state.history,
        other,
    };
    let config = serde_json::to_vec(&config).unwrap_or_default();
    let descriptors = layers.iter().map(|id| describe(store, id));
    let manifest = Manifest::new(&config, descriptors.collect::<BuildResult<_>>()?);
    let manifest = serde_json::to_vec(&manifest).unwrap_or_default();
    let mut names = options.tags.iter();
    let image = store.put_image(names.next().map(String::as_str), &manifest, &config)?;
    for name in names {
        store.tag_image(name, &image.id)?;
    }
    Ok(image)
}

fn describe(store: &Store, id: &DiffId) -> BuildResult<Descriptor> {
    Ok(Descriptor {
        media_type: oci::LAYER.into(),
        digest: id.to_string(),
        size: store.layer(id)?.tar_size,
        other: Other::new(),
    })
}

fn empty_layer(store: &Store) -> BuildResult<DiffId> {
    let txn = Transaction::begin(store)?;
    let info = layer::stage(&txn, "an empty layer", |_| Ok(()))?;
    txn.commit()?;
    Ok(info.diff_id)
}

/// The first 12 digits of a layer's digest.
pub fn short(id: &DiffId) -> String {
    id.0.hex().chars().take(12).collect()
}
