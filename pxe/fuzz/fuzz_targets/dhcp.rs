//! DHCP messages, one after the other, to a server of addresses and to one beside another
//! server: what is parsed is the same after it was encoded, each reply belongs to its
//! question, no address is leased to two machines, leases outlive a restart, and no message
//! makes the server name the installer where the verdict is the local disk.
#![no_main]

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use pxe::boot::BootAnswer;
use pxe::capture::{self, Datagram};
use pxe::dhcp::options::{self, MessageType};
use pxe::dhcp::packet::{Op, Packet};
use pxe::dhcp::policy::{Destination, Engine, Port, SERVER_PORT, Step};
use pxe::dhcp::{Config, ConflictCheck, LeaseState, LocalDiskReply, Mode, Place, Subnet};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// What a machine without ticket must never be told.
const ERASES: &str = "erases-the-disk.efi";

fuzz_target!(|input: &[u8]| {
    let mut servers = [
        Server::new(Mode::Authoritative(subnets()), LocalDiskReply::Loader),
        Server::new(Mode::Proxy, LocalDiskReply::BootMenu),
    ];
    let mut now = 1_800_000_000;
    for bytes in pxe_fuzz::datagrams(input) {
        told(bytes);
        let Ok(packet) = Packet::parse(bytes) else {
            continue;
        };
        survives_the_wire(&packet);
        // The client's own count of seconds lets leases run out.
        now += i64::from(packet.secs);
        let time = Timestamp::from_second(now).expect("some days after 2027");
        for server in &mut servers {
            for port in [Port::Dhcp, Port::Proxy] {
                server.hear(&packet, port, time);
            }
        }
    }
    servers.into_iter().for_each(Server::restart);
});

/// The operator's `debug decode` reads what anybody sent.
fn told(bytes: &[u8]) {
    let end = |port| SocketAddrV4::new(SERVER, port);
    for port in [SERVER_PORT, 69] {
        let datagram = Datagram {
            micros: 0,
            from: end(68).into(),
            to: end(port).into(),
            length: bytes.len(),
            payload: bytes.to_vec(),
        };
        assert!(!capture::tell(&[datagram]).is_empty());
    }
    let _ = Datagram::of_frame(bytes, 0);
    let _ = capture::read(bytes);
}

fn survives_the_wire(packet: &Packet) {
    let mut again = packet.clone();
    // A field without its terminating zero is left to the option.
    for (field, room) in [(&mut again.sname, 64), (&mut again.file, 128)] {
        if field.len() >= room {
            field.clear();
        }
    }
    assert_eq!(Packet::parse(&packet.encode()), Ok(again));
}

struct Server {
    engine: Engine,
    mode: Mode,
    /// Who has which address until when, by the acknowledgements.
    held: HashMap<Ipv4Addr, (pxe::dhcp::LeaseRecord, i64)>,
    journal: BTreeMap<Ipv4Addr, pxe::dhcp::LeaseRecord>,
}

fn config(mode: Mode, local_disk: LocalDiskReply) -> Config {
    Config {
        mode,
        server: SERVER,
        http_base: format!("http://{SERVER}:8080"),
        local_disk,
        conflicts: ConflictCheck::Arp,
    }
}

impl Server {
    fn new(mode: Mode, local_disk: LocalDiskReply) -> Self {
        let engine = Engine::new(config(mode.clone(), local_disk), []);
        Self {
            engine: engine.expect("the configuration is right"),
            mode,
            held: HashMap::new(),
            journal: BTreeMap::new(),
        }
    }

    fn hear(&mut self, packet: &Packet, port: Port, now: Timestamp) {
        let from = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 100), 68);
        let disk = BootAnswer::LocalDisk {
            reason: "no ticket".into(),
        };
        let boot = BootAnswer::Boot {
            tftp_path: ERASES.into(),
            http_path: ERASES.into(),
        };
        let ignore = BootAnswer::Ignore {
            reason: "not ours".into(),
        };
        for answer in [ignore, disk, boot] {
            let step = self
                .engine
                .handle(packet, port, from, now, |_| answer.clone());
            self.judge(packet, &answer, &step, now);
        }
    }

    fn judge(&mut self, packet: &Packet, answer: &BootAnswer, step: &Step, now: Timestamp) {
        if let Some(record) = step.record {
            self.journal.insert(record.address, record);
            if record.state != LeaseState::Bound {
                let freed = self.held.remove(&record.address);
                let own = freed.is_none_or(|(lease, _)| lease.mac == packet.mac);
                assert!(own, "{record:?} frees another machine's address");
            }
        }
        let Some(reply) = &step.reply else {
            assert_eq!(step.ask_first, None, "nothing is offered");
            return;
        };
        assert!(!matches!(answer, BootAnswer::Ignore { .. }), "{reply:?}");
        let sent = reply.packet.encode();
        assert_eq!(Packet::parse(&sent).as_ref(), Ok(&reply.packet));
        assert_eq!(reply.packet.op, Op::Reply);
        assert_eq!(
            (reply.packet.xid, reply.packet.mac, reply.packet.giaddr),
            (packet.xid, packet.mac, packet.giaddr)
        );
        let told = sent
            .windows(ERASES.len())
            .any(|text| text == ERASES.as_bytes());
        let may = matches!(answer, BootAnswer::Boot { .. });
        assert!(may || !told, "the installer for one that boots its disk");
        if let Destination::Unicast(to) = reply.to {
            let ip = to.ip();
            let group = ip.is_broadcast() || ip.is_multicast() || ip.is_loopback();
            assert!(!group && !ip.is_unspecified(), "{to} is no host's address");
        }

        let given = reply.packet.yiaddr;
        if given.is_unspecified() {
            assert_eq!(step.ask_first, None, "no address is offered");
            return;
        }
        assert!(step.ask_first.is_none_or(|asked| asked == given));
        let Mode::Authoritative(subnets) = &self.mode else {
            panic!("an address beside another server: {given}");
        };
        assert!(
            subnets.iter().any(|subnet| subnet.contains(given)),
            "{given}"
        );
        assert_ne!(given, SERVER);
        let second = now.as_second();
        if let Some((lease, until)) = self.held.get(&given) {
            let free = lease.mac == packet.mac || *until <= second;
            assert!(free, "{given} is leased to {}", lease.mac);
        }
        if reply.packet.options.message_type() == Some(MessageType::Ack) {
            let record = step.record.expect("what is acknowledged is stored first");
            assert_eq!((record.address, record.mac), (given, packet.mac));
            let told = reply.packet.options.get(options::LEASE_TIME);
            let told = told.and_then(|bytes| bytes.try_into().ok());
            let seconds = u32::from_be_bytes(told.expect("a lease has its length"));
            let until = second + i64::from(seconds);
            assert!(record.until >= until, "ends before the machine knows");
            self.held.insert(given, (record, until));
        }
    }

    /// Whoever reads the journal knows at least what the server knew; an offer, which is
    /// not stored, may have taken the place of something older there.
    fn restart(self) {
        let before = self.engine.leases().records();
        let stored = self.journal.values().copied();
        let again = Engine::new(config(self.mode, LocalDiskReply::Loader), stored);
        let again = again
            .expect("the configuration is right")
            .leases()
            .records();
        for record in before {
            assert!(again.contains(&record), "{record:?} is forgotten");
        }
    }
}

fn subnets() -> Vec<Subnet> {
    let subnet = |third: u8, options| Subnet {
        network: Ipv4Addr::new(10, third, 0, 0),
        prefix: 24,
        // Few: machines shall want the same ones.
        range: Ipv4Addr::new(10, third, 0, 100)..=Ipv4Addr::new(10, third, 0, 102),
        reservations: BTreeMap::new(),
        places: vec![Place {
            circuit: Some(b"port7".to_vec()),
            remote: None,
            address: Ipv4Addr::new(10, third, 0, 7),
        }],
        routers: vec![SERVER],
        name_servers: Vec::new(),
        domain: Some("bench.example".into()),
        lease: Duration::from_secs(600),
        options,
    };
    vec![
        subnet(77, Vec::new()),
        subnet(7, vec![(224, vec![7; 200]), (225, vec![8; 200])]),
    ]
}
