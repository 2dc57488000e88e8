//! `lamina rm`.

use clap::Args;

use super::{Context, named};

/// Arguments of `lamina rm`.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// Names of mounts that are not mounted ('lamina ps --all' lists them)
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// Throws away the changes that the store keeps under names.
pub fn run(context: &Context, args: &RmArgs) -> anyhow::Result<()> {
    let store = context.store()?;
    args.names
        .iter()
        .try_for_each(|name| named::remove(&store, name))
}
