//! `lamina mount`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use lamina_layers::store::{Access, Pins, Store};
use rustix::fs::{AtFlags, CWD, accessat};
use rustix::mount::MountFlags;
use rustix::thread::CapabilitySet;

use super::named::{self, Named};
use super::serve::{Mounting, serve};
use super::{Context, Usage, daemon, real_path};
use crate::fuse::{IoMode, ServeOptions, Transport, View};
use crate::mount::options::MountOptions;
use crate::mount::{check_apart, check_target};
use crate::sys;
use crate::union::{Config, ImageLower};
use crate::upper::{UpperDirs, UpperOptions};

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
    /// Whether changing the mode, owner or times of a large file leaves its contents below, until
    /// somebody writes to it. overlayfs then needs its own option metacopy=on to read the upper
    #[arg(
        long,
        value_name = "on|off",
        default_value = "on",
        value_parser = clap::builder::BoolishValueParser::new(),
        action = clap::ArgAction::Set
    )]
    metacopy: bool,
    /// Stay in the foreground until it is unmounted
    #[arg(short, long)]
    foreground: bool,
    /// Mount options: ro, nosuid, nodev, noexec, noatime, `allow_other`, fsname=, context=, …
    #[arg(short = 'o', long = "options", value_name = "OPTIONS")]
    options: Vec<String>,
    /// How contents are read and written: `cached` by the daemon, `passthrough` by the kernel on the
    /// files of the store and the upper (needs root)
    #[arg(
        long,
        value_enum,
        env = "LAMINA_IO",
        default_value_t,
        value_name = "MODE"
    )]
    io: Io,
    /// How requests come from the kernel: by reading the `device`, or by `io-uring`, which is quicker
    /// (root enables it in `/sys/module/fuse/parameters/enable_uring`)
    #[arg(
        long,
        value_enum,
        env = "LAMINA_TRANSPORT",
        default_value_t,
        value_name = "WAY"
    )]
    transport: Way,
    /// Number of threads, without `io_uring` [default: as many as processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
}

/// How contents are read and written.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
pub(super) enum Io {
    /// What is best here
    #[default]
    Auto,
    /// By the daemon
    Cached,
    /// By the kernel
    Passthrough,
}

/// How requests come from the kernel.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
pub(super) enum Way {
    /// By `io_uring` if the kernel offers it
    #[default]
    Auto,
    /// By reading and writing /dev/fuse
    Device,
    /// By `io_uring`, or not at all
    IoUring,
}

impl From<Way> for Transport {
    fn from(way: Way) -> Self {
        match way {
            Way::Auto => Self::Auto,
            Way::Device => Self::Device,
            Way::IoUring => Self::IoUring,
        }
    }
}

impl Io {
    pub(super) fn mode(self) -> anyhow::Result<IoMode> {
        match self {
            Self::Auto | Self::Cached => Ok(IoMode::Cached),
            Self::Passthrough if can_pass_through() => Ok(IoMode::Passthrough),
            Self::Passthrough => anyhow::bail!(
                "--io passthrough needs CAP_SYS_ADMIN in the initial user namespace: use --io cached"
            ),
        }
    }
}

fn can_pass_through() -> bool {
    let sets = rustix::thread::capabilities(None);
    sets.is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
        && sys::process::is_in_initial_namespace()
}

/// Mounts; returns when the mount is live, or in the foreground when it is unmounted.
pub fn run(context: &Context, args: &MountArgs) -> anyhow::Result<()> {
    let mut options = args.mount_options()?;
    if let Some(name) = &args.name {
        named::check_name(name)?;
    }
    let (image, target) = args.image_and_target()?;
    let target = check_target(target)?;
    if !args.foreground && !daemon::is_daemon() {
        return daemon::start();
    }
    if daemon::is_daemon() {
        daemon::leave_session();
    }
    options
        .source
        .get_or_insert_with(|| image.unwrap_or("lamina").to_owned());
    serve(args.prepare(context, image, target, options)?)
}

impl MountArgs {
    fn mount_options(&self) -> Result<MountOptions, Usage> {
        let mut options = MountOptions::default();
        for text in &self.options {
            options
                .add(text)
                .map_err(|error| Usage(error.to_string()))?;
        }
        if self.read_only {
            options.flags |= MountFlags::RDONLY;
        } else if options.flags.contains(MountFlags::RDONLY)
            && (self.upper.is_some() || self.name.is_some() || self.rm)
        {
            return Err(Usage(
                "'-o ro' mounts without changes: leave out --upper, --name and --rm".into(),
            ));
        }
        Ok(options)
    }

    fn image_and_target(&self) -> Result<(Option<&str>, &Path), Usage> {
        match self.places.as_slice() {
            [target] if !self.lowers.is_empty() => Ok((None, target)),
            [image, target] => {
                let name = image
                    .to_str()
                    .ok_or_else(|| Usage(format!("no image is named {}", image.display())))?;
                Ok((Some(name), target))
            }
            places => Err(Usage(format!(
                "{places:?}: give an image and a mount point, or a --lower directory and a mount \
                 point"
            ))),
        }
    }

    /// Opens and checks everything but what the union itself checks.
    fn prepare(
        &self,
        context: &Context,
        image: Option<&str>,
        target: PathBuf,
        options: MountOptions,
    ) -> anyhow::Result<Mounting> {
        let read_only = options.flags.contains(MountFlags::RDONLY);
        let keeps_changes = self.upper.is_none() && !read_only;
        let mut config = Config {
            upper_options: UpperOptions {
                volatile: self.volatile,
                ..UpperOptions::default()
            },
            metacopy: self.metacopy,
            ..Config::default()
        };
        for lower in &self.lowers {
            config.lowers.push(real_path(lower)?);
        }
        let store = match (image, keeps_changes) {
            (None, false) => None,
            (_, keeps) => {
                let store = open_store(&context.store, keeps)?;
                // Whatever happens, nothing is written to an object.
                let store = store.with_objects_dir(|dir| sys::mount::read_only_view(dir).ok());
                Some(Arc::new(store))
            }
        };
        let mut lease = None;
        if let (Some(name), Some(store)) = (image, &store) {
            let image = store.resolve(name)?;
            lease = Some(store.lease(&Pins {
                holder: format!("the mount at {}", target.display()),
                image: store.image(&image.id).ok().map(|image| image.id),
                layers: image.layers.clone(),
                blobs: Vec::new(),
            })?);
            config.image = Some(ImageLower {
                store: Arc::clone(store),
                layers: image.layers,
            });
        }
        if let (Some(upper), Some(work)) = (&self.upper, &self.work) {
            config.upper = Some(UpperDirs {
                upper: real_path(upper)?,
                work: real_path(work)?,
            });
        }
        let mut named = None;
        if let (Some(store), true) = (&store, keeps_changes) {
            let changes = Named::open(store, self.name.as_deref(), image, &config)?;
            config.upper = Some(changes.dirs());
            named = Some(changes);
        }
        let upper = config.upper.as_ref();
        let upper = upper.map(|dirs| (dirs.upper.as_path(), dirs.work.as_path()));
        check_apart(&target, &config.lowers, upper)?;
        Ok(Mounting {
            config,
            named,
            lease,
            target,
            options,
            image: image.map(str::to_owned),
            store: context.store.clone(),
            serve: ServeOptions {
                threads: self.threads.map(usize::from),
                io: self.io.mode()?,
                transport: self.transport.into(),
                view: View::default(),
            },
            throw_away: self.rm,
        })
    }
}

/// The store. If changes are kept in it, it must be writable, and is made on first use; else one
/// that cannot be written to is read.
pub(super) fn open_store(root: &Path, keeps_changes: bool) -> anyhow::Result<Store> {
    if keeps_changes {
        return Store::open(root, Access::ReadWrite).context(
            "changes cannot be kept in the store (see --upper and --read-only for mounts without it)",
        );
    }
    let readable = Store::open(root, Access::ReadOnly)?;
    // To pin what is in use, and to keep what is merged, it takes one that can be written to.
    let writable = accessat(CWD, root, rustix::fs::Access::WRITE_OK, AtFlags::EACCESS);
    let opened = match writable {
        Ok(()) => Store::open(root, Access::ReadWrite).map_err(anyhow::Error::from),
        Err(errno) => Err(errno.into()),
    };
    Ok(opened.unwrap_or_else(|reason| {
        tracing::info!("the store is only read: {reason}");
        readable
    }))
}
