use super::*;
use crate::index::{Data, Index, Ino};

fn meta(mode: u32) -> Meta {
    Meta {
        mode,
        uid: 1000,
        gid: 100,
        mtime: (1_700_000_000, 5),
    }
}

#[test]
fn an_empty_tree_is_a_root() {
    let bytes = Builder::new().finish(IndexKind::Layer, None).unwrap();
    let index = Index::from_bytes(bytes).unwrap();
    let root = index.inode(Ino::ROOT).unwrap();
    assert_eq!(index.inode_count(), 1);
    assert_eq!(root.mode(), libc::S_IFDIR | 0o755);
    assert!(root.is_implicit());
    assert_eq!(root.nlink(), 2);
    assert_eq!(index.identity(), None);
    assert_eq!(index.path_of(Ino::ROOT), b"");
    assert_eq!(index.names_of(Ino::ROOT).count(), 0);
}

#[test]
fn what_was_added_can_be_looked_up() {
    let mut builder = Builder::new();
    let dir = builder
        .add(meta(libc::S_IFDIR | 0o700), Content::Directory, Vec::new())
        .unwrap();
    builder.link(builder.root(), b"etc", dir).unwrap();
    let file = builder
        .add(
            meta(libc::S_IFREG | 0o4755),
            Content::Inline(b"hello".to_vec()),
            vec![
                (b"user.b".to_vec(), b"2".to_vec()),
                (b"user.a".to_vec(), vec![0, 1]),
            ],
        )
        .unwrap();
    builder.link(dir, b"motd", file).unwrap();
    builder.link(builder.root(), b"motd", file).unwrap();
    let id = Digest::of(b"layer");
    let index = Index::from_bytes(builder.finish(IndexKind::Layer, Some(id)).unwrap()).unwrap();
    assert_eq!(index.identity(), Some(id));

    let etc = index.lookup(Ino::ROOT, b"etc").unwrap();
    assert_eq!(etc.file_type, 4);
    assert!(index.lookup(Ino::ROOT, b"usr").is_none());
    let entry = index.lookup(etc.ino, b"motd").unwrap();
    assert_eq!(index.lookup(Ino::ROOT, b"motd").unwrap().ino, entry.ino);
    let inode = index.inode(entry.ino).unwrap();
    assert_eq!(inode.mode(), libc::S_IFREG | 0o4755);
    assert_eq!((inode.uid(), inode.gid()), (1000, 100));
    assert_eq!(inode.mtime(), (1_700_000_000, 5));
    assert_eq!(inode.data(), Data::Inline(b"hello"));
    assert_eq!(inode.size(), 5);
    assert_eq!(inode.nlink(), 2);
    assert_eq!(inode.xattr(b"user.a"), Some(&[0, 1][..]));
    let xattrs: Vec<_> = inode.xattrs().map(|(name, _)| name).collect();
    assert_eq!(xattrs, [b"user.a", b"user.b"]);
    let names: Vec<_> = index
        .names_of(entry.ino)
        .map(|(dir, entry)| (dir, entry.name))
        .collect();
    assert_eq!(names, [(Ino::ROOT, &b"motd"[..]), (etc.ino, b"motd")]);
}
