//! Machines: OVMF by PXE and by HTTP, iPXE, our installer, the unit that it installs.
//! Each does what it was seen to do in the laboratory, with its pauses and its tries.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use model::MacAddr;
use model::machine::{MachineCode, MachineFacts, NicFacts};
use provisioner::factory::source::INSTALLER;
use pxe::boot::{ClientArch, MachineUuid};
use pxe::dhcp::options::{self, MessageType};
use pxe::dhcp::packet::{Op, Packet};
use pxe::local_boot;

use super::factory::{Answer, Call, LEASE};
use super::random::Random;
use super::world::{Message, SECOND, World};

/// What a machine boots from the network with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmware {
    Pxe,
    HttpBoot,
    Ipxe,
}

/// What runs on a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    Off,
    Firmware,
    Installer,
    /// The disk is written; so many steps are left.
    Writing {
        left: u64,
        ticket: String,
    },
    /// Its own system.
    Unit,
}

/// What is on a machine's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    Empty,
    Half,
    Whole,
}

/// A DHCP exchange.
#[derive(Debug)]
pub struct Asking {
    xid: u32,
    class: Option<Firmware>,
    offer: Option<Packet>,
    /// The address that is prolonged.
    renews: Option<Ipv4Addr>,
    requested: bool,
    tries: u32,
    sent: u64,
}

/// An address in use.
#[derive(Debug, Clone, Copy)]
pub struct Lease {
    pub address: Ipv4Addr,
    pub until: u64,
    pub ours: bool,
}

/// A file on its way by TFTP.
#[derive(Debug)]
pub struct Fetch {
    port: u16,
    path: String,
    /// The first question is for the size alone, as OVMF asks it.
    size_only: bool,
    started: bool,
    received: u64,
    length: u64,
    unacked: u64,
    gap_told: bool,
    tries: u32,
}

/// A call that waits for its answer.
#[derive(Debug)]
pub struct Pending {
    call: Call,
    since: u64,
    failures: u32,
    files: bool,
}

/// One machine.
#[derive(Debug)]
pub struct Machine {
    pub mac: MacAddr,
    pub uuid: MachineUuid,
    pub facts: MachineFacts,
    pub firmware: Firmware,
    pub phase: Phase,
    pub disk: Disk,
    pub lease: Option<Lease>,
    pub code: Option<MachineCode>,
    /// The keys with which the factory took it for born.
    pub born_with: Option<MachineCode>,
    /// Redeems before it is told to.
    pub impatient: bool,
    /// iPXE shows the UUID in the other byte order.
    swapped: bool,
    tried: BTreeMap<String, u32>,
    pub timer: u64,
    pub number: u64,
    asking: Option<Asking>,
    fetch: Option<Fetch>,
    pending: Option<Pending>,
    failing: bool,
    silent: u64,
    pub gave_up: bool,
    /// Boots in all, and since the last reason from outside.
    pub boots: u64,
    pub boots_in_a_row: u64,
}

impl Machine {
    pub fn new(mac: MacAddr, uuid: [u8; 16], serial: String, random: &mut Random) -> Self {
        let uuid = MachineUuid(uuid);
        Self {
            mac,
            uuid,
            facts: MachineFacts {
                serial,
                uuid: uuid.to_string(),
                product: String::new(),
                cpu: String::new(),
                cpus: 2,
                memory: 1 << 30,
                disks: Vec::new(),
                nics: vec![NicFacts {
                    name: "eth0".into(),
                    mac,
                    link: true,
                }],
                firmware: "uefi".into(),
                secure_boot: false,
                tpm: false,
                findings: vec![],
            },
            firmware: [Firmware::Pxe, Firmware::HttpBoot, Firmware::Ipxe][random.index(3)],
            phase: Phase::Off,
            disk: Disk::Empty,
            lease: None,
            code: None,
            born_with: None,
            impatient: random.chance(30_000),
            swapped: random.chance(500_000),
            tried: BTreeMap::new(),
            timer: 0,
            number: 0,
            asking: None,
            fetch: None,
            pending: None,
            failing: false,
            silent: 0,
            gave_up: false,
            boots: 0,
            boots_in_a_row: 0,
        }
    }

    fn message(&self, kind: MessageType, asking: &Asking) -> Packet {
        let mut packet = Packet {
            op: Op::Request,
            hops: 0,
            xid: asking.xid,
            secs: 0,
            broadcast: asking.renews.is_none(),
            ciaddr: asking.renews.unwrap_or(Ipv4Addr::UNSPECIFIED),
            yiaddr: Ipv4Addr::UNSPECIFIED,
            siaddr: Ipv4Addr::UNSPECIFIED,
            giaddr: Ipv4Addr::UNSPECIFIED,
            mac: self.mac,
            sname: Vec::new(),
            file: Vec::new(),
            options: options::Options::default(),
        };
        let o = &mut packet.options;
        o.set_message_type(kind);
        let x64 = local_boot::ARCH == ClientArch::UefiX64;
        let (pxe, http) = if x64 { (7u8, 16u8) } else { (11, 19) };
        if let Some(class) = asking.class {
            let (name, arch) = match class {
                Firmware::HttpBoot => ("HTTPClient", http),
                Firmware::Pxe | Firmware::Ipxe => ("PXEClient", pxe),
            };
            o.set(
                options::VENDOR_CLASS,
                format!("{name}:Arch:{arch:05}:UNDI:003001"),
            );
            o.set(options::CLIENT_ARCH, [0, arch]);
            o.set(options::PARAMETERS, [1, 3, 54, 60, 66, 67, 97]);
            let mut uuid = self.uuid.0;
            if class == Firmware::Ipxe {
                o.set(options::USER_CLASS, "iPXE");
                if self.swapped {
                    uuid[0..4].reverse();
                    uuid[4..6].reverse();
                    uuid[6..8].reverse();
                }
            }
            o.set(options::CLIENT_UUID, [&[0][..], &uuid].concat());
        }
        packet
    }
}

/// Returns the file or URL that a reply names.
pub fn boot_file(reply: &Packet) -> Option<String> {
    let option = reply.options.get(options::BOOT_FILE).unwrap_or(&reply.file);
    let text = String::from_utf8(option.to_vec()).unwrap();
    (!text.is_empty()).then_some(text)
}

impl World {
    /// Power, or a restart.
    pub fn boot(&mut self, m: usize) {
        let machine = &mut self.machines[m];
        machine.boots += 1;
        machine.boots_in_a_row += 1;
        machine.phase = Phase::Firmware;
        machine.lease = None;
        machine.code = None;
        machine.fetch = None;
        machine.pending = None;
        machine.gave_up = false;
        machine.failing = false;
        machine.tried.clear();
        self.tell(Some(m), || "boots".into());
        self.ask(m, Some(self.machines[m].firmware));
    }

    pub fn power_off(&mut self, m: usize) {
        let machine = &mut self.machines[m];
        machine.phase = Phase::Off;
        machine.gave_up = false;
        machine.lease = None;
        machine.asking = None;
        machine.fetch = None;
        machine.pending = None;
        machine.code = None;
        machine.timer += 1;
    }

    fn ask(&mut self, m: usize, class: Option<Firmware>) {
        let xid = u32::try_from(self.random.next() >> 32).unwrap();
        self.machines[m].asking = Some(Asking {
            xid,
            class,
            offer: None,
            renews: None,
            requested: false,
            tries: 0,
            sent: self.now,
        });
        self.ask_again(m);
    }

    /// Sends what the exchange stands at.
    fn ask_again(&mut self, m: usize) {
        let now = self.now;
        let machine = &mut self.machines[m];
        let mut asking = machine.asking.take().unwrap();
        asking.sent = now;
        let bytes = match (&asking.offer, asking.renews, asking.requested) {
            (Some(offer), None, true) => {
                let mut packet = machine.message(MessageType::Request, &asking);
                let address = offer.yiaddr;
                packet
                    .options
                    .set_addresses(options::REQUESTED_ADDRESS, &[address]);
                let server = offer.options.address(options::SERVER_ID).unwrap();
                packet.options.set_addresses(options::SERVER_ID, &[server]);
                packet.encode()
            }
            (_, Some(_), _) => machine.message(MessageType::Request, &asking).encode(),
            _ => machine.message(MessageType::Discover, &asking).encode(),
        };
        let wait = SECOND * (4 << asking.tries.min(3));
        machine.asking = Some(asking);
        self.set_timer(m, wait);
        self.send_up(m, Message::Dhcp(bytes));
    }

    /// A reply, by our server or another one.
    pub fn dhcp_heard(&mut self, m: usize, bytes: &[u8]) {
        let packet = Packet::parse(bytes).unwrap();
        let machine = &mut self.machines[m];
        let Some(asking) = machine.asking.as_mut() else {
            return;
        };
        if packet.xid != asking.xid || packet.op != Op::Reply {
            return;
        }
        match packet.options.message_type() {
            Some(MessageType::Offer) if !asking.requested && asking.renews.is_none() => {
                // Firmware looks for something to boot, and takes a bare address last.
                let good = asking.class.is_none() || boot_file(&packet).is_some();
                asking.offer = Some(packet);
                if good {
                    asking.requested = true;
                    asking.tries = 0;
                    self.ask_again(m);
                }
            }
            Some(MessageType::Ack) if asking.requested || asking.renews.is_some() => {
                let asking = machine.asking.take().unwrap();
                let ours =
                    packet.options.address(options::SERVER_ID) == Some(super::factory::SERVER);
                machine.lease = Some(Lease {
                    address: packet.yiaddr,
                    until: asking.sent + LEASE * SECOND,
                    ours,
                });
                self.judge_address(m);
                self.address_given(m, &asking, &packet);
            }
            Some(MessageType::Nak) if asking.requested || asking.renews.is_some() => {
                let class = asking.class;
                machine.lease = None;
                self.tell(Some(m), || "is refused its address".into());
                self.ask(m, class);
            }
            _ => {}
        }
    }

    fn address_given(&mut self, m: usize, asking: &Asking, ack: &Packet) {
        let address = ack.yiaddr;
        self.tell(Some(m), || {
            format!("has address {address}, boot file {:?}", boot_file(ack))
        });
        match (&self.machines[m].phase, asking.class) {
            (Phase::Firmware, Some(class)) => match boot_file(ack) {
                None => self.boot_failed(m, "nothing to boot"),
                Some(file) => self.fetch(m, class, &file),
            },
            (Phase::Installer, _) => {
                let code = self.machines[m].code.clone().unwrap();
                self.call(m, Call::Announce { code });
            }
            (Phase::Unit, _) => self.set_timer(m, LEASE / 2 * SECOND),
            _ => {}
        }
    }

    fn fetch(&mut self, m: usize, class: Firmware, file: &str) {
        if class != Firmware::Pxe {
            let path = file
                .strip_prefix("http://10.0.0.1:8080/")
                .expect("our URL")
                .to_owned();
            return self.call(m, Call::Get { path });
        }
        let size_only = file == INSTALLER;
        self.machines[m].fetch = Some(Fetch {
            port: 0,
            path: file.to_owned(),
            size_only,
            started: false,
            received: 0,
            length: 0,
            unacked: 0,
            gap_told: false,
            tries: 0,
        });
        self.ask_for_file(m);
    }

    fn ask_for_file(&mut self, m: usize) {
        let port = u16::try_from(self.random.between(1024, 65535)).unwrap();
        let fetch = self.machines[m].fetch.as_mut().unwrap();
        fetch.port = port;
        fetch.started = false;
        fetch.received = 0;
        self.fetch_again(m);
    }

    /// Sends what the transfer stands at: the request, or the last acknowledgement.
    fn fetch_again(&mut self, m: usize) {
        let fetch = self.machines[m].fetch.as_mut().unwrap();
        fetch.unacked = 0;
        let bytes = if fetch.started {
            let block = u16::try_from(fetch.received % 65536).unwrap();
            [&[0, 4][..], &block.to_be_bytes()].concat()
        } else {
            let options: &[&str] = if fetch.size_only {
                &["tsize", "0", "blksize", "1468"]
            } else {
                &["tsize", "0", "blksize", "1468", "windowsize", "4"]
            };
            let mut bytes = vec![0, 1];
            for text in [&[fetch.path.as_str(), "octet"], options].concat() {
                bytes.extend_from_slice(text.as_bytes());
                bytes.push(0);
            }
            bytes
        };
        let port = fetch.port;
        self.set_timer(m, 3 * SECOND);
        self.send_up(
            m,
            Message::Tftp {
                port,
                bytes,
                data: 0,
            },
        );
    }

    pub fn tftp_heard(&mut self, m: usize, port: u16, bytes: &[u8], data: u64) {
        let Some(fetch) = self.machines[m]
            .fetch
            .as_mut()
            .filter(|fetch| fetch.port == port)
        else {
            return;
        };
        let number = u64::from(u16::from_be_bytes([bytes[2], bytes[3]]));
        match bytes[1] {
            6 if !fetch.started && fetch.size_only => {
                fetch.size_only = false;
                let error = vec![0, 5, 0, 8, 0];
                self.send_up(
                    m,
                    Message::Tftp {
                        port,
                        bytes: error,
                        data: 0,
                    },
                );
                self.ask_for_file(m);
            }
            6 if !fetch.started => {
                fetch.started = true;
                fetch.length = 0;
                fetch.tries = 0;
                self.fetch_again(m);
            }
            3 if fetch.started && number == fetch.received + 1 => {
                fetch.received += 1;
                fetch.length += data;
                fetch.unacked += 1;
                fetch.gap_told = false;
                fetch.tries = 0;
                let over = data < 1468;
                if over || fetch.unacked == 4 {
                    self.fetch_again(m);
                }
                if over {
                    let fetch = self.machines[m].fetch.take().unwrap();
                    self.judge_file(m, &fetch.path, fetch.length);
                    self.count("tftp");
                    self.fetched(m, &fetch.path);
                }
            }
            3 if fetch.started && number > fetch.received && !fetch.gap_told => {
                fetch.gap_told = true;
                self.fetch_again(m);
            }
            5 => {
                self.machines[m].fetch = None;
                self.boot_failed(m, "TFTP error");
            }
            _ => {}
        }
    }

    fn fetched(&mut self, m: usize, path: &str) {
        if path == INSTALLER {
            let code = self.new_code();
            self.tell(Some(m), || format!("runs the installer, code {code}"));
            let machine = &mut self.machines[m];
            machine.phase = Phase::Installer;
            machine.code = Some(code);
            machine.silent = self.now;
            return self.ask(m, None);
        }
        assert_eq!(path, local_boot::PATH);
        if self.machines[m].disk == Disk::Whole {
            return self.start_unit(m);
        }
        self.boot_failed(m, "told to boot its disk, which has nothing");
    }

    fn start_unit(&mut self, m: usize) {
        self.tell(Some(m), || "runs its own system".into());
        let machine = &mut self.machines[m];
        machine.phase = Phase::Unit;
        machine.boots_in_a_row = 0;
        self.ask(m, None);
    }

    /// Firmware goes on with the disk, or begins again.
    fn boot_failed(&mut self, m: usize, why: &str) {
        self.tell(Some(m), || format!("network boot failed: {why}"));
        let machine = &mut self.machines[m];
        machine.asking = None;
        machine.fetch = None;
        machine.pending = None;
        machine.lease = None;
        if machine.disk == Disk::Whole {
            return self.start_unit(m);
        }
        machine.failing = true;
        self.set_timer(m, 15 * SECOND);
    }

    fn call(&mut self, m: usize, call: Call) {
        let files = matches!(call, Call::Get { .. });
        self.machines[m].pending = Some(Pending {
            call,
            since: self.now,
            failures: 0,
            files,
        });
        self.call_again(m);
    }

    fn call_again(&mut self, m: usize) {
        let machine = &mut self.machines[m];
        machine.number += 1;
        let (number, call) = (
            machine.number,
            machine.pending.as_ref().unwrap().call.clone(),
        );
        self.set_timer(m, 15 * SECOND);
        self.send_up(m, Message::Call { number, call });
    }

    /// The machine's one timer.
    pub fn wake(&mut self, m: usize) {
        if self.machines[m].asking.is_some() {
            return self.dhcp_late(m);
        }
        let machine = &mut self.machines[m];
        if let Some(fetch) = machine.fetch.as_mut() {
            fetch.tries += 1;
            if fetch.tries > 6 {
                return self.boot_failed(m, "TFTP time-out");
            }
            return self.fetch_again(m);
        }
        if let Some(pending) = machine.pending.as_mut() {
            pending.failures += 1;
            let give_up = if pending.files { 60 } else { 600 };
            if self.now > pending.since + give_up * SECOND {
                return self.call_lost(m);
            }
            return self.call_again(m);
        }
        match machine.phase.clone() {
            Phase::Off => {}
            Phase::Firmware => self.boot(m),
            Phase::Installer => self.poll(m),
            Phase::Writing { left: 0, ticket } => self.written(m, &ticket),
            Phase::Writing { left, ticket } => self.write(m, left, ticket),
            Phase::Unit => self.renew(m),
        }
    }

    fn dhcp_late(&mut self, m: usize) {
        let now = self.now;
        let machine = &mut self.machines[m];
        let asking = machine.asking.as_mut().unwrap();
        asking.tries += 1;
        let class = asking.class;
        if asking.renews.is_some() {
            if machine.lease.is_some_and(|lease| lease.until <= now) {
                machine.lease = None;
                return self.ask(m, None);
            }
            return self.ask_again(m);
        }
        if !asking.requested && asking.offer.is_some() {
            asking.requested = true;
            asking.tries = 0;
            return self.ask_again(m);
        }
        if asking.tries >= 4 {
            if class.is_some() {
                return self.boot_failed(m, "no DHCP answer");
            }
            if machine.phase == Phase::Installer && now > machine.silent + 600 * SECOND {
                self.tell(Some(m), || {
                    "installer: no address for 600 s, restarts".into()
                });
                return self.boot(m);
            }
            return self.ask(m, class);
        }
        self.ask_again(m);
    }

    fn renew(&mut self, m: usize) {
        let Some(lease) = self.machines[m].lease else {
            return self.ask(m, None);
        };
        self.ask(m, None);
        // The same exchange, unicast, from the address.
        let asking = self.machines[m].asking.as_mut().unwrap();
        asking.renews = Some(lease.address);
        self.ask_again(m);
    }

    fn call_lost(&mut self, m: usize) {
        let pending = self.machines[m].pending.take().unwrap();
        self.tell(Some(m), || {
            format!("{:?}: no answer, gives up", pending.call)
        });
        match pending.call {
            Call::Get { .. } => self.boot_failed(m, "HTTP time-out"),
            // The disk is whole, told or not.
            Call::Done { .. } => self.boot(m),
            Call::Redeem { code, .. } => self.call(m, Call::Failed { code }),
            Call::Failed { .. } => self.set_timer(m, 5 * SECOND),
            Call::Announce { .. } | Call::Verdict { .. } => self.boot(m),
        }
    }

    fn poll(&mut self, m: usize) {
        let code = self.machines[m].code.clone().unwrap();
        if self.machines[m].impatient && self.random.chance(300_000) {
            // A wrong installer: it takes what it was not shown, or another's.
            let tickets = &self.factory.sky.tickets;
            let own = self.factory.sky.ticket_of(&code).cloned();
            let any = format!("t{}", self.random.index(tickets.len().max(1)));
            let ticket = own.unwrap_or(any);
            self.count("impatient");
            return self.call(m, Call::Redeem { code, ticket });
        }
        self.call(m, Call::Verdict { code });
    }

    pub fn answered(&mut self, m: usize, number: u64, answer: Answer) {
        let machine = &mut self.machines[m];
        if machine.number != number {
            return;
        }
        let Some(pending) = machine.pending.as_mut() else {
            return;
        };
        if answer == Answer::Busy {
            pending.failures += 1;
            let pause = SECOND / 4 * (1 << pending.failures.min(5));
            return self.set_timer(m, pause);
        }
        let pending = machine.pending.take().unwrap();
        machine.silent = self.now;
        self.tell(Some(m), || format!("{:?}: {answer:?}", pending.call));
        match (pending.call, answer) {
            (Call::Get { path }, Answer::File) => {
                self.count("http");
                self.fetched(m, &path);
            }
            (Call::Get { .. }, _) => self.boot_failed(m, "HTTP error"),
            (Call::Announce { .. }, Answer::Announced) => self.poll(m),
            (Call::Announce { .. }, Answer::No("born")) | (_, Answer::LocalDisk) => self.boot(m),
            (Call::Announce { .. } | Call::Verdict { .. }, Answer::No("not-found")) => {
                // Announces again, as new.
                let code = self.machines[m].code.clone().unwrap();
                self.count("again");
                self.call(m, Call::Announce { code });
            }
            (Call::Verdict { .. }, Answer::Held) => {
                let pause = self.random.between(5, 30);
                self.set_timer(m, pause * SECOND);
            }
            (Call::Verdict { code }, Answer::Install { ticket }) => {
                let tries = self.machines[m].tried.entry(ticket.clone()).or_default();
                if *tries >= 3 {
                    self.machines[m].gave_up = true;
                    return self.set_timer(m, 5 * SECOND);
                }
                *tries += 1;
                self.call(m, Call::Redeem { code, ticket });
            }
            (Call::Redeem { .. }, Answer::Enrolled { ticket }) => {
                self.judge_erase(m, &ticket);
                let left = self.random.between(3, 8);
                self.machines[m].disk = Disk::Half;
                self.machines[m].phase = Phase::Writing { left, ticket };
                self.set_timer(m, 5 * SECOND);
            }
            (Call::Redeem { code, ticket }, _) => {
                self.machines[m].tried.insert(ticket, 3);
                self.call(m, Call::Failed { code });
            }
            (Call::Done { .. }, answer) => {
                self.told_done(m, &answer);
                self.boot(m);
            }
            (Call::Failed { .. } | Call::Announce { .. } | Call::Verdict { .. }, _) => {
                self.set_timer(m, 5 * SECOND);
            }
        }
    }

    fn write(&mut self, m: usize, left: u64, ticket: String) {
        if self.fault(6_000) {
            self.count("write failed");
            self.tell(Some(m), || "the disk fails".into());
            let machine = &mut self.machines[m];
            machine.phase = Phase::Installer;
            machine.gave_up = true;
            machine.tried.insert(ticket, 3);
            let code = machine.code.clone().unwrap();
            return self.call(m, Call::Failed { code });
        }
        self.machines[m].phase = Phase::Writing {
            left: left - 1,
            ticket,
        };
        let pause = self.random.between(2, 12);
        self.set_timer(m, pause * SECOND);
    }

    fn written(&mut self, m: usize, ticket: &str) {
        self.tell(Some(m), || format!("disk written by ticket {ticket}"));
        let machine = &mut self.machines[m];
        machine.disk = Disk::Whole;
        let code = machine.code.clone().unwrap();
        self.call(m, Call::Done { code });
    }
}
