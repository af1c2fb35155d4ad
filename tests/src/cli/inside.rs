//! `leap-lab inside`: any command in a laboratory of its own.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use edge::exit::Failure;
use edge::runner::Tool;

use super::{Options, in_laboratory, pass_on};

/// Run a command in an empty laboratory, which ends with it
#[derive(Debug, Args)]
#[command(name = "inside")]
pub(super) struct InsideArgs {
    /// The command with its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl InsideArgs {
    pub(super) async fn run(self, options: &Options) -> Result<ExitCode, Failure> {
        in_laboratory(&options.place(true), async |inside| {
            inside.ready(std::collections::BTreeMap::new()).await?;
            let tool = Tool::new(&self.command[0]).args(&self.command[1..]);
            let status = tool.tokio_command().status().await;
            let status = status.with_context(|| format!("start {}", tool.line()))?;
            Ok(pass_on(status))
        })
        .await
    }
}
