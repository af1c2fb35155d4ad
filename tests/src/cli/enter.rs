//! `leap-lab enter`: a shell in a laboratory that runs.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Args;
use edge::exit::Failure;

use super::{Options, pass_on};
use crate::lab::isolation;

/// Run a command, or a shell, in the laboratory that runs now
#[derive(Debug, Args)]
pub(super) struct Enter {
    /// The command with its arguments; a shell without one
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Enter {
    pub(super) async fn run(self, options: &Options) -> Result<ExitCode, Failure> {
        let status = isolation::enter(&options.place(true), &self.command).await?;
        Ok(pass_on(status))
    }
}
