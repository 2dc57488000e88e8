//! What the commands that talk to registries share.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use lamina_layers::digest::ImageId;
use lamina_layers::oci::registry::{Client, ClientOptions, Reference, Repository, credentials};
use lamina_layers::oci::{IngestOptions, Ingested, Platform};
use lamina_layers::store::{Source, Store};

/// How to talk to a registry.
#[derive(Debug, Args)]
pub struct RegistryArgs {
    /// Speak HTTP with the registry, without TLS: anybody in between can read and change everything.
    /// It is never done unasked
    #[arg(long, conflicts_with_all = ["insecure", "ca_file"])]
    plain_http: bool,
    /// Speak TLS with whoever answers, whatever its certificate
    #[arg(long)]
    insecure: bool,
    /// Certificates (PEM) to trust besides the system's; may be given again
    #[arg(long, value_name = "FILE")]
    ca_file: Vec<PathBuf>,
    /// How often to try again what fails for a reason that may pass: a broken connection, 5xx, 429
    #[arg(long, value_name = "TIMES", default_value_t = 4)]
    retry: u32,
    /// Seconds after which a connection on which nothing comes counts as broken
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    /// File of credentials to use instead of podman's and docker's [env: `REGISTRY_AUTH_FILE`]
    #[arg(long, value_name = "FILE")]
    pub authfile: Option<PathBuf>,
}

impl RegistryArgs {
    /// The options of a client.
    pub fn options(&self) -> ClientOptions {
        ClientOptions {
            plain_http: self.plain_http,
            insecure: self.insecure,
            ca_files: self.ca_file.clone(),
            retries: self.retry,
            silence: Duration::from_secs(self.timeout),
        }
    }

    /// A client for a repository, with the credentials that there are for it.
    pub fn client(&self, registry: &str, repository: &str) -> anyhow::Result<Client> {
        let credential = credentials::find(self.authfile.as_deref(), registry, repository)?;
        Ok(Client::new(registry, credential, &self.options())?)
    }

    /// Pulls an image, for this machine if no platform is said, and gives it a name if one is. Remembers
    /// where it came from.
    pub fn pull(
        &self,
        store: &Store,
        reference: &Reference,
        platform: Option<&Platform>,
        name: Option<&str>,
        options: &IngestOptions<'_>,
    ) -> anyhow::Result<Ingested> {
        let client = self.client(reference.registry(), reference.repository())?;
        let repository = Repository::new(&client, reference);
        let image = repository.image(reference, platform)?;
        let pulled = repository.pull(store, &image, name, options)?;
        let source = Source::Registry {
            reference: reference.to_string(),
            digest: Some(image.digest.to_string()),
        };
        store.set_source(&pulled.image.id, &source)?;
        Ok(pulled)
    }

    /// Fetches again what a store lacks of an image that it pulled.
    pub fn refetch(&self, store: &Store, id: &ImageId, reference: &str) -> anyhow::Result<()> {
        let reference: Reference = reference.parse()?;
        let client = self.client(reference.registry(), reference.repository())?;
        let options = IngestOptions::default();
        Repository::new(&client, &reference).refetch(store, id, &options)?;
        Ok(())
    }
}
