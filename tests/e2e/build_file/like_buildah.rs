//! The same Containerfiles through buildah and through Lamina give the same trees and the same
//! configurations. What differs on purpose is in [`CASES`], with its reason.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::base;
use crate::support::containers::Containers;
use crate::support::lamina::Lamina;
use crate::support::needs_root;
use crate::support::sandbox::Sandbox;
use crate::support::tree::{Ignore, Tree};

/// One Containerfile.
struct Case {
    file: &'static str,
    options: &'static [&'static str],
    /// Paths that are not compared, each with the reason beside it.
    passed_over: &'static [&'static [u8]],
    /// Fields of the configuration that are not compared.
    fields: &'static [&'static str],
}

impl Case {
    const fn of(file: &'static str) -> Self {
        Self {
            file,
            options: &[],
            passed_over: &[],
            fields: &[],
        }
    }
}

const CASES: &[Case] = &[
    Case {
        // buildah takes set-user-ID and set-group-ID bits from what is in the context.
        passed_over: &[b"modes/setuid", b"modes/dir"],
        ..Case::of("copy")
    },
    Case::of("add"),
    Case {
        options: &["--build-arg", "plain=given", "--build-arg", "base=base"],
        // buildah 1.28 makes the directories of volumes; later versions and docker do not.
        passed_over: &[b"data", b"other", b"json a", b"b"],
        ..Case::of("settings")
    },
    Case::of("commands"),
    Case {
        options: &["--target", "shell"],
        ..Case::of("commands")
    },
    Case {
        options: &["--build-arg", "arg=given"],
        ..Case::of("run")
    },
    Case::of("stages"),
    Case::of("scratch"),
    Case {
        // As with "copy".
        passed_over: &[b"all/modes/setuid", b"all/modes/dir"],
        ..Case::of("ignore")
    },
    Case::of("escape"),
];

/// buildah with a place of its own, and the base in it.
struct Buildah(Containers);

impl Buildah {
    fn new(sandbox: &Sandbox) -> Self {
        let containers = Containers::new(sandbox);
        let container = containers.buildah_ok(&["from", "scratch"]);
        let layer = sandbox.join("base.tar");
        containers.buildah_ok(&["add", "-q", &container, layer.to_str().unwrap(), "/"]);
        containers.buildah_ok(&["commit", "-q", "--rm", &container, "base"]);
        Self(containers)
    }

    fn build(&self, file: &Path, context: &Path, name: &str, more: &[&str]) {
        let mut arguments = vec![
            "bud",
            "--isolation",
            "chroot",
            "--pull-never",
            "--format",
            "docker",
        ];
        arguments.extend(["-t", name, "-f", file.to_str().unwrap()]);
        arguments.extend(more);
        arguments.push(context.to_str().unwrap());
        self.0.buildah_ok(&arguments);
    }

    fn config(&self, name: &str) -> Value {
        let text = self.0.buildah_ok(&["inspect", "--type", "image", name]);
        let all: Value = serde_json::from_str(&text).unwrap();
        all["Docker"]["config"].clone()
    }
}

/// What a configuration says, without what is empty: programs differ in whether they write that.
fn essence(config: &Value, leave_out: &[&str]) -> Map<String, Value> {
    let known = [
        "User",
        "Env",
        "Entrypoint",
        "Cmd",
        "WorkingDir",
        "Labels",
        "ExposedPorts",
        "Volumes",
        "StopSignal",
        "Healthcheck",
        "OnBuild",
        "Shell",
    ];
    let mut found = Map::new();
    for field in known.iter().filter(|field| !leave_out.contains(field)) {
        let mut value = config[*field].clone();
        if let Some(labels) = value.as_object_mut() {
            labels.remove("io.buildah.version");
        }
        let is_empty = match &value {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        if !is_empty {
            found.insert((*field).to_owned(), value);
        }
    }
    found
}

fn fixture(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/build_file");
    dir.join(format!("{name}.containerfile"))
}

fn compare(sandbox: &Sandbox, lamina: &Lamina, buildah: &Buildah, name: &str, case: &Case) {
    let config = &base::config(lamina, name)["config"]["config"];
    assert_eq!(
        Value::Object(essence(config, case.fields)),
        Value::Object(essence(&buildah.config(name), case.fields)),
        "{} (we first, buildah second)",
        case.file
    );
    if !config["OnBuild"].is_null() {
        // buildah would do what it says, to look at the tree.
        return;
    }
    let mount = lamina.mount(&["--read-only", name], &sandbox.join("mnt"));
    let ours = Tree::read(mount.path());
    mount.unmount();
    let ignore = Ignore {
        // Directories and files that are made now.
        mtime: true,
        dir_nlink: true,
        ino: true,
    };
    let theirs = buildah.0.tree(name);
    let mut lines = ours.differences(&theirs, ignore);
    lines.retain(|line| {
        let is_passed_over = |path: &[u8]| line.starts_with(&format!("/{}:", path.escape_ascii()));
        // buildah makes a root that nobody may write to, whatever the layer says.
        !line.starts_with("/: mode") && !case.passed_over.iter().any(|path| is_passed_over(path))
    });
    assert!(
        lines.is_empty(),
        "{} (we first, buildah second):\n{}",
        case.file,
        lines.join("\n")
    );
}

#[test]
fn trees_and_configurations() {
    needs_root!();
    let sandbox = Sandbox::new("like-buildah");
    let lamina = base::with_base(&sandbox);
    let buildah = Buildah::new(&sandbox);
    let context = base::context(&sandbox);
    for (number, case) in CASES.iter().enumerate() {
        let name = format!("{}-{number}", case.file);
        let rules = context.join(".dockerignore");
        if case.file == "ignore" {
            let text = "# what is left out\nignored*\n!ignored-dir/kept\n**/*.tmp\n/b.txt\nlarge\ndir/t?o\n";
            std::fs::write(&rules, text).unwrap();
        }
        let file = fixture(case.file);
        base::build(&lamina, &file, &context, &name, case.options);
        buildah.build(&file, &context, &name, case.options);
        compare(&sandbox, &lamina, &buildah, &name, case);
        if rules.exists() {
            std::fs::remove_file(&rules).unwrap();
        }
    }
}

#[test]
fn instructions_that_an_image_keeps_for_its_children() {
    needs_root!();
    let sandbox = Sandbox::new("onbuild");
    let lamina = base::with_base(&sandbox);
    let buildah = Buildah::new(&sandbox);
    let context = base::context(&sandbox);
    for (file, name) in [("onbuild-parent", "parent"), ("onbuild-child", "child")] {
        let case = Case::of(file);
        base::build(&lamina, &fixture(file), &context, name, &[]);
        buildah.build(&fixture(file), &context, name, &[]);
        compare(&sandbox, &lamina, &buildah, name, &case);
    }
    let kept = &base::config(&lamina, "child")["config"]["config"]["OnBuild"];
    assert!(kept.is_null() || *kept == json!([]), "{kept}");
}
