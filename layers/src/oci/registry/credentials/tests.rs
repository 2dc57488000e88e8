use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use super::*;

fn found(file: &Value, registry: &str, repository: &str) -> Option<String> {
    let text = serde_json::to_vec(file).unwrap();
    let secret = in_file(Path::new("/f"), &text, registry, repository).unwrap()?;
    Some(match secret {
        Secret::Password(user, password) => format!("{user}:{password}"),
        Secret::IdentityToken(token) => format!("token {token}"),
    })
}

fn auth(text: &str) -> Value {
    let text = base64::engine::general_purpose::STANDARD.encode(text);
    json!({ "auth": text })
}

#[test]
fn the_longest_entry_counts() {
    let file = json!({ "auths": {
        "r.example": auth("all:1"), "r.example/team": auth("team:2"),
        "r.example/team/app": auth("app:3"), "https://old.example/v1/": auth("old:4"),
        "https://index.docker.io/v1/": auth("hub:5"),
        "token.example": { "identitytoken": "t" },
        "words.example": { "username": "u", "password": "p:q" },
        "empty.example": {},
    }});
    for (registry, repository, expected) in [
        ("r.example", "team/app", Some("app:3")),
        ("r.example", "team/app/deep", Some("app:3")),
        ("r.example", "team/other", Some("team:2")),
        ("r.example", "teams", Some("all:1")),
        ("old.example", "x", Some("old:4")),
        ("docker.io", "library/debian", Some("hub:5")),
        ("token.example", "x", Some("token t")),
        ("words.example", "x", Some("u:p:q")),
        ("empty.example", "x", None),
        ("example", "x", None),
    ] {
        let secret = found(&file, registry, repository);
        assert_eq!(secret.as_deref(), expected, "{registry}/{repository}");
    }
    assert!(
        in_file(Path::new("/f"), b" \n", "r", "x")
            .unwrap()
            .is_none()
    );
}

#[test]
fn a_wrong_file_is_named() {
    for wrong in [&b"{"[..], br#"{"auths": {"r.example": {"auth": "%"}}}"#] {
        let error = in_file(Path::new("/the/file"), wrong, "r.example", "x");
        let message = error.err().map(|error| error.to_string()).unwrap();
        assert!(message.contains("/the/file"), "{message}");
    }
    let file = br#"{"credsStore": "no-such-helper"}"#;
    let error = in_file(Path::new("/the/file"), file, "r.example", "x");
    let message = error.err().map(|error| error.to_string()).unwrap();
    assert!(
        message.contains("docker-credential-no-such-helper"),
        "{message}"
    );
}

#[test]
fn login_and_logout_change_only_their_entry() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep/auth.json");
    keep(&path, "r.example", "user", "secret").unwrap();
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut file: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(
        found(&file, "r.example", "x").as_deref(),
        Some("user:secret")
    );
    file["credsStore"] = "other".into();
    file["auths"]["https://index.docker.io/v1/"] = auth("hub:1");
    fs::write(&path, file.to_string()).unwrap();

    keep(&path, "docker.io", "hub", "2").unwrap();
    assert!(forget(&path, "r.example").unwrap());
    assert!(!forget(&path, "r.example").unwrap());
    let mut file: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    // The helper would be asked before the file.
    let helper = file.as_object_mut().unwrap().remove("credsStore");
    assert_eq!(helper, Some("other".into()));
    assert_eq!(file["auths"].as_object().unwrap().len(), 1);
    assert_eq!(found(&file, "docker.io", "x").as_deref(), Some("hub:2"));
    assert!(!forget(&dir.path().join("none"), "r.example").unwrap());

    fs::write(&path, "[]").unwrap();
    assert!(keep(&path, "r.example", "u", "p").is_err());
    assert_eq!(fs::read(&path).unwrap(), b"[]");
}
