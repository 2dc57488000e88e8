//! The dialects of tar and what they can say.

use super::*;
use crate::digest::ObjectId;

#[test]
fn kinds_of_entries() {
    let scratch = scratch();
    let archive = Archive::default()
        .dir("dir/")
        .file("dir/file", b"contents")
        .entry(b"null-flag", 0, b"old", |_| ())
        .entry(b"contiguous", b'7', b"seven", |_| ())
        .entry(b"unknown", b'Q', b"data", |_| ())
        .symlink("symlink", "dir/file")
        .hard_link("hard", "dir/file")
        .entry(b"char", b'3', b"", |head| {
            head.0.set_device_major(1).unwrap();
            head.0.set_device_minor(3).unwrap();
        })
        .entry(b"block", b'4', b"", |head| {
            head.0.set_device_major(259).unwrap();
            head.0.set_device_minor(1_048_575).unwrap();
        })
        .entry(b"fifo", b'6', b"", |_| ())
        .entry(b"setuid", b'0', b"", |head| {
            head.0.set_mode(0o106_755);
            head.0.set_uid(0o7_777_777);
            head.0.set_gid(33);
        })
        .entry(b"old-dir/", 0, b"", |head| head.0.set_mode(0o1777))
        .entry(b"volume", b'V', b"", |_| ())
        .file("empty", b"")
        .end();
    let (info, index) = scratch.import(&archive);
    assert_eq!(info.entries, 13);
    assert_eq!(
        scratch.listing(&index),
        [
            "/ dir implicit",
            "block b 259:1048575 644 0:0 1.0",
            "char c 1:3 644 0:0 1.0",
            "contiguous file 'seven' 644 0:0 1.0",
            "dir dir 755 0:0 1.0",
            "dir/file file 'contents' 644 0:0 1.0 names dir/file=hard",
            "empty file '' 644 0:0 1.0",
            "fifo fifo 644 0:0 1.0",
            "hard file 'contents' 644 0:0 1.0 names dir/file=hard",
            "null-flag file 'old' 644 0:0 1.0",
            "old-dir dir 1777 0:0 1.0",
            "setuid file '' 6755 2097151:33 1.0",
            "symlink -> dir/file 644 0:0 1.0",
            "unknown file 'data' 644 0:0 1.0",
        ]
    );
}

#[test]
fn long_names_of_every_dialect() {
    let scratch = scratch();
    let long = |letter: char| letter.to_string().repeat(150);
    let prefixed = |star: bool| {
        move |head: &mut Head| {
            head.set(345, b"prefix/of");
            if star {
                // star has times after a shorter prefix.
                head.set(345 + 131, b"00000000001\x0000000000001\0");
                head.set(508, b"tar\0");
            }
        }
    };
    let nul = |text: String| [text.as_bytes(), b"\0"].concat();
    let archive = Archive::default()
        .entry(&[b'f'; 100], b'0', b"", |_| ())
        .entry(b"ustar", b'0', b"", prefixed(false))
        .entry(b"star", b'0', b"", prefixed(true))
        // GNU has other things where POSIX has the prefix.
        .entry(b"gnu", b'0', b"", |head| {
            head.gnu();
            head.set(345, b"00000000001");
        })
        .entry(b"././@LongLink", b'L', &nul(long('L')), Head::gnu)
        .entry(b"././@LongLink", b'K', &nul(long('K')), Head::gnu)
        .entry(b"cut", b'2', b"", |head| {
            head.gnu();
            head.link(b"cut");
        })
        .pax(&[("path", long('P').as_bytes()), ("linkpath", b"\xFF=\n")])
        .symlink("cut", "cut")
        .file("short", b"")
        .end();
    let (_, index) = scratch.import(&archive);
    let tail = "file '' 644 0:0 1.0";
    assert_eq!(
        scratch.listing(&index),
        [
            "/ dir implicit".to_owned(),
            format!("{} -> {} 644 0:0 1.0", long('L'), long('K')),
            format!("{} -> \\xff=\\n 644 0:0 1.0", long('P')),
            format!("{} {tail}", "f".repeat(100)),
            format!("gnu {tail}"),
            "prefix dir implicit".to_owned(),
            "prefix/of dir implicit".to_owned(),
            format!("prefix/of/star {tail}"),
            format!("prefix/of/ustar {tail}"),
            format!("short {tail}"),
        ]
    );
}

#[test]
fn v7_headers_without_magic() {
    let scratch = scratch();
    let archive = Archive::default()
        .entry(b"file", 0, b"old", |head| head.set(257, &[0; 8]))
        .entry(b"link", b'1', b"", |head| {
            head.set(257, &[0; 8]);
            head.link(b"file");
        })
        .end();
    let (_, index) = scratch.import(&archive);
    let listing = scratch.listing(&index);
    assert_eq!(listing[1], "file file 'old' 644 0:0 1.0 names file=link");
}

#[test]
fn times_and_owners_beyond_octal() {
    let scratch = scratch();
    let archive = Archive::default()
        .entry(b"binary", b'0', b"", |head| {
            // 2^33 seconds, owner 3,000,000, and a time before 1970.
            head.set(108, &[0x80, 0, 0, 0, 0, 0x2D, 0xC6, 0xC0]);
            head.set(136, &[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]);
        })
        .entry(b"before", b'0', b"", |head| {
            head.set(108, &[0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFE]);
            head.set(136, &[0xFF; 12]);
        })
        .pax(&[
            ("mtime", b"-1.25"),
            ("uid", b"4294967294"),
            ("gid", b"5000000"),
            ("atime", b"7"),
        ])
        .file("pax", b"")
        .pax(&[("mtime", b"1234567890.123456789123")])
        .file("precise", b"")
        .end();
    let (_, index) = scratch.import(&archive);
    assert_eq!(
        scratch.listing(&index)[1..],
        [
            "before file '' 644 4294967294:0 -1.0",
            "binary file '' 644 3000000:0 8589934592.0",
            "pax file '' 644 4294967294:5000000 -2.750000000",
            "precise file '' 644 0:0 1234567890.123456789",
        ]
    );
}

#[test]
fn extended_headers_global_and_local() {
    let scratch = scratch();
    let archive = Archive::default()
        .extended(
            b'g',
            &[
                ("uid", b"7"),
                ("comment", b"x"),
                ("SCHILY.xattr.user.all", b"g"),
            ],
        )
        .file("a", b"")
        .pax(&[
            ("uid", b"8"),
            ("SCHILY.xattr.user.all", b"local"),
            ("SCHILY.xattr.user.bin", b"\0=\n\xFF"),
            ("SCHILY.xattr.user.empty", b""),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ])
        .file("b", b"")
        .extended(b'g', &[("uid", b"")])
        .file("c", b"")
        .end();
    let (_, index) = scratch.import(&archive);
    assert_eq!(
        scratch.listing(&index)[1..],
        [
            "a file '' 644 7:0 1.0 user.all=g",
            "b file '' 644 8:0 1.0 trusted.overlay.opaque=y user.all=local user.bin=\\x00=\\n\\xff user.empty=",
            "c file '' 644 0:0 1.0 user.all=g",
        ]
    );
}

#[test]
fn sizes_in_extended_headers_count() {
    let scratch = scratch();
    let data = noise(1, 5000);
    let archive = Archive::default()
        .pax(&[("size", b"5000")])
        .entry(b"file", b'0', &data, |head| head.0.set_size(0))
        .file("next", b"n")
        .end();
    let (_, index) = scratch.import(&archive);
    let file = index.lookup(Ino::ROOT, b"file").unwrap().ino;
    let id = ObjectId(Digest::of(&data));
    assert!(matches!(index.inode(file).unwrap().data(), Data::Object(found) if found == id));
    assert!(index.lookup(Ino::ROOT, b"next").is_some());
}

/// The contents of a sparse file: "one" at 1000, "two" at 9,000,000, 10,000,000 bytes long.
fn sparse_contents() -> Vec<u8> {
    let mut contents = vec![0; 10_000_000];
    contents[1000..1003].copy_from_slice(b"one");
    contents[9_000_000..9_000_003].copy_from_slice(b"two");
    contents
}

#[track_caller]
fn check_sparse(archive: &[u8]) {
    use std::os::unix::fs::MetadataExt;
    let scratch = scratch();
    let (info, index) = scratch.import(archive);
    let contents = sparse_contents();
    assert_eq!(info.file_bytes, contents.len() as u64);
    let ino = index.lookup(Ino::ROOT, b"sparse").unwrap().ino;
    let inode = index.inode(ino).unwrap();
    assert_eq!(inode.size(), contents.len() as u64);
    let id = ObjectId(Digest::of(&contents));
    assert!(matches!(inode.data(), Data::Object(found) if found == id));
    let object = scratch.store.object_path(&id);
    assert!(std::fs::read(&object).unwrap() == contents);
    let blocks = std::fs::metadata(&object).unwrap().blocks();
    assert!(blocks * 512 < 1_000_000, "the holes are gone");
    assert!(index.lookup(Ino::ROOT, b"after").is_some());
}

#[test]
fn sparse_files_in_gnu_old_format() {
    let number = |value: u64| format!("{value:011o}\0").into_bytes();
    // Ten segments: four fit in the header, so there is an extension.
    let mut map: Vec<_> = (0..8).map(|n| (2_000_000 + n * 4096, 0)).collect();
    map.insert(0, (1000, 3));
    map.push((9_000_000, 3));
    let record = |(offset, length): &(u64, u64)| [number(*offset), number(*length)].concat();
    let first: Vec<u8> = map[..4].iter().flat_map(record).collect();
    let mut extension: Vec<u8> = map[4..].iter().flat_map(record).collect();
    extension.resize(512, 0);
    let archive = Archive::default().entry(b"sparse", b'S', b"", |head| {
        head.gnu();
        head.0.set_size(6);
        head.set(386, &first);
        head.set(482, b"\x01");
        head.set(483, &number(10_000_000));
    });
    let archive = archive.data(&extension).data(b"onetwo").file("after", b"");
    check_sparse(&archive.end());
}

#[test]
fn sparse_files_in_extended_headers() {
    let version =
        |minor: &'static [u8]| [("GNU.sparse.major", &b"0"[..]), ("GNU.sparse.minor", minor)];
    let old = [
        ("GNU.sparse.size", &b"10000000"[..]),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.offset", b"1000"),
        ("GNU.sparse.numbytes", b"3"),
        ("GNU.sparse.offset", b"9000000"),
        ("GNU.sparse.numbytes", b"3"),
    ];
    let archive = Archive::default().pax(&old).file("sparse", b"onetwo");
    check_sparse(&archive.file("after", b"").end());

    let map = [
        ("GNU.sparse.name", &b"sparse"[..]),
        ("GNU.sparse.size", b"10000000"),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.map", b"1000,3,9000000,3"),
    ];
    let archive = Archive::default().pax(&[&version(b"1")[..], &map].concat());
    let archive = archive.file("GNUSparseFile.1/sparse", b"onetwo");
    check_sparse(&archive.file("after", b"").end());
}

#[test]
fn sparse_files_with_the_map_before_the_data() {
    let mut data = b"3\n1000\n3\n9000000\n3\n10000000\n0\n".to_vec();
    data.resize(512, 0);
    data.extend_from_slice(b"onetwo");
    let archive = Archive::default().pax(&[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"sparse"),
        ("GNU.sparse.realsize", b"10000000"),
    ]);
    let archive = archive.file("GNUSparseFile.1/sparse", &data);
    check_sparse(&archive.file("after", b"").end());
}

#[test]
fn small_sparse_files_are_inline() {
    let scratch = scratch();
    let archive = Archive::default()
        .pax(&[("GNU.sparse.size", b"10"), ("GNU.sparse.map", b"2,3,7,1")])
        .file("small", b"abcd")
        .pax(&[("GNU.sparse.size", b"5"), ("GNU.sparse.numblocks", b"0")])
        .file("hole", b"")
        .end();
    let (_, index) = scratch.import(&archive);
    assert_eq!(
        scratch.listing(&index)[1..],
        [
            "hole file '\\x00\\x00\\x00\\x00\\x00' 644 0:0 1.0",
            "small file '\\x00\\x00abc\\x00\\x00d\\x00\\x00' 644 0:0 1.0",
        ]
    );
}

#[test]
fn hard_links_with_a_size() {
    let scratch = scratch();
    let sized = |head: &mut Head| {
        head.link(b"target");
        head.0.set_size(700);
    };
    let data = noise(3, 700);
    let archive = Archive::default()
        .file("target", b"t")
        // Old programs put the size there, and no data.
        .entry(b"old", b'1', b"", sized)
        // cpio and bsdtar put the data there.
        .entry(b"new", b'1', &data, sized)
        .entry(b"only", b'1', &data, |head| {
            head.link(b"lower");
            head.0.set_mode(0o600);
        })
        .entry(b"last", b'1', b"", sized)
        .end();
    let (_, index) = scratch.import(&archive);
    let names = "names last=new=old=target";
    let digest = &Digest::of(&data).hex()[..8];
    let listing = scratch.listing(&index);
    assert_eq!(listing[1], format!("last file 't' 644 0:0 1.0 {names}"));
    // What the store reads back as text is empty: the data is binary.
    assert!(
        listing[4].starts_with("only object "),
        "{digest} {listing:?}"
    );
}
