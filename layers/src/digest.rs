//! SHA-256 digests and the identifiers made of them.

use std::fmt;
use std::io;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

/// A SHA-256 digest. Written `sha256:<64 hex digits>`, as in the OCI image specification.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

/// A string that is not a digest of the form `sha256:<64 lower-case hex digits>`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' is not a digest (expected sha256: and 64 lower-case hex digits)")]
pub struct ParseDigestError(pub String);

impl Digest {
    /// The digest of `data`.
    pub fn of(data: &[u8]) -> Self {
        Self(Sha256::digest(data).into())
    }

    /// The digest of all that `reader` gives.
    ///
    /// # Errors
    /// When reading fails.
    pub fn of_reader(reader: &mut dyn io::Read) -> io::Result<Self> {
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 128 << 10];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return Ok(Self(hasher.finalize().into())),
                Ok(count) => hasher.update(buffer.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The 64 hex digits without the `sha256:` prefix.
    pub fn hex(&self) -> String {
        // By hand: a name of an object is made for each file that is opened.
        let digit = |half: u8| char::from_digit(u32::from(half), 16).unwrap_or('0');
        let digits = self.0.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        digits.map(digit).collect()
    }

    /// The digest with these 64 lower-case hex digits, without the `sha256:` prefix.
    ///
    /// # Errors
    /// For any other string.
    pub fn from_hex(hex: &str) -> Result<Self, ParseDigestError> {
        let fail = || ParseDigestError(hex.to_owned());
        let digits = hex.as_bytes();
        let mut digest = [0; 32];
        if digits.len() != 64 {
            return Err(fail());
        }
        for (byte, pair) in digest.iter_mut().zip(digits.chunks_exact(2)) {
            let &[high, low] = pair else {
                return Err(fail());
            };
            let high = hex_value(high).ok_or_else(fail)?;
            let low = hex_value(low).ok_or_else(fail)?;
            *byte = high << 4 | low;
        }
        Ok(Self(digest))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.strip_prefix("sha256:")
            .and_then(|hex| Self::from_hex(hex).ok())
            .ok_or_else(|| ParseDigestError(text.to_owned()))
    }
}

fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

macro_rules! digest_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        #[serde(into = "String", try_from = "String")]
        pub struct $name(pub Digest);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }

        impl FromStr for $name {
            type Err = ParseDigestError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseDigestError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }
    };
}

digest_newtype! {
    /// Names the contents of one regular file in the store.
    ObjectId
}
digest_newtype! {
    /// Names a layer: the digest of its uncompressed tar (OCI image spec, "Layer DiffID").
    DiffId
}
digest_newtype! {
    /// Names a stack of layers (OCI image spec, "Layer ChainID").
    ChainId
}
digest_newtype! {
    /// Names an image: the digest of its manifest.
    ImageId
}

impl ChainId {
    /// The chain ID of a stack of layers, bottom first; `None` for an empty stack.
    pub fn of(layers: &[DiffId]) -> Option<Self> {
        let (first, rest) = layers.split_first()?;
        Some(rest.iter().fold(Self(first.0), |chain, layer| {
            Self(Digest::of(format!("{chain} {layer}").as_bytes()))
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_round_trips_through_text() {
        let digest = Digest::of(b"lamina");
        assert_eq!(digest.to_string().parse(), Ok(digest));
    }

    #[test]
    fn malformed_digests_are_refused() {
        let upper = Digest::of(b"").to_string().to_uppercase();
        for text in [
            "",
            "sha256:",
            "sha256:00",
            &"0".repeat(64),
            &upper,
            "sha512:00",
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }

    #[test]
    fn chain_id_of_one_layer_is_its_diff_id() {
        let a = DiffId(Digest::of(b"a"));
        let b = DiffId(Digest::of(b"b"));
        assert_eq!(ChainId::of(&[]), None);
        assert_eq!(ChainId::of(&[a]), Some(ChainId(a.0)));
        let expected = Digest::of(format!("{a} {b}").as_bytes());
        assert_eq!(ChainId::of(&[a, b]), Some(ChainId(expected)));
    }
}
