//! Proving to a registry who one is: HTTP's Basic scheme, and the bearer tokens of the distribution
//! project's "token authentication specification".

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use parking_lot::Mutex;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use super::credentials::{Credential, Secret};

/// How long a token is good for that does not say so.
const DEFAULT_LIFE: u64 = 60;
/// A token is asked for anew so long before its end.
const MARGIN: Duration = Duration::from_secs(10);

/// What a registry wants to see (`WWW-Authenticate`).
#[derive(Debug, PartialEq, Eq)]
pub enum Challenge {
    /// User and password.
    Basic,
    /// A token that another server gives.
    Bearer {
        /// Address of that server.
        realm: String,
        /// What it is to be told of who asks for a token.
        service: Option<String>,
        /// What the token is to allow.
        scope: Option<String>,
    },
}

impl Challenge {
    /// The one to answer of those in a header; a token where there is a choice.
    pub fn parse(header: &str) -> Option<Self> {
        let challenges = http_auth::parse_challenges(header).ok()?;
        let named = |name: &'static str| {
            let is_it = move |scheme: &str| scheme.eq_ignore_ascii_case(name);
            challenges
                .iter()
                .find(move |challenge| is_it(challenge.scheme))
        };
        if let Some(bearer) = named("Bearer") {
            let value = |name: &str| {
                let mut params = bearer.params.iter();
                let found = params.find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.to_unescaped())
            };
            return Some(Self::Bearer {
                realm: value("realm")?,
                service: value("service"),
                scope: value("scope").filter(|scope| !scope.is_empty()),
            });
        }
        named("Basic").map(|_| Self::Basic)
    }
}

/// What a token server answers. Docker's has `token`, OAuth's `access_token`.
#[derive(Deserialize)]
pub struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// The tokens of one registry, by what they allow.
pub struct Tokens {
    /// Whose they are.
    pub credential: Option<Credential>,
    /// The registry takes user and password without a token.
    basic: AtomicBool,
    known: Mutex<HashMap<String, (String, Instant)>>,
}

impl Tokens {
    /// None yet.
    pub fn new(credential: Option<Credential>) -> Self {
        Self {
            credential,
            basic: AtomicBool::new(false),
            known: Mutex::default(),
        }
    }

    /// The value of `Authorization` for requests that need `scopes`, as far as known.
    pub fn authorization(&self, scopes: &[String]) -> Option<String> {
        let known = self.known.lock();
        match known.get(&scopes.join(" ")) {
            Some((token, end)) if Instant::now() < *end => Some(format!("Bearer {token}")),
            _ if self.basic.load(Ordering::Relaxed) => self.basic_value(),
            _ => None,
        }
    }

    /// User and password, if that is what there is.
    pub fn basic_value(&self) -> Option<String> {
        match &self.credential.as_ref()?.secret {
            Secret::Password(user, password) => {
                let text = format!("{user}:{password}");
                let text = base64::engine::general_purpose::STANDARD.encode(text);
                Some(format!("Basic {text}"))
            }
            Secret::IdentityToken(_) => None,
        }
    }

    /// The user, for token servers.
    pub fn user(&self) -> Option<&str> {
        match &self.credential.as_ref()?.secret {
            Secret::Password(user, _) => Some(user),
            Secret::IdentityToken(_) => None,
        }
    }

    /// The refresh token, if that is what there is.
    pub fn identity_token(&self) -> Option<&str> {
        match &self.credential.as_ref()?.secret {
            Secret::Password(..) => None,
            Secret::IdentityToken(token) => Some(token),
        }
    }

    /// From now on, user and password are sent.
    pub fn use_basic(&self) {
        self.basic.store(true, Ordering::Relaxed);
    }

    /// Takes the answer of a token server; `false` if there is no token in it.
    pub fn take(&self, scopes: &[String], answer: TokenAnswer) -> bool {
        let token = answer.token.or(answer.access_token);
        let Some(token) = token.filter(|token| !token.is_empty()) else {
            return false;
        };
        let life = Duration::from_secs(answer.expires_in.unwrap_or(DEFAULT_LIFE).clamp(1, 86_400));
        // One that is good for a few seconds only is used all the same.
        let end = Instant::now() + life.saturating_sub(MARGIN).max(life / 2);
        self.known.lock().insert(scopes.join(" "), (token, end));
        true
    }

    /// Forgets a token that was not believed.
    pub fn drop_token(&self, scopes: &[String]) {
        self.known.lock().remove(&scopes.join(" "));
    }
}

/// A string as part of the query of an address.
pub fn escape(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        let bearer = Challenge::parse(
            r#"Bearer realm="https://auth.example/token",service="r.example",scope="repository:a:pull,push""#,
        );
        assert_eq!(
            bearer,
            Some(Challenge::Bearer {
                realm: "https://auth.example/token".into(),
                service: Some("r.example".into()),
                scope: Some("repository:a:pull,push".into()),
            })
        );
        assert_eq!(
            Challenge::parse(r#"Basic realm="x""#),
            Some(Challenge::Basic)
        );
        assert_eq!(
            Challenge::parse(r#"basic realm="x""#),
            Some(Challenge::Basic)
        );
        let both = r#"Basic realm="x", Bearer realm="https://a.example""#;
        assert!(matches!(
            Challenge::parse(both),
            Some(Challenge::Bearer { .. })
        ));
        for none in ["", "Negotiate", "Bearer service=\"x\"", "\u{1}"] {
            assert_eq!(Challenge::parse(none), None, "{none:?}");
        }
    }

    #[test]
    fn tokens_are_for_their_scopes_and_end() {
        let tokens = Tokens::new(None);
        let scopes = ["repository:a:pull".to_owned()];
        let answer = |token: &str, expires_in| TokenAnswer {
            token: None,
            access_token: Some(token.into()),
            expires_in,
        };
        assert!(!tokens.take(&scopes, answer("", None)));
        assert!(tokens.take(&scopes, answer("t", Some(300))));
        assert_eq!(tokens.authorization(&scopes).as_deref(), Some("Bearer t"));
        assert_eq!(tokens.authorization(&[]), None);
        tokens.drop_token(&scopes);
        assert_eq!(tokens.authorization(&scopes), None);
    }
}
