//! What people write to say which image of which registry.

use std::fmt;
use std::str::FromStr;

use super::RegistryError;
use crate::digest::Digest;
use crate::store::{check_path, check_tag, familiar};

/// The registry of names that do not say one.
pub const DOCKER_HUB: &str = "docker.io";

/// An image in a registry, as docker has it: `[HOST[:PORT]/]PATH[:TAG][@DIGEST]`. Without a registry
/// it is one of Docker Hub's, there without a directory one of `library`; without a tag and a digest,
/// the tag is `latest`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Host and port of the registry, as people write it.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path in the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if there is one.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if there is one.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What the registry is asked for: the digest, or else the tag.
    pub fn selector(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".into(),
        }
    }

    /// The name that the image gets in a store: without what docker leaves out, and none if all that
    /// is said is a digest.
    pub fn name(&self) -> Option<String> {
        let path = format!("{}/{}", self.registry, self.repository);
        let path = familiar(&path);
        match (&self.tag, &self.digest) {
            (Some(tag), _) => Some(format!("{path}:{tag}")),
            (None, None) => Some(path.to_owned()),
            (None, Some(_)) => None,
        }
    }
}

impl FromStr for Reference {
    type Err = RegistryError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |problem: &str| RegistryError::Reference {
            text: text.to_owned(),
            problem: problem.to_owned(),
        };
        if let Some((scheme, _)) = text.split_once("://") {
            return Err(wrong(&format!("leave out '{scheme}://'")));
        }
        let (name, digest) = match text.split_once('@') {
            None => (text, None),
            Some((name, digest)) => {
                let digest = digest.parse::<Digest>();
                (
                    name,
                    Some(digest.map_err(|error| wrong(&error.to_string()))?),
                )
            }
        };
        // A colon before the last slash belongs to a registry's port.
        let (path, tag) = match name.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
            _ => (name, None),
        };
        check_path(path).map_err(wrong)?;
        tag.map_or(Ok(()), check_tag).map_err(wrong)?;
        let (registry, repository) = match path.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => {
                (canonical_registry(first), rest)
            }
            _ => (DOCKER_HUB, path),
        };
        let library = registry == DOCKER_HUB && !repository.contains('/');
        Ok(Self {
            registry: registry.to_owned(),
            repository: format!("{}{repository}", if library { "library/" } else { "" }),
            tag: tag.map(str::to_owned),
            digest,
        })
    }
}

/// In full.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match (&self.tag, &self.digest) {
            (_, Some(digest)) => write!(f, "@{digest}"),
            (None, None) => f.write_str(":latest"),
            (Some(_), None) => Ok(()),
        }
    }
}

/// A registry as it is known: Docker Hub has several names.
pub fn canonical_registry(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB,
        host => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write() {
        let digest = Digest::of(b"x");
        for (text, full, name) in [
            ("debian", "docker.io/library/debian:latest", Some("debian")),
            (
                "debian:12",
                "docker.io/library/debian:12",
                Some("debian:12"),
            ),
            ("team/app", "docker.io/team/app:latest", Some("team/app")),
            (
                "index.docker.io/library/debian:12",
                "docker.io/library/debian:12",
                Some("debian:12"),
            ),
            ("localhost/x", "localhost/x:latest", Some("localhost/x")),
            (
                "127.0.0.1:5000/a/b/c:t",
                "127.0.0.1:5000/a/b/c:t",
                Some("127.0.0.1:5000/a/b/c:t"),
            ),
            (
                &format!("r.example/a@{digest}"),
                &format!("r.example/a@{digest}"),
                None,
            ),
            (
                &format!("r.example/a:1@{digest}"),
                &format!("r.example/a:1@{digest}"),
                Some("r.example/a:1"),
            ),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), full);
            assert_eq!(reference.name().as_deref(), name, "{text}");
            let again: Reference = full.parse().unwrap();
            assert_eq!(again.to_string(), full);
            assert_eq!(again.selector(), reference.selector());
        }
    }

    #[test]
    fn what_they_cannot_write() {
        for text in [
            "",
            "Debian",
            "a:",
            ":t",
            "a@b",
            "a@sha256:00",
            "docker://debian",
            "https://h/x",
            "a b",
            "h.example/",
            "../x",
            "a@",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
    }
}
