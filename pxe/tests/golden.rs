//! What real firmware sent, replayed: the captures in `testdata` tell the same
//! story as the text beside them, and the server answers as it did on the wire.
//!
//! `UPDATE_GOLDEN=1` rewrites the texts, and still fails: a difference must be
//! looked at. To record a new capture, see `docs/boot-flow.md`.

#![allow(clippy::unwrap_used, reason = "a test panics where something is wrong")]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::time::Duration;

use pxe::boot::BootAnswer;
use pxe::capture::{self, Datagram};
use pxe::dhcp::packet::{Op, Packet as Dhcp};
use pxe::dhcp::policy::{Engine, Port};
use pxe::dhcp::{Config, ConflictCheck, LocalDiskReply, Mode, Place, Subnet};
use pxe::dhcp6;
use pxe::tftp::packet::{Packet as Tftp, encode_option_ack};
use pxe::tftp::transfer::agree;

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

fn testdata(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "testdata", name]
        .iter()
        .collect()
}

fn load(name: &str) -> Vec<Datagram> {
    let bytes = std::fs::read(testdata(&format!("{name}.pcap"))).unwrap();
    capture::read(&bytes).unwrap()
}

fn engine(server: Ipv4Addr, subnet: Subnet) -> Engine {
    let config = Config {
        mode: Mode::Authoritative(vec![subnet]),
        server,
        http_base: format!("http://{server}:8080"),
        local_disk: LocalDiskReply::default(),
        conflicts: ConflictCheck::default(),
    };
    Engine::new(config, []).unwrap()
}

/// The server of `examples/boot_server.rs`, which the first captures were made with.
fn example() -> Engine {
    let subnet = Subnet {
        network: Ipv4Addr::new(10, 77, 0, 0),
        prefix: 16,
        range: Ipv4Addr::new(10, 77, 0, 100)..=Ipv4Addr::new(10, 77, 0, 199),
        reservations: BTreeMap::new(),
        places: Vec::new(),
        routers: Vec::new(),
        name_servers: Vec::new(),
        domain: None,
        lease: Duration::from_secs(3600),
        options: Vec::new(),
    };
    engine(SERVER, subnet)
}

/// The factory of a case of `leap-lab matrix`, in its network 10.80.`third`.0/24.
fn factory(third: u8) -> Engine {
    let at = |host| Ipv4Addr::new(10, 80, third, host);
    let subnet = Subnet {
        network: at(0),
        prefix: 24,
        range: at(100)..=at(150),
        reservations: BTreeMap::new(),
        places: Vec::new(),
        routers: vec![at(1)],
        name_servers: Vec::new(),
        domain: None,
        lease: Duration::from_secs(3600),
        options: Vec::new(),
    };
    engine(at(1), subnet)
}

/// Puts the client's messages to the server again and compares the answers, byte
/// for byte, with those of the capture.
///
/// Returns how many there were of DHCP, and of transfers by TFTP.
fn replay(name: &str, mut engine: Engine, answer: &BootAnswer, length: u64) -> (usize, usize) {
    let datagrams = load(name);
    let now = "2026-11-22T12:00:00Z".parse().unwrap();
    let (mut dhcp, mut tftp) = (0, 0);
    for (at, datagram) in datagrams.iter().enumerate() {
        let expected = datagrams.get(at + 1).map(|next| next.payload.as_slice());
        match datagram.to.port() {
            67 => {
                let packet = Dhcp::parse(&datagram.payload).unwrap();
                let decide = |_: &pxe::boot::BootRequest| answer.clone();
                let step = engine.handle(&packet, Port::Dhcp, v4(datagram.from), now, decide);
                let reply = step.reply.map(|reply| reply.packet.encode());
                assert_eq!(reply.as_deref(), expected, "{name}: reply to datagram {at}");
                dhcp += 1;
            }
            69 => {
                let Ok(Tftp::Read(request)) = Tftp::parse(&datagram.payload) else {
                    panic!("{name}: datagram {at} is no read request");
                };
                let agreed = agree(&request.options, length, 1468, 64);
                let reply = encode_option_ack(&agreed.accepted);
                assert_eq!(Some(&reply[..]), expected, "{name}: reply to datagram {at}");
                tftp += 1;
            }
            _ => {}
        }
    }
    (dhcp, tftp)
}

fn v4(end: SocketAddr) -> SocketAddrV4 {
    match end {
        SocketAddr::V4(end) => end,
        SocketAddr::V6(end) => panic!("{end}: expected IPv4"),
    }
}

fn boot(path: &str) -> BootAnswer {
    BootAnswer::Boot {
        tftp_path: path.to_owned(),
        http_path: path.to_owned(),
    }
}

/// Says what is wrong with the text beside a capture.
fn compare(name: &str) -> Option<String> {
    let told = capture::tell(&load(name));
    let path = testdata(&format!("{name}.txt"));
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    if told == expected {
        return None;
    }
    let mut hint = "run with UPDATE_GOLDEN=1 and look at the difference";
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &told).unwrap();
        hint = "rewritten: look at the difference and run again";
    }
    Some(format!("{name}.txt is not what the capture tells; {hint}"))
}

#[test]
fn the_captures_tell_what_stands_beside_them() {
    let files = std::fs::read_dir(testdata("")).unwrap();
    let captures = files.map(|file| file.unwrap().path()).filter(|path| {
        path.extension()
            .is_some_and(|extension| extension == "pcap")
    });
    let names: Vec<_> = captures
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert!(names.len() >= 11, "{names:?}");
    let wrong: Vec<_> = names.iter().filter_map(|name| compare(name)).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Puts the messages of other people's DHCP clients and relays, from captures of
/// `tests/peers.rs`, to its server again. Returns the number of answers.
fn answers(name: &str, change: impl FnOnce(&mut Vec<Subnet>)) -> usize {
    let subnet = |second: u8| Subnet {
        network: Ipv4Addr::new(10, second, 0, 0),
        prefix: 24,
        range: Ipv4Addr::new(10, second, 0, 100)..=Ipv4Addr::new(10, second, 0, 109),
        reservations: BTreeMap::new(),
        places: Vec::new(),
        routers: Vec::new(),
        name_servers: Vec::new(),
        domain: None,
        lease: Duration::from_secs(600),
        options: vec![(42, vec![10, 77, 0, 3])],
    };
    let mut subnets = vec![subnet(77), subnet(7), subnet(8)];
    change(&mut subnets);
    let config = Config {
        mode: Mode::Authoritative(subnets),
        server: SERVER,
        http_base: format!("http://{SERVER}:8080"),
        local_disk: LocalDiskReply::default(),
        conflicts: ConflictCheck::default(),
    };
    let mut engine = Engine::new(config, []).unwrap();
    let began: jiff::Timestamp = "2026-11-23T09:00:00Z".parse().unwrap();
    let (datagrams, mut answers) = (load(name), 0);
    for (at, datagram) in datagrams.iter().enumerate() {
        let packet = Dhcp::parse(&datagram.payload).unwrap();
        if packet.op == Op::Reply {
            continue;
        }
        let now = began + Duration::from_micros(datagram.micros);
        let decide = |_: &pxe::boot::BootRequest| BootAnswer::LocalDisk {
            reason: "no ticket".into(),
        };
        let step = engine.handle(&packet, Port::Dhcp, v4(datagram.from), now, decide);
        let Some(reply) = step.reply else {
            continue;
        };
        // A relay that is a router, too, hears renewals that pass through it and
        // sends them once more: the answers to all of them are mixed.
        let reply = reply.packet.encode();
        let sent = datagrams[at..].iter().any(|later| later.payload == reply);
        let told = Dhcp::parse(&reply).unwrap();
        assert!(sent, "{name}: reply to datagram {at}: {told:#?}");
        answers += 1;
    }
    answers
}

#[test]
fn other_peoples_clients_and_relays_are_answered_as_on_the_wire() {
    assert_eq!(answers("udhcpc", |_| {}), 3, "offer, lease, renewal");
    let short = |subnets: &mut Vec<Subnet>| subnets[0].lease = Duration::from_secs(4);
    assert!(answers("dhclient", short) >= 3);
    let place = |subnets: &mut Vec<Subnet>| {
        subnets[1].places.push(Place {
            circuit: Some(b"port7".to_vec()),
            remote: None,
            address: Ipv4Addr::new(10, 7, 0, 33),
        });
    };
    assert!(answers("dhcrelay", place) >= 6, "two machines behind it");
}

#[test]
fn ovmf_is_answered_as_when_it_booted() {
    let told = replay("ovmf-pxe-boot", example(), &boot("installer.efi"), 140_891);
    assert_eq!(told, (2, 2), "discover and request, size and file");
}

#[test]
fn ovmf_is_answered_as_when_it_booted_its_disk() {
    let answer = BootAnswer::LocalDisk {
        reason: "no ticket".into(),
    };
    let told = replay("ovmf-pxe-local-disk", example(), &answer, 7168);
    assert_eq!(told, (2, 2), "discover and request, size and file");
}

#[test]
fn firmware_of_other_kinds_is_answered_as_in_the_matrix() {
    let installer = boot("boot/installer.efi");
    let told = replay("ovmf-http-boot", factory(3), &installer, 0);
    assert_eq!(told, (2, 0), "files come by HTTP");
    let told = replay("aavmf-pxe", factory(2), &installer, 27_656_192);
    assert_eq!(told, (2, 2), "discover and request, size and file");
    let message = boot("boot/other-firmware.ipxe");
    let told = replay("seabios-ipxe", factory(1), &message, 0);
    assert_eq!(told, (3, 0), "iPXE looks for servers twice");
}

#[test]
fn ovmf_is_answered_by_ipv6_as_in_the_matrix() {
    use dhcp6::packet::{Packet, SERVER_ID};
    let name = "ovmf-http-boot-v6";
    let datagrams = load(name);
    let packets = datagrams.iter().map(|one| Packet::parse(&one.payload));
    let packets: Vec<_> = packets.collect::<Result<_, _>>().unwrap();
    let identity = packets[1].message.options.get(SERVER_ID).unwrap();
    let config = dhcp6::Config {
        server: "fd80:0:0:4::1".parse().unwrap(),
        http_base: "http://[fd80:0:0:4::1]:8080".into(),
        name_servers: Vec::new(),
        lease: Duration::from_secs(3600),
        local_disk: LocalDiskReply::default(),
        advertise: true,
    };
    let identity = dhcp6::duid::Duid::new(identity).unwrap();
    let mut engine = dhcp6::policy::Engine::new(config, identity).unwrap();
    let asked = (0..datagrams.len()).step_by(2);
    assert_eq!(asked.len(), 4, "its HTTP boot and its IP stack, two each");
    for at in asked {
        let SocketAddr::V6(from) = datagrams[at].from else {
            panic!("{}", datagrams[at].from);
        };
        let answer = boot("boot/installer.efi");
        let step = engine.handle(&packets[at], from, |_| answer);
        let reply = step.reply.unwrap();
        assert_eq!(
            reply.packet.encode(),
            datagrams[at + 1].payload,
            "{name}: reply to datagram {at}"
        );
    }
}
