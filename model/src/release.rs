//! Releases: what a signed version of the operating system consists of.
//!
//! Fields that a reader does not know are ignored: units in the field read what
//! later programs sign, and a release must not strand those that are behind.
//! What a unit must not miss is therefore never said by a new field alone.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::id::{Architecture, CustomerName, Digest, ReleaseVersion};
use crate::trust::{Document, Role};

/// Size of one segment of an image, in bytes, before compression. The last
/// segment of an image may be shorter.
pub const SEGMENT_SIZE: u64 = 1 << 20;

/// A release's manifest, `manifest.json` in its folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseManifest {
    /// The version.
    pub version: ReleaseVersion,
    /// Rises when components alone are replaced; 0 when the release is first
    /// published. All revisions of a version have one root, kernel and boot loader.
    #[serde(default, skip_serializing_if = "is_first")]
    pub revision: u32,
    /// CPU architecture.
    pub architecture: Architecture,
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
    /// What tells about the release: lock, package list, bills of materials,
    /// sizes. The centre keeps them; no unit fetches them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub documents: Vec<Artifact>,
    /// How often a new release may try to boot before it is given up.
    pub tries: u8,
    /// The Secure Boot keys that machines in setup mode enrol at birth. A release without
    /// them is one that is not signed for Secure Boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secure_boot: Option<SecureBootKeys>,
}

/// Signed firmware variables (`EFI_VARIABLE_AUTHENTICATION_2` and content): whom the
/// firmware of a machine that is born with this release believes from then on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecureBootKeys {
    /// `PK`: with it setup mode ends.
    pub pk: Artifact,
    /// `KEK`: who may change `db`.
    pub kek: Artifact,
    /// `db`: whose programs start.
    pub db: Artifact,
}

impl SecureBootKeys {
    /// Each variable's name with its file.
    pub fn variables(&self) -> [(&'static str, &Artifact); 3] {
        [("PK", &self.pk), ("KEK", &self.kek), ("db", &self.db)]
    }
}

impl ReleaseManifest {
    /// The files that machines enrol into their firmware at birth; none for most releases.
    pub fn enrolment(&self) -> impl Iterator<Item = &Artifact> {
        let keys = self.secure_boot.iter();
        keys.flat_map(|keys| keys.variables().map(|(_, artifact)| artifact))
    }
}

impl ReleaseManifest {
    /// Names what is not the same in two revisions of one version, where a
    /// revision may replace nothing but components.
    pub fn first_difference(&self, other: &Self) -> Option<&'static str> {
        [
            ("version", self.version == other.version),
            ("architecture", self.architecture == other.architecture),
            ("root hash", self.root_hash == other.root_hash),
            ("root image", self.root == other.root),
            ("verity image", self.verity == other.verity),
            ("kernel", self.uki == other.uki),
            ("boot loader", self.boot_loader == other.boot_loader),
            ("installer", self.installer == other.installer),
            ("number of tries", self.tries == other.tries),
        ]
        .into_iter()
        .find_map(|(part, same)| (!same).then_some(part))
    }

    /// Returns the chosen components: those that a customer's layer names, or all.
    pub fn chosen<'a>(
        &'a self,
        names: Option<&'a [String]>,
    ) -> impl Iterator<Item = &'a Component> + 'a {
        self.components
            .iter()
            .filter(move |component| names.is_none_or(|names| names.contains(&component.name)))
    }
}

/// Returns the path of the manifest of a release's revision: each revision is
/// published beside the others, and none is ever changed.
pub fn manifest_path(revision: u32) -> String {
    match revision {
        0 => "manifest.json".to_owned(),
        revision => format!("revisions/{revision}/manifest.json"),
    }
}

/// Says whether a service manager's unit has the name of one that a component
/// may bring: by it the component's services are found when it is replaced.
pub fn is_unit_of(unit: &str, component: &str) -> bool {
    unit.strip_prefix("leap-")
        .and_then(|rest| rest.strip_prefix(component))
        .is_some_and(|rest| rest.starts_with(['.', '@', '-']))
}

/// Says whether a revision goes without saying.
pub(crate) fn is_first(revision: &u32) -> bool {
    *revision == 0
}

impl Document for ReleaseManifest {
    const TYPE: &'static str = "application/vnd.leapserv.release+json";
    const ROLE: Role = Role::Targets;
}

/// A file of a release, whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
pub struct Component {
    /// Its name, `backup`; the system extension is `leap-NAME.raw` on the unit.
    pub name: String,
    /// Its own version.
    pub version: String,
    /// The system extension image: an EROFS file system, and its hash tree behind it.
    pub image: Artifact,
    /// What the kernel checks every block of the image with. Releases from before
    /// components had hash trees have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verity: Option<HashTree>,
}

/// A dm-verity hash tree that lies behind the data that it covers, in one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HashTree {
    /// The tree's root hash.
    pub root_hash: Digest,
    /// Where the tree begins, in bytes: the size of the data, whole blocks of 4096.
    pub offset: u64,
}

/// A partition's content as independently compressed segments in one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
pub struct ChannelPointer {
    /// The channel, `stable`.
    pub channel: String,
    /// Rises with every change; a unit refuses a lower one than it has seen.
    pub version: u64,
    /// The release offered.
    pub release: ReleaseVersion,
    /// Its revision.
    #[serde(default, skip_serializing_if = "is_first")]
    pub revision: u32,
    /// SHA-256 of the bytes of the manifest of this revision, see [`manifest_path`].
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
pub struct CustomerLayer {
    /// Whose layer.
    pub customer: CustomerName,
    /// Rises with every change.
    pub version: u64,
    /// The components that are active on the customer's units, by name; all of
    /// the release when this is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub components: Option<Vec<String>>,
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
    fn a_manifest_without_secure_boot_keys_reads_and_writes_as_before_there_were_any() {
        let artifact = |path: &str| Artifact {
            path: path.into(),
            size: 1,
            sha256: Digest::of(b"x"),
        };
        let mut manifest = ReleaseManifest {
            version: "2026.11.1".parse().unwrap(),
            revision: 0,
            architecture: Architecture::Amd64,
            root_hash: Digest::of(b"root"),
            root: image(),
            verity: image(),
            uki: artifact("leapserv.efi"),
            boot_loader: artifact("systemd-bootx64.efi"),
            installer: artifact("installer.efi"),
            components: vec![],
            documents: vec![],
            tries: 3,
            secure_boot: None,
        };
        let text = serde_json::to_string(&manifest).unwrap();
        assert!(!text.contains("secure_boot"), "{text}");
        assert_eq!(
            serde_json::from_str::<ReleaseManifest>(&text).unwrap(),
            manifest
        );
        assert_eq!(manifest.enrolment().count(), 0);

        manifest.secure_boot = Some(SecureBootKeys {
            pk: artifact("keys/PK.auth"),
            kek: artifact("keys/KEK.auth"),
            db: artifact("keys/db.auth"),
        });
        let text = serde_json::to_string(&manifest).unwrap();
        assert_eq!(
            serde_json::from_str::<ReleaseManifest>(&text).unwrap(),
            manifest
        );
        assert_eq!(manifest.enrolment().count(), 3);
    }

    #[test]
    fn a_manifest_without_documents_is_read_and_written_as_before() {
        let digest = Digest::of(b"").to_string();
        let artifact = |path: &str| serde_json::json!({"path": path, "size": 0, "sha256": digest});
        let image = |path: &str| serde_json::json!({"path": path, "stored_size": 0, "size": 0, "segments": []});
        let mut old = serde_json::json!({
            "version": "2026.11.1", "architecture": "amd64", "root_hash": digest,
            "root": image("root.zst"), "verity": image("verity.zst"),
            "uki": artifact("leapserv.efi"), "boot_loader": artifact("systemd-bootx64.efi"),
            "installer": artifact("installer.efi"), "components": [], "tries": 3,
        });
        let manifest: ReleaseManifest = serde_json::from_value(old.clone()).unwrap();
        assert_eq!(serde_json::to_value(&manifest).unwrap(), old);
        old["documents"] = serde_json::json!([artifact("lock.json")]);
        let manifest: ReleaseManifest = serde_json::from_value(old.clone()).unwrap();
        assert_eq!(manifest.documents[0].path, "lock.json");
        assert_eq!(serde_json::to_value(&manifest).unwrap(), old);
    }

    #[test]
    fn documents_from_before_revisions_are_read_and_are_written_as_they_were() {
        let layer = serde_json::json!({
            "customer": "motivatit",
            "version": 1,
            "image": {"path": "layer.raw", "size": 5, "sha256": Digest::of(b"layer")},
        });
        let read: CustomerLayer = serde_json::from_value(layer.clone()).unwrap();
        assert_eq!(read.components, None);
        assert_eq!(serde_json::to_value(&read).unwrap(), layer);
        let pointer = serde_json::json!({
            "channel": "stable",
            "version": 4,
            "release": "2026.11.1",
            "manifest": Digest::of(b""),
            "expires": "2026-11-30T00:00:00Z",
        });
        let read: ChannelPointer = serde_json::from_value(pointer.clone()).unwrap();
        assert_eq!(read.revision, 0);
        assert_eq!(serde_json::to_value(&read).unwrap(), pointer);
    }

    #[test]
    fn a_unit_belongs_to_the_component_whose_name_it_bears() {
        for unit in [
            "leap-backup.service",
            "leap-backup@a.service",
            "leap-backup-verify.timer",
        ] {
            assert!(is_unit_of(unit, "backup"), "{unit}");
        }
        for unit in [
            "leap-updater.service",
            "leap-backups.service",
            "backup.service",
        ] {
            assert!(!is_unit_of(unit, "backup"), "{unit}");
        }
    }

    #[test]
    fn each_revision_has_a_manifest_of_its_own() {
        assert_eq!(manifest_path(0), "manifest.json");
        assert_eq!(manifest_path(12), "revisions/12/manifest.json");
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
