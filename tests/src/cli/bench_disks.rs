//! `leap-lab bench-disks`: what composing and serving disks costs.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use edge::exit::Failure;
use edge::out;

use super::Options;
use super::bench::table;
use crate::bench::compose::{self, Material};

/// Compose 10,000 disks of a release, and stream one beside nginx
#[derive(Debug, Args)]
pub(super) struct BenchDisks {
    /// The release's folder
    #[arg(long, value_name = "FOLDER")]
    release: PathBuf,
    /// The folder of the keys that sign it and the customers' layers
    #[arg(long, value_name = "FOLDER")]
    keys: PathBuf,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

impl BenchDisks {
    pub(super) async fn run(self, options: &Options) -> Result<ExitCode, Failure> {
        std::fs::create_dir_all(&options.build_dir).context("make the build folder")?;
        let absolute = |path: &PathBuf| std::path::absolute(path).context("name a folder");
        let figures = compose::compose(&Material {
            programs: absolute(&options.bin_dir)?,
            release: absolute(&self.release)?,
            keys: absolute(&self.keys)?,
            work: absolute(&options.build_dir)?,
        })
        .await?;
        if self.json {
            out::json(&figures);
        } else {
            out::line(table(&figures).trim_end());
        }
        Ok(ExitCode::SUCCESS)
    }
}
