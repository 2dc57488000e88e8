//! `lamina build`.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use lamina_layers::oci::registry::{self, Reference};
use lamina_layers::oci::{IngestOptions, ParsePlatformError, Platform};
use lamina_layers::store::{Image, Store, StoreError, check_name};

use super::progress::LayerBars;
use super::registry::RegistryArgs;
use super::{Context, Usage, in_one_line, out};
use crate::build::{self, BuildError, BuildResult, Options, Problem, Secret, Surroundings};
use crate::runtime::container::Interrupts;
use crate::runtime::rootless;
use crate::runtime::spec::Network;

/// Arguments of `lamina build`.
#[derive(Debug, Args)]
#[command(
    after_help = "Steps and the output of commands go to standard error; the image's digest goes to \
    standard output. A step that an earlier build did is not done again. Commands are run by crun or runc, \
    on a mount that nobody else sees."
)]
pub struct BuildArgs {
    /// Directory that COPY and ADD take files from
    #[arg(value_name = "CONTEXT", default_value = ".")]
    context: PathBuf,
    /// The Containerfile; '-' for standard input [default: Containerfile or Dockerfile in CONTEXT]
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Name for the image; may be given several times
    #[arg(short, long = "tag", value_name = "NAME")]
    tags: Vec<String>,
    /// Value for an ARG; without a value, that of the environment variable
    #[arg(long = "build-arg", value_name = "NAME[=VALUE]")]
    values: Vec<String>,
    /// Stage to build [default: the last]
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
    /// Do every step, also those that an earlier build did
    #[arg(long)]
    no_cache: bool,
    /// Label for the image
    #[arg(long = "label", value_name = "NAME=VALUE")]
    labels: Vec<String>,
    /// What to build for, as in linux/amd64 [default: this machine]
    #[arg(long, value_name = "OS/CPU[/VARIANT]", value_parser = parse_platform)]
    platform: Option<Platform>,
    /// The network that commands see
    #[arg(long, value_enum, default_value_t, value_name = "NETWORK")]
    network: Network,
    /// A file that RUN --mount=type=secret,id=ID may read
    #[arg(long = "secret", value_name = "id=ID,src=FILE")]
    secrets: Vec<String>,
    /// Say that the image was made then, in seconds since 1970, and let no new file be younger
    #[arg(long, value_name = "SECONDS", env = "SOURCE_DATE_EPOCH")]
    timestamp: Option<u64>,
    /// OCI runtime that runs commands: a path, or a name in PATH [default: crun, else runc]
    #[arg(long, value_name = "PROGRAM")]
    runtime: Option<String>,
    /// When to pull images that FROM and --from name; without a value, always
    #[arg(
        long,
        value_enum,
        value_name = "WHEN",
        default_value_t,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "always"
    )]
    pull: Pull,
    /// Write the image's digest into a file
    #[arg(long, value_name = "FILE")]
    iidfile: Option<PathBuf>,
    /// Say nothing but the image's digest; of a command that fails, its output
    #[arg(short, long)]
    quiet: bool,
    /// How progress is shown; there is one way
    #[arg(long, value_name = "HOW", value_parser = ["plain", "auto"], default_value = "auto", hide = true)]
    progress: String,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// When images are pulled, as buildah has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Pull {
    /// Those that are not in the store
    #[default]
    Missing,
    /// All; the build fails if one cannot be had
    #[value(alias = "true")]
    Always,
    /// All; what cannot be had is taken from the store
    Newer,
    /// None
    #[value(alias = "false")]
    Never,
}

/// Builds, and prints the image's digest.
pub fn run(context: &Context, args: &BuildArgs) -> anyhow::Result<()> {
    for name in &args.tags {
        check_name(name)?;
    }
    if !rootless::is_privileged() && !rootless::is_inside() {
        match rootless::start() {
            Ok(0) => return Ok(()),
            Ok(status) => std::process::exit(status),
            // Without commands it can be done all the same.
            Err(error) => tracing::warn!("commands (RUN) cannot be run: {error}"),
        }
    }
    let (file, name, text) = args.containerfile()?;
    let options = args.options(file.as_deref())?;
    let store = context.store()?;
    let interrupts = Interrupts::obey().context("cannot wait for signals")?;
    let mut output = args.output()?;
    let say = |text: &str| {
        if !args.quiet {
            // Who does not hear it still gets the image.
            let _ = writeln!(io::stderr(), "{text}");
        }
    };
    let find_image = |name: &str, platform: Option<&Platform>| {
        let bases = Bases {
            args,
            store: &store,
            say: &say,
        };
        bases.find(name, platform)
    };
    let download =
        |url: &str, into: &mut File| registry::download(url, &args.registry.options(), into);
    let around = Surroundings {
        store: &store,
        say: &say,
        output: &output,
        find_image: &find_image,
        download: &download,
        interrupts: &interrupts,
    };
    let image = match build::build(&text, &options, &around) {
        Ok(image) => image,
        Err(error) => {
            if args.quiet {
                output.rewind()?;
                io::copy(&mut output, &mut io::stderr())?;
            }
            bail!("{}", error.in_file(&name));
        }
    };
    let id = image.id.to_string();
    if let Some(path) = &args.iidfile {
        fs::write(path, &id).with_context(|| format!("cannot write {}", path.display()))?;
    }
    out::print(format!("{id}\n"))
}

/// Where the images come from that a build starts from.
struct Bases<'a> {
    args: &'a BuildArgs,
    store: &'a Store,
    say: &'a dyn Fn(&str),
}

impl Bases<'_> {
    /// An image of the store, or one that is pulled into it, as was asked for.
    fn find(&self, name: &str, platform: Option<&Platform>) -> BuildResult<Image> {
        let reference = name.parse::<Reference>().ok();
        let local = self.local(name, reference.as_ref())?;
        let fits =
            |image: &Image| platform.is_none_or(|wanted| wanted.takes(&build::platform_of(image)));
        let is_enough = match self.args.pull {
            Pull::Never => true,
            Pull::Missing => local.as_ref().is_some_and(fits),
            Pull::Always | Pull::Newer => false,
        };
        let missing = || BuildError::new(Problem::NoImage(name.to_owned()));
        // What podman names localhost/ is on no registry.
        let remote = reference.filter(|reference| reference.registry() != "localhost");
        let Some(reference) = remote.filter(|_| !is_enough) else {
            return local.ok_or_else(missing);
        };
        match (self.pull(&reference, platform), local) {
            (Ok(image), _) => Ok(image),
            (Err(error), Some(local)) if self.args.pull == Pull::Newer => {
                let reason = in_one_line(&error);
                (self.say)(&format!("taking {name} as it is in the store: {reason}"));
                Ok(local)
            }
            // That the one in the store is for other machines is the better message.
            (Err(_), Some(local)) if self.args.pull == Pull::Missing => Ok(local),
            (Err(error), _) => Err(Problem::Pull {
                image: name.to_owned(),
                reason: in_one_line(&error),
            }
            .into()),
        }
    }

    /// By its name, without what docker leaves out of names, or by its digest.
    fn local(&self, name: &str, reference: Option<&Reference>) -> BuildResult<Option<Image>> {
        let names = match reference.and_then(Reference::digest) {
            Some(digest) => [Some(digest.to_string()), None],
            None => [Some(name.to_owned()), reference.and_then(Reference::name)],
        };
        for name in names.into_iter().flatten() {
            match self.store.resolve(&name) {
                Err(StoreError::NotFound(_)) => {}
                result => return Ok(Some(result?)),
            }
        }
        Ok(None)
    }

    fn pull(&self, reference: &Reference, platform: Option<&Platform>) -> anyhow::Result<Image> {
        (self.say)(&format!("pulling {reference}"));
        let bars = LayerBars::new(self.args.quiet);
        let options = IngestOptions {
            progress: &bars,
            ..IngestOptions::default()
        };
        let name = reference.name();
        let registry = &self.args.registry;
        let pulled = registry.pull(self.store, reference, platform, name.as_deref(), &options)?;
        Ok(pulled.image)
    }
}

impl BuildArgs {
    /// The Containerfile's path unless it is standard input, its name for messages, and its text.
    fn containerfile(&self) -> anyhow::Result<(Option<PathBuf>, String, String)> {
        let path =
            match &self.file {
                Some(file) if file == Path::new("-") => {
                    let mut text = String::new();
                    io::stdin()
                        .read_to_string(&mut text)
                        .context("cannot read standard input")?;
                    return Ok((None, "standard input".to_owned(), text));
                }
                Some(file) => file.clone(),
                None => {
                    let places =
                        ["Containerfile", "Dockerfile"].map(|name| self.context.join(name));
                    places.iter().find(|path| path.exists()).cloned().with_context(|| {
                    format!(
                        "there is no Containerfile or Dockerfile in {:?}: name one with --file",
                        self.context
                    )
                })?
                }
            };
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.display().to_string();
        Ok((Some(path), name, text))
    }

    fn options(&self, file: Option<&Path>) -> anyhow::Result<Options> {
        let pair = |text: &String, option: &str| match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err(Usage(format!("--{option} {text}: give NAME=VALUE"))),
        };
        let mut build_args = Vec::new();
        for text in &self.values {
            match text.split_once('=') {
                None => {
                    let value = std::env::var(text).ok();
                    build_args.extend(value.map(|value| (text.clone(), value)));
                }
                Some(_) => build_args.push(pair(text, "build-arg")?),
            }
        }
        let labels = self.labels.iter().map(|text| pair(text, "label"));
        let secrets = self.secrets.iter().map(|text| parse_secret(text));
        let context = build::Context::open(&self.context, file)
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        Ok(Options {
            context: Some(context),
            build_args,
            target: self.target.clone(),
            no_cache: self.no_cache,
            labels: labels.collect::<Result<_, _>>()?,
            platform: self.platform.clone(),
            network: self.network,
            secrets: secrets.collect::<Result<_, _>>()?,
            epoch: self.timestamp,
            runtime: self.runtime.clone(),
            tags: self.tags.clone(),
        })
    }

    /// Where the output of commands goes.
    fn output(&self) -> anyhow::Result<File> {
        if self.quiet {
            return tempfile::tempfile().context("cannot make a temporary file");
        }
        Ok(io::stderr().as_fd().try_clone_to_owned()?.into())
    }
}

fn parse_platform(text: &str) -> Result<Platform, String> {
    let platform: Platform = text
        .parse()
        .map_err(|error: ParsePlatformError| error.to_string())?;
    match platform.os.as_str() {
        "linux" => Ok(platform),
        other => Err(format!(
            "images for {other} cannot be built here, only for linux"
        )),
    }
}

fn parse_secret(text: &str) -> Result<Secret, Usage> {
    let (mut id, mut file) = (None, None);
    for word in text.split(',') {
        match word.split_once('=') {
            Some(("id", value)) => id = Some(value.to_owned()),
            Some(("src" | "source", value)) => file = Some(PathBuf::from(value)),
            Some(("type", "file")) => {}
            _ => return Err(Usage(format!("--secret {text}: give id=ID,src=FILE"))),
        }
    }
    match (id, file) {
        (Some(id), Some(file)) => Ok(Secret { id, file }),
        _ => Err(Usage(format!("--secret {text}: give id=ID,src=FILE"))),
    }
}
