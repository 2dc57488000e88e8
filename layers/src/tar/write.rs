//! Writing layers.

/// Adds a record to the data of an extended header.
pub fn pax_record(data: &mut Vec<u8>, keyword: &[u8], value: &[u8]) {
    // The length counts its own digits.
    let rest = keyword.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length += 1;
    }
    data.extend_from_slice(length.to_string().as_bytes());
    data.push(b' ');
    data.extend_from_slice(keyword);
    data.push(b'=');
    data.extend_from_slice(value);
    data.push(b'\n');
}
