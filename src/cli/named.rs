//! Uppers that the store keeps under a name: `mounts/NAME/{upper,work,mount.json}`.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use lamina_layers::store::Store;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::Usage;
use crate::mount::json_path;
use crate::sys;
use crate::union::Config;
use crate::upper::UpperDirs;

/// A named upper that is going to be mounted. One that was made for that goes when this is dropped
/// unless [`Named::set_throw_away`] was told otherwise: a mount that fails leaves nothing.
pub struct Named {
    name: String,
    is_new: bool,
    throw_away: bool,
    dir: PathBuf,
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

impl Named {
    /// The upper of a name, or a new one under a new name.
    pub fn open(
        store: &Store,
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
        check_name(name)?;
        let dir = store.mount_dir(name);
        if dir.join(FILE).exists() {
            let kept = read_base(&dir)?;
            if (&kept.layers, &kept.lowers) != (&base.layers, &base.lowers) {
                let of = kept.image.as_deref().unwrap_or("other directories");
                bail!("the changes named '{name}' belong to {of}: choose another --name");
            }
            return Ok(Self {
                name: name.to_owned(),
                is_new: false,
                throw_away: false,
                dir,
            });
        }
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {dir:?}"))?;
        Self::fill(name.to_owned(), dir, &base)
    }

    fn open_new(store: &Store, base: &Base) -> anyhow::Result<Self> {
        let stem = stem_of(base.image.as_deref());
        for number in 1..u32::MAX {
            let name = format!("{stem}-{number}");
            let dir = store.mount_dir(&name);
            if let Some(parent) = dir.parent() {
                fs::create_dir_all(parent).with_context(|| format!("cannot make {parent:?}"))?;
            }
            // Making the directory takes the name, against others who do the same now.
            match fs::create_dir(&dir) {
                Ok(()) => return Self::fill(name, dir, base),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).with_context(|| format!("cannot make {dir:?}")),
            }
        }
        bail!("all names of mounts are taken")
    }

    fn fill(name: String, dir: PathBuf, base: &Base) -> anyhow::Result<Self> {
        for part in ["upper", "work"] {
            fs::create_dir_all(dir.join(part)).with_context(|| format!("cannot make {dir:?}"))?;
        }
        // Last: a directory with this file in it is complete.
        let temp = dir.join("mount.json.new");
        fs::write(&temp, serde_json::to_vec_pretty(base)?)?;
        fs::rename(&temp, dir.join(FILE))?;
        Ok(Self {
            name,
            is_new: true,
            throw_away: true,
            dir,
        })
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
        UpperDirs {
            upper: self.dir.join("upper"),
            work: self.dir.join("work"),
        }
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        if self.throw_away
            && let Err(error) = remove_dir(&self.dir)
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
    if check_name(name).is_err() {
        return Ok(None);
    }
    let dir = store.mount_dir(name);
    if !dir.join(FILE).exists() {
        return Ok(None);
    }
    let dirs = UpperDirs {
        upper: dir.join("upper"),
        work: dir.join("work"),
    };
    Ok(Some((read_base(&dir)?, dirs)))
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
    let Some((_, dirs)) = find(store, name)? else {
        let root = store.root();
        bail!(
            "there are no changes named '{name}' in {root:?} ('lamina ps --all' lists what there is)"
        );
    };
    // Held until it is gone, so that nobody mounts it meanwhile.
    let upper = File::open(&dirs.upper).ok();
    let lock = |file: &File| rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive);
    if upper.as_ref().map(lock) == Some(Err(Errno::WOULDBLOCK)) {
        bail!("'{name}' is mounted: 'lamina umount {name}' first");
    }
    remove_dir(&store.mount_dir(name))
}

/// Removes the directory of a name, whatever permissions the directories in it have.
fn remove_dir(dir: &Path) -> anyhow::Result<()> {
    let failed = || format!("cannot remove {dir:?}");
    let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else {
        bail!(failed());
    };
    // Without this file it is not taken for changes any more.
    match fs::remove_file(dir.join(FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(failed);
        }
        _ => {}
    }
    let parent = File::open(parent).with_context(failed)?;
    sys::dir::remove_tree(parent.as_fd(), name.as_bytes()).with_context(failed)
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
fn check_name(name: &str) -> Result<(), Usage> {
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
