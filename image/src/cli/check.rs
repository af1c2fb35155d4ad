//! `leap-image check`

use edge::exit::{Failure, Kind};
use edge::out;

use super::{CacheArgs, RecipeArgs};
use crate::build;
use crate::recipe::Recipe;
use crate::report::Report;
use crate::steps::packages::Indexes;

/// Check a recipe and all that it extends
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Also check that its packages exist and fit together
    #[arg(long)]
    packages: bool,
    #[command(flatten)]
    cache: CacheArgs,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let recipe = self.recipe.load()?;
        let file = self.recipe.recipe.display();
        check_paths(&recipe).map_err(|problem| {
            Failure::new(Kind::InvalidInput, anyhow::anyhow!("{file}: {problem}"))
        })?;
        let resolved = if self.packages {
            let (cache, mirrors) = (self.cache.open()?, self.cache.mirrors()?);
            let report = Report::new();
            let lock = build::resolve(&recipe, &mirrors, Indexes::Cached, &cache, &report)?;
            format!(" ({} with all they need)", lock.packages.len())
        } else {
            String::new()
        };
        let version = recipe
            .version
            .map_or_else(|| "without a version".to_owned(), |v| v.to_string());
        let components: Vec<&str> = recipe.components.keys().map(String::as_str).collect();
        out::line(format_args!(
            "{file}: {} {version}, {}, {}, {} packages named{resolved}, components: {}",
            recipe.name,
            recipe.suite,
            recipe.architecture,
            recipe.packages.install.len(),
            components.join(", ")
        ));
        Ok(())
    }
}

/// Checks that the folders and programs beside the recipe are there.
fn check_paths(recipe: &Recipe) -> Result<(), String> {
    let overlays = recipe
        .root
        .overlays
        .iter()
        .chain(&recipe.initrd.overlays)
        .chain(&recipe.installer.overlays)
        .chain(recipe.components.values().flat_map(|c| &c.overlays));
    for overlay in overlays {
        if !overlay.is_dir() {
            return Err(format!("overlay {}: no such folder", overlay.display()));
        }
    }
    for hook in &recipe.hooks {
        for path in hook.inputs.iter().chain([&hook.run]) {
            if !path.exists() {
                let name = &hook.name;
                return Err(format!("hook {name}: {}: no such file", path.display()));
            }
        }
    }
    Ok(())
}
