//! An archive that comes by a pipe, or is packed, so that it can be read only once, from its start to
//! its end.
//!
//! Layers nearly always come before the documents that say what they are. So whatever may be a layer
//! goes into staging of the store at once, as a layer with the diffID that comes out, and documents
//! stay in memory. At the end, the layers that an image needs are put into the store; the others are
//! dropped. There is no other copy of anything.

use std::io::{self, BufReader, Read};

use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use super::contents::{Contents, Items, Look};
use super::walk::{Kind, Piped, Walk, truncated};
use super::{LoadError, LoadOptions};
use crate::digest::{DiffId, Digest};
use crate::oci::MAX_DOCUMENT;
use crate::store::{BlobStage, Store, StoreError, Transaction};
use crate::tar::{Compression, ImportError, ImportOptions, stage_layer};

/// Most bytes of all documents of an archive together.
pub const DOCUMENTS_MAX: u64 = 64 << 20;
/// Bytes that tell what a file is.
const START: usize = 512;

/// What came of a file.
enum Got {
    /// It may be a document.
    Document(Vec<u8>),
    /// It is a layer, in staging.
    Layer(Staged),
    /// It is neither, which matters only if something refers to it.
    Neither(String),
}

/// A layer in staging.
#[derive(Clone, Copy)]
pub struct Staged {
    /// The digest of its blob.
    pub digest: Digest,
    /// The length of its blob in bytes.
    pub size: u64,
    /// The digest of the archive in it.
    pub diff_id: DiffId,
    compression: Compression,
}

/// An archive that was read.
pub struct Streamed<'s> {
    items: Items<Got>,
    txn: Mutex<Option<Transaction<'s>>>,
}

impl<'s> Streamed<'s> {
    /// Reads an archive to its end.
    pub fn read(
        store: &'s Store,
        input: impl Read + Send,
        name: &str,
        options: &LoadOptions<'_>,
    ) -> Result<Self, LoadError> {
        let wrong = |problem| LoadError::Archive {
            name: name.to_owned(),
            problem,
        };
        let txn = Transaction::begin(store)?;
        let mut items = Items::new(name);
        let mut documents = 0;
        let mut walk = Walk::new(Piped(input));
        while let Some(entry) = walk.next().map_err(wrong)? {
            let size = match entry.kind {
                Kind::Link(target) => {
                    items.add_link(entry.path, target)?;
                    continue;
                }
                Kind::File(size) => size,
            };
            if items.has(&entry.path) {
                let (name, path) = (name.to_owned(), entry.path);
                return Err(LoadError::Twice { name, path });
            }
            let mut data = walk.data();
            let got = take(
                &txn,
                &mut data,
                (&entry.path, size),
                &mut documents,
                options,
            );
            // The archive's own troubles come first.
            io::copy(&mut data, &mut io::sink()).map_err(|error| wrong(truncated(error)))?;
            items.add_file(entry.path, got?)?;
        }
        // Whoever writes into a pipe should be able to write all of it. What comes after the end of the
        // archive means nothing, so neither does a failure there.
        let _ = io::copy(&mut walk.into_inner(), &mut io::sink());
        Ok(Self {
            items,
            txn: Mutex::new(Some(txn)),
        })
    }

    /// The layer that came under a path.
    pub fn staged(&self, path: &str) -> Result<Option<Staged>, LoadError> {
        Ok(match self.items.file(path)? {
            Some(Got::Layer(staged)) => Some(*staged),
            _ => None,
        })
    }

    /// Puts the layers that are needed into the store, and drops the others. Returns those that the
    /// store did not have.
    pub fn commit(&self, needed: &[Staged]) -> Result<Vec<DiffId>, LoadError> {
        let Some(txn) = self.txn.lock().take() else {
            return Ok(Vec::new());
        };
        let layers = needed.iter().map(|staged| staged.diff_id).collect();
        let blobs = needed.iter().map(|staged| staged.digest).collect();
        txn.retain(&layers, &blobs)?;
        Ok(txn.commit()?.layers)
    }
}

impl Contents for Streamed<'_> {
    fn name(&self) -> &str {
        self.items.name()
    }

    fn read(&self, path: &str, max: u64) -> Result<Option<Vec<u8>>, LoadError> {
        let size = match self.items.file(path)? {
            None => return Ok(None),
            Some(Got::Document(bytes)) if bytes.len() as u64 <= max => {
                return Ok(Some(bytes.clone()));
            }
            Some(Got::Document(bytes)) => bytes.len() as u64,
            Some(Got::Layer(staged)) => staged.size,
            Some(Got::Neither(problem)) => return Err(self.unfit(path, problem)),
        };
        Err(LoadError::Long {
            name: self.name().to_owned(),
            path: path.to_owned(),
            size,
            max,
        })
    }

    fn look(&self, path: &str) -> Result<Option<Look>, LoadError> {
        Ok(Some(match self.items.file(path)? {
            None => return Ok(None),
            Some(Got::Document(bytes)) => Look {
                size: bytes.len() as u64,
                compression: Compression::of(bytes),
                digest: Some(Digest::of(bytes)),
            },
            Some(Got::Layer(staged)) => Look {
                size: staged.size,
                compression: staged.compression,
                digest: Some(staged.digest),
            },
            Some(Got::Neither(problem)) => return Err(self.unfit(path, problem)),
        }))
    }

    fn open(&self, path: &str) -> Result<Option<Box<dyn Read + Send + '_>>, LoadError> {
        match self.items.file(path)? {
            None => Ok(None),
            Some(Got::Document(bytes)) => Ok(Some(Box::new(bytes.as_slice()))),
            Some(Got::Layer(_)) => Err(self.unfit(path, "it was read already")),
            Some(Got::Neither(problem)) => Err(self.unfit(path, problem)),
        }
    }
}

impl Streamed<'_> {
    fn unfit(&self, path: &str, problem: &str) -> LoadError {
        super::contents::unreadable(self.name(), path)(io::Error::other(problem.to_owned()))
    }
}

/// Takes one file.
fn take(
    txn: &Transaction<'_>,
    mut data: impl Read + Send,
    (path, size): (&str, u64),
    documents: &mut u64,
    options: &LoadOptions<'_>,
) -> Result<Got, LoadError> {
    let unread = |error: io::Error| Got::Neither(error.to_string());
    let mut start = Vec::with_capacity(START);
    if let Err(error) = (&mut data).take(START as u64).read_to_end(&mut start) {
        return Ok(unread(error));
    }
    let first = start.iter().find(|byte| !byte.is_ascii_whitespace());
    let is_json = matches!(first, Some(b'{' | b'['));
    if is_json && Compression::of(&start) == Compression::None && size <= MAX_DOCUMENT {
        *documents += size;
        if *documents > DOCUMENTS_MAX {
            return Ok(Got::Neither("the archive has too many documents".into()));
        }
        return Ok(match data.read_to_end(&mut start) {
            Ok(_) => Got::Document(start),
            Err(error) => unread(error),
        });
    }
    stage(txn, start, data, (path, size), options)
}

/// Takes a file that may be a layer.
fn stage(
    txn: &Transaction<'_>,
    start: Vec<u8>,
    data: impl Read + Send,
    (path, size): (&str, u64),
    options: &LoadOptions<'_>,
) -> Result<Got, LoadError> {
    let ingest = &options.ingest;
    let progress = ingest.progress.stream(path, size);
    let compression = Compression::of(&start);
    let keep = ingest.keep_blobs.then(|| txn.new_blob()).transpose()?;
    let mut blob = Digested {
        inner: BufReader::new(io::Cursor::new(start).chain(data)),
        hasher: Sha256::new(),
        keep,
        failed: None,
    };
    let import = ImportOptions {
        max_size: ingest.max_size,
        progress: &*progress,
        ..ImportOptions::default()
    };
    let staged = stage_layer(txn, &mut blob, "it", &import);
    if let Some(error) = blob.failed.take() {
        return Err(error.into());
    }
    let info = match staged {
        Ok(info) => info,
        Err(ImportError::Store(error)) => return Err(error.into()),
        Err(error) => return Ok(Got::Neither(error.to_string())),
    };
    if let Err(error) = io::copy(&mut blob, &mut io::sink()) {
        return blob
            .failed
            .map_or_else(|| Ok(Got::Neither(error.to_string())), |it| Err(it.into()));
    }
    let digest = Digest(blob.hasher.finalize().into());
    if let Some(keep) = &blob.keep {
        txn.add_blob(keep, &digest)?;
    }
    Ok(Got::Layer(Staged {
        digest,
        size,
        diff_id: info.diff_id,
        compression,
    }))
}

/// Digests what is read of it, and keeps it.
struct Digested<R> {
    inner: R,
    hasher: Sha256,
    keep: Option<BlobStage>,
    failed: Option<StoreError>,
}

impl<R: Read> Read for Digested<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let bytes = buffer.get(..count).unwrap_or_default();
        self.hasher.update(bytes);
        if let Some(keep) = &mut self.keep
            && let Err(error) = keep.write(bytes)
        {
            self.failed = Some(error);
            return Err(io::ErrorKind::Other.into());
        }
        Ok(count)
    }
}
