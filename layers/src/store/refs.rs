//! Names of images: files in `refs/` that hold the digest of a manifest.
//!
//! Names are those of the distribution specification, as in `registry.example:5000/team/app:tag`.
//! The tag `latest` is the same as none, `docker.io/` and its `library/` as nothing. A slash is written `%2F` in the name of the file.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use super::staging::Staging;
use super::{Store, StoreError, sync_dir};
use crate::digest::{Digest, ImageId};

/// A name that an image can have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name(String);

/// The longest name, as a file.
const MAX: usize = 255;

/// Checks that an image can have a name, before the work of making one.
///
/// # Errors
/// When it cannot.
pub fn check_name(name: &str) -> Result<(), StoreError> {
    Name::parse(name).map(drop)
}

impl Name {
    /// Checks a name.
    pub fn parse(name: &str) -> Result<Self, StoreError> {
        let wrong = |problem| StoreError::ImageName {
            name: name.to_owned(),
            problem,
        };
        let name = familiar(name);
        // A colon before the last slash belongs to a registry's port.
        let (path, tag) = match name.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
            _ => (name, None),
        };
        check_path(path).map_err(wrong)?;
        if let Some(tag) = tag {
            check_tag(tag).map_err(wrong)?;
        }
        let short = name.strip_suffix(":latest").unwrap_or(name);
        if Digest::from_hex(short).is_ok() {
            return Err(wrong("it looks like a digest"));
        }
        let name = Self(short.to_owned());
        if name.file().len() > MAX {
            return Err(wrong("it is too long"));
        }
        Ok(name)
    }

    /// The name of the file.
    fn file(&self) -> String {
        self.0.replace('/', "%2F")
    }

    /// The name that a file stands for.
    pub fn of_file(file: &str) -> Option<Self> {
        let name = Self::parse(&file.replace("%2F", "/")).ok()?;
        (name.file() == file).then_some(name)
    }

    /// The name as people write it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A name without what docker leaves out: Docker Hub is the registry of names that do not say one,
/// and `library` its directory of those.
pub(crate) fn familiar(name: &str) -> &str {
    let hub = ["docker.io/", "index.docker.io/", "registry-1.docker.io/"];
    let rest = hub.into_iter().find_map(|hub| name.strip_prefix(hub));
    let name = rest.unwrap_or(name);
    match name.strip_prefix("library/") {
        Some(short) if !short.contains('/') => short,
        _ => name,
    }
}

/// Checks registry and path of a name.
pub(crate) fn check_path(path: &str) -> Result<(), &'static str> {
    let (registry, rest) = match path.split_once('/') {
        // As docker has it: the first part is a registry if it cannot be anything else.
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => {
            (Some(first), rest)
        }
        _ => (None, path),
    };
    if let Some(registry) = registry {
        let (host, port) = registry.split_once(':').unwrap_or((registry, "0"));
        let is_host = !host.is_empty()
            && !host.starts_with(['-', '.'])
            && host
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'-');
        let is_port = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        if !is_host || !is_port {
            return Err("what comes before the first '/' is not a host and port");
        }
    }
    let is_end = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    for part in rest.split('/') {
        let bytes = part.as_bytes();
        let ends = [bytes.first(), bytes.last()];
        if !ends.into_iter().all(|end| end.copied().is_some_and(is_end)) {
            return Err("each part must begin and end with a lower-case letter or a digit");
        }
        if !bytes
            .iter()
            .all(|byte| is_end(*byte) || matches!(byte, b'.' | b'_' | b'-'))
        {
            return Err("only lower-case letters, digits, '.', '_' and '-' may be in it");
        }
    }
    Ok(())
}

/// Checks a tag.
pub(crate) fn check_tag(tag: &str) -> Result<(), &'static str> {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let good = tag.bytes().next().is_some_and(is_word)
        && tag.len() <= 128
        && tag
            .bytes()
            .all(|byte| is_word(byte) || byte == b'.' || byte == b'-');
    if good {
        Ok(())
    } else {
        Err("the tag after ':' must be up to 128 letters, digits, '_', '.' or '-'")
    }
}

impl Store {
    pub(super) fn ref_path(&self, name: &Name) -> PathBuf {
        self.root().join("refs").join(name.file())
    }

    /// The image that has a name.
    pub(super) fn named_image(&self, name: &Name) -> Result<Option<ImageId>, StoreError> {
        let path = self.ref_path(name);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io("read", path)(error)),
        };
        match text.trim_end().parse() {
            Ok(id) => Ok(Some(ImageId(id))),
            Err(error) => Err(StoreError::ImageDamaged {
                path,
                problem: format!("{error}"),
            }),
        }
    }

    /// All names with their images, sorted by name. Damaged ones are left out.
    pub(super) fn names(&self) -> Result<Vec<(Name, ImageId)>, StoreError> {
        self.read_names(|error| {
            tracing::warn!("{error}");
            Ok(())
        })
    }

    /// The same, but a damaged one is an error.
    pub(super) fn all_names(&self) -> Result<Vec<(Name, ImageId)>, StoreError> {
        self.read_names(Err)
    }

    fn read_names(
        &self,
        damaged: impl Fn(StoreError) -> Result<(), StoreError>,
    ) -> Result<Vec<(Name, ImageId)>, StoreError> {
        let path = self.root().join("refs");
        let mut names = Vec::new();
        for entry in fs::read_dir(&path).map_err(StoreError::io("read", &path))? {
            let file = entry.map_err(StoreError::io("read", &path))?.file_name();
            let Some(name) = file.to_str().and_then(Name::of_file) else {
                continue;
            };
            match self.named_image(&name) {
                Ok(Some(id)) => names.push((name, id)),
                Ok(None) => {}
                Err(error) => damaged(error)?,
            }
        }
        names.sort();
        Ok(names)
    }

    /// Gives an image a name; another one loses it.
    pub(super) fn set_name(&self, name: &Name, id: &ImageId) -> Result<(), StoreError> {
        let staging = Staging::create(&self.root().join("staging"))?;
        let (staged, path) = (staging.path().join("ref"), self.ref_path(name));
        let write = || -> io::Result<()> {
            let mut file = fs::File::create(&staged)?;
            writeln!(file, "{id}")?;
            file.sync_all()?;
            fs::rename(&staged, &path)
        };
        write().map_err(StoreError::io("write", &path))?;
        sync_dir(&self.root().join("refs"))
    }

    /// Takes a name away.
    pub(super) fn remove_name(&self, name: &Name) -> Result<(), StoreError> {
        let path = self.ref_path(name);
        fs::remove_file(&path).map_err(StoreError::io("remove", path))?;
        sync_dir(&self.root().join("refs"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_images_can_have() {
        for name in [
            "debian",
            "debian:12",
            "a/b/c_d-e.f:Tag_1.0-x",
            "registry.example:5000/team/app",
            "localhost/x",
            "REGISTRY.example/x",
        ] {
            let parsed = Name::parse(name).unwrap();
            assert_eq!(parsed.as_str(), name);
            assert_eq!(Name::of_file(&parsed.file()), Some(parsed));
        }
        for (long, short) in [
            ("a/b:latest", "a/b"),
            ("docker.io/library/debian:12", "debian:12"),
            ("library/debian", "debian"),
            ("index.docker.io/a/b", "a/b"),
            ("docker.io/debian", "debian"),
            ("library/a/b", "library/a/b"),
        ] {
            assert_eq!(Name::parse(long).unwrap().as_str(), short);
        }
    }

    #[test]
    fn names_that_they_cannot_have() {
        for name in [
            "", "/", "a/", "/a", "a//b", "..", "a/../b", "Debian", "a b", "a:", "a:b:c", "a@b",
            "-a", "a-", "x:y/z", "a:-b", ".hidden", "ü", "a\0", ":tag",
        ] {
            assert!(Name::parse(name).is_err(), "{name:?}");
        }
        assert!(Name::parse(&"0".repeat(64)).is_err());
        assert!(Name::parse(&"n".repeat(256)).is_err());
        assert!(Name::parse(&format!("a:{}", "t".repeat(129))).is_err());
        assert_eq!(Name::of_file("a%2Fb:latest"), None);
    }
}
