//! What a DHCPv6 message is answered with. No socket, no clock, no disk: message and
//! verdict go in, reply and event come out.

use std::collections::HashMap;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::time::Duration;

use model::Digest;
use model::id::MacAddr;
use thiserror::Error;

use super::duid::Duid;
use super::packet::{self, IaNa, Message, MessageType, Options, Packet};
use crate::boot::{
    BootAnswer, BootEvent, BootRequest, ClientArch, ClientClass, DhcpMessage, DhcpOutcome, Protocol,
};
use crate::dhcp::LocalDiskReply;
use crate::local_boot;

/// Port of DHCPv6 servers and relays.
pub const SERVER_PORT: u16 = 547;
/// Port of DHCPv6 clients.
pub const CLIENT_PORT: u16 = 546;

/// Addresses that clients have declined, at most: what is remembered of strangers is
/// bounded. Beyond it everything is forgotten, and declined once more.
const DECLINED: usize = 4096;

/// Length of our network's prefix; hosts form addresses for no other (RFC 7421).
pub const PREFIX: u8 = 64;

/// How the server answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Address of this server. Its first 64 bits are the network of our link; machines
    /// behind a relay get addresses of the relay's.
    pub server: Ipv6Addr,
    /// Where HTTP answers, as `http://[fd00::1]:8080` without path.
    pub http_base: String,
    /// Name servers.
    pub name_servers: Vec<Ipv6Addr>,
    /// How long an address is given.
    pub lease: Duration,
    /// How a machine is told to boot its disk.
    pub local_disk: LocalDiskReply,
    /// Whether the link is told by router advertisements that this server is there.
    pub advertise: bool,
}

/// The mistake in a [`Config`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// An address that no server can have.
    #[error("address {0}: expected a unicast address of a network of its own, like fd77::1")]
    Address(Ipv6Addr),
    /// A link-local address: HTTP boot takes no URL with a zone in it.
    #[error("address {0}: machines can't reach a link-local address by a URL")]
    LinkLocal(Ipv6Addr),
}

impl Config {
    /// Checks what can be checked without a network.
    ///
    /// # Errors
    /// [`ConfigError`] names the mistake.
    pub fn check(&self) -> Result<(), ConfigError> {
        let server = self.server;
        if server.is_unicast_link_local() {
            return Err(ConfigError::LinkLocal(server));
        }
        let nobodys = server.is_unspecified() || server.is_multicast() || server.is_loopback();
        if nobodys || server.to_ipv4_mapped().is_some() {
            return Err(ConfigError::Address(server));
        }
        Ok(())
    }

    /// The network of whoever asks: the one that the relay next to it stands in, and
    /// ours without a relay or with one that is no router (RFC 8415, section 13.1).
    fn network_of(&self, packet: &Packet) -> Network {
        let links = packet.relays.iter().rev().map(|relay| relay.link);
        let names = |link: &Ipv6Addr| !link.is_unspecified() && !link.is_unicast_link_local();
        Network::of(links.into_iter().find(names).unwrap_or(self.server))
    }
}

/// The first half of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Network([u8; 8]);

impl Network {
    fn of(address: Ipv6Addr) -> Self {
        let octets = address.octets();
        Self(*octets.first_chunk().expect("an address has 16 bytes"))
    }
}

/// A reply and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The message, in the envelopes of its relays.
    pub packet: Packet,
    /// Its destination.
    pub to: SocketAddrV6,
}

/// All that follows from one message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Step {
    /// To be sent.
    pub reply: Option<Reply>,
    /// To be told to the boot source. `None` for what is not ours to answer, or where it
    /// is not known which machine asks.
    pub event: Option<BootEvent>,
}

/// The server without its sockets.
#[derive(Debug)]
pub struct Engine {
    config: Config,
    identity: Duid,
    /// How often a client has declined what follows from its identity.
    declined: HashMap<(Duid, u32), u32>,
}

/// Why a message is not ours to answer (RFC 8415, section 16).
const NOT_OURS: Step = Step {
    reply: None,
    event: None,
};

/// What the state machine of one message came to.
#[derive(Debug)]
enum Verdict {
    /// Addresses, and all else that the client wants to know.
    Configure {
        /// The first address.
        address: Option<Ipv6Addr>,
        /// The associations, each as the value of its option.
        given: Vec<Vec<u8>>,
    },
    /// A word on addresses that the client has.
    Status {
        status: Status,
        /// For the client's log and for ours.
        words: &'static str,
    },
    /// For somebody else, or noise.
    NotOurs,
}

/// Status codes (RFC 8415, section 21.13).
#[derive(Debug, Clone, Copy)]
enum Status {
    Success = 0,
    NotOnLink = 4,
}

impl Engine {
    /// Returns a server that calls itself by `identity`.
    ///
    /// # Errors
    /// The configuration has a mistake.
    pub fn new(config: Config, identity: Duid) -> Result<Self, ConfigError> {
        config.check()?;
        Ok(Self {
            config,
            identity,
            declined: HashMap::new(),
        })
    }

    /// Answers one message.
    ///
    /// `from` is where the datagram came from, `decide` the boot source's verdict.
    pub fn handle(
        &mut self,
        packet: &Packet,
        from: SocketAddrV6,
        decide: impl FnOnce(&BootRequest) -> BootAnswer,
    ) -> Step {
        let message = &packet.message;
        let kind = message.kind;
        let client = message.options.get(packet::CLIENT_ID).and_then(Duid::new);
        if !self.is_ours(message, client.as_ref()) {
            return NOT_OURS;
        }
        let request = request_of(packet, *from.ip());
        // Without a hardware address nobody can say which machine asks: it gets an
        // address as anybody does, and nothing to boot.
        let answer = request.as_ref().map(decide);
        let event = |outcome| {
            request.clone().map(|request| BootEvent::Dhcp {
                request,
                xid: message.transaction,
                message: DhcpMessage::V6(kind),
                outcome,
            })
        };
        if let Some(BootAnswer::Ignore { reason }) = &answer {
            let reason = reason.clone();
            return Step {
                reply: None,
                event: event(DhcpOutcome::Dropped { reason }),
            };
        }
        let told = match (&request, &answer) {
            (Some(request), Some(answer)) => self.told(request, answer),
            _ => Told::default(),
        };
        if told.silent {
            let reason = told.note.unwrap_or_default();
            return Step {
                reply: None,
                event: event(DhcpOutcome::Dropped { reason }),
            };
        }

        let mut options = Options::default();
        if let Some(client) = &client {
            options.add(packet::CLIENT_ID, client.bytes());
        }
        options.add(packet::SERVER_ID, self.identity.bytes());
        match self.verdict(packet, client.as_ref()) {
            Verdict::NotOurs => NOT_OURS,
            Verdict::Status { status, words } => {
                options.add(packet::STATUS, status_option(status, words));
                let note = words.to_owned();
                Step {
                    reply: Some(reply(packet, from, MessageType::Reply, options)),
                    event: event(DhcpOutcome::Noted { note }),
                }
            }
            Verdict::Configure { address, given } => {
                for association in given {
                    options.add(packet::IA_NA, association);
                }
                let answered = if kind == MessageType::Solicit {
                    // RFC 8415, section 18.2.1: who says so need not be compared with others.
                    options.add(packet::PREFERENCE, [255]);
                    MessageType::Advertise
                } else {
                    MessageType::Reply
                };
                self.add_name_servers(message, &mut options);
                if let Some(url) = &told.url {
                    options.add(packet::BOOT_FILE_URL, url);
                    if let Some(class) = told.class {
                        options.add(packet::VENDOR_CLASS, vendor_class(message, class));
                    }
                }
                Step {
                    reply: Some(reply(packet, from, answered, options)),
                    event: event(DhcpOutcome::Replied {
                        message: DhcpMessage::V6(answered),
                        address: address.map(Into::into),
                        boot_file: told.url,
                        note: told.note,
                    }),
                }
            }
        }
    }

    /// The server's side of RFC 8415, section 18.3, as far as addresses go.
    fn verdict(&mut self, packet: &Packet, client: Option<&Duid>) -> Verdict {
        use MessageType as Kind;
        let network = self.config.network_of(packet);
        let values = packet.message.options.all(packet::IA_NA);
        let held: Result<Vec<_>, _> = values
            .filter_map(IaNa::parse)
            .map(|association| Ok((association.iaid, association.addresses()?)))
            .collect::<Result<_, packet::Malformed>>();
        let Ok(held) = held else {
            return Verdict::NotOurs;
        };
        match (packet.message.kind, client) {
            (Kind::Solicit | Kind::Request | Kind::Renew | Kind::Rebind, Some(client)) => {
                let mut address = None;
                let given = held.iter().map(|(iaid, held)| {
                    let own = self.address_of(network, client, *iaid);
                    address.get_or_insert(own);
                    self.association(*iaid, own, held)
                });
                let given = given.collect();
                Verdict::Configure { address, given }
            }
            (Kind::InformationRequest, _) => Verdict::Configure {
                address: None,
                given: Vec::new(),
            },
            (Kind::Confirm, _) => {
                let mut all = held.iter().flat_map(|(_, held)| held).peekable();
                if all.peek().is_none() {
                    return Verdict::NotOurs;
                }
                let (status, words) = if all.all(|held| Network::of(*held) == network) {
                    (Status::Success, "the addresses fit this link")
                } else {
                    (Status::NotOnLink, "the addresses are of another link")
                };
                Verdict::Status { status, words }
            }
            (Kind::Decline, Some(client)) => {
                for (iaid, held) in &held {
                    self.decline(network, client, *iaid, held);
                }
                Verdict::Status {
                    status: Status::Success,
                    words: "somebody else uses the address; the next is another",
                }
            }
            (Kind::Release, _) => Verdict::Status {
                status: Status::Success,
                words: "gave its address back",
            },
            _ => Verdict::NotOurs,
        }
    }

    /// The checks of RFC 8415, section 16: what fails them is for somebody else, or noise.
    fn is_ours(&self, message: &Message, client: Option<&Duid>) -> bool {
        let server = message.options.get(packet::SERVER_ID);
        let ours = server == Some(self.identity.bytes());
        match message.kind {
            MessageType::Solicit | MessageType::Confirm | MessageType::Rebind => {
                client.is_some() && server.is_none()
            }
            MessageType::Request
            | MessageType::Renew
            | MessageType::Release
            | MessageType::Decline => client.is_some() && ours,
            MessageType::InformationRequest => {
                let asks_for_address = message.options.get(packet::IA_NA).is_some();
                !asks_for_address && (server.is_none() || ours)
            }
            MessageType::Advertise | MessageType::Reply | MessageType::Reconfigure => false,
        }
    }

    /// The address that belongs to a client's association: a hash of who asks (RFC 7943),
    /// so that it is the same after every restart without anything being stored.
    fn address_of(&self, network: Network, client: &Duid, iaid: u32) -> Ipv6Addr {
        let declined = self.declined.get(&(client.clone(), iaid));
        let mut counter = declined.copied().unwrap_or(0);
        loop {
            let mut text = b"leapserv dhcpv6 address\0".to_vec();
            text.extend(network.0);
            text.extend(iaid.to_be_bytes());
            text.extend(counter.to_be_bytes());
            text.extend(client.bytes());
            let mut octets = [0; 16];
            octets[..8].copy_from_slice(&network.0);
            octets[8..].copy_from_slice(&Digest::of(&text).as_bytes()[..8]);
            let address = Ipv6Addr::from(octets);
            if address != self.config.server && !is_reserved(&octets[8..]) {
                return address;
            }
            counter = counter.wrapping_add(1);
        }
    }

    /// The value of an answered association: its own address, and an end to all others.
    fn association(&self, iaid: u32, address: Ipv6Addr, held: &[Ipv6Addr]) -> Vec<u8> {
        let lease = u32::try_from(self.config.lease.as_secs()).unwrap_or(u32::MAX);
        let mut value = iaid.to_be_bytes().to_vec();
        // T1 and T2: half and four fifths, as the RFC suggests.
        value.extend((lease / 2).to_be_bytes());
        value.extend((lease - lease / 5).to_be_bytes());
        let mut options = Options::default();
        let mut add = |address: Ipv6Addr, seconds: u32| {
            let mut value = address.octets().to_vec();
            value.extend(seconds.to_be_bytes());
            value.extend(seconds.to_be_bytes());
            options.add(packet::IA_ADDR, value);
        };
        add(address, lease);
        for other in held.iter().filter(|held| **held != address) {
            add(*other, 0);
        }
        options.write(&mut value);
        value
    }

    fn decline(&mut self, network: Network, client: &Duid, iaid: u32, held: &[Ipv6Addr]) {
        if !held.contains(&self.address_of(network, client, iaid)) {
            return;
        }
        if self.declined.len() >= DECLINED {
            self.declined.clear();
        }
        *self.declined.entry((client.clone(), iaid)).or_default() += 1;
    }

    fn add_name_servers(&self, message: &Message, options: &mut Options) {
        let servers = &self.config.name_servers;
        if !servers.is_empty() && message.options.asks_for(packet::NAME_SERVERS) {
            let octets = servers.iter().flat_map(Ipv6Addr::octets);
            options.add(packet::NAME_SERVERS, octets.collect::<Vec<_>>());
        }
    }

    /// Says in the client's terms what the verdict means.
    fn told(&self, request: &BootRequest, answer: &BootAnswer) -> Told {
        let class = match request.client_class {
            ClientClass::Other => return Told::default(),
            // UEFI specification, 24.7.3.2: an offer without this class is no HTTP boot offer.
            ClientClass::HttpBoot => Some(b"HTTPClient".as_slice()),
            ClientClass::Ipxe => None,
            ClientClass::Pxe => {
                return Told {
                    note: Some("PXE over IPv6 is not served: UEFI HTTP boot is".into()),
                    ..Told::default()
                };
            }
        };
        let file = |path: &str, note| {
            let base = self.config.http_base.trim_end_matches('/');
            Told {
                url: Some(format!("{base}/{}", path.trim_start_matches('/'))),
                class,
                note,
                silent: false,
            }
        };
        let reason = match answer {
            BootAnswer::Boot { http_path, .. } => return file(http_path, None),
            BootAnswer::LocalDisk { reason } | BootAnswer::Ignore { reason } => reason,
        };
        let note = Some(format!("local disk: {reason}"));
        match self.config.local_disk {
            LocalDiskReply::Loader if request.arch == local_boot::ARCH => {
                file(local_boot::PATH, note)
            }
            LocalDiskReply::Silence => Told {
                note,
                silent: true,
                ..Told::default()
            },
            LocalDiskReply::Loader | LocalDiskReply::BootMenu | LocalDiskReply::PlainLease => {
                Told {
                    note,
                    ..Told::default()
                }
            }
        }
    }
}

/// A reply by the way that the question came.
fn reply(asked: &Packet, from: SocketAddrV6, kind: MessageType, options: Options) -> Reply {
    let message = Message {
        kind,
        transaction: asked.message.transaction,
        options,
    };
    let relays = asked.relays.iter().map(packet::Relay::answered).collect();
    let mut to = from;
    // RFC 8415, section 7.2: whatever port they asked from.
    to.set_port(if asked.relays.is_empty() {
        CLIENT_PORT
    } else {
        SERVER_PORT
    });
    Reply {
        packet: Packet { relays, message },
        to,
    }
}

/// What a client is told to boot.
#[derive(Debug, Default)]
struct Told {
    url: Option<String>,
    /// The class that makes the reply one for this kind of client.
    class: Option<&'static [u8]>,
    note: Option<String>,
    /// No reply at all.
    silent: bool,
}

/// Interface identifiers that belong to nobody (RFC 5453).
fn is_reserved(identifier: &[u8]) -> bool {
    identifier.iter().all(|byte| *byte == 0)
        || identifier.starts_with(&[0xfd, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff])
        || identifier.starts_with(&[0x02, 0x00, 0x5e, 0xff, 0xfe])
}

fn status_option(status: Status, words: &str) -> Vec<u8> {
    let mut value = (status as u16).to_be_bytes().to_vec();
    value.extend(words.as_bytes());
    value
}

/// Option 16 with one text, under the enterprise number that the client has used.
fn vendor_class(message: &Message, text: &[u8]) -> Vec<u8> {
    let asked = message.options.get(packet::VENDOR_CLASS);
    let enterprise = asked.and_then(|value| value.first_chunk::<4>());
    let mut value = enterprise.copied().unwrap_or_default().to_vec();
    let length = u16::try_from(text.len()).expect("a short constant text");
    value.extend(length.to_be_bytes());
    value.extend(text);
    value
}

/// Returns what a client tells of itself; `None` if it cannot be known which machine it is.
///
/// `from` is where the datagram came from.
#[must_use]
pub fn request_of(packet: &Packet, from: Ipv6Addr) -> Option<BootRequest> {
    let Packet { relays, message } = packet;
    let options = &message.options;
    let duid = options.get(packet::CLIENT_ID).and_then(Duid::new);
    let nearest = relays.last();
    // What the link shows comes first: the identifier may name another card.
    let shown = nearest
        .and_then(|relay| relay.options.get(packet::CLIENT_LINK_LAYER))
        .and_then(|value| value.strip_prefix(&[0, 1]))
        .and_then(|address| address.try_into().ok().map(MacAddr));
    let peer = nearest.map_or(from, |relay| relay.peer);
    let mac = shown
        .or_else(|| mac_of_link_local(peer))
        .or_else(|| duid.as_ref().and_then(Duid::mac))?;
    let mut user = Options::texts(options.get(packet::USER_CLASS).unwrap_or_default());
    let vendor = options.get(packet::VENDOR_CLASS);
    let vendor = vendor
        .and_then(|value| value.get(4..))
        .and_then(|texts| Options::texts(texts).next())
        .unwrap_or_default();
    let client_class = if user.any(|class| class == b"iPXE") {
        ClientClass::Ipxe
    } else if vendor.starts_with(b"PXEClient") {
        ClientClass::Pxe
    } else if vendor.starts_with(b"HTTPClient") {
        ClientClass::HttpBoot
    } else {
        ClientClass::Other
    };
    let arch = match options.get(packet::CLIENT_ARCH) {
        Some([high, low, ..]) => ClientArch::from_code(u16::from_be_bytes([*high, *low])),
        _ => ClientArch::Unknown,
    };
    Some(BootRequest {
        mac,
        uuid: duid.as_ref().and_then(Duid::uuid),
        arch,
        client_class,
        protocol: Protocol::Dhcp6,
        relay: relays.first().map(|_| from.into()),
    })
}

/// The hardware address in a link-local address that was formed of it (RFC 4291,
/// appendix A), as firmware does.
fn mac_of_link_local(address: Ipv6Addr) -> Option<MacAddr> {
    match address.octets() {
        [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a, b, c, 0xff, 0xfe, d, e, f] => {
            Some(MacAddr([a ^ 2, b, c, d, e, f]))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::MachineUuid;
    use crate::dhcp6::packet::Relay;
    use proptest::prelude::*;

    const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
    const SERVER_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    fn ip(text: &str) -> Ipv6Addr {
        text.parse().unwrap()
    }

    /// Where firmware with [`MAC`] asks from.
    fn from() -> SocketAddrV6 {
        SocketAddrV6::new(ip("fe80::5054:ff:fe12:3456"), CLIENT_PORT, 0, 3)
    }

    fn config() -> Config {
        Config {
            server: ip("fd77::1"),
            http_base: "http://[fd77::1]:8080".into(),
            name_servers: vec![ip("fd77::53")],
            lease: Duration::from_secs(3600),
            local_disk: LocalDiskReply::Loader,
            advertise: true,
        }
    }

    fn server() -> Engine {
        Engine::new(config(), Duid::of_mac(SERVER_MAC)).unwrap()
    }

    /// As OVMF asks for a boot file: by the machine's UUID, class and architecture.
    fn message(kind: MessageType) -> Packet {
        let mut options = Options::default();
        options.add(packet::CLIENT_ID, [[0, 4].as_slice(), &[7; 16]].concat());
        if matches!(
            kind,
            MessageType::Request | MessageType::Renew | MessageType::Release | MessageType::Decline
        ) {
            options.add(packet::SERVER_ID, Duid::of_mac(SERVER_MAC).bytes());
        }
        if kind != MessageType::InformationRequest {
            options.add(packet::IA_NA, association(1, &[]));
        }
        options.add(packet::REQUESTED, [0, 59, 0, 60, 0, 23, 0, 16]);
        options.add(packet::CLIENT_ARCH, [0, 16]);
        let class = b"HTTPClient:Arch:00016:UNDI:003000";
        let mut vendor = vec![0, 0, 1, 0x57, 0, 33];
        vendor.extend(class);
        options.add(packet::VENDOR_CLASS, vendor);
        Packet {
            relays: vec![],
            message: Message {
                kind,
                transaction: 0x1e_a900,
                options,
            },
        }
    }

    fn association(iaid: u32, held: &[Ipv6Addr]) -> Vec<u8> {
        let mut value = iaid.to_be_bytes().to_vec();
        value.extend([0; 8]);
        let mut options = Options::default();
        for address in held {
            options.add(packet::IA_ADDR, [&address.octets()[..], &[0; 8]].concat());
        }
        options.write(&mut value);
        value
    }

    /// The same message with other addresses in its association.
    fn holding(kind: MessageType, held: &[Ipv6Addr]) -> Packet {
        let mut packet = message(kind);
        let mut options = Options::default();
        for (code, value) in packet.message.options.iter() {
            if code == packet::IA_NA {
                options.add(code, association(1, held));
            } else {
                options.add(code, value);
            }
        }
        packet.message.options = options;
        packet
    }

    fn boot(_: &BootRequest) -> BootAnswer {
        BootAnswer::Boot {
            tftp_path: "installer.efi".into(),
            http_path: "installer.efi".into(),
        }
    }

    fn disk(_: &BootRequest) -> BootAnswer {
        BootAnswer::LocalDisk {
            reason: "in service".into(),
        }
    }

    fn ask(engine: &mut Engine, packet: &Packet) -> Reply {
        engine.handle(packet, from(), boot).reply.unwrap()
    }

    /// Addresses and their seconds in an answer's association.
    fn given(reply: &Reply) -> Vec<(Ipv6Addr, u32)> {
        let options = &reply.packet.message.options;
        let value = options.get(packet::IA_NA).unwrap();
        let inside = Options::parse(&value[12..]).unwrap();
        let given = inside.all(packet::IA_ADDR).map(|value| {
            let octets: [u8; 16] = value[..16].try_into().unwrap();
            let seconds: [u8; 4] = value[20..24].try_into().unwrap();
            (octets.into(), u32::from_be_bytes(seconds))
        });
        given.collect()
    }

    fn words(step: &Step) -> String {
        step.event.as_ref().unwrap().to_string()
    }

    #[test]
    fn firmware_gets_an_address_and_a_url_and_takes_them() {
        let mut engine = server();
        let step = engine.handle(&message(MessageType::Solicit), from(), boot);
        assert_eq!(
            words(&step).split_once(": ").unwrap().0,
            "52:54:00:12:34:56 (HTTP boot, UEFI x64) DHCPv6 SOLICIT"
        );
        let offer = step.reply.unwrap();
        assert_eq!(offer.to, from());
        let Message {
            kind,
            transaction,
            options,
        } = &offer.packet.message;
        assert_eq!((*kind, *transaction), (MessageType::Advertise, 0x1e_a900));
        assert_eq!(options.get(packet::PREFERENCE), Some(&[255][..]));
        assert_eq!(
            options.get(packet::BOOT_FILE_URL),
            Some(&b"http://[fd77::1]:8080/installer.efi"[..])
        );
        let class = options.get(packet::VENDOR_CLASS).unwrap();
        assert_eq!(class, b"\0\0\x01\x57\0\x0aHTTPClient");
        assert_eq!(
            options.get(packet::NAME_SERVERS),
            Some(&ip("fd77::53").octets()[..])
        );
        let [(address, 3600)] = given(&offer)[..] else {
            panic!("{:?}", given(&offer));
        };
        assert!(address.octets().starts_with(&ip("fd77::").octets()[..8]));

        let taken = ask(&mut engine, &holding(MessageType::Request, &[address]));
        assert_eq!(taken.packet.message.kind, MessageType::Reply);
        assert_eq!(given(&taken), [(address, 3600)]);
    }

    #[test]
    fn an_address_is_the_same_after_a_restart_and_another_for_another_purpose() {
        let first = given(&ask(&mut server(), &message(MessageType::Solicit)));
        let again = given(&ask(&mut server(), &message(MessageType::Solicit)));
        assert_eq!(first, again);
        let (engine, network) = (server(), Network::of(ip("fd77::1")));
        let [one, other] = [Duid::of_mac(MAC), Duid::of_mac(SERVER_MAC)];
        let addresses = [
            engine.address_of(network, &one, 1),
            engine.address_of(network, &one, 2),
            engine.address_of(network, &other, 1),
        ];
        assert!(addresses[0] != addresses[1] && addresses[0] != addresses[2]);
    }

    #[test]
    fn a_declined_address_is_not_given_again_and_nobody_declines_for_others() {
        let mut engine = server();
        let [(address, _)] = given(&ask(&mut engine, &message(MessageType::Solicit)))[..] else {
            panic!("no address");
        };
        let mut stranger = holding(MessageType::Decline, &[address]);
        let options = std::mem::take(&mut stranger.message.options);
        for (code, value) in options.iter() {
            let own = Duid::of_mac(MAC);
            let value = if code == packet::CLIENT_ID {
                own.bytes()
            } else {
                value
            };
            stranger.message.options.add(code, value);
        }
        ask(&mut engine, &stranger);
        assert_eq!(
            given(&ask(&mut engine, &message(MessageType::Solicit)))[0].0,
            address
        );
        let decline = holding(MessageType::Decline, &[address]);
        let status = ask(&mut engine, &decline).packet.message.options;
        assert_eq!(status.get(packet::STATUS).unwrap()[..2], [0, 0]);
        let next = given(&ask(&mut engine, &message(MessageType::Solicit)))[0].0;
        assert_ne!(next, address);
        // What it still holds of old ends at once.
        let renewed = ask(&mut engine, &holding(MessageType::Renew, &[address]));
        assert_eq!(given(&renewed), [(next, 3600), (address, 0)]);
    }

    #[test]
    fn addresses_of_another_link_are_told_apart() {
        let mut engine = server();
        for (held, status) in [("fd77::9", 0), ("fd78::9", 4)] {
            let confirm = holding(MessageType::Confirm, &[ip(held)]);
            let reply = ask(&mut engine, &confirm).packet.message;
            assert_eq!(reply.options.get(packet::STATUS).unwrap()[..2], [0, status]);
        }
        let empty = engine.handle(&message(MessageType::Confirm), from(), boot);
        assert_eq!(empty, NOT_OURS);
    }

    #[test]
    fn a_relay_gets_the_answer_in_its_own_envelope() {
        let mut options = Options::default();
        options.add(packet::INTERFACE_ID, b"port 7");
        options.add(packet::CLIENT_LINK_LAYER, [0, 1, 2, 2, 2, 2, 2, 2]);
        let near = Relay {
            hops: 0,
            link: ip("fd79::1"),
            peer: ip("fe80::1234"),
            options,
        };
        let far = Relay {
            hops: 1,
            link: Ipv6Addr::UNSPECIFIED,
            peer: ip("fd79::1"),
            options: Options::default(),
        };
        let mut packet = message(MessageType::Solicit);
        packet.relays = vec![far, near];
        let relay = SocketAddrV6::new(ip("fd77::2"), 40000, 0, 0);
        let step = server().handle(&packet, relay, |request: &BootRequest| {
            assert_eq!(request.mac, MacAddr([2; 6]), "as the relay saw it");
            assert_eq!(request.relay, Some(ip("fd77::2").into()));
            boot(request)
        });
        let reply = step.reply.unwrap();
        let [(address, _)] = given(&reply)[..] else {
            panic!("{:?}", given(&reply));
        };
        let link = Network::of(ip("fd79::1"));
        assert_eq!(Network::of(address), link, "of the relay's link");
        assert_eq!(
            reply.to,
            SocketAddrV6::new(ip("fd77::2"), SERVER_PORT, 0, 0)
        );
        let inner = &reply.packet.relays[1];
        assert_eq!(
            inner.options.get(packet::INTERFACE_ID),
            Some(&b"port 7"[..])
        );
        assert_eq!(inner.options.get(packet::CLIENT_LINK_LAYER), None);
        assert_eq!(inner.peer, ip("fe80::1234"));
        assert_eq!(Packet::parse(&reply.packet.encode()), Ok(reply.packet));
    }

    #[test]
    fn what_belongs_to_another_server_or_lacks_its_client_is_left_alone() {
        let mut engine = server();
        let mut other = message(MessageType::Request);
        let options = std::mem::take(&mut other.message.options);
        for (code, value) in options.iter() {
            let theirs = Duid::of_mac(MAC);
            let value = if code == packet::SERVER_ID {
                theirs.bytes()
            } else {
                value
            };
            other.message.options.add(code, value);
        }
        assert_eq!(engine.handle(&other, from(), boot), NOT_OURS);
        let mut nobody = message(MessageType::Solicit);
        nobody.message.options = Options::default();
        assert_eq!(engine.handle(&nobody, from(), boot), NOT_OURS);
        for kind in [MessageType::Advertise, MessageType::Reply] {
            assert_eq!(engine.handle(&message(kind), from(), boot), NOT_OURS);
        }
        let reply = ask(&mut engine, &message(MessageType::InformationRequest));
        assert_eq!(reply.packet.message.options.get(packet::IA_NA), None);
        assert!(
            reply
                .packet
                .message
                .options
                .get(packet::BOOT_FILE_URL)
                .is_some()
        );
    }

    #[test]
    fn each_verdict_is_told_in_its_own_terms() {
        let asks = |local_disk, answer: fn(&BootRequest) -> BootAnswer| {
            let config = Config {
                local_disk,
                ..config()
            };
            let mut engine = Engine::new(config, Duid::of_mac(SERVER_MAC)).unwrap();
            let step = engine.handle(&message(MessageType::Solicit), from(), answer);
            step.reply.map(|reply| {
                let url = reply.packet.message.options.get(packet::BOOT_FILE_URL);
                url.map(|url| String::from_utf8(url.to_vec()).unwrap())
            })
        };
        let loader = Some(Some(format!("http://[fd77::1]:8080/{}", local_boot::PATH)));
        assert_eq!(asks(LocalDiskReply::Loader, disk), loader);
        assert_eq!(asks(LocalDiskReply::PlainLease, disk), Some(None));
        assert_eq!(asks(LocalDiskReply::Silence, disk), None);
        let ignore: fn(&BootRequest) -> BootAnswer = |_| BootAnswer::Ignore {
            reason: "no release".into(),
        };
        assert_eq!(asks(LocalDiskReply::Loader, ignore), None);
    }

    #[test]
    fn clients_are_known_by_what_they_send() {
        let packet = message(MessageType::Solicit);
        let request = request_of(&packet, *from().ip()).unwrap();
        assert_eq!(request.mac, MAC);
        assert_eq!(request.uuid, Some(MachineUuid([7; 16])));
        assert_eq!(request.client_class, ClientClass::HttpBoot);
        // An address that hides the card, and an identifier without one.
        assert_eq!(request_of(&packet, ip("fe80::1")), None);
        let mut ipxe = packet.clone();
        ipxe.message.options.add(packet::USER_CLASS, b"\0\x04iPXE");
        let request = request_of(&ipxe, *from().ip()).unwrap();
        assert_eq!(request.client_class, ClientClass::Ipxe);
    }

    #[test]
    fn a_machine_that_cannot_be_known_gets_an_address_and_nothing_to_boot() {
        let hidden = SocketAddrV6::new(ip("fe80::1"), CLIENT_PORT, 0, 3);
        let step = server().handle(&message(MessageType::Solicit), hidden, |_| panic!("asked"));
        assert_eq!(step.event, None);
        let reply = step.reply.unwrap();
        assert_eq!(given(&reply).len(), 1);
        assert_eq!(
            reply.packet.message.options.get(packet::BOOT_FILE_URL),
            None
        );
    }

    #[test]
    fn addresses_that_no_server_can_have_are_named() {
        for (address, expected) in [
            ("fe80::1", "link-local"),
            ("::", "unicast"),
            ("ff02::1", "unicast"),
            ("::1", "unicast"),
            ("::ffff:10.0.0.1", "unicast"),
        ] {
            let config = Config {
                server: ip(address),
                ..config()
            };
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn nobodys_identifiers_are_known() {
        let reserved = |text: &str| is_reserved(&ip(text).octets()[8..]);
        assert!(reserved("fd77::") && reserved("fd77::fdff:ffff:ffff:ff81"));
        assert!(reserved("fd77::200:5eff:fe00:1"));
        assert!(!reserved("fd77::1"));
    }

    proptest! {
        #[test]
        fn no_message_makes_the_server_panic_and_its_answers_can_be_read(
            kind in 1u8..12, relayed in any::<bool>(),
            edits in proptest::collection::vec(
                (prop_oneof![Just(1u16), Just(2), Just(3), Just(6), Just(15), Just(16), Just(61), any::<u16>()],
                 proptest::collection::vec(any::<u8>(), 0..40)), 0..8),
            local in any::<bool>(),
        ) {
            let mut packet = message(MessageType::from_code(kind).unwrap());
            for (code, value) in &edits {
                packet.message.options.add(*code, value);
            }
            if relayed {
                packet.relays = vec![Relay {
                    hops: 0, link: ip("fd77::1"), peer: *from().ip(), options: Options::default(),
                }];
            }
            let mut engine = server();
            let decide = if local { disk } else { boot };
            if let Some(reply) = engine.handle(&packet, from(), decide).reply {
                prop_assert!(Packet::parse(&reply.packet.encode()).is_ok());
            }
        }
    }
}
