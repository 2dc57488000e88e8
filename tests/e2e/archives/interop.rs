//! With skopeo and umoci, by way of files.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::{
    UNPACKED, another, around, check_layers, inspect, layers, mounted, odd_image, skopeo,
    small_image, unpacked,
};
use crate::support::fixture::DebianStore;
use crate::support::lamina::Lamina;
use crate::support::sandbox::Sandbox;
use crate::support::{describe, needs_root};

/// The digest of the only manifest of a layout.
fn manifest_of(layout: &Path) -> String {
    let index = fs::read(layout.join("index.json")).unwrap();
    let index: Value = serde_json::from_slice(&index).unwrap();
    let manifests = index["manifests"].as_array().unwrap();
    assert_eq!(manifests.len(), 1);
    manifests[0]["digest"].as_str().unwrap().to_owned()
}

/// Exports an image in every form, has skopeo copy it, and imports that again.
fn goes_round(lamina: &Lamina, sandbox: &Sandbox, image: &str) {
    let wanted = layers(lamina, image);
    let id = inspect(lamina, image)["id"].clone();
    for (number, (format, compression, transport)) in [
        ("oci-archive", None, "oci-archive:"),
        ("oci-archive", Some("gzip"), "oci-archive:"),
        ("oci-archive", Some("zstd"), "oci-archive:"),
        ("docker-archive", None, "docker-archive:"),
    ]
    .into_iter()
    .enumerate()
    {
        let file = sandbox.join("exported.tar");
        let mut command = lamina.command(["image", "export", image, "--format", format, "-o"]);
        command
            .arg(&file)
            .args(compression.map(|it| format!("--compression={it}")));
        crate::support::run(&mut command);
        let layout = sandbox.join("layout");
        let to = around("oci:", &layout, ":copied");
        skopeo(&[], &around(transport, &file, ""), &to);
        let store = another(lamina, sandbox, &format!("store-{number}"));
        let printed = store.ok(["image", "import", layout.to_str().unwrap()]);
        assert_eq!(layers(&store, "copied"), wanted, "{format}");
        assert_eq!(
            printed.trim_end(),
            format!("{} copied", manifest_of(&layout))
        );
        // Ours, without skopeo in between.
        store.ok(["image", "import", file.to_str().unwrap(), "-t", "direct"]);
        assert_eq!(layers(&store, "direct"), wanted, "{format}");
        if compression.is_none() && format == "oci-archive" {
            assert_eq!(inspect(&store, "direct")["id"], id, "something was changed");
        }
        fs::remove_file(file).unwrap();
        fs::remove_dir_all(layout).unwrap();
        fs::remove_dir_all(store.store()).unwrap();
    }
}

#[test]
fn a_debian_image_goes_round_with_skopeo() {
    let sandbox = Sandbox::new("archives-debian");
    let debian = DebianStore::shared();
    check_layers(&debian.lamina, &sandbox, "debian");
    goes_round(&debian.lamina, &sandbox, "debian");
}

#[test]
fn an_image_with_everything_odd_goes_round_with_skopeo() {
    needs_root!();
    let sandbox = Sandbox::new("archives-odd");
    let lamina = Lamina::new(&sandbox);
    odd_image(&sandbox, &lamina);
    check_layers(&lamina, &sandbox, "odd");
    goes_round(&lamina, &sandbox, "odd");
}

#[test]
fn umoci_unpacks_what_is_mounted() {
    needs_root!();
    let sandbox = Sandbox::new("archives-umoci");
    let lamina = Lamina::new(&sandbox);
    odd_image(&sandbox, &lamina);
    let debian = DebianStore::shared();
    for (lamina, image) in [(&lamina, "odd"), (&debian.lamina, "debian")] {
        let layout = sandbox.join("layout");
        lamina.ok(["image", "export", image, "-o", &around("", &layout, "/")]);
        let theirs = unpacked(&sandbox, &layout, image);
        let ours = mounted(lamina, &sandbox, image);
        theirs.assert_same("umoci's tree", &ours, "our mount", UNPACKED);
        fs::remove_dir_all(layout).unwrap();
    }
}

#[test]
fn layers_that_others_packed_keep_their_digests_if_they_are_kept() {
    let sandbox = Sandbox::new("archives-kept");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let plain = sandbox.join("plain");
    lamina.ok(["image", "export", "small", "-o", &around("", &plain, "/")]);
    // Packed by Go's gzip.
    let packed = sandbox.join("packed");
    let compress = ["--dest-compress-format", "gzip", "--dest-compress"];
    let to = around("oci:", &packed, ":small");
    skopeo(&compress, &around("oci:", &plain, ":small"), &to);
    let theirs = manifest_of(&packed);
    assert_ne!(theirs, manifest_of(&plain));

    for (name, keep) in [("kept", true), ("not-kept", false)] {
        let store = another(&lamina, &sandbox, name);
        let mut import = store.command(["image", "import", packed.to_str().unwrap()]);
        import.args(keep.then_some("--keep-blobs"));
        crate::support::run(&mut import);
        let blobs = fs::read_dir(store.store().join("blobs")).unwrap().count();
        assert_eq!(blobs, if keep { 2 } else { 0 });
        let again = sandbox.join(format!("again-{name}"));
        let result = store.output(["image", "export", "small", "-o", &around("", &again, "/")]);
        assert!(result.status.success(), "{}", describe(&result));
        let said = String::from_utf8_lossy(&result.stderr).into_owned();
        assert_eq!(manifest_of(&again) == theirs, keep, "{said}");
        assert_eq!(said.contains("--keep-blobs"), !keep, "{said}");
        assert_eq!(layers(&store, "small"), layers(&lamina, "small"));
        // Whatever the manifest, skopeo checks all digests.
        let copy = sandbox.join(format!("copy-{name}"));
        skopeo(
            &[],
            &around("oci:", &again, ":small"),
            &around("dir:", &copy, ""),
        );
    }
}

#[test]
fn several_images_in_one_archive() {
    let sandbox = Sandbox::new("archives-several");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    lamina.build("other:2", &[sandbox.join("small-1.tar")]);
    for format in ["oci-archive", "docker-archive"] {
        let file = sandbox.join(format!("{format}.tar"));
        let path = file.to_str().unwrap();
        lamina.ok([
            "image", "export", "small", "other:2", "--format", format, "-o", path,
        ]);
        let store = another(&lamina, &sandbox, &format!("{format}-store"));
        let message = store.fails(1, ["image", "import", path]);
        assert!(
            message.contains("small") && message.contains("other:2"),
            "{message}"
        );
        store.ok(["image", "import", path, "other:2"]);
        assert_eq!(layers(&store, "other:2"), layers(&lamina, "other:2"));
        store.fails(1, ["image", "inspect", "small"]);
        assert_eq!(
            store.ok(["image", "import", path, "--all"]).lines().count(),
            2
        );
        assert_eq!(layers(&store, "small"), layers(&lamina, "small"));
        let one = sandbox.join(format!("{format}-one"));
        let transport = format!("{format}:");
        // skopeo finds them by name, too.
        let name = if format == "docker-archive" {
            ":small:latest"
        } else {
            ":small"
        };
        skopeo(
            &[],
            &around(&transport, &file, name),
            &around("dir:", &one, ""),
        );
    }
}

#[test]
fn layouts_of_others_are_added_to() {
    let sandbox = Sandbox::new("archives-add");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    lamina.build("other", &[sandbox.join("small-1.tar")]);
    let layout = sandbox.join("layout");
    let path = layout.to_str().unwrap();
    lamina.ok([
        "image", "export", "small", "-o", path, "--format", "oci-dir",
    ]);
    skopeo(
        &[],
        &around("oci:", &layout, ":small"),
        &around("oci:", &layout, ":theirs"),
    );
    lamina.ok([
        "image",
        "export",
        "other",
        "--compression",
        "gzip",
        "-o",
        path,
    ]);
    for (number, name) in ["small", "theirs", "other"].iter().enumerate() {
        let to = around("dir:", &sandbox.join(format!("copy-{number}")), "");
        skopeo(&[], &around("oci:", &layout, &format!(":{name}")), &to);
    }
    let store = another(&lamina, &sandbox, "again");
    store.ok(["image", "import", path, "--all"]);
    assert_eq!(layers(&store, "theirs"), layers(&lamina, "small"));
}

#[test]
fn pipes_at_both_ends() {
    let sandbox = Sandbox::new("archives-pipe");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    for format in ["oci-archive", "docker-archive"] {
        for packer in ["cat", "gzip", "zstd", "xz -0"] {
            let store = another(&lamina, &sandbox, "piped");
            let mut export = lamina
                .command(["image", "export", "small", "--format", format, "-o", "-"])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut words = packer.split(' ');
            let mut pack = Command::new(words.next().unwrap())
                .args(words)
                .stdin(export.stdout.take().unwrap())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let import = store
                .command(["image", "import", "-", "--json"])
                .stdin(pack.stdout.take().unwrap())
                .output()
                .unwrap();
            assert!(import.status.success(), "{packer}: {}", describe(&import));
            assert!(export.wait().unwrap().success() && pack.wait().unwrap().success());
            let said: Value = serde_json::from_slice(&import.stdout).unwrap();
            assert_eq!(said[0]["names"][0], "small");
            assert_eq!(said[0]["taken"].as_array().unwrap().len(), 2, "{packer}");
            assert_eq!(
                layers(&store, "small"),
                layers(&lamina, "small"),
                "{packer}"
            );
            fs::remove_dir_all(store.store()).unwrap();
        }
    }
}

#[test]
fn an_image_for_several_platforms() {
    let sandbox = Sandbox::new("archives-platforms");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let layout = sandbox.join("layout");
    let path = layout.to_str().unwrap();
    lamina.ok([
        "image", "export", "small", "--format", "oci-dir", "-o", path,
    ]);
    // One index, as a registry has it, of two images that differ in platform.
    let blobs = layout.join("blobs/sha256");
    let write = |value: &Value| {
        let bytes = value.to_string().into_bytes();
        let digest = lamina_layers::digest::Digest::of(&bytes);
        fs::write(blobs.join(digest.hex()), &bytes).unwrap();
        (digest.to_string(), bytes.len())
    };
    let read = |digest: &str| -> Value {
        let hex = digest.trim_start_matches("sha256:");
        serde_json::from_slice(&fs::read(blobs.join(hex)).unwrap()).unwrap()
    };
    let manifest = read(&manifest_of(&layout));
    let config = read(manifest["config"]["digest"].as_str().unwrap());
    let mut listed = Vec::new();
    for architecture in ["s390x", "mips64le"] {
        let (mut manifest, mut config) = (manifest.clone(), config.clone());
        config["architecture"] = architecture.into();
        let (digest, size) = write(&config);
        manifest["config"]["digest"] = digest.into();
        manifest["config"]["size"] = size.into();
        let (digest, size) = write(&manifest);
        listed.push(serde_json::json!({
            "mediaType": manifest["mediaType"], "digest": digest, "size": size,
            "platform": { "os": "linux", "architecture": architecture },
        }));
    }
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index =
        serde_json::json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": listed });
    let (digest, size) = write(&index);
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [{
        "mediaType": media_type, "digest": digest, "size": size,
        "annotations": { "org.opencontainers.image.ref.name": "several" },
    }] });
    fs::write(layout.join("index.json"), index.to_string()).unwrap();

    let store = another(&lamina, &sandbox, "again");
    let message = store.fails(1, ["image", "import", path]);
    assert!(
        message.contains("only for linux/mips64le, linux/s390x"),
        "{message}"
    );
    store.ok(["image", "import", path, "--platform", "linux/s390x"]);
    assert_eq!(inspect(&store, "several")["Architecture"], "s390x");
    store.fails(2, ["image", "import", path, "--platform", "s390x"]);
}
