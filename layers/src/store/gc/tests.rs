use std::fs;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::digest::{Digest, ObjectId};
use crate::store::{Access, ImageSpec, Pins, Transaction};
use crate::tar::{
    EntryKind, EntryMeta, ImportOptions, LayerWriter, export_layer, import_layer, stage_layer,
};

fn open(dir: &Path) -> Store {
    Store::open(&dir.join("store"), Access::ReadWrite).unwrap()
}

fn contents(number: u32) -> Vec<u8> {
    number.to_le_bytes().repeat(1000)
}

fn object(number: u32) -> ObjectId {
    ObjectId(Digest::of(&contents(number)))
}

/// An archive with files of the contents of these numbers.
fn archive(numbers: &[u32]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = LayerWriter::new(&mut bytes);
    let meta = EntryMeta {
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: (0, 0),
        xattrs: Vec::new(),
    };
    for number in numbers {
        let contents = contents(*number);
        let kind = EntryKind::File {
            size: 4000,
            segments: None,
            data: &mut contents.as_slice(),
        };
        let path = number.to_string();
        writer.add(path.as_bytes(), &meta, kind).unwrap();
    }
    writer.finish().unwrap();
    bytes
}

fn import(store: &Store, numbers: &[u32]) -> DiffId {
    let options = ImportOptions::default();
    let tar = archive(numbers);
    import_layer(store, tar.as_slice(), "test", &options)
        .unwrap()
        .diff_id
}

fn has(store: &Store, number: u32) -> bool {
    store.object_path(&object(number)).exists()
}

fn collect(store: &Store) -> Swept {
    store.gc(GcOptions::default()).unwrap()
}

#[test]
fn a_layer_stays_while_the_store_that_added_it_is_open() {
    let dir = tempfile::tempdir().unwrap();
    let (adding, other) = (open(dir.path()), open(dir.path()));
    let layer = import(&adding, &[1]);
    assert_eq!(collect(&other), Swept::default());
    assert!(other.is_layer(&layer) && has(&other, 1));
    assert!(matches!(
        other.remove_layer(&layer),
        Err(StoreError::InUse { .. })
    ));
    drop(adding);
    let swept = collect(&other);
    assert_eq!((swept.layers, swept.objects), (vec![layer], 1));
    assert!(!other.is_layer(&layer) && !has(&other, 1));
}

#[test]
fn a_layer_that_was_found_stays_while_the_store_is_open() {
    let dir = tempfile::tempdir().unwrap();
    let layer = import(&open(dir.path()), &[1]);
    let (asking, other) = (open(dir.path()), open(dir.path()));
    assert!(asking.has_layer(&layer));
    collect(&other);
    asking
        .tag("image", &[layer], &ImageSpec::default())
        .unwrap();
    drop(asking);
    assert_eq!(collect(&other), Swept::default());
}

#[test]
fn an_object_that_a_transaction_relies_on_stays() {
    let dir = tempfile::tempdir().unwrap();
    let first = import(&open(dir.path()), &[1, 2]);
    let (adding, other) = (open(dir.path()), open(dir.path()));
    let txn = Transaction::begin(&adding).unwrap();
    let tar = archive(&[2, 3]);
    let options = ImportOptions::default();
    let info = stage_layer(&txn, tar.as_slice(), "test", &options).unwrap();

    let swept = collect(&other);
    assert_eq!((swept.layers, swept.objects), (vec![first], 1));
    assert!(!has(&other, 1) && has(&other, 2));
    txn.commit().unwrap();
    let mut out = Vec::new();
    export_layer(&adding, &info.diff_id, &mut out).unwrap();
    assert_eq!(out, tar);
    drop(adding);
    assert_eq!(collect(&other).objects, 2);
}

#[test]
fn a_transaction_that_is_given_up_protects_nothing() {
    let dir = tempfile::tempdir().unwrap();
    import(&open(dir.path()), &[1]);
    let store = open(dir.path());
    let txn = Transaction::begin(&store).unwrap();
    let tar = archive(&[1, 2]);
    stage_layer(&txn, tar.as_slice(), "test", &ImportOptions::default()).unwrap();
    drop(txn);
    assert_eq!(collect(&store).objects, 1);
}

#[test]
fn kept_changes_need_their_layers() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let layer = import(&store, &[1]);
    let image = store.tag("image", &[layer], &ImageSpec::default()).unwrap();
    let kept = store.mount_dir("kept");
    fs::create_dir(&kept).unwrap();
    let base = serde_json::json!({"image": "image", "layers": [layer], "lowers": []});
    fs::write(kept.join("mount.json"), base.to_string()).unwrap();

    let refused = store
        .remove_image(&image.id, false)
        .unwrap_err()
        .to_string();
    assert!(refused.contains("lamina rm kept"), "{refused}");
    store.remove_image(&image.id, true).unwrap();
    assert!(store.is_layer(&layer) && has(&store, 1));
    collect(&store);
    assert!(store.is_layer(&layer) && has(&store, 1));
    let refused = store.remove_layer(&layer).unwrap_err().to_string();
    assert!(refused.contains("lamina rm kept"), "{refused}");

    // Nobody knows what damaged ones need.
    fs::write(kept.join("mount.json"), "{").unwrap();
    let refused = store.gc(GcOptions::default()).unwrap_err().to_string();
    assert!(refused.contains("lamina rm kept"), "{refused}");
    assert!(store.is_layer(&layer));
    fs::remove_dir_all(&kept).unwrap();
    assert_eq!(collect(&store).layers, [layer]);
}

#[test]
fn images_without_a_name_go_only_if_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (base, top) = (import(&store, &[1]), import(&store, &[2]));
    let spec = ImageSpec::default();
    let old = store.tag("image", &[base, top], &spec).unwrap();
    store.tag("image", &[base], &spec).unwrap();
    assert_eq!(collect(&store), Swept::default());

    let dry = GcOptions {
        all: true,
        dry_run: true,
    };
    let would = store.gc(dry).unwrap();
    assert!(store.image(&old.id).is_ok() && has(&store, 2));
    let did = store
        .gc(GcOptions {
            dry_run: false,
            ..dry
        })
        .unwrap();
    assert_eq!(would, did);
    assert_eq!(
        (did.images, did.layers, did.objects),
        (vec![old.id], vec![top], 1)
    );
    assert_eq!(did.merged, 1);
    assert!(did.bytes > 0);
    assert!(has(&store, 1) && !has(&store, 2));
}

#[test]
fn a_damaged_name_keeps_images_from_being_removed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let layer = import(&store, &[1]);
    store.tag("image", &[layer], &ImageSpec::default()).unwrap();
    fs::write(store.root().join("refs/image"), "sha256:").unwrap();
    let options = GcOptions {
        all: true,
        dry_run: false,
    };
    let refused = store.gc(options).unwrap_err().to_string();
    assert!(refused.contains("refs/image"), "{refused}");
}

#[test]
fn a_layer_that_nobody_can_read_keeps_everything_from_being_removed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let damaged = import(&store, &[1]);
    let spec = ImageSpec::default();
    store.tag("damaged", &[damaged], &spec).unwrap();
    let good = import(&store, &[2]);
    let image = store.tag("good", &[good], &spec).unwrap();
    let files = ["tarsplit", "index"].map(|name| store.layer_dir(&damaged).join(name));

    // The index says as much.
    fs::remove_file(&files[0]).unwrap();
    store.remove_image(&image.id, false).unwrap();
    assert!(has(&store, 1) && !has(&store, 2));
    fs::remove_file(&files[1]).unwrap();
    let refused = store.gc(GcOptions::default()).unwrap_err().to_string();
    assert!(refused.contains(&damaged.to_string()), "{refused}");
    assert!(has(&store, 1));
}

#[test]
fn several_collections_at_once_remove_everything_once() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = open(dir.path());
        for number in 0..40 {
            import(&store, &(number * 50..number * 50 + 60).collect::<Vec<_>>());
        }
    }
    let swept: Vec<Swept> = std::thread::scope(|scope| {
        let collectors: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| collect(&open(dir.path()))))
            .collect();
        collectors
            .into_iter()
            .map(|it| it.join().unwrap())
            .collect()
    });
    let layers: usize = swept.iter().map(|swept| swept.layers.len()).sum();
    let objects: u64 = swept.iter().map(|swept| swept.objects).sum();
    assert_eq!((layers, objects), (40, 39 * 50 + 60));
    let store = open(dir.path());
    assert_eq!(store.layers().unwrap(), []);
    assert_eq!(
        fs::read_dir(store.root().join("staging")).unwrap().count(),
        0
    );
}

#[test]
fn who_waits_for_the_lock_gets_it_between_two_batches() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let total = 8_000_u32;
    for number in 0..total {
        let path = store.object_path(&ObjectId(Digest::of(&number.to_le_bytes())));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }
    let left = || {
        let mut left = 0;
        store
            .for_each_object(|_, _| {
                left += 1;
                Ok(())
            })
            .unwrap();
        left
    };
    std::thread::scope(|scope| {
        let collecting = scope.spawn(|| collect(&store));
        while left() == total {}
        drop(store.lock_shared().unwrap());
        assert!(left() > 0, "it was woken when everything was gone");
        assert_eq!(collecting.join().unwrap().objects, u64::from(total));
    });
}

/// What others take away at the same moment is no error.
#[test]
fn lost_races_are_no_errors() {
    let dir = tempfile::tempdir().unwrap();
    let adding = open(dir.path());
    let layers = [import(&adding, &[1]), import(&adding, &[2])];
    let path = adding.merged_path(&ChainId::of(&layers).unwrap());
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !end.load(Ordering::Relaxed) {
                let _ = fs::remove_file(&path);
            }
        });
        scope.spawn(|| {
            let pins = Pins {
                holder: "a test".into(),
                image: None,
                layers: layers.to_vec(),
                blobs: Vec::new(),
            };
            let store = open(dir.path());
            while !end.load(Ordering::Relaxed) {
                drop(store.lease(&pins).unwrap());
            }
        });
        let used = std::panic::catch_unwind(AssertUnwindSafe(|| {
            for round in 0..500 {
                adding.merged_index(&layers).unwrap();
                adding.clear_stale_leases().unwrap();
                if round % 10 == 0 {
                    untag_at_once(&adding, &layers);
                }
            }
        }));
        end.store(true, Ordering::Relaxed);
        used.unwrap();
    });
}

/// Of two who take a name away, one finds it gone.
fn untag_at_once(store: &Store, layers: &[DiffId]) {
    store.tag("name", layers, &ImageSpec::default()).unwrap();
    let untag = || match store.untag("name") {
        Ok(_) => 1,
        Err(StoreError::NotFound(_)) => 0,
        Err(error) => panic!("{error}"),
    };
    let sum = std::thread::scope(|scope| {
        let other = scope.spawn(untag);
        untag() + other.join().unwrap()
    });
    assert_eq!(sum, 1);
}
