//! podman and buildah with our mount program: what they do and say is what they do and say with
//! fuse-overlayfs and with the kernel's overlayfs.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use super::comparable;
use crate::build_file::base::base_layer;
use crate::support::containers::Containers;
use crate::support::lamina::wait_until;
use crate::support::program::Program;
use crate::support::sandbox::{Sandbox, mounts_under};
use crate::support::tree::{Ignore, Tree};
use crate::support::{describe, needs_root, output, run};

/// What a container needs here: no network, limits that are not above ours.
const RUN: [&str; 5] = [
    "run",
    "--cgroups=enabled",
    "--network=none",
    "--ulimit=nofile=1024:1024",
    "--ulimit=nproc=1024:1024",
];

/// Changes of every kind, in a container.
const CHANGES: &str = "echo new > /etc/new; rm /etc/removed; rm -r /etc/removed-dir; rm -r /etc/again; \
     mkdir /etc/again; echo x > /etc/again/new; mv /usr/share/data /usr/share/moved; \
     chmod 4755 /filelink-target; chown 1000:100 /etc/replaced; ln /etc/passwd /etc/linked; \
     ln -s nowhere /link; mkfifo /pipe; echo more >> /etc/group; mkdir -m 1777 /spool";

/// One of those that are compared.
struct Case {
    containers: Containers,
    sandbox: Sandbox,
    /// What was said so far.
    said: Vec<String>,
}

impl Case {
    fn new(name: &str, program: impl FnOnce(&Sandbox) -> Option<Program>) -> Self {
        let sandbox = Sandbox::new(name);
        let program = program(&sandbox);
        let containers = Containers::new(&sandbox).on(program.as_ref());
        let layer = base_layer(&sandbox);
        let case = Self {
            containers,
            sandbox,
            said: Vec::new(),
        };
        case.containers
            .podman_ok(&["import", "--quiet", layer.to_str().unwrap(), "base"]);
        case
    }

    fn podman(&self, arguments: &[&str]) -> String {
        self.containers.podman_ok(arguments)
    }

    /// The same, and what is said is compared.
    fn say(&mut self, arguments: &[&str]) {
        let said = self.podman(arguments);
        let mut lines: Vec<_> = said.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        let place = self.sandbox.path().display().to_string();
        let what = arguments.join(" ").replace(&place, "");
        self.said.push(format!("{what}\n{}", lines.join("\n")));
    }

    fn run(&mut self, more: &[&str], image: &str, script: &str) {
        let mut arguments = RUN.to_vec();
        arguments.extend(more);
        arguments.extend([image, "/bin/sh", "-ec", script]);
        self.say(&arguments);
    }

    /// The work of an afternoon.
    fn everything(&mut self) -> Tree {
        self.run(&["--name=one"], "base", CHANGES);
        self.say(&["diff", "one"]);
        self.podman(&["commit", "--quiet", "one", "committed"]);
        self.run(
            &["--rm"],
            "committed",
            "cat /etc/new /etc/group; ls -ln / /etc /usr/share",
        );
        let file = self.sandbox.file("copied", "by podman cp\n");
        self.podman(&["cp", file.to_str().unwrap(), "one:/etc/again/"]);
        let out = self.sandbox.join("out");
        self.podman(&["cp", "one:/etc", out.to_str().unwrap()]);
        self.said.push(run(Command::new("find")
            .args(["-printf", "%P %y %m %s\n"])
            .current_dir(&out)));
        self.run(
            &["--rm", "--read-only"],
            "base",
            "! touch /x 2> /dev/null; cat /etc/replaced",
        );
        let volume = format!("-v={}:/over:O", self.sandbox.dir("volume").display());
        self.sandbox.file("volume/below", "below\n");
        self.run(
            &["--rm", &volume],
            "base",
            "echo x > /over/new; rm /over/below; ls /over",
        );
        assert!(self.sandbox.join("volume/below").exists());
        self.exec();
        self.build();
        let archive = self.sandbox.join("saved.tar");
        let archive = archive.to_str().unwrap().to_owned();
        self.podman(&["save", "--quiet", "-o", &archive, "built"]);
        self.podman(&["rmi", "--force", "built"]);
        self.podman(&["load", "--quiet", "-i", &archive]);
        let mounted = self.podman(&["create", "--name=two", "localhost/built:latest", "true"]);
        assert!(!mounted.is_empty());
        let root = self.podman(&["mount", "two"]);
        let mut tree = Tree::read(Path::new(&root));
        self.podman(&["umount", "two"]);
        tree.map_times(|_| (0, 0));
        self.podman(&["rm", "--force", "--all"]);
        tree
    }

    /// Commands in one container at once.
    fn exec(&mut self) {
        let mut arguments = RUN.to_vec();
        arguments.extend(["-d", "--name=busy", "base", "/bin/sleep", "600"]);
        self.podman(&arguments);
        let children: Vec<_> = (0..6)
            .map(|number| {
                let script = format!(
                    "for i in $(seq 50); do echo $i > /tmp/{number}-$i; mv /tmp/{number}-$i /root/; done"
                );
                let mut command = self.containers.podman(&["exec", "busy", "/bin/sh", "-ec", &script]);
                command.stdout(Stdio::null()).spawn().unwrap()
            })
            .collect();
        for mut child in children {
            assert!(child.wait().unwrap().success());
        }
        self.say(&["exec", "busy", "/bin/sh", "-c", "ls /root | wc -l"]);
        self.podman(&["rm", "--force", "--time=0", "busy"]);
    }

    fn build(&mut self) {
        let text = "FROM base
RUN echo one > /one && rm /etc/removed
RUN mkdir -p /dir/sub && echo two > /dir/sub/two && mv /usr/share/data /data
COPY copied /copied
RUN rm -r /dir && mkdir /dir && chown 1000:100 /copied && ln /copied /again
USER user
WORKDIR /home/user
RUN echo mine > mine
";
        let file = self.sandbox.file("Containerfile", text);
        let file = file.to_str().unwrap().to_owned();
        let context = self.sandbox.path().to_str().unwrap().to_owned();
        let ignore = self.sandbox.file(".containerignore", "*\n!copied\n");
        assert!(ignore.exists());
        for program in ["podman", "buildah"] {
            let name = if program == "podman" { "built" } else { "bud" };
            let arguments = [
                "build",
                "--quiet",
                "--isolation=chroot",
                "--network=host",
                "--layers",
                "-f",
                &file,
                "-t",
                name,
                &context,
            ];
            if program == "podman" {
                self.containers.podman_ok(&arguments);
            } else {
                self.containers.buildah_ok(&arguments);
            }
            self.run(
                &["--rm"],
                name,
                "ls -ln / /dir /home/user; cat /one /again /home/user/mine",
            );
        }
    }
}

/// Nothing is left of it: no mount, no process.
fn check_gone(sandbox: &Sandbox) {
    wait_until("the end of all mounts", || {
        mounts_under(sandbox.path()).is_empty()
    });
    let place = sandbox.path().display().to_string();
    wait_until("the end of all daemons", || {
        let all = run(Command::new("ps").args(["-eo", "args"]));
        !all.lines()
            .any(|line| line.contains(&place) && line.contains("overlay"))
    });
}

#[test]
fn podman_does_the_same_with_all() {
    needs_root!();
    let mut cases = [
        Case::new("overlay-podman-kernel", |_| None),
        Case::new("overlay-podman-theirs", |_| {
            Some(Program::fuse_overlayfs_path())
        }),
        Case::new("overlay-podman-ours", |sandbox| {
            Some(Program::lamina(sandbox, "lamina-overlay"))
        }),
    ];
    let trees = cases.each_mut().map(Case::everything);
    let [kernel, theirs, ours] = &cases;
    assert_eq!(ours.said.len(), theirs.said.len());
    for ((ours, theirs), kernel) in ours.said.iter().zip(&theirs.said).zip(&kernel.said) {
        assert_eq!(
            comparable(ours),
            comparable(theirs),
            "beside fuse-overlayfs"
        );
        // Without a mount program it looks at the upper, not at what is mounted.
        if !ours.starts_with("diff ") {
            assert_eq!(
                comparable(ours),
                comparable(kernel),
                "beside the kernel's overlayfs"
            );
        }
    }
    let ignore = Ignore {
        mtime: true,
        dir_nlink: true,
        ..Ignore::OTHER_FILESYSTEM
    };
    trees[2].assert_same("the image with ours", &trees[0], "with overlayfs", ignore);
    for case in &cases {
        case.podman(&["system", "reset", "--force"]);
        check_gone(&case.sandbox);
    }
}

#[test]
fn buildah_works_from_beginning_to_end() {
    needs_root!();
    let case = Case::new("overlay-buildah", |sandbox| {
        Some(Program::lamina(sandbox, "lamina-overlay"))
    });
    let buildah = |arguments: &[&str]| case.containers.buildah_ok(arguments);
    let container = buildah(&["from", "--pull-never", "localhost/base"]);
    let file = case.sandbox.file("file", "copied\n");
    buildah(&["copy", &container, file.to_str().unwrap(), "/etc/file"]);
    buildah(&[
        "run",
        "--isolation=chroot",
        &container,
        "--",
        "/bin/sh",
        "-ec",
        CHANGES,
    ]);
    let root = buildah(&["mount", &container]);
    assert_eq!(
        fs::read_to_string(Path::new(&root).join("etc/file")).unwrap(),
        "copied\n"
    );
    fs::write(
        Path::new(&root).join("etc/outside"),
        "written from outside\n",
    )
    .unwrap();
    buildah(&["umount", &container]);
    buildah(&["commit", "--quiet", "--rm", &container, "localhost/made"]);
    let tree = case.containers.tree("localhost/made");
    assert!(tree.paths().any(|path| path == b"etc/outside"));
    assert!(!tree.paths().any(|path| path == b"etc/removed"));
    buildah(&["rmi", "--all", "--force"]);
    check_gone(&case.sandbox);
}

#[test]
fn fifty_containers_at_once() {
    needs_root!();
    let case = Case::new("overlay-fifty", |sandbox| {
        Some(Program::lamina(sandbox, "lamina-overlay"))
    });
    for number in 0..50 {
        case.podman(&["create", "--name", &format!("c{number}"), "base", "true"]);
    }
    let children: Vec<_> = (0..50)
        .map(|number| {
            let mut command = case.containers.podman(&["mount", &format!("c{number}")]);
            command.stdout(Stdio::null()).spawn().unwrap()
        })
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let mounts = mounts_under(case.sandbox.path());
    assert!(mounts.len() >= 50, "{mounts:?}");
    case.podman(&["umount", "--all"]);
    case.podman(&["rm", "--all", "--force"]);
    check_gone(&case.sandbox);
}

#[test]
fn the_end_of_a_daemon_is_told_and_a_new_start_works() {
    needs_root!();
    let mut case = Case::new("overlay-killed", |sandbox| {
        Some(Program::lamina(sandbox, "lamina-overlay"))
    });
    let mut arguments = RUN.to_vec();
    arguments.extend(["-d", "--name=busy", "base", "/bin/sleep", "600"]);
    case.podman(&arguments);
    case.say(&["exec", "busy", "/bin/sh", "-c", "echo kept > /kept"]);
    let place = case.sandbox.path().display().to_string();
    run(Command::new("pkill").args(["-9", "-f", &format!("^lamina-overlay .*{place}")]));
    let said = output(
        &mut case
            .containers
            .podman(&["exec", "busy", "/bin/cat", "/kept"]),
    );
    assert!(!said.status.success(), "{}", describe(&said));
    let text = String::from_utf8_lossy(&said.stderr).to_lowercase();
    assert!(text.contains("not connected"), "{text}");
    // Its main process was in memory, and still is.
    case.podman(&["kill", "busy"]);
    wait_until("the end of the container", || {
        case.podman(&["inspect", "--format={{.State.Running}}", "busy"]) == "false"
    });
    case.podman(&["start", "busy"]);
    assert_eq!(case.podman(&["exec", "busy", "/bin/cat", "/kept"]), "kept");
    case.podman(&["rm", "--force", "--time=0", "busy"]);
    check_gone(&case.sandbox);
}
