//! `leapctl`: the operator's command line.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let cli = ctl::Cli::parse();
    edge::log::init_quiet(cli.verbosity());
    tls::install_provider();
    edge::exit::report(ctl::run(cli))
}
