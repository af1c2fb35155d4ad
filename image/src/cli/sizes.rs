//! `leap-image sizes`

use std::path::PathBuf;

use edge::exit::Failure;
use edge::out;

use crate::sizes::Sizes;

/// Show how large a release is, and what makes it so
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The release's folder
    release: PathBuf,
    /// The folder of another release: show what grew and shrank most
    #[arg(long, value_name = "DIR")]
    against: Option<PathBuf>,
    /// How many rows to show of what is in the root
    #[arg(long, default_value_t = 30)]
    rows: usize,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, serde::Serialize)]
struct Answer {
    sizes: Sizes,
    #[serde(skip_serializing_if = "Option::is_none")]
    against: Option<Sizes>,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let sizes = Sizes::read(&self.release)?;
        let against = self.against.as_deref().map(Sizes::read).transpose()?;
        if self.json {
            out::json(&Answer { sizes, against });
        } else {
            out::line(sizes.render(against.as_ref(), self.rows).trim_end());
        }
        Ok(())
    }
}
