//! `leap-image build`

use std::path::PathBuf;

use edge::exit::Failure;
use edge::out;
use model::ReleaseVersion;
use serde::Serialize;

use super::{CacheArgs, RecipeArgs, lock};
use crate::build::{self, Order};
use crate::report::{Done, Report};
use crate::signing::set::SecureBoot;
use crate::sizes::{self, Sizes};

/// Build a release from a recipe and its lock
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    cache: CacheArgs,
    /// The lock file; beside the recipe with the suffix .lock when not given
    #[arg(long, value_name = "FILE")]
    lock: Option<PathBuf>,
    /// Folder of our own programs; that of leap-image when not given
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Folder for releases: the release goes to DIR/VERSION
    #[arg(long, value_name = "DIR", default_value = "releases")]
    out: PathBuf,
    /// Private key of the targets role, which signs the manifest
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Trust root to put into the images
    #[arg(long, value_name = "FILE")]
    trust_root: PathBuf,
    /// Folder of Secure Boot keys: its db signs what the firmware starts
    #[arg(long, value_name = "DIR")]
    secure_boot: Option<PathBuf>,
    /// Key of db, when it is not in the folder: a file, or pkcs11:… for one on a token
    ///
    /// pkcs11:token=NAME;object=NAME?module-path=FILE&pin-source=file:FILE, as in RFC 7512.
    /// Without module-path LEAP_PKCS11_MODULE names the module, without pin-source
    /// LEAP_PKCS11_PIN holds the PIN.
    #[arg(long, value_name = "FILE|URI", requires = "secure_boot")]
    secure_boot_key: Option<String>,
    /// Version, instead of the recipe's
    #[arg(long)]
    version: Option<ReleaseVersion>,
    /// Cargo.lock of our own programs, to list their crates in the bills of materials
    #[arg(long, value_name = "FILE")]
    cargo_lock: Option<PathBuf>,
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

/// Rows of the table of sizes: enough to see what is large, or what grew.
const ROWS: usize = 12;

#[derive(Debug, Serialize)]
struct Answer {
    release: ReleaseVersion,
    folder: PathBuf,
    root_hash: model::Digest,
    sizes: std::collections::BTreeMap<String, u64>,
    steps: Vec<Done>,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let recipe = self.recipe.load()?;
        let place = lock::place(&self.recipe.recipe, self.lock.as_deref());
        let lock = lock::fitting(&place, &recipe)?;
        let signer = super::read_key(&self.key)?;
        let db_key = super::key_place(self.secure_boot_key.as_deref())?;
        let secure_boot = self.secure_boot.as_ref();
        let secure_boot = secure_boot.map(|folder| SecureBoot::open(folder, db_key.as_ref()));
        let secure_boot = secure_boot.transpose()?;
        let mirrors = self.cache.mirrors()?;
        let cache = self.cache.open()?;
        let binaries = match self.bin_dir {
            Some(folder) => folder,
            None => super::own_folder()?,
        };
        let report = Report::new();
        let order = Order {
            recipe: &recipe,
            lock: &lock,
            version: self.version,
            binaries: &binaries,
            out: &self.out,
            trust_root: &self.trust_root,
            signer: &signer,
            secure_boot: secure_boot.as_ref(),
            mirrors: &mirrors,
            level: self.level,
            cargo_lock: self.cargo_lock.as_deref(),
        };
        if self.dry_run {
            for (planned, cached) in build::plan_only(&order, &cache)? {
                let what = if cached { "cached" } else { "would run" };
                out::line(format_args!("{:22} {what}", planned.step.to_string()));
            }
            return Ok(());
        }
        let built = build::build(&order, &cache, &report)?;
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
        let before = sizes::newest_before(&self.out, built.manifest.version);
        if let Some((version, _)) = &before {
            out::line(format_args!("sizes, against release {version}"));
        }
        let against = before.as_ref().map(|(_, sizes)| sizes);
        let table = Sizes::read(&built.folder)?.render(against, ROWS);
        out::line(table.trim_end());
        out::line(format_args!(
            "release {} in {}",
            built.manifest.version,
            built.folder.display()
        ));
        Ok(())
    }
}
