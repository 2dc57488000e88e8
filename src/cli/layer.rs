//! `lamina layer`.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use lamina_layers::digest::{ChainId, DiffId};
use lamina_layers::store::{self, ImageSpec, LayerInfo, Store, Transaction};
use lamina_layers::tar::{ImportOptions, stage_dir, stage_layer};
use parking_lot::Mutex;

use super::progress::Bars;
use super::{Context, Usage, export, image, out, table};

/// Commands for layers.
#[derive(Debug, Subcommand)]
pub enum LayerCommand {
    /// Build layers from archives or directories, and an image from them
    Build(BuildArgs),
    /// Write the archive of a layer, exactly as it was imported
    Export(export::ExportLayerArgs),
    /// List layers
    Ls(LsArgs),
    /// Show a layer
    Inspect(InspectArgs),
    /// Remove layers that no image has
    Rm(RmArgs),
}

/// Arguments of `lamina layer build`.
#[derive(Debug, Args)]
#[command(
    after_help = "Prints the diffID of each layer (the digest of its uncompressed archive), \
    then the chain ID of the stack."
)]
pub struct BuildArgs {
    /// Archives, the bottom layer first; - is standard input. Plain tar, gzip, zstd, xz and bzip2
    /// are told apart by content
    #[arg(value_name = "TAR", required_unless_present = "dirs")]
    archives: Vec<PathBuf>,
    /// Make a layer of a directory tree, above the archives; may be given again
    #[arg(long = "dir", value_name = "DIR")]
    dirs: Vec<PathBuf>,
    /// Name for an image of these layers
    #[arg(short, long, value_name = "NAME")]
    tag: Option<String>,
    /// Refuse a layer whose files are larger than this together when unpacked (bytes, or with K,
    /// M, G, T)
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_size: Option<u64>,
}

/// Arguments of `lamina layer ls`.
#[derive(Debug, Args)]
pub struct LsArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `lamina layer inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The diffID, or its start
    layer: String,
}

/// Arguments of `lamina layer rm`.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// Digests (diffID), or starts of them
    #[arg(required = true)]
    layers: Vec<String>,
}

/// Runs one.
pub fn run(context: &Context, command: LayerCommand) -> anyhow::Result<()> {
    match command {
        LayerCommand::Build(args) => build(context, &args),
        LayerCommand::Export(args) => export::layer(context, &args),
        LayerCommand::Ls(args) => list(context, &args),
        LayerCommand::Inspect(args) => inspect(context, &args),
        LayerCommand::Rm(args) => {
            let store = context.store()?;
            for name in &args.layers {
                store.remove_layer(&resolve(&store, name)?)?;
            }
            Ok(())
        }
    }
}

/// Where a layer comes from.
enum Source<'a> {
    Archive(&'a Path),
    Dir(&'a Path),
}

impl Source<'_> {
    /// Its absolute path, to find it again; standard input has none.
    fn path(&self) -> Option<PathBuf> {
        match self {
            Self::Archive(path) if path.as_os_str() == "-" => None,
            Self::Archive(path) | Self::Dir(path) => std::path::absolute(path).ok(),
        }
    }
}

fn build(context: &Context, args: &BuildArgs) -> anyhow::Result<()> {
    let store = context.store()?;
    if args
        .archives
        .iter()
        .filter(|path| path.as_os_str() == "-")
        .count()
        > 1
    {
        return Err(Usage("standard input (-) can be only one layer".into()).into());
    }
    if let Some(dir) = args.archives.iter().find(|path| path.is_dir()) {
        let dir = dir.display();
        return Err(Usage(format!(
            "{dir} is a directory, not an archive: say --dir {dir}"
        ))
        .into());
    }
    let archives = args.archives.iter().map(|path| Source::Archive(path));
    let sources: Vec<Source<'_>> = archives
        .chain(args.dirs.iter().map(|dir| Source::Dir(dir)))
        .collect();
    if let Some(tag) = &args.tag {
        // Before the work, not after it.
        store::check_name(tag)?;
    }
    let layers = import_all(&store, &sources, args.max_size)?;
    if let Some(tag) = &args.tag {
        let image = store.tag(tag, &layers, &ImageSpec::default())?;
        let from = sources.iter().filter_map(Source::path);
        store.set_source(
            &image.id,
            &store::Source::Built {
                from: from.collect(),
            },
        )?;
    }
    let chain = ChainId::of(&layers).map(|chain| chain.to_string());
    let lines: Vec<_> = layers
        .iter()
        .map(ToString::to_string)
        .chain(chain)
        .collect();
    out::print(lines.join("\n") + "\n")
}

/// Imports several layers at once, all or none; the first failure in their order is the one that
/// is told.
fn import_all(
    store: &Store,
    sources: &[Source<'_>],
    max_size: Option<u64>,
) -> anyhow::Result<Vec<DiffId>> {
    let bars = Bars::new();
    let txn = Transaction::begin(store)?;
    let workers = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let next = AtomicUsize::new(0);
    let results: Vec<Mutex<Option<anyhow::Result<LayerInfo>>>> =
        sources.iter().map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for _ in 0..workers.min(sources.len()) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let (Some(source), Some(result)) = (sources.get(at), results.get(at)) else {
                        break;
                    };
                    *result.lock() = Some(import_one(&txn, source, max_size, &bars));
                }
            });
        }
    });
    let infos = results.into_iter().filter_map(Mutex::into_inner);
    let layers = infos.map(|result| result.map(|info| info.diff_id));
    let layers = layers.collect::<anyhow::Result<Vec<_>>>()?;
    txn.commit()?;
    Ok(layers)
}

fn import_one(
    txn: &Transaction<'_>,
    source: &Source<'_>,
    max_size: Option<u64>,
    bars: &Bars,
) -> anyhow::Result<LayerInfo> {
    let (bar, info) = match source {
        Source::Dir(dir) => {
            let bar = bars.bar(&dir.display().to_string(), None);
            let info = stage_dir(
                txn,
                dir,
                &ImportOptions {
                    max_size,
                    progress: &bar,
                    ..ImportOptions::default()
                },
            )?;
            (bar, info)
        }
        Source::Archive(path) if path.as_os_str() == "-" => {
            let bar = bars.bar("standard input", None);
            let options = ImportOptions {
                max_size,
                progress: &bar,
                ..ImportOptions::default()
            };
            let info = stage_layer(txn, io::stdin(), "standard input", &options)?;
            (bar, info)
        }
        Source::Archive(path) => {
            let file = File::open(path).with_context(|| format!("cannot open {path:?}"))?;
            let meta = file.metadata().ok().filter(std::fs::Metadata::is_file);
            let name = path.display().to_string();
            let bar = bars.bar(&name, meta.map(|meta| meta.len()));
            let options = ImportOptions {
                max_size,
                progress: &bar,
                ..ImportOptions::default()
            };
            let info = stage_layer(txn, file, &name, &options)?;
            (bar, info)
        }
    };
    bar.finish();
    Ok(info)
}

fn list(context: &Context, args: &LsArgs) -> anyhow::Result<()> {
    let store = context.store_to_read()?;
    let layers: Vec<LayerInfo> = store
        .layers()?
        .iter()
        .map(|id| store.layer(id))
        .collect::<Result<_, _>>()?;
    if args.json {
        return out::json(&layers);
    }
    let row = |layer: &LayerInfo| {
        vec![
            image::short(&layer.diff_id.to_string()),
            layer.entries.to_string(),
            table::size(layer.file_bytes),
            table::size(layer.tar_size),
        ]
    };
    let rows: Vec<_> = layers.iter().map(row).collect();
    table::print(&["DIFF ID", "ENTRIES", "FILES", "ARCHIVE"], &rows)
}

fn inspect(context: &Context, args: &InspectArgs) -> anyhow::Result<()> {
    let store = context.store_to_read()?;
    let layer = store.layer(&resolve(&store, &args.layer)?)?;
    out::json(&layer)
}

/// The layer of a diffID, or of its start.
pub(super) fn resolve(store: &Store, name: &str) -> anyhow::Result<DiffId> {
    let prefix = name.strip_prefix("sha256:").unwrap_or(name);
    let mut found = store.layers()?;
    found.retain(|id| !prefix.is_empty() && id.0.hex().starts_with(prefix));
    match found.as_slice() {
        [id] => Ok(*id),
        [] => bail!(
            "no layer '{name}' in the store {:?} (see 'lamina layer ls')",
            store.root()
        ),
        several => {
            let several: Vec<_> = several.iter().map(ToString::to_string).collect();
            bail!("'{name}' may be any of: {}", several.join(", "))
        }
    }
}

/// A size in bytes, or with a unit of powers of 1024.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is not a size: give bytes, or a number with K, M, G or T");
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text.get(digits.len()..).unwrap_or_default() {
        "" | "B" => 0,
        "K" | "k" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        "T" | "TiB" => 40,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::parse_size;

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size("512"), Ok(512));
        assert_eq!(parse_size("3G"), Ok(3 << 30));
        for wrong in ["", "G", "-1", "1.5G", "99999999999T", "1X"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}
