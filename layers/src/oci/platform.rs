//! Which of the images of an index is for which machine.

use std::fmt;
use std::str::FromStr;

use crate::store::oci::{self, Descriptor, ImageConfig};

/// What an image is for, by the names of Go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// Operating system.
    pub os: String,
    /// CPU.
    pub architecture: String,
    /// Which of several kinds of the CPU (`v7` of `arm`).
    pub variant: Option<String>,
}

/// A string that is not a platform.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{}' is not a platform (OS/CPU or OS/CPU/VARIANT, as in linux/arm64)", .0.escape_debug())]
pub struct ParsePlatformError(pub String);

impl Platform {
    /// This machine's.
    pub fn host() -> Self {
        Self {
            os: "linux".into(),
            architecture: oci::architecture().into(),
            variant: None,
        }
    }

    /// What a descriptor says of what it refers to; `None` if it says nothing.
    pub fn of(descriptor: &Descriptor) -> Option<Self> {
        let platform = descriptor.other.get("platform")?;
        let field = |name: &str| platform.get(name)?.as_str().map(ToOwned::to_owned);
        Some(Self {
            os: field("os")?,
            architecture: field("architecture")?,
            variant: field("variant").filter(|variant| !variant.is_empty()),
        })
    }

    /// What a configuration says of its image.
    pub fn of_config(config: &ImageConfig) -> Self {
        let variant = config.other.get("variant").and_then(|it| it.as_str());
        Self {
            os: config.os.clone(),
            architecture: config.architecture.clone(),
            variant: variant.filter(|it| !it.is_empty()).map(ToOwned::to_owned),
        }
    }

    /// Whether what is made for `other` is what is wanted here. What names no variant is for all.
    pub fn takes(&self, other: &Self) -> bool {
        let same = self.os == other.os && self.architecture == other.architecture;
        same && match (&self.variant, &other.variant) {
            (Some(wanted), Some(found)) => wanted == found,
            _ => true,
        }
    }

    /// The best of several: the first that is for this variant, or without one for the most common
    /// variant, else the first that is taken at all.
    pub fn choose<T>(&self, all: impl Iterator<Item = (Self, T)>) -> Option<T> {
        let common = match self.architecture.as_str() {
            "arm64" => Some("v8"),
            "arm" => Some("v7"),
            "amd64" => Some("v1"),
            _ => None,
        };
        let wanted = self.variant.as_deref();
        let rank = |found: &Self| match (wanted, found.variant.as_deref()) {
            (Some(_), Some(_)) | (None, None) => 0,
            (Some(_), None) => 1,
            (None, variant) if variant == common => 1,
            (None, Some(_)) => 2,
        };
        let taken = all.filter(|(found, _)| self.takes(found));
        taken.min_by_key(|(found, _)| rank(found)).map(|(_, it)| it)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant
            .as_ref()
            .map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = ParsePlatformError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParsePlatformError(text.to_owned());
        let is_word = |part: &&str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        };
        let mut parts = text.split('/');
        let mut part = || parts.next().filter(is_word);
        let (os, architecture) = (part().ok_or_else(wrong)?, part().ok_or_else(wrong)?);
        let variant = match text.splitn(3, '/').nth(2) {
            Some(variant) => Some(Some(variant).filter(is_word).ok_or_else(wrong)?.to_owned()),
            None => None,
        };
        // What the machines' own `uname -m` says.
        let architecture = match architecture {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            architecture => architecture,
        };
        Ok(Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_round_trip_through_text() {
        for text in ["linux/amd64", "linux/arm/v7", "windows/amd64"] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), text);
        }
        for (text, same) in [
            ("linux/x86_64", "linux/amd64"),
            ("linux/aarch64/v8", "linux/arm64/v8"),
        ] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), same);
        }
        for wrong in [
            "",
            "linux",
            "linux/",
            "/amd64",
            "linux/arm/",
            "linux/arm/v7/x",
            "a b/c",
        ] {
            assert!(wrong.parse::<Platform>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_best_of_several_is_chosen() {
        let choose = |wanted: &str, all: &[&str]| {
            let all = all.iter().map(|text| (text.parse().unwrap(), *text));
            let chosen = wanted.parse::<Platform>().unwrap().choose(all);
            chosen.unwrap_or("none").to_owned()
        };
        let all = [
            "linux/arm/v6",
            "linux/arm/v7",
            "linux/arm64/v8",
            "windows/amd64",
        ];
        assert_eq!(choose("linux/arm", &all), "linux/arm/v7");
        assert_eq!(choose("linux/arm/v6", &all), "linux/arm/v6");
        assert_eq!(choose("linux/arm/v5", &all), "none");
        assert_eq!(choose("linux/arm64", &all), "linux/arm64/v8");
        assert_eq!(choose("linux/amd64", &all), "none");
        assert_eq!(
            choose("linux/arm/v7", &["linux/arm", "linux/arm/v7"]),
            "linux/arm/v7"
        );
        assert_eq!(
            choose("linux/arm", &["linux/arm/v7", "linux/arm"]),
            "linux/arm"
        );
    }
}
