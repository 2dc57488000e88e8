//! Which stages a Containerfile has, and which are needed for the one that is wanted.

use std::collections::BTreeMap;

use lamina_layers::oci::Platform;

use super::Options;
use super::containerfile::{Containerfile, Copy, Flag, Instruction, Step};
use super::error::{BuildResult, Problem};
use super::mounts::taken_from as taken_from_by;
use super::words::Expander;

/// The stages.
#[derive(Debug)]
pub struct Plan {
    stages: Vec<PlannedStage>,
    target: usize,
    /// Values of the ARGs before the first FROM.
    globals: BTreeMap<String, String>,
}

/// One stage.
#[derive(Clone, Debug)]
pub struct PlannedStage {
    /// Its name.
    pub name: Option<String>,
    /// The FROM itself.
    pub from: Step,
    /// What it is built on, variables replaced.
    pub base: Base,
    /// What it is built for, if FROM says it.
    pub platform: Option<String>,
    /// Its other instructions.
    pub steps: Vec<Step>,
    needed: bool,
}

/// What a stage is built on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Base {
    /// Nothing.
    Scratch,
    /// An earlier stage.
    Stage(usize),
    /// An image.
    Image(String),
}

/// Arguments that need no ARG.
const PREDEFINED: [&str; 5] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "FTP_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
];

/// Whether a build argument is passed to commands without an ARG.
pub fn is_predefined(name: &str) -> bool {
    PREDEFINED.contains(&name.to_uppercase().as_str())
        && (name == name.to_uppercase() || name == name.to_lowercase())
}

/// The arguments that say what is built for, and where.
pub fn platform_args(target: &Platform) -> BTreeMap<String, String> {
    let mut args = BTreeMap::new();
    for (prefix, platform) in [("TARGET", target), ("BUILD", &Platform::host())] {
        let mut add = |name: &str, value: String| args.insert(format!("{prefix}{name}"), value);
        add("PLATFORM", platform.to_string());
        add("OS", platform.os.clone());
        add("ARCH", platform.architecture.clone());
        add("VARIANT", platform.variant.clone().unwrap_or_default());
    }
    args
}

impl Plan {
    /// The plan for a file.
    ///
    /// # Errors
    /// When a FROM cannot be understood, or the wanted stage is not there.
    pub fn of(file: &Containerfile, options: &Options) -> BuildResult<Self> {
        let platform = options.platform.clone().unwrap_or_else(Platform::host);
        let mut plan = Self {
            stages: Vec::new(),
            target: 0,
            globals: platform_args(&platform),
        };
        for step in &file.steps {
            plan.add(step, file.escape, options)
                .map_err(|error| error.at(step.line, &step.text))?;
        }
        plan.target = match &options.target {
            None => plan.stages.len().saturating_sub(1),
            Some(name) => plan
                .stage(name, plan.stages.len())
                .ok_or_else(|| Problem::NoStage(name.clone()))?,
        };
        plan.mark(plan.target);
        Ok(plan)
    }

    fn add(&mut self, step: &Step, escape: char, options: &Options) -> BuildResult<()> {
        let globals = self.globals.clone();
        let lookup = |name: &str| globals.get(name).cloned();
        let expander = Expander {
            escape,
            lookup: &lookup,
        };
        match (&step.instruction, self.stages.last_mut()) {
            (Instruction::From { flags, image, name }, _) => {
                let image = expander.word(image)?;
                let name = name.as_ref().map(|name| name.to_lowercase());
                let stage = self.from(step, &image, name, flags, &expander)?;
                self.stages.push(stage);
            }
            (_, Some(stage)) => stage.steps.push(step.clone()),
            (Instruction::Arg(text), None) => {
                for (name, default) in declared(text, &expander)? {
                    let given = options
                        .build_args
                        .iter()
                        .rev()
                        .find(|(arg, _)| *arg == name);
                    let value = given.map(|(_, value)| value.clone()).or(default);
                    if let Some(value) = value {
                        self.globals.insert(name, value);
                    }
                }
            }
            (_, None) => return Err(Problem::Syntax("FROM must come first".into()).into()),
        }
        Ok(())
    }

    fn from(
        &self,
        step: &Step,
        image: &str,
        name: Option<String>,
        flags: &[Flag],
        expander: &Expander<'_>,
    ) -> BuildResult<PlannedStage> {
        let mut flags = super::flags::Flags::new(flags);
        let platform = flags.take("platform")?;
        let platform = platform.map(|text| expander.word(&text)).transpose()?;
        flags.end()?;
        if image.is_empty() {
            let problem = "FROM has no image: the variables in it have no values";
            return Err(Problem::Syntax(problem.into()).into());
        }
        let base = match self.named(image, self.stages.len()) {
            Some(stage) => Base::Stage(stage),
            None if image == "scratch" => Base::Scratch,
            None => Base::Image(image.to_owned()),
        };
        Ok(PlannedStage {
            name,
            from: step.clone(),
            base,
            platform: platform.filter(|platform| !platform.is_empty()),
            steps: Vec::new(),
            needed: false,
        })
    }

    /// The stage of a name, or of a number, among the first `before`.
    pub fn stage(&self, name: &str, before: usize) -> Option<usize> {
        let number = name.parse::<usize>().ok().filter(|number| *number < before);
        self.named(name, before).or(number)
    }

    fn named(&self, name: &str, before: usize) -> Option<usize> {
        let wanted = name.to_lowercase();
        let mut stages = self.stages.iter().take(before);
        stages.position(|stage| stage.name.as_ref() == Some(&wanted))
    }

    /// A stage and what it needs are needed.
    fn mark(&mut self, number: usize) {
        let Some(stage) = self.stages.get_mut(number).filter(|stage| !stage.needed) else {
            return;
        };
        stage.needed = true;
        let mut needs = Vec::new();
        if let Base::Stage(base) = stage.base {
            needs.push(base);
        }
        let names: Vec<_> = stage.steps.iter().flat_map(taken_from).collect();
        needs.extend(names.iter().filter_map(|name| self.stage(name, number)));
        for need in needs {
            self.mark(need);
        }
    }

    /// Number of the wanted stage.
    pub fn target(&self) -> usize {
        self.target
    }

    /// Whether a stage is needed.
    pub fn is_needed(&self, number: usize) -> bool {
        self.stages.get(number).is_some_and(|stage| stage.needed)
    }

    /// One of the stages.
    pub fn get(&self, number: usize) -> Option<&PlannedStage> {
        self.stages.get(number)
    }

    /// Number of steps of the stages that are needed.
    pub fn step_count(&self) -> usize {
        let needed = self.stages.iter().filter(|stage| stage.needed);
        needed.map(|stage| stage.steps.len() + 1).sum()
    }

    /// The value of an ARG before the first FROM.
    pub fn global(&self, name: &str) -> Option<&String> {
        self.globals.get(name)
    }
}

/// The names of an ARG with their defaults.
///
/// # Errors
/// When a word is malformed.
pub fn declared(text: &str, expander: &Expander<'_>) -> BuildResult<Vec<(String, Option<String>)>> {
    let words = super::words::split(text, expander.escape);
    let one = |word: &String| match word.split_once('=') {
        Some((name, value)) => Ok((expander.word(name)?, Some(expander.word(value)?))),
        None => Ok((expander.word(word)?, None)),
    };
    words.iter().map(one).collect()
}

/// The stages or images that an instruction takes something from.
fn taken_from(step: &Step) -> Vec<String> {
    let of = |flags: &[Flag], name: &str| -> Vec<String> {
        let flags = flags.iter().filter(|flag| flag.name == name);
        flags.filter_map(|flag| flag.value.clone()).collect()
    };
    match &step.instruction {
        Instruction::Copy(Copy { flags, .. }) | Instruction::Add(Copy { flags, .. }) => {
            of(flags, "from")
        }
        Instruction::Run { flags, .. } => {
            let mounts = of(flags, "mount").into_iter();
            mounts.filter_map(|text| taken_from_by(&text)).collect()
        }
        _ => Vec::new(),
    }
}
