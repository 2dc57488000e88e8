//! The 512-byte header of an entry, in its dialects: v7, POSIX ustar, star and GNU.

use super::number;

/// Length of a header, and of the blocks that an archive is made of.
pub const BLOCK: usize = 512;

/// A header whose checksum is right.
pub struct Header {
    inner: ::tar::Header,
}

/// A field that is not a number.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the field '{0}' of the header is not a number that can be")]
pub struct FieldError(pub &'static str);

impl Header {
    /// The header in a block; `None` if the checksum is wrong.
    pub fn parse(block: &[u8; BLOCK]) -> Option<Self> {
        let mut inner = ::tar::Header::new_old();
        *inner.as_mut_bytes() = *block;
        let header = Self { inner };
        header.checksum_is_right().then_some(header)
    }

    /// The sum of all bytes, those of the checksum itself counted as spaces. Some old programs took
    /// bytes to be signed.
    fn checksum_is_right(&self) -> bool {
        let bytes = self.inner.as_bytes();
        let field = &self.inner.as_old().cksum;
        let expected = number::parse(field);
        let unsigned = |sum: i64, byte: &u8| sum + i64::from(*byte);
        let signed = |sum: i64, byte: &u8| sum + i64::from(byte.cast_signed());
        let spaces = 8 * i64::from(b' ');
        [
            bytes.iter().fold(spaces, unsigned) - field.iter().fold(0, unsigned),
            bytes.iter().fold(spaces, signed) - field.iter().fold(0, signed),
        ]
        .into_iter()
        .any(|sum| Some(sum) == expected)
    }

    /// What kind of entry it is.
    pub fn typeflag(&self) -> u8 {
        let [flag] = self.inner.as_old().linkflag;
        flag
    }

    /// Whether it is in GNU's own format, which is neither that of POSIX nor v7.
    pub fn is_gnu(&self) -> bool {
        self.inner.as_gnu().is_some()
    }

    /// The path.
    pub fn path(&self) -> Vec<u8> {
        let name = text(&self.inner.as_old().name);
        let prefix = self.prefix();
        if prefix.is_empty() {
            return name.to_vec();
        }
        [prefix, b"/", name].concat()
    }

    /// The beginning of the path, where the format has room for one.
    fn prefix(&self) -> &[u8] {
        // POSIX says "ustar", a NUL and "00"; not all writers have the version right.
        let bytes = self.inner.as_bytes();
        if self.is_gnu() || bytes.get(257..262) != Some(b"ustar") {
            return &[];
        }
        let star = bytes.get(508..512) == Some(b"tar\0");
        let length = if star { 131 } else { 155 };
        text(bytes.get(345..345 + length).unwrap_or_default())
    }

    /// What it links to.
    pub fn link_name(&self) -> Vec<u8> {
        text(&self.inner.as_old().linkname).to_vec()
    }

    /// Permissions; whatever else is in the field is cut off.
    pub fn permissions(&self) -> Result<u32, FieldError> {
        let mode = number::parse(&self.inner.as_old().mode).ok_or(FieldError("mode"))?;
        Ok(mode as u32 & 0o7777)
    }

    /// Length of the data that follows, in bytes.
    pub fn size(&self) -> Result<u64, FieldError> {
        unsigned(&self.inner.as_old().size, "size")
    }

    /// Owner, as it is in the header.
    pub fn uid(&self) -> Result<i64, FieldError> {
        number::parse(&self.inner.as_old().uid).ok_or(FieldError("uid"))
    }

    /// Group, as it is in the header.
    pub fn gid(&self) -> Result<i64, FieldError> {
        number::parse(&self.inner.as_old().gid).ok_or(FieldError("gid"))
    }

    /// Modification time in seconds since 1970.
    pub fn mtime(&self) -> Result<i64, FieldError> {
        number::parse(&self.inner.as_old().mtime).ok_or(FieldError("mtime"))
    }

    /// Major and minor number of a device.
    pub fn device(&self) -> Result<(u32, u32), FieldError> {
        let bytes = self.inner.as_bytes();
        let part = |from: usize, name| {
            let field = bytes.get(from..from + 8).unwrap_or_default();
            let value = number::parse(field).and_then(|value| u32::try_from(value).ok());
            value.ok_or(FieldError(name))
        };
        Ok((part(329, "devmajor")?, part(337, "devminor")?))
    }

    /// Of a sparse file in GNU's old format: its size, the beginning of its map, and whether the map
    /// goes on in the next block.
    pub fn sparse(&self) -> Result<(u64, MapPart), FieldError> {
        let gnu = self.inner.as_gnu().ok_or(FieldError("magic"))?;
        let size = unsigned(&gnu.realsize, "realsize")?;
        Ok((size, map_part(&gnu.sparse, gnu.isextended)?))
    }
}

/// A part of a sparse file's map: offsets and lengths, and whether there is more.
pub type MapPart = (Vec<(u64, u64)>, bool);

/// The part of a sparse file's map that is in a block after the header.
pub fn sparse_extension(block: &[u8; BLOCK]) -> Result<MapPart, FieldError> {
    let mut extension = ::tar::GnuExtSparseHeader::new();
    *extension.as_mut_bytes() = *block;
    map_part(&extension.sparse, extension.isextended)
}

fn map_part(records: &[::tar::GnuSparseHeader], extended: [u8; 1]) -> Result<MapPart, FieldError> {
    let mut segments = Vec::new();
    for record in records {
        // An unused record ends the list.
        if record.offset[0] == 0 || record.numbytes[0] == 0 {
            break;
        }
        let offset = unsigned(&record.offset, "offset")?;
        segments.push((offset, unsigned(&record.numbytes, "numbytes")?));
    }
    Ok((segments, extended != [0]))
}

fn unsigned(field: &[u8], name: &'static str) -> Result<u64, FieldError> {
    number::parse(field)
        .and_then(|value| u64::try_from(value).ok())
        .ok_or(FieldError(name))
}

/// What is before the first NUL.
fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0);
    field.get(..end.unwrap_or(field.len())).unwrap_or_default()
}
