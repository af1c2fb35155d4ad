//! What DHCP, TFTP and HTTP are told: one verdict for one machine, whichever
//! way it asks.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use jiff::Timestamp;
use model::machine::MachineCode;
use model::{Architecture, MacAddr};
use pxe::boot::{
    BootAnswer, BootEvent, BootFile, BootRequest, BootSource, ClientArch, ClientClass, DhcpOutcome,
    FileOutcome, MachineUuid, NotServed, Protocol,
};

use super::birth::Boot;
use super::cache::{Cache, Current};
use super::ledger::{Claim, Ledger, MachineRecord};
use super::metrics::Metrics;
use super::story::{Stories, Story, StoryLine};

/// Path of the installer, by TFTP and HTTP.
pub const INSTALLER: &str = "boot/installer.efi";
/// Path of the program that starts the machine's own disk.
pub const LOCAL_BOOT: &str = "boot/local.efi";
/// Path of the script that tells iPXE on a machine of another kind what is wrong with it.
pub const OTHER_FIRMWARE: &str = "boot/other-firmware.ipxe";

/// Path of iPXE for BIOS, which shows that script where the card's own ROM could not.
pub const IPXE: &str = "boot/undionly.kpxe";

/// What goes wrong with an unsigned answer, and the remedy.
pub const UNSIGNED_ANSWER: &str = "a machine that enforces the release's Secure Boot keys \
     refuses the program that starts its disk: sign it and name it as local_boot";

/// Addresses whose machine is remembered, at most.
const ADDRESSES: usize = 1 << 16;

/// What is here to boot.
pub trait Releases: std::fmt::Debug + Send + Sync {
    /// The release that machines are given now, once its installer is here.
    fn current(&self) -> Option<Current>;
}

impl Releases for Cache {
    fn current(&self) -> Option<Current> {
        Cache::current(self)
    }
}

/// Programs of the operator's host that machines are given.
#[derive(Debug, Clone, Default)]
pub struct Programs {
    /// Starts a machine's own disk; without it `pxe` has one.
    pub local_boot: Option<PathBuf>,
    /// iPXE for BIOS: Debian's `undionly.kpxe`.
    pub ipxe: Option<PathBuf>,
}

/// The factory's answers to machines that boot.
#[derive(Debug)]
pub struct Bench {
    ledger: Arc<Ledger>,
    releases: Arc<dyn Releases>,
    stories: Arc<Stories>,
    clock: fn() -> Timestamp,
    /// What is counted.
    pub metrics: Metrics,
    programs: Programs,
    /// Which machine was given an address. A guess for the servers of files,
    /// who see no more of a machine; what counts was decided by DHCP.
    addresses: RwLock<HashMap<IpAddr, (MacAddr, Option<MachineUuid>)>>,
    /// The last thing told of a machine, so that what repeats is told once.
    last: Mutex<HashMap<BTreeSet<MacAddr>, String>>,
}

impl Bench {
    /// Puts the parts together.
    pub fn new(
        ledger: Arc<Ledger>,
        releases: Arc<impl Releases + 'static>,
        stories: Arc<Stories>,
        clock: fn() -> Timestamp,
        programs: Programs,
    ) -> Self {
        Self {
            ledger,
            releases,
            stories,
            clock,
            metrics: Metrics::default(),
            programs,
            addresses: RwLock::default(),
            last: Mutex::default(),
        }
    }

    fn record(&self, mac: MacAddr, uuid: Option<MachineUuid>) -> Option<MachineRecord> {
        let text = uuid.map(|uuid| uuid.to_string());
        let swapped = uuid.map(|uuid| in_wire_order(&uuid));
        self.ledger.find(Claim {
            macs: &[mac],
            uuid: text.as_deref(),
            swapped: swapped.as_deref(),
            serial: "",
        })
    }

    /// The kind of machine that units are.
    fn units(&self) -> ClientArch {
        let current = self.releases.current();
        let architecture = current.map_or(Architecture::OURS, |current| current.architecture);
        match architecture {
            Architecture::Amd64 => ClientArch::UefiX64,
            Architecture::Arm64 => ClientArch::UefiArm64,
        }
    }

    /// Whether machines that are born here will refuse what they are answered afterwards:
    /// the program that starts their disk is not signed with the keys that they enforce.
    #[must_use]
    pub fn answer_is_unsigned(&self) -> bool {
        let current = self.releases.current();
        self.programs.local_boot.is_none() && current.is_some_and(|current| current.enrols_keys)
    }

    fn boot(&self, mac: MacAddr, uuid: Option<MachineUuid>) -> Boot {
        self.record(mac, uuid)
            .map_or(Boot::Installer, |record| record.birth.boot())
    }

    /// Returns the machine that was given an address.
    pub fn at(&self, address: IpAddr) -> Option<MacAddr> {
        let addresses = self.addresses.read();
        let addresses = addresses.unwrap_or_else(PoisonError::into_inner);
        addresses.get(&address).map(|(mac, _)| *mac)
    }

    /// Adds a line to the story of the machine with the keys of `code`.
    pub fn tell(&self, code: &MachineCode, address: Option<IpAddr>, by: &str, text: String) {
        let macs = self
            .ledger
            .by_code(code)
            .map(|record| record.macs)
            .unwrap_or_default();
        self.tell_macs(macs, address, by, text);
    }

    /// Adds a line to a machine's story, unless it repeats the line before.
    pub fn tell_macs(
        &self,
        macs: BTreeSet<MacAddr>,
        address: Option<IpAddr>,
        by: &str,
        text: String,
    ) {
        {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            if last.get(&macs) == Some(&text) {
                return;
            }
            // Only to keep repetitions out: in a flood it may forget.
            if last.len() > 10_000 {
                last.clear();
            }
            last.insert(macs.clone(), text.clone());
        }
        self.stories.tell(StoryLine {
            time: (self.clock)(),
            macs,
            address,
            by: by.to_owned(),
            text,
        });
    }

    /// Returns all that is known of a machine.
    pub fn story(&self, mac: MacAddr) -> Story {
        let record = self.record(mac, None);
        let boot = record
            .as_ref()
            .map_or(Boot::Installer, |record| record.birth.boot());
        let macs = record
            .as_ref()
            .map_or_else(|| BTreeSet::from([mac]), |record| record.macs.clone());
        let (boots, reason) = match boot {
            Boot::Installer => ("installer", None),
            Boot::LocalDisk(reason) => ("local-disk", Some(reason.to_owned())),
        };
        Story {
            lines: self.stories.lines_of(&macs),
            macs,
            state: record
                .as_ref()
                .map_or("unknown", |record| record.birth.word())
                .to_owned(),
            boots: boots.to_owned(),
            reason,
            serial: record
                .as_ref()
                .map(|record| record.serial.clone())
                .unwrap_or_default(),
            unit: record
                .as_ref()
                .and_then(|record| record.unit.as_ref())
                .map(ToString::to_string),
            code: record
                .as_ref()
                .and_then(|record| record.birth.code())
                .map(ToString::to_string),
        }
    }
}

/// The UUID as those show it who take its first fields for big-endian.
fn in_wire_order(uuid: &MachineUuid) -> String {
    let mut other = uuid.0;
    other[0..4].reverse();
    other[4..6].reverse();
    other[6..8].reverse();
    MachineUuid(other).to_string()
}

/// Why a machine cannot be born, in words for the operator.
fn other_kind(units: ClientArch, machine: ClientArch) -> String {
    format!(
        "units are {units} machines and this one boots as {machine}: \
         switch the firmware to UEFI network boot"
    )
}

/// What iPXE shows on a machine of another kind, before the firmware goes on to the next
/// boot device.
fn other_firmware(units: ClientArch) -> String {
    format!(
        "#!ipxe\n\
         echo\n\
         echo LeapServ: units are {units} machines\n\
         echo This one was started by ${{platform}} firmware (${{buildarch}}):\n\
         echo switch the firmware to UEFI network boot\n\
         echo\n\
         sleep 20\n\
         exit\n"
    )
}

impl BootSource for Bench {
    fn decide(&self, request: &BootRequest) -> BootAnswer {
        let boots = request.client_class != ClientClass::Other;
        if let Boot::LocalDisk(reason) = self.boot(request.mac, request.uuid) {
            if boots && self.programs.local_boot.is_some() && request.arch == pxe::local_boot::ARCH
            {
                return BootAnswer::Boot {
                    tftp_path: LOCAL_BOOT.into(),
                    http_path: LOCAL_BOOT.into(),
                };
            }
            let hint = if self.answer_is_unsigned() {
                format!("; {UNSIGNED_ANSWER}")
            } else {
                String::new()
            };
            return BootAnswer::LocalDisk {
                reason: format!("{reason}{hint}"),
            };
        }
        let units = self.units();
        if boots && request.arch != units {
            // Of all clients that cannot be born, this one can show the reason.
            if request.client_class == ClientClass::Ipxe {
                return BootAnswer::Boot {
                    tftp_path: OTHER_FIRMWARE.into(),
                    http_path: OTHER_FIRMWARE.into(),
                };
            }
            // Or fetches what can. It asks again, as iPXE: there is no loop.
            let bios = (request.client_class, request.arch) == (ClientClass::Pxe, ClientArch::Bios);
            if bios && self.programs.ipxe.is_some() {
                return BootAnswer::Boot {
                    tftp_path: IPXE.into(),
                    http_path: IPXE.into(),
                };
            }
            return BootAnswer::LocalDisk {
                reason: other_kind(units, request.arch),
            };
        }
        if boots && self.releases.current().is_none() {
            return BootAnswer::Ignore {
                reason: "no release is here yet: publish one on the channel".into(),
            };
        }
        BootAnswer::Boot {
            tftp_path: INSTALLER.into(),
            http_path: INSTALLER.into(),
        }
    }

    fn open(&self, peer: IpAddr, path: &str) -> Result<BootFile, NotServed> {
        if path == LOCAL_BOOT {
            let program = self
                .programs
                .local_boot
                .clone()
                .ok_or(NotServed::NotFound)?;
            return Ok(BootFile::Path(program));
        }
        if path == IPXE {
            let program = self.programs.ipxe.clone().ok_or(NotServed::NotFound)?;
            return Ok(BootFile::Path(program));
        }
        if path == OTHER_FIRMWARE {
            return Ok(BootFile::Bytes(other_firmware(self.units()).into()));
        }
        if path != INSTALLER {
            return Err(NotServed::NotFound);
        }
        let machine = self
            .addresses
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&peer)
            .copied();
        // What DHCP denies is not to be had by asking for the file.
        if let Some((mac, uuid)) = machine
            && let Boot::LocalDisk(reason) = self.boot(mac, uuid)
        {
            return Err(NotServed::Refused(format!("boot the local disk: {reason}")));
        }
        let current = self.releases.current();
        let current = current.ok_or_else(|| NotServed::Failed("no release is here yet".into()))?;
        Ok(BootFile::Path(current.installer))
    }

    fn leased(&self, address: std::net::Ipv4Addr, mac: MacAddr) {
        let addresses = self.addresses.write();
        let mut addresses = addresses.unwrap_or_else(PoisonError::into_inner);
        addresses.insert(IpAddr::V4(address), (mac, None));
    }

    fn observe(&self, event: &BootEvent) {
        self.metrics.observe(event);
        let mut text = event.to_string();
        match event {
            BootEvent::Dhcp {
                request, outcome, ..
            } => {
                if let DhcpOutcome::Replied {
                    address: Some(address),
                    ..
                } = outcome
                {
                    let mut addresses = self
                        .addresses
                        .write()
                        .unwrap_or_else(PoisonError::into_inner);
                    // A later question of the same machine may lack the UUID.
                    let uuid = request.uuid.or_else(|| {
                        let (mac, uuid) = *addresses.get(address)?;
                        uuid.filter(|_| mac == request.mac)
                    });
                    // There is no end to the addresses that a flood can have by IPv6.
                    if addresses.len() < ADDRESSES || addresses.contains_key(address) {
                        addresses.insert(*address, (request.mac, uuid));
                    }
                }
                if let DhcpOutcome::Replied {
                    boot_file: Some(file),
                    ..
                } = outcome
                    && (file.ends_with(OTHER_FIRMWARE) || file.ends_with(IPXE))
                {
                    text.push_str(": ");
                    text.push_str(&other_kind(self.units(), request.arch));
                }
                let by = match request.protocol {
                    Protocol::ProxyDhcp => "proxy-dhcp",
                    Protocol::Dhcp6 => "dhcp6",
                    Protocol::Dhcp | Protocol::Tftp | Protocol::Http => "dhcp",
                };
                self.tell_macs(BTreeSet::from([request.mac]), None, by, text);
            }
            BootEvent::File {
                protocol,
                peer,
                outcome,
                path,
            } => {
                // The installer's ranges come by the hundred; its progress tells them.
                let ranges = path.starts_with("v1/");
                if ranges && !matches!(outcome, FileOutcome::Refused { .. }) {
                    return;
                }
                let by = match protocol {
                    Protocol::Tftp => "tftp",
                    Protocol::Http | Protocol::Dhcp | Protocol::ProxyDhcp | Protocol::Dhcp6 => {
                        "http"
                    }
                };
                let macs = self.at(*peer).into_iter().collect();
                self.tell_macs(macs, Some(*peer), by, text);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use pxe::boot::DhcpMessage;
    use pxe::dhcp::options::MessageType;

    use super::*;

    #[derive(Debug)]
    struct Offered(Option<Current>);

    impl Releases for Offered {
        fn current(&self) -> Option<Current> {
            self.0.clone()
        }
    }

    fn asks(arch: ClientArch, client_class: ClientClass) -> BootRequest {
        BootRequest {
            mac: MacAddr([0x52, 0x54, 0, 0, 0, 1]),
            uuid: None,
            arch,
            client_class,
            protocol: Protocol::Dhcp,
            relay: None,
        }
    }

    #[test]
    fn ipxe_on_a_machine_of_another_kind_is_given_a_script_that_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let bench = Bench::new(
            Arc::new(Ledger::open(&at("machines.jsonl")).unwrap()),
            Arc::new(Offered(None)),
            Arc::new(Stories::open(&at("stories.jsonl")).unwrap()),
            || Timestamp::UNIX_EPOCH,
            Programs::default(),
        );
        let other = match bench.units() {
            ClientArch::UefiX64 => ClientArch::UefiArm64,
            _ => ClientArch::UefiX64,
        };
        for arch in [ClientArch::Bios, other] {
            let request = asks(arch, ClientClass::Ipxe);
            let answer = bench.decide(&request);
            let BootAnswer::Boot {
                tftp_path,
                http_path,
            } = answer
            else {
                panic!("{answer:?}")
            };
            assert_eq!(tftp_path, http_path);
            // The operator is told the reason too.
            bench.observe(&BootEvent::Dhcp {
                request,
                xid: 1,
                message: DhcpMessage::V4(MessageType::Discover),
                outcome: DhcpOutcome::Replied {
                    message: DhcpMessage::V4(MessageType::Offer),
                    address: Some([10, 77, 0, 100].into()),
                    boot_file: Some(format!("http://10.77.0.1:8080/{http_path}")),
                    note: None,
                },
            });
            let story = bench.story(MacAddr([0x52, 0x54, 0, 0, 0, 1]));
            let last = story.lines.last().unwrap();
            let reason = format!("this one boots as {arch}: switch the firmware");
            assert!(last.text.contains(&reason), "{}", last.text);
            let file = bench.open([10, 77, 0, 100].into(), &http_path).unwrap();
            let BootFile::Bytes(script) = file else {
                panic!("{file:?}")
            };
            let script = String::from_utf8(script.to_vec()).unwrap();
            assert!(script.starts_with("#!ipxe\n"), "{script}");
            let told = format!("units are {} machines", bench.units());
            assert!(script.contains(&told), "{script}");
            // What shows no script boots its disk, with the reason in its story.
            let answer = bench.decide(&asks(arch, ClientClass::Pxe));
            assert!(matches!(answer, BootAnswer::LocalDisk { .. }), "{answer:?}");
        }
        // One of our kind is no such case.
        let answer = bench.decide(&asks(bench.units(), ClientClass::Ipxe));
        assert!(matches!(answer, BootAnswer::Ignore { .. }), "{answer:?}");
    }

    #[test]
    fn a_bios_that_shows_no_script_is_given_ipxe_and_then_the_script() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let programs = Programs {
            ipxe: Some("/undionly.kpxe".into()),
            ..Programs::default()
        };
        let bench = Bench::new(
            Arc::new(Ledger::open(&at("machines.jsonl")).unwrap()),
            Arc::new(Offered(None)),
            Arc::new(Stories::open(&at("stories.jsonl")).unwrap()),
            || Timestamp::UNIX_EPOCH,
            programs,
        );
        let path = |arch, class| match bench.decide(&asks(arch, class)) {
            BootAnswer::Boot { tftp_path, .. } => Some(tftp_path),
            BootAnswer::LocalDisk { .. } | BootAnswer::Ignore { .. } => None,
        };
        let (bios, pxe) = (ClientArch::Bios, ClientClass::Pxe);
        assert_eq!(path(bios, pxe).as_deref(), Some(IPXE));
        assert_eq!(
            path(bios, ClientClass::Ipxe).as_deref(),
            Some(OTHER_FIRMWARE)
        );
        assert_eq!(path(ClientArch::UefiIa32, pxe), None, "a program for BIOS");
        let file = bench.open([10, 77, 0, 100].into(), IPXE);
        assert_eq!(file, Ok(BootFile::Path("/undionly.kpxe".into())));
    }

    #[test]
    fn an_answer_that_enforcing_machines_refuse_is_told_with_its_remedy() {
        for (enrols_keys, local_boot, expected) in [
            (true, None, true),
            (true, Some("/signed.efi".into()), false),
            (false, None, false),
        ] {
            let current = Current {
                version: "2026.11.1".parse().unwrap(),
                architecture: Architecture::OURS,
                enrols_keys,
                installer: "installer.efi".into(),
            };
            let folder = tempfile::tempdir().unwrap();
            let at = |name: &str| folder.path().join(name);
            let bench = Bench::new(
                Arc::new(Ledger::open(&at("machines.jsonl")).unwrap()),
                Arc::new(Offered(Some(current))),
                Arc::new(Stories::open(&at("stories.jsonl")).unwrap()),
                || Timestamp::UNIX_EPOCH,
                Programs {
                    local_boot,
                    ipxe: None,
                },
            );
            assert_eq!(bench.answer_is_unsigned(), expected);
        }
    }
}
