//! `lamina image export` and `lamina layer export`.

use std::fs;
use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use lamina_layers::new_file::NewFile;
use lamina_layers::oci::{ArchiveFormat, SaveImage, SaveOptions, Saved, save_archive, save_to_dir};
use lamina_layers::store::Pins;
use lamina_layers::tar::{Compression, export_layer};

use super::progress::LayerBars;
use super::{Context, Usage, layer, mount, out};

/// Arguments of `lamina image export`.
#[derive(Debug, Args)]
#[command(
    after_help = "Prints a line for each image, unless the output is standard output: the digest of \
    its manifest there, then its name."
)]
pub struct ExportArgs {
    /// Names, digests, or starts of digests. An image that is given by its name has this name there
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Where to; - is standard output. A file is replaced when all is written; to a directory that is
    /// an OCI layout, the images are added
    #[arg(short, long, value_name = "FILE|DIR|-")]
    output: PathBuf,
    /// What to write [default: oci-dir if DIR is a directory or ends with /, else oci-archive]
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
    /// How layers of an OCI layout are packed [default: as in the image]
    #[arg(long, value_name = "COMPRESSION")]
    compression: Option<Packing>,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

/// What to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// An archive of an OCI layout
    OciArchive,
    /// A directory in OCI's image layout
    OciDir,
    /// An archive for 'docker load'; layers are not packed
    DockerArchive,
}

/// How layers are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Packing {
    /// Not at all
    None,
    /// By gzip, which everything reads
    Gzip,
    /// By zstd
    Zstd,
}

/// Arguments of `lamina layer export`.
#[derive(Debug, Args)]
pub struct ExportLayerArgs {
    /// The diffID, or its start
    layer: String,
    /// Where to write the archive, not packed; a file is replaced when all is written
    #[arg(short, long, value_name = "FILE|-", default_value = "-")]
    output: PathBuf,
}

/// Runs `lamina image export`.
pub fn images(context: &Context, args: &ExportArgs) -> anyhow::Result<()> {
    let format = format(args)?;
    let store = mount::open_store(&context.store, false)?;
    let mut images = Vec::new();
    let mut leases = Vec::new();
    for name in &args.images {
        let image = store.resolve(name)?;
        if store.image(&image.id).is_err() {
            bail!("'{name}' is a layer, not an image: 'lamina layer export' gives its archive");
        }
        leases.push(store.lease(&Pins {
            holder: format!("an export (process {})", std::process::id()),
            image: Some(image.id),
            layers: image.layers.clone(),
            blobs: Vec::new(),
        })?);
        let short = name.strip_suffix(":latest").unwrap_or(name);
        let name = image
            .names
            .iter()
            .any(|it| it == short)
            .then(|| short.to_owned());
        images.push(SaveImage { id: image.id, name });
    }
    let bars = LayerBars::new(args.quiet);
    let scratch = scratch(&args.output);
    let options = SaveOptions {
        compression: args.compression.map(|packing| match packing {
            Packing::None => Compression::None,
            Packing::Gzip => Compression::Gzip,
            Packing::Zstd => Compression::Zstd,
        }),
        scratch: &scratch,
        progress: &bars,
    };
    let saved = match format {
        Format::OciDir => save_to_dir(&store, &images, &args.output, &options)?,
        Format::OciArchive => to_output(&args.output, |out| {
            Ok(save_archive(
                &store,
                &images,
                ArchiveFormat::Oci,
                out,
                &options,
            )?)
        })?,
        Format::DockerArchive => to_output(&args.output, |out| {
            Ok(save_archive(
                &store,
                &images,
                ArchiveFormat::Docker,
                out,
                &options,
            )?)
        })?,
    };
    drop(leases);
    tell(args, &images, &saved)
}

/// Says what was written.
fn tell(args: &ExportArgs, images: &[SaveImage], saved: &[Saved]) -> anyhow::Result<()> {
    let mut lines = String::new();
    for (image, saved) in images.iter().zip(saved) {
        let name = image.name.as_deref().unwrap_or_default();
        if saved.changed && args.compression.is_none() {
            tracing::warn!(
                "{} goes out with another manifest, {}: its layers are packed anew, or its media types \
                 are docker's. Of an image imported with --keep-blobs, the layers are as they came",
                if name.is_empty() {
                    image.id.to_string()
                } else {
                    name.to_owned()
                },
                saved.manifest
            );
        }
        lines += format!("{} {name}", saved.manifest).trim_end();
        lines.push('\n');
    }
    if args.output.as_os_str() == "-" {
        return Ok(());
    }
    out::print(lines)
}

/// Runs `lamina layer export`.
pub fn layer(context: &Context, args: &ExportLayerArgs) -> anyhow::Result<()> {
    let store = mount::open_store(&context.store, false)?;
    let id = layer::resolve(&store, &args.layer)?;
    let _lease = store.lease(&Pins {
        holder: format!("an export (process {})", std::process::id()),
        image: None,
        layers: vec![id],
        blobs: Vec::new(),
    })?;
    to_output(&args.output, |out| Ok(export_layer(&store, &id, out)?))
}

/// The format, and whether it can be.
fn format(args: &ExportArgs) -> anyhow::Result<Format> {
    let is_stdout = args.output.as_os_str() == "-";
    let is_dir = !is_stdout
        && (args.output.is_dir() || args.output.as_os_str().as_encoded_bytes().ends_with(b"/"));
    let format = match args.format {
        None if is_dir => Format::OciDir,
        None => Format::OciArchive,
        Some(format) => format,
    };
    let usage = |text: &str| Err(Usage(text.into()).into());
    match format {
        Format::OciDir if is_stdout => usage("--format oci-dir needs a directory, not -"),
        Format::OciDir if args.output.is_file() => {
            usage("--format oci-dir needs a directory, and the output is a file")
        }
        Format::OciArchive | Format::DockerArchive if is_dir => {
            usage("the output is a directory: give a file, or --format oci-dir")
        }
        Format::DockerArchive if args.compression.is_some_and(|it| it != Packing::None) => {
            usage("layers of a docker archive are not packed: --compression is for OCI formats")
        }
        format => Ok(format),
    }
}

/// A directory where there is room for what is going to be written.
fn scratch(output: &Path) -> PathBuf {
    if output.as_os_str() == "-" {
        return std::env::temp_dir();
    }
    let beside = output.parent().filter(|dir| !dir.as_os_str().is_empty());
    beside.unwrap_or(Path::new(".")).to_owned()
}

/// Writes to standard output, into a device or a pipe, or into a file that replaces another when all of it
/// is on the disk.
fn to_output<T>(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    const BUFFER: usize = 256 << 10;
    if path.as_os_str() == "-" {
        let stdout = io::stdout();
        if stdout.is_terminal() {
            let message = "standard output is a terminal: give a file (-o), or a pipe";
            return Err(Usage(message.into()).into());
        }
        let mut watched = Watched {
            out: stdout.lock(),
            gone: false,
        };
        let mut writer = BufWriter::with_capacity(BUFFER, &mut watched);
        let result = write(&mut writer).and_then(|result| {
            writer.flush().context("cannot write to standard output")?;
            Ok(result)
        });
        // What is left in it will not be wanted either.
        drop(writer.into_parts());
        return if watched.gone {
            Err(out::ReaderGone.into())
        } else {
            result
        };
    }
    let special = |meta: fs::Metadata| {
        let kind = meta.file_type();
        kind.is_fifo() || kind.is_char_device() || kind.is_block_device() || kind.is_socket()
    };
    let failed = || format!("cannot write {path:?}");
    if fs::metadata(path).is_ok_and(special) {
        let file = fs::OpenOptions::new().write(true).open(path);
        let mut writer = BufWriter::with_capacity(BUFFER, file.with_context(failed)?);
        let result = write(&mut writer)?;
        writer.flush().with_context(failed)?;
        return Ok(result);
    }
    // Through a link, the file that it leads to is replaced.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let dir = scratch(&path);
    let mut file = NewFile::new(&dir, 0o666).with_context(failed)?;
    let mut writer = BufWriter::with_capacity(BUFFER, file.file());
    let result = write(&mut writer).with_context(failed)?;
    writer.flush().with_context(failed)?;
    drop(writer);
    file.publish(&path).with_context(failed)?;
    let synced = fs::File::open(&dir).and_then(|dir| dir.sync_all());
    synced.with_context(failed)?;
    Ok(result)
}

/// Standard output, whose reader may go.
struct Watched<W> {
    out: W,
    gone: bool,
}

impl<W: Write> Write for Watched<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let result = self.out.write(bytes);
        self.gone |= matches!(&result, Err(error) if error.kind() == io::ErrorKind::BrokenPipe);
        result
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_to_pack_in_is_beside_the_output() {
        for (output, dir) in [("/a/b.tar", "/a"), ("b.tar", "."), ("/b", "/"), ("x/", ".")] {
            assert_eq!(scratch(Path::new(output)), Path::new(dir), "{output}");
        }
    }
}
