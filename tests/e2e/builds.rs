//! `lamina layer build` under bad conditions: killed, raced, short of disk, short of memory. The
//! store must come out whole, and the next build must work.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::fixture::debian_layers;
use crate::support::lamina::Lamina;
use crate::support::layers::{Archive, noise, pack};
use crate::support::listing::words;
use crate::support::sandbox::Sandbox;
use crate::support::tree::{Ignore, Tree};
use crate::support::{describe, needs_root, output, run};

/// Everything in a store that means anything, as file names relative to it.
fn contents(store: &Path) -> Vec<PathBuf> {
    fn visit(root: &Path, dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.symlink_metadata().unwrap().is_dir() {
                visit(root, &path, found);
            } else {
                found.push(path.strip_prefix(root).unwrap().to_owned());
            }
        }
    }
    let mut found = Vec::new();
    for part in ["objects", "layers", "merged", "images", "refs", "staging"] {
        visit(store, &store.join(part), &mut found);
    }
    found.sort();
    found
}

/// Whether anything lies in a store's staging area.
fn staged(store: &Path) -> Vec<PathBuf> {
    contents(store)
        .into_iter()
        .filter(|path| path.starts_with("staging"))
        .collect()
}

/// A layer of many small and some large files.
fn some_layer(sandbox: &Sandbox, name: &str, seed: u8) -> PathBuf {
    let mut archive = Archive::new(sandbox, name).dir("dir", 0o755);
    for file in 0..400 {
        let size = if file % 50 == 0 {
            2 << 20
        } else {
            700 + file * 10
        };
        archive = archive.file(
            &format!("dir/{file}"),
            &noise(seed.wrapping_add(file as u8), size),
        );
    }
    archive.finish()
}

#[test]
fn a_killed_build_leaves_nothing_that_the_next_does_not_clear() {
    let sandbox = Sandbox::new("killed");
    let layer = some_layer(&sandbox, "layer.tar", 1);
    let reference = Lamina::new(&sandbox).with_store(&sandbox.join("reference"));
    reference.build("image", std::slice::from_ref(&layer));

    let lamina = Lamina::new(&sandbox);
    for delay in [1, 3, 6, 10, 15, 25, 40, 60, 90, 130] {
        let mut command = lamina.command(["layer", "build", "-t", "image"]);
        let mut child = command
            .arg(&layer)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        child.kill().unwrap();
        child.wait().unwrap();
        // Whatever is published at any moment is whole: names in refs lead to images and layers.
        if lamina.store().join("refs/image").exists() {
            lamina.ok(["layer", "ls"]);
        }
    }
    lamina.build("image", std::slice::from_ref(&layer));
    assert_eq!(staged(lamina.store()), Vec::<PathBuf>::new());
    assert_eq!(contents(lamina.store()), contents(reference.store()));
    let same = |store: &Path| Tree::read_except(store, &[b"mounts", b"leases", b"staging"]);
    let lines = same(reference.store()).differences(
        &same(lamina.store()),
        Ignore {
            mtime: true,
            dir_nlink: false,
            ino: true,
        },
    );
    let important: Vec<_> = lines
        .iter()
        .filter(|line| line.starts_with("/objects") || line.ends_with("index"))
        .collect();
    assert!(important.is_empty(), "{important:#?}");
}

#[test]
fn builds_of_the_same_layer_at_once_all_succeed() {
    let sandbox = Sandbox::new("raced");
    let layer = some_layer(&sandbox, "layer.tar", 2);
    let lamina = Lamina::new(&sandbox);
    let children: Vec<_> = (0..4)
        .map(|number| {
            let mut command = lamina.command(["layer", "build", "-t", &format!("image{number}")]);
            command
                .arg(&layer)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let said: Vec<_> = children
        .into_iter()
        .map(|child| {
            let result = child.wait_with_output().unwrap();
            assert!(result.status.success(), "{}", describe(&result));
            result.stdout
        })
        .collect();
    assert!(
        said.windows(2).all(|pair| pair[0] == pair[1]),
        "they print different digests"
    );
    assert_eq!(staged(lamina.store()), Vec::<PathBuf>::new());
    let layers = contents(lamina.store())
        .iter()
        .filter(|path| path.ends_with("layer.json"))
        .count();
    assert_eq!(layers, 1);
}

#[test]
fn a_full_disk_is_reported_and_leaves_the_store_as_it_was() {
    needs_root!();
    let sandbox = Sandbox::new("full");
    let disk = sandbox.dir("disk");
    run(Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"])
        .arg(&disk));
    let lamina = Lamina::new(&sandbox).with_store(&disk.join("store"));
    let small = Archive::new(&sandbox, "small.tar")
        .file("small", &noise(1, 100_000))
        .finish();
    lamina.build("small", std::slice::from_ref(&small));
    let before = contents(lamina.store());

    let large = some_layer(&sandbox, "large.tar", 3);
    let message = lamina.fails(
        1,
        ["layer", "build", "-t", "large", large.to_str().unwrap()],
    );
    assert!(message.contains("No space left"), "{message}");
    assert_eq!(
        contents(lamina.store()),
        before,
        "a failed build left something"
    );

    let other = Archive::new(&sandbox, "other.tar")
        .file("other", &noise(2, 100_000))
        .finish();
    lamina.build("other", &[other]);
    assert_eq!(
        lamina.build("small", &[small]).lines().count(),
        lamina
            .build("small", &[sandbox.join("small.tar")])
            .lines()
            .count()
    );
}

#[test]
fn memory_is_bounded_whatever_the_size_of_a_layer() {
    let sandbox = Sandbox::new("memory");
    let lamina = Lamina::new(&sandbox);
    // A gigabyte in one file and half of one in many, both compressed well, so that decompression
    // runs far ahead of everything else.
    let mut tar = Command::new("sh");
    tar.arg("-c").arg(
        "mkdir big && truncate -s 1G big/one && (cd big && for i in $(seq 500); do head -c 1M /dev/zero > many-$i; echo $i >> many-$i; done)
         tar --create big | zstd -q -1 > big.tar.zst && rm -r big",
    );
    run(tar.current_dir(sandbox.path()));
    let mut limited = Command::new("prlimit");
    limited
        .arg("--data=250000000")
        .arg(env!("CARGO_BIN_EXE_lamina"))
        .args(["layer", "build", "-t", "big"]);
    let result = output(
        limited
            .arg(sandbox.join("big.tar.zst"))
            .env("LAMINA_STORE", lamina.store()),
    );
    assert!(
        result.status.success(),
        "with 250 MB of memory: {}",
        describe(&result)
    );
}

#[test]
fn every_compression_gives_the_same_layer() {
    let sandbox = Sandbox::new("packed");
    let layer = some_layer(&sandbox, "layer.tar", 4);
    let plain = Lamina::new(&sandbox).build("plain", std::slice::from_ref(&layer));
    for program in ["gzip", "zstd", "xz", "bzip2"] {
        let lamina = Lamina::new(&sandbox).with_store(&sandbox.join(format!("store-{program}")));
        // Told by content: the name says nothing.
        let packed = sandbox.join(format!("{program}-layer"));
        pack(program, &layer, &packed);
        assert_eq!(lamina.build("plain", &[packed]), plain, "{program}");
    }
    let mut from_pipe = Lamina::new(&sandbox)
        .with_store(&sandbox.join("store-pipe"))
        .command(["layer", "build", "-t", "plain", "-"]);
    let result = from_pipe
        .stdin(fs::File::open(&layer).unwrap())
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&result.stdout),
        plain,
        "from a pipe: {}",
        describe(&result)
    );
}

#[test]
fn building_again_adds_nothing() {
    let sandbox = Sandbox::new("again");
    let lamina = Lamina::new(&sandbox);
    let layers = debian_layers();
    let first = lamina.build("debian", &layers[..1]);
    let before = contents(lamina.store());
    assert_eq!(lamina.build("debian", &layers[..1]), first);
    assert_eq!(contents(lamina.store()), before);
    // One object per distinct content, shared by the layers above.
    lamina.build("debian", &layers);
    let objects = contents(lamina.store())
        .iter()
        .filter(|path| path.starts_with("objects"))
        .count();
    let files: usize = 13_000;
    assert!(
        objects < files,
        "{objects} objects for fewer than {files} files"
    );
}

#[test]
fn a_directory_becomes_a_layer() {
    needs_root!();
    let sandbox = Sandbox::new("from-dir");
    let lamina = Lamina::new(&sandbox);
    let tree = sandbox.dir("tree");
    let odd = OsStr::from_bytes(b"no text: \xff\n");
    fs::create_dir_all(tree.join("a/b")).unwrap();
    fs::write(tree.join("a/small"), "small").unwrap();
    fs::write(tree.join("a").join(odd), noise(1, 100_000)).unwrap();
    fs::hard_link(tree.join("a/small"), tree.join("a/b/linked")).unwrap();
    symlink("../small", tree.join("a/b/link")).unwrap();
    let script = "mkfifo pipe; mknod zero c 1 5; chmod 4755 a/small; chown 12:34 a/b
        setfattr -n user.note -v text a/b; truncate -s 3M sparse; touch -d @1.000000005 pipe";
    run(Command::new("sh").args(["-ec", script]).current_dir(&tree));

    let build = |dir: &Path| {
        let words = words(&["layer", "build", "-t", "made", "--dir"], dir);
        words.into_iter().map(OsStr::to_owned).collect::<Vec<_>>()
    };
    let first = lamina.ok(build(&tree));
    assert_eq!(
        lamina.ok(build(&tree)),
        first,
        "the same tree, another layer"
    );
    let mount = lamina.mount(&["--read-only", "made"], &sandbox.join("mnt"));
    let shown = Tree::read(mount.path());
    let ignore = Ignore {
        mtime: false,
        dir_nlink: true,
        ino: true,
    };
    Tree::read(&tree).assert_same("the directory", &shown, "its layer", ignore);
    mount.unmount();

    for wrong in ["nowhere", "tree/a/small"] {
        let wrong = sandbox.join(wrong);
        let message = lamina.fails(1, build(&wrong));
        assert!(message.contains(wrong.to_str().unwrap()), "{message}");
    }
}
