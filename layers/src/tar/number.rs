//! Numbers in the fields of a tar header: octal digits, or binary ("base 256") for those that octal
//! digits cannot hold.

/// The value of a field; `None` if it is not a number or does not fit in 64 bits.
///
/// Octal digits may have spaces and NULs around them (POSIX asks for one after them, not all
/// writers have it). A field without digits is zero. A first byte with the highest bit set means
/// that the rest is a big-endian number in two's complement, the next bit being its sign.
pub fn parse(field: &[u8]) -> Option<i64> {
    match field.split_first() {
        Some((first, rest)) if first & 0x80 != 0 => binary(*first, rest),
        _ => octal(field),
    }
}

fn octal(field: &[u8]) -> Option<i64> {
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !blank(byte));
    let digits = field.get(start.unwrap_or(field.len())..)?;
    let end = digits.iter().position(blank).unwrap_or(digits.len());
    let (digits, rest) = digits.split_at_checked(end)?;
    if !rest.iter().all(blank) {
        return None;
    }
    // Twelve digits have 36 bits: this cannot overflow.
    digits.iter().try_fold(0_i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

fn binary(first: u8, rest: &[u8]) -> Option<i64> {
    // Bit 6 is the sign, bits 0 to 5 the highest of the value.
    let negative = first & 0x40 != 0;
    let top = i64::from(first & 0x3F) - if negative { 0x40 } else { 0 };
    rest.iter().try_fold(top, |value, byte| {
        value.checked_mul(256)?.checked_add(i64::from(*byte))
    })
}

/// Writes a number as octal digits and a NUL; `false` if there is no room for it.
pub fn write_octal(field: &mut [u8], value: u64) -> bool {
    let Some((last, digits)) = field.split_last_mut() else {
        return false;
    };
    *last = 0;
    let mut rest = value;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (rest & 7) as u8;
        rest >>= 3;
    }
    rest == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_fields() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"777777777777", Some((1 << 36) - 1)),
            (b"\0\0\0\0", Some(0)),
            (b"", Some(0)),
            (b"12 34", None),
            (b"0x12", None),
            (b"8\0", None),
            (b"-1\0", None),
        ] {
            assert_eq!(parse(field), value, "{}", field.escape_ascii());
        }
    }

    #[test]
    fn binary_fields() {
        let mut field = [0; 12];
        field[0] = 0x80;
        field[4..].copy_from_slice(&(1_u64 << 40).to_be_bytes());
        assert_eq!(parse(&field), Some(1 << 40));
        let mut field = [0xFF; 12];
        assert_eq!(parse(&field), Some(-1));
        field[11] = 0xFE;
        assert_eq!(parse(&field), Some(-2));
        field[1] = 0;
        assert_eq!(parse(&field), None, "does not fit in 64 bits");
        field[0] = 0x80;
        assert_eq!(parse(&field), None);
        assert_eq!(parse(b"\x80\0\0\0\0\0\x01\0"), Some(256));
    }

    #[test]
    fn written_numbers_are_read() {
        let mut field = [1; 8];
        assert!(write_octal(&mut field, 0o644));
        assert_eq!(&field, b"0000644\0");
        assert!(write_octal(&mut field, 0o7_777_777));
        assert!(!write_octal(&mut field, 0o10_000_000));
    }
}
