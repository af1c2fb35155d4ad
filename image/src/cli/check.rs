//! `leap-image check`

use std::path::PathBuf;

use edge::exit::Failure;
use edge::out;

/// Check a recipe and all that it extends
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The recipe
    recipe: PathBuf,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let recipe = super::load_recipe(&self.recipe)?;
        let overlays = recipe
            .root
            .overlays
            .iter()
            .chain(&recipe.initrd.overlays)
            .chain(&recipe.installer.overlays)
            .chain(recipe.components.values().flat_map(|c| &c.overlays));
        for overlay in overlays {
            if !overlay.is_dir() {
                return Err(Failure::new(
                    edge::exit::Kind::InvalidInput,
                    anyhow::anyhow!(
                        "{}: overlay {}: no such folder",
                        self.recipe.display(),
                        overlay.display()
                    ),
                ));
            }
        }
        let version = recipe
            .version
            .map_or_else(|| "without a version".to_owned(), |v| v.to_string());
        out::line(format_args!(
            "{}: {} {version}, {}, {}, {} packages named, components: {}",
            self.recipe.display(),
            recipe.name,
            recipe.suite,
            recipe.architecture,
            recipe.packages.install.len(),
            recipe
                .components
                .keys()
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join(", ")
        ));
        Ok(())
    }
}
