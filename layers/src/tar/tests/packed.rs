//! Compressed archives, whole and damaged.

use std::io::Read;

use super::*;
use crate::tar::Compression;

/// An archive and what compresses it.
fn archive() -> Vec<u8> {
    Archive::default()
        .file("random", &noise(5, 300_000))
        .file("zeros", &vec![0; 300_000])
        .file("last", b"last")
        .end()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    flate2::bufread::GzEncoder::new(bytes, flate2::Compression::fast())
        .read_to_end(&mut packed)
        .unwrap();
    packed
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    liblzma::bufread::XzEncoder::new(bytes, 0)
        .read_to_end(&mut packed)
        .unwrap();
    packed
}

fn bzip2(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    bzip2::bufread::BzEncoder::new(bytes, bzip2::Compression::fast())
        .read_to_end(&mut packed)
        .unwrap();
    packed
}

const PACKERS: [(Compression, fn(&[u8]) -> Vec<u8>); 4] = [
    (Compression::Gzip, gzip),
    (Compression::Zstd, zstd),
    (Compression::Xz, xz),
    (Compression::Bzip2, bzip2),
];

#[track_caller]
fn imports_as(packed: &[u8], archive: &[u8]) {
    let scratch = scratch();
    let options = ImportOptions::default();
    let info = import_layer(&scratch.store, packed, "packed", &options).unwrap();
    assert_eq!(info.diff_id, DiffId(Digest::of(archive)));
    let mut exported = Vec::new();
    export_layer(&scratch.store, &info.diff_id, &mut exported).unwrap();
    assert!(exported == archive);
}

#[test]
fn every_compression_gives_the_same_layer() {
    let archive = archive();
    for (compression, pack) in PACKERS {
        let packed = pack(&archive);
        assert_eq!(Compression::of(&packed), compression);
        imports_as(&packed, &archive);
    }
    assert_eq!(Compression::of(&archive), Compression::None);
}

#[test]
fn several_members_streams_and_frames() {
    let archive = archive();
    // Parted in the middle of a block, and an empty part.
    let (a, b) = archive.split_at(100_123);
    for (_, pack) in PACKERS {
        imports_as(&[pack(a), pack(b""), pack(b)].concat(), &archive);
    }
    let skippable =
        |number: u8| [&[0x50 + number, 0x2A, 0x4D, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
    let frames = [skippable(0), zstd(a), skippable(9), zstd(b), skippable(15)];
    imports_as(&frames.concat(), &archive);
    // xz may have padding of whole words, gzip of any zeros.
    imports_as(&[xz(a), vec![0; 8], xz(b)].concat(), &archive);
    imports_as(&[gzip(&archive), vec![0; 5]].concat(), &archive);
}

#[test]
fn truncated_archives_are_refused() {
    let scratch = scratch();
    let archive = archive();
    let mut kinds = vec![("tar", archive.clone())];
    for (compression, pack) in PACKERS {
        kinds.push((compression.name(), pack(&archive)));
    }
    for (kind, packed) in kinds {
        let length = packed.len();
        // The end of a plain archive is zeros that may be missing.
        let whole = if kind == "tar" {
            300_000 + 512 + 300_000
        } else {
            length
        };
        for cut in [1, 4, 100, 513, whole / 3, whole * 3 / 4, whole - 1] {
            let message = scratch.refused(&packed[..cut]);
            assert!(
                message.contains("truncated") || message.contains("not a tar archive"),
                "{kind} cut at {cut}: {message}"
            );
        }
    }
}

#[test]
fn damaged_archives_are_refused() {
    let scratch = scratch();
    let archive = archive();
    for (compression, pack) in PACKERS {
        let packed = pack(&archive);
        for at in [packed.len() / 4, packed.len() / 2, packed.len() - 6] {
            let mut damaged = packed.clone();
            damaged[at] ^= 0x55;
            let message = scratch.refused(&damaged);
            assert!(message.contains(compression.name()), "{at}: {message}");
        }
    }
    let message = scratch.refused(&[gzip(&archive), b"garbage".to_vec()].concat());
    assert!(message.contains("follows"), "{message}");
}

#[test]
fn what_is_no_archive_is_refused() {
    let scratch = scratch();
    assert!(scratch.refused(b"").contains("empty"));
    let text = "This is not an archive at all.\n".repeat(100);
    for bytes in [
        text.as_bytes(),
        b"short",
        &zstd(text.as_bytes()),
        &gzip(b"x"),
    ] {
        let message = scratch.refused(bytes);
        assert!(message.contains("not a tar archive"), "{message}");
    }
}

/// Gives an error after some bytes.
struct Failing<'a>(&'a [u8]);

impl Read for Failing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self.0.read(buffer)? {
            0 => Err(std::io::Error::other("the tape is torn")),
            count => Ok(count),
        }
    }
}

#[test]
fn errors_of_the_input_are_told_as_such() {
    let scratch = scratch();
    let archive = archive();
    for bytes in [
        &archive[..5000],
        &zstd(&archive)[..5000],
        &gzip(&archive)[..5000],
        b"",
    ] {
        let options = ImportOptions::default();
        let error = import_layer(&scratch.store, Failing(bytes), "tape 7", &options).unwrap_err();
        let message = error.to_string();
        assert!(
            message.contains("tape 7") && message.contains("torn"),
            "{message}"
        );
    }
}
