//! The program `leap-image`; see the crate `image`.

use std::process::ExitCode;

use clap::Parser as _;
use image::cli::Cli;

fn main() -> ExitCode {
    let cli = Cli::parse();
    edge::log::init_quiet(cli.verbose);
    edge::exit::report(cli.run())
}
