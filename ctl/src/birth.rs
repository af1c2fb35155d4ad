//! What a birth ticket says: which disk of which machine becomes which unit.
//!
//! Pure: asking the sky, signing and the clock are the caller's job.

use jiff::Timestamp;
use model::api::{MachineState, MachineView};
use model::machine::{DiskContent, DiskFacts, DiskHealth, MachineCode, MachineFacts};
use model::ticket::{BirthTicket, ForeignData, TicketDisk};
use model::{Incarnation, ReleaseVersion, UnitName};

/// The smallest disk that takes the layout (1 GiB ESP, two slots of 4 GiB with
/// their hash trees) and leaves room for data.
pub(crate) const SMALLEST_DISK: u64 = 12 << 30;

/// Why no disk was chosen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoDisk {
    /// The operator named a disk that the machine does not have.
    #[error("disk {wanted}: the machine has no disk with this serial or path; it has {found}")]
    Unknown { wanted: String, found: String },
    /// Two disks answer to the name.
    #[error("disk {wanted}: more than one disk of the machine has this serial; name its path")]
    Ambiguous { wanted: String },
    /// Removable disks are never erased.
    #[error("disk {path}: removable disks are never erased")]
    Removable { path: String },
    /// Too small.
    #[error("disk {path}: {size} bytes, expected at least {SMALLEST_DISK} (12 GiB)")]
    TooSmall { path: String, size: u64 },
    /// The rule finds none.
    #[error("machine: no fixed disk of at least 12 GiB; it has {found}")]
    None { found: String },
    /// The rule finds no two.
    #[error(
        "machine: no two fixed disks of at least {} and of like size; it has {found}",
        size(*.least)
    )]
    NoPair { least: u64, found: String },
    /// A disk is to be the mirror of itself.
    #[error("disk {path}: named twice, a mirror takes two disks")]
    Twice { path: String },
    /// More than two were named.
    #[error("disks: {named} are named, expected one, or two that mirror each other")]
    TooMany { named: usize },
}

/// What a birth erases: one disk, or two that become mirrors of each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Disks<'a> {
    pub(crate) disk: &'a DiskFacts,
    pub(crate) mirror: Option<&'a DiskFacts>,
}

impl<'a> Disks<'a> {
    pub(crate) fn one(disk: &'a DiskFacts) -> Self {
        Self { disk, mirror: None }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &'a DiskFacts> + use<'a> {
        std::iter::once(self.disk).chain(self.mirror)
    }

    /// In a few words.
    pub(crate) fn describe(&self) -> String {
        self.iter().map(describe).collect::<Vec<_>>().join(" and ")
    }
}

/// Chooses what the operator named by serial or path: one disk, two that mirror each
/// other, or, with none named, the smallest that is large enough.
pub(crate) fn choose_disks<'a>(
    facts: &'a MachineFacts,
    wanted: &[String],
) -> Result<Disks<'a>, NoDisk> {
    match wanted {
        [] => choose_disk(facts, None).map(Disks::one),
        [one] => choose_disk(facts, Some(one)).map(Disks::one),
        [one, two] => {
            let (disk, mirror) = (
                choose_disk(facts, Some(one))?,
                choose_disk(facts, Some(two))?,
            );
            if disk.path == mirror.path {
                let path = disk.path.clone();
                return Err(NoDisk::Twice { path });
            }
            let mirror = Some(mirror);
            Ok(Disks { disk, mirror })
        }
        more => Err(NoDisk::TooMany { named: more.len() }),
    }
}

/// Chooses the two smallest fixed disks of at least `least` bytes that are of like size:
/// the larger one is at most a tenth larger, all of which would be lost.
pub(crate) fn choose_pair(facts: &MachineFacts, least: u64) -> Result<Disks<'_>, NoDisk> {
    let least = least.max(SMALLEST_DISK);
    let mut fit: Vec<_> = facts
        .disks
        .iter()
        .filter(|disk| !disk.removable && disk.size >= least)
        .collect();
    fit.sort_by(|a, b| (a.size, &a.path).cmp(&(b.size, &b.path)));
    let alike = |pair: &&[&DiskFacts]| pair[1].size - pair[0].size <= pair[0].size / 10;
    let pair = fit.windows(2).find(alike).ok_or_else(|| NoDisk::NoPair {
        least,
        found: listed(facts),
    })?;
    Ok(Disks {
        disk: pair[0],
        mirror: Some(pair[1]),
    })
}

fn listed(facts: &MachineFacts) -> String {
    let mut disks: Vec<String> = facts.disks.iter().map(describe).collect();
    if disks.is_empty() {
        disks.push("none".into());
    }
    disks.join(", ")
}

/// Chooses the disk to install to: the one that the operator named by serial
/// or path, else the smallest fixed one that is large enough.
pub(crate) fn choose_disk<'a>(
    facts: &'a MachineFacts,
    wanted: Option<&str>,
) -> Result<&'a DiskFacts, NoDisk> {
    let found = || listed(facts);
    let Some(wanted) = wanted else {
        return smallest_disk(facts, SMALLEST_DISK).ok_or_else(|| NoDisk::None { found: found() });
    };
    let wanted_owned = || wanted.to_owned();
    let mut named = facts
        .disks
        .iter()
        .filter(|disk| disk.path == wanted || (!wanted.is_empty() && disk.serial == wanted));
    let disk = named.next().ok_or_else(|| NoDisk::Unknown {
        wanted: wanted_owned(),
        found: found(),
    })?;
    if named.next().is_some() {
        return Err(NoDisk::Ambiguous {
            wanted: wanted_owned(),
        });
    }
    let path = || disk.path.clone();
    if disk.removable {
        return Err(NoDisk::Removable { path: path() });
    }
    if disk.size < SMALLEST_DISK {
        return Err(NoDisk::TooSmall {
            path: path(),
            size: disk.size,
        });
    }
    Ok(disk)
}

/// Returns the smallest fixed disk of at least `least` bytes that takes the layout.
pub(crate) fn smallest_disk(facts: &MachineFacts, least: u64) -> Option<&DiskFacts> {
    facts
        .disks
        .iter()
        .filter(|disk| !disk.removable && disk.size >= least.max(SMALLEST_DISK))
        .min_by(|a, b| (a.size, &a.path).cmp(&(b.size, &b.path)))
}

/// One disk in a few words.
pub(crate) fn describe(disk: &DiskFacts) -> String {
    let mut words = vec![disk.path.clone(), size(disk.size)];
    if !disk.serial.is_empty() {
        words.push(format!("serial {}", disk.serial));
    }
    if disk.removable {
        words.push("removable".into());
    }
    words.push(
        match disk.content {
            DiskContent::Empty => "empty",
            DiskContent::Leapserv => "holds a unit",
            DiskContent::Foreign => "holds other data",
        }
        .into(),
    );
    if let Some(DiskHealth::Failing { reason }) = &disk.health {
        words.push(format!("FAILING: {reason}"));
    }
    words.join(" ")
}

/// Bytes as a person reads them.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut whole = bytes;
    let mut rest = 0;
    while whole >= 1024 && unit < UNITS.len() - 1 {
        rest = whole % 1024;
        whole /= 1024;
        unit += 1;
    }
    let tenth = rest * 10 / 1024;
    if tenth == 0 {
        format!("{whole} {}", UNITS[unit])
    } else {
        format!("{whole}.{tenth} {}", UNITS[unit])
    }
}

/// What the operator permits.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    /// Random, 32 hexadecimal digits.
    pub(crate) id: String,
    pub(crate) unit: UnitName,
    pub(crate) incarnation: Incarnation,
    pub(crate) release: ReleaseVersion,
    pub(crate) foreign_data: ForeignData,
    pub(crate) issued: Timestamp,
    pub(crate) expires: Timestamp,
}

/// Writes the ticket for `disks` of `machine`.
pub(crate) fn ticket(machine: &MachineView, disks: Disks<'_>, terms: Terms) -> BirthTicket {
    let named = |disk: &DiskFacts| TicketDisk {
        path: disk.path.clone(),
        serial: disk.serial.clone(),
        size: disk.size,
    };
    BirthTicket {
        id: terms.id,
        unit: terms.unit,
        incarnation: terms.incarnation,
        machine_serial: machine.facts.serial.clone(),
        machine_uuid: machine.facts.uuid.clone(),
        device_keys: machine.keys.fingerprint(),
        disk: named(disks.disk),
        mirror: disks.mirror.map(named),
        release: terms.release,
        foreign_data: terms.foreign_data,
        issued: terms.issued,
        expires: terms.expires,
    }
}

/// Whether the sky shows this machine with the keys that its code stands for.
///
/// A sky that swapped the keys for its own would get a ticket, and after a
/// replacement the secrets, for itself.
pub(crate) fn keys_are_the_codes(machine: &MachineView) -> bool {
    MachineCode::of(&machine.keys) == machine.code
}

/// How the operator names a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MachineName {
    /// What its screen shows.
    Code(MachineCode),
    /// Its SMBIOS serial number.
    Serial(String),
    /// A text that can be both, such as `LEAP-0002`.
    Either(MachineCode, String),
}

impl MachineName {
    /// Takes the text for a serial number, and for a code too if it can be one.
    pub(crate) fn any(text: &str) -> Self {
        match text.parse() {
            Ok(code) => Self::Either(code, text.to_owned()),
            Err(_) => Self::Serial(text.to_owned()),
        }
    }

    /// The code that is meant, if one can be.
    pub(crate) fn code(&self) -> Option<&MachineCode> {
        match self {
            Self::Code(code) | Self::Either(code, _) => Some(code),
            Self::Serial(_) => None,
        }
    }

    /// The serial number that is meant, if one can be.
    pub(crate) fn serial(&self) -> Option<&str> {
        match self {
            Self::Serial(serial) | Self::Either(_, serial) => Some(serial),
            Self::Code(_) => None,
        }
    }

    /// Finds the machine that is meant, if it has announced itself: of several
    /// with one serial (each start of the installer makes new keys, and so a
    /// new code) the one heard of last that is in its installer.
    pub(crate) fn find<'a>(&self, machines: &'a [MachineView]) -> Option<&'a MachineView> {
        // The code first: a machine can claim any serial, also one that reads
        // like the code on another machine's screen, but not another's code.
        let by_code = machines
            .iter()
            .find(|machine| self.code() == Some(&machine.code));
        by_code.or_else(|| {
            machines
                .iter()
                .filter(|machine| self.serial() == Some(&machine.facts.serial))
                .filter(|machine| {
                    matches!(
                        machine.state,
                        MachineState::Held | MachineState::Approved | MachineState::Installing
                    )
                })
                .max_by_key(|machine| machine.last_seen)
        })
    }
}

impl std::fmt::Display for MachineName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "machine {code}"),
            Self::Serial(serial) => write!(f, "machine with serial {serial}"),
            Self::Either(_, text) => write!(f, "machine {text}"),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use model::Digest;
    use model::machine::{DeviceKeys, NicFacts};

    use super::*;

    pub(crate) fn disk(path: &str, serial: &str, gib: u64) -> DiskFacts {
        DiskFacts {
            path: path.into(),
            serial: serial.into(),
            model: "QEMU".into(),
            size: gib << 30,
            removable: false,
            content: DiskContent::Empty,
            health: None,
        }
    }

    pub(crate) fn machine(serial: &str, disks: Vec<DiskFacts>) -> MachineView {
        let keys = DeviceKeys {
            csr: String::new(),
            public_key: Digest::of(serial.as_bytes()),
            recipient: "age1x".into(),
            tpm: None,
        };
        MachineView {
            pass: None,
            code: MachineCode::of(&keys),
            facts: MachineFacts {
                serial: serial.into(),
                uuid: "7f1c2f6e-0000-4000-8000-000000000001".into(),
                product: "QEMU Standard PC".into(),
                cpu: "QEMU Virtual CPU".into(),
                cpus: 2,
                memory: 2 << 30,
                disks,
                nics: vec![NicFacts {
                    name: "ens3".into(),
                    mac: "52:54:00:12:34:56".parse().unwrap(),
                    link: true,
                }],
                firmware: "uefi".into(),
                secure_boot: false,
                tpm: false,
                findings: vec![],
            },
            keys,
            state: MachineState::Held,
            unit: None,
            progress: None,
            first_seen: "2026-11-22T20:00:00Z".parse().unwrap(),
            last_seen: "2026-11-22T20:00:00Z".parse().unwrap(),
        }
    }

    #[test]
    fn the_smallest_fixed_disk_that_is_large_enough_is_chosen() {
        let mut stick = disk("/dev/sda", "USB", 16);
        stick.removable = true;
        let disks = vec![
            stick,
            disk("/dev/nvme1n1", "BIG", 4000),
            disk("/dev/sdb", "TINY", 8),
            disk("/dev/nvme0n1", "SYS", 240),
        ];
        let machine = machine("S1", disks);
        assert_eq!(choose_disk(&machine.facts, None).unwrap().serial, "SYS");
        let named = choose_disk(&machine.facts, Some("BIG")).unwrap();
        assert_eq!(named.path, "/dev/nvme1n1");
        let named = choose_disk(&machine.facts, Some("/dev/nvme1n1")).unwrap();
        assert_eq!(named.serial, "BIG");
        assert!(matches!(
            choose_disk(&machine.facts, Some("USB")),
            Err(NoDisk::Removable { .. })
        ));
        assert!(matches!(
            choose_disk(&machine.facts, Some("TINY")),
            Err(NoDisk::TooSmall { .. })
        ));
        assert!(matches!(
            choose_disk(&machine.facts, Some("OTHER")),
            Err(NoDisk::Unknown { .. })
        ));
    }

    #[test]
    fn equal_disks_are_chosen_in_one_order_and_not_by_an_ambiguous_serial() {
        let disks = vec![disk("/dev/vdb", "X", 20), disk("/dev/vda", "X", 20)];
        let machine = machine("S1", disks);
        assert_eq!(choose_disk(&machine.facts, None).unwrap().path, "/dev/vda");
        assert!(matches!(
            choose_disk(&machine.facts, Some("X")),
            Err(NoDisk::Ambiguous { .. })
        ));
    }

    #[test]
    fn a_machine_without_a_usable_disk_is_told_apart() {
        let machine = machine("S1", vec![]);
        assert_eq!(
            choose_disk(&machine.facts, None).unwrap_err().to_string(),
            "machine: no fixed disk of at least 12 GiB; it has none"
        );
    }

    #[test]
    fn the_ticket_permits_what_it_was_made_for() {
        let machine = machine("S1", vec![disk("/dev/vda", "D1", 20)]);
        let chosen = choose_disk(&machine.facts, None).unwrap();
        let ticket = ticket(
            &machine,
            Disks::one(chosen),
            Terms {
                id: "00".repeat(16),
                unit: "motivatit/houma-1".parse().unwrap(),
                incarnation: Incarnation(1),
                release: "2026.11.1".parse().unwrap(),
                foreign_data: ForeignData::Keep,
                issued: Timestamp::UNIX_EPOCH,
                expires: Timestamp::UNIX_EPOCH,
            },
        );
        assert_eq!(
            ticket.permits(&machine.facts, &machine.keys),
            Ok(vec![chosen])
        );
    }

    #[test]
    fn swapped_keys_are_noticed() {
        let mut machine = machine("S1", vec![]);
        assert!(keys_are_the_codes(&machine));
        machine.keys.recipient = "age1hostile".into();
        assert!(!keys_are_the_codes(&machine));
    }

    #[test]
    fn a_serial_means_the_machine_that_is_in_its_installer_now() {
        let mut born = machine("S1", vec![]);
        born.state = MachineState::Born;
        born.last_seen = "2026-11-22T21:00:00Z".parse().unwrap();
        let held = machine("S1", vec![]);
        let serial = MachineName::any("S1");
        assert_eq!(serial, MachineName::Serial("S1".into()));
        assert_eq!(serial.find(std::slice::from_ref(&born)), None);
        let both = [born.clone(), held.clone()];
        assert_eq!(serial.find(&both), Some(&held));
        let code = MachineName::any(born.code.as_str());
        assert_eq!(code.find(&both[..1]), Some(&born));
    }

    #[test]
    fn a_serial_that_reads_like_a_code_is_found_but_never_before_the_code() {
        let honest = machine("S1", vec![]);
        let leap = machine("LEAP-0002", vec![]);
        let name = MachineName::any("LEAP-0002");
        assert_eq!(name.find(std::slice::from_ref(&honest)), None);
        assert_eq!(name.find(&[honest.clone(), leap.clone()]), Some(&leap));
        let mut liar = machine(honest.code.as_str(), vec![]);
        liar.last_seen = "2026-11-22T21:00:00Z".parse().unwrap();
        let name = MachineName::any(honest.code.as_str());
        assert_eq!(name.find(&[liar, honest.clone()]), Some(&honest));
    }

    #[test]
    fn sizes_are_short() {
        let words = [0, 1023, 1024, 1 << 20, (20 << 30) + (600 << 20)].map(size);
        assert_eq!(words, ["0 B", "1023 B", "1 KiB", "1 MiB", "20.5 GiB"]);
    }
}
