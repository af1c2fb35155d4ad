//! `leap-lab demo`: the whole life of a unit.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use edge::exit::Failure;

use super::{Options, in_laboratory};
use crate::lab::prerequisites;
use crate::lab::story::{Output, STEPS};
use crate::story::{self, Stage};

/// Where the story's material is.
#[derive(Debug, Clone, Args)]
pub(super) struct Material {
    /// Folder with the image recipes
    #[arg(long, default_value = "image/recipes", value_name = "FOLDER")]
    recipes: PathBuf,
    /// Folder for downloads and finished image steps, kept between runs
    #[arg(long, default_value = ".cache", value_name = "FOLDER")]
    cache_dir: PathBuf,
}

impl Material {
    pub(super) fn stage(&self, options: &Options) -> Stage {
        Stage {
            programs: options.bin_dir.clone(),
            recipes: self.recipes.clone(),
            build: options.build_dir.clone(),
            cache: self.cache_dir.clone(),
        }
    }
}

/// Show a unit's whole life: born, updated, killed and reborn
#[derive(Debug, Args)]
pub(super) struct Demo {
    #[command(flatten)]
    material: Material,
    /// Stop after this step
    #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(STEPS), value_name = "STEP")]
    until: Option<String>,
}

impl Demo {
    /// The story to its end.
    pub(super) fn whole(material: Material) -> Self {
        Self {
            material,
            until: None,
        }
    }

    pub(super) async fn run(self, options: &Options) -> Result<ExitCode, Failure> {
        let place = options.place(false);
        if !crate::lab::isolation::is_inside() {
            super::check_host::prepare().await?;
            // Fetched outside, where the host's network is.
            prerequisites::sshd(&place.build.join("cache")).await?;
        }
        in_laboratory(&place, async |inside| {
            let stage = self.material.stage(options);
            let last = self.until.as_deref();
            let (report, world) = story::tell(&inside, &stage, Output::detect(), last).await?;
            drop(world);
            Ok(if report.ok {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            })
        })
        .await
    }
}
