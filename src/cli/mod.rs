//! The command line: one file per command. Errors are worded for people here and nowhere printed
//! twice; exit status 0 is success, 1 failure, 2 wrong usage.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use lamina_layers::store::{Access, Store};

mod build;
mod commit;
mod daemon;
mod diff;
mod export;
mod fsck;
mod gc;
mod generate;
mod image;
mod import;
mod layer;
mod log;
mod login;
mod mount;
mod named;
mod out;
mod overlay;
mod progress;
mod ps;
mod pull;
mod push;
mod registry;
mod rm;
mod serve;
mod stack;
mod stats;
mod table;
mod umount;

/// The end of the long help and of the manual page.
const FACTS: &str = "\
Exit status:
  0  success
  1  failure; one line on standard error says what, on which path or digest, and what to do
  2  wrong usage

Environment:
  LAMINA_STORE     as --store
  LAMINA_LOG       as --log
  XDG_DATA_HOME    where the store of an ordinary user is; else ~/.local/share
  REGISTRY_AUTH_FILE, DOCKER_CONFIG
                   where credentials for registries are (see 'lamina help login')
  HTTPS_PROXY, HTTP_PROXY, NO_PROXY
                   how registries are reached
  SSL_CERT_FILE, SSL_CERT_DIR
                   certificates to trust instead of the system's
  XDG_RUNTIME_DIR  where the records of an ordinary user's mounts are; else /run/user/UID

Files:
  /var/lib/lamina               root's store
  /run/lamina                   records and logs of root's mounts
  $XDG_RUNTIME_DIR/lamina       those of an ordinary user, else in /tmp/lamina-UID
  /etc/fuse.conf                whether ordinary users may use -o allow_other (user_allow_other)";

/// A copy-on-write union filesystem over container image layers.
#[derive(Debug, Parser)]
#[command(
    name = "lamina",
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    after_long_help = FACTS
)]
struct Cli {
    /// Directory of the layer store [default: /var/lib/lamina for root, else
    /// `$XDG_DATA_HOME/lamina`]
    #[arg(long, global = true, env = "LAMINA_STORE", value_name = "DIR")]
    store: Option<PathBuf>,
    /// What to log: error, warn, info, debug, trace, or target=level, with commas. It goes to
    /// standard error; that of a mount's daemon to the file that 'lamina ps --json' names
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

impl Cli {
    /// A command that is given in another way, with what the environment says.
    fn of_command(command: Command) -> Self {
        Self {
            store: std::env::var_os("LAMINA_STORE").map(PathBuf::from),
            log: std::env::var("LAMINA_LOG").unwrap_or_else(|_| "warn".to_owned()),
            command,
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build, export, list and remove layers
    #[command(subcommand)]
    Layer(layer::LayerCommand),
    /// Import, export, list, inspect, name, check and remove images
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Mount an image or directories, with a writable upper directory
    Mount(mount::MountArgs),
    /// Mount directories over each other for podman, buildah and containerd, as fuse-overlayfs does
    Overlay(overlay::OverlayArgs),
    /// Unmount
    Umount(umount::UmountArgs),
    /// List live mounts
    Ps(ps::PsArgs),
    /// Show what the daemon of a mount has been asked, how often and how long it took
    Stats(stats::StatsArgs),
    /// Throw away changes that the store keeps under a name
    Rm(rm::RmArgs),
    /// Show what a mount's upper directory changes
    Diff(diff::DiffArgs),
    /// Make a layer of what a mount's upper directory changes, and an image with it on top
    Commit(commit::CommitArgs),
    /// Remove from the store what nothing needs any more
    Gc(gc::GcArgs),
    /// Check the store, and repair it
    Fsck(fsck::FsckArgs),
    /// Fetch an image from a registry
    Pull(pull::PullArgs),
    /// Send an image to a registry
    Push(push::PushArgs),
    /// Keep credentials for a registry
    Login(login::LoginArgs),
    /// Remove the credentials for a registry
    Logout(login::LogoutArgs),
    /// Build an image from a Containerfile
    Build(build::BuildArgs),
    /// Run a container for another command
    #[command(hide = true, name = crate::runtime::container::COMMAND)]
    ContainerWorker,
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

/// Something is wrong with the arguments that clap does not see: exit status 2.
#[derive(Debug, thiserror::Error)]
#[error("{0} (see 'lamina help')")]
struct Usage(String);

/// Ends with this exit status; there is nothing to be said about it any more.
#[derive(Debug, thiserror::Error)]
#[error("exit status {0}")]
struct Status(u8);

/// Runs the program.
pub fn main() -> ExitCode {
    // First of all: it works only in a process with one thread.
    let entered = crate::runtime::rootless::enter().context("cannot enter the user namespace");
    let cli = match overlay::called_by_name() {
        Some(args) => Cli::of_command(Command::Overlay(args)),
        None => Cli::parse(),
    };
    match entered.and_then(|()| run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        // Nobody misses what could not be printed.
        Err(error) if error.is::<out::ReaderGone>() => ExitCode::SUCCESS,
        Err(error) => {
            if let Some(Status(status)) = error.downcast_ref() {
                return ExitCode::from(*status);
            }
            complain(&error);
            ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
        }
    }
}

/// Tells an error in one line.
fn complain(error: &anyhow::Error) {
    let text = format!("lamina: {}\n", in_one_line(error));
    // Without a standard error only the exit status can tell.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// An error with its causes, each once: many messages have their cause in them.
fn in_one_line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let words = cause.to_string();
        if !text.contains(&words) {
            let colon = if text.is_empty() { "" } else { ": " };
            text.extend([colon, &words]);
        }
    }
    text.replace('\n', " ")
}

fn run(cli: Cli) -> anyhow::Result<()> {
    log::start(&cli.log)?;
    let store = match cli.store {
        Some(dir) => dir,
        None => default_store()?,
    };
    let store = real_path(&store).with_context(|| format!("cannot use --store {store:?}"))?;
    let context = Context { store };
    match cli.command {
        Command::Layer(command) => layer::run(&context, command),
        Command::Image(command) => image::run(&context, command),
        Command::Mount(args) => mount::run(&context, &args),
        Command::Overlay(args) => overlay::run(&context, &args),
        Command::Umount(args) => umount::run(&context, &args),
        Command::Ps(args) => ps::run(&context, &args),
        Command::Stats(args) => stats::run(&context, &args),
        Command::Rm(args) => rm::run(&context, &args),
        Command::Diff(args) => diff::run(&context, &args),
        Command::Commit(args) => commit::run(&context, &args),
        Command::Gc(args) => gc::run(&context, &args),
        Command::Fsck(args) => fsck::run(&context, &args),
        Command::Pull(args) => pull::run(&context, &args),
        Command::Push(args) => push::run(&context, &args),
        Command::Login(args) => login::login(&args),
        Command::Logout(args) => login::logout(&args),
        Command::Build(args) => build::run(&context, &args),
        Command::ContainerWorker => Ok(crate::runtime::container::work()?),
        Command::Completions(args) => generate::completions(&args),
        Command::GenMan(args) => generate::man(&args),
    }
}

/// The path without symbolic links, which is the same seen from everywhere; if nothing is there, as
/// it is but absolute.
fn real_path(path: &Path) -> std::io::Result<PathBuf> {
    path.canonicalize().or_else(|_| std::path::absolute(path))
}

fn default_store() -> anyhow::Result<PathBuf> {
    // Root in a user namespace is an ordinary user, unless it has a system of its own: a container.
    let owns_system = |meta: std::fs::Metadata| std::os::unix::fs::MetadataExt::uid(&meta) == 0;
    if rustix::process::geteuid().is_root() && std::fs::metadata("/var/lib").is_ok_and(owns_system)
    {
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

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn an_error_is_one_line_with_each_cause_once() {
        let error = anyhow!("no\nspace").context("cannot write /x: no\nspace");
        assert_eq!(in_one_line(&error), "cannot write /x: no space");
        let error = error.context("cannot build");
        assert_eq!(
            in_one_line(&error),
            "cannot build: cannot write /x: no space"
        );
    }
}
