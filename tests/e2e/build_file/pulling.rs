//! Images that a Containerfile names and the store does not have.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use super::base::{self, config, containerfile, read};
use crate::support::lamina::Lamina;
use crate::support::registry::{Registry, alone};
use crate::support::sandbox::Sandbox;
use crate::support::{describe, needs_root, output, run};

/// A registry with `team/base:1`, and a program whose store has nothing.
struct Setting {
    sandbox: Sandbox,
    lamina: Lamina,
    registry: Option<Registry>,
    /// The image in the registry.
    base: String,
}

impl Setting {
    fn new(name: &str) -> Self {
        let sandbox = Sandbox::new(name);
        let registry = Registry::start(&sandbox);
        let base = format!("{}/team/base:1", registry.address());
        let lamina = Lamina::new(&sandbox);
        let setting = Self {
            sandbox,
            lamina,
            registry: Some(registry),
            base,
        };
        let publisher = setting.publisher();
        publisher.build("base", &[base::base_layer(&setting.sandbox)]);
        setting.push(&publisher);
        setting
    }

    /// Another user of the registry.
    fn publisher(&self) -> Lamina {
        self.lamina.with_store(&self.sandbox.join("publisher"))
    }

    fn push(&self, publisher: &Lamina) {
        let mut push = publisher.command(["push", "--plain-http", "-q", "base", &self.base]);
        alone(&self.sandbox, &mut push);
        run(&mut push);
    }

    fn command(&self, text: &str, more: &[&str]) -> Command {
        let file = containerfile(&self.sandbox, text);
        let mut all = vec!["--plain-http", "--retry=0"];
        all.extend(more);
        let context = self.sandbox.dir("context");
        let arguments = base::arguments(&file, &context, "image", &all);
        let mut command = self.lamina.command(arguments);
        alone(&self.sandbox, &mut command);
        command
    }

    /// Builds; returns whether it said that it pulls.
    fn pulls(&self, text: &str, more: &[&str]) -> bool {
        let result = output(&mut self.command(text, more));
        assert!(result.status.success(), "{}", describe(&result));
        said(&result).contains("pulling ")
    }

    fn fails(&self, text: &str, more: &[&str]) -> String {
        let result = output(&mut self.command(text, more));
        assert_eq!(result.status.code(), Some(1), "{}", describe(&result));
        let said = said(&result);
        said.lines().last().unwrap_or_default().to_owned()
    }
}

fn said(result: &Output) -> String {
    String::from_utf8_lossy(&result.stderr).into_owned()
}

#[test]
fn what_is_missing_is_pulled_once() {
    needs_root!();
    let setting = Setting::new("build-pull");
    let text = format!(
        "FROM {}\nCOPY --from={0} /bin/busybox /again\n",
        setting.base
    );
    assert!(setting.pulls(&text, &[]));
    let config = config(&setting.lamina, &setting.base);
    assert_eq!(config["names"][0], setting.base.as_str(), "{config}");
    assert!(!setting.pulls(&text, &[]));
    assert!(setting.pulls(&text, &["--pull"]));
    assert!(setting.pulls(&text, &["--pull=always"]));
    assert!(!setting.pulls(&text, &["--pull=never"]));

    // By its digest, too.
    let id = config["id"].as_str().unwrap();
    let repository = setting.base.strip_suffix(":1").unwrap();
    assert!(!setting.pulls(&format!("FROM {repository}@{id}\n"), &[]));
}

#[test]
fn a_newer_one_is_taken_if_it_can_be_had() {
    needs_root!();
    let mut setting = Setting::new("build-newer");
    let text = format!("FROM {}\n", setting.base);
    assert!(setting.pulls(&text, &[]));
    let publisher = setting.publisher();
    let mount = publisher.mount(&["--name", "next", "base"], &setting.sandbox.join("mnt"));
    fs::write(mount.path().join("newer"), "newer\n").unwrap();
    mount.unmount();
    publisher.ok(["commit", "next", "-t", "base"]);
    setting.push(&publisher);
    assert!(!setting.pulls(&text, &[]));
    assert!(setting.pulls(&text, &["--pull=newer"]));
    let newer = |setting: &Setting| read(&setting.sandbox, &setting.lamina, "image", "newer");
    assert_eq!(newer(&setting), "newer\n");

    setting.registry = None;
    assert!(setting.pulls(&text, &["--pull=newer"]));
    assert_eq!(newer(&setting), "newer\n");
    let message = setting.fails(&text, &["--pull=always"]);
    assert!(
        message.contains(":1: FROM ") && message.contains("cannot be pulled"),
        "{message}"
    );
    // Each cause once.
    assert_eq!(message.matches("refused").count(), 1, "{message}");
}

#[test]
fn what_cannot_be_had_is_said() {
    needs_root!();
    let setting = Setting::new("build-no-pull");
    let text = format!("FROM {}\n", setting.base);
    let message = setting.fails(&text, &["--pull=never"]);
    assert!(
        message.contains("not in the store: import or pull"),
        "{message}"
    );
    let unknown = setting.base.replace("team/base", "team/other");
    let message = setting.fails(&format!("FROM {unknown}\n"), &[]);
    assert!(
        message.contains(&unknown) && message.contains("cannot be pulled"),
        "{message}"
    );
    // What is there is for another machine, and so is what can be pulled.
    assert!(setting.pulls(&text, &[]));
    let message = setting.fails(&text, &["--platform=linux/s390x"]);
    assert!(message.contains("linux/s390x"), "{message}");
    // localhost/ is on no registry.
    let message = setting.fails("FROM localhost/base\n", &[]);
    assert!(message.contains("not in the store: import"), "{message}");
    let staging = setting.lamina.store().join("staging");
    let left = fs::read_dir(Path::new(&staging)).map_or(0, Iterator::count);
    assert_eq!(left, 0);
}
