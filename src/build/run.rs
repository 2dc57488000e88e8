//! RUN: a command in a container, on a mount of the layers so far. What it changes is the next layer.

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lamina_layers::digest::{DiffId, Digest};
use lamina_layers::store::Transaction;
use rustix::fs::FlockOperation;

use super::cache::Key;
use super::containerfile::{Command, Flag};
use super::copy::{Copier, Dest};
use super::error::{BuildError, BuildResult, Problem};
use super::flags::Flags;
use super::layer;
use super::plan::is_predefined;
use super::source::Tree;
use super::stage::Stage;
use super::state::script_path;
use super::words::Expander;
use super::{Builder, absolute};
use crate::commit::LayerOptions;
use crate::runtime::container::{Job, Outcome};
use crate::runtime::spec::{Mount, MountWhat, Network, Setup, network_files};
use crate::union::{Config, ImageLower, Union};

/// A file that commands may see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secret {
    /// What RUN calls it.
    pub id: String,
    /// Where it is.
    pub file: PathBuf,
}

/// What a command sees besides the image, while it runs.
#[derive(Default)]
struct Extras {
    mounts: Vec<Mount>,
    /// Locks of caches that are nobody else's meanwhile.
    locks: Vec<fs::File>,
    /// What of it the result depends on.
    key: Vec<String>,
}

impl Builder<'_> {
    pub(super) fn run(
        &mut self,
        stage: &mut Stage,
        flags: &[Flag],
        command: &Command,
        expander: &Expander<'_>,
    ) -> BuildResult<()> {
        let store = self.around.store;
        let mut flags = Flags::new(flags);
        let wanted = flags.take_all("mount")?;
        let network = self.network(flags.take("network")?.as_deref())?;
        flags.end()?;
        let layers = stage.root.layers();
        if layers.is_empty() {
            return Err(Problem::Unsupported {
                what: "RUN on an empty image".into(),
                hint: "COPY or ADD a root filesystem first".into(),
            }
            .into());
        }
        let scratch = store.scratch()?;
        let files = scratch.path().join("files");
        fs::create_dir(&files).map_err(Problem::io("make", &files))?;
        let mut extras = Extras::default();
        for (number, text) in wanted.iter().enumerate() {
            let text = expander.word(text)?;
            let file = files.join(number.to_string());
            self.mount(stage, &text, &file, &mut extras)?;
        }
        let mut setup = self.setup(stage, command, network)?;
        let created_by = self.run_history(stage, command);
        let key = self.run_key(stage, &setup, command, &extras.key);
        if let Some(step) = self.remembered(&key)? {
            return self.use_cached(stage, step, &created_by);
        }
        setup.mounts.extend(extras.mounts);
        setup.mounts.extend(network_files());
        if let Command::Script { name, text } = command {
            setup
                .mounts
                .push(script(&files.join("script"), name, text)?);
        }
        // Made here, the worker and what reads the changes find it in the store.
        drop(store.merged_index(&layers)?);
        let job = Job {
            store: store.root().to_owned(),
            layers: layers.clone(),
            dir: scratch.path().to_owned(),
            runtime: self.runtime()?,
            setup,
        };
        self.run_job(&job)?;
        let layer = self.take_changes(&job)?;
        if layer.is_some() {
            store.forget_merged(&layers)?;
        }
        self.add_layer(stage, layer, &key, &created_by)
    }

    /// The network of a command, by its option.
    fn network(&self, wanted: Option<&str>) -> BuildResult<Network> {
        match wanted {
            None | Some("default") => Ok(self.options.network),
            Some("host") => Ok(Network::Host),
            Some("none") => Ok(Network::None),
            Some(other) => Err(Problem::FlagValue {
                flag: "network".into(),
                value: other.to_owned(),
                hint: "it is host or none".into(),
            }
            .into()),
        }
    }

    fn run_job(&self, job: &Job) -> BuildResult<()> {
        match job.run(self.around.output, self.around.interrupts)? {
            Outcome::Ended(0) => Ok(()),
            Outcome::Ended(status) => Err(Problem::Command(status).into()),
            Outcome::Interrupted => Err(Problem::Interrupted.into()),
            Outcome::Failed(why) => Err(crate::runtime::RuntimeError::Worker(why).into()),
        }
    }

    /// Makes a layer of what a command changed, if that is anything.
    fn take_changes(&self, job: &Job) -> BuildResult<Option<DiffId>> {
        let store = self.around.store;
        let opened = lamina_layers::store::Store::open(
            store.root(),
            lamina_layers::store::Access::ReadOnly,
        )?;
        let config = Config {
            image: Some(ImageLower {
                store: Arc::new(opened),
                layers: job.layers.clone(),
            }),
            upper: Some(job.upper()),
            ..Config::default()
        };
        let changes = |error: String| BuildError::new(Problem::Changes(io::Error::other(error)));
        let union = Union::open_for_diff(&config).map_err(|error| changes(error.to_string()))?;
        let options = LayerOptions {
            latest: self.latest(),
            ..LayerOptions::default()
        };
        let txn = Transaction::begin(store)?;
        let staged = crate::commit::stage_changes(&txn, &union, &options);
        let Some(info) = staged.map_err(|error| changes(error.to_string()))? else {
            return Ok(None);
        };
        txn.commit()?;
        Ok(Some(info.diff_id))
    }

    fn setup(&self, stage: &Stage, command: &Command, network: Network) -> BuildResult<Setup> {
        let user = stage.state.config.user.as_deref().unwrap_or_default();
        let identity = stage.root.accounts(self.around.store)?.identity(user)?;
        let mut env: Vec<String> = stage.state.config.env.clone().unwrap_or_default();
        let given = self
            .options
            .build_args
            .iter()
            .filter(|(name, _)| is_predefined(name));
        let given = given.map(|(name, value)| (name, value));
        for (name, value) in stage.state.args.iter().chain(given) {
            if !has(&env, name) {
                env.push(format!("{name}={value}"));
            }
        }
        let home = identity.home.clone().unwrap_or_else(|| "/".to_owned());
        if !has(&env, "HOME") {
            env.push(format!("HOME={home}"));
        }
        Ok(Setup {
            args: stage.state.args_of(command),
            env,
            cwd: stage.state.workdir().to_owned(),
            identity,
            hostname: "build".to_owned(),
            network,
            mounts: Vec::new(),
        })
    }

    /// What the history says of a command: the arguments that it could see, then the command.
    fn run_history(&self, stage: &Stage, command: &Command) -> String {
        let command = stage.state.args_of(command).join(" ");
        let args = stage.state.args.iter();
        let args: Vec<_> = args
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        if args.is_empty() {
            return command;
        }
        format!("|{} {} {command}", args.len(), args.join(" "))
    }

    fn run_key(
        &self,
        stage: &Stage,
        setup: &Setup,
        command: &Command,
        extras: &[String],
    ) -> Digest {
        let mut key = Key::new("run", &stage.root.layers());
        key.list(setup.args.iter());
        // Where the machine's proxy is changes nothing in the image, unless the file itself asks for it.
        let said = stage.state.config.env.as_deref().unwrap_or_default();
        let counts = |entry: &&String| {
            let name = name_of(entry);
            !is_predefined(name) || stage.state.args.contains_key(name) || has(said, name)
        };
        let env: Vec<String> = setup.env.iter().filter(counts).cloned().collect();
        key.list(env.iter()).text(&setup.cwd).list(extras.iter());
        key.number(setup.identity.uid.into())
            .number(setup.identity.gid.into());
        key.number(u64::from(setup.network == Network::Host));
        key.number(self.options.epoch.unwrap_or(u64::MAX));
        if let Command::Script { text, .. } = command {
            key.text(text);
        }
        key.finish()
    }

    /// What a `--mount` asks for.
    fn mount(
        &self,
        stage: &Stage,
        text: &str,
        file: &Path,
        extras: &mut Extras,
    ) -> BuildResult<()> {
        let mut asked = Asked::parse(text);
        let kind = asked.take("type").unwrap_or_else(|| "bind".to_owned());
        let target = asked
            .take("target")
            .map(|path| absolute(&path, stage.state.workdir()));
        match kind.as_str() {
            "tmpfs" => {
                let target = target.ok_or_else(|| asked.lacks("target"))?;
                let size = asked.take_number("size")?;
                let what = MountWhat::Tmpfs { size };
                extras.key.push(format!("tmpfs {target}"));
                extras.mounts.push(Mount { target, what });
            }
            "cache" => {
                let target = target.ok_or_else(|| asked.lacks("target"))?;
                self.cache_mount(&mut asked, target, extras)?;
            }
            "secret" => self.secret_mount(&mut asked, target, file, extras)?,
            "bind" => {
                let target = target.ok_or_else(|| asked.lacks("target"))?;
                self.bind_mount(stage, &mut asked, target, extras)?;
            }
            other => {
                return Err(Problem::Unsupported {
                    what: format!("--mount=type={other}"),
                    hint: "bind, cache, secret and tmpfs can".into(),
                }
                .into());
            }
        }
        asked.end()
    }

    /// A directory that commands of all builds share.
    fn cache_mount(
        &self,
        asked: &mut Asked,
        target: String,
        extras: &mut Extras,
    ) -> BuildResult<()> {
        let id = asked.take("id").unwrap_or_else(|| target.clone());
        let dir = self.around.store.cache_mount(&Digest::of(id.as_bytes()))?;
        let owner = (asked.take_number("uid")?, asked.take_number("gid")?);
        let mode = asked.take_mode("mode")?.unwrap_or(0o755);
        let is_new = fs::read_dir(&dir).is_ok_and(|mut entries| entries.next().is_none());
        if is_new {
            let number =
                |id: Option<u64>| Some(id.and_then(|id| u32::try_from(id).ok()).unwrap_or(0));
            chown(&dir, number(owner.0), number(owner.1))
                .map_err(Problem::io("give away", &dir))?;
            fs::set_permissions(&dir, fs::Permissions::from_mode(mode))
                .map_err(Problem::io("change the mode of", &dir))?;
        }
        if asked
            .take("sharing")
            .is_some_and(|sharing| sharing == "locked")
        {
            let lock = fs::File::open(&dir).map_err(Problem::io("open", &dir))?;
            rustix::fs::flock(&lock, FlockOperation::LockExclusive)
                .map_err(Problem::io("lock", &dir))?;
            extras.locks.push(lock);
        }
        let read_only = asked.take_switch("readonly");
        extras.key.push(format!("cache {id} {target}"));
        let what = MountWhat::Bind {
            source: dir,
            read_only,
        };
        extras.mounts.push(Mount { target, what });
        Ok(())
    }

    /// A copy of a file, which is in no layer.
    fn secret_mount(
        &self,
        asked: &mut Asked,
        target: Option<String>,
        file: &Path,
        extras: &mut Extras,
    ) -> BuildResult<()> {
        let id = asked.take("id").ok_or_else(|| asked.lacks("id"))?;
        let target = target.unwrap_or_else(|| format!("/run/secrets/{id}"));
        let required = asked.take_switch("required");
        let mode = asked.take_mode("mode")?.unwrap_or(0o400);
        let owner = [asked.take_number("uid")?, asked.take_number("gid")?];
        extras.key.push(format!("secret {id} {target}"));
        let Some(secret) = self.options.secrets.iter().find(|secret| secret.id == id) else {
            if required {
                return Err(Problem::Unsupported {
                    what: format!("the secret '{id}'"),
                    hint: format!("say where it is with --secret id={id},src=FILE"),
                }
                .into());
            }
            return Ok(());
        };
        let contents = fs::read(&secret.file).map_err(Problem::io("read", &secret.file))?;
        write_file(file, &contents, mode)?;
        let [uid, gid] = owner.map(|id| id.and_then(|id| u32::try_from(id).ok()));
        chown(file, uid, gid).map_err(Problem::io("give away", file))?;
        let what = MountWhat::Bind {
            source: file.to_owned(),
            read_only: true,
        };
        extras.mounts.push(Mount { target, what });
        Ok(())
    }

    /// Something of the build context, which the command cannot change.
    fn bind_mount(
        &self,
        stage: &Stage,
        asked: &mut Asked,
        target: String,
        extras: &mut Extras,
    ) -> BuildResult<()> {
        let unsupported = |what: &str| Problem::Unsupported {
            what: format!("--mount=type=bind,{what}"),
            hint: "bind a part of the build context, read-only, or COPY".into(),
        };
        if asked.take("from").is_some() {
            return Err(unsupported("from").into());
        }
        if asked.take_switch("rw") {
            return Err(unsupported("rw").into());
        }
        asked.take_switch("readonly");
        let source = asked.take("source").unwrap_or_else(|| ".".to_owned());
        let context = self.options.context.as_ref();
        let tree = context
            .map(Tree::Context)
            .ok_or_else(|| unsupported("source"))?;
        let found = tree.find(source.as_bytes())?;
        let node = found.first().ok_or_else(|| unsupported("source"))?;
        // The command's result depends on what it can read: a layer of it is made, to know its digest,
        // and dropped.
        let how = self.how(Some((0, 0)), None);
        let dest = Dest::of(&stage.root, &target, 1)?;
        let txn = Transaction::begin(self.around.store)?;
        let info = layer::stage(&txn, "what is bound", |out| {
            Copier::new(out, &stage.root, &how).copy(&tree, node, &dest)
        })?;
        let digest = layer::content_digest(&txn.layer_index(&info.diff_id)?);
        extras.key.push(format!("bind {target} {}", digest.hex()));
        let source = tree
            .path_outside(node)
            .ok_or_else(|| unsupported("source"))?;
        let what = MountWhat::Bind {
            source,
            read_only: true,
        };
        extras.mounts.push(Mount { target, what });
        Ok(())
    }
}

/// The name of a `NAME=value`.
fn name_of(entry: &str) -> &str {
    entry.split('=').next().unwrap_or_default()
}

/// Whether an environment has a variable.
fn has(env: &[String], name: &str) -> bool {
    env.iter().any(|entry| name_of(entry) == name)
}

/// The script of a here-document, as a file that is mounted.
fn script(file: &Path, name: &str, text: &str) -> BuildResult<Mount> {
    write_file(file, text.as_bytes(), 0o755)?;
    Ok(Mount {
        target: script_path(name),
        what: MountWhat::Bind {
            source: file.to_owned(),
            read_only: true,
        },
    })
}

fn write_file(path: &Path, contents: &[u8], mode: u32) -> BuildResult<()> {
    let write = || -> io::Result<()> {
        let mut options = fs::OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(contents)?;
        crate::sys::chmod(file.as_fd(), mode).map_err(io::Error::from)
    };
    Ok(write().map_err(Problem::io("write", path))?)
}

/// The words of a `--mount`.
struct Asked {
    text: String,
    words: Vec<(String, Option<String>)>,
}

impl Asked {
    fn parse(text: &str) -> Self {
        let word = |word: &str| {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (word, None),
            };
            let name = match name {
                "dst" | "destination" => "target",
                "src" => "source",
                "ro" => "readonly",
                "readwrite" => "rw",
                name => name,
            };
            (name.to_owned(), value)
        };
        Self {
            text: text.to_owned(),
            words: text.split(',').map(word).collect(),
        }
    }

    fn lacks(&self, what: &str) -> BuildError {
        Problem::FlagValue {
            flag: "mount".into(),
            value: self.text.clone(),
            hint: format!("it needs {what}="),
        }
        .into()
    }

    fn wrong(&self, hint: &str) -> BuildError {
        Problem::FlagValue {
            flag: "mount".into(),
            value: self.text.clone(),
            hint: hint.to_owned(),
        }
        .into()
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.words.iter().position(|(word, _)| word == name)?;
        self.words.remove(at).1
    }

    fn take_switch(&mut self, name: &str) -> bool {
        let Some(at) = self.words.iter().position(|(word, _)| word == name) else {
            return false;
        };
        self.words
            .remove(at)
            .1
            .is_none_or(|value| value != "false" && value != "0")
    }

    fn take_number(&mut self, name: &str) -> BuildResult<Option<u64>> {
        let text = self.take(name);
        let number = text.map(|text| text.parse().map_err(|_| self.wrong("a number is none")));
        number.transpose()
    }

    fn take_mode(&mut self, name: &str) -> BuildResult<Option<u32>> {
        let text = self.take(name);
        let mode = text.map(|text| {
            u32::from_str_radix(&text, 8).map_err(|_| self.wrong("its mode is not octal"))
        });
        mode.transpose()
    }

    fn end(self) -> BuildResult<()> {
        match self.words.first() {
            None => Ok(()),
            Some((name, _)) => Err(self.wrong(&format!("'{name}' is not known"))),
        }
    }
}
