//! Images, names, kept changes and leases.

use std::collections::BTreeSet;
use std::fs;

use super::{Check, Damage, Subject};
use crate::digest::{DiffId, ImageId};
use crate::store::refs::Name;
use crate::store::{Store, StoreError};

impl Check<'_> {
    /// Checks images, names and leases.
    pub(super) fn images(&mut self) -> Result<(), StoreError> {
        let store = self.store;
        // Nobody removes anything meanwhile.
        let lock = store.lock_shared()?;
        let names = self.names()?;
        for digest in store.digests_in("images")? {
            let id = ImageId(digest);
            self.report.images += 1;
            let of_image = names.iter().filter(|(_, other)| *other == id);
            let mut called: BTreeSet<String> = of_image.map(|(name, _)| name.clone()).collect();
            if called.is_empty() {
                called.insert(id.to_string());
            }
            self.image(&id, &called);
        }
        for (name, id) in names {
            if !store.image_dir(&id).exists() {
                let problem = format!("it stands for image {id}, which is not in the store");
                self.name_damage(&name, problem);
            }
        }
        drop(lock);
        // Nobody is just writing a lease.
        let _lock = store.lock_exclusive()?;
        for path in store.lease_files()? {
            if Store::is_unreadable_lease(&path) {
                let problem = "it does not say what it is on, so nothing can be removed from the \
                    store until its holder ends";
                self.found(Damage::new(Subject::Lease, path, problem));
            }
        }
        Ok(())
    }

    fn image(&mut self, id: &ImageId, called: &BTreeSet<String>) {
        let store = self.store;
        let checked = store.image_files(id).and_then(|_| store.read_image(id));
        match checked {
            Ok(image) => {
                for layer in image.layers {
                    self.images
                        .entry(layer)
                        .or_default()
                        .extend(called.iter().cloned());
                    self.layer_is_there(layer);
                }
            }
            Err(error) => {
                let (path, problem) = match error {
                    StoreError::ImageDamaged { path, problem } => (path, problem),
                    StoreError::Io { path, source, .. } => {
                        (path, format!("it cannot be read: {source}"))
                    }
                    error => (store.image_dir(id), error.to_string()),
                };
                // What is missing is looked for again by its directory.
                let there = path.symlink_metadata().is_ok();
                let path = if there { path } else { store.image_dir(id) };
                let mut damage = Damage::new(Subject::Image(*id), path, problem);
                damage.images = called.iter().cloned().collect();
                self.found(damage);
            }
        }
        if let Err(error) = store.source(id) {
            let problem = match error {
                StoreError::ImageDamaged { problem, .. } => problem,
                error => error.to_string(),
            };
            let path = store.image_dir(id).join("source.json");
            self.found(Damage::new(Subject::Stray, path, problem));
        }
    }

    fn layer_is_there(&mut self, id: DiffId) {
        let path = self.store.layer_dir(&id);
        let known = self.report.damage.iter().any(|damage| damage.path == path);
        if !path.exists() && !known {
            let damage = Damage::new(Subject::Layer(id), path, "it is missing");
            self.found(damage.in_layer(id));
        }
    }

    /// The names that can be read.
    fn names(&mut self) -> Result<Vec<(String, ImageId)>, StoreError> {
        let dir = self.store.root().join("refs");
        let mut names = Vec::new();
        for entry in fs::read_dir(&dir).map_err(StoreError::io("read", &dir))? {
            let entry = entry.map_err(StoreError::io("read", &dir))?;
            let file = entry.file_name();
            let Some(name) = file.to_str().and_then(Name::of_file) else {
                let problem = "it is not the name of an image";
                self.found(Damage::new(Subject::Stray, entry.path(), problem));
                continue;
            };
            self.report.names += 1;
            match self.store.named_image(&name) {
                Ok(Some(id)) => names.push((name.as_str().to_owned(), id)),
                // It was removed just now.
                Ok(None) => {}
                Err(error) => {
                    let problem = match error {
                        StoreError::ImageDamaged { problem, .. } => problem,
                        error => error.to_string(),
                    };
                    self.name_damage(name.as_str(), problem);
                }
            }
        }
        Ok(names)
    }

    fn name_damage(&mut self, name: &str, problem: String) {
        let Ok(parsed) = Name::parse(name) else {
            return;
        };
        let path = self.store.ref_path(&parsed);
        let mut damage = Damage::new(Subject::Name(name.to_owned()), path, problem);
        damage.images.push(name.to_owned());
        self.found(damage);
    }

    /// Checks the kept changes of named mounts.
    pub(super) fn changes(&mut self) -> Result<(), StoreError> {
        for name in self.store.kept_names()? {
            let dir = self.store.root().join("mounts").join(&name);
            if !dir.is_dir() {
                let problem = "it is not a directory with changes";
                self.found(Damage::new(Subject::Stray, dir, problem));
                continue;
            }
            let kept = match self.store.read_kept(&name) {
                Ok(Some(kept)) => kept,
                Ok(None) => continue,
                Err(error) => {
                    let problem = match error {
                        StoreError::KeptDamaged { problem, .. } => problem,
                        error => error.to_string(),
                    };
                    let name = name.to_string_lossy().into_owned();
                    let path = dir.join("mount.json");
                    self.found(Damage::new(Subject::Changes(name), path, problem));
                    continue;
                }
            };
            self.report.changes += 1;
            for part in ["upper", "work"] {
                let path = dir.join(part);
                if !path.is_dir() {
                    let subject = Subject::Changes(kept.name.clone());
                    self.found(Damage::new(subject, path, "it is missing"));
                }
            }
            for layer in kept.layers {
                self.layer_is_there(layer);
            }
        }
        Ok(())
    }
}
