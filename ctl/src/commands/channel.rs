//! `leapctl channel`.

use edge::exit::Failure;

use crate::commands::believe;
use crate::operator::Operator;
use crate::view;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Channel {
    /// Show what a channel offers, if the sky's signature holds
    Show(Show),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Show {
    /// The channel
    #[arg(default_value = "stable")]
    channel: String,
}

impl Channel {
    pub(crate) async fn run(self, operator: &Operator) -> Result<(), Failure> {
        let Self::Show(args) = self;
        let root = operator.keys()?.trust_root()?;
        let signed = operator.sky()?.channel(&args.channel).await?;
        let pointer = believe(&root, &signed, &format!("channel {}", args.channel))?;
        operator.show(&pointer, |pointer| {
            view::channel(pointer, edge::clock::now())
        });
        Ok(())
    }
}
