//! Extended attributes of files, and what overlayfs says with them.

use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::{fgetxattr, flistxattr, lgetxattr, llistxattr};
use rustix::io::Errno;

/// Names and values.
type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Labels of the host's policy, which mean nothing in a layer.
const LEFT_OUT: &[u8] = b"security.selinux";

/// Those of an open file.
pub fn of_fd(fd: BorrowedFd<'_>) -> Result<Xattrs, Errno> {
    all(
        |buffer| flistxattr(fd, buffer),
        |name, buffer| fgetxattr(fd, name, buffer),
    )
}

/// Those of the last name of a path, also if it is a symbolic link.
pub fn of_path(path: &Path) -> Result<Xattrs, Errno> {
    all(
        |buffer| llistxattr(path, buffer),
        |name, buffer| lgetxattr(path, name, buffer),
    )
}

fn all(
    list: impl Fn(&mut [u8]) -> Result<usize, Errno>,
    get: impl Fn(&[u8], &mut [u8]) -> Result<usize, Errno>,
) -> Result<Xattrs, Errno> {
    let names = match read(&list) {
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        names => names?,
    };
    let mut found = Vec::new();
    let names = names.split(|byte| *byte == 0);
    for name in names.filter(|name| !name.is_empty() && *name != LEFT_OUT) {
        match read(|buffer| get(name, buffer)) {
            Ok(value) => found.push((name.to_vec(), value)),
            // It was removed meanwhile.
            Err(Errno::NODATA) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(found)
}

/// Calls with a larger and larger buffer, until all fits.
fn read(call: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; 256];
    loop {
        match call(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(Errno::RANGE) if buffer.len() < 1 << 20 => buffer.resize(buffer.len() * 4, 0),
            Err(errno) => return Err(errno),
        }
    }
}

/// What overlayfs says of an object of an upper.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// The directory hides what lower layers have in it.
    pub opaque: bool,
    /// The file stands for a deleted name.
    pub whiteout: bool,
    /// Contents of the object are in a lower layer.
    pub elsewhere: bool,
}

const PREFIXES: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// Reads the marks.
pub fn marks(found: &[(Vec<u8>, Vec<u8>)]) -> Marks {
    let mut marks = Marks::default();
    for (name, value) in found {
        let rest = PREFIXES
            .iter()
            .find_map(|prefix| name.strip_prefix(*prefix));
        match rest {
            Some(b"opaque") => marks.opaque |= value == b"y",
            Some(b"whiteout") => marks.whiteout = true,
            Some(b"redirect" | b"metacopy") => marks.elsewhere = true,
            _ => {}
        }
    }
    marks
}

/// The attributes that are the user's: without the marks, and with the names that overlayfs had
/// escaped.
pub fn without_marks(found: Xattrs) -> Xattrs {
    found
        .into_iter()
        .filter_map(|(name, value)| {
            for prefix in PREFIXES {
                if let Some(rest) = name.strip_prefix(prefix) {
                    let shown = rest.strip_prefix(b"overlay.")?;
                    return Some(([prefix, shown].concat(), value));
                }
            }
            Some((name, value))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn xattrs(names: &[&[u8]]) -> Xattrs {
        names
            .iter()
            .map(|name| (name.to_vec(), b"y".to_vec()))
            .collect()
    }

    #[test]
    fn marks_of_overlayfs() {
        let found = xattrs(&[
            b"user.overlay.opaque",
            b"trusted.overlay.overlay.opaque",
            b"user.x",
        ]);
        let expected = Marks {
            opaque: true,
            ..Marks::default()
        };
        assert_eq!(marks(&found), expected);
        let kept = without_marks(found);
        assert_eq!(kept, xattrs(&[b"trusted.overlay.opaque", b"user.x"]));
        assert!(marks(&xattrs(&[b"trusted.overlay.redirect"])).elsewhere);
        assert!(marks(&xattrs(&[b"user.overlay.whiteout"])).whiteout);
    }
}
