//! What `lamina ps` tells of the mounts of a test.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::Pid;
use serde_json::Value;

use super::lamina::Lamina;
use super::layers::Archive;
use super::sandbox::Sandbox;

/// Builds an image `small`, with a file `dir/file` in it.
pub fn small_image(sandbox: &Sandbox, lamina: &Lamina) {
    let archive = Archive::new(sandbox, "small.tar")
        .dir("dir", 0o755)
        .file("dir/file", b"from the image")
        .finish();
    lamina.build("small", &[archive]);
}

/// What `lamina ps --all --json` says of the mounts below `sandbox`.
pub fn mounts(lamina: &Lamina, sandbox: &Sandbox) -> Vec<Value> {
    let text = lamina.ok(["ps", "--all", "--json"]);
    let all: Vec<Value> = serde_json::from_str(&text).unwrap();
    let here = sandbox.path().to_str().unwrap();
    all.into_iter()
        .filter(|mount| mount["store"].as_str().unwrap().starts_with(here))
        .collect()
}

/// The only one of them.
#[track_caller]
pub fn the_mount(lamina: &Lamina, sandbox: &Sandbox) -> Value {
    match &mounts(lamina, sandbox)[..] {
        [mount] => mount.clone(),
        other => panic!("one mount, not {other:#?}"),
    }
}

/// Its daemon.
pub fn pid_of(mount: &Value) -> Pid {
    let raw = mount["pid"].as_i64().unwrap();
    Pid::from_raw(i32::try_from(raw).unwrap()).unwrap()
}

/// Arguments of which the last is a path.
pub fn words<'a>(first: &[&'a str], last: &'a Path) -> Vec<&'a OsStr> {
    let first = first.iter().map(|word| OsStr::new(*word));
    first.chain([last.as_os_str()]).collect()
}

/// What a process has open.
pub fn descriptors(process: Pid) -> Vec<PathBuf> {
    let open = fs::read_dir(format!("/proc/{}/fd", process.as_raw_nonzero())).unwrap();
    let links = open.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    links.collect()
}

/// The deleted files that a daemon has open. Its statistics are a file that never had a name.
pub fn deleted_files(daemon: Pid) -> Vec<PathBuf> {
    let mut open = descriptors(daemon);
    open.retain(|path| {
        let path = path.to_string_lossy();
        path.ends_with(" (deleted)") && !path.starts_with("/memfd:")
    });
    open
}
