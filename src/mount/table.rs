//! The mounts of this process's mount namespace (`proc(5)`, `/proc/self/mountinfo`).

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// Where.
    pub target: PathBuf,
    /// Type, with the subtype after a dot.
    pub fs_type: String,
    /// Device number of the filesystem, `major:minor`.
    pub device: String,
}

impl Mounted {
    /// Whether it is of the type that Lamina mounts have unless told otherwise.
    pub fn is_lamina(&self) -> bool {
        self.fs_type == "fuse.lamina"
    }

    /// Whether it is the FUSE filesystem of this device number at `target`. The kernel uses the
    /// number again when the filesystem is gone, hence the rest.
    pub fn is(&self, target: &Path, device: &str) -> bool {
        self.target == target && self.device == device && self.fs_type.starts_with("fuse.")
    }
}

/// All mounts, later ones above earlier ones.
pub fn mounts() -> io::Result<Vec<Mounted>> {
    let text = fs::read("/proc/self/mountinfo")?;
    Ok(text
        .split(|&byte| byte == b'\n')
        .filter_map(parse)
        .collect())
}

/// The topmost mount at exactly this path.
pub fn mount_at(target: &Path) -> io::Result<Option<Mounted>> {
    Ok(mounts()?
        .into_iter()
        .rev()
        .find(|mount| mount.target == target))
}

fn parse(line: &[u8]) -> Option<Mounted> {
    let mut fields = line.split(|&byte| byte == b' ');
    let device = fields.nth(2)?;
    let target = fields.nth(1)?;
    let fs_type = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some(Mounted {
        target: PathBuf::from(OsString::from_vec(unescape(target))),
        fs_type: String::from_utf8_lossy(fs_type).into_owned(),
        device: String::from_utf8_lossy(device).into_owned(),
    })
}

/// Undoes `\040` and the like.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let code = tail
            .get(..3)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(code) if byte == b'\\' => {
                plain.push(code);
                rest = tail.get(3..).unwrap_or_default();
            }
            _ => {
                plain.push(byte);
                rest = tail;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_parsed() {
        let line = b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - fuse.lamina img rw,errors=x";
        let expected = Mounted {
            target: "/mnt 2".into(),
            fs_type: "fuse.lamina".into(),
            device: "98:0".into(),
        };
        assert_eq!(parse(line), Some(expected));
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn a_mount_is_told_from_another_at_its_place() {
        let mount = |fs_type: &str, device: &str| Mounted {
            target: "/mnt".into(),
            fs_type: fs_type.into(),
            device: device.into(),
        };
        let place = Path::new("/mnt");
        assert!(mount("fuse.lamina", "0:50").is(place, "0:50"));
        assert!(!mount("fuse.lamina", "0:51").is(place, "0:50"));
        assert!(!mount("tmpfs", "0:50").is(place, "0:50"));
        assert!(!mount("fuse.lamina", "0:50").is(Path::new("/"), "0:50"));
    }
}
