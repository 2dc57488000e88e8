//! A container from beginning to end, in a process of its own that nothing outlives.
//!
//! The caller starts this program anew ([`Job::run`]) as the first process of a PID namespace, with a
//! mount namespace of its own ([`work`]). In it the root is mounted and served, and the runtime runs. The
//! worker dies with its caller (`PR_SET_PDEATHSIG`), and with it the kernel ends every process of the PID
//! namespace and takes the mounts off, which nobody else ever saw. So nothing is left, however it ends.

use std::fs::{self, File};
use std::io::{self, PipeReader, PipeWriter, Write as _};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lamina_layers::digest::DiffId;
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::spec::Setup;
use super::{Runtime, RuntimeError};
use crate::sys;
use crate::upper::UpperDirs;

pub use super::worker::work;

/// What to run, and on what.
#[derive(Serialize, Deserialize)]
pub struct Job {
    /// The store of the image.
    pub store: PathBuf,
    /// The image's layers, bottom first.
    pub layers: Vec<DiffId>,
    /// An empty directory, of nobody else: the changes and everything that is needed meanwhile go there.
    pub dir: PathBuf,
    /// Who runs it.
    pub runtime: Runtime,
    /// How it runs.
    pub setup: Setup,
    /// Files that mounts of the setup are of.
    pub files: Vec<MemoryFile>,
    /// Trees that mounts of the setup are of.
    pub trees: Vec<MountedTree>,
}

/// A file that is there while the container is, in memory.
#[derive(Serialize, Deserialize)]
pub struct MemoryFile {
    /// Its path, in [`FILES`] in the directory of the job.
    pub path: PathBuf,
    /// What it holds.
    pub contents: Vec<u8>,
    /// Its permissions.
    pub mode: u32,
    /// Its owner and group, if not the caller.
    pub owner: [Option<u32>; 2],
}

/// Layers that are mounted, read-only, while the container is there.
#[derive(Serialize, Deserialize)]
pub struct MountedTree {
    /// Where, in [`TREES`] in the directory of the job.
    pub at: PathBuf,
    /// The layers, bottom first.
    pub layers: Vec<DiffId>,
}

/// How it ended.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The program ended with this status.
    Ended(i32),
    /// A signal ended it all.
    Interrupted,
    /// It could not be run.
    Failed(String),
}

/// What a signal does to a program that runs containers now and then: it ends the container that is
/// running, or if there is none the program.
#[derive(Clone)]
pub struct Interrupts(Arc<Watched>);

#[derive(Default)]
struct Watched {
    worker: Mutex<Option<Pid>>,
    /// Whether a signal came while there was a worker.
    interrupted: AtomicBool,
}

/// How long a worker has to end its container in order.
const GRACE: Duration = Duration::from_secs(3);

impl Interrupts {
    /// Begins to obey `SIGINT`, `SIGTERM` and `SIGHUP`, for the rest of the process's life.
    ///
    /// # Errors
    /// When the handlers or the thread cannot be made.
    pub fn obey() -> io::Result<Self> {
        let watched = Arc::<Watched>::default();
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
        let interrupts = Self(Arc::clone(&watched));
        let thread = std::thread::Builder::new().name("signals".into());
        thread.spawn(move || {
            for signal in signals.forever() {
                if !watched.end(Signal::TERM) {
                    std::process::exit(128 + signal);
                }
                // It may not have begun to wait for signals, or the runtime hang.
                std::thread::sleep(GRACE);
                watched.end(Signal::KILL);
            }
        })?;
        Ok(interrupts)
    }

    fn watch_worker(&self, pid: Option<Pid>) {
        *self.0.worker.lock() = pid;
    }

    fn came(&self) -> bool {
        self.0.interrupted.load(Ordering::SeqCst)
    }
}

impl Watched {
    /// Sends a signal to the worker; whether there is one.
    fn end(&self, signal: Signal) -> bool {
        let worker = self.worker.lock();
        let Some(pid) = *worker else {
            return false;
        };
        self.interrupted.store(true, Ordering::SeqCst);
        if let Err(error) = kill_process(pid, signal) {
            tracing::warn!("cannot end the container: {error}");
        }
        true
    }
}

/// The command by which the program is started as a worker.
pub const COMMAND: &str = "container-worker";
/// The variable by which the worker's program is told to be a hook: the path of the root filesystem.
pub(super) const RESTRICT: &str = "_LAMINA_CONTAINER_ROOT";
/// Names in the directory of a job: how it ended,
pub(super) const RESULT: &str = "result.json";
/// where the root filesystem is mounted,
pub(super) const ROOT: &str = "root";
/// the files that lie in memory,
pub const FILES: &str = "files";
/// and where further trees are mounted.
pub const TREES: &str = "trees";

impl Job {
    /// Where the changes are.
    pub fn upper(&self) -> UpperDirs {
        UpperDirs {
            upper: self.dir.join("upper"),
            work: self.dir.join("work"),
        }
    }

    /// Runs it to its end; its output goes to `output`.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn run(&self, output: &File, interrupts: &Interrupts) -> Result<Outcome, RuntimeError> {
        for name in ["upper", "work", ROOT, "state", FILES, TREES] {
            let path = self.dir.join(name);
            fs::create_dir(&path).map_err(RuntimeError::prepare(format!("make {path:?}")))?;
        }
        // Commands get no hold of what the output goes to, which may be a terminal.
        let (reader, writer) = io::pipe().map_err(RuntimeError::prepare("make a pipe"))?;
        // The worker gets its death signal when the thread ends that started it, not the process.
        let worker = std::thread::scope(|scope| {
            scope.spawn(|| pass_on(reader, output));
            scope.spawn(|| self.run_worker(writer, interrupts)).join()
        });
        let panicked = || RuntimeError::Worker("starting the container panicked".into());
        let status = worker.map_err(|_| panicked())??;
        if interrupts.came() {
            return Ok(Outcome::Interrupted);
        }
        self.outcome(status)
    }

    fn run_worker(
        &self,
        output: PipeWriter,
        interrupts: &Interrupts,
    ) -> Result<ExitStatus, RuntimeError> {
        sys::process::unshare(UnshareFlags::NEWPID)
            .map_err(RuntimeError::prepare("make a PID namespace"))?;
        let program = PathBuf::from("/proc/self/exe");
        let failed = |source| RuntimeError::Start {
            program: program.clone(),
            source,
        };
        let mut child = Command::new(&program)
            .arg(COMMAND)
            .env_remove(super::rootless::MARK)
            .stdin(Stdio::piped())
            .stdout(output.try_clone().map_err(failed)?)
            .stderr(output)
            .spawn()
            .map_err(failed)?;
        let pid = Pid::from_child(&child);
        interrupts.watch_worker(Some(pid));
        // Kept open until the end: the worker sees by it that this process is there.
        let input = child.stdin.take();
        if let Some(mut input) = input.as_ref() {
            let mut text = serde_json::to_vec(self).unwrap_or_default();
            text.push(b'\n');
            if let Err(error) = input.write_all(&text) {
                tracing::debug!("the worker does not listen: {error}");
            }
        }
        // As long as nobody has waited for it in earnest, its number is no other process's.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        let ended = sys::retry(|| waitid(WaitId::Pid(pid), options));
        interrupts.watch_worker(None);
        ended.map_err(|errno| failed(errno.into()))?;
        child.wait().map_err(failed)
    }

    fn outcome(&self, status: ExitStatus) -> Result<Outcome, RuntimeError> {
        let result = fs::read(self.dir.join(RESULT)).ok();
        let result = result.and_then(|text| serde_json::from_slice(&text).ok());
        match result {
            Some(Outcome::Failed(why)) => Err(RuntimeError::Worker(why)),
            Some(outcome) => Ok(outcome),
            None => Err(RuntimeError::Worker(format!(
                "the process that runs the container ended before it was done: {status}"
            ))),
        }
    }
}

/// Copies what a container says until all of it has ended.
fn pass_on(mut from: PipeReader, mut to: &File) {
    if let Err(error) = io::copy(&mut from, &mut to) {
        tracing::debug!("nobody hears the output: {error}");
        // The command is not to fail by that, nor to wait for anybody.
        if let Err(error) = io::copy(&mut from, &mut io::sink()) {
            tracing::debug!("cannot read the output: {error}");
        }
    }
}
