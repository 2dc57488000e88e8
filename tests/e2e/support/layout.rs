//! Images as others hand them over: a directory in OCI's image layout, written by the tests.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::layers::pack;
use super::run;
use super::sandbox::Sandbox;

/// A directory in OCI's image layout.
pub struct Layout {
    dir: PathBuf,
    manifests: Vec<Value>,
}

/// An image in a layout.
pub struct LayoutImage {
    pub manifest: String,
    pub config: String,
    /// The blobs of the layers, bottom first.
    pub layers: Vec<String>,
}

impl Layout {
    /// An empty one.
    pub fn new(sandbox: &Sandbox, name: &str) -> Self {
        let dir = sandbox.dir(name);
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self {
            dir,
            manifests: Vec::new(),
        }
    }

    /// Adds an image of `layers`, bottom first, packed by `program` if it is gzip or zstd.
    pub fn image(
        &mut self,
        tag: &str,
        layers: &[PathBuf],
        program: &str,
        cpu: &str,
    ) -> LayoutImage {
        let mut diff_ids = Vec::new();
        let mut descriptors = Vec::new();
        let mut blobs = Vec::new();
        for layer in layers {
            diff_ids.push(digest(&fs::read(layer).unwrap()));
            let (packed, end) = (self.dir.join("packed"), &format!("+{program}"));
            let end = match program {
                "none" => {
                    fs::copy(layer, &packed).unwrap();
                    ""
                }
                program => {
                    pack(program, layer, &packed);
                    end
                }
            };
            let blob = fs::read(&packed).unwrap();
            fs::remove_file(&packed).unwrap();
            let media_type = format!("application/vnd.oci.image.layer.v1.tar{end}");
            blobs.push(digest(&blob));
            descriptors.push(self.add(&media_type, &blob));
        }
        let config = json!({
            "architecture": cpu, "os": "linux",
            "config": { "Cmd": ["/bin/sh"], "Env": ["A=b"] },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
            "history": [{ "created_by": "a test" }],
        });
        let config = self.add_json("application/vnd.oci.image.config.v1+json", &config);
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({
            "schemaVersion": 2, "mediaType": kind, "config": config, "layers": descriptors,
        });
        let mut manifest = self.add_json(kind, &manifest);
        manifest["platform"] = json!({ "os": "linux", "architecture": cpu });
        let image = LayoutImage {
            manifest: manifest["digest"].as_str().unwrap().to_owned(),
            config: config["digest"].as_str().unwrap().to_owned(),
            layers: blobs,
        };
        let mut entry = manifest.clone();
        entry["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
        self.manifests.push(entry);
        self.write_index();
        image
    }

    /// Adds an index of all images that are there.
    pub fn index(&mut self, tag: &str) -> String {
        let kind = "application/vnd.oci.image.index.v1+json";
        let mut manifests = self.manifests.clone();
        for manifest in &mut manifests {
            manifest.as_object_mut().unwrap().remove("annotations");
        }
        let index = json!({ "schemaVersion": 2, "mediaType": kind, "manifests": manifests });
        let mut entry = self.add_json(kind, &index);
        let digest = entry["digest"].as_str().unwrap().to_owned();
        entry["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
        self.manifests.push(entry);
        self.write_index();
        digest
    }

    fn write_index(&self) {
        let index = json!({ "schemaVersion": 2, "manifests": self.manifests });
        fs::write(self.dir.join("index.json"), index.to_string()).unwrap();
    }

    fn add_json(&self, media_type: &str, value: &Value) -> Value {
        self.add(media_type, value.to_string().as_bytes())
    }

    fn add(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = digest(bytes);
        let hex = digest.strip_prefix("sha256:").unwrap();
        fs::write(self.dir.join("blobs/sha256").join(hex), bytes).unwrap();
        json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    }

    /// Pushes an image of it with skopeo; `options` are skopeo's.
    pub fn push(&self, tag: &str, to: &str, options: &[&str]) {
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["--insecure-policy", "copy", "-q", "--dest-tls-verify=false"]);
        skopeo.args(options);
        skopeo.arg(format!("oci:{}:{tag}", self.dir.display()));
        run(skopeo.arg(format!("docker://{to}")));
    }
}

/// A digest as in manifests.
pub fn digest(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = "sha256:".to_owned();
    for byte in Sha256::digest(bytes) {
        let _ = write!(text, "{byte:02x}");
    }
    text
}
