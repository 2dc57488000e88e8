//! Registries: Debian's docker-registry, skopeo, podman, buildah and umoci as the other side, and a
//! proxy that does everything wrong.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::support::lamina::Lamina;
use crate::support::layers::{Archive, noise};
use crate::support::layout::{Layout, LayoutImage};
use crate::support::proxy::Proxy;
use crate::support::registry::{Registry, alone};
use crate::support::sandbox::Sandbox;

mod faults;
mod login;
mod pull;
mod push;

/// Three layers: much, some and little, with names of another kind in each.
fn some_layers(sandbox: &Sandbox) -> Vec<PathBuf> {
    let mut large = Archive::new(sandbox, "large.tar").dir("dir", 0o755);
    for number in 0..6_u8 {
        large = large.file(&format!("dir/{number}"), &noise(number, 400_000));
    }
    let large = large.hard_link("dir/again", "dir/0").finish();
    let middle = Archive::new(sandbox, "middle.tar")
        .file("dir/.wh.1", b"")
        .file("middle", &noise(77, 700_000))
        .symlink("link", "dir/2")
        .finish();
    let small = Archive::new(sandbox, "small.tar")
        .file("small", b"small\n")
        .finish();
    vec![large, middle, small]
}

/// A registry behind a proxy, with an image `app` in it, and a program with an empty store.
struct Setting {
    sandbox: Sandbox,
    lamina: Lamina,
    registry: Registry,
    proxy: Proxy,
    image: LayoutImage,
}

impl Setting {
    fn new(name: &str) -> Self {
        let sandbox = Sandbox::new(name);
        let registry = Registry::start(&sandbox);
        let mut layout = Layout::new(&sandbox, "layout");
        let layers = some_layers(&sandbox);
        let image = layout.image("app", &layers, "gzip", "amd64");
        layout.push("app", &format!("{}/team/app:1", registry.address()), &[]);
        let proxy = Proxy::start(registry.address());
        let lamina = Lamina::new(&sandbox);
        Self {
            sandbox,
            lamina,
            registry,
            proxy,
            image,
        }
    }

    /// The image, as seen through the proxy.
    fn reference(&self) -> String {
        format!("{}/team/app:1", self.proxy.address())
    }

    /// A pull of it, not yet started.
    fn command(&self, options: &[&str]) -> Command {
        pull(&self.sandbox, &self.lamina, &self.reference(), options)
    }

    /// Pulls it.
    fn pull(&self, options: &[&str]) -> String {
        crate::support::run(&mut self.command(options))
    }

    /// Fails to pull it, leaves nothing but whole layers behind, and returns what was said.
    fn fails(&self, options: &[&str]) -> String {
        let output = crate::support::output(&mut self.command(options));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(
            said.starts_with("lamina: ") && !said.contains("panicked"),
            "{said}"
        );
        assert_eq!(
            self.entries("staging"),
            Vec::<String>::new(),
            "after: {said}"
        );
        assert_eq!(
            self.entries("images"),
            Vec::<String>::new(),
            "after: {said}"
        );
        said
    }

    /// The names in a directory of the store.
    fn entries(&self, part: &str) -> Vec<String> {
        let Ok(dir) = fs::read_dir(self.lamina.store().join(part)) else {
            return Vec::new();
        };
        let mut names: Vec<_> = dir
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// How often the blob of a layer was asked for.
    fn asked(&self, layer: usize) -> usize {
        let blob = &self.image.layers[layer];
        let seen = self.proxy.seen();
        seen.iter()
            .filter(|seen| seen.method == "GET" && seen.path.contains(blob.as_str()))
            .count()
    }
}

/// A pull over plain HTTP that sees no credentials of whoever runs the tests.
fn pull(sandbox: &Sandbox, lamina: &Lamina, reference: &str, options: &[&str]) -> Command {
    let mut command = lamina.command(["pull", "--plain-http", reference]);
    command.args(options);
    alone(sandbox, &mut command);
    command
}
