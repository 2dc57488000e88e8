//! RUN: a command in a container, on a mount of the layers so far. What it changes is the next layer.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use lamina_layers::digest::{DiffId, Digest};
use lamina_layers::store::{Store, Transaction};

use super::Builder;
use super::cache::Key;
use super::containerfile::{Command, Flag};
use super::error::{BuildError, BuildResult, Problem};
use super::flags::Flags;
use super::mounts::Extras;
use super::plan::is_predefined;
use super::stage::Stage;
use super::state::script_path;
use super::words::Expander;
use crate::commit::LayerOptions;
use crate::runtime::container::{Job, Outcome};
use crate::runtime::spec::{Network, Setup, network_files};
use crate::union::{Config, ImageLower, Union};

/// A file that commands may see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secret {
    /// What RUN calls it.
    pub id: String,
    /// Where it is.
    pub file: PathBuf,
}

impl<'a> Builder<'a> {
    pub(super) fn run(
        &mut self,
        stage: &mut Stage,
        flags: &[Flag],
        command: &Command,
        expander: &Expander<'_>,
    ) -> BuildResult<()> {
        let store: &'a Store = self.around.store;
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
        let mut extras = Extras::new(scratch.path());
        for text in &wanted {
            self.mount(stage, &expander.word(text)?, &mut extras)?;
        }
        let mut setup = self.setup(stage, command, network)?;
        let created_by = self.run_history(stage, command);
        let key = self.run_key(stage, &setup, command, &extras.key);
        if let Some(step) = self.remembered(&key)? {
            return self.use_cached(stage, step, &created_by);
        }
        extras.prepare(self.around.say)?;
        if let Command::Script { name, text } = command {
            let contents = text.clone().into_bytes();
            extras.add_file(script_path(name), contents, 0o755, [None; 2]);
        }
        setup.mounts.append(&mut extras.mounts);
        setup.mounts.extend(network_files());
        // Made here, the worker and what reads the changes find it in the store.
        drop(store.merged_index(&layers)?);
        let job = Job {
            store: store.root().to_owned(),
            layers: layers.clone(),
            dir: scratch.path().to_owned(),
            runtime: self.runtime()?,
            setup,
            files: std::mem::take(&mut extras.files),
            trees: std::mem::take(&mut extras.trees),
        };
        self.run_job(&job)?;
        drop(extras);
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
        let opened = Store::open(store.root(), lamina_layers::store::Access::ReadOnly)?;
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
}

/// The name of a `NAME=value`.
fn name_of(entry: &str) -> &str {
    entry.split('=').next().unwrap_or_default()
}

/// Whether an environment has a variable.
fn has(env: &[String], name: &str) -> bool {
    env.iter().any(|entry| name_of(entry) == name)
}
