//! `leap-vault`.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use edge::exit::Failure;
use edge::out;

use crate::vault::{config, server};

/// Keep units' backups: append-only, each unit in a place of its own
#[derive(Debug, Parser)]
#[command(name = "leap-vault", version)]
pub struct Cli {
    /// Say more; twice, everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// The configuration file
    #[arg(
        long,
        global = true,
        env = "LEAP_VAULT_CONFIG",
        default_value = "/etc/leapserv/vault.toml"
    )]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until told to stop
    Serve,
    /// Check the configuration and the files that it names
    CheckConfig,
}

impl Cli {
    /// Runs the command.
    ///
    /// # Errors
    /// With the kind that decides the exit code.
    pub async fn run(self) -> Result<(), Failure> {
        edge::log::init(self.verbose);
        let config = config::load(&self.config)?;
        match self.command {
            Command::CheckConfig => {
                out::line(format_args!("{}: good", self.config.display()));
                Ok(())
            }
            Command::Serve => {
                let running = server::start(config, edge::shutdown::token()).await?;
                running.stopped().await?;
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
