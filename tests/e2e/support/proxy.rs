//! What lies between a client and a registry, and does everything wrong that a test wants: it breaks
//! off, changes bytes, lies about lengths, answers itself, or wants tokens. It remembers all requests.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// A request that came.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
}

/// What goes wrong with an answer.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The registry is not asked: this status, these fields of the header, this text.
    Answer(u16, Vec<(&'static str, String)>, &'static str),
    /// So many bytes of the body come, then the connection ends.
    BreakAfter(u64),
    /// A byte of the body is another.
    Flip,
    /// The last bytes are missing, and the length says so too.
    Shorten(u64),
    /// Bytes come after the end, and the length says so too.
    Lengthen(u64),
    /// The length is not said; the body ends where it ends, after so many bytes more.
    Unmeasured(u64),
    /// The body comes in pieces of so many bytes, with a pause before each.
    Slow(usize, Duration),
    /// It says that it is something else.
    ContentType(&'static str),
    /// A part that was asked for is not known of: everything comes.
    IgnoreRange,
    /// So many bytes of the body come, then nothing until the proxy ends or `release` is called.
    StallAfter(u64),
    /// So many bytes of what is sent to the registry are read, then the connection ends.
    BreakUpload(u64),
}

/// Status, fields of the header, text.
type Answer = (u16, Vec<(&'static str, String)>, String);

struct Rule {
    method: &'static str,
    path: String,
    left: usize,
    fault: Fault,
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    seen: Vec<Seen>,
    released: bool,
    token: Option<TokenRules>,
}

/// How tokens are given.
#[derive(Clone)]
pub struct TokenRules {
    /// User and password, as in `Authorization`.
    pub basic: String,
    /// How many requests a token is good for.
    pub uses: usize,
    /// Those that were given: token, scopes, uses that are left.
    pub given: Vec<(String, Vec<String>, usize)>,
}

struct Shared {
    upstream: String,
    address: SocketAddr,
    state: Mutex<State>,
    changed: Condvar,
}

/// A proxy in front of a registry.
pub struct Proxy {
    shared: Arc<Shared>,
}

impl Proxy {
    /// Starts one in front of `upstream`.
    pub fn start(upstream: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let shared = Arc::new(Shared {
            upstream: upstream.to_owned(),
            address: listener.local_addr().unwrap(),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let serving = Arc::clone(&serving);
                std::thread::spawn(move || {
                    // A client that goes away, or is sent away, is what this is for.
                    let _ = serving.serve(&connection?);
                    io::Result::Ok(())
                });
            }
        });
        Self { shared }
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        self.shared.address.to_string()
    }

    /// The next `times` requests with this method and a path that has `path` in it go wrong.
    pub fn on(&self, method: &'static str, path: &str, times: usize, fault: Fault) {
        self.state().rules.push(Rule {
            method,
            path: path.to_owned(),
            left: times,
            fault,
        });
    }

    /// Everything is as it should be again.
    pub fn heal(&self) {
        self.state().rules.clear();
    }

    /// Wants tokens, which `/token` gives to who shows `basic`.
    pub fn want_tokens(&self, basic: &str, uses: usize) {
        self.state().token = Some(TokenRules {
            basic: basic.to_owned(),
            uses,
            given: Vec::new(),
        });
    }

    /// The scopes of all tokens that were given.
    pub fn scopes(&self) -> Vec<Vec<String>> {
        let state = self.state();
        let given = state.token.iter().flat_map(|token| &token.given);
        given.map(|(_, scopes, _)| scopes.clone()).collect()
    }

    /// Lets go what stalls.
    pub fn release(&self) {
        self.state().released = true;
        self.shared.changed.notify_all();
    }

    /// The requests since the last call.
    pub fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state().seen)
    }

    /// The requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.state().seen.clone()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.release();
    }
}

/// The beginning of a request or an answer.
struct Head {
    first: String,
    fields: Vec<(String, String)>,
}

impl Head {
    fn read(from: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if from.read_line(&mut line)? == 0 {
                return Ok(None);
            }
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let fields = lines.iter().skip(1).filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            Some((name.trim().to_owned(), value.trim().to_owned()))
        });
        Ok(Some(Self {
            fields: fields.collect(),
            first: lines.first().cloned().unwrap_or_default(),
        }))
    }

    fn get(&self, name: &str) -> Option<&str> {
        let mut fields = self.fields.iter();
        let found = fields.find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    fn set(&mut self, name: &str, value: &str) {
        self.remove(name);
        self.fields.push((name.to_owned(), value.to_owned()));
    }

    fn remove(&mut self, name: &str) {
        self.fields
            .retain(|(key, _)| !key.eq_ignore_ascii_case(name));
    }

    fn write(&self, to: &mut impl Write) -> io::Result<()> {
        write!(to, "{}\r\n", self.first)?;
        for (name, value) in &self.fields {
            write!(to, "{name}: {value}\r\n")?;
        }
        write!(to, "\r\n")
    }

    fn length(&self) -> u64 {
        self.get("content-length")
            .map_or(0, |length| length.parse().unwrap())
    }
}

impl Shared {
    /// Serves one request of a connection, which then ends.
    fn serve(&self, client: &TcpStream) -> io::Result<()> {
        let mut from = BufReader::new(client);
        let Some(mut request) = Head::read(&mut from)? else {
            return Ok(());
        };
        let mut words = request.first.split(' ').map(str::to_owned);
        let seen = Seen {
            method: words.next().unwrap_or_default(),
            path: words.next().unwrap_or_default(),
            range: request.get("range").map(str::to_owned),
            authorization: request.get("authorization").map(str::to_owned),
        };
        self.state.lock().unwrap().seen.push(seen.clone());
        if let Some((status, fields, text)) = self.token_answer(&seen) {
            drain(&mut from, request.length())?;
            return answer(client, status, &fields, &text);
        }
        let fault = self.fault(&seen);
        match &fault {
            Some(Fault::Answer(status, fields, text)) => {
                drain(&mut from, request.length())?;
                return answer(client, *status, fields, text);
            }
            Some(Fault::BreakUpload(bytes)) => return drain(&mut from, *bytes),
            Some(Fault::IgnoreRange) => request.remove("range"),
            _ => {}
        }
        request.set("connection", "close");
        let mut upstream = TcpStream::connect(&self.upstream)?;
        request.write(&mut upstream)?;
        io::copy(&mut (&mut from).take(request.length()), &mut upstream)?;
        let mut back = BufReader::new(upstream);
        let Some(head) = Head::read(&mut back)? else {
            return Ok(());
        };
        let body = seen.method != "HEAD";
        self.relay(client, head, &mut back, body, fault.as_ref())
    }

    fn fault(&self, seen: &Seen) -> Option<Fault> {
        let mut state = self.state.lock().unwrap();
        let rule = state.rules.iter_mut().find(|rule| {
            rule.left > 0 && rule.method == seen.method && seen.path.contains(&rule.path)
        })?;
        rule.left -= 1;
        Some(rule.fault.clone())
    }

    fn relay(
        &self,
        mut client: &TcpStream,
        mut head: Head,
        from: &mut impl Read,
        body: bool,
        fault: Option<&Fault>,
    ) -> io::Result<()> {
        head.set("connection", "close");
        let length = head.length();
        let (mut sent, mut extra) = (length, 0);
        match fault {
            Some(Fault::Shorten(bytes)) => {
                sent = length - *bytes;
                head.set("content-length", &sent.to_string());
            }
            Some(Fault::Lengthen(bytes)) => {
                extra = *bytes;
                head.set("content-length", &(length + bytes).to_string());
            }
            Some(Fault::Unmeasured(bytes)) => {
                extra = *bytes;
                head.remove("content-length");
            }
            Some(Fault::ContentType(kind)) => head.set("content-type", kind),
            Some(Fault::BreakAfter(bytes) | Fault::StallAfter(bytes)) => sent = sent.min(*bytes),
            _ => {}
        }
        head.write(&mut client)?;
        if !body {
            return Ok(());
        }
        match fault {
            Some(Fault::Slow(piece, pause)) => {
                let mut buffer = vec![0; *piece];
                loop {
                    let count = from.read(&mut buffer)?;
                    if count == 0 {
                        break;
                    }
                    std::thread::sleep(*pause);
                    client.write_all(&buffer[..count])?;
                }
            }
            Some(Fault::Flip) => {
                let mut first = [0];
                from.read_exact(&mut first)?;
                client.write_all(&[first[0] ^ 1])?;
                io::copy(&mut from.take(length - 1), &mut client)?;
            }
            _ => {
                io::copy(&mut from.take(sent), &mut client)?;
                io::copy(&mut io::repeat(0).take(extra), &mut client)?;
            }
        }
        if let Some(Fault::StallAfter(_)) = fault {
            let mut state = self.state.lock().unwrap();
            while !state.released {
                state = self.changed.wait(state).unwrap();
            }
        }
        Ok(())
    }

    /// The answer to a request that has to do with tokens; `None` if it may go on.
    fn token_answer(&self, seen: &Seen) -> Option<Answer> {
        let mut state = self.state.lock().unwrap();
        let rules = state.token.as_mut()?;
        if let Some(query) = seen.path.strip_prefix("/token?") {
            if seen.authorization.as_ref() != Some(&rules.basic) {
                return Some((401, Vec::new(), "wrong password".into()));
            }
            let scopes = query
                .split('&')
                .filter_map(|pair| pair.strip_prefix("scope="));
            let scopes = scopes.map(|scope| {
                scope
                    .replace("%3A", ":")
                    .replace("%2C", ",")
                    .replace("%2F", "/")
            });
            let token = format!("token-{}", rules.given.len());
            let text = format!("{{\"token\": \"{token}\", \"expires_in\": 300}}");
            rules.given.push((token, scopes.collect(), rules.uses));
            return Some((200, vec![("content-type", "application/json".into())], text));
        }
        let shown = seen
            .authorization
            .as_deref()
            .and_then(|value| value.strip_prefix("Bearer "));
        let known = rules
            .given
            .iter_mut()
            .find(|(token, _, left)| Some(token.as_str()) == shown && *left > 0);
        if let Some((_, scopes, left)) = known {
            let right = if seen.method == "GET" { "pull" } else { "push" };
            // The interface itself needs a token without a scope.
            if seen.path == "/v2/" || scopes.iter().any(|scope| scope.contains(right)) {
                *left -= 1;
                return None;
            }
        }
        let challenge = format!(
            "Bearer realm=\"http://{}/token\",service=\"the registry\"",
            self.address
        );
        let text = r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
        Some((401, vec![("www-authenticate", challenge)], text.into()))
    }
}

fn drain(from: &mut impl Read, length: u64) -> io::Result<()> {
    io::copy(&mut from.take(length), &mut io::sink()).map(drop)
}

fn answer(
    mut client: &TcpStream,
    status: u16,
    fields: &[(&'static str, String)],
    text: &str,
) -> io::Result<()> {
    let mut head = Head {
        first: format!("HTTP/1.1 {status} Status"),
        fields: Vec::new(),
    };
    for (name, value) in fields {
        head.fields.push(((*name).to_owned(), value.clone()));
    }
    head.set("content-length", &text.len().to_string());
    head.set("connection", "close");
    head.write(&mut client)?;
    client.write_all(text.as_bytes())
}
