//! What concerns the whole process.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use rustix::thread::{CapabilitySet, UnshareFlags, capabilities, set_capabilities};

use super::SysResult;

/// Makes every descriptor but the three standard streams close when another program is executed,
/// so that a daemon keeps nothing alive that its caller had open.
pub fn close_all_on_exec() -> SysResult<()> {
    // SAFETY: the call only sets the close-on-exec flag of descriptors. It closes none, so every
    // owner of one still has it.
    let result = unsafe { libc::close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC as i32) };
    if result == 0 {
        return Ok(());
    }
    Err(super::last_error())
}

/// Calls `act` in this thread without a capability that it may have.
///
/// # Errors
/// When the capability cannot be given up, or not taken again.
pub fn without_capability<T>(capability: CapabilitySet, act: impl FnOnce() -> T) -> SysResult<T> {
    let sets = capabilities(None)?;
    if !sets.effective.contains(capability) {
        return Ok(act());
    }
    let mut less = sets;
    less.effective.remove(capability);
    set_capabilities(None, less)?;
    let result = act();
    set_capabilities(None, sets)?;
    Ok(result)
}

/// Gives this thread, and what it starts from now on, namespaces of their own.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`, `EINVAL` for a user namespace in a process with several threads.
pub fn unshare(flags: UnshareFlags) -> SysResult<()> {
    debug_assert!(!flags.contains(UnshareFlags::FILES));
    // SAFETY: descriptors stay shared, so no owner of one in another thread is wrong about it.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// Takes a descriptor over that this process was started with, by its number. It closes in programs that
/// this one executes.
///
/// # Errors
/// `EBADF` if there is none.
pub fn take_descriptor(number: RawFd) -> SysResult<OwnedFd> {
    // SAFETY: only looks whether there is a descriptor of this number.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if number <= 2 || flags < 0 {
        return Err(rustix::io::Errno::BADF);
    }
    // SAFETY: it is open, and nobody else in this process knows of it: the caller has it from whoever
    // started the process.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&descriptor, rustix::io::FdFlags::CLOEXEC)?;
    Ok(descriptor)
}

/// Takes the ids of root in this user namespace, which may be those of another user outside, and leaves
/// all other groups.
///
/// # Errors
/// When the namespace has no root, or this process may not be it.
pub fn become_root() -> SysResult<()> {
    let (uid, gid) = (rustix::process::Uid::ROOT, rustix::process::Gid::ROOT);
    rustix::thread::set_thread_groups(&[gid])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
}

/// The supplementary groups of a thread; none if it cannot be looked at.
pub fn groups_of(tid: u32) -> Vec<u32> {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:"));
    let ids = line.unwrap_or_default().split_whitespace();
    ids.filter_map(|id| id.parse().ok()).collect()
}

/// The id that a user of this process's user namespace has in the one around it; the same if there
/// is none around it, or the user is not there.
pub fn uid_outside(uid: u32) -> u32 {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    mapped(&map, uid).unwrap_or(uid)
}

/// Whether this process is in the initial user namespace, or one that cannot be told from it.
pub fn is_in_initial_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Looks an id up in a map as `user_namespaces(7)` has it: lines of first id inside, first id
/// outside, and count.
fn mapped(map: &str, id: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut numbers = line.split_whitespace().map(|word| word.parse::<u32>().ok());
        let (inside, outside, count) = (numbers.next()??, numbers.next()??, numbers.next()??);
        let offset = id.checked_sub(inside).filter(|offset| *offset < count)?;
        outside.checked_add(offset)
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn ids_are_mapped() {
        let map = "         0       1000          1\n         1     100000      65536\n";
        let outside = [0, 1, 65_536, 65_537].map(|id| super::mapped(map, id));
        assert_eq!(outside, [Some(1000), Some(100_000), Some(165_535), None]);
        assert_eq!(super::mapped("0 0 4294967295", 7), Some(7));
        assert_eq!(super::mapped("nonsense", 7), None);
    }

    #[test]
    fn other_programs_inherit_nothing() {
        use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
        let file = std::fs::File::open("/").unwrap();
        fcntl_setfd(&file, FdFlags::empty()).unwrap();
        super::close_all_on_exec().unwrap();
        assert_eq!(fcntl_getfd(&file), Ok(FdFlags::CLOEXEC));
    }
}
