//! Images of many layers and of many entries: the tree is right however many there are. How fast
//! is the business of `make bench`.

use std::fs;

use crate::support::fixture::unpack_by_hand;
use crate::support::lamina::Lamina;
use crate::support::layers::Archive;
use crate::support::needs_root;
use crate::support::sandbox::Sandbox;
use crate::support::tree::{Ignore, Tree};

#[test]
fn four_hundred_layers_make_one_tree() {
    needs_root!();
    let sandbox = Sandbox::new("layers");
    let lamina = Lamina::new(&sandbox);
    // Each layer has 100 files in 10 directories that all layers share, one it replaces in the
    // layer below, and one whiteout.
    let layers: Vec<_> = (0..400)
        .map(|layer| {
            let mut archive = Archive::new(&sandbox, &format!("{layer}.tar"));
            for dir in 0..10 {
                archive = archive.dir(&format!("d{dir}"), 0o755);
                for file in 0..10 {
                    let name = format!("d{dir}/layer{layer}-file{file}");
                    archive = archive.file(&name, name.as_bytes());
                }
            }
            if layer > 0 {
                archive = archive.file(&format!("d3/layer{}-file3", layer - 1), b"replaced");
                archive = archive.file(&format!("d4/.wh.layer{}-file4", layer - 1), b"");
            }
            archive.finish()
        })
        .collect();
    lamina.build("many", &layers);

    let by_hand = sandbox.dir("by-hand");
    unpack_by_hand(&layers, &by_hand);
    let expected = Tree::read(&by_hand);
    assert_eq!(expected.len(), 1 + 10 + 400 * 100 - 399);

    let mount = lamina.mount(&["--name", "m", "many"], &sandbox.join("mnt"));
    let mounted = Tree::read(mount.path());
    // The archives say nothing of the root directory, so tar leaves its attributes to mkdir.
    let root_apart = |tree: &Tree| {
        tree.differences(
            &mounted,
            Ignore {
                mtime: false,
                ..Ignore::OTHER_FILESYSTEM
            },
        )
        .into_iter()
        .filter(|line| !line.starts_with("/: "))
        .collect::<Vec<_>>()
    };
    assert_eq!(root_apart(&expected), Vec::<String>::new());
    fs::write(mount.path().join("d0/layer0-file0"), "changed").unwrap();
    assert_eq!(
        fs::read_to_string(mount.path().join("d0/layer0-file0")).unwrap(),
        "changed"
    );
    mount.unmount();
}

#[test]
fn a_directory_of_a_hundred_thousand_files_lists_each_once() {
    needs_root!();
    let sandbox = Sandbox::new("entries");
    let lamina = Lamina::new(&sandbox);
    let mut archive = Archive::new(&sandbox, "wide.tar").dir("wide", 0o755);
    for file in 0..100_000 {
        archive = archive.file(&format!("wide/{file:06}"), b"");
    }
    lamina.build("wide", &[archive.finish()]);
    let mount = lamina.mount(&["wide"], &sandbox.join("mnt"));
    let wide = mount.path().join("wide");

    // Files are removed and made while the directory is being listed: what was there all the
    // time is listed exactly once.
    let mut seen = Vec::new();
    for (count, entry) in fs::read_dir(&wide).unwrap().enumerate() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if count % 1000 == 0 && count < 50_000 {
            fs::remove_file(wide.join(format!("{:06}", count + 1))).unwrap();
            fs::write(wide.join(format!("new{count}")), "").unwrap();
        }
        seen.push(name);
    }
    seen.sort();
    let total = seen.len();
    seen.dedup();
    assert_eq!(seen.len(), total, "something was listed twice");
    for file in 0..100_000 {
        let removed = file % 1000 == 1 && file < 50_000;
        let name = format!("{file:06}");
        assert!(
            removed || seen.binary_search(&name).is_ok(),
            "{name} was never listed"
        );
    }
    mount.unmount();
}
