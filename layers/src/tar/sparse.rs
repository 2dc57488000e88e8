//! Sparse files: the archive holds only the parts that have data, and a map of where they go.
//!
//! There are four formats: GNU tar's old one (a map in the header and in blocks after it), and in
//! extended headers 0.0, 0.1 (the map in a record) and 1.0 (the map before the data).

/// Where some data of a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Length, in bytes.
    pub length: u64,
}

/// Most segments that a file may have: a bound on memory. GNU tar's segments are parted by holes
/// of at least a block, so such a file has at least 4 GiB.
pub const SEGMENTS_MAX: usize = 1 << 20;

/// A file's size and where its data is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    size: u64,
    segments: Vec<Segment>,
    data: u64,
}

/// A map that describes no file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SparseError {
    /// Overlapping or unsorted segments.
    #[error("the map of the sparse file is not in order")]
    Order,
    /// A segment ends after the file.
    #[error("the map of the sparse file goes beyond its size")]
    Size,
    /// The segments' lengths are not the length of the data.
    #[error("the map of the sparse file is for {map} bytes of data, but there are {stored}")]
    Data {
        /// Sum of the segments' lengths.
        map: u64,
        /// Length of the data in the archive.
        stored: u64,
    },
    /// Too many segments.
    #[error("the sparse file has more than {SEGMENTS_MAX} segments")]
    Segments,
    /// Something in the map is not a number.
    #[error("the map of the sparse file is malformed")]
    Number,
    /// The archive ends, or the data is shorter than the map says of itself.
    #[error("the map of the sparse file is cut short")]
    Truncated,
    /// A version that does not exist.
    #[error("sparse format {0}.{1} is not known")]
    Version(u64, u64),
}

impl Map {
    /// A file of `size` bytes without holes.
    pub fn whole(size: u64) -> Self {
        let segment = Segment {
            offset: 0,
            length: size,
        };
        Self {
            size,
            segments: if size == 0 { vec![] } else { vec![segment] },
            data: size,
        }
    }

    /// A file of `size` bytes, of which the archive has those in `segments`, `stored` bytes
    /// together. Empty segments mean nothing, adjacent ones are joined.
    pub fn new(
        size: u64,
        segments: impl IntoIterator<Item = Segment>,
        stored: u64,
    ) -> Result<Self, SparseError> {
        let mut joined: Vec<Segment> = Vec::new();
        let (mut end, mut data) = (0_u64, 0_u64);
        for segment in segments {
            if segment.offset < end {
                return Err(SparseError::Order);
            }
            let after = segment.offset.checked_add(segment.length);
            let after = after.filter(|after| *after <= size);
            let full = joined.len() == SEGMENTS_MAX;
            let last = joined
                .last_mut()
                .filter(|last| last.offset + last.length == segment.offset);
            match last {
                _ if segment.length == 0 => {}
                Some(last) => last.length += segment.length,
                None if full => return Err(SparseError::Segments),
                None => joined.push(segment),
            }
            end = after.ok_or(SparseError::Size)?;
            data += segment.length;
        }
        if data != stored {
            return Err(SparseError::Data { map: data, stored });
        }
        Ok(Self {
            size,
            segments: joined,
            data,
        })
    }

    /// Size of the file, holes included, in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Length of the data without holes, in bytes.
    pub fn data(&self) -> u64 {
        self.data
    }

    /// Whether it has holes.
    pub fn is_sparse(&self) -> bool {
        self.data != self.size
    }

    /// Where the data is: sorted, not adjacent, none empty.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }
}

/// Reads the map of format 1.0: decimal numbers, each with a newline: how many segments, and their
/// offsets and lengths. `next` gives the next byte.
pub fn parse_1_0(mut next: impl FnMut() -> Option<u8>) -> Result<Vec<Segment>, SparseError> {
    let mut number = || -> Result<u64, SparseError> {
        // No number has more than 20 digits.
        let mut digits = Vec::with_capacity(21);
        loop {
            match next().ok_or(SparseError::Truncated)? {
                b'\n' => break,
                _ if digits.len() > 20 => return Err(SparseError::Number),
                digit => digits.push(digit),
            }
        }
        super::pax::parse_unsigned(&digits).ok_or(SparseError::Number)
    };
    let count = number()?;
    if count > SEGMENTS_MAX as u64 {
        return Err(SparseError::Segments);
    }
    let mut segments = Vec::new();
    for _ in 0..count {
        segments.push(Segment {
            offset: number()?,
            length: number()?,
        });
    }
    Ok(segments)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(pairs: &[(u64, u64)]) -> Vec<Segment> {
        pairs
            .iter()
            .map(|(offset, length)| Segment {
                offset: *offset,
                length: *length,
            })
            .collect()
    }

    #[test]
    fn maps_are_checked() {
        let map = |size, pairs: &[(u64, u64)], stored| Map::new(size, segments(pairs), stored);
        let good = map(100, &[(0, 0), (10, 5), (15, 5), (50, 1), (100, 0)], 11).unwrap();
        assert_eq!(good.segments(), segments(&[(10, 10), (50, 1)]));
        assert!(good.is_sparse());
        let apart = map(9, &[(0, 2), (5, 0), (5, 1)], 3).unwrap();
        assert_eq!(apart.segments(), segments(&[(0, 2), (5, 1)]));
        assert!(!map(5, &[(0, 2), (2, 3)], 5).unwrap().is_sparse());
        assert_eq!(map(9, &[(5, 1), (3, 1)], 2), Err(SparseError::Order));
        assert_eq!(map(9, &[(5, 2), (6, 1)], 3), Err(SparseError::Order));
        assert_eq!(map(9, &[(5, 5)], 5), Err(SparseError::Size));
        assert_eq!(map(9, &[(10, 0)], 0), Err(SparseError::Size));
        assert_eq!(map(u64::MAX, &[(5, u64::MAX)], 1), Err(SparseError::Size));
        let data = SparseError::Data { map: 5, stored: 6 };
        assert_eq!(map(9, &[(0, 5)], 6), Err(data));
    }

    #[test]
    fn maps_of_format_1_0() {
        let parse = |text: &[u8]| {
            let mut bytes = text.iter().copied();
            parse_1_0(|| bytes.next())
        };
        assert_eq!(parse(b"2\n1\n2\n5\n0\n"), Ok(segments(&[(1, 2), (5, 0)])));
        assert_eq!(parse(b"0\nrest"), Ok(vec![]));
        assert_eq!(parse(b"2\n1\n2\n5\n"), Err(SparseError::Truncated));
        assert_eq!(parse(b"x\n"), Err(SparseError::Number));
        assert_eq!(parse(&[b'1'; 4000]), Err(SparseError::Number));
        assert_eq!(parse(b"99999999999\n"), Err(SparseError::Segments));
    }
}
