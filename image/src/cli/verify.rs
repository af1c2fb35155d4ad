//! `leap-image verify`

use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use edge::exit::{self, Failure, Kind};
use edge::{clock, out};
use model::Signer;
use model::release::ReleaseManifest;
use serde::Serialize;

use super::CacheArgs;
use crate::build::{self, Order};
use crate::compare::{self, Difference};
use crate::lock::Lock;
use crate::release::{self, BuildRecord, MANIFEST};
use crate::report::Report;
use crate::signing::set::SecureBoot;

/// Build a release again and compare it with the one that is there, byte for byte
///
/// Nothing but downloaded packages is taken from the cache. A difference is named with
/// the file inside the image and the step that made it, and ends with exit code 1.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The release's folder
    release: PathBuf,
    /// The recipe that it was built from
    recipe: PathBuf,
    /// Trust root: the release must be signed by its keys, and it is in the images
    #[arg(long, value_name = "FILE")]
    trust_root: PathBuf,
    #[command(flatten)]
    cache: CacheArgs,
    /// Folder of our own programs; that of leap-image when not given
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Folder of Secure Boot keys, for a release that was signed with them
    #[arg(long, value_name = "DIR")]
    secure_boot: Option<PathBuf>,
    /// Key of db, when it is not in the folder: a file, or pkcs11:… for one on a token
    #[arg(long, value_name = "FILE|URI", requires = "secure_boot")]
    secure_boot_key: Option<String>,
    /// Cargo.lock of our own programs, when the release was built with it
    #[arg(long, value_name = "FILE")]
    cargo_lock: Option<PathBuf>,
    /// Keep the second release in this folder
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Answer {
    release: model::ReleaseVersion,
    same: bool,
    differences: Vec<Difference>,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let trust = super::read_trust_root(&self.trust_root)?;
        let signed = release::read_signed::<ReleaseManifest>(&self.release.join(MANIFEST))?;
        let manifest = trust
            .verify(&signed, clock::now())
            .map_err(|error| Failure::new(Kind::Refused, error))?
            .into_inner();
        let invalid = |problem: String| {
            let problem = format!("{}: {problem}", self.release.display());
            Failure::new(Kind::InvalidInput, anyhow!(problem))
        };
        let record = BuildRecord::read(&self.release)?
            .ok_or_else(|| invalid(format!("has no {}", release::BUILD)))?;
        let text = std::fs::read_to_string(self.release.join("lock.json"))
            .map_err(|error| invalid(format!("lock.json: {error}")))?;
        let lock = Lock::parse(&text).map_err(|error| invalid(format!("lock.json: {error}")))?;
        let recipe = super::load_profiles(&self.recipe, &record.profiles)?;
        lock.fits(&recipe)
            .map_err(|error| invalid(format!("lock.json: {error}")))?;

        let (cache, mirrors) = (self.cache.open()?, self.cache.mirrors()?);
        let binaries = match &self.bin_dir {
            Some(folder) => folder.clone(),
            None => super::own_folder()?,
        };
        let db_key = super::key_place(self.secure_boot_key.as_deref())?;
        let secure_boot = self.secure_boot.as_ref();
        let secure_boot = secure_boot.map(|folder| SecureBoot::open(folder, db_key.as_ref()));
        let secure_boot = secure_boot.transpose()?;
        let (empty, work) = cache.empty()?;
        let place = self.keep.clone().unwrap_or_else(|| work.path().join("out"));
        // The signature was verified above; what is compared is what it stands for.
        let signer = Signer::from_seed(&[0; 32]);
        let order = Order {
            recipe: &recipe,
            lock: &lock,
            version: Some(manifest.version),
            binaries: &binaries,
            out: &place,
            trust_root: &self.trust_root,
            signer: &signer,
            secure_boot: secure_boot.as_ref(),
            mirrors: &mirrors,
            level: record.level,
            cargo_lock: self.cargo_lock.as_deref(),
        };
        same_inputs(&record, &build::record_of(&order)?)?;
        let report = Report::new();
        let built = build::build(&order, &empty, &report)?;
        let differences =
            compare::compare(&self.release, &built.folder).context("compare the two releases")?;
        let same = differences.is_empty();
        if self.json {
            out::json(&Answer {
                release: manifest.version,
                same,
                differences,
            });
        } else {
            for difference in &differences {
                out::line(difference);
            }
            if same {
                out::line(format_args!(
                    "release {} built again is the same, byte for byte",
                    manifest.version
                ));
            }
        }
        if same {
            return Ok(());
        }
        Err(Failure::new(
            Kind::Failed,
            anyhow!(
                "release {}: built again it is another one",
                manifest.version
            ),
        ))
    }
}

/// Other inputs give another release, and comparing it would tell nothing.
fn same_inputs(there: &BuildRecord, here: &BuildRecord) -> Result<(), Failure> {
    let differences = there.differences(here);
    if differences.is_empty() {
        return Ok(());
    }
    let problem = format!(
        "not what the release was built from: {}",
        differences.join(", ")
    );
    Err(Failure::new(
        Kind::InvalidInput,
        exit::hint(
            exit::marked(Kind::InvalidInput, problem),
            "check out the sources that it was built from, and build the workspace from them",
        ),
    ))
}
