//! The factory's server.

use std::process::ExitCode;

use clap::Parser as _;
use provisioner::factory::cli::{self, Cli};

fn main() -> ExitCode {
    let cli = Cli::parse();
    edge::log::init(cli.verbose);
    edge::exit::report(cli::run(cli))
}
