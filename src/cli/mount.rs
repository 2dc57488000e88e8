//! `lamina mount`.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use clap::Args;
use lamina_layers::store::{Access, Lease, Pins, Store};
use rustix::mount::MountFlags;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::named::Named;
use super::{Context, daemon};
use crate::fuse::{ServeOptions, serve};
use crate::mount::options::MountOptions;
use crate::mount::record::{self, Record};
use crate::mount::{attach, check_target, detach};
use crate::union::{Config, ImageLower, Union};
use crate::upper::UpperDirs;

/// Arguments of `lamina mount`.
#[derive(Debug, Args)]
#[command(
    after_help = "Without --upper, changes are kept in the store under a name, and are there \
    again when the same name is mounted again. An image may be left out if there is a --lower."
)]
pub struct MountArgs {
    /// The image (a name, an image or layer digest, or the start of one), then the directory to
    /// mount at
    #[arg(required = true, num_args = 1..=2, value_names = ["IMAGE", "MOUNTPOINT"])]
    places: Vec<PathBuf>,
    /// Name under which the store keeps the changes [default: a new one]
    #[arg(long, value_name = "NAME", conflicts_with_all = ["upper", "read_only"])]
    name: Option<String>,
    /// Throw the changes away when it is unmounted
    #[arg(long, conflicts_with_all = ["upper", "read_only"])]
    rm: bool,
    /// Directory for the changes, instead of one in the store
    #[arg(
        long,
        value_name = "DIR",
        requires = "work",
        conflicts_with = "read_only"
    )]
    upper: Option<PathBuf>,
    /// Scratch directory on the filesystem of --upper
    #[arg(long, value_name = "DIR", requires = "upper")]
    work: Option<PathBuf>,
    /// Plain directory above the image, or instead of one; give the topmost first
    #[arg(long = "lower", value_name = "DIR")]
    lowers: Vec<PathBuf>,
    /// Refuse all changes
    #[arg(long, visible_alias = "ro")]
    read_only: bool,
    /// Never sync: faster, but the changes are lost if the machine stops
    #[arg(long)]
    volatile: bool,
    /// Stay in the foreground until it is unmounted
    #[arg(short, long)]
    foreground: bool,
    /// Mount options: ro, nosuid, nodev, noexec, noatime, `allow_other`, fsname=, context=, …
    #[arg(short = 'o', long = "options", value_name = "OPTIONS")]
    options: Vec<String>,
    /// Number of threads [default: as many as processors]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

/// Mounts; returns when the mount is live, or in the foreground when it is unmounted.
pub fn run(context: &Context, args: &MountArgs) -> anyhow::Result<()> {
    let mut options = MountOptions::default();
    for text in &args.options {
        options.add(text)?;
    }
    let (image, target) = args.image_and_target()?;
    let target = check_target(target)?;
    if !args.foreground && !daemon::is_daemon() {
        return daemon::start();
    }
    if daemon::is_daemon() {
        daemon::leave_session();
    }
    let mut prepared = Prepared::new(context, args, image, &target)?;
    if args.read_only {
        options.flags |= MountFlags::RDONLY;
    }
    let read_only = options.flags.contains(MountFlags::RDONLY);
    if read_only {
        prepared.config.upper = None;
    }
    options
        .source
        .get_or_insert_with(|| image.unwrap_or("lamina").to_owned());
    prepared.serve(&target, &options, image, args)
}

impl MountArgs {
    fn image_and_target(&self) -> anyhow::Result<(Option<&str>, &Path)> {
        match self.places.as_slice() {
            [target] if !self.lowers.is_empty() => Ok((None, target)),
            [only] => bail!("{only:?}: give an image and a mount point, or a --lower directory"),
            [image, target] => {
                let name = image
                    .to_str()
                    .with_context(|| format!("no image is named {image:?}"))?;
                Ok((Some(name), target))
            }
            _ => bail!("give an image and a mount point"),
        }
    }
}

/// Everything that is needed to mount.
struct Prepared {
    config: Config,
    named: Option<Named>,
    /// Keeps the image from being removed.
    _lease: Option<Lease>,
    store: PathBuf,
}

impl Prepared {
    fn new(
        context: &Context,
        args: &MountArgs,
        image: Option<&str>,
        target: &Path,
    ) -> anyhow::Result<Self> {
        let wants_name = args.upper.is_none() && !args.read_only && !args.is_read_only_option();
        let mut config = Config {
            volatile: args.volatile,
            ..Config::default()
        };
        for lower in &args.lowers {
            config.lowers.push(std::path::absolute(lower)?);
        }
        let store = if image.is_some() || wants_name {
            let access = if wants_name {
                Access::ReadWrite
            } else {
                Access::ReadOnly
            };
            Some(Arc::new(open_store(&context.store, access, wants_name)?))
        } else {
            None
        };
        let mut lease = None;
        if let (Some(name), Some(store)) = (image, &store) {
            let image = store.resolve(name)?;
            lease = Some(store.lease(&Pins {
                holder: format!("the mount at {}", target.display()),
                image: store.image(&image.id).ok().map(|image| image.id),
                layers: image.layers.clone(),
            })?);
            config.image = Some(ImageLower {
                store: Arc::clone(store),
                layers: image.layers,
            });
        }
        let mut named = None;
        if let (Some(upper), Some(work)) = (&args.upper, &args.work) {
            let (upper, work) = (std::path::absolute(upper)?, std::path::absolute(work)?);
            config.upper = Some(UpperDirs { upper, work });
        } else if let (Some(store), true) = (&store, wants_name) {
            let new = Named::open(store, args.name.as_deref(), image, &config)?;
            config.upper = Some(new.dirs());
            named = Some(new);
        }
        Ok(Self {
            config,
            named,
            _lease: lease,
            store: context.store.clone(),
        })
    }

    fn serve(
        self,
        target: &Path,
        options: &MountOptions,
        image: Option<&str>,
        args: &MountArgs,
    ) -> anyhow::Result<()> {
        let union = Union::open(&self.config)?;
        if self.named.as_ref().is_some_and(|named| named.is_new) {
            union
                .copy_root_attributes()
                .context("cannot prepare the upper directory")?;
        }
        let device = attach(target, options)?;
        let ended = self.serve_attached(device, union, target, image, args);
        if ended.is_err() {
            // The mount must not stay without a daemon; the reason that is told is the first.
            if let Err(cause) = detach(target, true) {
                tracing::debug!("{cause}");
            }
        }
        ended
    }

    /// Serves until it is unmounted. The record goes last: who waits for the end waits for it.
    fn serve_attached(
        self,
        device: OwnedFd,
        union: Union,
        target: &Path,
        image: Option<&str>,
        args: &MountArgs,
    ) -> anyhow::Result<()> {
        let keeper = self
            .record(target, image)
            .keep()
            .context("cannot record the mount")?;
        unmount_on_signals(target)?;
        let options = ServeOptions {
            threads: args.threads,
        };
        let log = record::directory()?.join("log");
        let mut told = Ok(());
        serve(device, Arc::new(union), &options, || {
            if daemon::is_daemon() {
                told = daemon::report_live(&log);
            }
        })
        .context("the mount ended")?;
        told?;
        if let Some(named) = self.named.filter(|_| args.rm) {
            named.remove()?;
        }
        drop(keeper);
        Ok(())
    }

    fn record(&self, target: &Path, image: Option<&str>) -> Record {
        let config = &self.config;
        let layers = config.image.iter().flat_map(|image| &image.layers);
        Record {
            target: target.to_owned(),
            name: self.named.as_ref().map(|named| named.name.clone()),
            store: self.store.clone(),
            image: image.map(str::to_owned),
            layers: layers.map(ToString::to_string).collect(),
            lowers: config.lowers.clone(),
            upper: config.upper.as_ref().map(|dirs| dirs.upper.clone()),
            work: config.upper.as_ref().map(|dirs| dirs.work.clone()),
            pid: std::process::id(),
            since: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |time| time.as_secs()),
        }
    }
}

impl MountArgs {
    /// Whether `-o` asks for a read-only mount.
    fn is_read_only_option(&self) -> bool {
        let mut options = MountOptions::default();
        self.options.iter().all(|text| options.add(text).is_ok())
            && options.flags.contains(MountFlags::RDONLY)
    }
}

/// The store: one that is written to is made on first use, one that cannot be written to is
/// read, unless changes must be kept in it.
fn open_store(root: &Path, access: Access, must_write: bool) -> anyhow::Result<Store> {
    let opened = Store::open(root, access);
    match opened {
        Err(error) if !must_write => {
            Store::open(root, Access::ReadOnly).map_err(|_| anyhow::Error::from(error))
        }
        result => Ok(result?),
    }
}

/// Detaches the mount when the process is asked to end; serving ends with the mount.
fn unmount_on_signals(target: &Path) -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let target = target.to_owned();
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                tracing::info!("signal {signal}: unmounting {}", target.display());
                if let Err(error) = detach(&target, true) {
                    tracing::error!("{error}");
                }
            }
        })?;
    Ok(())
}
