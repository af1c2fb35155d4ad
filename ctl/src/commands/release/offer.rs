//! `leapctl release offer`.

use anyhow::anyhow;
use edge::exit::{Failure, Kind};
use model::release::ChannelPointer;
use model::{ReleaseVersion, TrustRoot};

use crate::client::Sky;
use crate::commands::believe;
use crate::operator::Operator;
use crate::view;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The release, like 2026.11.1
    version: ReleaseVersion,
    /// The channel
    #[arg(long)]
    channel: String,
}

impl Args {
    pub(crate) async fn run(self, operator: &Operator) -> Result<(), Failure> {
        let root = operator.keys()?.trust_root()?;
        let pointer = offer(&operator.sky()?, &root, &self.channel, self.version).await?;
        operator.show(&pointer, |pointer| {
            view::channel(pointer, edge::clock::now())
        });
        Ok(())
    }
}

/// Offers a release and returns what the sky has signed for it.
pub(super) async fn offer(
    sky: &Sky,
    root: &TrustRoot,
    channel: &str,
    release: ReleaseVersion,
) -> Result<ChannelPointer, Failure> {
    let signed = sky.offer(channel, release).await?;
    let pointer = believe(root, &signed, &format!("channel {channel}"))?;
    if pointer.release != release || pointer.channel != channel {
        return Err(Failure::new(
            Kind::Refused,
            anyhow!(
                "channel {channel}: the sky has signed channel {} with release {}",
                pointer.channel,
                pointer.release
            ),
        ));
    }
    Ok(pointer)
}
