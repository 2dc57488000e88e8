//! Who one is to a registry: passwords, tokens, certificates, and the files that others keep.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use super::{Setting, alone, pull, some_layers};
use crate::support::lamina::Lamina;
use crate::support::layout::Layout;
use crate::support::registry::{Lock, PASSWORD, Registry, USER};
use crate::support::sandbox::Sandbox;
use crate::support::{describe, output, run};

/// `user:password`, encoded.
const BASIC: &str = "YWxpOm9wZW4gc2VzYW1l";

fn login(sandbox: &Sandbox, lamina: &Lamina, registry: &str, password: &str) -> Output {
    let mut command = lamina.command(["login", "--plain-http", registry]);
    command.args(["--username", USER, "--password-stdin"]);
    alone(sandbox, &mut command);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(password.as_bytes())
        .unwrap();
    child.wait_with_output().unwrap()
}

fn said(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{}", describe(output));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A registry that wants a password, with an image in it.
fn locked(sandbox: &Sandbox) -> (Registry, String) {
    let registry = Registry::locked(sandbox, Lock::Password);
    let mut layout = Layout::new(sandbox, "layout");
    layout.image("app", &some_layers(sandbox)[2..], "gzip", "amd64");
    let name = format!("{}/team/app:1", registry.address());
    layout.push(
        "app",
        &name,
        &["--dest-creds", &format!("{USER}:{PASSWORD}")],
    );
    (registry, name)
}

#[test]
fn login_lets_in_and_logout_does_not() {
    let sandbox = Sandbox::new("login");
    let (registry, name) = locked(&sandbox);
    let lamina = Lamina::new(&sandbox);
    let message = said(&output(&mut pull(&sandbox, &lamina, &name, &[])));
    assert!(
        message.contains(&format!("lamina login {}", registry.address())),
        "{message}"
    );

    let message = said(&login(&sandbox, &lamina, registry.address(), "wrong"));
    assert!(
        message.contains("does not accept the credentials"),
        "{message}"
    );
    let file = sandbox.join("home/containers/auth.json");
    assert!(!file.exists(), "kept what was not accepted");

    let done = login(
        &sandbox,
        &lamina,
        registry.address(),
        &format!("{PASSWORD}\n"),
    );
    assert!(done.status.success(), "{}", describe(&done));
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    run(&mut pull(&sandbox, &lamina, &name, &[]));
    // Others read it too.
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["inspect", "--raw", "--tls-verify=false", "--authfile"]);
    run(skopeo.arg(&file).arg(format!("docker://{name}")));

    let mut logout = lamina.command(["logout", registry.address()]);
    alone(&sandbox, &mut logout);
    run(&mut logout);
    let message = said(&output(&mut logout));
    assert!(message.contains("not logged in"), "{message}");
    let message = said(&output(&mut pull(&sandbox, &lamina, &name, &[])));
    assert!(message.contains("lamina login"), "{message}");
}

#[test]
fn the_files_of_others_are_read() {
    let sandbox = Sandbox::new("authfiles");
    let (registry, name) = locked(&sandbox);
    let lamina = Lamina::new(&sandbox);
    let address = registry.address();
    let theirs = sandbox.join("theirs.json");
    let mut skopeo = Command::new("skopeo");
    skopeo.args([
        "login",
        "--tls-verify=false",
        "-u",
        USER,
        "-p",
        PASSWORD,
        "--authfile",
    ]);
    run(skopeo.arg(&theirs).arg(address));

    let with = |variable: &str, value: &Path| {
        let mut command = pull(&sandbox, &lamina, &name, &[]);
        command.env(variable, value);
        command
    };
    run(&mut with("REGISTRY_AUTH_FILE", &theirs));
    run(&mut pull(
        &sandbox,
        &lamina,
        &name,
        &["--authfile", theirs.to_str().unwrap()],
    ));
    // docker's, of its time before and after helpers.
    let docker = sandbox.dir("docker");
    let config = format!(r#"{{"auths": {{"http://{address}/v1/": {{"auth": "{BASIC}"}}}}}}"#);
    fs::write(docker.join("config.json"), config).unwrap();
    run(&mut with("DOCKER_CONFIG", &docker));

    let bin = sandbox.dir("bin");
    let script = format!(
        "#!/bin/sh\nread server\n[ \"$1 $server\" = 'get {address}' ] || {{ echo credentials not found in native keychain; exit 1; }}\n\
         echo '{{\"ServerURL\": \"{address}\", \"Username\": \"{USER}\", \"Secret\": \"{PASSWORD}\"}}'\n"
    );
    let helper = bin.join("docker-credential-test");
    fs::write(&helper, script).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    for config in [
        r#"{"credsStore": "test"}"#.to_owned(),
        format!(r#"{{"credHelpers": {{"{address}": "test"}}, "credsStore": "none-such"}}"#),
    ] {
        fs::write(docker.join("config.json"), config).unwrap();
        run(with("DOCKER_CONFIG", &docker).env("PATH", &path));
    }
    fs::write(docker.join("config.json"), r#"{"credsStore": "none-such"}"#).unwrap();
    let message = said(&output(&mut with("DOCKER_CONFIG", &docker)));
    assert!(message.contains("docker-credential-none-such"), "{message}");
    fs::write(docker.join("config.json"), "{").unwrap();
    let message = said(&output(&mut with("DOCKER_CONFIG", &docker)));
    assert!(
        message.contains(docker.join("config.json").to_str().unwrap()),
        "{message}"
    );
}

#[test]
fn tokens_are_asked_for_with_what_they_are_for() {
    let setting = Setting::new("tokens");
    // Each token is good for two requests, as if it had ended in the middle of the pull.
    setting.proxy.want_tokens(&format!("Basic {BASIC}"), 2);
    let message = setting.fails(&[]);
    assert!(message.contains("lamina login"), "{message}");

    let done = login(
        &setting.sandbox,
        &setting.lamina,
        &setting.proxy.address(),
        "wrong",
    );
    assert!(said(&done).contains("does not accept the credentials"));
    let done = login(
        &setting.sandbox,
        &setting.lamina,
        &setting.proxy.address(),
        PASSWORD,
    );
    assert!(done.status.success(), "{}", describe(&done));
    setting.pull(&["--jobs", "1"]);
    let scopes = setting.proxy.scopes();
    let pulls: Vec<_> = scopes.iter().filter(|scopes| !scopes.is_empty()).collect();
    assert!(pulls.len() >= 3, "{scopes:?}");
    assert!(
        pulls
            .iter()
            .all(|scopes| **scopes == ["repository:team/app:pull"]),
        "{scopes:?}"
    );
}

#[test]
fn certificates_are_believed_only_if_asked() {
    let sandbox = Sandbox::new("tls");
    let registry = Registry::locked(&sandbox, Lock::Tls);
    let mut layout = Layout::new(&sandbox, "layout");
    layout.image("app", &some_layers(&sandbox)[2..], "gzip", "amd64");
    let name = format!("{}/app", registry.address());
    layout.push("app", &name, &[]);
    let lamina = Lamina::new(&sandbox);
    let pull = |options: &[&str]| {
        let mut command = lamina.command(["pull", &name]);
        alone(&sandbox, &mut command);
        output(command.args(options))
    };
    let message = said(&pull(&[]));
    assert!(
        message.contains("UnknownIssuer") && message.contains("--ca-file"),
        "{message}"
    );
    let message = said(&pull(&["--plain-http"]));
    assert!(message.contains("HTTPS"), "{message}");
    let done = pull(&["--ca-file", registry.ca().to_str().unwrap()]);
    assert!(done.status.success(), "{}", describe(&done));
    let done = pull(&["--insecure"]);
    assert!(done.status.success(), "{}", describe(&done));
    let message = said(&pull(&[
        "--ca-file",
        sandbox.file("empty.pem", "").to_str().unwrap(),
    ]));
    assert!(message.contains("empty.pem"), "{message}");
    // The system's, as others are told of it.
    let mut command = lamina.command(["pull", &name]);
    alone(&sandbox, &mut command);
    run(command.env("SSL_CERT_FILE", registry.ca()));

    let open = Registry::start(&sandbox);
    let name = format!("{}/app", open.address());
    let mut command = lamina.command(["pull", &name]);
    alone(&sandbox, &mut command);
    let message = said(&output(&mut command));
    assert!(message.contains("--plain-http"), "{message}");
}
