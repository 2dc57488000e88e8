//! One stage from FROM to its last instruction.

use std::collections::HashMap;

use lamina_layers::digest::{DiffId, Digest};
use lamina_layers::oci::{ParsePlatformError, Platform};
use lamina_layers::store::oci::History;
use lamina_layers::store::{CachedStep, Image, Lease, Pins, Store, Transaction};

use super::cache::Key;
use super::containerfile::{Instruction, Step, parse_trigger};
use super::copy::{Copier, How};
use super::error::{BuildResult, Problem};
use super::image::short;
use super::layer;
use super::plan::{self, Base, PlannedStage};
use super::root::{Root, What};
use super::state::State;
use super::words::Expander;
use super::{Builder, absolute};

/// A stage, as far as it is built.
pub struct Stage {
    /// Its files.
    pub root: Root,
    /// Everything else.
    pub state: State,
    /// What it is for.
    pub platform: Platform,
    /// Keeps its layers from being removed.
    lease: Option<Lease>,
}

impl Stage {
    fn empty(platform: Platform) -> Self {
        Self {
            root: Root::default(),
            state: State::default(),
            platform,
            lease: None,
        }
    }

    /// One on top of layers of the store.
    fn on(store: &Store, layers: &[DiffId], state: State, platform: Platform) -> BuildResult<Self> {
        let mut stage = Self {
            state,
            ..Self::empty(platform)
        };
        for layer in layers {
            stage.root.push(store, *layer)?;
        }
        stage.hold(store)?;
        Ok(stage)
    }

    fn push(&mut self, store: &Store, layer: DiffId) -> BuildResult<()> {
        self.root.push(store, layer)?;
        self.hold(store)
    }

    fn hold(&mut self, store: &Store) -> BuildResult<()> {
        let layers = self.root.layers();
        if !layers.is_empty() {
            self.lease = Some(hold(store, layers)?);
        }
        Ok(())
    }
}

/// Keeps layers from being removed.
pub fn hold(store: &Store, layers: Vec<DiffId>) -> BuildResult<Lease> {
    let pins = Pins {
        holder: format!("a build (process {})", std::process::id()),
        image: None,
        layers,
        blobs: Vec::new(),
    };
    Ok(store.lease(&pins)?)
}

/// What the variables of a stage are at one moment.
pub type Variables = HashMap<String, String>;

impl Builder<'_> {
    pub(super) fn build_stage(&mut self, number: usize) -> BuildResult<Stage> {
        let planned = self.plan.get(number).cloned();
        let planned = planned.ok_or_else(|| Problem::NoStage(number.to_string()))?;
        self.announce(&planned.from.text);
        let mut stage = self
            .begin(&planned)
            .map_err(|error| error.at(planned.from.line, &planned.from.text))?;
        stage.state.set_default_path();
        for text in stage.state.take_triggers() {
            self.say(&format!("ONBUILD {text}"));
            let place =
                |error: super::BuildError| error.at(planned.from.line, &format!("ONBUILD {text}"));
            let mut trigger = parse_trigger(&text).map_err(place)?;
            trigger.line = planned.from.line;
            self.step(&mut stage, &trigger).map_err(place)?;
        }
        for step in &planned.steps {
            self.announce(&step.text);
            self.step(&mut stage, step)
                .map_err(|error| error.at(step.line, &step.text))?;
        }
        Ok(stage)
    }

    fn announce(&mut self, text: &str) {
        self.step += 1;
        self.say(&format!(
            "STEP {}/{}: {text}",
            self.step,
            self.plan.step_count()
        ));
    }

    pub(super) fn say(&self, text: &str) {
        (self.around.say)(text);
    }

    fn begin(&self, planned: &PlannedStage) -> BuildResult<Stage> {
        let store = self.around.store;
        let said = planned.platform.as_deref().map(str::parse).transpose();
        let said: Option<Platform> =
            said.map_err(|error: ParsePlatformError| Problem::FlagValue {
                flag: "platform".into(),
                value: planned.platform.clone().unwrap_or_default(),
                hint: error.to_string(),
            })?;
        let wanted = said.or_else(|| self.options.platform.clone());
        match &planned.base {
            Base::Scratch => Ok(Stage::empty(wanted.unwrap_or_else(Platform::host))),
            Base::Stage(number) => {
                let base = self.stages.get(*number).and_then(Option::as_ref);
                let base = base.ok_or_else(|| Problem::NoStage(number.to_string()))?;
                let state = State {
                    args: std::collections::BTreeMap::new(),
                    own_cmd: false,
                    ..base.state.clone()
                };
                Stage::on(store, &base.root.layers(), state, base.platform.clone())
            }
            Base::Image(name) => {
                let image = (self.around.find_image)(name, wanted.as_ref())?;
                let platform = platform_of(&image);
                if let Some(wanted) = wanted.filter(|wanted| !wanted.takes(&platform)) {
                    return Err(Problem::Platform {
                        image: name.clone(),
                        found: platform.to_string(),
                        wanted: wanted.to_string(),
                    }
                    .into());
                }
                let mut other = image.config.other.clone();
                // What docker says there of the container it made the image with.
                for key in [
                    "container",
                    "container_config",
                    "docker_version",
                    "id",
                    "parent",
                ] {
                    other.remove(key);
                }
                let state = State {
                    config: image.config.config.clone().unwrap_or_default(),
                    history: image.config.history.clone(),
                    other,
                    ..State::default()
                };
                Stage::on(store, &image.layers, state, platform)
            }
        }
    }

    /// The variables that an instruction can use.
    pub(super) fn variables(&self, stage: &Stage) -> Variables {
        let given = self.options.build_args.iter();
        let predefined = given.filter(|(name, _)| plan::is_predefined(name)).cloned();
        let mut variables: Variables = predefined.collect();
        variables.extend(stage.state.args.clone());
        for entry in stage.state.config.env.iter().flatten() {
            if let Some((name, value)) = entry.split_once('=') {
                variables.insert(name.to_owned(), value.to_owned());
            }
        }
        variables
    }

    fn step(&mut self, stage: &mut Stage, step: &Step) -> BuildResult<()> {
        let variables = self.variables(stage);
        let lookup = |name: &str| variables.get(name).cloned();
        let expander = Expander {
            escape: self.escape,
            lookup: &lookup,
        };
        match &step.instruction {
            Instruction::From { .. } => {
                Err(Problem::Syntax("FROM cannot be used here".into()).into())
            }
            Instruction::Arg(text) => self.arg(stage, text, &expander),
            Instruction::Workdir(text) => self.workdir(stage, text, &expander),
            Instruction::Copy(copy) => self.copy(stage, copy, false, &expander),
            Instruction::Add(copy) => self.copy(stage, copy, true, &expander),
            Instruction::Run { flags, command } => self.run(stage, flags, command, &expander),
            instruction => {
                let before = stage.state.clone();
                let text = stage
                    .state
                    .apply(instruction, &expander)?
                    .unwrap_or_default();
                self.record_setting(stage, &before, &text)
            }
        }
    }

    fn arg(&mut self, stage: &mut Stage, text: &str, expander: &Expander<'_>) -> BuildResult<()> {
        let before = stage.state.clone();
        for (name, default) in plan::declared(text, expander)? {
            let given = self
                .options
                .build_args
                .iter()
                .rev()
                .find(|(arg, _)| *arg == name);
            let value = given.map(|(_, value)| value.clone()).or(default);
            let value = value.or_else(|| self.plan.global(&name).cloned());
            self.used_args.insert(name.clone());
            match value {
                Some(value) => stage.state.args.insert(name, value),
                None => stage.state.args.remove(&name),
            };
        }
        self.record_setting(stage, &before, &format!("ARG {text}"))
    }

    fn workdir(
        &mut self,
        stage: &mut Stage,
        text: &str,
        expander: &Expander<'_>,
    ) -> BuildResult<()> {
        let dir = expander.word(text)?;
        let before = stage.state.clone();
        let dir = clean(&absolute(&dir, stage.state.workdir()));
        stage.state.config.working_dir = Some(dir.clone());
        let names = stage.root.resolve(dir.as_bytes())?;
        let created_by = format!("WORKDIR {dir}");
        match stage.root.what(&names) {
            What::Dir => return self.record_setting(stage, &before, &created_by),
            What::Other => {
                return Err(Problem::Target {
                    path: dir,
                    problem: "is not a directory".into(),
                }
                .into());
            }
            What::Nothing => {}
        }
        // It is the user's, as with docker's BuildKit and buildah.
        let user = stage.state.config.user.as_deref().unwrap_or_default();
        let user = stage.root.accounts(self.around.store)?.identity(user)?;
        let how = self.how(Some((user.uid, user.gid)), None);
        let root = &stage.root;
        let txn = Transaction::begin(self.around.store)?;
        let info = layer::stage(&txn, "the directory", |out| {
            Copier::new(out, root, &how).make_dirs(&names)
        })?;
        self.finish_layer(stage, txn, &info.diff_id, "workdir", &nop(&created_by))
    }

    /// How files are copied.
    pub(super) fn how(&self, owner: Option<(u32, u32)>, mode: Option<u32>) -> How {
        let now = self
            .now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        How {
            owner,
            mode,
            now: (
                i64::try_from(now.as_secs()).unwrap_or(0),
                now.subsec_nanos(),
            ),
            latest: self.latest(),
        }
    }

    /// What no file is younger than, in seconds since 1970.
    pub(super) fn latest(&self) -> Option<i64> {
        let epoch = self.options.epoch?;
        i64::try_from(epoch).ok()
    }

    /// Makes a layer of a transaction part of the stage: that of an earlier build, if that copied the
    /// same.
    pub(super) fn finish_layer(
        &self,
        stage: &mut Stage,
        txn: Transaction<'_>,
        made: &DiffId,
        kind: &str,
        created_by: &str,
    ) -> BuildResult<()> {
        let mut key = Key::new(kind, &stage.root.layers());
        key.bytes(&layer::content_digest(&txn.layer_index(made)?).0);
        key.number(self.options.epoch.unwrap_or(u64::MAX));
        let key = key.finish();
        if let Some(step) = self.remembered(&key)?
            && step.layer.is_some()
        {
            drop(txn);
            return self.use_cached(stage, step, created_by);
        }
        txn.commit()?;
        self.add_layer(stage, Some(*made), &key, created_by)
    }

    /// What an earlier build remembers.
    pub(super) fn remembered(&self, key: &Digest) -> BuildResult<Option<CachedStep>> {
        if self.options.no_cache {
            return Ok(None);
        }
        Ok(self.around.store.cached_step(key)?)
    }

    /// Adds a layer of the store that was just made, or none if nothing was changed, and remembers it.
    pub(super) fn add_layer(
        &self,
        stage: &mut Stage,
        layer: Option<DiffId>,
        key: &Digest,
        created_by: &str,
    ) -> BuildResult<()> {
        let created = humantime::format_rfc3339(self.now()).to_string();
        let step = CachedStep { layer, created };
        // The layer is held before it is remembered.
        if let Some(layer) = layer {
            stage.push(self.around.store, layer)?;
            self.say(&format!("--> {}", short(&layer)));
        } else {
            self.say("--> no changes");
        }
        self.around.store.cache_step(key, &step)?;
        self.add_history(stage, step.created, created_by, layer.is_none());
        Ok(())
    }

    /// Uses what an earlier build made.
    pub(super) fn use_cached(
        &self,
        stage: &mut Stage,
        step: CachedStep,
        created_by: &str,
    ) -> BuildResult<()> {
        if let Some(layer) = step.layer {
            self.say(&format!("--> Using cache {}", short(&layer)));
            stage.push(self.around.store, layer)?;
        } else {
            self.say("--> Using cache: no changes");
        }
        self.add_history(stage, step.created, created_by, step.layer.is_none());
        Ok(())
    }

    /// Records an instruction that changed no files. Its time is that of the first build that had it, so
    /// that the same file on the same image gives the same image.
    fn record_setting(&self, stage: &mut Stage, before: &State, text: &str) -> BuildResult<()> {
        let created_by = nop(text);
        let mut key = Key::new("setting", &stage.root.layers());
        let config = serde_json::to_vec(&before.config).unwrap_or_default();
        let history = serde_json::to_vec(&before.history).unwrap_or_default();
        key.bytes(&config).bytes(&history).text(&created_by);
        key.number(self.options.epoch.unwrap_or(u64::MAX));
        let key = key.finish();
        let step = if let Some(step) = self.remembered(&key)? {
            step
        } else {
            let step = CachedStep {
                layer: None,
                created: humantime::format_rfc3339(self.now()).to_string(),
            };
            self.around.store.cache_step(&key, &step)?;
            step
        };
        self.add_history(stage, step.created, &created_by, true);
        Ok(())
    }

    fn add_history(&self, stage: &mut Stage, created: String, created_by: &str, empty: bool) {
        stage.state.history.push(History {
            created: Some(created),
            created_by: Some(created_by.to_owned()),
            empty_layer: empty,
            ..History::default()
        });
    }
}

/// The text of an instruction that runs nothing, as docker and buildah have it in the history.
pub fn nop(text: &str) -> String {
    format!("/bin/sh -c #(nop) {text}")
}

/// What an image is for; what it does not say is as with this machine.
pub fn platform_of(image: &Image) -> Platform {
    let said = Platform::of_config(&image.config);
    let host = Platform::host();
    let or = |said: String, host: String| if said.is_empty() { host } else { said };
    Platform {
        os: or(said.os, host.os),
        architecture: or(said.architecture, host.architecture),
        variant: said.variant,
    }
}

/// An absolute path without `.` and `..`.
fn clean(path: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('/') {
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
