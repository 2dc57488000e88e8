//! Making the archive of a layer again, bit for bit.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::error::{ExportError, SplitError};
use super::sparse::Map;
use super::split::{Part, SplitReader};
use crate::digest::{DiffId, Digest, ObjectId};
use crate::store::{Store, StoreError};

/// Length of the buffer for copying, in bytes.
const BUFFER: usize = 128 << 10;

/// Writes the uncompressed archive of a layer, exactly the bytes that were imported.
///
/// # Errors
/// When the layer or an object is missing or damaged, which may be found out only at the end, or
/// `out` fails.
pub fn export_layer(store: &Store, id: &DiffId, out: impl Write) -> Result<(), ExportError> {
    let split = open_split(store, id)?;
    let mut out = Hashing {
        out,
        hasher: Sha256::new(),
    };
    let mut buffer = vec![0; BUFFER];
    let copied = split.for_each_part(|part, object| match (part, object) {
        (Part::Raw(bytes), _) => out.write_all(&bytes).map_err(Failure::Write),
        (Part::File(map), Some(object)) => {
            let file = store.open_object(&object, map.size())?;
            copy_data(&file, &map, &mut buffer, &mut out)
        }
        (Part::File(_), None) => Err(Failure::Split(SplitError::Record)),
    });
    copied.map_err(|failure| failure.of(*id))?;
    out.out.flush().map_err(ExportError::Write)?;
    let found = DiffId(Digest(out.hasher.finalize().into()));
    if found != *id {
        return Err(find_damage(store, id).unwrap_or(ExportError::Digest { id: *id, found }));
    }
    Ok(())
}

/// Calls `each` for every object that the archive of a layer is made of; one may come several times.
/// The index refers to no others.
///
/// # Errors
/// When the layer is missing or damaged.
pub fn layer_objects(
    store: &Store,
    id: &DiffId,
    each: impl FnMut(ObjectId),
) -> Result<(), ExportError> {
    let mut split = open_split(store, id)?;
    split
        .for_each_object(each)
        .map_err(|problem| ExportError::Split { id: *id, problem })
}

/// Reads what says how the archive of a layer is put together, and checks it. Calls `each` for every
/// object with the size that it must have; returns the length of the archive in bytes.
///
/// # Errors
/// When the layer is missing or damaged.
pub(crate) fn check_split(
    store: &Store,
    id: &DiffId,
    mut each: impl FnMut(ObjectId, u64),
) -> Result<u64, ExportError> {
    let split = open_split(store, id)?;
    let length = split.tar_size();
    let mut found = 0_u64;
    let checked = split.for_each_part(|part, object| {
        match (part, object) {
            (Part::Raw(bytes), _) => found += bytes.len() as u64,
            (Part::File(map), Some(object)) => {
                let data = map.segments().iter().map(|segment| segment.length);
                found = found.saturating_add(data.sum());
                each(object, map.size());
            }
            (Part::File(_), None) => return Err(SplitError::Record),
        }
        Ok(())
    });
    let problem = match checked {
        Ok(()) if found == length => return Ok(length),
        Ok(()) => SplitError::Length,
        Err(problem) => problem,
    };
    Err(ExportError::Split { id: *id, problem })
}

/// As [`layer_objects`], of a layer that is not in the store yet: `path` is that of its tarsplit.
pub(crate) fn split_objects(
    path: &Path,
    id: &DiffId,
    each: impl FnMut(ObjectId),
) -> Result<(), StoreError> {
    let damaged = |problem: SplitError| StoreError::LayerFile {
        id: *id,
        path: path.to_owned(),
        problem: problem.to_string(),
    };
    let file = File::open(path).map_err(StoreError::io("open", path))?;
    let mut split = SplitReader::open(file).map_err(damaged)?;
    split.for_each_object(each).map_err(damaged)
}

fn open_split(store: &Store, id: &DiffId) -> Result<SplitReader<File>, ExportError> {
    let path = store.layer_dir(id).join(crate::store::TARSPLIT);
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(store.no_file(id, path).into());
        }
        result => result.map_err(StoreError::io("open", &path))?,
    };
    let damaged = |problem| ExportError::Split { id: *id, problem };
    let split = SplitReader::open(file).map_err(damaged)?;
    if split.diff_id() != *id {
        return Err(damaged(SplitError::Other));
    }
    Ok(split)
}

/// Why copying stops.
enum Failure {
    Split(SplitError),
    Store(StoreError),
    Read(io::Error),
    Write(io::Error),
}

impl From<SplitError> for Failure {
    fn from(error: SplitError) -> Self {
        Self::Split(error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Failure {
    fn of(self, id: DiffId) -> ExportError {
        match self {
            Self::Split(problem) => ExportError::Split { id, problem },
            Self::Store(error) => error.into(),
            Self::Read(error) => ExportError::Read(error),
            Self::Write(error) => ExportError::Write(error),
        }
    }
}

/// Copies the data of a file, without its holes.
fn copy_data(
    file: &File,
    map: &Map,
    buffer: &mut [u8],
    out: &mut impl Write,
) -> Result<(), Failure> {
    for segment in map.segments() {
        let mut offset = segment.offset;
        let end = segment.offset + segment.length;
        while offset < end {
            let wanted = (end - offset).min(buffer.len() as u64) as usize;
            let part = buffer.get_mut(..wanted).unwrap_or_default();
            file.read_exact_at(part, offset).map_err(Failure::Read)?;
            out.write_all(part).map_err(Failure::Write)?;
            offset += wanted as u64;
        }
    }
    Ok(())
}

/// The first object of a layer whose contents are not what they should be.
fn find_damage(store: &Store, id: &DiffId) -> Option<ExportError> {
    let mut objects = Vec::new();
    layer_objects(store, id, |object| objects.push(object)).ok()?;
    let damage = objects
        .iter()
        .find_map(|object| store.verify_object(object).err());
    damage.map(ExportError::from)
}

/// Digests what it passes on.
struct Hashing<W> {
    out: W,
    hasher: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.hasher.update(bytes.get(..count).unwrap_or_default());
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
