//! Asking the daemon of a mount to hold changes back: a socket beside its record.
//!
//! The client says `pause SECONDS` and is told `paused`. Then nothing in the mount changes until it
//! says `resume` and is told `resumed`, until its connection ends, in whatever way it died, or until
//! the seconds are over: the daemon ends the connection then, so that the client knows. Only the
//! daemon's own user and root are listened to.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags};

use crate::gate::{Gate, NotClosed};
use crate::sys;

/// For how long at most a client may ask.
const LONGEST: Duration = Duration::from_secs(3600);
/// How long it is tried to close the gate, also while somebody else has it closed.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a client may take to say what it wants.
const MANNERS: Duration = Duration::from_secs(5);
const LINE: u64 = 64;

/// The daemon's end: goes with its file.
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
}

impl Control {
    /// Listens at `path`, and closes `gate` for who asks.
    ///
    /// # Errors
    /// When there can be no socket, or no thread.
    pub fn start(path: PathBuf, gate: Arc<Gate>) -> io::Result<Self> {
        let listener = by_short_path(&path, |short| UnixListener::bind(short))?;
        let control = Self { path };
        let thread = std::thread::Builder::new().name("control".into());
        thread.spawn(move || {
            for client in listener.incoming() {
                if let Err(error) = client.and_then(|client| serve_beside(client, &gate)) {
                    tracing::debug!("control: {error}");
                }
            }
        })?;
        Ok(control)
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// The path of a socket has room for 108 bytes: a directory's descriptor makes it short.
fn by_short_path<T>(path: &Path, act: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(CWD, dir, flags, Mode::empty())?;
    act(&Path::new(&sys::proc_path(dir.as_fd())).join(name))
}

/// Serves a client while others may come: they are told, or wait.
fn serve_beside(client: UnixStream, gate: &Arc<Gate>) -> io::Result<()> {
    let peer = rustix::net::sockopt::socket_peercred(&client)?;
    if !peer.uid.is_root() && peer.uid != rustix::process::geteuid() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let gate = Arc::clone(gate);
    let thread = std::thread::Builder::new().name("client".into());
    thread.spawn(move || {
        if let Err(error) = serve(&client, &gate) {
            tracing::debug!("control: {error}");
        }
    })?;
    Ok(())
}

fn serve(client: &UnixStream, gate: &Gate) -> io::Result<()> {
    let mut answer = client;
    client.set_read_timeout(Some(MANNERS))?;
    client.set_write_timeout(Some(MANNERS))?;
    let mut lines = BufReader::new(client.try_clone()?);
    let asked = read_line(&mut lines)?;
    let seconds = asked.strip_prefix("pause ").and_then(|n| n.parse().ok());
    let limit = seconds.map(Duration::from_secs).unwrap_or_default();
    if limit.is_zero() || limit > LONGEST {
        return answer.write_all(b"what?\n");
    }
    let closed = match gate.close(PATIENCE) {
        Ok(closed) => closed,
        Err(why) => return answer.write_all(format!("{}\n", word(why)).as_bytes()),
    };
    client.set_read_timeout(Some(limit))?;
    answer.write_all(b"paused\n")?;
    // Its end, or that of its time, is as good.
    let said = read_line(&mut lines);
    drop(closed);
    match said.as_deref() {
        Ok("resume") => answer.write_all(b"resumed\n"),
        _ => Ok(()),
    }
}

fn word(why: NotClosed) -> &'static str {
    match why {
        NotClosed::Taken => "taken",
        NotClosed::Busy => "busy",
    }
}

fn read_line(from: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    from.take(LINE).read_line(&mut line)?;
    match line.strip_suffix('\n') {
        Some(line) => Ok(line.to_owned()),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Why the daemon does not hold changes back.
#[derive(Debug, thiserror::Error)]
pub enum PauseError {
    /// It does not listen.
    #[error(
        "its daemon cannot be asked to hold changes back: {0}; unmount it first, or use --pause=false \
         if nobody changes anything in it"
    )]
    Unreachable(io::Error),
    /// It does so for somebody else.
    #[error("its daemon holds changes back for somebody else: wait for the other commit to end")]
    Taken,
    /// A request takes too long.
    #[error(
        "a change that is under way (a large file that is copied up?) does not end: try again later"
    )]
    Busy,
    /// It went on.
    #[error("changes went on before this was done: its daemon held them back for {0} s only")]
    TooLong(u64),
}

/// The client's end: nothing in the mount changes until this is dropped.
#[derive(Debug)]
pub struct Pause {
    lines: BufReader<UnixStream>,
    since: Instant,
    seconds: u64,
}

impl Pause {
    /// Asks the daemon that listens at `path` to hold changes back, for so many seconds at most.
    ///
    /// # Errors
    /// When it does not.
    pub fn begin(path: &Path, seconds: u64) -> Result<Self, PauseError> {
        let ask = || -> io::Result<(String, BufReader<UnixStream>)> {
            let stream = by_short_path(path, |short| UnixStream::connect(short))?;
            stream.set_read_timeout(Some(PATIENCE * 4))?;
            (&stream).write_all(format!("pause {seconds}\n").as_bytes())?;
            let mut lines = BufReader::new(stream);
            Ok((read_line(&mut lines)?, lines))
        };
        let (said, lines) = ask().map_err(PauseError::Unreachable)?;
        match said.as_str() {
            "paused" => Ok(Self {
                lines,
                since: Instant::now(),
                seconds,
            }),
            "taken" => Err(PauseError::Taken),
            "busy" => Err(PauseError::Busy),
            _ => Err(PauseError::Unreachable(io::ErrorKind::InvalidData.into())),
        }
    }

    /// Lets changes go on; returns for how long they were held back.
    ///
    /// # Errors
    /// When they went on before: what was seen meanwhile is not of one moment.
    pub fn end(mut self) -> Result<Duration, PauseError> {
        let lasted = self.since.elapsed();
        let told = self.lines.get_ref().write_all(b"resume\n");
        let said = told.and_then(|()| read_line(&mut self.lines));
        match said.as_deref() {
            Ok("resumed") => Ok(lasted),
            _ => Err(PauseError::TooLong(self.seconds)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_ends_with_its_client() {
        let dir = tempfile::tempdir().unwrap();
        // Longer than the path of a socket may be.
        let dir = dir.path().join("d".repeat(120));
        fs::create_dir(&dir).unwrap();
        let path = dir.join("mount.sock");
        let gate = Arc::new(Gate::default());
        let control = Control::start(path.clone(), Arc::clone(&gate)).unwrap();
        let pause = Pause::begin(&path, 600).unwrap();
        assert_eq!(gate.close(Duration::ZERO).err(), Some(NotClosed::Taken));
        pause.end().unwrap();
        drop(gate.enter());
        drop(Pause::begin(&path, 600).unwrap());
        // Waits, if the end was not noticed yet.
        drop(gate.enter());
        drop(control);
        assert!(matches!(
            Pause::begin(&path, 600),
            Err(PauseError::Unreachable(_))
        ));
    }

    #[test]
    fn a_pause_that_lasts_too_long_is_no_pause() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mount.sock");
        let gate = Arc::new(Gate::default());
        let _control = Control::start(path.clone(), Arc::clone(&gate)).unwrap();
        let pause = Pause::begin(&path, 1).unwrap();
        // Until the daemon lets it in.
        drop(gate.enter());
        assert!(matches!(pause.end(), Err(PauseError::TooLong(1))));
    }

    #[test]
    fn nonsense_is_no_pause() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mount.sock");
        let gate = Arc::new(Gate::default());
        let _control = Control::start(path.clone(), gate).unwrap();
        for seconds in [0, u64::MAX] {
            assert!(Pause::begin(&path, seconds).is_err(), "{seconds}");
        }
    }
}
