//! What to make of an answer that means no, and of none.

use std::io::{self, Read};
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use ureq::Body;
use ureq::http::Response;
use ureq::http::header::RETRY_AFTER;

use super::RegistryError;

/// The first pause before something is tried again; each further one is twice as long.
const PAUSE: Duration = Duration::from_millis(500);
/// The longest pause that is chosen here.
const MAX_PAUSE: Duration = Duration::from_secs(16);
/// The longest time, in all, that is waited because the registry asks for it.
const MAX_WAIT: Duration = Duration::from_secs(120);
/// So much of an error's text is read, in bytes.
const MAX_TEXT: u64 = 64 << 10;
/// So much of it is told, in characters.
const TOLD: usize = 300;

/// An answer that means no.
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// What the registry says, or nothing.
    pub message: String,
    /// After how many seconds it wants to be asked again.
    pub retry_after: Option<u64>,
}

/// The errors of a registry (OCI distribution specification, "Error Codes").
#[derive(Deserialize)]
struct Errors {
    errors: Vec<CodedError>,
}

#[derive(Deserialize)]
struct CodedError {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

impl Refusal {
    /// Reads it to its end.
    pub fn read(mut response: Response<Body>) -> Self {
        let retry_after = response.headers().get(RETRY_AFTER);
        let retry_after = retry_after.and_then(|value| seconds(value.to_str().ok()?));
        let mut text = Vec::new();
        // What can be had of it: the status alone says enough.
        let _ = response
            .body_mut()
            .as_reader()
            .take(MAX_TEXT)
            .read_to_end(&mut text);
        Self {
            status: response.status().as_u16(),
            message: message(&text),
            retry_after,
        }
    }
}

/// `Retry-After`: seconds, or a date.
fn seconds(value: &str) -> Option<u64> {
    value.trim().parse().ok().or_else(|| {
        let until = httpdate::parse_http_date(value).ok()?;
        let wait = until.duration_since(SystemTime::now());
        Some(wait.map_or(0, |wait| wait.as_secs() + 1))
    })
}

/// What a text says, in one line. A page for browsers says nothing.
fn message(text: &[u8]) -> String {
    let words = match serde_json::from_slice::<Errors>(text) {
        Ok(said) => {
            let words = said.errors.into_iter().map(|error| match error.message {
                message if message.is_empty() => error.code,
                message => message,
            });
            words.collect::<Vec<_>>().join("; ")
        }
        Err(_) if text.starts_with(b"<") || text.starts_with(b"{") => String::new(),
        Err(_) => String::from_utf8_lossy(text).into_owned(),
    };
    let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
    let printable = words.chars().filter(|letter| !letter.is_control());
    printable.take(TOLD).collect()
}

/// How often something has been tried.
pub struct Tries {
    made: u32,
    most: u32,
    waited: Duration,
}

impl Tries {
    /// It is being tried for the first time, and may be `retries` times more.
    pub fn new(retries: u32) -> Self {
        Self {
            made: 1,
            most: retries.saturating_add(1),
            waited: Duration::ZERO,
        }
    }

    /// How often it was tried.
    pub fn made(&self) -> u32 {
        self.made
    }

    /// Waits for the moment to try again; `false` if it is not worth it. `asked` is how many seconds
    /// the registry wants to be left alone.
    pub fn again(&mut self, asked: Option<u64>) -> bool {
        if self.made >= self.most {
            return false;
        }
        let own = PAUSE
            .saturating_mul(1 << (self.made - 1).min(16))
            .min(MAX_PAUSE);
        let pause = asked.map_or(own, Duration::from_secs);
        if asked.is_some() {
            self.waited = self.waited.saturating_add(pause);
            if self.waited > MAX_WAIT {
                return false;
            }
        }
        self.made += 1;
        std::thread::sleep(pause);
        true
    }
}

/// What became of a request without an answer.
pub struct Failure {
    /// What to tell.
    pub error: RegistryError,
    /// Whether it may pass.
    pub transient: bool,
}

/// What to make of no answer. A registry that was `reached` before may come back.
pub fn unreachable(registry: &str, error: ureq::Error, reached: bool) -> Failure {
    let refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    let (transient, hint) = match &error {
        ureq::Error::HostNotFound => (reached, ". Is its name right?"),
        ureq::Error::Io(error) if refused(error) => {
            (reached, ". Is it running, and is its port right?")
        }
        ureq::Error::Io(error) => hint_for(&error.to_string(), reached),
        ureq::Error::Rustls(error) => hint_for(&error.to_string(), reached),
        ureq::Error::Timeout(_) | ureq::Error::ConnectionFailed | ureq::Error::Protocol(_) => {
            (true, "")
        }
        ureq::Error::RequireHttpsOnly(_) => (false, ". It was to be by HTTPS only"),
        _ => (false, ""),
    };
    let source = match error {
        ureq::Error::Timeout(_) => io::Error::new(io::ErrorKind::TimedOut, "it does not answer"),
        error => error.into_io(),
    };
    Failure {
        error: RegistryError::Unreachable {
            registry: registry.to_owned(),
            source,
            hint,
        },
        transient,
    }
}

/// Whether something may pass, and what to do about it if not.
fn hint_for(words: &str, reached: bool) -> (bool, &'static str) {
    if words.contains("UnknownIssuer") {
        let hint = ". --ca-file names the certificate of its authority, if you trust it";
        (false, hint)
    } else if words.contains("certificate") {
        (false, "")
    } else if words.contains("InvalidContentType") {
        let hint = ". If it speaks HTTP without TLS, and that is good enough, use --plain-http";
        (false, hint)
    } else if words.contains("lookup") {
        (reached, ". Is its name right?")
    } else {
        (true, "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_errors_say() {
        for (text, said) in [
            (
                &br#"{"errors":[{"code":"DENIED","message":"no such"},{"code":"X"}]}"#[..],
                "no such; X",
            ),
            (b"<html>sorry</html>", ""),
            (b"{\"other\":1}", ""),
            (b"go\n away\x07\n", "go away"),
            (b"", ""),
        ] {
            assert_eq!(message(text), said);
        }
        assert_eq!(message(&[b'x'; 1000]).len(), TOLD);
    }

    #[test]
    fn when_to_ask_again() {
        assert_eq!(seconds(" 7 "), Some(7));
        assert_eq!(seconds("Wed, 21 Oct 2015 07:28:00 GMT"), Some(0));
        let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(20));
        assert!(seconds(&soon).is_some_and(|wait| (18..=21).contains(&wait)));
        assert_eq!(seconds("soon"), None);
    }

    #[test]
    fn tries_end() {
        assert!(!Tries::new(0).again(Some(0)));
        assert!(!Tries::new(9).again(Some(121)));
        let mut tries = Tries::new(2);
        assert!(tries.again(Some(0)) && tries.again(Some(0)) && !tries.again(Some(0)));
        assert_eq!(tries.made(), 3);
    }
}
