//! What a stage is besides its files: the configuration of its image, its history and its arguments.

use std::collections::BTreeMap;

use lamina_layers::store::oci::{ContainerConfig, History, Other};
use serde_json::{Value, json};

use super::containerfile::{Command, Flag, Instruction};
use super::error::{BuildResult, Problem};
use super::flags::Flags;
use super::words::{Expander, split};
use crate::runtime::spec::DEFAULT_PATH;

/// The state of a stage.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// How to run the image.
    pub config: ContainerConfig,
    /// How it was made.
    pub history: Vec<History>,
    /// What else it says (`author`, `variant`).
    pub other: Other,
    /// The ARGs that have a value, by name.
    pub args: BTreeMap<String, String>,
    /// Whether CMD was set by this stage: an ENTRYPOINT clears one that is inherited.
    pub own_cmd: bool,
}

/// The shell of commands when nothing is said.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];

impl State {
    /// Has programs found where they usually are, unless the image says where.
    pub fn set_default_path(&mut self) {
        let env = self.config.env.get_or_insert_default();
        if !env.iter().any(|entry| entry.starts_with("PATH=")) {
            env.insert(0, format!("PATH={DEFAULT_PATH}"));
        }
    }

    /// The value of an environment variable.
    #[cfg(test)]
    fn env(&self, name: &str) -> Option<&str> {
        let mut env = self.config.env.iter().flatten().rev();
        env.find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
    }

    fn set_env(&mut self, name: &str, value: &str) {
        let env = self.config.env.get_or_insert_default();
        let entry = format!("{name}={value}");
        let is_it = |known: &&mut String| known.split('=').next() == Some(name);
        match env.iter_mut().find(is_it) {
            Some(known) => *known = entry,
            None => env.push(entry),
        }
    }

    /// The shell, with its options.
    pub fn shell(&self) -> Vec<String> {
        let own = self.config.other.get("Shell").and_then(Value::as_array);
        let own: Option<Vec<String>> = own.map(|list| {
            list.iter()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect()
        });
        own.unwrap_or_else(|| SHELL.map(str::to_owned).to_vec())
    }

    /// The program and arguments of a command.
    pub fn args_of(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(args) => args.clone(),
            Command::Shell(line) => {
                let mut args = self.shell();
                args.push(line.clone());
                args
            }
            Command::Script { name, .. } => vec![script_path(name)],
        }
    }

    /// The directory that commands run in.
    pub fn workdir(&self) -> &str {
        let own = self.config.working_dir.as_deref();
        own.filter(|dir| !dir.is_empty()).unwrap_or("/")
    }

    /// Takes the instructions out that the image kept for those who build on it.
    pub fn take_triggers(&mut self) -> Vec<String> {
        let kept = self.config.other.remove("OnBuild");
        let kept = kept.as_ref().and_then(Value::as_array);
        let texts = kept.into_iter().flatten().filter_map(Value::as_str);
        texts.map(str::to_owned).collect()
    }

    /// Does what an instruction that changes no files says. Returns its text for the history; `None` for
    /// one that does change files.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn apply(
        &mut self,
        instruction: &Instruction,
        expander: &Expander<'_>,
    ) -> BuildResult<Option<String>> {
        let text = match instruction {
            Instruction::Env(text) => {
                let pairs = expander.pairs(text)?;
                for (name, value) in &pairs {
                    self.set_env(name, value);
                }
                format!("ENV {}", shown_pairs(&pairs))
            }
            Instruction::Label(text) => {
                let pairs = expander.pairs(text)?;
                let labels = self.config.labels.get_or_insert_default();
                labels.extend(pairs.iter().cloned());
                format!("LABEL {}", shown_pairs(&pairs))
            }
            Instruction::Cmd(command) => self.set_cmd(command),
            Instruction::Entrypoint(command) => self.set_entrypoint(command),
            Instruction::Expose(words) => self.expose(words, expander)?,
            Instruction::Volume(words) => {
                let paths = expand_all(words, expander)?;
                let volumes = self.config.volumes.get_or_insert_default();
                volumes.extend(paths.iter().map(|path| (path.clone(), Other::new())));
                format!("VOLUME {}", shown_list(&paths))
            }
            Instruction::User(text) => {
                let user = expander.word(text)?;
                self.config.user = Some(user.clone());
                format!("USER {user}")
            }
            Instruction::Stopsignal(text) => {
                let signal = expander.word(text)?;
                check_signal(&signal)?;
                self.config.stop_signal = Some(signal.clone());
                format!("STOPSIGNAL {signal}")
            }
            Instruction::Shell(args) => {
                self.config.other.insert("Shell".into(), json!(args));
                format!("SHELL {}", shown_list(args))
            }
            Instruction::Maintainer(name) => {
                let name = expander.word(name)?;
                self.other.insert("author".into(), json!(name));
                format!("MAINTAINER {name}")
            }
            Instruction::Onbuild(text) => self.keep(text),
            Instruction::Healthcheck { flags, command } => {
                self.healthcheck(flags, command.as_ref())?
            }
            Instruction::Arg(_)
            | Instruction::From { .. }
            | Instruction::Copy(_)
            | Instruction::Add(_)
            | Instruction::Run { .. }
            | Instruction::Workdir(_) => return Ok(None),
        };
        Ok(Some(text))
    }

    fn set_cmd(&mut self, command: &Command) -> String {
        let args = self.args_of(command);
        self.own_cmd = true;
        let shown = format!("CMD {}", shown_list(&args));
        self.config.cmd = Some(args);
        shown
    }

    fn set_entrypoint(&mut self, command: &Command) -> String {
        let args = self.args_of(command);
        if !self.own_cmd {
            self.config.cmd = None;
        }
        let shown = format!("ENTRYPOINT {}", shown_list(&args));
        self.config.entrypoint = Some(args);
        shown
    }

    /// Keeps an instruction for those who build on the image.
    fn keep(&mut self, text: &str) -> String {
        let kept = self.config.other.entry("OnBuild");
        if let Some(list) = kept.or_insert_with(|| json!([])).as_array_mut() {
            list.push(json!(text));
        }
        format!("ONBUILD {text}")
    }

    fn expose(&mut self, words: &[String], expander: &Expander<'_>) -> BuildResult<String> {
        let mut ports = Vec::new();
        for word in words {
            // A variable may hold several.
            for port in split(&expander.word(word)?, expander.escape) {
                ports.extend(parse_ports(&port)?);
            }
        }
        let exposed = self.config.exposed_ports.get_or_insert_default();
        exposed.extend(ports.iter().map(|port| (port.clone(), Other::new())));
        Ok(format!("EXPOSE {}", ports.join(" ")))
    }

    fn healthcheck(&mut self, flags: &[Flag], command: Option<&Command>) -> BuildResult<String> {
        let mut flags = Flags::new(flags);
        let mut check = serde_json::Map::new();
        let test = match command {
            None => vec!["NONE".to_owned()],
            Some(Command::Shell(line)) => vec!["CMD-SHELL".to_owned(), line.clone()],
            Some(command) => {
                let args = self.args_of(command);
                [vec!["CMD".to_owned()], args].concat()
            }
        };
        check.insert("Test".into(), json!(test));
        for (flag, field) in [
            ("interval", "Interval"),
            ("timeout", "Timeout"),
            ("start-period", "StartPeriod"),
            ("start-interval", "StartInterval"),
        ] {
            if let Some(text) = flags.take(flag)? {
                check.insert(field.into(), json!(duration(flag, &text)?));
            }
        }
        if let Some(text) = flags.take("retries")? {
            let retries: u64 = text.parse().map_err(|_| Problem::FlagValue {
                flag: "retries".into(),
                value: text.clone(),
                hint: "give a number".into(),
            })?;
            check.insert("Retries".into(), json!(retries));
        }
        flags.end()?;
        let shown = format!("HEALTHCHECK {}", shown_list(&test));
        self.config
            .other
            .insert("Healthcheck".into(), Value::Object(check));
        Ok(shown)
    }
}

/// Where a script of a here-document is while it runs.
pub fn script_path(name: &str) -> String {
    format!("/dev/pipes/{name}")
}

fn expand_all(words: &[String], expander: &Expander<'_>) -> BuildResult<Vec<String>> {
    words.iter().map(|word| Ok(expander.word(word)?)).collect()
}

/// The ports of `80`, `80/udp` or `80-85/tcp`.
fn parse_ports(text: &str) -> BuildResult<Vec<String>> {
    let wrong = || Problem::Syntax(format!("'{text}' is not a port: give 80, 80/udp or 80-85"));
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_lowercase();
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(wrong().into());
    }
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let first: u16 = first.parse().map_err(|_| wrong())?;
    let last: u16 = last.parse().map_err(|_| wrong())?;
    if first > last {
        return Err(wrong().into());
    }
    Ok((first..=last)
        .map(|port| format!("{port}/{protocol}"))
        .collect())
}

/// Numbers, and names with `SIG` or without.
fn check_signal(text: &str) -> BuildResult<()> {
    let name = text.strip_prefix("SIG").unwrap_or(text);
    let is_number = text
        .parse::<u8>()
        .is_ok_and(|number| (1..=64).contains(&number));
    let is_name = !name.is_empty()
        && name
            .chars()
            .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || "+-".contains(c))
        && name.starts_with(|c: char| c.is_ascii_uppercase());
    if is_number || is_name {
        return Ok(());
    }
    Err(Problem::Syntax(format!(
        "'{text}' is not a signal: give a name as SIGTERM, or a number"
    ))
    .into())
}

/// Nanoseconds of a duration as Go writes it: `1m30s`.
fn duration(flag: &str, text: &str) -> BuildResult<u64> {
    let wrong = || Problem::FlagValue {
        flag: flag.to_owned(),
        value: text.to_owned(),
        hint: "give a duration, as in 30s or 1m30s".into(),
    };
    let parsed = humantime::parse_duration(text).map_err(|_| wrong())?;
    u64::try_from(parsed.as_nanos()).map_err(|_| wrong().into())
}

fn shown_pairs(pairs: &[(String, String)]) -> String {
    let pair = |(name, value): &(String, String)| {
        if value.contains(char::is_whitespace) {
            format!("{name}=\"{value}\"")
        } else {
            format!("{name}={value}")
        }
    };
    pairs.iter().map(pair).collect::<Vec<_>>().join(" ")
}

fn shown_list(list: &[String]) -> String {
    json!(list).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_have_protocols() {
        let ports = |text| parse_ports(text).unwrap().join(" ");
        assert_eq!(ports("80"), "80/tcp");
        assert_eq!(ports("53/UDP"), "53/udp");
        assert_eq!(ports("1-3"), "1/tcp 2/tcp 3/tcp");
        for wrong in ["", "x", "80/x", "3-1", "70000"] {
            assert!(parse_ports(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn signals_have_names_or_numbers() {
        for right in ["SIGTERM", "TERM", "9", "SIGRTMIN+3"] {
            assert!(check_signal(right).is_ok(), "{right}");
        }
        for wrong in ["", "term", "0", "99", "-9", "SIG"] {
            assert!(check_signal(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_are_nanoseconds() {
        assert_eq!(duration("interval", "1m30s").unwrap(), 90_000_000_000);
        assert!(duration("interval", "soon").is_err());
    }

    #[test]
    fn the_environment_is_set_in_place() {
        let mut state = State::default();
        for (name, value) in [("A", "1"), ("AB", "2"), ("A", "3")] {
            state.set_env(name, value);
        }
        assert_eq!(
            state.config.env.as_deref(),
            Some(&["A=3".to_owned(), "AB=2".to_owned()][..])
        );
        assert_eq!(state.env("A"), Some("3"));
        assert_eq!(state.env("B"), None);
    }
}
