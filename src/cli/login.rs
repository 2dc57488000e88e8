//! `lamina login` and `lamina logout`.

use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use lamina_layers::oci::registry::{Client, Credential, canonical_registry, credentials};

use super::registry::RegistryArgs;
use super::{Usage, out};

/// Arguments of `lamina login`.
#[derive(Debug, Args)]
#[command(
    after_help = "The credentials are tried, then kept, not encrypted but readable by nobody else, \
    in the file of --authfile, else of REGISTRY_AUTH_FILE, else in \
    $XDG_RUNTIME_DIR/containers/auth.json, where podman, buildah and skopeo find them too."
)]
pub struct LoginArgs {
    /// The registry: HOST or HOST:PORT
    #[arg(default_value = "docker.io")]
    registry: String,
    /// The user; asked for on a terminal if not given
    #[arg(short, long, value_name = "NAME")]
    username: Option<String>,
    /// Read the password from standard input; it is asked for on a terminal otherwise
    #[arg(long, requires = "username")]
    password_stdin: bool,
    #[command(flatten)]
    options: RegistryArgs,
}

/// Arguments of `lamina logout`.
#[derive(Debug, Args)]
pub struct LogoutArgs {
    /// The registry: HOST or HOST:PORT
    #[arg(default_value = "docker.io")]
    registry: String,
    /// File to remove the credentials from, as 'lamina login' chooses it
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
}

/// The longest password, in bytes.
const MAX_PASSWORD: u64 = 64 << 10;

/// Runs `lamina login`.
pub fn login(args: &LoginArgs) -> anyhow::Result<()> {
    let registry = registry(&args.registry)?;
    let user = match &args.username {
        Some(user) => user.clone(),
        None => ask("User: ", false)?,
    };
    if user.is_empty() || user.contains(':') {
        return Err(Usage(format!(
            "'{user}' cannot be a user: it is empty or has a ':'"
        ))
        .into());
    }
    let password = if args.password_stdin {
        let mut text = String::new();
        io::stdin()
            .take(MAX_PASSWORD)
            .read_to_string(&mut text)
            .context("cannot read the password from standard input")?;
        text.trim_end_matches(['\n', '\r']).to_owned()
    } else {
        ask("Password: ", true)?
    };
    let credential = Credential::password(&user, &password, "this login");
    let client = Client::new(registry, Some(credential), &args.options.options())?;
    client.check_login()?;
    let path = credentials::login_file(args.options.authfile.as_deref());
    credentials::keep(&path, registry, &user, &password)?;
    out::print(format!(
        "logged in to {registry}; kept in {}\n",
        path.display()
    ))
}

/// Runs `lamina logout`.
pub fn logout(args: &LogoutArgs) -> anyhow::Result<()> {
    let registry = registry(&args.registry)?;
    let path = credentials::login_file(args.authfile.as_deref());
    if !credentials::forget(&path, registry)? {
        anyhow::bail!(
            "not logged in to {registry}: {} has nothing for it",
            path.display()
        );
    }
    out::print(format!(
        "logged out of {registry}; removed from {}\n",
        path.display()
    ))
}

fn registry(text: &str) -> anyhow::Result<&str> {
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b".-:".contains(&byte);
    if text.is_empty() || !text.bytes().all(is_host) {
        let problem = format!("'{text}' is not a registry: expected HOST or HOST:PORT");
        return Err(Usage(problem).into());
    }
    Ok(canonical_registry(text))
}

/// Asks for a line on the terminal.
fn ask(prompt: &str, secret: bool) -> anyhow::Result<String> {
    if !io::stdin().is_terminal() {
        let hint = "there is no terminal to ask for user and password on: use --username and --password-stdin";
        return Err(Usage(hint.into()).into());
    }
    let mut terminal = io::stderr();
    terminal
        .write_all(prompt.as_bytes())
        .context("cannot ask")?;
    let hidden = secret
        .then(Hidden::begin)
        .transpose()
        .context("cannot ask for a password")?;
    let mut line = String::new();
    let read = io::stdin().read_line(&mut line);
    if hidden.is_some() {
        // The end of the line was not shown either.
        terminal.write_all(b"\n").context("cannot ask")?;
    }
    drop(hidden);
    read.context("cannot read from the terminal")?;
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}

/// While it lives, the terminal does not show what is typed.
struct Hidden(rustix::termios::Termios);

impl Hidden {
    fn begin() -> rustix::io::Result<Self> {
        use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
        let before = tcgetattr(io::stdin())?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(io::stdin(), OptionalActions::Flush, &silent)?;
        Ok(Self(before))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let now = rustix::termios::OptionalActions::Now;
        if let Err(error) = rustix::termios::tcsetattr(io::stdin(), now, &self.0) {
            tracing::warn!("the terminal stays without echo: {error}");
        }
    }
}
