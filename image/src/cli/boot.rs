//! `leap-image boot`

use std::path::PathBuf;

use anyhow::Context as _;
use edge::exit::Failure;
use model::Architecture;

use crate::boot::{self, Changes, Display, Firmware, Variables, Wish};

/// Boot a disk image in QEMU, its serial console on this terminal; Ctrl-C ends it
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The disk image
    image: PathBuf,
    /// Firmware that has Secure Boot; with fresh variables it is in setup mode
    #[arg(long)]
    secure_boot: bool,
    /// Give the machine a TPM
    #[arg(long)]
    tpm: bool,
    /// File that keeps the firmware's variables from boot to boot; made when it is missing
    #[arg(long, value_name = "FILE")]
    vars: Option<PathBuf>,
    /// Architecture of the programs on it; that of this machine when not given
    #[arg(long, value_name = "WORD", default_value_t = Architecture::OURS, hide_default_value = true)]
    architecture: Architecture,
    /// Memory in MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(256..))]
    memory: u32,
    /// What shows the screen
    #[arg(long, value_enum, default_value_t = Display::None)]
    display: Display,
    /// Forget at the end what the machine writes to its disk
    #[arg(long)]
    snapshot: bool,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let changes = match self.snapshot {
            true => Changes::Forgotten,
            false => Changes::Kept,
        };
        let wish = Wish {
            format: boot::look(&self.image, changes)?,
            image: self.image,
            architecture: self.architecture,
            firmware: match self.secure_boot {
                true => Firmware::SecureBoot,
                false => Firmware::Plain,
            },
            memory: self.memory,
            display: self.display,
            changes,
        };
        let variables = self.vars.map_or(Variables::Fresh, Variables::File);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start the runtime")?;
        Ok(runtime.block_on(boot::run(&wish, &variables, self.tpm))?)
    }
}
