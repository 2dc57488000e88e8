//! Kernel overlayfs on the directories that Lamina uses too.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::sandbox::{detach, mounted_type};
use super::tree::{Ignore, Tree};
use super::{describe, output, run};

/// A live mount, unmounted when dropped.
pub struct Overlayfs {
    target: PathBuf,
}

/// Layers: lower directories, topmost first, and upper and work directory.
#[derive(Clone)]
pub struct Layers {
    /// Read-only directories, topmost first.
    pub lowers: Vec<PathBuf>,
    /// What is changed.
    pub upper: PathBuf,
    /// Its scratch directory.
    pub work: PathBuf,
}

impl Layers {
    /// What `mount -t overlay -o` takes.
    pub fn overlayfs_options(&self, more: &str) -> String {
        let lowers = self.lowers.iter().map(|dir| dir.display().to_string());
        format!(
            "lowerdir={},upperdir={},workdir={},{more}",
            lowers.collect::<Vec<_>>().join(":"),
            self.upper.display(),
            self.work.display()
        )
    }

    /// What `lamina mount` takes.
    pub fn lamina_options(&self) -> Vec<String> {
        let pair = |option: &str, dir: &PathBuf| [option.into(), dir.display().to_string()];
        let lowers = self.lowers.iter().flat_map(|dir| pair("--lower", dir));
        lowers
            .chain(pair("--upper", &self.upper))
            .chain(pair("--work", &self.work))
            .collect()
    }
}

impl Overlayfs {
    /// Mounts at `target`, which is made if it is not there.
    #[track_caller]
    pub fn mount(layers: &Layers, options: &str, target: &Path) -> Self {
        Self::try_mount(layers, options, target)
            .unwrap_or_else(|output| panic!("overlayfs {options}: {}", describe(&output)))
    }

    /// The same; what `mount` said if it does not work.
    pub fn try_mount(layers: &Layers, options: &str, target: &Path) -> Result<Self, Output> {
        std::fs::create_dir_all(target).unwrap();
        let said = output(
            Command::new("mount")
                .args(["-t", "overlay", "overlay", "-o"])
                .arg(layers.overlayfs_options(options))
                .arg(target),
        );
        if said.status.success() {
            Ok(Self {
                target: target.to_owned(),
            })
        } else {
            Err(said)
        }
    }

    /// Unmounts it, which must be possible.
    pub fn unmount(self) {
        run(Command::new("umount").arg(&self.target));
    }
}

impl Drop for Overlayfs {
    fn drop(&mut self) {
        if mounted_type(&self.target).as_deref() == Some("overlay") {
            detach(&self.target);
        }
    }
}

/// Panics unless a tree as Lamina shows it is the one that overlayfs shows, but for inode numbers,
/// link counts of directories, and Lamina's own marks, which overlayfs takes for users'.
#[track_caller]
pub fn assert_same_tree(mut ours: Tree, mut theirs: Tree) {
    for tree in [&mut ours, &mut theirs] {
        tree.forget_xattrs(b"trusted.lamina.");
        tree.forget_xattrs(b"user.lamina.");
    }
    theirs.forget_listed_inodes();
    let ignore = Ignore {
        dir_nlink: true,
        ..Ignore::OTHER_FILESYSTEM
    };
    ours.assert_same("lamina", &theirs, "overlayfs", ignore);
}
