//! The image on top of another.

use lamina_layers::digest::DiffId;
use lamina_layers::store::oci::{self, ContainerConfig, History, ImageConfig, RootFs};
use lamina_layers::store::{Image, Store, StoreError};

/// An image that is being made: the configuration it will have. Each step adds to its history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    config: ImageConfig,
}

impl Default for Draft {
    /// One without layers, for this machine's CPU.
    fn default() -> Self {
        Self {
            config: ImageConfig {
                architecture: oci::architecture().to_owned(),
                os: "linux".into(),
                rootfs: RootFs {
                    kind: "layers".into(),
                    diff_ids: Vec::new(),
                },
                ..ImageConfig::default()
            },
        }
    }
}

impl Draft {
    /// One that has the layers, the configuration and the history of `base`.
    pub fn on(base: &Image) -> Self {
        let mut draft = Self::default();
        let nothing = std::mem::replace(&mut draft.config, base.config.clone());
        let config = &mut draft.config;
        // A bare layer says nothing of itself.
        if config.os.is_empty() {
            config.os = nothing.os;
        }
        if config.architecture.is_empty() {
            config.architecture = nothing.architecture;
        }
        config.rootfs.kind = nothing.rootfs.kind;
        config.rootfs.diff_ids.clone_from(&base.layers);
        draft.complete_history();
        draft
    }

    /// One of these layers, bottom first, of which nothing else is known.
    pub fn of_layers(layers: Vec<DiffId>) -> Self {
        let mut draft = Self::default();
        draft.config.rootfs.diff_ids = layers;
        draft.complete_history();
        draft
    }

    /// Entries that have a layer are as many as layers, or nobody could tell which belongs to which:
    /// layers without a history get entries that say nothing.
    fn complete_history(&mut self) {
        let config = &mut self.config;
        let told = config.history.iter().filter(|entry| !entry.empty_layer);
        let missing = config.rootfs.diff_ids.len().saturating_sub(told.count());
        let nothing = std::iter::repeat_n(History::default(), missing);
        config.history.splice(0..0, nothing);
    }

    /// Drops the layers and how they were made: one layer of everything takes their place.
    pub fn forget_layers(&mut self) {
        self.config.rootfs.diff_ids.clear();
        self.config.history.clear();
    }

    /// Says who made the image.
    pub fn set_author(&mut self, author: &str) {
        self.config.other.insert("author".into(), author.into());
    }

    /// Its layers, bottom first.
    pub fn layers(&self) -> &[DiffId] {
        &self.config.rootfs.diff_ids
    }

    /// All that it says.
    pub fn config(&self) -> &ImageConfig {
        &self.config
    }

    /// All that it says, to be changed.
    pub fn config_mut(&mut self) -> &mut ImageConfig {
        &mut self.config
    }

    /// How it is run, to be changed.
    pub fn container_mut(&mut self) -> &mut ContainerConfig {
        self.config.config.get_or_insert_default()
    }

    /// Adds a step: its layer, if it changed anything in the filesystem, and what the history says of
    /// it. When the step was made, the image was.
    pub fn add(&mut self, layer: Option<DiffId>, entry: History) {
        if entry.created.is_some() {
            self.config.created.clone_from(&entry.created);
        }
        self.config.history.push(History {
            empty_layer: layer.is_none(),
            ..entry
        });
        self.config.rootfs.diff_ids.extend(layer);
    }

    /// Puts the image into the store, where its layers are, under a name if there is one.
    ///
    /// # Errors
    /// As [`Store::make_image`].
    pub fn publish(&self, store: &Store, name: Option<&str>) -> Result<Image, StoreError> {
        store.make_image(name, &self.config)
    }

    /// As [`Draft::publish`], where every layer was made on top of those before it, so that nothing can
    /// be wrong with them. What a mount needs of it is made by the first mount.
    ///
    /// # Errors
    /// As [`Store::make_image_unmerged`].
    pub fn publish_unmerged(&self, store: &Store, name: Option<&str>) -> Result<Image, StoreError> {
        store.make_image_unmerged(name, &self.config)
    }
}

#[cfg(test)]
mod tests {
    use lamina_layers::digest::Digest;

    use super::*;

    fn layer(number: u8) -> DiffId {
        DiffId(Digest([number; 32]))
    }

    fn entry(by: &str) -> History {
        History {
            created_by: Some(by.to_owned()),
            ..History::default()
        }
    }

    #[test]
    fn every_layer_has_an_entry_in_the_history() {
        let mut draft = Draft::of_layers(vec![layer(1), layer(2)]);
        draft.add(Some(layer(3)), entry("third"));
        draft.add(None, entry("nothing"));
        let history = &draft.config().history;
        let with_layer = history.iter().filter(|entry| !entry.empty_layer).count();
        assert_eq!(with_layer, draft.layers().len());
        assert_eq!(history.last().map(|entry| entry.empty_layer), Some(true));
        assert_eq!(draft.layers(), [layer(1), layer(2), layer(3)]);
    }

    #[test]
    fn the_last_step_says_when_the_image_was_made() {
        let mut draft = Draft::default();
        let created = Some("2023-11-14T22:13:20Z".to_owned());
        draft.add(
            None,
            History {
                created: created.clone(),
                ..entry("one")
            },
        );
        draft.add(None, entry("two"));
        assert_eq!(draft.config().created, created);
    }
}
