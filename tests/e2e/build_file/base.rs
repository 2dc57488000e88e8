//! What the tests of builds build on and copy: a small image around busybox, and a build context.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::lamina::Lamina;
use crate::support::run;
use crate::support::sandbox::Sandbox;

/// The root filesystem of the image `base`, as an archive.
pub fn base_layer(sandbox: &Sandbox) -> PathBuf {
    let root = sandbox.dir("base-root");
    let script = "mkdir -p bin usr/share/data usr/lib etc/removed-dir/sub etc/again tmp root proc sys dev run home/user
        mkdir -p lnk-target var/empty
        cp \"$(command -v busybox)\" bin/busybox
        for tool in sh cat echo mkdir rm mv ln chmod chown touch id pwd ls mkfifo sleep grep test env \
            stat true false head wc kill ps cp sed seq find ip mount dd sync tr sort; do
            ln -s busybox bin/$tool
        done
        ln -s usr/share lnk
        ln -s ../usr/lib up
        echo target > filelink-target
        ln -s filelink-target filelink
        echo old > etc/replaced
        echo old > etc/removed
        echo old > etc/removed-dir/sub/file
        echo old > etc/again/old
        echo data > usr/share/data/file
        printf 'root:x:0:0:root:/root:/bin/sh\\nuser:x:1000:100:User:/home/user:/bin/sh\\n' > etc/passwd
        printf 'root:x:0:\\nusers:x:100:\\nextra:x:200:user\\nmore:x:300:root,user\\n' > etc/group
        : > etc/hosts
        : > etc/resolv.conf
        : > etc/hostname
        chmod 1777 tmp
        chown 1000:100 home/user
        find . -exec touch -h -d '2020-01-01 00:00:00' {} +
        tar --create --sort=name --numeric-owner --file ../base.tar .";
    run(Command::new("sh").args(["-ec", script]).current_dir(&root));
    sandbox.join("base.tar")
}

/// `lamina` with the image `base` in its store.
pub fn with_base(sandbox: &Sandbox) -> Lamina {
    let lamina = Lamina::new(sandbox);
    lamina.build("base", &[base_layer(sandbox)]);
    lamina
}

/// A build context with one of everything.
pub fn context(sandbox: &Sandbox) -> PathBuf {
    let dir = sandbox.dir("context");
    let file = |name: &str, text: &str| {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    for (name, text) in [
        ("a.txt", "a\n"),
        ("b.txt", "b\n"),
        ("x.txt", "x\n"),
        ("dir/one", "one\n"),
        ("dir/two", "two\n"),
        ("dir/sub/three", "three\n"),
        ("a file", "space\n"),
        ("another file.txt", "spaces\n"),
        ("exec.sh", "#!/bin/sh\n"),
        ("modes/setuid", "s\n"),
        ("modes/private", "p\n"),
        ("modes/dir/file", "f\n"),
        ("hard/one", "linked\n"),
        ("onto-links/lnk/onto", "onto\n"),
        ("onto-links/new/file", "new\n"),
        ("ignored", "i\n"),
        ("ignored-dir/file", "i\n"),
        ("ignored-dir/kept", "k\n"),
        ("deep/down/x.tmp", "i\n"),
        ("deep/down/x.keep", "k\n"),
        ("archived/dir/file", "archived\n"),
        ("archived/top", "top\n"),
    ] {
        file(name, text);
    }
    file("large", &"0123456789abcdef".repeat(100_000));
    let script =
        "ln -s a.txt link; ln -s dir dirlink; ln -s one dir/inner; ln -s /nowhere dir/dangling
        ln hard/one hard/two; ln hard/one hard/three; mkdir -p empty/inner
        chmod 755 exec.sh; chmod 4755 modes/setuid; chmod 600 modes/private; chmod 2750 modes/dir
        chown 77:88 dir/two archived/top
        tar --create --numeric-owner --directory archived --file archive.tar dir top
        gzip -k archive.tar; xz -k archive.tar; bzip2 -k archive.tar
        echo packed | gzip > plain.gz
        rm -r archived";
    run(Command::new("sh").args(["-ec", script]).current_dir(&dir));
    dir
}

/// Writes a Containerfile, and returns its path.
pub fn containerfile(sandbox: &Sandbox, text: &str) -> PathBuf {
    sandbox.file("Containerfile", text)
}

/// The arguments of a build of `file` in `context` as the image `name`.
pub fn arguments(file: &Path, context: &Path, name: &str, more: &[&str]) -> Vec<String> {
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let mut arguments = vec![
        "build".into(),
        "-f".into(),
        text(file),
        "-t".into(),
        name.into(),
    ];
    arguments.extend(more.iter().map(|&more| more.to_owned()));
    arguments.push(text(context));
    arguments
}

/// Builds, and returns what it says on standard error.
pub fn build(lamina: &Lamina, file: &Path, context: &Path, name: &str, more: &[&str]) -> String {
    let result = lamina.output(arguments(file, context, name, more));
    let said = crate::support::describe(&result);
    assert!(result.status.success(), "{said}");
    let id = String::from_utf8(result.stdout).unwrap();
    assert!(
        id.starts_with("sha256:") && id.lines().count() == 1,
        "{said}"
    );
    String::from_utf8(result.stderr).unwrap()
}

/// Builds from a text, with an empty context.
pub fn build_text(sandbox: &Sandbox, lamina: &Lamina, text: &str, name: &str) -> String {
    let file = containerfile(sandbox, text);
    build(lamina, &file, &sandbox.dir("empty-context"), name, &[])
}

/// The configuration of an image.
pub fn config(lamina: &Lamina, name: &str) -> serde_json::Value {
    let all: Vec<serde_json::Value> =
        serde_json::from_str(&lamina.ok(["image", "inspect", name])).unwrap();
    all.into_iter().next().unwrap()
}

/// The text of a file of an image.
pub fn read(sandbox: &Sandbox, lamina: &Lamina, name: &str, path: &str) -> String {
    let mount = lamina.mount(&["--read-only", name], &sandbox.join("read"));
    let text = fs::read_to_string(mount.path().join(path.trim_start_matches('/')));
    mount.unmount();
    text.unwrap_or_else(|error| panic!("{path} of {name}: {error}"))
}

/// Makes a link and a file only its owner may read, for tests of what must not be seen.
pub fn outside(sandbox: &Sandbox) -> PathBuf {
    let secret = sandbox.file("outside-secret", "outside\n");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let context = sandbox.dir("hostile");
    symlink(&secret, context.join("absolute")).unwrap();
    symlink("../outside-secret", context.join("relative")).unwrap();
    symlink("..", context.join("up")).unwrap();
    symlink("loop", context.join("loop")).unwrap();
    context
}
