//! `lamina image`: names, what is listed, what is removed.

use std::fs;
use std::os::unix::fs::MetadataExt;

use lamina_layers::digest::Digest;
use serde_json::Value;

use crate::support::lamina::Lamina;
use crate::support::layers::{Archive, noise};
use crate::support::needs_root;
use crate::support::sandbox::Sandbox;

fn json(lamina: &Lamina, arguments: &[&str]) -> Value {
    serde_json::from_str(&lamina.ok(arguments)).unwrap()
}

/// An image `app` of two layers, and `other` that has the lower one.
fn two_images(sandbox: &Sandbox) -> Lamina {
    let lamina = Lamina::new(sandbox);
    let base = Archive::new(sandbox, "base.tar")
        .file("base", &noise(1, 100_000))
        .finish();
    let top = Archive::new(sandbox, "top.tar")
        .file("top", &noise(2, 50_000))
        .finish();
    lamina.build("app", &[base.clone(), top]);
    lamina.build("other", &[base]);
    lamina
}

fn names(lamina: &Lamina) -> Vec<String> {
    let images = json(lamina, &["image", "ls", "--json"]);
    let images = images.as_array().unwrap().iter();
    images
        .flat_map(|image| image["names"].as_array().unwrap().clone())
        .map(|name| name.as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn an_image_goes_with_its_last_name() {
    let sandbox = Sandbox::new("images-names");
    let lamina = two_images(&sandbox);
    lamina.ok([
        "image",
        "tag",
        "app",
        "app:1.0",
        "registry.example:5000/team/app",
    ]);
    assert_eq!(names(&lamina).len(), 4);
    lamina.fails(1, ["image", "tag", "app", "A Wrong Name"]);
    lamina.fails(1, ["image", "tag", "nothing", "name"]);

    assert_eq!(
        lamina.ok(["image", "rm", "app:latest"]),
        "Untagged: app:latest\n"
    );
    let id = json(&lamina, &["image", "inspect", "app:1.0"])[0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let message = lamina.fails(1, ["image", "rm", &id[..19]]);
    assert!(
        message.contains("app:1.0") && message.contains("--force"),
        "{message}"
    );
    lamina.ok(["image", "rm", "registry.example:5000/team/app"]);
    let said = lamina.ok(["image", "rm", "app:1.0"]);
    assert_eq!(said, format!("Untagged: app:1.0\nDeleted: {id}\n"));
    assert_eq!(names(&lamina), ["other"]);
    // What only it needed is gone at once.
    let df = json(&lamina, &["image", "df", "--json"]);
    assert_eq!(df["unneeded"], 0, "{df}");
    assert_eq!(
        fs::read_dir(lamina.store().join("layers")).unwrap().count(),
        1
    );
    lamina.ok(["image", "verify", "other"]);

    // Several at once: what can be removed is.
    lamina.ok(["image", "tag", "other", "third"]);
    let message = lamina.fails(1, ["image", "rm", "nothing", "third", "nobody", "other"]);
    assert!(
        message.contains("'nothing'") && message.contains("'nobody'"),
        "{message}"
    );
    assert!(names(&lamina).is_empty());
    assert_eq!(
        fs::read_dir(lamina.store().join("layers")).unwrap().count(),
        0
    );
}

#[test]
fn an_image_with_several_names_is_removed_by_digest_if_forced() {
    let sandbox = Sandbox::new("images-force");
    let lamina = two_images(&sandbox);
    lamina.ok(["image", "tag", "app", "second"]);
    let image = &json(&lamina, &["image", "inspect", "app"])[0];
    let config = image["Id"]
        .as_str()
        .unwrap()
        .strip_prefix("sha256:")
        .unwrap();
    lamina.ok(["image", "rm", "--force", &config[..12]]);
    assert_eq!(names(&lamina), ["other"]);
    lamina.ok(["image", "untag", "other"]);
    assert!(names(&lamina).is_empty());
    let listed = lamina.ok(["image", "ls", "--dangling", "--quiet"]);
    lamina.ok(["image", "rm", listed.trim()]);
    assert_eq!(
        json(&lamina, &["image", "ls", "--json"]),
        serde_json::json!([])
    );
}

#[test]
fn an_image_in_use_is_not_removed_and_who_uses_it_is_told() {
    needs_root!();
    let sandbox = Sandbox::new("images-used");
    let lamina = two_images(&sandbox);
    let mount = lamina.mount(&["--read-only", "app"], &sandbox.join("mnt"));
    for force in [&[][..], &["--force"]] {
        let message = lamina.fails(1, [&["image", "rm", "app"], force].concat());
        assert!(
            message.contains(mount.path().to_str().unwrap()),
            "{message}"
        );
    }
    // Another name of it may go.
    lamina.ok(["image", "tag", "app", "more"]);
    lamina.ok(["image", "rm", "app"]);
    lamina.fails(1, ["image", "rm", "more"]);
    mount.unmount();
    lamina.ok(["image", "rm", "more"]);
}

#[test]
fn digests_may_be_shortened_as_long_as_they_are_clear() {
    let sandbox = Sandbox::new("images-short");
    let lamina = two_images(&sandbox);
    let image = json(&lamina, &["image", "inspect", "app"])[0].clone();
    for field in ["id", "chain_id", "Id", "config_digest"] {
        let digest = image[field].as_str().unwrap();
        for length in [19, 40, digest.len()] {
            for text in [
                &digest[..length],
                digest[..length].strip_prefix("sha256:").unwrap(),
            ] {
                let found = json(&lamina, &["image", "inspect", text]);
                assert_eq!(found[0]["id"], image["id"], "{field} {text}");
            }
        }
    }
    // Until two digests begin with the same four digits, the fewest that name something.
    let mut known = std::collections::HashMap::new();
    for number in 0..100_000 {
        let name = number.to_string();
        let layer = Archive::new(&sandbox, "small.tar")
            .file(&name, b"x")
            .finish();
        let hex = fs::read(&layer).map(|tar| hex(&tar)).unwrap();
        if let Some(first) = known.insert(hex[..4].to_owned(), name.clone()) {
            for name in [first, name] {
                let layer = Archive::new(&sandbox, "small.tar")
                    .file(&name, b"x")
                    .finish();
                lamina.ok(["layer", "build", layer.to_str().unwrap()]);
            }
            let message = lamina.fails(1, ["image", "inspect", &hex[..4]]);
            assert!(
                message.contains("any of") && message.contains(&hex),
                "{message}"
            );
            let message = lamina.fails(1, ["image", "inspect", &hex[..3]]);
            assert!(message.contains("no image or layer"), "{message}");
            return;
        }
    }
    panic!("no two of so many digests begin alike");
}

fn hex(bytes: &[u8]) -> String {
    Digest::of(bytes).hex()
}

#[test]
fn images_are_listed_as_people_know_it() {
    let sandbox = Sandbox::new("images-ls");
    let lamina = two_images(&sandbox);
    lamina.ok(["image", "tag", "app", "app:1.0"]);
    let listed = lamina.ok(["image", "ls"]);
    let lines: Vec<Vec<&str>> = listed
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(lines[0][..2], ["NAME", "TAG"]);
    assert_eq!(lines.len(), 4);
    assert_eq!(lines[1][..2], ["app", "latest"]);
    assert_eq!(lines[2][..2], ["app", "1.0"]);
    assert_eq!(lines[1][2], lines[2][2]);
    assert_eq!(lines[1][2].len(), 12);

    assert_eq!(lamina.ok(["image", "ls", "--quiet"]).lines().count(), 2);
    assert_eq!(lamina.ok(["image", "ls", "app"]).lines().count(), 3);
    assert_eq!(lamina.ok(["image", "ls", "app:1.0"]).lines().count(), 2);
    assert_eq!(lamina.ok(["image", "ls", "nothing"]).lines().count(), 1);
    let digests = lamina.ok(["image", "ls", "--digests", "other"]);
    let id = json(&lamina, &["image", "inspect", "other"])[0]["id"].clone();
    assert!(digests.contains(id.as_str().unwrap()), "{digests}");
    lamina.fails(2, ["image", "ls", "--quiet", "--json"]);
}

#[test]
fn inspect_has_what_docker_and_podman_users_look_for() {
    let sandbox = Sandbox::new("images-inspect");
    let lamina = two_images(&sandbox);
    let images = json(
        &lamina,
        &["image", "inspect", "--format", "json", "app", "other"],
    );
    assert_eq!(images.as_array().unwrap().len(), 2);
    let app = &images[0];
    assert_eq!(app["RepoTags"], serde_json::json!(["app:latest"]));
    assert_eq!(
        app["RepoDigests"][0],
        format!("app@{}", app["id"].as_str().unwrap())
    );
    assert_eq!(app["RootFS"]["Type"], "layers");
    assert_eq!(app["RootFS"]["Layers"], app["layers"]);
    assert_eq!(
        (&app["Os"], &app["Id"]),
        (&"linux".into(), &app["config_digest"])
    );
    assert!(app["Architecture"].is_string() && app["Config"].is_object());
    assert_eq!(app["source"]["kind"], "built");
    let from = app["source"]["from"].as_array().unwrap();
    assert!(from[1].as_str().unwrap().ends_with("/top.tar"), "{from:?}");
    // What was there before.
    for field in ["id", "names", "chain_id", "layers", "size", "config"] {
        assert!(!app[field].is_null(), "{field}");
    }
    let files = fs::read_dir(lamina.store().join("images")).unwrap();
    let config = files
        .map(|entry| fs::read(entry.unwrap().path().join("config.json")).unwrap())
        .find(|config| app["Id"] == format!("sha256:{}", hex(config)));
    assert!(config.is_some(), "Id is the digest of no configuration");
    lamina.fails(1, ["image", "inspect", "app", "nothing"]);
}

#[test]
fn history_has_each_step_with_its_layer() {
    needs_root!();
    let sandbox = Sandbox::new("images-history");
    let lamina = two_images(&sandbox);
    let mount = lamina.mount(&["--rm", "--name", "work", "app"], &sandbox.join("mnt"));
    fs::write(mount.path().join("new"), noise(3, 20_000)).unwrap();
    lamina.ok(["commit", "work", "-t", "committed"]);
    mount.unmount();
    let steps = json(&lamina, &["image", "history", "--json", "committed"]);
    let layers = json(&lamina, &["image", "inspect", "committed"])[0]["layers"].clone();
    let layers: Vec<&Value> = layers.as_array().unwrap().iter().rev().collect();
    let with_layer: Vec<&Value> = steps
        .as_array()
        .unwrap()
        .iter()
        .filter(|step| !step["layer"].is_null())
        .map(|step| &step["layer"])
        .collect();
    assert_eq!(with_layer, layers);
    let sizes: Vec<u64> = steps
        .as_array()
        .unwrap()
        .iter()
        .map(|step| step["size"].as_u64().unwrap())
        .collect();
    assert!(
        sizes.contains(&20_000) && sizes.contains(&50_000) && sizes.contains(&100_000),
        "{sizes:?}"
    );
    let shown = lamina.ok(["image", "history", "committed"]);
    assert!(
        shown.contains("CREATED BY") && shown.contains("lamina commit"),
        "{shown}"
    );
    assert_eq!(shown.lines().count(), 1 + steps.as_array().unwrap().len());
    let full = lamina.ok(["image", "history", "--no-trunc", "committed"]);
    assert!(full.contains(layers[0].as_str().unwrap()), "{full}");
}

#[test]
fn disk_usage_tells_what_is_shared() {
    let sandbox = Sandbox::new("images-df");
    let lamina = two_images(&sandbox);
    let df = json(&lamina, &["image", "df", "--json"]);
    let by_name = |name: &str| {
        let images = df["images"].as_array().unwrap().iter();
        images
            .clone()
            .find(|image| image["names"][0] == name)
            .unwrap()
            .clone()
    };
    let number = |value: &Value| value.as_u64().unwrap();
    let (app, other) = (by_name("app"), by_name("other"));
    for image in [&app, &other] {
        assert_eq!(
            number(&image["total"]),
            number(&image["shared"]) + number(&image["unique"])
        );
        assert!(number(&image["shared"]) >= 100_000, "{image}");
    }
    assert!(
        number(&app["unique"]) >= 50_000 && number(&other["unique"]) < 50_000,
        "{df}"
    );
    assert!(df["factor"].as_f64().unwrap() > 1.2, "{df}");
    assert_eq!(df["unneeded"], 0);

    // What is told to be freed is.
    let before = number(&df["total"]);
    lamina.ok(["image", "rm", "app"]);
    let after = json(&lamina, &["image", "df", "--json"]);
    assert_eq!(number(&after["total"]), before - number(&app["unique"]));
    let top = Archive::new(&sandbox, "alone.tar")
        .file("x", &noise(9, 40_000))
        .finish();
    lamina.ok(["layer", "build", top.to_str().unwrap()]);
    let df = json(&lamina, &["image", "df", "--json"]);
    assert!(number(&df["unneeded"]) >= 40_000, "{df}");
    let shown = lamina.ok(["image", "df"]);
    assert!(
        shown.contains("UNIQUE") && shown.contains("lamina gc"),
        "{shown}"
    );
}

#[test]
fn disk_usage_has_kept_blobs() {
    let sandbox = Sandbox::new("images-df-blobs");
    let lamina = two_images(&sandbox);
    let file = sandbox.join("app.tar");
    let path = file.to_str().unwrap();
    lamina.ok(["image", "export", "app", "-o", path]);
    let numbers = |keep: &[&str]| {
        let store = lamina.with_store(&sandbox.join(format!("store{}", keep.len())));
        let mut import = vec!["image", "import", path];
        import.extend(keep);
        store.ok(import);
        let df = json(&store, &["image", "df", "--json"]);
        let image = &df["images"][0];
        assert_eq!(df["unneeded"], 0, "{df}");
        assert_eq!(df["total"], image["total"], "{df}");
        assert_eq!(image["unique"], image["total"], "{df}");
        let blobs = fs::read_dir(store.store().join("blobs")).unwrap();
        let sizes = blobs.map(|blob| blob.unwrap().metadata().unwrap().blocks() * 512);
        let blobs: u64 = sizes.sum();
        store.ok(["image", "rm", "app"]);
        assert_eq!(json(&store, &["image", "df", "--json"])["total"], 0);
        (df["total"].as_u64().unwrap(), blobs)
    };
    let (without, none) = numbers(&[]);
    let (with, blobs) = numbers(&["--keep-blobs"]);
    assert_eq!(none, 0);
    assert!(blobs > 100_000, "{blobs}");
    assert_eq!(with, without + blobs);
}

#[test]
fn verify_checks_down_to_the_contents() {
    let sandbox = Sandbox::new("images-verify");
    let lamina = two_images(&sandbox);
    let said = lamina.ok(["image", "verify", "app", "other"]);
    let image = json(&lamina, &["image", "inspect", "app"])[0].clone();
    for digest in [
        &image["id"],
        &image["Id"],
        &image["layers"][0],
        &image["layers"][1],
    ] {
        assert!(said.contains(digest.as_str().unwrap()), "{said}");
    }
    let verified = json(&lamina, &["image", "verify", "--json", "app"]);
    assert_eq!(verified[0]["layers"].as_array().unwrap().len(), 2);

    // One byte of one file.
    let found = std::process::Command::new("find")
        .arg(lamina.store().join("objects"))
        .args(["-size", "50000c"])
        .output()
        .unwrap();
    let path = String::from_utf8(found.stdout).unwrap();
    let path = path.trim();
    let mut bytes = fs::read(path).unwrap();
    bytes[40_000] ^= 1;
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
    let message = lamina.fails(1, ["image", "verify", "app", "other"]);
    let hex = path.rsplit_once("objects/").unwrap().1.replace('/', "");
    assert!(
        message.contains("image app is not right") && message.contains(&hex),
        "{message}"
    );
}
