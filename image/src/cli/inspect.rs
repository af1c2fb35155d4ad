//! `leap-image inspect`

use std::path::PathBuf;

use edge::exit::{Failure, Kind};
use edge::out;

use crate::inspect::{Depth, Found, inspect};

/// Say what a release or a file is and holds, and check signatures on demand
///
/// A file may be a disk image, a unified kernel image or other EFI program, an
/// EROFS image, a component, a lock or a manifest; it is known by its content.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The release's folder, or a file
    #[arg(value_name = "FILE|RELEASE")]
    what: PathBuf,
    /// Trust root: the release must be signed by its keys, and its files be the signed ones
    #[arg(long, value_name = "FILE")]
    trust_root: Option<PathBuf>,
    /// Read the slots of a disk image and compare them with their root hashes
    #[arg(long)]
    check: bool,
    /// List the files of an EROFS image or component with their digests
    #[arg(long, conflicts_with = "check")]
    files: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let trust = self
            .trust_root
            .as_deref()
            .map(super::read_trust_root)
            .transpose()?;
        let depth = match (self.check, self.files) {
            (true, _) => Depth::Check,
            (_, true) => Depth::Files,
            _ => Depth::Look,
        };
        let found = inspect(&self.what, trust.as_ref(), depth)?;
        if self.json {
            out::json(&found);
        } else {
            out::line(found.render().trim_end());
        }
        match found {
            Found::Disk(disk) if disk.damaged => Err(Failure::new(
                Kind::Refused,
                anyhow::anyhow!(
                    "{}: a slot is not what its root hash says",
                    self.what.display()
                ),
            )),
            _ => Ok(()),
        }
    }
}
