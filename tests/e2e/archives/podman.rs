//! With podman and buildah, in both directions.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use super::{UNPACKED, another, around, check_layers, layers, mounted, odd_image, small_image};
use crate::support::containers::Containers;
use crate::support::fixture::DebianStore;
use crate::support::lamina::Lamina;
use crate::support::layers::Archive;
use crate::support::sandbox::Sandbox;
use crate::support::tree::{Ignore, Tree};
use crate::support::{describe, needs_root};

/// podman gives the root, hard links to lower layers and everything from before 1970 times of its own.
const TIMES_APART: Ignore = Ignore {
    mtime: true,
    ..UNPACKED
};

/// Loads an archive; returns the name of the image in it.
fn load(containers: &Containers, path: &Path) -> String {
    let said = containers.podman_ok(&["load", "--input", path.to_str().unwrap()]);
    let loaded = said
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("Loaded image: "));
    loaded.unwrap_or_else(|| panic!("{said}")).to_owned()
}

#[test]
fn podman_loads_what_is_exported_and_runs_it() {
    needs_root!();
    let sandbox = Sandbox::new("archives-podman-load");
    let debian = DebianStore::shared();
    let containers = Containers::new(&sandbox);
    for format in ["oci-archive", "docker-archive"] {
        let file = sandbox.join("exported.tar");
        let path = file.to_str().unwrap();
        debian
            .lamina
            .ok(["image", "export", "debian", "--format", format, "-o", path]);
        let image = load(&containers, &file);
        fs::remove_file(&file).unwrap();
        let limits = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"];
        let mut arguments = vec!["run", "--rm", "--network=none", "--cgroups=enabled"];
        arguments.extend(limits);
        arguments.extend([image.as_str(), "/bin/cat", "/etc/os-release"]);
        let said = containers.podman_ok(&arguments);
        assert!(said.contains("bookworm"), "{said}");
        containers.podman_ok(&["rmi", "--force", &image]);
    }
}

#[test]
fn podman_and_we_unpack_the_same() {
    needs_root!();
    let sandbox = Sandbox::new("archives-podman-trees");
    let lamina = Lamina::new(&sandbox);
    odd_image(&sandbox, &lamina);
    let containers = Containers::new(&sandbox);
    let file = sandbox.join("exported.tar");
    lamina.ok(["image", "export", "odd", "-o", file.to_str().unwrap()]);
    let name = load(&containers, &file);
    let theirs = containers.tree(&name);
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
    let containers = Containers::new(&sandbox);
    let file = sandbox.join("exported.tar");
    lamina.ok(["image", "export", "small", "-o", file.to_str().unwrap()]);
    let name = load(&containers, &file);
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
            let mut save = containers
                .podman(&["save", "--quiet", "--format", format, &name])
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
            containers.podman_ok(&["save", "--quiet", "--format", format, "-o", path, &name]);
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

#[test]
fn buildah_takes_and_gives_archives() {
    needs_root!();
    let sandbox = Sandbox::new("archives-buildah");
    let lamina = Lamina::new(&sandbox);
    // As podman, buildah fails to pack what it unpacked of the odd image.
    small_image(&sandbox, &lamina);
    // Where no layer says anything of the root, it has its own idea of it.
    let root = Archive::new(&sandbox, "root.tar").dir(".", 0o755).finish();
    let layers = ["small-1.tar", "small-2.tar"].map(|name| sandbox.join(name));
    lamina.build("rooted", &[&layers[..], &[root]].concat());
    let containers = Containers::new(&sandbox);
    let ours = mounted(&lamina, &sandbox, "rooted");
    for (number, format) in ["oci-archive", "docker-archive"].into_iter().enumerate() {
        let file = sandbox.join(format!("{format}.tar"));
        lamina.ok([
            "image",
            "export",
            "rooted",
            "--format",
            format,
            "-o",
            file.to_str().unwrap(),
        ]);
        let image =
            containers.buildah_ok(&["pull", "-q", &around(&format!("{format}:"), &file, "")]);
        let theirs = containers.tree(&image);
        theirs.assert_same("buildah's tree", &ours, "our mount", TIMES_APART);

        // What it makes of a container comes back.
        let container = containers.buildah_ok(&["from", "--pull-never", &image]);
        let root = containers.buildah_ok(&["mount", &container]);
        fs::write(Path::new(&root).join("added"), "by buildah").unwrap();
        let theirs = Tree::read(Path::new(&root));
        let made = containers.buildah_ok(&["commit", "-q", "--rm", &container]);
        let back = sandbox.join(format!("back-{number}.tar"));
        containers.buildah_ok(&[
            "push",
            "-q",
            &made,
            &around(&format!("{format}:"), &back, ""),
        ]);
        let store = another(&lamina, &sandbox, &format!("back-{number}"));
        store.ok(["image", "import", back.to_str().unwrap(), "-t", "back"]);
        check_layers(&store, &sandbox, "back");
        let back = mounted(&store, &sandbox, "back");
        theirs.assert_same("buildah's container", &back, "our mount", TIMES_APART);
    }
}
