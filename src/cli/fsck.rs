//! `lamina fsck`.

use std::error::Error;
use std::fs::File;

use anyhow::bail;
use clap::Args;
use lamina_layers::digest::ImageId;
use lamina_layers::oci::{LoadOptions, Origin, load};
use lamina_layers::store::{
    Damage, FsckOptions, Outcome, Report, Source, Store, Subject, Transaction,
};
use lamina_layers::tar::{ImportOptions, stage_dir, stage_layer};

use super::progress::Bars;
use super::registry::RegistryArgs;
use super::{Context, image, out, table};

/// Arguments of `lamina fsck`.
#[derive(Debug, Args)]
#[command(
    after_help = "Checks objects (contents of files), layers, merged indexes, images, names, leases, \
    kept changes, permissions, and that there is nothing else in the store. It can be in use meanwhile. \
    Prints what is wrong, and ends with status 1 if damage remains.\n\n\
    --repair removes damaged merged indexes, which are a cache; makes damaged layers from their \
    archives; imports again what is damaged from where its image came from; and moves what cannot be \
    had again, and what does not belong into a store, to 'quarantine' in the store."
)]
pub struct FsckArgs {
    /// Repair what can be repaired
    #[arg(long)]
    repair: bool,
    /// Compare only sizes of objects, not digests
    #[arg(long)]
    quick: bool,
    /// Also make the archive of each layer again and compare its digest
    #[arg(long, conflicts_with = "quick")]
    deep: bool,
    /// How many threads [default: as many as processors]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// Checks the store, and repairs it if that was asked for.
pub fn run(context: &Context, args: &FsckArgs) -> anyhow::Result<()> {
    let store = if args.repair {
        context.store()?
    } else {
        context.store_to_read()?
    };
    let bars = Bars::new();
    let bar = bars.bar("objects", None);
    let mut options = FsckOptions {
        quick: args.quick,
        deep: args.deep,
        progress: &bar,
        ..FsckOptions::default()
    };
    if let Some(jobs) = args.jobs {
        options.threads = usize::from(jobs);
    }
    let mut report = store.fsck(&options)?;
    bar.finish();
    if args.repair {
        store.repair(&mut report, &|store, id, source| {
            refetch(&args.registry, store, id, source)
        })?;
    }
    if args.json {
        out::json(&report)?;
    } else {
        out::print(text(&report))?;
    }
    let remaining = report
        .damage
        .iter()
        .filter(|damage| damage.remains())
        .count();
    match (remaining, args.repair) {
        (0, _) => Ok(()),
        (_, false) => bail!(
            "{} is damaged; --repair repairs what can be repaired",
            store.root().display()
        ),
        (_, true) => bail!("{} is still damaged", store.root().display()),
    }
}

/// Imports the layers of an image again from where it came from.
fn refetch(
    registry: &RegistryArgs,
    store: &Store,
    id: &ImageId,
    source: &Source,
) -> Result<(), Box<dyn Error>> {
    match source {
        Source::Built { from } => {
            let txn = Transaction::begin(store)?;
            for path in from {
                let name = path.display().to_string();
                let options = ImportOptions::default();
                if path.is_dir() {
                    stage_dir(&txn, path, &options)?;
                } else {
                    let file =
                        File::open(path).map_err(|error| format!("cannot open {name}: {error}"))?;
                    stage_layer(&txn, file, &name, &options)?;
                }
            }
            txn.commit()?;
            Ok(())
        }
        Source::Registry { reference, .. } => Ok(registry.refetch(store, id, reference)?),
        Source::Archive { path, .. } | Source::Layout { path, .. } => {
            let options = LoadOptions {
                exactly: Some(*id),
                ..LoadOptions::default()
            };
            load(store, Origin::Path(path), &options)?;
            Ok(())
        }
        _ => Err(format!("image {id} cannot be had again from where it came from").into()),
    }
}

fn text(report: &Report) -> String {
    let failures = report.failures.iter();
    let failures = failures.map(|failure| format!("not to be had again: {failure}\n"));
    let sum = format!(
        "{} objects ({}), {} layers, {} merged indexes, {} images, {} names, changes of {} mounts: {}\n",
        report.objects,
        table::size(report.object_bytes),
        report.layers,
        report.merged,
        report.images,
        report.names,
        report.changes,
        match report.damage.len() {
            0 => "no damage".to_owned(),
            1 => "1 problem".to_owned(),
            many => format!("{many} problems"),
        }
    );
    report
        .damage
        .iter()
        .map(line)
        .chain(failures)
        .chain([sum])
        .collect()
}

/// What is wrong, where, whom it concerns, what became of it.
fn line(damage: &Damage) -> String {
    let what = match &damage.subject {
        Subject::Object(id) => format!("object {}", image::short(&id.to_string())),
        Subject::Layer(id) => format!("layer {}", image::short(&id.to_string())),
        Subject::Blob(digest) => format!("kept blob {}", image::short(digest)),
        Subject::Merged => "merged index".to_owned(),
        Subject::Image(id) => format!("image {}", image::short(&id.to_string())),
        Subject::Name(name) => format!("name {name}"),
        Subject::Changes(name) => format!("changes '{name}'"),
        Subject::Lease => "lease".to_owned(),
        Subject::Mode => "permissions".to_owned(),
        Subject::Stray => "stray".to_owned(),
    };
    let file = damage.file.iter();
    let file = file.map(|file| format!("; it is the contents of /{file}"));
    let whose = if !damage.images.is_empty() {
        format!("; in image {}", damage.images.join(", "))
    } else if matches!(damage.subject, Subject::Object(_)) && damage.layers.is_empty() {
        "; no layer needs it".to_owned()
    } else {
        String::new()
    };
    let outcome = match &damage.outcome {
        Outcome::Found => String::new(),
        Outcome::Repaired(how) => format!(" — repaired: {how}"),
        Outcome::Quarantined(to) => format!(" — moved to {}", to.display()),
        Outcome::Failed(why) => format!(" — not repaired: {why}"),
    };
    let start = format!("{what}: {}: {}", damage.path.display(), damage.problem);
    let line: String = [start]
        .into_iter()
        .chain(file)
        .chain([whose, outcome])
        .collect();
    line.replace('\n', " ") + "\n"
}
