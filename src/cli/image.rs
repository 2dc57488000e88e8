//! `lamina image`.

use clap::Subcommand;
use lamina_layers::store::Image;

use super::{Context, export, import};

mod df;
mod history;
mod inspect;
mod ls;
mod names;
mod verify;

/// Commands for images.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Take images from an OCI layout, or from an archive of one or by 'docker save'
    Import(import::ImportArgs),
    /// Write images as an OCI layout, an archive of one, or an archive for 'docker load'
    Export(export::ExportArgs),
    /// List images
    Ls(ls::LsArgs),
    /// Show images: their digests, names, layers, configuration and where they came from, as JSON
    Inspect(inspect::InspectArgs),
    /// Show how an image was made, the newest step first
    History(history::HistoryArgs),
    /// Give an image further names
    Tag(names::TagArgs),
    /// Take names from images, which stay
    Untag(names::UntagArgs),
    /// Remove a name of an image; the image goes with its last name
    Rm(names::RmArgs),
    /// Show what images take on the disk, alone and shared with each other
    Df(df::DfArgs),
    /// Check images from their manifests down to the contents of their files
    Verify(verify::VerifyArgs),
}

/// Runs one.
pub fn run(context: &Context, command: ImageCommand) -> anyhow::Result<()> {
    match command {
        ImageCommand::Import(args) => import::run(context, &args),
        ImageCommand::Export(args) => export::images(context, &args),
        ImageCommand::Ls(args) => ls::run(context, &args),
        ImageCommand::Inspect(args) => inspect::run(context, &args),
        ImageCommand::History(args) => history::run(context, &args),
        ImageCommand::Tag(args) => names::tag(context, &args),
        ImageCommand::Untag(args) => names::untag(context, &args),
        ImageCommand::Rm(args) => names::remove(context, &args),
        ImageCommand::Df(args) => df::run(context, &args),
        ImageCommand::Verify(args) => verify::run(context, &args),
    }
}

/// Does something to each of several things, also if it fails with one of them; all failures are
/// told.
fn each<'a>(
    things: impl IntoIterator<Item = &'a String>,
    mut act: impl FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut failed = None;
    for thing in things {
        if let Err(error) = act(thing)
            && let Some(earlier) = failed.replace(error)
        {
            super::complain(&earlier);
        }
    }
    failed.map_or(Ok(()), Err)
}

/// A name in its parts: `debian` is `debian` and `latest`.
fn parts(name: &str) -> (&str, &str) {
    match name.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, tag),
        _ => (name, "latest"),
    }
}

/// The names of an image with their tags.
fn tagged(image: &Image) -> Vec<String> {
    let names = image.names.iter();
    names
        .map(|name| {
            let (path, tag) = parts(name);
            format!("{path}:{tag}")
        })
        .collect()
}

/// When an image or a layer was made, for people.
fn when(created: Option<&str>) -> String {
    let Some(created) = created else {
        return "-".to_owned();
    };
    let parsed = humantime::parse_rfc3339(created).ok();
    let since = parsed.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    // As it stands there if it is in no form that is known.
    since.map_or_else(
        || created.to_owned(),
        |since| format!("{} ago", super::table::ago(since.as_secs())),
    )
}

/// The first 12 digits of a digest, as docker shows them.
pub fn short(digest: &str) -> String {
    digest
        .trim_start_matches("sha256:")
        .chars()
        .take(12)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_tags() {
        for (name, expected) in [
            ("debian", ("debian", "latest")),
            ("debian:12", ("debian", "12")),
            ("host:5000/a/b", ("host:5000/a/b", "latest")),
            ("host:5000/a/b:c", ("host:5000/a/b", "c")),
        ] {
            assert_eq!(parts(name), expected);
        }
    }

    #[test]
    fn times_for_people() {
        assert_eq!(when(None), "-");
        assert_eq!(when(Some("yesterday")), "yesterday");
        assert!(when(Some("2020-01-02T03:04:05.678901234Z")).ends_with(" d ago"));
    }
}
