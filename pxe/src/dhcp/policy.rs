//! What a DHCP message is answered with. No socket, no clock, no disk: message,
//! time and verdict go in, reply and records come out.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::RangeInclusive;
use std::time::Duration;

use jiff::Timestamp;
use model::id::MacAddr;
use thiserror::Error;

use super::lease::{Client, LeaseRecord, LeaseTable, Pool};
use super::options::{self, MessageType};
use super::packet::{Op, Packet};
use crate::boot::{
    BootAnswer, BootEvent, BootRequest, ClientArch, ClientClass, DhcpMessage, DhcpOutcome,
    MachineUuid, Protocol,
};
use crate::local_boot;

/// Port of DHCP servers.
pub const SERVER_PORT: u16 = 67;
/// Port of DHCP clients.
pub const CLIENT_PORT: u16 = 68;
/// Port of PXE boot servers, where a PXE client asks a proxy again.
pub const PROXY_PORT: u16 = 4011;

/// Who gives the addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// This server, with authority: it refuses addresses that are not its own.
    Authoritative(Vec<Subnet>),
    /// Another server. This one only adds what to boot.
    Proxy,
}

/// A network whose addresses are given out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subnet {
    /// Network address.
    pub network: Ipv4Addr,
    /// Length of its prefix, 0 to 32.
    pub prefix: u8,
    /// Addresses for everybody.
    pub range: RangeInclusive<Ipv4Addr>,
    /// Addresses for one machine each.
    pub reservations: BTreeMap<MacAddr, Ipv4Addr>,
    /// Addresses for whichever machine is plugged in at one place.
    pub places: Vec<Place>,
    /// Default gateways.
    pub routers: Vec<Ipv4Addr>,
    /// Name servers.
    pub name_servers: Vec<Ipv4Addr>,
    /// Domain name.
    pub domain: Option<String>,
    /// Length of a lease.
    pub lease: Duration,
    /// Further options as the operator wants them, code and bytes. A code for
    /// which there is a field, or which the protocol itself needs, is a mistake.
    pub options: Vec<(u8, Vec<u8>)>,
}

/// A place where a machine is plugged in, as relays tell it in option 82: most
/// often a port of a switch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The circuit that the relay names (sub-option 1); `None` for any.
    pub circuit: Option<Vec<u8>>,
    /// The name that the relay gives itself (sub-option 2); `None` for any.
    pub remote: Option<Vec<u8>>,
    /// Address of the machine there.
    pub address: Ipv4Addr,
}

impl Place {
    fn is_named_in(&self, packet: &Packet) -> bool {
        let says = |code, wanted: &Option<Vec<u8>>| {
            wanted.is_none() || options::of_relay(&packet.options, code) == wanted.as_deref()
        };
        says(options::RELAY_CIRCUIT, &self.circuit) && says(options::RELAY_REMOTE, &self.remote)
    }
}

/// Options that have a field of their own, or that no operator can know.
const OURS: &[u8] = &[
    0, 1, 3, 6, 15, 43, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 66, 67, 77, 82, 93, 94, 97,
    255,
];

impl Subnet {
    /// Tells whether an address belongs to the network.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let mask = u32::from(self.mask());
        u32::from(address) & mask == u32::from(self.network) & mask
    }

    fn mask(&self) -> Ipv4Addr {
        let host_bits = 32u32.saturating_sub(u32::from(self.prefix));
        Ipv4Addr::from(u32::MAX.checked_shl(host_bits).unwrap_or(0))
    }
}

/// How the server answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Who gives the addresses.
    pub mode: Mode,
    /// Address of this server: its identifier, and where TFTP answers.
    pub server: Ipv4Addr,
    /// Where HTTP answers, as `http://10.0.0.1:8080` without path.
    pub http_base: String,
    /// How a machine is told to boot its disk.
    pub local_disk: LocalDiskReply,
    /// Whether an address is asked for before it is offered.
    pub conflicts: ConflictCheck,
}

/// Whether the server asks its link if an address is in use before it offers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ConflictCheck {
    /// By ARP; it takes 0.3 s.
    #[default]
    Arp,
    /// No: a router on the link answers ARP for every address.
    Off,
}

/// How a machine is told to boot its own disk; `docs/boot-flow.md` has the
/// seconds that each takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LocalDiskReply {
    /// UEFI of our own architecture boots [`crate::local_boot`], which starts the
    /// disk at once.
    /// Other PXE clients get [`LocalDiskReply::BootMenu`].
    #[default]
    Loader,
    /// PXE clients get a menu with the one item "local boot", which they take at
    /// once: that ends this one attempt of the firmware.
    BootMenu,
    /// An address and no boot file.
    PlainLease,
    /// No answer.
    Silence,
}

/// The mistake in a [`Config`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// An address that is given out lies outside its network.
    #[error("address {address} is outside {network}/{prefix}")]
    Outside {
        /// The address.
        address: Ipv4Addr,
        /// The network.
        network: Ipv4Addr,
        /// Its prefix length.
        prefix: u8,
    },
    /// The server would give away its own address.
    #[error("the pool {start} to {end} holds the server's own address {server}")]
    OwnAddress {
        /// First address of the pool.
        start: Ipv4Addr,
        /// Last address of the pool.
        end: Ipv4Addr,
        /// The server.
        server: Ipv4Addr,
    },
    /// First and last address of a pool are exchanged.
    #[error("the pool {start} to {end} is empty")]
    EmptyPool {
        /// First address of the pool.
        start: Ipv4Addr,
        /// Last address of the pool.
        end: Ipv4Addr,
    },
    /// Two machines with one reserved address.
    #[error("address {0} is reserved twice")]
    ReservedTwice(Ipv4Addr),
    /// More than 32 bits of prefix.
    #[error("prefix length {0}, expected at most 32")]
    Prefix(u8),
    /// A place of which neither circuit nor remote is told is every place.
    #[error("the place of {0} has neither circuit nor remote")]
    Place(Ipv4Addr),
    /// An option that the server sets itself, or that is too long.
    #[error("option {0} cannot be set: the server sets it itself, or it has more than 255 bytes")]
    Option(u8),
}

impl Config {
    /// Checks what can be checked without a network.
    ///
    /// # Errors
    /// [`ConfigError`] names the first mistake.
    pub fn check(&self) -> Result<(), ConfigError> {
        let Mode::Authoritative(subnets) = &self.mode else {
            return Ok(());
        };
        for subnet in subnets {
            let Subnet {
                network, prefix, ..
            } = *subnet;
            if prefix > 32 {
                return Err(ConfigError::Prefix(prefix));
            }
            let (start, end) = (*subnet.range.start(), *subnet.range.end());
            if start > end {
                return Err(ConfigError::EmptyPool { start, end });
            }
            for address in [start, end]
                .into_iter()
                .chain(subnet.reservations.values().copied())
                .chain(subnet.places.iter().map(|place| place.address))
            {
                if !subnet.contains(address) {
                    return Err(ConfigError::Outside {
                        address,
                        network,
                        prefix,
                    });
                }
            }
            if subnet.range.contains(&self.server) {
                return Err(ConfigError::OwnAddress {
                    start,
                    end,
                    server: self.server,
                });
            }
            let mut seen = std::collections::BTreeSet::new();
            let places = subnet.places.iter().map(|place| place.address);
            for address in subnet.reservations.values().copied().chain(places) {
                if !seen.insert(address) {
                    return Err(ConfigError::ReservedTwice(address));
                }
            }
            let everywhere = |place: &&Place| place.circuit.is_none() && place.remote.is_none();
            if let Some(place) = subnet.places.iter().find(everywhere) {
                return Err(ConfigError::Place(place.address));
            }
            for (code, value) in &subnet.options {
                if OURS.contains(code) || value.len() > 255 {
                    return Err(ConfigError::Option(*code));
                }
            }
        }
        Ok(())
    }
}

/// Where a reply goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// To everybody on the link, port 68.
    ///
    /// A client without address could be reached by unicast only with a raw
    /// frame or an ARP entry made by hand. RFC 2131, section 4.1, lets a server
    /// broadcast instead, every client accepts it, and firmware asks for it.
    Broadcast,
    /// To an address that answers ARP.
    Unicast(SocketAddrV4),
}

/// A reply and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The message.
    pub packet: Packet,
    /// Its destination.
    pub to: Destination,
}

/// All that follows from one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// To be stored before the reply is sent.
    pub record: Option<LeaseRecord>,
    /// An address of our own link that the reply offers to a machine that does
    /// not have it: to be asked there first whether somebody else uses it. If so,
    /// the reply is dropped and [`Engine::conflict`] is told.
    pub ask_first: Option<Ipv4Addr>,
    /// To be sent.
    pub reply: Option<Reply>,
    /// To be told to the boot source. `None` for what is not ours to answer.
    pub event: Option<BootEvent>,
}

/// Which of the server's ports a message came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// 67.
    Dhcp,
    /// 4011.
    Proxy,
}

/// The server without its sockets.
#[derive(Debug)]
pub struct Engine {
    config: Config,
    leases: LeaseTable,
}

/// What the state machine of one message came to.
enum Verdict {
    Reply {
        kind: MessageType,
        address: Option<Ipv4Addr>,
        lease: bool,
        record: Option<LeaseRecord>,
        ask_first: Option<Ipv4Addr>,
    },
    Refuse {
        reason: String,
    },
    Note {
        note: String,
        record: Option<LeaseRecord>,
    },
    Drop {
        reason: String,
    },
}

impl Engine {
    /// Returns a server with the leases of its last run.
    ///
    /// # Errors
    /// The configuration has a mistake.
    pub fn new(
        config: Config,
        records: impl IntoIterator<Item = LeaseRecord>,
    ) -> Result<Self, ConfigError> {
        config.check()?;
        let pools = match &config.mode {
            Mode::Authoritative(subnets) => subnets
                .iter()
                .map(|subnet| Pool {
                    range: subnet.range.clone(),
                    reservations: subnet.reservations.clone(),
                    places: subnet.places.iter().map(|place| place.address).collect(),
                    lease: subnet.lease,
                })
                .collect(),
            Mode::Proxy => Vec::new(),
        };
        Ok(Self {
            leases: LeaseTable::new(pools, records),
            config,
        })
    }

    /// Returns the server's address.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.config.server
    }

    /// Returns the leases.
    #[must_use]
    pub fn leases(&self) -> &LeaseTable {
        &self.leases
    }

    /// Takes note that somebody else answers under an address that was to be
    /// offered to a machine. Returns what is to be stored, if the offer stands.
    pub fn conflict(
        &mut self,
        mac: MacAddr,
        address: Ipv4Addr,
        now: Timestamp,
    ) -> Option<LeaseRecord> {
        self.leases.decline(mac, address, now)
    }

    /// Answers one message.
    ///
    /// `from` is where the datagram came from, `decide` the boot source's verdict.
    pub fn handle(
        &mut self,
        packet: &Packet,
        port: Port,
        from: SocketAddrV4,
        now: Timestamp,
        decide: impl FnOnce(&BootRequest) -> BootAnswer,
    ) -> Step {
        const NOTHING: Step = Step {
            record: None,
            ask_first: None,
            reply: None,
            event: None,
        };
        let (Op::Request, Some(message)) = (packet.op, packet.options.message_type()) else {
            return NOTHING;
        };
        let proxy = port == Port::Proxy || self.config.mode == Mode::Proxy;
        let protocol = if proxy {
            Protocol::ProxyDhcp
        } else {
            Protocol::Dhcp
        };
        let request = request_of(packet, protocol);
        // Beside another server, only what wants to boot is ours to answer.
        if proxy && request.client_class == ClientClass::Other {
            return NOTHING;
        }
        let answer = decide(&request);
        let mut step = NOTHING;
        let verdict = match &answer {
            BootAnswer::Ignore { reason } => Verdict::Drop {
                reason: reason.clone(),
            },
            _ if let Some(address) = nobodys(packet) => Verdict::Drop {
                reason: format!("{address} is no address that a client or a relay can have"),
            },
            _ if proxy => proxy_verdict(packet, message, port, self.config.server),
            _ => self.verdict(packet, message, now),
        };
        let outcome = match verdict {
            Verdict::Reply {
                kind,
                address,
                lease,
                record,
                ask_first,
            } => {
                step.record = record;
                step.ask_first = ask_first;
                let mut reply = Packet::reply_to(packet);
                reply.options.set_message_type(kind);
                reply
                    .options
                    .set_addresses(options::SERVER_ID, &[self.identifier(packet)]);
                reply.yiaddr = address.unwrap_or(Ipv4Addr::UNSPECIFIED);
                if message != MessageType::Discover {
                    reply.ciaddr = packet.ciaddr;
                }
                if !proxy {
                    self.add_network(packet, address, lease, &mut reply);
                }
                let (boot_file, note) =
                    match self.add_boot(packet, &request, &answer, proxy, &mut reply) {
                        Told::Nothing { reason } => {
                            let outcome = DhcpOutcome::Dropped { reason };
                            let event = BootEvent::Dhcp {
                                request,
                                xid: packet.xid,
                                message: DhcpMessage::V4(message),
                                outcome,
                            };
                            return Step {
                                event: Some(event),
                                ..NOTHING
                            };
                        }
                        Told::Plain { note } => (None, note),
                        Told::Menu { note } => (None, Some(note)),
                        Told::File { name, note } => (Some(name), note),
                    };
                close(packet, &mut reply);
                step.reply = Some(Reply {
                    to: destination(packet, port, from),
                    packet: reply,
                });
                DhcpOutcome::Replied {
                    message: DhcpMessage::V4(kind),
                    address: address.map(Into::into),
                    boot_file,
                    note,
                }
            }
            Verdict::Refuse { reason } => {
                let mut reply = Packet::reply_to(packet);
                reply.options.set_message_type(MessageType::Nak);
                reply
                    .options
                    .set_addresses(options::SERVER_ID, &[self.identifier(packet)]);
                reply.options.set(options::MESSAGE, &reason);
                // RFC 2131, 4.3.2: the client may believe in an address of another
                // network, so a relay must broadcast the refusal.
                if packet.giaddr != Ipv4Addr::UNSPECIFIED {
                    reply.broadcast = true;
                }
                close(packet, &mut reply);
                let to = match destination(packet, port, from) {
                    to @ Destination::Unicast(_) if packet.giaddr != Ipv4Addr::UNSPECIFIED => to,
                    _ => Destination::Broadcast,
                };
                step.reply = Some(Reply { packet: reply, to });
                DhcpOutcome::Replied {
                    message: DhcpMessage::V4(MessageType::Nak),
                    address: None,
                    boot_file: None,
                    note: Some(reason),
                }
            }
            Verdict::Note { note, record } => {
                step.record = record;
                DhcpOutcome::Noted { note }
            }
            Verdict::Drop { reason } => DhcpOutcome::Dropped { reason },
        };
        step.event = Some(BootEvent::Dhcp {
            request,
            xid: packet.xid,
            message: DhcpMessage::V4(message),
            outcome,
        });
        step
    }

    /// The state machine of RFC 2131, section 4.3.
    fn verdict(&mut self, packet: &Packet, message: MessageType, now: Timestamp) -> Verdict {
        let wanted = packet.options.address(options::REQUESTED_ADDRESS);
        let (mac, server) = (packet.mac, self.identifier(packet));
        let Some((pool, subnet)) = self.subnet_of(packet) else {
            let reason = match packet.giaddr {
                Ipv4Addr::UNSPECIFIED => format!("no subnet is configured for server {server}"),
                relay => format!("no subnet is configured for relay {relay}"),
            };
            return Verdict::Drop { reason };
        };
        let duration = subnet.lease;
        let place = subnet.places.iter().find(|place| place.is_named_in(packet));
        let client = Client {
            mac,
            place: place.map(|place| place.address),
        };
        let named = packet.options.address(options::SERVER_ID);
        match message {
            MessageType::Discover => {
                // RFC 2131, section 2.2. An address in use is offered once more
                // without a question: its own user would answer.
                let had = self.leases.address_of(mac);
                let had = had.filter(|address| self.leases.has(mac, *address, now));
                match self.leases.offer(pool, client, wanted, now) {
                    Ok(address) => Verdict::Reply {
                        kind: MessageType::Offer,
                        address: Some(address),
                        lease: true,
                        record: None,
                        // Behind a relay nobody hears our question.
                        ask_first: (self.config.conflicts == ConflictCheck::Arp
                            && had != Some(address)
                            && packet.giaddr.is_unspecified())
                        .then_some(address),
                    },
                    Err(error) => Verdict::Drop {
                        reason: error.to_string(),
                    },
                }
            }
            MessageType::Request => {
                if let Some(other) = named.filter(|named| *named != server) {
                    self.leases.withdraw(mac, now);
                    return Verdict::Note {
                        note: format!("took the offer of another server, {other}"),
                        record: None,
                    };
                }
                // Selecting and rebooting clients name the address in option 50,
                // renewing ones in ciaddr.
                let address = match wanted {
                    Some(address) => address,
                    None if packet.ciaddr != Ipv4Addr::UNSPECIFIED => packet.ciaddr,
                    None => {
                        return Verdict::Drop {
                            reason: "a request without an address".into(),
                        };
                    }
                };
                match self.leases.bind(pool, client, address, duration, now) {
                    Ok(record) => Verdict::Reply {
                        kind: MessageType::Ack,
                        address: Some(address),
                        lease: true,
                        record: Some(record),
                        ask_first: None,
                    },
                    // A bound client whose lease this server never knew is given
                    // it (bind succeeds); one with an address that it cannot
                    // have is told at once, instead of keeping it until it expires.
                    Err(error) => Verdict::Refuse {
                        reason: error.to_string(),
                    },
                }
            }
            MessageType::Decline => {
                let Some(address) = wanted.filter(|_| named.is_none_or(|named| named == server))
                else {
                    return Verdict::Drop {
                        reason: "a decline that is not for this server".into(),
                    };
                };
                match self.leases.decline(mac, address, now) {
                    Some(record) => Verdict::Note {
                        note: format!("{address} is in use by another host, kept back for an hour"),
                        record: Some(record),
                    },
                    None => Verdict::Drop {
                        reason: format!("declined {address}, which it was not given"),
                    },
                }
            }
            MessageType::Release => match self.leases.release(mac, packet.ciaddr, now) {
                Some(record) => Verdict::Note {
                    note: format!("gave {} back", packet.ciaddr),
                    record: Some(record),
                },
                None => Verdict::Drop {
                    reason: format!("released {}, which it was not given", packet.ciaddr),
                },
            },
            MessageType::Inform => Verdict::Reply {
                kind: MessageType::Ack,
                address: None,
                lease: false,
                record: None,
                ask_first: None,
            },
            MessageType::Offer | MessageType::Ack | MessageType::Nak => Verdict::Drop {
                reason: format!("{} is a server's message", message.name()),
            },
        }
    }

    /// Returns what this server calls itself to a client: its address, or the
    /// address of the relay that wants to hear renewals too (RFC 5107).
    fn identifier(&self, packet: &Packet) -> Ipv4Addr {
        relay_address(packet, options::RELAY_SERVER_ID).unwrap_or(self.config.server)
    }

    fn subnet_of(&self, packet: &Packet) -> Option<(usize, &Subnet)> {
        let Mode::Authoritative(subnets) = &self.config.mode else {
            return None;
        };
        // The relay's address says where the client is; a client that renews
        // through routers has neither relay nor our network, only its address.
        // A relay whose own address is elsewhere says it in so many words (RFC 3527).
        let place = if let Some(link) = relay_address(packet, options::RELAY_LINK) {
            link
        } else if packet.giaddr != Ipv4Addr::UNSPECIFIED {
            packet.giaddr
        } else if subnets.iter().any(|subnet| subnet.contains(packet.ciaddr)) {
            packet.ciaddr
        } else {
            self.config.server
        };
        subnets
            .iter()
            .enumerate()
            .find(|(_, subnet)| subnet.contains(place))
    }

    fn add_network(
        &self,
        packet: &Packet,
        address: Option<Ipv4Addr>,
        lease: bool,
        reply: &mut Packet,
    ) {
        let Some((_, subnet)) = self.subnet_of(packet) else {
            return;
        };
        let options = &mut reply.options;
        if lease && address.is_some() {
            let seconds = u32::try_from(subnet.lease.as_secs()).unwrap_or(u32::MAX);
            options.set_u32(options::LEASE_TIME, seconds);
            options.set_u32(options::RENEWAL_TIME, seconds / 2);
            options.set_u32(options::REBINDING_TIME, seconds - seconds / 8);
        }
        options.set_addresses(options::SUBNET_MASK, &[subnet.mask()]);
        options.set_addresses(options::ROUTERS, &subnet.routers);
        options.set_addresses(options::NAME_SERVERS, &subnet.name_servers);
        if let Some(domain) = &subnet.domain {
            options.set(options::DOMAIN_NAME, domain);
        }
        for (code, value) in &subnet.options {
            options.set(*code, value);
        }
    }

    /// Adds what to boot.
    fn add_boot(
        &self,
        packet: &Packet,
        request: &BootRequest,
        answer: &BootAnswer,
        proxy: bool,
        reply: &mut Packet,
    ) -> Told {
        match self.told(request, answer, proxy) {
            told @ (Told::Nothing { .. } | Told::Plain { .. }) => told,
            Told::Menu { note } => {
                as_pxe(packet, reply);
                reply.options.set(options::VENDOR, local_boot_menu());
                Told::Menu { note }
            }
            Told::File { name, note } => {
                let class = request.client_class;
                reply.siaddr = self.config.server;
                if class == ClientClass::HttpBoot {
                    // UEFI specification, 24.7.3.1: an offer without this class is
                    // no HTTP boot offer.
                    reply.options.set(options::VENDOR_CLASS, b"HTTPClient");
                } else if proxy {
                    as_pxe(packet, reply);
                    reply.options.set(options::VENDOR, DIRECT_BOOT);
                }
                // The field for old boot ROMs, which read nothing else. UEFI HTTP
                // boot reads the option, and a long URL fits nowhere else.
                if class != ClientClass::HttpBoot && name.len() < 128 {
                    reply.file = name.clone().into_bytes();
                }
                if class == ClientClass::HttpBoot
                    || name.len() >= 128
                    || asks_for(packet, options::BOOT_FILE)
                {
                    reply.options.set(options::BOOT_FILE, &name);
                }
                if class == ClientClass::Pxe && asks_for(packet, options::TFTP_SERVER) {
                    reply
                        .options
                        .set(options::TFTP_SERVER, self.config.server.to_string());
                }
                Told::File { name, note }
            }
        }
    }

    /// Says in the client's terms what the verdict means.
    fn told(&self, request: &BootRequest, answer: &BootAnswer, proxy: bool) -> Told {
        let class = request.client_class;
        let name = |tftp_path: &str, http_path: &str| match class {
            ClientClass::Pxe => tftp_path.to_owned(),
            ClientClass::Ipxe | ClientClass::HttpBoot | ClientClass::Other => {
                let base = self.config.http_base.trim_end_matches('/');
                format!("{base}/{}", http_path.trim_start_matches('/'))
            }
        };
        let reason = match answer {
            _ if class == ClientClass::Other => return Told::Plain { note: None },
            BootAnswer::Ignore { reason } => {
                return Told::Nothing {
                    reason: reason.clone(),
                };
            }
            BootAnswer::Boot {
                tftp_path,
                http_path,
            } => {
                return Told::File {
                    name: name(tftp_path, http_path),
                    note: None,
                };
            }
            BootAnswer::LocalDisk { reason } => reason,
        };
        let note = format!("local disk: {reason}");
        match (self.config.local_disk, request.arch, class) {
            (LocalDiskReply::Silence, ..) => Told::Nothing { reason: note },
            (LocalDiskReply::Loader, arch, _) if arch == local_boot::ARCH => Told::File {
                name: name(local_boot::PATH, local_boot::PATH),
                note: Some(note),
            },
            (LocalDiskReply::Loader | LocalDiskReply::BootMenu, _, ClientClass::Pxe) => {
                Told::Menu { note }
            }
            // A proxy has nothing else to tell.
            _ if proxy => Told::Nothing { reason: note },
            _ => Told::Plain { note: Some(note) },
        }
    }
}

/// What a client is told to boot.
enum Told {
    /// Nothing: no reply is sent.
    Nothing { reason: String },
    /// An address and no more.
    Plain { note: Option<String> },
    /// The PXE menu with "local boot" alone.
    Menu { note: String },
    /// A file, by path or URL.
    File { name: String, note: Option<String> },
}

/// What makes a reply one that PXE options belong to.
fn as_pxe(request: &Packet, reply: &mut Packet) {
    reply.options.set(options::VENDOR_CLASS, b"PXEClient");
    // PXE specification 2.1, table 2-2: returned as it came.
    if let Some(uuid) = request.options.get(options::CLIENT_UUID) {
        reply.options.set(options::CLIENT_UUID, uuid);
    }
}

/// PXE discovery control (tag 6) with bit 3: take the boot file of this very
/// message, without menu and without discovery.
const DIRECT_BOOT: &[u8] = &[6, 1, 8, 255];

/// The PXE options of a menu with the one item "local boot" (type 0), taken
/// after a prompt of zero seconds. PXE specification 2.1, table 2-1.
fn local_boot_menu() -> Vec<u8> {
    const TEXT: &[u8] = b"Local disk";
    let length = |extra: usize| u8::try_from(TEXT.len() + extra).expect("a short constant text");
    let mut out = vec![6, 1, 3];
    // Tag 8, boot servers: type 0 with no address.
    out.extend_from_slice(&[8, 3, 0, 0, 0]);
    out.extend_from_slice(&[9, length(3), 0, 0, length(0)]);
    out.extend_from_slice(TEXT);
    out.extend_from_slice(&[10, length(1), 0]);
    out.extend_from_slice(TEXT);
    out.push(255);
    out
}

/// Smallest message that every client takes (RFC 2131, section 2): 576 bytes with
/// the headers of IP and UDP.
const SMALLEST_LIMIT: usize = 576 - HEADERS;
const HEADERS: usize = 28;

/// What a client cannot do without, or what belongs to the exchange itself.
const NEEDED: &[u8] = &[
    options::SUBNET_MASK,
    options::ROUTERS,
    options::VENDOR,
    options::LEASE_TIME,
    options::MESSAGE_TYPE,
    options::SERVER_ID,
    options::VENDOR_CLASS,
    options::CLIENT_ID,
    options::BOOT_FILE,
    options::CLIENT_UUID,
    options::RELAY_AGENT,
];

/// Copies what must come last, and leaves out what the client has no room for.
fn close(request: &Packet, reply: &mut Packet) {
    // RFC 6842: some clients take a reply without it for somebody else's.
    if let Some(id) = request.options.get(options::CLIENT_ID) {
        reply.options.set(options::CLIENT_ID, id);
    }
    // RFC 3046, section 2.2: returned unchanged, as the last option.
    if let Some(relay) = request.options.get(options::RELAY_AGENT) {
        reply.options.set(options::RELAY_AGENT, relay);
    }
    let told = request.options.get(options::MAX_SIZE);
    let told = told.and_then(|size| size.try_into().ok().map(u16::from_be_bytes));
    let limit = told.map_or(SMALLEST_LIMIT, |size| {
        usize::from(size)
            .saturating_sub(HEADERS)
            .max(SMALLEST_LIMIT)
    });
    while reply.encode().len() > limit {
        let spare = reply.options.iter().map(|(code, _)| code);
        let Some(spare) = spare.filter(|code| !NEEDED.contains(code)).last() else {
            break;
        };
        reply.options.remove(spare);
    }
}

/// Returns an address that a relay tells of itself or of its client.
fn relay_address(packet: &Packet, code: u8) -> Option<Ipv4Addr> {
    // Without a relay it is the client that speaks, and it has no say in this.
    if packet.giaddr.is_unspecified() {
        return None;
    }
    let octets: [u8; 4] = options::of_relay(&packet.options, code)?.try_into().ok()?;
    Some(octets.into()).filter(|address: &Ipv4Addr| !address.is_unspecified())
}

fn asks_for(packet: &Packet, code: u8) -> bool {
    packet
        .options
        .get(options::PARAMETERS)
        .is_some_and(|codes| codes.contains(&code))
}

/// Returns the address of client or relay that cannot be the one of a host elsewhere. A
/// reply to it would reach everybody, or ourselves.
fn nobodys(packet: &Packet) -> Option<Ipv4Addr> {
    [packet.ciaddr, packet.giaddr]
        .into_iter()
        .find(|address| address.is_broadcast() || address.is_multicast() || address.is_loopback())
}

fn destination(packet: &Packet, port: Port, from: SocketAddrV4) -> Destination {
    if port == Port::Proxy {
        return Destination::Unicast(from);
    }
    if packet.giaddr != Ipv4Addr::UNSPECIFIED {
        return Destination::Unicast(SocketAddrV4::new(packet.giaddr, SERVER_PORT));
    }
    if packet.ciaddr != Ipv4Addr::UNSPECIFIED {
        return Destination::Unicast(SocketAddrV4::new(packet.ciaddr, CLIENT_PORT));
    }
    Destination::Broadcast
}

fn proxy_verdict(packet: &Packet, message: MessageType, port: Port, server: Ipv4Addr) -> Verdict {
    let reply = |kind| Verdict::Reply {
        kind,
        address: None,
        lease: false,
        record: None,
        ask_first: None,
    };
    match (message, port) {
        (MessageType::Discover, Port::Dhcp) => reply(MessageType::Offer),
        (MessageType::Request | MessageType::Inform, Port::Proxy) => reply(MessageType::Ack),
        // The request that every server hears goes to the one that gives addresses.
        (MessageType::Request, Port::Dhcp)
            if packet.options.address(options::SERVER_ID) == Some(server) =>
        {
            reply(MessageType::Ack)
        }
        _ => Verdict::Drop {
            reason: "for the server that gives the addresses".into(),
        },
    }
}

/// Returns what a client tells of itself.
#[must_use]
pub fn request_of(packet: &Packet, protocol: Protocol) -> BootRequest {
    let class = packet
        .options
        .get(options::VENDOR_CLASS)
        .unwrap_or_default();
    let client_class = if is_ipxe(packet) {
        ClientClass::Ipxe
    } else if class.starts_with(b"PXEClient") {
        ClientClass::Pxe
    } else if class.starts_with(b"HTTPClient") {
        ClientClass::HttpBoot
    } else {
        ClientClass::Other
    };
    let arch = match packet.options.get(options::CLIENT_ARCH) {
        // A list, the preferred one first.
        Some([high, low, ..]) => ClientArch::from_code(u16::from_be_bytes([*high, *low])),
        _ => arch_of_class(class).map_or(ClientArch::Unknown, ClientArch::from_code),
    };
    let uuid = match packet.options.get(options::CLIENT_UUID) {
        Some([0, uuid @ ..]) => uuid.try_into().ok().map(MachineUuid),
        _ => None,
    };
    let relay = Some(packet.giaddr).filter(|relay| !relay.is_unspecified());
    BootRequest {
        mac: packet.mac,
        uuid,
        arch,
        client_class,
        protocol,
        relay: relay.map(Into::into),
    }
}

/// The five digits of `PXEClient:Arch:00007:UNDI:003000`.
fn arch_of_class(class: &[u8]) -> Option<u16> {
    let text = std::str::from_utf8(class).ok()?;
    text.split_once(":Arch:")?.1.get(..5)?.parse().ok()
}

/// Option 77 is bare text from iPXE, and a list of length and text in RFC 3004.
fn is_ipxe(packet: &Packet) -> bool {
    let class = packet.options.get(options::USER_CLASS).unwrap_or_default();
    let mut rest = class;
    while let [length, list @ ..] = rest {
        let Some((item, more)) = list.split_at_checked(usize::from(*length)) else {
            break;
        };
        if item == b"iPXE" {
            return true;
        }
        rest = more;
    }
    class == b"iPXE"
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
    const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0x77, 0, 1]);
    const FROM: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68);
    const PXE_X64: &[u8] = b"PXEClient:Arch:00007:UNDI:003000";
    const HTTP_X64: &[u8] = b"HTTPClient:Arch:00016:UNDI:003001";

    fn ip(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 0, last)
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn subnet(network: Ipv4Addr, range: RangeInclusive<Ipv4Addr>) -> Subnet {
        Subnet {
            network,
            prefix: 24,
            range,
            reservations: BTreeMap::new(),
            places: Vec::new(),
            routers: vec![SERVER],
            name_servers: vec![ip(2), ip(3)],
            domain: Some("bench.example".into()),
            lease: Duration::from_secs(600),
            options: vec![(42, vec![10, 0, 0, 4])],
        }
    }

    fn config(mode: Mode) -> Config {
        Config {
            mode,
            server: SERVER,
            http_base: "http://10.0.0.1:8080/".into(),
            local_disk: LocalDiskReply::default(),
            conflicts: ConflictCheck::default(),
        }
    }

    fn server() -> Engine {
        let remote = Ipv4Addr::new(10, 9, 0, 0);
        let far = Ipv4Addr::new(10, 9, 0, 50)..=Ipv4Addr::new(10, 9, 0, 59);
        let subnets = vec![subnet(ip(0), ip(100)..=ip(101)), subnet(remote, far)];
        Engine::new(config(Mode::Authoritative(subnets)), []).unwrap()
    }

    fn proxy() -> Engine {
        Engine::new(config(Mode::Proxy), []).unwrap()
    }

    fn message(kind: MessageType, class: &[u8]) -> Packet {
        let mut packet = Packet::reply_to(
            &Packet::parse(&[&[1, 1, 6][..], &[0; 233], &[99, 130, 83, 99]].concat()).unwrap(),
        );
        packet.op = Op::Request;
        packet.xid = 0x1234;
        packet.mac = MAC;
        packet.options.set_message_type(kind);
        if !class.is_empty() {
            packet.options.set(options::VENDOR_CLASS, class);
        }
        packet
    }

    fn boot(_: &BootRequest) -> BootAnswer {
        BootAnswer::Boot {
            tftp_path: "installer.efi".into(),
            http_path: "/installer.efi".into(),
        }
    }

    fn disk(_: &BootRequest) -> BootAnswer {
        BootAnswer::LocalDisk {
            reason: "no ticket".into(),
        }
    }

    fn ask(engine: &mut Engine, packet: &Packet, answer: fn(&BootRequest) -> BootAnswer) -> Step {
        engine.handle(packet, Port::Dhcp, FROM, at(0), answer)
    }

    fn kind(step: &Step) -> Option<MessageType> {
        step.reply
            .as_ref()
            .and_then(|reply| reply.packet.options.message_type())
    }

    fn words(step: &Step) -> String {
        step.event
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default()
    }

    #[test]
    fn four_messages_give_an_address_with_all_that_belongs_to_it() {
        let mut engine = server();
        let step = ask(&mut engine, &message(MessageType::Discover, PXE_X64), boot);
        let offer = step.reply.unwrap();
        assert_eq!(step.record, None, "an offer is not stored");
        assert_eq!(offer.to, Destination::Broadcast);
        assert_eq!(
            offer.packet.options.message_type(),
            Some(MessageType::Offer)
        );
        assert_eq!(
            (offer.packet.yiaddr, offer.packet.siaddr),
            (ip(100), SERVER)
        );
        let mut request = message(MessageType::Request, PXE_X64);
        request.options.set_addresses(options::SERVER_ID, &[SERVER]);
        request
            .options
            .set_addresses(options::REQUESTED_ADDRESS, &[ip(100)]);
        let step = ask(&mut engine, &request, boot);
        let record = step.record.unwrap();
        assert_eq!(
            (record.address, record.until),
            (ip(100), at(600).as_second())
        );
        let ack = step.reply.unwrap().packet;
        assert_eq!(ack.options.message_type(), Some(MessageType::Ack));
        assert_eq!(ack.file, b"installer.efi");
        let options = [
            (options::SERVER_ID, &[10, 0, 0, 1][..]),
            (options::LEASE_TIME, &600u32.to_be_bytes()),
            (options::RENEWAL_TIME, &300u32.to_be_bytes()),
            (options::REBINDING_TIME, &525u32.to_be_bytes()),
            (options::SUBNET_MASK, &[255, 255, 255, 0]),
            (options::ROUTERS, &[10, 0, 0, 1]),
            (options::NAME_SERVERS, &[10, 0, 0, 2, 10, 0, 0, 3]),
            (options::DOMAIN_NAME, b"bench.example"),
            (42, &[10, 0, 0, 4]),
        ];
        for (code, value) in options {
            assert_eq!(ack.options.get(code), Some(value), "option {code}");
        }
    }

    /// Message, server it names, address it asks for, address it has: answer.
    #[test]
    fn requests_are_answered_as_rfc_2131_says() {
        let other = ip(77);
        let foreign = Ipv4Addr::new(192, 168, 1, 5);
        let nothing = Ipv4Addr::UNSPECIFIED;
        let table = [
            (
                "selects us",
                Some(SERVER),
                Some(ip(100)),
                nothing,
                Some(MessageType::Ack),
            ),
            (
                "selects another server",
                Some(other),
                Some(ip(100)),
                nothing,
                None,
            ),
            (
                "asks for an address of nobody's pool",
                Some(SERVER),
                Some(ip(9)),
                nothing,
                Some(MessageType::Nak),
            ),
            (
                "reboots with its address",
                None,
                Some(ip(100)),
                nothing,
                Some(MessageType::Ack),
            ),
            (
                "reboots on another network",
                None,
                Some(foreign),
                nothing,
                Some(MessageType::Nak),
            ),
            ("renews", None, None, ip(100), Some(MessageType::Ack)),
            (
                "renews what belongs to another",
                None,
                None,
                ip(101),
                Some(MessageType::Nak),
            ),
            ("asks for nothing", None, None, nothing, None),
        ];
        for (what, named, wanted, has, expected) in table {
            let mut engine = server();
            ask(&mut engine, &message(MessageType::Discover, b""), boot);
            let mut neighbour = message(MessageType::Request, b"");
            neighbour.mac = MacAddr([2, 0, 0, 0, 0, 9]);
            neighbour
                .options
                .set_addresses(options::REQUESTED_ADDRESS, &[ip(101)]);
            assert_eq!(
                kind(&ask(&mut engine, &neighbour, boot)),
                Some(MessageType::Ack)
            );

            let mut request = message(MessageType::Request, b"");
            request.ciaddr = has;
            for (code, value) in [
                (options::SERVER_ID, named),
                (options::REQUESTED_ADDRESS, wanted),
            ] {
                request.options.set_addresses(code, value.as_slice());
            }
            let step = ask(&mut engine, &request, boot);
            assert_eq!(
                kind(&step),
                expected,
                "a client that {what}: {}",
                words(&step)
            );
            assert_eq!(
                step.record.is_some(),
                expected == Some(MessageType::Ack),
                "{what}"
            );
            if expected == Some(MessageType::Nak) {
                let nak = step.reply.unwrap();
                assert_eq!(nak.to, Destination::Broadcast, "{what}");
                assert_eq!(nak.packet.yiaddr, nothing, "{what}");
                assert!(nak.packet.options.get(options::MESSAGE).is_some(), "{what}");
            }
        }
    }

    #[test]
    fn replies_go_where_the_client_hears_them() {
        let mut engine = server();
        let to =
            |engine: &mut Engine, packet: &Packet| ask(engine, packet, boot).reply.map(|r| r.to);
        let mut discover = message(MessageType::Discover, PXE_X64);
        assert_eq!(to(&mut engine, &discover), Some(Destination::Broadcast));
        discover.broadcast = true;
        assert_eq!(to(&mut engine, &discover), Some(Destination::Broadcast));
        discover.giaddr = Ipv4Addr::new(10, 9, 0, 1);
        let relay = SocketAddrV4::new(discover.giaddr, 67);
        assert_eq!(
            to(&mut engine, &discover),
            Some(Destination::Unicast(relay))
        );
        let mut renew = message(MessageType::Request, b"");
        renew.ciaddr = ip(100);
        let client = SocketAddrV4::new(ip(100), 68);
        assert_eq!(to(&mut engine, &renew), Some(Destination::Unicast(client)));
        // Found by the fuzzer: a reply to everybody, where one was meant.
        for address in [[255, 255, 255, 255], [224, 0, 0, 1], [127, 0, 0, 1]] {
            let mut inform = message(MessageType::Inform, b"");
            inform.ciaddr = address.into();
            let step = ask(&mut engine, &inform, boot);
            assert_eq!(step.reply, None, "{address:?}");
            assert!(words(&step).contains("is no address that"), "{address:?}");
            inform.giaddr = std::mem::replace(&mut inform.ciaddr, ip(100));
            assert_eq!(to(&mut engine, &inform), None, "{address:?}");
        }
    }

    #[test]
    fn a_relayed_client_gets_an_address_of_its_own_network() {
        let mut engine = server();
        let mut discover = message(MessageType::Discover, PXE_X64);
        discover.giaddr = Ipv4Addr::new(10, 9, 0, 1);
        discover.options.set(options::RELAY_AGENT, b"\x01\x04port");
        let reply = ask(&mut engine, &discover, boot).reply.unwrap().packet;
        assert_eq!(reply.yiaddr, Ipv4Addr::new(10, 9, 0, 50));
        assert_eq!(reply.giaddr, discover.giaddr);
        let last = reply.options.iter().last().unwrap();
        assert_eq!(
            last,
            (options::RELAY_AGENT, &b"\x01\x04port"[..]),
            "RFC 3046: last"
        );
        // A refusal reaches a client that has no address in its network.
        let mut request = message(MessageType::Request, PXE_X64);
        request.giaddr = discover.giaddr;
        request
            .options
            .set_addresses(options::REQUESTED_ADDRESS, &[ip(100)]);
        let nak = ask(&mut engine, &request, boot).reply.unwrap();
        assert_eq!(nak.packet.options.message_type(), Some(MessageType::Nak));
        assert!(nak.packet.broadcast);
        // A relay of a network that nobody configured.
        discover.giaddr = Ipv4Addr::new(172, 16, 0, 1);
        let step = ask(&mut engine, &discover, boot);
        assert!(step.reply.is_none());
        assert!(words(&step).contains("no subnet is configured for relay 172.16.0.1"));
    }

    #[test]
    fn release_decline_and_inform_do_what_they_say() {
        let mut engine = server();
        let mut request = message(MessageType::Request, b"");
        request
            .options
            .set_addresses(options::REQUESTED_ADDRESS, &[ip(100)]);
        ask(&mut engine, &request, boot);
        let mut release = message(MessageType::Release, b"");
        release.ciaddr = ip(101);
        assert!(words(&ask(&mut engine, &release, boot)).contains("was not given"));
        release.ciaddr = ip(100);
        let step = ask(&mut engine, &release, boot);
        assert!(step.record.is_some() && step.reply.is_none());

        ask(&mut engine, &request, boot);
        let mut decline = message(MessageType::Decline, b"");
        decline
            .options
            .set_addresses(options::REQUESTED_ADDRESS, &[ip(100)]);
        decline.options.set_addresses(options::SERVER_ID, &[SERVER]);
        let step = ask(&mut engine, &decline, boot);
        assert!(step.record.is_some() && step.reply.is_none());
        let offer = ask(&mut engine, &message(MessageType::Discover, b""), boot)
            .reply
            .unwrap();
        assert_eq!(offer.packet.yiaddr, ip(101));

        let mut inform = message(MessageType::Inform, b"");
        inform.ciaddr = ip(200);
        let ack = ask(&mut engine, &inform, boot).reply.unwrap();
        assert_eq!(ack.to, Destination::Unicast(SocketAddrV4::new(ip(200), 68)));
        assert_eq!(
            (ack.packet.yiaddr, ack.packet.ciaddr),
            (Ipv4Addr::UNSPECIFIED, ip(200))
        );
        assert_eq!(ack.packet.options.get(options::LEASE_TIME), None);
        assert!(ack.packet.options.get(options::ROUTERS).is_some());
    }

    fn bios() -> &'static [u8] {
        b"PXEClient:Arch:00000:UNDI:002001"
    }

    fn arm64() -> &'static [u8] {
        b"PXEClient:Arch:00011:UNDI:003000"
    }

    /// Who asks, and what it is told to boot: by a server, and by a proxy.
    #[test]
    fn each_kind_of_client_is_told_in_its_own_terms() {
        let loader = Some(local_boot::PATH.to_owned());
        let url = |path: &str| Some(format!("http://10.0.0.1:8080/{path}"));
        let file = Some("installer.efi".to_owned());
        type Answer = fn(&BootRequest) -> BootAnswer;
        // A menu is no file: it is seen by option 43.
        type Row = (
            &'static str,
            &'static [u8],
            bool,
            Answer,
            Option<String>,
            bool,
        );
        let table: [Row; 10] = [
            ("UEFI PXE", PXE_X64, false, boot, file.clone(), false),
            ("UEFI PXE, disk", PXE_X64, false, disk, loader, false),
            ("BIOS PXE", bios(), false, boot, file.clone(), false),
            ("BIOS PXE, disk", bios(), false, disk, None, true),
            ("arm64 PXE", arm64(), false, boot, file, false),
            ("arm64 PXE, disk", arm64(), false, disk, None, true),
            (
                "HTTP boot",
                HTTP_X64,
                false,
                boot,
                url("installer.efi"),
                false,
            ),
            (
                "HTTP boot, disk",
                HTTP_X64,
                false,
                disk,
                url(local_boot::PATH),
                false,
            ),
            ("iPXE", PXE_X64, true, boot, url("installer.efi"), false),
            (
                "iPXE, disk",
                PXE_X64,
                true,
                disk,
                url(local_boot::PATH),
                false,
            ),
        ];
        for (what, class, ipxe, answer, expected, menu) in table {
            for (mode, mut engine) in [("server", server()), ("proxy", proxy())] {
                let mut discover = message(MessageType::Discover, class);
                discover.options.set(options::CLIENT_UUID, [0; 17]);
                if ipxe {
                    discover.options.set(options::USER_CLASS, b"iPXE");
                }
                let reply = ask(&mut engine, &discover, answer).reply.unwrap().packet;
                let named = match reply.options.get(options::BOOT_FILE) {
                    Some(name) => name.to_vec(),
                    None => reply.file.clone(),
                };
                let named = Some(String::from_utf8(named).unwrap()).filter(|name| !name.is_empty());
                assert_eq!(named, expected, "{what}, {mode}");
                let vendor = reply.options.get(options::VENDOR);
                let local = local_boot_menu();
                assert_eq!(
                    vendor == Some(&local[..]),
                    menu,
                    "{what}, {mode}: {vendor:?}"
                );
                let offered = reply.options.get(options::VENDOR_CLASS);
                if class == HTTP_X64 {
                    assert_eq!(offered, Some(&b"HTTPClient"[..]), "{what}, {mode}");
                    assert!(reply.file.is_empty(), "{what}: option 67 only");
                }
                assert_eq!(
                    reply.yiaddr.is_unspecified(),
                    mode == "proxy",
                    "{what}, {mode}"
                );
                if mode == "proxy" {
                    assert!(
                        offered.is_some(),
                        "{what}: an offer without address needs its class"
                    );
                    assert_eq!(reply.options.get(options::LEASE_TIME), None, "{what}");
                }
            }
        }
    }

    #[test]
    fn options_66_and_67_are_sent_to_those_who_ask() {
        let mut engine = server();
        let mut discover = message(MessageType::Discover, PXE_X64);
        let reply = ask(&mut engine, &discover, boot).reply.unwrap().packet;
        assert_eq!(reply.options.get(options::BOOT_FILE), None);
        discover.options.set(options::PARAMETERS, [1, 3, 66, 67]);
        let reply = ask(&mut engine, &discover, boot).reply.unwrap().packet;
        assert_eq!(
            reply.options.get(options::BOOT_FILE),
            Some(&b"installer.efi"[..])
        );
        assert_eq!(
            reply.options.get(options::TFTP_SERVER),
            Some(&b"10.0.0.1"[..])
        );
    }

    #[test]
    fn a_path_too_long_for_its_field_goes_into_the_option() {
        let answer = |_: &BootRequest| {
            let path = "x".repeat(128);
            BootAnswer::Boot {
                tftp_path: path.clone(),
                http_path: path,
            }
        };
        let step = ask(
            &mut server(),
            &message(MessageType::Discover, PXE_X64),
            answer,
        );
        let reply = step.reply.unwrap().packet;
        assert!(reply.file.is_empty());
        assert_eq!(
            reply.options.get(options::BOOT_FILE).map(<[u8]>::len),
            Some(128)
        );
    }

    #[test]
    fn ignored_clients_hear_nothing_and_the_reason_is_told() {
        let ignore = |_: &BootRequest| BootAnswer::Ignore {
            reason: "fenced".into(),
        };
        for mut engine in [server(), proxy()] {
            let step = ask(
                &mut engine,
                &message(MessageType::Discover, PXE_X64),
                ignore,
            );
            assert!(step.reply.is_none() && step.record.is_none());
            assert!(
                words(&step).ends_with("no answer: fenced"),
                "{}",
                words(&step)
            );
        }
    }

    #[test]
    fn a_proxy_speaks_only_to_what_boots_and_only_when_it_is_asked() {
        let mut engine = proxy();
        let quiet = Step {
            record: None,
            ask_first: None,
            reply: None,
            event: None,
        };
        assert_eq!(
            ask(
                &mut engine,
                &message(MessageType::Discover, b"MSFT 5.0"),
                boot
            ),
            quiet
        );
        // The request that takes the other server's offer.
        let mut request = message(MessageType::Request, PXE_X64);
        request
            .options
            .set_addresses(options::SERVER_ID, &[ip(250)]);
        assert!(ask(&mut engine, &request, boot).reply.is_none());
        // The same machine asks again on port 4011, from its new address.
        let from = SocketAddrV4::new(ip(42), 4011);
        request.ciaddr = ip(42);
        let step = engine.handle(&request, Port::Proxy, from, at(0), boot);
        let reply = step.reply.unwrap();
        assert_eq!(reply.to, Destination::Unicast(from));
        assert_eq!(reply.packet.options.message_type(), Some(MessageType::Ack));
        assert_eq!(reply.packet.file, b"installer.efi");
        assert_eq!(reply.packet.options.get(options::VENDOR), Some(DIRECT_BOOT));
    }

    #[test]
    fn clients_are_known_by_what_they_send() {
        let request = |edit: fn(&mut Packet)| {
            let mut packet = message(MessageType::Discover, b"");
            edit(&mut packet);
            let BootRequest {
                arch,
                client_class,
                uuid,
                ..
            } = request_of(&packet, Protocol::Dhcp);
            (client_class, arch, uuid)
        };
        assert_eq!(
            request(|_| ()),
            (ClientClass::Other, ClientArch::Unknown, None)
        );
        assert_eq!(
            request(|packet| {
                packet.options.set(options::VENDOR_CLASS, PXE_X64);
                packet.options.set(options::CLIENT_ARCH, [0, 9, 0, 0]);
                packet
                    .options
                    .set(options::CLIENT_UUID, [[0].as_slice(), &[7; 16]].concat());
            }),
            (
                ClientClass::Pxe,
                ClientArch::UefiX64,
                Some(MachineUuid([7; 16]))
            )
        );
        // Without option 93, the text of option 60 says the same.
        assert_eq!(
            request(|packet| packet.options.set(options::VENDOR_CLASS, HTTP_X64)),
            (ClientClass::HttpBoot, ClientArch::UefiX64, None)
        );
        assert_eq!(
            request(|packet| {
                packet
                    .options
                    .set(options::VENDOR_CLASS, b"PXEClient:Arch:000");
                packet.options.set(options::USER_CLASS, b"\x04iPXE");
                packet.options.set(options::CLIENT_ARCH, [11]);
                packet.options.set(options::CLIENT_UUID, [1, 2, 3]);
            }),
            (ClientClass::Ipxe, ClientArch::Unknown, None)
        );
    }

    #[test]
    fn mistakes_in_the_configuration_are_named() {
        let good = subnet(ip(0), ip(100)..=ip(101));
        let check = |edit: fn(&mut Subnet)| {
            let mut subnet = good.clone();
            edit(&mut subnet);
            config(Mode::Authoritative(vec![subnet]))
                .check()
                .map_err(|error| error.to_string())
        };
        assert_eq!(check(|_| ()), Ok(()));
        for (edit, message) in [
            (
                (|s| s.range = Ipv4Addr::new(10, 1, 0, 1)..=Ipv4Addr::new(10, 1, 0, 2))
                    as fn(&mut Subnet),
                "address 10.1.0.1 is outside 10.0.0.0/24",
            ),
            (
                |s| s.range = ip(9)..=ip(8),
                "the pool 10.0.0.9 to 10.0.0.8 is empty",
            ),
            (
                |s| s.range = ip(1)..=ip(8),
                "the pool 10.0.0.1 to 10.0.0.8 holds the server's own address 10.0.0.1",
            ),
            (
                |s| s.reservations = [(MAC, ip(9)), (MacAddr([9; 6]), ip(9))].into(),
                "address 10.0.0.9 is reserved twice",
            ),
            (|s| s.prefix = 33, "prefix length 33, expected at most 32"),
        ] {
            assert_eq!(check(edit), Err(message.to_owned()));
        }
    }

    #[test]
    fn an_address_is_asked_for_once_before_it_is_offered_on_the_own_link() {
        let mut engine = server();
        let discover = message(MessageType::Discover, PXE_X64);
        let step = ask(&mut engine, &discover, boot);
        assert_eq!(step.ask_first, Some(ip(100)));
        let again = ask(&mut engine, &discover, boot);
        assert_eq!(again.ask_first, None, "its offer still stands");
        // Somebody answered: the next one is offered, and this one kept back.
        let record = engine.conflict(MAC, ip(100), at(0)).unwrap();
        assert_eq!(record.state, crate::dhcp::LeaseState::Declined);
        let step = ask(&mut engine, &discover, boot);
        assert_eq!(step.ask_first, Some(ip(101)));
        assert_eq!(engine.conflict(MAC, ip(105), at(0)), None, "not offered");
        let mut far = message(MessageType::Discover, PXE_X64);
        far.giaddr = Ipv4Addr::new(10, 9, 0, 1);
        let step = ask(&mut engine, &far, boot);
        assert_eq!(
            (kind(&step), step.ask_first),
            (Some(MessageType::Offer), None)
        );
    }

    #[test]
    fn what_a_relay_tells_chooses_address_network_and_name() {
        let remote = Ipv4Addr::new(10, 9, 0, 0);
        let far = Ipv4Addr::new(10, 9, 0, 50)..=Ipv4Addr::new(10, 9, 0, 59);
        let place = Place {
            circuit: Some(b"eth0/7".to_vec()),
            remote: None,
            address: Ipv4Addr::new(10, 9, 0, 7),
        };
        let mut there = subnet(remote, far);
        there.places.push(place);
        let mode = Mode::Authoritative(vec![subnet(ip(0), ip(100)..=ip(101)), there]);
        let mut engine = Engine::new(config(mode), []).unwrap();
        let mut discover = message(MessageType::Discover, PXE_X64);
        discover.giaddr = Ipv4Addr::new(10, 9, 0, 1);
        discover
            .options
            .set(options::RELAY_AGENT, b"\x01\x06eth0/7");
        let reply = ask(&mut engine, &discover, boot).reply.unwrap();
        assert_eq!(reply.packet.yiaddr, Ipv4Addr::new(10, 9, 0, 7));
        assert_eq!(
            reply.packet.options.iter().last(),
            Some((options::RELAY_AGENT, &b"\x01\x06eth0/7"[..]))
        );
        // A relay with an address in a network of its own.
        let mut discover = message(MessageType::Discover, PXE_X64);
        discover.mac = MacAddr([2, 0, 0, 0, 0, 9]);
        let tells = [5, 4, 10, 9, 0, 0, 11, 4, 10, 9, 0, 1];
        discover.options.set(options::RELAY_AGENT, tells);
        let offered = ask(&mut engine, &discover, boot).reply.unwrap().packet;
        assert_eq!(offered.yiaddr, ip(100), "a client says this of itself");
        assert_eq!(offered.options.address(options::SERVER_ID), Some(SERVER));
        discover.giaddr = Ipv4Addr::new(172, 16, 0, 1);
        let offered = ask(&mut engine, &discover, boot).reply.unwrap().packet;
        let relay = Ipv4Addr::new(10, 9, 0, 1);
        assert_eq!(offered.yiaddr, Ipv4Addr::new(10, 9, 0, 50));
        assert_eq!(offered.options.address(options::SERVER_ID), Some(relay));
        // The request names the server as it was told to.
        let mut request = discover.clone();
        request.options.set_message_type(MessageType::Request);
        request.options.set_addresses(options::SERVER_ID, &[relay]);
        request
            .options
            .set_addresses(options::REQUESTED_ADDRESS, &[offered.yiaddr]);
        assert_eq!(
            kind(&ask(&mut engine, &request, boot)),
            Some(MessageType::Ack)
        );
    }

    #[test]
    fn a_reply_fits_into_what_the_client_takes_and_keeps_what_it_needs() {
        let mut here = subnet(ip(0), ip(100)..=ip(101));
        here.options = (200..204).map(|code| (code, vec![7; 100])).collect();
        let mut engine = Engine::new(config(Mode::Authoritative(vec![here])), []).unwrap();
        for (told, most, extra) in [
            (None, 548, 1),
            (Some(&[0, 100][..]), 548, 1),
            (Some(&[5, 192]), 1444, 4),
            (Some(&[9]), 548, 1),
        ] {
            let mut discover = message(MessageType::Discover, HTTP_X64);
            discover.options.set(options::CLIENT_ID, [1, 2, 3]);
            discover.options.set(options::RELAY_AGENT, [1, 1, 1]);
            if let Some(told) = told {
                discover.options.set(options::MAX_SIZE, told);
            }
            let reply = ask(&mut engine, &discover, boot).reply.unwrap().packet;
            let length = reply.encode().len();
            assert!(length <= most, "{told:?}: {length} bytes");
            let extras = reply.options.iter().filter(|(code, _)| *code >= 200);
            assert_eq!(extras.count(), extra, "{told:?}");
            for code in [1, 3, 51, 53, 54, 60, 61, 67, 82] {
                assert!(reply.options.get(code).is_some(), "{told:?}: option {code}");
            }
        }
    }

    #[test]
    fn an_operators_mistake_in_options_and_places_is_named() {
        let with = |change: fn(&mut Subnet)| {
            let mut subnet = subnet(ip(0), ip(100)..=ip(101));
            change(&mut subnet);
            config(Mode::Authoritative(vec![subnet])).check()
        };
        let place = |address| Place {
            circuit: None,
            remote: Some(b"switch".to_vec()),
            address,
        };
        assert_eq!(with(|_| {}), Ok(()));
        let own = with(|subnet| subnet.options.push((53, vec![6])));
        assert_eq!(own, Err(ConfigError::Option(53)));
        let long = with(|subnet| subnet.options.push((42, vec![0; 256])));
        assert_eq!(long, Err(ConfigError::Option(42)));
        let mut twice = subnet(ip(0), ip(100)..=ip(101));
        twice.places = vec![place(ip(50)), place(ip(50))];
        let twice = config(Mode::Authoritative(vec![twice])).check();
        assert_eq!(twice, Err(ConfigError::ReservedTwice(ip(50))));
        let mut anywhere = subnet(ip(0), ip(100)..=ip(101));
        anywhere.places = vec![Place {
            remote: None,
            ..place(ip(50))
        }];
        let anywhere = config(Mode::Authoritative(vec![anywhere])).check();
        assert_eq!(anywhere, Err(ConfigError::Place(ip(50))));
    }

    #[test]
    fn ipxe_is_known_by_bare_text_and_in_a_list() {
        for (class, ipxe) in [
            (&b"iPXE"[..], true),
            (b"\x04iPXE", true),
            (b"\x03abc\x04iPXE", true),
            (b"\x05iPXE", false),
            (b"\x04iPX", false),
            (b"", false),
        ] {
            let mut discover = message(MessageType::Discover, PXE_X64);
            discover.options.set(options::USER_CLASS, class);
            let class_of = request_of(&discover, Protocol::Dhcp).client_class;
            assert_eq!(class_of == ClientClass::Ipxe, ipxe, "{class:?}");
        }
    }

    proptest! {
        #[test]
        fn no_message_makes_the_server_panic_or_answer_a_reply(
            op in 1u8..=2, proxied in any::<bool>(), port in any::<bool>(),
            fields in any::<[u32; 5]>(),
            edits in proptest::collection::btree_map(
                prop_oneof![Just(43u8), Just(50), Just(53), Just(54), Just(55), Just(60), Just(61),
                    Just(67), Just(77), Just(82), Just(93), Just(97), 1u8..255],
                prop_oneof![
                    proptest::collection::vec(0u8..9, 1..=1),
                    proptest::collection::vec(any::<u8>(), 0..20),
                    Just(PXE_X64.to_vec()), Just(HTTP_X64.to_vec()), Just(vec![10, 0, 0, 100]),
                ], 0..10),
            local in any::<bool>(),
        ) {
            let mut packet = message(MessageType::Discover, PXE_X64);
            packet.op = if op == 1 { Op::Request } else { Op::Reply };
            packet.xid = fields[0];
            [packet.ciaddr, packet.yiaddr, packet.siaddr, packet.giaddr] =
                [1, 2, 3, 4].map(|at| Ipv4Addr::from(fields[at]));
            for (code, value) in &edits {
                packet.options.set(*code, value);
            }
            let mut engine = if proxied { proxy() } else { server() };
            let port = if port { Port::Proxy } else { Port::Dhcp };
            let step = engine.handle(&packet, port, FROM, at(0), if local { disk } else { boot });
            if op == 2 {
                prop_assert_eq!(step.reply, None);
            } else if let Some(reply) = step.reply {
                let again = Packet::parse(&reply.packet.encode());
                prop_assert_eq!(again.map(|packet| packet.xid), Ok(fields[0]));
            }
        }

        /// Another implementation reads what this one sends.
        #[test]
        fn replies_are_understood_by_another_implementation(xid in any::<u32>(), which in 0usize..3) {
            use dhcproto::{Decodable, Decoder, v4};
            let class = [PXE_X64, HTTP_X64, bios()][which];
            let mut discover = message(MessageType::Discover, class);
            discover.xid = xid;
            let reply = ask(&mut server(), &discover, disk).reply.unwrap().packet;
            let bytes = reply.encode();
            let theirs = v4::Message::decode(&mut Decoder::new(&bytes)).unwrap();
            prop_assert_eq!(theirs.xid(), xid);
            prop_assert_eq!(theirs.yiaddr(), reply.yiaddr);
            prop_assert_eq!(theirs.opts().msg_type(), Some(v4::MessageType::Offer));
            for (code, _) in reply.options.iter() {
                prop_assert!(theirs.opts().get(v4::OptionCode::from(code)).is_some(), "option {}", code);
            }
        }
    }
}
