//! Layers that instructions write without mounting anything: the tar stream goes straight into the store.

use std::io::{self, BufWriter, PipeWriter};

use lamina_layers::digest::Digest;
use lamina_layers::index::{Data, Index};
use lamina_layers::store::{LayerInfo, Transaction};
use lamina_layers::tar::{ImportOptions, LayerWriter, stage_layer};
use sha2::{Digest as _, Sha256};

use super::error::{BuildResult, Problem};

/// What a layer is written to.
pub type Writer = LayerWriter<BufWriter<PipeWriter>>;

/// Adds a layer to a transaction while `write` writes its entries. `name` is what errors call it.
///
/// # Errors
/// What `write` gives, and when the store cannot be written.
pub fn stage(
    txn: &Transaction<'_>,
    name: &str,
    write: impl FnOnce(&mut Writer) -> BuildResult<()> + Send,
) -> BuildResult<LayerInfo> {
    let (reader, writer) = io::pipe().map_err(Problem::io("make", "a pipe"))?;
    let writer = BufWriter::with_capacity(256 << 10, writer);
    std::thread::scope(|scope| {
        let written = scope.spawn(move || -> BuildResult<()> {
            let mut out = LayerWriter::new(writer);
            write(&mut out)?;
            out.finish().map_err(Problem::Changes)?;
            Ok(())
        });
        let imported = stage_layer(txn, reader, name, &ImportOptions::default());
        let panicked = |_| Err(Problem::Changes(io::Error::other("the writer panicked")).into());
        match written.join().unwrap_or_else(panicked) {
            // The import has failed first: its reason counts.
            Err(error) if is_broken_pipe(error.problem()) => Ok(imported?),
            Err(error) => Err(error),
            Ok(()) => Ok(imported?),
        }
    })
}

fn is_broken_pipe(problem: &Problem) -> bool {
    match problem {
        Problem::Changes(source) | Problem::Io { source, .. } => {
            source.kind() == io::ErrorKind::BrokenPipe
        }
        _ => false,
    }
}

/// A digest of all that a layer says, but for modification times: what a build's cache goes by, as a
/// checkout gives the same files new times.
pub fn content_digest(index: &Index) -> Digest {
    let mut hasher = Sha256::new();
    let mut add = |bytes: &[u8]| {
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    for inode in index.inodes() {
        add(&index.path_of(inode.ino()));
        for (dir, entry) in index.names_of(inode.ino()).skip(1) {
            add(&index.path_of(dir));
            add(entry.name);
        }
        let marks = u32::from(inode.is_opaque()) | u32::from(inode.is_implicit()) << 1;
        for number in [marks, inode.mode(), inode.uid(), inode.gid()] {
            add(&number.to_le_bytes());
        }
        for (name, value) in inode.xattrs() {
            add(name);
            add(value);
        }
        match inode.data() {
            Data::Object(id) => add(&id.0.0),
            Data::Inline(bytes) | Data::Symlink(bytes) | Data::HardLink(bytes) => add(bytes),
            Data::Device { major, minor } => {
                add(&major.to_le_bytes());
                add(&minor.to_le_bytes());
            }
            Data::Directory { .. } | Data::Fifo | Data::Socket => {}
            Data::Whiteout => add(b"whiteout"),
        }
    }
    Digest(hasher.finalize().into())
}
