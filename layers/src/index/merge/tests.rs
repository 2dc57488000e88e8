use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::index::testing::{
    File, Model, SAME_HASH, describe, directory, finish_layer, merge_layers, node_at, parent_node,
    path, plain_file,
};
use crate::index::{Builder, Content, Data, Meta};

/// A layer for a test, in few words.
#[derive(Default)]
struct Layer(Builder);

impl Layer {
    fn add(mut self, path: &str, mode: u32, content: Content) -> Self {
        let meta = Meta {
            mode,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
        };
        let (dir, name) = parent_node(&mut self.0, path.as_bytes()).unwrap();
        let node = self.0.add(meta, content, Vec::new()).unwrap();
        self.0.link(dir, name, node).unwrap();
        self
    }

    fn file(self, path: &str, contents: &str) -> Self {
        self.add(
            path,
            libc::S_IFREG | 0o644,
            Content::Inline(contents.into()),
        )
    }

    fn dir(self, path: &str, mode: u32) -> Self {
        self.add(path, libc::S_IFDIR | mode, Content::Directory)
    }

    fn hard_link(self, path: &str, target: &str) -> Self {
        self.add(path, libc::S_IFREG, Content::HardLink(target.into()))
    }

    /// Another name in this layer.
    fn link(mut self, path: &str, target: &str) -> Self {
        let node = node_at(&self.0, target.as_bytes()).unwrap();
        let (dir, name) = parent_node(&mut self.0, path.as_bytes()).unwrap();
        self.0.link(dir, name, node).unwrap();
        self
    }

    fn whiteout(mut self, path: &str) -> Self {
        let (dir, name) = parent_node(&mut self.0, path.as_bytes()).unwrap();
        self.0.whiteout(dir, name).unwrap();
        self
    }

    fn opaque(mut self, path: &str) -> Self {
        let node = node_at(&self.0, path.as_bytes()).unwrap();
        self.0.set_opaque(node);
        self
    }
}

fn merged<const N: usize>(layers: [Layer; N]) -> Result<Index, MergeError> {
    merge_layers(&layers.map(|layer| finish_layer(layer.0)))
}

/// All paths but the root; for files with their contents.
fn listing(index: &Index) -> Vec<String> {
    let described = describe(index);
    let line = |(path, (file, _)): (&Vec<u8>, &(File, _))| match &file.content {
        Content::Directory => format!("{}/", path.escape_ascii()),
        Content::Inline(bytes) => format!("{}={}", path.escape_ascii(), bytes.escape_ascii()),
        _ => path.escape_ascii().to_string(),
    };
    described.iter().skip(1).map(line).collect()
}

fn find(index: &Index, path: &str) -> Ino {
    let names = path.split('/');
    names.fold(Ino::ROOT, |dir, name| {
        index.lookup(dir, name.as_bytes()).unwrap().ino
    })
}

#[test]
fn no_layers_are_no_image() {
    assert!(matches!(merge(&[], None), Err(MergeError::NoLayers)));
}

#[test]
fn one_layer_without_marks_keeps_its_numbers_and_identity() {
    let layer = finish_layer(
        Layer::default()
            .file("a/b", "1")
            .link("c", "a/b")
            .file("d", "2")
            .0,
    );
    let id = Digest::of(b"chain");
    let image = Index::from_bytes(merge(&[&layer], Some(id)).unwrap()).unwrap();
    assert_eq!(
        (image.kind(), image.identity()),
        (IndexKind::Merged, Some(id))
    );
    let names = |index: &Index| -> Vec<_> {
        index
            .inodes()
            .map(|inode| (inode.ino(), index.path_of(inode.ino())))
            .collect()
    };
    assert_eq!(names(&image), names(&layer));
    assert!(!image.inode(Ino::ROOT).unwrap().is_implicit());
}

#[test]
fn whiteouts_and_opaque_directories_delete_only_what_is_below() {
    let bottom = Layer::default()
        .dir("usr", 0o700)
        .file("usr/a", "1")
        .file("usr/b", "1")
        .file("etc/c", "1")
        .file("etc/d", "1");
    let top = Layer::default()
        .whiteout("usr/a")
        .whiteout("usr/never")
        .file("usr/new", "2")
        .file("etc/d", "2")
        .opaque("etc");
    let image = merged([bottom, top]).unwrap();
    assert_eq!(
        listing(&image),
        ["etc/", "etc/d=2", "usr/", "usr/b=1", "usr/new=2"]
    );
    // `usr` is implicit in the top layer.
    let usr = image.inode(find(&image, "usr")).unwrap();
    assert_eq!(usr.mode(), libc::S_IFDIR | 0o700);
}

#[test]
fn a_directory_deleted_and_made_again_is_a_new_one() {
    let bottom = Layer::default().dir("d", 0o700).file("d/old", "1");
    let deleted = Layer::default().whiteout("d");
    let again = Layer::default().file("d/new", "2");
    let image = merged([bottom, deleted, again]).unwrap();
    assert_eq!(listing(&image), ["d/", "d/new=2"]);
    assert_eq!(
        image.inode(find(&image, "d")).unwrap().mode(),
        libc::S_IFDIR | 0o755
    );
}

#[test]
fn a_directory_does_not_merge_with_one_below_a_file() {
    let layers = || {
        let bottom = Layer::default()
            .file("x/old", "1")
            .file("y", "1")
            .dir("z", 0o700);
        [bottom, Layer::default().file("x", "2").dir("y", 0o711)]
    };
    let [bottom, middle] = layers();
    assert_eq!(
        listing(&merged([bottom, middle]).unwrap()),
        ["x=2", "y/", "z/"]
    );
    let [bottom, middle] = layers();
    let top = Layer::default().file("x/new", "3").file("y/new", "3");
    let image = merged([bottom, middle, top]).unwrap();
    assert_eq!(listing(&image), ["x/", "x/new=3", "y/", "y/new=3", "z/"]);
    assert_eq!(
        image.inode(find(&image, "x")).unwrap().mode(),
        libc::S_IFDIR | 0o755
    );
    assert_eq!(
        image.inode(find(&image, "y")).unwrap().mode(),
        libc::S_IFDIR | 0o711
    );
}

#[test]
fn an_opaque_directory_that_is_implicit_keeps_the_lower_attributes() {
    let bottom = Layer::default().dir("d", 0o700).file("d/old", "1");
    let top = Layer::default().file("d/new", "2").opaque("d");
    let image = merged([bottom, top]).unwrap();
    assert_eq!(listing(&image), ["d/", "d/new=2"]);
    assert_eq!(
        image.inode(find(&image, "d")).unwrap().mode(),
        libc::S_IFDIR | 0o700
    );
}

#[test]
fn a_hard_link_to_a_lower_file_is_the_same_inode() {
    let bottom = Layer::default()
        .file("bin/a", "1")
        .link("bin/b", "bin/a")
        .file("other", "1");
    let middle = Layer::default()
        .hard_link("c", "bin/a")
        .whiteout("bin/a")
        .link("d", "c");
    let top = Layer::default()
        .hard_link("e", "d")
        .hard_link("f", "other")
        .file("other", "3");
    let image = merged([bottom, middle, top]).unwrap();
    let expected = ["bin/", "bin/b=1", "c=1", "d=1", "e=1", "f=1", "other=3"];
    assert_eq!(listing(&image), expected);
    let inode = image.inode(find(&image, "e")).unwrap();
    assert_eq!(inode.nlink(), 4);
    for path in ["bin/b", "c", "d"] {
        assert_eq!(find(&image, path), inode.ino(), "{path}");
    }
    // The other name of `f` was replaced.
    assert_eq!(image.inode(find(&image, "f")).unwrap().nlink(), 1);
}

#[test]
fn a_hard_link_finds_what_the_layers_below_show() {
    // The lower `d` is hidden by the opaque one in the middle.
    let bottom = Layer::default().file("d/a", "1").file("d/b", "1");
    let middle = Layer::default().file("d/a", "2").opaque("d");
    let top = Layer::default().hard_link("link", "d/a");
    assert_eq!(
        listing(&merged([bottom, middle, top]).unwrap()),
        ["d/", "d/a=2", "link=2"]
    );
    let bottom = Layer::default().file("d/a", "1").file("d/b", "1");
    let middle = Layer::default().file("d/a", "2").opaque("d");
    let top = Layer::default().hard_link("link", "d/b");
    assert!(matches!(
        merged([bottom, middle, top]),
        Err(MergeError::HardLinkToNothing { layer: 2, .. })
    ));
}

#[test]
fn bad_hard_links_are_refused_with_both_paths() {
    for target in ["nothing", "file/in", "dir/nothing", "gone"] {
        let bottom = Layer::default()
            .file("file", "1")
            .dir("dir", 0o755)
            .file("gone", "1");
        let middle = Layer::default().whiteout("gone");
        let top = Layer::default().hard_link("a/link", target);
        let error = merged([bottom, middle, top]).unwrap_err().to_string();
        let expected = format!("'a/link' is a hard link to '{target}', which the layers below");
        assert!(error.contains(&expected), "{error}");
    }
    let top = Layer::default().hard_link("link", "dir");
    let error = merged([Layer::default().dir("dir", 0o755), top])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("'link' is a hard link to 'dir', which is a directory"),
        "{error}"
    );
    // Also when a layer above hides the link.
    let bad = Layer::default().hard_link("link", "nothing");
    assert!(merged([bad, Layer::default().whiteout("link")]).is_err());
}

#[test]
fn a_character_device_0_0_is_no_whiteout() {
    let null = Content::Device { major: 0, minor: 0 };
    let bottom = Layer::default().file("dev", "1");
    let top = Layer::default().add("dev", libc::S_IFCHR | 0o600, null);
    let image = merged([bottom, top]).unwrap();
    let inode = image.inode(find(&image, "dev")).unwrap();
    assert_eq!(inode.data(), Data::Device { major: 0, minor: 0 });
}

#[test]
fn names_with_the_same_hash_do_not_merge() {
    let [one, two] = SAME_HASH;
    let both = || Layer::default().file(one, "1").file(two, "1");
    let expected = [format!("{two}=1"), format!("{one}=2")];
    assert_eq!(
        listing(&merged([both(), Layer::default().file(one, "2")]).unwrap()),
        expected
    );
    let expected = [format!("{two}=2"), format!("{one}=1")];
    let layers = [
        Layer::default().file(one, "1"),
        Layer::default().file(two, "2"),
    ];
    assert_eq!(listing(&merged(layers).unwrap()), expected);
    let image = merged([both(), Layer::default().whiteout(two)]).unwrap();
    assert_eq!(listing(&image), [format!("{one}=1")]);
}

/// An entry of a layer's archive.
#[derive(Clone, Debug)]
enum Op {
    File(File),
    Directory(File),
    HardLink(Vec<u8>),
    Whiteout,
    Opaque,
}

/// The entries of one archive. No path is a directory and something else in one archive; which it
/// is depends on `seed`.
#[derive(Clone, Debug)]
struct Archive {
    seed: u8,
    ops: Vec<(Vec<u8>, Op)>,
}

impl Archive {
    fn is_dir(&self, path: &[u8]) -> bool {
        let depth = path.split(|byte| *byte == b'/').count();
        depth <= 2 && Digest::of(&[&[self.seed], path].concat()).0[0] < 160
    }

    /// Whether an entry keeps to the rule.
    fn allows(&self, path: &[u8], op: &Op) -> bool {
        let fits = match op {
            Op::File(_) | Op::HardLink(_) => !self.is_dir(path),
            Op::Directory(_) | Op::Opaque => self.is_dir(path),
            Op::Whiteout => true,
        };
        let mut parents = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        fits && parents.all(|(at, _)| self.is_dir(&path[..at]))
    }
}

fn archive() -> impl Strategy<Value = Archive> {
    let op = prop_oneof![
        5 => plain_file().prop_map(Op::File),
        4 => directory().prop_map(Op::Directory),
        3 => path().prop_map(Op::HardLink),
        2 => Just(Op::Whiteout),
        1 => Just(Op::Opaque),
    ];
    let ops = prop::collection::vec((path(), op), 0..25);
    (any::<u8>(), ops).prop_map(|(seed, ops)| Archive { seed, ops })
}

/// Reads an archive into a builder as the tar import does.
fn import(archive: &Archive) -> Index {
    let mut builder = Builder::new();
    for (path, op) in archive
        .ops
        .iter()
        .filter(|(path, op)| archive.allows(path, op))
    {
        let (dir, name) = parent_node(&mut builder, path).unwrap();
        let old = builder.child(dir, name);
        match op {
            Op::File(file) => {
                let node = builder.add(file.meta, file.content.clone(), file.xattrs.clone());
                builder.link(dir, name, node.unwrap()).unwrap();
            }
            Op::Directory(file) => {
                if let Some(old) = old.filter(|old| builder.is_dir(*old)) {
                    builder
                        .set_dir(old, file.meta, file.xattrs.clone())
                        .unwrap();
                } else {
                    let node = builder.add(file.meta, Content::Directory, file.xattrs.clone());
                    builder.link(dir, name, node.unwrap()).unwrap();
                }
            }
            Op::HardLink(target) => {
                let own = archive.own_file(target, path);
                let node = own.then(|| node_at(&builder, target)).flatten();
                let node = node.unwrap_or_else(|| {
                    let meta = Meta {
                        mode: 0,
                        uid: 0,
                        gid: 0,
                        mtime: (0, 0),
                    };
                    builder
                        .add(meta, Content::HardLink(target.clone()), Vec::new())
                        .unwrap()
                });
                builder.link(dir, name, node).unwrap();
            }
            Op::Whiteout => builder.whiteout(dir, name).unwrap(),
            Op::Opaque => {
                let node = old.filter(|old| builder.is_dir(*old)).unwrap_or_else(|| {
                    let made = builder.add_implicit_dir().unwrap();
                    builder.link(dir, name, made).unwrap();
                    made
                });
                builder.set_opaque(node);
            }
        }
    }
    finish_layer(builder)
}

impl Archive {
    /// Whether the archive has a file at `target` before the hard link at `link`.
    fn own_file(&self, target: &[u8], link: &[u8]) -> bool {
        let before = self.ops.iter().take_while(|(path, op)| {
            path != link || !matches!(op, Op::HardLink(to) if to == target)
        });
        before
            .filter(|(path, op)| self.allows(path, op))
            .any(|(path, op)| path == target && matches!(op, Op::File(_) | Op::HardLink(_)))
    }
}

/// Unpacks an archive over a tree: first what it deletes, then its entries one after the other.
/// `None` if there is a bad hard link in the end.
fn unpack(below: &Model, archive: &Archive) -> Option<Model> {
    let mut tree = below.clone();
    let ops = || {
        archive
            .ops
            .iter()
            .filter(|(path, op)| archive.allows(path, op))
    };
    for (path, op) in ops() {
        match op {
            Op::Whiteout => {
                tree.remove(path);
            }
            Op::Opaque => tree.clear(path),
            _ => {}
        }
    }
    let mut own: BTreeMap<&[u8], usize> = BTreeMap::new();
    for (path, op) in ops() {
        for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            if !tree.get(&path[..at]).is_some_and(File::is_dir) {
                let implicit = Model::default().files[0].clone();
                tree.put_new(&path[..at], implicit);
            }
        }
        match op {
            Op::File(file) | Op::Directory(file) => {
                let number = tree.put_new(path, file.clone());
                // The import refuses a link to a directory of its own archive.
                if !file.is_dir() {
                    own.insert(path, number);
                }
            }
            Op::HardLink(target) => {
                // As it was below, unless this archive brought another.
                let lower = || below.paths.get(target).copied();
                let file = own.get(&target[..]).copied().or_else(lower);
                let file = match file.filter(|file| !tree.files[*file].is_dir()) {
                    Some(file) => {
                        tree.put(path, file);
                        file
                    }
                    None => tree.put_new(path, bad_link()),
                };
                own.insert(path, file);
            }
            Op::Whiteout => {}
            Op::Opaque => {
                if !tree.get(path).is_some_and(File::is_dir) {
                    let implicit = Model::default().files[0].clone();
                    tree.put_new(path, implicit);
                }
            }
        }
    }
    // A bad link does no harm if the archive replaces it.
    let bad = bad_link();
    let good = tree.paths.values().all(|file| tree.files[*file] != bad);
    good.then_some(tree)
}

/// Stands for a hard link to nothing or to a directory.
fn bad_link() -> File {
    File {
        content: Content::HardLink(Vec::new()),
        ..Model::default().files[0].clone()
    }
}

proptest! {
    #[test]
    fn merging_is_unpacking_one_after_the_other(
        archives in prop::collection::vec(archive(), 1..5),
    ) {
        let mut tree = Some(Model::default());
        // Most random hard links are bad. Leave those out, but for a few.
        let mut layers = Vec::new();
        for Archive { seed, ops } in archives {
            let below = tree.clone().unwrap_or_default();
            let mut archive = Archive { seed, ops: Vec::new() };
            for op in ops {
                archive.ops.push(op);
                if !seed.is_multiple_of(32) && unpack(&below, &archive).is_none() {
                    archive.ops.pop();
                }
            }
            layers.push(import(&archive));
            tree = tree.and_then(|tree| unpack(&tree, &archive));
        }
        match (merge_layers(&layers), tree) {
            (Ok(image), Some(mut tree)) => {
                tree.files.iter_mut().for_each(|file| file.implicit = false);
                prop_assert_eq!(describe(&image), tree.describe());
            }
            (Err(MergeError::HardLinkToNothing { .. } | MergeError::HardLinkToDirectory { .. }), None) => {}
            (image, tree) => prop_assert!(false, "{image:?}, but {tree:?}"),
        }
    }
}
