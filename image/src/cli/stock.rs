//! What `compose` and `serve` have in common: a release laid ready.

use std::path::PathBuf;

use edge::exit::{Failure, Kind, marked};
use edge::progress::Bar;
use edge::runner::Tool;
use model::TrustRoot;
use slots::layout::{LayoutError, MIN_DISK_SIZE};
use slots::stock::{Places, Stock, USUAL_SIZE};

use super::CacheArgs;
use crate::build;
use crate::disk;
use crate::recipe::parse_size;
use crate::report::Report;

/// The release, and what is needed to compose disks of it
#[derive(Debug, clap::Args)]
pub(super) struct StockArgs {
    /// The release's folder
    pub(super) release: PathBuf,
    /// Trust root: release and layers must be signed by its keys
    #[arg(long, value_name = "FILE")]
    pub(super) trust_root: PathBuf,
    /// The recipe of the release, whose tools format the data partition; without it, the
    /// mke2fs of this machine does
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    #[command(flatten)]
    cache: CacheArgs,
    /// Size of the disk
    #[arg(long, value_parser = size, default_value_t = Size(USUAL_SIZE))]
    pub(super) size: Size,
}

/// A size of a disk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size(pub(super) u64);

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let gib = 1 << 30;
        if self.0.is_multiple_of(gib) {
            write!(f, "{}G", self.0 / gib)
        } else {
            write!(f, "{}", self.0)
        }
    }
}

fn size(text: &str) -> Result<Size, String> {
    let bytes = parse_size(text).ok_or_else(|| "expected a size like 16G".to_owned())?;
    if !bytes.is_multiple_of(512) {
        return Err("expected whole sectors of 512 bytes".to_owned());
    }
    Ok(Size(bytes))
}

impl StockArgs {
    /// Reads the trust root.
    pub(super) fn trust(&self) -> Result<TrustRoot, Failure> {
        super::read_trust_root(&self.trust_root)
    }

    /// Lays the release ready, with progress.
    pub(super) fn open(&self, trust: &TrustRoot) -> Result<Stock, Failure> {
        let Size(size) = self.size;
        if size < MIN_DISK_SIZE {
            let small = LayoutError::TooSmall { size };
            let error = edge::exit::hint(marked(Kind::InvalidInput, small), "name a larger --size");
            return Err(error.into());
        }
        let (manifest, bytes) = disk::manifest(trust, &self.release)?;
        let recipe = match &self.recipe {
            Some(path) => Some(super::load_recipe(path)?),
            None => None,
        };
        let cache = self.cache.open()?;
        let mke2fs = || match &recipe {
            Some(recipe) => {
                let mirrors = self.cache.mirrors()?;
                build::tools(recipe, &mirrors, &cache, &Report::new())?.tool("mke2fs")
            }
            None => Ok(Tool::new("mke2fs")),
        };
        let places = Places {
            release: &self.release,
            kept: &cache.disks(),
            mke2fs: &mke2fs,
            maker: if recipe.is_some() { "recipe" } else { "host" },
            time: recipe.as_ref().map_or(0, |recipe| recipe.source_date),
        };
        let bar = Bar::bytes("unpack", 1);
        let stock = Stock::open(manifest, bytes, size, &places, &mut |what, done, total| {
            bar.label(what);
            bar.total(total);
            bar.set(done);
        });
        bar.finish();
        stock.map_err(disk::classify)
    }
}
