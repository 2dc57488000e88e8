//! What concerns the whole process.

use rustix::io::Errno;

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
    let error = std::io::Error::last_os_error();
    Err(Errno::from_io_error(&error).unwrap_or(Errno::INVAL))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::process::Command;

    #[test]
    fn other_programs_inherit_nothing() {
        let file = std::fs::File::open("/").unwrap();
        rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let inherits = || Command::new("test").args(["-e", &path]).status().unwrap();
        assert!(inherits().success());
        super::close_all_on_exec().unwrap();
        assert!(!inherits().success());
        assert!(file.metadata().is_ok(), "it is closed here");
    }
}
