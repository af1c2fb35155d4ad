//! The first process of a bare machine.

use std::process::ExitCode;

fn main() -> ExitCode {
    edge::exit::report(provisioner::installer::cli::main())
}
