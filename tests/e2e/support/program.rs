//! Mount programs, as podman calls them: ours and fuse-overlayfs.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::overlayfs::Layers;
use super::sandbox::{Sandbox, detach, mounted_type};
use super::{describe, output};

/// A mount program.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    environment: Vec<(&'static str, &'static str)>,
}

/// A live mount of one, unmounted when dropped.
pub struct ProgramMount {
    target: PathBuf,
}

impl Program {
    /// Ours, by a name in the sandbox.
    pub fn lamina(sandbox: &Sandbox, name: &str) -> Self {
        let path = sandbox.dir("programs").join(name);
        if !path.exists() {
            symlink(env!("CARGO_BIN_EXE_lamina"), &path).unwrap();
        }
        Self {
            path,
            environment: Vec::new(),
        }
    }

    /// Debian's fuse-overlayfs.
    pub fn fuse_overlayfs() -> Self {
        Self {
            path: "fuse-overlayfs".into(),
            environment: Vec::new(),
        }
    }

    /// The same, by its whole path, as others want it.
    pub fn fuse_overlayfs_path() -> Self {
        Self {
            path: "/usr/bin/fuse-overlayfs".into(),
            environment: Vec::new(),
        }
    }

    /// The same with a variable in its environment.
    pub fn with(mut self, name: &'static str, value: &'static str) -> Self {
        self.environment.push((name, value));
        self
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Calls it.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.envs(self.environment.iter().copied());
        command
    }

    /// What it says when it is to mount with these options.
    pub fn output(&self, options: &str, target: &Path) -> Output {
        std::fs::create_dir_all(target).unwrap();
        output(self.command().args(["-o", options]).arg(target))
    }

    /// Mounts layers.
    #[track_caller]
    pub fn mount(&self, layers: &Layers, more: &str, target: &Path) -> ProgramMount {
        self.mount_options(&layers.overlayfs_options(more), target)
    }

    /// Mounts with these options.
    #[track_caller]
    pub fn mount_options(&self, options: &str, target: &Path) -> ProgramMount {
        let said = self.output(options, target);
        assert!(said.status.success(), "{options}: {}", describe(&said));
        ProgramMount {
            target: target.to_owned(),
        }
    }
}

impl ProgramMount {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.target
    }

    /// Unmounts it, which must be possible.
    #[track_caller]
    pub fn unmount(self) {
        super::run(Command::new("umount").arg(&self.target));
    }
}

impl Drop for ProgramMount {
    fn drop(&mut self) {
        if mounted_type(&self.target).is_some() {
            detach(&self.target);
        }
    }
}
