//! The backup engine of a unit.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use backup::cli::backup::Cli;
use clap::Parser;

fn main() -> ExitCode {
    let cli = Cli::parse();
    cli.start_log();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start runtime");
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return edge::exit::report(Err(error.into())),
    };
    let result = runtime.block_on(cli.run());
    // A run that is stopped in the middle is safe; it must not hold up the stop.
    runtime.shutdown_timeout(Duration::from_millis(200));
    edge::exit::report(result)
}
