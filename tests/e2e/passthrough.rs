//! Passthrough mode: what changes when the kernel does the I/O itself.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use crate::support::lamina::{Lamina, Mount, NOBODY};
use crate::support::layers::{Archive, noise};
use crate::support::sandbox::Sandbox;
use crate::support::tree::{Ignore, Tree};
use crate::support::{needs_root, run};

const SIZE: usize = 100_000;

struct Fixture {
    sandbox: Sandbox,
    lamina: Lamina,
    objects: Tree,
    data: Vec<u8>,
}

impl Fixture {
    fn new(name: &str) -> Self {
        let sandbox = Sandbox::new(name);
        let lamina = Lamina::new(&sandbox);
        let data = noise(7, SIZE);
        let archive = Archive::new(&sandbox, "layer.tar")
            .dir("d", 0o755)
            .file("d/big", &data)
            .hard_link("d/link", "d/big")
            .file("d/small", b"in the index")
            .finish();
        lamina.build("image", &[archive]);
        let objects = Tree::read(&lamina.store().join("objects"));
        Self {
            sandbox,
            lamina,
            objects,
            data,
        }
    }

    fn mount(&self) -> Mount {
        let options = ["--io", "passthrough", "--name", "kept", "image"];
        self.lamina.mount(&options, &self.sandbox.join("mnt"))
    }

    fn assert_objects_untouched(&self) {
        let now = Tree::read(&self.lamina.store().join("objects"));
        now.assert_same("objects now", &self.objects, "before", Ignore::default());
    }
}

fn all_of(mut file: &File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Each way a file can be changed while another has it open for reading.
fn change(how: &str, path: &Path) {
    let open = |options: &mut OpenOptions| options.open(path).unwrap();
    match how {
        "write" => {
            let file = open(OpenOptions::new().write(true));
            file.write_all_at(b"CHANGED", 10).unwrap();
        }
        "read and write" => {
            let file = open(OpenOptions::new().read(true).write(true));
            file.write_all_at(b"CHANGED", 10).unwrap();
        }
        "append" => open(OpenOptions::new().append(true))
            .write_all(b"CHANGED")
            .unwrap(),
        "open and truncate" => open(OpenOptions::new().write(true).truncate(true))
            .write_all(b"CHANGED")
            .unwrap(),
        "truncate by name" => {
            let size = format!("--size={}", SIZE / 2);
            run(Command::new("truncate").arg(size).arg(path));
        }
        "mmap" => {
            let script = "import mmap,sys\nf=open(sys.argv[1],'r+b')\nm=mmap.mmap(f.fileno(),0)\n\
                          m[10:17]=b'CHANGED'\nm.flush()";
            run(Command::new("python3").args(["-c", script]).arg(path));
        }
        _ => unreachable!(),
    }
}

fn expected(how: &str, data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    match how {
        "append" => data.extend(b"CHANGED"),
        "open and truncate" => data = b"CHANGED".to_vec(),
        "truncate by name" => data.truncate(SIZE / 2),
        _ => data[10..17].copy_from_slice(b"CHANGED"),
    }
    data
}

const WAYS: [&str; 6] = [
    "write",
    "read and write",
    "append",
    "open and truncate",
    "truncate by name",
    "mmap",
];

/// fuse-overlayfs 2.0 gives the writer the reader's backing file: the write lands in the layer.
#[test]
fn no_write_lands_in_a_lower_file_that_somebody_reads() {
    needs_root!();
    for how in WAYS {
        let t = Fixture::new("pt-switch");
        let mount = t.mount();
        let (path, link) = (mount.path().join("d/big"), mount.path().join("d/link"));
        let reader = File::open(&path).unwrap();
        let linked = File::open(&link).unwrap();
        let before = reader.metadata().unwrap();
        assert_eq!(all_of(&reader), t.data);
        change(how, &path);
        let changed = expected(how, &t.data);
        assert_eq!(fs::read(&path).unwrap(), changed, "{how}: by name");
        assert_eq!(
            fs::read(&link).unwrap(),
            changed,
            "{how}: by its other name"
        );
        // As with overlayfs, who had it open keeps what was there.
        assert_eq!(all_of(&reader), t.data, "{how}: reader");
        assert_eq!(all_of(&linked), t.data, "{how}: reader of the other name");
        for now in [fs::metadata(&path).unwrap(), fs::metadata(&link).unwrap()] {
            assert_eq!(now.ino(), before.ino(), "{how}: st_ino");
            assert_eq!(now.len(), changed.len() as u64, "{how}: size");
            assert_eq!(now.nlink(), 2, "{how}: links");
        }
        // Further changes by either name, while the reader is still there.
        change("append", &link);
        let changed = expected("append", &changed);
        for path in [&path, &link] {
            assert_eq!(fs::read(path).unwrap(), changed, "{how}: again");
            assert_eq!(fs::metadata(path).unwrap().len(), changed.len() as u64);
        }
        fs::set_permissions(&link, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let listed = fs::read_dir(mount.path().join("d")).unwrap();
        for entry in listed
            .map(Result::unwrap)
            .filter(|it| it.file_name() != "small")
        {
            assert_eq!(std::os::unix::fs::DirEntryExt::ino(&entry), before.ino());
            assert_eq!(entry.metadata().unwrap().ino(), before.ino());
        }
        drop((reader, linked));
        assert_eq!(
            fs::read(&path).unwrap(),
            changed,
            "{how}: after the readers"
        );
        mount.unmount();
        t.assert_objects_untouched();
        let mount = t.mount();
        assert_eq!(fs::read(mount.path().join("d/link")).unwrap(), changed);
        mount.unmount();
    }
}

#[test]
fn a_file_in_the_index_can_be_read_and_written_at_once() {
    needs_root!();
    let t = Fixture::new("pt-small");
    let mount = t.mount();
    let path = mount.path().join("d/small");
    let reader = File::open(&path).unwrap();
    assert_eq!(all_of(&reader), b"in the index");
    let writer = OpenOptions::new().write(true).open(&path).unwrap();
    writer.write_all_at(b"IN", 0).unwrap();
    assert_eq!(all_of(&reader), b"IN the index");
    drop((reader, writer));
    OpenOptions::new()
        .append(true)
        .open(&path)
        .unwrap()
        .write_all(b"!")
        .unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"IN the index!");
    mount.unmount();
    t.assert_objects_untouched();
}

#[test]
fn changed_attributes_do_not_part_a_reader_from_the_file() {
    needs_root!();
    let t = Fixture::new("pt-chmod");
    let mount = t.mount();
    let path = mount.path().join("d/big");
    let reader = File::open(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(reader.metadata().unwrap().mode() & 0o777, 0o640);
    let second = File::open(&path).unwrap();
    change("append", &path);
    assert_eq!(all_of(&second), t.data);
    assert_eq!(fs::read(&path).unwrap(), expected("append", &t.data));
    drop((reader, second));
    mount.unmount();
    t.assert_objects_untouched();
}

#[test]
fn sizes_and_times_follow_what_the_kernel_writes() {
    needs_root!();
    let t = Fixture::new("pt-times");
    let mount = t.mount();
    let path = mount.path().join("new");
    let mut file = File::create(&path).unwrap();
    let first = file.metadata().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(30));
    file.write_all(&t.data).unwrap();
    let then = fs::metadata(&path).unwrap();
    assert_eq!(then.len(), SIZE as u64);
    assert!((then.mtime(), then.mtime_nsec()) > (first.mtime(), first.mtime_nsec()));
    let upper = t.lamina.store().join("mounts/kept/upper/new");
    let below = fs::metadata(upper).unwrap();
    assert_eq!(
        (then.mtime(), then.mtime_nsec()),
        (below.mtime(), below.mtime_nsec())
    );
    assert_eq!(then.blocks(), below.blocks());
    drop(file);
    mount.unmount();
}

/// The kernel writes to backing files with the daemon's rights.
#[test]
fn a_write_by_another_takes_set_user_id_away() {
    needs_root!();
    let t = Fixture::new("pt-suid");
    let mount = t.mount();
    let path = mount.path().join("program");
    fs::write(&path, b"x").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
    // But not one by root.
    OpenOptions::new()
        .append(true)
        .open(&path)
        .and_then(|mut file| file.write_all(b"y"))
        .unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o6777);
    let user = format!("--reuid={NOBODY}");
    let mut command = Command::new("setpriv");
    command
        .args([&user, "--clear-groups", "sh", "-c", "echo y >> \"$0\""])
        .arg(&path);
    run(&mut command);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o777);
    mount.unmount();
}

#[test]
fn many_open_and_change_the_same_files_at_once() {
    needs_root!();
    let t = Fixture::new("pt-race");
    let mount = t.mount();
    let line = b"0123456789abcde\n";
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for round in 0..200 {
                    let name = ["d/big", "d/link", "d/small"][round % 3];
                    let path = mount.path().join(name);
                    if round % 5 == 0 {
                        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
                        file.write_all(line).unwrap();
                    } else {
                        fs::read(&path).unwrap();
                    }
                }
            });
        }
    });
    // A third of the 40 × 4 appends went to each name.
    let small = fs::read(mount.path().join("d/small")).unwrap();
    let big = fs::read(mount.path().join("d/big")).unwrap();
    assert_eq!(big, fs::read(mount.path().join("d/link")).unwrap());
    assert!(big.starts_with(&t.data));
    let appended = (big.len() - SIZE + small.len() - b"in the index".len()) / line.len();
    assert_eq!(appended, 160);
    mount.unmount();
    t.assert_objects_untouched();
}
