//! A file that takes its place when it is complete. Until then it has no name, where the filesystem can do
//! that, so that nothing stays of it when the program is killed.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use tempfile::NamedTempFile;

/// One that is being written.
pub struct NewFile(Kind);

enum Kind {
    Unnamed(File),
    Named(NamedTempFile),
}

const PREFIX: &str = ".lamina-";

impl NewFile {
    /// One for a place in `dir`, with these permissions but for what the umask takes away.
    ///
    /// # Errors
    /// When it cannot be made there.
    pub fn new(dir: &Path, mode: u32) -> io::Result<Self> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        if let Ok(fd) = rustix::fs::open(dir, flags, Mode::from_raw_mode(mode)) {
            return Ok(Self(Kind::Unnamed(fd.into())));
        }
        let file = tempfile::Builder::new()
            .prefix(PREFIX)
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))
            .tempfile_in(dir)?;
        Ok(Self(Kind::Named(file)))
    }

    /// The file.
    pub fn file(&mut self) -> &mut File {
        match &mut self.0 {
            Kind::Unnamed(file) => file,
            Kind::Named(file) => file.as_file_mut(),
        }
    }

    /// Puts what is written on the disk, and the file in its place, in which there may be another one. The
    /// directory is not synced.
    ///
    /// # Errors
    /// When one of it fails; what was there is there still.
    pub fn publish(mut self, path: &Path) -> io::Result<()> {
        self.file().sync_all()?;
        match self.0 {
            Kind::Named(file) => file.persist(path)?,
            Kind::Unnamed(file) => {
                // What has no name can get one, but not take another's.
                let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
                let own = format!("/proc/self/fd/{}", file.as_raw_fd());
                let named = tempfile::Builder::new().prefix(PREFIX).make_in(
                    dir.unwrap_or(Path::new(".")),
                    |name| {
                        rustix::fs::linkat(CWD, &own, CWD, name, AtFlags::SYMLINK_FOLLOW)?;
                        Ok(())
                    },
                )?;
                named.persist(path).map_err(|error| error.error)?;
                return Ok(());
            }
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    #[test]
    fn it_replaces_what_was_there_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for text in ["one", "another"] {
            let mut file = NewFile::new(dir.path(), 0o600).unwrap();
            file.file().write_all(text.as_bytes()).unwrap();
            file.publish(&path).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        let mut given_up = NewFile::new(dir.path(), 0o600).unwrap();
        given_up.file().write_all(b"given up").unwrap();
        drop(given_up);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
