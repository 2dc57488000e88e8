//! Files from any web server, by the means that blobs come by.

use std::fs::File;
use std::io::{self, Read, Seek as _, Write as _};
use std::time::SystemTime;

use ureq::http::header::{CONTENT_LENGTH, LAST_MODIFIED};
use ureq::http::{HeaderMap, Method};

use super::answer::Tries;
use super::blob::number;
use super::client::{Call, Client, ClientOptions, Content};
use super::error::RegistryError;

/// A file that came.
#[derive(Clone, Copy, Debug)]
pub struct Downloaded {
    /// Its length, in bytes.
    pub size: u64,
    /// When it was changed the last time, if the server says so.
    pub modified: Option<SystemTime>,
}

/// Downloads what is at an address (`http` or `https`) into a file, from its beginning on. What is at an
/// address of HTTPS comes by HTTPS all the way; `options` need not say which of the two it is.
///
/// # Errors
/// When it cannot be had, or not be written.
pub fn download(
    url: &str,
    options: &ClientOptions,
    into: &mut File,
) -> Result<Downloaded, RegistryError> {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let options = ClientOptions {
        plain_http: scheme.eq_ignore_ascii_case("http"),
        ..options.clone()
    };
    let client = Client::new(host, None, &options)?;
    let mut tries = Tries::new(options.retries);
    loop {
        let response = client.send(&Call {
            method: Method::GET,
            url,
            headers: &[],
            scopes: &[],
            what: url,
            content: Content::None,
        })?;
        let size = number(response.headers(), &CONTENT_LENGTH);
        let modified = modified(response.headers());
        let body = response.into_body().into_with_config();
        let body = body.limit(u64::MAX).reader();
        let broke = match copy(body, into) {
            Ok(found) if size.is_none_or(|size| size == found) => {
                return Ok(Downloaded {
                    size: found,
                    modified,
                });
            }
            Ok(found) => (found, io::ErrorKind::UnexpectedEof.into()),
            Err(Broke::Read(position, source)) => (position, source),
            Err(Broke::Write(source)) => {
                let what = url.to_owned();
                return Err(RegistryError::Keep { what, source });
            }
        };
        let (position, source) = broke;
        tracing::info!("{url} broke at byte {position}: {source}");
        if !tries.again(None) {
            return Err(RegistryError::Broken {
                registry: host.to_owned(),
                what: url.to_owned(),
                times: tries.made(),
                position,
                size,
                source,
            });
        }
    }
}

enum Broke {
    /// After so many bytes.
    Read(u64, io::Error),
    Write(io::Error),
}

/// Copies to the beginning of a file, which has nothing else afterwards.
fn copy(mut from: impl Read, into: &mut File) -> Result<u64, Broke> {
    into.rewind().map_err(Broke::Write)?;
    into.set_len(0).map_err(Broke::Write)?;
    let mut buffer = vec![0; 64 << 10];
    let mut position = 0;
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(position),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Broke::Read(position, error)),
        };
        let bytes = buffer.get(..count).unwrap_or_default();
        into.write_all(bytes).map_err(Broke::Write)?;
        position += count as u64;
    }
}

fn modified(headers: &HeaderMap) -> Option<SystemTime> {
    let value = headers.get(LAST_MODIFIED)?.to_str().ok()?;
    httpdate::parse_http_date(value).ok()
}
