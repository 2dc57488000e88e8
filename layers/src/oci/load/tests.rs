use std::io::Write;

use serde_json::{Value, json};

use super::*;
use crate::oci::{ArchiveFormat, SaveImage, SaveOptions, save_archive};
use crate::store::{GcOptions, ImageSpec};
use crate::tar::tests::{Archive, Scratch, files, noise, scratch};
use crate::tar::{ImportOptions, import_layer};

fn layer(number: u64) -> Vec<u8> {
    Archive::default()
        .file(&format!("file-{number}"), &noise(number, 3000))
        .end()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({
        "mediaType": media_type, "digest": Digest::of(bytes).to_string(), "size": bytes.len(),
    })
}

/// The files of a layout, in their order.
#[derive(Clone, Default)]
struct Layout {
    files: Vec<(String, Vec<u8>)>,
    manifests: Vec<Value>,
}

const OCI: &str = "application/vnd.oci.image";

impl Layout {
    fn blob(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        let path = format!("blobs/sha256/{}", Digest::of(bytes).hex());
        if !self.files.iter().any(|(other, _)| *other == path) {
            self.files.push((path, bytes.to_vec()));
        }
        descriptor(&format!("{OCI}.{media_type}"), bytes)
    }

    /// An image of one layer.
    fn image(&mut self, number: u64, architecture: &str) -> Value {
        let archive = layer(number);
        let blob = self.blob("layer.v1.tar+gzip", &gzip(&archive));
        let config = json!({
            "architecture": architecture, "os": "linux",
            "rootfs": { "type": "layers", "diff_ids": [Digest::of(&archive).to_string()] },
        });
        let config = self.blob("config.v1+json", config.to_string().as_bytes());
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [blob] });
        let mut descriptor = self.blob("manifest.v1+json", manifest.to_string().as_bytes());
        descriptor["platform"] = json!({ "os": "linux", "architecture": architecture });
        descriptor
    }

    fn index(&mut self, manifests: &[Value]) -> Value {
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        self.blob("index.v1+json", index.to_string().as_bytes())
    }

    fn add(&mut self, mut descriptor: Value, name: &str) {
        descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
        self.manifests.push(descriptor);
    }

    fn archive(&self) -> Vec<u8> {
        let index = json!({ "schemaVersion": 2, "manifests": self.manifests });
        let mut archive = Archive::default().dir("blobs/").dir("blobs/sha256/");
        for (path, bytes) in &self.files {
            archive = archive.file(path, bytes);
        }
        let archive = archive.file("index.json", index.to_string().as_bytes());
        archive
            .file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)
            .end()
    }
}

/// Loads an archive from a file and by a pipe, plain and packed, all of which must come to the same.
fn load_all(archive: &[u8], options: &LoadOptions<'_>) -> Result<(Scratch, Vec<Loaded>), String> {
    let by_file = scratch();
    let path = by_file.dir.path().join("archive");
    std::fs::write(&path, archive).unwrap();
    let plain = load(&by_file.store, Origin::Path(&path), options);
    let plain = plain.map_err(|error| error.to_string());
    let ids = |loaded: &[Loaded]| -> Vec<_> {
        let one = |it: &Loaded| {
            (
                it.ingested.image.id,
                it.given.clone(),
                it.ingested.taken.clone(),
            )
        };
        loaded.iter().map(one).collect()
    };
    let packed = gzip(archive);
    for (name, bytes) in [("a pipe", archive), ("a packed pipe", packed.as_slice())] {
        let by_pipe = scratch();
        let origin = Origin::Stream(Box::new(bytes), "the pipe");
        let result = load(&by_pipe.store, origin, options);
        match (&plain, &result) {
            (Ok(plain), Ok(result)) => assert_eq!(ids(plain), ids(result), "{name}"),
            (Err(_), Err(_)) => {
                assert_eq!(by_pipe.store.images().unwrap(), []);
                assert_eq!(by_pipe.store.layers().unwrap(), [], "{name}: a layer stays");
            }
            (plain, result) => panic!("a file: {plain:?}\n{name}: {result:?}"),
        }
        let staged = files(&by_pipe.store.root().join("staging"));
        assert_eq!(staged.len(), 1, "{name}: {staged:?}");
        if let Ok(loaded) = &result {
            let needed: usize = loaded.iter().map(|it| it.ingested.image.layers.len()).sum();
            let layers = by_pipe.store.layers().unwrap();
            assert!(layers.len() <= needed, "{name}: layers that nobody needs");
            let swept = by_pipe.store.gc(GcOptions::default()).unwrap();
            assert_eq!(swept.objects, 0, "{name}: objects that nobody needs");
        }
    }
    plain.map(|loaded| (by_file, loaded))
}

#[track_caller]
fn loads(archive: &[u8], options: &LoadOptions<'_>) -> Vec<Vec<String>> {
    match load_all(archive, options) {
        Ok((_, loaded)) => loaded.into_iter().map(|it| it.given).collect(),
        Err(error) => panic!("{error}"),
    }
}

#[track_caller]
fn fails(archive: &[u8], options: &LoadOptions<'_>) -> String {
    match load_all(archive, options) {
        Ok(_) => panic!("it was loaded"),
        Err(error) => error,
    }
}

fn one() -> LoadOptions<'static> {
    LoadOptions::default()
}

#[test]
fn one_image_of_a_layout() {
    let mut layout = Layout::default();
    // That it is not for this machine does not matter when there is nothing to choose from.
    let image = layout.image(1, "s390x");
    layout.add(image, "registry.example:5000/app:latest");
    assert_eq!(
        loads(&layout.archive(), &one()),
        [["registry.example:5000/app"]]
    );
    let named = LoadOptions {
        name: Some("mine"),
        ..one()
    };
    assert_eq!(loads(&layout.archive(), &named), [["mine"]]);
    let elsewhere = LoadOptions {
        platform: Some("linux/arm64".parse().unwrap()),
        ..one()
    };
    let error = fails(&layout.archive(), &elsewhere);
    assert!(
        error.contains("no image for linux/arm64, only for linux/s390x"),
        "{error}"
    );
}

#[test]
fn one_of_several_images() {
    let mut layout = Layout::default();
    for (number, name) in [(1, "one"), (2, "two:2"), (3, "three")] {
        let image = layout.image(number, "amd64");
        layout.add(image, name);
    }
    let archive = layout.archive();
    let error = fails(&archive, &one());
    assert!(
        error.contains("one; two:2; three") && error.contains("--all"),
        "{error}"
    );
    let wanted = ["two:2".to_owned()];
    let choice = LoadOptions {
        wanted: &wanted,
        ..one()
    };
    assert_eq!(loads(&archive, &choice), [["two:2"]]);
    let all = LoadOptions { all: true, ..one() };
    assert_eq!(loads(&archive, &all).len(), 3);
    let wanted = ["four".to_owned()];
    let missing = LoadOptions {
        wanted: &wanted,
        ..one()
    };
    assert!(fails(&archive, &missing).contains("no image 'four'"));
}

#[test]
fn indexes_in_indexes_by_platform() {
    let mut layout = Layout::default();
    let host = Platform::host().architecture;
    let images = ["mips", &host, "s390x"].map(|architecture| layout.image(7, architecture));
    // What docker says of how an image was built.
    let mut attestation = layout.blob("manifest.v1+json", b"{}");
    attestation["platform"] = json!({ "os": "unknown", "architecture": "unknown" });
    // One whose blobs were left out.
    let mut left_out = descriptor(&format!("{OCI}.manifest.v1+json"), b"left out");
    left_out["platform"] = json!({ "os": "linux", "architecture": "riscv64" });
    let mut inner = images.to_vec();
    inner.extend([attestation, left_out]);
    let index = layout.index(&inner);
    let outer = layout.index(&[index]);
    layout.add(outer, "several");
    let archive = layout.archive();
    let chosen = |platform: Option<&str>| {
        let options = LoadOptions {
            platform: platform.map(|it| it.parse().unwrap()),
            ..one()
        };
        let (_, loaded) = load_all(&archive, &options)?;
        Ok::<_, String>(loaded[0].ingested.image.config.architecture.clone())
    };
    assert_eq!(chosen(None).unwrap(), host);
    assert_eq!(chosen(Some("linux/mips")).unwrap(), "mips");
    assert!(
        chosen(Some("linux/riscv64"))
            .unwrap_err()
            .contains("only for")
    );

    let mut deep = Layout::default();
    let mut index = deep.image(1, "amd64");
    for _ in 0..10 {
        index = deep.index(&[index]);
    }
    deep.add(index, "deep");
    assert!(fails(&deep.archive(), &one()).contains("indexes in indexes"));
}

#[test]
fn names_that_differ_only_in_platform_are_one_image() {
    let mut layout = Layout::default();
    let host = Platform::host().architecture;
    for architecture in ["mips", &host] {
        let image = layout.image(1, architecture);
        layout.manifests.push(image);
    }
    let (_, loaded) = load_all(&layout.archive(), &one()).unwrap();
    assert_eq!(loaded[0].ingested.image.config.architecture, host);
}

/// What `docker save` writes, with these layers in the manifest and a link between two of them.
fn docker(layers: [&str; 3]) -> Archive {
    let (first, second) = (layer(1), layer(2));
    let ids = [&first, &second, &first].map(|it| Digest::of(it).to_string());
    let config = json!({
        "architecture": "amd64", "os": "linux", "container": "kept",
        "rootfs": { "type": "layers", "diff_ids": ids },
    });
    let manifest = json!([{
        "Config": "config.json", "RepoTags": ["saved:1", "saved:latest"], "Layers": layers,
    }]);
    Archive::default()
        .dir("a/")
        .file("a/VERSION", b"1.0")
        .symlink("c/layer.tar", "../a/layer.tar")
        .file("a/layer.tar", &first)
        .file("b/layer.tar", &gzip(&second))
        .file("config.json", config.to_string().as_bytes())
        .file("manifest.json", manifest.to_string().as_bytes())
        .file("repositories", b"{}")
}

const LAYERS: [&str; 3] = ["a/layer.tar", "./b/layer.tar", "a/layer.tar"];

#[test]
fn what_docker_saved() {
    for layers in [LAYERS, [LAYERS[0], LAYERS[1], "c/layer.tar"]] {
        let (scratch, loaded) = load_all(&docker(layers).end(), &one()).unwrap();
        assert_eq!(loaded[0].given, ["saved:1", "saved"]);
        let image = &loaded[0].ingested.image;
        assert_eq!(image.layers.len(), 3);
        let files = scratch.store.image_files(&image.id).unwrap();
        assert!(String::from_utf8(files.config).unwrap().contains("kept"));
        let media: Vec<_> = files
            .parsed
            .layers
            .iter()
            .map(|it| it.media_type.as_str())
            .collect();
        assert!(media[0].ends_with("diff.tar") && media[1].ends_with("diff.tar.gzip"));
    }
}

#[test]
fn paths_that_lead_out_and_names_that_come_twice() {
    for path in ["../manifest.json", "/manifest.json", "a/../../b"] {
        let error = fails(&docker(LAYERS).file(path, b"{}").end(), &one());
        assert!(error.contains("leads out"), "{path}: {error}");
    }
    let error = fails(&docker(LAYERS).file("./manifest.json", b"[]").end(), &one());
    assert!(error.contains("'manifest.json' twice"), "{error}");
    for (path, said) in [
        ("out", "leads nowhere"),
        ("loop", "leads nowhere"),
        ("absolute", "leads nowhere"),
        ("nothing", "leads nowhere"),
        ("../x", "leads nowhere"),
        ("missing", "lacks 'missing'"),
    ] {
        let archive = docker([path, LAYERS[1], path])
            .symlink("out", "../etc/passwd")
            .symlink("loop", "loop")
            .symlink("absolute", "/etc/passwd")
            .symlink("nothing", "gone");
        let error = fails(&archive.end(), &one());
        assert!(error.contains(said), "{path}: {error}");
    }
}

#[test]
fn damaged_archives() {
    let mut layout = Layout::default();
    let image = layout.image(1, "amd64");
    layout.add(image, "whole");
    let whole = layout.archive();
    for length in [
        0,
        1,
        100,
        512,
        1000,
        1600,
        3000,
        whole.len() - 1024,
        whole.len() - 1500,
    ] {
        let error = fails(&whole[..length], &one());
        assert!(
            error.contains("truncated") || error.contains("not a tar archive"),
            "{length}: {error}"
        );
    }
    for kind in ["config", "manifest", "layer"] {
        let mut lying = layout.clone();
        let at = lying.files.iter().position(|(_, bytes)| match kind {
            "config" => bytes.windows(8).any(|it| it == b"diff_ids"),
            "manifest" => bytes.windows(6).any(|it| it == b"config") && bytes[0] == b'{',
            _ => bytes[0] == 0x1f,
        });
        let (_, bytes) = &mut lying.files[at.unwrap()];
        match kind {
            // The same archive, packed in another way.
            "layer" => {
                bytes.extend(gzip(b""));
            }
            _ => bytes.push(b' '),
        }
        let error = fails(&lying.archive(), &one());
        assert!(
            error.contains("digest is") || error.contains("more than"),
            "{kind}: {error}"
        );
    }
    let error = fails(
        &Archive::default().file("etc/passwd", b"root").end(),
        &one(),
    );
    assert!(error.contains("lamina layer build"), "{error}");
    let long = vec![b'['; MAX as usize + 1];
    let error = fails(
        &Archive::default().file("manifest.json", &long).end(),
        &one(),
    );
    assert!(
        error.contains("cannot read") || error.contains("at most"),
        "{error}"
    );
}

const MAX: u64 = crate::oci::MAX_DOCUMENT;

#[test]
fn a_bomb_is_refused_where_a_limit_is_given() {
    let mut layout = Layout::default();
    let image = layout.image(1, "amd64");
    layout.add(image, "large");
    let mut options = one();
    options.ingest.max_size = Some(2000);
    let error = fails(&layout.archive(), &options);
    assert!(error.contains("--max-size"), "{error}");
}

#[test]
fn an_archive_whose_documents_come_first() {
    let from = scratch();
    let archive = layer(1);
    let info = import_layer(
        &from.store,
        archive.as_slice(),
        "it",
        &ImportOptions::default(),
    );
    let spec = ImageSpec::default();
    let image = from
        .store
        .tag("first", &[info.unwrap().diff_id], &spec)
        .unwrap();
    let mut saved = Vec::new();
    let options = SaveOptions {
        compression: None,
        scratch: from.dir.path(),
        progress: &(),
    };
    let images = [SaveImage {
        id: image.id,
        name: Some("first".into()),
    }];
    save_archive(
        &from.store,
        &images,
        ArchiveFormat::Oci,
        &mut saved,
        &options,
    )
    .unwrap();
    let (_, loaded) = load_all(&saved, &one()).unwrap();
    assert_eq!(loaded[0].ingested.image.id, image.id);
}
