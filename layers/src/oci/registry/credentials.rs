//! Who one is to a registry: the files that podman and docker keep, and changing podman's.
//!
//! Read are, in this order, the first that has something for the registry counting:
//!
//! 1. the file that is given, or that `REGISTRY_AUTH_FILE` names: no other then;
//! 2. `$XDG_RUNTIME_DIR/containers/auth.json`, without the variable `/run/containers/UID/auth.json`;
//! 3. `$XDG_CONFIG_HOME/containers/auth.json`, or `~/.config/containers/auth.json`;
//! 4. `$DOCKER_CONFIG/config.json`, or `~/.docker/config.json`.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use docker_credential::{CredentialRetrievalError, DockerCredential, get_credential_from_reader};
use serde_json::{Map, Value};

use super::RegistryError;
use super::reference::{DOCKER_HUB, canonical_registry};

/// The name that docker's own files have for Docker Hub.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// What proves to a registry who one is.
#[derive(Clone)]
pub struct Credential {
    /// The secret itself.
    pub(super) secret: Secret,
    /// The file that it is from, or where else, for messages.
    pub origin: String,
}

/// A secret, which no message shows.
#[derive(Clone)]
pub(super) enum Secret {
    /// User and password.
    Password(String, String),
    /// A refresh token of OAuth 2.
    IdentityToken(String),
}

impl Credential {
    /// That of a user with a password.
    pub fn password(user: &str, password: &str, origin: &str) -> Self {
        Self {
            secret: Secret::Password(user.to_owned(), password.to_owned()),
            origin: origin.to_owned(),
        }
    }
}

/// The credentials for a repository of a registry, if there are any. `given` is the file to look in
/// instead of all others.
///
/// # Errors
/// When a file is there and cannot be used.
pub fn find(
    given: Option<&Path>,
    registry: &str,
    repository: &str,
) -> Result<Option<Credential>, RegistryError> {
    for (path, must_be) in files(given) {
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !must_be => continue,
            // Another user's, as after su.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !must_be => {
                tracing::warn!("{} is not read: {error}", path.display());
                continue;
            }
            result => result.map_err(|error| wrong_file(&path, &error))?,
        };
        if let Some(secret) = in_file(&path, &text, registry, repository)? {
            let origin = path.display().to_string();
            return Ok(Some(Credential { secret, origin }));
        }
    }
    Ok(None)
}

/// The files to read, and whether one that is missing is an error.
fn files(given: Option<&Path>) -> Vec<(PathBuf, bool)> {
    if let Some(given) = given {
        return vec![(given.to_owned(), true)];
    }
    if let Some(named) = variable("REGISTRY_AUTH_FILE") {
        return vec![(named, false)];
    }
    let home = variable("HOME");
    let below_home = |dir: &str| home.as_ref().map(|home| home.join(dir));
    let config = variable("XDG_CONFIG_HOME").or_else(|| below_home(".config"));
    let docker = variable("DOCKER_CONFIG").or_else(|| below_home(".docker"));
    let files = [
        Some(runtime_file()),
        config.map(|dir| dir.join("containers/auth.json")),
        docker.map(|dir| dir.join("config.json")),
    ];
    files
        .into_iter()
        .flatten()
        .map(|path| (path, false))
        .collect()
}

fn variable(name: &str) -> Option<PathBuf> {
    let value = std::env::var_os(name).filter(|value| !value.is_empty());
    value.map(PathBuf::from)
}

fn runtime_file() -> PathBuf {
    let dir = variable("XDG_RUNTIME_DIR").map_or_else(
        || {
            let uid = rustix::process::geteuid().as_raw();
            PathBuf::from("/run/containers").join(uid.to_string())
        },
        |dir| dir.join("containers"),
    );
    dir.join("auth.json")
}

/// The file that `lamina login` writes: the one that is given, the one that `REGISTRY_AUTH_FILE`
/// names, or podman's default.
pub fn login_file(given: Option<&Path>) -> PathBuf {
    let named = given.map(Path::to_owned);
    let named = named.or_else(|| variable("REGISTRY_AUTH_FILE"));
    named.unwrap_or_else(|| {
        let home = variable("HOME");
        match (variable("XDG_RUNTIME_DIR"), home) {
            (None, Some(home)) if !rustix::process::geteuid().is_root() => {
                home.join(".config/containers/auth.json")
            }
            _ => runtime_file(),
        }
    })
}

/// What a file says. Podman's have entries for parts of a registry: the longest counts.
fn in_file(
    path: &Path,
    text: &[u8],
    registry: &str,
    repository: &str,
) -> Result<Option<Secret>, RegistryError> {
    if text.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    let file: Value = serde_json::from_slice(text).map_err(|error| wrong_file(path, &error))?;
    let mut key = format!("{registry}/{repository}");
    while key != registry {
        if file
            .get("auths")
            .is_some_and(|auths| auths.get(&key).is_some())
        {
            return ask(path, text, &file, &key);
        }
        key.truncate(key.rfind('/').unwrap_or(registry.len()));
    }
    // Docker has an old address for its own registry, podman its name.
    let named = |key: &str| {
        let lists = ["credHelpers", "auths"].into_iter();
        let mut lists = lists.filter_map(|list| file.get(list));
        lists.any(|list| list.get(key).is_some())
    };
    let key = match registry {
        DOCKER_HUB if !named(DOCKER_HUB) => DOCKER_HUB_KEY,
        registry => registry,
    };
    ask(path, text, &file, key)
}

/// What a file, or the helper that it names, has under a key.
fn ask(path: &Path, text: &[u8], file: &Value, key: &str) -> Result<Option<Secret>, RegistryError> {
    use CredentialRetrievalError as E;
    let helper = || {
        let own = file.get("credHelpers").and_then(|all| all.get(key));
        let named = own.or_else(|| file.get("credsStore"))?.as_str()?;
        Some(named.to_owned())
    };
    let broken = |problem: String| RegistryError::Helper {
        helper: helper().unwrap_or_default(),
        path: path.to_owned(),
        problem,
    };
    match get_credential_from_reader(text, key) {
        Ok(DockerCredential::UsernamePassword(user, password)) => {
            Ok(Some(Secret::Password(user, password)))
        }
        Ok(DockerCredential::IdentityToken(token)) => Ok(Some(Secret::IdentityToken(token))),
        Err(E::NoCredentialConfigured) => Ok(None),
        // What helpers say when they have nothing: docker's protocol for them.
        Err(E::HelperFailure { stdout, stderr, .. })
            if [&stdout, &stderr]
                .iter()
                .any(|said| said.contains("credentials not found")) =>
        {
            Ok(None)
        }
        Err(E::HelperFailure { stdout, stderr, .. }) => {
            let words = format!("{} {}", stdout.trim(), stderr.trim());
            Err(broken(format!("failed: {}", words.trim())))
        }
        Err(E::HelperCommunicationError) => Err(broken("cannot be run".into())),
        Err(E::MalformedHelperResponse) => Err(broken("says nothing that makes sense".into())),
        Err(error) => Err(wrong_file(path, &error)),
    }
}

fn wrong_file(path: &Path, error: &dyn std::fmt::Display) -> RegistryError {
    RegistryError::AuthFile {
        path: path.to_owned(),
        problem: error.to_string(),
    }
}

/// Keeps user and password for a registry in a file, which only its owner may read.
///
/// # Errors
/// When the file is no such file, or cannot be written.
pub fn keep(path: &Path, registry: &str, user: &str, password: &str) -> Result<(), RegistryError> {
    change(path, |auths| {
        auths.retain(|key, _| !is_key_of(key, registry));
        let secret = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        auths.insert(registry.to_owned(), serde_json::json!({ "auth": secret }));
        true
    })
    .map(drop)
}

/// Removes what a file has for a registry; `false` if that is nothing.
///
/// # Errors
/// When the file is no such file, or cannot be written.
pub fn forget(path: &Path, registry: &str) -> Result<bool, RegistryError> {
    if !path.exists() {
        return Ok(false);
    }
    change(path, |auths| {
        let before = auths.len();
        auths.retain(|key, _| !is_key_of(key, registry));
        auths.len() != before
    })
}

fn is_key_of(key: &str, registry: &str) -> bool {
    let bare = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"));
    let host = match bare {
        Some(url) => url.split('/').next().unwrap_or_default(),
        None => key,
    };
    canonical_registry(host) == registry
}

/// Changes the credentials in a file in one step. It is written if `edit` says so.
fn change(
    path: &Path,
    edit: impl FnOnce(&mut Map<String, Value>) -> bool,
) -> Result<bool, RegistryError> {
    let wrong = |error: io::Error| wrong_file(path, &error);
    // A link stays one.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut file = match fs::read(&path) {
        Ok(text) if !text.iter().all(u8::is_ascii_whitespace) => {
            serde_json::from_slice(&text).map_err(|error| wrong_file(&path, &error))?
        }
        Ok(_) => Value::Object(Map::new()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Value::Object(Map::new()),
        Err(error) => return Err(wrong(error)),
    };
    let auths = file.as_object_mut().map(|file| file.entry("auths"));
    let auths = auths.map(|auths| auths.or_insert_with(|| Value::Object(Map::new())));
    let Some(Value::Object(auths)) = auths else {
        return Err(wrong_file(&path, &"it is not a file of credentials"));
    };
    if !edit(auths) {
        return Ok(false);
    }
    let mut text = serde_json::to_vec_pretty(&file).map_err(|error| wrong(error.into()))?;
    text.push(b'\n');
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    write(&path, dir.unwrap_or(Path::new(".")), &text).map_err(wrong)?;
    Ok(true)
}

fn write(path: &Path, dir: &Path, text: &[u8]) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    // Others may not read it at any moment: tempfile makes files of mode 0600.
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(text)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests;
