//! The birth ticket: the only permission to erase a disk.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::id::{Digest, Incarnation, ReleaseVersion, UnitName};
use crate::machine::{DeviceKeys, DiskContent, DiskFacts, MachineFacts};
use crate::trust::{Document, Role};

/// A signed, single-use, expiring permission to erase *this disk* of *this
/// machine* and make it *this unit*.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BirthTicket {
    /// Random, 32 hexadecimal digits; the ledger burns it at first use.
    pub id: String,
    /// What the machine becomes.
    pub unit: UnitName,
    /// Which incarnation of it.
    pub incarnation: Incarnation,
    /// SMBIOS serial number of the machine.
    pub machine_serial: String,
    /// SMBIOS UUID of the machine.
    pub machine_uuid: String,
    /// [`DeviceKeys::fingerprint`] of the keys that the machine made.
    pub device_keys: Digest,
    /// The disk to erase.
    pub disk: TicketDisk,
    /// A second disk to erase, where the system is mirrored on two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<TicketDisk>,
    /// What is installed.
    pub release: ReleaseVersion,
    /// Whether a disk that holds data which is not ours may be erased.
    pub foreign_data: ForeignData,
    /// When it was signed.
    pub issued: Timestamp,
    /// When it stops to count.
    pub expires: Timestamp,
}

impl Document for BirthTicket {
    const TYPE: &'static str = "application/vnd.leapserv.birth-ticket+json";
    const ROLE: Role = Role::Configuration;

    fn expires(&self) -> Option<Timestamp> {
        Some(self.expires)
    }
}

/// The disk that a ticket names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TicketDisk {
    /// Device path when the facts were taken.
    pub path: String,
    /// Serial number; where the disk has none, path and size must do.
    pub serial: String,
    /// Size in bytes.
    pub size: u64,
}

/// Whether a disk that holds data which is not ours may be erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForeignData {
    /// No: the machine is held.
    Keep,
    /// Yes: the operator has said so.
    Erase,
}

/// Why a ticket does not permit an erase.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TicketRefusal {
    /// The ticket is for other hardware.
    #[error("ticket {id}: made for machine serial {expected:?}, this one is {found:?}")]
    OtherMachine {
        /// The ticket.
        id: String,
        /// Serial in the ticket.
        expected: String,
        /// Serial of this machine.
        found: String,
    },
    /// The ticket is for keys that this machine has not made.
    #[error("ticket {id}: made for other device keys than this machine's")]
    OtherKeys {
        /// The ticket.
        id: String,
    },
    /// No disk of this machine is the one that the ticket names.
    #[error("ticket {id}: no disk with serial {serial:?} and {size} bytes")]
    NoSuchDisk {
        /// The ticket.
        id: String,
        /// Serial in the ticket.
        serial: String,
        /// Size in the ticket.
        size: u64,
    },
    /// A disk is to be the mirror of itself.
    #[error("ticket {id}: names disk {path} twice, expected two disks")]
    SameDisk {
        /// The ticket.
        id: String,
        /// The disk.
        path: String,
    },
    /// The disk is removable.
    #[error("disk {path}: removable disks are never erased")]
    Removable {
        /// The disk.
        path: String,
    },
    /// The disk holds data that is not ours.
    #[error("disk {path}: holds data that is not ours, and ticket {id} does not say to erase it")]
    ForeignData {
        /// The ticket.
        id: String,
        /// The disk.
        path: String,
    },
}

impl BirthTicket {
    /// Returns what is to be erased: one disk, or two that become mirrors.
    pub fn disks(&self) -> impl Iterator<Item = &TicketDisk> {
        std::iter::once(&self.disk).chain(&self.mirror)
    }

    /// Returns the disks that may be erased, in the order of the ticket, or says why none may.
    ///
    /// # Errors
    /// The first reason found.
    pub fn permits<'a>(
        &self,
        facts: &'a MachineFacts,
        keys: &DeviceKeys,
    ) -> Result<Vec<&'a DiskFacts>, TicketRefusal> {
        let id = || self.id.clone();
        if facts.serial != self.machine_serial || facts.uuid != self.machine_uuid {
            return Err(TicketRefusal::OtherMachine {
                id: id(),
                expected: self.machine_serial.clone(),
                found: facts.serial.clone(),
            });
        }
        if keys.fingerprint() != self.device_keys {
            return Err(TicketRefusal::OtherKeys { id: id() });
        }
        let mut permitted: Vec<&DiskFacts> = Vec::new();
        for named in self.disks() {
            let disk = self.permitted(named, facts)?;
            if permitted.iter().any(|other| other.path == disk.path) {
                return Err(TicketRefusal::SameDisk {
                    id: id(),
                    path: disk.path.clone(),
                });
            }
            permitted.push(disk);
        }
        Ok(permitted)
    }

    fn permitted<'a>(
        &self,
        named: &TicketDisk,
        facts: &'a MachineFacts,
    ) -> Result<&'a DiskFacts, TicketRefusal> {
        let id = || self.id.clone();
        let disk = facts
            .disks
            .iter()
            .find(|disk| {
                disk.size == named.size
                    && disk.serial == named.serial
                    && (!disk.serial.is_empty() || disk.path == named.path)
            })
            .ok_or_else(|| TicketRefusal::NoSuchDisk {
                id: id(),
                serial: named.serial.clone(),
                size: named.size,
            })?;
        let path = || disk.path.clone();
        if disk.removable {
            return Err(TicketRefusal::Removable { path: path() });
        }
        match (&disk.content, self.foreign_data) {
            (DiskContent::Foreign, ForeignData::Keep) => Err(TicketRefusal::ForeignData {
                id: id(),
                path: path(),
            }),
            _ => Ok(disk),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> MachineFacts {
        MachineFacts {
            serial: "S1".into(),
            uuid: "u1".into(),
            product: String::new(),
            cpu: String::new(),
            cpus: 2,
            memory: 1 << 30,
            disks: vec![DiskFacts {
                path: "/dev/vda".into(),
                serial: "D1".into(),
                model: String::new(),
                size: 10 << 30,
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

    fn keys() -> DeviceKeys {
        DeviceKeys {
            csr: String::new(),
            public_key: Digest::of(b"key"),
            recipient: "age1".into(),
            tpm: None,
        }
    }

    fn ticket() -> BirthTicket {
        BirthTicket {
            id: "00".repeat(16),
            unit: "motivatit/houma-1".parse().unwrap(),
            incarnation: Incarnation(1),
            machine_serial: "S1".into(),
            machine_uuid: "u1".into(),
            device_keys: keys().fingerprint(),
            disk: TicketDisk {
                path: "/dev/vda".into(),
                serial: "D1".into(),
                size: 10 << 30,
            },
            mirror: None,
            release: "2026.11.1".parse().unwrap(),
            foreign_data: ForeignData::Keep,
            issued: Timestamp::UNIX_EPOCH,
            expires: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn the_right_machine_may_erase_the_right_disk() {
        let facts = facts();
        assert_eq!(ticket().permits(&facts, &keys()), Ok(vec![&facts.disks[0]]));
    }

    #[test]
    fn a_clone_with_other_keys_is_refused() {
        let mut clone = keys();
        clone.public_key = Digest::of(b"clone");
        assert!(matches!(
            ticket().permits(&facts(), &clone),
            Err(TicketRefusal::OtherKeys { .. })
        ));
    }

    #[test]
    fn another_machine_disk_or_content_is_refused() {
        let mut other = facts();
        other.serial = "S2".into();
        assert!(matches!(
            ticket().permits(&other, &keys()),
            Err(TicketRefusal::OtherMachine { .. })
        ));
        let mut other = facts();
        other.disks[0].serial = "D2".into();
        assert!(matches!(
            ticket().permits(&other, &keys()),
            Err(TicketRefusal::NoSuchDisk { .. })
        ));
        let mut other = facts();
        other.disks[0].removable = true;
        assert!(matches!(
            ticket().permits(&other, &keys()),
            Err(TicketRefusal::Removable { .. })
        ));
        let mut other = facts();
        other.disks[0].content = DiskContent::Foreign;
        assert!(matches!(
            ticket().permits(&other, &keys()),
            Err(TicketRefusal::ForeignData { .. })
        ));
        let mut erase = ticket();
        erase.foreign_data = ForeignData::Erase;
        assert!(erase.permits(&other, &keys()).is_ok());
    }

    #[test]
    fn both_disks_of_a_mirror_have_to_be_fit() {
        let second = DiskFacts {
            path: "/dev/vdb".into(),
            serial: "D2".into(),
            ..facts().disks[0].clone()
        };
        let mut two = facts();
        two.disks.push(second.clone());
        let named = |serial: &str| TicketDisk {
            serial: serial.into(),
            ..ticket().disk
        };
        let mut ticket = ticket();
        ticket.mirror = Some(named("D2"));
        assert_eq!(
            ticket.permits(&two, &keys()),
            Ok(two.disks.iter().collect())
        );
        assert!(matches!(
            ticket.permits(&facts(), &keys()),
            Err(TicketRefusal::NoSuchDisk { .. })
        ));
        let mut used = two.clone();
        used.disks[1].content = DiskContent::Foreign;
        assert!(matches!(
            ticket.permits(&used, &keys()),
            Err(TicketRefusal::ForeignData { .. })
        ));
        ticket.mirror = Some(named("D1"));
        assert!(matches!(
            ticket.permits(&two, &keys()),
            Err(TicketRefusal::SameDisk { .. })
        ));
    }

    #[test]
    fn a_ticket_for_one_disk_reads_as_it_always_has() {
        let text = serde_json::to_string(&ticket()).unwrap();
        assert!(!text.contains("mirror"), "{text}");
        assert_eq!(
            serde_json::from_str::<BirthTicket>(&text).unwrap(),
            ticket()
        );
    }
}
