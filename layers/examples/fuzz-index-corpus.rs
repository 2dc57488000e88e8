//! Writes the seeds of the fuzz target `index`.
//!
//! `cargo run -p lamina-layers --example fuzz-index-corpus -- fixtures/fuzz/index`, to be run
//! again whenever the format of the index changes.

use std::error::Error;
use std::fs;
use std::path::Path;

use lamina_layers::digest::{Digest, ObjectId};
use lamina_layers::index::{BuildNode, Builder, Content, Index, IndexKind, Meta, merge};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let dir = std::env::args_os()
        .nth(1)
        .ok_or("usage: fuzz-index-corpus DIR")?;
    let dir = Path::new(&dir);
    fs::create_dir_all(dir)?;
    fs::write(
        dir.join("empty"),
        Builder::new().finish(IndexKind::Layer, None)?,
    )?;
    let base = base()?.finish(IndexKind::Layer, Some(Digest::of(b"base")))?;
    fs::write(dir.join("layer"), &base)?;
    let change = change()?.finish(IndexKind::Layer, Some(Digest::of(b"change")))?;
    fs::write(dir.join("layer-with-marks"), &change)?;
    let layers = [Index::from_bytes(base)?, Index::from_bytes(change)?];
    let merged = merge(&layers.each_ref(), Some(Digest::of(b"chain")))?;
    fs::write(dir.join("merged"), merged)?;
    fs::write(dir.join("wide"), wide()?.finish(IndexKind::Merged, None)?)?;
    Ok(())
}

fn add(
    builder: &mut Builder,
    dir: BuildNode,
    name: &str,
    file_type: u32,
    content: Content,
) -> Result<BuildNode> {
    let meta = Meta {
        mode: file_type | 0o755,
        uid: 1000,
        gid: 100,
        mtime: (1_700_000_000, 1),
    };
    let node = builder.add(meta, content, Vec::new())?;
    builder.link(dir, name.as_bytes(), node)?;
    Ok(node)
}

/// Every kind of file.
fn base() -> Result<Builder> {
    let mut builder = Builder::new();
    let root = builder.root();
    let bin = add(&mut builder, root, "bin", libc::S_IFDIR, Content::Directory)?;
    let small = Content::Inline(b"#!/bin/sh\n".to_vec());
    let small = add(&mut builder, bin, "true", libc::S_IFREG, small)?;
    builder.link(root, b"true", small)?;
    builder.link(bin, b"yes", small)?;
    let object = Content::Object {
        id: ObjectId(Digest::of(b"object")),
        size: 1 << 40,
    };
    add(&mut builder, bin, "large", libc::S_IFREG, object)?;
    let target = Content::Symlink(b"../bin/true".to_vec());
    add(&mut builder, bin, "symlink", libc::S_IFLNK, target)?;
    let device = Content::Device { major: 8, minor: 1 };
    add(&mut builder, root, "sda1", libc::S_IFBLK, device.clone())?;
    add(&mut builder, root, "tty", libc::S_IFCHR, device)?;
    add(&mut builder, root, "fifo", libc::S_IFIFO, Content::Fifo)?;
    add(
        &mut builder,
        root,
        "socket",
        libc::S_IFSOCK,
        Content::Socket,
    )?;
    let meta = Meta {
        mode: libc::S_IFDIR | 0o1777,
        uid: 0,
        gid: 0,
        mtime: (-1, 999_999_999),
    };
    let xattrs = [("security.capability", "\u{1}"), ("user.a", "")];
    let xattrs = xattrs
        .map(|(name, value)| (name.into(), value.into()))
        .to_vec();
    builder.set_dir(root, meta, xattrs)?;
    Ok(builder)
}

/// Every mark that a layer can have, to be merged with [`base`].
fn change() -> Result<Builder> {
    let mut builder = Builder::new();
    let root = builder.root();
    builder.whiteout(root, b"tty")?;
    let link = Content::HardLink(b"bin/true".to_vec());
    let link = add(&mut builder, root, "link", libc::S_IFREG, link)?;
    let bin = builder.add_implicit_dir()?;
    builder.link(root, b"bin", bin)?;
    builder.set_opaque(bin);
    builder.link(bin, b"link", link)?;
    Ok(builder)
}

/// A directory with enough entries that looking one up is a search.
fn wide() -> Result<Builder> {
    let mut builder = Builder::new();
    let root = builder.root();
    for number in 0..60 {
        let name = format!("{number}");
        add(&mut builder, root, &name, libc::S_IFIFO, Content::Fifo)?;
    }
    Ok(builder)
}
