//! `lamina gc`: everything that is referred to stays, everything else goes, whoever uses the store
//! meanwhile and whenever it is killed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lamina_layers::digest::{DiffId, ObjectId};
use lamina_layers::store::{Access, Store};
use lamina_layers::tar::layer_objects;
use serde_json::Value;

use crate::differential::rng::Rng;
use crate::support::lamina::Lamina;
use crate::support::layers::{Archive, noise};
use crate::support::sandbox::Sandbox;
use crate::support::{describe, needs_root};

/// A layer whose files have contents from a small choice, so that layers share objects.
fn random_layer(sandbox: &Sandbox, rng: &mut Rng, number: usize) -> PathBuf {
    let mut archive = Archive::new(sandbox, &format!("layer-{number}.tar"));
    for file in 0..=rng.below(6) {
        let seed = rng.below(30) as u8;
        archive = archive.file(
            &format!("f{file}"),
            &noise(seed, 600 + usize::from(seed) * 50),
        );
    }
    archive.file("number", &number.to_le_bytes()).finish()
}

fn diff_ids(built: &str) -> Vec<String> {
    let lines: Vec<&str> = built.lines().collect();
    // The last is the chain ID.
    lines[..lines.len() - 1]
        .iter()
        .map(ToString::to_string)
        .collect()
}

fn layers(store: &Path) -> BTreeSet<String> {
    let store = Store::open(store, Access::ReadOnly).unwrap();
    store
        .layers()
        .unwrap()
        .iter()
        .map(ToString::to_string)
        .collect()
}

/// The objects that are in a store, and those that its layers need.
fn objects(root: &Path) -> (BTreeSet<ObjectId>, BTreeSet<ObjectId>) {
    let store = Store::open(root, Access::ReadOnly).unwrap();
    let mut there = BTreeSet::new();
    for prefix in fs::read_dir(root.join("objects")).unwrap() {
        let prefix = prefix.unwrap();
        for entry in fs::read_dir(prefix.path()).unwrap() {
            let names = [prefix.file_name(), entry.unwrap().file_name()];
            let hex: String = names.map(|name| name.into_string().unwrap()).concat();
            there.insert(format!("sha256:{hex}").parse().unwrap());
        }
    }
    let mut needed = BTreeSet::new();
    for layer in store.layers().unwrap() {
        layer_objects(&store, &layer, |object| {
            needed.insert(object);
        })
        .unwrap();
    }
    (there, needed)
}

fn assert_whole(lamina: &Lamina) {
    let result = lamina.output(["fsck", "--deep"]);
    assert!(result.status.success(), "{}", describe(&result));
}

#[test]
fn what_is_referred_to_stays_and_the_rest_goes() {
    needs_root!();
    let seed = std::env::var("LAMINA_GC_SEED").ok().map_or_else(
        || u64::from(std::time::UNIX_EPOCH.elapsed().unwrap().subsec_nanos()),
        |text| text.parse().unwrap(),
    );
    eprintln!("LAMINA_GC_SEED={seed}");
    let mut rng = Rng::new(seed);
    let sandbox = Sandbox::new("gc-random");
    let lamina = Lamina::new(&sandbox);
    let archives: Vec<_> = (0..12)
        .map(|number| random_layer(&sandbox, &mut rng, number))
        .collect();
    let mut images: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut nameless: Vec<Vec<String>> = Vec::new();
    let mut kept: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut mounts = Vec::new();
    for round in 0..25 {
        let name = format!("image{}", rng.below(6));
        match rng.below(10) {
            0..5 => {
                let stack: Vec<_> = (0..=rng.below(4))
                    .map(|_| rng.pick(&archives).clone())
                    .collect();
                let built = diff_ids(&lamina.build(&name, &stack));
                if let Some(old) = images.insert(name, built) {
                    nameless.push(old);
                }
            }
            5 if images.contains_key(&name) => {
                lamina.ok(["image", "untag", &name]);
                nameless.extend(images.remove(&name));
            }
            6 | 7 if images.contains_key(&name) => {
                let target = sandbox.dir(format!("mnt{round}"));
                let changes = format!("changes{round}");
                let mount = lamina.mount(&["--name", &changes, &name], &target);
                kept.insert(changes, images[&name].clone());
                if rng.chance(50) {
                    mounts.push(mount);
                } else {
                    mount.unmount();
                }
            }
            8 => {
                let live = |name: &str| {
                    let found: Value = serde_json::from_str(&lamina.ok(["ps", "--json"])).unwrap();
                    found
                        .as_array()
                        .unwrap()
                        .iter()
                        .any(|mount| mount["name"] == name)
                };
                let dead = kept.keys().find(|name| !live(name)).cloned();
                if let Some(dead) = dead {
                    lamina.ok(["rm", &dead]);
                    kept.remove(&dead);
                }
            }
            // A layer that nothing will need.
            _ => drop(lamina.ok(["layer", "build", rng.pick(&archives).to_str().unwrap()])),
        }
    }

    let all = rng.chance(50);
    lamina.ok(if all { &["gc", "--all"][..] } else { &["gc"] });
    let in_use = |layers: &Vec<String>| kept.values().any(|kept| kept == layers);
    let stays = nameless.iter().filter(|layers| !all || in_use(layers));
    let expected: BTreeSet<String> = images
        .values()
        .chain(kept.values())
        .chain(stays)
        .flatten()
        .cloned()
        .collect();
    assert_eq!(layers(lamina.store()), expected, "seed {seed}, all: {all}");
    let (there, needed) = objects(lamina.store());
    assert_eq!(there, needed, "seed {seed}");
    assert_whole(&lamina);
    for name in images.keys() {
        lamina.ok(["image", "verify", name]);
        lamina
            .mount(&["--read-only", name], &sandbox.join("shown"))
            .unmount();
    }
    drop(mounts);
}

#[test]
fn a_collection_that_is_killed_leaves_a_good_store() {
    needs_root!();
    let sandbox = Sandbox::new("gc-killed");
    let lamina = Lamina::new(&sandbox);
    let mut rng = Rng::new(1);
    let archives: Vec<_> = (0..8)
        .map(|number| {
            let mut archive = Archive::new(&sandbox, &format!("{number}.tar"));
            for file in 0..150 {
                let length = if file == 0 {
                    3 << 20
                } else {
                    700 + rng.below(2000)
                };
                archive = archive.file(&format!("f{file}"), &rng.bytes(length));
            }
            archive.finish()
        })
        .collect();
    lamina.build("stays", &archives[..2]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Others build, mount, commit and remove meanwhile.
        let builder = scope.spawn(|| {
            for round in 0.. {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                let name = format!("passing{}", round % 3);
                lamina.build(&name, &archives[2 + round % 6..3 + round % 6]);
                lamina.ok(["image", "verify", &name]);
                lamina.ok([
                    "layer",
                    "build",
                    archives[2 + (round + 1) % 6].to_str().unwrap(),
                ]);
            }
        });
        let committer = scope.spawn(|| {
            for round in 0_usize.. {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                let mount =
                    lamina.mount(&["--rm", "--name", "work", "stays"], &sandbox.join("work"));
                fs::write(mount.path().join("new"), noise(round as u8, 5_000)).unwrap();
                lamina.ok(["commit", "work", "-t", "committed"]);
                mount.unmount();
                lamina.ok(["image", "verify", "committed"]);
            }
        });
        for round in 0_u64..30 {
            let mut command = lamina.command(["gc", "--all"]);
            let child = command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::piped());
            let mut child = child.spawn().unwrap();
            std::thread::sleep(Duration::from_millis(3 + (round * 7) % 60));
            // It may have ended.
            let _ = child.kill();
            let result = child.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&result.stderr).into_owned();
            assert!(result.status.success() || said.is_empty(), "{said}");
        }
        done.store(true, Ordering::Relaxed);
        builder.join().unwrap();
        committer.join().unwrap();
    });
    assert_whole(&lamina);
    lamina.ok(["image", "verify", "stays"]);
    lamina.ok(["gc", "--all"]);
    let (there, needed) = objects(lamina.store());
    assert_eq!(there, needed);
    assert_eq!(
        fs::read_dir(lamina.store().join("staging"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn a_long_import_keeps_nobody_from_removing_and_loses_nothing() {
    let sandbox = Sandbox::new("gc-import");
    let lamina = Lamina::new(&sandbox);
    // Both have the same large file: the import finds it in the store.
    let old = Archive::new(&sandbox, "old.tar")
        .file("shared", &noise(1, 300_000))
        .finish();
    let new = Archive::new(&sandbox, "new.tar")
        .file("shared", &noise(1, 300_000))
        .file("own", &noise(2, 3_000_000))
        .finish();
    lamina.build("old", &[old]);
    let mut import = lamina
        .command(["layer", "build", "-t", "new", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let bytes = fs::read(&new).unwrap();
    let mut stdin = import.stdin.take().unwrap();
    stdin.write_all(&bytes[..2_000_000]).unwrap();
    // Until it has met the shared file.
    let staging = lamina.store().join("staging");
    crate::support::lamina::wait_until("the import to find the file", || {
        let needs = fs::read_dir(&staging).unwrap();
        let mut needs = needs.map(|entry| entry.unwrap().path().join("needs"));
        needs.any(|path| fs::metadata(path).is_ok_and(|meta| meta.len() == 32))
    });
    lamina.ok(["image", "rm", "old"]);
    lamina.ok(["gc", "--all"]);
    assert_eq!(layers(lamina.store()).len(), 0);

    stdin.write_all(&bytes[2_000_000..]).unwrap();
    drop(stdin);
    let result = import.wait_with_output().unwrap();
    assert!(result.status.success(), "{}", describe(&result));
    lamina.ok(["image", "verify", "new"]);
    assert_whole(&lamina);
    lamina.ok(["gc"]);
    assert_eq!(objects(lamina.store()).0.len(), 2);
}

#[test]
fn a_collection_says_what_it_removes_and_a_dry_run_removes_nothing() {
    let sandbox = Sandbox::new("gc-says");
    let lamina = Lamina::new(&sandbox);
    let first = Archive::new(&sandbox, "1.tar")
        .file("a", &noise(1, 10_000))
        .finish();
    let second = Archive::new(&sandbox, "2.tar")
        .file("b", &noise(2, 10_000))
        .finish();
    lamina.build("image", std::slice::from_ref(&first));
    assert_eq!(lamina.ok(["gc"]), "Nothing to remove\n");
    // The image without a name, and its layer, stay unless all is said.
    lamina.build("image", &[second]);
    assert_eq!(lamina.ok(["gc"]), "Nothing to remove\n");
    let said = lamina.ok(["gc", "--all", "--dry-run"]);
    assert!(
        said.contains("Would remove 1 image, 1 layer, 1 object, 1 merged index"),
        "{said}"
    );
    assert_eq!(layers(lamina.store()).len(), 2);
    let dry: Value = serde_json::from_str(&lamina.ok(["gc", "-a", "-n", "--json"])).unwrap();
    let done: Value = serde_json::from_str(&lamina.ok(["gc", "-a", "--json"])).unwrap();
    assert_eq!(dry, done);
    assert_eq!((&done["objects"], &done["merged"]), (&1.into(), &1.into()));
    assert!(done["bytes"].as_u64().unwrap() >= 10_000, "{done}");
    let removed: Vec<DiffId> = serde_json::from_value(done["layers"].clone()).unwrap();
    assert_eq!(removed.len(), 1);

    // A layer that was built for no image.
    lamina.ok(["layer", "build", first.to_str().unwrap()]);
    let said = lamina.ok(["gc"]);
    assert!(
        said.contains(&format!("Removed layer {}", removed[0])),
        "{said}"
    );
    assert_whole(&lamina);
}

#[test]
fn a_mount_protects_what_it_shows() {
    needs_root!();
    let sandbox = Sandbox::new("gc-mount");
    let lamina = Lamina::new(&sandbox);
    let layer = Archive::new(&sandbox, "1.tar")
        .file("a", &noise(1, 10_000))
        .finish();
    lamina.build("image", &[layer]);
    let mount = lamina.mount(&["--read-only", "image"], &sandbox.join("mnt"));
    lamina.ok(["image", "untag", "image"]);
    assert_eq!(lamina.ok(["gc", "--all"]), "Nothing to remove\n");
    assert_eq!(fs::read(mount.path().join("a")).unwrap(), noise(1, 10_000));
    mount.unmount();
    assert!(lamina.ok(["gc", "--all"]).contains("1 image"));
}

#[test]
fn kept_changes_protect_what_they_belong_on() {
    needs_root!();
    let sandbox = Sandbox::new("gc-kept");
    let lamina = Lamina::new(&sandbox);
    let layer = Archive::new(&sandbox, "1.tar")
        .file("a", &noise(1, 10_000))
        .finish();
    lamina.build("image", &[layer]);
    let target = sandbox.join("mnt");
    let mount = lamina.mount(&["--name", "kept", "image"], &target);
    fs::write(mount.path().join("new"), "mine").unwrap();
    mount.unmount();
    let message = lamina.fails(1, ["image", "rm", "image"]);
    assert!(message.contains("lamina rm kept"), "{message}");
    lamina.ok(["image", "untag", "image"]);
    lamina.ok(["gc", "--all"]);
    let id: Value = serde_json::from_str(&lamina.ok(["image", "ls", "--json"])).unwrap();
    let id = id[0]["id"].as_str().unwrap();
    let mount = lamina.mount(&["--name", "kept", id], &target);
    assert_eq!(
        fs::read_to_string(mount.path().join("new")).unwrap(),
        "mine"
    );
    assert_eq!(fs::read(mount.path().join("a")).unwrap(), noise(1, 10_000));
    mount.unmount();
    lamina.ok(["image", "rm", "--force", id]);
    assert_eq!(
        layers(lamina.store()).len(),
        1,
        "the layers that the changes need"
    );
    // They can still be looked at.
    assert!(lamina.ok(["diff", "kept"]).contains("A /new"));
    lamina.ok(["rm", "kept"]);
    lamina.ok(["gc"]);
    assert_eq!(layers(lamina.store()).len(), 0);
}
