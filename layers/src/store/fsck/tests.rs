use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::*;
use crate::digest::Digest;
use crate::store::{Access, ImageSpec, Source, Transaction};
use crate::tar::{
    EntryKind, EntryMeta, ImportOptions, LayerWriter, Segment, import_layer, stage_layer,
};

const SIZE: u64 = 3 << 20;

fn contents() -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    bytes[1 << 20..(1 << 20) + 5000].fill(7);
    bytes
}

/// An archive with one sparse file.
fn archive() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = LayerWriter::new(&mut bytes);
    let meta = EntryMeta {
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: (0, 0),
        xattrs: Vec::new(),
    };
    let segments = [Segment {
        offset: 1 << 20,
        length: 5000,
    }];
    let kind = EntryKind::File {
        size: SIZE,
        segments: Some(&segments),
        data: &mut [7_u8; 5000].as_slice(),
    };
    writer.add(b"sparse", &meta, kind).unwrap();
    writer.finish().unwrap();
    bytes
}

fn store_with_image(dir: &Path) -> Store {
    let store = Store::open(&dir.join("store"), Access::ReadWrite).unwrap();
    let (tar, options) = (archive(), ImportOptions::default());
    let layer = import_layer(&store, tar.as_slice(), "test", &options).unwrap();
    store
        .tag("image", &[layer.diff_id], &ImageSpec::default())
        .unwrap();
    store
}

fn damage(store: &Store) -> PathBuf {
    let path = store.object_path(&ObjectId(Digest::of(&contents())));
    fs::remove_file(&path).unwrap();
    let file = File::create(&path).unwrap();
    file.set_len(SIZE).unwrap();
    file.write_all_at(b"wrong", 1 << 20).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o444);
    fs::set_permissions(&path, mode).unwrap();
    path
}

fn check(store: &Store) -> Report {
    store.fsck(&FsckOptions::default()).unwrap()
}

#[test]
fn holes_count_as_the_zeros_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_with_image(dir.path());
    let report = check(&store);
    assert_eq!(report.damage, []);
    assert_eq!((report.objects, report.object_bytes), (1, SIZE));
    let path = damage(&store);
    let report = check(&store);
    assert_eq!((report.damage.len(), &report.damage[0].path), (1, &path));
    assert!(report.damage[0].problem.contains("digest"));
}

#[test]
fn what_is_damaged_is_asked_for_by_its_image() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_with_image(dir.path());
    let image = store.resolve("image").unwrap();
    let source = Source::Registry {
        reference: "registry.example/image".into(),
        digest: None,
    };
    store.set_source(&image.id, &source).unwrap();
    let path = damage(&store);
    let mut report = check(&store);
    let refetch = |store: &Store, id: &ImageId, from: &Source| {
        assert_eq!((*id, from), (image.id, &source));
        // A program that has only what is missing sent sees that this is.
        assert!(!store.has_layer(&image.layers[0]));
        let txn = Transaction::begin(store)?;
        stage_layer(
            &txn,
            archive().as_slice(),
            "again",
            &ImportOptions::default(),
        )?;
        txn.commit()?;
        Ok(())
    };
    store.repair(&mut report, &refetch).unwrap();
    assert!(!report.is_damaged(), "{report:#?}");
    assert_eq!(fs::read(path).unwrap(), contents());
    assert!(store.has_layer(&image.layers[0]), "it is trusted again");
    assert_eq!(check(&store).damage, []);
}

#[test]
fn what_cannot_be_had_is_moved_away_and_the_reason_told() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_with_image(dir.path());
    let image = store.resolve("image").unwrap();
    let path = damage(&store);
    let mut report = check(&store);
    store
        .repair(&mut report, &|_, _, _| panic!("no source is known"))
        .unwrap();
    assert!(report.is_damaged() && report.failures[0].contains(&image.id.to_string()));
    let Outcome::Quarantined(to) = &report.damage[0].outcome else {
        panic!("{report:#?}");
    };
    assert!(!path.exists() && to.exists());

    let source = Source::Committed { base: None };
    store.set_source(&image.id, &source).unwrap();
    let mut report = check(&store);
    let refused = |_: &Store, _: &ImageId, _: &Source| Err("the line is dead".into());
    store.repair(&mut report, &refused).unwrap();
    assert!(report.is_damaged());
    assert_eq!(report.failures, ["the line is dead"]);
}

#[test]
fn an_object_that_an_import_relies_on_is_not_moved_away() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_with_image(dir.path());
    let path = damage(&store);
    let importing = Store::open(store.root(), Access::ReadWrite).unwrap();
    let txn = Transaction::begin(&importing).unwrap();
    let tar = archive();
    stage_layer(&txn, tar.as_slice(), "test", &ImportOptions::default()).unwrap();
    let mut report = check(&store);
    store.repair(&mut report, &|_, _, _| Ok(())).unwrap();
    assert!(path.exists());
    let text = format!("{:?}", report.damage[0].outcome);
    assert!(text.contains("import that runs now"), "{text}");
}

#[test]
fn a_lease_that_is_being_written_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_with_image(dir.path());
    let path = store.root().join("leases/new");
    let writing = store.lock_shared().unwrap();
    let mut lease = File::create(&path).unwrap();
    lease.lock().unwrap();
    std::thread::scope(|scope| {
        let checking = scope.spawn(|| store.fsck(&FsckOptions::default()).unwrap());
        std::thread::sleep(std::time::Duration::from_millis(200));
        let pins = serde_json::json!({"holder": "a test", "image": null, "layers": []});
        lease.write_all(pins.to_string().as_bytes()).unwrap();
        drop(writing);
        let report = checking.join().unwrap();
        assert!(!report.is_damaged(), "{:#?}", report.damage);
    });
}
