//! `leap-updater`.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use edge::exit::{Classify as _, Failure};
use edge::out;

use crate::config::Config;
use crate::site::Site;
use crate::status::Status;
use crate::{activate, daemon, health, plan};

/// Keep this unit configured, current and healthy
#[derive(Debug, Parser)]
#[command(name = "leap-updater", version)]
pub struct Cli {
    /// Look for all files and tools under this folder instead of /
    #[arg(long, global = true, default_value = "/", hide = true)]
    root: PathBuf,
    /// The disk that the system runs from, instead of searching for it
    #[arg(long, global = true, hide = true)]
    disk: Option<PathBuf>,
    /// Say more; twice, everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Activate components, customer layer and the last configuration (at boot)
    Activate,
    /// Run as a daemon: check in and do what the sky asks for
    Run,
    /// Run the health gate of this boot
    Gate,
    /// Tell what the unit knows of itself
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Tell what an update would do now, and change nothing
    Plan {
        /// The channel to ask for
        #[arg(long, default_value = "stable")]
        channel: String,
    },
    /// Check the configuration file, the identity and the trust root
    CheckConfig,
}

impl Cli {
    /// How much is logged.
    pub fn verbosity(&self) -> u8 {
        self.verbose
    }

    /// Runs the command.
    ///
    /// # Errors
    /// With the kind that decides the exit code.
    pub async fn run(self) -> Result<(), Failure> {
        let site = Site::new(&self.root);
        match self.command {
            Command::Activate => {
                tokio::task::block_in_place(|| activate::activate(&site, edge::clock::now()))?;
                Ok(())
            }
            Command::Run => {
                let config = Config::read(&site)?;
                let stop = edge::shutdown::token();
                daemon::run(site, self.disk, config, stop).await?;
                Ok(())
            }
            Command::Gate => {
                let config = Config::read(&site)?;
                let result = health::gate(&site, config.gate()).await?;
                if result.passed {
                    return Ok(());
                }
                Err(anyhow::anyhow!(
                    "health gate of release {}: {}",
                    result.release,
                    health::reason(&result.checks)
                )
                .into())
            }
            Command::Status { json } => {
                let status = Status::gather(&site)?;
                if json {
                    out::json(&status);
                } else {
                    status.lines().iter().for_each(out::line);
                }
                Ok(())
            }
            Command::Plan { channel } => {
                let lines = plan::plan(&site, self.disk.as_deref(), &channel)
                    .await?
                    .refused()?;
                lines.iter().for_each(out::line);
                Ok(())
            }
            Command::CheckConfig => {
                let config = Config::read(&site)?;
                site.trust_root().invalid_input()?;
                let identity = site.enrolment().invalid_input()?.identity;
                crate::sky::Sky::of(&site).invalid_input()?;
                out::line(format_args!(
                    "{identity}: good; confirm within {} s, gate within {} s",
                    config.confirm_seconds, config.gate_seconds
                ));
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
