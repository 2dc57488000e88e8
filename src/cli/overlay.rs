//! `lamina overlay`, the program that podman, buildah and containerd mount with (`mount_program`), and
//! the names under which it is called alone.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Parser};
use rustix::mount::MountFlags;

use super::mount::{Io, Way};
use super::serve::{Mounting, serve};
use super::{Context, Usage, daemon, real_path};
use crate::fuse::{ServeOptions, View};
use crate::mount::overlay::OverlayOptions;
use crate::mount::{check_apart, check_target};
use crate::union::Config;
use crate::upper::{UpperDirs, UpperOptions};

/// The names by which the program is this command.
const NAMES: [&str; 2] = ["lamina-overlay", "fuse-overlayfs"];
/// The names by which `mount(8)` calls it, for `mount -t` and fstab.
const HELPERS: [&str; 2] = ["mount.lamina", "mount.fuse.lamina"];

/// Arguments of `lamina overlay`.
#[derive(Debug, Args)]
#[command(after_help = OPTIONS)]
pub struct OverlayArgs {
    /// The directory to mount at; what stands before it is shown as the source of the mount
    #[arg(required_unless_present = "version", num_args = 1..=2, value_names = ["SOURCE", "MOUNTPOINT"])]
    places: Vec<PathBuf>,
    /// Mount options, with commas in between; may be given again
    #[arg(short = 'o', long = "options", value_name = "OPTIONS")]
    options: Vec<OsString>,
    /// Stay in the foreground until it is unmounted
    #[arg(short, long)]
    foreground: bool,
    /// Stay in the foreground and say much
    #[arg(short, long)]
    debug: bool,
    /// Print the version
    #[arg(short = 'V', long)]
    version: bool,
    /// How contents are read and written
    #[arg(
        long,
        value_enum,
        env = "LAMINA_IO",
        default_value_t,
        value_name = "MODE",
        hide = true
    )]
    io: Io,
    /// How requests come from the kernel
    #[arg(
        long,
        value_enum,
        env = "LAMINA_TRANSPORT",
        default_value_t,
        value_name = "WAY",
        hide = true
    )]
    transport: Way,
}

/// What the help says of the options.
const OPTIONS: &str = "\
Options of -o:
  lowerdir=DIR:DIR…    lower directories, topmost first; a backslash keeps ':' and ','
  upperdir=DIR         where changes go; without it the mount is read-only
  workdir=DIR          scratch directory on the filesystem of upperdir
  uidmapping=A:B:N:…   show N user ids from A (as stored) on as those from B on; others are shown as
                       the overflow id
  gidmapping=A:B:N:…   the same for groups
  squash_to_uid=N, squash_to_gid=N, squash_to_root
                       show all files as this user's, this group's, root's
  xattr_permissions=1|2
                       keep owners and permissions in extended attributes: 1 security.*, 2 user.*
  fsync=0, volatile    sync nothing: faster, but changes are lost if the machine stops
  noacl, noxattrs      without ACLs; without any extended attributes
  static_nlink         every directory has one link
  redirect_dir=on|off  rename directories of lower layers instead of failing with EXDEV, which
                       fuse-overlayfs cannot read [default: off]
  metacopy=on|off      copy attributes up without contents, which fuse-overlayfs cannot read
                       [default: off]
  threads=N            number of threads
  ro, rw, suid, nosuid, dev, nodev, exec, noexec, atime, noatime, allow_other, fsname=, subtype=,
  context=, fscontext=, defcontext=, rootcontext=
                       as for mount(8)
  debug                as --debug
  xino=, timeout=, max_idle_threads=, ino32_t, fast_ialloc, plugins=, userxattr, index=, …
                       accepted, without effect
Others are ignored, with a warning.";

/// The program under a name of its own.
#[derive(Debug, Parser)]
#[command(
    about = "Mount directories over each other, as fuse-overlayfs does",
    disable_version_flag = true,
    max_term_width = 100
)]
struct Alone {
    #[command(flatten)]
    args: OverlayArgs,
}

/// What `mount(8)` gives its helpers.
#[derive(Debug, Parser)]
#[command(about = "Mount by mount(8)")]
struct Helper {
    /// What to mount: shown as its source
    source: PathBuf,
    /// Where
    target: PathBuf,
    /// Mount options
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<OsString>,
    /// Do everything but mount
    #[arg(short)]
    fake: bool,
    /// Accept options that are not known, as is always done
    #[arg(short)]
    sloppy: bool,
    /// Write no mtab; there is none
    #[arg(short)]
    no_mtab: bool,
    /// Say more
    #[arg(short)]
    verbose: bool,
    /// The type of the filesystem
    #[arg(short, value_name = "TYPE")]
    types: Option<String>,
}

/// The arguments, if the program is called by one of its other names.
pub fn called_by_name() -> Option<OverlayArgs> {
    let name = called_as()?;
    if HELPERS.contains(&name.as_str()) {
        let helper = parse::<Helper>(&name);
        if helper.fake {
            std::process::exit(0);
        }
        return Some(OverlayArgs {
            places: vec![helper.source, helper.target],
            options: helper.options,
            foreground: false,
            debug: false,
            version: false,
            io: Io::default(),
            transport: Way::default(),
        });
    }
    NAMES
        .contains(&name.as_str())
        .then(|| parse::<Alone>(&name).args)
}

fn called_as() -> Option<String> {
    let path = std::env::args_os().next()?;
    let name = Path::new(&path).file_name()?;
    name.to_str().map(str::to_owned)
}

fn parse<T: clap::CommandFactory + clap::FromArgMatches>(name: &str) -> T {
    // It lives as long as the program.
    let name: &'static str = name.to_owned().leak();
    let command = T::command().name(name).bin_name(name);
    let parsed = T::from_arg_matches(&command.get_matches());
    parsed.unwrap_or_else(|error| error.exit())
}

/// Mounts; returns when the mount is live, or in the foreground when it is unmounted.
pub fn run(context: &Context, args: &OverlayArgs) -> anyhow::Result<()> {
    let called = called_as().filter(|name| NAMES.contains(&name.as_str()));
    if args.version {
        let name = called.as_deref().unwrap_or("lamina-overlay");
        return super::out::print(format!("{name}: version {}\n", env!("CARGO_PKG_VERSION")));
    }
    let mut options = OverlayOptions::default();
    // As fuse-overlayfs has it.
    options.mount.flags |= MountFlags::NOATIME;
    for text in &args.options {
        options
            .add(text)
            .map_err(|error| Usage(error.to_string()))?;
    }
    let foreground = args.foreground || args.debug || options.debug;
    if let (Some(name), "lamina") = (&called, options.mount.subtype.as_str())
        && name == "fuse-overlayfs"
    {
        name.clone_into(&mut options.mount.subtype);
    }
    let (source, target) = match args.places.as_slice() {
        [source, target] => (Some(source.as_os_str()), target),
        [target] => (None, target),
        _ => return Err(Usage("no mount point is named".to_owned()).into()),
    };
    options.mount.source.get_or_insert_with(|| {
        let source = source.unwrap_or_else(|| OsStr::new("lamina-overlay"));
        source.to_string_lossy().into_owned()
    });
    let target = check_target(target)?;
    if !foreground && !daemon::is_daemon() {
        for option in &options.unknown {
            tracing::warn!("mount option '{option}' is not known, and ignored");
        }
        return daemon::start();
    }
    if daemon::is_daemon() {
        daemon::leave_session();
    }
    serve(prepare(context, args, target, options)?)
}

/// Opens and checks everything but what the union itself checks.
fn prepare(
    context: &Context,
    args: &OverlayArgs,
    target: PathBuf,
    mut options: OverlayOptions,
) -> anyhow::Result<Mounting> {
    let mut config = Config {
        upper_options: UpperOptions {
            unsynced: options.unsynced,
            shared: true,
            stat: options.stat_mark,
            ..UpperOptions::default()
        },
        no_redirect: !options.redirect_dir,
        metacopy: options.metacopy,
        ..Config::default()
    };
    if options.lowers.is_empty() {
        return Err(Usage("mount option 'lowerdir=' is missing".to_owned()).into());
    }
    for lower in &options.lowers {
        config.lowers.push(real_path(lower)?);
    }
    match (&options.upper, &options.work) {
        (Some(upper), Some(work)) => {
            config.upper = Some(UpperDirs {
                upper: real_path(upper)?,
                work: real_path(work)?,
            });
        }
        (Some(_), None) => {
            return Err(Usage("'upperdir=' needs 'workdir=', a directory beside it".into()).into());
        }
        (None, _) => options.mount.flags |= MountFlags::RDONLY,
    }
    let upper = config.upper.as_ref();
    let upper = upper.map(|dirs| (dirs.upper.as_path(), dirs.work.as_path()));
    check_apart(&target, &config.lowers, upper)?;
    options.ids.use_kernels_overflow();
    Ok(Mounting {
        config,
        named: None,
        lease: None,
        target,
        options: options.mount,
        image: None,
        store: context.store.clone(),
        serve: ServeOptions {
            threads: options.threads.map(usize::from),
            io: args.io.mode()?,
            transport: args.transport.into(),
            view: View {
                ids: Arc::new(options.ids),
                static_nlink: options.static_nlink,
                no_acl: options.no_acl,
                no_xattrs: options.no_xattrs,
            },
        },
        throw_away: false,
    })
}
