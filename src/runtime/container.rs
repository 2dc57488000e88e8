//! A container from beginning to end, in a process of its own that nothing outlives.
//!
//! The caller starts this program anew ([`Job::run`]) as the first process of a PID namespace, with a
//! mount namespace of its own ([`work`]). In it the root is mounted and served, and the runtime runs. The
//! worker dies with its caller (`PR_SET_PDEATHSIG`), and with it the kernel ends every process of the PID
//! namespace and takes the mounts off, which nobody else ever saw. So nothing is left, however it ends.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use lamina_layers::digest::DiffId;
use lamina_layers::store::{Access, Store};
use parking_lot::Mutex;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::process::{Pid, Signal};
use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::points::Missing;
use super::spec::{Setup, spec};
use super::{Runtime, RuntimeError};
use crate::fuse::{self, ServeOptions};
use crate::mount::options::MountOptions;
use crate::mount::{attach, detach};
use crate::sys;
use crate::union::{Config, ImageLower, Union};
use crate::upper::UpperDirs;

/// What to run, and on what.
#[derive(Debug, Serialize, Deserialize)]
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
pub struct Interrupts {
    worker: Arc<Mutex<Option<Pid>>>,
}

impl Interrupts {
    /// Begins to obey `SIGINT`, `SIGTERM` and `SIGHUP`, for the rest of the process's life.
    ///
    /// # Errors
    /// When the handlers or the thread cannot be made.
    pub fn obey() -> io::Result<Self> {
        let interrupts = Self {
            worker: Arc::default(),
        };
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
        let worker = Arc::clone(&interrupts.worker);
        let thread = std::thread::Builder::new().name("signals".into());
        thread.spawn(move || {
            for signal in signals.forever() {
                match *worker.lock() {
                    Some(pid) => {
                        // It may be ending already.
                        let _ = rustix::process::kill_process(pid, Signal::TERM);
                    }
                    None => std::process::exit(128 + signal),
                }
            }
        })?;
        Ok(interrupts)
    }

    fn watch_worker(&self, id: Option<u32>) {
        let pid = id
            .and_then(|id| i32::try_from(id).ok())
            .and_then(Pid::from_raw);
        *self.worker.lock() = pid;
    }
}

/// The command by which the program is started as a worker.
pub const COMMAND: &str = "container-worker";
const RESULT: &str = "result.json";

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
        for name in ["upper", "work", "root", "state"] {
            let path = self.dir.join(name);
            fs::create_dir(&path).map_err(RuntimeError::prepare(format!("make {path:?}")))?;
        }
        // The worker gets its death signal when the thread ends that started it, not the process.
        let worker =
            std::thread::scope(|scope| scope.spawn(|| self.run_worker(output, interrupts)).join());
        let panicked = || RuntimeError::Worker("starting the container panicked".into());
        self.outcome(worker.map_err(|_| panicked())??)
    }

    fn run_worker(
        &self,
        output: &File,
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
            .stderr(output.try_clone().map_err(failed)?)
            // What the terminal sends goes to this process only, which passes it on.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        interrupts.watch_worker(Some(child.id()));
        // Kept open until the end: the worker sees by it that this process is there.
        let input = child.stdin.take();
        if let Some(mut input) = input.as_ref() {
            let mut text = serde_json::to_vec(self).unwrap_or_default();
            text.push(b'\n');
            if let Err(error) = input.write_all(&text) {
                tracing::debug!("the worker does not listen: {error}");
            }
        }
        let status = child.wait();
        interrupts.watch_worker(None);
        status.map_err(failed)
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

/// What the worker does: reads the job from standard input, and runs it.
///
/// # Errors
/// When the job cannot be read, or its result not be written.
pub fn work() -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let mut line = String::new();
    BufReader::new(io::stdin()).read_line(&mut line)?;
    if parent_is_gone()? {
        return Ok(());
    }
    let job: Job = serde_json::from_str(&line)?;
    let outcome = match run(&job) {
        Ok(outcome) => outcome,
        Err(error) => Outcome::Failed(error.to_string()),
    };
    fs::write(job.dir.join(RESULT), serde_json::to_vec(&outcome)?)
}

/// It may have died before this process asked to be told: then nobody holds the other end.
fn parent_is_gone() -> io::Result<bool> {
    let stdin = io::stdin();
    fcntl_setfl(&stdin, fcntl_getfl(&stdin)? | OFlags::NONBLOCK)?;
    Ok(matches!(rustix::io::read(&stdin, &mut [0; 1]), Ok(0)))
}

fn run(job: &Job) -> Result<Outcome, RuntimeError> {
    // While there is but one thread.
    own_mounts(job)?;
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])
        .map_err(RuntimeError::prepare("wait for signals"))?;
    let union = Arc::new(open_union(job)?);
    let root = job.dir.join("root");
    // A device node of an image would be the machine's own: no control group keeps anyone from it.
    let options = MountOptions {
        flags: MountFlags::NODEV,
        ..MountOptions::default()
    };
    let (device, _) =
        attach(&root, &options).map_err(|error| RuntimeError::Worker(error.to_string()))?;
    let interrupted = AtomicBool::new(false);
    let handle = signals.handle();
    std::thread::scope(|scope| {
        let (live, is_live) = mpsc::channel();
        let serving = scope.spawn(move || {
            let serve = ServeOptions::default();
            fuse::serve(device, &union, &serve, move || {
                let _ = live.send(());
            })
        });
        scope.spawn(|| {
            for _ in signals.forever() {
                interrupted.store(true, Ordering::SeqCst);
                job.kill();
            }
        });
        let outcome = match is_live.recv() {
            Ok(()) => job.run_runtime(&root, &interrupted),
            Err(_) => Ok(Outcome::Failed(
                "the root filesystem cannot be served".into(),
            )),
        };
        handle.close();
        // Whoever still uses it is ended with this process.
        if let Err(error) = detach(&root, true) {
            tracing::error!("{error}");
        }
        match serving.join() {
            Ok(Ok(())) => outcome,
            Ok(Err(error)) => Err(RuntimeError::prepare("serve the root filesystem")(error)),
            Err(_) => Err(RuntimeError::Worker(
                "serving the root filesystem panicked".into(),
            )),
        }
    })
}

/// The layers, with a fresh upper.
fn open_union(job: &Job) -> Result<Union, RuntimeError> {
    let store = Store::open(&job.store, Access::ReadOnly)
        .map_err(|error| RuntimeError::Worker(error.to_string()))?;
    let store = store.with_objects_dir(|dir| sys::mount::read_only_view(dir).ok());
    let config = Config {
        image: Some(ImageLower {
            store: Arc::new(store),
            layers: job.layers.clone(),
        }),
        upper: Some(job.upper()),
        // What is left of it after a crash is thrown away.
        volatile: true,
        metacopy: true,
        ..Config::default()
    };
    let union = Union::open(&config).map_err(|error| RuntimeError::Worker(error.to_string()))?;
    union
        .copy_root_attributes()
        .map_err(|error| RuntimeError::Worker(error.to_string()))?;
    Ok(union)
}

/// Mounts that nobody else sees, and a `/proc` of this PID namespace.
fn own_mounts(job: &Job) -> Result<(), RuntimeError> {
    sys::process::unshare(UnshareFlags::NEWNS)
        .map_err(RuntimeError::prepare("make a mount namespace"))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private)
        .map_err(RuntimeError::prepare("make mounts private"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("proc", "/proc", "proc", flags, None)
        .map_err(RuntimeError::prepare("mount /proc"))?;
    if job.runtime.is_crun() && Path::new("/sys/fs/cgroup").is_dir() {
        // crun gives up when it sees both versions of control groups, also if it is to use none.
        let hidden = rustix::mount::mount("none", "/sys/fs/cgroup", "tmpfs", flags, None);
        hidden.map_err(RuntimeError::prepare("hide /sys/fs/cgroup"))?;
    }
    Ok(())
}

impl Job {
    fn run_runtime(&self, root: &Path, interrupted: &AtomicBool) -> Result<Outcome, RuntimeError> {
        let config = serde_json::to_vec(&spec(&self.setup, root)?).unwrap_or_default();
        let path = self.dir.join("config.json");
        fs::write(&path, config).map_err(RuntimeError::prepare(format!("write {path:?}")))?;
        let mounts = self.setup.mounts.iter().map(|mount| mount.target.as_str());
        let usual = ["/proc", "/dev", "/sys"];
        // What is below /dev lies in a filesystem of its own.
        let targets = usual
            .into_iter()
            .chain(mounts.filter(|target| !target.starts_with("/dev/")));
        let targets: Vec<_> = targets.collect();
        let missing = Missing::look(root, &targets)
            .map_err(RuntimeError::prepare("look at the root filesystem"))?;
        let mut child = self.start()?;
        let status = child.wait().map_err(|source| self.failed(source))?;
        if interrupted.load(Ordering::SeqCst) {
            return Ok(Outcome::Interrupted);
        }
        missing.clear();
        // A signal that ended the program is a status above 128, as in a shell.
        let signal = status.signal().map(|signal| 128 + signal);
        Ok(Outcome::Ended(status.code().or(signal).unwrap_or(1)))
    }

    fn start(&self) -> Result<Child, RuntimeError> {
        let mut command = self.command();
        command
            .arg("run")
            .arg("--bundle")
            .arg(&self.dir)
            .arg(self.id());
        command
            .stdin(Stdio::null())
            .spawn()
            .map_err(|source| self.failed(source))
    }

    /// Ends the container.
    fn kill(&self) {
        let mut command = self.command();
        command.args(["kill", &self.id(), "KILL"]);
        let quiet = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        match quiet.status() {
            Ok(status) if status.success() => {}
            result => tracing::info!("the container was not there to be ended: {result:?}"),
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.runtime.program);
        command.arg("--root").arg(self.dir.join("state"));
        if self.runtime.is_crun() {
            command.args(["--cgroup-manager", "disabled"]);
        }
        command
    }

    fn failed(&self, source: io::Error) -> RuntimeError {
        RuntimeError::Start {
            program: self.runtime.program.clone(),
            source,
        }
    }

    /// The container's name, of which there is one at a time.
    fn id(&self) -> String {
        let dir = self.dir.file_name().unwrap_or_default();
        format!("lamina-{}", dir.to_string_lossy())
    }
}
