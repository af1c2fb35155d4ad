//! The command line of `leap-fleet`.

use anyhow::Context as _;
use clap::{ArgAction, Parser, Subcommand};
use edge::exit::{Classify as _, Failure};

mod host;

mod init;

mod issue;

mod set_trust;

mod run;

mod check_config;

/// Serve the fleet: API, store and update channel
#[derive(Debug, Parser)]
#[command(name = "leap-fleet", version)]
pub struct Cli {
    /// Say more; twice for all
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(init::Args),
    SetTrust(set_trust::Args),
    Issue(issue::Args),
    CheckConfig(check_config::Args),
    Run(run::Args),
}

impl Cli {
    /// Does what was asked.
    ///
    /// # Errors
    /// The failure with its exit code.
    pub fn run(self) -> Result<(), Failure> {
        tls::install_provider();
        let runtime = tokio::runtime::Runtime::new()
            .context("start the runtime")
            .environment()?;
        runtime.block_on(async {
            match self.command {
                Command::Init(args) => init::run(&args).await,
                Command::SetTrust(args) => set_trust::run(&args),
                Command::Issue(args) => issue::run(&args),
                Command::CheckConfig(args) => check_config::run(&args),
                Command::Run(args) => run::run(&args).await,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
