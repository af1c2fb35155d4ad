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
    // Not "version": that is the flag's name.
    #[arg(id = "release", value_name = "VERSION")]
    version: ReleaseVersion,
    /// The revision of its components
    #[arg(long, default_value_t = 0)]
    revision: u32,
    /// The channel
    #[arg(long)]
    channel: String,
}

impl Args {
    pub(crate) async fn run(self, operator: &Operator) -> Result<(), Failure> {
        let root = operator.keys()?.trust_root()?;
        let offered = (self.version, self.revision);
        let pointer = offer(&operator.sky()?, &root, &self.channel, offered).await?;
        operator.show(&pointer, |pointer| {
            view::channel(pointer, edge::clock::now())
        });
        Ok(())
    }
}

/// Names a revision of a release.
pub(super) fn title(release: ReleaseVersion, revision: u32) -> String {
    format!("release {}", view::release(release, revision))
}

/// Offers a revision of a release and returns what the sky has signed for it.
pub(super) async fn offer(
    sky: &Sky,
    root: &TrustRoot,
    channel: &str,
    (release, revision): (ReleaseVersion, u32),
) -> Result<ChannelPointer, Failure> {
    let signed = sky.offer(channel, release, revision).await?;
    let pointer = believe(root, &signed, &format!("channel {channel}"))?;
    if (pointer.release, pointer.revision) != (release, revision) || pointer.channel != channel {
        return Err(Failure::new(
            Kind::Refused,
            anyhow!(
                "channel {channel}: the sky has signed channel {} with {}",
                pointer.channel,
                title(pointer.release, pointer.revision)
            ),
        ));
    }
    Ok(pointer)
}
