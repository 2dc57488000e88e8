use proptest::prelude::*;

use super::*;
use crate::index::testing::{
    File, Model, describe, directory, finish_layer, node_at, parent_node, path, plain_file,
};
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
    let index = finish_layer(Builder::new());
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
    let xattrs = vec![
        (b"user.b".to_vec(), b"2".to_vec()),
        (b"user.a".to_vec(), vec![0, 1]),
    ];
    let content = Content::Inline(b"hello".to_vec());
    let file = builder
        .add(meta(libc::S_IFREG | 0o4755), content, xattrs)
        .unwrap();
    builder.link(dir, b"motd", file).unwrap();
    builder.link(builder.root(), b"motd", file).unwrap();
    let id = Digest::of(b"layer");
    let index = Index::from_bytes(builder.finish(IndexKind::Layer, Some(id)).unwrap()).unwrap();
    assert_eq!(index.identity(), Some(id));

    let etc = index.lookup(Ino::ROOT, b"etc").unwrap();
    assert_eq!(etc.file_type, libc::DT_DIR);
    assert!(index.lookup(Ino::ROOT, b"usr").is_none());
    let entry = index.lookup(etc.ino, b"motd").unwrap();
    assert_eq!(index.lookup(Ino::ROOT, b"motd").unwrap().ino, entry.ino);
    assert!(index.lookup(entry.ino, b"motd").is_none());
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
    // The second name has a number of its own, which is no inode's.
    assert_eq!(index.inode_count(), 4);
    assert_eq!(index.inodes().count(), 3);
    assert!(index.inode(Ino(3)).is_none());
}

#[test]
fn equal_objects_attributes_and_strings_are_stored_once() {
    let mut builder = Builder::new();
    let id = ObjectId(Digest::of(b"x"));
    for name in [b"a", b"b", b"c"] {
        let xattrs = vec![(b"user.x".to_vec(), vec![7; 1000])];
        let content = Content::Object { id, size: 1 };
        let node = builder
            .add(meta(libc::S_IFREG | 0o644), content, xattrs)
            .unwrap();
        let dir = builder.add_implicit_dir().unwrap();
        builder
            .link(dir, b"a name that is longer than that of a directory", node)
            .unwrap();
        builder.link(builder.root(), name, dir).unwrap();
    }
    let stats = finish_layer(builder).stats();
    assert_eq!(stats.objects, 1);
    assert_eq!(stats.attributes, 2);
    assert!(stats.heap_bytes < 1100, "{stats:?}");
}

#[test]
fn an_entry_wins_over_a_whiteout_of_its_own_layer_in_any_order() {
    let file = |builder: &mut Builder| {
        let content = Content::Inline(Vec::new());
        builder
            .add(meta(libc::S_IFREG), content, Vec::new())
            .unwrap()
    };
    let mut builder = Builder::new();
    let root = builder.root();
    for (name, whiteout_first) in [(b"f1", true), (b"f2", false)] {
        let node = file(&mut builder);
        if whiteout_first {
            builder.whiteout(root, name).unwrap();
            builder.link(root, name, node).unwrap();
        } else {
            builder.link(root, name, node).unwrap();
            builder.whiteout(root, name).unwrap();
        }
    }
    for (name, whiteout_first) in [(b"d1", true), (b"d2", false)] {
        let node = builder.add_implicit_dir().unwrap();
        if whiteout_first {
            builder.whiteout(root, name).unwrap();
            builder.link(root, name, node).unwrap();
        } else {
            builder.link(root, name, node).unwrap();
            builder.whiteout(root, name).unwrap();
        }
        let inside = file(&mut builder);
        builder.link(node, b"inside", inside).unwrap();
    }
    builder.whiteout(root, b"w").unwrap();
    // Between a whiteout and a directory there was a file.
    let (between, dir) = (file(&mut builder), builder.add_implicit_dir().unwrap());
    builder.whiteout(root, b"d3").unwrap();
    builder.link(root, b"d3", between).unwrap();
    builder.link(root, b"d3", dir).unwrap();

    let index = finish_layer(builder);
    let inode = |name: &[u8]| {
        index
            .inode(index.lookup(Ino::ROOT, name).unwrap().ino)
            .unwrap()
    };
    assert_eq!(inode(b"w").data(), Data::Whiteout);
    assert_eq!(inode(b"f1").data(), Data::Inline(b""));
    assert_eq!(inode(b"f2").data(), Data::Inline(b""));
    for name in [b"d1", b"d2", b"d3"] {
        // Not implicit: a deleted directory's attributes do not come back.
        assert!(inode(name).is_opaque() && !inode(name).is_implicit());
    }
    assert_eq!(index.entries(inode(b"d1").ino()).len(), 1);
    assert_eq!(index.entries(inode(b"d2").ino()).len(), 1);
}

#[test]
fn one_whiteout_node_can_delete_several_names() {
    let mut builder = Builder::new();
    let node = builder.add(meta(0), Content::Whiteout, Vec::new()).unwrap();
    for name in [b"a", b"b"] {
        builder.link(builder.root(), name, node).unwrap();
    }
    let index = finish_layer(builder);
    assert_eq!(
        index
            .inodes()
            .skip(1)
            .filter(|inode| inode.data() == Data::Whiteout)
            .count(),
        2
    );
}

#[test]
fn of_two_xattrs_with_one_name_the_later_counts() {
    let mut builder = Builder::new();
    let xattr = |name: &[u8], value: &[u8]| (name.to_vec(), value.to_vec());
    let xattrs = vec![
        xattr(b"user.b", b"1"),
        xattr(b"user.a", b"1"),
        xattr(b"user.b", b"2"),
    ];
    builder
        .set_dir(builder.root(), meta(libc::S_IFDIR), xattrs)
        .unwrap();
    let index = finish_layer(builder);
    let root = index.inode(Ino::ROOT).unwrap();
    assert_eq!(root.xattr(b"user.b"), Some(&b"2"[..]));
    assert_eq!(root.xattrs().len(), 2);
}

#[test]
fn what_cannot_be_in_an_index_is_refused() {
    let mut builder = Builder::new();
    let (regular, link, device) = (libc::S_IFREG, libc::S_IFLNK, libc::S_IFCHR);
    let mut refused = |mode, content, xattrs| {
        builder
            .add(meta(mode), content, xattrs)
            .expect_err("must be refused")
            .to_string()
    };
    let none = Vec::new;
    refused(libc::S_IFDIR, Content::Inline(Vec::new()), none());
    refused(regular, Content::Directory, none());
    refused(regular | 1 << 20, Content::Inline(Vec::new()), none());
    refused(regular, Content::Inline(vec![0; 513]), none());
    refused(link, Content::Symlink(Vec::new()), none());
    refused(link, Content::Symlink(vec![b'x'; 4096]), none());
    refused(link, Content::Symlink(b"a\0b".to_vec()), none());
    refused(
        device,
        Content::Device {
            major: 1 << 12,
            minor: 0,
        },
        none(),
    );
    refused(
        device,
        Content::Device {
            major: 0,
            minor: 1 << 20,
        },
        none(),
    );
    for path in [&b""[..], b"/a", b"a/", b"a//b", b"a/../b", b"./a", b"a\0"] {
        refused(regular, Content::HardLink(path.to_vec()), none());
    }
    let xattr = |name: &[u8], len| vec![(name.to_vec(), vec![0; len])];
    let file = || Content::Inline(Vec::new());
    refused(regular, file(), xattr(b"", 0));
    refused(regular, file(), xattr(&[b'x'; 256], 0));
    let error = refused(regular, file(), xattr(b"user.big", 65_537));
    assert!(
        error.contains("user.big") && error.contains("65537"),
        "{error}"
    );
    let mut late = meta(regular);
    late.mtime.1 = 1_000_000_000;
    assert!(builder.add(late, file(), none()).is_err());

    let node = builder.add(meta(regular), file(), none()).unwrap();
    let dir = builder.add_implicit_dir().unwrap();
    let root = builder.root();
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'x'; 256]] {
        assert!(matches!(
            builder.link(root, name, node),
            Err(BuildError::Name(_))
        ));
    }
    assert!(matches!(
        builder.link(node, b"a", dir),
        Err(BuildError::NotADirectory)
    ));
    assert!(matches!(
        builder.set_dir(node, meta(regular), none()),
        Err(BuildError::NotADirectory)
    ));
    builder.link(root, b"dir", dir).unwrap();
    assert!(matches!(
        builder.link(root, b"two", dir),
        Err(BuildError::DirectoryLinked)
    ));
    assert!(matches!(
        builder.link(dir, b"self", dir),
        Err(BuildError::DirectoryLinked)
    ));
    assert!(matches!(
        builder.link(dir, b"root", root),
        Err(BuildError::DirectoryLinked)
    ));
    assert!(builder.unlink(root, b"dir"));
    builder.link(root, b"two", dir).unwrap();
    builder.whiteout(root, b"gone").unwrap();
    assert!(matches!(
        builder.finish(IndexKind::Merged, None),
        Err(BuildError::LayerOnly)
    ));
}

#[test]
fn the_largest_legal_values_are_kept() {
    let mut builder = Builder::new();
    let xattrs = vec![(vec![b'x'; 255], vec![9; 65_536])];
    let node = builder
        .add(
            meta(libc::S_IFREG),
            Content::Inline(vec![1; 512]),
            xattrs.clone(),
        )
        .unwrap();
    builder.link(builder.root(), &[b'n'; 255], node).unwrap();
    let target = Content::Symlink(vec![b't'; 4095]);
    let link = builder
        .add(meta(libc::S_IFLNK), target.clone(), Vec::new())
        .unwrap();
    builder.link(builder.root(), b"link", link).unwrap();
    let device = Content::Device {
        major: MAJOR_MAX,
        minor: MINOR_MAX,
    };
    let mut far = meta(libc::S_IFBLK);
    far.mtime = (i64::MIN, 999_999_999);
    let device_node = builder.add(far, device.clone(), Vec::new()).unwrap();
    builder
        .link(builder.root(), b"device", device_node)
        .unwrap();
    let described = describe(&finish_layer(builder));
    assert_eq!(described[&vec![b'n'; 255]].0.xattrs, xattrs);
    assert_eq!(described[&b"link".to_vec()].0.content, target);
    assert_eq!(described[&b"device".to_vec()].0.content, device);
    assert_eq!(described[&b"device".to_vec()].0.meta.mtime, far.mtime);
}

#[test]
fn a_very_deep_tree_works() {
    let mut builder = Builder::new();
    let mut dir = builder.root();
    for _ in 0..10_000 {
        let inner = builder.add_implicit_dir().unwrap();
        builder.link(dir, b"d", inner).unwrap();
        dir = inner;
    }
    let index = finish_layer(builder);
    assert_eq!(index.inode_count(), 10_001);
    assert_eq!(index.path_of(Ino(10_000)).len(), 19_999);
}

/// What can be done to a builder.
#[derive(Clone, Debug)]
enum Op {
    File(Vec<u8>, File),
    Directory(Vec<u8>, File),
    /// A name for the file at the first path.
    Link(Vec<u8>, Vec<u8>),
    Unlink(Vec<u8>),
    Opaque(Vec<u8>),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (path(), plain_file()).prop_map(|(path, file)| Op::File(path, file)),
        3 => (path(), directory()).prop_map(|(path, file)| Op::Directory(path, file)),
        3 => (path(), path()).prop_map(|(from, to)| Op::Link(from, to)),
        1 => path().prop_map(Op::Unlink),
        1 => path().prop_map(Op::Opaque),
    ]
}

/// Makes implicit directories above a path of a model, instead of what else is there.
fn make_parents(model: &mut Model, path: &[u8]) {
    for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
        let dir = &path[..at];
        if !model.get(dir).is_some_and(File::is_dir) {
            let implicit = Model::default().files[0].clone();
            model.put_new(dir, implicit);
        }
    }
}

fn apply(builder: &mut Builder, model: &mut Model, op: &Op) {
    match op {
        Op::File(path, file) | Op::Directory(path, file) => {
            let (dir, name) = parent_node(builder, path).unwrap();
            let old = builder
                .child(dir, name)
                .filter(|node| builder.is_dir(*node));
            let xattrs = file.xattrs.clone();
            if let (Some(old), true) = (old, file.is_dir()) {
                builder.set_dir(old, file.meta, xattrs).unwrap();
            } else {
                let node = builder
                    .add(file.meta, file.content.clone(), xattrs)
                    .unwrap();
                builder.link(dir, name, node).unwrap();
            }
            make_parents(model, path);
            let mut file = file.clone();
            file.opaque = file.is_dir() && model.get(path).is_some_and(|old| old.opaque);
            model.put_new(path, file);
        }
        Op::Link(from, to) => {
            let Some(file) = model
                .paths
                .get(from)
                .copied()
                .filter(|at| !model.files[*at].is_dir())
            else {
                return;
            };
            let node = node_at(builder, from).unwrap();
            let (dir, name) = parent_node(builder, to).unwrap();
            builder.link(dir, name, node).unwrap();
            make_parents(model, to);
            model.put(to, file);
        }
        Op::Unlink(path) => {
            let removed = model.remove(path);
            if let Some((dir, name)) = split(builder, path) {
                assert_eq!(builder.unlink(dir, name), removed);
            }
            assert!(node_at(builder, path).is_none());
        }
        Op::Opaque(path) => {
            if let Some(node) = node_at(builder, path) {
                builder.set_opaque(node);
                let file = model.paths[path];
                model.files[file].opaque = model.files[file].is_dir();
            }
        }
    }
}

/// The directory of a path, if it is there, and the last name.
fn split<'a>(builder: &Builder, path: &'a [u8]) -> Option<(BuildNode, &'a [u8])> {
    let at = path.iter().rposition(|byte| *byte == b'/');
    let dir = node_at(builder, &path[..at.unwrap_or(0)])?;
    Some((dir, &path[at.map_or(0, |at| at + 1)..]))
}

/// The same tree, built in the reverse order of its paths.
fn rebuild(model: &Model) -> Builder {
    let mut builder = Builder::new();
    let mut files = std::collections::HashMap::new();
    for (path, number) in model.paths.iter().rev() {
        let File {
            meta,
            content,
            xattrs,
            opaque,
            implicit,
        } = model.files[*number].clone();
        if content == Content::Directory {
            // Entries in it have made it, implicitly.
            let node = node_at(&builder, path).unwrap_or_else(|| {
                let (dir, name) = parent_node(&mut builder, path).unwrap();
                let made = builder.add_implicit_dir().unwrap();
                builder.link(dir, name, made).unwrap();
                made
            });
            if !implicit {
                builder.set_dir(node, meta, xattrs).unwrap();
            }
            if opaque {
                builder.set_opaque(node);
            }
        } else {
            let node = *files
                .entry(*number)
                .or_insert_with(|| builder.add(meta, content, xattrs).unwrap());
            let (dir, name) = parent_node(&mut builder, path).unwrap();
            builder.link(dir, name, node).unwrap();
        }
    }
    builder
}

proptest! {
    #[test]
    fn random_trees_are_read_back(ops in prop::collection::vec(op(), 0..40)) {
        let mut builder = Builder::new();
        let mut model = Model::default();
        for op in &ops {
            apply(&mut builder, &mut model, op);
        }
        let bytes = builder.finish(IndexKind::Layer, None).unwrap();
        let again = rebuild(&model).finish(IndexKind::Layer, None).unwrap();
        prop_assert_eq!(&again, &bytes, "the order of building shows");
        prop_assert_eq!(describe(&Index::from_bytes(bytes).unwrap()), model.describe());
    }
}
