//! Messages for operators: on standard error, which for a daemon is a file of bounded size once
//! its mount is live.

use std::io::{self, IsTerminal as _, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use tracing_subscriber::EnvFilter;

use super::{Usage, daemon};

/// Size in bytes at which a log file is emptied. It lies in memory on most systems.
const LIMIT: u64 = 1 << 20;

static IN_FILE: AtomicBool = AtomicBool::new(false);

/// Starts logging of what passes `filter`.
///
/// # Errors
/// When the filter is wrong.
pub fn start(filter: &str) -> Result<(), Usage> {
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        Usage(format!(
            "--log '{filter}' is not a filter: {error} (a level, or target=level, with commas)"
        ))
    })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(!daemon::is_daemon() && io::stderr().is_terminal())
        .with_writer(|| Bounded)
        .init();
    Ok(())
}

/// From now on standard error is a file to be kept small.
pub fn goes_to_file() {
    IN_FILE.store(true, Ordering::Relaxed);
}

/// Standard error; if it is a file, it starts anew when it is full.
struct Bounded;

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut stderr = io::stderr().lock();
        if IN_FILE.load(Ordering::Relaxed) {
            start_anew_if_full(&stderr, LIMIT)?;
        }
        stderr.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// The file is open for appending, so writing goes on at its beginning.
fn start_anew_if_full(file: impl std::os::fd::AsFd, limit: u64) -> io::Result<()> {
    let size = rustix::fs::fstat(&file)?.st_size;
    if u64::try_from(size).is_ok_and(|size| size > limit) {
        rustix::fs::ftruncate(&file, 0)?;
        rustix::io::write(&file, b"(what was here was dropped: the log was full)\n")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::io::Write;

    #[test]
    fn a_full_log_starts_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .unwrap();
        for line in ["one\n", "two\n", "three\n"] {
            super::start_anew_if_full(&file, 7).unwrap();
            file.write_all(line.as_bytes()).unwrap();
        }
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            text.starts_with('(') && text.ends_with(")\nthree\n"),
            "{text}"
        );
    }
}
