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
    let target = fields.nth(4)?;
    let fs_type = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some(Mounted {
        target: PathBuf::from(OsString::from_vec(unescape(target))),
        fs_type: String::from_utf8_lossy(fs_type).into_owned(),
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
        };
        assert_eq!(parse(line), Some(expected));
        assert_eq!(parse(b""), None);
    }
}
