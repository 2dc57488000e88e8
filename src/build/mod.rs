//! Images from Containerfiles.
//!
//! Each stage is built only if the wanted one needs it ([`plan`]). An instruction changes the stage's
//! configuration ([`state`]) or its root filesystem: COPY, ADD and WORKDIR write a layer straight into the
//! store ([`copy`]), RUN runs a container on a mount of the layers so far ([`run`]) and its changes become
//! a layer. What an instruction made is remembered under a digest of what it depends on, so that nothing is
//! run or copied twice ([`cache`]).

use std::fs::File;
use std::time::SystemTime;

use lamina_layers::oci::Platform;
use lamina_layers::oci::registry::{Downloaded, RegistryError};
use lamina_layers::store::{Image, Store};

mod add;
mod cache;
pub mod containerfile;
mod copy;
pub mod error;
mod flags;
mod heredoc;
mod ignore;
mod image;
mod layer;
mod mounts;
mod pattern;
pub mod plan;
mod remote;
mod root;
mod run;
mod source;
mod stage;
mod state;
mod words;

pub use error::{BuildError, BuildResult, Problem};
pub use run::Secret;
pub use source::Context;
pub use stage::platform_of;

use crate::runtime::Runtime;
use crate::runtime::container::Interrupts;
use crate::runtime::spec::Network;

/// How to build.
pub struct Options {
    /// The build context, if there is one.
    pub context: Option<Context>,
    /// Values of ARGs.
    pub build_args: Vec<(String, String)>,
    /// The stage to build; the last if not given.
    pub target: Option<String>,
    /// Remember nothing of earlier builds.
    pub no_cache: bool,
    /// Labels that the image gets besides its own.
    pub labels: Vec<(String, String)>,
    /// What to build for; this machine if not given.
    pub platform: Option<Platform>,
    /// The network that commands see.
    pub network: Network,
    /// Files that commands may see by `RUN --mount=type=secret`.
    pub secrets: Vec<Secret>,
    /// The time that the image says it was made, and no file in it is younger than, in seconds since 1970.
    pub epoch: Option<u64>,
    /// The runtime by which commands run: looked for when the first runs.
    pub runtime: Option<String>,
    /// Names that the image gets.
    pub tags: Vec<String>,
}

/// Where a build tells how far it is, and what it needs from the program around it.
pub struct Surroundings<'a> {
    /// The store.
    pub store: &'a Store,
    /// Is told each step.
    pub say: &'a dyn Fn(&str),
    /// Where the output of commands goes.
    pub output: &'a File,
    /// An image by its name, pulled if need be, for a platform if that matters.
    pub find_image: &'a dyn Fn(&str, Option<&Platform>) -> BuildResult<Image>,
    /// Downloads what is at an address.
    pub download: &'a dyn Fn(&str, &mut File) -> Result<Downloaded, RegistryError>,
    /// What signals do.
    pub interrupts: &'a Interrupts,
}

/// Builds the image of a Containerfile.
///
/// # Errors
/// When the file is malformed, something it needs is not there, or a command fails.
pub fn build(text: &str, options: &Options, around: &Surroundings<'_>) -> BuildResult<Image> {
    let file = containerfile::parse(text)?;
    let plan = plan::Plan::of(&file, options)?;
    let mut builder = Builder {
        options,
        around,
        plan,
        escape: file.escape,
        stages: Vec::new(),
        runtime: None,
        used_args: std::collections::BTreeSet::new(),
        step: 0,
    };
    builder.build()
}

/// A build that is going on.
struct Builder<'a> {
    options: &'a Options,
    around: &'a Surroundings<'a>,
    plan: plan::Plan,
    escape: char,
    /// The stages so far; `None` for those that nobody needs.
    stages: Vec<Option<stage::Stage>>,
    runtime: Option<Runtime>,
    /// The build arguments that an ARG asked for.
    used_args: std::collections::BTreeSet<String>,
    /// Number of the last step.
    step: usize,
}

impl Builder<'_> {
    fn build(&mut self) -> BuildResult<Image> {
        for number in 0..=self.plan.target() {
            let stage = if self.plan.is_needed(number) {
                Some(self.build_stage(number)?)
            } else {
                None
            };
            self.stages.push(stage);
        }
        self.warn_of_unused_args();
        let stage = self.stages.pop().flatten();
        let stage = stage.ok_or_else(|| Problem::NoStage(String::new()))?;
        image::publish(stage, self.options, self.around)
    }

    fn warn_of_unused_args(&self) {
        let given = self.options.build_args.iter().map(|(name, _)| name);
        let unused: Vec<_> = given
            .filter(|name| !self.used_args.contains(*name) && !plan::is_predefined(name))
            .map(String::as_str)
            .collect();
        if !unused.is_empty() {
            (self.around.say)(&format!("no ARG asks for: {}", unused.join(", ")));
        }
    }

    /// The time now, or the one that is to be told.
    fn now(&self) -> SystemTime {
        match self.options.epoch {
            Some(epoch) => SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(epoch),
            None => SystemTime::now(),
        }
    }

    fn runtime(&mut self) -> BuildResult<Runtime> {
        if let Some(runtime) = &self.runtime {
            return Ok(runtime.clone());
        }
        let found = Runtime::find(self.options.runtime.as_deref())?;
        self.runtime = Some(found.clone());
        Ok(found)
    }
}

/// A path of a file that is named relative to nothing.
fn absolute(path: &str, workdir: &str) -> String {
    if path.starts_with('/') {
        return path.to_owned();
    }
    let base = workdir.trim_end_matches('/');
    format!("{base}/{path}")
}
