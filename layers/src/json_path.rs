//! Paths in JSON: text where they are text, else `{"hex": "…"}`, since a path may be any bytes.
//!
//! For `#[serde(with = …)]`: this module for a path, [`option`] and [`list`] for several.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A path as it stands in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum JsonPath {
    /// Text.
    Text(String),
    /// Any bytes, as hexadecimal digits.
    Bytes {
        /// Two for each byte.
        hex: String,
    },
}

impl JsonPath {
    /// What stands for some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        use std::fmt::Write as _;
        if let Ok(text) = std::str::from_utf8(bytes) {
            return Self::Text(text.to_owned());
        }
        let mut hex = String::with_capacity(bytes.len() * 2);
        for byte in bytes {
            // Writing to a string does not fail.
            let _ = write!(hex, "{byte:02x}");
        }
        Self::Bytes { hex }
    }

    /// The bytes; `None` if the digits are wrong.
    pub fn to_bytes(&self) -> Option<Vec<u8>> {
        match self {
            Self::Text(text) => Some(text.as_bytes().to_vec()),
            Self::Bytes { hex } => {
                let pairs = hex.as_bytes().chunks(2);
                let byte = |pair: &[u8]| match pair {
                    [_, _] => u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok(),
                    _ => None,
                };
                pairs.map(byte).collect()
            }
        }
    }

    fn to_path<E: serde::de::Error>(&self) -> Result<PathBuf, E> {
        let bytes = self
            .to_bytes()
            .ok_or_else(|| E::custom("a path has digits that are not hexadecimal"))?;
        Ok(OsString::from_vec(bytes).into())
    }
}

impl From<&Path> for JsonPath {
    fn from(path: &Path) -> Self {
        Self::of(path.as_os_str().as_bytes())
    }
}

/// Serializes a path.
pub fn serialize<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    JsonPath::from(path).serialize(to)
}

/// Deserializes a path.
pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
    JsonPath::deserialize(from)?.to_path()
}

/// The same for a path that may be missing.
pub mod option {
    use super::{Deserialize, Deserializer, JsonPath, PathBuf, Serialize, Serializer};

    /// Serializes it.
    // serde gives a reference to the field.
    #[allow(clippy::ref_option)]
    pub fn serialize<S: Serializer>(path: &Option<PathBuf>, to: S) -> Result<S::Ok, S::Error> {
        path.as_deref().map(JsonPath::from).serialize(to)
    }

    /// Deserializes it.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PathBuf>, D::Error> {
        let found = Option::<JsonPath>::deserialize(from)?;
        found.map(|path| path.to_path()).transpose()
    }
}

/// The same for a list of paths.
pub mod list {
    use super::{Deserialize, Deserializer, JsonPath, PathBuf, Serializer};

    /// Serializes them.
    pub fn serialize<S: Serializer>(paths: &[PathBuf], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(paths.iter().map(|path| JsonPath::from(path.as_path())))
    }

    /// Deserializes them.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<PathBuf>, D::Error> {
        let found = Vec::<JsonPath>::deserialize(from)?;
        found.iter().map(JsonPath::to_path).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Paths {
        #[serde(with = "super")]
        one: PathBuf,
        #[serde(with = "super::option")]
        maybe: Option<PathBuf>,
        #[serde(with = "super::list")]
        many: Vec<PathBuf>,
    }

    #[test]
    fn any_path_comes_back() {
        let odd: PathBuf = OsString::from_vec(b"/mnt/\xff\x01".to_vec()).into();
        let paths = Paths {
            one: odd.clone(),
            maybe: Some(odd.clone()),
            many: vec!["/plain \u{e9}".into(), odd],
        };
        let text = serde_json::to_string(&paths).unwrap();
        assert!(
            text.contains("\"/plain \u{e9}\"") && text.contains("{\"hex\":\"2f6d6e742fff01\"}")
        );
        assert_eq!(serde_json::from_str::<Paths>(&text).unwrap(), paths);
    }

    #[test]
    fn wrong_digits_are_refused() {
        for wrong in ["f", "0g", "\u{e9}"] {
            let hex = wrong.to_owned();
            assert_eq!(JsonPath::Bytes { hex }.to_bytes(), None, "{wrong}");
        }
    }
}
