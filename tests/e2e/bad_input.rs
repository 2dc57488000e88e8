//! Wrong and hostile input, as far as it can be given on the command line: each is refused with a
//! message that names what was wrong, or handled; none crashes, none harms anything else.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::lamina::{Lamina, Mount, wait_until};
use crate::support::layers::{Archive, noise, pack};
use crate::support::sandbox::{Sandbox, mounted_type};
use crate::support::{needs_root, run};

/// The message of a build of `archive` that must fail and leave no layer.
#[track_caller]
fn refused(lamina: &Lamina, archive: &Path) -> String {
    let message = lamina.fails(
        1,
        [
            OsStr::new("layer"),
            OsStr::new("build"),
            archive.as_os_str(),
        ],
    );
    let layers = fs::read_dir(lamina.store().join("layers"))
        .into_iter()
        .flatten()
        .count();
    assert_eq!(layers, 0, "a refused archive left a layer");
    let name = archive.file_name().unwrap().to_str().unwrap();
    assert!(
        message.contains(name),
        "the message does not name {name}: {message}"
    );
    message
}

#[test]
fn truncated_archives_are_refused() {
    let sandbox = Sandbox::new("truncated");
    let lamina = Lamina::new(&sandbox);
    let whole = Archive::new(&sandbox, "whole.tar")
        .file("a", &noise(1, 300_000))
        .file("b", &noise(2, 300_000))
        .finish();
    for program in ["cat", "gzip", "zstd", "xz", "bzip2"] {
        let packed = sandbox.join(format!("cut-{program}"));
        if program == "cat" {
            fs::copy(&whole, &packed).unwrap();
        } else {
            pack(program, &whole, &packed);
        }
        let length = fs::metadata(&packed).unwrap().len();
        // In the second file's data; inside a header; inside the compressed stream's own trailer.
        for cut in [length * 3 / 4, 300_000 + 512 + 300, length.min(600_000) - 3] {
            fs::File::options()
                .write(true)
                .open(&packed)
                .unwrap()
                .set_len(cut)
                .unwrap();
            refused(&lamina, &packed);
        }
    }
}

#[test]
fn corrupt_archives_are_refused() {
    let sandbox = Sandbox::new("corrupt");
    let lamina = Lamina::new(&sandbox);
    let whole = Archive::new(&sandbox, "whole.tar")
        .file("a", &noise(1, 300_000))
        .finish();
    for program in ["gzip", "zstd", "xz", "bzip2"] {
        let packed = sandbox.join(format!("corrupt-{program}"));
        pack(program, &whole, &packed);
        flip_byte(&packed, fs::metadata(&packed).unwrap().len() / 2);
        refused(&lamina, &packed);
    }
    let header = sandbox.join("corrupt-header.tar");
    fs::copy(&whole, &header).unwrap();
    flip_byte(&header, 3);
    refused(&lamina, &header);
    refused(
        &lamina,
        &sandbox.file("text", "This is not an archive at all.\n".repeat(100)),
    );
    refused(&lamina, &sandbox.join("missing.tar"));
}

fn flip_byte(path: &Path, at: u64) {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x55], at).unwrap();
}

#[test]
fn names_stay_inside_the_root() {
    needs_root!();
    let sandbox = Sandbox::new("names");
    let lamina = Lamina::new(&sandbox);
    // The tar crate refuses to write such names, so they are put in by hand.
    let archive = Archive::new(&sandbox, "names.tar")
        .raw_file(b"../../up", b"up")
        .raw_file(b"/absolute/file", b"absolute")
        .raw_file(b"in/../../../out", b"out")
        .raw_file(b"./here//twice/./x", b"x")
        .dir("real", 0o755)
        .symlink("link", "real")
        .symlink("escape", "../../../../../../../../tmp")
        .raw_file(b"link/through", b"through")
        .finish();
    lamina.build("names", &[archive]);
    let mount = lamina.mount(&["--read-only", "names"], &sandbox.join("mnt"));
    for (path, content) in [
        ("up", "up"),
        ("absolute/file", "absolute"),
        ("out", "out"),
        ("here/twice/x", "x"),
        ("link/through", "through"),
    ] {
        assert_eq!(
            fs::read_to_string(mount.path().join(path)).unwrap_or_default(),
            content,
            "{path}"
        );
    }
    assert!(!sandbox.join("up").exists() && !Path::new("/absolute").exists());
    mount.unmount();
}

#[test]
fn impossible_entries_are_refused_by_name() {
    let sandbox = Sandbox::new("impossible");
    let lamina = Lamina::new(&sandbox);
    let to_nothing = Archive::new(&sandbox, "hard-link.tar")
        .hard_link("dangling-name", "no-such-file")
        .finish();
    // A hard link may be to a layer below, so what tells is the image, not the layer.
    let message = lamina.fails(
        1,
        [
            OsStr::new("layer"),
            OsStr::new("build"),
            OsStr::new("-t"),
            OsStr::new("x"),
            to_nothing.as_os_str(),
        ],
    );
    assert!(
        message.contains("dangling-name") && message.contains("no-such-file"),
        "{message}"
    );

    let lamina = lamina.with_store(&sandbox.join("store2"));
    let long = "n".repeat(256);
    let message = refused(
        &lamina,
        &Archive::new(&sandbox, "long-name.tar")
            .file(&format!("dir/{long}"), b"")
            .finish(),
    );
    assert!(message.contains("255"), "{message}");
    let deep = "d/".repeat(10_000) + "bottom";
    let archive = Archive::new(&sandbox, "deep.tar")
        .file(&deep, b"deep")
        .finish();
    let result = lamina.output([
        OsStr::new("layer"),
        OsStr::new("build"),
        OsStr::new("-t"),
        OsStr::new("deep"),
        archive.as_os_str(),
    ]);
    assert!(matches!(result.status.code(), Some(0 | 1)), "{result:?}");
}

#[test]
fn max_size_stops_a_decompression_bomb() {
    let sandbox = Sandbox::new("bomb");
    let lamina = Lamina::new(&sandbox);
    let mut bomb = Command::new("sh");
    bomb.args([
        "-c",
        "truncate -s 2G zeros && tar --create zeros | zstd -q > bomb && rm zeros",
    ]);
    run(bomb.current_dir(sandbox.path()));
    let bomb = sandbox.join("bomb");
    let size = fs::metadata(&bomb).unwrap().len();
    assert!((10_000..1 << 20).contains(&size), "{size} bytes");
    let message = lamina.fails(
        1,
        [
            OsStr::new("layer"),
            OsStr::new("build"),
            OsStr::new("--max-size"),
            OsStr::new("100M"),
            bomb.as_os_str(),
        ],
    );
    assert!(message.contains("--max-size"), "{message}");
}

/// A store with a small image called `small`.
fn small_image(sandbox: &Sandbox) -> Lamina {
    let lamina = Lamina::new(sandbox);
    let archive = Archive::new(sandbox, "small.tar")
        .dir("dir", 0o755)
        .file("dir/large", &noise(7, 50_000))
        .file("tiny", b"tiny")
        .finish();
    lamina.build("small", &[archive]);
    lamina
}

#[test]
fn a_mount_point_must_be_a_directory() {
    needs_root!();
    let sandbox = Sandbox::new("mountpoint");
    let lamina = small_image(&sandbox);
    let missing = sandbox.join("missing");
    let message = lamina.fails(
        1,
        [
            OsStr::new("mount"),
            OsStr::new("small"),
            missing.as_os_str(),
        ],
    );
    assert!(message.contains(missing.to_str().unwrap()), "{message}");
    let file = sandbox.file("file", "");
    let message = lamina.fails(
        1,
        [OsStr::new("mount"), OsStr::new("small"), file.as_os_str()],
    );
    assert!(message.contains("directory"), "{message}");

    // Not empty: allowed, as mount(8) does. A second mount over a live one is most often a mistake:
    // refused, with what to do.
    let target = sandbox.dir("full");
    fs::write(target.join("hidden"), "").unwrap();
    let mount = lamina.mount(&["--read-only", "small"], &target);
    assert!(!target.join("hidden").exists());
    let again = [OsStr::new("mount"), OsStr::new("small"), target.as_os_str()];
    let message = lamina.fails(1, again);
    assert!(message.contains("lamina umount"), "{message}");
    mount.unmount();
    assert!(target.join("hidden").exists());
}

#[test]
fn unknown_images_and_wrong_options_are_named() {
    let sandbox = Sandbox::new("options");
    let lamina = small_image(&sandbox);
    let target = sandbox.dir("mnt");
    let target = target.to_str().unwrap();
    let message = lamina.fails(1, ["mount", "no-such-image", target]);
    assert!(message.contains("no-such-image"), "{message}");
    lamina.fails(2, ["mount", "--no-such-option", "small", target]);
    lamina.fails(2, ["no-such-command"]);
    lamina.fails(2, ["mount"]);
    let message = lamina.fails(
        1,
        ["mount", "--lower", "/no/such/lower", "--read-only", target],
    );
    assert!(message.contains("/no/such/lower"), "{message}");
    let message = lamina.fails(1, ["umount", target]);
    assert!(message.contains(target), "{message}");
    assert_eq!(mounted_type(Path::new(target)), None);
}

#[test]
fn upper_and_work_must_fit_together() {
    needs_root!();
    let sandbox = Sandbox::new("upper");
    let lamina = small_image(&sandbox);
    let target = sandbox.dir("mnt");
    let (upper, work) = (sandbox.dir("upper"), sandbox.dir("work"));
    let mount_with = |upper: &Path, work: &Path| {
        let words = [
            "mount".as_ref(),
            "--upper".as_ref(),
            upper.as_os_str(),
            "--work".as_ref(),
            work.as_os_str(),
        ];
        words
            .into_iter()
            .chain(["small".as_ref(), target.as_os_str()])
            .map(OsStr::to_owned)
            .collect::<Vec<_>>()
    };

    let other = sandbox.dir("other");
    run(Command::new("mount")
        .args(["-t", "tmpfs", "tmpfs"])
        .arg(&other));
    let message = lamina.fails(1, mount_with(&upper, &sandbox.dir("other/work")));
    assert!(message.contains("different filesystems"), "{message}");
    for (upper, work) in [
        (upper.clone(), sandbox.dir("upper/inner")),
        (sandbox.dir("work/inner"), work.clone()),
        (upper.clone(), upper.clone()),
    ] {
        let message = lamina.fails(1, mount_with(&upper, &work));
        assert!(message.contains(upper.to_str().unwrap()), "{message}");
    }
    fs::remove_dir(sandbox.join("upper/inner")).unwrap();
    let message = lamina.fails(1, mount_with(&sandbox.join("nowhere"), &work));
    assert!(message.contains("nowhere"), "{message}");
    lamina.fails(
        2,
        [
            "mount",
            "--upper",
            upper.to_str().unwrap(),
            "small",
            target.to_str().unwrap(),
        ],
    );

    let first = lamina.mount(
        &[
            "--upper",
            upper.to_str().unwrap(),
            "--work",
            work.to_str().unwrap(),
            "small",
        ],
        &sandbox.join("first"),
    );
    let message = lamina.fails(1, mount_with(&upper, &sandbox.dir("work2")));
    assert!(
        message.contains("in use") && message.contains(upper.to_str().unwrap()),
        "{message}"
    );
    let message = lamina.fails(1, mount_with(&sandbox.dir("upper2"), &work));
    assert!(message.contains("in use"), "{message}");
    let named = lamina.mount(&["--name", "one", "small"], &sandbox.join("named"));
    let message = lamina.fails(
        1,
        [
            "mount",
            "--name",
            "one",
            "small",
            sandbox.dir("again").to_str().unwrap(),
        ],
    );
    assert!(message.contains("one"), "{message}");
    named.unmount();
    first.unmount();
}

#[test]
fn a_read_only_store_serves_a_read_only_mount() {
    needs_root!();
    let sandbox = Sandbox::new("readonly");
    let lamina = small_image(&sandbox);
    for merged in fs::read_dir(lamina.store().join("merged"))
        .into_iter()
        .flatten()
    {
        fs::remove_file(merged.unwrap().path()).unwrap();
    }
    let frozen = sandbox.dir("frozen");
    run(Command::new("mount")
        .arg("--bind")
        .arg(lamina.store())
        .arg(&frozen));
    run(Command::new("mount")
        .args(["-o", "remount,bind,ro"])
        .arg(&frozen));
    let mount = lamina
        .with_store(&frozen)
        .mount(&["--read-only", "small"], &sandbox.join("mnt"));
    assert_eq!(
        fs::read(mount.path().join("dir/large")).unwrap(),
        noise(7, 50_000)
    );
    drop(mount);
}

/// The files of a store below `part`, all of them.
fn files_in(store: &Path, part: &str) -> Vec<PathBuf> {
    let list = run(Command::new("find")
        .arg(store.join(part))
        .args(["-type", "f"]));
    list.lines().map(PathBuf::from).collect()
}

#[test]
fn a_corrupt_index_is_refused_with_its_digest() {
    needs_root!();
    let sandbox = Sandbox::new("index");
    let lamina = small_image(&sandbox);
    let target = sandbox.join("mnt");
    let read_tiny = |mount: &Mount| fs::read_to_string(mount.path().join("tiny")).unwrap();

    // The merged index is a cache: a damaged one is made anew, at every byte that matters.
    lamina.mount(&["--read-only", "small"], &target).unmount();
    let merged = files_in(lamina.store(), "merged");
    let [merged] = &merged[..] else {
        panic!("one merged index, not {merged:?}")
    };
    let length = fs::metadata(merged).unwrap().len();
    for at in [0, 9, length / 3, length / 2, length - 1] {
        fs::set_permissions(merged, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        flip_byte(merged, at);
        let mount = lamina.mount(&["--read-only", "small"], &target);
        assert_eq!(read_tiny(&mount), "tiny", "byte {at} damaged");
        mount.unmount();
    }

    // A layer's own index is not.
    fs::remove_file(merged).unwrap();
    let layer = files_in(lamina.store(), "layers")
        .into_iter()
        .find(|path| path.ends_with("index"))
        .unwrap();
    let digest = layer
        .parent()
        .unwrap()
        .file_name()
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned();
    fs::set_permissions(&layer, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    flip_byte(&layer, fs::metadata(&layer).unwrap().len() / 2);
    let message = lamina.fails(
        1,
        [OsStr::new("mount"), OsStr::new("small"), target.as_os_str()],
    );
    assert!(message.contains(&digest[..12]), "{message}");
    assert_eq!(mounted_type(&target), None);
}

#[test]
fn a_damaged_object_is_named_when_it_is_read() {
    needs_root!();
    let sandbox = Sandbox::new("object");
    let lamina = small_image(&sandbox);
    let objects = files_in(lamina.store(), "objects");
    let [object] = &objects[..] else {
        panic!("one object, not {objects:?}")
    };
    let digest = object.file_name().unwrap().to_str().unwrap().to_owned();
    fs::set_permissions(object, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    fs::File::options()
        .write(true)
        .open(object)
        .unwrap()
        .set_len(49_999)
        .unwrap();

    let target = sandbox.dir("mnt");
    let mut command = lamina.command(["mount", "--foreground", "--read-only", "small"]);
    let mut daemon = command
        .arg(&target)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("the mount", || mounted_type(&target).is_some());
    assert!(
        fs::read(target.join("dir/large")).is_err(),
        "a damaged object was served"
    );
    assert_eq!(
        fs::read_to_string(target.join("tiny")).unwrap(),
        "tiny",
        "the rest of the image is hurt"
    );
    lamina.ok([OsStr::new("umount"), target.as_os_str()]);
    let mut said = String::new();
    std::io::Read::read_to_string(&mut daemon.stderr.take().unwrap(), &mut said).unwrap();
    assert!(daemon.wait().unwrap().success(), "{said}");
    assert!(
        said.contains(&digest[..12]),
        "the daemon does not name the object: {said:?}"
    );
}
