//! Sets of extended attributes in the heap.
//!
//! A set is a 16-bit count, then for each attribute, sorted by name: 8-bit length of the name,
//! 32-bit length of the value, name, value. All integers are little-endian.

use super::build::BuildError;
use super::format::{XATTR_NAME_MAX, XATTR_VALUE_MAX};

/// The extended attributes of an inode, sorted by name: (name, value).
#[derive(Clone, Debug, Default)]
pub struct Xattrs<'a> {
    rest: &'a [u8],
    left: u16,
}

impl<'a> Xattrs<'a> {
    /// The set at `offset` of the heap; no attributes for offset 0.
    pub(super) fn at(heap: &'a [u8], offset: u32) -> Self {
        if offset == 0 {
            return Self::default();
        }
        let set = heap.get(offset as usize..).unwrap_or_default();
        match set.split_first_chunk() {
            Some((count, rest)) => Self {
                rest,
                left: u16::from_le_bytes(*count),
            },
            None => Self::default(),
        }
    }
}

impl<'a> Iterator for Xattrs<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let (&[name_len, ref value_len @ ..], rest) = self.rest.split_first_chunk::<5>()?;
        let (name, rest) = rest.split_at_checked(usize::from(name_len))?;
        let (value, rest) = rest.split_at_checked(u32::from_le_bytes(*value_len) as usize)?;
        self.rest = rest;
        Some((name, value))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (usize::from(self.left), Some(usize::from(self.left)))
    }
}

impl ExactSizeIterator for Xattrs<'_> {}

/// Whether this can be the name of an extended attribute.
fn name_is_legal(name: &[u8]) -> bool {
    (1..=XATTR_NAME_MAX).contains(&name.len()) && !name.contains(&0)
}

/// The encoded bytes of the set at `offset`, which is not 0; or what is wrong with it.
pub(super) fn check(heap: &[u8], offset: u32) -> Result<&[u8], &'static str> {
    let set = heap
        .get(offset as usize..)
        .ok_or("xattrs outside of the heap")?;
    let mut xattrs = Xattrs::at(heap, offset);
    if xattrs.left == 0 {
        return Err("empty set of xattrs");
    }
    let mut last: &[u8] = &[];
    while xattrs.left > 0 {
        let (name, value) = xattrs.next().ok_or("xattrs run over the end of the heap")?;
        if !name_is_legal(name) {
            return Err("illegal xattr name");
        }
        if value.len() > XATTR_VALUE_MAX {
            return Err("xattr value too long");
        }
        if name <= last {
            return Err("xattrs are not sorted by name");
        }
        last = name;
    }
    set.get(..set.len() - xattrs.rest.len())
        .ok_or("xattrs run over the end of the heap")
}

/// Encodes a set. Of two attributes with the same name the later one counts. Empty for no
/// attributes.
pub(super) fn encode(mut xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Result<Vec<u8>, BuildError> {
    xattrs.reverse();
    xattrs.sort_by(|a, b| a.0.cmp(&b.0));
    xattrs.dedup_by(|b, a| a.0 == b.0);
    let mut set = Vec::new();
    if xattrs.is_empty() {
        return Ok(set);
    }
    let count = u16::try_from(xattrs.len()).map_err(|_| BuildError::TooManyXattrs)?;
    set.extend_from_slice(&count.to_le_bytes());
    for (name, value) in xattrs {
        if !name_is_legal(&name) {
            return Err(BuildError::XattrName(name));
        }
        if value.len() > XATTR_VALUE_MAX {
            return Err(BuildError::XattrValue {
                name,
                len: value.len(),
            });
        }
        set.push(name.len() as u8);
        set.extend_from_slice(&(value.len() as u32).to_le_bytes());
        set.extend_from_slice(&name);
        set.extend_from_slice(&value);
    }
    Ok(set)
}
