//! What entries mean together: paths, entries that come twice, links, whiteouts.

use super::*;

#[track_caller]
fn listing(archive: Archive) -> Vec<String> {
    let scratch = scratch();
    let (_, index) = scratch.import(&archive.end());
    let mut lines = scratch.listing(&index);
    assert!(lines.remove(0).starts_with("/ dir"));
    let plain = lines
        .into_iter()
        .map(|line| line.replace(" 644 0:0 1.0", ""));
    plain.map(|line| line.replace(" 755 0:0 1.0", "")).collect()
}

#[test]
fn paths_are_taken_inside_the_root() {
    let archive = Archive::default()
        .file("../../up", b"1")
        .file("/absolute/file", b"2")
        .file("in/../../../out", b"3")
        .file("./here//twice/./x", b"4")
        .entry(b"not-utf8-\xFF\xFE\n", b'0', b"5", |_| ());
    assert_eq!(
        listing(archive),
        [
            "absolute dir implicit",
            "absolute/file file '2'",
            "here dir implicit",
            "here/twice dir implicit",
            "here/twice/x file '4'",
            "not-utf8-\\xff\\xfe\\n file '5'",
            "out file '3'",
            "up file '1'",
        ]
    );
}

#[test]
fn the_root_has_attributes() {
    for path in ["./", ".", "/", "x/.."] {
        let scratch = scratch();
        let archive = Archive::default().entry(path.as_bytes(), b'5', b"", |head| {
            head.0.set_mode(0o1700);
            head.0.set_uid(5);
        });
        let (_, index) = scratch.import(&archive.end());
        assert_eq!(scratch.listing(&index), ["/ dir 1700 5:0 1.0"], "{path}");
    }
}

#[test]
fn the_last_entry_counts_and_directories_keep_what_is_in_them() {
    let archive = Archive::default()
        .file("a", b"first")
        .file("a", b"second")
        .dir("dir")
        .file("dir/inside", b"kept")
        .entry(b"dir", b'5', b"", |head| head.0.set_uid(9))
        .dir("gone")
        .dir("gone/deep")
        .file("gone/deep/file", b"lost")
        .file("gone", b"a file now")
        .file("becomes", b"file")
        .file("becomes-link", b"")
        .symlink("becomes-link", "a")
        .dir("was-link")
        .symlink("was-link", "dir")
        .dir("was-link")
        .file("was-link/x", b"not in dir");
    assert_eq!(
        listing(archive),
        [
            "a file 'second'",
            "becomes file 'file'",
            "becomes-link -> a",
            "dir dir 644 9:0 1.0",
            "dir/inside file 'kept'",
            "gone file 'a file now'",
            "was-link dir",
            "was-link/x file 'not in dir'",
        ]
    );
}

#[test]
fn symlinks_on_the_way_are_followed_inside_the_root() {
    let archive = Archive::default()
        .dir("real")
        .symlink("link", "real")
        .file("link/through", b"1")
        .symlink("escape", "../../../../../../tmp")
        .file("escape/inside", b"2")
        .dir("a")
        .dir("a/b")
        .symlink("a/b/up", "../../real")
        .file("a/b/up/relative", b"3")
        .symlink("a/absolute", "/real/./new")
        .file("a/absolute/deep", b"4")
        .symlink("chain", "link")
        .hard_link("chain/hard", "a/b/up/relative");
    assert_eq!(
        listing(archive),
        [
            "a dir",
            "a/absolute -> /real/./new",
            "a/b dir",
            "a/b/up -> ../../real",
            "chain -> link",
            "escape -> ../../../../../../tmp",
            "link -> real",
            "real dir",
            "real/hard file '3' names real/hard=real/relative",
            "real/new dir implicit",
            "real/new/deep file '4'",
            "real/relative file '3' names real/hard=real/relative",
            "real/through file '1'",
            "tmp dir implicit",
            "tmp/inside file '2'",
        ]
    );
}

/// What a path leads to may change between two entries in the same directory.
#[test]
fn a_symlink_that_replaces_a_directory_leads_elsewhere() {
    let archive = Archive::default()
        .dir("dir")
        .file("dir/a", b"lost")
        .dir("other")
        .symlink("dir", "other")
        .file("dir/b", b"in other");
    assert_eq!(
        listing(archive),
        ["dir -> other", "other dir", "other/b file 'in other'"]
    );
}

#[test]
fn hard_links() {
    let archive = Archive::default()
        .file("file", b"x")
        .hard_link("second", "./file")
        .hard_link("third", "/second")
        .hard_link("file", "third")
        .symlink("symlink", "file")
        .hard_link("to-symlink", "symlink")
        .hard_link("to-lower", "../usr/bin/perl")
        .hard_link("again", "to-lower")
        .symlink("s", "usr")
        .hard_link("through", "s/bin/x")
        .hard_link("replaced", "file")
        .file("replaced", b"own");
    assert_eq!(
        listing(archive),
        [
            "again link to lower usr/bin/perl names again=to-lower",
            "file file 'x' names file=second=third",
            "replaced file 'own'",
            "s -> usr",
            "second file 'x' names file=second=third",
            "symlink -> file names symlink=to-symlink",
            "third file 'x' names file=second=third",
            "through link to lower usr/bin/x",
            "to-lower link to lower usr/bin/perl names again=to-lower",
            "to-symlink -> file names symlink=to-symlink",
        ]
    );
}

#[test]
fn whiteouts_in_any_order() {
    let archive = Archive::default()
        .file("dir/.wh.deleted", b"")
        .file("a/.wh..wh..opq", b"")
        .file("b/before", b"")
        .file("b/.wh..wh..opq", b"")
        .file("b/after", b"")
        // A whiteout is of the layers below only.
        .file("new-file", b"kept")
        .file(".wh.new-file", b"")
        .dir("new-dir")
        .file("new-dir/kept", b"")
        .file(".wh.new-dir", b"")
        .file(".wh.then-dir", b"")
        .file("then-dir/x", b"")
        // Of AUFS itself.
        .file(".wh..wh.plnk/123.456", b"")
        .file(".wh..wh.aufs", b"")
        .file("x/.wh..wh.orph/y", b"");
    assert_eq!(
        listing(archive),
        [
            "a dir opaque implicit",
            "b dir opaque implicit",
            "b/after file ''",
            "b/before file ''",
            "dir dir implicit",
            "dir/deleted whiteout",
            "new-dir dir opaque",
            "new-dir/kept file ''",
            "new-file file 'kept'",
            "then-dir dir opaque 0:0 0.0"
                .replace(" 0:0 0.0", " 755 0:0 0.0")
                .as_str(),
            "then-dir/x file ''",
        ]
    );
}

#[test]
fn the_root_can_be_opaque() {
    let scratch = scratch();
    let (info, index) = scratch.import(&Archive::default().file(".wh..wh..opq", b"").end());
    assert_eq!(scratch.listing(&index), ["/ dir opaque implicit"]);
    assert_eq!(info.whiteouts, 1);
}

/// A char device 0:0 is how overlayfs writes a whiteout, but in an archive it is a device.
#[test]
fn a_device_zero_is_a_device() {
    let archive = Archive::default().entry(b"device", b'3', b"", |_| ());
    assert_eq!(listing(archive), ["device c 0:0"]);
}

#[test]
fn deep_paths() {
    let scratch = scratch();
    let deep = "d/".repeat(10_000) + "bottom";
    let archive = Archive::default()
        .pax(&[("path", deep.as_bytes())])
        .file("cut", b"deep")
        .pax(&[("path", deep.as_bytes())])
        .file("cut", b"deeper");
    let (_, index) = scratch.import(&archive.end());
    assert_eq!(index.inode_count(), 10_002);
    let last = index.inodes().last().unwrap();
    assert_eq!(index.path_of(last.ino()), deep.as_bytes());
}

#[test]
fn layers_merge() {
    let scratch = scratch();
    let base = Archive::default()
        .entry(b"./", b'5', b"", |head| head.0.set_mode(0o700))
        .file("usr/bin/perl", b"perl")
        .file("etc/passwd", b"root")
        .file("gone/x", b"");
    let top = Archive::default()
        .hard_link("usr/bin/perl5", "usr/bin/perl")
        .file("etc/shadow", b"secret")
        .file(".wh.gone", b"");
    let base = scratch.import(&base.end()).0.diff_id;
    let top = scratch.import(&top.end()).0.diff_id;
    let index = scratch.store.merged_index(&[base, top]).unwrap();
    let names: Vec<_> = scratch.listing(&index);
    let names: Vec<_> = names
        .iter()
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    let expected = "/ etc etc/passwd etc/shadow usr usr/bin usr/bin/perl usr/bin/perl5";
    assert_eq!(names.join(" "), expected);
    let error = scratch.store.merged_index(&[top]).unwrap_err().to_string();
    assert!(error.contains(&top.to_string()), "{error}");
    assert!(
        error.contains("usr/bin/perl5") && error.contains("'usr/bin/perl'"),
        "{error}"
    );
}
