//! `leap-image fetch`

use std::path::PathBuf;

use edge::exit::Failure;
use edge::out;
use serde::Serialize;

use super::{CacheArgs, RecipeArgs, lock};
use crate::build;
use crate::report::Report;
use crate::steps::unpack;

/// Fetch the locked packages into the cache and check all of them
///
/// After this a build needs no network.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    cache: CacheArgs,
    /// The lock file; beside the recipe with the suffix .lock when not given
    #[arg(long, value_name = "FILE")]
    lock: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Answer {
    packages: usize,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let recipe = self.recipe.load()?;
        let place = lock::place(&self.recipe.recipe, self.lock.as_deref());
        let lock = lock::fitting(&place, &recipe)?;
        let (cache, mirrors) = (self.cache.open()?, self.cache.mirrors()?);
        let report = Report::new();
        build::fetch(&recipe, &lock, &mirrors, &cache, &report)?;
        for package in &lock.packages {
            unpack::checked(&cache.packages(), package)?;
        }
        let packages = lock.packages.len();
        if self.json {
            out::json(&Answer { packages });
        } else {
            out::line(format_args!(
                "{packages} packages are in the cache, as locked"
            ));
        }
        Ok(())
    }
}
