//! Any bytes as an index: opening it and using all of it must not panic, hang or take much
//! memory, and what is accepted merges into something that is accepted.
//!
//! Run it with `RUSTC_BOOTSTRAP=1 cargo fuzz run index target/fuzz/index fixtures/fuzz/index`.

#![no_main]

use lamina_layers::index::{Index, Ino, merge, seal};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // Random bytes seldom have the right checksums, so they are corrected.
    let mut sealed = data.to_vec();
    seal(&mut sealed);
    for file in [data.to_vec(), sealed] {
        let Ok(index) = Index::from_bytes(file) else {
            continue;
        };
        read_all(&index);
        // A bad hard link is an error; what is no error must be an index.
        if let Ok(merged) = merge(&[&index, &index], index.identity()) {
            read_all(&Index::from_bytes(merged).expect("a merge makes an index"));
        }
    }
});

fn read_all(index: &Index) {
    for number in 0..=index.inode_count() {
        let ino = Ino(number);
        let entries = index.entries(ino);
        for (at, entry) in entries.clone().enumerate() {
            assert_eq!(entries.get(at), Some(entry));
            assert_eq!(index.lookup(ino, entry.name), Some(entry));
            assert!(entries.first_at(entry.hash) <= at);
            let mut names = index.names_of(entry.ino);
            assert!(names.any(|(dir, name)| dir == ino && name == entry));
        }
        let Some(inode) = index.inode(ino) else {
            continue;
        };
        let fields = (inode.mode(), inode.uid(), inode.gid(), inode.size(), inode.mtime());
        std::hint::black_box((fields, inode.data(), inode.parent(), inode.nlink()));
        for (name, value) in inode.xattrs() {
            assert_eq!(inode.xattr(name), Some(value));
        }
        std::hint::black_box(index.path_of(ino));
    }
    assert_eq!(index.objects().len(), index.stats().objects as usize);
}
