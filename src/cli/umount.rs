//! `lamina umount`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use lamina_layers::store::{Access, Store};

use super::{Context, named};
use crate::mount::record::{self, Found, State};
use crate::mount::{MountError, detach, table};

/// Arguments of `lamina umount`.
#[derive(Debug, Args)]
pub struct UmountArgs {
    /// Mount point, or name of a mount
    #[arg(required = true, value_name = "MOUNTPOINT|NAME")]
    mounts: Vec<PathBuf>,
    /// Detach now a mount that is in use; it ends with its last user
    #[arg(short, long)]
    lazy: bool,
}

/// How long a daemon may take to write everything to disk before we stop waiting for it.
const PATIENCE: Duration = Duration::from_secs(120);

/// Unmounts, and waits until the daemons are gone, so that their uppers can be used again. One that
/// cannot be unmounted does not keep the others from it.
pub fn run(context: &Context, args: &UmountArgs) -> anyhow::Result<()> {
    let mut failed = None;
    for mount in &args.mounts {
        if let Err(error) = one(context, mount, args.lazy)
            && let Some(earlier) = failed.replace(error)
        {
            super::complain(&earlier);
        }
    }
    failed.map_or(Ok(()), Err)
}

fn one(context: &Context, wanted: &Path, lazy: bool) -> anyhow::Result<()> {
    let Some(found) = find(context, wanted)? else {
        return unrecorded(context, wanted, lazy);
    };
    let record = &found.record;
    let target = &record.target;
    match table::mount_at(target)? {
        Some(top) if top.is(target, &record.device) => {}
        _ if found.state == State::Detached => bail!(
            "{target:?} is not mounted here any more, but still in use, or mounted in another \
             mount namespace: its daemon, process {}, ends with its last user, or when you kill it",
            record.pid
        ),
        _ => return Err(MountError::Covered(target.clone()).into()),
    }
    detach(target, lazy)?;
    if found.state == State::Dead {
        clear(&found)
    } else if lazy {
        Ok(())
    } else {
        wait(&found)
    }
}

/// Unmounts what no record tells of: another user's mount, or one whose record was lost.
fn unrecorded(context: &Context, wanted: &Path, lazy: bool) -> anyhow::Result<()> {
    let target = resolve(wanted)?;
    match table::mount_at(&target)? {
        None => Err(not_mounted(context, wanted)),
        Some(mount) if !mount.is_lamina() => {
            bail!(
                "{target:?} is a mount of type {}, not of lamina",
                mount.fs_type
            )
        }
        Some(_) => Ok(detach(&target, lazy)?),
    }
}

/// Does what a daemon that was killed could not do any more.
fn clear(found: &Found) -> anyhow::Result<()> {
    let record = &found.record;
    if let Some(upper) = &record.upper {
        wait_for_release(upper, record.name.is_some())?;
    }
    if let (Some(name), true) = (&record.name, record.throw_away) {
        let store = Store::open(&record.store, Access::ReadWrite)?;
        if named::exists(&store, name) {
            named::remove(&store, name)?;
        }
    }
    found.clear()?;
    Ok(())
}

/// Waits until a daemon that was killed has let go of its upper: it loses its locks one after the
/// other, with whatever else it had open, which may take the kernel a moment.
fn wait_for_release(upper: &Path, is_named: bool) -> anyhow::Result<()> {
    // The directory of a name is locked, too.
    let of_name = upper.parent().filter(|_| is_named);
    let is_held = || {
        [Some(upper), of_name]
            .into_iter()
            .flatten()
            .any(record::is_dir_locked)
    };
    let deadline = Instant::now() + PATIENCE;
    while is_held() && Instant::now() < deadline {
        let records = record::all().context("cannot read the records of live mounts")?;
        let own = |found: &Found| {
            found.state != State::Dead && found.record.upper.as_deref() == Some(upper)
        };
        if records.iter().any(own) {
            // Another mount has it by now.
            break;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// What to say when there is no such mount.
pub fn not_mounted(context: &Context, wanted: &Path) -> anyhow::Error {
    if keeps(context, wanted) {
        return anyhow::anyhow!("the changes named {wanted:?} are not mounted");
    }
    MountError::NotMounted(wanted.to_owned()).into()
}

/// Whether the store that the command is about has changes of a name.
fn keeps(context: &Context, wanted: &Path) -> bool {
    let store = Store::open(&context.store, Access::ReadOnly);
    matches!((store, wanted.to_str()), (Ok(store), Some(name)) if named::exists(&store, name))
}

/// The record of a mount: of the topmost at a mount point; else of a name, in the store that the
/// command is about if there is one of that name in several, or this store keeps changes of that name.
pub fn find(context: &Context, wanted: &Path) -> anyhow::Result<Option<Found>> {
    let target = resolve(wanted).ok();
    let mut records = record::all().context("cannot read the records of live mounts")?;
    // The newest is on top where several are mounted at one place; what is still mounted counts
    // before what is detached.
    records.reverse();
    records.sort_by_key(|found| found.state == State::Detached);
    let at_target = |found: &Found| Some(&found.record.target) == target.as_ref();
    if let Some(at) = records.iter().position(at_target) {
        return Ok(Some(records.swap_remove(at)));
    }
    records.retain(|found| {
        let name = found.record.name.as_deref();
        name.is_some_and(|name| Path::new(name) == wanted)
    });
    let here = |found: &Found| found.record.store == context.store;
    if let Some(at) = records.iter().position(here) {
        return Ok(Some(records.swap_remove(at)));
    }
    if keeps(context, wanted) {
        return Ok(None);
    }
    if let [one, other, ..] = records.as_slice()
        && one.record.store != other.record.store
    {
        bail!(
            "{wanted:?} is the name of a mount of the store {:?}, and of one of {:?}: give the \
             mount point, or --store",
            one.record.store,
            other.record.store
        );
    }
    Ok(records.into_iter().next())
}

/// A mount point without symbolic links, also one whose daemon is dead.
fn resolve(target: &Path) -> anyhow::Result<PathBuf> {
    let absolute = std::path::absolute(target)?;
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        return Ok(absolute);
    };
    if let Ok(real) = absolute.canonicalize() {
        return Ok(real);
    }
    let parent = parent.canonicalize().with_context(|| {
        format!(
            "{target:?} is neither a mount point nor the name of a mount ('lamina ps' lists them)"
        )
    })?;
    Ok(parent.join(name))
}

fn wait(found: &Found) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while found.is_held() {
        if Instant::now() > deadline {
            bail!(
                "unmounted, but daemon {} still writes to disk; wait for it before you use its \
                 upper directory again",
                found.record.pid
            );
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
