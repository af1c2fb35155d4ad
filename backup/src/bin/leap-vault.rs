//! The offsite server.

use std::process::ExitCode;

use backup::cli::vault::Cli;
use clap::Parser;

#[tokio::main]
async fn main() -> ExitCode {
    edge::exit::report(Cli::parse().run().await)
}
