//! Directories as lowers that somebody made with malice, or changes while they are mounted.
//!
//! What is wanted: no crash, no hang, and nothing shown that is not in the layers. A mount that is
//! still answering after two minutes of being walked counts as hung.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, FileType, Mode, RenameFlags, XattrFlags, lsetxattr, mknodat, renameat_with};

use crate::differential::rng::Rng;
use crate::support::lamina::{Lamina, Mount};
use crate::support::listing::the_mount;
use crate::support::overlayfs::{Layers, Overlayfs, assert_same_tree};
use crate::support::sandbox::Sandbox;
use crate::support::tree::Tree;
use crate::support::{describe, needs_root, output, run};

/// Names that are swapped, and directories that are changed, behind a mount's back.
const NAMES: usize = 60;
const DIRS: usize = 12;
const SECRET: &str = "what is outside of the layers";

fn mark(path: impl AsRef<Path>, name: &str, value: impl AsRef<[u8]>) {
    let name = format!("trusted.overlay.{name}");
    lsetxattr(path.as_ref(), name, value.as_ref(), XattrFlags::empty()).unwrap();
}

fn whiteout(path: &Path, mode: u32) {
    let mode = Mode::from_raw_mode(mode);
    mknodat(CWD, path, FileType::CharacterDevice, mode, 0).unwrap();
}

/// A number of lower directories, and what is mounted of them.
struct Hostile {
    sandbox: Sandbox,
    lamina: Lamina,
    layers: Layers,
}

impl Hostile {
    /// `count` empty lowers, in a directory that also holds the file `secret/file`.
    fn new(name: &str, count: usize) -> Self {
        let sandbox = Sandbox::new(name);
        fs::write(sandbox.dir("secret").join("file"), SECRET).unwrap();
        let lowers = (0..count)
            .map(|at| sandbox.dir(format!("lower{at}")))
            .collect();
        let layers = Layers {
            lowers,
            upper: sandbox.dir("upper"),
            work: sandbox.dir("work"),
        };
        Self {
            lamina: Lamina::new(&sandbox),
            sandbox,
            layers,
        }
    }

    fn lower(&self, at: usize) -> &Path {
        &self.layers.lowers[at]
    }

    fn mount(&self) -> Mount {
        let target = self.sandbox.join("mnt");
        self.lamina.mount(&self.layers.lamina_options(), &target)
    }

    /// The daemon must be alive, and the mount must end as any other.
    fn unmount(&self, mount: Mount) {
        assert_eq!(the_mount(&self.lamina, &self.sandbox)["state"], "live");
        mount.unmount();
    }
}

/// Walks a tree in a process of its own and returns the paths and contents it came by; whatever
/// cannot be read is passed over.
fn walk(root: &Path) -> String {
    let script = "cd \"$1\"; find . -maxdepth 12 | head -n 20000; \
        find . -maxdepth 12 -type f -print0 | head -z -n 20000 | xargs -0 -r head -qc 200";
    let walked = output(
        Command::new("timeout")
            .args(["-k", "5", "120", "sh", "-c", script, "sh"])
            .arg(root),
    );
    assert_ne!(walked.status.code(), Some(124), "hung: {}", root.display());
    let text = String::from_utf8_lossy(&walked.stdout).into_owned();
    assert!(!text.contains(SECRET), "{text}");
    assert!(text.lines().count() < 20_000, "there is no end to it");
    text
}

#[test]
fn redirects_lead_nowhere_but_into_the_layers() {
    needs_root!();
    let hostile = Hostile::new("redirects", 3);
    let outside = hostile.sandbox.join("secret");
    let bottom = hostile.lower(2);
    fs::create_dir_all(bottom.join("inside/deep")).unwrap();
    fs::write(bottom.join("inside/deep/kept"), "kept").unwrap();
    symlink(&outside, bottom.join("link")).unwrap();
    let absolute = outside.to_str().unwrap().to_owned();
    let redirects = [
        "..",
        ".",
        "/",
        "//",
        "/..",
        "/../secret",
        "../secret",
        "../../../../../../etc",
        "/inside/../../secret",
        "inside/../../secret",
        "inside/deep",
        "link",
        "/link",
        "/link/.",
        "link/.",
        "/./inside",
        "/inside/",
        "/inside//deep",
        "\u{1}",
        "/inside/deep/kept",
        absolute.as_str(),
        "/proc/self/root",
        "",
    ];
    // In a lower, and in the upper itself, which another program may have written.
    for place in [hostile.lower(0), hostile.layers.upper.as_path()] {
        for (at, redirect) in redirects.iter().enumerate() {
            let dir = place.join(format!("r{at}"));
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join("own"), "own").unwrap();
            mark(&dir, "redirect", redirect);
        }
        let long = place.join("long");
        fs::create_dir(&long).unwrap();
        mark(&long, "redirect", format!("/{}", "x".repeat(3000)));
    }
    let mount = hostile.mount();
    let found = walk(mount.path());
    // One bad name does not spoil its neighbours.
    assert!(found.contains("./inside/deep/kept"), "{found}");
    for name in ["r0", "r1", "r2", "long"] {
        assert!(
            found.contains(&format!("./{name}\n")),
            "{name} is not listed: {found}"
        );
    }
    for entry in fs::read_dir(mount.path()).unwrap() {
        let entry = entry.unwrap();
        // The kernel follows symlinks, for whoever writes through them.
        if entry.file_type().unwrap().is_symlink() {
            continue;
        }
        let path = entry.path();
        // They can be changed and deleted or cannot; neither does harm.
        let _ = fs::write(path.join("new"), "new");
        let _ = fs::rename(&path, path.with_extension("moved"));
    }
    walk(mount.path());
    let secret = fs::read_dir(&outside).unwrap().count();
    assert_eq!(secret, 1, "something was written outside of the layers");
    hostile.unmount(mount);
}

#[test]
fn redirects_in_circles_come_to_an_end() {
    needs_root!();
    let hostile = Hostile::new("circles", 6);
    for at in 0..6 {
        let lower = hostile.lower(at);
        for (one, other) in [("a", "/b"), ("b", "/a"), ("c", "c"), ("d", "/d/d")] {
            fs::create_dir_all(lower.join(one).join("d")).unwrap();
            mark(lower.join(one), "redirect", other);
        }
        mark(lower.join("d/d"), "redirect", "/d/d");
        // Every step of the way has a redirect that is as long again in the layer below.
        let mut path = lower.to_owned();
        for _ in 0..60 {
            path.push("e");
            fs::create_dir(&path).unwrap();
            mark(&path, "redirect", "/e".repeat(60));
        }
    }
    // In the upper: two that were exchanged, and one that is in itself.
    for (one, other) in [("a", "/b"), ("b", "/a"), ("x", "/")] {
        fs::create_dir(hostile.layers.upper.join(one)).unwrap();
        mark(hostile.layers.upper.join(one), "redirect", other);
    }
    let mount = hostile.mount();
    walk(mount.path());
    hostile.unmount(mount);
}

#[test]
fn a_file_without_data_is_shown_with_its_data_or_not_at_all() {
    needs_root!();
    let hostile = Hostile::new("metacopy", 2);
    let (top, bottom) = (hostile.lower(0), hostile.lower(1));
    let data = "the data".repeat(2000);
    for name in ["same", "moved", "short", "long"] {
        fs::write(bottom.join(name), &data).unwrap();
    }
    fs::create_dir(bottom.join("dir")).unwrap();
    symlink(hostile.sandbox.join("secret/file"), bottom.join("out")).unwrap();
    let without_data = |place: &Path, name: &str, size: usize, redirect: Option<&str>| {
        let path = place.join(name);
        let file = fs::File::create(&path).unwrap();
        file.set_len(size as u64).unwrap();
        mark(&path, "metacopy", "");
        if let Some(redirect) = redirect {
            mark(&path, "redirect", redirect);
        }
    };
    for (place, prefix) in [(top, "l-"), (hostile.layers.upper.as_path(), "u-")] {
        let name = |name: &str| format!("{prefix}{name}");
        let size = data.len();
        without_data(place, &name("right"), size, Some("/moved"));
        without_data(place, &name("relative"), size, Some("moved"));
        without_data(place, &name("none"), size, None);
        without_data(place, &name("dir"), size, Some("/dir"));
        without_data(place, &name("link"), SECRET.len(), Some("/out"));
        without_data(place, &name("above"), SECRET.len(), Some("/../secret/file"));
        without_data(place, &name("short"), size + 4096, Some("/short"));
        without_data(place, &name("long"), size - 4096, Some("/long"));
        without_data(
            place,
            &name("itself"),
            size,
            Some(&format!("/{prefix}itself")),
        );
    }
    // At the bottom there is nothing below.
    without_data(bottom, "bottom", data.len(), None);
    without_data(top, "same", data.len(), None);
    without_data(&hostile.layers.upper, "same", data.len(), None);

    let mount = hostile.mount();
    walk(mount.path());
    let read = |name: &str| fs::read_to_string(mount.path().join(name));
    for name in ["l-right", "l-relative", "u-right", "u-relative", "same"] {
        assert_eq!(read(name).unwrap(), data, "{name}");
    }
    for name in ["none", "dir", "link", "above", "short", "long", "itself"] {
        for prefix in ["l-", "u-"] {
            let name = format!("{prefix}{name}");
            let error = read(&name).expect_err(&name);
            assert_eq!(error.raw_os_error(), Some(libc::EIO), "{name}: {error}");
        }
    }
    assert_eq!(read("bottom").unwrap_err().raw_os_error(), Some(libc::EIO));
    // The log says why.
    let log = the_mount(&hostile.lamina, &hostile.sandbox)["log"].clone();
    let log = fs::read_to_string(log.as_str().unwrap()).unwrap();
    assert!(log.contains("metacopy"), "{log}");
    // Written to, they have all of their data, and nothing is written below.
    run(Command::new("sh")
        .args([
            "-ec",
            "cd \"$1\"; echo more >> l-right; echo more >> u-right",
            "sh",
        ])
        .arg(mount.path()));
    for name in ["l-right", "u-right"] {
        assert_eq!(read(name).unwrap(), format!("{data}more\n"), "{name}");
    }
    assert_eq!(fs::read_to_string(bottom.join("moved")).unwrap(), data);
    hostile.unmount(mount);
}

#[test]
fn whiteouts_and_opaque_marks_mean_what_they_do_in_overlayfs() {
    needs_root!();
    let hostile = Hostile::new("whiteouts", 2);
    let (top, bottom) = (hostile.lower(0), hostile.lower(1));
    for name in [
        "plain",
        "any-mode",
        "by-mark",
        "not-by-mark",
        "full",
        "device",
        "block",
    ] {
        fs::write(bottom.join(name), name).unwrap();
        fs::create_dir_all(bottom.join("marked")).unwrap();
        fs::write(bottom.join("marked").join(name), name).unwrap();
        fs::create_dir_all(top.join("marked")).unwrap();
    }
    for name in [
        "opaque-y",
        "opaque-x",
        "opaque-n",
        "opaque-yes",
        "opaque-empty",
        "opaque-Y",
    ] {
        for lower in [top, bottom] {
            fs::create_dir(lower.join(name)).unwrap();
        }
        fs::write(bottom.join(name).join("below"), name).unwrap();
        let value = name.strip_prefix("opaque-").unwrap();
        mark(
            top.join(name),
            "opaque",
            if value == "empty" { "" } else { value },
        );
    }
    // Whiteouts that are files count where both the layer's root and the directory say so.
    mark(top, "opaque", "x");
    mark(top.join("marked"), "opaque", "x");
    for dir in [top.to_owned(), top.join("marked"), top.join("opaque-n")] {
        whiteout(&dir.join("plain"), 0);
        whiteout(&dir.join("any-mode"), 0o4777);
        fs::write(dir.join("not-by-mark"), "").unwrap();
        fs::write(dir.join("full"), "not empty").unwrap();
        mark(dir.join("full"), "whiteout", "y");
        for (name, kind, device) in [
            (
                "device",
                FileType::CharacterDevice,
                rustix::fs::makedev(0, 1),
            ),
            ("block", FileType::BlockDevice, 0),
        ] {
            mknodat(
                CWD,
                dir.join(name),
                kind,
                Mode::from_raw_mode(0o600),
                device,
            )
            .unwrap();
        }
    }
    for dir in [top.to_owned(), top.join("marked")] {
        fs::write(dir.join("by-mark"), "").unwrap();
        mark(dir.join("by-mark"), "whiteout", "y");
    }
    // A whiteout at the bottom hides nothing and is not shown either.
    whiteout(&bottom.join("lost"), 0o777);
    run(Command::new("touch")
        .args(["-r"])
        .args([bottom, &hostile.layers.upper]));

    let target = hostile.sandbox.join("overlayfs");
    let copy = Layers {
        upper: hostile.sandbox.dir("upper-too"),
        work: hostile.sandbox.dir("work-too"),
        ..hostile.layers.clone()
    };
    run(Command::new("touch")
        .args(["-r"])
        .args([bottom, &copy.upper]));
    let overlayfs = Overlayfs::mount(&copy, "index=off", &target);
    let theirs = Tree::read(&target);
    overlayfs.unmount();
    let mount = hostile.mount();
    assert_same_tree(Tree::read(mount.path()), theirs);
    hostile.unmount(mount);
}

/// Calls `act` again and again in a thread while `during` runs.
fn while_doing(act: impl Fn(&mut Rng) + Sync, during: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut rng = Rng::new(1);
            while !stop.load(Ordering::Relaxed) {
                act(&mut rng);
            }
        });
        // However `during` ends, the other thread must.
        let _stop = Stop(&stop);
        during();
    });
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn names_that_are_swapped_for_symlinks_do_not_lead_out() {
    needs_root!();
    let hostile = Hostile::new("swapped", 1);
    let (lower, outside) = (hostile.lower(0), hostile.sandbox.join("secret"));
    for at in 0..NAMES {
        let dir = lower.join(format!("dir{at}"));
        fs::create_dir_all(dir.join("deep")).unwrap();
        for file in ["file", "deep/file"] {
            fs::write(dir.join(file), "inside").unwrap();
        }
        symlink(&outside, hostile.sandbox.join(format!("dir-link{at}"))).unwrap();
        // A file, and what it is swapped for: a symlink, or a pipe that nobody writes to (which
        // whoever opens it must not wait for, neither the daemon nor this test).
        fs::write(lower.join(format!("file{at}")), "inside").unwrap();
        let other = hostile.sandbox.join(format!("file-link{at}"));
        if at % 2 == 0 {
            symlink(outside.join("file"), other).unwrap();
        } else {
            let mode = Mode::from_raw_mode(0o644);
            mknodat(CWD, other, FileType::Fifo, mode, 0).unwrap();
        }
    }
    let swap = |rng: &mut Rng| {
        let kind = ["dir", "file"][rng.below(2)];
        let at = rng.below(NAMES);
        let inside = lower.join(format!("{kind}{at}"));
        let other = hostile.sandbox.join(format!("{kind}-link{at}"));
        renameat_with(CWD, &inside, CWD, &other, RenameFlags::EXCHANGE).unwrap();
    };
    while_doing(swap, || {
        for round in 0..12 {
            let mount = hostile.mount();
            // Reads, and writes that copy up: neither may touch what is outside.
            let script = "cd \"$1\"; all() { cat dir*/file dir*/deep/file; ls -lRL; \
                    for f in file*; do dd if=$f iflag=nonblock status=none; done; }; all; \
                for f in file* dir*/file; do \
                    echo written | dd of=$f oflag=append,nonblock conv=notrunc,nocreat; done; \
                for d in dir*; do [ -L $d ] || { echo new > $d/new; chmod 700 $d; }; done; \
                all";
            let said = output(
                Command::new("timeout")
                    .args(["-k", "5", "120", "unshare", "-m", "sh", "-c"])
                    // Symlinks are the kernel's to follow, so where they lead there is nothing.
                    .arg(format!("mount -t tmpfs none \"$2\"; {script}"))
                    .arg("sh")
                    .args([mount.path(), &outside]),
            );
            assert_ne!(said.status.code(), Some(124), "round {round} hung");
            let text = String::from_utf8_lossy(&said.stdout);
            assert!(!text.contains(SECRET), "round {round}: {}", describe(&said));
            hostile.unmount(mount);
        }
    });
    assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), SECRET);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
}

#[test]
fn layers_may_be_changed_behind_the_mounts_back() {
    needs_root!();
    let hostile = Hostile::new("behind", 2);
    let fill = |dir: &Path, rng: &mut Rng| {
        fs::create_dir_all(dir.join("sub")).ok();
        for at in 0..6 {
            let length = rng.below(200_000);
            fs::write(dir.join(format!("f{at}")), rng.bytes(length)).ok();
            fs::hard_link(dir.join(format!("f{at}")), dir.join(format!("sub/l{at}"))).ok();
        }
    };
    let mut rng = Rng::new(7);
    for lower in 0..2 {
        for at in 0..DIRS {
            fill(&hostile.lower(lower).join(format!("d{at}")), &mut rng);
        }
    }
    let disturb = |rng: &mut Rng| {
        let lower = hostile.lower(rng.below(2));
        let dir = lower.join(format!("d{}", rng.below(DIRS)));
        let file = dir.join(format!("f{}", rng.below(6)));
        match rng.below(8) {
            0 => drop(fs::remove_file(&file)),
            1 => drop(fs::remove_dir_all(&dir)),
            2 | 3 => fill(&dir, rng),
            4 => drop(fs::rename(
                &dir,
                lower.join(format!("d{}", rng.below(DIRS))),
            )),
            5 => drop(
                fs::OpenOptions::new()
                    .write(true)
                    .open(&file)
                    .map(|file| file.set_len(10)),
            ),
            6 => drop(fs::write(&file, rng.bytes(100))),
            _ => {
                fs::remove_file(&file).ok();
                fs::create_dir(&file).ok();
            }
        }
    };
    let mount = hostile.mount();
    while_doing(disturb, || {
        let script = "cd \"$1\"; for round in 1 2 3 4 5 6 7 8; do \
            cat d*/f* d*/sub/*; ls -lR; find . -type f | head -n 40 | while read -r f; do \
                echo x >> \"$f\"; mv \"$f\" \"$f.moved\"; rm -f \"$f.moved\"; done; \
            mv d$round e$round; mkdir d$round; touch d$round/new; rm -rf e$round; \
            done >/dev/null 2>&1; echo done";
        let users: Vec<_> = (0..3)
            .map(|_| {
                Command::new("timeout")
                    .args(["-k", "5", "120", "sh", "-c", script, "sh"])
                    .arg(mount.path())
                    .stdout(std::process::Stdio::piped())
                    .spawn()
                    .unwrap()
            })
            .collect();
        for user in users {
            let said = user.wait_with_output().unwrap();
            assert_eq!(said.stdout, b"done\n", "{}", describe(&said));
        }
    });
    // What does not come from a layer is right all the same.
    let own = mount.path().join("own");
    fs::write(&own, "own").unwrap();
    assert_eq!(fs::read_to_string(&own).unwrap(), "own");
    hostile.unmount(mount);
}
