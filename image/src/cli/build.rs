//! `leap-image build`

use std::path::PathBuf;

use edge::exit::Failure;
use edge::out;
use model::ReleaseVersion;
use serde::Serialize;

use crate::build::{self, Order};
use crate::cache::Cache;
use crate::release::readable;
use crate::report::{Done, Report};
use crate::sources::Mirrors;
use crate::steps::packages::{Indexes, host_mirrors};

/// Build a release from a recipe
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The recipe
    recipe: PathBuf,
    /// Folder of our own programs
    #[arg(long, value_name = "DIR")]
    bin_dir: PathBuf,
    /// Folder for releases: the release goes to DIR/VERSION
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Folder for downloaded packages and finished steps
    #[arg(long, value_name = "DIR")]
    cache: PathBuf,
    /// Private key of the targets role, which signs the manifest
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Trust root to put into the images
    #[arg(long, value_name = "FILE")]
    trust_root: PathBuf,
    /// Version, instead of the recipe's
    #[arg(long)]
    version: Option<ReleaseVersion>,
    /// Debian mirror, instead of those of this machine's apt
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
    /// Ask the mirrors for new package versions
    #[arg(long)]
    refresh: bool,
    /// Compression level of the images, 1 to 19
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(i32).range(1..=19))]
    level: i32,
    /// Print the steps and whether they would run, and build nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Answer<'a> {
    release: ReleaseVersion,
    folder: PathBuf,
    root_hash: model::Digest,
    sizes: std::collections::BTreeMap<String, u64>,
    steps: &'a [Done],
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let recipe = super::load_recipe(&self.recipe)?;
        let signer = super::read_key(&self.key)?;
        let mirrors = match &self.mirror {
            Some(address) => Mirrors::from_address(address),
            None => host_mirrors()?,
        };
        let cache = Cache::open(&self.cache)?;
        let mut report = Report::new();
        let order = Order {
            recipe: &recipe,
            version: self.version,
            binaries: &self.bin_dir,
            out: &self.out,
            trust_root: &self.trust_root,
            signer: &signer,
            mirrors: &mirrors,
            indexes: if self.refresh {
                Indexes::Fresh
            } else {
                Indexes::Cached
            },
            level: self.level,
        };
        if self.dry_run {
            for (planned, cached) in build::plan_only(&order, &cache, &mut report)? {
                let what = if cached { "cached" } else { "would run" };
                out::line(format_args!("{:22} {what}", planned.step.to_string()));
            }
            return Ok(());
        }
        let built = build::build(&order, &cache, &mut report)?;
        let sizes = build::sizes(&built.manifest);
        if self.json {
            out::json(&Answer {
                release: built.manifest.version,
                folder: built.folder,
                root_hash: built.manifest.root_hash,
                sizes,
                steps: report.steps(),
            });
            return Ok(());
        }
        let sizes: Vec<String> = sizes
            .iter()
            .map(|(output, size)| format!("{output} {}", readable(*size)))
            .collect();
        out::line(format_args!(
            "release {} in {} ({})",
            built.manifest.version,
            built.folder.display(),
            sizes.join(", ")
        ));
        Ok(())
    }
}
