//! `lamina completions` and the manual pages, both made from the command line's definition.

use std::fs;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

/// Arguments of `lamina completions`.
#[derive(Debug, Args)]
pub struct CompletionArgs {
    /// The shell
    shell: Shell,
}

/// Arguments of `lamina gen-man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Where the pages go
    dir: PathBuf,
}

/// Prints a completion script.
pub fn completions(args: &CompletionArgs) -> anyhow::Result<()> {
    let mut command = super::Cli::command();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "lamina", &mut script);
    super::out::print(script)
}

/// Writes a page for the program and one for each command.
pub fn man(args: &ManArgs) -> anyhow::Result<()> {
    fs::create_dir_all(&args.dir).with_context(|| format!("cannot make {:?}", args.dir))?;
    clap_mangen::generate_to(super::Cli::command(), &args.dir)
        .with_context(|| format!("cannot write manual pages into {:?}", args.dir))
}
