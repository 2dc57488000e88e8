//! Reading blobs, whatever happens to the connection meanwhile.

use std::io::{self, Read};

use ureq::http::header::{CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use ureq::http::{HeaderMap, HeaderName, Method, Response};
use ureq::{Body, BodyReader};

use super::answer::Tries;
use super::client::{Call, Content};
use super::{RegistryError, Repository};
use crate::oci::{BlobSource, SourceError};
use crate::store::oci::Descriptor;

/// After so many bytes, a connection that breaks is not counted together with those before.
const PROGRESS: u64 = 64 << 10;

/// The blobs of a repository, for [`ingest`](crate::oci::ingest).
pub struct RepositoryBlobs<'r> {
    repository: &'r Repository<'r>,
}

impl<'r> RepositoryBlobs<'r> {
    /// Those of this one.
    pub fn new(repository: &'r Repository<'r>) -> Self {
        Self { repository }
    }
}

impl BlobSource for RepositoryBlobs<'_> {
    fn open(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>, SourceError> {
        let mut reader = BlobReader::new(self.repository, descriptor);
        // What is wrong from the start is told as such.
        reader.connect()?;
        Ok(Box::new(reader))
    }
}

/// A blob that is read. When its connection breaks, the next one goes on where that was.
pub(super) struct BlobReader<'r> {
    repository: &'r Repository<'r>,
    url: String,
    what: String,
    size: u64,
    position: u64,
    body: Option<BodyReader<'static>>,
    tries: Tries,
    /// Where it was when the connection broke the last time.
    broke_at: u64,
}

impl<'r> BlobReader<'r> {
    pub(super) fn new(repository: &'r Repository<'r>, descriptor: &Descriptor) -> Self {
        Self {
            repository,
            url: repository.url(&format!("blobs/{}", descriptor.digest)),
            what: format!("{} of {}", descriptor.digest, repository.name()),
            size: descriptor.size,
            position: 0,
            body: None,
            tries: Tries::new(repository.client().retries),
            broke_at: 0,
        }
    }

    /// Asks for what is left.
    fn connect(&mut self) -> Result<(), RegistryError> {
        let range = format!("bytes={}-", self.position);
        let headers: &[(HeaderName, &str)] = match self.position {
            0 => &[],
            _ => &[(RANGE, &range)],
        };
        let response = self.repository.client().send(&Call {
            method: Method::GET,
            url: &self.url,
            headers,
            scopes: self.repository.pull_scopes(),
            what: &self.what,
            content: Content::None,
        })?;
        let skip = self.check(&response)?;
        let body = response.into_body().into_with_config();
        // What comes is counted where it is compared with the digest.
        let mut body = body.limit(u64::MAX).reader();
        if skip > 0 {
            // A registry that cannot continue starts anew.
            let skipped = io::copy(&mut (&mut body).take(skip), &mut io::sink());
            match skipped {
                Ok(count) if count == skip => {}
                Ok(_) => return self.broke(io::ErrorKind::UnexpectedEof.into()),
                Err(error) => return self.broke(error),
            }
        }
        self.body = Some(body);
        Ok(())
    }

    /// Compares what the registry says with what was asked for. Returns how many bytes come that are
    /// there already.
    fn check(&self, response: &Response<Body>) -> Result<u64, RegistryError> {
        let headers = response.headers();
        let partial = response.status().as_u16() == 206;
        let start = if partial {
            range_start(headers)
        } else {
            Some(0)
        };
        let problem = match start {
            Some(0) if !partial => {
                let length = number(headers, &CONTENT_LENGTH);
                match length.filter(|length| *length != self.size) {
                    None => return Ok(self.position),
                    Some(length) => format!(
                        "it has {length} bytes there, and {} by the manifest",
                        self.size
                    ),
                }
            }
            Some(start) if start == self.position => return Ok(0),
            _ => format!(
                "it gives another part than that from byte {}",
                self.position
            ),
        };
        Err(RegistryError::Protocol {
            registry: self.repository.client().registry().to_owned(),
            what: self.what.clone(),
            problem,
        })
    }

    /// The connection broke: pauses, or gives up.
    fn broke(&mut self, source: io::Error) -> Result<(), RegistryError> {
        self.body = None;
        if self.position - self.broke_at >= PROGRESS {
            self.tries = Tries::new(self.repository.client().retries);
        }
        self.broke_at = self.position;
        tracing::info!("{} broke at byte {}: {source}", self.what, self.position);
        if self.tries.again(None) {
            return Ok(());
        }
        Err(RegistryError::Broken {
            registry: self.repository.client().registry().to_owned(),
            what: self.what.clone(),
            times: self.tries.made(),
            position: self.position,
            size: Some(self.size),
            source,
        })
    }

    fn step(&mut self, buffer: &mut [u8]) -> Result<usize, RegistryError> {
        loop {
            if self.body.is_none() {
                if self.position >= self.size {
                    return Ok(0);
                }
                self.connect()?;
            }
            let read = match &mut self.body {
                Some(body) => body.read(buffer),
                None => Err(io::ErrorKind::ConnectionReset.into()),
            };
            match read {
                Ok(0) if self.position < self.size => {
                    self.broke(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "it ended early",
                    ))?;
                }
                Ok(count) => {
                    self.position += count as u64;
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Everything is there.
                Err(_) if self.position >= self.size => return Ok(0),
                Err(error) => self.broke(error)?,
            }
        }
    }
}

impl Read for BlobReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.step(buffer).map_err(io::Error::other)
    }
}

/// A number that a header says.
pub(super) fn number(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

/// Where a part begins: `bytes 100-199/200`.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    let value = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let range = value.trim().strip_prefix("bytes")?.trim_start();
    range.split('-').next()?.trim().parse().ok()
}
