//! The daemon behind a mount: started as a second process that serves, while the first waits until
//! the mount is live.
//!
//! The daemon is this same program with the same arguments and a variable in its environment. It
//! says `live` on its standard output, which is a pipe to the first process, and then lets go of
//! all three standard streams, so that whoever waits for their end goes on.

use std::fs::OpenOptions;
use std::io::{Read as _, Write as _};
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
/// say before that goes to this process's standard error.
///
/// # Errors
/// An empty error if the daemon ended: it said why.
pub fn start() -> anyhow::Result<()> {
    let mut daemon = Command::new("/proc/self/exe")
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
        Some(code) => std::process::exit(code),
        None => anyhow::bail!("the daemon ended before the mount was live: {status}"),
    }
}

/// Leaves the session of the terminal, so that nothing done there ends the daemon.
pub fn leave_session() {
    // Fails only for the leader of a process group, which may stay where it is.
    if let Err(errno) = rustix::process::setsid() {
        tracing::debug!("setsid: {errno}");
    }
}

/// Tells the first process that the mount is live, and lets go of the standard streams. Later
/// messages go to the file `log`.
pub fn report_live(log: &Path) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout();
    stdout.write_all(LIVE.as_bytes())?;
    stdout.flush()?;
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    match OpenOptions::new().append(true).create(true).open(log) {
        Ok(log) => rustix::stdio::dup2_stderr(&log)?,
        Err(_) => rustix::stdio::dup2_stderr(&null)?,
    }
    std::env::set_current_dir("/")?;
    Ok(())
}
