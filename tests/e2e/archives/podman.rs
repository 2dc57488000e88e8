//! With podman, in both directions.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{UNPACKED, another, check_layers, layers, mounted, odd_image, small_image};
use crate::support::fixture::DebianStore;
use crate::support::lamina::Lamina;
use crate::support::sandbox::Sandbox;
use crate::support::tree::{Ignore, Tree};
use crate::support::{describe, needs_root, run};

/// podman gives the root, hard links to lower layers and everything from before 1970 times of its own.
const TIMES_APART: Ignore = Ignore {
    mtime: true,
    ..UNPACKED
};

/// podman with a storage of its own.
struct Podman {
    root: PathBuf,
    /// Apart, as podman wants a short path.
    run: tempfile::TempDir,
}

impl Podman {
    fn new(sandbox: &Sandbox) -> Self {
        Self {
            root: sandbox.dir("podman"),
            run: tempfile::tempdir_in("/tmp").unwrap(),
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("podman");
        command.arg("--root").arg(self.root.join("storage"));
        command.arg("--runroot").arg(self.run.path().join("run"));
        command.arg("--runtime=runc");
        command.args(["--storage-driver=vfs", "--cgroup-manager=cgroupfs"]);
        command
            .args(["--events-backend=none"])
            .arg("--tmpdir")
            .arg(self.root.join("tmp"));
        command.args(arguments);
        command
    }

    fn ok(&self, arguments: &[&str]) -> String {
        run(&mut self.command(arguments))
    }

    /// Loads an archive; returns the name of the image in it.
    fn load(&self, path: &Path) -> String {
        let mut command = self.command(&["load", "--input"]);
        let said = run(command.arg(path));
        let loaded = said
            .lines()
            .rev()
            .find_map(|line| line.strip_prefix("Loaded image: "));
        loaded.unwrap_or_else(|| panic!("{said}")).to_owned()
    }

    /// The tree of an image.
    fn tree(&self, image: &str) -> Tree {
        let path = self.ok(&["image", "mount", image]);
        let tree = Tree::read(path.trim_end().as_ref());
        self.ok(&["image", "unmount", image]);
        tree
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // Also what it has mounted; the sandbox goes with the rest.
        let _ = self.command(&["system", "reset", "--force"]).output();
    }
}

#[test]
fn podman_loads_what_is_exported_and_runs_it() {
    needs_root!();
    let sandbox = Sandbox::new("archives-podman-load");
    let debian = DebianStore::shared();
    let podman = Podman::new(&sandbox);
    for format in ["oci-archive", "docker-archive"] {
        let file = sandbox.join("exported.tar");
        let path = file.to_str().unwrap();
        debian
            .lamina
            .ok(["image", "export", "debian", "--format", format, "-o", path]);
        let image = podman.load(&file);
        fs::remove_file(&file).unwrap();
        let limits = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"];
        let mut arguments = vec!["run", "--rm", "--network=none", "--cgroups=enabled"];
        arguments.extend(limits);
        arguments.extend([image.as_str(), "/bin/cat", "/etc/os-release"]);
        let said = podman.ok(&arguments);
        assert!(said.contains("bookworm"), "{said}");
        podman.ok(&["rmi", "--force", &image]);
    }
}

#[test]
fn podman_and_we_unpack_the_same() {
    needs_root!();
    let sandbox = Sandbox::new("archives-podman-trees");
    let lamina = Lamina::new(&sandbox);
    odd_image(&sandbox, &lamina);
    let podman = Podman::new(&sandbox);
    let file = sandbox.join("exported.tar");
    lamina.ok(["image", "export", "odd", "-o", file.to_str().unwrap()]);
    let name = podman.load(&file);
    let theirs = podman.tree(&name);
    let ours = mounted(&lamina, &sandbox, "odd");
    theirs.assert_same("podman's tree", &ours, "our mount", TIMES_APART);
}

#[test]
fn what_podman_saves_is_imported() {
    needs_root!();
    let sandbox = Sandbox::new("archives-podman-save");
    let lamina = Lamina::new(&sandbox);
    // podman 4.3 fails to save what it loaded of the odd image: its copy of a layer has another digest.
    small_image(&sandbox, &lamina);
    let podman = Podman::new(&sandbox);
    let file = sandbox.join("exported.tar");
    lamina.ok(["image", "export", "small", "-o", file.to_str().unwrap()]);
    let name = podman.load(&file);
    let ours = mounted(&lamina, &sandbox, "small");
    // Layers that it unpacked, and packed again.
    for format in [
        "oci-archive",
        "docker-archive",
        "oci-dir",
        "docker-archive|",
    ] {
        let store = another(&lamina, &sandbox, "back");
        let saved = sandbox.join("saved");
        let path = saved.to_str().unwrap();
        if let Some(format) = format.strip_suffix('|') {
            let mut save = podman
                .command(&["save", "--quiet", "--format", format, &name])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let import = store
                .command(["image", "import", "-"])
                .stdin(save.stdout.take().unwrap())
                .output()
                .unwrap();
            assert!(import.status.success(), "{}", describe(&import));
            assert!(save.wait().unwrap().success());
        } else {
            podman.ok(&["save", "--quiet", "--format", format, "-o", path, &name]);
            store.ok(["image", "import", path]);
        }
        let name = name.trim_end_matches(":latest");
        assert_eq!(layers(&store, name), layers(&lamina, "small"), "{format}");
        check_layers(&store, &sandbox, name);
        let back = mounted(&store, &sandbox, name);
        ours.assert_same(
            "the image",
            &back,
            "what came back",
            Ignore::OTHER_FILESYSTEM,
        );
        fs::remove_dir_all(store.store()).unwrap();
        let _ = fs::remove_dir_all(&saved);
        let _ = fs::remove_file(&saved);
    }
}
