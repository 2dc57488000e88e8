//! A load whose history is known: what must be there after a crash, and what may be.
//!
//! Each writer has names of its own, so that what it did is one sequence. Before it begins
//! something it notes that, and when it has an answer it notes that too, with the moment: so at
//! every moment there is something that must have happened and something that may have.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File, Permissions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crate::differential::rng::Rng;

/// Lower files that are replaced, lower files that are appended to, lower directories.
const SAVED: u64 = 12;
const APPENDED: u64 = 80;
const TREES: u64 = 150;
const RECORD: usize = 300;
/// Steps that are done with each lower directory.
const STEPS: u64 = 8;
/// New files in each new directory.
const NEW_IN_DIR: u64 = 20;
/// Each writer ends after so many files, however fast the machine, so that the disk has room.
const WRITTEN: u64 = 2000;

/// How sure it is that something happened.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sure {
    /// The system call returned: it is there as long as the machine runs.
    Done,
    /// It was synced too: it is there after a power cut.
    Synced,
}

struct Note {
    key: String,
    value: u64,
    sure: Sure,
    moment: usize,
}

/// Tells the moment.
pub type Clock = Arc<dyn Fn() -> usize + Send + Sync>;

/// What the writers did.
pub struct History {
    clock: Clock,
    notes: Mutex<Vec<Note>>,
    begun: Mutex<HashMap<String, u64>>,
    stop: AtomicBool,
}

impl History {
    fn begin(&self, key: &str, value: u64) {
        let mut begun = self.begun.lock().unwrap();
        begun.insert(key.to_owned(), value);
    }

    fn note(&self, key: &str, value: u64, sure: Sure) {
        let moment = (self.clock)();
        self.notes.lock().unwrap().push(Note {
            key: key.to_owned(),
            value,
            sure,
            moment,
        });
    }

    /// The least that `key` can be for what was known at `moment`.
    fn least(&self, key: &str, sure: Sure, moment: usize) -> u64 {
        let notes = self.notes.lock().unwrap();
        let known = notes.iter().filter(|note| {
            note.key == key
                && note.moment <= moment
                && (note.sure == sure || note.sure == Sure::Synced)
        });
        known.map(|note| note.value).max().unwrap_or(0)
    }

    /// The most it can be.
    fn most(&self, key: &str) -> u64 {
        self.begun.lock().unwrap().get(key).copied().unwrap_or(0)
    }

    /// How much was done, for a message.
    pub fn len(&self) -> usize {
        self.notes.lock().unwrap().len()
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }
}

type Writer = fn(&History, &Path, &mut Rng) -> io::Result<()>;

/// Running writers.
pub struct Load {
    /// What they did.
    pub history: Arc<History>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

/// The seed of contents that depend on nothing but their name and version.
fn seed(key: &str, version: u64) -> Rng {
    let mut hasher = DefaultHasher::new();
    (key, version).hash(&mut hasher);
    Rng::new(hasher.finish())
}

fn saved(key: &str, version: u64) -> Vec<u8> {
    let mut rng = seed(key, version);
    let mut content = format!("{key} {version}\n").into_bytes();
    let length = rng.below(90_000);
    content.extend(rng.bytes(length));
    content
}

fn lower_log(key: &str) -> Vec<u8> {
    let mut rng = seed(key, 0);
    let length = 1000 + rng.below(200_000);
    rng.bytes(length)
}

fn record(key: &str, number: u64) -> Vec<u8> {
    seed(key, number).bytes(RECORD)
}

/// Makes what the load starts from in `lower`.
pub fn prepare(lower: &Path) {
    for dir in ["saved", "logs", "trees"] {
        fs::create_dir_all(lower.join(dir)).unwrap();
    }
    for at in 0..SAVED {
        let key = format!("saved/{at}");
        fs::write(lower.join(&key), saved(&key, 0)).unwrap();
    }
    for at in 0..APPENDED {
        let key = format!("logs/{at}");
        fs::write(lower.join(&key), lower_log(&key)).unwrap();
    }
    for at in 0..TREES {
        let dir = lower.join(format!("trees/d{at}"));
        fs::create_dir_all(dir.join("sub")).unwrap();
        for name in ["a", "b"] {
            fs::write(dir.join(name), format!("{name} of {at}")).unwrap();
        }
    }
}

impl Load {
    /// Starts writing to the mount at `root`.
    pub fn start(root: &Path, clock: Clock, seed: u64) -> Self {
        let history = Arc::new(History {
            clock,
            notes: Mutex::default(),
            begun: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let writers: [Writer; 5] = [save, append_even, append_odd, rearrange, create];
        let threads = writers.into_iter().enumerate().map(|(at, writer)| {
            let (history, root) = (Arc::clone(&history), root.to_owned());
            let mut rng = Rng::new(seed ^ (at as u64 + 1) << 32);
            std::thread::spawn(move || writer(&history, &root, &mut rng))
        });
        Self {
            threads: threads.collect(),
            history,
        }
    }

    /// Waits for writers whose mount is gone.
    pub fn join_failed(self) -> Arc<History> {
        self.history.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            if let Err(error) = thread.join().unwrap() {
                // The last one with requests by io_uring.
                let gone = [
                    libc::ENOTCONN,
                    libc::ECONNABORTED,
                    libc::EIO,
                    libc::ECANCELED,
                ];
                let code = error.raw_os_error().unwrap_or(0);
                assert!(gone.contains(&code), "a writer met {error}");
            }
        }
        self.history
    }

    /// Ends writers that had no reason to fail.
    pub fn stop(self) -> Arc<History> {
        self.history.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap().expect("a writer failed");
        }
        self.history
    }
}

/// Replaces files as programs do that must not lose any: write, sync, rename, sync the directory.
fn save(history: &History, root: &Path, rng: &mut Rng) -> io::Result<()> {
    let mut versions = [0; SAVED as usize];
    for _ in 0..WRITTEN {
        if !history.goes_on() {
            break;
        }
        let at = rng.below(SAVED as usize);
        versions[at] += 1;
        let (key, version) = (format!("saved/{at}"), versions[at]);
        let temp = root.join(format!("saved/.{at}-{version}"));
        let mut file = File::create(&temp)?;
        file.write_all(&saved(&key, version))?;
        file.sync_all()?;
        history.begin(&key, version);
        fs::rename(&temp, root.join(&key))?;
        history.note(&key, version, Sure::Done);
        File::open(root.join("saved"))?.sync_all()?;
        history.note(&key, version, Sure::Synced);
    }
    Ok(())
}

fn append_even(history: &History, root: &Path, rng: &mut Rng) -> io::Result<()> {
    append(history, root, rng, 0)
}

fn append_odd(history: &History, root: &Path, rng: &mut Rng) -> io::Result<()> {
    append(history, root, rng, 1)
}

/// Appends to lower files, one after the other, so that there is always one being copied up.
fn append(history: &History, root: &Path, rng: &mut Rng, which: u64) -> io::Result<()> {
    let mut counts = HashMap::new();
    for _ in 0..WRITTEN {
        for at in (0..APPENDED).filter(|at| at % 2 == which) {
            let key = format!("logs/{at}");
            let count: &mut u64 = counts.entry(at).or_default();
            // Half of them have attributes of their own before they get their contents.
            if *count == 0 && at % 4 < 2 {
                fs::set_permissions(root.join(&key), Permissions::from_mode(0o600))?;
            }
            let mut file = File::options().append(true).open(root.join(&key))?;
            for _ in 0..=rng.below(3) {
                if !history.goes_on() {
                    return Ok(());
                }
                history.begin(&key, *count + 1);
                file.write_all(&record(&key, *count + 1))?;
                *count += 1;
                history.note(&key, *count, Sure::Done);
            }
            if rng.chance(50) {
                file.sync_data()?;
                history.note(&key, *count, Sure::Synced);
            }
        }
    }
    Ok(())
}

/// Makes, moves and deletes directories and files.
fn rearrange(history: &History, root: &Path, rng: &mut Rng) -> io::Result<()> {
    let at = |path: String| root.join("trees").join(path);
    for step in 0..TREES * STEPS {
        if !history.goes_on() {
            return Ok(());
        }
        history.begin("trees", step + 1);
        let n = step / STEPS;
        match step % STEPS {
            0 => fs::create_dir(at(format!("m{n}")))?,
            1 => drop(File::create(at(format!("m{n}/x")))?),
            2 => fs::rename(at(format!("d{n}")), at(format!("m{n}/moved")))?,
            3 => fs::remove_file(at(format!("m{n}/moved/a")))?,
            4 => fs::rename(at(format!("m{n}/moved/b")), at(format!("b{n}")))?,
            5 => fs::remove_dir(at(format!("m{n}/moved/sub")))?,
            6 => fs::hard_link(at(format!("b{n}")), at(format!("l{n}")))?,
            _ => fs::create_dir(at(format!("d{n}")))?,
        }
        history.note("trees", step + 1, Sure::Done);
        if rng.chance(50) {
            for dir in [String::new(), format!("m{n}"), format!("m{n}/moved")] {
                match File::open(at(dir)) {
                    Ok(dir) => dir.sync_all()?,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            history.note("trees", step + 1, Sure::Synced);
        }
    }
    Ok(())
}

/// Makes new files, and syncs them but not their directories: that makes their names last too.
fn create(history: &History, root: &Path, rng: &mut Rng) -> io::Result<()> {
    fs::create_dir(root.join("new"))?;
    for number in 0..WRITTEN {
        if !history.goes_on() {
            break;
        }
        let path = root.join(new_file(number));
        if number % NEW_IN_DIR == 0 {
            fs::create_dir(path.parent().unwrap_or(root))?;
        }
        history.begin("new", number + 1);
        let mut file = File::create(path)?;
        file.write_all(&saved("new", number))?;
        history.note("new", number + 1, Sure::Done);
        // The next sync of a file says nothing of this one.
        if rng.chance(50) {
            file.sync_all()?;
            history.note(&format!("new/{number}"), 1, Sure::Synced);
        }
    }
    Ok(())
}

fn new_file(number: u64) -> String {
    format!("new/{}/{number}", number / NEW_IN_DIR)
}

type Names = BTreeMap<String, Option<Vec<u8>>>;

fn tree_at_first() -> Names {
    let mut names = Names::new();
    for n in 0..TREES {
        names.insert(format!("d{n}"), None);
        names.insert(format!("d{n}/sub"), None);
        for name in ["a", "b"] {
            let content = format!("{name} of {n}").into_bytes();
            names.insert(format!("d{n}/{name}"), Some(content));
        }
    }
    names
}

/// What the step does to the names.
fn apply(names: &mut Names, step: u64) {
    let n = step / STEPS;
    match step % STEPS {
        0 => drop(names.insert(format!("m{n}"), None)),
        1 => drop(names.insert(format!("m{n}/x"), Some(Vec::new()))),
        2 => {
            let (from, to) = (format!("d{n}"), format!("m{n}/moved"));
            for rest in ["", "/a", "/b", "/sub"] {
                let moved = names.remove(&format!("{from}{rest}")).unwrap();
                names.insert(format!("{to}{rest}"), moved);
            }
        }
        3 => drop(names.remove(&format!("m{n}/moved/a"))),
        4 => {
            let moved = names.remove(&format!("m{n}/moved/b")).unwrap();
            names.insert(format!("b{n}"), moved);
        }
        5 => drop(names.remove(&format!("m{n}/moved/sub"))),
        6 => {
            let linked = names[&format!("b{n}")].clone();
            names.insert(format!("l{n}"), linked);
        }
        _ => drop(names.insert(format!("d{n}"), None)),
    }
}

fn read_names(root: &Path) -> Names {
    let mut names = Names::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(root.join(&dir)).unwrap() {
            let entry = entry.unwrap();
            let path = dir.join(entry.file_name());
            let name = path.to_str().unwrap().to_owned();
            if entry.file_type().unwrap().is_dir() {
                names.insert(name, None);
                pending.push(path);
            } else {
                names.insert(name, Some(fs::read(entry.path()).unwrap()));
            }
        }
    }
    names
}

impl History {
    /// What is wrong with the tree at `root` after a crash at `moment` that leaves what is `sure`.
    pub fn faults(&self, root: &Path, sure: Sure, moment: usize) -> Vec<String> {
        let mut faults = Vec::new();
        self.check_saved(root, sure, moment, &mut faults);
        self.check_logs(root, sure, moment, &mut faults);
        self.check_trees(root, sure, moment, &mut faults);
        self.check_new(root, sure, moment, &mut faults);
        faults
    }

    fn check_new(&self, root: &Path, sure: Sure, moment: usize, faults: &mut Vec<String>) {
        let done = self.least("new", sure, moment);
        for number in 0..self.most("new") {
            let must = match sure {
                Sure::Done => number < done,
                Sure::Synced => self.least(&format!("new/{number}"), sure, moment) == 1,
            };
            let path = new_file(number);
            if must && fs::read(root.join(&path)).ok() != Some(saved("new", number)) {
                faults.push(format!("{path}: not there, or not what was written"));
            }
        }
    }

    fn check_saved(&self, root: &Path, sure: Sure, moment: usize, faults: &mut Vec<String>) {
        for at in 0..SAVED {
            let key = format!("saved/{at}");
            let Ok(content) = fs::read(root.join(&key)) else {
                faults.push(format!("{key}: cannot be read"));
                continue;
            };
            let (least, most) = (self.least(&key, sure, moment), self.most(&key));
            if !(least..=most).any(|version| content == saved(&key, version)) {
                faults.push(format!(
                    "{key}: {} bytes that are none of the versions {least} to {most}",
                    content.len()
                ));
            }
        }
        let allowed: BTreeSet<String> = (0..SAVED).map(|at| at.to_string()).collect();
        for entry in fs::read_dir(root.join("saved")).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if !allowed.contains(&name) && !name.starts_with('.') {
                faults.push(format!("saved/{name}: where does it come from?"));
            }
        }
    }

    fn check_logs(&self, root: &Path, sure: Sure, moment: usize, faults: &mut Vec<String>) {
        for at in 0..APPENDED {
            let key = format!("logs/{at}");
            let Ok(content) = fs::read(root.join(&key)) else {
                faults.push(format!("{key}: cannot be read"));
                continue;
            };
            let lower = lower_log(&key);
            let (least, most) = (self.least(&key, sure, moment), self.most(&key));
            let Some(tail) = content.strip_prefix(&lower[..]) else {
                faults.push(format!(
                    "{key}: half copied: {} bytes, {} of the lower file's {} are right",
                    content.len(),
                    (content.iter().zip(&lower))
                        .take_while(|(a, b)| a == b)
                        .count(),
                    lower.len()
                ));
                continue;
            };
            let written: Vec<u8> = (1..=most).flat_map(|n| record(&key, n)).collect();
            let must = least as usize * RECORD;
            // Unsynced contents may be anything after a power cut, as on any filesystem.
            let right = match sure {
                Sure::Done => tail.len() >= must && written.starts_with(tail),
                Sure::Synced => tail.len() >= must && tail[..must] == written[..must],
            };
            if !right {
                faults.push(format!(
                    "{key}: {} bytes were appended or are wrong; {least} to {most} records of \
                     {RECORD} are right",
                    tail.len()
                ));
            }
        }
    }

    fn check_trees(&self, root: &Path, sure: Sure, moment: usize, faults: &mut Vec<String>) {
        let found = read_names(&root.join("trees"));
        let (least, most) = (self.least("trees", sure, moment), self.most("trees"));
        let mut names = tree_at_first();
        for step in 0..=most {
            if step >= least && names == found {
                return;
            }
            if step < most {
                apply(&mut names, step);
            }
        }
        let mut expected = tree_at_first();
        (0..least).for_each(|step| apply(&mut expected, step));
        let keys: BTreeSet<_> = expected.keys().chain(found.keys()).collect();
        let differing = keys
            .into_iter()
            .filter(|key| expected.get(*key) != found.get(*key));
        let differing: Vec<_> = differing.take(8).collect();
        faults.push(format!(
            "trees: as after none of the steps {least} to {most}; from step {least} differ {differing:?}"
        ));
    }
}
