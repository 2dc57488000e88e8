//! What the side-by-side benchmark times: plain system calls with next to nothing around them, so
//! that the filesystem's share shows.
//!
//! `bench-work KIND ARGUMENT…` prints a line `phase seconds` for each phase of the work.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const SMALL: u64 = 64 << 10;
const PAGE: usize = 4096;
const PIECE: usize = 1 << 20;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-work {}: {error}", words.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<()> {
    match *words {
        ["walk", dir, times] => walk_times(dir.as_ref(), times.parse()?),
        ["read-small", dir, times] => read_small(dir.as_ref(), times.parse()?),
        ["files", dir, count] => files(dir.as_ref(), count.parse()?),
        ["append-small", dir, count] => append_small(dir.as_ref(), count.parse()?),
        ["append", file] => append(file.as_ref()),
        ["chmod", dir, count] => chmod(dir.as_ref(), count.parse()?),
        ["rename", from, to] => phase("rename", || Ok(fs::rename(from, to)?)),
        ["remove", dir] => phase("remove", || Ok(fs::remove_dir_all(dir)?)),
        ["read-first", file] => phase("read-first", || sequential(file.as_ref())),
        ["large", file] => large(file.as_ref()),
        ["warm-memory", bytes] => warm_memory(bytes.parse()?),
        ["write-new", file, bytes] => write_new(file.as_ref(), bytes.parse()?),
        _ => Err("no such work; see benches/work.rs".into()),
    }
}

/// Times `work` and prints how long it took.
fn phase(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    work()?;
    println!("{name} {:.6}", start.elapsed().as_secs_f64());
    Ok(())
}

/// Calls `found` with the directory, the name and the size of every regular file below `dir`, in the
/// order they are listed. Everything is stat'ed.
fn walk(
    dir: &Path,
    found: &mut impl FnMut(&rustix::fd::OwnedFd, &std::ffi::CStr, u64),
) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::open(dir, flags, Mode::empty())?;
    let device = rustix::fs::fstat(&root)?.st_dev;
    let mut pending = vec![root];
    while let Some(fd) = pending.pop() {
        for entry in Dir::read_from(&fd)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let stat = statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory if stat.st_dev == device => {
                    pending.push(openat(&fd, name, flags, Mode::empty())?);
                }
                FileType::RegularFile => found(&fd, name, stat.st_size as u64),
                _ => {}
            }
        }
    }
    Ok(())
}

fn walk_times(dir: &Path, times: u32) -> Result<()> {
    phase("walk", || {
        (0..times).try_for_each(|_| walk(dir, &mut |_, _, _| {}))
    })
}

/// The paths of the first `count` small files in tree order.
fn small_files(dir: &Path, count: usize) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        let mut entries = fs::read_dir(dir)?.collect::<std::io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let kind = entry.file_type()?;
            if kind.is_dir() {
                pending.push(entry.path());
            } else if kind.is_file() && (1..=SMALL).contains(&entry.metadata()?.len()) {
                found.push(entry.path());
            }
        }
    }
    if found.len() < count {
        return Err(format!("{} small files, wanted {count}", found.len()).into());
    }
    found.truncate(count);
    Ok(found)
}

/// open, read and close of every small file.
fn read_small(dir: &Path, times: u32) -> Result<()> {
    let mut buffer = vec![0; SMALL as usize + 1];
    let mut failed = None;
    phase("read-small", || {
        for _ in 0..times {
            walk(dir, &mut |fd, name, size| {
                if size <= SMALL {
                    let read = openat(fd, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                        .and_then(|file| rustix::io::read(&file, &mut buffer[..]));
                    failed = failed.or(read.err());
                }
            })?;
        }
        failed.map_or(Ok(()), |error| Err(error.into()))
    })
}

/// Creates `count` files of a few bytes, renames and unlinks them.
fn files(dir: &Path, count: u32) -> Result<()> {
    let dir = dir.join("bench-files");
    fs::create_dir(&dir)?;
    let name = |prefix: &str, number: u32| dir.join(format!("{prefix}{number}"));
    phase("create", || {
        (0..count).try_for_each(|number| Ok(fs::write(name("a", number), b"some bytes\n")?))
    })?;
    phase("rename", || {
        (0..count).try_for_each(|number| Ok(fs::rename(name("a", number), name("b", number))?))
    })?;
    phase("unlink", || {
        (0..count).try_for_each(|number| Ok(fs::remove_file(name("b", number))?))
    })
}

fn append(file: &Path) -> Result<()> {
    phase("append", || {
        Ok(OpenOptions::new()
            .append(true)
            .open(file)?
            .write_all(b"\n")?)
    })
}

fn append_small(dir: &Path, count: usize) -> Result<()> {
    let files = small_files(dir, count)?;
    phase("append-small", || {
        files.iter().try_for_each(|file| {
            Ok(OpenOptions::new()
                .append(true)
                .open(file)?
                .write_all(b"\n")?)
        })
    })
}

fn chmod(dir: &Path, count: usize) -> Result<()> {
    let files = small_files(dir, count)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    phase("chmod", || {
        files
            .iter()
            .try_for_each(|file| Ok(fs::set_permissions(file, fs::Permissions::clone(&mode))?))
    })
}

fn sequential(file: &Path) -> Result<()> {
    let mut file = File::open(file)?;
    let mut buffer = vec![0; PIECE];
    while file.read(&mut buffer)? > 0 {}
    Ok(())
}

/// Offsets of pages of a file of `pages`, at random but the same each time.
fn random_offsets(pages: u64, count: usize) -> impl Iterator<Item = u64> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % pages * PAGE as u64
    })
    .take(count)
}

/// Reads and writes a large file, which should be in the page cache, in many ways.
fn large(path: &Path) -> Result<()> {
    const READS: usize = 200_000;
    const WRITES: usize = 50_000;
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let size = file.metadata()?.len();
    let pages = size / PAGE as u64;
    let mut page = [0; PAGE];
    phase("read", || sequential(path))?;
    phase("random-read", || {
        random_offsets(pages, READS).try_for_each(|at| Ok(file.read_exact_at(&mut page, at)?))
    })?;
    phase("mmap-read", || touch_mapped(&file, size))?;
    phase("rewrite", || {
        let piece = vec![1; PIECE];
        (0..size / PIECE as u64)
            .try_for_each(|number| Ok(file.write_all_at(&piece, number * PIECE as u64)?))
    })?;
    phase("random-write", || {
        random_offsets(pages, WRITES).try_for_each(|at| Ok(file.write_all_at(&page, at)?))
    })
}

/// Reads a byte of each page through a mapping.
fn touch_mapped(file: &File, size: u64) -> Result<()> {
    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
    let size = usize::try_from(size)?;
    // SAFETY: a new mapping at an address of the kernel's choice, read below within its size, of a
    // file that nobody shortens meanwhile; unmapped once.
    let sum = unsafe {
        let start = mmap(
            std::ptr::null_mut(),
            size,
            ProtFlags::READ,
            MapFlags::SHARED,
            file,
            0,
        )?;
        let bytes = std::slice::from_raw_parts(start.cast::<u8>(), size);
        let sum: u64 = bytes
            .iter()
            .step_by(PAGE)
            .map(|&byte| u64::from(byte))
            .sum();
        munmap(start, size)?;
        sum
    };
    std::hint::black_box(sum);
    Ok(())
}

/// Uses so much memory once and gives it back. A virtual machine whose host takes free memory away needs
/// long for pages that it gets anew, whoever happens to ask for them first.
fn warm_memory(bytes: usize) -> Result<()> {
    use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
    // SAFETY: a new mapping at an address of the kernel's choice, written to within its size, unmapped once.
    unsafe {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let start = mmap_anonymous(std::ptr::null_mut(), bytes, access, MapFlags::PRIVATE)?;
        // Without huge pages it only takes longer.
        madvise(start, bytes, Advice::LinuxHugepage).ok();
        for page in (0..bytes).step_by(PAGE) {
            start.cast::<u8>().add(page).write_volatile(1);
        }
        munmap(start, bytes)?;
    }
    Ok(())
}

fn write_new(path: &Path, bytes: u64) -> Result<()> {
    phase("write-new", || {
        let mut file = File::create(path)?;
        let piece = vec![2; PIECE];
        (0..bytes / PIECE as u64).try_for_each(|_| Ok(file.write_all(&piece)?))
    })
}
