//! Builds that are ended while a command runs.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::base::{self, arguments, build_text, config, containerfile};
use crate::support::lamina::{Lamina, wait_until};
use crate::support::needs_root;
use crate::support::sandbox::Sandbox;

/// A build whose command has begun and does not end; it has this mount too.
fn hanging(sandbox: &Sandbox, lamina: &Lamina, mount: &str, more: &[&str]) -> Child {
    let marker = sandbox.dir("marker");
    let text = format!(
        "FROM base\nRUN --mount=type=cache,target=/m {mount} touch /m/begun && sleep 86399\n"
    );
    let file = containerfile(sandbox, &text);
    let child = lamina
        .command(arguments(&file, &marker, "image", more))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let caches = lamina.store().join("cache/mounts");
    wait_until("the command to begin", || {
        let dirs = fs::read_dir(&caches).into_iter().flatten();
        dirs.into_iter()
            .any(|dir| dir.unwrap().path().join("begun").exists())
    });
    child
}

/// Processes that have a text in their command line.
fn processes(text: &str) -> usize {
    let is_one = |path: &Path| {
        let line = fs::read(path.join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line)
            .replace('\0', " ")
            .contains(text)
    };
    let entries = fs::read_dir("/proc").unwrap();
    entries
        .filter(|entry| is_one(&entry.as_ref().unwrap().path()))
        .count()
}

#[test]
fn an_interrupted_build_leaves_nothing() {
    needs_root!();
    for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
        let sandbox = Sandbox::new("interrupted");
        let lamina = base::with_base(&sandbox);
        let child = hanging(&sandbox, &lamina, "", &[]);
        assert!(processes("sleep 86399") > 0);
        kill_process(Pid::from_child(&child), signal).unwrap();
        let result = child.wait_with_output().unwrap();
        assert!(!result.status.success());
        if signal != Signal::KILL {
            let said = String::from_utf8_lossy(&result.stderr).into_owned();
            assert!(said.contains("interrupted"), "{said}");
        }
        wait_until("the container to end", || processes("sleep 86399") == 0);
        let here = sandbox.path().to_str().unwrap();
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!table.contains(here), "something is mounted");
        // The next command clears away what a killed one could not.
        build_text(&sandbox, &lamina, "FROM base\nRUN true\n", "next");
        let staging = fs::read_dir(lamina.store().join("staging"))
            .unwrap()
            .count();
        assert_eq!(staging, 0, "after {signal:?}");
    }
}

#[test]
fn an_interruption_is_never_lost() {
    needs_root!();
    // One that makes no container for a while, and one that does nothing that it is asked for.
    for (name, script) in [
        ("crun-late", "sleep 1;; esac; exec crun \"$@\""),
        ("crun-deaf", "exec sleep 86398;; esac; exit 1"),
    ] {
        let sandbox = Sandbox::new(name);
        let lamina = base::with_base(&sandbox);
        let begun = sandbox.join("begun");
        let script = format!(
            "#!/bin/sh\ncase \"$*\" in *' run '*) : > {}; {script}\n",
            begun.display()
        );
        let runtime = sandbox.file(name, &script);
        crate::support::run(Command::new("chmod").arg("755").arg(&runtime));
        let file = containerfile(&sandbox, "FROM base\nRUN sleep 86398\n");
        let more = ["--runtime", runtime.to_str().unwrap()];
        let child = lamina
            .command(arguments(&file, &sandbox.dir("empty"), "image", &more))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        wait_until("the runtime to begin", || begun.exists());
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        let result = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&result.stderr).into_owned();
        assert!(!result.status.success(), "{name}: {said}");
        assert!(said.contains("interrupted"), "{name}: {said}");
        assert_eq!(processes("sleep 86398"), 0, "{name}");
    }
}

#[test]
fn secrets_are_in_no_file_of_the_store() {
    needs_root!();
    let sandbox = Sandbox::new("secrets");
    let lamina = base::with_base(&sandbox);
    let secret = sandbox.file("secret", "open-sesame\n");
    let option = format!("id=pass,src={}", secret.display());
    let mount = "--mount=type=secret,id=pass";
    let mut child = hanging(&sandbox, &lamina, mount, &["--secret", &option]);
    let found = Command::new("grep")
        .args(["-rq", "open-sesame"])
        .arg(lamina.store())
        .status();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(found.unwrap().code(), Some(1), "it is in the store");
}

#[test]
fn images_stay_while_something_of_them_is_bound() {
    needs_root!();
    let sandbox = Sandbox::new("bound-image");
    let lamina = base::with_base(&sandbox);
    build_text(&sandbox, &lamina, "FROM base\nRUN echo x > /x\n", "other");
    let layers = config(&lamina, "other")["layers"].clone();
    let top = layers.as_array().unwrap().last().unwrap().to_string();
    let mut child = hanging(&sandbox, &lamina, "--mount=from=other,target=/other", &[]);
    lamina.ok(["image", "rm", "other"]);
    lamina.ok(["gc"]);
    let left = lamina.ok(["layer", "ls", "--json"]);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(
        left.contains(top.trim_matches('"')),
        "{top} is gone: {left}"
    );
}
