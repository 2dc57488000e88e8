//! Requests to one registry: what all of them need, whatever they are for.
//!
//! A request that fails for a reason that may pass (a broken connection, 5xx, 429) is made again,
//! after a pause that doubles each time, or that the registry asks for. One that is answered 401 is
//! made again once, with what the registry wants to see.

use std::io::{self, BufWriter, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ureq::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, LOCATION, WWW_AUTHENTICATE};
use ureq::http::{HeaderName, Method, Request, Response};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body, SendBody};

use super::RegistryError;
use super::answer::{Refusal, Tries, unreachable};
use super::auth::{Challenge, TokenAnswer, Tokens, escape};
use super::credentials::Credential;
use super::reference::DOCKER_HUB;
use super::upload::Contents;
use crate::oci::SourceError;

/// How a registry is talked to.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// By HTTP, which anybody in between can read and change.
    pub plain_http: bool,
    /// By HTTPS with whoever answers.
    pub insecure: bool,
    /// Files of certificates (PEM) to trust besides the system's.
    pub ca_files: Vec<PathBuf>,
    /// How often something that fails is tried again.
    pub retries: u32,
    /// How long a connection may be silent.
    pub silence: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            plain_http: false,
            insecure: false,
            ca_files: Vec::new(),
            retries: 4,
            silence: Duration::from_secs(60),
        }
    }
}

/// Connections to one registry. Several threads may use it.
pub struct Client {
    agent: Agent,
    registry: String,
    base: String,
    secure: bool,
    pub(super) tokens: Tokens,
    pub(super) retries: u32,
    /// It was there once, so that it is worth waiting for.
    reached: AtomicBool,
}

/// What is sent with a request.
#[derive(Clone, Copy)]
pub enum Content<'c> {
    /// Nothing.
    None,
    /// These bytes.
    Bytes(&'c [u8]),
    /// So many bytes, which can be had again if need be.
    Stream(u64, &'c dyn Contents),
}

/// A request.
pub struct Call<'c> {
    /// What to do.
    pub method: Method,
    /// Where.
    pub url: &'c str,
    /// Fields of the header, but for those that all requests have.
    pub headers: &'c [(HeaderName, &'c str)],
    /// What has to be allowed.
    pub scopes: &'c [String],
    /// What it is about, for messages.
    pub what: &'c str,
    /// What is sent with it.
    pub content: Content<'c>,
}

/// The answer of a token server may not be longer, in bytes.
const MAX_TOKEN: u64 = 1 << 20;
/// So often a request may be sent to another address.
const MAX_REDIRECTS: usize = 10;
/// A registry may take so long over what was sent to it.
const UPLOAD_SILENCE: Duration = Duration::from_secs(600);

impl Client {
    /// One for a registry. Nothing is sent yet.
    ///
    /// # Errors
    /// When certificates cannot be read.
    pub fn new(
        registry: &str,
        credential: Option<Credential>,
        options: &ClientOptions,
    ) -> Result<Self, RegistryError> {
        let host = match registry {
            DOCKER_HUB => "registry-1.docker.io",
            registry => registry,
        };
        let scheme = if options.plain_http { "http" } else { "https" };
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .https_only(!options.plain_http)
            // Who sends somewhere else is followed here, where it is known what may be shown to whom.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("lamina/", env!("CARGO_PKG_VERSION")))
            .max_idle_connections_per_host(16)
            .timeout_connect(Some(options.silence.min(Duration::from_secs(30))))
            .timeout_per_read(Some(options.silence))
            .timeout_per_write(Some(options.silence));
        if !options.plain_http {
            config = config.tls_config(tls(options)?);
        }
        Ok(Self {
            agent: config.build().into(),
            registry: registry.to_owned(),
            base: format!("{scheme}://{host}/v2/"),
            secure: !options.plain_http,
            tokens: Tokens::new(credential),
            retries: options.retries,
            reached: AtomicBool::new(false),
        })
    }

    /// The registry, as people write it.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The address of something in the registry's interface.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// Where a `Location` of the registry leads.
    pub fn absolute(&self, location: &str) -> Option<String> {
        if location.starts_with("http://") || location.starts_with("https://") {
            return Some(location.to_owned());
        }
        let root = self.base.strip_suffix("/v2/")?;
        location
            .starts_with('/')
            .then(|| format!("{root}{location}"))
    }

    /// Whether credentials may go to an address.
    fn is_own(&self, url: &str) -> bool {
        let root = self.base.strip_suffix("v2/");
        root.is_some_and(|root| url.starts_with(root))
    }

    /// Asks whether the registry knows whose the credentials are.
    ///
    /// # Errors
    /// When it does not, or does not answer like a registry.
    pub fn check_login(&self) -> Result<(), RegistryError> {
        // Some answer anybody, and look only at credentials that are shown.
        self.tokens.use_basic();
        self.send(&Call {
            method: Method::GET,
            url: &self.base,
            headers: &[],
            scopes: &[],
            what: "its interface",
            content: Content::None,
        })
        .map(drop)
    }

    /// Makes a request until it is answered. The answer's status is below 400.
    ///
    /// # Errors
    /// When there is no answer, or it means no.
    pub fn send(&self, call: &Call<'_>) -> Result<Response<Body>, RegistryError> {
        let mut proven = false;
        loop {
            let authorization = self.tokens.authorization(call.scopes);
            let shown = |url: &str| authorization.clone().filter(|_| self.is_own(url));
            let (response, url) = self.follow(call, &shown)?;
            let own = self.is_own(&url);
            let status = response.status().as_u16();
            if status < 400 {
                return Ok(response);
            }
            if status == 401 && !proven && own {
                if authorization.is_some() {
                    self.tokens.drop_token(call.scopes);
                }
                if let Some(challenge) = challenge(&response)
                    && self.prove(&challenge, call)?
                {
                    proven = true;
                    continue;
                }
            }
            return Err(self.refused(call.what, Refusal::read(response), 1));
        }
    }

    /// Makes a request, and goes where it is sent. `authorization` says what is shown at an address.
    /// Returns the answer, and the address that gave it.
    fn follow(
        &self,
        call: &Call<'_>,
        authorization: &dyn Fn(&str) -> Option<String>,
    ) -> Result<(Response<Body>, String), RegistryError> {
        let mut url = call.url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let step = Call {
                method: call.method.clone(),
                url: &url,
                ..*call
            };
            let response = self.persist(&step, authorization(&url).as_deref())?;
            match redirect(&step, &response) {
                None => return Ok((response, url)),
                Some(next) => url = next,
            }
        }
        Err(RegistryError::Protocol {
            registry: self.registry.clone(),
            what: call.what.to_owned(),
            problem: format!("it is sent from one address to the next, {MAX_REDIRECTS} times"),
        })
    }

    /// Makes a request until it has an answer that would be the same the next time.
    fn persist(
        &self,
        call: &Call<'_>,
        authorization: Option<&str>,
    ) -> Result<Response<Body>, RegistryError> {
        // What a registry got half of is sent anew by whoever sends it, from its beginning.
        let again = !matches!(call.content, Content::Stream(..));
        let mut tries = Tries::new(if again { self.retries } else { 0 });
        loop {
            match self.once(call, authorization)? {
                Ok(response) => {
                    self.reached.store(true, Ordering::Relaxed);
                    if !matches!(response.status().as_u16(), 408 | 429 | 500..) {
                        return Ok(response);
                    }
                    let refusal = Refusal::read(response);
                    if !tries.again(refusal.retry_after) {
                        return Err(self.refused(call.what, refusal, tries.made()));
                    }
                }
                Err(error) => {
                    let worth = self.reached.load(Ordering::Relaxed);
                    let failure = unreachable(&self.registry, error, worth);
                    if !failure.transient || !tries.again(None) {
                        return Err(failure.error);
                    }
                    tracing::info!("{}; trying again", failure.error);
                }
            }
        }
    }

    /// Makes a request once. The outer error is that of what was to be sent.
    fn once(
        &self,
        call: &Call<'_>,
        authorization: Option<&str>,
    ) -> Result<Result<Response<Body>, ureq::Error>, RegistryError> {
        let mut request = Request::builder().method(call.method.clone()).uri(call.url);
        for (name, value) in call.headers {
            request = request.header(name, *value);
        }
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        tracing::debug!("{} {}", call.method, call.url);
        let (length, contents) = match call.content {
            Content::None => return Ok(self.run(request.body(()), false)),
            Content::Bytes(bytes) => return Ok(self.run(request.body(bytes), true)),
            Content::Stream(length, contents) => (length, contents),
        };
        let request = request.header(CONTENT_LENGTH, length);
        let (result, written) = std::thread::scope(|scope| {
            let (reader, writer) = match io::pipe() {
                Ok(ends) => ends,
                Err(error) => return (Err(error.into()), Ok(())),
            };
            let writing = scope.spawn(move || Pipe::new(writer).fill(contents));
            let mut reader = Whole::new(reader, length);
            let result = self.run(request.body(SendBody::from_reader(&mut reader)), true);
            // Who still writes is told that nobody reads.
            drop(reader);
            let panicked = |_| Err("a thread panicked; this is a bug in lamina".into());
            (result, writing.join().unwrap_or_else(panicked))
        });
        match written {
            Err(source) if result.is_err() => Err(RegistryError::Source {
                registry: self.registry.clone(),
                what: call.what.to_owned(),
                source,
            }),
            _ => Ok(result),
        }
    }

    fn run<B: ureq::AsSendBody>(
        &self,
        request: Result<Request<B>, ureq::http::Error>,
        upload: bool,
    ) -> Result<Response<Body>, ureq::Error> {
        let request = request?;
        if upload {
            let configured = self.agent.configure_request(request);
            let request = configured.timeout_per_read(Some(UPLOAD_SILENCE)).build();
            return self.agent.run(request);
        }
        self.agent.run(request)
    }

    /// Prepares what a registry wants to see; `false` if there is nothing to show.
    fn prove(&self, challenge: &Challenge, call: &Call<'_>) -> Result<bool, RegistryError> {
        match challenge {
            Challenge::Basic => {
                self.tokens.use_basic();
                Ok(self.tokens.basic_value().is_some())
            }
            Challenge::Bearer {
                realm,
                service,
                scope,
            } => {
                let service = service.as_deref();
                self.fetch_token(realm, service, scope.as_deref(), call)?;
                Ok(true)
            }
        }
    }

    /// Asks a token server for a token.
    fn fetch_token(
        &self,
        realm: &str,
        service: Option<&str>,
        scope: Option<&str>,
        call: &Call<'_>,
    ) -> Result<(), RegistryError> {
        let protocol = |problem: String| RegistryError::Protocol {
            registry: self.registry.clone(),
            what: call.what.to_owned(),
            problem,
        };
        // Credentials that go to a registry by HTTPS must not leave by HTTP.
        if self.secure && !realm.starts_with("https://") {
            return Err(protocol(format!(
                "it wants a token of {realm}, without HTTPS"
            )));
        }
        let mut fields: Vec<_> = service
            .map(|value| ("service", value))
            .into_iter()
            .collect();
        if call.scopes.is_empty() {
            fields.extend(scope.map(|scope| ("scope", scope)));
        }
        if let Some(token) = self.tokens.identity_token() {
            let wanted = call.scopes.join(" ");
            let scope = (!wanted.is_empty()).then_some(("scope", wanted.as_str()));
            let grant = [("grant_type", "refresh_token"), ("client_id", "lamina")];
            fields.extend(grant.into_iter().chain(scope));
            fields.push(("refresh_token", token));
            return self.take_token(realm, None, Some(&form(&fields)), call);
        }
        fields.extend(call.scopes.iter().map(|scope| ("scope", scope.as_str())));
        fields.extend(self.tokens.user().map(|user| ("account", user)));
        let sign = if realm.contains('?') { '&' } else { '?' };
        let url = format!("{realm}{sign}{}", form(&fields));
        let authorization = self.tokens.basic_value();
        self.take_token(&url, authorization.as_deref(), None, call)
    }

    /// Asks for a token by GET, or by POST with a form.
    fn take_token(
        &self,
        url: &str,
        authorization: Option<&str>,
        form: Option<&str>,
        call: &Call<'_>,
    ) -> Result<(), RegistryError> {
        let headers = [(CONTENT_TYPE, "application/x-www-form-urlencoded")];
        let request = Call {
            method: form.map_or(Method::GET, |_| Method::POST),
            url,
            headers: if form.is_some() { &headers } else { &[] },
            scopes: call.scopes,
            what: call.what,
            content: form.map_or(Content::None, |form| Content::Bytes(form.as_bytes())),
        };
        let asked = origin(url);
        let shown = |url: &str| {
            authorization
                .filter(|_| origin(url) == asked)
                .map(ToOwned::to_owned)
        };
        let (mut response, _) = self.follow(&request, &shown)?;
        if response.status().as_u16() >= 400 {
            return Err(self.refused(call.what, Refusal::read(response), 1));
        }
        let reader = response.body_mut().with_config().limit(MAX_TOKEN).reader();
        let answer = serde_json::from_reader::<_, TokenAnswer>(reader).ok();
        if answer.is_some_and(|answer| self.tokens.take(call.scopes, answer)) {
            return Ok(());
        }
        Err(RegistryError::Protocol {
            registry: self.registry.clone(),
            what: call.what.to_owned(),
            problem: "its token server gives no token".into(),
        })
    }

    /// The error for an answer that means no.
    fn refused(&self, what: &str, refusal: Refusal, times: u32) -> RegistryError {
        let (registry, what) = (self.registry.clone(), what.to_owned());
        let (status, message) = (refusal.status, refusal.message);
        let origin = self.tokens.credential.as_ref();
        match (status, origin) {
            (401, None) => RegistryError::LoginNeeded {
                registry,
                what,
                message,
            },
            (401, Some(credential)) => RegistryError::Credentials {
                registry,
                origin: credential.origin.clone(),
                what,
                status,
                message,
            },
            (403, _) => RegistryError::Forbidden {
                registry,
                what,
                message,
            },
            (404, _) => RegistryError::NotFound {
                registry,
                what,
                message,
            },
            (429, _) => RegistryError::TooMany {
                registry,
                what,
                message,
                wait: refusal.retry_after,
            },
            (408 | 500.., _) => RegistryError::Server {
                registry,
                what,
                times,
                status,
                message,
            },
            _ => RegistryError::Refused {
                registry,
                what,
                status,
                message,
            },
        }
    }
}

/// Scheme, host and port of an address.
fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    let rest = url.get(start..).unwrap_or_default();
    let end = rest
        .find(['/', '?', '#'])
        .map_or(url.len(), |at| start + at);
    url.get(..end).unwrap_or(url)
}

/// Where an answer sends what was asked, if it sends it anywhere, and that can be asked again there.
fn redirect(call: &Call<'_>, response: &Response<Body>) -> Option<String> {
    let sends = matches!(response.status().as_u16(), 301..=303 | 307 | 308);
    if !sends || !matches!(call.method, Method::GET | Method::HEAD) {
        return None;
    }
    let place = response.headers().get(LOCATION)?.to_str().ok()?;
    let scheme = call.url.split("://").next().unwrap_or_default();
    if place.contains("://") {
        return Some(place.to_owned());
    }
    if place.starts_with("//") {
        return Some(format!("{scheme}:{place}"));
    }
    if place.starts_with('/') {
        return Some(format!("{}{place}", origin(call.url)));
    }
    // Beside what was asked for.
    let path = call.url.split(['?', '#']).next().unwrap_or_default();
    Some(format!("{}/{place}", path.rsplit_once('/')?.0))
}

/// The challenge of an answer, if it has one that is understood.
fn challenge(response: &Response<Body>) -> Option<Challenge> {
    let headers = response.headers().get_all(WWW_AUTHENTICATE).iter();
    let values: Vec<_> = headers.filter_map(|value| value.to_str().ok()).collect();
    Challenge::parse(&values.join(", "))
}

fn form(fields: &[(&str, &str)]) -> String {
    let pairs = fields
        .iter()
        .map(|(name, value)| format!("{name}={}", escape(value)));
    pairs.collect::<Vec<_>>().join("&")
}

/// Whom to trust.
fn tls(options: &ClientOptions) -> Result<TlsConfig, RegistryError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = TlsConfig::builder().unversioned_rustls_crypto_provider(provider);
    if options.insecure {
        return Ok(config.disable_verification(true).build());
    }
    let system = rustls_native_certs::load_native_certs();
    for error in system.errors {
        tracing::warn!("a certificate of the system is not used: {error}");
    }
    let mut roots: Vec<_> = system
        .certs
        .iter()
        .map(|der| Certificate::from_der(der).to_owned())
        .collect();
    for path in &options.ca_files {
        let before = roots.len();
        let wrong = |problem: String| RegistryError::Certificates {
            path: path.clone(),
            problem,
        };
        let text = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
        for item in ureq::tls::parse_pem(&text) {
            match item {
                Ok(ureq::tls::PemItem::Certificate(certificate)) => roots.push(certificate),
                Ok(_) => {}
                Err(error) => return Err(wrong(error.to_string())),
            }
        }
        if roots.len() == before {
            return Err(wrong("there are none in it (PEM is expected)".into()));
        }
    }
    Ok(config.root_certs(RootCerts::new_with_certs(&roots)).build())
}

/// The end of a pipe that contents are written to.
struct Pipe {
    writer: io::PipeWriter,
    /// Nobody reads any more, which is not the contents' fault.
    unread: bool,
}

impl Pipe {
    fn new(writer: io::PipeWriter) -> Self {
        let unread = false;
        Self { writer, unread }
    }

    fn fill(mut self, contents: &dyn Contents) -> Result<(), SourceError> {
        let mut out = BufWriter::with_capacity(64 << 10, &mut self);
        let written = contents.write(&mut out).and_then(|()| Ok(out.flush()?));
        // What is left in the buffer when something failed is of no use.
        drop(out.into_parts());
        match written {
            Err(_) if self.unread => Ok(()),
            written => written,
        }
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.writer.write(bytes);
        self.unread |= matches!(&written, Err(error) if error.kind() == io::ErrorKind::BrokenPipe);
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// A reader that fails if it ends too early: the registry would wait for the rest.
struct Whole<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Whole<R> {
    fn new(inner: R, left: u64) -> Self {
        Self { inner, left }
    }
}

impl<R: Read> Read for Whole<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        if count == 0 && self.left > 0 && !buffer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left = self.left.saturating_sub(count as u64);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::origin;

    #[test]
    fn origins_have_scheme_host_and_port() {
        for (url, expected) in [
            ("https://host/v2/x", "https://host"),
            ("https://host:5000/v2/", "https://host:5000"),
            ("http://host?query/with://more", "http://host"),
            ("https://host", "https://host"),
        ] {
            assert_eq!(origin(url), expected);
        }
    }
}
