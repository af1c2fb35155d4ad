//! The install plan: facts, ticket and manifest in, steps out. Pure: no disk,
//! no socket, no clock.

use std::fmt;

use model::machine::{DiskFacts, MachineFacts};
use model::release::{Artifact, ReleaseManifest};
use model::ticket::BirthTicket;
use model::{Architecture, Digest, ReleaseVersion};
use slots::esp::{self, Entry};
use slots::layout::LayoutError;
use slots::writer::Content;
use slots::{Layout, Part, Slot, enrol};

/// The architecture of this installer.
pub const ARCHITECTURE: Architecture = Architecture::OURS;
/// The least memory of a unit, in bytes. The firmware keeps some of a GiB.
pub const MIN_MEMORY: u64 = 700 << 20;

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Write the partition table. From here on the old content is gone.
    WriteTable,
    /// Make an empty ESP: nothing old is started any more.
    FormatEsp,
    /// Fill a partition from segments.
    WriteImage {
        /// Which image.
        content: Content,
        /// Where to.
        part: Part,
    },
    /// Fetch a signed file and place it on the ESP.
    PlaceFile {
        /// The file in the release's folder.
        artifact: Artifact,
        /// Its path on the ESP.
        path: String,
    },
    /// Place the manifest, as signed.
    PlaceManifest {
        /// Its path on the ESP.
        path: String,
    },
    /// Place the customer's layer, where there is one.
    PlaceLayer,
    /// Join the data partitions of the two disks to one device.
    MirrorData,
    /// Make the file system for data with the identity on it.
    MakeData,
    /// Read everything back.
    ReadBack,
    /// Place the boot loader. Only from here on the disk starts.
    PlaceBootLoader {
        /// The file in the release's folder.
        artifact: Artifact,
    },
}

/// A disk to be erased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedDisk {
    /// Its path.
    pub path: String,
    /// The partition table to be. That of a mirror has GUIDs of its own, but for those
    /// that the root hash gives, and everything but the end of the data at the same place.
    pub layout: Layout,
}

/// What is going to be done to a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The disks to erase: one, or two that mirror each other.
    pub disks: Vec<PlannedDisk>,
    /// The release.
    pub release: ReleaseVersion,
    /// The slot that is filled.
    pub slot: Slot,
    /// The steps in their order.
    pub actions: Vec<Action>,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanRefusal {
    /// The manifest is of another release than the ticket.
    #[error("release {found}: the ticket says {expected}")]
    OtherRelease {
        /// In the ticket.
        expected: ReleaseVersion,
        /// In the manifest.
        found: ReleaseVersion,
    },
    /// The release is for another kind of processor.
    #[error("release {release}: for {found}, this machine is {ARCHITECTURE}")]
    Architecture {
        /// The release.
        release: ReleaseVersion,
        /// What it is for.
        found: Architecture,
    },
    /// The machine was not started by UEFI.
    #[error("firmware: this machine was started by {0}, expected uefi")]
    Firmware(String),
    /// Too little memory.
    #[error("memory: {found} bytes, expected at least {MIN_MEMORY}")]
    Memory {
        /// What there is.
        found: u64,
    },
    /// The disk is too small.
    #[error("disk {path}")]
    Disk {
        /// The disk.
        path: String,
        /// How small.
        #[source]
        source: LayoutError,
    },
    /// An image does not fit its partition.
    #[error("release {release}: {part} image of {size} bytes, expected at most {room}")]
    ImageTooLarge {
        /// The release.
        release: ReleaseVersion,
        /// The partition.
        part: Part,
        /// Size of the image in bytes.
        size: u64,
        /// Size of the partition in bytes.
        room: u64,
    },
    /// A component's path would lead out of its folder.
    #[error("release {release}: component {name}: bad path {path:?}")]
    Component {
        /// The release.
        release: ReleaseVersion,
        /// The component.
        name: String,
        /// Its path.
        path: String,
    },
}

impl Plan {
    /// The table of the first disk.
    pub fn layout(&self) -> &Layout {
        &self.disks[0].layout
    }

    /// Whether the system is on two disks.
    pub fn is_mirrored(&self) -> bool {
        self.disks.len() > 1
    }
}

/// Plans an installation on the disks that the ticket permits to erase.
///
/// # Errors
/// [`PlanRefusal`]: the first reason why this machine cannot become this unit.
pub fn plan(
    facts: &MachineFacts,
    disks: &[DiskFacts],
    ticket: &BirthTicket,
    manifest: &ReleaseManifest,
) -> Result<Plan, PlanRefusal> {
    let release = manifest.version;
    if release != ticket.release {
        return Err(PlanRefusal::OtherRelease {
            expected: ticket.release,
            found: release,
        });
    }
    if manifest.architecture != ARCHITECTURE {
        return Err(PlanRefusal::Architecture {
            release,
            found: manifest.architecture,
        });
    }
    if facts.firmware != "uefi" {
        return Err(PlanRefusal::Firmware(facts.firmware.clone()));
    }
    if facts.memory < MIN_MEMORY {
        return Err(PlanRefusal::Memory {
            found: facts.memory,
        });
    }
    let slot = Slot::A;
    let disks = disks
        .iter()
        .map(|disk| plan_disk(disk, ticket, manifest, slot))
        .collect::<Result<Vec<_>, _>>()?;
    let images = [
        (Content::Root, Part::Root(slot), manifest.root.size),
        (Content::Verity, Part::Verity(slot), manifest.verity.size),
    ];
    for (_, part, size) in images {
        let room = disks[0].layout.partition(part).size;
        if size > room {
            return Err(PlanRefusal::ImageTooLarge {
                release,
                part,
                size,
                room,
            });
        }
    }
    let mut actions = vec![Action::WriteTable, Action::FormatEsp];
    actions.extend(images.map(|(content, part, _)| Action::WriteImage { content, part }));
    actions.push(Action::PlaceManifest {
        path: esp::manifest(release),
    });
    for component in &manifest.components {
        let path = esp::component(release, component).ok_or_else(|| PlanRefusal::Component {
            release,
            name: component.name.clone(),
            path: component.image.path.clone(),
        })?;
        actions.push(Action::PlaceFile {
            artifact: component.image.clone(),
            path,
        });
    }
    actions.push(Action::PlaceLayer);
    actions.push(Action::PlaceFile {
        artifact: manifest.uki.clone(),
        path: Entry::new(release, manifest.tries).path(),
    });
    if let Some(keys) = &manifest.secure_boot {
        actions.extend(
            keys.variables()
                .map(|(variable, artifact)| Action::PlaceFile {
                    artifact: artifact.clone(),
                    path: enrol::key(variable),
                }),
        );
    }
    if disks.len() > 1 {
        actions.push(Action::MirrorData);
    }
    actions.push(Action::MakeData);
    actions.push(Action::ReadBack);
    actions.push(Action::PlaceBootLoader {
        artifact: manifest.boot_loader.clone(),
    });
    Ok(Plan {
        disks,
        release,
        slot,
        actions,
    })
}

fn plan_disk(
    disk: &DiskFacts,
    ticket: &BirthTicket,
    manifest: &ReleaseManifest,
    slot: Slot,
) -> Result<PlannedDisk, PlanRefusal> {
    // The ticket's number is random and used once, so these GUIDs are no other disk's.
    // Disks without a serial number differ by their paths.
    let name = match disk.serial.as_str() {
        "" => &disk.path,
        serial => serial,
    };
    let seed = Digest::of(format!("{}\n{name}\n", ticket.id).as_bytes());
    let layout = Layout::plan(disk.size, &seed, manifest.architecture);
    let mut layout = layout.map_err(|source| PlanRefusal::Disk {
        path: disk.path.clone(),
        source,
    })?;
    layout.set_slot(slot, &manifest.root_hash);
    Ok(PlannedDisk {
        path: disk.path.clone(),
        layout,
    })
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WriteTable => f.write_str("erase: write the partition table"),
            Self::FormatEsp => f.write_str("format the ESP"),
            Self::WriteImage { part, .. } => write!(f, "write {part}"),
            Self::PlaceFile { artifact, path } => write!(f, "place {} at {path}", artifact.path),
            Self::PlaceManifest { path } => write!(f, "place the manifest at {path}"),
            Self::PlaceLayer => f.write_str("place the customer's layer"),
            Self::MirrorData => f.write_str("mirror the data partitions"),
            Self::MakeData => f.write_str("make the data partition with the identity"),
            Self::ReadBack => f.write_str("read everything back"),
            Self::PlaceBootLoader { .. } => f.write_str("place the boot loader"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;
    use model::Incarnation;
    use model::machine::DiskContent;
    use model::release::{Component, SecureBootKeys, SegmentedImage};
    use model::ticket::{ForeignData, TicketDisk};

    fn artifact(path: &str) -> Artifact {
        Artifact {
            path: path.into(),
            size: 1,
            sha256: Digest::of(b"x"),
        }
    }

    fn image(path: &str) -> SegmentedImage {
        SegmentedImage {
            path: path.into(),
            stored_size: 0,
            size: 0,
            segments: vec![],
        }
    }

    fn manifest() -> ReleaseManifest {
        ReleaseManifest {
            version: "2026.11.1".parse().unwrap(),
            revision: 0,
            architecture: model::Architecture::Amd64,
            root_hash: Digest::of(b"root"),
            root: image("root.zst"),
            verity: image("verity.zst"),
            uki: artifact("leapserv.efi"),
            boot_loader: artifact("systemd-boot.efi"),
            installer: artifact("installer.efi"),
            components: vec![Component {
                name: "backup".into(),
                version: "1".into(),
                image: artifact("leap-backup.raw"),
                verity: None,
            }],
            documents: Vec::new(),
            tries: 3,
            secure_boot: None,
        }
    }

    fn facts() -> MachineFacts {
        MachineFacts {
            serial: "S".into(),
            uuid: "u".into(),
            product: String::new(),
            cpu: String::new(),
            cpus: 2,
            memory: 2 << 30,
            disks: vec![DiskFacts {
                path: "/dev/vda".into(),
                serial: "D".into(),
                model: String::new(),
                size: 12 << 30,
                removable: false,
                content: DiskContent::Empty,
                health: None,
            }],
            nics: vec![],
            firmware: "uefi".into(),
            secure_boot: false,
            tpm: false,
            findings: vec![],
        }
    }

    fn ticket() -> BirthTicket {
        BirthTicket {
            id: "00".repeat(16),
            unit: "motivatit/houma-1".parse().unwrap(),
            incarnation: Incarnation(1),
            machine_serial: "S".into(),
            machine_uuid: "u".into(),
            device_keys: Digest::of(b"keys"),
            disk: TicketDisk {
                path: "/dev/vda".into(),
                serial: "D".into(),
                size: 12 << 30,
            },
            mirror: None,
            release: "2026.11.1".parse().unwrap(),
            foreign_data: ForeignData::Keep,
            issued: Timestamp::UNIX_EPOCH,
            expires: Timestamp::UNIX_EPOCH,
        }
    }

    fn refusal(change: impl FnOnce(&mut MachineFacts, &mut ReleaseManifest)) -> String {
        let (mut facts, mut manifest) = (facts(), manifest());
        change(&mut facts, &mut manifest);
        plan(&facts, &facts.disks, &ticket(), &manifest)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn the_disk_starts_only_after_everything_else_is_there() {
        let facts = facts();
        let plan = plan(&facts, &facts.disks, &ticket(), &manifest()).unwrap();
        let text: Vec<String> = plan.actions.iter().map(ToString::to_string).collect();
        assert_eq!(
            text,
            [
                "erase: write the partition table",
                "format the ESP",
                "write root-a",
                "write verity-a",
                "place the manifest at leapserv/releases/2026.11.1/manifest.json",
                "place leap-backup.raw at leapserv/releases/2026.11.1/leap-backup.raw",
                "place the customer's layer",
                "place leapserv.efi at EFI/Linux/leapserv_2026.11.1+3.efi",
                "make the data partition with the identity",
                "read everything back",
                "place the boot loader",
            ]
        );
        assert_eq!(plan.layout().slot_of(&manifest().root_hash), Some(Slot::A));
    }

    #[test]
    fn a_mirror_has_the_same_slots_and_its_own_names() {
        let mut facts = facts();
        facts.disks.push(DiskFacts {
            path: "/dev/vdb".into(),
            serial: String::new(),
            size: 13 << 30,
            ..facts.disks[0].clone()
        });
        let plan = plan(&facts, &facts.disks, &ticket(), &manifest()).unwrap();
        let [one, two] = &plan.disks[..] else {
            panic!("two disks")
        };
        assert_ne!(one.layout.disk_guid, two.layout.disk_guid);
        for part in Part::ALL {
            let (a, b) = (one.layout.partition(part), two.layout.partition(part));
            assert_eq!(a.start, b.start);
            let names_the_root = matches!(part, Part::Root(Slot::A) | Part::Verity(Slot::A));
            assert_eq!(a.guid == b.guid, names_the_root, "{part}");
        }
        let joined = plan.actions.iter().position(|a| *a == Action::MirrorData);
        let made = plan.actions.iter().position(|a| *a == Action::MakeData);
        assert_eq!(joined.map(|at| at + 1), made);
    }

    #[test]
    fn secure_boot_keys_are_placed_before_the_disk_starts() {
        let facts = facts();
        let mut manifest = manifest();
        manifest.secure_boot = Some(SecureBootKeys {
            pk: artifact("keys/PK.auth"),
            kek: artifact("keys/KEK.auth"),
            db: artifact("keys/db.auth"),
        });
        let plan = plan(&facts, &facts.disks, &ticket(), &manifest).unwrap();
        let text: Vec<String> = plan.actions.iter().map(ToString::to_string).collect();
        assert_eq!(
            text[8..],
            [
                "place keys/PK.auth at loader/keys/auto/PK.auth",
                "place keys/KEK.auth at loader/keys/auto/KEK.auth",
                "place keys/db.auth at loader/keys/auto/db.auth",
                "make the data partition with the identity",
                "read everything back",
                "place the boot loader",
            ]
        );
    }

    #[test]
    fn the_same_input_gives_the_same_plan_and_another_ticket_other_guids() {
        let facts = facts();
        let disk = &facts.disks;
        let one = plan(&facts, disk, &ticket(), &manifest()).unwrap();
        assert_eq!(one, plan(&facts, disk, &ticket(), &manifest()).unwrap());
        let mut other = ticket();
        other.id = "11".repeat(16);
        let other = plan(&facts, disk, &other, &manifest()).unwrap();
        assert_ne!(one.layout().disk_guid, other.layout().disk_guid);
    }

    #[test]
    fn each_refusal_is_told() {
        let cases: [(&str, String); 6] = [
            (
                "ticket says",
                refusal(|_, m| m.version = "2026.11.2".parse().unwrap()),
            ),
            (
                "this machine is",
                refusal(|_, m| m.architecture = model::Architecture::Arm64),
            ),
            ("expected uefi", refusal(|f, _| f.firmware = "bios".into())),
            ("memory", refusal(|f, _| f.memory = 1 << 20)),
            ("disk /dev/vda", refusal(|f, _| f.disks[0].size = 4 << 30)),
            (
                "bad path",
                refusal(|_, m| m.components[0].image.path = "../x".into()),
            ),
        ];
        for (expected, refusal) in cases {
            assert!(refusal.contains(expected), "{refusal}");
        }
        let large = refusal(|_, m| m.root.size = 5 << 30);
        assert!(large.contains("root-a image"), "{large}");
    }
}
