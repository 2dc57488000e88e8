//! Deleting names: whiteouts put in place of what was there, in one step.
//!
//! A whiteout is the device 0:0, as overlayfs has it. In an upper that is shared with fuse-overlayfs it may be
//! a file `.wh.NAME` beside the name instead, as AUFS has it, where such devices cannot be made. Where a name
//! has both, it is there: so the file comes first and goes last, and no step can bring back what is below.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{self as rfs, AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::Upper;
use super::mark::WH_PREFIX;
use crate::sys::{self, SysResult};

/// What tells fuse-overlayfs to make files; so it does us.
const FILES_VARIABLE: &str = "FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT";

/// Whether whiteouts have to be files, or are wanted as such.
pub(super) fn must_be_files(work: &OwnedFd) -> bool {
    if std::env::var_os(FILES_VARIABLE).is_some() {
        return true;
    }
    let probe = c"#whiteout";
    let made = rfs::mknodat(work, probe, FileType::CharacterDevice, Mode::empty(), 0);
    if made.is_ok()
        && let Err(errno) = rfs::unlinkat(work, probe, AtFlags::empty())
    {
        tracing::warn!("cannot remove a whiteout from the work directory: {errno}");
    }
    matches!(made, Err(Errno::PERM | Errno::OPNOTSUPP | Errno::INVAL))
}

/// The name of the file that is a name's whiteout; none if it would be too long.
fn file_name(name: &[u8]) -> Option<Vec<u8>> {
    let file = [WH_PREFIX, name].concat();
    (file.len() <= 255).then_some(file)
}

impl Upper {
    /// Whether a file beside a name says that it is deleted.
    pub fn has_whiteout_file(&self, dir: BorrowedFd<'_>, name: &[u8]) -> SysResult<bool> {
        if !self.dialect.shared {
            return Ok(false);
        }
        match file_name(name) {
            Some(file) => Ok(sys::find_at(dir, &file)?.is_some()),
            None => Ok(false),
        }
    }

    /// Removes the file that says that a name is deleted, if there is one.
    pub fn remove_whiteout_file(&self, dir: BorrowedFd<'_>, name: &[u8]) -> SysResult<()> {
        if !self.dialect.shared {
            return Ok(());
        }
        let Some(file) = file_name(name) else {
            return Ok(());
        };
        match rfs::unlinkat(dir, file.as_slice(), AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            result => result,
        }
    }

    fn make_whiteout_file(&self, dir: BorrowedFd<'_>, name: &[u8]) -> SysResult<()> {
        let file = file_name(name).ok_or(Errno::NAMETOOLONG)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rfs::openat(dir, file.as_slice(), flags, Mode::from_raw_mode(0o644)).map(drop)
    }

    /// Puts a whiteout where the upper has no entry.
    pub fn place_whiteout(&self, dir: BorrowedFd<'_>, name: &[u8]) -> SysResult<()> {
        if self.whiteout_files {
            return self.make_whiteout_file(dir, name);
        }
        rfs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0)
    }

    /// Replaces the upper's entry by a whiteout, in one step. The object, if it had no other
    /// name, is gone afterwards; a directory with all that is in it.
    pub fn swap_for_whiteout(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        is_dir: bool,
    ) -> SysResult<()> {
        let temp = self.temp_name();
        if self.whiteout_files {
            self.make_whiteout_file(dir, name)?;
            rfs::renameat(dir, name, self.work(), temp.as_slice())?;
            return self.remove_from_work(&temp, is_dir);
        }
        match rfs::renameat_with(
            dir,
            name,
            self.work(),
            temp.as_slice(),
            RenameFlags::WHITEOUT,
        ) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::PERM) => self.exchange_with_whiteout(dir, name, &temp)?,
            Err(errno) => return Err(errno),
        }
        self.remove_from_work(&temp, is_dir)
    }

    /// For filesystems that cannot leave a whiteout when they rename.
    fn exchange_with_whiteout(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        temp: &[u8],
    ) -> SysResult<()> {
        self.place_whiteout(self.work(), temp)?;
        let exchange = rfs::renameat_with(self.work(), temp, dir, name, RenameFlags::EXCHANGE);
        if exchange.is_err() {
            self.discard(temp);
        }
        exchange
    }

    /// Moves the upper's entry to another place and leaves a whiteout, in one step.
    pub fn move_leaving_whiteout(
        &self,
        from: (BorrowedFd<'_>, &[u8]),
        to: (BorrowedFd<'_>, &[u8]),
    ) -> SysResult<()> {
        if self.whiteout_files {
            self.make_whiteout_file(from.0, from.1)?;
            rfs::renameat(from.0, from.1, to.0, to.1)?;
            return self.remove_whiteout_file(to.0, to.1);
        }
        match rfs::renameat_with(from.0, from.1, to.0, to.1, RenameFlags::WHITEOUT) {
            Err(Errno::INVAL) => {}
            result => return result,
        }
        // A whiteout at the new place first, then the two exchanged: what was at the new place is
        // lost a moment early if the machine stops between, never what is moved.
        let temp = self.temp_name();
        self.place_whiteout(self.work(), &temp)?;
        match rfs::unlinkat(to.0, to.1, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(errno) => {
                self.discard(&temp);
                return Err(errno);
            }
        }
        rfs::renameat(self.work(), temp.as_slice(), to.0, to.1)?;
        rfs::renameat_with(from.0, from.1, to.0, to.1, RenameFlags::EXCHANGE)
    }

    /// Takes an emptied directory (only whiteouts are left in it) out of the upper.
    pub fn remove_dir(&self, dir: BorrowedFd<'_>, name: &[u8]) -> SysResult<()> {
        match rfs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            result => return result,
        }
        let temp = self.temp_name();
        rfs::renameat(dir, name, self.work(), temp.as_slice())?;
        self.remove_from_work(&temp, true)
    }

    fn remove_from_work(&self, temp: &[u8], is_dir: bool) -> SysResult<()> {
        if is_dir {
            self.discard(temp);
            return Ok(());
        }
        rfs::unlinkat(self.work(), temp, AtFlags::empty())
    }
}
