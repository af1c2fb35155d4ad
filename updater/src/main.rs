//! The updater of a unit.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser as _;
use updater::cli::Cli;

fn main() -> ExitCode {
    let cli = Cli::parse();
    edge::log::init(cli.verbosity());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start runtime");
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return edge::exit::report(Err(error.into())),
    };
    let result = runtime.block_on(cli.run());
    // A download that is stopped in the middle is safe; it must not hold up the stop.
    runtime.shutdown_timeout(Duration::from_millis(200));
    edge::exit::report(result)
}
