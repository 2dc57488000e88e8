//! Running commands without being root: in a user namespace in which the user is root and has the ranges
//! of ids that `/etc/subuid` and `/etc/subgid` give him.
//!
//! Only a process with one thread may enter a user namespace, and only a set-user-ID program (newuidmap)
//! may give it more than one id. So the program starts itself anew ([`start`]); the new process makes the
//! namespace and waits ([`enter`]) until the first has had its ids mapped. The rest it does as root would.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal};
use rustix::thread::{CapabilitySet, UnshareFlags};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::sys;

/// Names the descriptor by which the two processes talk.
pub(super) const MARK: &str = "_LAMINA_USERNS_FD";

/// Whether this process may make the namespaces that a container needs.
pub fn is_privileged() -> bool {
    let sets = rustix::thread::capabilities(None);
    sets.is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

/// Runs this program again with the same arguments, as root of a user namespace, and returns its exit
/// status.
///
/// # Errors
/// When the user has no ranges of ids, or the namespace cannot be made.
pub fn start() -> io::Result<i32> {
    let uid = rustix::process::getuid().as_raw();
    let gid = rustix::process::getgid().as_raw();
    let names = [user_name(uid), Some(uid.to_string())];
    let names: Vec<String> = names.into_iter().flatten().collect();
    let uids = ranges("/etc/subuid", &names)?;
    let gids = ranges("/etc/subgid", &names)?;
    let (mut ours, theirs) = UnixStream::pair()?;
    rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty())?;
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let mut child = Command::new("/proc/self/exe")
        .args(std::env::args_os().skip(1))
        .env(MARK, theirs.as_raw_fd().to_string())
        .spawn()?;
    drop(theirs);
    let mapped = map(&child, &mut ours, (uid, &uids), (gid, &gids));
    if mapped.is_err() {
        child.kill()?;
        child.wait()?;
    }
    mapped?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let handle = signals.handle();
    let status = std::thread::scope(|scope| {
        scope.spawn(|| {
            for signal in signals.forever() {
                // A terminal has told it already.
                if let (Some(pid), SIGTERM | SIGHUP) = (pid, signal) {
                    // It may be ending already.
                    let _ = rustix::process::kill_process(pid, Signal::TERM);
                }
            }
        });
        let status = child.wait();
        handle.close();
        status
    })?;
    Ok(status
        .code()
        .or(status.signal().map(|signal| 128 + signal))
        .unwrap_or(1))
}

fn map(
    child: &Child,
    ours: &mut UnixStream,
    (uid, uids): (u32, &[Range]),
    (gid, gids): (u32, &[Range]),
) -> io::Result<()> {
    let mut byte = [0];
    ours.read_exact(&mut byte)
        .map_err(|_| io::Error::other("a user namespace cannot be made here"))?;
    for (program, own, ranges) in [("newuidmap", uid, uids), ("newgidmap", gid, gids)] {
        let mut command = Command::new(program);
        command
            .arg(child.id().to_string())
            .args(["0", &own.to_string(), "1"]);
        let mut next = 1;
        for range in ranges {
            command.args([next, range.first, range.count].map(|number| number.to_string()));
            next += range.count;
        }
        let result = command.stdin(Stdio::null()).output();
        let result = result.map_err(|error| {
            io::Error::other(format!("cannot run {program} (package uidmap): {error}"))
        })?;
        if !result.status.success() {
            let said = String::from_utf8_lossy(&result.stderr);
            return Err(io::Error::other(format!("{program}: {}", said.trim())));
        }
    }
    ours.write_all(&byte)
}

/// In the process that [`start`] has started: enters the namespace. Does nothing in any other.
///
/// # Errors
/// When the namespace cannot be made, or the first process has given up.
pub fn enter() -> io::Result<()> {
    let Some(number) = std::env::var(MARK).ok().and_then(|text| text.parse().ok()) else {
        return Ok(());
    };
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let mut other = UnixStream::from(sys::process::take_descriptor(number)?);
    sys::process::unshare(UnshareFlags::NEWUSER)?;
    let mut byte = [0];
    other.write_all(&byte)?;
    other.read_exact(&mut byte)?;
    // The death signal went with the credentials.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    sys::process::become_root()?;
    Ok(())
}

/// Whether this process was started by [`start`].
pub fn is_inside() -> bool {
    std::env::var_os(MARK).is_some()
}

#[derive(Debug, PartialEq, Eq)]
struct Range {
    first: u32,
    count: u32,
}

/// The ranges that a file gives a user.
fn ranges(path: &str, names: &[String]) -> io::Result<Vec<Range>> {
    let text = fs::read_to_string(path)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot read {path}: {error}")))?;
    let found = parse_ranges(&text, names);
    if found.is_empty() {
        let name = names.first().map(String::as_str).unwrap_or_default();
        return Err(io::Error::other(format!("{path} has no ids for {name}")));
    }
    Ok(found)
}

fn parse_ranges(text: &str, names: &[String]) -> Vec<Range> {
    let one = |line: &str| {
        let mut fields = line.trim().split(':');
        let name = fields.next()?;
        let (first, count) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        names
            .iter()
            .any(|known| known == name)
            .then_some(Range { first, count })
    };
    text.lines().filter_map(one).collect()
}

fn user_name(uid: u32) -> Option<String> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_by_name_or_number() {
        let text = "ann:100000:65536\nbob:1:2\n1000:300000:10\nann:bad:1\n";
        let found = parse_ranges(text, &["ann".into(), "1000".into()]);
        let range = |first, count| Range { first, count };
        assert_eq!(found, [range(100_000, 65_536), range(300_000, 10)]);
        assert!(parse_ranges(text, &["eve".into()]).is_empty());
    }
}
