//! An archive as output. The same images always make the same archive: it has no times and owners.

use std::io::{self, Write};

use super::{Output, SaveError};
use crate::oci::blob::OutError;
use crate::tar::header::BLOCK;

/// The archive.
pub struct Tarball<W> {
    out: W,
}

impl<W: Write> Tarball<W> {
    /// Begins one.
    pub fn new(out: W) -> Self {
        Self { out }
    }

    /// Ends it.
    pub fn finish(mut self) -> Result<(), SaveError> {
        let end = [0; 2 * BLOCK];
        self.out
            .write_all(&end)
            .and_then(|()| self.out.flush())
            .map_err(|error| OutError::Write(error).into())
    }
}

impl<W: Write> Output for Tarball<W> {
    fn has(&self, _: &str, _: u64) -> bool {
        false
    }

    fn add(
        &mut self,
        path: &str,
        size: u64,
        fill: &mut dyn FnMut(&mut dyn Write) -> Result<(), OutError>,
    ) -> Result<(), SaveError> {
        let mut header = ::tar::Header::new_gnu();
        header.set_entry_type(::tar::EntryType::Regular);
        header.set_path(path).map_err(OutError::Write)?;
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        header.set_cksum();
        self.out
            .write_all(header.as_bytes())
            .map_err(OutError::Write)?;
        let mut exact = Exact {
            out: &mut self.out,
            left: size,
        };
        fill(&mut exact)?;
        if exact.left > 0 {
            let missing = format!("'{path}' is {} bytes too short", exact.left);
            return Err(OutError::Write(io::Error::other(missing)).into());
        }
        let padding = [0; BLOCK];
        let count = size.wrapping_neg() % BLOCK as u64;
        self.out
            .write_all(padding.get(..count as usize).unwrap_or_default())
            .map_err(|error| OutError::Write(error).into())
    }
}

/// Takes as many bytes as the header says.
struct Exact<'a, W> {
    out: &'a mut W,
    left: u64,
}

impl<W: Write> Write for Exact<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            return Err(io::Error::other("it is longer than it should be"));
        }
        let count = self.out.write(bytes)?;
        self.left -= count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
