//! `lamina commit`: what the image is, whatever was changed and by whom.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::FlockOperation;
use serde_json::{Value, json};

use crate::support::containers::Containers;
use crate::support::lamina::Lamina;
use crate::support::layers::{Archive, noise};
use crate::support::listing::small_image;
use crate::support::sandbox::Sandbox;
use crate::support::tree::{Ignore, Tree};
use crate::support::{describe, needs_root, run};

mod live;

/// The day on which everything in these tests was made.
const DAY: &str = "1700000000";

/// What an image says.
pub fn inspect(lamina: &Lamina, image: &str) -> Value {
    let all: Vec<Value> = serde_json::from_str(&lamina.ok(["image", "inspect", image])).unwrap();
    all.into_iter().next().unwrap()
}

/// Commits with `--json`; returns what it said.
pub fn commit(lamina: &Lamina, arguments: &[&str]) -> Value {
    let all = ["commit", "--json"].iter().chain(arguments);
    serde_json::from_str(&lamina.ok(all)).unwrap()
}

fn change_something(root: &Path) {
    fs::write(root.join("dir/file"), "changed").unwrap();
    fs::create_dir(root.join("new")).unwrap();
    fs::write(root.join("new/data"), noise(1, 100_000)).unwrap();
    fs::hard_link(root.join("new/data"), root.join("new/linked")).unwrap();
    std::os::unix::fs::symlink("data", root.join("new/link")).unwrap();
}

#[test]
fn the_same_changes_make_the_same_layer_and_the_same_image() {
    needs_root!();
    let sandbox = Sandbox::new("same");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    for name in ["one", "two"] {
        let mount = lamina.mount(&["--name", name, "small"], &sandbox.join("mnt"));
        change_something(mount.path());
        mount.unmount();
    }
    let first = commit(&lamina, &["one", "-t", "first"]);
    let again = commit(&lamina, &["one", "-t", "again"]);
    assert_eq!(first["layer"], again["layer"]);
    assert_ne!(
        first["image"], again["image"],
        "they were made at different times"
    );
    assert!(first["created"].as_str().unwrap().starts_with("20"));

    // Changed at different times, committed as of one.
    let fixed = commit(&lamina, &["one", "-t", "a", "--timestamp", DAY]);
    assert_eq!(fixed["created"], "2023-11-14T22:13:20Z");
    let mut from_environment = lamina.command(["commit", "--json", "two", "-t", "b"]);
    let said = run(from_environment.env("SOURCE_DATE_EPOCH", DAY));
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        (&said["image"], &said["layer"]),
        (&fixed["image"], &fixed["layer"])
    );
    let history = &inspect(&lamina, "a")["config"]["history"];
    assert_eq!(history[1]["created"], "2023-11-14T22:13:20Z");

    // Later files get the time, earlier ones keep theirs.
    let mount = lamina.mount(&["--read-only", "a"], &sandbox.join("mnt"));
    let seconds = |path: &str| {
        mount
            .path()
            .join(path)
            .metadata()
            .unwrap()
            .mtime()
            .to_string()
    };
    assert_eq!([seconds("new/data"), seconds("new")], [DAY, DAY]);
    mount.unmount();
    for wrong in ["yesterday", "-1"] {
        let option = format!("--timestamp={wrong}");
        let message = lamina.fails(2, ["commit", "one", option.as_str()]);
        assert!(message.contains("since 1970"), "{message}");
    }
}

#[test]
fn what_is_asked_for_is_in_the_configuration() {
    needs_root!();
    let sandbox = Sandbox::new("config");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    lamina
        .mount(&["--name", "kept", "small"], &sandbox.join("mnt"))
        .unmount();
    let iidfile = sandbox.join("iid");
    let said = lamina.ok([
        "commit",
        "-q",
        "kept",
        "-t",
        "made",
        "-m",
        "why",
        "-a",
        "who <w@example>",
        "--iidfile",
        iidfile.to_str().unwrap(),
        "-c",
        "CMD [\"sh\", \"-l\"]",
        "-c",
        "ENV A=b C='d e'",
        "-c",
        "EXPOSE 80",
        "--change",
        "LABEL x=y",
        "-c",
        "USER 1:2",
        "-c",
        "WORKDIR /srv",
        "-c",
        "VOLUME /data",
        "-c",
        "STOPSIGNAL SIGINT",
        "-c",
        "ONBUILD RUN make",
        "-c",
        "ENTRYPOINT /init",
    ]);
    let made = inspect(&lamina, "made");
    assert_eq!(said.trim(), made["id"]);
    assert_eq!(
        fs::read_to_string(&iidfile).unwrap(),
        made["id"].as_str().unwrap()
    );
    let expected = json!({
        "Cmd": ["sh", "-l"],
        "Entrypoint": ["/bin/sh", "-c", "/init"],
        "Env": ["A=b", "C=d e"],
        "ExposedPorts": {"80/tcp": {}},
        "Labels": {"x": "y"},
        "User": "1:2",
        "WorkingDir": "/srv",
        "Volumes": {"/data": {}},
        "StopSignal": "SIGINT",
        "OnBuild": ["RUN make"],
    });
    assert_eq!(made["config"]["config"], expected);
    assert_eq!(made["config"]["author"], "who <w@example>");
    let entry = &made["config"]["history"][1];
    assert_eq!(
        (&entry["comment"], &entry["author"]),
        (&"why".into(), &"who <w@example>".into())
    );

    // What is made on top keeps it, but for what is changed.
    lamina
        .mount(&["--name", "next", "made"], &sandbox.join("mnt"))
        .unmount();
    commit(&lamina, &["next", "-t", "next", "-c", "ENV A=new"]);
    let next = inspect(&lamina, "next");
    assert_eq!(next["config"]["config"]["Env"], json!(["A=new", "C=d e"]));
    assert_eq!(next["config"]["config"]["Cmd"], expected["Cmd"]);
    assert_eq!(next["config"]["author"], "who <w@example>");
    assert_eq!(next["config"]["history"].as_array().unwrap().len(), 3);

    let message = lamina.fails(2, ["commit", "kept", "-c", "RUN make"]);
    assert!(
        message.contains("'RUN'") && message.contains("WORKDIR"),
        "{message}"
    );
    let message = lamina.fails(1, ["commit", "kept", "-t", "no name"]);
    assert!(message.contains("no name"), "{message}");
}

#[test]
fn where_nothing_was_changed_there_is_no_layer() {
    needs_root!();
    let sandbox = Sandbox::new("empty");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let layers = inspect(&lamina, "small")["layers"].clone();
    let mount = lamina.mount(&["--name", "kept", "small"], &sandbox.join("mnt"));
    let live = commit(&lamina, &["kept", "-t", "live"]);
    // Made and removed again.
    fs::write(mount.path().join("new"), "x").unwrap();
    fs::remove_file(mount.path().join("new")).unwrap();
    mount.unmount();
    let kept = commit(&lamina, &["kept", "-t", "kept", "-c", "CMD true"]);
    for (said, name) in [(live, "live"), (kept, "kept")] {
        assert_eq!(said["layer"], Value::Null);
        let image = inspect(&lamina, name);
        assert_eq!(image["layers"], layers, "{name}");
        assert_eq!(image["config"]["history"][1]["empty_layer"], true);
        assert_eq!(image["config"]["history"].as_array().unwrap().len(), 2);
    }
    // The root's own mode is a change.
    let mount = lamina.mount(&["--name", "kept", "small"], &sandbox.join("mnt"));
    run(Command::new("chmod").arg("700").arg(mount.path()));
    mount.unmount();
    assert_ne!(
        commit(&lamina, &["kept", "-t", "mode"])["layer"],
        Value::Null
    );
}

#[test]
fn squashed_the_tree_is_the_same() {
    needs_root!();
    let sandbox = Sandbox::new("squash");
    let lamina = Lamina::new(&sandbox);
    let bottom = Archive::new(&sandbox, "bottom.tar")
        .dir("dir", 0o755)
        .file("dir/gone", b"gone")
        .file("dir/large", &noise(2, 200_000))
        .hard_link("dir/name", "dir/large")
        .finish();
    let top = Archive::new(&sandbox, "top.tar")
        .dir("dir", 0o700)
        .file("dir/.wh.gone", b"")
        .finish();
    lamina.build("two", &[bottom, top]);
    let mount = lamina.mount(&["--name", "kept", "two"], &sandbox.join("mnt"));
    fs::write(mount.path().join("new"), noise(3, 5000)).unwrap();
    fs::rename(mount.path().join("dir"), mount.path().join("moved")).unwrap();
    run(Command::new("truncate")
        .args(["-s", "3M"])
        .arg(mount.path().join("sparse")));
    commit(
        &lamina,
        &[
            "kept",
            "-t",
            "live",
            "--squash",
            "--timestamp",
            "4000000000",
        ],
    );
    let tree = Tree::read(mount.path());
    mount.unmount();
    let kept = commit(
        &lamina,
        &[
            "kept",
            "-t",
            "kept",
            "--squash",
            "--timestamp",
            "4000000000",
        ],
    );
    let image = inspect(&lamina, "live");
    assert_eq!(image["id"], kept["image"], "mounted or not");
    assert_eq!(image["layers"].as_array().unwrap().len(), 1);
    assert_eq!(image["config"]["history"].as_array().unwrap().len(), 1);
    let mount = lamina.mount(&["--read-only", "live"], &sandbox.join("mnt"));
    let squashed = Tree::read(mount.path());
    tree.assert_same(
        "the mount",
        &squashed,
        "the image",
        Ignore::OTHER_FILESYSTEM,
    );
    mount.unmount();

    // Plain directories have no layers of their own: only this way they become an image.
    let lower = sandbox.dir("lower");
    fs::write(lower.join("from-below"), "below").unwrap();
    let options = ["--lower", lower.to_str().unwrap(), "--name", "dirs"];
    let mount = lamina.mount(&options, &sandbox.join("mnt"));
    fs::write(mount.path().join("on-top"), "top").unwrap();
    mount.unmount();
    let message = lamina.fails(1, ["commit", "dirs", "-t", "dirs"]);
    assert!(message.contains("--squash"), "{message}");
    commit(&lamina, &["dirs", "-t", "dirs", "--squash"]);
    let mount = lamina.mount(&["--read-only", "dirs"], &sandbox.join("mnt"));
    assert_eq!(fs::read(mount.path().join("from-below")).unwrap(), b"below");
    assert_eq!(fs::read(mount.path().join("on-top")).unwrap(), b"top");
    mount.unmount();
}

#[test]
fn the_image_below_is_found_under_another_name_and_missed_if_it_is_gone() {
    needs_root!();
    let sandbox = Sandbox::new("base");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let change = |name: &str, image: &str| {
        let mount = lamina.mount(&["--name", name, image], &sandbox.join("mnt"));
        fs::write(mount.path().join(name), "x").unwrap();
        mount.unmount();
    };
    change("one", "small");
    let based = commit(&lamina, &["one", "-t", "based", "-c", "CMD true"]);
    change("two", "based");
    commit(&lamina, &["two", "-t", "top"]);
    // The name goes to another image; the layers stay.
    let other = sandbox.file("other.tar", [0; 10240]);
    lamina.build("based", &[other]);
    let made = |tag: &str| {
        let result = lamina.output(["commit", "two", "-t", tag]);
        assert!(result.status.success(), "{}", describe(&result));
        let said = String::from_utf8_lossy(&result.stderr).into_owned();
        (inspect(&lamina, tag)["config"].clone(), said)
    };
    let (config, said) = made("by-layers");
    assert_eq!(
        config["config"]["Cmd"],
        json!(["/bin/sh", "-c", "true"]),
        "{said}"
    );
    assert_eq!(said, "");

    // Removing it would be refused while there are changes on it.
    let hex = based["image"]
        .as_str()
        .unwrap()
        .trim_start_matches("sha256:");
    fs::remove_dir_all(lamina.store().join("images").join(hex)).unwrap();
    let (config, said) = made("by-nothing");
    assert!(said.contains("based is gone"), "{said}");
    assert_eq!(config["config"]["Cmd"], Value::Null);
    assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), 3);
    assert_eq!(config["history"].as_array().unwrap().len(), 3);
}

#[test]
fn what_is_committed_is_not_mounted_or_thrown_away_meanwhile() {
    needs_root!();
    let sandbox = Sandbox::new("locked");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let mount = lamina.mount(&["--name", "kept", "small"], &sandbox.join("mnt"));
    change_something(mount.path());
    mount.unmount();
    let upper = File::open(lamina.store().join("mounts/kept/upper")).unwrap();
    let lock = |operation| rustix::fs::flock(&upper, operation).unwrap();

    // As another commit has it, and as a mount of a user whose records are not seen.
    lock(FlockOperation::LockShared);
    lamina.ok(["commit", "kept", "-t", "image"]);
    for arguments in [&["rm", "kept"][..], &["mount", "--name", "kept", "small"]] {
        let target = (arguments.len() > 2).then(|| sandbox.join("mnt"));
        let mut command = lamina.command(arguments);
        let result = crate::support::output(command.args(target));
        let said = describe(&result);
        assert!(!result.status.success(), "{said}");
        assert!(said.contains("being committed"), "{said}");
    }
    lock(FlockOperation::LockExclusive);
    let message = lamina.fails(1, ["commit", "kept", "-t", "image"]);
    assert!(message.contains("no record tells of"), "{message}");
    // A mount that is not recorded yet is waited for.
    let waiting = lamina.command(["commit", "kept", "-t", "image"]).spawn();
    std::thread::sleep(std::time::Duration::from_millis(300));
    lock(FlockOperation::Unlock);
    assert!(waiting.unwrap().wait().unwrap().success());
}

#[test]
fn a_full_disk_leaves_the_store_and_the_changes_as_they_were() {
    needs_root!();
    let sandbox = Sandbox::new("commit-full");
    let disk = sandbox.dir("disk");
    run(Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"])
        .arg(&disk));
    let lamina = Lamina::new(&sandbox).with_store(&disk.join("store"));
    small_image(&sandbox, &lamina);
    let (upper, work) = (sandbox.dir("upper"), sandbox.dir("work"));
    let options = [
        "--upper",
        upper.to_str().unwrap(),
        "--work",
        work.to_str().unwrap(),
        "small",
    ];
    let mount = lamina.mount(&options, &sandbox.join("mnt"));
    let large = noise(7, 20 << 20);
    fs::write(mount.path().join("large"), &large).unwrap();
    let store = || {
        let skip: &[&[u8]] = &[b"mounts", b"leases", b"merged"];
        Tree::read_except(lamina.store(), skip)
            .paths()
            .map(<[u8]>::to_vec)
            .collect::<Vec<_>>()
    };
    let before = store();
    let target = mount.path().to_str().unwrap();
    let message = lamina.fails(1, ["commit", target, "-t", "made"]);
    assert!(message.contains("No space left"), "{message}");
    assert_eq!(store(), before);
    assert!(
        fs::read_dir(&work)
            .unwrap()
            .all(|entry| entry.unwrap().file_name() == "work")
    );
    // Nobody waits any more.
    fs::write(mount.path().join("later"), "x").unwrap();
    assert!(fs::read(mount.path().join("large")).unwrap() == large);
    fs::remove_file(mount.path().join("large")).unwrap();
    commit(&lamina, &[target, "-t", "made"]);
    mount.unmount();
}

#[test]
fn any_name_that_a_layer_can_hold_is_in_it() {
    needs_root!();
    let sandbox = Sandbox::new("names");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let mount = lamina.mount(&["--name", "kept", "small"], &sandbox.join("mnt"));
    let long = "n".repeat(255).into_bytes();
    let names: [&[u8]; 6] = [b"new\nline", b"\xff\xfe", b"-rf", b" ", b"a\\b\"c", &long];
    let name = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    for bytes in names {
        fs::write(mount.path().join(name(bytes)), bytes).unwrap();
    }
    // A path of some 3000 bytes.
    let mut deep = mount.path().to_owned();
    for _ in 0..12 {
        deep.push("d".repeat(240));
    }
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("file"), "deep").unwrap();
    commit(&lamina, &["kept", "-t", "made"]);
    let tree = Tree::read(mount.path());
    let shown = lamina.mount(&["--read-only", "made"], &sandbox.join("made"));
    let image = Tree::read(shown.path());
    tree.assert_same("the mount", &image, "the image", Ignore::OTHER_FILESYSTEM);
    shown.unmount();

    File::create(mount.path().join(".wh.file")).unwrap();
    let images = lamina.ok(["image", "ls", "--json"]);
    let message = lamina.fails(1, ["commit", "kept", "-t", "wrong"]);
    assert!(message.contains(".wh.file"), "{message}");
    assert_eq!(lamina.ok(["image", "ls", "--json"]), images);
    fs::remove_file(mount.path().join(".wh.file")).unwrap();
    mount.unmount();
}

/// What buildah makes of the same steps has the same shape.
#[test]
fn the_history_has_the_shape_that_buildah_gives_it() {
    needs_root!();
    if Command::new("buildah").arg("--version").output().is_err() {
        eprintln!("skipped: there is no buildah");
        return;
    }
    let sandbox = Sandbox::new("buildah");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let containers = Containers::new(&sandbox);
    let buildah = |words: &[&str]| containers.buildah_ok(words);
    let container = buildah(&["from", "scratch"]);
    buildah(&[
        "add",
        &container,
        sandbox.join("small.tar").to_str().unwrap(),
        "/",
    ]);
    buildah(&["commit", "-q", "--format=oci", &container, "small"]);
    let container = buildah(&["from", "--pull-never", "localhost/small"]);
    let dir = buildah(&["mount", &container]);
    fs::write(Path::new(&dir).join("new"), "x").unwrap();
    buildah(&["umount", &container]);
    buildah(&[
        "config",
        "--cmd",
        "[\"true\"]",
        "--author",
        "who",
        &container,
    ]);
    let date = format!("--timestamp={DAY}");
    buildah(&["commit", "-q", "--format=oci", &date, &container, "theirs"]);
    let theirs = buildah(&["inspect", "--type", "image", "theirs"]);
    let theirs: Value = serde_json::from_str(&theirs).unwrap();
    let theirs = &theirs["OCIv1"];

    let mount = lamina.mount(&["--name", "kept", "small"], &sandbox.join("mnt"));
    fs::write(mount.path().join("new"), "x").unwrap();
    mount.unmount();
    commit(
        &lamina,
        &[
            "kept",
            "-t",
            "ours",
            "-c",
            "CMD [\"true\"]",
            "-a",
            "who",
            &date,
        ],
    );
    let ours = inspect(&lamina, "ours")["config"].clone();
    for field in ["created", "architecture", "os", "author"] {
        assert_eq!(ours[field], theirs[field], "{field}");
    }
    assert_eq!(ours["config"]["Cmd"], theirs["config"]["Cmd"]);
    let entries = |config: &Value| {
        let all = config["history"].as_array().unwrap().clone();
        let empty = |entry: &Value| entry.get("empty_layer").is_some();
        (
            all.len(),
            all.last()
                .map(|entry| (entry["created"].clone(), empty(entry))),
        )
    };
    assert_eq!(entries(&ours), entries(theirs));
    let count = |config: &Value| config["rootfs"]["diff_ids"].as_array().unwrap().len();
    assert_eq!(count(&ours), count(theirs));
}
