//! Network, power, operators, another DHCP server, and the judge.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::net::Ipv4Addr;

use model::MacAddr;
use model::machine::MachineCode;
use provisioner::factory::birth::{Birth, Boot, Event as BirthEvent};
use provisioner::factory::source::INSTALLER;
use pxe::boot::BootSource as _;
use pxe::dhcp::options::{self, MessageType};
use pxe::dhcp::packet::Packet;
use pxe::dhcp::policy::Step as DhcpStep;

use super::factory::{Answer, Call, Factory, INSTALLER_LENGTH};
use super::machine::{Disk, Machine, Phase, boot_file};
use super::random::Random;

/// In microseconds, the unit of simulated time.
pub const SECOND: u64 = 1_000_000;
/// Machines of a world.
const MACHINES: usize = 24;
/// How long everything goes wrong, in seconds.
const STORM: u64 = 3 * 3600;
/// How long it may take afterwards until every machine is born, in seconds.
const CALM: u64 = 3600;
/// Boots that follow from one another without anybody's doing, once the network is
/// whole: an installation is two, and each mishap of the storm may cost two more.
const BOOTS: u64 = 6;
/// Another DHCP server.
const ROGUE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 66);

/// What was promised and not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub time: u64,
    pub machine: Option<usize>,
    pub what: String,
}

/// What came of a world that kept every promise.
#[derive(Debug)]
pub struct Outcome {
    pub births: u64,
    pub counts: Vec<(&'static str, u64)>,
}

/// What is on the wire.
#[derive(Debug, Clone)]
pub enum Message {
    Dhcp(Vec<u8>),
    Tftp {
        port: u16,
        bytes: Vec<u8>,
        data: u64,
    },
    Call {
        number: u64,
        call: Call,
    },
    Answer {
        number: u64,
        answer: Answer,
    },
}

#[derive(Debug)]
enum Event {
    /// A machine's timer, if it is still this one.
    Wake(usize, u64),
    /// For a machine whose power was cut.
    Power(usize),
    ToFactory(usize, Ipv4Addr, Message),
    ToMachine(usize, Message),
    /// Silence after the question whether somebody uses an offered address.
    Asked(u64, usize, Box<(Packet, DhcpStep)>),
    Tftp((usize, u16), u64),
    Operator,
    Misfortune,
    Start,
}

#[derive(Debug)]
struct Entry(u64, u64, Event);

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// A line of the log: when, whose, what.
type Line = (u64, Option<usize>, String);

/// A bench with its machines.
#[derive(Debug)]
pub struct World {
    pub now: u64,
    pub random: Random,
    pub machines: Vec<Machine>,
    pub factory: Factory,
    pub log: Option<Vec<Line>>,
    /// Machines that nobody can tell apart: same MAC, UUID and serial number.
    clone_of: Vec<usize>,
    /// Their disk is what the factory wants them to boot.
    settled: Vec<bool>,
    queue: BinaryHeap<Reverse<Entry>>,
    serial: u64,
    loss: u64,
    doubling: u64,
    rogue: bool,
    calm: bool,
    births: u64,
    counts: Vec<(&'static str, u64)>,
    violation: Option<Violation>,
}

/// Seconds for people.
pub fn seconds(time: u64) -> f64 {
    std::time::Duration::from_micros(time).as_secs_f64()
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut machines: Vec<Machine> = Vec::new();
        let mut clone_of = Vec::new();
        for m in 0..MACHINES {
            let mut mac = MacAddr([2, 0, 0, 0, 0, u8::try_from(m).unwrap()]);
            let mut uuid: [u8; 16] = random.bytes();
            let mut serial = if random.chance(100_000) {
                String::new()
            } else {
                format!("S{m}")
            };
            clone_of.push(m);
            if m > 0 && random.chance(90_000) {
                let other = random.index(m);
                let twin = &machines[other];
                match random.index(3) {
                    0 => mac = twin.mac,
                    1 => uuid = twin.uuid.0,
                    _ => {
                        (mac, uuid) = (twin.mac, twin.uuid.0);
                        serial.clone_from(&twin.facts.serial);
                        clone_of[m] = clone_of[other];
                    }
                }
            }
            machines.push(Machine::new(mac, uuid, serial, &mut random));
        }
        let loss = [0, 5_000, 20_000, 100_000][random.index(4)];
        let doubling = [0, 10_000, 50_000][random.index(3)];
        let rogue = random.chance(300_000);
        Self {
            now: 0,
            machines,
            factory: Factory::new(),
            log: None,
            clone_of,
            settled: vec![false; MACHINES],
            queue: BinaryHeap::new(),
            serial: 0,
            loss,
            doubling,
            rogue,
            calm: false,
            births: 0,
            counts: Vec::new(),
            violation: None,
            random,
        }
    }

    pub fn run(&mut self) -> Result<Outcome, Violation> {
        for m in 0..MACHINES {
            let at = self.random.between(0, 120);
            self.at(at * SECOND, Event::Power(m));
        }
        self.at(10 * SECOND, Event::Operator);
        self.at(30 * SECOND, Event::Misfortune);
        while let Some(Reverse(Entry(time, _, event))) = self.queue.pop() {
            self.now = time;
            self.factory.at(time);
            if !self.calm && time >= STORM * SECOND {
                self.calm_down();
            }
            self.happen(event);
            if let Some(violation) = self.violation.take() {
                return Err(violation);
            }
            if self.calm && self.all_are_born() {
                return Ok(Outcome {
                    births: self.births,
                    counts: std::mem::take(&mut self.counts),
                });
            }
            if self.now > (STORM + CALM) * SECOND {
                let late = (0..MACHINES).find(|m| !self.is_born(*m));
                self.violate(late, || "not born an hour after all went well again".into());
                return Err(self.violation.take().unwrap());
            }
        }
        unreachable!("operators never rest")
    }

    fn at(&mut self, time: u64, event: Event) {
        self.serial += 1;
        self.queue.push(Reverse(Entry(time, self.serial, event)));
    }

    pub fn set_timer(&mut self, m: usize, after: u64) {
        self.machines[m].timer += 1;
        let timer = self.machines[m].timer;
        self.at(self.now + after, Event::Wake(m, timer));
    }

    pub fn count(&mut self, what: &'static str) {
        match self.counts.iter_mut().find(|(known, _)| *known == what) {
            Some((_, count)) => *count += 1,
            None => self.counts.push((what, 1)),
        }
    }

    pub fn tell(&mut self, m: Option<usize>, what: impl FnOnce() -> String) {
        if let Some(log) = &mut self.log {
            log.push((self.now, m, what()));
        }
    }

    fn violate(&mut self, machine: Option<usize>, what: impl FnOnce() -> String) {
        if self.violation.is_none() {
            self.violation = Some(Violation {
                time: self.now,
                machine,
                what: what(),
            });
        }
    }

    /// Something that only happens while all goes wrong.
    pub fn fault(&mut self, of_a_million: u64) -> bool {
        !self.calm && self.random.chance(of_a_million)
    }

    pub fn new_code(&mut self) -> MachineCode {
        const LETTERS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
        let text: String = (0..8)
            .map(|_| char::from(LETTERS[self.random.index(32)]))
            .collect();
        text.parse().unwrap()
    }

    /// The last lines about a machine, and what its factory tells of it.
    pub fn last_steps(&self, machine: Option<usize>, count: usize) -> String {
        let log = self.log.as_deref().unwrap_or_default();
        let about = |line: &&Line| line.1.is_none() || line.1 == machine || machine.is_none();
        let lines: Vec<_> = log.iter().filter(about).collect();
        let mut text = String::new();
        for (time, whose, what) in &lines[lines.len().saturating_sub(count)..] {
            let whose = whose.map_or_else(|| "bench".into(), |m| format!("machine {m}"));
            text.push_str(&format!(
                "{:>10.3} s  {whose:<10}  {what}\n",
                seconds(*time)
            ));
        }
        if let Some(m) = machine {
            let Machine {
                mac,
                uuid,
                firmware,
                disk,
                phase,
                ..
            } = &self.machines[m];
            text.push_str(&format!(
                "\n{mac} {uuid} {firmware:?}, disk {disk:?}, {phase:?}\nledger: {:?}\nthe factory's story since its last start:\n",
                self.record(m).map(|record| record.birth)
            ));
            let story = self.factory.story(&BTreeSet::from([*mac]));
            for line in &story[story.len().saturating_sub(8)..] {
                text.push_str(&format!("  {line}\n"));
            }
        }
        text
    }

    fn record(&self, m: usize) -> Option<provisioner::factory::ledger::MachineRecord> {
        let Machine { mac, facts, .. } = &self.machines[m];
        self.factory
            .ledger
            .find(provisioner::factory::ledger::Claim {
                macs: &[*mac],
                uuid: Some(&facts.uuid),
                swapped: None,
                serial: &facts.serial,
            })
    }

    // ── network ──

    fn delay(&mut self) -> u64 {
        let slow = self.fault(10_000);
        let most = if slow { 3 * SECOND } else { 3_000 };
        self.random.between(100, most)
    }

    /// How often something arrives, and when.
    fn carried(&mut self, once: bool) -> Vec<u64> {
        if self.fault(self.loss) {
            self.count("lost");
            return Vec::new();
        }
        let mut times = vec![self.delay()];
        if !once && self.fault(self.doubling) {
            self.count("doubled");
            times.push(self.delay());
        }
        times
    }

    pub fn send_up(&mut self, m: usize, message: Message) {
        let peer = self.machines[m]
            .lease
            .map_or(Ipv4Addr::UNSPECIFIED, |lease| lease.address);
        if let Message::Dhcp(bytes) = &message
            && self.rogue
            && !self.calm
        {
            self.rogue_hears(m, &bytes.clone());
        }
        let once = matches!(message, Message::Call { .. });
        for delay in self.carried(once) {
            self.at(self.now + delay, Event::ToFactory(m, peer, message.clone()));
        }
    }

    fn send_down(&mut self, m: usize, message: &Message) {
        let once = matches!(message, Message::Answer { .. });
        for delay in self.carried(once) {
            self.at(self.now + delay, Event::ToMachine(m, message.clone()));
        }
    }

    /// A server that somebody forgot: it gives addresses out of our range, and nothing
    /// to boot.
    fn rogue_hears(&mut self, m: usize, bytes: &[u8]) {
        let packet = Packet::parse(bytes).unwrap();
        let kind = match packet.options.message_type() {
            Some(MessageType::Discover) if self.random.chance(500_000) => MessageType::Offer,
            Some(MessageType::Request)
                if packet.options.address(options::SERVER_ID) == Some(ROGUE) =>
            {
                self.count("rogue address");
                MessageType::Ack
            }
            _ => return,
        };
        let mut reply = Packet::reply_to(&packet);
        reply.yiaddr = Ipv4Addr::new(10, 0, 0, 100 + self.machines[m].mac.0[5] * 7 % 32);
        reply.options.set_message_type(kind);
        reply.options.set_addresses(options::SERVER_ID, &[ROGUE]);
        let at = self.now + self.random.between(100, SECOND);
        self.at(at, Event::ToMachine(m, Message::Dhcp(reply.encode())));
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Wake(m, timer) => {
                if self.machines[m].timer == timer {
                    self.wake(m);
                }
            }
            Event::Power(m) => {
                let taken_away = self.calm && self.clone_of[m] != m;
                if self.machines[m].phase == Phase::Off && !taken_away {
                    self.machines[m].boots_in_a_row = 0;
                    self.boot(m);
                }
            }
            Event::ToFactory(m, peer, message) => self.factory_hears(m, peer, message),
            Event::ToMachine(m, message) => {
                if self.machines[m].phase != Phase::Off {
                    self.machine_hears(m, message);
                }
            }
            Event::Asked(epoch, m, held) => {
                if self.factory.up && self.factory.epoch == epoch {
                    let (packet, step) = *held;
                    self.nobody_answered(m, &packet, step);
                }
            }
            Event::Tftp(key, serial) => self.tftp_due(key, serial),
            Event::Operator => self.operate(),
            Event::Misfortune => self.misfortune(),
            Event::Start => {
                if !self.factory.up {
                    self.factory.start();
                    self.tell(None, || "factory starts".into());
                }
            }
        }
    }

    fn machine_hears(&mut self, m: usize, message: Message) {
        match message {
            Message::Dhcp(bytes) => self.dhcp_heard(m, &bytes),
            Message::Tftp { port, bytes, data } => self.tftp_heard(m, port, &bytes, data),
            Message::Answer { number, answer } => self.answered(m, number, answer),
            Message::Call { .. } => unreachable!("machines answer no calls"),
        }
        self.judge_boots(m);
    }

    // ── the factory's sockets ──

    fn factory_hears(&mut self, m: usize, peer: Ipv4Addr, message: Message) {
        if !self.factory.up {
            return;
        }
        if self.fault(1_500) {
            let at = self.random.index(400);
            self.factory.tear(Some(at));
        }
        let replies = match message {
            Message::Dhcp(bytes) => {
                let packet = Packet::parse(&bytes).unwrap();
                let (step, _) = self.factory.dhcp(&packet);
                if let Some(address) = step.ask_first {
                    if self.is_used(address, m) {
                        self.conflict(m, &packet, address);
                        Vec::new()
                    } else {
                        let epoch = self.factory.epoch;
                        let held = Box::new((packet, step));
                        self.at(self.now + 300_000, Event::Asked(epoch, m, held));
                        Vec::new()
                    }
                } else {
                    self.settle_dhcp(m, step)
                }
            }
            Message::Tftp { port, bytes, .. } => {
                let key = (m, port);
                if self.settled[m] && bytes[1] == 1 && bytes[2..].starts_with(INSTALLER.as_bytes())
                {
                    self.judge_asking_directly(m);
                }
                let sent = self.factory.tftp(key, peer, &bytes);
                self.tftp_timer(key);
                sent.into_iter()
                    .map(|(bytes, data)| Message::Tftp { port, bytes, data })
                    .collect()
            }
            Message::Call { number, call } => {
                let facts = self.machines[m].facts.clone();
                let answer = self.factory.http(peer, &facts, &call);
                self.judge_call(m, peer, &call, &answer);
                vec![Message::Answer { number, answer }]
            }
            Message::Answer { .. } => unreachable!("the factory asks nothing"),
        };
        self.factory.tear(None);
        if self.factory.torn() {
            self.count("torn line");
            return self.crash();
        }
        // Durable, and not said.
        if self.fault(300) {
            return self.crash();
        }
        for reply in &replies {
            self.send_down(m, reply);
        }
    }

    fn settle_dhcp(&mut self, m: usize, step: DhcpStep) -> Vec<Message> {
        if !self.factory.store(&step) {
            return Vec::new();
        }
        if let Some(event) = &step.event {
            self.factory.bench.observe(event);
        }
        let Some(reply) = step.reply else {
            return Vec::new();
        };
        self.judge_boot(m, &reply.packet);
        vec![Message::Dhcp(reply.packet.encode())]
    }

    fn is_used(&self, address: Ipv4Addr, by_others_than: usize) -> bool {
        let own = self.machines[by_others_than].mac;
        let uses = |machine: &Machine| {
            machine.mac != own
                && machine
                    .lease
                    .is_some_and(|lease| lease.address == address && lease.until > self.now)
        };
        self.machines.iter().any(uses)
    }

    fn conflict(&mut self, m: usize, packet: &Packet, address: Ipv4Addr) {
        self.count("address in use");
        self.tell(Some(m), || format!("{address} is in use by another"));
        let now = self.factory.clock();
        let record = self.factory.engine.conflict(packet.mac, address, now);
        let stored = DhcpStep {
            record,
            ask_first: None,
            reply: None,
            event: None,
        };
        if !self.factory.store(&stored) {
            return;
        }
        // As the server does: the same question once more.
        let (step, _) = self.factory.dhcp(packet);
        match step.ask_first {
            Some(next) if self.is_used(next, m) => self.conflict(m, packet, next),
            Some(_) => {
                let epoch = self.factory.epoch;
                let held = Box::new((packet.clone(), step));
                self.at(self.now + 300_000, Event::Asked(epoch, m, held));
            }
            None => {
                for reply in self.settle_dhcp(m, step) {
                    self.send_down(m, &reply);
                }
            }
        }
    }

    fn nobody_answered(&mut self, m: usize, packet: &Packet, step: DhcpStep) {
        if let Some(address) = step.ask_first
            && self.is_used(address, m)
        {
            return self.conflict(m, packet, address);
        }
        // What to boot was said before the question. An operator may have changed his
        // mind in these 0.3 s: then the next message of the machine says so, and the
        // file is refused.
        if self.factory.store(&step) {
            if let Some(event) = &step.event {
                self.factory.bench.observe(event);
            }
            if let Some(reply) = step.reply {
                self.send_down(m, &Message::Dhcp(reply.packet.encode()));
            }
        }
    }

    fn tftp_timer(&mut self, key: (usize, u16)) {
        if let Some((due, serial)) = self.factory.deadline(key) {
            self.at(due.max(self.now), Event::Tftp(key, serial));
        }
    }

    fn tftp_due(&mut self, key: (usize, u16), serial: u64) {
        match self.factory.deadline(key) {
            Some((due, now)) if now == serial && due <= self.now + 1 => {
                let sent = self.factory.tftp_timeout(key);
                self.tftp_timer(key);
                for (bytes, data) in sent {
                    let port = key.1;
                    self.send_down(key.0, &Message::Tftp { port, bytes, data });
                }
            }
            // Progress was made since; that set a timer of its own.
            _ => {}
        }
    }

    fn crash(&mut self) {
        self.count("crash");
        self.tell(None, || "factory stops".into());
        self.factory.crash();
        let after = self.random.between(1, 40) * SECOND;
        self.at(self.now + after, Event::Start);
    }

    // ── misfortune and operators ──

    fn misfortune(&mut self) {
        if self.calm {
            return;
        }
        let m = self.random.index(MACHINES);
        match self.random.index(12) {
            0 => self.crash(),
            1 => {
                let spans = [60, 3_600, 86_400, 400 * 86_400];
                let span = i64::from(spans[self.random.index(4)]);
                let ahead = self.random.chance(500_000);
                self.factory.clock_off = match self.random.index(3) {
                    0 => 0,
                    _ if ahead => span,
                    _ => -span,
                };
                let off = self.factory.clock_off;
                self.count("clock jump");
                self.tell(None, || format!("the factory's clock is off by {off} s"));
            }
            2 => self.factory.sky_away = !self.factory.sky_away,
            _ => {
                if self.machines[m].phase != Phase::Off {
                    self.count("power cut");
                    self.tell(Some(m), || "loses its power".into());
                    self.power_off(m);
                    let after = self.random.between(1, 600) * SECOND;
                    self.at(self.now + after, Event::Power(m));
                }
            }
        }
        let pause = self.random.between(5, 90) * SECOND;
        self.at(self.now + pause, Event::Misfortune);
    }

    fn power_cycle(&mut self, m: usize) {
        self.tell(Some(m), || "is switched off and on".into());
        self.power_off(m);
        self.machines[m].boots_in_a_row = 0;
        self.boot(m);
    }

    fn named(&mut self, m: usize, event: &BirthEvent) -> bool {
        if !self.factory.up {
            return false;
        }
        // One UUID may be two machines', and so may a MAC address.
        let facts = &self.machines[m].facts;
        let code = self.machines[m].code.as_ref().map(ToString::to_string);
        let names = [
            facts.uuid.clone(),
            facts.nics[0].mac.to_string(),
            facts.serial.clone(),
        ];
        let mut names = names.into_iter().chain(code);
        let done = names.find_map(|name| self.factory.named(&name, event).ok());
        if let Some(record) = &done {
            self.tell(Some(m), || format!("operator: {event:?}"));
            let settled = *event == BirthEvent::Uninvited;
            self.count(if settled { "uninvited" } else { "invited" });
            // Whoever the factory takes for this machine.
            for other in 0..MACHINES {
                if self
                    .record(other)
                    .is_some_and(|other| other.id == record.id)
                {
                    self.settled[other] = settled;
                }
            }
        }
        done.is_some()
    }

    fn operate(&mut self) {
        let now = self.now / SECOND;
        for code in self.factory.sky.held(now) {
            // A code that is on no screen any more stays unanswered.
            let shown = |machine: &Machine| machine.code.as_ref() == Some(&code);
            let Some(m) = self.machines.iter().position(shown) else {
                continue;
            };
            if self.fault(20_000) {
                self.count("refused");
                self.tell(Some(m), || format!("operator refuses {code}"));
                self.factory.sky.refuse(&code);
            } else if self.calm || self.random.chance(500_000) {
                self.tell(Some(m), || format!("operator approves {code}"));
                self.factory.sky.approve(&code, now);
            }
        }
        for m in 0..MACHINES {
            if self.machines[m].gave_up {
                self.power_cycle(m);
            }
        }
        if self.calm {
            for m in 0..MACHINES {
                self.mend(m);
            }
        } else {
            for _ in 0..4 {
                let m = self.random.index(MACHINES);
                if self.settled[m] {
                    self.judge_asking_directly(m);
                }
                if self.settled[m] && self.random.chance(500_000) {
                    if self.named(m, &BirthEvent::Invited) && self.random.chance(800_000) {
                        self.power_cycle(m);
                    }
                } else if self.random.chance(30_000) {
                    self.named(m, &BirthEvent::Uninvited);
                }
            }
        }
        let pause = if self.calm {
            5
        } else {
            self.random.between(5, 30)
        };
        self.at(self.now + pause * SECOND, Event::Operator);
    }

    /// What an operator does about a machine that stands still and is not born.
    fn mend(&mut self, m: usize) {
        if self.is_born(m) || self.clone_of[m] != m {
            return;
        }
        let boots = self.record(m).map(|record| record.birth.boot());
        match (&self.machines[m].phase, boots) {
            // Refused or called back without a disk: invited once more.
            (Phase::Firmware, Some(Boot::LocalDisk(_))) if self.machines[m].disk != Disk::Whole => {
                self.named(m, &BirthEvent::Invited);
            }
            (Phase::Unit, Some(Boot::Installer)) => self.power_cycle(m),
            _ => {}
        }
    }

    fn calm_down(&mut self) {
        self.calm = true;
        self.tell(None, || "all goes well from now on".into());
        self.factory.clock_off = 0;
        self.factory.sky_away = false;
        self.factory.at(self.now);
        if !self.factory.up {
            self.factory.start();
        }
        for m in 0..MACHINES {
            self.machines[m].boots_in_a_row = 0;
            self.machines[m].impatient = false;
            // Of machines that nobody can tell apart a person takes all but one away:
            // each of their announcements makes the ledger forget the other's keys.
            if self.clone_of[m] != m {
                self.power_off(m);
                continue;
            }
            if self.machines[m].phase == Phase::Off {
                self.boot(m);
            }
        }
    }

    // ── the judge ──

    fn is_born(&self, m: usize) -> bool {
        let machine = &self.machines[m];
        let boots = self.record(m).map(|record| record.birth.boot());
        let local = matches!(boots, Some(Boot::LocalDisk(_)));
        local && machine.phase == Phase::Unit && machine.disk == Disk::Whole
    }

    /// Of machines that nobody can tell apart, one: the others get nothing.
    fn all_are_born(&self) -> bool {
        (0..MACHINES).all(|m| {
            self.clone_of[m] != m
                || (0..MACHINES).any(|other| self.clone_of[other] == m && self.is_born(other))
        })
    }

    pub fn judge_address(&mut self, m: usize) {
        let Some(lease) = self.machines[m].lease.filter(|lease| lease.ours) else {
            return;
        };
        let now = self.now;
        let own = self.machines[m].mac;
        let other = self.machines.iter().position(|other| {
            other.mac != own
                && other.lease.is_some_and(|theirs| {
                    theirs.ours && theirs.address == lease.address && theirs.until > now
                })
        });
        if let Some(other) = other {
            let address = lease.address;
            self.violate(Some(m), || {
                format!("{address} was given to machine {other} too, which uses it")
            });
        }
    }

    /// What DHCP says, TFTP and HTTP say too; and what has its disk is left on it.
    fn judge_boot(&mut self, m: usize, reply: &Packet) {
        let Some(file) = boot_file(reply) else {
            return;
        };
        let installer = file.ends_with(INSTALLER);
        if installer && self.settled[m] {
            self.violate(Some(m), || {
                format!("has its disk and was told by DHCP to boot {file}")
            });
        }
        if !installer {
            self.count("kept off");
        }
        let served = self.factory.serves_installer(reply.yiaddr);
        if served != installer {
            self.violate(Some(m), || {
                format!("DHCP says {file}, and a request for the installer is served: {served}")
            });
        }
    }

    /// A machine that has its disk asks for the installer without having been told so.
    fn judge_asking_directly(&mut self, m: usize) {
        let machine = &self.machines[m];
        let (mac, lease) = (machine.mac, machine.lease);
        let alone = self
            .machines
            .iter()
            .filter(|other| other.mac == mac)
            .count()
            == 1;
        if let Some(lease) = lease
            && alone
            && lease.ours
            && self.factory.up
            && self.factory.engine.leases().address_of(mac) == Some(lease.address)
            && self.factory.serves_installer(lease.address)
        {
            let address = lease.address;
            self.violate(Some(m), || {
                format!("has its disk, asks for the installer from {address}, gets it")
            });
        }
    }

    fn judge_call(&mut self, m: usize, peer: Ipv4Addr, call: &Call, answer: &Answer) {
        if let Call::Get { path } = call {
            let ours = self.machines[m]
                .lease
                .is_some_and(|lease| lease.ours && lease.address == peer);
            if path == INSTALLER && *answer == Answer::File && ours && self.settled[m] {
                self.judge_asking_directly(m);
            }
        }
        let Some(code) = &self.machines[m].code else {
            return;
        };
        let Some(record) = self.factory.ledger.by_code(code) else {
            return;
        };
        if let Birth::Installing { code, ticket } = &record.birth {
            let known = self.factory.sky.tickets.get(ticket);
            let right = known
                .is_some_and(|ticket| ticket.code == *code && ticket.shown && ticket.burned == 1);
            if !right {
                self.violate(Some(m), || {
                    format!("installs by {ticket}, which was not shown to {code}")
                });
            }
        }
        // Durable, whether the installer hears of it or not.
        if *answer == Answer::Taken && matches!(call, Call::Done { .. }) {
            self.born(m);
        }
        if *answer == Answer::LocalDisk {
            self.settled[m] = true;
        }
    }

    fn born(&mut self, m: usize) {
        if self.machines[m].disk != Disk::Whole {
            self.violate(Some(m), || "is born, and its disk is not whole".into());
        }
        self.machines[m].born_with = self.machines[m].code.clone();
        if !self.settled[m] {
            self.births += 1;
            self.settled[m] = true;
            self.tell(Some(m), || "is born".into());
        }
    }

    pub fn told_done(&mut self, m: usize, answer: &Answer) {
        // With new keys announced by a clone meanwhile, the end is nobody's.
        let alone = self
            .clone_of
            .iter()
            .filter(|c| **c == self.clone_of[m])
            .count()
            == 1;
        // Taken, not heard, and invited before it was told again: that is no loss.
        let taken = self.machines[m].born_with == self.machines[m].code;
        if alone && !taken {
            self.violate(Some(m), || {
                format!("the end of its installation is not taken: {answer:?}")
            });
        }
    }

    pub fn judge_erase(&mut self, m: usize, ticket: &str) {
        let code = self.machines[m].code.clone().unwrap();
        let known = self.factory.sky.tickets.get(ticket);
        let right =
            known.is_some_and(|known| known.code == code && known.shown && known.burned == 1);
        if !right {
            self.violate(Some(m), || {
                format!("erases by {ticket}, which was not shown to {code}")
            });
        }
        let Some(known) = self.factory.sky.tickets.get_mut(ticket) else {
            return;
        };
        // The same machine may try again; another one never.
        let first = *known.erased.get_or_insert(m);
        if first != m {
            self.violate(Some(m), || {
                format!("erases by {ticket}, as machine {first} has done")
            });
        }
        if self.settled[m] {
            self.violate(Some(m), || {
                "has its disk, was not invited, and is erased".into()
            });
        }
    }

    pub fn judge_file(&mut self, m: usize, path: &str, length: u64) {
        if path == INSTALLER && length != INSTALLER_LENGTH {
            self.violate(Some(m), || {
                format!("{length} bytes of {path}, expected {INSTALLER_LENGTH}")
            });
        }
    }

    fn judge_boots(&mut self, m: usize) {
        let born = self.machines[m].disk == Disk::Whole;
        let boots = self.machines[m].boots_in_a_row;
        if self.calm && boots > BOOTS && (born || self.clone_of[m] == m) {
            self.violate(Some(m), || {
                format!("boots for the {boots}th time and stands where it stood")
            });
        }
    }
}
