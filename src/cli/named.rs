//! Uppers that the store keeps under a name: `mounts/NAME/{upper,work,mount.json}`.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use lamina_layers::store::{Store, lock_dir};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::Usage;
use crate::mount::json_path;
use crate::sys;
use crate::union::Config;
use crate::upper::UpperDirs;

/// A named upper that is going to be mounted. One that was made for that goes when this is dropped
/// unless [`Named::set_throw_away`] was told otherwise: a mount that fails leaves nothing.
pub struct Named {
    store: Arc<Store>,
    name: String,
    is_new: bool,
    throw_away: bool,
    /// Its directory, locked: nobody else mounts or removes it.
    lock: File,
}

/// What `mount.json` says: what the upper belongs on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// The image as the user named it.
    pub image: Option<String>,
    /// Its layers, bottom first.
    pub layers: Vec<String>,
    /// Plain directories above it, topmost first.
    #[serde(with = "json_path::list")]
    pub lowers: Vec<PathBuf>,
}

const FILE: &str = "mount.json";
const EXCLUSIVE: FlockOperation = FlockOperation::NonBlockingLockExclusive;

impl Named {
    /// The upper of a name, or a new one under a new name.
    pub fn open(
        store: &Arc<Store>,
        name: Option<&str>,
        image: Option<&str>,
        config: &Config,
    ) -> anyhow::Result<Self> {
        let base = Base {
            image: image.map(str::to_owned),
            layers: layers_of(config),
            lowers: config.lowers.clone(),
        };
        let Some(name) = name else {
            return Self::open_new(store, &base);
        };
        let dir = store.mount_dir(name);
        let lock = loop {
            make_dir(&dir)?;
            match lock_dir(&dir, EXCLUSIVE)? {
                Some(lock) => break lock,
                None if dir.exists() => bail!(
                    "the changes named '{name}' are in use by another live mount, or are being \
                     thrown away ('lamina ps' lists mounts)"
                ),
                // Somebody removed them just now.
                None => {}
            }
        };
        if !dir.join(FILE).exists() {
            return Self::fill(store, name, lock, &base);
        }
        let kept = read_base(&dir)?;
        if (&kept.layers, &kept.lowers) != (&base.layers, &base.lowers) {
            let of = kept.image.as_deref().unwrap_or("other directories");
            bail!("the changes named '{name}' belong to {of}: choose another --name");
        }
        Ok(Self {
            store: Arc::clone(store),
            name: name.to_owned(),
            is_new: false,
            throw_away: false,
            lock,
        })
    }

    fn open_new(store: &Arc<Store>, base: &Base) -> anyhow::Result<Self> {
        let stem = stem_of(base.image.as_deref());
        for number in 1..u32::MAX {
            let name = format!("{stem}-{number}");
            let dir = store.mount_dir(&name);
            // Making the directory takes the name, unless somebody who asked for it locks it first.
            if make_dir(&dir)?
                && let Some(lock) = lock_dir(&dir, EXCLUSIVE)?
            {
                return Self::fill(store, &name, lock, base);
            }
        }
        bail!("all names of mounts are taken")
    }

    /// Fills the directory of a name, which is locked.
    fn fill(store: &Arc<Store>, name: &str, lock: File, base: &Base) -> anyhow::Result<Self> {
        let dir = store.mount_dir(name);
        let failed = || format!("cannot make {dir:?}");
        let named = Self {
            store: Arc::clone(store),
            name: name.to_owned(),
            is_new: true,
            throw_away: true,
            lock,
        };
        // What somebody left who was killed here.
        for left in sys::dir::names(&named.lock).with_context(failed)? {
            sys::dir::remove_tree(named.lock.as_fd(), &left).with_context(failed)?;
        }
        for part in ["upper", "work"] {
            fs::create_dir(dir.join(part)).with_context(failed)?;
        }
        // Last: a directory with this file in it is complete, and all of it is on the disk when
        // anything is that is changed in it.
        let write = || -> io::Result<()> {
            let temp = dir.join("mount.json.new");
            let mut file = File::create(&temp)?;
            file.write_all(&serde_json::to_vec_pretty(base)?)?;
            file.sync_all()?;
            fs::rename(&temp, dir.join(FILE))?;
            named.lock.sync_all()?;
            dir.parent()
                .map_or(Ok(()), |all| File::open(all)?.sync_all())
        };
        write().with_context(failed)?;
        Ok(named)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it was made just now.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// Whether it goes when this is dropped.
    pub fn set_throw_away(&mut self, throw_away: bool) {
        self.throw_away = throw_away;
    }

    /// Its directories.
    pub fn dirs(&self) -> UpperDirs {
        dirs(&self.store, &self.name)
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        if self.throw_away
            && let Err(error) = remove_dir(&self.store, &self.name)
        {
            tracing::error!("{error:#}");
        }
    }
}

/// What a new name starts with: the image's own name, without registry, path and tag.
fn stem_of(image: Option<&str>) -> String {
    let image = image.unwrap_or("mount");
    let last = image.rsplit('/').next().unwrap_or(image);
    let stem = last.split([':', '@']).next().unwrap_or(last);
    let legal = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let stem: String = stem.chars().filter(legal).take(20).collect();
    let stem = stem.trim_matches(['-', '_', '.']);
    if stem.is_empty() { "mount" } else { stem }.to_owned()
}

/// Where the changes of a name are and what they belong on; `None` if there are none.
pub fn find(store: &Store, name: &str) -> anyhow::Result<Option<(Base, UpperDirs)>> {
    if !exists(store, name) {
        return Ok(None);
    }
    Ok(Some((
        read_base(&store.mount_dir(name))?,
        dirs(store, name),
    )))
}

/// Whether a store has changes of a name, damaged or not.
pub fn exists(store: &Store, name: &str) -> bool {
    check_name(name).is_ok() && store.mount_dir(name).join(FILE).exists()
}

/// Where the changes of a name are.
pub fn dirs(store: &Store, name: &str) -> UpperDirs {
    let dir = store.mount_dir(name);
    UpperDirs {
        upper: dir.join("upper"),
        work: dir.join("work"),
    }
}

/// The names of all changes that a store keeps, sorted.
pub fn all(store: &Store) -> anyhow::Result<Vec<String>> {
    let dir = store.root().join("mounts");
    let entries = match fs::read_dir(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        result => result.with_context(|| format!("cannot read {dir:?}"))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read {dir:?}"))?;
        let name = entry.file_name().into_string().ok();
        names.extend(name.filter(|_| entry.path().join(FILE).exists()));
    }
    names.sort();
    Ok(names)
}

/// Throws away the changes of a name that is not mounted.
pub fn remove(store: &Store, name: &str) -> anyhow::Result<()> {
    if !exists(store, name) {
        let root = store.root();
        bail!(
            "there are no changes named '{name}' in {root:?} ('lamina ps --all' lists what there is)"
        );
    }
    // Held until it is gone. A commit locks the upper alone.
    let dir = lock_dir(&store.mount_dir(name), EXCLUSIVE)?;
    let upper = dirs(store, name).upper;
    if dir.is_none() || (upper.exists() && lock_dir(&upper, EXCLUSIVE)?.is_none()) {
        bail!("'{name}' is mounted, or is being committed: 'lamina umount {name}' first");
    }
    remove_dir(store, name)
}

/// Removes the directory of a name, whatever permissions the directories in it have. It goes in one step,
/// so that nobody ever mounts a part of it; what is left of it in staging if we are killed, the next command
/// clears away.
fn remove_dir(store: &Store, name: &str) -> anyhow::Result<()> {
    let dir = store.mount_dir(name);
    let failed = || format!("cannot remove {dir:?}");
    let bin = store.scratch().with_context(failed)?;
    match fs::rename(&dir, bin.path().join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => {
            result.with_context(failed)?;
            sys::dir::remove_tree(bin.fd(), name.as_bytes()).with_context(failed)
        }
    }
}

/// Makes the directory of a name; whether it was not there.
fn make_dir(dir: &Path) -> anyhow::Result<bool> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        result => result
            .map(|()| true)
            .with_context(|| format!("cannot make {dir:?}")),
    }
}

fn read_base(dir: &Path) -> anyhow::Result<Base> {
    let path = dir.join(FILE);
    let text = fs::read(&path).with_context(|| format!("cannot read {path:?}"))?;
    serde_json::from_slice(&text).with_context(|| format!("{path:?} is damaged"))
}

fn layers_of(config: &Config) -> Vec<String> {
    let layers = config.image.iter().flat_map(|image| &image.layers);
    layers.map(ToString::to_string).collect()
}

/// Names are what file names safely are: letters, digits, `.`, `_` and `-`, not starting with a
/// dot or a dash.
pub fn check_name(name: &str) -> Result<(), Usage> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty()
        || name.len() > 128
        || name.starts_with(['.', '-'])
        || !name.chars().all(legal)
    {
        return Err(Usage(format!(
            "'{name}' cannot be a mount's name: use letters, digits, '.', '_' and '-'"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_file_names_that_harm_nobody() {
        for right in ["demo", "a.b_c-1", "0"] {
            assert!(check_name(right).is_ok(), "{right}");
        }
        for wrong in [
            "",
            ".",
            "..",
            ".hidden",
            "-f",
            "a/b",
            "a b",
            "\u{e9}",
            &"n".repeat(129),
        ] {
            assert!(check_name(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn new_names_come_from_the_image() {
        for (image, stem) in [
            (Some("debian"), "debian"),
            (Some("registry.example:5000/team/app:v1"), "app"),
            (Some("___"), "mount"),
            (None, "mount"),
        ] {
            assert_eq!(stem_of(image), stem);
            assert!(check_name(&format!("{stem}-1")).is_ok());
        }
    }
}
