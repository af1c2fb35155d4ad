//! `leap-image layer`

use std::path::PathBuf;

use anyhow::Context as _;
use edge::exit::Failure;
use edge::{durable, out};
use model::CustomerName;
use model::release::{Artifact, CustomerLayer};

use super::CacheArgs;
use crate::build;
use crate::release::readable;
use crate::report::Report;
use crate::steps::extension;
use crate::steps::unpack::digest_file;

/// Make a customer's signed configuration layer
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The customer
    #[arg(long)]
    customer: CustomerName,
    /// Folder whose files appear below /etc on the customer's units
    #[arg(long, value_name = "DIR")]
    files: PathBuf,
    /// Folder for layer.raw and layer.json
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The recipe of the releases that the layer is for
    #[arg(long, value_name = "FILE")]
    recipe: PathBuf,
    #[command(flatten)]
    cache: CacheArgs,
    /// Private key of the configuration role, which signs the layer
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Number of the layer; rises with every change
    #[arg(long, default_value_t = 1)]
    version: u64,
    /// A component that is active on the customer's units; may be repeated.
    /// Without any, all of a release are
    #[arg(long = "component", value_name = "NAME")]
    components: Vec<String>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let recipe = super::load_recipe(&self.recipe)?;
        let signer = super::read_key(&self.key)?;
        let mirrors = self.cache.mirrors()?;
        let cache = self.cache.open()?;
        let report = Report::new();
        let tools = build::tools(&recipe, &mirrors, &cache, &report)?;
        let work = cache.work()?;
        extension::layer(
            &self.files,
            &recipe.name,
            recipe.source_date,
            &tools,
            work.path(),
        )?;
        let made = work.path().join("layer.raw");
        let bytes = std::fs::read(&made).context("read the layer")?;
        let layer = CustomerLayer {
            customer: self.customer,
            version: self.version,
            components: (!self.components.is_empty()).then_some(self.components),
            image: Artifact {
                path: "layer.raw".to_owned(),
                size: bytes.len() as u64,
                sha256: digest_file(&made)?,
            },
        };
        durable::write(&self.out.join("layer.raw"), &bytes, durable::Mode::Public)?;
        durable::write_json(
            &self.out.join("layer.json"),
            &signer.sign(&layer),
            durable::Mode::Public,
        )?;
        if self.json {
            out::json(&layer);
        } else {
            out::line(format_args!(
                "layer {} of {} in {} ({})",
                layer.version,
                layer.customer,
                self.out.display(),
                readable(layer.image.size)
            ));
        }
        Ok(())
    }
}
