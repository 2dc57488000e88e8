use std::io::Write as _;

use super::*;
use crate::index::format::{Header, Section, name_hash};
use crate::index::testing::{SAME_HASH, describe, finish_layer, sample};
use crate::index::{Builder, seal};

#[test]
fn a_wrong_header_is_refused_and_named() {
    let table = size_of::<Header>();
    let second = table + size_of::<Section>();
    // Offset in the file, new byte, whether to correct the checksum, the error.
    let damages: [(usize, u8, bool, &str); 12] = [
        (0, b'l', true, "not an index"),
        (8, 2, true, "format version 2"),
        (12, 2, true, "unknown kind of index"),
        (24, 1, true, "features 0x1"),
        (28, 4, true, "wrong number of sections"),
        (32, 1, false, "checksum does not match"),
        (table, 2, true, "section entries: not where it should be"),
        (
            table + 4,
            1,
            true,
            "section entries: not where it should be",
        ),
        (table + 8, 0, true, "section entries: does not follow"),
        (second + 8, 9, true, "section attributes: does not follow"),
        (
            table + 16,
            1,
            true,
            "section entries: not a whole number of records",
        ),
        (table + 23, 255, true, "section entries: cut off"),
    ];
    let good = sample(IndexKind::Layer);
    for (at, byte, correct, expected) in damages {
        let mut file = good.clone();
        assert_ne!(file[at], byte, "{expected}");
        file[at] = byte;
        if correct {
            seal(&mut file);
        }
        let error = Index::from_bytes(file).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}, not {expected}");
    }
    let mut longer = good.clone();
    longer.push(0);
    let error = Index::from_bytes(longer.clone()).unwrap_err();
    assert!(matches!(error, IndexError::Length { .. }), "{error}");
    seal(&mut longer);
    let error = Index::from_bytes(longer).unwrap_err();
    assert!(matches!(error, IndexError::Length { .. }), "{error}");
}

#[test]
fn every_changed_byte_is_refused() {
    let good = sample(IndexKind::Layer);
    for at in 0..good.len() {
        for change in [1, 0x80, 0xff] {
            let mut bad = good.clone();
            bad[at] ^= change;
            assert!(Index::from_bytes(bad).is_err(), "byte {at} ^ {change:#x}");
        }
    }
}

#[test]
fn every_truncation_is_refused() {
    let good = sample(IndexKind::Layer);
    for len in 0..good.len() {
        assert!(
            Index::from_bytes(good[..len].to_vec()).is_err(),
            "{len} bytes"
        );
        let mut sealed = good[..len].to_vec();
        seal(&mut sealed);
        assert!(
            Index::from_bytes(sealed).is_err(),
            "{len} bytes with the right checksum"
        );
    }
}

#[test]
fn a_file_is_mapped_and_gives_the_same_as_a_buffer() {
    let bytes = sample(IndexKind::Merged);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&bytes).unwrap();
    let mapped = Index::open(file.path()).unwrap();
    drop(file);
    assert_eq!(mapped.identity(), Some(Digest::of(b"identity")));
    assert_eq!(
        describe(&mapped),
        describe(&Index::from_bytes(bytes).unwrap())
    );
    assert_eq!(mapped.objects().len(), 2);
}

#[test]
fn what_is_no_index_file_is_refused() {
    let empty = tempfile::NamedTempFile::new().unwrap();
    assert!(matches!(Index::open(empty.path()), Err(IndexError::Magic)));
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Index::open(dir.path()), Err(IndexError::NotAFile)));
    assert!(matches!(
        Index::open(&dir.path().join("none")),
        Err(IndexError::Io(_))
    ));
}

#[test]
fn the_seeds_of_the_fuzz_target_are_current() {
    let seeds = std::fs::read_dir("../fixtures/fuzz/index").unwrap();
    let opened = seeds.map(|seed| Index::open(&seed.unwrap().path()));
    let count = opened
        .inspect(|index| assert!(index.is_ok(), "{index:?}, see layers/examples"))
        .count();
    assert_eq!(count, 5);
}

#[test]
fn an_index_can_be_shared_between_threads() {
    fn check<T: Send + Sync>() {}
    check::<Index>();
}

/// An index with empty directories of these names in its root.
fn directories<'a>(names: impl IntoIterator<Item = &'a str>) -> Index {
    let mut builder = Builder::new();
    for name in names {
        let node = builder.add_implicit_dir().unwrap();
        builder.link(builder.root(), name.as_bytes(), node).unwrap();
    }
    finish_layer(builder)
}

#[test]
fn names_with_the_same_hash_are_told_apart() {
    let [one, two] = SAME_HASH;
    assert_eq!(name_hash(one.as_bytes()), name_hash(two.as_bytes()));
    let both = directories(["a", one, "b", two, "c"]);
    for name in SAME_HASH {
        assert_eq!(
            both.lookup(Ino::ROOT, name.as_bytes()).unwrap().name,
            name.as_bytes()
        );
    }
    describe(&both);
    let first = directories(["a", one, "b"]);
    assert!(first.lookup(Ino::ROOT, one.as_bytes()).is_some());
    assert!(first.lookup(Ino::ROOT, two.as_bytes()).is_none());
}

#[test]
fn a_directory_of_any_size_is_searched() {
    for size in (0..40).chain([1000, 3000]) {
        let names: Vec<_> = (0..size).map(|number| number.to_string()).collect();
        describe(&directories(names.iter().map(String::as_str)));
    }
}
