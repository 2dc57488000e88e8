//! Adding objects and layers to a store, all or nothing.
//!
//! Everything is written below one staging directory. [`Transaction::commit`] then makes it
//! durable and renames it into place:
//!
//! 1. `syncfs`: the contents of all new files are on disk;
//! 2. objects are renamed into place, and those renames made durable;
//! 3. layers are renamed into place, and those renames made durable; kept blobs likewise.
//!
//! A crash before 3 leaves objects that nothing refers to, which the garbage collection removes.
//! A transaction that is dropped leaves nothing.
//!
//! Objects that the store has already are not written. They do not go away meanwhile: they are
//! noted down (`needs.rs`). They need no further care for durability either: whoever published
//! them may not have made their names durable yet, but step 1 does.
//!
//! Layers that were committed stay, referred to or not, until the [`Store`] is dropped.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, RenameFlags, fchmod, fstat, ftruncate, mkdirat, openat, renameat,
    renameat_with, syncfs, unlinkat,
};
use rustix::io::{Errno, pwrite};

use super::needs::Needs;
use super::objects;
use super::staging::Staging;
use super::{BlobStage, LayerInfo, Store, StoreError, sync_dir};
use crate::digest::{DiffId, Digest, ObjectId};
use crate::index::Index;
use crate::tar::split_objects;

/// Objects and layers on their way into a store. Several threads may add to it.
pub struct Transaction<'s> {
    store: &'s Store,
    staging: Staging,
    objects: OwnedFd,
    needs: Needs,
    /// Whether the umask takes permissions from new files that objects must have.
    fix_mode: bool,
    /// Number of the next temporary name.
    next: AtomicU64,
    /// Layers that are ready, without those that were there already in this transaction.
    layers: Mutex<BTreeSet<DiffId>>,
    new_objects: AtomicU64,
    new_bytes: AtomicU64,
}

/// What a transaction added to the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// Layers that the store did not have, or had damaged.
    pub layers: Vec<DiffId>,
    /// Number of objects that the store did not have.
    pub objects: u64,
    /// Their sizes together, in bytes.
    pub object_bytes: u64,
}

/// An object that is being written in pieces, before its digest is known.
pub struct LargeObject {
    name: String,
    file: File,
}

/// The directory in which the files of a new layer are written.
pub struct LayerStage {
    dir: PathBuf,
}

impl LayerStage {
    /// Path of the layer's file called `name`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

impl<'s> Transaction<'s> {
    /// Starts one.
    ///
    /// # Errors
    /// When the store is open for reading only, or a system call fails.
    pub fn begin(store: &'s Store) -> Result<Self, StoreError> {
        store.for_writing()?;
        let staging = Staging::create(&store.root().join("staging"))?;
        for name in ["objects", "layers", "blobs"] {
            let path = staging.path().join(name);
            fs::create_dir(&path).map_err(StoreError::io("create", path))?;
        }
        let path = staging.path().join("objects");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let objects =
            openat(CWD, &path, flags, Mode::empty()).map_err(StoreError::io("open", &path))?;
        let needs = Needs::create(staging.path())?;
        let fix_mode = mode_of_new_file(staging.path())? != MODE;
        Ok(Self {
            store,
            staging,
            objects,
            needs,
            fix_mode,
            next: AtomicU64::new(0),
            layers: Mutex::default(),
            new_objects: AtomicU64::new(0),
            new_bytes: AtomicU64::new(0),
        })
    }

    /// The store.
    pub fn store(&self) -> &'s Store {
        self.store
    }

    /// A file for what does not stay, where there is room for what does.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn scratch(&self) -> Result<File, StoreError> {
        let dir = self.staging.path();
        tempfile::tempfile_in(dir).map_err(StoreError::io("create a file in", dir))
    }

    /// Adds an object of `size` bytes, unless it is there: `pieces` are its contents where they are
    /// not holes, with their offsets.
    pub(crate) fn put_object<'p>(
        &self,
        id: &ObjectId,
        size: u64,
        pieces: impl Iterator<Item = (u64, &'p [u8])>,
    ) -> Result<(), StoreError> {
        if self.reuse(id, size)? {
            return Ok(());
        }
        let name = id.0.hex();
        let Some(file) = self.create_object(&name)? else {
            return Ok(());
        };
        let write = || -> io::Result<()> {
            let mut end = 0;
            for (offset, bytes) in pieces {
                write_all_at(file.as_fd(), bytes, offset)?;
                end = offset + bytes.len() as u64;
            }
            if end < size {
                ftruncate(&file, size)?;
            }
            Ok(())
        };
        write().map_err(StoreError::io("write", self.staging.path().join(name)))?;
        self.count_object(size);
        Ok(())
    }

    /// Whether the store has an object; if so it stays until the transaction ends.
    fn reuse(&self, id: &ObjectId, size: u64) -> Result<bool, StoreError> {
        // Most objects are new: no lock for them.
        if !self.store.has_object(id, size) || self.store.distrusted.lock().objects.contains(id) {
            return Ok(false);
        }
        let lock = self.store.lock_shared()?;
        let there = self.store.has_object(id, size);
        if there {
            self.needs.add(&[*id], &lock)?;
        }
        Ok(there)
    }

    /// Starts an object of `size` bytes whose digest is not known yet; what is not written of it
    /// will be holes if it is `sparse`.
    pub(crate) fn start_large(&self, size: u64, sparse: bool) -> Result<LargeObject, StoreError> {
        let name = format!("part-{}", self.next.fetch_add(1, Ordering::Relaxed));
        let path = self.staging.path().join(&name);
        let file = self
            .create_object(&name)?
            .ok_or_else(|| StoreError::io("create", &path)(io::Error::from(Errno::EXIST)))?;
        if sparse {
            ftruncate(&file, size).map_err(StoreError::io("write", path))?;
        }
        Ok(LargeObject { name, file })
    }

    /// Writes a piece of a large object. Several threads may do so.
    pub(crate) fn write_large(
        &self,
        object: &LargeObject,
        bytes: &[u8],
        offset: u64,
    ) -> Result<(), StoreError> {
        write_all_at(object.file.as_fd(), bytes, offset).map_err(StoreError::io(
            "write",
            self.staging.path().join(&object.name),
        ))
    }

    /// Names a large object, or drops it if the store has it. What is written to it after that
    /// still counts.
    pub(crate) fn finish_large(
        &self,
        object: &LargeObject,
        id: &ObjectId,
        size: u64,
    ) -> Result<(), StoreError> {
        let failed = StoreError::io("rename", self.staging.path().join(&object.name));
        let name = object.name.as_str();
        if self.reuse(id, size)? {
            return unlinkat(&self.objects, name, AtFlags::empty()).map_err(failed);
        }
        let flags = RenameFlags::NOREPLACE;
        match renameat_with(&self.objects, name, &self.objects, id.0.hex(), flags) {
            Ok(()) => {
                self.count_object(size);
                Ok(())
            }
            Err(Errno::EXIST) => unlinkat(&self.objects, name, AtFlags::empty()).map_err(failed),
            // A filesystem without the flag.
            Err(Errno::INVAL) => {
                self.count_object(size);
                renameat(&self.objects, name, &self.objects, id.0.hex()).map_err(failed)
            }
            Err(errno) => Err(failed(errno)),
        }
    }

    /// Makes a directory for the files of a layer.
    pub(crate) fn new_layer(&self) -> Result<LayerStage, StoreError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let dir = self.staging.path().join(format!("layer-{number}"));
        fs::create_dir(&dir).map_err(StoreError::io("create", &dir))?;
        Ok(LayerStage { dir })
    }

    /// Adds a layer whose files are all written but for `layer.json`.
    pub(crate) fn add_layer(&self, stage: &LayerStage, info: &LayerInfo) -> Result<(), StoreError> {
        let path = stage.file(super::layers::INFO);
        fs::write(&path, info.to_json()).map_err(StoreError::io("write", &path))?;
        for name in super::layers::FILES {
            let path = stage.file(name);
            rustix::fs::chmod(&path, MODE).map_err(StoreError::io("change the mode of", &path))?;
        }
        let mut layers = self.layers.lock();
        if layers.insert(info.diff_id) {
            let to = self.staged_layer(&info.diff_id);
            fs::rename(&stage.dir, &to).map_err(StoreError::io("rename", &stage.dir))?;
        }
        Ok(())
    }

    /// Starts a blob: the file of a layer as it came, compressed.
    pub(crate) fn new_blob(&self) -> Result<BlobStage, StoreError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        BlobStage::create(self.staging.path().join(format!("blob-{number}")), MODE)
    }

    /// Adds a blob whose digest was found to be this.
    pub(crate) fn add_blob(&self, stage: &BlobStage, digest: &Digest) -> Result<(), StoreError> {
        let to = self.staging.path().join("blobs").join(digest.hex());
        fs::rename(stage.path(), &to).map_err(StoreError::io("rename", stage.path()))
    }

    /// Opens the index of a layer that was added.
    ///
    /// # Errors
    /// When it was not added, or cannot be read back.
    pub fn layer_index(&self, id: &DiffId) -> Result<Index, StoreError> {
        let path = self.staged_layer(id).join(super::INDEX);
        Index::open(&path).map_err(|source| StoreError::LayerIndex {
            id: *id,
            path,
            source,
        })
    }

    /// Opens an object of `size` bytes that was added, or that the store has.
    ///
    /// # Errors
    /// As [`Store::open_object`].
    pub fn open_object(&self, id: &ObjectId, size: u64) -> Result<File, StoreError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(&self.objects, id.0.hex(), flags, Mode::empty()) {
            Ok(fd) => Ok(File::from(fd)),
            Err(Errno::NOENT) => self.store.open_object(id, size),
            Err(errno) => {
                let path = self.staging.path().join("objects").join(id.0.hex());
                Err(StoreError::io("open", path)(errno))
            }
        }
    }

    /// Takes a layer out again that was added. Its objects stay, for another layer that has them too.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn drop_layer(&self, id: &DiffId) -> Result<(), StoreError> {
        let mut layers = self.layers.lock();
        if layers.remove(id) {
            let path = self.staged_layer(id);
            fs::remove_dir_all(&path).map_err(StoreError::io("remove", path))?;
        }
        Ok(())
    }

    /// Drops all layers and blobs but these, and the objects that none of these layers has.
    pub(crate) fn retain(
        &self,
        layers: &BTreeSet<DiffId>,
        blobs: &BTreeSet<Digest>,
    ) -> Result<(), StoreError> {
        let mut staged = self.layers.lock();
        staged.retain(|id| layers.contains(id));
        let mut needed = BTreeSet::new();
        for id in &*staged {
            let split = self.staged_layer(id).join(super::TARSPLIT);
            split_objects(&split, id, |object| {
                needed.insert(object);
            })?;
        }
        for id in self.staged_objects()? {
            if !needed.contains(&id) {
                let path = self.staging.path().join(id.0.hex());
                unlinkat(&self.objects, id.0.hex(), AtFlags::empty())
                    .map_err(StoreError::io("remove", path))?;
            }
        }
        for digest in self.staged_digests("blobs")? {
            if !blobs.contains(&digest) {
                let path = self.staging.path().join("blobs").join(digest.hex());
                fs::remove_file(&path).map_err(StoreError::io("remove", path))?;
            }
        }
        Ok(())
    }

    /// Makes everything durable and puts it into the store.
    ///
    /// # Errors
    /// When a system call fails. Nothing but objects that nothing refers to may be left then.
    pub fn commit(self) -> Result<Committed, StoreError> {
        let objects = self.staged_objects()?;
        let blobs = self.staged_digests("blobs")?;
        if objects.is_empty() && blobs.is_empty() && self.layers.lock().is_empty() {
            return Ok(Committed::default());
        }
        let prefixes = self.make_object_dirs(&objects)?;
        self.sync_all()?;
        // Nothing refers to them until the layers are there.
        self.needs.add(&objects, &self.store.lock_shared()?)?;
        for id in &objects {
            let path = self.store.object_path(id);
            renameat(
                &self.objects,
                id.0.hex(),
                self.store.objects_dir(),
                objects::name(id),
            )
            .map_err(StoreError::io("create", path))?;
        }
        self.sync_object_names(&prefixes)?;
        Ok(Committed {
            layers: self.publish_layers(&blobs)?,
            objects: self.new_objects.load(Ordering::Relaxed),
            object_bytes: self.new_bytes.load(Ordering::Relaxed),
        })
    }

    /// Puts the layers into the store that it does not have exactly so, and the blobs. All of them stay,
    /// also while nothing refers to them yet.
    fn publish_layers(&self, blobs: &[Digest]) -> Result<Vec<DiffId>, StoreError> {
        let lock = self.store.lock_shared()?;
        let staged: Vec<DiffId> = self.layers.lock().iter().copied().collect();
        self.store.keep(&staged, blobs, None, &lock)?;
        let layers = self.layers_to_publish()?;
        for id in &layers {
            publish_dir(&self.staged_layer(id), &self.store.layer_dir(id))?;
        }
        sync_dir(&self.store.root().join("layers"))?;
        self.publish_blobs(blobs)?;
        Ok(layers)
    }

    fn count_object(&self, size: u64) {
        self.new_objects.fetch_add(1, Ordering::Relaxed);
        self.new_bytes.fetch_add(size, Ordering::Relaxed);
    }

    fn staged_layer(&self, id: &DiffId) -> PathBuf {
        self.staging.path().join("layers").join(id.0.hex())
    }

    /// Creates a file among the staged objects; `None` if it is there.
    fn create_object(&self, name: &str) -> Result<Option<File>, StoreError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = match openat(&self.objects, name, flags, MODE) {
            Ok(fd) => fd,
            Err(Errno::EXIST) => return Ok(None),
            Err(errno) => {
                return Err(StoreError::io("create", self.staging.path().join(name))(
                    errno,
                ));
            }
        };
        if self.fix_mode {
            let path = self.staging.path().join(name);
            fchmod(&fd, MODE).map_err(StoreError::io("change the mode of", path))?;
        }
        Ok(Some(File::from(fd)))
    }

    /// The layers that the store does not have exactly as they are here.
    fn layers_to_publish(&self) -> Result<Vec<DiffId>, StoreError> {
        let mut publish = Vec::new();
        for id in &*self.layers.lock() {
            let (here, there) = (self.staged_layer(id), self.store.layer_dir(id));
            let mut same = true;
            for name in super::layers::FILES {
                same &= same_contents(&here.join(name), &there.join(name))?;
            }
            if !same {
                publish.push(*id);
            }
        }
        Ok(publish)
    }

    /// The objects that are staged, sorted.
    fn staged_objects(&self) -> Result<Vec<ObjectId>, StoreError> {
        let digests = self.staged_digests("objects")?;
        Ok(digests.into_iter().map(ObjectId).collect())
    }

    /// What is staged in a directory under a digest, sorted. Other names are of what was given up.
    fn staged_digests(&self, dir: &str) -> Result<Vec<Digest>, StoreError> {
        let path = self.staging.path().join(dir);
        let mut digests = Vec::new();
        for entry in fs::read_dir(&path).map_err(StoreError::io("read", &path))? {
            let name = entry.map_err(StoreError::io("read", &path))?.file_name();
            digests.extend(name.to_str().and_then(|hex| Digest::from_hex(hex).ok()));
        }
        digests.sort_unstable();
        Ok(digests)
    }

    /// Renames blobs into place, and makes their names durable.
    fn publish_blobs(&self, blobs: &[Digest]) -> Result<(), StoreError> {
        if blobs.is_empty() {
            return Ok(());
        }
        for digest in blobs {
            let from = self.staging.path().join("blobs").join(digest.hex());
            let to = self.store.blob_path(digest);
            fs::rename(&from, &to).map_err(StoreError::io("create", to))?;
        }
        sync_dir(&self.store.root().join("blobs"))
    }

    /// Makes the directories that the objects go to.
    fn make_object_dirs(&self, objects: &[ObjectId]) -> Result<BTreeSet<u8>, StoreError> {
        let prefixes: BTreeSet<u8> = objects.iter().map(|id| id.0.0[0]).collect();
        for prefix in &prefixes {
            let name = format!("{prefix:02x}");
            let mode = Mode::RWXU | Mode::RWXG | Mode::RWXO;
            match mkdirat(self.store.objects_dir(), &name, mode) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => {
                    let path = self.store.root().join("objects").join(name);
                    return Err(StoreError::io("create", path)(errno));
                }
            }
        }
        Ok(prefixes)
    }

    fn sync_all(&self) -> Result<(), StoreError> {
        syncfs(self.staging.fd())
            .map_err(StoreError::io("sync the filesystem of", self.store.root()))
    }

    /// Makes the names of objects durable: of many, with one call for the whole filesystem.
    fn sync_object_names(&self, prefixes: &BTreeSet<u8>) -> Result<(), StoreError> {
        if prefixes.len() > 4 {
            return self.sync_all();
        }
        let objects = self.store.root().join("objects");
        for prefix in prefixes {
            sync_dir(&objects.join(format!("{prefix:02x}")))?;
        }
        sync_dir(&objects)
    }
}

/// Permissions of everything in a store: nobody writes to it again.
const MODE: Mode = Mode::RUSR.union(Mode::RGRP).union(Mode::ROTH);

/// The permissions that a new file gets that is created with [`MODE`].
fn mode_of_new_file(dir: &Path) -> Result<Mode, StoreError> {
    let path = dir.join("probe");
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = openat(CWD, &path, flags, MODE).map_err(StoreError::io("create", &path))?;
    let stat = fstat(&file).map_err(StoreError::io("examine", &path))?;
    fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
    Ok(Mode::from_raw_mode(stat.st_mode))
}

fn write_all_at(
    file: std::os::fd::BorrowedFd<'_>,
    mut bytes: &[u8],
    mut offset: u64,
) -> io::Result<()> {
    while !bytes.is_empty() {
        let count = match pwrite(file, bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => count,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        };
        bytes = bytes.get(count..).unwrap_or_default();
        offset += count as u64;
    }
    Ok(())
}

/// Whether two files have the same bytes; `false` if the second cannot be read.
fn same_contents(here: &Path, there: &Path) -> Result<bool, StoreError> {
    use std::io::Read;
    let mut a = File::open(here).map_err(StoreError::io("open", here))?;
    let Ok(mut b) = File::open(there) else {
        return Ok(false);
    };
    let len = |file: &File| file.metadata().map(|metadata| metadata.len());
    if len(&a).map_err(StoreError::io("examine", here))? != len(&b).unwrap_or(u64::MAX) {
        return Ok(false);
    }
    let (mut buffer_a, mut buffer_b) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let count = a
            .read(&mut buffer_a)
            .map_err(StoreError::io("read", here))?;
        let (Some(part_a), Some(part_b)) = (buffer_a.get(..count), buffer_b.get_mut(..count))
        else {
            return Ok(false);
        };
        if count == 0 {
            return Ok(true);
        }
        if b.read_exact(part_b).is_err() || part_a != part_b {
            return Ok(false);
        }
    }
}

/// Renames a staged directory into place. One that is there already, damaged or published by
/// another process meanwhile, is exchanged for it and goes with the staging directory.
pub(super) fn publish_dir(from: &Path, to: &Path) -> Result<(), StoreError> {
    loop {
        match fs::rename(from, to) {
            Ok(()) => return Ok(()),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::DirectoryNotEmpty
                        | io::ErrorKind::AlreadyExists
                        | io::ErrorKind::NotADirectory
                ) => {}
            Err(error) => return Err(StoreError::io("create", to)(error)),
        }
        match renameat_with(CWD, from, CWD, to, RenameFlags::EXCHANGE) {
            Ok(()) => return Ok(()),
            Err(Errno::NOENT) => {}
            // A filesystem that cannot exchange: the old one goes a moment before.
            Err(_) => {
                fs::rename(to, from.with_extension("old"))
                    .map_err(StoreError::io("replace", to))?;
            }
        }
    }
}
