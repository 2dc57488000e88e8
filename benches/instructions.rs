//! What `benches/bench_instructions.py` has callgrind count: each case is run once within
//! `counted_by_callgrind`, after the others of its kind warmed the caches up.
//!
//! Prints a line `name<TAB>operations<TAB>allocations` for each case, in the order in which they are run.

use std::alloc::{GlobalAlloc, Layout, System};
use std::error::Error;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

use lamina::fuse::InMemory;
use lamina::lower::Number;
use lamina::union::{RenameMode, SetAttr};
use lamina_layers::index::{Index, Ino};

mod fixture;

use fixture::{Fixture, Result, image_name, upper_name};

/// Entries of the directories.
const ENTRIES: usize = 1000;
/// Operations of a case that changes something.
const CHANGES: usize = 50;

/// How often memory was allocated.
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The system's allocator, counting what is asked of it.
struct Counting;

// SAFETY: all of it is the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

fn main() -> Result<()> {
    let fixture = Fixture::new(&[ENTRIES], 2 * CHANGES + 2)?;
    case("before all others", 1, |_| Ok::<_, Box<dyn Error>>(()))?;
    index(&fixture)?;
    lookups(&fixture)?;
    attributes(&fixture)?;
    contents(&fixture)?;
    names(&fixture)?;
    requests(&fixture)
}

/// The function that callgrind is told to look at.
#[inline(never)]
fn counted_by_callgrind(work: &mut dyn FnMut() -> Result<()>) -> Result<()> {
    black_box(work())
}

/// Counts `operations` calls of `operation`, which gets their numbers. It was called once before, so
/// that nothing is counted that happens only once.
fn case<T, E: Into<Box<dyn Error>>>(
    name: &str,
    operations: usize,
    mut operation: impl FnMut(usize) -> std::result::Result<T, E>,
) -> Result<()> {
    operation(operations).map_err(Into::into)?;
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    counted_by_callgrind(&mut || {
        for number in 0..operations {
            black_box(operation(number).map_err(Into::into)?);
        }
        Ok(())
    })?;
    let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
    println!("{name}\t{operations}\t{allocations}");
    Ok(())
}

fn names_of(name: impl Fn(usize) -> String) -> Vec<String> {
    (0..=ENTRIES).map(name).collect()
}

fn index(fixture: &Fixture) -> Result<()> {
    case("index: open and check, 1,600 entries", 1, |_| {
        Index::open(&fixture.index)
    })?;
    let index = Index::open(&fixture.index)?;
    let dir = index
        .lookup(Ino::ROOT, b"image-1000")
        .ok_or("no directory")?
        .ino;
    let there = names_of(image_name);
    case("index: lookup", ENTRIES, |number| {
        Ok::<_, Box<dyn Error>>(index.lookup(dir, there[number].as_bytes()))
    })
}

fn lookups(fixture: &Fixture) -> Result<()> {
    let union = &fixture.union;
    let (there, upper) = (names_of(image_name), names_of(upper_name));
    let absent = names_of(|number| format!("no-file-{number}"));
    let image = fixture.find("image-1000")?;
    let merged = fixture.find("merged-1000")?;
    let look_up = |dir: Number, name: &str| union.lookup(dir, name.as_bytes());
    let half = ENTRIES / 2 - 1;
    case("lookup: image directory, there", ENTRIES - 1, |number| {
        look_up(image, &there[number])
    })?;
    case("lookup: image directory, absent", ENTRIES, |number| {
        look_up(image, &absent[number])
    })?;
    for listed in ["", ", listed before"] {
        let name = |what: &str| format!("lookup: merged directory, {what}{listed}");
        case(&name("in the image"), half, |number| {
            look_up(merged, &there[number])
        })?;
        case(&name("in the upper"), half, |number| {
            look_up(merged, &upper[number])
        })?;
        case(&name("absent"), half, |number| {
            look_up(merged, &absent[number])
        })?;
        fixture.list(merged)?;
    }
    case("readdirplus: image directory, 1,000 entries", 1, |_| {
        fixture.list(image)
    })?;
    case("readdirplus: merged directory, 1,000 entries", 1, |_| {
        fixture.list(merged)
    })
}

fn attributes(fixture: &Fixture) -> Result<()> {
    let union = &fixture.union;
    let image = fixture.find("image-1000/some-file-7")?;
    let upper = fixture.find("merged-1000/new-file-7")?;
    let get = |number| union.getattr(number);
    case("getattr: image file", ENTRIES, |_| get(image))?;
    case("getattr: upper file", CHANGES, |_| get(upper))?;
    let set = SetAttr {
        mode: Some(0o600),
        ..SetAttr::default()
    };
    case("setattr: upper file", CHANGES, |_| {
        union.setattr(upper, &set)
    })?;
    let fresh = fresh_files(fixture)?;
    case(
        "setattr: image file, copied up without contents",
        CHANGES,
        |number| union.setattr(fresh[number], &set),
    )
}

/// Files that nobody changed, one for each operation of a case that changes something.
fn fresh_files(fixture: &Fixture) -> Result<Vec<Number>> {
    (0..=CHANGES).map(|_| fixture.fresh()).collect()
}

fn contents(fixture: &Fixture) -> Result<()> {
    let union = &fixture.union;
    let (inline, object) = (fixture.find("inline")?, fixture.find("object")?);
    let mut room = [0; 4096];
    case("read: in the index, 200 bytes", ENTRIES, |_| {
        union.read(inline, 0, &mut room)
    })?;
    case("read: object, 4 KiB", ENTRIES, |number| {
        union.read(object, (number % 16 * 4096) as u64, &mut room)
    })?;
    let fresh = fresh_files(fixture)?;
    case(
        "write: image file of 1,000 bytes, copied up",
        CHANGES,
        |number| union.write(fresh[number], 0, b"x", None),
    )?;
    let written = fresh[0];
    case("write: upper file, 4 KiB", CHANGES, |_| {
        union.write(written, 0, &room, None)
    })
}

fn names(fixture: &Fixture) -> Result<()> {
    let union = &fixture.union;
    let dir = fixture.find("merged-1000")?;
    let (first, second): (Vec<_>, Vec<_>) = (0..=CHANGES)
        .map(|number| (format!("first-{number}"), format!("second-{number}")))
        .unzip();
    let mut made = vec![Number::ROOT; CHANGES + 1];
    case("create", CHANGES, |number| {
        fixture
            .create(dir, &first[number])
            .map(|file| made[number] = file)
    })?;
    case("rename", CHANGES, |number| {
        let (from, to) = (first[number].as_bytes(), second[number].as_bytes());
        union.rename(dir, from, dir, to, RenameMode::Replace)
    })?;
    case("unlink and forget", CHANGES, |number| {
        union.unlink(dir, second[number].as_bytes())?;
        union.forget(made[number], 1);
        Ok::<_, Box<dyn Error>>(())
    })
}

/// From the bytes of a request to those of the reply.
fn requests(fixture: &Fixture) -> Result<()> {
    let server = InMemory::new(&fixture.union);
    let mut reply = Vec::with_capacity(1 << 20);
    let dir = fixture.find("image-1000")?;
    let messages = |opcode, node, rest: &dyn Fn(usize) -> Vec<u8>| -> Vec<_> {
        (0..ENTRIES)
            .map(|number| fixture::request(opcode, node, &rest(number)))
            .collect()
    };
    let there = messages(fixture::LOOKUP, dir, &|number| {
        fixture::name_in(&image_name(number))
    });
    let absent = messages(fixture::LOOKUP, dir, &|_| fixture::name_in("not there"));
    let file = fixture.find("image-1000/some-file-7")?;
    let getattr = messages(fixture::GETATTR, file, &|_| vec![0; 16]);
    let inline = fixture.find("inline")?;
    let read = messages(fixture::READ, inline, &|_| fixture::read_in(4096));
    let list = messages(fixture::READDIRPLUS, dir, &|_| fixture::read_in(1 << 20));
    for (name, count, messages, size) in [
        ("request: LOOKUP, image file", ENTRIES - 1, &there, 16 + 128),
        ("request: LOOKUP, absent", ENTRIES - 1, &absent, 16 + 128),
        (
            "request: GETATTR, image file",
            ENTRIES - 1,
            &getattr,
            16 + 104,
        ),
        (
            "request: READ, 200 bytes in the index",
            ENTRIES - 1,
            &read,
            16 + 200,
        ),
        ("request: READDIRPLUS, 1,000 entries", 1, &list, 1000 * 152),
    ] {
        case(name, count, |number| {
            server.answer(&messages[number], &mut reply);
            if reply.len() < size {
                return Err(format!("{name}: a reply of {} bytes", reply.len()));
            }
            Ok(())
        })?;
    }
    Ok(())
}
