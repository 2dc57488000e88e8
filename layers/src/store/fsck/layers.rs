//! Layers and merged indexes.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::{Check, Damage, Expected, Subject};
use crate::digest::{ChainId, DiffId, Digest, ObjectId};
use crate::index::{Data, Index, IndexKind};
use crate::store::{Store, StoreError, layers};
use crate::tar::{check_split, export_layer};

impl Check<'_> {
    /// Checks all layers, and collects what objects they need.
    pub(super) fn layers(&mut self) -> Result<(), StoreError> {
        let ids = self.store.layers()?;
        self.report.layers = ids.len() as u64;
        let next = AtomicUsize::new(0);
        let results = Mutex::new((Vec::new(), HashMap::new()));
        let (store, deep) = (self.store, self.options.deep);
        std::thread::scope(|scope| {
            for _ in 0..self.options.threads.clamp(1, 256).min(ids.len()) {
                scope.spawn(|| {
                    while let Some(id) = ids.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let (problems, objects) = check_layer(store, id, deep);
                        let mut results = results.lock();
                        results.0.extend(problems);
                        for (object, size) in objects {
                            results.1.entry(object).or_insert(Expected { size });
                        }
                    }
                });
            }
        });
        let (damage, expected) = results.into_inner();
        self.report.damage.extend(damage);
        self.expected = expected;
        Ok(())
    }

    /// Checks all merged indexes.
    pub(super) fn merged(&mut self) -> Result<(), StoreError> {
        let dir = self.store.root().join("merged");
        for entry in fs::read_dir(&dir).map_err(StoreError::io("read", &dir))? {
            let entry = entry.map_err(StoreError::io("read", &dir))?;
            let (path, name) = (entry.path(), entry.file_name());
            let Some(chain) = name.to_str().and_then(chain_of) else {
                let problem = "it is not a merged index that this lamina knows";
                self.found(Damage::new(Subject::Stray, path, problem));
                continue;
            };
            self.report.merged += 1;
            let problem = match Index::open(&path) {
                Ok(index)
                    if index.kind() == IndexKind::Merged && index.identity() == Some(chain.0) =>
                {
                    continue;
                }
                Ok(_) => "it is the index of something else".to_owned(),
                Err(error) => error.to_string(),
            };
            self.found(Damage::new(Subject::Merged, path, problem));
        }
        Ok(())
    }
}

fn chain_of(name: &str) -> Option<ChainId> {
    let hex = name.strip_suffix("-v1.index")?;
    Digest::from_hex(hex).ok().map(ChainId)
}

type Objects = Vec<(ObjectId, Option<u64>)>;

/// What is wrong with a layer's own files, and what objects it needs, as far as that can be known.
fn check_layer(store: &Store, id: &DiffId, deep: bool) -> (Vec<Damage>, Objects) {
    let dir = store.layer_dir(id);
    let mut problems = Vec::new();
    let mut say = |name: &str, problem: String| {
        let path = dir.join(name);
        problems.push(Damage::new(Subject::Layer(*id), path, problem).in_layer(*id));
    };
    let mut objects: HashMap<ObjectId, Option<u64>> = HashMap::new();
    let index = store
        .layer_index(id)
        .map_err(|error| say(layers::INDEX, what(error)));
    let info = store
        .layer(id)
        .map_err(|error| say(layers::INFO, what(error)));
    let split = check_split(store, id, |object, size| {
        objects.insert(object, Some(size));
    });
    match &split {
        Ok(length) => {
            if let Ok(info) = &info
                && info.tar_size != *length
            {
                let said = info.tar_size;
                say(
                    layers::INFO,
                    format!("it says that the archive has {said} bytes, the tarsplit {length}"),
                );
            }
        }
        Err(error) => say(layers::TARSPLIT, error.to_string()),
    }
    if let Ok(index) = &index {
        let split_is_good = split.is_ok();
        let other = add_objects_of(index, &mut objects, split_is_good);
        if let Some(problem) = other {
            say(layers::INDEX, problem);
        }
    }
    if deep
        && index.is_ok()
        && split.is_ok()
        && let Err(error) = export_layer(store, id, io::sink())
    {
        say(layers::TARSPLIT, error.to_string());
    }
    (problems, objects.into_iter().collect())
}

/// Adds the objects that the index refers to. Says so if the archive has no such one.
fn add_objects_of(
    index: &Index,
    objects: &mut HashMap<ObjectId, Option<u64>>,
    split_is_good: bool,
) -> Option<String> {
    let known: HashSet<ObjectId> = objects.keys().copied().collect();
    let mut problem = None;
    for inode in index.inodes() {
        let Data::Object(object) = inode.data() else {
            continue;
        };
        if split_is_good && !known.contains(&object) {
            problem = Some(format!(
                "it refers to object {object}, the archive does not"
            ));
        }
        let size = objects.entry(object).or_insert(Some(inode.size()));
        if split_is_good && *size != Some(inode.size()) {
            let size = inode.size();
            problem = Some(format!("it gives object {object} a size of {size} bytes"));
        }
    }
    problem
}

/// The problem alone: path and layer are told apart from it.
fn what(error: StoreError) -> String {
    match error {
        StoreError::LayerIndex { source, .. } => source.to_string(),
        StoreError::LayerFile { problem, .. } => problem,
        StoreError::NoLayer(_) => "it is missing".into(),
        StoreError::Io { source, .. } => format!("it cannot be read: {source}"),
        error => error.to_string(),
    }
}

/// For each layer and each of these objects the path of a file with it.
pub(super) fn files_of(
    store: &Store,
    objects: &BTreeSet<ObjectId>,
) -> HashMap<(DiffId, ObjectId), String> {
    let mut files = HashMap::new();
    if objects.is_empty() {
        return files;
    }
    for layer in store.layers().unwrap_or_default() {
        let Ok(index) = store.layer_index(&layer) else {
            continue;
        };
        for inode in index.inodes() {
            if let Data::Object(object) = inode.data()
                && objects.contains(&object)
            {
                let path = index.path_of(inode.ino());
                let path = String::from_utf8_lossy(&path).into_owned();
                files.entry((layer, object)).or_insert(path);
            }
        }
    }
    files
}
