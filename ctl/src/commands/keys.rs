//! `leapctl keys`.

use std::path::PathBuf;

use anyhow::Context as _;
use edge::exit::{Classify as _, Failure, hint};

use crate::keys::{KeyFolder, NewKeys, SkyFile};
use crate::operator::Operator;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Keys {
    /// Make root, targets, configuration and recovery keys, and the trust root
    Init(Init),
    /// Show which keys are trusted and which are here
    Show,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Init {
    /// New or empty folder for the keys
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// sky.json, which leap-fleet init has written
    #[arg(long, value_name = "FILE")]
    pub(crate) sky: String,
}

impl Keys {
    pub(crate) fn run(self, operator: &Operator) -> Result<(), Failure> {
        match self {
            Self::Init(args) => args.run(operator),
            Self::Show => {
                let overview = operator.keys()?.overview()?;
                operator.show(&overview, |overview| overview.human());
                Ok(())
            }
        }
    }
}

impl Init {
    fn run(self, operator: &Operator) -> Result<(), Failure> {
        let text = std::fs::read_to_string(&self.sky)
            .with_context(|| format!("read {}", self.sky))
            .map_err(|error| {
                hint(
                    error,
                    "give the file sky.json that leap-fleet init has written as --sky FILE",
                )
            })
            .invalid_input()?;
        let sky: SkyFile = serde_json::from_str(&text)
            .with_context(|| format!("{}: expected timestamp_public_key and ca", self.sky))
            .invalid_input()?;
        NewKeys::generate()?.write(&self.dir, &sky)?;
        let overview = KeyFolder::new(&self.dir).overview()?;
        operator.show(&overview, |overview| overview.human());
        Ok(())
    }
}
