//! ADD of what is on the network.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::time::UNIX_EPOCH;

use lamina_layers::digest::Digest;
use lamina_layers::store::Transaction;
use sha2::{Digest as _, Sha256};

use super::Builder;
use super::error::{BuildResult, Problem};
use super::source::{Contents, Holds};

/// A file that was downloaded.
pub struct Remote {
    /// Where it is.
    pub url: String,
    /// The name it gets in a directory.
    pub name: String,
    file: File,
    size: u64,
    mtime: (i64, u32),
}

/// Whether a source of ADD is on the network rather than in the context.
pub fn is_remote(source: &str) -> bool {
    source.contains("://") || source.starts_with("git@")
}

impl Builder<'_> {
    /// Downloads a file, and compares it with what it should be.
    pub(super) fn download(
        &self,
        txn: &Transaction<'_>,
        url: &str,
        checksum: Option<&Digest>,
    ) -> BuildResult<Remote> {
        let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
        let is_web = ["http", "https"].contains(&scheme.to_ascii_lowercase().as_str());
        let path = rest.split(['?', '#']).next().unwrap_or_default();
        let is_repository = path.to_ascii_lowercase().ends_with(".git");
        if !is_web || is_repository {
            return Err(Problem::Unsupported {
                what: format!("ADD of '{url}'"),
                hint: "only files can be had, by http:// and https://; clone a repository in a RUN"
                    .into(),
            }
            .into());
        }
        self.say(&format!("downloading {url}"));
        let mut file = txn.scratch()?;
        let came = (self.around.download)(url, &mut file)?;
        let remote = Remote {
            url: url.to_owned(),
            name: file_name(path),
            size: came.size,
            // As BuildKit has it: the same every time.
            mtime: came
                .modified
                .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
                .map_or((0, 0), |since| (since.as_secs().cast_signed(), 0)),
            file,
        };
        if let Some(wanted) = checksum {
            let found = remote.digest().map_err(Problem::io("read", url))?;
            if found != *wanted {
                return Err(Problem::Checksum {
                    url: url.to_owned(),
                    wanted: *wanted,
                    found,
                }
                .into());
            }
        }
        Ok(remote)
    }
}

impl Remote {
    fn digest(&self) -> io::Result<Digest> {
        let mut hash = Sha256::new();
        let mut reader = self.reader()?;
        let mut buffer = vec![0; 64 << 10];
        loop {
            match reader.read(&mut buffer)? {
                0 => return Ok(Digest(hash.finalize().into())),
                count => hash.update(buffer.get(..count).unwrap_or_default()),
            }
        }
    }

    /// It from its beginning.
    fn reader(&self) -> io::Result<File> {
        let mut reader = self.file.try_clone()?;
        reader.rewind()?;
        Ok(reader)
    }

    /// Its attributes and contents.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn contents(&self) -> BuildResult<Contents<'static>> {
        let reader = self.reader().map_err(Problem::io("read", &self.name))?;
        Ok(Contents {
            mode: 0o600,
            owner: (0, 0),
            mtime: self.mtime,
            xattrs: Vec::new(),
            identity: None,
            data: Holds::File(self.size, Box::new(reader)),
        })
    }
}

/// The name of a file at an address, without scheme and query; nothing if it says none.
fn file_name(path: &str) -> String {
    let (_, path) = path.split_once('/').unwrap_or_default();
    let decoded = percent_encoding::percent_decode_str(path).decode_utf8_lossy();
    let name = decoded.rsplit('/').next().unwrap_or_default();
    match name {
        "." | ".." => String::new(),
        name => name.replace('\0', ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_address() {
        for (path, name) in [
            ("example.com/a/b.tar.gz", "b.tar.gz"),
            ("example.com/a%20b", "a b"),
            ("example.com/a%2Fb", "b"),
            ("example.com/a%00b", "ab"),
            ("example.com/a/..", ""),
            ("example.com/", ""),
            ("example.com", ""),
        ] {
            assert_eq!(file_name(path), name, "{path}");
        }
    }

    #[test]
    fn what_is_on_the_network() {
        for (source, expected) in [
            ("https://example.com/x", true),
            ("git@example.com:x.git", true),
            ("dir/file", false),
            ("C:/x", false),
        ] {
            assert_eq!(is_remote(source), expected, "{source}");
        }
    }
}
