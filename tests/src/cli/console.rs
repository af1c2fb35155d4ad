//! `leap-lab console`: the serial console of a machine in the laboratory that runs.

use std::process::ExitCode;

use clap::Args;
use edge::exit::Failure;
use edge::out;

use super::{Options, pass_on};
use crate::lab::isolation::{self, RUN};

/// Open the console of a machine in the laboratory that runs now
#[derive(Debug, Args)]
pub(super) struct Console {
    /// Name of the machine
    machine: String,
}

impl Console {
    pub(super) async fn run(self, options: &Options) -> Result<ExitCode, Failure> {
        out::line("console: leave it with Ctrl-]");
        let socket = format!("UNIX-CONNECT:{RUN}/{}.console", self.machine);
        let command = ["socat", "-,raw,echo=0,escape=0x1d", &socket].map(Into::into);
        let status = isolation::enter(&options.place(true), &command).await?;
        Ok(pass_on(status))
    }
}
