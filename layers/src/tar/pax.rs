//! PAX extended headers: records `<length> <keyword>=<value>\n` that override or add to what a
//! header can hold (POSIX.1-2017, pax, "pax Extended Header").

use super::sparse::Segment;

/// What extended headers say of an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pax {
    /// `path`.
    pub path: Option<Vec<u8>>,
    /// `linkpath`.
    pub link_path: Option<Vec<u8>>,
    /// `size`: of the data in the archive.
    pub size: Option<u64>,
    /// `uid`.
    pub uid: Option<i64>,
    /// `gid`.
    pub gid: Option<i64>,
    /// `mtime`: seconds and nanoseconds.
    pub mtime: Option<(i64, u32)>,
    /// `SCHILY.xattr.*`, without that prefix. Of several with one name the last counts.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// `GNU.sparse.*`.
    pub sparse: PaxSparse,
}

/// How GNU tar describes a sparse file in extended headers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PaxSparse {
    /// `GNU.sparse.major`.
    pub major: Option<u64>,
    /// `GNU.sparse.minor`.
    pub minor: Option<u64>,
    /// `GNU.sparse.name`: the path of the file.
    pub name: Option<Vec<u8>>,
    /// `GNU.sparse.realsize` or `GNU.sparse.size`: the size of the file.
    pub real_size: Option<u64>,
    /// Formats 0.0 and 0.1: where the data is.
    pub segments: Vec<Segment>,
    /// Formats 0.0 and 0.1: there is a map.
    pub has_map: bool,
    /// Format 0.0: an offset whose length has not come yet.
    offset: Option<u64>,
}

/// A record that is not as it should be: its keyword, or the beginning of the record.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("extended header: '{}' is malformed", .0.escape_ascii())]
pub struct PaxError(pub Vec<u8>);

const XATTR: &[u8] = b"SCHILY.xattr.";

impl Pax {
    /// Takes the records of one extended header into account. Later ones count more.
    pub fn apply(&mut self, mut data: &[u8]) -> Result<(), PaxError> {
        while !data.is_empty() {
            let malformed = || PaxError(data.get(..40).unwrap_or(data).to_vec());
            let (record, rest) = split_record(data).ok_or_else(malformed)?;
            let equals = record.iter().position(|byte| *byte == b'=');
            let (keyword, value) = equals
                .and_then(|at| Some((record.get(..at)?, record.get(at + 1..)?)))
                .ok_or_else(malformed)?;
            self.set(keyword, value)
                .ok_or_else(|| PaxError(keyword.to_vec()))?;
            data = rest;
        }
        Ok(())
    }

    /// How many bytes this takes, roughly.
    pub fn weight(&self) -> usize {
        let xattrs: usize = self
            .xattrs
            .iter()
            .map(|(name, value)| name.len() + value.len() + 64)
            .sum();
        let text = |text: &Option<Vec<u8>>| text.as_ref().map_or(0, Vec::len);
        xattrs
            + text(&self.path)
            + text(&self.link_path)
            + text(&self.sparse.name)
            + self.sparse.segments.len() * size_of::<Segment>()
    }

    /// `None` for a value that cannot be. An empty value takes back what was said before.
    fn set(&mut self, keyword: &[u8], value: &[u8]) -> Option<()> {
        let bytes = || (!value.is_empty()).then(|| value.to_vec());
        match keyword {
            b"path" => self.path = bytes(),
            b"linkpath" => self.link_path = bytes(),
            b"size" => self.size = optional(value, parse_unsigned)?,
            b"uid" => self.uid = optional(value, parse_signed)?,
            b"gid" => self.gid = optional(value, parse_signed)?,
            b"mtime" => self.mtime = optional(value, parse_time)?,
            _ => {
                if let Some(name) = keyword.strip_prefix(XATTR) {
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                } else if let Some(name) = keyword.strip_prefix(b"GNU.sparse.") {
                    self.sparse.set(name, value)?;
                }
            }
        }
        Some(())
    }
}

impl PaxSparse {
    fn set(&mut self, keyword: &[u8], value: &[u8]) -> Option<()> {
        match keyword {
            b"major" => self.major = optional(value, parse_unsigned)?,
            b"minor" => self.minor = optional(value, parse_unsigned)?,
            b"name" => self.name = (!value.is_empty()).then(|| value.to_vec()),
            b"realsize" | b"size" => self.real_size = optional(value, parse_unsigned)?,
            b"numblocks" => {
                parse_unsigned(value)?;
                self.has_map = true;
            }
            b"offset" if self.offset.is_some() => return None,
            b"offset" => self.offset = Some(parse_unsigned(value)?),
            b"numbytes" => {
                let offset = self.offset.take()?;
                let length = parse_unsigned(value)?;
                self.segments.push(Segment { offset, length });
                self.has_map = true;
            }
            b"map" => {
                self.segments = parse_map(value)?;
                self.has_map = true;
            }
            _ => {}
        }
        Some(())
    }
}

/// Takes one record off: what is between the space and the newline, and what comes after.
fn split_record(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = data.iter().take(21).position(|byte| *byte == b' ')?;
    let length = usize::try_from(parse_unsigned(data.get(..space)?)?).ok()?;
    let (record, rest) = data.split_at_checked(length)?;
    let (newline, record) = record.get(space + 1..)?.split_last()?;
    (*newline == b'\n').then_some((record, rest))
}

/// `Some(None)` for an empty value, `None` for a wrong one.
#[expect(clippy::option_option, reason = "the two are different here")]
fn optional<T>(value: &[u8], parse: impl Fn(&[u8]) -> Option<T>) -> Option<Option<T>> {
    if value.is_empty() {
        return Some(None);
    }
    parse(value).map(Some)
}

/// Decimal digits only.
pub fn parse_unsigned(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |value, digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

fn parse_signed(text: &[u8]) -> Option<i64> {
    match text.strip_prefix(b"-") {
        Some(digits) => 0_i64.checked_sub_unsigned(parse_unsigned(digits)?),
        None => i64::try_from(parse_unsigned(text)?).ok(),
    }
}

/// Seconds with any number of decimals, as seconds and the nanoseconds after them. What is below a
/// nanosecond is cut off towards the past.
fn parse_time(text: &[u8]) -> Option<(i64, u32)> {
    let negative = text.starts_with(b"-");
    let text = text.strip_prefix(b"-").unwrap_or(text);
    let dot = text.iter().position(|byte| *byte == b'.');
    let (whole, decimals) = match dot {
        Some(at) => (text.get(..at)?, text.get(at + 1..)?),
        None => (text, &[][..]),
    };
    // ".5" and "5." are seen too.
    let seconds = if whole.is_empty() && !decimals.is_empty() {
        0
    } else {
        i64::try_from(parse_unsigned(whole)?).ok()?
    };
    if !decimals.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digit = |at: usize| decimals.get(at).map_or(0, |digit| u32::from(digit - b'0'));
    let nanoseconds = (0..9).fold(0, |value, at| value * 10 + digit(at));
    if !negative {
        return Some((seconds, nanoseconds));
    }
    let below = decimals.iter().skip(9).any(|digit| *digit != b'0');
    let back = nanoseconds + u32::from(below);
    if back == 0 {
        return Some((-seconds, 0));
    }
    Some(((-seconds).checked_sub(1)?, 1_000_000_000 - back))
}

/// `offset,length,offset,length…`
fn parse_map(text: &[u8]) -> Option<Vec<Segment>> {
    let mut segments = Vec::new();
    if text.is_empty() {
        return Some(segments);
    }
    let mut numbers = text.split(|byte| *byte == b',').map(parse_unsigned);
    while let Some(offset) = numbers.next() {
        let (offset, length) = (offset?, numbers.next()??);
        segments.push(Segment { offset, length });
    }
    Some(segments)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The records of an extended header.
    pub fn records(pairs: &[(&[u8], &[u8])]) -> Vec<u8> {
        let mut data = Vec::new();
        for (keyword, value) in pairs {
            super::super::write::pax_record(&mut data, keyword, value);
        }
        data
    }

    fn parse(pairs: &[(&[u8], &[u8])]) -> Result<Pax, PaxError> {
        let mut pax = Pax::default();
        pax.apply(&records(pairs)).map(|()| pax)
    }

    #[test]
    fn known_records() {
        let pax = parse(&[
            (b"path", b"a=b\nc"),
            (b"linkpath", b"\xFF"),
            (b"size", b"18446744073709551615"),
            (b"uid", b"-2"),
            (b"comment", b"ignored"),
            (b"SCHILY.xattr.user.x", b"\0=\n\xFF"),
            (b"SCHILY.xattr.user.empty", b""),
            (b"SCHILY.xattr.user.x", b"later"),
        ])
        .unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"a=b\nc"[..]));
        assert_eq!(pax.link_path.as_deref(), Some(&b"\xFF"[..]));
        assert_eq!(pax.size, Some(u64::MAX));
        assert_eq!(pax.uid, Some(-2));
        let xattrs = [
            (b"user.x".to_vec(), b"\0=\n\xFF".to_vec()),
            (b"user.empty".to_vec(), vec![]),
            (b"user.x".to_vec(), b"later".to_vec()),
        ];
        assert_eq!(pax.xattrs, xattrs);
        assert_eq!(
            parse(&[(b"path", b"a"), (b"path", b"")]).unwrap().path,
            None
        );
    }

    #[test]
    fn times() {
        for (text, time) in [
            (&b"0"[..], (0, 0)),
            (b"1.5", (1, 500_000_000)),
            (b"1.0000000019", (1, 1)),
            (b"-1.5", (-2, 500_000_000)),
            (b"-1", (-1, 0)),
            (b"-0.0000000001", (-1, 999_999_999)),
            (b"-0.9999999991", (-1, 0)),
            (b".25", (0, 250_000_000)),
            (b"7.", (7, 0)),
            (b"9223372036854775807", (i64::MAX, 0)),
        ] {
            assert_eq!(parse_time(text), Some(time), "{}", text.escape_ascii());
        }
        for text in [&b""[..], b"-", b".", b"1.x", b"1e3", b"9223372036854775808"] {
            assert_eq!(parse_time(text), None, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn malformed_headers_are_refused() {
        for data in [
            &b"x"[..],
            b"5 a=b",
            b"7 a=b\n",
            b"5 a=b\n",
            b"99999999999999999999999 a=b\n",
            b"0 \n",
            b"2 a=b\n",
            b"5 ab\n",
            b"+6 a=b\n",
        ] {
            let result = Pax::default().apply(data);
            assert!(result.is_err(), "{}", data.escape_ascii());
        }
        for pair in [
            (&b"size"[..], &b"-1"[..]),
            (b"mtime", b"now"),
            (b"GNU.sparse.map", b"1,2,3"),
            (b"GNU.sparse.numbytes", b"1"),
        ] {
            assert_eq!(parse(&[pair]), Err(PaxError(pair.0.to_vec())));
        }
    }

    #[test]
    fn sparse_maps() {
        let old = parse(&[
            (b"GNU.sparse.offset", b"1"),
            (b"GNU.sparse.numbytes", b"2"),
            (b"GNU.sparse.offset", b"5"),
            (b"GNU.sparse.numbytes", b"0"),
        ]);
        let new = parse(&[(b"GNU.sparse.map", b"1,2,5,0")]);
        let segments = [(1, 2), (5, 0)].map(|(offset, length)| Segment { offset, length });
        assert_eq!(old.unwrap().sparse.segments, segments);
        assert_eq!(new.unwrap().sparse.segments, segments);
    }
}
