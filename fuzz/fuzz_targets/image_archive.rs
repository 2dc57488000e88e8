//! Any bytes as an archive of images: loading them must not panic, hang or take much memory, and what
//! is accepted is an image whose layers come out again.
//!
//! Run it with `RUSTC_BOOTSTRAP=1 cargo fuzz run image_archive target/fuzz/image_archive
//! fixtures/fuzz/image_archive`.

#![no_main]

use std::cell::RefCell;
use std::io::Write;

use lamina_layers::oci::{LoadOptions, Origin, load};
use lamina_layers::store::{Access, Store};
use lamina_layers::tar::export_layer;
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

/// A store that is thrown away before it grows large.
struct Scratch {
    store: Store,
    loads: u32,
    dir: TempDir,
}

impl Scratch {
    fn new() -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let dir = dir.expect("a temporary directory");
        let store = Store::open(&dir.path().join("store"), Access::ReadWrite).expect("a store");
        Self { store, loads: 0, dir }
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::new());
}

fuzz_target!(|data: &[u8]| {
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.loads += 1;
        if scratch.loads > 500 {
            *scratch = Scratch::new();
        }
        let mut options = LoadOptions { all: true, ..LoadOptions::default() };
        options.ingest.max_size = Some(1 << 20);
        options.ingest.keep_blobs = data.len().is_multiple_of(2);
        let path = scratch.dir.path().join("archive");
        let mut file = std::fs::File::create(&path).expect("a file");
        file.write_all(data).expect("written");
        for origin in [Origin::Stream(Box::new(data), "input"), Origin::Path(&path)] {
            let Ok(loaded) = load(&scratch.store, origin, &options) else { continue };
            for image in loaded {
                let id = image.ingested.image.id;
                scratch.store.image_files(&id).expect("the files of an image that was loaded");
                for layer in &image.ingested.image.layers {
                    export_layer(&scratch.store, layer, std::io::sink()).expect("an export");
                }
            }
        }
    });
});
