//! A registry to pull from and push to: Debian's docker-registry on a port of its own.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::run;
use super::sandbox::Sandbox;

/// The user that a registry with a lock knows.
pub const USER: &str = "ali";
/// His password.
pub const PASSWORD: &str = "open sesame";
/// The two, as `htpasswd -B` writes them.
const HTPASSWD: &str = "ali:$2b$04$p179n1TYeIW0n4p/BZe.QuAfHzCiiXp..dU6gbs.M/PS4CQ8/Q4DK\n";

/// A running registry. It ends with the test, however that ends.
pub struct Registry {
    child: Child,
    address: String,
    dir: PathBuf,
}

/// What protects a registry.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// Nothing: everybody may do everything.
    Open,
    /// User and password.
    Password,
    /// A certificate of its own (`ca` is its file).
    Tls,
}

impl Registry {
    /// Starts an open one, by HTTP.
    pub fn start(sandbox: &Sandbox) -> Self {
        Self::locked(sandbox, Lock::Open)
    }

    /// Starts one.
    pub fn locked(sandbox: &Sandbox, lock: Lock) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("registry-")
            .tempdir_in(sandbox.path());
        let dir = dir.unwrap().keep();
        let (auth, tls) = match lock {
            Lock::Open => (String::new(), String::new()),
            Lock::Password => {
                let path = dir.join("htpasswd");
                fs::write(&path, HTPASSWD).unwrap();
                let path = path.display();
                let auth = format!("auth: {{htpasswd: {{realm: test, path: {path}}}}}\n");
                (auth, String::new())
            }
            Lock::Tls => {
                make_certificate(&dir);
                let dir = dir.display();
                let tls = format!(", tls: {{certificate: {dir}/cert.pem, key: {dir}/key.pem}}");
                (String::new(), tls)
            }
        };
        let data = dir.join("data");
        let config = format!(
            "version: 0.1\nlog: {{level: info}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\n\
             {auth}http: {{addr: '127.0.0.1:0'{tls}}}\n",
            data.display()
        );
        let path = dir.join("config.yml");
        fs::write(&path, config).unwrap();
        // It does not outlive this process, either.
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "docker-registry", "serve"])
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry is not installed: run scripts/setup test");
        let address = address(child.stderr.take().unwrap());
        Self {
            child,
            address,
            dir,
        }
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The certificate of its authority.
    pub fn ca(&self) -> PathBuf {
        self.dir.join("cert.pem")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may be gone already; then there is nothing to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Hides the credentials of whoever runs the tests.
pub fn alone(sandbox: &Sandbox, command: &mut Command) {
    let home = sandbox.dir("home");
    command.env("HOME", &home).env("XDG_RUNTIME_DIR", &home);
    for name in ["REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_CONFIG_HOME"] {
        command.env_remove(name);
    }
    for name in [
        "http_proxy",
        "https_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
    ] {
        command.env_remove(name);
    }
}

/// Waits until the registry says where it listens, and reads on so that it is never held up.
fn address(log: impl Read + Send + 'static) -> String {
    let mut lines = BufReader::new(log).lines();
    let mut seen = String::new();
    let address = loop {
        let Some(Ok(line)) = lines.next() else {
            panic!("docker-registry does not start:\n{seen}");
        };
        if let Some((_, rest)) = line.split_once("listening on ") {
            let end = rest.find([',', '"', ' ']).unwrap_or(rest.len());
            break rest[..end].to_owned();
        }
        seen += &line;
        seen.push('\n');
    };
    std::thread::spawn(move || lines.for_each(drop));
    address
}

fn make_certificate(dir: &Path) {
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt"]);
    openssl.args(["ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]);
    openssl.args([
        "-subj",
        "/CN=lamina test",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
    ]);
    openssl.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
    openssl.args(["-keyout", "key.pem", "-out", "cert.pem"]);
    run(openssl.current_dir(dir));
}
