use super::*;
use crate::index::{BuildNode, Builder, Content, Meta};

fn add(builder: &mut Builder, path: &[u8], mode: u32, content: Content) -> BuildNode {
    let meta = Meta {
        mode,
        uid: 0,
        gid: 0,
        mtime: (0, 0),
    };
    let node = builder.add(meta, content, Vec::new()).unwrap();
    let (dir, name) = parent(builder, path);
    builder.link(dir, &name, node).unwrap();
    node
}

fn parent(builder: &mut Builder, path: &[u8]) -> (BuildNode, Vec<u8>) {
    let mut names: Vec<_> = path.split(|byte| *byte == b'/').collect();
    let last = names.pop().unwrap().to_vec();
    let mut dir = builder.root();
    for name in names {
        dir = builder.child(dir, name).unwrap_or_else(|| {
            let made = builder.add_implicit_dir().unwrap();
            builder.link(dir, name, made).unwrap();
            made
        });
    }
    (dir, last)
}

fn file(builder: &mut Builder, path: &[u8], contents: &[u8]) -> BuildNode {
    add(
        builder,
        path,
        libc::S_IFREG | 0o644,
        Content::Inline(contents.to_vec()),
    )
}

fn directory(builder: &mut Builder, path: &[u8], mode: u32) -> BuildNode {
    add(builder, path, libc::S_IFDIR | mode, Content::Directory)
}

fn index(builder: Builder) -> Index {
    Index::from_bytes(builder.finish(IndexKind::Layer, None).unwrap()).unwrap()
}

fn merged(layers: Vec<Builder>) -> Result<Index, MergeError> {
    let layers: Vec<_> = layers.into_iter().map(index).collect();
    let layers: Vec<_> = layers.iter().collect();
    merge(&layers, None).map(|bytes| Index::from_bytes(bytes).unwrap())
}

/// The inode number of a path.
fn find(index: &Index, path: &[u8]) -> Option<Ino> {
    path.split(|byte| *byte == b'/')
        .try_fold(Ino::ROOT, |dir, name| {
            index.lookup(dir, name).map(|entry| entry.ino)
        })
}

fn has(index: &Index, path: &str) -> bool {
    find(index, path.as_bytes()).is_some()
}

#[test]
fn whiteouts_and_opaque_directories_delete_only_what_is_below() {
    let mut bottom = Builder::new();
    directory(&mut bottom, b"usr", 0o700);
    file(&mut bottom, b"usr/a", b"1");
    file(&mut bottom, b"usr/b", b"1");
    file(&mut bottom, b"etc/c", b"1");
    file(&mut bottom, b"etc/d", b"1");
    let mut top = Builder::new();
    let (dir, name) = parent(&mut top, b"usr/a");
    top.whiteout(dir, &name).unwrap();
    file(&mut top, b"usr/new", b"2");
    file(&mut top, b"etc/d", b"2");
    let etc = top.child(top.root(), b"etc").unwrap();
    top.set_opaque(etc);
    let image = merged(vec![bottom, top]).unwrap();
    assert_eq!(image.kind(), IndexKind::Merged);
    assert!(!has(&image, "usr/a") && has(&image, "usr/b") && has(&image, "usr/new"));
    assert!(!has(&image, "etc/c") && has(&image, "etc/d"));
    // `usr` is implicit in the top layer.
    let usr = image.inode(find(&image, b"usr").unwrap()).unwrap();
    assert_eq!(usr.mode(), libc::S_IFDIR | 0o700);
}
