//! `leap-image schema`

use edge::exit::Failure;
use edge::out;

use crate::recipe;

/// Print the JSON Schema of recipes, for editors
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        out::json(&recipe::schema());
        Ok(())
    }
}
