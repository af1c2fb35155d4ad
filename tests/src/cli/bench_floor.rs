//! `leap-lab bench-floor`: a birth beside the least that anybody could do.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use edge::durable::{self, Mode};
use edge::exit::Failure;
use edge::out;

use super::bench::table;
use super::demo::Material;
use super::{Options, in_laboratory};
use crate::lab::prerequisites;
use crate::lab::story::Output;
use crate::story::floor;

/// The figures of the last run, in the build folder.
const FIGURES: &str = "figures-floor.json";

/// Measure a birth beside dnsmasq, a dd of the same bytes and the first start
#[derive(Debug, Args)]
pub(super) struct BenchFloor {
    #[command(flatten)]
    material: Material,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

impl BenchFloor {
    pub(super) async fn run(self, options: &Options) -> Result<ExitCode, Failure> {
        let place = options.place(false);
        if !crate::lab::isolation::is_inside() {
            super::check_host::prepare().await?;
            // Fetched outside, where the host's network is.
            prerequisites::sshd(&place.build.join("cache")).await?;
        }
        in_laboratory(&place, async |inside| {
            let stage = self.material.stage(options);
            let output = if self.json {
                Output::Silent
            } else {
                Output::detect()
            };
            let figures = floor::measure(&inside, &stage, output).await?;
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
