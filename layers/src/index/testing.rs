//! A naive tree for tests: paths in a `BTreeMap`. Random ones are compared with an index.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{
    BuildError, BuildNode, Builder, Content, Data, Entry, Index, IndexKind, Ino, MergeError, Meta,
};
use crate::digest::{Digest, ObjectId};

pub(super) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// An inode of the model.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct File {
    pub meta: Meta,
    pub content: Content,
    pub xattrs: Xattrs,
    pub opaque: bool,
    pub implicit: bool,
}

impl File {
    fn implicit_dir() -> Self {
        Self {
            meta: Meta {
                mode: libc::S_IFDIR | 0o755,
                uid: 0,
                gid: 0,
                mtime: (0, 0),
            },
            content: Content::Directory,
            xattrs: Vec::new(),
            opaque: false,
            implicit: true,
        }
    }

    pub fn is_dir(&self) -> bool {
        self.content == Content::Directory
    }
}

/// What stands at a path: the inode, and all paths of that inode.
pub(super) type Described = BTreeMap<Vec<u8>, (File, Vec<Vec<u8>>)>;

/// A tree. The root is the empty path; inodes have numbers of their own.
#[derive(Clone, Debug)]
pub(super) struct Model {
    pub files: Vec<File>,
    pub paths: BTreeMap<Vec<u8>, usize>,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            files: vec![File::implicit_dir()],
            paths: BTreeMap::from([(Vec::new(), 0)]),
        }
    }
}

impl Model {
    pub fn get(&self, path: &[u8]) -> Option<&File> {
        self.paths.get(path).and_then(|file| self.files.get(*file))
    }

    /// Takes away what is below `path`.
    pub fn clear(&mut self, path: &[u8]) {
        let prefix = if path.is_empty() {
            Vec::new()
        } else {
            [path, b"/"].concat()
        };
        self.paths
            .retain(|at, _| at == path || at.is_empty() || !at.starts_with(&prefix));
    }

    /// Takes away `path` and what is below it.
    pub fn remove(&mut self, path: &[u8]) -> bool {
        self.clear(path);
        self.paths.remove(path).is_some()
    }

    /// Puts an inode at `path` instead of what is there.
    pub fn put(&mut self, path: &[u8], file: usize) {
        self.remove(path);
        self.paths.insert(path.to_vec(), file);
    }

    /// Puts a new inode at `path`. A directory that is there keeps its entries.
    pub fn put_new(&mut self, path: &[u8], file: File) -> usize {
        let keep = file.is_dir() && self.get(path).is_some_and(File::is_dir);
        self.files.push(file);
        let number = self.files.len() - 1;
        if keep {
            self.paths.insert(path.to_vec(), number);
        } else {
            self.put(path, number);
        }
        number
    }

    pub fn describe(&self) -> Described {
        let mut names: BTreeMap<usize, Vec<Vec<u8>>> = BTreeMap::new();
        for (path, file) in &self.paths {
            names.entry(*file).or_default().push(path.clone());
        }
        let describe = |(path, file): (&Vec<u8>, &usize)| {
            (
                path.clone(),
                (self.files[*file].clone(), names[file].clone()),
            )
        };
        self.paths.iter().map(describe).collect()
    }
}

/// The same of an index. Checks on the way that its accessors agree with each other.
pub(super) fn describe(index: &Index) -> Described {
    let mut described = Described::new();
    let mut left = vec![(Vec::new(), Ino::ROOT)];
    while let Some((path, ino)) = left.pop() {
        let file = describe_inode(index, ino);
        let mut names: Vec<_> = index
            .names_of(ino)
            .map(|(dir, entry)| join(&index.path_of(dir), entry.name))
            .collect();
        if ino == Ino::ROOT {
            names.push(Vec::new());
        } else {
            assert_eq!(index.path_of(ino), names[0]);
        }
        names.sort();
        let links = index.inode(ino).unwrap().nlink() as usize;
        let entries = index.entries(ino);
        if file.is_dir() {
            let subdirs = entries
                .clone()
                .filter(|entry| entry.file_type == libc::DT_DIR);
            assert_eq!(links, 2 + subdirs.count());
        } else {
            assert_eq!(links, names.len());
            assert_eq!(entries.len(), 0);
        }
        check_entries(index, ino);
        left.extend(entries.map(|entry| (join(&path, entry.name), entry.ino)));
        assert!(described.insert(path, (file, names)).is_none());
    }
    let stats = index.stats();
    assert_eq!(stats.dirents as usize, described.len() - 1);
    assert_eq!(stats.inodes as usize, index.inodes().count());
    described
}

pub(super) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() {
        name.to_vec()
    } else {
        [dir, b"/", name].concat()
    }
}

/// Every way to an entry of a directory gives the same.
fn check_entries(index: &Index, dir: Ino) {
    let entries = index.entries(dir);
    let all: Vec<Entry<'_>> = entries.clone().collect();
    assert_eq!(all.len(), entries.len());
    assert!(all.is_sorted_by(|a, b| (a.hash, a.name) < (b.hash, b.name)));
    for (at, entry) in all.iter().enumerate() {
        assert_eq!(entries.get(at).as_ref(), Some(entry));
        assert_eq!(entries.clone().nth(at).as_ref(), Some(entry));
        assert_eq!(index.lookup(dir, entry.name).as_ref(), Some(entry));
        let position = |hash| all.iter().position(|entry| entry.hash >= hash);
        for hash in [entry.hash - 1, entry.hash, entry.hash + 1] {
            assert_eq!(entries.first_at(hash), position(hash).unwrap_or(all.len()));
        }
        assert_eq!(index.lookup(dir, &[entry.name, b"~"].concat()), None);
        let inode = index.inode(entry.ino).unwrap();
        assert_eq!(
            u32::from(entry.file_type) << 12,
            inode.mode() & libc::S_IFMT
        );
        assert!(
            index
                .names_of(entry.ino)
                .any(|(parent, name)| parent == dir && name == *entry)
        );
    }
    assert_eq!(entries.get(all.len()), None);
    assert_eq!(entries.first_at(0), 0);
    assert_eq!(entries.first_at(u64::MAX), all.len());
}

fn describe_inode(index: &Index, ino: Ino) -> File {
    let inode = index.inode(ino).unwrap();
    let content = match inode.data() {
        Data::Directory { .. } => Content::Directory,
        Data::Inline(bytes) => Content::Inline(bytes.to_vec()),
        Data::Object(id) => Content::Object {
            id,
            size: inode.size(),
        },
        Data::Symlink(target) => Content::Symlink(target.to_vec()),
        Data::Device { major, minor } => Content::Device { major, minor },
        Data::Fifo => Content::Fifo,
        Data::Socket => Content::Socket,
        Data::Whiteout => Content::Whiteout,
        Data::HardLink(path) => Content::HardLink(path.to_vec()),
    };
    let xattrs = inode
        .xattrs()
        .map(|(name, value)| (name.to_vec(), value.to_vec()));
    File {
        meta: Meta {
            mode: inode.mode(),
            uid: inode.uid(),
            gid: inode.gid(),
            mtime: inode.mtime(),
        },
        content,
        xattrs: xattrs.collect(),
        opaque: inode.is_opaque(),
        implicit: inode.is_implicit(),
    }
}

/// The node at a path of a builder, with implicit directories on the way. What is in the way and
/// is no directory is replaced.
pub(super) fn parent_node<'a>(
    builder: &mut Builder,
    path: &'a [u8],
) -> Result<(BuildNode, &'a [u8]), BuildError> {
    let mut dir = builder.root();
    let mut names = path.split(|byte| *byte == b'/').peekable();
    let mut last: &[u8] = b"";
    while let Some(name) = names.next() {
        last = name;
        if names.peek().is_none() {
            break;
        }
        let child = builder
            .child(dir, name)
            .filter(|child| builder.is_dir(*child));
        dir = if let Some(child) = child {
            child
        } else {
            let made = builder.add_implicit_dir()?;
            builder.link(dir, name, made)?;
            made
        };
    }
    Ok((dir, last))
}

/// The node at a path of a builder.
pub(super) fn node_at(builder: &Builder, path: &[u8]) -> Option<BuildNode> {
    path.split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty())
        .try_fold(builder.root(), |dir, name| builder.child(dir, name))
}

pub(super) fn finish_layer(builder: Builder) -> Index {
    Index::from_bytes(builder.finish(IndexKind::Layer, None).unwrap()).unwrap()
}

pub(super) fn merge_layers(layers: &[Index]) -> Result<Index, MergeError> {
    let layers: Vec<_> = layers.iter().collect();
    super::merge(&layers, None).map(|bytes| Index::from_bytes(bytes).unwrap())
}

/// Two names with the same 48-bit hash.
pub(super) const SAME_HASH: [&str; 2] = ["357473", "33491749"];

/// Paths of one to three parts of a few names, so that they often meet.
pub(super) fn path() -> impl Strategy<Value = Vec<u8>> {
    let [same, hash] = SAME_HASH;
    let name = prop_oneof![
        Just("a"),
        Just("b"),
        Just("name \u{e9}"),
        Just(same),
        Just(hash)
    ];
    prop::collection::vec(name, 1..=3).prop_map(|names| names.join("/").into_bytes())
}

pub(super) fn meta(file_type: u32) -> impl Strategy<Value = Meta> {
    (
        0..=0o7777_u32,
        any::<bool>(),
        any::<i8>(),
        0..1_000_000_000_u32,
    )
        .prop_map(move |(permissions, owned, seconds, nanoseconds)| Meta {
            mode: file_type | permissions,
            uid: if owned { 1000 } else { u32::MAX - 1 },
            gid: u32::from(owned),
            mtime: (i64::from(seconds) * 1_000_000_000, nanoseconds),
        })
}

/// Sorted, no name twice.
pub(super) fn xattrs() -> impl Strategy<Value = Xattrs> {
    let value = prop::collection::vec(any::<u8>(), 0..4);
    let names = prop_oneof![
        Just(b"user.a".to_vec()),
        Just(b"security.capability".to_vec())
    ];
    prop::collection::btree_map(names, value, 0..=2).prop_map(|set| set.into_iter().collect())
}

/// Anything but a directory, a whiteout or a hard link.
pub(super) fn plain_file() -> impl Strategy<Value = File> {
    let small = prop::collection::vec(0..3_u8, 0..3);
    let content = prop_oneof![
        4 => small.prop_map(|bytes| (libc::S_IFREG, Content::Inline(bytes))),
        4 => any::<u8>().prop_map(|seed| {
            let id = ObjectId(Digest::of(&[seed]));
            (libc::S_IFREG, Content::Object { id, size: 1000 + u64::from(seed) })
        }),
        2 => path().prop_map(|target| (libc::S_IFLNK, Content::Symlink(target))),
        1 => (0..0xfff_u32, 0..0xf_ffff_u32, any::<bool>()).prop_map(|(major, minor, block)| {
            let file_type = if block { libc::S_IFBLK } else { libc::S_IFCHR };
            (file_type, Content::Device { major, minor })
        }),
        1 => Just((libc::S_IFCHR, Content::Device { major: 0, minor: 0 })),
        1 => Just((libc::S_IFIFO, Content::Fifo)),
        1 => Just((libc::S_IFSOCK, Content::Socket)),
    ];
    (content, xattrs()).prop_flat_map(|((file_type, content), xattrs)| {
        meta(file_type).prop_map(move |meta| File {
            meta,
            content: content.clone(),
            xattrs: xattrs.clone(),
            opaque: false,
            implicit: false,
        })
    })
}

pub(super) fn directory() -> impl Strategy<Value = File> {
    (meta(libc::S_IFDIR), xattrs()).prop_map(|(meta, xattrs)| File {
        meta,
        content: Content::Directory,
        xattrs,
        opaque: false,
        implicit: false,
    })
}

/// An index with every kind of entry, and with links.
pub(super) fn sample(kind: IndexKind) -> Vec<u8> {
    let mut builder = Builder::new();
    let meta = |mode| Meta {
        mode: mode | 0o640,
        uid: 1,
        gid: 2,
        mtime: (3, 4),
    };
    let mut add = |path: &str, file_type, content: Content, xattrs| {
        let (dir, name) = parent_node(&mut builder, path.as_bytes()).unwrap();
        let node = builder.add(meta(file_type), content, xattrs).unwrap();
        builder.link(dir, name, node).unwrap();
    };
    let object = |seed: &[u8]| Content::Object {
        id: ObjectId(Digest::of(seed)),
        size: 1000,
    };
    let device = Content::Device { major: 4, minor: 1 };
    let xattr = |name: &str| (name.as_bytes().to_vec(), b"value".to_vec());
    let xattrs = vec![xattr("user.a"), xattr("user.b")];
    add("dir/sub/deep", libc::S_IFREG, object(b"1"), Vec::new());
    add("dir/other", libc::S_IFREG, object(b"2"), xattrs);
    add(
        "again",
        libc::S_IFREG,
        Content::Inline(b"contents".into()),
        Vec::new(),
    );
    add(
        "link",
        libc::S_IFLNK,
        Content::Symlink(b"dir/small".into()),
        vec![xattr("user.c")],
    );
    add("tty", libc::S_IFCHR, device.clone(), Vec::new());
    add("disk", libc::S_IFBLK, device, Vec::new());
    add("fifo", libc::S_IFIFO, Content::Fifo, Vec::new());
    add("socket", libc::S_IFSOCK, Content::Socket, Vec::new());
    if kind == IndexKind::Layer {
        add("gone", 0, Content::Whiteout, Vec::new());
        add(
            "hard1",
            0,
            Content::HardLink(b"lower/file".into()),
            Vec::new(),
        );
        add(
            "hard2",
            0,
            Content::HardLink(b"lower/file".into()),
            Vec::new(),
        );
        builder.set_opaque(node_at(&builder, b"dir/sub").unwrap());
    }
    for (name, target) in [
        ("dir/small", "again"),
        ("dir/sub/small", "again"),
        ("dir/pipe", "fifo"),
    ] {
        let node = node_at(&builder, target.as_bytes()).unwrap();
        let (dir, name) = parent_node(&mut builder, name.as_bytes()).unwrap();
        builder.link(dir, name, node).unwrap();
    }
    builder.finish(kind, Some(Digest::of(b"identity"))).unwrap()
}
