//! Any bytes as an archive: importing them must not panic, hang or take much memory, and what is
//! accepted has an index that can be opened and merged, and is exported byte for byte.
//!
//! Run it with `RUSTC_BOOTSTRAP=1 cargo fuzz run tar_import target/fuzz/tar_import
//! fixtures/fuzz/tar_import`.

#![no_main]

use std::cell::RefCell;

use lamina_layers::index::merge;
use lamina_layers::store::{Access, Store};
use lamina_layers::tar::{ImportOptions, export_layer, import_layer};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

/// A store that is thrown away before it grows large.
struct Scratch {
    store: Store,
    imports: u32,
    _dir: TempDir,
}

impl Scratch {
    fn new() -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let dir = dir.expect("a temporary directory");
        let store = Store::open(&dir.path().join("store"), Access::ReadWrite).expect("a store");
        Self { store, imports: 0, _dir: dir }
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::new());
}

fuzz_target!(|data: &[u8]| {
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.imports += 1;
        if scratch.imports > 500 {
            *scratch = Scratch::new();
        }
        let options = ImportOptions { max_size: Some(1 << 20), ..ImportOptions::default() };
        let Ok(info) = import_layer(&scratch.store, data, "input", &options) else { return };
        let index = scratch.store.layer_index(&info.diff_id).expect("the index of what was imported");
        // A hard link to a layer that is not there is an error; anything else is not.
        std::hint::black_box(merge(&[&index], None).is_ok());
        let mut exported = Vec::new();
        export_layer(&scratch.store, &info.diff_id, &mut exported).expect("an export");
        assert_eq!(exported.len() as u64, info.tar_size);
        // What was not compressed comes out as it went in.
        if exported.len() == data.len() {
            assert!(exported == data, "the export differs");
        }
    });
});
