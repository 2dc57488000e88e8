//! Importing an archive as a layer.
//!
//! Four stages run at once, connected by buffers of a bounded pool:
//!
//! ```text
//! read, decompress ─┬─> digest of the whole archive
//!                   └─> entries, digests of files, tarsplit ──> write objects (2 threads)
//! ```

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, Write};
use std::thread;

use crossbeam_channel::{Receiver, bounded};
use sha2::{Digest as _, Sha256};

use super::chunk::{ChunkWriter, Pool, Slice, Stream};
use super::contents::{self, Sink};
use super::error::{ArchiveError, ImportError, Problem, Stop};
use super::input;
use super::reader::{Kind, Reader};
use super::split::SplitWriter;
use super::tree::Tree;
use super::writers::Writers;
use crate::digest::{DiffId, Digest};
use crate::index::{BuildError, IndexKind};
use crate::store::{LayerInfo, LayerStage, Store, StoreError, Transaction};

/// Buffers of one import: with 256 KiB each, 16 MiB.
const BUFFERS: usize = 64;
/// What an archive may expand to when nothing is said, in bytes: 1 TiB.
pub const DEFAULT_MAX_SIZE: u64 = 1 << 40;

/// How to import.
#[derive(Clone, Copy)]
pub struct ImportOptions<'a> {
    /// How much an archive may expand to, in bytes, holes of sparse files included;
    /// [`DEFAULT_MAX_SIZE`] if not given.
    pub max_size: Option<u64>,
    /// Of a directory: it is the upper of an overlayfs mount, so its whiteouts and opaque
    /// directories become those of the layer. Otherwise a directory is taken as it is.
    pub overlay: bool,
    /// Is told how far it is.
    pub progress: &'a dyn Progress,
}

impl Default for ImportOptions<'_> {
    fn default() -> Self {
        Self {
            max_size: None,
            overlay: false,
            progress: &(),
        }
    }
}

/// Is told by an import how far it is, from several threads.
pub trait Progress: Sync {
    /// So many more bytes of the archive were read, as it is, compressed or not; of a directory,
    /// of the files in it.
    fn bytes(&self, count: u64);

    /// One more entry is done.
    fn file(&self);
}

/// Nobody wants to know.
impl Progress for () {
    fn bytes(&self, _: u64) {}

    fn file(&self) {}
}

/// Imports one archive into a store. `name` is what error messages call it.
///
/// # Errors
/// When the archive is wrong or too large, or the store cannot be written. The store is then as it
/// was, but for objects that nothing refers to if it fails in the very last step.
pub fn import_layer(
    store: &Store,
    input: impl Read + Send,
    name: &str,
    options: &ImportOptions<'_>,
) -> Result<LayerInfo, ImportError> {
    let txn = Transaction::begin(store)?;
    let info = stage_layer(&txn, input, name, options)?;
    txn.commit()?;
    Ok(info)
}

/// Imports an archive as a part of a transaction: several layers, from several threads, can become
/// part of the store in one step.
///
/// # Errors
/// When the archive is wrong or too large, or the store cannot be written.
pub fn stage_layer(
    txn: &Transaction<'_>,
    input: impl Read + Send,
    name: &str,
    options: &ImportOptions<'_>,
) -> Result<LayerInfo, ImportError> {
    let counted = Counted {
        inner: input,
        progress: options.progress,
    };
    stage(txn, name, options, |out| input::unpack(counted, out))
}

/// Imports an archive, not compressed, that `write` writes, as a part of a transaction. `write` gets
/// `BrokenPipe` when the import has failed and nobody reads any more.
///
/// # Errors
/// As [`stage_layer`], and what `write` gives.
pub fn stage_written(
    txn: &Transaction<'_>,
    name: &str,
    options: &ImportOptions<'_>,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send,
) -> Result<LayerInfo, ImportError> {
    stage(txn, name, options, |out| {
        match write(out).and_then(|()| out.flush()) {
            // The import knows why.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => result.map_err(Problem::Read),
        }
    })
}

/// Imports the archive that `produce` writes.
pub(super) fn stage(
    txn: &Transaction<'_>,
    name: &str,
    options: &ImportOptions<'_>,
    produce: impl FnOnce(&mut ChunkWriter) -> Result<(), Problem> + Send,
) -> Result<LayerInfo, ImportError> {
    let panicked = || ImportError::Panicked(name.to_owned());
    let limit = options.max_size.unwrap_or(DEFAULT_MAX_SIZE);
    let failed = |stop| import_error(name, limit, stop);
    let layer = txn.new_layer()?;
    let (to_reader, for_reader) = bounded(BUFFERS);
    let (to_hasher, for_hasher) = bounded(BUFFERS);
    thread::scope(|scope| {
        let producer = scope.spawn(|| {
            let mut out = ChunkWriter::new(Pool::new(BUFFERS), vec![to_reader, to_hasher]);
            produce(&mut out)
        });
        let hasher = scope.spawn(|| hash(for_hasher));
        let (writers, running) = Writers::start(txn, scope);
        let split_path = layer.file(crate::store::TARSPLIT);
        let split = File::create(&split_path)
            .and_then(|file| SplitWriter::new(BufWriter::new(file)))
            .map_err(Stop::Split);
        let read = split.and_then(|split| {
            let mut reader = Reader::new(Stream::new(for_reader), split, limit);
            let tree = read_entries(&mut reader, &writers, options.progress)?;
            Ok((tree, reader.into_split()))
        });
        drop(writers);
        let produced = producer.join().map_err(|_| panicked())?;
        let digest = hasher.join().map_err(|_| panicked())?;
        let written = running.join().ok_or_else(panicked)?;
        // An archive that ends early looks truncated to the reader; the producer knows why.
        produced.map_err(|problem| failed(Stop::Archive(problem.nowhere())))?;
        let (contents, (split, tar_size)) = read.map_err(|stop| match stop {
            Stop::Split(error) => StoreError::io("write", &split_path)(error).into(),
            stop => failed(stop),
        })?;
        written?;
        let info = LayerInfo {
            diff_id: DiffId(digest),
            tar_size,
            entries: contents.entries,
            whiteouts: contents.tree.whiteouts(),
            objects: distinct(split.objects()),
            file_bytes: contents.file_bytes,
        };
        split
            .finish(&info.diff_id, tar_size)
            .map_err(StoreError::io("write", &split_path))?;
        write_index(contents.tree, &info.diff_id, &layer, name)?;
        txn.add_layer(&layer, &info)?;
        Ok(info)
    })
}

/// What an archive has.
struct Contents {
    tree: Tree,
    entries: u64,
    file_bytes: u64,
}

/// Reads all entries.
fn read_entries<W: Write + Seek, S: Sink>(
    reader: &mut Reader<W>,
    sink: &S,
    progress: &dyn Progress,
) -> Result<Contents, Stop> {
    let mut contents = Contents {
        tree: Tree::default(),
        entries: 0,
        file_bytes: 0,
    };
    while let Some(mut entry) = reader.next()? {
        let path = std::mem::take(&mut entry.path);
        let map = match &entry.kind {
            Kind::File(map) | Kind::HardLink(_, Some(map)) => Some(map),
            _ => None,
        };
        let content = match map {
            Some(map) => {
                contents.file_bytes += map.size();
                Some(contents::take(reader, map, sink).map_err(|stop| within(&path, stop))?)
            }
            None => None,
        };
        contents
            .tree
            .add(&path, entry, content)
            .map_err(|problem| within(&path, Stop::Archive(problem.nowhere())))?;
        contents.entries += 1;
        progress.file();
    }
    Ok(contents)
}

/// Says which entry an error is about.
fn within(path: &[u8], stop: Stop) -> Stop {
    match stop {
        Stop::Archive(error) => Stop::Archive(ArchiveError {
            path: Some(path.to_vec()),
            ..error
        }),
        stop => stop,
    }
}

fn import_error(name: &str, limit: u64, stop: Stop) -> ImportError {
    let name = name.to_owned();
    match stop {
        Stop::Archive(source) => ImportError::Archive { name, source },
        Stop::TooLarge => ImportError::TooLarge { name, limit },
        Stop::Store(error) => error.into(),
        Stop::Split(error) => StoreError::io("write", "tarsplit")(error).into(),
    }
}

fn write_index(tree: Tree, id: &DiffId, layer: &LayerStage, name: &str) -> Result<(), ImportError> {
    let path = layer.file(crate::store::INDEX);
    let mut file = File::create(&path).map_err(StoreError::io("create", &path))?;
    let finished = tree
        .into_builder()
        .finish_to(IndexKind::Layer, Some(id.0), &mut file);
    finished.map_err(|error| match error {
        BuildError::Io(error) => StoreError::io("write", &path)(error).into(),
        source => ImportError::Index {
            name: name.to_owned(),
            source,
        },
    })
}

fn hash(slices: Receiver<Slice>) -> Digest {
    let mut hasher = Sha256::new();
    for slice in slices {
        hasher.update(&*slice);
    }
    Digest(hasher.finalize().into())
}

/// Number of different objects.
fn distinct(objects: &[[u8; 32]]) -> u64 {
    let mut sorted: Vec<_> = objects.iter().collect();
    sorted.sort_unstable();
    sorted.dedup();
    sorted.len() as u64
}

/// Counts what is read.
struct Counted<'a, R> {
    inner: R,
    progress: &'a dyn Progress,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.progress.bytes(count as u64);
        Ok(count)
    }
}
