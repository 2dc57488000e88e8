//! What the end-to-end tests share: a place to work in, the program, trees to compare.

pub mod containers;
pub mod damage;
pub mod device;
pub mod disk;
pub mod fake;
pub mod fixture;
pub mod lamina;
pub mod layers;
pub mod layout;
pub mod listing;
pub mod overlayfs;
pub mod pair;
pub mod program;
pub mod proxy;
pub mod raw;
pub mod registry;
pub mod sandbox;
pub mod tree;

use std::process::{Command, Output};

/// Whether the tests run as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Returns from the test, saying so, unless it runs as root.
macro_rules! needs_root {
    () => {
        if !$crate::support::is_root() {
            eprintln!("skipped: {} needs root", module_path!());
            return;
        }
    };
}
pub(crate) use needs_root;

/// Runs `command` to its end and panics with all it said unless it succeeded.
pub fn run(command: &mut Command) -> String {
    let output = output(command);
    assert!(
        output.status.success(),
        "{command:?}\n{}",
        describe(&output)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs `command` to its end, with nothing on its standard input.
pub fn output(command: &mut Command) -> Output {
    command
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"))
}

/// Exit status, standard output and standard error of a finished program, for a message.
pub fn describe(output: &Output) -> String {
    format!(
        "{}\n--- stdout\n{}--- stderr\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
