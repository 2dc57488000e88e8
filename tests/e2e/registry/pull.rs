//! What others push, pulled.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::{Setting, alone, pull, some_layers};
use crate::support::containers::Containers;
use crate::support::damage::{flip, large_object};
use crate::support::fixture::{debian_layers, unpack_by_hand};
use crate::support::lamina::{Lamina, NOBODY};
use crate::support::layout::Layout;
use crate::support::registry::Registry;
use crate::support::sandbox::Sandbox;
use crate::support::tree::{Ignore, Tree};
use crate::support::{describe, needs_root, output, run};

fn manifest_in(store: &Path, id: &str) -> Vec<u8> {
    let hex = id.trim().strip_prefix("sha256:").unwrap();
    fs::read(store.join("images").join(hex).join("manifest.json")).unwrap()
}

#[test]
fn what_skopeo_pushes_is_pulled_bit_for_bit() {
    needs_root!();
    let sandbox = Sandbox::new("skopeo-in");
    let registry = Registry::start(&sandbox);
    let layers = debian_layers();
    let by_hand = sandbox.dir("by-hand");
    unpack_by_hand(&layers, &by_hand);
    let expected = Tree::read(&by_hand);
    let mut layout = Layout::new(&sandbox, "layout");
    layout.image("debian", &layers, "gzip", "amd64");
    let lamina = Lamina::new(&sandbox);
    for (format, media_type) in [
        ("oci", "application/vnd.oci.image.manifest.v1+json"),
        (
            "v2s2",
            "application/vnd.docker.distribution.manifest.v2+json",
        ),
    ] {
        let name = format!("{}/debian:{format}", registry.address());
        layout.push("debian", &name, &["--format", format]);
        let id = run(&mut pull(&sandbox, &lamina, &name, &["--quiet"]));
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["inspect", "--raw", "--tls-verify=false"]);
        let raw = output(skopeo.arg(format!("docker://{name}"))).stdout;
        assert_eq!(manifest_in(lamina.store(), &id), raw);
        let manifest: Value = serde_json::from_slice(&raw).unwrap();
        assert_eq!(manifest["mediaType"], media_type);
        let mount = lamina.mount(&["--read-only", &name], &sandbox.join(format));
        let mounted = Tree::read(mount.path());
        expected.assert_same("tar -x", &mounted, "the image", Ignore::OTHER_FILESYSTEM);
        mount.unmount();
    }
    // The second image's layers are those of the first.
    let layers = fs::read_dir(lamina.store().join("layers")).unwrap().count();
    assert_eq!(layers, 3);
}

#[test]
fn every_compression_and_what_is_said_of_it() {
    let sandbox = Sandbox::new("packed-in");
    let registry = Registry::start(&sandbox);
    let mut layout = Layout::new(&sandbox, "layout");
    let layers = some_layers(&sandbox);
    let mut chains = Vec::new();
    for program in ["gzip", "zstd", "none"] {
        let lamina = Lamina::new(&sandbox).with_store(&sandbox.join(format!("store-{program}")));
        let image = layout.image(program, &layers, program, "amd64");
        let name = format!("{}/packed:{program}", registry.address());
        layout.push(program, &name, &[]);
        let said = run(&mut pull(&sandbox, &lamina, &name, &["--json"]));
        let said: Value = serde_json::from_str(&said).unwrap();
        // skopeo packs what is not packed.
        if program != "none" {
            assert_eq!(said["digest"], image.manifest.as_str());
        }
        assert_eq!(said["name"], name.as_str());
        let states: Vec<_> = said["layers"].as_array().unwrap().iter().collect();
        assert!(
            states.iter().all(|layer| layer["state"] == "fetched"),
            "{said}"
        );
        let again = run(&mut pull(&sandbox, &lamina, &name, &["--json"]));
        assert!(!again.contains("fetched"), "{again}");
        let inspected = lamina.ok(["image", "inspect", &name]);
        let inspected: Value = serde_json::from_str(&inspected).unwrap();
        chains.push(inspected["chain_id"].clone());
    }
    assert!(
        chains.windows(2).all(|pair| pair[0] == pair[1]),
        "{chains:?}"
    );
}

#[test]
fn what_buildah_and_podman_push_is_pulled() {
    needs_root!();
    let sandbox = Sandbox::new("buildah-in");
    let registry = Registry::start(&sandbox);
    let lamina = Lamina::new(&sandbox);
    let containers = Containers::new(&sandbox);
    let buildah = |arguments: &[&str]| containers.buildah_ok(arguments);
    let container = buildah(&["from", "scratch"]);
    let root = buildah(&["mount", &container]);
    let script =
        "chmod 755 .; mkdir -p etc usr/bin; echo hello > etc/greeting; ln etc/greeting etc/same
        ln -s ../etc/greeting usr/link; chmod 4755 etc/greeting; chown 12:34 usr
        setfattr -n user.note -v text usr; mkfifo pipe; touch -d @1000000000 usr/bin";
    run(Command::new("sh").args(["-ec", script]).current_dir(&root));
    let expected = Tree::read(root.as_ref());
    buildah(&["config", "--cmd", "/bin/greet", &container]);
    let images = ["oci", "docker"].map(|kind| buildah(&["commit", "--format", kind, &container]));
    for (number, (program, kind, image)) in [
        ("buildah", "oci", &images[0]),
        ("buildah", "v2s2", &images[1]),
        // Each kind of image also as the other kind of manifest.
        ("podman", "v2s2", &images[0]),
        ("podman", "oci", &images[1]),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("{}/{program}/built:{kind}", registry.address());
        let push = ["push", "--tls-verify=false", "--format", kind, image, &name];
        if program == "podman" {
            containers.podman_ok(&push);
        } else {
            buildah(&push);
        }
        run(&mut pull(&sandbox, &lamina, &name, &[]));
        let config = lamina.ok(["image", "inspect", &name]);
        assert!(config.contains("/bin/greet"), "{config}");
        let at = sandbox.join(format!("mounted-{number}"));
        let mount = lamina.mount(&["--read-only", &name], &at);
        let ignore = Ignore {
            // buildah's layers have whole seconds.
            mtime: true,
            dir_nlink: true,
            ino: true,
        };
        let mounted = Tree::read(mount.path());
        expected.assert_same("buildah's container", &mounted, "the image", ignore);
        mount.unmount();
    }
    buildah(&["umount", &container]);
    buildah(&["rm", &container]);
}

#[test]
fn an_index_has_an_image_for_each_platform() {
    let sandbox = Sandbox::new("platforms");
    let registry = Registry::start(&sandbox);
    let mut layout = Layout::new(&sandbox, "layout");
    let layers = some_layers(&sandbox);
    let intel = layout.image("intel", &layers[..1], "gzip", "amd64");
    let arm = layout.image("arm", &layers[1..2], "gzip", "arm64");
    let index = layout.index("all");
    for (option, kind) in [("oci", "oci"), ("v2s2", "docker")] {
        let name = format!("{}/all:{kind}", registry.address());
        layout.push("all", &name, &["--all", "--format", option]);
        let lamina = Lamina::new(&sandbox).with_store(&sandbox.join(format!("store-{kind}")));
        let pulled = |options: &[&str]| {
            run(&mut pull(&sandbox, &lamina, &name, options))
                .trim()
                .to_owned()
        };
        let found = pulled(&["-q", "--platform", "linux/arm64", "--tag", "arm"]);
        let again = pulled(&["-q", "--platform", "linux/arm64/v8"]);
        assert_eq!(found, again);
        let here = pulled(&["-q", "--platform", "linux/amd64"]);
        assert_ne!(here, found);
        if kind == "oci" {
            assert_eq!(
                (here, found),
                (intel.manifest.clone(), arm.manifest.clone())
            );
        }
        let mut missing = pull(&sandbox, &lamina, &name, &["--platform", "linux/s390x"]);
        let said = output(&mut missing);
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        for part in [
            "no image for linux/s390x",
            "linux/amd64, linux/arm64",
            &name,
        ] {
            assert!(said.contains(part), "{said}");
        }
    }
    // By the digest of the index, and of an image in it: these give no name.
    let lamina = Lamina::new(&sandbox).with_store(&sandbox.join("by-digest"));
    for digest in [&index, &arm.manifest] {
        let name = format!("{}/all@{digest}", registry.address());
        let id = run(&mut pull(
            &sandbox,
            &lamina,
            &name,
            &["-q", "--platform", "linux/arm64"],
        ));
        assert_eq!(id.trim(), arm.manifest);
    }
    let listed = lamina.ok(["image", "ls"]);
    assert!(
        listed
            .lines()
            .nth(1)
            .is_some_and(|line| line.starts_with("- ")),
        "{listed}"
    );
    let name = format!("{}/all:oci", registry.address());
    let both = format!("{name}@{index}");
    run(&mut pull(
        &sandbox,
        &lamina,
        &both,
        &["--platform", "linux/arm64"],
    ));
    let inspected = lamina.ok(["image", "inspect", &name]);
    assert!(inspected.contains(&arm.manifest), "{inspected}");
}

#[test]
fn an_image_alone_is_for_its_platform() {
    let setting = Setting::new("alone");
    let said = setting.fails(&["--platform", "linux/s390x"]);
    assert!(said.contains("no image for linux/s390x"), "{said}");
    assert!(said.contains("is only linux/amd64"), "{said}");
}

#[test]
fn an_ordinary_user_pulls() {
    needs_root!();
    let setting = Setting::new("user-pull");
    let user = Lamina::as_user(&setting.sandbox, NOBODY);
    let mut command = pull(&setting.sandbox, &user, &setting.reference(), &["-q"]);
    assert_eq!(run(&mut command).trim(), setting.image.manifest);
    let same = pull(
        &setting.sandbox,
        &setting.lamina,
        &setting.reference(),
        &["-q"],
    );
    assert_eq!(run(&mut { same }).trim(), setting.image.manifest);
    for part in ["objects", "layers"] {
        let tree = |lamina: &Lamina| Tree::read(&lamina.store().join(part));
        let ignore = Ignore {
            mtime: true,
            dir_nlink: true,
            ino: true,
        };
        let different = tree(&setting.lamina).differences(&tree(&user), ignore);
        let unlike: Vec<_> = different
            .iter()
            .filter(|line| !line.contains(": owner: "))
            .collect();
        assert!(unlike.is_empty(), "{unlike:#?}");
    }
}

#[test]
fn names_and_options_that_cannot_be() {
    let sandbox = Sandbox::new("pull-usage");
    let lamina = Lamina::new(&sandbox);
    for (arguments, status, part) in [
        (&["pull", "docker://debian"][..], 1, "leave out 'docker://'"),
        (&["pull", "Debian"], 1, "lower-case"),
        (&["pull", "a@sha256:12"], 1, "not a digest"),
        (&["pull", "a", "--platform", "linux"], 2, "OS/CPU"),
        (&["pull", "a", "--jobs", "0"], 2, "--jobs"),
        (
            &["pull", "a", "--plain-http", "--insecure"],
            2,
            "--insecure",
        ),
        (
            &["pull", "127.0.0.1:1/a", "--ca-file", "/nowhere"],
            1,
            "/nowhere",
        ),
        (
            &["pull", "127.0.0.1:1/a", "--authfile", "/nowhere"],
            1,
            "/nowhere",
        ),
        (&["pull", "127.0.0.1:1/a"], 1, "cannot reach 127.0.0.1:1: "),
        (&["pull", "nowhere.invalid/a"], 1, "nowhere.invalid"),
    ] {
        let said = lamina.fails(status, arguments);
        assert!(said.contains(part), "{arguments:?}: {said}");
    }
}

#[test]
fn what_is_damaged_is_fetched_again() {
    let setting = Setting::new("refetch");
    setting.pull(&[]);
    let fsck = |options: &[&str]| {
        let mut command = setting.lamina.command(["fsck"]);
        alone(&setting.sandbox, &mut command);
        output(command.args(options))
    };
    let store = setting.lamina.store();
    let image = image_at(store);
    for path in [
        large_object(store),
        image.join("manifest.json"),
        image.join("config.json"),
    ] {
        let whole = fs::read(&path).unwrap();
        flip(&path);
        assert_eq!(fsck(&[]).status.code(), Some(1));
        let done = fsck(&["--repair", "--plain-http"]);
        assert!(done.status.success(), "{}", describe(&done));
        assert_eq!(fs::read(&path).unwrap(), whole, "{path:?}");
        assert!(fsck(&[]).status.success());
    }
}

/// The directory of the only image.
fn image_at(store: &Path) -> PathBuf {
    let mut images = fs::read_dir(store.join("images")).unwrap();
    images.next().unwrap().unwrap().path()
}
