//! The command line: one file per command. Errors are worded for people here and nowhere printed
//! twice; exit status 0 is success, 1 failure, 2 wrong usage.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use lamina_layers::store::{Access, Store};

mod commit;
mod daemon;
mod diff;
mod generate;
mod image;
mod layer;
mod mount;
mod named;
mod progress;
mod ps;
mod table;
mod umount;

/// A copy-on-write union filesystem over container image layers.
#[derive(Debug, Parser)]
#[command(
    name = "lamina",
    version,
    max_term_width = 100,
    arg_required_else_help = true
)]
struct Cli {
    /// Directory of the layer store [default: /var/lib/lamina for root, else
    /// `$XDG_DATA_HOME/lamina`]
    #[arg(long, global = true, env = "LAMINA_STORE", value_name = "DIR")]
    store: Option<PathBuf>,
    /// What to log on standard error, or once a mount is live in the file `log` of its runtime
    /// directory: error, warn, info, debug, trace, or filters by module
    #[arg(
        long,
        global = true,
        env = "LAMINA_LOG",
        value_name = "FILTER",
        default_value = "warn"
    )]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build, list and remove layers
    #[command(subcommand)]
    Layer(layer::LayerCommand),
    /// List, inspect and remove images
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Mount an image or directories, with a writable upper directory
    Mount(mount::MountArgs),
    /// Unmount
    Umount(umount::UmountArgs),
    /// List live mounts
    Ps(ps::PsArgs),
    /// Show what a mount's upper directory changes
    Diff(diff::DiffArgs),
    /// Make a layer of what a mount's upper directory changes, and an image with it on top
    Commit(commit::CommitArgs),
    /// Print a completion script for a shell
    Completions(generate::CompletionArgs),
    /// Write the manual pages into a directory
    #[command(hide = true)]
    GenMan(generate::ManArgs),
}

/// What all commands share.
struct Context {
    store: PathBuf,
}

impl Context {
    /// The store, made on first use.
    fn store(&self) -> anyhow::Result<Store> {
        Ok(Store::open(&self.store, Access::ReadWrite)?)
    }

    /// The store, not to be written to.
    fn store_to_read(&self) -> anyhow::Result<Store> {
        Ok(Store::open(&self.store, Access::ReadOnly)?)
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lamina: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&cli.log)
        .with_context(|| format!("--log '{}' is not a filter", cli.log))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let store = match cli.store {
        Some(dir) => std::path::absolute(&dir).with_context(|| format!("--store {dir:?}"))?,
        None => default_store()?,
    };
    let context = Context { store };
    match cli.command {
        Command::Layer(command) => layer::run(&context, command),
        Command::Image(command) => image::run(&context, command),
        Command::Mount(args) => mount::run(&context, &args),
        Command::Umount(args) => umount::run(&args),
        Command::Ps(args) => ps::run(&args),
        Command::Diff(args) => diff::run(&context, &args),
        Command::Commit(args) => commit::run(&context, &args),
        Command::Completions(args) => {
            generate::completions(&args);
            Ok(())
        }
        Command::GenMan(args) => generate::man(&args),
    }
}

fn default_store() -> anyhow::Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/lamina"));
    }
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    if let Some(data) = absolute("XDG_DATA_HOME") {
        return Ok(data.join("lamina"));
    }
    let home = absolute("HOME").context("HOME is not set: say where the store is with --store")?;
    Ok(home.join(".local/share/lamina"))
}
