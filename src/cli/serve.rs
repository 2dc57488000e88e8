//! What the daemon does: mounts, serves, and puts everything away in the end.
//!
//! However it ends (unmounted by anyone, a signal, an error, a panic), the same things are put away
//! in the same order ([`Parts`]); only `kill -9` leaves them to the next command. The record goes
//! last: whoever waits for the end of a mount waits for the record.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use lamina_layers::store::Lease;
use parking_lot::Mutex;
use rustix::process::Signal;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use super::daemon::{self, Streams};
use super::named::Named;
use super::stats;
use crate::fuse::{self, ServeOptions};
use crate::mount::control::Control;
use crate::mount::options::MountOptions;
use crate::mount::record::{self, Keeper, Place, Record};
use crate::mount::{Attached, attach, check_target};
use crate::union::{Config, Union};

/// Everything that is needed to mount.
pub struct Mounting {
    /// What is stacked.
    pub config: Config,
    /// The upper, if it is in the store.
    pub named: Option<Named>,
    /// Keeps the image from being removed.
    pub lease: Option<Lease>,
    /// Where to mount.
    pub target: PathBuf,
    /// How to mount.
    pub options: MountOptions,
    /// The image as the user named it.
    pub image: Option<String>,
    /// The store.
    pub store: PathBuf,
    /// How it is served.
    pub serve: ServeOptions,
    /// Whether to throw a named upper away in the end.
    pub throw_away: bool,
}

/// What is put away in the end, in the order of the fields. The upper is locked until the union is
/// dropped, so nobody can take the name while it is being thrown away.
struct Parts {
    named: Option<Named>,
    union: Arc<Union>,
    _control: Option<Control>,
    _lease: Option<Lease>,
    _keeper: Keeper,
}

/// The parts, until either the main thread or the one for signals puts them away.
type SharedParts = Arc<Mutex<Option<Parts>>>;

/// Detaches the mount when dropped, if it is still there: it must not stay without a daemon.
struct Guard(Attached);

impl Drop for Guard {
    fn drop(&mut self) {
        // When there is an error, that is the reason to tell, not this one.
        if let Err(error) = self.0.detach() {
            tracing::warn!("{error}");
        }
    }
}

/// Mounts, and serves until it is unmounted.
///
/// # Errors
/// When it cannot be mounted. Nothing is left of it then.
pub fn serve(mounting: Mounting) -> anyhow::Result<()> {
    let union = Union::open(&mounting.config)?;
    if mounting.named.as_ref().is_some_and(Named::is_new) {
        union
            .copy_root_attributes()
            .context("cannot prepare the upper directory")?;
    }
    let place = Place::new().context("cannot record mounts")?;
    let streams = if daemon::is_daemon() {
        Some(Streams::open(&place.log()).context("cannot make the log of the daemon")?)
    } else {
        None
    };
    // From here on they wait until there is someone to deal with them.
    let signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGUSR1])?;
    let lock = record::lock_mounting().context("cannot record mounts")?;
    check_target(&mounting.target)?;
    let (device, attached) = attach(&mounting.target, &mounting.options)?;
    let guard = Guard(attached);
    let record = mounting.record(&guard.0, streams.is_some().then(|| place.log()), &union);
    let keeper = place.keep(&record).context("cannot record the mount")?;
    drop(lock);

    // Nobody needs it but a commit, which says so when it is not there.
    let control = Control::start(place.control(), Arc::clone(&union.gate))
        .inspect_err(|error| tracing::warn!("no commit while it is mounted: {error}"));

    let options = mounting.serve;
    let throw_away = mounting.throw_away;
    let union = Arc::new(union);
    let parts = Arc::new(Mutex::new(Some(Parts {
        named: mounting.named,
        union: Arc::clone(&union),
        _control: control.ok(),
        _lease: mounting.lease,
        _keeper: keeper,
    })));
    obey(signals, guard.0.clone(), Arc::clone(&parts))?;
    let result = serve_until_unmounted(device, &union, &options, streams, &parts, throw_away);
    drop((guard, union));
    drop(parts.lock().take());
    result
}

fn serve_until_unmounted(
    device: OwnedFd,
    union: &Arc<Union>,
    options: &ServeOptions,
    streams: Option<Streams>,
    parts: &SharedParts,
    throw_away: bool,
) -> anyhow::Result<()> {
    fuse::serve(device, union, options, || {
        if let Some(named) = parts.lock().as_mut().and_then(|parts| parts.named.as_mut()) {
            named.set_throw_away(throw_away);
        }
        if let Some(Err(error)) = streams.map(Streams::report_live) {
            // The caller was killed and will not hear that there is a mount: it shall not be there.
            tracing::error!("nobody waits for the mount any more: {error}");
            end_this_process();
        }
    })
    .context("the mount ended")
}

impl Mounting {
    fn record(&self, attached: &Attached, log: Option<PathBuf>, union: &Union) -> Record {
        let config = &self.config;
        let layers = config.image.iter().flat_map(|image| &image.layers);
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Record {
            target: attached.target.clone(),
            device: attached.device.clone(),
            name: self.named.as_ref().map(|named| named.name().to_owned()),
            store: self.store.clone(),
            image: self.image.clone(),
            layers: layers.map(ToString::to_string).collect(),
            lowers: config.lowers.clone(),
            upper: config.upper.as_ref().map(|dirs| dirs.upper.clone()),
            work: config.upper.as_ref().map(|dirs| dirs.work.clone()),
            throw_away: self.throw_away,
            log,
            pid: std::process::id(),
            since: now.map_or(0, |time| time.as_secs()),
            stats: union.stats.descriptor(),
        }
    }
}

/// Asks this process to end as anyone else would.
fn end_this_process() {
    let me = rustix::process::getpid();
    if let Err(errno) = rustix::process::kill_process(me, Signal::TERM) {
        tracing::error!("kill: {errno}");
    }
}

/// Starts the thread that obeys signals.
fn obey(mut signals: Signals, attached: Attached, parts: SharedParts) -> std::io::Result<()> {
    let thread = std::thread::Builder::new().name("signals".into());
    thread.spawn(move || {
        for signal in signals.forever() {
            if signal == SIGHUP && daemon::is_daemon() {
                continue;
            }
            if signal == SIGUSR1 {
                tell_statistics(&parts);
                continue;
            }
            tracing::info!("signal {signal}: unmounting {}", attached.target.display());
            match attached.detach() {
                // Serving ends when the last user of the mount does.
                Ok(true) => {}
                Ok(false) => end_detached(&parts),
                Err(error) => tracing::error!("{error}"),
            }
        }
    })?;
    Ok(())
}

/// Says on standard error, or in the log, what was counted so far.
fn tell_statistics(parts: &SharedParts) {
    let union = parts.lock().as_ref().map(|parts| Arc::clone(&parts.union));
    if let Some(union) = union {
        let text = stats::as_text(&union.stats.snapshot());
        let text = format!("{text}{} objects with state\n", union.node_count());
        // Who does not hear it did not ask.
        let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
    }
}

/// Ends a process whose mount is detached but still in use: it was told a second time to end.
fn end_detached(parts: &SharedParts) {
    let mut parts = parts.lock();
    let Some(ending) = parts.take() else {
        // It ends already.
        return;
    };
    tracing::warn!("ending while the mount is in use: whoever uses it will see errors");
    if let Err(error) = ending.union.close() {
        tracing::error!("cannot sync the upper directory: {error}");
    }
    drop(ending);
    std::process::exit(0);
}
