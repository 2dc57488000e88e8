//! `lamina fsck`: every kind of damage is found, named, and repaired or kept apart.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use lamina_layers::digest::Digest;
use serde_json::Value;

use crate::support::damage::{flip, image};
use crate::support::lamina::{Lamina, NOBODY};
use crate::support::layers::{Archive, noise};
use crate::support::sandbox::Sandbox;
use crate::support::tree::{Ignore, Tree};
use crate::support::{describe, needs_root, run};

/// Two images with an object in common, and what is needed to make them again.
struct Two {
    sandbox: Sandbox,
    lamina: Lamina,
}

const FIRST: (u8, usize) = (1, 5_000);
const SHARED: (u8, usize) = (2, 200_000);

impl Two {
    fn new(name: &str) -> Self {
        let sandbox = Sandbox::new(name);
        let lamina = Lamina::new(&sandbox);
        Self::build(&sandbox, &lamina);
        Self { sandbox, lamina }
    }

    fn build(sandbox: &Sandbox, lamina: &Lamina) {
        let base = Archive::new(sandbox, "base.tar")
            .dir("dir", 0o755)
            .file("dir/first", &noise(FIRST.0, FIRST.1))
            .file("dir/small", b"in the index")
            .file("shared", &noise(SHARED.0, SHARED.1))
            .finish();
        let top = Archive::new(sandbox, "top.tar")
            .file("dir/top", &noise(3, 3_000))
            .finish();
        let other = Archive::new(sandbox, "other.tar")
            .file("other/shared", &noise(SHARED.0, SHARED.1))
            .file("other/own", &noise(4, 4_000))
            .finish();
        lamina.build("both", &[base, top]);
        lamina.build("other", &[other]);
    }

    /// The same with a store that is a copy of this one's.
    fn copy(&self, name: &str) -> Lamina {
        let store = self.sandbox.join(format!("store-{name}"));
        run(Command::new("cp")
            .arg("-a")
            .arg(self.lamina.store())
            .arg(&store));
        self.lamina.with_store(&store)
    }
}

fn object((seed, length): (u8, usize)) -> PathBuf {
    let hex = Digest::of(&noise(seed, length)).hex();
    Path::new("objects").join(&hex[..2]).join(&hex[2..])
}

/// What a check says; whether it found that damage remains.
fn check(lamina: &Lamina, arguments: &[&str]) -> (Vec<Value>, bool) {
    let result = lamina.output([&["fsck", "--json"], arguments].concat());
    let report: Value = serde_json::from_slice(&result.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", describe(&result)));
    let damaged = match result.status.code() {
        Some(0) => false,
        Some(1) => true,
        _ => panic!("{}", describe(&result)),
    };
    (report["damage"].as_array().unwrap().clone(), damaged)
}

fn assert_clean(lamina: &Lamina) {
    let (damage, damaged) = check(lamina, &["--deep"]);
    assert!(damage.is_empty() && !damaged, "{damage:#?}");
}

/// The directory of the layer whose archive has so many entries.
fn layer(store: &Path, entries: u64) -> PathBuf {
    let layers = fs::read_dir(store.join("layers")).unwrap();
    let mut layers = layers.map(|entry| entry.unwrap().path());
    layers
        .find(|path| {
            let text = fs::read(path.join("layer.json")).unwrap();
            serde_json::from_slice::<Value>(&text).unwrap()["entries"] == entries
        })
        .unwrap()
}

fn cut(path: &Path) {
    let mode = fs::metadata(path).unwrap().permissions();
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    fs::set_permissions(path, mode).unwrap();
}

fn replace_by_dir(path: &Path) {
    fs::remove_file(path).unwrap();
    fs::create_dir(path).unwrap();
    fs::write(path.join("inside"), "kept").unwrap();
}

/// What becomes of damage.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    /// It is right again.
    Repaired,
    /// It is out of the way, and nothing is missing.
    Moved,
    /// It is out of the way, and what needs it is damaged.
    Lost,
    /// Only told.
    Stays,
}

type Injure = fn(&Path);

/// Name, what is done to the store, the subject that is reported, words in the report, its fate.
const KINDS: &[(&str, Injure, &str, &str, Fate)] = &[
    (
        "bit-flip",
        |s| flip(&s.join(object(FIRST))),
        "object",
        "digest",
        Fate::Repaired,
    ),
    (
        "shared",
        |s| flip(&s.join(object(SHARED))),
        "object",
        "digest",
        Fate::Repaired,
    ),
    (
        "cut",
        |s| cut(&s.join(object(FIRST))),
        "object",
        "2500 bytes instead of 5000",
        Fate::Repaired,
    ),
    (
        "missing",
        |s| fs::remove_file(s.join(object(FIRST))).unwrap(),
        "object",
        "missing",
        Fate::Repaired,
    ),
    (
        "directory",
        |s| replace_by_dir(&s.join(object(FIRST))),
        "object",
        "a directory",
        Fate::Repaired,
    ),
    (
        "symlink",
        |s| {
            let path = s.join(object(FIRST));
            fs::rename(&path, s.join("objects/elsewhere")).unwrap();
            symlink("../elsewhere", path).unwrap();
            fs::remove_file(s.join("objects/elsewhere")).unwrap();
        },
        "object",
        "a symbolic link",
        Fate::Repaired,
    ),
    (
        "unneeded",
        |s| {
            fs::write(s.join("objects/00").join("0".repeat(62)), "x").unwrap_or_else(|_| {
                fs::create_dir(s.join("objects/00")).unwrap();
                fs::write(s.join("objects/00").join("0".repeat(62)), "x").unwrap();
            });
            let path = s.join("objects/00").join("0".repeat(62));
            fs::set_permissions(path, fs::Permissions::from_mode(0o444)).unwrap();
        },
        "object",
        "digest",
        Fate::Moved,
    ),
    (
        "mode",
        |s| fs::set_permissions(s.join(object(FIRST)), fs::Permissions::from_mode(0o644)).unwrap(),
        "mode",
        "0644",
        Fate::Repaired,
    ),
    (
        "index",
        |s| flip(&layer(s, 4).join("index")),
        "layer",
        "",
        Fate::Repaired,
    ),
    (
        "index-cut",
        |s| cut(&layer(s, 4).join("index")),
        "layer",
        "",
        Fate::Repaired,
    ),
    (
        "index-missing",
        |s| fs::remove_file(layer(s, 4).join("index")).unwrap(),
        "layer",
        "missing",
        Fate::Repaired,
    ),
    (
        "summary",
        |s| cut(&layer(s, 4).join("layer.json")),
        "layer",
        "",
        Fate::Repaired,
    ),
    (
        "tarsplit",
        |s| flip(&layer(s, 4).join("tarsplit")),
        "layer",
        "tarsplit",
        Fate::Repaired,
    ),
    (
        "tarsplit-missing",
        |s| fs::remove_file(layer(s, 4).join("tarsplit")).unwrap(),
        "layer",
        "missing",
        Fate::Repaired,
    ),
    (
        "layer-missing",
        |s| fs::remove_dir_all(layer(s, 4)).unwrap(),
        "layer",
        "missing",
        Fate::Repaired,
    ),
    (
        "merged",
        |s| {
            let path = fs::read_dir(s.join("merged"))
                .unwrap()
                .next()
                .unwrap()
                .unwrap()
                .path();
            flip(&path);
        },
        "merged",
        "",
        Fate::Repaired,
    ),
    (
        "manifest",
        |s| flip(&image(s, "other").join("manifest.json")),
        "image",
        "digest",
        Fate::Lost,
    ),
    (
        "config",
        |s| cut(&image(s, "other").join("config.json")),
        "image",
        "",
        Fate::Lost,
    ),
    (
        "config-missing",
        |s| fs::remove_file(image(s, "other").join("config.json")).unwrap(),
        "image",
        "cannot be read",
        Fate::Lost,
    ),
    (
        "source",
        |s| cut(&image(s, "other").join("source.json")),
        "stray",
        "",
        Fate::Moved,
    ),
    (
        "name",
        |s| cut(&s.join("refs/other")),
        "name",
        "not a digest",
        Fate::Lost,
    ),
    (
        "name-of-nothing",
        |s| fs::write(s.join("refs/lost"), format!("sha256:{}\n", "1".repeat(64))).unwrap(),
        "name",
        "not in the store",
        Fate::Lost,
    ),
    (
        "stray-top",
        |s| fs::write(s.join("notes.txt"), "").unwrap(),
        "stray",
        "",
        Fate::Moved,
    ),
    (
        "stray-objects",
        |s| fs::create_dir(s.join("objects/xyz")).unwrap(),
        "stray",
        "",
        Fate::Moved,
    ),
    (
        "wrong-name",
        |s| {
            let path = s.join(object(FIRST));
            fs::copy(&path, path.with_extension("bak"))
                .map(drop)
                .unwrap();
        },
        "stray",
        "",
        Fate::Moved,
    ),
    (
        "stray-layer",
        |s| fs::write(layer(s, 4).join("extra"), "").unwrap(),
        "stray",
        "",
        Fate::Moved,
    ),
    (
        "stray-layers",
        |s| fs::write(s.join("layers/extra"), "").unwrap(),
        "stray",
        "",
        Fate::Moved,
    ),
    (
        "stray-merged",
        |s| fs::write(s.join("merged/extra"), "").unwrap(),
        "stray",
        "",
        Fate::Moved,
    ),
    (
        "stray-image",
        |s| fs::write(image(s, "other").join("extra"), "").unwrap(),
        "stray",
        "",
        Fate::Moved,
    ),
    (
        "stray-name",
        |s| fs::write(s.join("refs/NO"), "").unwrap(),
        "stray",
        "",
        Fate::Moved,
    ),
    (
        "changes",
        |s| {
            fs::create_dir(s.join("mounts/kept")).unwrap();
            fs::write(s.join("mounts/kept/mount.json"), "{").unwrap();
        },
        "changes",
        "",
        Fate::Stays,
    ),
];

fn subject(damage: &Value) -> &str {
    let subject = &damage["subject"];
    let object = subject.as_object().and_then(|object| object.keys().next());
    object.map_or_else(|| subject.as_str().unwrap(), String::as_str)
}

#[test]
fn an_undamaged_store_is_right() {
    let two = Two::new("fsck-clean");
    assert_clean(&two.lamina);
    let said = two.lamina.ok(["fsck", "--repair"]);
    assert!(
        said.contains("no damage") && said.contains("2 images"),
        "{said}"
    );
    assert!(!two.lamina.store().join("quarantine").exists());
}

#[test]
fn every_kind_of_damage_is_found_and_repaired_or_moved_away() {
    let two = Two::new("fsck-kinds");
    for (name, injure, kind, words, fate) in KINDS {
        let lamina = two.copy(name);
        injure(lamina.store());
        let (damage, damaged) = check(&lamina, &[]);
        assert!(damaged, "{name}: nothing was found");
        let found = damage.iter().find(|damage| subject(damage) == *kind);
        let found = found.unwrap_or_else(|| panic!("{name}: {damage:#?}"));
        let text = found.to_string();
        assert!(text.contains(words), "{name}: {text}");
        // A person is told in one line what it is about.
        let said = lamina.output(["fsck"]);
        let said = String::from_utf8(said.stdout).unwrap();
        let path = found["path"].as_str().unwrap();
        assert!(
            said.lines().any(|line| line.contains(path)),
            "{name}: {said}"
        );
        if matches!(*kind, "object" | "layer") && *fate == Fate::Repaired {
            assert!(
                found["images"].to_string().contains("both"),
                "{name}: {text}"
            );
        }

        let (damage, remains) = check(&lamina, &["--repair"]);
        let expected = matches!(fate, Fate::Lost | Fate::Stays);
        assert_eq!(remains, expected, "{name}: {damage:#?}");
        let state = |damage: &Value| damage["outcome"]["state"].as_str().unwrap().to_owned();
        let states: Vec<String> = damage.iter().map(state).collect();
        let wanted = match fate {
            Fate::Repaired => "repaired",
            Fate::Moved | Fate::Lost => "quarantined",
            Fate::Stays => "failed",
        };
        assert!(
            states.iter().all(|state| state == wanted),
            "{name}: {damage:#?}"
        );
        if *fate == Fate::Stays {
            continue;
        }
        assert_clean(&lamina);
        lamina.ok(["image", "verify", "both"]);
        if *fate != Fate::Lost {
            lamina.ok(["image", "verify", "other"]);
        }
        fs::remove_dir_all(lamina.store()).unwrap();
    }
}

#[test]
fn what_is_affected_is_named() {
    let two = Two::new("fsck-named");
    flip(&two.lamina.store().join(object(SHARED)));
    let (damage, _) = check(&two.lamina, &[]);
    assert_eq!(damage.len(), 1, "{damage:#?}");
    assert_eq!(damage[0]["images"], serde_json::json!(["both", "other"]));
    assert_eq!(damage[0]["layers"].as_array().unwrap().len(), 2);
    let file = damage[0]["file"].as_str().unwrap();
    assert!(["shared", "other/shared"].contains(&file), "{file}");

    // Sizes alone do not tell.
    let (damage, damaged) = check(&two.lamina, &["--quick"]);
    assert!(damage.is_empty() && !damaged, "{damage:#?}");
    cut(&two.lamina.store().join(object(SHARED)));
    assert!(check(&two.lamina, &["--quick", "-j", "1"]).1);
}

#[test]
fn what_cannot_be_had_again_is_moved_away_and_comes_back_with_an_import() {
    let two = Two::new("fsck-lost");
    let path = two.lamina.store().join(object(FIRST));
    flip(&path);
    fs::remove_file(two.sandbox.join("base.tar")).unwrap();
    let (damage, damaged) = check(&two.lamina, &["--repair"]);
    assert!(damaged);
    let moved = PathBuf::from(damage[0]["outcome"]["detail"].as_str().unwrap());
    assert_eq!(fs::read(moved).unwrap().len(), FIRST.1);
    assert!(!path.exists());
    // It is still told what is missing.
    let (damage, damaged) = check(&two.lamina, &["--repair"]);
    assert!(
        damaged && damage[0]["problem"] == "it is missing",
        "{damage:#?}"
    );
    assert!(
        two.lamina
            .fails(1, ["image", "verify", "both"])
            .contains("missing")
    );

    // Without the first step the damaged object, which has the right size, would have been reused.
    Two::build(&two.sandbox, &two.lamina);
    assert_clean(&two.lamina);
}

#[test]
fn several_damages_at_once_are_repaired() {
    let two = Two::new("fsck-many");
    let store = two.lamina.store();
    flip(&store.join(object(FIRST)));
    fs::remove_file(store.join(object(SHARED))).unwrap();
    cut(&layer(store, 4).join("index"));
    flip(&layer(store, 4).join("tarsplit"));
    fs::remove_dir_all(layer(store, 1)).unwrap();
    let (damage, remains) = check(&two.lamina, &["--repair"]);
    assert!(!remains, "{damage:#?}");
    assert_clean(&two.lamina);
    for image in ["both", "other"] {
        two.lamina.ok(["image", "verify", image]);
    }
}

#[test]
fn a_live_mount_sees_what_was_repaired() {
    needs_root!();
    let two = Two::new("fsck-live");
    cut(&two.lamina.store().join(object(FIRST)));
    let mount = two
        .lamina
        .mount(&["--read-only", "both"], &two.sandbox.join("mnt"));
    let file = mount.path().join("dir/first");
    assert!(fs::read(&file).is_err(), "a damaged object was read");
    let (damage, remains) = check(&two.lamina, &["--repair"]);
    assert!(!remains, "{damage:#?}");
    assert_eq!(fs::read(&file).unwrap(), noise(FIRST.0, FIRST.1));
    mount.unmount();
}

#[test]
fn what_an_ordinary_user_cannot_read_is_repaired() {
    needs_root!();
    let sandbox = Sandbox::new("fsck-user");
    let lamina = Lamina::as_user(&sandbox, NOBODY);
    Two::build(&sandbox, &lamina);
    let path = lamina.store().join(object(FIRST));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    let (damage, damaged) = check(&lamina, &[]);
    assert!(damaged);
    let text = format!("{damage:?}");
    assert!(
        text.contains("Permission denied") && text.contains("0000"),
        "{text}"
    );
    let (damage, remains) = check(&lamina, &["--repair"]);
    assert!(!remains, "{damage:#?}");
    assert_clean(&lamina);

    // A file that somebody else owns is told as such.
    std::os::unix::fs::chown(&path, Some(0), Some(0)).unwrap();
    let (damage, _) = check(&lamina, &[]);
    assert!(
        damage[0]["problem"].as_str().unwrap().contains("user 0"),
        "{damage:#?}"
    );
}

#[test]
fn a_store_in_use_is_checked_without_false_alarms() {
    let two = Two::new("fsck-busy");
    let archives = ["base.tar", "top.tar", "other.tar"].map(|name| two.sandbox.join(name));
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| {
            for round in 0..15 {
                two.lamina.build("passing", &archives[round % 3..]);
                two.lamina.ok(["image", "rm", "passing"]);
                two.lamina.ok(["gc"]);
            }
        });
        while !busy.is_finished() {
            let (damage, damaged) = check(&two.lamina, &[]);
            assert!(!damaged, "{damage:#?}");
        }
    });
    assert_clean(&two.lamina);
}

#[test]
fn what_builds_remember_belongs_into_a_store() {
    needs_root!();
    let sandbox = Sandbox::new("fsck-cache");
    let lamina = Lamina::new(&sandbox);
    let context = sandbox.dir("context");
    sandbox.file("context/Containerfile", "FROM scratch\nCOPY file /\n");
    sandbox.file("context/file", "copied");
    lamina.ok(["build", "-q", "-t", "built", context.to_str().unwrap()]);
    assert!(lamina.store().join("cache").exists());
    assert_clean(&lamina);
}

/// Who can write to a store must not get its repairer, who may be root, to change anything else.
#[test]
fn links_out_of_a_store_are_not_followed() {
    let two = Two::new("fsck-links");
    let store = two.lamina.store();
    let hex = |digit: &str| digit.repeat(62);
    let foreign = two.sandbox.dir("foreign");
    for name in ["1", "2"].map(hex) {
        fs::write(foreign.join(&name), "not the store's").unwrap();
        fs::set_permissions(foreign.join(name), fs::Permissions::from_mode(0o600)).unwrap();
    }
    let before = Tree::read(&foreign);
    let prefix = (0..256).map(|number| format!("{number:02x}"));
    let mut free = prefix.filter(|prefix| !store.join("objects").join(prefix).exists());
    let link = store.join("objects").join(free.next().unwrap());
    symlink(&foreign, &link).unwrap();
    symlink(&foreign, store.join("layers").join("3".repeat(64))).unwrap();
    check(&two.lamina, &["--repair"]);
    assert!(link.symlink_metadata().is_err(), "the link is still there");
    before.assert_same("before", &Tree::read(&foreign), "after", Ignore::NOTHING);
    assert_clean(&two.lamina);

    // Nor is anything put where the quarantine leads to.
    fs::remove_dir_all(store.join("quarantine")).unwrap();
    symlink(&foreign, store.join("quarantine")).unwrap();
    fs::write(store.join("notes.txt"), "").unwrap();
    let (damage, remains) = check(&two.lamina, &["--repair"]);
    assert!(remains, "{damage:#?}");
    before.assert_same("before", &Tree::read(&foreign), "after", Ignore::NOTHING);
}
