//! `leap-lab matrix`: births by all kinds of firmware, on all kinds of networks.

use std::process::ExitCode;

use clap::Args;
use clap::builder::PossibleValuesParser;
use edge::exit::Failure;

use super::demo::Material;
use super::{Options, in_laboratory};
use crate::lab::prerequisites;
use crate::lab::story::Output;
use crate::story::matrix::{self, CASES};

/// Let machines be born by all kinds of firmware, on all kinds of networks
#[derive(Debug, Args)]
pub(super) struct Matrix {
    #[command(flatten)]
    material: Material,
    /// Only these cases
    #[arg(
        value_parser = PossibleValuesParser::new(CASES.map(|case| case.name)),
        value_name = "CASE"
    )]
    cases: Vec<String>,
}

impl Matrix {
    pub(super) async fn run(self, options: &Options) -> Result<ExitCode, Failure> {
        let place = options.place(false);
        if !crate::lab::isolation::is_inside() {
            super::check_host::prepare().await?;
            // Fetched outside, where the host's network is.
            prerequisites::sshd(&place.build.join("cache")).await?;
        }
        in_laboratory(&place, async |inside| {
            let stage = self.material.stage(options);
            let report = matrix::tell(&inside, &stage, Output::detect(), &self.cases).await?;
            Ok(if report.ok {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            })
        })
        .await
    }
}
