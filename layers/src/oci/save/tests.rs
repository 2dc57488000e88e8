use super::*;
use crate::oci::{LoadOptions, Origin, load};
use crate::store::ImageSpec;
use crate::store::oci::LAYER_GZIP;
use crate::tar::tests::{Archive, Scratch, noise, scratch};
use crate::tar::{ImportOptions, import_layer};

/// A store with an image of three layers, two of them the same.
fn store() -> (Scratch, ImageId) {
    let scratch = scratch();
    let mut layers = Vec::new();
    for number in [1, 2, 1] {
        let archive = Archive::default()
            .file("file", &noise(number, 200_000))
            .file("text", &b"packs well ".repeat(10_000))
            .end();
        let options = ImportOptions::default();
        let info = import_layer(&scratch.store, archive.as_slice(), "layer", &options).unwrap();
        layers.push(info.diff_id);
    }
    let image = scratch.store.tag("made:1", &layers, &ImageSpec::default());
    let id = image.unwrap().id;
    (scratch, id)
}

fn image(id: ImageId, name: &str) -> SaveImage {
    SaveImage {
        id,
        name: Some(name.to_owned()),
    }
}

fn options(scratch: &Scratch, compression: Option<Compression>) -> SaveOptions<'_> {
    SaveOptions {
        compression,
        scratch: scratch.dir.path(),
        progress: &(),
    }
}

fn archive(
    from: &Scratch,
    id: ImageId,
    format: ArchiveFormat,
    compression: Option<Compression>,
) -> (Vec<u8>, Saved) {
    let mut out = Vec::new();
    let how = options(from, compression);
    let saved = save_archive(&from.store, &[image(id, "made:1")], format, &mut out, &how);
    (out, saved.unwrap().remove(0))
}

/// Loads an archive into a store of its own.
fn reload(archive: &[u8], keep_blobs: bool) -> (Scratch, ImageId) {
    let scratch = scratch();
    let mut options = LoadOptions::default();
    options.ingest.keep_blobs = keep_blobs;
    let origin = Origin::Stream(Box::new(archive), "the archive");
    let mut loaded = load(&scratch.store, origin, &options).unwrap();
    assert_eq!(loaded.len(), 1);
    let loaded = loaded.remove(0);
    assert_eq!(loaded.given, ["made:1"]);
    (scratch, loaded.ingested.image.id)
}

#[test]
fn an_image_goes_out_as_it_is_and_comes_back() {
    let (from, id) = store();
    let (plain, saved) = archive(&from, id, ArchiveFormat::Oci, None);
    assert_eq!((saved.manifest, saved.changed), (id.0, false));
    assert_eq!(
        archive(&from, id, ArchiveFormat::Oci, None).0,
        plain,
        "it differs each time"
    );
    let (to, again) = reload(&plain, false);
    assert_eq!(again, id);
    assert_eq!(archive(&to, again, ArchiveFormat::Oci, None).0, plain);
}

#[test]
fn what_was_packed_here_is_packed_again_with_the_same_digests() {
    let (from, id) = store();
    for compression in [Compression::Gzip, Compression::Zstd] {
        let (packed, saved) = archive(&from, id, ArchiveFormat::Oci, Some(compression));
        assert!(saved.changed && saved.manifest != id.0);
        for keep_blobs in [false, true] {
            let (to, packed_id) = reload(&packed, keep_blobs);
            assert_eq!(packed_id.0, saved.manifest);
            assert_eq!(to.store.blobs().unwrap().is_empty(), !keep_blobs);
            let (again, saved) = archive(&to, packed_id, ArchiveFormat::Oci, None);
            assert!(!saved.changed);
            assert_eq!(again, packed, "{}", compression.name());
            // And back to what it was.
            let (plain, _) = archive(&to, packed_id, ArchiveFormat::Oci, Some(Compression::None));
            let (_, plain_id) = reload(&plain, false);
            let (layers, others) = (from.store.image(&id), to.store.image(&packed_id));
            assert_eq!(layers.unwrap().layers, others.unwrap().layers);
            assert_eq!(plain_id, id);
        }
    }
}

#[test]
fn dockers_archives_keep_the_configuration() {
    let (from, id) = store();
    let (saved, _) = archive(&from, id, ArchiveFormat::Docker, None);
    let (to, docker_id) = reload(&saved, false);
    let config = |scratch: &Scratch, id: &ImageId| scratch.store.image_files(id).unwrap().config;
    assert_eq!(config(&to, &docker_id), config(&from, &id));
    assert_eq!(
        archive(&to, docker_id, ArchiveFormat::Docker, None).0,
        saved
    );
    // As an OCI layout it has the OCI's media types only.
    let (oci, saved) = archive(&to, docker_id, ArchiveFormat::Oci, None);
    assert!(saved.changed);
    let (again, oci_id) = reload(&oci, false);
    let manifest = again.store.image_files(&oci_id).unwrap().manifest;
    assert!(!String::from_utf8(manifest).unwrap().contains("docker"));
    assert_eq!(config(&again, &oci_id), config(&from, &id));
}

#[test]
fn a_damaged_kept_blob_is_noticed() {
    let (from, id) = store();
    let (packed, _) = archive(&from, id, ArchiveFormat::Oci, Some(Compression::Gzip));
    let (to, id) = reload(&packed, true);
    let (digest, size) = to.store.blobs().unwrap()[0];
    let path = to.store.blob_path(&digest);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, vec![7; size as usize]).unwrap();
    let how = options(&to, None);
    let images = [image(id, "made:1")];
    let result = save_archive(
        &to.store,
        &images,
        ArchiveFormat::Oci,
        std::io::sink(),
        &how,
    );
    let error = result.unwrap_err().to_string();
    assert!(
        error.contains(&digest.hex()) && error.contains("Remove it"),
        "{error}"
    );
    // One of another length does not count.
    std::fs::write(&path, "short").unwrap();
    assert_eq!(archive(&to, id, ArchiveFormat::Oci, None).0, packed);
}

#[test]
fn layouts_are_added_to() {
    let (from, id) = store();
    let how = options(&from, None);
    let dir = from.dir.path().join("layout");
    let save = |image: SaveImage, how: &SaveOptions<'_>| {
        save_to_dir(&from.store, &[image], &dir, how).unwrap()
    };
    save(image(id, "one"), &how);
    save(image(id, "two"), &how);
    let gzip = options(&from, Some(Compression::Gzip));
    let packed = save(image(id, "one"), &gzip).remove(0);
    let index = std::fs::read(dir.join("index.json")).unwrap();
    let index: Index = serde_json::from_slice(&index).unwrap();
    let names: Vec<_> = index
        .manifests
        .iter()
        .map(|it| (it.annotation(REF_NAME).unwrap(), it.digest.clone()))
        .collect();
    assert_eq!(
        names,
        [
            ("two", id.to_string()),
            ("one", packed.manifest.to_string())
        ]
    );
    let manifest = dir.join("blobs/sha256").join(packed.manifest.hex());
    assert!(
        std::fs::read_to_string(manifest)
            .unwrap()
            .contains(LAYER_GZIP)
    );

    let to = scratch();
    let all = LoadOptions {
        all: true,
        ..LoadOptions::default()
    };
    let loaded = load(&to.store, Origin::Path(&dir), &all).unwrap();
    assert_eq!(loaded.len(), 2);

    let other = from.dir.path().join("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("file"), "mine").unwrap();
    let error = save_to_dir(&from.store, &[image(id, "one")], &other, &how).unwrap_err();
    assert!(error.to_string().contains("not an OCI layout"), "{error}");
    assert_eq!(std::fs::read_dir(&other).unwrap().count(), 1);
}
