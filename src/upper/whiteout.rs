//! Deleting names: whiteouts put in place of what was there, in one step.

use std::os::fd::BorrowedFd;

use rustix::fs::{self as rfs, AtFlags, FileType, Mode, RenameFlags};
use rustix::io::Errno;

use super::Upper;
use crate::sys::SysResult;

impl Upper {
    /// Puts a whiteout where the upper has no entry.
    pub fn place_whiteout(&self, dir: BorrowedFd<'_>, name: &[u8]) -> SysResult<()> {
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
