//! `lamina commit`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::{ArgAction, Args};
use lamina_layers::store::oci::History;
use lamina_layers::store::{self, Access, Image, LayerInfo, Source, Store, Transaction, lock_dir};
use rustix::fs::FlockOperation;

use super::progress::Bars;
use super::stack::{self, Live, Stack};
use super::{Context, Usage, image, out};
use crate::commit::{
    Draft, Instruction, LayerOptions, LeftOut, Snapshot, Timestamp, apply, stage_changes,
    stage_snapshot,
};
use crate::mount::control::Pause;
use crate::union::Union;

/// Arguments of `lamina commit`.
#[derive(Debug, Args)]
#[command(
    after_help = "Prints the layer's diffID, unless nothing was changed, then the image's name and id. \
    What nothing was changed for gets an entry in the history and no layer.\n\n\
    The same changes make the same layer. With --timestamp or SOURCE_DATE_EPOCH they make the same \
    image too: that is when it was made, and files that were changed later get this time.\n\n\
    While it is mounted, everything that changes something in the mount waits for the moment in \
    which the changes are taken down. Where they are more than can be copied in a moment (256 MiB, if \
    the filesystem cannot share blocks), it waits until all of them are read."
)]
pub struct CommitArgs {
    /// Mount point, or name of a mount (which need not be mounted)
    #[arg(value_name = "MOUNTPOINT|NAME")]
    mount: PathBuf,
    /// Name for the new image
    #[arg(short, long, value_name = "NAME")]
    tag: Option<String>,
    /// What the history says of it
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// Who made it
    #[arg(short, long, value_name = "NAME")]
    author: Option<String>,
    /// Change how it is run, as a Containerfile does: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD,
    /// STOPSIGNAL, USER, VOLUME or WORKDIR, and what it is to be; may be given again
    #[arg(short, long = "change", value_name = "INSTRUCTION")]
    changes: Vec<String>,
    /// Make one layer of everything that is seen in the mount, instead of one on top of the others
    #[arg(long)]
    squash: bool,
    /// When it was made, in seconds since 1970 [default: `SOURCE_DATE_EPOCH`, else now]
    #[arg(long, value_name = "SECONDS")]
    timestamp: Option<String>,
    /// Whether what changes something in the mount waits meanwhile; if not, the layer may be of no
    /// single moment
    #[arg(long, default_value_t = true, action = ArgAction::Set, value_name = "BOOL")]
    pause: bool,
    /// Print the image's digest only
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
    /// Write the image's digest to a file
    #[arg(long, value_name = "FILE")]
    iidfile: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// For how long changes are held back at most, in seconds.
const LONGEST_PAUSE: u64 = 3600;

/// How long the record of a mount that begins is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// A layer that was made, and for how long changes were held back for it.
struct Made {
    layer: Option<LayerInfo>,
    paused: Option<Duration>,
}

/// Makes the layer and the image.
pub fn run(context: &Context, args: &CommitArgs) -> anyhow::Result<()> {
    // Before the work, not after it.
    let changes = instructions(args)?;
    let fixed = timestamp(args)?;
    if let Some(tag) = &args.tag {
        store::check_name(tag)?;
    }
    let (stack, lock) = settle(context, &args.mount)?;
    if !stack.config.lowers.is_empty() && !args.squash {
        bail!(
            "{:?} has plain directories under its changes, which are no part of an image: make one \
             layer of all with --squash, or build layers from them first ('lamina layer build --dir')",
            args.mount
        );
    }
    let store = Store::open(&stack.store, Access::ReadWrite)?;
    let base = find_base(&store, &stack)?;
    let made = make_layer(&store, &stack, args, fixed)?;
    drop(lock);
    let mut draft = match base {
        Some(base) => Draft::on(&base),
        None => Draft::of_layers(stack.layers),
    };
    if args.squash {
        draft.forget_layers();
    }
    apply(draft.container_mut(), &changes);
    if let Some(author) = &args.author {
        draft.set_author(author);
    }
    let entry = History {
        created: Some(fixed.unwrap_or_else(Timestamp::now).to_string()),
        created_by: Some("lamina commit".to_owned()),
        author: args.author.clone(),
        comment: args.message.clone(),
        ..History::default()
    };
    draft.add(made.layer.as_ref().map(|layer| layer.diff_id), entry);
    let image = draft.publish_unmerged(&store, args.tag.as_deref())?;
    store.set_source(&image.id, &Source::Committed { base: stack.image })?;
    report(args, &made, &image)
}

/// The stack of a mount. If nothing serves it, its upper is locked, so that nobody mounts it or throws it
/// away until the lock is dropped.
fn settle(context: &Context, wanted: &Path) -> anyhow::Result<(Stack, Option<File>)> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let stack = stack::find(context, wanted)?;
        let upper = match (&stack.live, &stack.config.upper) {
            (None, Some(dirs)) => dirs.upper.clone(),
            _ => return Ok((stack, None)),
        };
        if let Some(lock) = lock_dir(&upper, FlockOperation::NonBlockingLockShared)? {
            return Ok((stack, Some(lock)));
        }
        // Most often it is being mounted: then there is a record of it in a moment.
        if Instant::now() > deadline {
            bail!("{wanted:?} is in use by a mount that no record tells of");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn instructions(args: &CommitArgs) -> Result<Vec<Instruction>, Usage> {
    let parsed = args.changes.iter().map(|line| line.parse());
    let wrong = |error: crate::commit::InstructionError| Usage(format!("--change: {error}"));
    parsed.map(|change| change.map_err(wrong)).collect()
}

fn timestamp(args: &CommitArgs) -> Result<Option<Timestamp>, Usage> {
    match &args.timestamp {
        Some(seconds) => Timestamp::parse(seconds)
            .map(Some)
            .map_err(|error| Usage(format!("--timestamp: {error}"))),
        None => Timestamp::from_environment()
            .map_err(|error| Usage(format!("SOURCE_DATE_EPOCH: {error}"))),
    }
}

/// The image below. How to run it, and its history, are carried over.
fn find_base(store: &Store, stack: &Stack) -> anyhow::Result<Option<Image>> {
    if stack.layers.is_empty() {
        return Ok(None);
    }
    let is_it = |image: &Image| image.layers == stack.layers;
    if let Some(name) = &stack.image
        && let Some(image) = store.resolve(name).ok().filter(is_it)
    {
        return Ok(Some(image));
    }
    // It may have another name by now.
    let found = store.images()?.into_iter().find(is_it);
    if found.is_none() {
        let name = stack.image.as_deref().unwrap_or("an image");
        tracing::warn!(
            "{name} is gone from the store, or is another image now: the new image has its layers, but \
             neither its history nor its configuration (--change can say how to run it)"
        );
    }
    Ok(found)
}

fn make_layer(
    store: &Store,
    stack: &Stack,
    args: &CommitArgs,
    fixed: Option<Timestamp>,
) -> anyhow::Result<Made> {
    let bars = Bars::new();
    let bar = bars.bar("changes", None);
    let left_out = LeftOut::default();
    let options = LayerOptions {
        latest: fixed.map(Timestamp::seconds),
        whole: args.squash,
        progress: &bar,
        left_out: Some(&left_out),
    };
    let union = Union::open_for_diff(&stack.config)?;
    let txn = Transaction::begin(store)?;
    let made = match &stack.live {
        Some(live) if args.pause => stage_live(&txn, &union, stack, live, &options)
            .with_context(|| format!("cannot commit {:?}", args.mount))?,
        _ => Made {
            layer: stage_changes(&txn, &union, &options)?,
            paused: None,
        },
    };
    txn.commit()?;
    bar.finish();
    Ok(made)
}

/// Makes the layer of a mount that is in use, of one moment.
fn stage_live(
    txn: &Transaction<'_>,
    union: &Union,
    stack: &Stack,
    live: &Live,
    options: &LayerOptions<'_>,
) -> anyhow::Result<Made> {
    let Some(dirs) = &stack.config.upper else {
        bail!("it has no upper directory");
    };
    let mut snapshot = Snapshot::prepare(&dirs.work)?;
    if let Some(target) = &live.target {
        write_back(target);
    }
    let pause = Pause::begin(&live.control, LONGEST_PAUSE)?;
    let is_whole = snapshot.take(union, options)?;
    if is_whole {
        let paused = Some(pause.end()?);
        let layer = stage_snapshot(txn, union, &snapshot, options)?;
        return Ok(Made { layer, paused });
    }
    drop(snapshot);
    let layer = stage_changes(txn, union, options)?;
    let paused = Some(pause.end()?);
    Ok(Made { layer, paused })
}

/// What programs wrote to mapped files is in the page cache of the mount: it is sent to the daemon.
fn write_back(target: &Path) {
    let synced = File::open(target).and_then(|root| rustix::fs::syncfs(root).map_err(Into::into));
    if let Err(error) = synced {
        tracing::warn!("cannot write {target:?} back before the commit: {error}");
    }
}

fn report(args: &CommitArgs, made: &Made, made_image: &Image) -> anyhow::Result<()> {
    let id = made_image.id.to_string();
    if let Some(path) = &args.iidfile {
        std::fs::write(path, &id).with_context(|| format!("cannot write --iidfile {path:?}"))?;
    }
    let layer = made.layer.as_ref().map(|layer| layer.diff_id.to_string());
    if args.quiet {
        return out::print(format!("{id}\n"));
    }
    if args.json {
        return out::json(&serde_json::json!({
            "image": id,
            "name": args.tag,
            "layer": layer,
            "created": made_image.config.created,
            "paused_ms": made.paused.map(|time| time.as_secs_f64() * 1000.0),
        }));
    }
    let layer = layer.map(|layer| layer + "\n").unwrap_or_default();
    let name = args.tag.as_deref().unwrap_or("-");
    out::print(format!("{layer}{name}  {}\n", image::short(&id)))
}
