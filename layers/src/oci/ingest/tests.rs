use std::collections::HashMap;
use std::io::Cursor;

use parking_lot::Mutex;

use serde_json::{Value, json};

use super::*;
use crate::store::GcOptions;
use crate::store::oci::{CONFIG, DOCKER_CONFIG, DOCKER_MANIFEST, LAYER, LAYER_GZIP, MANIFEST};
use crate::tar::export_layer;
use crate::tar::tests::{Archive, Scratch, files, noise, scratch};

/// An image in memory, to be spoiled.
#[derive(Clone)]
struct Made {
    manifest: Value,
    config: Value,
    blobs: HashMap<String, Vec<u8>>,
}

/// Gives what it has, and notes what it was asked for.
struct Memory<'a> {
    blobs: &'a HashMap<String, Vec<u8>>,
    opened: Mutex<Vec<String>>,
}

impl BlobSource for Memory<'_> {
    fn open(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>, SourceError> {
        self.opened.lock().push(descriptor.digest.clone());
        match self.blobs.get(&descriptor.digest) {
            Some(blob) => Ok(Box::new(Cursor::new(blob))),
            None => Err("it is not in memory".into()),
        }
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    flate2::bufread::GzEncoder::new(bytes, flate2::Compression::fast())
        .read_to_end(&mut packed)
        .unwrap();
    packed
}

fn archive(number: u64) -> Vec<u8> {
    Archive::default()
        .file(&format!("file-{number}"), &noise(number, 3000))
        .file("small", &[number as u8])
        .end()
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({
        "mediaType": media_type, "digest": Digest::of(bytes).to_string(), "size": bytes.len(),
    })
}

impl Made {
    /// Layers packed and not, one of them twice.
    fn new() -> Self {
        let archives = [archive(1), archive(2), archive(3), archive(2)];
        let diff_ids: Vec<_> = archives
            .iter()
            .map(|it| Digest::of(it).to_string())
            .collect();
        let mut blobs = HashMap::new();
        let mut layers = Vec::new();
        for (number, archive) in archives.iter().enumerate() {
            let (blob, media_type) = match number {
                2 => (archive.clone(), LAYER),
                _ => (gzip(archive), LAYER_GZIP),
            };
            layers.push(descriptor(media_type, &blob));
            blobs.insert(Digest::of(&blob).to_string(), blob);
        }
        Self {
            manifest: json!({
                "schemaVersion": 2, "mediaType": MANIFEST, "layers": layers, "note": [1, "as it was"],
            }),
            config: json!({
                "architecture": "amd64", "os": "linux", "container_config": { "Hostname": "x" },
                "rootfs": { "type": "layers", "diff_ids": diff_ids },
            }),
            blobs,
        }
    }

    fn files(&self) -> (Vec<u8>, Vec<u8>) {
        // Not the form that this crate writes.
        let config = serde_json::to_vec_pretty(&self.config).unwrap();
        let mut manifest = self.manifest.clone();
        if manifest.get("config").is_none() {
            manifest["config"] = descriptor(CONFIG, &config);
        }
        (serde_json::to_vec_pretty(&manifest).unwrap(), config)
    }

    fn blob(&mut self, layer: usize) -> &mut Vec<u8> {
        let digest = self.manifest["layers"][layer]["digest"].as_str().unwrap();
        self.blobs.get_mut(digest).unwrap()
    }

    /// Takes it; also what was read.
    fn take(&self, scratch: &Scratch, keep_blobs: bool) -> (Result<Ingested, IngestError>, usize) {
        let (manifest, config) = self.files();
        let source = Memory {
            blobs: &self.blobs,
            opened: Mutex::default(),
        };
        let options = IngestOptions {
            keep_blobs,
            ..IngestOptions::default()
        };
        let name = Some("made:1");
        let result = ingest(&scratch.store, &source, name, &manifest, &config, &options);
        let opened = source.opened.into_inner().len();
        (result, opened)
    }

    /// Takes it in vain: no image is there after that, nothing is staged, and all layers are whole.
    #[track_caller]
    fn fails(&self) -> String {
        let scratch = scratch();
        let error = self.take(&scratch, true).0.unwrap_err().to_string();
        assert_eq!(scratch.store.images().unwrap(), [], "{error}");
        let staged = files(&scratch.store.root().join("staging"));
        assert_eq!(staged.len(), 1, "{staged:?}");
        for id in scratch.store.layers().unwrap() {
            export_layer(&scratch.store, &id, io::sink()).unwrap();
        }
        for (digest, _) in scratch.store.blobs().unwrap() {
            let bytes = std::fs::read(scratch.store.blob_path(&digest)).unwrap();
            assert_eq!(Digest::of(&bytes), digest);
        }
        error
    }
}

#[test]
fn an_image_is_taken_as_it_is_and_its_layers_once() {
    let (made, scratch) = (Made::new(), scratch());
    let (first, read) = made.take(&scratch, false);
    let first = first.unwrap();
    assert_eq!((first.taken.len(), read), (3, 3), "a layer was read twice");
    assert_eq!(first.image.names, ["made:1"]);
    assert_eq!(first.image.layers.len(), 4);
    let kept = scratch.store.image_files(&first.image.id).unwrap();
    let (manifest, config) = made.files();
    assert_eq!((kept.manifest, kept.config), (manifest, config));
    for id in &first.image.layers {
        export_layer(&scratch.store, id, io::sink()).unwrap();
    }
    assert_eq!(scratch.store.blobs().unwrap(), []);

    let (again, read) = made.take(&scratch, false);
    assert_eq!((again.unwrap().taken.len(), read), (0, 0));
}

#[test]
fn blobs_are_kept_where_asked_for_and_go_with_the_image() {
    let (made, scratch) = (Made::new(), scratch());
    made.take(&scratch, false).0.unwrap();
    let (result, read) = made.take(&scratch, true);
    let image = result.unwrap().image;
    assert_eq!(read, 3, "layers that are there without their blobs");
    assert_eq!(made.take(&scratch, true).1, 0);
    let mut expected: Vec<_> = made
        .blobs
        .values()
        .map(|blob| (Digest::of(blob), blob.len() as u64))
        .collect();
    expected.sort_unstable();
    assert_eq!(scratch.store.blobs().unwrap(), expected);
    for (digest, size) in expected {
        let mut file = scratch.store.open_blob(&digest, size).unwrap().unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, made.blobs[&digest.to_string()]);
    }
    scratch.store.gc(GcOptions::default()).unwrap();
    assert_eq!(
        scratch.store.blobs().unwrap().len(),
        3,
        "a needed blob went"
    );
    let swept = scratch.store.remove_image(&image.id, false).unwrap();
    assert_eq!((swept.blobs, scratch.store.blobs().unwrap().len()), (3, 0));
}

#[test]
fn what_was_complete_is_not_read_again() {
    let (whole, scratch) = (Made::new(), scratch());
    let mut broken = whole.clone();
    broken.blob(2)[700] ^= 1;
    let (manifest, config) = broken.files();
    let source = Memory {
        blobs: &broken.blobs,
        opened: Mutex::default(),
    };
    let options = IngestOptions {
        jobs: NonZero::<usize>::MIN,
        ..IngestOptions::default()
    };
    ingest(&scratch.store, &source, None, &manifest, &config, &options).unwrap_err();
    assert_eq!(scratch.store.layers().unwrap().len(), 2);
    let (result, read) = whole.take(&scratch, false);
    assert_eq!((result.unwrap().taken.len(), read), (1, 1));
}

#[test]
fn blobs_that_are_not_what_the_manifest_says() {
    let made = Made::new();
    let digest = made.manifest["layers"][2]["digest"]
        .as_str()
        .unwrap()
        .to_owned();

    let mut changed = made.clone();
    changed.blob(2)[700] ^= 1;
    let error = changed.fails();
    assert!(error.contains("is damaged: its digest is"), "{error}");
    assert!(error.contains(&digest), "{error}");

    let mut short = made.clone();
    short.blob(2).pop();
    let error = short.fails();
    assert!(error.contains("is truncated"), "{error}");

    let mut long = made.clone();
    long.blob(2).push(0);
    let error = long.fails();
    assert!(error.contains("has more than"), "{error}");

    let mut packed = made.clone();
    let middle = packed.blob(0).len() / 2;
    packed.blob(0).truncate(middle);
    let error = packed.fails();
    assert!(error.contains("is truncated"), "{error}");

    let mut missing = made.clone();
    missing.blobs.remove(&digest);
    let error = missing.fails();
    assert!(error.contains("it is not in memory"), "{error}");
    assert!(error.contains(&digest), "{error}");
}

#[test]
fn archives_that_are_not_what_the_configuration_says() {
    let mut made = Made::new();
    let ids = made.config["rootfs"]["diff_ids"].as_array_mut().unwrap();
    ids.swap(0, 1);
    let error = made.fails();
    assert!(
        error.contains("the archive in it has the diffID"),
        "{error}"
    );

    let mut made = Made::new();
    let no_tar = gzip(b"text, not an archive");
    made.manifest["layers"][0] = descriptor(LAYER_GZIP, &no_tar);
    made.blobs.insert(Digest::of(&no_tar).to_string(), no_tar);
    let error = made.fails();
    assert!(error.contains("is not a tar archive"), "{error}");
}

#[test]
fn manifests_and_configurations_that_do_not_belong_together() {
    let made = Made::new();
    let spoil = |change: &dyn Fn(&mut Made)| {
        let mut made = made.clone();
        change(&mut made);
        made.fails()
    };
    let other = spoil(&|made| made.manifest["config"] = descriptor(CONFIG, b"another"));
    assert!(
        other.contains("wants a configuration of 7 bytes"),
        "{other}"
    );
    let fewer = spoil(&|made| {
        made.config["rootfs"]["diff_ids"]
            .as_array_mut()
            .unwrap()
            .pop();
    });
    assert!(
        fewer.contains("lists 4 layers, its configuration 3"),
        "{fewer}"
    );
    let none = spoil(&|made| {
        made.config["rootfs"]["diff_ids"] = json!([]);
        made.manifest["layers"] = json!([]);
    });
    assert!(none.contains("no layers"), "{none}");
    let media = spoil(&|made| made.manifest["layers"][1]["mediaType"] = "text/plain".into());
    assert!(
        media.contains("layer 2") && media.contains("text/plain"),
        "{media}"
    );
    let long = spoil(&|made| made.config["comment"] = " ".repeat(5 << 20).into());
    assert!(long.contains("at most 4194304"), "{long}");
    let id = spoil(&|made| made.config["rootfs"]["diff_ids"][0] = "sha512:0".into());
    assert!(id.contains("sha512:0"), "{id}");
}

#[test]
fn docker_and_foreign_media_types() {
    let mut made = Made::new();
    let gzip = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    for (layer, media_type) in [gzip, foreign, gzip, gzip].into_iter().enumerate() {
        // Of the third one it is not true: docker's own programs do not care either.
        made.manifest["layers"][layer]["mediaType"] = media_type.into();
    }
    made.manifest["layers"][1]["urls"] = json!(["https://example.invalid/layer"]);
    made.manifest["mediaType"] = DOCKER_MANIFEST.into();
    let config = serde_json::to_vec_pretty(&made.config).unwrap();
    made.manifest["config"] = descriptor(DOCKER_CONFIG, &config);
    let scratch = scratch();
    let image = made.take(&scratch, false).0.unwrap().image;
    assert_eq!(image.layers.len(), 4);
}

#[test]
fn a_layer_that_expands_too_far() {
    let made = Made::new();
    let (manifest, config) = made.files();
    let source = Memory {
        blobs: &made.blobs,
        opened: Mutex::default(),
    };
    let options = IngestOptions {
        max_size: Some(1000),
        ..IngestOptions::default()
    };
    let scratch = scratch();
    let result = ingest(&scratch.store, &source, None, &manifest, &config, &options);
    let error = result.unwrap_err().to_string();
    assert!(error.contains("--max-size"), "{error}");
}
