//! The `leap-lab` program.

use std::process::ExitCode;

use clap::Parser as _;
use e2e::cli::Cli;

// One thread is enough, and it must be the main one: what it starts dies with it.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    edge::log::init_quiet(cli.verbosity());
    match cli.run().await {
        Ok(code) => code,
        Err(failure) => edge::exit::report(Err(failure)),
    }
}
