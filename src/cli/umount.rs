//! `lamina umount`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;

use crate::mount::record::{self, Found};
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

/// Unmounts, and waits until the daemons are gone, so that their uppers can be used again.
pub fn run(args: &UmountArgs) -> anyhow::Result<()> {
    for mount in &args.mounts {
        one(mount, args.lazy)?;
    }
    Ok(())
}

fn one(wanted: &Path, lazy: bool) -> anyhow::Result<()> {
    let found = find(wanted)?;
    let target = match &found {
        Some(found) => found.record.target.clone(),
        None => resolve(wanted)?,
    };
    match table::mount_at(&target)? {
        None => return Err(MountError::NotMounted(wanted.to_owned()).into()),
        Some(mount) if found.is_none() && !mount.fs_type.starts_with("fuse.lamina") => {
            bail!(
                "{target:?} is a mount of type {}, not of lamina",
                mount.fs_type
            );
        }
        Some(_) => {}
    }
    detach(&target, lazy)?;
    match found {
        Some(found) if !found.live => Ok(found.clear()?),
        Some(found) if !lazy => wait(&found),
        _ => Ok(()),
    }
}

/// The record of a mount, by its mount point or its name.
pub fn find(wanted: &Path) -> anyhow::Result<Option<Found>> {
    let target = resolve(wanted).ok();
    let mut records = record::all().context("cannot read the records of live mounts")?;
    // The newest is on top where several are mounted at one place.
    records.reverse();
    Ok(records.into_iter().find(|found| {
        let record = &found.record;
        Some(&record.target) == target.as_ref()
            || record
                .name
                .as_deref()
                .is_some_and(|name| Path::new(name) == wanted)
    }))
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
    let parent = parent
        .canonicalize()
        .with_context(|| format!("{target:?} is not there"))?;
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
