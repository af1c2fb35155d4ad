//! The factory: our own cores, and in place of sockets, files and HTTP the least that
//! connects them. What it remembers over a crash is what its journals hold.

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use model::Architecture;
use model::machine::{MachineCode, MachineFacts};
use provisioner::factory::birth::{Boot, Event, Refusal};
use provisioner::factory::cache::Current;
use provisioner::factory::ledger::{Details, Journal, Ledger, LedgerError, MachineRecord};
use provisioner::factory::source::{Bench, INSTALLER, Programs, Releases};
use provisioner::factory::story::Stories;
use pxe::boot::{BootAnswer, BootRequest, BootSource as _, NotServed};
use pxe::dhcp::lease::{read_journal, write_journal};
use pxe::dhcp::packet::Packet as Dhcp;
use pxe::dhcp::policy::{Engine, Port, Step as DhcpStep};
use pxe::dhcp::{Config, ConflictCheck, LocalDiskReply, Mode, Subnet};
use pxe::local_boot;
use pxe::tftp::packet::{self, ErrorCode, Packet as Tftp};
use pxe::tftp::transfer::{Step, Transfer, agree, low_bits};

/// Address of the factory.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// Length of a lease in seconds.
pub const LEASE: u64 = 1_200;
/// Length of the installer: an odd number of blocks, the last one short.
pub const INSTALLER_LENGTH: u64 = 1468 * 18 + 700;
/// 2026-12-01, when the simulated time begins.
const BEGIN: i64 = 1_796_083_200;

thread_local! {
    static CLOCK: Cell<i64> = const { Cell::new(BEGIN) };
}

fn clock() -> Timestamp {
    Timestamp::from_second(CLOCK.get()).unwrap()
}

/// A call of an installer or a firmware by HTTP.
#[derive(Debug, Clone)]
pub enum Call {
    Get { path: String },
    Announce { code: MachineCode },
    Verdict { code: MachineCode },
    Redeem { code: MachineCode, ticket: String },
    Done { code: MachineCode },
    Failed { code: MachineCode },
}

/// Its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    File,
    Announced,
    Held,
    Install {
        ticket: String,
    },
    LocalDisk,
    Enrolled {
        ticket: String,
    },
    Taken,
    /// A 4xx with the code of the error.
    No(&'static str),
    /// A 5xx: to be tried again.
    Busy,
}

/// What the sky knows. It is the truth about tickets, and survives everything.
#[derive(Debug, Default)]
pub struct Sky {
    machines: HashMap<MachineCode, Word>,
    pub tickets: HashMap<String, Ticket>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Word {
    Held,
    Refused,
    Ticket(String),
}

/// A ticket in the sky.
#[derive(Debug)]
pub struct Ticket {
    pub code: MachineCode,
    /// In true seconds since the beginning.
    pub expires: u64,
    /// How many different uses: a second one by the same keys is an answer again.
    pub burned: u32,
    /// The machine whose disk was erased by it.
    pub erased: Option<usize>,
    /// Shown by the factory to the installer with the keys.
    pub shown: bool,
}

impl Sky {
    /// Machines that wait for an operator.
    pub fn held(&self, now: u64) -> Vec<MachineCode> {
        let waits = |word: &Word| match word {
            Word::Held => true,
            Word::Refused => false,
            Word::Ticket(id) => {
                let ticket = &self.tickets[id];
                ticket.burned == 0 && ticket.expires <= now
            }
        };
        let all = self.machines.iter().filter(|(_, word)| waits(word));
        let mut held: Vec<_> = all.map(|(code, _)| code.clone()).collect();
        held.sort();
        held
    }

    pub fn approve(&mut self, code: &MachineCode, now: u64) {
        let id = format!("t{}", self.tickets.len());
        let ticket = Ticket {
            code: code.clone(),
            expires: now + 900,
            burned: 0,
            erased: None,
            shown: false,
        };
        self.tickets.insert(id.clone(), ticket);
        self.machines.insert(code.clone(), Word::Ticket(id));
    }

    pub fn refuse(&mut self, code: &MachineCode) {
        self.machines.insert(code.clone(), Word::Refused);
    }

    pub fn ticket_of(&self, code: &MachineCode) -> Option<&String> {
        match self.machines.get(code)? {
            Word::Ticket(id) => Some(id),
            Word::Held | Word::Refused => None,
        }
    }

    fn redeem(&mut self, code: &MachineCode, id: &str, now: u64) -> bool {
        let Some(ticket) = self
            .tickets
            .get_mut(id)
            .filter(|ticket| ticket.code == *code)
        else {
            return false;
        };
        if ticket.burned == 0 {
            if ticket.expires <= now {
                return false;
            }
            ticket.burned = 1;
        }
        true
    }
}

/// Bytes that survive, and where the next line will be torn.
#[derive(Debug, Default)]
pub struct Durable {
    text: Vec<u8>,
    pub tear: Option<usize>,
    pub torn: bool,
}

impl Durable {
    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        match self.tear.take() {
            None => {
                self.text.extend_from_slice(line);
                Ok(())
            }
            Some(at) => {
                self.torn = true;
                self.text.extend_from_slice(&line[..at.min(line.len())]);
                Err(io::Error::other("the power went"))
            }
        }
    }
}

#[derive(Debug)]
struct Memory(Arc<Mutex<Durable>>);

impl Journal for Memory {
    fn cut(&mut self, length: u64) -> io::Result<()> {
        let length = usize::try_from(length).unwrap();
        self.0.lock().unwrap().text.truncate(length);
        Ok(())
    }

    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        self.0.lock().unwrap().append(line)
    }
}

#[derive(Debug)]
struct OneRelease(Current);

impl Releases for OneRelease {
    fn current(&self) -> Option<Current> {
        Some(self.0.clone())
    }
}

/// One client's transfer.
#[derive(Debug)]
pub struct Sending {
    transfer: Transfer,
    agreed: pxe::tftp::transfer::Agreed,
    request: packet::Request,
    heard: bool,
    length: u64,
    pub serial: u64,
}

/// A datagram of TFTP to a client: its bytes, and the length of a block's data.
pub type Datagram = (Vec<u8>, u64);

/// The factory.
#[derive(Debug)]
pub struct Factory {
    pub up: bool,
    pub epoch: u64,
    /// How far its clock is off, in seconds.
    pub clock_off: i64,
    /// True microseconds.
    pub now: u64,
    base: Instant,
    pub engine: Engine,
    pub ledger: Arc<Ledger>,
    pub bench: Bench,
    pub sending: HashMap<(usize, u16), Sending>,
    pub leases: Durable,
    pub machines: Arc<Mutex<Durable>>,
    pub sky: Sky,
    pub sky_away: bool,
    serial: u64,
}

fn config() -> Config {
    Config {
        mode: Mode::Authoritative(vec![Subnet {
            network: Ipv4Addr::new(10, 0, 0, 0),
            prefix: 24,
            range: Ipv4Addr::new(10, 0, 0, 100)..=Ipv4Addr::new(10, 0, 0, 131),
            reservations: [].into(),
            places: Vec::new(),
            routers: vec![SERVER],
            name_servers: Vec::new(),
            domain: None,
            lease: Duration::from_secs(LEASE),
            options: Vec::new(),
        }]),
        server: SERVER,
        http_base: "http://10.0.0.1:8080".into(),
        local_disk: LocalDiskReply::Loader,
        conflicts: ConflictCheck::Arp,
    }
}

fn bench(ledger: &Arc<Ledger>) -> Bench {
    let current = Current {
        version: "2026.12.1".parse().unwrap(),
        architecture: Architecture::OURS,
        enrols_keys: false,
        installer: "installer.efi".into(),
    };
    let stories = Arc::new(Stories::in_memory());
    Bench::new(
        Arc::clone(ledger),
        Arc::new(OneRelease(current)),
        stories,
        clock,
        Programs::default(),
    )
}

impl Factory {
    pub fn new() -> Self {
        let machines = Arc::new(Mutex::new(Durable::default()));
        let memory = Box::new(Memory(Arc::clone(&machines)));
        let ledger = Arc::new(Ledger::resume(Path::new("ledger"), b"", memory).unwrap());
        Self {
            up: true,
            epoch: 0,
            clock_off: 0,
            now: 0,
            base: Instant::now(),
            engine: Engine::new(config(), []).unwrap(),
            bench: bench(&ledger),
            ledger,
            sending: HashMap::new(),
            leases: Durable::default(),
            machines,
            sky: Sky::default(),
            sky_away: false,
            serial: 0,
        }
    }

    /// Sets the true time; the factory sees it through its clock.
    pub fn at(&mut self, now: u64) {
        self.now = now;
        let second = i64::try_from(now / 1_000_000).unwrap();
        CLOCK.set(BEGIN + second + self.clock_off);
    }

    fn true_second(&self) -> u64 {
        self.now / 1_000_000
    }

    pub fn clock(&self) -> Timestamp {
        clock()
    }

    /// Tells whether a journal was torn since the last start.
    pub fn torn(&self) -> bool {
        self.leases.torn || self.machines.lock().unwrap().torn
    }

    pub fn tear(&mut self, at: Option<usize>) {
        self.leases.tear = at;
        self.machines.lock().unwrap().tear = at;
    }

    pub fn crash(&mut self) {
        self.up = false;
        self.epoch += 1;
        self.sending.clear();
        self.tear(None);
    }

    /// Starts with nothing but the journals, as `Ledger::open` and `FileStore::open`
    /// read them.
    pub fn start(&mut self) {
        let text = std::mem::take(&mut self.machines.lock().unwrap().text);
        let machines = Durable {
            text: text.clone(),
            ..Durable::default()
        };
        self.machines = Arc::new(Mutex::new(machines));
        let memory = Box::new(Memory(Arc::clone(&self.machines)));
        self.ledger = Arc::new(Ledger::resume(Path::new("ledger"), &text, memory).unwrap());
        // A long journal is made short, as `Ledger::open` does.
        if text.len() > 64 << 10 {
            let mut durable = self.machines.lock().unwrap();
            durable.text.clear();
            for record in self.ledger.machines() {
                serde_json::to_writer(&mut durable.text, &record).unwrap();
                durable.text.push(b'\n');
            }
        }
        self.bench = bench(&self.ledger);
        let (records, _) = read_journal(&self.leases.text);
        let records: Vec<_> = records.into_values().collect();
        self.leases = Durable {
            text: write_journal(&records).into_bytes(),
            ..Durable::default()
        };
        self.engine = Engine::new(config(), records).unwrap();
        // As the server does before its first answer.
        for (address, mac) in self.engine.leases().users() {
            self.bench.leased(address, mac);
        }
        self.up = true;
    }

    /// A DHCP message: its step, which waits for an answer to ARP if it says so.
    pub fn dhcp(&mut self, packet: &Dhcp) -> (DhcpStep, Option<BootAnswer>) {
        let from = SocketAddrV4::new(packet.ciaddr, 68);
        let mut answer = None;
        let bench = &self.bench;
        let decide = |request: &BootRequest| {
            let decided = bench.decide(request);
            answer = Some(decided.clone());
            decided
        };
        let step = self
            .engine
            .handle(packet, Port::Dhcp, from, clock(), decide);
        (step, answer)
    }

    /// Stores a step's record; `false` if the power went.
    pub fn store(&mut self, step: &DhcpStep) -> bool {
        let Some(record) = step.record else {
            return true;
        };
        self.leases
            .append(write_journal(&[record]).as_bytes())
            .is_ok()
    }

    pub fn instant(&self) -> Instant {
        self.base + Duration::from_micros(self.now)
    }

    /// True microseconds of a transfer's deadline.
    pub fn deadline(&self, key: (usize, u16)) -> Option<(u64, u64)> {
        let sending = self.sending.get(&key)?;
        let due = sending.transfer.deadline().duration_since(self.base);
        Some((u64::try_from(due.as_micros()).unwrap() + 1, sending.serial))
    }

    fn length_of(&self, peer: Ipv4Addr, path: &str) -> Result<u64, NotServed> {
        match self.bench.open(IpAddr::V4(peer), path) {
            Ok(_) => Ok(INSTALLER_LENGTH),
            Err(NotServed::NotFound) if path == local_boot::PATH => {
                Ok(u64::try_from(local_boot::PROGRAM.len()).unwrap())
            }
            Err(problem) => Err(problem),
        }
    }

    /// A datagram of a TFTP client, to port 69 or to its transfer.
    pub fn tftp(&mut self, key: (usize, u16), peer: Ipv4Addr, bytes: &[u8]) -> Vec<Datagram> {
        let now = self.instant();
        let step = match Tftp::parse(bytes) {
            Ok(Tftp::Read(request)) => {
                if let Some(sending) = self.sending.get(&key)
                    && !sending.heard
                    && sending.request == request
                {
                    return Vec::new();
                }
                let length = match self.length_of(peer, &request.path) {
                    Ok(length) => length,
                    Err(problem) => {
                        let bytes = packet::encode_error(ErrorCode::Access, &problem.to_string());
                        return vec![(bytes, 0)];
                    }
                };
                let agreed = agree(&request.options, length, 1468, 64);
                let (transfer, step) = Transfer::start(length, &agreed, now);
                self.serial += 1;
                let sending = Sending {
                    transfer,
                    agreed,
                    request,
                    heard: false,
                    length,
                    serial: self.serial,
                };
                self.sending.insert(key, sending);
                step
            }
            Ok(packet) => {
                let Some(sending) = self.sending.get_mut(&key) else {
                    return Vec::new();
                };
                sending.heard = true;
                sending.transfer.on_packet(&packet, now)
            }
            Err(_) => return Vec::new(),
        };
        self.send(key, step)
    }

    pub fn tftp_timeout(&mut self, key: (usize, u16)) -> Vec<Datagram> {
        let now = self.instant();
        let Some(sending) = self.sending.get_mut(&key) else {
            return Vec::new();
        };
        let step = sending.transfer.on_timeout(now);
        self.send(key, step)
    }

    fn send(&mut self, key: (usize, u16), step: Step) -> Vec<Datagram> {
        let sending = &self.sending[&key];
        match step {
            Step::Wait => Vec::new(),
            Step::SendOptions => vec![(packet::encode_option_ack(&sending.agreed.accepted), 0)],
            Step::SendBlocks { first, count } => {
                let size = u64::from(sending.agreed.block_size);
                let datagram = |block: u64| {
                    let mut bytes = vec![0, 3];
                    bytes.extend_from_slice(&low_bits(block).to_be_bytes());
                    let left = sending.length.saturating_sub((block - 1) * size);
                    (bytes, left.min(size))
                };
                (first..first + count).map(datagram).collect()
            }
            Step::Done | Step::SizeAsked | Step::Broken(_) => {
                self.sending.remove(&key);
                Vec::new()
            }
        }
    }

    /// An operator's word about one machine.
    pub fn named(&mut self, uuid: &str, event: &Event) -> Result<MachineRecord, LedgerError> {
        self.ledger.apply_named(uuid, event, clock())
    }

    /// The calls, in the order of `routes.rs`: what is durable when.
    pub fn http(&mut self, peer: Ipv4Addr, facts: &MachineFacts, call: &Call) -> Answer {
        match call {
            Call::Get { path } => match self.length_of(peer, path) {
                Ok(_) => Answer::File,
                Err(NotServed::Failed(_)) => Answer::Busy,
                Err(_) => Answer::No("refused"),
            },
            Call::Announce { code } => match self.ledger.announce(facts, code, clock()) {
                Err(problem) => refusal(&problem),
                Ok(_) if self.sky_away => Answer::Busy,
                Ok(_) => {
                    let known = self.sky.machines.entry(code.clone());
                    known.or_insert(Word::Held);
                    Answer::Announced
                }
            },
            Call::Verdict { code } => self.verdict(code),
            Call::Redeem { code, ticket } => self.redeem(code, ticket),
            Call::Done { code } => self.apply(code, &Event::Done { code: code.clone() }),
            Call::Failed { code } => self.apply(code, &Event::Failed { code: code.clone() }),
        }
    }

    fn apply(&mut self, code: &MachineCode, event: &Event) -> Answer {
        let applied = self.ledger.apply(code, event, Details::default(), clock());
        applied.map_or_else(|problem| refusal(&problem), |_| Answer::Taken)
    }

    fn verdict(&mut self, code: &MachineCode) -> Answer {
        let Some(record) = self.ledger.by_code(code) else {
            return Answer::No("not-found");
        };
        if let Boot::LocalDisk(_) = record.birth.boot() {
            return Answer::LocalDisk;
        }
        if self.sky_away {
            return Answer::Busy;
        }
        let id = match self.sky.machines.get(code) {
            None => return Answer::No("not-found"),
            Some(Word::Held) => return Answer::Held,
            Some(Word::Refused) => {
                let event = Event::KeptDisk { code: code.clone() };
                return match self.apply(code, &event) {
                    Answer::Taken => Answer::LocalDisk,
                    other => other,
                };
            }
            Some(Word::Ticket(id)) => id.clone(),
        };
        let expires = self.sky.tickets[&id].expires;
        if self.sky.tickets[&id].burned == 0 && expires <= self.true_second() {
            return Answer::Held;
        }
        // The factory judges by its own clock.
        if clock().as_second() >= BEGIN + i64::try_from(expires).unwrap() {
            return Answer::Busy;
        }
        let event = Event::TicketShown {
            code: code.clone(),
            ticket: id.clone(),
        };
        match self.apply(code, &event) {
            Answer::Taken => {
                self.sky.tickets.get_mut(&id).unwrap().shown = true;
                Answer::Install { ticket: id }
            }
            other => other,
        }
    }

    fn redeem(&mut self, code: &MachineCode, ticket: &str) -> Answer {
        let event = Event::Redeemed {
            code: code.clone(),
            ticket: ticket.to_owned(),
        };
        let Some(record) = self.ledger.by_code(code) else {
            return Answer::No("not-found");
        };
        if let Err(problem) = record.birth.next(&event) {
            return refusal(&LedgerError::Refused(problem));
        }
        if self.sky_away {
            return Answer::Busy;
        }
        let now = self.true_second();
        if !self.sky.redeem(code, ticket, now) {
            return Answer::No("refused");
        }
        match self.apply(code, &event) {
            Answer::Taken => Answer::Enrolled {
                ticket: ticket.to_owned(),
            },
            other => other,
        }
    }

    /// Says whether what an address gets is the installer.
    pub fn serves_installer(&self, address: Ipv4Addr) -> bool {
        self.bench.open(IpAddr::V4(address), INSTALLER).is_ok()
    }

    pub fn story(&self, macs: &BTreeSet<model::MacAddr>) -> Vec<String> {
        let mac = *macs.first().unwrap();
        let story = self.bench.story(mac);
        story
            .lines
            .into_iter()
            .map(|line| format!("{}: {}", line.by, line.text))
            .collect()
    }
}

fn refusal(problem: &LedgerError) -> Answer {
    match problem {
        LedgerError::Refused(Refusal::HasDisk) => Answer::No("born"),
        LedgerError::NoSuchMachine(_) => Answer::No("not-found"),
        LedgerError::Refused(_) | LedgerError::Ambiguous(_) => Answer::No("conflict"),
        LedgerError::Store(_) => Answer::Busy,
    }
}
