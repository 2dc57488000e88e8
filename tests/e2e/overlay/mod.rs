//! `lamina overlay`, the program that podman and buildah mount with.

mod formats;
mod ids;
mod options;
mod podman;
mod rootless;

use std::path::PathBuf;

use crate::support::overlayfs::Layers;
use crate::support::sandbox::Sandbox;

/// Directories for one mount, by a name.
fn layers(sandbox: &Sandbox, name: &str, lowers: Vec<PathBuf>) -> Layers {
    Layers {
        lowers,
        upper: sandbox.dir(format!("{name}/upper")),
        work: sandbox.dir(format!("{name}/work")),
    }
}

/// What was said, without what depends on when it was done: times and link counts of `ls -l`, the names of
/// containers in `/etc/hosts`. Nor does podman tell what an opaque directory of fuse-overlayfs hides.
fn comparable(said: &str) -> Vec<String> {
    let lines = said.lines().map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        match words.as_slice() {
            [mode, _, uid, gid, size, _, _, _, name @ ..] if mode.len() == 10 => {
                format!("{mode} {uid} {gid} {size} {}", name.join(" "))
            }
            _ => line.to_owned(),
        }
    });
    let mut lines: Vec<_> = lines
        .filter(|line| line != "D /etc/again/old")
        .filter(|line| !line.ends_with(" hosts") && !line.starts_with("hosts f "))
        .filter(|line| !line.starts_with("total "))
        .collect();
    lines.sort_unstable();
    lines
}
