//! `leapctl release`.

mod offer;

mod publish;

use edge::exit::Failure;

use crate::operator::Operator;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Release {
    /// Verify and upload a release, then offer it on a channel
    Publish(publish::Args),
    /// Offer a release that the sky has on a channel
    Offer(offer::Args),
}

impl Release {
    pub(crate) async fn run(self, operator: &Operator) -> Result<(), Failure> {
        match self {
            Self::Publish(args) => args.run(operator).await,
            Self::Offer(args) => args.run(operator).await,
        }
    }
}
