//! The process in which a container runs: see [`super::container`].
//!
//! As the first process of its PID namespace it gets only signals that it waits for.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use lamina_layers::digest::DiffId;
use lamina_layers::store::{Access, Store};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::process::Signal;
use rustix::thread::UnshareFlags;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::RuntimeError;
use super::container::{FILES, Job, MemoryFile, Outcome, RESTRICT, RESULT, ROOT};
use super::points::Missing;
use super::spec::spec;
use crate::fuse::{self, ServeOptions};
use crate::mount::options::MountOptions;
use crate::mount::{attach, detach};
use crate::sys;
use crate::union::{Config, ImageLower, Union};
use crate::upper::UpperOptions;

/// What the worker does: reads the job from standard input, and runs it.
///
/// # Errors
/// When the job cannot be read, or its result not be written.
pub fn work() -> io::Result<()> {
    if let Some(root) = std::env::var_os(RESTRICT) {
        return restrict(Path::new(&root));
    }
    let signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // What the terminal sends goes to the caller only, which passes it on; and no command can open it.
    rustix::process::setsid()?;
    let mut line = String::new();
    BufReader::new(io::stdin()).read_line(&mut line)?;
    if parent_is_gone()? {
        return Ok(());
    }
    let job: Job = serde_json::from_str(&line)?;
    let outcome = match run(&job, signals) {
        Ok(outcome) => outcome,
        Err(error) => Outcome::Failed(error.to_string()),
    };
    fs::write(job.dir.join(RESULT), serde_json::to_vec(&outcome)?)
}

/// As a hook of the runtime, in the container's namespaces: crun takes options off the mount that becomes the
/// root. A device node of an image would be the machine's own, as no control group keeps anyone from it.
fn restrict(root: &Path) -> io::Result<()> {
    // The runtime says by it what it runs, and fails if nobody listens.
    io::copy(&mut io::stdin(), &mut io::sink())?;
    let flags = MountFlags::BIND | MountFlags::NODEV;
    Ok(rustix::mount::mount_remount(root, flags, c"")?)
}

/// It may have died before this process asked to be told: then nobody holds the other end.
fn parent_is_gone() -> io::Result<bool> {
    let stdin = io::stdin();
    fcntl_setfl(&stdin, fcntl_getfl(&stdin)? | OFlags::NONBLOCK)?;
    Ok(matches!(rustix::io::read(&stdin, &mut [0; 1]), Ok(0)))
}

/// A union that is mounted.
struct Mounted {
    union: Arc<Union>,
    device: OwnedFd,
    at: PathBuf,
}

impl Mounted {
    fn new(union: Union, at: &Path, flags: MountFlags) -> Result<Self, RuntimeError> {
        let options = MountOptions {
            flags: flags | MountFlags::NODEV,
            ..MountOptions::default()
        };
        let (device, _) =
            attach(at, &options).map_err(|error| RuntimeError::Worker(error.to_string()))?;
        Ok(Self {
            union: Arc::new(union),
            device,
            at: at.to_owned(),
        })
    }
}

fn run(job: &Job, mut signals: Signals) -> Result<Outcome, RuntimeError> {
    // While there is but one thread.
    own_mounts(job)?;
    write_files(job)?;
    let root = job.dir.join(ROOT);
    let union = open_union(job, &job.layers, true)?;
    let mut mounted = vec![Mounted::new(union, &root, MountFlags::empty())?];
    for tree in &job.trees {
        fs::create_dir_all(&tree.at)
            .map_err(RuntimeError::prepare(format!("make {:?}", tree.at)))?;
        let flags = MountFlags::RDONLY | MountFlags::NOSUID;
        let union = open_union(job, &tree.layers, false)?;
        mounted.push(Mounted::new(union, &tree.at, flags)?);
    }
    let points: Vec<_> = mounted.iter().map(|mounted| mounted.at.clone()).collect();
    let (interrupted, ended) = (AtomicBool::new(false), AtomicBool::new(false));
    let handle = signals.handle();
    std::thread::scope(|scope| {
        let (live, are_live) = mpsc::channel();
        let serve = |mounted: Mounted| {
            let live = live.clone();
            scope.spawn(move || {
                let options = ServeOptions::default();
                fuse::serve(mounted.device, &mounted.union, &options, move || {
                    let _ = live.send(());
                })
            })
        };
        let serving: Vec<_> = mounted.into_iter().map(serve).collect();
        drop(live);
        scope.spawn(|| {
            for _ in signals.forever() {
                interrupted.store(true, Ordering::SeqCst);
                job.kill(&ended);
            }
        });
        let outcome = if are_live.iter().take(points.len()).count() == points.len() {
            job.run_runtime(&root, &interrupted)
        } else {
            let why = "the root filesystem, or what is bound, cannot be served";
            Ok(Outcome::Failed(why.into()))
        };
        ended.store(true, Ordering::SeqCst);
        handle.close();
        for point in points {
            // Whoever still uses it is ended with this process.
            if let Err(error) = detach(&point, true) {
                tracing::error!("{error}");
            }
        }
        for serving in serving {
            match serving.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    return Err(RuntimeError::prepare("serve the root filesystem")(error));
                }
                Err(_) => {
                    let why = "serving the root filesystem panicked";
                    return Err(RuntimeError::Worker(why.into()));
                }
            }
        }
        outcome
    })
}

/// Layers of the store, with a fresh upper if they are to be changed.
fn open_union(job: &Job, layers: &[DiffId], writable: bool) -> Result<Union, RuntimeError> {
    let store = Store::open(&job.store, Access::ReadOnly)
        .map_err(|error| RuntimeError::Worker(error.to_string()))?;
    let store = store.with_objects_dir(|dir| sys::mount::read_only_view(dir).ok());
    let config = Config {
        image: Some(ImageLower {
            store: Arc::new(store),
            layers: layers.to_vec(),
        }),
        upper: writable.then(|| job.upper()),
        // What is left of it after a crash is thrown away.
        upper_options: UpperOptions {
            volatile: writable,
            ..UpperOptions::default()
        },
        metacopy: writable,
        ..Config::default()
    };
    let union = Union::open(&config).map_err(|error| RuntimeError::Worker(error.to_string()))?;
    if writable {
        union
            .copy_root_attributes()
            .map_err(|error| RuntimeError::Worker(error.to_string()))?;
    }
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

/// Secrets must not come onto a disk, nor stay: so these files lie in memory, in a filesystem that ends with
/// this process.
fn write_files(job: &Job) -> Result<(), RuntimeError> {
    let dir = job.dir.join(FILES);
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("none", &dir, "tmpfs", flags, Some(c"mode=0700"))
        .map_err(RuntimeError::prepare(format!("mount {dir:?}")))?;
    for file in &job.files {
        write_file(file).map_err(RuntimeError::prepare(format!("write {:?}", file.path)))?;
    }
    Ok(())
}

fn write_file(file: &MemoryFile) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let mut opened = options.open(&file.path)?;
    io::Write::write_all(&mut opened, &file.contents)?;
    let [uid, gid] = file.owner;
    sys::chown(opened.as_fd(), uid, gid)?;
    Ok(sys::chmod(opened.as_fd(), file.mode)?)
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
        if interrupted.load(Ordering::SeqCst) {
            return Ok(Outcome::Interrupted);
        }
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

    /// Ends the container, which the runtime may not have made yet.
    fn kill(&self, ended: &AtomicBool) {
        while !ended.load(Ordering::SeqCst) && !self.kill_once() {
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn kill_once(&self) -> bool {
        let mut command = self.command();
        command.args(["kill", &self.id(), "KILL"]);
        let quiet = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        quiet.status().is_ok_and(|status| status.success())
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
