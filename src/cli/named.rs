//! Uppers that the store keeps under a name: `mounts/NAME/{upper,work,mount.json}`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use lamina_layers::store::Store;
use serde::{Deserialize, Serialize};

use crate::union::Config;
use crate::upper::UpperDirs;

/// A named upper.
pub struct Named {
    /// Its name.
    pub name: String,
    /// Whether it was made just now.
    pub is_new: bool,
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
                dir,
            });
        }
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {dir:?}"))?;
        Self::fill(name.to_owned(), dir, &base)
    }

    fn open_new(store: &Store, base: &Base) -> anyhow::Result<Self> {
        let stem = base.image.as_deref().unwrap_or("mount");
        let stem: String = stem
            .chars()
            .filter(char::is_ascii_alphanumeric)
            .take(20)
            .collect();
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
            dir,
        })
    }

    /// Its directories.
    pub fn dirs(&self) -> UpperDirs {
        UpperDirs {
            upper: self.dir.join("upper"),
            work: self.dir.join("work"),
        }
    }

    /// Throws it away.
    pub fn remove(self) -> anyhow::Result<()> {
        fs::remove_file(self.dir.join(FILE))?;
        fs::remove_dir_all(&self.dir).with_context(|| format!("cannot remove {:?}", self.dir))
    }
}

/// What the upper of a name belongs on, and where it is; `None` if there is none of that name.
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
fn check_name(name: &str) -> anyhow::Result<()> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty()
        || name.len() > 128
        || name.starts_with(['.', '-'])
        || !name.chars().all(legal)
    {
        bail!("'{name}' cannot be a mount's name: use letters, digits, '.', '_' and '-'");
    }
    Ok(())
}
