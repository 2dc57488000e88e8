//! The daemon behind a mount: started as a second process that serves, while the first waits until
//! the mount is live.
//!
//! The daemon is this same program with the same arguments and a variable in its environment. It
//! says `live` on its standard output, which is a pipe to the first process, and then lets go of
//! all three standard streams, so that whoever waits for their end goes on. Until then its standard
//! error is that of the first process, so an error is told in the same words.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context as _;

const MARK: &str = "LAMINA_IS_DAEMON";
const LIVE: &str = "live\n";

/// Whether this process is a daemon.
pub fn is_daemon() -> bool {
    std::env::var_os(MARK).is_some()
}

/// Starts a daemon with this process's arguments and waits until its mount is live. What it has to
/// say before that goes to this process's standard error. It inherits no other descriptor.
///
/// # Errors
/// When it cannot be started, or was killed. If it ended by itself it said why, and this process
/// ends with the same status.
pub fn start() -> anyhow::Result<()> {
    if let Err(errno) = crate::sys::process::close_all_on_exec() {
        tracing::warn!("the daemon keeps open what its caller has open: close_range: {errno}");
    }
    // By the name that this program was called by, which says what its arguments mean.
    let called = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&called)
        .file_name()
        .unwrap_or(OsStr::new("lamina"));
    let mut daemon = Command::new("/proc/self/exe")
        .arg0(name)
        .args(std::env::args_os().skip(1))
        .env(MARK, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the daemon")?;
    let mut said = String::new();
    if let Some(mut pipe) = daemon.stdout.take() {
        pipe.read_to_string(&mut said)
            .context("cannot hear from the daemon")?;
    }
    if said == LIVE {
        return Ok(());
    }
    let status = daemon.wait().context("cannot wait for the daemon")?;
    match status.code() {
        // It printed the reason.
        Some(code) if code != 0 => std::process::exit(code),
        _ => anyhow::bail!("the daemon ended before the mount was live: {status}"),
    }
}

/// Leaves the session of the terminal, so that nothing done there ends the daemon, and takes the
/// program's name, by which `pgrep` and `top` know it.
pub fn leave_session() {
    // Fails only for the leader of a process group, which may stay where it is.
    if let Err(errno) = rustix::process::setsid() {
        tracing::debug!("setsid: {errno}");
    }
    if let Err(errno) = rustix::thread::set_name(c"lamina") {
        tracing::debug!("prctl: {errno}");
    }
}

/// What takes the place of the standard streams when the mount is live.
pub struct Streams {
    null: File,
    log: File,
}

impl Streams {
    /// Opens the file `log`, which is made.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(log: &Path) -> io::Result<Self> {
        let null = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")?;
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(log)?;
        Ok(Self { null, log })
    }

    /// Tells the first process that the mount is live, and lets go of the standard streams. Later
    /// messages go to the log.
    ///
    /// # Errors
    /// When the first process is gone: nobody knows that the mount is there.
    pub fn report_live(self) -> io::Result<()> {
        std::env::set_current_dir("/")?;
        let mut stdout = io::stdout();
        stdout.write_all(LIVE.as_bytes())?;
        stdout.flush()?;
        rustix::stdio::dup2_stdin(&self.null)?;
        rustix::stdio::dup2_stderr(&self.log)?;
        super::log::goes_to_file();
        // Last: at the end of this one the first process ends.
        rustix::stdio::dup2_stdout(&self.null)?;
        Ok(())
    }
}
