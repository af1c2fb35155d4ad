//! `leap-image diff`

use std::path::PathBuf;

use edge::exit::{Failure, Kind};
use edge::out;

use crate::contents::Contents;
use crate::diff::{Files, difference, render};

/// Show what a release adds, loses and changes against another one
///
/// Signatures are not checked; leap-image inspect does that.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The folder of the first release
    a: PathBuf,
    /// The folder of the second release
    b: PathBuf,
    /// How much to tell about files
    #[arg(long, value_enum, default_value_t = Files::Folders)]
    files: Files,
    /// End with exit code 1 when they differ
    #[arg(long)]
    exit_code: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let difference = difference(&Contents::read(&self.a)?, &Contents::read(&self.b)?);
        if self.json {
            out::json(&difference);
        } else {
            out::line(render(&difference, self.files).trim_end());
        }
        if self.exit_code && !difference.is_empty() {
            let error =
                anyhow::anyhow!("releases {} and {} differ", difference.from, difference.to);
            return Err(Failure::new(Kind::Failed, error));
        }
        Ok(())
    }
}
