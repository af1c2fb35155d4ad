//! `leap-image component`

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use edge::exit::{Failure, Kind};
use edge::{clock, out};
use model::Signed;
use model::release::ReleaseManifest;
use serde::Serialize;

use super::CacheArgs;
use crate::build;
use crate::release::{self, MANIFEST, readable};
use crate::report::{Origin, Report};
use crate::revision::{self, Order};

/// Make a revision of a release: other components, the rest byte for byte
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The folder of the release, or of its last revision
    release: PathBuf,
    /// A component of the recipe to make anew or to add; may be repeated
    #[arg(long = "name", value_name = "NAME")]
    names: Vec<String>,
    /// A component to leave out; may be repeated
    #[arg(long = "remove", value_name = "NAME")]
    removed: Vec<String>,
    /// Number of the revision, instead of the next one
    #[arg(long, value_name = "N")]
    revision: Option<u32>,
    /// The recipe of the new components
    #[arg(long, value_name = "FILE")]
    recipe: PathBuf,
    /// Folder of our own programs; that of leap-image when not given
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Folder for releases: the revision goes to DIR/VERSION-rN
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    cache: CacheArgs,
    /// Private key of the targets role, which signs the manifest
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Trust root: the release must be signed by its keys
    #[arg(long, value_name = "FILE")]
    trust_root: PathBuf,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Answer<'a> {
    folder: PathBuf,
    manifest: &'a ReleaseManifest,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        if self.names.is_empty() && self.removed.is_empty() {
            let problem = anyhow!("no component is named: expected --name or --remove");
            return Err(Failure::new(Kind::Usage, problem));
        }
        let recipe = super::load_recipe(&self.recipe)?;
        let signer = super::read_key(&self.key)?;
        let trust = super::read_trust_root(&self.trust_root)?;
        let path = self.release.join(MANIFEST);
        let signed: Signed<ReleaseManifest> = release::read_signed(&path)?;
        let base = trust
            .verify(&signed, clock::now())
            .with_context(|| path.display().to_string())
            .map_err(|error| Failure::new(Kind::Refused, error))?;
        let mirrors = self.cache.mirrors()?;
        let cache = self.cache.open()?;
        let report = Report::new();
        let tools = build::tools(&recipe, &mirrors, &cache, &report)?;
        let work = cache.work()?;
        let binaries = match self.bin_dir {
            Some(folder) => folder,
            None => super::own_folder()?,
        };
        let removed: BTreeSet<String> = self.removed.into_iter().collect();
        let order = Order {
            base: &self.release,
            manifest: &base,
            revision: self.revision,
            recipe: &recipe,
            names: &self.names,
            removed: &removed,
            binaries: &binaries,
            packages: &cache.packages(),
            out: &self.out,
            signer: &signer,
        };
        let built = report.step("revision", |_| {
            Ok((revision::build(&order, &tools, work.path())?, Origin::Made))
        })?;
        let manifest = &built.manifest;
        if self.json {
            out::json(&Answer {
                folder: built.folder.clone(),
                manifest,
            });
            return Ok(());
        }
        let new: Vec<String> = manifest
            .components
            .iter()
            .filter(|component| !base.components.contains(component))
            .map(|component| {
                let (name, version) = (&component.name, &component.version);
                format!("{name} {version} ({})", readable(component.image.size))
            })
            .collect();
        out::line(format_args!(
            "release {} revision {} in {}: {}",
            manifest.version,
            manifest.revision,
            built.folder.display(),
            match new.is_empty() {
                true => "components removed".to_owned(),
                false => new.join(", "),
            }
        ));
        Ok(())
    }
}
