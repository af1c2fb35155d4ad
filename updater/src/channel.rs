//! What the channel offers: freshness, the floor against replays, and the manifest behind it.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use edge::durable::{self, Mode};
use jiff::Timestamp;
use model::release::{ChannelPointer, ReleaseManifest};
use model::{Architecture, Digest, Signed, TrustRoot, Verified};
use serde::{Deserialize, Serialize};

use crate::site::{Site, read_json};

/// The architecture that this updater runs on.
pub const ARCHITECTURE: Architecture = Architecture::OURS;

/// The highest pointer seen of each channel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Floors(BTreeMap<String, u64>);

/// Why an offer is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Disbelief {
    /// A pointer that was replaced long ago is shown again.
    #[error("channel {channel}: version {found} is older than version {floor}, seen before")]
    Replayed {
        /// The channel.
        channel: String,
        /// Version of the pointer.
        found: u64,
        /// The highest version seen.
        floor: u64,
    },
    /// The manifest is not the one that the channel points to.
    #[error("release {version}: manifest has SHA-256 {found}, the channel says {expected}")]
    OtherManifest {
        /// The release.
        version: String,
        /// What was fetched.
        found: Digest,
        /// What the channel says.
        expected: Digest,
    },
    /// The manifest is of another release.
    #[error("release {expected}: manifest is of release {found}")]
    OtherRelease {
        /// What the channel offers.
        expected: String,
        /// What the manifest is of.
        found: String,
    },
    /// The manifest is of another revision than the channel points to.
    #[error("release {version} revision {expected}: manifest is of revision {found}")]
    OtherRevision {
        /// The release.
        version: String,
        /// What the channel offers.
        expected: u32,
        /// What the manifest is of.
        found: u32,
    },
    /// The release is for another kind of machine.
    #[error("release {version}: made for {found}, this is {ARCHITECTURE}")]
    OtherArchitecture {
        /// The release.
        version: String,
        /// What it is for.
        found: Architecture,
    },
}

impl Floors {
    /// Reads the floors.
    ///
    /// # Errors
    /// The file is there and cannot be read: without it a replay would pass.
    pub fn read(site: &Site) -> Result<Self> {
        Ok(read_json(&site.state("channels.json"))?.unwrap_or_default())
    }

    /// Accepts a pointer unless it is older than one that was seen before. Pure.
    ///
    /// Says whether the floor has risen.
    ///
    /// # Errors
    /// `Replayed`.
    pub fn accept(&mut self, pointer: &ChannelPointer) -> Result<bool, Disbelief> {
        let floor = self.0.get(&pointer.channel).copied().unwrap_or(0);
        if pointer.version < floor {
            return Err(Disbelief::Replayed {
                channel: pointer.channel.clone(),
                found: pointer.version,
                floor,
            });
        }
        self.0.insert(pointer.channel.clone(), pointer.version);
        Ok(pointer.version > floor)
    }
}

/// Verifies a pointer and raises the floor durably.
///
/// # Errors
/// Signature, age, or a replay.
pub fn accept(
    site: &Site,
    trust: &TrustRoot,
    signed: &Signed<ChannelPointer>,
    now: Timestamp,
) -> Result<Verified<ChannelPointer>> {
    let pointer = trust.verify(signed, now).context("channel")?;
    let mut floors = Floors::read(site)?;
    if floors.accept(&pointer)? {
        durable::write_json(&site.state("channels.json"), &floors, Mode::Public)?;
    }
    Ok(pointer)
}

/// Verifies the bytes of a manifest that a channel points to.
///
/// # Errors
/// Digest, signature, or a manifest of something else.
pub fn manifest(
    trust: &TrustRoot,
    pointer: &ChannelPointer,
    bytes: &[u8],
    now: Timestamp,
) -> Result<Verified<ReleaseManifest>> {
    let found = Digest::of(bytes);
    if found != pointer.manifest {
        return Err(Disbelief::OtherManifest {
            version: pointer.release.to_string(),
            found,
            expected: pointer.manifest,
        }
        .into());
    }
    let signed: Signed<ReleaseManifest> =
        serde_json::from_slice(bytes).context("release manifest")?;
    let manifest = trust.verify(&signed, now).context("release manifest")?;
    if manifest.version != pointer.release {
        return Err(Disbelief::OtherRelease {
            expected: pointer.release.to_string(),
            found: manifest.version.to_string(),
        }
        .into());
    }
    if manifest.revision != pointer.revision {
        return Err(Disbelief::OtherRevision {
            version: pointer.release.to_string(),
            expected: pointer.revision,
            found: manifest.revision,
        }
        .into());
    }
    if manifest.architecture != ARCHITECTURE {
        return Err(Disbelief::OtherArchitecture {
            version: manifest.version.to_string(),
            found: manifest.architecture,
        }
        .into());
    }
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::trust::RoleKeys;
    use model::{Role, Signer};

    fn pointer(version: u64) -> ChannelPointer {
        ChannelPointer {
            channel: "stable".into(),
            version,
            release: "2026.11.2".parse().unwrap(),
            revision: 0,
            manifest: Digest::of(b"manifest"),
            expires: Timestamp::MAX,
        }
    }

    #[test]
    fn a_replayed_pointer_is_refused_after_a_restart_too() {
        let folder = tempfile::tempdir().unwrap();
        let site = Site::new(folder.path());
        let signer = Signer::from_seed(&[3; 32]);
        let keys = RoleKeys {
            keys: vec![signer.public()],
            threshold: 1,
        };
        let trust = TrustRoot {
            version: 1,
            roles: [(Role::Timestamp, keys)].into(),
            recovery: vec![],
        };
        let now = Timestamp::UNIX_EPOCH;
        let see = |pointer: &ChannelPointer| accept(&site, &trust, &signer.sign(pointer), now);
        see(&pointer(4)).unwrap();
        see(&pointer(4)).unwrap();
        let replayed = see(&pointer(3)).unwrap_err();
        assert_eq!(
            replayed.downcast_ref(),
            Some(&Disbelief::Replayed {
                channel: "stable".into(),
                found: 3,
                floor: 4
            })
        );
        // Another channel has a count of its own.
        let beta = ChannelPointer {
            channel: "beta".into(),
            ..pointer(1)
        };
        see(&beta).unwrap();
        let stale = ChannelPointer {
            expires: now,
            ..pointer(5)
        };
        assert!(see(&stale).is_err());
        let forged = Signer::from_seed(&[4; 32]).sign(&pointer(9));
        assert!(accept(&site, &trust, &forged, now).is_err());
        see(&pointer(4)).unwrap();
    }
}
