//! Packing layers. A push and an export do it in the same way, always, so that digests are the same.

use std::io::{self, Write};

use sha2::{Digest as _, Sha256};

use crate::digest::{DiffId, Digest};
use crate::store::Store;
use crate::tar::{Compression, ExportError, Progress, export_layer};

/// The level that gzip packs with, its own default.
const GZIP_LEVEL: u32 = 6;
/// The level that zstd packs with, its own default.
const ZSTD_LEVEL: i32 = 3;

/// Writes the archive of a layer, packed; as it is for a compression that nothing packs with.
///
/// # Errors
/// When the layer is damaged, or `out` fails.
pub(super) fn write_packed(
    store: &Store,
    diff_id: &DiffId,
    compression: Compression,
    out: impl Write,
    unpacked: &dyn Progress,
) -> Result<(), ExportError> {
    let export = |out: &mut dyn Write| export_layer(store, diff_id, Told::new(out, unpacked));
    match compression {
        Compression::Gzip => {
            // Without a time and a name, so that packing again gives the same.
            let level = flate2::Compression::new(GZIP_LEVEL);
            let mut packer = flate2::write::GzEncoder::new(out, level);
            export(&mut packer)?;
            packer.finish().map_err(ExportError::Write)?;
        }
        Compression::Zstd => {
            let packer = zstd::stream::write::Encoder::new(out, ZSTD_LEVEL);
            let mut packer = packer.map_err(ExportError::Write)?;
            export(&mut packer)?;
            packer.finish().map_err(ExportError::Write)?;
        }
        _ => {
            let mut out = out;
            export(&mut out)?;
        }
    }
    Ok(())
}

/// Digests and counts what it passes on.
pub(super) struct Digesting<W> {
    out: W,
    hasher: Sha256,
    count: u64,
}

impl<W: Write> Digesting<W> {
    /// Passes on to `out`.
    pub(super) fn new(out: W) -> Self {
        Self {
            out,
            hasher: Sha256::new(),
            count: 0,
        }
    }

    /// What it passed on to, and the digest and the number of the bytes.
    pub(super) fn finish(self) -> (W, Digest, u64) {
        (self.out, Digest(self.hasher.finalize().into()), self.count)
    }
}

impl<W: Write> Write for Digesting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.hasher.update(bytes.get(..count).unwrap_or_default());
        self.count += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Tells how much it passes on.
pub(super) struct Told<'a, W> {
    out: W,
    progress: &'a dyn Progress,
}

impl<'a, W> Told<'a, W> {
    /// Passes on to `out`.
    pub(super) fn new(out: W, progress: &'a dyn Progress) -> Self {
        Self { out, progress }
    }
}

impl<W: Write> Write for Told<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.progress.bytes(count as u64);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
