//! `leap-image which`

use std::path::PathBuf;

use edge::exit::{self, Failure, Kind};
use edge::out;

use crate::which::{Unknown, choose, known};

/// Say which release a root hash belongs to
///
/// The root hash stands in the kernel's command line of a unit, and leap-image
/// inspect tells that of a disk image.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The root hash, or at least its first 8 digits
    #[arg(value_name = "ROOTHASH")]
    hash: String,
    /// Folder of releases
    #[arg(long, value_name = "DIR")]
    releases: PathBuf,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let known = known(&self.releases)?;
        let found = choose(&self.hash, &known).map_err(|error| match &error {
            Unknown::Form(_) => Failure::new(Kind::Usage, error),
            Unknown::Nobody { .. } => Failure::new(Kind::Failed, error),
            Unknown::Several { .. } => {
                Failure::new(Kind::Failed, exit::hint(error, "name more digits"))
            }
        })?;
        if self.json {
            out::json(&found);
            return Ok(());
        }
        out::line(format_args!("release   {}", found.release));
        out::line(format_args!("root hash {}", found.root_hash));
        out::line(format_args!("folder    {}", found.folder.display()));
        for (name, path) in found
            .lock
            .iter()
            .map(|path| ("lock", path))
            .chain(found.sbom.iter().map(|path| ("SBOM", path)))
        {
            out::line(format_args!("{name:9} {}", path.display()));
        }
        Ok(())
    }
}
