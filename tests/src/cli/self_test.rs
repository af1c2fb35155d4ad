//! `leap-lab self-test`: the laboratory proves itself.

use std::process::ExitCode;

use clap::Args;
use edge::exit::Failure;

use super::{Options, in_laboratory};
use crate::lab::prerequisites;
use crate::lab::story::Output;
use crate::self_test;

/// Prove that network, machine, capture and file server work here, in half a minute
#[derive(Debug, Args)]
pub(super) struct SelfTest {}

impl SelfTest {
    pub(super) async fn run(self, options: &Options) -> Result<ExitCode, Failure> {
        let place = options.place(false);
        if !crate::lab::isolation::is_inside() {
            // Fetched outside, where the host's network is.
            prerequisites::sshd(&place.build.join("cache")).await?;
        }
        in_laboratory(&place, async |inside| {
            let report = self_test::run(&inside, &options.build_dir, Output::detect()).await?;
            Ok(if report.ok {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            })
        })
        .await
    }
}
