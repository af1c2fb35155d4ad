//! Hostile input: what clients send, broken in every way that a seed gives.
//!
//! The corpus is every datagram of the captures in `testdata`, and the files in
//! `testdata/corpus`. A file there is one datagram, or one HTTP request; to keep an
//! input that once did harm, put it there. `LEAP_PXE_ROUNDS` sets how many
//! mutations are tried, `LEAP_PXE_SEED` repeats a run.

#![allow(clippy::unwrap_used, reason = "a test panics where something is wrong")]
#![allow(clippy::print_stderr, reason = "the seed repeats a run that failed")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dhcproto::{Decodable, Decoder, v4, v6};
use jiff::Timestamp;
use pxe::boot::{BootAnswer, BootEvent, BootFile, BootRequest, BootSource, NotServed};
use pxe::capture;
use pxe::dhcp::packet::{Op, Packet};
use pxe::dhcp::policy::{Engine, Port};
use pxe::dhcp::{Config, ConflictCheck, LocalDiskReply, Mode, Place, Subnet};
use pxe::dhcp6;
use pxe::tftp;
use pxe::tftp::transfer::{Step, Transfer, agree};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// What a machine without ticket must never be told.
const ERASES: &str = "erases-the-disk.efi";

fn corpus(kind: &str) -> Vec<Vec<u8>> {
    let folder: PathBuf = [env!("CARGO_MANIFEST_DIR"), "testdata"].iter().collect();
    let mut seeds = Vec::new();
    for entry in std::fs::read_dir(folder.join("corpus").join(kind)).unwrap() {
        seeds.push(std::fs::read(entry.unwrap().path()).unwrap());
    }
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "pcap") {
            continue;
        }
        for datagram in capture::read(&std::fs::read(path).unwrap()).unwrap() {
            let spoken = match datagram.to.port() {
                67 | 4011 => "dhcp",
                547 => "dhcp6",
                69 => "tftp",
                _ => continue,
            };
            if kind == spoken {
                seeds.push(datagram.payload);
            }
        }
    }
    assert!(seeds.len() >= 6, "{kind}: {} seeds", seeds.len());
    seeds.sort();
    seeds
}

fn number(name: &str, otherwise: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.map_or(otherwise, |text| text.parse().unwrap())
}

/// xorshift64*: all that is asked of it is that a seed repeats a run.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let seed = number("LEAP_PXE_SEED", 0x1ea9_5e47);
        eprintln!("LEAP_PXE_SEED={seed}");
        Self(seed.max(1))
    }

    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(number).unwrap() % sides.max(1)
    }

    fn byte(&mut self) -> u8 {
        const TELLING: [u8; 8] = [0, 1, 4, 127, 128, 254, 255, b'/'];
        match self.roll(2) {
            0 => TELLING[self.roll(TELLING.len())],
            _ => u8::try_from(self.roll(256)).unwrap(),
        }
    }

    /// Breaks a seed in one to eight places.
    fn mutate(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = seeds[self.roll(seeds.len())].clone();
        for _ in 0..=self.roll(8) {
            let at = self.roll(bytes.len() + 1);
            let length = self.roll(16).min(bytes.len() - at);
            match self.roll(7) {
                0 if at < bytes.len() => bytes[at] ^= 1 << self.roll(8),
                1 if at < bytes.len() => bytes[at] = self.byte(),
                2 => bytes.insert(at, self.byte()),
                3 => drop(bytes.drain(at..at + length)),
                4 => {
                    let again = bytes[at..at + length].to_vec();
                    bytes.splice(at..at, again);
                }
                5 => {
                    let other = &seeds[self.roll(seeds.len())];
                    let from = self.roll(other.len() + 1);
                    let count = self.roll(64).min(other.len() - from);
                    bytes.splice(at..at + length, other[from..from + count].iter().copied());
                }
                _ if self.roll(4) == 0 => bytes.truncate(at),
                _ => {}
            }
        }
        bytes
    }
}

fn engine(mode: Mode) -> Engine {
    let config = Config {
        mode,
        server: SERVER,
        http_base: format!("http://{SERVER}:8080"),
        local_disk: LocalDiskReply::default(),
        conflicts: ConflictCheck::Arp,
    };
    Engine::new(config, []).unwrap()
}

fn subnets() -> Vec<Subnet> {
    let subnet = |third: u8, options| Subnet {
        network: Ipv4Addr::new(10, third, 0, 0),
        prefix: 24,
        range: Ipv4Addr::new(10, third, 0, 100)..=Ipv4Addr::new(10, third, 0, 109),
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

#[test]
fn no_dhcpv6_message_breaks_the_server_and_none_talks_it_into_erasing() {
    use dhcp6::packet::Packet;
    let (seeds, mut dice) = (corpus("dhcp6"), Dice::new());
    let server = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
    let config = dhcp6::Config {
        server,
        http_base: format!("http://[{server}]:8080"),
        name_servers: vec![server],
        lease: Duration::from_secs(600),
        local_disk: LocalDiskReply::default(),
        advertise: true,
    };
    // The server that the corpus speaks to.
    let identity = dhcp6::duid::Duid::new(&[0, 3, 0, 1, 2, 0, 0, 0, 0, 1]).unwrap();
    let mut engine = dhcp6::policy::Engine::new(config, identity).unwrap();
    let client = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5054, 0x00ff, 0xfe12, 0x3456);
    let from = SocketAddrV6::new(client, 546, 0, 2);
    let (mut parsed, mut answered) = (0, 0);
    for _ in 0..number("LEAP_PXE_ROUNDS", 100_000) {
        let bytes = dice.mutate(&seeds);
        let Ok(packet) = Packet::parse(&bytes) else {
            continue;
        };
        parsed += 1;
        let disk = dice.roll(2) == 0;
        let decide = |_: &BootRequest| match disk {
            true => BootAnswer::LocalDisk {
                reason: "no ticket".into(),
            },
            false => BootAnswer::Boot {
                tftp_path: ERASES.into(),
                http_path: ERASES.into(),
            },
        };
        let Some(reply) = engine.handle(&packet, from, decide).reply else {
            continue;
        };
        answered += 1;
        let sent = reply.packet.encode();
        let asked = packet.message.transaction;
        assert_eq!(reply.packet.message.transaction, asked);
        // Two other readers: our own, and another implementation.
        assert_eq!(Packet::parse(&sent).as_ref(), Ok(&reply.packet));
        if packet.relays.is_empty() {
            let theirs = v6::Message::decode(&mut Decoder::new(&sent));
            assert!(theirs.is_ok(), "{theirs:?}: {bytes:02x?}");
        }
        let told = sent
            .windows(ERASES.len())
            .any(|text| text == ERASES.as_bytes());
        assert!(!(disk && told), "{bytes:02x?}");
    }
    // Else the mutations are too wild to test anything.
    assert!(
        parsed > 0 && answered * 20 > parsed,
        "{answered} of {parsed}"
    );
}

#[test]
fn no_dhcp_message_breaks_the_server_and_none_talks_it_into_erasing() {
    let (seeds, mut dice) = (corpus("dhcp"), Dice::new());
    let mut engines = [engine(Mode::Authoritative(subnets())), engine(Mode::Proxy)];
    let from = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 100), 68);
    let (mut parsed, mut answered) = (0, 0);
    for round in 0..number("LEAP_PXE_ROUNDS", 100_000) {
        let bytes = dice.mutate(&seeds);
        let Ok(packet) = Packet::parse(&bytes) else {
            continue;
        };
        parsed += 1;
        let now = Timestamp::from_second(1_800_000_000 + i64::try_from(round).unwrap()).unwrap();
        let port = [Port::Dhcp, Port::Proxy][dice.roll(2)];
        let disk = dice.roll(2) == 0;
        let decide = |_: &BootRequest| match disk {
            true => BootAnswer::LocalDisk {
                reason: "no ticket".into(),
            },
            false => BootAnswer::Boot {
                tftp_path: ERASES.into(),
                http_path: ERASES.into(),
            },
        };
        let step = engines[dice.roll(2)].handle(&packet, port, from, now, decide);
        let Some(reply) = step.reply else {
            assert_eq!(step.ask_first, None, "{bytes:02x?}");
            continue;
        };
        answered += 1;
        let sent = reply.packet.encode();
        assert_eq!(reply.packet.op, Op::Reply);
        assert_eq!(reply.packet.xid, packet.xid);
        let given = reply.packet.yiaddr;
        let known = subnets().iter().any(|subnet| subnet.contains(given));
        assert!(given.is_unspecified() || known, "{given}: {bytes:02x?}");
        // Two other readers: our own, and another implementation.
        assert!(Packet::parse(&sent).is_ok(), "{bytes:02x?}");
        let theirs = v4::Message::decode(&mut Decoder::new(&sent));
        assert!(theirs.is_ok(), "{theirs:?}: {bytes:02x?}");
        let told = sent
            .windows(ERASES.len())
            .any(|text| text == ERASES.as_bytes());
        assert!(!(disk && told), "{bytes:02x?}");
    }
    // Else the mutations are too wild to test anything.
    assert!(
        parsed > 0 && answered * 10 > parsed,
        "{answered} of {parsed}"
    );
}

#[test]
fn no_tftp_message_breaks_the_server() {
    let (seeds, mut dice) = (corpus("tftp"), Dice::new());
    let mut now = Instant::now();
    for _ in 0..number("LEAP_PXE_ROUNDS", 100_000) {
        let bytes = dice.mutate(&seeds);
        let Ok(tftp::packet::Packet::Read(request)) = tftp::packet::Packet::parse(&bytes) else {
            continue;
        };
        if let Ok(path) = pxe::boot::clean_path(&request.path) {
            let climbs = path.split('/').any(|part| matches!(part, "" | "." | ".."));
            assert!(!climbs && !path.contains('\\'), "{path}");
        }
        let length = u64::try_from(dice.roll(200_000)).unwrap();
        let agreed = agree(&request.options, length, 1468, 64);
        let blocks = length / u64::from(agreed.block_size) + 1;
        let (mut transfer, mut step) = Transfer::start(length, &agreed, now);
        for _ in 0..20 {
            if let Step::SendBlocks { first, count } = step {
                let window = u64::from(agreed.window);
                assert!(first >= 1 && count >= 1, "{bytes:02x?}");
                assert!(count <= window, "{count} > {window}: {transfer:?}");
                assert!(first + count - 1 <= blocks, "{bytes:02x?}");
            }
            assert!(transfer.acked_bytes() <= length);
            if matches!(step, Step::Done | Step::SizeAsked | Step::Broken(_)) {
                break;
            }
            now += Duration::from_millis(u64::try_from(dice.roll(1000)).unwrap());
            let block = u16::try_from(dice.roll(70)).unwrap();
            step = match (
                dice.roll(3),
                tftp::packet::Packet::parse(&dice.mutate(&seeds)),
            ) {
                (0, Ok(packet)) => transfer.on_packet(&packet, now),
                (1, _) => transfer.on_timeout(now),
                _ => transfer.on_packet(&tftp::packet::Packet::Ack { block }, now),
            };
        }
    }
}

/// One file for everybody, one for nobody.
struct Shelf;

impl BootSource for Shelf {
    fn decide(&self, _: &BootRequest) -> BootAnswer {
        BootAnswer::Ignore {
            reason: "not asked here".into(),
        }
    }

    fn open(&self, _: IpAddr, path: &str) -> Result<BootFile, NotServed> {
        let clean = !path.split('/').any(|part| matches!(part, "" | "." | ".."));
        assert!(clean && !path.chars().any(char::is_control), "{path:?}");
        match path {
            "boot.efi" => Ok(BootFile::Bytes(Bytes::from_static(b"good content"))),
            _ => Err(NotServed::NotFound),
        }
    }

    fn observe(&self, _: &BootEvent) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_http_request_breaks_the_server() {
    let (seeds, mut dice) = (corpus("http"), Dice::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(pxe::http::run(
        listener,
        Arc::new(Shelf),
        std::future::pending(),
    ));
    let send = async |request: &[u8]| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let _ = stream.write_all(request).await;
        stream
    };
    let answer = async |mut stream: TcpStream, request: &[u8]| {
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        let ended = tokio::time::timeout(Duration::from_secs(10), read).await;
        assert!(ended.is_ok(), "no end: {}", request.escape_ascii());
        answer
    };
    for _ in 0..number("LEAP_PXE_ROUNDS", 100_000) / 50 {
        let request = dice.mutate(&seeds);
        let mut stream = send(&request).await;
        // Or the server would wait for the rest of what is cut off.
        let _ = stream.shutdown().await;
        let answer = answer(stream, &request).await;
        let fine = answer.is_empty() || answer.starts_with(b"HTTP/1.");
        assert!(fine, "{}", request.escape_ascii());
        assert!(!answer.starts_with(b"HTTP/1.1 30"), "redirected");
    }
    // A panic in a handler would only close a connection: ask what is left.
    let request = b"GET /boot.efi HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    // Who has closed its half may be taken for gone.
    let last = answer(send(request).await, request).await;
    assert!(last.ends_with(b"good content"), "{}", last.escape_ascii());
    assert!(!server.is_finished());
}

/// The sockets, too: a flood of noise does not keep an honest client out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noise_on_the_tftp_port_does_not_keep_an_honest_client_out() {
    let (seeds, mut dice) = (corpus("tftp"), Dice::new());
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let limits = tftp::Limits::default();
    tokio::spawn(tftp::run(
        socket,
        limits,
        Arc::new(Shelf),
        std::future::pending(),
    ));
    let noisy = UdpSocket::bind("127.0.0.2:0").await.unwrap();
    let honest = UdpSocket::bind("127.0.0.3:0").await.unwrap();
    let mut buffer = [0; 2048];
    for _ in 0..20 {
        for _ in 0..100 {
            let _ = noisy.send_to(&dice.mutate(&seeds), address).await;
        }
        // Lost among the noise it asks again, as every client does.
        let answer = loop {
            let request = b"\0\x01boot.efi\0octet\0";
            honest.send_to(request, address).await.unwrap();
            let heard = honest.recv_from(&mut buffer);
            if let Ok(heard) = tokio::time::timeout(Duration::from_secs(1), heard).await {
                break heard.unwrap();
            }
        };
        assert_eq!(&buffer[..answer.0], b"\0\x03\0\x01good content");
        honest.send_to(&[0, 4, 0, 1], answer.1).await.unwrap();
    }
}
