//! podman and buildah with a storage of a test's own.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::program::Program;
use super::run;
use super::sandbox::Sandbox;
use super::tree::Tree;

/// Where images and containers of podman's and buildah's are kept for one test.
pub struct Containers {
    root: PathBuf,
    /// The storage driver, and its options.
    driver: Vec<String>,
    /// Apart from the sandbox, as podman refuses a path of more than 50 characters.
    run: TempDir,
}

impl Containers {
    /// An empty one.
    pub fn new(sandbox: &Sandbox) -> Self {
        Self::at(&sandbox.join("containers"))
    }

    /// An empty one in a directory of its own, in a sandbox.
    pub fn at(root: &Path) -> Self {
        std::fs::create_dir_all(root).unwrap();
        Self {
            root: root.to_owned(),
            driver: vec!["--storage-driver=vfs".into()],
            run: tempfile::tempdir_in("/tmp").unwrap(),
        }
    }

    /// The same, with roots that a mount program mounts; without one, the kernel does.
    #[must_use]
    pub fn on(mut self, program: Option<&Program>) -> Self {
        self.driver = vec!["--storage-driver=overlay".into()];
        if let Some(program) = program {
            let path = program.path().display();
            self.driver
                .push(format!("--storage-opt=overlay.mount_program={path}"));
            self.driver
                .push("--storage-opt=overlay.mountopt=nodev".into());
        }
        self
    }

    /// A `podman` command, with runc as its runtime.
    pub fn podman(&self, arguments: &[&str]) -> Command {
        let mut command = self.with_storage("podman");
        command.args(["--runtime=runc", "--cgroup-manager=cgroupfs"]);
        command.args(["--events-backend=none", "--tmpdir"]);
        command.arg(self.root.join("tmp")).args(arguments);
        command
    }

    /// A `buildah` command.
    pub fn buildah(&self, arguments: &[&str]) -> Command {
        let mut command = self.with_storage("buildah");
        command.args(arguments);
        command
    }

    fn with_storage(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("--root").arg(self.root.join("storage"));
        command.arg("--runroot").arg(self.run.path().join("run"));
        command.args(&self.driver);
        command
    }

    /// What podman says to `arguments`, which it must not refuse.
    pub fn podman_ok(&self, arguments: &[&str]) -> String {
        run(&mut self.podman(arguments)).trim().to_owned()
    }

    /// What buildah says to `arguments`, which it must not refuse.
    pub fn buildah_ok(&self, arguments: &[&str]) -> String {
        run(&mut self.buildah(arguments)).trim().to_owned()
    }

    /// The tree of an image.
    pub fn tree(&self, image: &str) -> Tree {
        let container = self.buildah_ok(&["from", "--pull-never", image]);
        let tree = Tree::read(Path::new(&self.buildah_ok(&["mount", &container])));
        self.buildah_ok(&["rm", &container]);
        tree
    }
}

impl Drop for Containers {
    fn drop(&mut self) {
        // Containers first, as their mounts would keep the sandbox; the rest goes with it. Both
        // programs are asked only for what they have left, as podman takes a second to say nothing.
        let has_some = |driver: &str| {
            let list = format!("storage/{driver}-containers/containers.json");
            let list = std::fs::read_to_string(self.root.join(list));
            list.is_ok_and(|list| list != "[]")
        };
        if has_some("vfs") || has_some("overlay") {
            let _ = self.podman(&["system", "reset", "--force"]).output();
        }
    }
}
