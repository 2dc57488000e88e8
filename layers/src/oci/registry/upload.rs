//! Giving things to a registry: blobs, then the manifest that names them.

use std::io::Write;

use ureq::Body;
use ureq::http::header::{CONTENT_TYPE, LOCATION};
use ureq::http::{HeaderName, Method, Response};

use super::answer::Tries;
use super::auth::escape;
use super::client::{Call, Content};
use super::{RegistryError, Repository};
use crate::digest::Digest;
use crate::oci::SourceError;

/// How a blob got into a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It was there.
    Present,
    /// The registry took it from another of its repositories.
    Mounted,
    /// Byte by byte.
    Uploaded,
}

/// What is sent. It may be wanted several times.
pub trait Contents: Sync {
    /// Writes it, the same bytes each time.
    ///
    /// # Errors
    /// When it cannot be had, or `to` fails.
    fn write(&self, to: &mut dyn Write) -> Result<(), SourceError>;
}

/// An upload that may begin.
enum Begun {
    /// There is nothing to be sent.
    Mounted,
    /// Where it is to be sent.
    Session(String),
}

impl Repository<'_> {
    /// Whether it has a blob.
    ///
    /// # Errors
    /// When the registry does not say.
    pub fn has_blob(&self, digest: &Digest) -> Result<bool, RegistryError> {
        let answer = self.client().send(&Call {
            method: Method::HEAD,
            url: &self.url(&format!("blobs/{digest}")),
            headers: &[],
            scopes: &self.push_scopes(),
            what: &format!("{digest} of {}", self.name()),
            content: Content::None,
        });
        match answer {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Has the registry take a blob from `from`, another of its repositories; `false` if it does not.
    ///
    /// # Errors
    /// When the registry does not answer.
    pub fn mount_blob(&self, digest: &Digest, from: &str) -> Result<bool, RegistryError> {
        match self.begin(
            &format!("{digest} of {}", self.name()),
            Some((digest, from)),
        ) {
            Ok(begun) => Ok(matches!(begun, Begun::Mounted)),
            // It may be that only the other repository is closed.
            Err(
                RegistryError::Forbidden { .. }
                | RegistryError::LoginNeeded { .. }
                | RegistryError::Credentials { .. }
                | RegistryError::NotFound { .. }
                | RegistryError::Refused { .. },
            ) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sends a blob of `size` bytes. When the connection breaks, it is sent anew.
    ///
    /// # Errors
    /// When the registry does not take it, or it cannot be read.
    pub fn upload_blob(
        &self,
        digest: &Digest,
        size: u64,
        contents: &dyn Contents,
    ) -> Result<(), RegistryError> {
        let what = format!("{digest} of {}", self.name());
        let mut tries = Tries::new(self.client().retries);
        loop {
            let url = match self.begin(&what, None)? {
                Begun::Mounted => return Ok(()),
                Begun::Session(url) => url,
            };
            let sign = if url.contains('?') { '&' } else { '?' };
            let sent = self.client().send(&Call {
                method: Method::PUT,
                url: &format!("{url}{sign}digest={}", escape(&digest.to_string())),
                headers: &[(CONTENT_TYPE, "application/octet-stream")],
                scopes: &self.push_scopes(),
                what: &what,
                content: Content::Stream(size, contents),
            });
            match sent {
                Ok(_) => return Ok(()),
                // The session is of no use any more: the registry may have got a part.
                Err(error) if error.may_pass() && tries.again(error.wait()) => {
                    tracing::info!("{error}; sending it again");
                }
                Err(RegistryError::Server {
                    registry,
                    what,
                    status,
                    message,
                    ..
                }) => {
                    return Err(RegistryError::Server {
                        registry,
                        what,
                        times: tries.made(),
                        status,
                        message,
                    });
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Starts an upload.
    fn begin(&self, what: &str, mount: Option<(&Digest, &str)>) -> Result<Begun, RegistryError> {
        let mut scopes = self.push_scopes();
        let query = mount.map_or_else(String::new, |(digest, from)| {
            scopes.push(format!("repository:{from}:pull"));
            let (digest, from) = (escape(&digest.to_string()), escape(from));
            format!("?mount={digest}&from={from}")
        });
        let url = self.url(&format!("blobs/uploads/{query}"));
        let answer = self.client().send(&Call {
            method: Method::POST,
            url: &url,
            headers: &[],
            scopes: &scopes,
            what,
            content: Content::Bytes(b""),
        })?;
        if answer.status().as_u16() == 201 {
            return Ok(Begun::Mounted);
        }
        let location = text(&answer, &LOCATION);
        let url = location.and_then(|location| self.client().absolute(&location));
        url.map(Begun::Session)
            .ok_or_else(|| RegistryError::Protocol {
                registry: self.client().registry().to_owned(),
                what: what.to_owned(),
                problem: "it does not say where to send it".into(),
            })
    }

    /// Sends a manifest, under a tag or its digest.
    ///
    /// # Errors
    /// When the registry does not take it, or takes it for something else.
    pub fn put_manifest(
        &self,
        selector: &str,
        media_type: &str,
        manifest: &[u8],
    ) -> Result<Digest, RegistryError> {
        let what = format!("{}:{selector}", self.name());
        let answer = self.client().send(&Call {
            method: Method::PUT,
            url: &self.url(&format!("manifests/{selector}")),
            headers: &[(CONTENT_TYPE, media_type)],
            scopes: &self.push_scopes(),
            what: &what,
            content: Content::Bytes(manifest),
        })?;
        let digest = Digest::of(manifest);
        let found = text(&answer, &super::image::DOCKER_CONTENT_DIGEST);
        match found.and_then(|found| found.parse().ok()) {
            Some(found) if found != digest => Err(RegistryError::Digest {
                registry: self.client().registry().to_owned(),
                what: format!("the manifest of {what} that was sent"),
                wanted: digest,
                found,
            }),
            _ => Ok(digest),
        }
    }

    fn push_scopes(&self) -> Vec<String> {
        vec![format!("repository:{}:pull,push", self.path())]
    }
}

fn text(response: &Response<Body>, name: &HeaderName) -> Option<String> {
    let value = response.headers().get(name)?.to_str().ok()?;
    Some(value.to_owned())
}
