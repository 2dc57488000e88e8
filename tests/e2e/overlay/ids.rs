//! Whom files belong to: the same as fuse-overlayfs shows and stores.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::layers;
use crate::support::program::Program;
use crate::support::sandbox::Sandbox;
use crate::support::{needs_root, output, run};

/// Every kind of map.
const MAPS: [&str; 12] = [
    "",
    "uidmapping=0:1000:1,gidmapping=0:1000:1",
    "uidmapping=0:1000:1:1:110000:65536,gidmapping=0:1000:1:1:110000:65536",
    "uidmapping=:0:1000:1:1:110000:65536",
    "uidmapping=0:0:1:5:50:2,gidmapping=0:0:1:7:70:3",
    "uidmapping=0:100000:65536,gidmapping=0:200000:65536",
    "uidmapping=0:5:1:5:0:1,gidmapping=5:0:1:0:5:1",
    "squash_to_root",
    "squash_to_uid=33",
    "squash_to_uid=33,squash_to_gid=44",
    "squash_to_gid=44",
    "uidmapping=0:100000:65536,gidmapping=0:100000:65536,squash_to_uid=12",
];
const OWNERS: [(u32, u32); 9] = [
    (0, 0),
    (1, 1),
    (5, 5),
    (5, 7),
    (6, 9),
    (7, 10),
    (1000, 1000),
    (65534, 65534),
    (65536, 70000),
];
/// Who makes files in the mount.
const MAKERS: [(u32, u32); 5] = [(0, 0), (1000, 1000), (50, 70), (100_007, 200_009), (7, 7)];

type Owners = BTreeMap<PathBuf, (u32, u32)>;

fn owners(root: &Path) -> Owners {
    let mut owners = Owners::new();
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            // fuse-overlayfs marks new directories so.
            if entry.file_name().as_encoded_bytes().starts_with(b".wh.") {
                continue;
            }
            let found = entry.metadata().unwrap();
            if found.is_dir() {
                pending.push(entry.path());
            }
            let path = entry.path().strip_prefix(root).unwrap().to_owned();
            owners.insert(path, (found.uid(), found.gid()));
        }
    }
    owners
}

/// What is seen through a mount, what is seen after changes, and what is stored then.
fn with_program(sandbox: &Sandbox, program: &Program, name: &str, map: &str) -> [Owners; 3] {
    let layers = layers(sandbox, name, vec![sandbox.join("lower")]);
    let mount = program.mount(&layers, map, &sandbox.join("mnt"));
    let seen = owners(mount.path());
    for (uid, gid) in MAKERS {
        let script = format!(
            "umask 022; mkdir {uid}; echo x > {uid}/file; ln -s file {uid}/link; mkfifo {uid}/pipe; \
             chmod 2775 {uid}; mkdir {uid}/sub; ln {uid}/file {uid}/again"
        );
        let mut make = Command::new("setpriv");
        make.args([&format!("--reuid={uid}"), &format!("--regid={gid}")]);
        make.args(["--clear-groups", "sh", "-c", &script]);
        // Who has no place in the map may make a directory, and has no right to it then.
        output(make.current_dir(mount.path().join("open")));
    }
    // Copied up by root, and given to somebody.
    for (number, (uid, gid)) in MAKERS.into_iter().enumerate() {
        let path = mount.path().join(format!("given-{number}"));
        let _ = output(Command::new("chown").arg(format!("{uid}:{gid}")).arg(path));
    }
    fs::write(mount.path().join("file-1"), "changed").unwrap();
    let changed = owners(mount.path());
    mount.unmount();
    [seen, changed, owners(&layers.upper)]
}

#[test]
fn maps_are_those_of_fuse_overlayfs() {
    needs_root!();
    let sandbox = Sandbox::new("overlay-ids");
    let lower = sandbox.dir("lower");
    for (number, (uid, gid)) in OWNERS.into_iter().enumerate() {
        let file = sandbox.file(format!("lower/file-{number}"), "x");
        chown(&file, Some(uid), Some(gid)).unwrap();
        let dir = sandbox.dir(format!("lower/dir-{number}"));
        chown(&dir, Some(uid), Some(gid)).unwrap();
        let link = lower.join(format!("link-{number}"));
        symlink("nowhere", &link).unwrap();
        lchown(&link, Some(uid), Some(gid)).unwrap();
    }
    for number in 0..MAKERS.len() {
        sandbox.file(format!("lower/given-{number}"), "x");
    }
    let open = sandbox.dir("lower/open");
    run(Command::new("chmod").arg("1777").arg(&open));
    let lamina = Program::lamina(&sandbox, "lamina-overlay");
    let other = Program::fuse_overlayfs();
    for (number, map) in MAPS.into_iter().enumerate() {
        let ours = with_program(&sandbox, &lamina, &format!("ours-{number}"), map);
        let theirs = with_program(&sandbox, &other, &format!("theirs-{number}"), map);
        for (what, (ours, theirs)) in ["seen", "seen after changes", "stored"]
            .into_iter()
            .zip(ours.into_iter().zip(theirs))
        {
            let paths: BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
            let differences: Vec<_> = paths
                .into_iter()
                .filter(|path| ours.get(*path) != theirs.get(*path))
                .map(|path| format!("{path:?}: {:?}, not {:?}", ours.get(path), theirs.get(path)))
                .collect();
            assert!(differences.is_empty(), "{map}: {what}: {differences:#?}");
        }
    }
}
