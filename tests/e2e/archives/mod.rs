//! Images in and out as files, with other people's programs at the other end: skopeo, umoci, podman.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use lamina_layers::digest::Digest;
use serde_json::Value;

use crate::support::lamina::Lamina;
use crate::support::layers::{Archive, archive_of, noise};
use crate::support::run;
use crate::support::sandbox::Sandbox;
use crate::support::tree::{Ignore, Tree};

mod failures;
mod interop;
mod podman;
mod repair;

/// What trees that two programs unpacked may differ in.
const UNPACKED: Ignore = Ignore {
    mtime: false,
    dir_nlink: true,
    ino: true,
};

/// Copies an image as skopeo does.
fn skopeo(options: &[&str], from: &str, to: &str) {
    let mut command = Command::new("skopeo");
    command.args(["--insecure-policy", "copy", "--quiet"]);
    run(command.args(options).args([from, to]));
}

/// A path with what comes before and after it.
fn around(before: &str, path: &Path, after: &str) -> String {
    format!("{before}{}{after}", path.display())
}

/// What `lamina image inspect` says.
fn inspect(lamina: &Lamina, image: &str) -> Value {
    let said: Value = serde_json::from_str(&lamina.ok(["image", "inspect", image])).unwrap();
    said[0].clone()
}

/// The diffIDs of an image, bottom first.
fn layers(lamina: &Lamina, image: &str) -> Vec<String> {
    let layers = inspect(lamina, image)["layers"].clone();
    serde_json::from_value(layers).unwrap()
}

/// Exports every layer of an image, and compares what comes out with its diffID.
fn check_layers(lamina: &Lamina, sandbox: &Sandbox, image: &str) {
    let path = sandbox.join("exported-layer.tar");
    for layer in layers(lamina, image) {
        lamina.ok(["layer", "export", &layer, "-o", path.to_str().unwrap()]);
        let digest = Digest::of(&fs::read(&path).unwrap());
        assert_eq!(digest.to_string(), layer);
    }
    fs::remove_file(path).unwrap();
}

/// The tree of an image, mounted.
fn mounted(lamina: &Lamina, sandbox: &Sandbox, image: &str) -> Tree {
    let mount = lamina.mount(&["--read-only", image], &sandbox.join("mounted"));
    let tree = Tree::read(mount.path());
    mount.unmount();
    tree
}

/// The tree of an image of an OCI layout, unpacked by umoci.
fn unpacked(sandbox: &Sandbox, layout: &Path, name: &str) -> Tree {
    let bundle = sandbox.join("bundle");
    let mut umoci = Command::new("umoci");
    umoci.args([
        "unpack",
        "--image",
        &around("", layout, &format!(":{name}")),
    ]);
    run(umoci.arg(&bundle));
    let tree = Tree::read(&bundle.join("rootfs"));
    fs::remove_dir_all(bundle).unwrap();
    tree
}

/// A store of its own beside the others.
fn another(lamina: &Lamina, sandbox: &Sandbox, name: &str) -> Lamina {
    lamina.with_store(&sandbox.join(name))
}

/// An image `odd` of two layers that have all that archives can have.
fn odd_image(sandbox: &Sandbox, lamina: &Lamina) {
    let tree = sandbox.dir("odd-tree");
    let script = r"
        mkdir -p dir/sub hidden/deep opaque/below replaced empty
        echo small > dir/file; head -c 300000 /dev/urandom > dir/large
        ln dir/file dir/linked; ln -s ../dir/file dir/link; ln -s /nowhere dangling
        mkfifo pipe; mknod null c 1 3; mknod block b 7 200
        cp dir/file setuid; chmod 4755 setuid; chmod 1777 empty; chown 1234:5678 dir/sub
        truncate -s 5M sparse; echo end >> sparse
        setfattr -n user.note -v text dir/file; setfattr -n user.note -v other dir/sub
        setcap cap_net_raw+ep setuid 2>/dev/null || true
        echo x > hidden/deep/file; echo x > opaque/below/file; echo x > replaced/file; echo x > gone
        long=$(printf 'n%.0s' $(seq 120)); mkdir -p $long/$long; echo deep > $long/$long/$long
        printf 'odd' > $(printf 'not-utf8-\377'); echo x > 'with space'
        touch -d '1969-12-31 23:59:58' dir/file; touch -d '2040-01-01' dir/large
        find . -type d -exec touch -d '2020-02-02 02:02:02' {} +
    ";
    run(Command::new("sh").args(["-euc", script]).current_dir(&tree));
    let first = sandbox.join("odd-1.tar");
    archive_of(&tree, &first);
    fs::remove_dir_all(&tree).unwrap();
    let second = Archive::new(sandbox, "odd-2.tar")
        .file(".wh.gone", b"")
        .file(".wh.hidden", b"")
        .dir("opaque", 0o700)
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/new", b"new")
        .file("replaced", b"a file now")
        .hard_link("to-lower", "dir/large")
        .file("noise", &noise(3, 70_000))
        .finish();
    lamina.build("odd", &[first, second]);
}

/// An image `small` of two layers with files that do not pack.
fn small_image(sandbox: &Sandbox, lamina: &Lamina) {
    let layer = |number: u8| {
        let name = format!("small-{number}.tar");
        let mut archive = Archive::new(sandbox, &name).dir("dir", 0o755);
        for file in 0..40 {
            let bytes = noise(number.wrapping_mul(41).wrapping_add(file), 30_000);
            archive = archive.file(&format!("dir/{number}-{file}"), &bytes);
        }
        archive.finish()
    };
    let layers: Vec<PathBuf> = [1, 2].map(layer).to_vec();
    lamina.build("small", &layers);
}
