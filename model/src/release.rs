//! Releases: what a signed version of the operating system consists of.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::id::{CustomerName, Digest, ReleaseVersion};
use crate::trust::{Document, Role};

/// Size of one segment of an image, in bytes, before compression. The last
/// segment of an image may be shorter.
pub const SEGMENT_SIZE: u64 = 1 << 20;

/// A release's manifest, `manifest.json` in its folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseManifest {
    /// The version.
    pub version: ReleaseVersion,
    /// CPU architecture in Debian's word: `amd64`.
    pub architecture: String,
    /// The dm-verity root hash, 64 hexadecimal digits. Its halves are the
    /// partition UUIDs of the root and of the verity slot.
    pub root_hash: Digest,
    /// The root file system.
    pub root: SegmentedImage,
    /// Its dm-verity hash tree.
    pub verity: SegmentedImage,
    /// The unified kernel image.
    pub uki: Artifact,
    /// systemd-boot, written to the ESP at birth and refreshed by updates.
    pub boot_loader: Artifact,
    /// The installer's own unified kernel image. Units do not fetch it.
    pub installer: Artifact,
    /// System extensions.
    pub components: Vec<Component>,
    /// How often a new release may try to boot before it is given up.
    pub tries: u8,
}

impl Document for ReleaseManifest {
    const TYPE: &'static str = "application/vnd.leapserv.release+json";
    const ROLE: Role = Role::Targets;
}

/// A file of a release, whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Artifact {
    /// Path inside the release's folder, `/`-separated, without `..`.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
    /// SHA-256 of the file.
    pub sha256: Digest,
}

/// A part of a release that is built and versioned on its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Component {
    /// Its name, `backup`; the system extension is `leap-NAME.raw` on the unit.
    pub name: String,
    /// Its own version.
    pub version: String,
    /// The system extension image.
    pub image: Artifact,
}

/// A partition's content as independently compressed segments in one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SegmentedImage {
    /// Path of the file of zstd frames inside the release's folder.
    pub path: String,
    /// Size of that file in bytes.
    pub stored_size: u64,
    /// Size of the content in bytes.
    pub size: u64,
    /// The segments in the order of the content, without gaps.
    pub segments: Vec<Segment>,
}

impl SegmentedImage {
    /// Checks that the segments cover the content and the file exactly.
    ///
    /// # Errors
    /// Says which segment breaks the rule.
    pub fn check(&self) -> Result<(), String> {
        let (mut offset, mut stored) = (0u64, 0u64);
        for (index, segment) in self.segments.iter().enumerate() {
            let expected = SEGMENT_SIZE.min(self.size.saturating_sub(offset));
            if u64::from(segment.length) != expected || expected == 0 {
                return Err(format!(
                    "{}: segment {index}: length {} where {expected} is expected",
                    self.path, segment.length
                ));
            }
            if segment.stored_offset != stored {
                return Err(format!(
                    "{}: segment {index}: stored at {} where {stored} is expected",
                    self.path, segment.stored_offset
                ));
            }
            offset += expected;
            stored = stored.saturating_add(u64::from(segment.stored_length));
        }
        if offset != self.size || stored != self.stored_size {
            return Err(format!(
                "{}: segments cover {offset} of {} bytes, {stored} of {} stored",
                self.path, self.size, self.stored_size
            ));
        }
        Ok(())
    }
}

/// One segment: where its compressed form lies and what it must decompress to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// Offset of the zstd frame in the file.
    pub stored_offset: u64,
    /// Length of the zstd frame.
    pub stored_length: u32,
    /// Length of the content, at most [`SEGMENT_SIZE`].
    pub length: u32,
    /// SHA-256 of the content.
    pub sha256: Digest,
}

/// What a channel offers now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelPointer {
    /// The channel, `stable`.
    pub channel: String,
    /// Rises with every change; a unit refuses a lower one than it has seen.
    pub version: u64,
    /// The release offered.
    pub release: ReleaseVersion,
    /// SHA-256 of the bytes of the release's `manifest.json`.
    pub manifest: Digest,
    /// A sky that cannot renew this any longer freezes nobody unnoticed.
    pub expires: Timestamp,
}

impl Document for ChannelPointer {
    const TYPE: &'static str = "application/vnd.leapserv.channel+json";
    const ROLE: Role = Role::Timestamp;

    fn expires(&self) -> Option<Timestamp> {
        Some(self.expires)
    }
}

/// The customer's layer: a configuration extension of kilobytes, without secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CustomerLayer {
    /// Whose layer.
    pub customer: CustomerName,
    /// Rises with every change.
    pub version: u64,
    /// The image, `layer.raw` beside the signed document `layer.json`.
    pub image: Artifact,
}

impl Document for CustomerLayer {
    const TYPE: &'static str = "application/vnd.leapserv.customer-layer+json";
    const ROLE: Role = Role::Configuration;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> SegmentedImage {
        let segment = |stored_offset, stored_length, length| Segment {
            stored_offset,
            stored_length,
            length,
            sha256: Digest::of(b""),
        };
        SegmentedImage {
            path: "root.zst".into(),
            stored_size: 30,
            size: SEGMENT_SIZE + 5,
            segments: vec![segment(0, 10, 1 << 20), segment(10, 20, 5)],
        }
    }

    #[test]
    fn segments_cover_the_image_without_gaps() {
        assert_eq!(image().check(), Ok(()));
        let mut gap = image();
        gap.segments[1].stored_offset = 11;
        assert!(gap.check().unwrap_err().contains("segment 1"));
        let mut short = image();
        short.segments.pop();
        assert!(short.check().is_err());
        let mut long = image();
        long.size += 1;
        assert!(long.check().is_err());
    }
}
