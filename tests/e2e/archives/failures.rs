//! Archives that are wrong, disks that are full, programs that are killed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{another, around, check_layers, inspect, layers, small_image};
use crate::support::lamina::{Lamina, NOBODY};
use crate::support::layers::Archive;
use crate::support::sandbox::Sandbox;
use crate::support::{describe, needs_root, run};

/// What is in a directory of a store.
fn names(store: &Path, part: &str) -> Vec<String> {
    let entries = fs::read_dir(store.join(part)).into_iter().flatten();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

/// An archive of the image `small`, packed by gzip.
fn exported(sandbox: &Sandbox, lamina: &Lamina) -> PathBuf {
    small_image(sandbox, lamina);
    let file = sandbox.join("small.tar");
    let path = file.to_str().unwrap();
    lamina.ok([
        "image",
        "export",
        "small",
        "--compression",
        "gzip",
        "-o",
        path,
    ]);
    file
}

#[test]
fn damaged_archives_name_what_is_wrong_and_leave_nothing_but_whole_layers() {
    let sandbox = Sandbox::new("archives-damaged");
    let lamina = Lamina::new(&sandbox);
    let good = exported(&sandbox, &lamina);
    let bytes = fs::read(&good).unwrap();
    let store = another(&lamina, &sandbox, "again");
    let bad = sandbox.join("bad.tar");
    let path = bad.to_str().unwrap();
    let mut said = Vec::new();
    for cut in [600, bytes.len() / 3, bytes.len() - 2000] {
        fs::write(&bad, &bytes[..cut]).unwrap();
        let message = store.fails(1, ["image", "import", path]);
        assert!(
            message.contains("truncated") && message.contains(path),
            "{message}"
        );
    }
    // Somewhere in the layers, and of every third byte of the documents.
    let documents = 512..4096;
    let places = documents
        .step_by(331)
        .chain([bytes.len() / 2, bytes.len() - 20_000]);
    for at in places {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        fs::write(&bad, &changed).unwrap();
        let result = store.output(["image", "import", path]);
        // A bit of a header that means nothing may change.
        if result.status.success() {
            store.ok(["image", "rm", "small"]);
        } else {
            said.push(String::from_utf8_lossy(&result.stderr).into_owned());
            assert_eq!(names(store.store(), "images"), Vec::<String>::new());
        }
        assert_eq!(names(store.store(), "staging"), Vec::<String>::new());
    }
    assert!(
        said.iter()
            .any(|it| it.contains("is damaged: its digest is")),
        "{said:#?}"
    );
    assert!(
        said.iter()
            .all(|it| it.starts_with("lamina: ") && it.lines().count() == 1)
    );
    store.ok(["image", "import", good.to_str().unwrap()]);
    check_layers(&store, &sandbox, "small");
}

#[test]
fn layers_of_a_wrong_size_or_digest() {
    let sandbox = Sandbox::new("archives-lies");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let layout = sandbox.join("layout");
    lamina.ok(["image", "export", "small", "-o", &around("", &layout, "/")]);
    let layer = layers(&lamina, "small")[1].clone();
    let blob = layout
        .join("blobs/sha256")
        .join(layer.trim_start_matches("sha256:"));
    let good = fs::read(&blob).unwrap();
    let store = another(&lamina, &sandbox, "again");
    let mut other = good.clone();
    other[1000] ^= 1;
    for (bytes, said) in [
        (&good[..good.len() - 512], "is truncated"),
        (&[&good, &good[..512]].concat(), "has more than"),
        (&other, "is damaged: its digest is"),
    ] {
        fs::write(&blob, bytes).unwrap();
        let message = store.fails(1, ["image", "import", layout.to_str().unwrap()]);
        assert!(
            message.contains(said) && message.contains(&layer),
            "{message}"
        );
        // The other layer is whole; nothing else is there.
        assert_eq!(names(store.store(), "layers").len(), 1);
        assert_eq!(names(store.store(), "images").len(), 0);
    }
    fs::remove_file(&blob).unwrap();
    let message = store.fails(1, ["image", "import", layout.to_str().unwrap()]);
    assert!(message.contains("lacks"), "{message}");
}

#[test]
fn what_is_no_archive_of_images() {
    let sandbox = Sandbox::new("archives-none");
    let lamina = Lamina::new(&sandbox);
    let rootfs = Archive::new(&sandbox, "rootfs.tar")
        .file("etc/passwd", b"root")
        .finish();
    let message = lamina.fails(1, ["image", "import", rootfs.to_str().unwrap()]);
    assert!(message.contains("lamina layer build"), "{message}");
    let text = sandbox.file("text", "no archive");
    let message = lamina.fails(1, ["image", "import", text.to_str().unwrap()]);
    assert!(
        message.contains("truncated") || message.contains("not a tar"),
        "{message}"
    );
    lamina.fails(
        1,
        ["image", "import", sandbox.dir("empty").to_str().unwrap()],
    );
    lamina.fails(
        1,
        ["image", "import", sandbox.join("nothing").to_str().unwrap()],
    );
    lamina.fails(
        1,
        [
            "image",
            "import",
            rootfs.to_str().unwrap(),
            "-t",
            "Not A Name",
        ],
    );
    lamina.fails(2, ["image", "import", "x", "--max-size", "large"]);
}

#[test]
fn a_full_disk_leaves_the_store_and_the_output_as_they_were() {
    needs_root!();
    let sandbox = Sandbox::new("archives-full");
    let lamina = Lamina::new(&sandbox);
    let good = exported(&sandbox, &lamina);
    let disk = sandbox.dir("disk");
    run(Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1500k", "tmpfs"])
        .arg(&disk));
    let store = lamina.with_store(&disk.join("store"));
    for input in [good.to_str().unwrap(), "-"] {
        let mut import = store.command(["image", "import", input]);
        import.stdin(fs::File::open(&good).unwrap());
        let result = import.output().unwrap();
        let message = String::from_utf8_lossy(&result.stderr).into_owned();
        assert!(
            !result.status.success() && message.contains("No space left"),
            "{message}"
        );
        assert_eq!(names(store.store(), "staging"), Vec::<String>::new());
        assert_eq!(names(store.store(), "images"), Vec::<String>::new());
    }
    fs::remove_dir_all(store.store()).unwrap();

    let output = disk.join("out.tar");
    fs::write(&output, "what was there").unwrap();
    for compression in ["none", "gzip"] {
        let path = output.to_str().unwrap();
        let export = [
            "image",
            "export",
            "small",
            "--compression",
            compression,
            "-o",
            path,
        ];
        let message = lamina.fails(1, export);
        assert!(message.contains("No space left"), "{message}");
        assert_eq!(fs::read(&output).unwrap(), b"what was there");
        assert_eq!(names(&disk, ""), ["out.tar"], "something is left");
    }
}

#[test]
fn a_killed_import_can_be_done_again() {
    let sandbox = Sandbox::new("archives-killed");
    let lamina = Lamina::new(&sandbox);
    let good = exported(&sandbox, &lamina);
    for (number, input) in [good.to_str().unwrap(), "-"].into_iter().enumerate() {
        let store = another(&lamina, &sandbox, &format!("again-{number}"));
        for delay in [1, 4, 8, 15, 25, 40, 60, 90] {
            let mut command = store.command(["image", "import", "--keep-blobs", input]);
            command.stdin(fs::File::open(&good).unwrap());
            command.stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = command.spawn().unwrap();
            std::thread::sleep(Duration::from_millis(delay));
            child.kill().unwrap();
            child.wait().unwrap();
            // What is there is whole.
            if store.store().join("store.json").exists() {
                for layer in names(store.store(), "layers") {
                    let export = store.command(["layer", "export", &layer]).output().unwrap();
                    assert!(export.status.success(), "{layer}");
                }
            }
        }
        let mut command = store.command(["image", "import", "--keep-blobs", input]);
        let result = command
            .stdin(fs::File::open(&good).unwrap())
            .output()
            .unwrap();
        assert!(result.status.success(), "{}", describe(&result));
        assert_eq!(names(store.store(), "staging"), Vec::<String>::new());
        assert_eq!(names(store.store(), "blobs").len(), 2);
        check_layers(&store, &sandbox, "small");
    }
}

#[test]
fn an_ordinary_user_imports_and_exports() {
    needs_root!();
    let sandbox = Sandbox::new("archives-user");
    let lamina = Lamina::new(&sandbox);
    super::odd_image(&sandbox, &lamina);
    let file = sandbox.join("odd.tar");
    lamina.ok(["image", "export", "odd", "-o", file.to_str().unwrap()]);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let user = Lamina::as_user(&sandbox, NOBODY);
    user.ok(["image", "import", file.to_str().unwrap()]);
    // Devices, owners and all: nothing of it is made on disk.
    check_layers(&lamina, &sandbox, "odd");
    assert_eq!(layers(&user, "odd"), layers(&lamina, "odd"));
    let again = user.store().with_file_name("again.tar");
    user.ok(["image", "export", "odd", "-o", again.to_str().unwrap()]);
    assert_eq!(fs::read(&again).unwrap(), fs::read(&file).unwrap());
    let closed = sandbox.dir("closed");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    let out = closed.join("x.tar");
    let message = user.fails(1, ["image", "export", "odd", "-o", out.to_str().unwrap()]);
    assert!(message.contains("Permission denied"), "{message}");
}

#[test]
fn outputs_that_cannot_be() {
    let sandbox = Sandbox::new("archives-outputs");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let dir = sandbox.dir("mine");
    fs::write(dir.join("file"), "mine").unwrap();
    let path = dir.to_str().unwrap();
    let message = lamina.fails(1, ["image", "export", "small", "-o", path]);
    assert!(message.contains("not an OCI layout"), "{message}");
    assert_eq!(names(&dir, ""), ["file"]);
    let docker = ["--format", "docker-archive"];
    let export = |more: &[&str]| {
        let mut words = vec!["image", "export", "small", "-o"];
        words.extend(more);
        words.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    lamina.fails(2, export(&[&[path], &docker[..]].concat()));
    lamina.fails(2, export(&["-", "--format", "oci-dir"]));
    lamina.fails(
        2,
        export(&["x", "--format", "docker-archive", "--compression", "gzip"]),
    );
    lamina.fails(1, export(&["/nowhere/x.tar"]));
    lamina.fails(1, ["image", "export", "unknown", "-o", "/dev/null"]);
    let layer = &layers(&lamina, "small")[0];
    let message = lamina.fails(1, ["image", "export", layer, "-o", "/dev/null"]);
    assert!(message.contains("lamina layer export"), "{message}");
    // A device is written to, not replaced.
    lamina.ok(["image", "export", "small", "-o", "/dev/null"]);
    assert!(!fs::metadata("/dev/null").unwrap().is_file());
    // Who reads may stop at any time.
    let mut command = lamina.command(["image", "export", "small", "-o", "-"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
}

#[test]
fn what_comes_by_a_named_pipe_has_no_source() {
    let sandbox = Sandbox::new("archives-fifo");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let file = sandbox.join("small.tar");
    lamina.ok(["image", "export", "small", "-o", file.to_str().unwrap()]);
    let store = another(&lamina, &sandbox, "other");
    let import = store.command(["image", "import", "-t", "there", "/dev/fd/9"]);
    // As a shell does it with <(…).
    let mut shell = Command::new("bash");
    shell.args(["-c", "exec \"$@\" 9< <(cat \"$FILE\")", "bash"]);
    shell.arg(import.get_program()).args(import.get_args());
    for (name, value) in import.get_envs() {
        shell.env(name, value.unwrap_or_default());
    }
    run(shell.env("FILE", &file));
    assert!(inspect(&store, "there")["source"].is_null());
}

#[test]
fn exports_to_one_directory_at_once_are_all_there() {
    let sandbox = Sandbox::new("archives-at-once");
    let lamina = Lamina::new(&sandbox);
    let names: Vec<String> = (0..6).map(|number| format!("image:{number}")).collect();
    for name in &names {
        let layer = Archive::new(&sandbox, "layer.tar").file("name", name.as_bytes());
        lamina.build(name, &[layer.finish()]);
    }
    let layout = sandbox.dir("layout");
    let exports: Vec<_> = names
        .iter()
        .map(|name| {
            let path = layout.to_str().unwrap();
            let words = ["image", "export", "--format", "oci-dir", name, "-o", path];
            lamina.command(words).spawn().unwrap()
        })
        .collect();
    for mut export in exports {
        assert!(export.wait().unwrap().success());
    }
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    let manifests = index["manifests"].as_array().unwrap();
    assert_eq!(manifests.len(), names.len(), "{index}");
    for dir in [&layout, &layout.join("blobs/sha256")] {
        let hidden = fs::read_dir(dir).unwrap().filter(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            name.to_string_lossy().starts_with('.')
        });
        assert_eq!(hidden.count(), 0);
    }
}
