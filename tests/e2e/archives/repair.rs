//! What is damaged is imported again from the archive or the directory that it came from.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{another, small_image};
use crate::support::damage::{flip, image, large_object};
use crate::support::lamina::Lamina;
use crate::support::layers::Archive;
use crate::support::run;
use crate::support::sandbox::Sandbox;

/// What is damaged in a store, by the name of the test's image there.
const DAMAGE: [fn(&Path) -> PathBuf; 3] = [
    large_object,
    |store| image(store, "there").join("manifest.json"),
    |store| image(store, "there").join("config.json"),
];

/// Places that have the image `small` of a store, and another.
fn places(sandbox: &Sandbox, lamina: &Lamina) -> Vec<PathBuf> {
    let mut places = Vec::new();
    for format in ["oci-dir", "oci-archive", "docker-archive"] {
        let place = sandbox.join(format);
        let path = place.to_str().unwrap();
        lamina.ok(["image", "export", "small", "--format", format, "-o", path]);
        places.push(place);
    }
    // One that is read in one go.
    run(Command::new("gzip").args(["-1", "-k", places[2].to_str().unwrap()]));
    places.push(sandbox.join("docker-archive.gz"));
    places
}

#[test]
fn what_is_damaged_is_imported_again() {
    let sandbox = Sandbox::new("archives-repair");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    for place in places(&sandbox, &lamina) {
        let store = another(&lamina, &sandbox, "other");
        store.ok(["image", "import", place.to_str().unwrap(), "-t", "there"]);
        for damage in DAMAGE {
            let path = damage(store.store());
            let whole = fs::read(&path).unwrap();
            flip(&path);
            store.fails(1, ["fsck"]);
            let said = store.ok(["fsck", "--repair"]);
            assert!(said.contains("imported again"), "{place:?}: {said}");
            assert_eq!(fs::read(&path).unwrap(), whole, "{path:?}");
            store.ok(["fsck"]);
            store.ok(["image", "verify", "there"]);
        }
        // It got no other name by that.
        let names = store.ok(["image", "ls", "--json"]);
        assert!(!names.contains("small"), "{names}");
        fs::remove_dir_all(store.store()).unwrap();
    }
}

#[test]
fn another_image_in_its_place_repairs_nothing() {
    let sandbox = Sandbox::new("archives-repair-no");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let place = places(&sandbox, &lamina).remove(1);
    let store = another(&lamina, &sandbox, "other");
    store.ok(["image", "import", place.to_str().unwrap(), "-t", "there"]);
    let another = Archive::new(&sandbox, "another.tar").file("file", b"another");
    lamina.build("small", &[another.finish()]);
    fs::remove_file(&place).unwrap();
    lamina.ok(["image", "export", "small", "-o", place.to_str().unwrap()]);
    let path = large_object(store.store());
    flip(&path);
    let output = store.output(["fsck", "--repair"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        said.contains("not to be had again") && said.contains(place.to_str().unwrap()),
        "{said}"
    );
    assert!(said.contains("quarantine"), "{said}");
}
