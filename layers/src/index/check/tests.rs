use proptest::prelude::*;

use super::*;
use crate::index::testing::{describe, sample};
use crate::index::{Index, layout, seal};

/// The tables of an index, to be changed and written again with the right checksums.
struct Parts {
    kind: IndexKind,
    entries: Vec<EntryRecord>,
    attributes: Vec<AttributesRecord>,
    objects: Vec<[u8; 32]>,
    aliases: Vec<AliasRecord>,
    heap: Vec<u8>,
}

impl Parts {
    fn of(file: &[u8]) -> Self {
        let parsed = layout::read(file).unwrap();
        let tables = parsed.layout.tables(file);
        Self {
            kind: parsed.kind,
            entries: tables.entries.to_vec(),
            attributes: tables.attributes.to_vec(),
            objects: tables.objects.to_vec(),
            aliases: tables.aliases.to_vec(),
            heap: tables.heap.to_vec(),
        }
    }

    fn tables(&self) -> Tables<'_> {
        Tables {
            entries: &self.entries,
            attributes: &self.attributes,
            objects: &self.objects,
            aliases: &self.aliases,
            heap: &self.heap,
        }
    }

    fn open(&self) -> Result<Index, IndexError> {
        let tables = self.tables();
        let mut file = layout::head(self.kind, [0; 32], &tables);
        for bytes in layout::section_bytes(&tables) {
            file.extend_from_slice(layout::padding(file.len() as u64));
            file.extend_from_slice(bytes);
        }
        Index::from_bytes(file)
    }

    /// The number of the entry at a path.
    fn number(&self, path: &str) -> usize {
        path.split('/').fold(0, |dir, name| {
            let tables = self.tables();
            let range = Tables::children(&self.entries[dir]);
            let is_it = |at: &u32| tables.name(&self.entries[*at as usize]) == name.as_bytes();
            range.into_iter().find(is_it).unwrap() as usize
        })
    }

    fn entry(&mut self, path: &str) -> &mut EntryRecord {
        let number = self.number(path);
        &mut self.entries[number]
    }

    /// The attributes of the inode at a path.
    fn attributes(&mut self, path: &str) -> &mut AttributesRecord {
        let number = self.entry(path).attributes.get();
        &mut self.attributes[number as usize]
    }

    /// Adds bytes to the heap. Returns their offset.
    fn push(&mut self, bytes: &[u8]) -> u32 {
        let offset = self.heap.len() as u32;
        self.heap.extend_from_slice(bytes);
        offset
    }

    fn rename(&mut self, path: &str, name: &[u8]) {
        let offset = self.push(name);
        let entry = self.entry(path);
        entry.name = offset.into();
        entry.name_len = name.len() as u8;
        let hash = name_hash(name);
        entry.hash_high = ((hash >> 16) as u32).into();
        entry.hash_low = (hash as u16).into();
    }

    fn set_kind(&mut self, path: &str, kind: EntryKind) {
        self.entry(path).kind = kind as u8;
    }
}

/// What makes an index wrong, and the error for it.
type Damage = (&'static str, fn(&mut Parts));

/// In a layer index.
const DAMAGES: &[Damage] = &[
    ("heap: does not begin with a zero byte", |parts| {
        parts.heap[0] = 1;
    }),
    ("heap: does not begin with a zero byte", |parts| {
        parts.heap.clear();
    }),
    ("permissions have more than 12 bits", |parts| {
        parts.attributes("tty").permissions = 0o10000.into();
    }),
    ("reserved field is not zero", |parts| {
        parts.attributes("tty").reserved = 1.into();
    }),
    ("mtime has more than", |parts| {
        parts.attributes("tty").mtime_nsec = 1_000_000_000.into();
    }),
    ("xattrs outside of the heap", |parts| {
        parts.attributes("link").xattrs = u32::MAX.into();
    }),
    ("xattrs run over the end", |parts| {
        let set = parts.push(&[1, 0, 1]);
        parts.attributes("link").xattrs = set.into();
    }),
    ("xattrs run over the end", |parts| {
        let set = parts.push(&[2, 0, 1, 0, 0, 0, 0, b'x']);
        parts.attributes("link").xattrs = set.into();
    }),
    ("empty set of xattrs", |parts| {
        let set = parts.push(&[0, 0]);
        parts.attributes("link").xattrs = set.into();
    }),
    ("illegal xattr name", |parts| {
        let set = parts.push(&[1, 0, 1, 0, 0, 0, 0, 0]);
        parts.attributes("link").xattrs = set.into();
    }),
    ("xattr value too long", |parts| {
        let set = parts.push(&[&[1, 0, 1, 1, 0, 1, 0, b'x'][..], &[0; 65_537]].concat());
        parts.attributes("link").xattrs = set.into();
    }),
    ("xattrs are not sorted", |parts| {
        let set = parts.push(&[2, 0, 1, 0, 0, 0, 0, b'x', 1, 0, 0, 0, 0, b'x']);
        parts.attributes("link").xattrs = set.into();
    }),
    ("xattr sets overlap", |parts| {
        // Each byte of the value is in many sets.
        let one = [1, 0, 1, 0, 1, 0, 0, b'x', 0, 0, 0, 0, 0, 0, 0, 0];
        let first = parts.push(&one.repeat(40));
        for set in 0..40 {
            let mut attributes = parts.attributes[0];
            attributes.xattrs = (first + set * 16).into();
            parts.attributes.push(attributes);
        }
    }),
    ("unknown kind of entry", |parts| {
        parts.entry("tty").kind = 15;
    }),
    ("unknown kind of entry", |parts| parts.entry("tty").kind = 0),
    ("flags do not fit", |parts| {
        parts.entry("gone").kind |= FLAG_LINKS;
    }),
    ("flags do not fit", |parts| {
        parts.entry("dir").kind |= FLAG_LINKS;
    }),
    ("flags do not fit", |parts| {
        parts.entry("tty").kind |= FLAG_OPAQUE;
    }),
    ("flags do not fit", |parts| {
        parts.entry("dir/small").kind |= FLAG_LINKS;
    }),
    ("flags do not fit", |parts| parts.entry("tty").kind |= 128),
    ("no such attributes", |parts| {
        parts.entry("tty").attributes = 1000.into();
    }),
    ("no such object", |parts| {
        parts.entry("dir/other").data = 2.into();
    }),
    ("inline contents too long", |parts| {
        let data = parts.push(&[0; 513]);
        parts.entry("again").data = data.into();
        parts.entry("again").size = 513.into();
    }),
    ("data outside of the heap", |parts| {
        parts.entry("again").data = u32::MAX.into();
    }),
    ("data outside of the heap", |parts| {
        parts.entry("link").size = u64::MAX.into();
    }),
    ("does not have 1 to 4095 bytes", |parts| {
        parts.entry("link").size = 0.into();
    }),
    ("does not have 1 to 4095 bytes", |parts| {
        let data = parts.push(&[b'x'; 4096]);
        parts.entry("link").data = data.into();
        parts.entry("link").size = 4096.into();
    }),
    ("NUL in a symlink target", |parts| {
        let data = parts.push(b"a\0b");
        parts.entry("link").data = data.into();
        parts.entry("link").size = 3.into();
    }),
    ("not a normal relative path", |parts| {
        let data = parts.push(b"../lower");
        parts.entry("hard1").data = data.into();
        parts.entry("hard1").size = 8.into();
    }),
    ("paths of hard links overlap", |parts| {
        let data = parts.push(&b"dir/".repeat(1000));
        for path in ["hard1", "hard2"] {
            parts.entry(path).data = data.into();
            parts.entry(path).size = 3999.into();
        }
    }),
    ("size does not fit", |parts| {
        parts.entry("disk").size = 1.into();
    }),
    ("size does not fit", |parts| {
        parts.entry("gone").size = 1.into();
    }),
    ("size does not fit", |parts| {
        parts.entry("dir/small").size = 1.into();
    }),
    ("data does not fit", |parts| {
        parts.entry("fifo").data = 1.into();
    }),
    ("data does not fit", |parts| {
        parts.entry("socket").data = 1.into();
    }),
    ("data does not fit", |parts| {
        parts.entry("gone").data = 1.into();
    }),
    ("malformed alias", |parts| {
        let number = parts.number("dir/small");
        parts.entries[number].data = (number as u32).into();
    }),
    ("malformed alias", |parts| {
        parts.entry("dir/small").attributes = 1.into();
    }),
    ("not marked to have several names", |parts| {
        let target = parts.entry("dir/small").data.get() as usize;
        parts.entries[target].kind &= !FLAG_LINKS;
    }),
    ("not marked to have several names", |parts| {
        parts.entry("dir/small").data = 0.into();
    }),
    ("no root", |parts| {
        parts.entries.clear();
        parts.aliases.clear();
    }),
    ("not a directory without a name", |parts| {
        parts.entries[0].parent = 1.into();
    }),
    ("not a directory without a name", |parts| {
        parts.entries[0].name = 1.into();
    }),
    ("not a directory without a name", |parts| {
        parts.entries[0].name_len = 1;
    }),
    ("not a directory without a name", |parts| {
        parts.entries[0].hash_low = 1.into();
    }),
    ("not a directory without a name", |parts| {
        parts.entries[0].kind = EntryKind::Socket as u8;
        parts.entries[0].size = 0.into();
        parts.entries[0].data = 0.into();
    }),
    ("in no directory", |parts| {
        let extra = EntryRecord {
            kind: EntryKind::Socket as u8,
            size: 0.into(),
            ..parts.entries[0]
        };
        let extra = EntryRecord {
            data: 0.into(),
            ..extra
        };
        parts.entries.push(extra);
    }),
    ("do not follow those of the directory before", |parts| {
        parts.entry("dir/sub").data = 1.into();
    }),
    ("outside of the entries section", |parts| {
        let dir = parts.entry("dir/sub");
        dir.size = (dir.size.get() + 1).into();
    }),
    ("outside of the entries section", |parts| {
        parts.entry("dir/sub").size = u64::from(u32::MAX).into();
    }),
    ("wrong number of subdirectories", |parts| {
        let dir = parts.entry("dir");
        dir.size = (dir.size.get() + (1 << 32)).into();
    }),
    ("names another directory", |parts| {
        parts.entry("dir/small").parent = 0.into();
    }),
    ("illegal name", |parts| parts.rename("tty", b"")),
    ("illegal name", |parts| parts.rename("tty", b".")),
    ("illegal name", |parts| parts.rename("tty", b"..")),
    ("illegal name", |parts| parts.rename("tty", b"a/b")),
    ("illegal name", |parts| parts.rename("tty", b"a\0b")),
    ("illegal name", |parts| {
        parts.entry("tty").name = u32::MAX.into();
    }),
    ("wrong hash of the name", |parts| {
        parts.entry("tty").hash_low = 0.into();
    }),
    ("wrong hash of the name", |parts| {
        parts.entry("tty").name_len -= 1;
    }),
    ("not sorted by hash and name", |parts| {
        parts.rename("tty", b"fifo");
    }),
    ("not sorted by hash and name", |parts| {
        let first = parts.entries[1];
        parts.entries[1] = EntryRecord {
            kind: first.kind,
            ..parts.entries[2]
        };
        parts.entries[1].kind = parts.entries[2].kind;
    }),
    ("aliases, record 1: not sorted", |parts| {
        parts.aliases.swap(0, 1);
    }),
    ("aliases, record 1: not sorted", |parts| {
        parts.aliases[1] = parts.aliases[0];
    }),
    ("not an alias of the inode", |parts| {
        parts.aliases[0].alias = 1000.into();
    }),
    ("not an alias of the inode", |parts| {
        parts.aliases[0].alias = 0.into();
    }),
    ("not an alias of the inode", |parts| {
        parts.aliases[0].inode = 0.into();
    }),
    ("an alias is missing", |parts| {
        parts.aliases.remove(0);
    }),
    (
        "an inode that is marked to have several names is missing",
        |parts| {
            parts.entry("tty").kind |= FLAG_LINKS;
        },
    ),
];

/// Damages that end the walk of the tree at another place than where they were done.
const MERGED_DAMAGES: &[Damage] = &[
    ("mark that only layers have", |parts| {
        parts.entry("dir").kind |= FLAG_OPAQUE;
    }),
    ("mark that only layers have", |parts| {
        parts.set_kind("socket", EntryKind::Whiteout);
    }),
];

#[test]
fn everything_wrong_is_refused_and_named() {
    let check = |kind, damages: &[Damage]| {
        let file = sample(kind);
        for (number, (expected, damage)) in damages.iter().enumerate() {
            let mut parts = Parts::of(&file);
            damage(&mut parts);
            let error = match parts.open() {
                Ok(_) => panic!("damage {number} was not seen: {expected}"),
                Err(error) => error.to_string(),
            };
            assert!(
                error.contains(expected),
                "damage {number}: {error}, not {expected}"
            );
        }
        Parts::of(&file).open().unwrap();
    };
    check(IndexKind::Layer, DAMAGES);
    check(IndexKind::Merged, MERGED_DAMAGES);
}

proptest! {
    /// Whatever is accepted can be read: accessors agree with each other and do not panic.
    #[test]
    fn damage_with_the_right_checksums_is_refused_or_harmless(
        layer in any::<bool>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let kind = if layer { IndexKind::Layer } else { IndexKind::Merged };
        let mut file = sample(kind);
        for (at, byte) in changes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        seal(&mut file);
        if let Ok(index) = Index::from_bytes(file) {
            describe(&index);
        }
    }
}
