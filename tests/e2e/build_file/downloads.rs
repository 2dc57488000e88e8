//! ADD of what is on the network.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use lamina_layers::digest::Digest;

use super::base::{self, arguments, containerfile};
use crate::support::lamina::Lamina;
use crate::support::proxy::{Fault, Proxy};
use crate::support::sandbox::Sandbox;
use crate::support::{describe, needs_root};

const TEXT: &str = "what is on the network\n";

struct Setting {
    sandbox: Sandbox,
    lamina: Lamina,
    /// In front of a server that has the same file at every address with `file` in it.
    server: Proxy,
}

impl Setting {
    fn new(name: &str) -> Self {
        let sandbox = Sandbox::new(name);
        let origin = Proxy::start("127.0.0.1:1");
        let modified = ("last-modified", "Wed, 21 Oct 2015 07:28:00 GMT".to_owned());
        origin.on("GET", "file", 99, Fault::Answer(200, vec![modified], TEXT));
        origin.on("GET", "plain", 99, Fault::Answer(200, Vec::new(), TEXT));
        Self {
            lamina: base::with_base(&sandbox),
            server: Proxy::start(&origin.address()),
            sandbox,
        }
    }

    fn build(&self, text: &str) -> Result<String, String> {
        let file = containerfile(&self.sandbox, text);
        let server = format!("--build-arg=SERVER=http://{}", self.server.address());
        let context = self.sandbox.dir("context");
        let more = [server.as_str(), "--retry=1"];
        let result = self
            .lamina
            .output(arguments(&file, &context, "image", &more));
        let said = String::from_utf8_lossy(&result.stderr).into_owned();
        match result.status.code() {
            Some(0) => Ok(said),
            Some(1) => Err(said),
            _ => panic!("{}", describe(&result)),
        }
    }
}

#[test]
fn files_come_from_the_network() {
    needs_root!();
    let setting = Setting::new("build-downloads");
    let digest = Digest::of(TEXT.as_bytes());
    let text = format!(
        "FROM base\nARG SERVER\nADD $SERVER/x/a%20file?from=here $SERVER/plain /in/\n\
         ADD --chmod=755 --chown=5:6 --checksum={digest} $SERVER/file.tar.gz /named\n"
    );
    // A connection that breaks off is no reason to give up.
    let server = &setting.server;
    server.on("GET", "file.tar.gz", 1, Fault::BreakAfter(5));
    let said = setting.build(&text).unwrap();
    assert!(said.contains("downloading http://"), "{said}");
    let mount = setting
        .lamina
        .mount(&["image"], &setting.sandbox.join("mnt"));
    for (name, mode, owner, mtime) in [
        ("in/a file", 0o600, (0, 0), 1_445_412_480),
        ("in/plain", 0o600, (0, 0), 0),
        ("named", 0o755, (5, 6), 1_445_412_480),
    ] {
        let path = mount.path().join(name);
        assert_eq!(fs::read_to_string(&path).unwrap(), TEXT);
        let found = fs::metadata(&path).unwrap();
        assert_eq!(found.mode() & 0o7777, mode, "{name}");
        assert_eq!((found.uid(), found.gid()), owner, "{name}");
        assert_eq!(found.mtime(), mtime, "{name}");
    }
    mount.unmount();

    // The same again is no new layer.
    let said = setting.build(&text).unwrap();
    assert_eq!(said.matches("Using cache").count(), 2, "{said}");
}

#[test]
fn what_cannot_be_downloaded_is_said() {
    needs_root!();
    let setting = Setting::new("build-no-download");
    let server = &setting.server;
    server.on("GET", "/gone", 99, Fault::Answer(404, Vec::new(), ""));
    server.on("GET", "/broken", 99, Fault::Answer(503, Vec::new(), ""));
    server.on("GET", "file.short", 99, Fault::BreakAfter(3));
    let secure = "https://elsewhere.invalid/file".to_owned();
    let there = vec![("location", secure)];
    server.on("GET", "/moved", 99, Fault::Answer(302, there, ""));
    let other = Digest::of(b"other");
    let wrong = format!("ADD --checksum={other} $SERVER/file /x");
    for (instruction, parts) in [
        ("ADD $SERVER/gone /x", &["404", "/gone"][..]),
        ("ADD $SERVER/broken /x", &["failed 2 times", "503"]),
        ("ADD $SERVER/file.short /x", &["2 times", "3 of 23 bytes"]),
        ("ADD $SERVER/moved /x", &["cannot reach"]),
        ("ADD $SERVER/?file /in/", &["has no file name"]),
        (&wrong, &["--checksum says", &other.to_string()]),
        (
            "ADD --checksum=1 $SERVER/file /x",
            &["--checksum=1", "sha256:"],
        ),
        (
            &format!("ADD --checksum={other} a /x"),
            &["--checksum is of a URL"],
        ),
        ("ADD ftp://example.com/x /x", &["ftp://", "clone"]),
        ("ADD git@example.com:x.git /x", &["git@", "clone"]),
        ("ADD https://example.com/x.git /x", &["x.git", "clone"]),
    ] {
        let text = format!("FROM base\nARG SERVER\n{instruction}\n");
        let said = setting.build(&text).expect_err(instruction);
        let last = said.lines().last().unwrap_or_default();
        assert!(last.contains(":3: ADD "), "{instruction}: {said}");
        for part in parts {
            assert!(last.contains(part), "{instruction}: {part:?} in {said}");
        }
    }
    let staging = setting.lamina.store().join("staging");
    let left = fs::read_dir(staging).map_or(0, Iterator::count);
    assert_eq!(left, 0);
}
