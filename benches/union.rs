//! How long the union takes for what the kernel asks: `cargo bench --bench union [FILTER]`. No FUSE, so
//! without the price of waking somebody up. The upper is on the filesystem of `TMPDIR`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a benchmark that fails ends"
)]

use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use divan::{Bencher, black_box};
use lamina::fuse::InMemory;
use lamina::lower::Number;
use lamina::union::{RenameMode, SetAttr};

mod fixture;

use fixture::{Fixture, SMALL, image_name, upper_name};

/// Counts allocations, which are shown under the times.
#[global_allocator]
static ALLOCATOR: divan::AllocProfiler = divan::AllocProfiler::system();

const SIZES: [usize; 3] = [10, 1000, 10_000];
/// Files that are copied up: each can be but once.
const COPY_UPS: u32 = 500;

static FIXTURE: LazyLock<Fixture> =
    LazyLock::new(|| Fixture::new(&SIZES, 3 * COPY_UPS as usize).expect("the fixture"));

fn main() {
    LazyLock::force(&FIXTURE);
    divan::main();
}

/// The names that `name` gives, in turn.
struct Turn {
    names: Vec<String>,
    at: AtomicUsize,
}

impl Turn {
    fn new(count: usize, name: impl Fn(usize) -> String) -> Self {
        Self {
            names: (0..count).map(name).collect(),
            at: AtomicUsize::new(0),
        }
    }

    fn next(&self) -> &str {
        let at = self.at.fetch_add(1, Ordering::Relaxed);
        &self.names[at % self.names.len()]
    }
}

fn absent_name(number: usize) -> String {
    format!("no-file-{number}")
}

mod lookup {
    use super::{Bencher, FIXTURE, Turn, absent_name, image_name, upper_name};

    fn in_turn(bencher: Bencher<'_, '_>, dir: &str, name: fn(usize) -> String) {
        let (dir, names) = (FIXTURE.find(dir).unwrap(), Turn::new(500, name));
        bencher.bench(|| FIXTURE.union.lookup(dir, names.next().as_bytes()));
    }

    #[divan::bench]
    fn image(bencher: Bencher<'_, '_>) {
        in_turn(bencher, "image-1000", image_name);
    }

    #[divan::bench]
    fn image_absent(bencher: Bencher<'_, '_>) {
        in_turn(bencher, "image-1000", absent_name);
    }

    #[divan::bench]
    fn merged_in_image(bencher: Bencher<'_, '_>) {
        in_turn(bencher, "merged-1000", image_name);
    }

    #[divan::bench]
    fn merged_in_upper(bencher: Bencher<'_, '_>) {
        in_turn(bencher, "merged-1000", upper_name);
    }

    #[divan::bench]
    fn merged_absent(bencher: Bencher<'_, '_>) {
        in_turn(bencher, "merged-1000", absent_name);
    }
}

mod getattr {
    use super::{Bencher, FIXTURE, black_box};

    fn one(bencher: Bencher<'_, '_>, path: &str) {
        let file = FIXTURE.find(path).unwrap();
        bencher.bench(|| FIXTURE.union.getattr(black_box(file)));
    }

    #[divan::bench]
    fn image(bencher: Bencher<'_, '_>) {
        one(bencher, "image-1000/some-file-7");
    }

    #[divan::bench]
    fn upper(bencher: Bencher<'_, '_>) {
        one(bencher, "merged-1000/new-file-3");
    }
}

mod readdirplus {
    use super::{Bencher, FIXTURE, SIZES};

    #[divan::bench(args = SIZES)]
    fn image(bencher: Bencher<'_, '_>, size: usize) {
        let dir = FIXTURE.find(&format!("image-{size}")).unwrap();
        bencher.bench(|| FIXTURE.list(dir).unwrap());
    }

    #[divan::bench(args = SIZES)]
    fn merged(bencher: Bencher<'_, '_>, size: usize) {
        let dir = FIXTURE.find(&format!("merged-{size}")).unwrap();
        bencher.bench(|| FIXTURE.list(dir).unwrap());
    }

    /// After a change, so that the entries of the directory are put together anew.
    #[divan::bench(args = [10, 1000], sample_count = 50, sample_size = 1)]
    fn merged_anew(bencher: Bencher<'_, '_>, size: usize) {
        let dir = FIXTURE.find(&format!("merged-{size}")).unwrap();
        let change = || {
            let made = FIXTURE.create(dir, "change").unwrap();
            FIXTURE.union.unlink(dir, b"change").unwrap();
            FIXTURE.union.forget(made, 1);
        };
        bencher
            .with_inputs(change)
            .bench_values(|()| FIXTURE.list(dir).unwrap());
    }
}

mod data {
    use super::{Bencher, FIXTURE};

    fn read(bencher: Bencher<'_, '_>, path: &str) {
        let file = FIXTURE.find(path).unwrap();
        let mut room = [0; 4096];
        bencher.bench_local(|| FIXTURE.union.read(file, 0, &mut room).unwrap());
    }

    #[divan::bench]
    fn read_in_the_index(bencher: Bencher<'_, '_>) {
        read(bencher, "inline");
    }

    #[divan::bench]
    fn read_object_4k(bencher: Bencher<'_, '_>) {
        read(bencher, "object");
    }
}

mod copy_up {
    use super::{Bencher, COPY_UPS, FIXTURE, SMALL, SetAttr};

    /// What is decided and made where no contents need be copied.
    #[divan::bench(sample_count = COPY_UPS, sample_size = 1)]
    fn attributes(bencher: Bencher<'_, '_>) {
        let set = SetAttr {
            mode: Some(0o600),
            ..SetAttr::default()
        };
        bencher
            .with_inputs(|| FIXTURE.fresh().unwrap())
            .bench_values(|file| FIXTURE.union.setattr(file, &set).unwrap());
    }

    #[divan::bench(sample_count = COPY_UPS, sample_size = 1)]
    fn small_file(bencher: Bencher<'_, '_>) {
        bencher
            .counter(divan::counter::BytesCount::new(SMALL))
            .with_inputs(|| FIXTURE.fresh().unwrap())
            .bench_values(|file| FIXTURE.union.write(file, 0, b"x", None).unwrap());
    }
}

mod names {
    use super::{Bencher, FIXTURE, RenameMode};

    #[divan::bench]
    fn create_and_unlink(bencher: Bencher<'_, '_>) {
        let dir = FIXTURE.find("merged-10").unwrap();
        bencher.bench_local(|| {
            let made = FIXTURE.create(dir, "made").unwrap();
            FIXTURE.union.unlink(dir, b"made").unwrap();
            FIXTURE.union.forget(made, 1);
        });
    }

    /// There and back: two.
    #[divan::bench]
    fn rename_twice(bencher: Bencher<'_, '_>) {
        let dir = FIXTURE.find("merged-10").unwrap();
        FIXTURE.create(dir, "here").unwrap();
        let rename = |from: &str, to: &str| {
            let (from, to) = (from.as_bytes(), to.as_bytes());
            FIXTURE
                .union
                .rename(dir, from, dir, to, RenameMode::Replace)
        };
        bencher.bench_local(|| {
            rename("here", "there").unwrap();
            rename("there", "here").unwrap();
        });
        FIXTURE.union.unlink(dir, b"here").unwrap();
    }
}

/// From the bytes of a request to those of the reply.
mod request {
    use super::{Bencher, FIXTURE, InMemory, Number, absent_name, black_box, fixture, image_name};

    fn answered(bencher: Bencher<'_, '_>, opcode: u32, node: Number, rest: &[u8]) {
        let server = InMemory::new(&FIXTURE.union);
        let message = fixture::request(opcode, node, rest);
        let mut reply = Vec::with_capacity(1 << 20);
        bencher.bench_local(|| server.answer(black_box(&message), &mut reply));
        assert!(reply.len() > 16, "an error");
    }

    #[divan::bench]
    fn lookup(bencher: Bencher<'_, '_>) {
        let dir = FIXTURE.find("image-1000").unwrap();
        let name = fixture::name_in(&image_name(7));
        answered(bencher, fixture::LOOKUP, dir, &name);
    }

    #[divan::bench]
    fn lookup_absent(bencher: Bencher<'_, '_>) {
        let dir = FIXTURE.find("image-1000").unwrap();
        let name = fixture::name_in(&absent_name(7));
        answered(bencher, fixture::LOOKUP, dir, &name);
    }

    #[divan::bench]
    fn getattr(bencher: Bencher<'_, '_>) {
        let file = FIXTURE.find("image-1000/some-file-7").unwrap();
        answered(bencher, fixture::GETATTR, file, &[0; 16]);
    }

    #[divan::bench]
    fn readdirplus_1000(bencher: Bencher<'_, '_>) {
        let dir = FIXTURE.find("image-1000").unwrap();
        let room = fixture::read_in(1 << 20);
        answered(bencher, fixture::READDIRPLUS, dir, &room);
    }
}
