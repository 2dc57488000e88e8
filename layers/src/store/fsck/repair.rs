//! Repairing what a check found.
//!
//! What can be made from the rest of the store is made from it; what cannot is imported again from
//! where its image came from. An import puts a good object in the place of the damaged one in one step,
//! so a mount that opens it sees the one or the other. Everything else moves to `quarantine/`.

use std::collections::BTreeSet;
use std::error::Error;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufWriter};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, Uid, chownat, mkdirat, openat, renameat, unlinkat,
};
use rustix::io::Errno;

use super::{Damage, Outcome, Report, Subject, files, objects};
use crate::digest::{DiffId, ImageId, ObjectId};
use crate::store::Transaction;
use crate::store::staging::unique_name;
use crate::store::{Source, Store, StoreError, superblock, sync_dir};
use crate::tar::{ImportOptions, check_split, export_layer, stage_layer};

/// Imports an image, or as many of its layers as can be had, again from where it came from. The store
/// does not have what is to be imported, as far as [`Store::has_layer`] tells.
pub type Refetch<'a> = dyn Fn(&Store, &ImageId, &Source) -> Result<(), Box<dyn Error>> + 'a;

impl Store {
    /// Repairs what a check found, as far as possible, and notes down in the report what became of it.
    ///
    /// # Errors
    /// When the store is open for reading only or its lock cannot be had.
    pub fn repair(&self, report: &mut Report, refetch: &Refetch<'_>) -> Result<(), StoreError> {
        self.for_writing()?;
        let mut repair = Repair {
            store: self,
            bin: self.root().join("quarantine").join(unique_name()?),
        };
        // Damage of contents may be nothing but this.
        for damage in &mut report.damage {
            if damage.subject == Subject::Mode {
                damage.outcome = repair.mode(&damage.path);
            }
        }
        repair.contents(report, refetch);
        for damage in &mut report.damage {
            if damage.outcome == Outcome::Found {
                damage.outcome = repair.other(damage);
            }
        }
        Ok(())
    }
}

/// Something that is only a place: it need not be readable.
const PLACE: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

struct Repair<'s> {
    store: &'s Store,
    /// Where things are moved to.
    bin: PathBuf,
}

/// The outcome of something that either worked, in these words, or did not.
fn outcome(result: Result<(), impl ToString>, how: &str) -> Outcome {
    match result {
        Ok(()) => Outcome::Repaired(how.to_owned()),
        Err(error) => Outcome::Failed(error.to_string()),
    }
}

impl Repair<'_> {
    fn mode(&self, path: &Path) -> Outcome {
        let repair = || -> io::Result<()> {
            let owner = fs::symlink_metadata(self.store.root().join(superblock::FILE))?;
            let (dir, name) = self.open_parent(path)?;
            let file = openat(&dir, name, OFlags::NOFOLLOW | PLACE, Mode::empty())?;
            let found = fs::File::from(file);
            let meta = found.metadata()?;
            if !meta.is_file() {
                return Err(io::Error::other("it is no file any more"));
            }
            if meta.uid() != owner.uid() {
                let (uid, gid) = (Uid::from_raw(owner.uid()), Gid::from_raw(owner.gid()));
                chownat(&found, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
            }
            // This one file, whatever has its name by now.
            let itself = format!("/proc/self/fd/{}", found.as_raw_fd());
            fs::set_permissions(itself, fs::Permissions::from_mode(files::MODE))
        };
        outcome(repair(), "permissions and owner were set")
    }

    /// Opens the directory that something in the store is in.
    fn open_parent<'p>(&self, path: &'p Path) -> io::Result<(OwnedFd, &'p OsStr)> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        Ok((self.open_dir(parent, false)?, name))
    }

    /// Opens a directory in the store, or makes it first. A symbolic link on the way is refused: whoever
    /// repairs may be root, and who can write to the store another user.
    fn open_dir(&self, path: &Path, make: bool) -> io::Result<OwnedFd> {
        let root = self.store.root();
        let relative = path.strip_prefix(root).map_err(io::Error::other)?;
        let mut dir = openat(CWD, root, OFlags::DIRECTORY | PLACE, Mode::empty())?;
        for part in relative {
            match if make {
                mkdirat(&dir, part, Mode::from_raw_mode(0o777))
            } else {
                Ok(())
            } {
                Err(Errno::EXIST) => {}
                result => result?,
            }
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | PLACE;
            dir = openat(&dir, part, flags, Mode::empty()).map_err(|errno| match errno {
                Errno::NOTDIR => io::Error::other(format!("{part:?} in {path:?} is no directory")),
                errno => errno.into(),
            })?;
        }
        Ok(dir)
    }

    /// What is neither contents nor permissions.
    fn other(&mut self, damage: &Damage) -> Outcome {
        match &damage.subject {
            Subject::Merged => {
                let removed = self.open_parent(&damage.path);
                let removed =
                    removed.and_then(|(dir, name)| Ok(unlinkat(dir, name, AtFlags::empty())?));
                outcome(removed, "removed: it is made again when needed")
            }
            Subject::Stray | Subject::Blob(_) | Subject::Name(_) => {
                self.quarantine(&damage.path, None)
            }
            Subject::Image(id) => self.quarantine_image(id),
            Subject::Changes(name) => {
                Outcome::Failed(format!("'lamina rm {name}' throws the changes away"))
            }
            Subject::Lease => Outcome::Failed("it goes with the process that holds it".into()),
            Subject::Object(_) | Subject::Layer(_) | Subject::Mode => Outcome::Found,
        }
    }

    /// Makes or gets objects, layers and images again.
    fn contents(&mut self, report: &mut Report, refetch: &Refetch<'_>) {
        self.distrust(report);
        for damage in &mut report.damage {
            // A file cannot take the place of a directory.
            if let Subject::Object(id) = &damage.subject
                && damage.path.is_dir()
                && let Outcome::Failed(why) = self.quarantine(&damage.path, Some(id))
            {
                damage.outcome = Outcome::Failed(why);
            }
        }
        self.settle(report, "it is right now");
        let rebuilt = self.rebuild(report);
        self.settle(report, "made again from the layer's archive");
        let mut failures = rebuilt;
        for (id, source) in self.sources(report) {
            if !concerns(report, &id, self.store) {
                continue;
            }
            let Some(source) = source else {
                failures.push(format!("nobody noted down where image {id} came from"));
                continue;
            };
            match refetch(self.store, &id, &source) {
                Ok(()) => self.settle(report, "imported again"),
                Err(error) => {
                    failures.push(error.to_string());
                    // Part of it may have been imported.
                    self.settle(report, "imported again");
                }
            }
        }
        self.give_up(report);
        failures.sort();
        failures.dedup();
        report.failures = failures;
        let mut distrusted = self.store.distrusted.lock();
        distrusted.objects.clear();
        distrusted.layers.clear();
    }

    /// Keeps imports from reusing what is damaged.
    fn distrust(&self, report: &Report) {
        let mut distrusted = self.store.distrusted.lock();
        for damage in &report.damage {
            match &damage.subject {
                Subject::Object(id) => {
                    distrusted.objects.insert(*id);
                    distrusted.layers.extend(&damage.layers);
                }
                Subject::Layer(id) => {
                    distrusted.layers.insert(*id);
                }
                _ => {}
            }
        }
    }

    /// Notes down what is right now.
    fn settle(&self, report: &mut Report, how: &str) {
        for damage in &mut report.damage {
            if damage.outcome != Outcome::Found {
                continue;
            }
            let right = match &damage.subject {
                Subject::Object(id) => {
                    objects::check_object(self.store, id, None, false, &()).is_ok()
                }
                Subject::Layer(id) => self.layer_is_right(id),
                Subject::Image(id) => self.store.image_files(id).is_ok(),
                _ => false,
            };
            if right {
                damage.outcome = Outcome::Repaired(how.to_owned());
            }
        }
    }

    fn layer_is_right(&self, id: &DiffId) -> bool {
        let length = check_split(self.store, id, |_, _| {});
        let info = self.store.layer(id);
        self.store.layer_index(id).is_ok()
            && matches!((length, info), (Ok(length), Ok(info)) if info.tar_size == length)
    }

    /// Makes damaged layers from their archives, where these can be made.
    fn rebuild(&self, report: &Report) -> Vec<String> {
        let damaged = report
            .damage
            .iter()
            .filter(|damage| damage.outcome == Outcome::Found);
        let layers: BTreeSet<DiffId> = damaged
            .filter_map(|damage| match damage.subject {
                Subject::Layer(id) if self.store.layer_dir(&id).exists() => Some(id),
                _ => None,
            })
            .collect();
        let rebuilt = layers.iter().map(|id| rebuild_layer(self.store, id));
        rebuilt
            .filter_map(|result| Some(result.err()?.to_string()))
            .collect()
    }

    /// The images that damage is in, and where they came from.
    fn sources(&self, report: &Report) -> Vec<(ImageId, Option<Source>)> {
        let ids = self.store.digests_in("images").unwrap_or_default();
        let ids = ids.into_iter().map(ImageId);
        ids.filter(|id| concerns(report, id, self.store))
            .map(|id| (id, self.store.source(&id).ok().flatten()))
            .collect()
    }

    /// Moves damaged objects out of the way of a later import. Damaged layers are replaced by one.
    fn give_up(&mut self, report: &mut Report) {
        for damage in &mut report.damage {
            if damage.outcome != Outcome::Found {
                continue;
            }
            match &damage.subject {
                Subject::Object(id) if damage.path.symlink_metadata().is_ok() => {
                    damage.outcome = self.quarantine(&damage.path, Some(id));
                }
                Subject::Object(_) | Subject::Layer(_) => {
                    damage.outcome = Outcome::Failed("it has to be imported again".into());
                }
                _ => {}
            }
        }
    }

    /// Moves something to the quarantine, unless it is an object that a running import relies on.
    fn quarantine(&mut self, path: &Path, object: Option<&ObjectId>) -> Outcome {
        let moved = || -> Result<PathBuf, StoreError> {
            let lock = self.store.lock_exclusive()?;
            if let Some(id) = object
                && self.store.needs(&lock)?.contains(id)
            {
                return Err(StoreError::InUse {
                    what: format!("object {id}"),
                    by: vec!["an import that runs now: repair again when it is done".into()],
                });
            }
            let relative = path.strip_prefix(self.store.root()).unwrap_or(path);
            let to = self.bin.join(relative);
            let rename = || -> io::Result<()> {
                let (from, name) = self.open_parent(path)?;
                let bin = self.open_dir(to.parent().unwrap_or(&self.bin), true)?;
                Ok(renameat(from, name, bin, name)?)
            };
            rename().map_err(StoreError::io("move", path))?;
            path.parent().map_or(Ok(()), sync_dir)?;
            Ok(to)
        };
        match moved() {
            Ok(to) => Outcome::Quarantined(to),
            Err(error) => Outcome::Failed(error.to_string()),
        }
    }

    /// Moves a damaged image there, with its names, which would stand for nothing.
    fn quarantine_image(&mut self, id: &ImageId) -> Outcome {
        let names = self.store.names().unwrap_or_default();
        for (name, _) in names.iter().filter(|(_, other)| other == id) {
            if let Outcome::Failed(why) = self.quarantine(&self.store.ref_path(name), None) {
                return Outcome::Failed(why);
            }
        }
        self.quarantine(&self.store.image_dir(id), None)
    }
}

/// Whether damage that is not settled has to do with an image.
fn concerns(report: &Report, id: &ImageId, store: &Store) -> bool {
    let layers = store
        .read_image(id)
        .map(|image| image.layers)
        .unwrap_or_default();
    report
        .damage
        .iter()
        .filter(|damage| damage.outcome == Outcome::Found)
        .any(|damage| match &damage.subject {
            Subject::Image(other) => other == id,
            Subject::Object(_) | Subject::Layer(_) => {
                damage.layers.iter().any(|layer| layers.contains(layer))
            }
            _ => false,
        })
}

/// Makes the files of a layer from its archive, which is made from its tarsplit and the objects.
fn rebuild_layer(store: &Store, id: &DiffId) -> Result<(), Box<dyn Error>> {
    let (reader, writer) = io::pipe()?;
    let txn = Transaction::begin(store)?;
    let name = format!("the archive of layer {id}");
    std::thread::scope(|scope| {
        let exported = scope.spawn(|| export_layer(store, id, BufWriter::new(writer)));
        let staged = stage_layer(&txn, reader, &name, &ImportOptions::default());
        let exported = exported.join();
        exported.map_err(|_| "making an archive failed")??;
        let found = staged?.diff_id;
        if found != *id {
            return Err(format!("the archive of layer {id} comes out as {found}").into());
        }
        Ok::<_, Box<dyn Error>>(())
    })?;
    txn.commit()?;
    Ok(())
}
