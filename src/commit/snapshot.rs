//! What an upper says at one moment: taken down while nothing changes, written afterwards.

use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;

use lamina_layers::tar::LayerWriter;
use rustix::io::Errno;

use super::CommitError;
use super::entry::{Body, Entry, Where, open_upper, segments};
use super::layer::LayerOptions;
use super::spool::Spool;
use crate::error::FsResult;
use crate::union::{LayerItem, Union};

/// How many entries are taken down at most, some 300 bytes each.
const ENTRIES: usize = 200_000;
/// How many bytes are copied at most where the filesystem cannot share them: a moment's work.
const BYTES: u64 = 256 << 20;

/// A layer that is still to be written: names and attributes in memory, contents of the upper copied.
pub struct Snapshot {
    entries: Vec<Entry>,
    spool: Spool,
}

impl Snapshot {
    /// Prepares one: what takes time and needs no moment. `work` is the upper's work directory.
    ///
    /// # Errors
    /// When there can be no file in it.
    pub fn prepare(work: &Path) -> Result<Self, CommitError> {
        let failed = |errno: Errno| CommitError::Copy(work.to_owned(), errno);
        let spool = Spool::new(work, BYTES).map_err(failed)?;
        if spool.shares() {
            // Blocks are shared only when they are on disk.
            rustix::fs::syncfs(&spool).map_err(failed)?;
        }
        Ok(Self {
            entries: Vec::new(),
            spool,
        })
    }

    /// Takes down what the upper says, while nothing changes it. Whether all of it: otherwise it is so
    /// much that it must be read as it is.
    ///
    /// # Errors
    /// When the upper cannot be read.
    pub fn take(&mut self, union: &Union, options: &LayerOptions<'_>) -> Result<bool, CommitError> {
        if !options.whole && !union.has_changes().map_err(CommitError::Read)? {
            return Ok(true);
        }
        let mut too_much = false;
        let taken = options.visit(union, &mut |item| {
            if self.note(union, item, options)? {
                return Ok(());
            }
            too_much = true;
            Err(Errno::CANCELED.into())
        });
        match taken {
            Err(_) if too_much => {
                self.entries = Vec::new();
                Ok(false)
            }
            result => result.map(|()| true).map_err(CommitError::Read),
        }
    }

    /// Whether there was room for an item.
    fn note(
        &mut self,
        union: &Union,
        item: LayerItem,
        options: &LayerOptions<'_>,
    ) -> FsResult<bool> {
        if self.entries.len() >= ENTRIES {
            return Ok(false);
        }
        let Some(mut entry) = Entry::of(union, item, options)? else {
            return Ok(true);
        };
        if let Body::File(contents) = &mut entry.body
            && let Where::Node(number) = contents.at
            && let Some(file) = open_upper(union, number)?
        {
            let data = segments(union, number, contents.size)?;
            match self.spool.put(&file, &data)? {
                Some(start) => contents.at = Where::Spool(start),
                None => return Ok(false),
            }
            contents.data = Some(data);
        }
        self.entries.push(entry);
        Ok(true)
    }

    /// Whether there is nothing to make a layer of.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Writes the layer.
    pub(super) fn write(&self, union: &Union, out: impl Write) -> std::io::Result<()> {
        let mut writer = LayerWriter::new(out);
        for entry in &self.entries {
            entry.write(union, Some(self.spool.as_fd()), &mut writer)?;
        }
        writer.finish().map(drop)
    }
}

impl LayerOptions<'_> {
    /// Calls `visit` for all that the layer has.
    pub(super) fn visit(
        &self,
        union: &Union,
        visit: &mut dyn FnMut(LayerItem) -> FsResult<()>,
    ) -> FsResult<()> {
        if self.whole {
            union.visit_all(visit)
        } else {
            union.visit_changes(visit)
        }
    }
}
