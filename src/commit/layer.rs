//! The layer: a tar stream that is imported while it is written.
//!
//! The same upper gives the same stream, byte for byte, whoever makes it and whenever.

use std::collections::BTreeSet;
use std::io::{self, Write};

use lamina_layers::store::{LayerInfo, Transaction};
use lamina_layers::tar::{ImportOptions, LayerWriter, Progress, stage_written};
use parking_lot::Mutex;
use rustix::io::Errno;

use super::entry::Entry;
use super::snapshot::Snapshot;
use super::{CommitError, into_io};
use crate::union::Union;

/// How a layer is made.
#[derive(Clone, Copy)]
pub struct LayerOptions<'a> {
    /// Files that were changed later than this (seconds since 1970) get this time instead.
    pub latest: Option<i64>,
    /// Everything that is seen, not only what the upper changes: a layer that stands alone.
    pub whole: bool,
    /// Is told how far it is.
    pub progress: &'a dyn Progress,
    /// Keeps what is to be told of; if not given, that is told at once.
    pub left_out: Option<&'a LeftOut>,
}

/// What is no part of a layer. It is told when this is dropped: while a mount is held back, a message may
/// wait for ever, as it may be written to a file in that mount.
#[derive(Debug, Default)]
pub struct LeftOut(Mutex<BTreeSet<Vec<u8>>>);

impl LeftOut {
    pub(super) fn note(&self, path: Vec<u8>) {
        self.0.lock().insert(path);
    }
}

impl Drop for LeftOut {
    fn drop(&mut self) {
        for path in self.0.get_mut().iter() {
            let shown = String::from_utf8_lossy(path);
            tracing::warn!("{shown}: sockets are not part of a layer");
        }
    }
}

impl Default for LayerOptions<'_> {
    fn default() -> Self {
        Self {
            latest: None,
            whole: false,
            progress: &(),
            left_out: None,
        }
    }
}

/// Makes a layer of what the upper changes, as a part of a transaction; `None` if that is nothing.
/// Nothing changes the upper meanwhile.
///
/// # Errors
/// When the upper cannot be read, has what a layer cannot hold, or the store cannot be written.
pub fn stage_changes(
    txn: &Transaction<'_>,
    union: &Union,
    options: &LayerOptions<'_>,
) -> Result<Option<LayerInfo>, CommitError> {
    if !options.whole && !union.has_changes().map_err(CommitError::Read)? {
        return Ok(None);
    }
    stage(txn, options, |out| write_layer(union, out, options)).map(Some)
}

/// As [`stage_changes`], of what a snapshot has of the upper, which may have changed since.
///
/// # Errors
/// As [`stage_changes`].
pub fn stage_snapshot(
    txn: &Transaction<'_>,
    union: &Union,
    snapshot: &Snapshot,
    options: &LayerOptions<'_>,
) -> Result<Option<LayerInfo>, CommitError> {
    if snapshot.is_empty() {
        return Ok(None);
    }
    stage(txn, options, |out| snapshot.write(union, out)).map(Some)
}

fn stage(
    txn: &Transaction<'_>,
    options: &LayerOptions<'_>,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send,
) -> Result<LayerInfo, CommitError> {
    let import = ImportOptions {
        progress: options.progress,
        ..ImportOptions::default()
    };
    Ok(stage_written(txn, "the changes", &import, write)?)
}

/// Writes the layer as a tar stream.
///
/// # Errors
/// What reading the upper gives, and whatever `out` gives.
pub fn write_layer(union: &Union, out: impl Write, options: &LayerOptions<'_>) -> io::Result<()> {
    let mut writer = LayerWriter::new(out);
    // Why writing failed, as it was told: an import that ended early is known by it.
    let mut failed = None;
    let visited = options.visit(union, &mut |item| {
        let Some(entry) = Entry::of(union, item, options)? else {
            return Ok(());
        };
        entry.write(union, None, &mut writer).map_err(|error| {
            failed = Some(error);
            Errno::CANCELED.into()
        })
    });
    if let Some(error) = failed {
        return Err(error);
    }
    visited.map_err(into_io)?;
    writer.finish().map(drop)
}
