//! What the program says and how: usage, exit statuses, output, manual pages.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::lamina::Lamina;
use crate::support::layers::Archive;
use crate::support::listing::{small_image, words};
use crate::support::sandbox::{Sandbox, mounted_type};
use crate::support::{describe, output, run};

#[test]
fn wrong_usage_has_a_status_of_its_own() {
    let sandbox = Sandbox::new("usage");
    let lamina = Lamina::new(&sandbox);
    let target = sandbox.dir("mnt");
    for (arguments, named) in [
        (
            &["mount", "-o", "nodev,frobnicate", "small"][..],
            "frobnicate",
        ),
        (&["mount", "-o", "fsname=", "small"], "fsname"),
        (&["mount", "-o", "ro", "--name", "x", "small"], "--name"),
        (&["mount", "--threads", "0", "small"], "--threads"),
        (&["mount", "--name", "../x", "small"], "../x"),
        (&["mount"], "mount point"),
        (&["--log", "a=b=c", "umount"], "a=b=c"),
    ] {
        let message = lamina.fails(2, words(arguments, &target));
        assert!(message.contains(named), "{message}");
    }
    let message = lamina.fails(2, ["layer", "build", "-", "-"]);
    assert!(message.contains("standard input"), "{message}");
    let dir = sandbox.dir("a-directory");
    let message = lamina.fails(2, ["layer", "build", dir.to_str().unwrap()]);
    assert!(message.contains("say --dir"), "{message}");
    let message = lamina.fails(1, ["layer", "build", "-t", "A Wrong Name", "/no/such.tar"]);
    assert!(
        message.contains("A Wrong Name"),
        "the archive was looked at first: {message}"
    );
    assert_eq!(mounted_type(&target), None);
}

#[test]
fn output_that_nobody_reads_is_no_failure() {
    let sandbox = Sandbox::new("pipe");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    for arguments in [
        &["ps"][..],
        &["layer", "ls"],
        &["image", "ls", "--json"],
        &["completions", "bash"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = lamina.command(arguments);
        let child = command
            .stdin(Stdio::null())
            .stdout(writer)
            .stderr(Stdio::piped());
        let result = child.spawn().unwrap().wait_with_output().unwrap();
        assert!(
            result.status.success(),
            "{arguments:?}: {}",
            describe(&result)
        );
        assert!(
            result.stderr.is_empty(),
            "{arguments:?}: {}",
            describe(&result)
        );
    }
}

#[test]
fn a_store_of_a_newer_lamina_is_refused() {
    let sandbox = Sandbox::new("newer");
    let lamina = Lamina::new(&sandbox);
    small_image(&sandbox, &lamina);
    let path = lamina.store().join("store.json");
    let mut superblock: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    superblock["version"] = 99.into();
    fs::remove_file(&path).unwrap();
    fs::write(&path, superblock.to_string()).unwrap();
    let target = sandbox.dir("mnt");
    for arguments in [
        words(&["mount", "small"], &target),
        words(&["mount", "--read-only", "small"], &target),
        words(&["layer", "build"], &sandbox.join("small.tar")),
    ] {
        let message = lamina.fails(1, arguments);
        assert!(
            message.contains("99") && message.contains("newer lamina"),
            "{message}"
        );
        assert_eq!(message.lines().count(), 1, "{message}");
    }
    assert_eq!(mounted_type(&target), None);
}

/// What a program prints on a terminal.
fn on_a_terminal(lamina: &Lamina, arguments: &str) -> String {
    let call = format!("'{}' {arguments}", env!("CARGO_BIN_EXE_lamina"));
    let mut script = Command::new("script");
    script.args(["-qec", &call, "/dev/null"]);
    run(script
        .env("LAMINA_STORE", lamina.store())
        .env("TERM", "xterm"))
}

#[test]
fn progress_is_shown_on_a_terminal_only() {
    let sandbox = Sandbox::new("progress");
    let lamina = Lamina::new(&sandbox);
    let archive = Archive::new(&sandbox, "layer.tar")
        .file("file", &vec![b'x'; 100_000])
        .finish();
    let quiet = lamina.output(words(&["layer", "build"], &archive));
    assert!(
        quiet.status.success() && quiet.stderr.is_empty(),
        "{}",
        describe(&quiet)
    );
    if !Path::new("/usr/bin/script").exists() {
        eprintln!("skipped: script(1), which makes a terminal, is not here");
        return;
    }
    let shown = on_a_terminal(&lamina, &format!("layer build '{}'", archive.display()));
    assert!(shown.contains("KiB/") && shown.contains("/s"), "{shown:?}");
}

#[test]
fn pages_and_completions_cover_every_command() {
    let sandbox = Sandbox::new("pages");
    let lamina = Lamina::new(&sandbox);
    let pages = sandbox.dir("man");
    lamina.ok(words(&["gen-man"], &pages));
    for command in [
        "mount",
        "umount",
        "ps",
        "rm",
        "diff",
        "commit",
        "layer-build",
        "image-ls",
    ] {
        let page = pages.join(format!("lamina-{command}.1"));
        assert!(page.exists(), "{command}");
        // Where man is installed it must like them.
        if Path::new("/usr/bin/man").exists() {
            let checked = output(Command::new("man").args(["--warnings", "-l"]).arg(&page));
            assert!(checked.stderr.is_empty(), "{}", describe(&checked));
        }
    }
    assert!(!pages.join("lamina-gen-man.1").exists());
    let main = fs::read_to_string(pages.join("lamina.1")).unwrap();
    assert!(main.contains("Exit status") && main.contains("LAMINA_STORE"));
    for shell in ["bash", "zsh", "fish"] {
        let script = lamina.ok(["completions", shell]);
        assert!(
            script.contains("umount") && script.contains("read-only"),
            "{shell}"
        );
    }
    let script = sandbox.file("lamina.bash", lamina.ok(["completions", "bash"]));
    run(Command::new("bash").arg("-n").arg(&script));
}
