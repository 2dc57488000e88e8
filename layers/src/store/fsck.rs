//! Checking a store, and repairing it as far as that is possible.
//!
//! Everything is looked at without keeping anybody from using the store. What looks damaged is looked
//! at once more under the store's lock, so that what others add or remove meanwhile is not mistaken for
//! damage.
//!
//! Nothing is thrown away: what is damaged and cannot be made or had again is moved to `quarantine/`,
//! out of the way of another import. The exception are merged indexes, which are a cache.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;

use super::{Store, StoreError};
use crate::digest::{DiffId, ImageId, ObjectId};

mod files;
mod images;
mod layers;
mod objects;
mod repair;

pub use repair::Refetch;

/// How much to check.
#[derive(Clone, Copy)]
pub struct FsckOptions<'a> {
    /// Only sizes of objects, not their digests.
    pub quick: bool,
    /// Also make the archive of every layer again and compare its digest.
    pub deep: bool,
    /// How many threads.
    pub threads: usize,
    /// Is told how far it is: objects and their bytes.
    pub progress: &'a dyn crate::tar::Progress,
}

impl Default for FsckOptions<'_> {
    fn default() -> Self {
        Self {
            quick: false,
            deep: false,
            threads: std::thread::available_parallelism().map_or(2, std::num::NonZero::get),
            progress: &(),
        }
    }
}

/// What a problem is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// A file in `objects/`.
    Object(ObjectId),
    /// A layer.
    Layer(DiffId),
    /// A kept blob, by its digest.
    Blob(String),
    /// A merged index.
    Merged,
    /// An image.
    Image(ImageId),
    /// A name of an image.
    Name(String),
    /// The changes of a named mount.
    Changes(String),
    /// A lease.
    Lease,
    /// Permissions or owner of a file.
    Mode,
    /// Something that does not belong into a store.
    Stray,
}

/// What became of a problem.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case", tag = "state", content = "detail")]
pub enum Outcome {
    /// Nothing was done about it.
    Found,
    /// It is right again: how.
    Repaired(String),
    /// What is damaged was moved there; what needs it is still damaged.
    Quarantined(#[serde(with = "crate::json_path")] PathBuf),
    /// Repairing failed: why.
    Failed(String),
}

/// Something that is wrong with a store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Damage {
    /// What it is about.
    pub subject: Subject,
    /// Where.
    #[serde(with = "crate::json_path")]
    pub path: PathBuf,
    /// What is wrong.
    pub problem: String,
    /// The layers that it is in, or that are missing.
    pub layers: Vec<DiffId>,
    /// The images that do not work because of it, by name, or by digest if they have none.
    pub images: Vec<String>,
    /// The path of one file that it is the contents of, in the first of the layers.
    pub file: Option<String>,
    /// What became of it.
    pub outcome: Outcome,
}

impl Damage {
    fn new(subject: Subject, path: PathBuf, problem: impl Into<String>) -> Self {
        Self {
            subject,
            path,
            problem: problem.into(),
            layers: Vec::new(),
            images: Vec::new(),
            file: None,
            outcome: Outcome::Found,
        }
    }

    fn in_layer(mut self, id: DiffId) -> Self {
        self.layers.push(id);
        self
    }

    /// Whether anything is still not as it should be.
    pub fn remains(&self) -> bool {
        match self.outcome {
            Outcome::Repaired(_) => false,
            // Out of the way is all that can be wanted of these.
            Outcome::Quarantined(_) => {
                let unneeded = matches!(self.subject, Subject::Object(_)) && self.layers.is_empty();
                !unneeded && !matches!(self.subject, Subject::Stray | Subject::Blob(_))
            }
            Outcome::Found | Outcome::Failed(_) => true,
        }
    }
}

/// What was checked, and what is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// Number of objects.
    pub objects: u64,
    /// Their lengths together in bytes, holes included.
    pub object_bytes: u64,
    /// Number of layers.
    pub layers: u64,
    /// Number of kept blobs.
    pub blobs: u64,
    /// Number of merged indexes.
    pub merged: u64,
    /// Number of images.
    pub images: u64,
    /// Number of names.
    pub names: u64,
    /// Number of named mounts whose changes are kept.
    pub changes: u64,
    /// What is wrong, in a fixed order.
    pub damage: Vec<Damage>,
    /// Why something could not be had again.
    pub failures: Vec<String>,
}

impl Report {
    /// Whether anything is still not as it should be.
    pub fn is_damaged(&self) -> bool {
        self.damage.iter().any(Damage::remains)
    }
}

/// What layers say of an object.
#[derive(Clone, Copy)]
struct Expected {
    /// Its length, if a layer's files say it.
    size: Option<u64>,
}

/// What is known while checking.
struct Check<'a> {
    store: &'a Store,
    options: &'a FsckOptions<'a>,
    /// Objects that layers need.
    expected: HashMap<ObjectId, Expected>,
    /// Layers of images that could be read, with the names of these.
    images: BTreeMap<DiffId, BTreeSet<String>>,
    report: Report,
}

impl Store {
    /// Checks everything in the store.
    ///
    /// # Errors
    /// When the store cannot be looked at at all; damage is no error.
    pub fn fsck(&self, options: &FsckOptions<'_>) -> Result<Report, StoreError> {
        let mut check = Check {
            store: self,
            options,
            expected: HashMap::new(),
            images: BTreeMap::new(),
            report: Report::default(),
        };
        check.images()?;
        check.changes()?;
        check.layers()?;
        check.merged()?;
        check.objects()?;
        check.blobs()?;
        check.files()?;
        check.confirm()?;
        check.say_what_is_affected();
        check.report.damage.sort();
        Ok(check.report)
    }
}

impl Check<'_> {
    fn found(&mut self, damage: Damage) {
        self.report.damage.push(damage);
    }

    /// Looks again at what others may just have been adding or removing.
    fn confirm(&mut self) -> Result<(), StoreError> {
        let damage = std::mem::take(&mut self.report.damage);
        if damage.is_empty() {
            return Ok(());
        }
        let lock = self.store.lock_shared()?;
        let layers: BTreeSet<DiffId> = self.store.layers()?.into_iter().collect();
        let confirmed = damage.into_iter().filter(|damage| match &damage.subject {
            Subject::Object(id) => {
                let needed = damage.layers.is_empty()
                    || damage.layers.iter().any(|layer| layers.contains(layer));
                needed && self.object_is_damaged(id, damage.layers.is_empty())
            }
            // The directory itself: it is missing.
            Subject::Layer(id) if damage.path == self.store.layer_dir(id) => !layers.contains(id),
            Subject::Layer(id) => layers.contains(id),
            Subject::Image(_)
            | Subject::Blob(_)
            | Subject::Merged
            | Subject::Mode
            | Subject::Stray => damage.path.symlink_metadata().is_ok(),
            Subject::Name(_) | Subject::Changes(_) | Subject::Lease => true,
        });
        self.report.damage = confirmed.collect();
        drop(lock);
        Ok(())
    }

    /// Whether an object is still missing or damaged. One that no layer needs may be missing.
    fn object_is_damaged(&self, id: &ObjectId, may_be_missing: bool) -> bool {
        let size = self.expected.get(id).and_then(|expected| expected.size);
        let found = objects::check_object(self.store, id, size, self.options.quick, &());
        match found {
            Ok(_) => false,
            Err(objects::Fault::Missing) => !may_be_missing,
            Err(_) => true,
        }
    }

    /// Names the images, and for objects a file.
    fn say_what_is_affected(&mut self) {
        let objects: BTreeSet<ObjectId> = self
            .report
            .damage
            .iter()
            .filter_map(|damage| match damage.subject {
                Subject::Object(id) => Some(id),
                _ => None,
            })
            .collect();
        let files = layers::files_of(self.store, &objects);
        for damage in &mut self.report.damage {
            if let Subject::Object(id) = &damage.subject {
                damage.file = damage
                    .layers
                    .first()
                    .and_then(|layer| files.get(&(*layer, *id)).cloned());
            }
            let images = damage
                .layers
                .iter()
                .filter_map(|layer| self.images.get(layer));
            let images: BTreeSet<String> = images.flatten().cloned().collect();
            for image in images {
                if !damage.images.contains(&image) {
                    damage.images.push(image);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
