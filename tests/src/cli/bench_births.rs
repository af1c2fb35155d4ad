//! `leap-lab bench-births`: what a factory takes when many machines come at once.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use edge::durable::{self, Mode};
use edge::exit::Failure;
use edge::out;

use super::bench::table;
use super::demo::Material;
use super::{Options, in_laboratory};
use crate::lab::story::Output;
use crate::story::births;

/// The figures of the last run, in the build folder.
const FIGURES: &str = "figures-births.json";

/// Let a thousand machines wait and fifty be born at one factory, and measure it
///
/// Needs a build folder in which the story was told: its sky, keys and releases are copied.
#[derive(Debug, Args)]
pub(super) struct BenchBirths {
    #[command(flatten)]
    material: Material,
    /// Machines that are born at once; each writes some hundred MiB
    #[arg(long, default_value_t = 50, value_name = "COUNT",
          value_parser = clap::value_parser!(u16).range(1..=500))]
    machines: u16,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

impl BenchBirths {
    pub(super) async fn run(self, options: &Options) -> Result<ExitCode, Failure> {
        in_laboratory(&options.place(false), async |_| {
            let stage = self.material.stage(options);
            let output = if self.json {
                Output::Silent
            } else {
                Output::detect()
            };
            let figures = births::measure(&stage, self.machines, output).await?;
            let file = std::path::absolute(&options.build_dir).context("name a folder")?;
            durable::write_json(&file.join(FIGURES), &figures, Mode::Public)?;
            if self.json {
                out::json(&figures);
            } else {
                out::line(table(&figures).trim_end());
            }
            Ok(ExitCode::SUCCESS)
        })
        .await
    }
}
