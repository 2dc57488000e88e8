//! Changes to how an image is run, in the words of a Containerfile: `ENV PATH=/bin`,
//! `CMD ["sh", "-c"]`.

use std::collections::BTreeMap;

use lamina_layers::store::oci::ContainerConfig;
use serde_json::Value;

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Instruction {
    /// Arguments, or a program with its arguments.
    Cmd(Vec<String>),
    /// Program with its first arguments.
    Entrypoint(Vec<String>),
    /// Variables of the environment.
    Env(Vec<(String, String)>),
    /// Ports, each `port/protocol`.
    Expose(Vec<String>),
    /// Labels.
    Label(Vec<(String, String)>),
    /// What is done first by who builds on top of the image.
    OnBuild(String),
    /// Signal that ends it.
    StopSignal(String),
    /// User, or user and group.
    User(String),
    /// Directories whose contents are not the image's.
    Volume(Vec<String>),
    /// Working directory; a relative one is below the one before.
    WorkDir(String),
}

/// What is no change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InstructionError {
    /// Another word.
    #[error(
        "'{0}' is no change to an image: there are CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, \
         STOPSIGNAL, USER, VOLUME and WORKDIR"
    )]
    Unknown(String),
    /// Nothing after the word.
    #[error("{0} wants to be told what")]
    Empty(&'static str),
    /// Not what comes after this word.
    #[error("{word} cannot be '{value}': {wanted}")]
    Wrong {
        /// The word.
        word: &'static str,
        /// What came after it.
        value: String,
        /// What should come.
        wanted: &'static str,
    },
}

const WORDS: [&str; 10] = [
    "CMD",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "LABEL",
    "ONBUILD",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

impl std::str::FromStr for Instruction {
    type Err = InstructionError;

    /// Understands a line as it stands in a Containerfile, or with `=` after the word.
    fn from_str(line: &str) -> Result<Self, InstructionError> {
        let line = line.trim();
        let end = line.find([' ', '\t', '=']).unwrap_or(line.len());
        let (name, rest) = line.split_at_checked(end).unwrap_or((line, ""));
        let rest = rest.strip_prefix('=').unwrap_or(rest).trim();
        let word = WORDS
            .into_iter()
            .find(|word| word.eq_ignore_ascii_case(name));
        let word = word.ok_or_else(|| InstructionError::Unknown(name.to_owned()))?;
        if rest.is_empty() {
            return Err(InstructionError::Empty(word));
        }
        let wrong = |wanted| InstructionError::Wrong {
            word,
            value: rest.to_owned(),
            wanted,
        };
        let text = || rest.to_owned();
        let pairs = || pairs(rest).ok_or_else(|| wrong("it wants NAME=VALUE, with quotes closed"));
        let words = || list(rest).or_else(|| split(rest));
        let quotes = "its quotes are not closed";
        Ok(match word {
            "CMD" => Self::Cmd(program(rest)),
            "ENTRYPOINT" => Self::Entrypoint(program(rest)),
            "ENV" => Self::Env(pairs()?),
            "LABEL" => Self::Label(pairs()?),
            "EXPOSE" => {
                let ports = split(rest).ok_or_else(|| wrong(quotes))?;
                let ports: Option<_> = ports.iter().map(|port| self::port(port)).collect();
                Self::Expose(ports.ok_or_else(|| wrong("it wants ports, as 80 or 53/udp"))?)
            }
            "ONBUILD" => {
                let first = rest.split_whitespace().next().unwrap_or_default();
                let forbidden = ["ONBUILD", "FROM", "MAINTAINER"];
                if forbidden
                    .iter()
                    .any(|word| word.eq_ignore_ascii_case(first))
                {
                    return Err(wrong("ONBUILD, FROM and MAINTAINER cannot be done later"));
                }
                Self::OnBuild(text())
            }
            "STOPSIGNAL" => Self::StopSignal(text()),
            "USER" => Self::User(text()),
            "VOLUME" => Self::Volume(words().ok_or_else(|| wrong(quotes))?),
            _ => Self::WorkDir(text()),
        })
    }
}

/// A list in JSON.
fn list(text: &str) -> Option<Vec<String>> {
    serde_json::from_str(text).ok()
}

/// A program with arguments: a list in JSON, or what a shell is to be given.
fn program(text: &str) -> Vec<String> {
    list(text).unwrap_or_else(|| vec!["/bin/sh".into(), "-c".into(), text.to_owned()])
}

/// Words with quotes and backslashes as in a Containerfile; `None` if a quote is not closed.
fn split(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (None, ' ' | '\t') => words.extend(word.take()),
            (None, '"' | '\'') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (Some(open), _) if letter == open => quote = None,
            (None | Some('"'), '\\') => word.get_or_insert_default().extend(letters.next()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

/// `NAME=VALUE …`, or one `NAME VALUE`.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let first = text.split([' ', '\t']).next().unwrap_or_default();
    if !first.contains('=') {
        let (name, value) = text.split_once([' ', '\t'])?;
        return Some(vec![(name.to_owned(), value.trim().to_owned())]);
    }
    let pair = |word: String| {
        let (name, value) = word.split_once('=').filter(|(name, _)| !name.is_empty())?;
        Some((name.to_owned(), value.to_owned()))
    };
    split(text)?.into_iter().map(pair).collect()
}

/// `port/protocol`, or `from-to/protocol`; TCP if it is not said.
fn port(text: &str) -> Option<String> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let number = |text: &str| text.parse::<u16>().is_ok();
    let right = match ports.split_once('-') {
        Some((from, to)) => number(from) && number(to),
        None => number(ports),
    };
    let protocol = protocol.to_ascii_lowercase();
    (right && ["tcp", "udp", "sctp"].contains(&protocol.as_str()))
        .then(|| format!("{ports}/{protocol}"))
}

/// Makes changes to a configuration, in their order. A new entrypoint takes the arguments of the old
/// one away, unless there are new ones too.
pub fn apply(config: &mut ContainerConfig, changes: &[Instruction]) {
    let is_cmd = |change: &Instruction| matches!(change, Instruction::Cmd(_));
    let keeps_cmd = changes.iter().any(is_cmd);
    for change in changes {
        match change.clone() {
            Instruction::Cmd(words) => config.cmd = Some(words),
            Instruction::Entrypoint(words) => {
                config.entrypoint = Some(words);
                if !keeps_cmd {
                    config.cmd = None;
                }
            }
            Instruction::Env(pairs) => {
                let env = config.env.get_or_insert_default();
                for pair in &pairs {
                    set_variable(env, pair);
                }
            }
            Instruction::Expose(ports) => add_keys(&mut config.exposed_ports, ports),
            Instruction::Label(pairs) => config.labels.get_or_insert_default().extend(pairs),
            Instruction::OnBuild(text) => add_trigger(config, text),
            Instruction::StopSignal(signal) => config.stop_signal = Some(signal),
            Instruction::User(user) => config.user = Some(user),
            Instruction::Volume(dirs) => add_keys(&mut config.volumes, dirs),
            Instruction::WorkDir(dir) => {
                let before = config.working_dir.as_deref().filter(|dir| !dir.is_empty());
                config.working_dir = Some(join(before.unwrap_or("/"), &dir));
            }
        }
    }
}

fn set_variable(env: &mut Vec<String>, (name, value): &(String, String)) {
    let new = format!("{name}={value}");
    let same = |old: &&mut String| old.split('=').next() == Some(name.as_str());
    match env.iter_mut().find(same) {
        Some(old) => *old = new,
        None => env.push(new),
    }
}

fn add_keys<V: Default>(map: &mut Option<BTreeMap<String, V>>, keys: Vec<String>) {
    let map = map.get_or_insert_default();
    map.extend(keys.into_iter().map(|key| (key, V::default())));
}

fn add_trigger(config: &mut ContainerConfig, text: String) {
    let triggers = config.other.entry("OnBuild").or_insert(Value::Null);
    match triggers {
        Value::Array(list) => list.push(text.into()),
        other => *other = Value::Array(vec![text.into()]),
    }
}

/// A directory seen from another, without `.` and `..`.
fn join(from: &str, dir: &str) -> String {
    let start = if dir.starts_with('/') { "" } else { from };
    let mut names: Vec<&str> = Vec::new();
    for name in start.split('/').chain(dir.split('/')) {
        match name {
            "" | "." => {}
            ".." => {
                names.pop();
            }
            name => names.push(name),
        }
    }
    format!("/{}", names.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(config: &ContainerConfig, lines: &[&str]) -> ContainerConfig {
        let changes: Result<Vec<_>, _> = lines.iter().map(|line| line.parse()).collect();
        let mut config = config.clone();
        apply(&mut config, &changes.unwrap());
        config
    }

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn each_word_changes_its_field() {
        let config = changed(
            &ContainerConfig {
                env: Some(words(&["PATH=/bin", "OLD=1"])),
                cmd: Some(words(&["old"])),
                ..ContainerConfig::default()
            },
            &[
                "ENV PATH=/usr/bin A=\"b c\" D=e\\ f",
                "env LEGACY some words",
                "entrypoint=[\"/init\", \"-v\"]",
                "LABEL a=b 'c d'=e",
                "EXPOSE 80 53/UDP 7000-7010",
                "ONBUILD RUN make",
                "STOPSIGNAL SIGINT",
                "USER 1000:100",
                "VOLUME [\"/data\", \"/my logs\"]",
                "VOLUME /more /again",
                "WORKDIR /srv/./app",
                "WORKDIR ../www",
            ],
        );
        assert_eq!(
            config.env,
            Some(words(&[
                "PATH=/usr/bin",
                "OLD=1",
                "A=b c",
                "D=e f",
                "LEGACY=some words"
            ]))
        );
        assert_eq!(config.entrypoint, Some(words(&["/init", "-v"])));
        assert_eq!(config.cmd, None, "it was the old entrypoint's");
        let keys = |map: &BTreeMap<String, _>| map.keys().cloned().collect::<Vec<_>>();
        assert_eq!(
            config.exposed_ports.as_ref().map(keys),
            Some(words(&["53/udp", "7000-7010/tcp", "80/tcp"]))
        );
        assert_eq!(
            config.volumes.as_ref().map(keys),
            Some(words(&["/again", "/data", "/more", "/my logs"]))
        );
        let label = |name: &str| {
            config
                .labels
                .as_ref()
                .and_then(|map| map.get(name).cloned())
        };
        assert_eq!(
            (label("a"), label("c d")),
            (Some("b".into()), Some("e".into()))
        );
        assert_eq!(config.other["OnBuild"], serde_json::json!(["RUN make"]));
        assert_eq!(config.stop_signal.as_deref(), Some("SIGINT"));
        assert_eq!(config.user.as_deref(), Some("1000:100"));
        assert_eq!(config.working_dir.as_deref(), Some("/srv/www"));
    }

    #[test]
    fn a_new_command_stays_beside_a_new_entrypoint() {
        let config = changed(
            &ContainerConfig::default(),
            &["CMD echo $HOME", "ENTRYPOINT [\"/init\"]"],
        );
        assert_eq!(config.cmd, Some(words(&["/bin/sh", "-c", "echo $HOME"])));
        assert_eq!(config.entrypoint, Some(words(&["/init"])));
    }

    #[test]
    fn nonsense_is_refused() {
        for wrong in [
            "",
            "RUN make",
            "CMD",
            "ENV",
            "ENV =x",
            "ENV lonely",
            "LABEL a=\"b",
            "EXPOSE http",
            "EXPOSE 99999",
            "EXPOSE 80/xyz",
            "ONBUILD from scratch",
            "VOLUME 'x",
        ] {
            assert!(wrong.parse::<Instruction>().is_err(), "{wrong}");
        }
    }
}
