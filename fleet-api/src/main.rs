//! `leap-fleet`: the sky.

use std::process::ExitCode;

use clap::Parser as _;
use fleet_api::cli::Cli;

fn main() -> ExitCode {
    let cli = Cli::parse();
    edge::log::init(cli.verbose);
    edge::exit::report(cli.run())
}
