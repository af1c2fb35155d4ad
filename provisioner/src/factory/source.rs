//! What DHCP, TFTP and HTTP are told: one verdict for one machine, whichever
//! way it asks.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use jiff::Timestamp;
use model::MacAddr;
use model::machine::MachineCode;
use pxe::boot::{
    BootAnswer, BootEvent, BootFile, BootRequest, BootSource, ClientArch, ClientClass, DhcpOutcome,
    FileOutcome, MachineUuid, NotServed, Protocol,
};

use super::birth::Boot;
use super::cache::Cache;
use super::ledger::{Claim, Ledger, MachineRecord};
use super::story::{Stories, Story, StoryLine};

/// Path of the installer, by TFTP and HTTP.
pub const INSTALLER: &str = "boot/installer.efi";
/// Path of the program that starts the machine's own disk.
pub const LOCAL_BOOT: &str = "boot/local.efi";

/// The factory's answers to machines that boot.
#[derive(Debug)]
pub struct Bench {
    ledger: Arc<Ledger>,
    cache: Arc<Cache>,
    stories: Arc<Stories>,
    clock: fn() -> Timestamp,
    /// The operator's own program that starts a machine's disk; else `pxe` has one.
    local_boot: Option<PathBuf>,
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
        cache: Arc<Cache>,
        stories: Arc<Stories>,
        clock: fn() -> Timestamp,
        local_boot: Option<PathBuf>,
    ) -> Self {
        Self {
            ledger,
            cache,
            stories,
            clock,
            local_boot,
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

impl BootSource for Bench {
    fn decide(&self, request: &BootRequest) -> BootAnswer {
        let boots = request.client_class != ClientClass::Other;
        if let Boot::LocalDisk(reason) = self.boot(request.mac, request.uuid) {
            if boots && self.local_boot.is_some() && request.arch == ClientArch::UefiX64 {
                return BootAnswer::Boot {
                    tftp_path: LOCAL_BOOT.into(),
                    http_path: LOCAL_BOOT.into(),
                };
            }
            return BootAnswer::LocalDisk {
                reason: reason.into(),
            };
        }
        if boots && request.arch != ClientArch::UefiX64 {
            return BootAnswer::LocalDisk {
                reason: format!(
                    "units are UEFI x64 machines and this one boots as {}: \
                     switch the firmware to UEFI network boot",
                    request.arch
                ),
            };
        }
        if boots && self.cache.current().is_none() {
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
            let program = self.local_boot.clone().ok_or(NotServed::NotFound)?;
            return Ok(BootFile::Path(program));
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
        let current = self.cache.current();
        let current = current.ok_or_else(|| NotServed::Failed("no release is here yet".into()))?;
        Ok(BootFile::Path(current.installer))
    }

    fn observe(&self, event: &BootEvent) {
        let text = event.to_string();
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
                    let address = IpAddr::V4(*address);
                    // A later question of the same machine may lack the UUID.
                    let uuid = request.uuid.or_else(|| {
                        let (mac, uuid) = *addresses.get(&address)?;
                        uuid.filter(|_| mac == request.mac)
                    });
                    addresses.insert(address, (request.mac, uuid));
                }
                let by = match request.protocol {
                    Protocol::ProxyDhcp => "proxy-dhcp",
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
                    Protocol::Http | Protocol::Dhcp | Protocol::ProxyDhcp => "http",
                };
                let macs = self.at(*peer).into_iter().collect();
                self.tell_macs(macs, Some(*peer), by, text);
            }
        }
    }
}
