//! Size and speed of the layer index, printed as a table.
//!
//! `cargo bench -p lamina-layers --bench index [DIR]`. The input is the tree at DIR (default:
//! /usr of this machine): its names, attributes, link structure and small files are real, larger
//! files count as one object per inode. Nothing is written outside of the temporary directory.

#![expect(
    clippy::cast_precision_loss,
    reason = "figures to be read, not to be computed with"
)]

use std::collections::HashMap;
use std::error::Error;
use std::ffi::OsStr;
use std::fs;
use std::hint::black_box;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lamina_layers::digest::{Digest, ObjectId};
use lamina_layers::index::format::INLINE_MAX;
use lamina_layers::index::{
    BuildNode, Builder, Content, Data, Index, IndexKind, Ino, Meta, merge_to,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Entries of the large synthetic image.
const LARGE: usize = 1_300_000;
/// Layers of the large synthetic image.
const LAYERS: usize = 20;
/// Times that each measurement is repeated; the best counts.
const ROUNDS: usize = 5;

fn main() -> Result<()> {
    // `cargo bench` passes `--bench`.
    let dir = std::env::args_os()
        .skip(1)
        .find(|arg| !arg.as_bytes().starts_with(b"--"));
    let dir = dir.map_or_else(|| PathBuf::from("/usr"), PathBuf::from);
    let tree = Tree::walk(&dir)?;
    let temporary = tempfile::tempdir()?;
    println!(
        "input: {} ({} entries)\n",
        dir.display(),
        tree.entries.len()
    );

    let (bytes, build) = best(|| Ok(tree.builder()?.finish(IndexKind::Merged, None)?))?;
    let index = Index::from_bytes(bytes)?;
    size_table(&index);
    row("build and write it", &per_entry(build, tree.entries.len()));
    lookup_table(&index, &tree)?;

    let sizes = [100_000, LARGE];
    for size in sizes {
        let mut builder = Builder::new();
        tree.repeat(&mut builder, size)?;
        let path = temporary.path().join(format!("{size}.index"));
        fs::write(&path, builder.finish(IndexKind::Merged, None)?)?;
        let (index, time) = best(|| Ok(Index::open(&path)?))?;
        row(
            &format!("open and check {} inodes", index.inode_count()),
            &millis(time),
        );
    }

    let layers = tree.layers(temporary.path())?;
    let layers: Vec<&Index> = layers.iter().collect();
    let dirents: u32 = layers.iter().map(|layer| layer.stats().dirents).sum();
    let path = temporary.path().join("merged.index");
    let ((), time) = best(|| Ok(merge_to(&layers, None, &mut fs::File::create(&path)?)?))?;
    let merged = Index::open(&path)?;
    let rate = f64::from(dirents) / time.as_secs_f64() / 1e6;
    row(
        &format!(
            "merge {LAYERS} layers, {dirents} names into {}",
            merged.stats().dirents
        ),
        &format!("{}  ({rate:.2} M names/s)", millis(time)),
    );
    let sample = sample_names(&merged);
    let time = time_lookups(&merged, &sample);
    row(
        &format!("lookup, {} names of all over it", sample.len()),
        &nanos(time),
    );
    Ok(())
}

fn row(what: &str, value: &str) {
    println!("{what:<58} {value:>12}");
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

fn nanos(nanoseconds: f64) -> String {
    format!("{nanoseconds:.1} ns")
}

fn per_entry(time: Duration, entries: usize) -> String {
    format!(
        "{}  ({:.0} ns/entry)",
        millis(time),
        time.as_secs_f64() * 1e9 / entries as f64
    )
}

/// Runs something several times. The last result and the best time.
fn best<T>(mut run: impl FnMut() -> Result<T>) -> Result<(T, Duration)> {
    let mut least = Duration::MAX;
    let mut last = None;
    for _ in 0..ROUNDS {
        drop(last.take());
        let start = Instant::now();
        last = Some(run()?);
        least = least.min(start.elapsed());
    }
    Ok((last.ok_or("no rounds")?, least))
}

fn size_table(index: &Index) {
    let stats = index.stats();
    let entries = f64::from(stats.dirents);
    let (mut inline, mut targets) = (0, 0);
    for inode in index.inodes() {
        match inode.data() {
            Data::Inline(bytes) => inline += bytes.len(),
            Data::Symlink(bytes) => targets += bytes.len(),
            _ => {}
        }
    }
    let per_entry = |bytes: u64| format!("{:.1} B/entry", bytes as f64 / entries);
    row("inodes, objects (per 100 entries)", &{
        let share = |number: u32| f64::from(number) * 100.0 / entries;
        format!("{:.0}, {:.0}", share(stats.inodes), share(stats.objects))
    });
    row("whole index", &per_entry(stats.file_bytes));
    row("  of this the heap", &per_entry(stats.heap_bytes));
    row(
        "contents of small files, before deduplication",
        &per_entry(inline as u64),
    );
    row(
        "symlink targets, before deduplication",
        &per_entry(targets as u64),
    );
}

fn lookup_table(index: &Index, tree: &Tree) -> Result<()> {
    let every = sample_names(index);
    row(
        &format!("lookup, every name once ({})", every.len()),
        &nanos(time_lookups(index, &every)),
    );
    let some: Vec<_> = every
        .iter()
        .step_by(every.len() / 1000 + 1)
        .cloned()
        .collect();
    row(
        &format!("lookup, {} names", some.len()),
        &nanos(time_lookups(index, &some)),
    );
    let absent: Vec<_> = every
        .iter()
        .map(|(dir, name)| (*dir, [name, &b"~"[..]].concat().into()))
        .collect();
    row(
        "lookup, as many names that are not there",
        &nanos(time_lookups(index, &absent)),
    );
    let deepest = tree
        .entries
        .iter()
        .map(|entry| entry.path.components().count())
        .max();
    let (found, time) = best(|| {
        let paths = tree
            .entries
            .iter()
            .filter(|entry| find(index, &entry.path).is_some());
        Ok(paths.count())
    })?;
    assert_eq!(found, tree.entries.len());
    let what = format!(
        "resolve every path (up to {} names)",
        deepest.unwrap_or_default()
    );
    row(&what, &nanos(time.as_secs_f64() * 1e9 / found as f64));
    Ok(())
}

fn find(index: &Index, path: &Path) -> Option<Ino> {
    path.iter().try_fold(Ino::ROOT, |dir, name| {
        index.lookup(dir, name.as_bytes()).map(|entry| entry.ino)
    })
}

/// Names of an index, at most 200,000 of them, shuffled.
fn sample_names(index: &Index) -> Vec<(Ino, Box<[u8]>)> {
    let mut names: Vec<_> = (0..index.inode_count())
        .flat_map(|dir| index.entries(Ino(dir)).map(move |entry| (Ino(dir), entry)))
        .map(|(dir, entry)| (dir, entry.name.to_vec()))
        .collect();
    let mut random = 1_u64;
    for at in (1..names.len()).rev() {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        names.swap(at, (random >> 33) as usize % (at + 1));
    }
    names.truncate(200_000);
    // Copied once more, so that the keys stand in memory in the order in which they are used.
    names
        .iter()
        .map(|(dir, name)| (*dir, name.clone().into()))
        .collect()
}

/// Nanoseconds for one lookup, the best of several rounds over all of `names`.
fn time_lookups(index: &Index, names: &[(Ino, Box<[u8]>)]) -> f64 {
    let repeat = (200_000 / names.len()).max(1);
    let rounds = (0..ROUNDS).map(|_| {
        let start = Instant::now();
        for _ in 0..repeat {
            for (dir, name) in names {
                black_box(index.lookup(*dir, name));
            }
        }
        start.elapsed().as_secs_f64() * 1e9 / (names.len() * repeat) as f64
    });
    rounds.fold(f64::INFINITY, f64::min)
}

/// One entry of the input.
struct Walked {
    /// Relative to the top.
    path: PathBuf,
    meta: Meta,
    content: Content,
    /// Device and inode number, if it has several names.
    shared: Option<(u64, u64)>,
}

/// The input, parents before their entries.
struct Tree {
    entries: Vec<Walked>,
}

impl Tree {
    fn walk(top: &Path) -> Result<Self> {
        let mut entries = Vec::new();
        let mut dirs = vec![PathBuf::new()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(top.join(&dir))? {
                let path = dir.join(entry?.file_name());
                let full = top.join(&path);
                let found = fs::symlink_metadata(&full)?;
                if found.is_dir() {
                    dirs.push(path.clone());
                }
                let Some(content) = content(&full, &found)? else {
                    continue;
                };
                let meta = Meta {
                    mode: found.mode(),
                    uid: found.uid(),
                    gid: found.gid(),
                    mtime: (found.mtime(), found.mtime_nsec() as u32),
                };
                let shared =
                    (found.nlink() > 1 && !found.is_dir()).then(|| (found.dev(), found.ino()));
                entries.push(Walked {
                    path,
                    meta,
                    content,
                    shared,
                });
            }
        }
        Ok(Self { entries })
    }

    fn builder(&self) -> Result<Builder> {
        let mut builder = Builder::new();
        let root = builder.root();
        self.add(&mut builder, root, self.entries.len(), b"")?;
        Ok(builder)
    }

    /// Adds copies of the tree until there are `size` entries.
    fn repeat(&self, builder: &mut Builder, size: usize) -> Result<()> {
        let mut left = size;
        for copy in 0.. {
            if left == 0 {
                break;
            }
            let top = builder.add_implicit_dir()?;
            builder.link(builder.root(), format!("copy{copy}").as_bytes(), top)?;
            let count = self.entries.len().min(left - 1);
            self.add(builder, top, count, format!("{copy}").as_bytes())?;
            left -= count + 1;
        }
        Ok(())
    }

    /// Adds the first `count` entries of the tree under `top`. The salt makes its objects others
    /// than those of another copy.
    fn add(&self, builder: &mut Builder, top: BuildNode, count: usize, salt: &[u8]) -> Result<()> {
        let mut dirs = HashMap::from([(Path::new(""), top)]);
        let mut shared = HashMap::new();
        for entry in self.entries.iter().take(count) {
            let parent = *dirs
                .get(entry.path.parent().unwrap_or(Path::new("")))
                .ok_or("orphan")?;
            let name = entry
                .path
                .file_name()
                .map(OsStr::as_bytes)
                .unwrap_or_default();
            let known = entry.shared.and_then(|id| shared.get(&id).copied());
            let node = match known {
                Some(node) => node,
                None => builder.add(entry.meta, entry.salted(salt), Vec::new())?,
            };
            if let Some(id) = entry.shared {
                shared.insert(id, node);
            }
            builder.link(parent, name, node)?;
            if entry.content == Content::Directory {
                dirs.insert(&entry.path, node);
            }
        }
        Ok(())
    }

    /// Layers that have together about [`LARGE`] names. Each has copies of the tree of its own,
    /// changes every twentieth file of the layer below it, and deletes every hundredth.
    fn layers(&self, temporary: &Path) -> Result<Vec<Index>> {
        let size = LARGE * 100 / 106 / LAYERS;
        let mut layers = Vec::new();
        for layer in 0..LAYERS {
            let mut builder = Builder::new();
            let name = format!("layer{layer}");
            let top = builder.add_implicit_dir()?;
            builder.link(builder.root(), name.as_bytes(), top)?;
            let mut left = size;
            let mut copy = 0;
            while left > 0 {
                let count = self.entries.len().min(left);
                let dir = builder.add_implicit_dir()?;
                builder.link(top, format!("copy{copy}").as_bytes(), dir)?;
                self.add(
                    &mut builder,
                    dir,
                    count,
                    format!("{layer} {copy}").as_bytes(),
                )?;
                left -= count;
                copy += 1;
            }
            if layer > 0 {
                self.change(&mut builder, layer - 1, size)?;
            }
            let path = temporary.join(name);
            fs::write(&path, builder.finish(IndexKind::Layer, None)?)?;
            layers.push(Index::open(&path)?);
        }
        Ok(layers)
    }

    /// Changes and deletes files of another layer's first copy.
    fn change(&self, builder: &mut Builder, layer: usize, size: usize) -> Result<()> {
        let top = PathBuf::from(format!("layer{layer}/copy0"));
        let files = self
            .entries
            .iter()
            .take(size)
            .filter(|entry| entry.shared.is_none());
        let files = files
            .filter(|entry| entry.content != Content::Directory)
            .enumerate();
        for (number, entry) in files.filter(|(number, _)| number % 20 == 0) {
            let path = top.join(&entry.path);
            let mut dir = builder.root();
            for name in path.parent().into_iter().flatten() {
                dir = subdirectory(builder, dir, name.as_bytes())?;
            }
            let name = path.file_name().map(OsStr::as_bytes).unwrap_or_default();
            if number % 100 == 0 {
                builder.whiteout(dir, name)?;
            } else {
                let node = builder.add(entry.meta, entry.salted(b"changed"), Vec::new())?;
                builder.link(dir, name, node)?;
            }
        }
        Ok(())
    }
}

fn subdirectory(builder: &mut Builder, dir: BuildNode, name: &[u8]) -> Result<BuildNode> {
    if let Some(found) = builder.child(dir, name) {
        return Ok(found);
    }
    let made = builder.add_implicit_dir()?;
    builder.link(dir, name, made)?;
    Ok(made)
}

impl Walked {
    /// The content, with an object that depends on the salt.
    fn salted(&self, salt: &[u8]) -> Content {
        match &self.content {
            Content::Object { id, size } if !salt.is_empty() => {
                let digest = Digest::of(&[&id.0.0[..], salt].concat());
                Content::Object {
                    id: ObjectId(digest),
                    size: *size,
                }
            }
            content => content.clone(),
        }
    }
}

fn content(path: &Path, found: &fs::Metadata) -> Result<Option<Content>> {
    let kind = found.file_type();
    Ok(Some(if kind.is_dir() {
        Content::Directory
    } else if kind.is_symlink() {
        Content::Symlink(fs::read_link(path)?.into_os_string().as_bytes().to_vec())
    } else if kind.is_fifo() {
        Content::Fifo
    } else if kind.is_socket() {
        Content::Socket
    } else if !kind.is_file() {
        return Ok(None);
    } else if found.len() <= INLINE_MAX {
        Content::Inline(fs::read(path)?)
    } else {
        let inode = format!("{} {}", found.dev(), found.ino());
        Content::Object {
            id: ObjectId(Digest::of(inode.as_bytes())),
            size: found.len(),
        }
    }))
}
