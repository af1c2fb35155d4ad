//! DHCPv6 messages, one after the other, to one server: what is parsed is the same after it
//! was encoded, each reply belongs to its question and goes back the way it came, an address
//! is nobody else's, and no message makes the server name the installer where the verdict is
//! the local disk.
#![no_main]

use std::collections::HashMap;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use pxe::boot::BootAnswer;
use pxe::capture::{self, Datagram, Filter};
use pxe::dhcp::LocalDiskReply;
use pxe::dhcp6::Config;
use pxe::dhcp6::duid::Duid;
use pxe::dhcp6::packet::{self, IaNa, MessageType, Packet};
use pxe::dhcp6::policy::{CLIENT_PORT, Engine, SERVER_PORT};

const SERVER: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
/// Firmware's, formed of its hardware address.
const CLIENT: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5054, 0x00ff, 0xfe12, 0x3456);
/// What a machine without ticket must never be told.
const ERASES: &str = "erases-the-disk.efi";

fuzz_target!(|input: &[u8]| {
    let config = Config {
        server: SERVER,
        http_base: format!("http://[{SERVER}]:8080"),
        name_servers: vec![SERVER],
        lease: Duration::from_secs(600),
        local_disk: LocalDiskReply::Loader,
        advertise: true,
    };
    let identity = Duid::new(&[0, 3, 0, 1, 2, 0, 0, 0, 0, 1]).expect("a length that is allowed");
    let mut engine = Engine::new(config, identity).expect("the configuration is right");
    let mut users = HashMap::new();
    for bytes in pxe_fuzz::datagrams(input) {
        told(bytes);
        let Ok(packet) = Packet::parse(bytes) else {
            continue;
        };
        assert_eq!(Packet::parse(&packet.encode()).as_ref(), Ok(&packet));
        for answer in [
            BootAnswer::Ignore {
                reason: "not ours".into(),
            },
            BootAnswer::LocalDisk {
                reason: "no ticket".into(),
            },
            BootAnswer::Boot {
                tftp_path: ERASES.into(),
                http_path: ERASES.into(),
            },
        ] {
            let from = SocketAddrV6::new(CLIENT, 546, 0, 2);
            let step = engine.handle(&packet, from, |_| answer.clone());
            let Some(reply) = step.reply else { continue };
            let sent = reply.packet.encode();
            assert_eq!(Packet::parse(&sent).as_ref(), Ok(&reply.packet));
            assert_eq!(reply.packet.message.transaction, packet.message.transaction);
            let port = match packet.relays.is_empty() {
                true => CLIENT_PORT,
                false => SERVER_PORT,
            };
            assert_eq!(reply.to, SocketAddrV6::new(CLIENT, port, 0, 2));
            let there = |one: &pxe::dhcp6::packet::Relay| (one.link, one.peer, one.hops);
            assert!(
                packet
                    .relays
                    .iter()
                    .map(there)
                    .eq(reply.packet.relays.iter().map(there)),
                "another way back"
            );
            let told = sent
                .windows(ERASES.len())
                .any(|text| text == ERASES.as_bytes());
            let may = matches!(answer, BootAnswer::Boot { .. });
            assert!(may || !told, "the installer for one that boots its disk");
            used_by_one(&packet, &reply.packet, &mut users);
        }
    }
});

/// The operator's `debug decode` reads what anybody sent.
fn told(bytes: &[u8]) {
    let datagram = Datagram {
        micros: 0,
        from: SocketAddrV6::new(CLIENT, CLIENT_PORT, 0, 0).into(),
        to: SocketAddrV6::new(SERVER, SERVER_PORT, 0, 0).into(),
        length: bytes.len(),
        payload: bytes.to_vec(),
    };
    let mut filter = Filter::new("52:54:00:12:34:56".parse().expect("an address"));
    let _ = filter.takes(&datagram);
    assert!(!capture::tell(&[datagram]).is_empty());
}

/// An address is given to one client, for one purpose.
fn used_by_one(asked: &Packet, reply: &Packet, users: &mut HashMap<Ipv6Addr, (Vec<u8>, u32)>) {
    let options = &reply.message.options;
    let Some(client) = options.get(packet::CLIENT_ID) else {
        return;
    };
    assert_eq!(asked.message.options.get(packet::CLIENT_ID), Some(client));
    if reply.message.kind == MessageType::Advertise {
        assert!(options.get(packet::PREFERENCE).is_some());
    }
    for association in options.all(packet::IA_NA).filter_map(IaNa::parse) {
        let given = association.addresses().expect("our own options");
        let address = *given.first().expect("an association has its address");
        assert_ne!(address, SERVER);
        let user = (client.to_vec(), association.iaid);
        let before = users.entry(address).or_insert_with(|| user.clone());
        assert_eq!(*before, user, "{address} is somebody else's");
    }
}
