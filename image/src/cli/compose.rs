//! `leap-image compose`

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use edge::exit::{Failure, Kind};
use edge::progress::Bar;
use edge::{clock, out};
use model::release::{CustomerLayer, ReleaseManifest};
use model::{Digest, Signed, TrustRoot, Verified};
use slots::compose::{self, Folders, Layer, Release};
use slots::{Disk, Layout, Part};

use crate::build;
use crate::cache::Cache;
use crate::recipe::parse_size;
use crate::release::{MANIFEST, readable};
use crate::report::Report;
use crate::sources::Mirrors;
use crate::steps::packages::host_mirrors;
use crate::steps::verity;
use crate::tools::Tools;

/// Compose a bootable disk image from a release and a customer's layer
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The release's folder
    release: PathBuf,
    /// The customer layer's folder
    #[arg(long, value_name = "DIR")]
    layer: PathBuf,
    /// Trust root: release and layer must be signed by its keys
    #[arg(long, value_name = "FILE")]
    trust_root: PathBuf,
    /// The recipe of the release, for the tools that format the data partition
    #[arg(long, value_name = "FILE")]
    recipe: PathBuf,
    /// Folder for downloaded packages and finished steps
    #[arg(long, value_name = "DIR")]
    cache: PathBuf,
    /// Size of the disk, like 16G
    #[arg(long, value_parser = size)]
    size: u64,
    /// The disk image to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Debian mirror, instead of those of this machine's apt
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
}

fn size(text: &str) -> Result<u64, String> {
    parse_size(text).ok_or_else(|| "expected a size like 16G".to_owned())
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let recipe = super::load_recipe(&self.recipe)?;
        let trust = super::read_trust_root(&self.trust_root)?;
        let (manifest, manifest_bytes) =
            verified::<ReleaseManifest>(&trust, &self.release.join(MANIFEST))?;
        let (document, layer_bytes) =
            verified::<CustomerLayer>(&trust, &self.layer.join("layer.json"))?;
        let mirrors = match &self.mirror {
            Some(address) => Mirrors::from_address(address),
            None => host_mirrors()?,
        };
        let cache = Cache::open(&self.cache)?;
        let mut report = Report::new();
        let tools = build::tools(&recipe, &mirrors, &cache, &mut report)?;

        // Beside its place until it is complete: half a disk is never taken for one.
        let folder = match self.out.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let draft = tempfile::Builder::new()
            .prefix(".disk-")
            .tempfile_in(folder)
            .with_context(|| format!("make a file in {}", folder.display()))?;
        let mut disk = Disk::create(draft.path(), self.size)
            .with_context(|| format!("create {}", draft.path().display()))?;
        let bar = Bar::spinner("compose");
        // The same release, layer and size give the same disk.
        let seed = Digest::of(&[manifest_bytes.as_slice(), &layer_bytes].concat());
        let layout = compose::compose(
            &mut disk,
            &seed,
            Release {
                manifest: &manifest,
                bytes: &manifest_bytes,
            },
            Layer {
                document: &document,
                bytes: &layer_bytes,
            },
            &mut Folders {
                release: self.release.clone(),
                layer: self.layer.join(&document.image.path),
            },
        )
        .context("compose the disk")?;
        drop(disk);
        format_data(&tools, draft.path(), &layout, &seed, recipe.source_date)?;
        bar.finish();
        draft
            .persist(&self.out)
            .with_context(|| format!("write {}", self.out.display()))?;
        out::line(format_args!(
            "{}: release {} for {}, {}",
            self.out.display(),
            manifest.version,
            document.customer,
            readable(self.size)
        ));
        Ok(())
    }
}

fn verified<T: model::Document>(
    trust: &TrustRoot,
    path: &Path,
) -> Result<(Verified<T>, Vec<u8>), Failure> {
    let bytes = std::fs::read(path)
        .with_context(|| format!("read {}", path.display()))
        .map_err(|error| Failure::new(Kind::InvalidInput, error))?;
    let signed: Signed<T> = serde_json::from_slice(&bytes)
        .with_context(|| format!("{}: expected a signed document", path.display()))
        .map_err(|error| Failure::new(Kind::InvalidInput, error))?;
    let document = trust
        .verify(&signed, clock::now())
        .with_context(|| path.display().to_string())
        .map_err(|error| Failure::new(Kind::Refused, error))?;
    Ok((document, bytes))
}

/// Makes the file system of the data partition, as the installer does at birth.
fn format_data(
    tools: &Tools,
    disk: &Path,
    layout: &Layout,
    seed: &Digest,
    time: u32,
) -> anyhow::Result<()> {
    let data = layout.partition(Part::Data);
    let uuid = verity::uuid(&format!("{seed} data"));
    // mke2fs takes its defaults from a file of the host. Where there is none, it
    // takes those that it was built with, journal and all.
    tools
        .tool("mke2fs")?
        .args(["-q", "-F", "-t", "ext4", "-L", "data", "-m", "1"])
        .arg("-U")
        .arg(&uuid)
        .arg("-E")
        .arg(format!(
            "offset={},hash_seed={uuid},lazy_itable_init=1,lazy_journal_init=1,nodiscard",
            data.start
        ))
        .arg(disk)
        .arg(format!("{}k", data.size / 1024))
        .env("MKE2FS_CONFIG", "/nonexistent")
        .env("SOURCE_DATE_EPOCH", time.to_string())
        .env("E2FSPROGS_FAKE_TIME", time.to_string())
        .run()
        .context("format the data partition")
}
