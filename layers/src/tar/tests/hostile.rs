//! Archives that lie.

use super::*;

#[track_caller]
fn refused(archive: Archive, words: &[&str]) {
    let message = scratch().refused(&archive.end());
    for word in words {
        assert!(message.contains(word), "'{word}' is not in: {message}");
    }
    assert!(message.len() < 1000, "{} bytes of message", message.len());
}

#[test]
fn headers_that_cannot_be() {
    let file = || Archive::default().file("good", b"x");
    let with =
        |at, bytes: &'static [u8]| file().entry(b"bad", b'0', b"", move |head| head.set(at, bytes));
    refused(with(124, b"not a number"), &["bad", "size"]);
    refused(with(124, &[0xFF; 12]), &["bad", "size"]);
    refused(with(108, b"99999999"), &["bad", "uid"]);
    refused(
        with(136, b"\x80\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF"),
        &["mtime"],
    );
    refused(
        file().entry(b"bad", b'3', b"", |head| head.set(329, b"zzzzzzz\0")),
        &["bad", "devmajor"],
    );
    refused(
        file().entry(b"bad", b'3', b"", |head| head.set(329, b"7777777\0")),
        &["bad", "device"],
    );
    refused(file().entry(b"bad", b'M', b"", |_| ()), &["volumes"]);
    refused(
        file().pax(&[("uid", b"99999999999")]).file("bad", b""),
        &["bad", "owner"],
    );
    let mut damaged = file().file("second", b"");
    damaged.0[1024 + 3] ^= 1;
    refused(damaged, &["checksum", "1536"]);
    let mut lone = file();
    lone.0.resize(lone.0.len() + 512, 0);
    refused(lone.file("after", b""), &["zeros"]);
}

#[test]
fn extended_headers_without_end() {
    let value = vec![b'x'; 15 << 20];
    let mut archive = Archive::default();
    for number in 0..5 {
        let name = format!("SCHILY.xattr.user.{number}");
        archive = archive.pax(&[(&name, &value)]);
    }
    let words = ["extended headers of an entry", "67108864"];
    refused(archive.file("f", b""), &words);
}

#[test]
fn extended_headers_that_cannot_be() {
    let bad = |data: &[u8]| Archive::default().entry(b"x", b'x', data, |_| ());
    refused(bad(b"garbage").file("f", b""), &["extended header"]);
    refused(bad(b"99 path=x\n").file("f", b""), &["extended header"]);
    refused(
        Archive::default().pax(&[("size", b"x")]).file("f", b""),
        &["size"],
    );
    refused(
        Archive::default().pax(&[("path", b"a\0b")]).file("f", b""),
        &["NUL"],
    );
    let huge = |flag| Archive::default().entry(b"x", flag, b"", |head| head.0.set_size(1 << 33));
    refused(huge(b'x'), &["too large"]);
    refused(huge(b'g'), &["too large"]);
    refused(huge(b'L'), &["too large"]);
    let mut global = Archive::default();
    for number in 0..100 {
        let name = format!("SCHILY.xattr.user.{number}");
        global = global.extended(b'g', &[(&name, &[b'v'; 1000])]);
    }
    refused(global.file("f", b""), &["global"]);
}

#[test]
fn sparse_maps_that_cannot_be() {
    let map = |size: &'static [u8], map: &'static [u8], data: &[u8]| {
        Archive::default()
            .pax(&[("GNU.sparse.size", size), ("GNU.sparse.map", map)])
            .file("sparse", data)
    };
    refused(map(b"100", b"50,1,10,1", b"ab"), &["sparse", "order"]);
    refused(map(b"100", b"99,2", b"ab"), &["sparse", "beyond"]);
    refused(map(b"100", b"10,5", b"ab"), &["sparse", "2"]);
    refused(map(b"18446744073709551615", b"", b""), &["sparse", "size"]);
    refused(map(b"", b"1,1", b"a"), &["sparse"]);
    let version = |data: &[u8]| {
        Archive::default()
            .pax(&[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.realsize", b"100"),
            ])
            .file("sparse", data)
    };
    refused(version(b""), &["sparse", "cut short"]);
    refused(version(&[b'1'; 512]), &["sparse", "malformed"]);
    refused(
        version(&[b"9999999\n".repeat(64)].concat()),
        &["sparse", "segments"],
    );
    refused(
        Archive::default()
            .pax(&[("GNU.sparse.major", b"7")])
            .file("s", b""),
        &["7.0"],
    );
    let extended = Archive::default().entry(b"old", b'S', b"", |head| {
        head.gnu();
        head.set(482, b"\x01");
    });
    assert!(scratch().refused(&extended.0).contains("truncated"));
}

#[test]
fn paths_that_cannot_be() {
    let long = format!("dir/{}/x", "n".repeat(256));
    refused(
        Archive::default()
            .pax(&[("path", long.as_bytes())])
            .file("f", b""),
        &["256", "255"],
    );
    refused(Archive::default().symlink("..", "x"), &["root"]);
    refused(
        Archive::default().file("file", b"").file("file/below", b""),
        &["file/below", "'file'", "not a directory"],
    );
    refused(
        Archive::default()
            .symlink("a", "b")
            .symlink("b", "a")
            .file("a/x", b""),
        &["a/x", "symbolic links"],
    );
    refused(
        Archive::default().symlink("empty", ""),
        &["empty", "target"],
    );
    refused(
        Archive::default()
            .pax(&[("linkpath", "t".repeat(4096).as_bytes())])
            .symlink("long", "x"),
        &["long", "4095"],
    );
    let whole_path = "p/".repeat(100_000) + &"n".repeat(300);
    refused(
        Archive::default()
            .pax(&[("path", whole_path.as_bytes())])
            .file("f", b""),
        &["p/p/p/", "300"],
    );
}

#[test]
fn links_and_whiteouts_that_cannot_be() {
    refused(
        Archive::default().dir("dir").hard_link("link", "dir"),
        &["link", "'dir'", "directory"],
    );
    refused(
        Archive::default().hard_link("link", "/"),
        &["link", "directory"],
    );
    refused(
        Archive::default().file("f", b"").hard_link("link", "f/x"),
        &["link", "'f'"],
    );
    for name in [".wh.", ".wh..", ".wh...", "dir/.wh."] {
        refused(Archive::default().file(name, b""), &["whiteout"]);
    }
    refused(Archive::default().file(".wh.x/y", b""), &[".wh.x"]);
}

#[test]
fn a_declared_size_larger_than_the_data() {
    let scratch = scratch();
    for size in [10_000, 1 << 33, 1 << 39] {
        let archive =
            Archive::default()
                .file("good", b"x")
                .entry(b"short", b'0', b"only this", |head| head.0.set_size(size));
        let message = scratch.refused(&archive.end());
        assert!(message.contains("truncated"), "{message}");
    }
}

#[test]
fn what_expands_too_much_is_stopped() {
    let scratch = scratch();
    let limited = ImportOptions {
        max_size: Some(100_000),
        ..ImportOptions::default()
    };
    let too_large = |archive: Vec<u8>| {
        let error = scratch.refused_with(&archive, &limited);
        assert!(matches!(error, ImportError::TooLarge { .. }), "{error}");
        assert!(error.to_string().contains("--max-size"));
    };
    too_large(Archive::default().file("large", &[0; 100_000]).end());
    // Declared only.
    let declared = |head: &mut Head| head.0.set_size(200_000);
    too_large(Archive::default().entry(b"x", b'0', b"", declared).end());
    // Holes count.
    let sparse = [("GNU.sparse.size", &b"99999"[..]), ("GNU.sparse.map", b"")];
    too_large(Archive::default().pax(&sparse).file("holes", b"").end());
    // So does what follows the end.
    too_large([Archive::default().end(), vec![1; 100_000]].concat());
    let many = (0..200).fold(Archive::default(), |archive, _| archive.file("x", b""));
    too_large(many.end());
    // Just below it is fine.
    let good = Archive::default().file("large", &[0; 90_000]).end();
    import_layer(&scratch.store, &*good, "good", &limited).unwrap();

    // Even without a limit there is one: eight exabytes of hole are not hashed.
    let huge = [
        ("GNU.sparse.size", &b"9223372036854775807"[..]),
        ("GNU.sparse.map", b""),
    ];
    let archive = Archive::default().pax(&huge).file("huge", b"").end();
    let error = scratch.refused_with(&archive, &ImportOptions::default());
    assert!(matches!(error, ImportError::TooLarge { .. }), "{error}");
}

#[test]
fn ends_of_archives() {
    let scratch = scratch();
    let file = Archive::default().file("file", b"x").0;
    let zeros = |count| vec![0; count];
    for (tail, why) in [
        (zeros(0), "no end"),
        (zeros(512), "one block of zeros"),
        (zeros(700), "one and a bit"),
        (zeros(1024), "the proper end"),
        (zeros(10_240), "padding"),
        ([zeros(1024), b"garbage".to_vec()].concat(), "garbage"),
        ([zeros(1024), noise(9, 100_000)].concat(), "more garbage"),
    ] {
        let archive = [file.clone(), tail].concat();
        let (info, index) = scratch.import(&archive);
        assert_eq!((info.entries, index.inode_count()), (1, 2), "{why}");
    }
    // Without the padding of the last file.
    let (info, _) = scratch.import(&file[..513]);
    assert_eq!(info.entries, 1);
    let (info, index) = scratch.import(&zeros(1024));
    assert_eq!((info.entries, index.inode_count()), (0, 1));
}

#[test]
fn attributes_that_cannot_be() {
    let xattr = |name: &str, value: &[u8]| {
        let keyword = format!("SCHILY.xattr.{name}");
        Archive::default()
            .pax(&[(&keyword, value)])
            .file("file", b"")
    };
    refused(xattr("", b"x"), &["file", "attribute"]);
    refused(xattr(&"n".repeat(256), b"x"), &["file", "attribute"]);
    refused(xattr("user.large", &[0; 65_537]), &["file", "user.large"]);
}
