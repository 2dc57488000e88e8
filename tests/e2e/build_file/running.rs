//! How commands of a build run, what they see, and how they end.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use super::base::{self, arguments, build, build_text, config, containerfile, context, read};
use crate::support::fixture::DebianStore;
use crate::support::lamina::{Lamina, NOBODY};
use crate::support::sandbox::Sandbox;
use crate::support::{describe, needs_root, run};

#[test]
fn a_command_that_changes_nothing_makes_no_layer() {
    needs_root!();
    let sandbox = Sandbox::new("no-changes");
    let lamina = base::with_base(&sandbox);
    let text = "FROM base\nRUN true\nRUN echo > /new && rm /new\nRUN echo > /kept\n";
    for remembered in [false, true] {
        let said = build_text(&sandbox, &lamina, text, "image");
        let unchanged = said.lines().filter(|line| line.ends_with("no changes"));
        assert_eq!(unchanged.count(), 2, "{said}");
        assert_eq!(said.contains("Using cache"), remembered, "{said}");
        let all = config(&lamina, "image");
        assert_eq!(all["layers"].as_array().unwrap().len(), 2, "{all}");
        let history = all["config"]["history"].as_array().unwrap();
        let empty: Vec<_> = history
            .iter()
            .map(|step| step["empty_layer"] == true)
            .collect();
        assert_eq!(empty, [true, true, false], "{all}");
    }
}

#[test]
fn here_documents() {
    needs_root!();
    let sandbox = Sandbox::new("heredocs");
    let lamina = base::with_base(&sandbox);
    let text = "FROM base
ENV who=world
RUN <<EOF
echo one > /script
echo \"$who\" >> /script
EOF
RUN cat <<EOF > /inline && cat <<-'RAW' >> /inline
hello $who
EOF
\t\tnot $who
\tRAW
RUN <<EOF
#!/bin/cat
by another program
EOF
COPY <<EOF /copied
hello ${who}
EOF
COPY <<'one' <<two /several/
not $who
one
$who
two
";
    let said = build_text(&sandbox, &lamina, text, "image");
    let read = |path| read(&sandbox, &lamina, "image", path);
    assert_eq!(read("script"), "one\nworld\n");
    assert_eq!(read("inline"), "hello world\nnot $who\n");
    assert_eq!(read("copied"), "hello world\n");
    assert_eq!(read("several/one"), "not $who\n");
    assert_eq!(read("several/two"), "world\n");
    assert!(said.contains("by another program"), "{said}");
}

#[test]
fn what_a_command_sees() {
    needs_root!();
    let sandbox = Sandbox::new("container");
    let lamina = base::with_base(&sandbox);
    let text = "FROM base
RUN ls /proc/1/exe > /dev/null && cat /proc/1/comm > /first && ls /dev > /devices
RUN ps > /processes && mount > /mounts
RUN ip link > /links
RUN --network=none ip link > /no-links
RUN grep Seccomp: /proc/self/status > /seccomp; grep CapEff /proc/self/status > /caps
RUN (echo x > /proc/sys/kernel/hostname) 2>/dev/null || echo kept > /kept
USER user
RUN grep CapEff /proc/self/status > /tmp/caps
";
    build_text(&sandbox, &lamina, text, "image");
    let read = |path| read(&sandbox, &lamina, "image", path);
    assert!(
        read("processes").lines().count() < 6,
        "{}",
        read("processes")
    );
    for device in [
        "null", "zero", "full", "random", "urandom", "tty", "pts", "shm", "mqueue",
    ] {
        assert!(
            read("devices").lines().any(|line| line == device),
            "no /dev/{device}"
        );
    }
    let own = fs::read_dir("/sys/class/net").unwrap().count();
    let listed = |text: &str| text.lines().filter(|line| line.contains("mtu")).count();
    assert_eq!(listed(&read("links")), own);
    assert_eq!(listed(&read("no-links")), 1);
    assert!(
        read("caps").contains("00000000000405fb") || read("caps").contains("800405fb"),
        "{}",
        read("caps")
    );
    assert!(
        read("tmp/caps").contains("0000000000000000"),
        "{}",
        read("tmp/caps")
    );
    if Path::new("/usr/share/containers/seccomp.json").exists() {
        assert!(read("seccomp").contains('2'), "{}", read("seccomp"));
    }
    assert_eq!(read("kept"), "kept\n");
    let mounts = read("mounts");
    let root = mounts
        .lines()
        .find(|line| line.contains(" on / "))
        .unwrap_or_default();
    assert!(root.contains("fuse.lamina"), "{mounts}");
}

#[test]
fn device_nodes_of_an_image_are_of_no_use() {
    needs_root!();
    let sandbox = Sandbox::new("devices");
    let lamina = Lamina::new(&sandbox);
    let root = sandbox.dir("more-root");
    let script = "mknod -m 666 zero c 1 5 && tar --create --file ../more.tar .";
    run(Command::new("sh").args(["-ec", script]).current_dir(&root));
    lamina.build(
        "base",
        &[base::base_layer(&sandbox), sandbox.join("more.tar")],
    );
    let text = "FROM base
RUN --mount=type=cache,target=/cache mount | grep /cache > /mounts
RUN for device in /zero /dev/zero; do head -c 1 $device > /read && echo $device >> /open || true; done
";
    let file = containerfile(&sandbox, text);
    for runtime in runtimes() {
        let options = ["--runtime", runtime, "--no-cache"];
        build(&lamina, &file, &sandbox.dir("empty"), runtime, &options);
        assert_eq!(read(&sandbox, &lamina, runtime, "open"), "/dev/zero\n");
        let mounts = read(&sandbox, &lamina, runtime, "mounts");
        assert!(
            mounts.contains("nosuid") && mounts.contains("nodev"),
            "{mounts}"
        );
    }
}

/// The runtimes that are installed.
fn runtimes() -> Vec<&'static str> {
    let is_installed = |runtime: &&str| {
        let found = Command::new("sh")
            .args(["-c", &format!("command -v {runtime}")])
            .output();
        let found = found.unwrap().status.success();
        if !found {
            eprintln!("skipped: {runtime} is not installed");
        }
        found
    };
    ["crun", "runc"].into_iter().filter(is_installed).collect()
}

#[test]
fn both_runtimes() {
    needs_root!();
    let sandbox = Sandbox::new("runtimes");
    let lamina = base::with_base(&sandbox);
    let context = sandbox.dir("empty");
    let file = containerfile(&sandbox, "FROM base\nRUN echo x > /x && exit 0\n");
    for runtime in runtimes() {
        let options = ["--runtime", runtime, "--no-cache"];
        build(&lamina, &file, &context, runtime, &options);
        assert_eq!(read(&sandbox, &lamina, runtime, "x"), "x\n");
        let failing = containerfile(&sandbox, "FROM base\nRUN exit 41\n");
        let result = lamina.output(arguments(&failing, &context, "failed", &options));
        assert!(
            describe(&result).contains("status 41"),
            "{}",
            describe(&result)
        );
        containerfile(&sandbox, "FROM base\nRUN echo x > /x && exit 0\n");
    }
}

#[test]
fn places_to_mount_at_do_not_stay() {
    needs_root!();
    let sandbox = Sandbox::new("places");
    let lamina = Lamina::new(&sandbox);
    let root = sandbox.dir("root");
    let script = "mkdir bin etc && cp \"$(command -v busybox)\" bin/busybox && ln -s busybox bin/sh
        touch -d '2020-01-01' etc bin .";
    run(Command::new("sh").args(["-ec", script]).current_dir(&root));
    let file = containerfile(
        &sandbox,
        "FROM scratch\nADD . /\nRUN echo x > /x\nRUN echo y > /etc/y\n",
    );
    build(&lamina, &file, &root, "image", &[]);
    let mount = lamina.mount(&["--read-only", "image"], &sandbox.join("mnt"));
    let names = |dir: &str| {
        let entries = fs::read_dir(mount.path().join(dir)).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(""), ["bin", "etc", "x"]);
    assert_eq!(names("etc"), ["y"]);
    mount.unmount();
}

#[test]
fn mounts_of_commands() {
    needs_root!();
    let sandbox = Sandbox::new("run-mounts");
    let lamina = base::with_base(&sandbox);
    let context = context(&sandbox);
    let secret = sandbox.file("secret", "sesame\n");
    let text = "FROM base
RUN --mount=type=cache,target=/cache echo one >> /cache/file
RUN --mount=type=cache,target=/cache,sharing=locked,mode=0700 echo two >> /cache/file && cat /cache/file > /seen
RUN --mount=type=tmpfs,target=/scratch,size=1048576 echo x > /scratch/x && mount | grep scratch > /tmpfs
RUN --mount=type=secret,id=pass cat /run/secrets/pass | tr a-z A-Z > /secret && stat -c %a /run/secrets/pass >> /secret
RUN --mount=type=secret,id=pass,target=/etc/pass,mode=0444 cat /etc/pass > /dev/null
RUN --mount=type=secret,id=absent test ! -e /run/secrets/absent
RUN --mount=target=/src --mount=type=bind,source=dir,target=/dir cat /src/a.txt /dir/one > /bound && ! touch /src/new
";
    let file = containerfile(&sandbox, text);
    let option = format!("id=pass,src={}", secret.display());
    let more = ["--secret", option.as_str()];
    build(&lamina, &file, &context, "image", &more);
    let reads = |path| read(&sandbox, &lamina, "image", path);
    assert_eq!(reads("seen"), "one\ntwo\n");
    assert!(reads("tmpfs").contains("tmpfs"));
    assert_eq!(reads("secret"), "SESAME\n400\n");
    assert_eq!(reads("bound"), "a\none\n");
    let mount = lamina.mount(&["--read-only", "image"], &sandbox.join("mnt"));
    for gone in ["cache", "scratch", "run/secrets", "src", "dir", "etc/pass"] {
        assert!(!mount.path().join(gone).exists(), "/{gone} stayed");
    }
    mount.unmount();
    // What is bound counts, as what is copied does.
    fs::write(context.join("dir/one"), "changed\n").unwrap();
    build(&lamina, &file, &context, "image", &more);
    assert_eq!(read(&sandbox, &lamina, "image", "bound"), "a\nchanged\n");
}

#[test]
fn what_is_bound_is_what_would_be_copied() {
    needs_root!();
    let sandbox = Sandbox::new("bound");
    let lamina = base::with_base(&sandbox);
    let context = context(&sandbox);
    fs::write(context.join(".dockerignore"), "ignored\nignored-dir\n").unwrap();
    let text = "FROM base AS made
RUN mkdir /out && echo out > /out/file && ln -s out /link
FROM base
RUN --mount=target=/src cat /src/a.txt > /seen && ! ls /src/ignored && ! ls /src/ignored-dir
RUN --mount=type=bind,from=made,source=/link,target=/in cat /in/file >> /seen && ! touch /in/new
RUN --mount=from=base,source=/etc/passwd,target=/in head -n 1 /in >> /seen
";
    let file = containerfile(&sandbox, text);
    let said = build(&lamina, &file, &context, "image", &[]);
    assert!(!said.contains("Using cache"), "{said}");
    let seen = read(&sandbox, &lamina, "image", "seen");
    assert_eq!(seen, "a\nout\nroot:x:0:0:root:/root:/bin/sh\n");
    // What is left out does not count either.
    fs::write(context.join("ignored"), "changed\n").unwrap();
    let said = build(&lamina, &file, &context, "image", &[]);
    assert_eq!(said.matches("Using cache").count(), 4, "{said}");
}

#[test]
fn caches_that_are_one_builds_at_a_time() {
    needs_root!();
    let sandbox = Sandbox::new("locked-caches");
    let lamina = base::with_base(&sandbox);
    let context = sandbox.dir("empty");
    let text = "FROM base\nRUN --mount=type=cache,id=c,target=/one,sharing=locked \
        --mount=type=cache,id=c,target=/two,sharing=private touch /one/x && ls /two/x\n";
    let file = containerfile(&sandbox, text);
    build(&lamina, &file, &context, "image", &[]);
    let caches = lamina.store().join("cache/mounts");
    let dir = fs::read_dir(caches).unwrap().next().unwrap().unwrap();
    let lock = fs::File::open(dir.path()).unwrap();
    lock.lock().unwrap();
    // What is remembered needs no lock.
    build(&lamina, &file, &context, "image", &[]);
    let mut child = lamina
        .command(arguments(&file, &context, "image", &["--no-cache"]))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let said = BufReader::new(child.stderr.take().unwrap());
    let mut lines = said.lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("waiting for the cache 'c'")));
    drop(lock);
    let rest: Vec<_> = lines.collect();
    assert!(child.wait().unwrap().success(), "{rest:?}");
}

#[test]
fn commands_have_no_terminal() {
    needs_root!();
    let sandbox = Sandbox::new("terminal");
    let lamina = base::with_base(&sandbox);
    let text = "FROM base\nRUN echo heard; for fd in 0 1 2; do test ! -t $fd || exit 1; done; \
        ! (: < /dev/tty) 2>/dev/null\n";
    let file = containerfile(&sandbox, text);
    let inner = lamina.command(arguments(&file, &sandbox.dir("empty"), "image", &[]));
    let mut words = vec![inner.get_program().to_str().unwrap()];
    words.extend(inner.get_args().map(|word| word.to_str().unwrap()));
    let result = Command::new("script")
        .args(["-qec", &words.join(" "), "/dev/null"])
        .env("LAMINA_STORE", lamina.store())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(result.status.success(), "{}", describe(&result));
    assert!(describe(&result).contains("heard"), "{}", describe(&result));
}

#[test]
fn options_of_the_image() {
    let sandbox = Sandbox::new("options");
    let lamina = Lamina::new(&sandbox);
    let context = context(&sandbox);
    let text = "FROM scratch\nARG TARGETARCH\nARG TARGETPLATFORM\nLABEL arch=$TARGETARCH p=$TARGETPLATFORM own=1\nCOPY a.txt /\n";
    let file = containerfile(&sandbox, text);
    let id = sandbox.join("id");
    let said = build(
        &lamina,
        &file,
        &context,
        "one",
        &[
            "-t",
            "two:tag",
            "--label",
            "own=2",
            "--label",
            "more=x",
            "--platform",
            "linux/arm64/v8",
            "--iidfile",
            id.to_str().unwrap(),
            "--build-arg",
            "nobody=asks",
            "--timestamp",
            "1",
        ],
    );
    assert!(said.contains("no ARG asks for: nobody"), "{said}");
    let image = config(&lamina, "one");
    assert_eq!(
        image["id"].as_str(),
        Some(fs::read_to_string(&id).unwrap().as_str())
    );
    assert_eq!(image["names"], serde_json::json!(["one", "two:tag"]));
    let config = &image["config"];
    assert_eq!(config["architecture"], "arm64");
    assert_eq!(config["variant"], "v8");
    assert_eq!(config["created"], "1970-01-01T00:00:01Z");
    let labels = &config["config"]["Labels"];
    let wanted =
        serde_json::json!({"arch": "arm64", "p": "linux/arm64/v8", "own": "2", "more": "x"});
    assert_eq!(*labels, wanted);
    let history = config["history"].as_array().unwrap();
    let layers = history
        .iter()
        .filter(|entry| entry["empty_layer"] != true)
        .count();
    assert_eq!(layers, image["layers"].as_array().unwrap().len());
    assert_eq!(history.len(), 4);

    // From standard input, and without a name.
    let mut command = lamina.command(["build", "-f", "-", context.to_str().unwrap()]);
    command
        .stdin(fs::File::open(&file).unwrap())
        .stderr(Stdio::null());
    let result = command.output().unwrap();
    assert!(result.status.success(), "{}", describe(&result));
    let id = String::from_utf8(result.stdout).unwrap();
    lamina.ok(["image", "inspect", id.trim()]);
}

#[test]
fn a_pattern_may_match_nothing_if_something_else_is_there() {
    needs_root!();
    let sandbox = Sandbox::new("patterns");
    let lamina = base::with_base(&sandbox);
    let context = context(&sandbox);
    let file = containerfile(&sandbox, "FROM base\nCOPY a.txt yarn.lock* /x/\n");
    build(&lamina, &file, &context, "image", &[]);
    assert_eq!(read(&sandbox, &lamina, "image", "x/a.txt"), "a\n");
}

#[test]
fn archives_without_directories_change_none() {
    needs_root!();
    let sandbox = Sandbox::new("implicit");
    let lamina = base::with_base(&sandbox);
    let context = sandbox.dir("context");
    let script = "mkdir -p tmp home/user/sub && echo x > tmp/x && echo y > home/user/sub/y
        tar --create --file files.tar tmp/x home/user/sub/y && rm -r tmp home";
    run(Command::new("sh")
        .args(["-ec", script])
        .current_dir(&context));
    let file = containerfile(&sandbox, "FROM base\nADD files.tar /\n");
    build(&lamina, &file, &context, "image", &[]);
    let mount = lamina.mount(&["--read-only", "image"], &sandbox.join("mnt"));
    let attributes = |path: &str| {
        let meta = fs::metadata(mount.path().join(path)).unwrap();
        (meta.mode() & 0o7777, meta.uid(), meta.gid())
    };
    assert_eq!(attributes("tmp"), (0o1777, 0, 0));
    assert_eq!(attributes("home/user"), (0o755, 1000, 100));
    assert_eq!(attributes("home/user/sub"), (0o755, 0, 0));
    assert!(mount.path().join("tmp/x").exists());
    mount.unmount();
}

#[test]
fn copied_files_keep_their_times() {
    needs_root!();
    let sandbox = Sandbox::new("times");
    let lamina = base::with_base(&sandbox);
    let context = context(&sandbox);
    run(Command::new("touch")
        .args(["-d", "2001-02-03 04:05:06"])
        .arg(context.join("a.txt")));
    let file = containerfile(&sandbox, "FROM base\nCOPY a.txt /a\nCOPY dir /dir\n");
    build(&lamina, &file, &context, "image", &[]);
    let mount = lamina.mount(&["--read-only", "image"], &sandbox.join("mnt"));
    for (inside, outside) in [
        ("a", "a.txt"),
        ("dir/one", "dir/one"),
        ("dir/sub", "dir/sub"),
    ] {
        let time = |path: &Path| {
            let meta = fs::symlink_metadata(path).unwrap();
            (meta.mtime(), meta.mtime_nsec())
        };
        let (inside, outside) = (mount.path().join(inside), context.join(outside));
        assert_eq!(time(&inside), time(&outside), "{}", inside.display());
    }
    // What was not touched keeps its time too.
    assert_eq!(
        fs::metadata(mount.path().join("etc")).unwrap().mtime(),
        1_577_836_800
    );
    mount.unmount();
}

#[test]
fn an_ordinary_user_is_root_in_the_build() {
    needs_root!();
    let sandbox = Sandbox::new("build-rootless");
    let lamina = Lamina::as_user(&sandbox, NOBODY);
    lamina.build("base", &[base::base_layer(&sandbox)]);
    let ranges = sandbox.file("ranges", "nobody:100000:65536\n");
    let text = "FROM base
RUN id -u > /id && head -n 1 /proc/self/uid_map >> /id && chown 1000:100 /id && rm /etc/removed
USER user
WORKDIR /home/user
RUN id -u > mine
";
    let file = containerfile(&sandbox, text);
    let context = sandbox.dir("empty");
    // The machine may give nobody no ids: then only in this mount namespace.
    let script = "mount --bind \"$RANGES\" /etc/subuid && mount --bind \"$RANGES\" /etc/subgid
        exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$@\"";
    let mut inner = lamina.command(arguments(&file, &context, "image", &[]));
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-ec", script, "sh"]);
    command.arg(inner.get_program()).args(inner.get_args());
    command
        .env("RANGES", &ranges)
        .env("LAMINA_STORE", lamina.store());
    let result = command.env_remove("XDG_RUNTIME_DIR").output().unwrap();
    assert!(result.status.success(), "{}", describe(&result));
    let as_root = Lamina::new(&sandbox).with_store(lamina.store());
    let reads = |path| read(&sandbox, &as_root, "image", path);
    let id = reads("id");
    assert!(id.starts_with("0\n") && id.contains("65534"), "{id}");
    assert_eq!(reads("home/user/mine"), "1000\n");
    let mount = as_root.mount(&["--read-only", "image"], &sandbox.join("mnt"));
    let owner = |path: &str| fs::metadata(mount.path().join(path)).unwrap().uid();
    assert_eq!((owner("id"), owner("home/user/mine")), (1000, 1000));
    assert!(!mount.path().join("etc/removed").exists());
    mount.unmount();

    // Without ranges, everything but RUN works.
    let text = "FROM base\nCOPY a.txt /a\n";
    let (file, context) = (containerfile(&sandbox, text), base::context(&sandbox));
    inner = lamina.command(arguments(&file, &context, "copied", &[]));
    let result = inner.output().unwrap();
    assert!(result.status.success(), "{}", describe(&result));
}

#[test]
fn a_real_distribution() {
    needs_root!();
    let sandbox = Sandbox::new("debian-build");
    let debian = DebianStore::own();
    let text = "FROM debian
RUN set -e; dpkg --get-selections > /selections; useradd -m -s /bin/bash somebody
RUN rm -rf /usr/share/doc/* /var/lib/apt/lists/* && mv /usr/share/man /usr/share/manuals
COPY --chown=somebody:somebody a.txt /home/somebody/
USER somebody
WORKDIR /home/somebody
RUN sha256sum a.txt > sums && id -un >> sums
";
    let (context, file) = (context(&sandbox), containerfile(&sandbox, text));
    let lamina = &debian.lamina;
    build(lamina, &file, &context, "made", &[]);
    let sums = read(&sandbox, lamina, "made", "home/somebody/sums");
    assert!(
        sums.starts_with("87428fc522803d31065e7bce3cf03fe475096631e5e07bbd7a0fde60c4cf25c7"),
        "{sums}"
    );
    assert!(sums.ends_with("somebody\n"), "{sums}");
    assert!(read(&sandbox, lamina, "made", "selections").contains("install"));
}

#[test]
fn many_files_are_copied() {
    needs_root!();
    let sandbox = Sandbox::new("many-files");
    let lamina = base::with_base(&sandbox);
    let context = sandbox.dir("context");
    for dir in 0..40 {
        let dir = sandbox.dir(format!("context/many/{dir}"));
        for file in 0..250 {
            fs::write(
                dir.join(file.to_string()),
                format!("{}/{file}", dir.display()),
            )
            .unwrap();
        }
    }
    let text =
        "FROM base AS a\nCOPY many /many\nFROM base\nCOPY many /many\nCOPY --from=a /many /again\n";
    let file = containerfile(&sandbox, text);
    build(&lamina, &file, &context, "image", &[]);
    let mount = lamina.mount(&["--read-only", "image"], &sandbox.join("mnt"));
    for tree in ["many", "again"] {
        let mut count = 0;
        for dir in fs::read_dir(mount.path().join(tree)).unwrap() {
            count += fs::read_dir(dir.unwrap().path()).unwrap().count();
        }
        assert_eq!(count, 10_000, "{tree}");
    }
    mount.unmount();
}
