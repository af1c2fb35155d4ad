//! The sockets around [`Engine`]. What gives no lease is answered at once; what gives
//! one waits until it is durable, together with all that came while the disk was busy
//! with those before.

use std::collections::HashMap;
use std::future::Future;
use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use model::id::MacAddr;
use nix::libc::in_pktinfo;
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, sendmsg};
use socket2::{Domain, Protocol as SocketProtocol, Socket, Type};
use thiserror::Error;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::time::Instant;

use super::arp::Arp;
use super::lease::{LeaseRecord, LeaseStore};
use super::packet::Packet;
use super::policy::{CLIENT_PORT, Config, ConfigError, Destination, Engine, Mode, Port, Reply};
use super::policy::{PROXY_PORT, SERVER_PORT, Step, request_of};
use crate::boot::{BootEvent, BootSource, DhcpMessage, DhcpOutcome, Protocol};

/// Messages taken before anything else is looked after.
const BATCH: usize = 512;
/// Leases that wait for a slow disk. Beyond that, messages wait in the socket.
const WAITING: usize = 4096;
/// Room for messages that arrive while leases are made durable.
const RECEIVE_BUFFER: usize = 4 << 20;

/// How long a user of an address has to answer, twice. Firmware collects offers for
/// seconds, so that it costs a boot nothing.
const ARP_PAUSE: Duration = Duration::from_millis(150);
/// Addresses asked for at once. In a flood the rest is offered unasked: one
/// broadcast of a client is not to become many of ours.
const ARP_QUESTIONS: usize = 256;

/// The sockets that a server answers on.
#[derive(Debug)]
pub struct Sockets {
    /// Port 67.
    pub dhcp: UdpSocket,
    /// Port 4011, for a proxy.
    pub proxy: Option<UdpSocket>,
    /// For the question whether an address is in use; a proxy gives none.
    arp: Option<Arp>,
}

impl Sockets {
    /// Binds the ports that a mode needs, on one interface only.
    ///
    /// # Errors
    /// [`BindError`]: the port is taken, or the right to bind it is missing.
    pub fn bind(interface: &str, mode: &Mode) -> Result<Self, BindError> {
        let (proxy, arp) = match mode {
            Mode::Authoritative(_) => {
                let arp = Arp::open(interface).map_err(|source| BindError {
                    what: "ARP".into(),
                    interface: interface.to_owned(),
                    source,
                })?;
                (None, Some(arp))
            }
            Mode::Proxy => (Some(bind(interface, PROXY_PORT)?), None),
        };
        Ok(Self {
            dhcp: bind(interface, SERVER_PORT)?,
            proxy,
            arp,
        })
    }
}

/// A port cannot be had.
#[derive(Debug, Error)]
#[error("bind {what} on interface {interface}")]
pub struct BindError {
    /// The port or protocol.
    pub what: String,
    /// The interface.
    pub interface: String,
    /// What the system says.
    #[source]
    pub source: io::Error,
}

/// Returns a broadcast socket of all addresses, tied to one interface: what goes
/// to 255.255.255.255 leaves there and nowhere else.
pub(super) fn bind(interface: &str, port: u16) -> Result<UdpSocket, BindError> {
    let open = || -> io::Result<UdpSocket> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(SocketProtocol::UDP))?;
        socket.set_nonblocking(true)?;
        socket.set_broadcast(true)?;
        if port == CLIENT_PORT {
            // The host's own DHCP client may sit there.
            socket.set_reuse_address(true)?;
        }
        socket.bind_device(Some(interface.as_bytes()))?;
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
        UdpSocket::from_std(socket.into())
    };
    open().map_err(|source| BindError {
        what: format!("UDP port {port}"),
        interface: interface.to_owned(),
        source,
    })
}

/// Why the server stopped.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The configuration has a mistake.
    #[error("check the DHCP configuration")]
    Config(#[source] ConfigError),
    /// The leases of the last run cannot be read.
    #[error("read the stored leases")]
    Load(#[source] io::Error),
    /// A lease cannot be made durable, so nothing may be acknowledged.
    #[error("store leases")]
    Store(#[source] io::Error),
    /// A socket broke.
    #[error("receive DHCP messages")]
    Receive(#[source] io::Error),
}

/// Answers until `shutdown` is done.
///
/// `clock` tells the time for leases. Messages that are no DHCP are dropped with
/// a debug log line; everything else is told to the source.
///
/// # Errors
/// [`ServeError`]. A reply that cannot be sent is logged and is no error: the
/// client asks again.
pub async fn run<S: LeaseStore>(
    sockets: Sockets,
    config: Config,
    mut store: S,
    source: Arc<dyn BootSource>,
    clock: fn() -> Timestamp,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let records = store.load().map_err(ServeError::Load)?;
    let mut engine = Engine::new(config, records).map_err(ServeError::Config)?;
    for (address, mac) in engine.leases().users() {
        source.leased(address, mac);
    }
    let server = engine.address();
    let mut shutdown = std::pin::pin!(shutdown);
    let mut buffer = vec![0; 64 << 10];
    let mut held = Held::default();
    let mut store = Some(store);
    let mut next = Unsaid::default();
    let mut syncing: Option<Syncing<S>> = None;
    loop {
        let room = next.records.len() < WAITING;
        let happened = tokio::select! {
            () = &mut shutdown => break,
            (back, result) = synced(&mut syncing) => {
                result.map_err(ServeError::Store)?;
                store = Some(back);
                Happened::Synced
            }
            ready = sockets.dhcp.readable(), if room => {
                ready.map_err(ServeError::Receive)?;
                Happened::Received(Port::Dhcp, &sockets.dhcp)
            }
            ready = readable(sockets.proxy.as_ref()) => {
                Happened::Received(Port::Proxy, ready.map_err(ServeError::Receive)?)
            }
            // Read all the time: an old word must not answer a new question.
            heard = heard(sockets.arp.as_ref()) => Happened::Heard(heard),
            () = tokio::time::sleep_until(held.next()), if !held.0.is_empty() => {
                Happened::Silence
            }
        };
        let mut batch = Batch::default();
        let mut socket = &sockets.dhcp;
        match happened {
            Happened::Received(port, from) => {
                socket = from;
                let mut desk = Desk {
                    engine: &mut engine,
                    source: &*source,
                    arp: sockets.arp.as_ref(),
                    held: &mut held,
                };
                for _ in 0..BATCH {
                    match socket.try_recv_from(&mut buffer) {
                        Ok((length, SocketAddr::V4(from))) => {
                            desk.answer(&buffer[..length], port, from, clock(), &mut batch);
                        }
                        Ok(_) => {}
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                        // An ICMP error that an earlier reply met.
                        Err(error) => {
                            tracing::debug!(%error, "DHCP socket reported an error");
                            break;
                        }
                    }
                }
            }
            Happened::Heard((address, user)) => {
                let taken = |waiting: &mut Waiting| waiting.packet.mac != user;
                if let Some(waiting) = held.take_if(address, taken) {
                    let mut desk = Desk {
                        engine: &mut engine,
                        source: &*source,
                        arp: sockets.arp.as_ref(),
                        held: &mut held,
                    };
                    desk.conflict(waiting, address, user, clock(), &mut batch);
                }
            }
            Happened::Silence => held.release(sockets.arp.as_ref(), &mut batch),
            Happened::Synced => {
                if let Some(done) = syncing.take() {
                    done.unsaid.say(&sockets.dhcp, server, &*source).await;
                }
            }
        }
        let Batch { now, later } = batch;
        now.say(socket, server, &*source).await;
        next.add(later);
        if !next.records.is_empty()
            && let Some(store) = store.take()
        {
            syncing = Some(Syncing::start(store, std::mem::take(&mut next)));
        }
    }
    // What is being stored is also said; the rest is asked again.
    if let Some(Syncing { task, unsaid }) = syncing {
        let (_, result) = task.await.expect("a lease store does not panic");
        result.map_err(ServeError::Store)?;
        unsaid.say(&sockets.dhcp, server, &*source).await;
    }
    Ok(())
}

enum Happened<'a> {
    Received(Port, &'a UdpSocket),
    Heard((Ipv4Addr, MacAddr)),
    Silence,
    Synced,
}

/// Replies and events that are not out yet.
#[derive(Default)]
struct Unsaid {
    records: Vec<LeaseRecord>,
    replies: Vec<Reply>,
    events: Vec<BootEvent>,
}

impl Unsaid {
    fn add(&mut self, other: Self) {
        self.records.extend(other.records);
        self.replies.extend(other.replies);
        self.events.extend(other.events);
    }

    async fn say(self, socket: &UdpSocket, server: Ipv4Addr, source: &dyn BootSource) {
        for reply in self.replies {
            send(socket, server, &reply).await;
        }
        for event in self.events {
            tracing::debug!(%event, "dhcp");
            source.observe(&event);
        }
    }
}

/// What messages came to: what can be said at once, and what must be durable first.
/// A proxy gives no leases, so what waits goes out by port 67.
#[derive(Default)]
struct Batch {
    now: Unsaid,
    later: Unsaid,
}

impl Batch {
    fn add(&mut self, step: Step) {
        let unsaid = if step.record.is_some() {
            &mut self.later
        } else {
            &mut self.now
        };
        unsaid.records.extend(step.record);
        unsaid.replies.extend(step.reply);
        unsaid.events.extend(step.event);
    }
}

/// Leases on their way to the disk, and what is said when they are there.
struct Syncing<S> {
    task: tokio::task::JoinHandle<(S, io::Result<()>)>,
    unsaid: Unsaid,
}

impl<S: LeaseStore> Syncing<S> {
    fn start(mut store: S, mut unsaid: Unsaid) -> Self {
        let records = std::mem::take(&mut unsaid.records);
        let task = tokio::task::spawn_blocking(move || {
            let result = store.append(&records);
            (store, result)
        });
        Self { task, unsaid }
    }
}

async fn synced<S>(syncing: &mut Option<Syncing<S>>) -> (S, io::Result<()>) {
    match syncing {
        Some(Syncing { task, .. }) => task.await.expect("a lease store does not panic"),
        None => std::future::pending().await,
    }
}

/// Offers that wait until it is known whether somebody uses the address.
#[derive(Default)]
struct Held(HashMap<Ipv4Addr, Waiting>);

struct Waiting {
    packet: Packet,
    from: SocketAddrV4,
    step: Step,
    /// When to ask again, or to take silence for "nobody".
    until: Instant,
    asked: u8,
}

impl Held {
    /// When something is due. Not empty when this is asked.
    fn next(&self) -> Instant {
        let times = self.0.values().map(|waiting| waiting.until);
        times.min().unwrap_or_else(Instant::now)
    }

    fn take_if(
        &mut self,
        address: Ipv4Addr,
        test: impl FnOnce(&mut Waiting) -> bool,
    ) -> Option<Waiting> {
        test(self.0.get_mut(&address)?)
            .then(|| self.0.remove(&address))
            .flatten()
    }

    /// Asks once more, or lets go what was asked twice.
    fn release(&mut self, arp: Option<&Arp>, batch: &mut Batch) {
        let now = Instant::now();
        let due = self.0.extract_if(|_, waiting| waiting.until <= now);
        let (over, again): (Vec<_>, Vec<_>) = due.partition(|(_, waiting)| waiting.asked >= 2);
        for (_, waiting) in over {
            batch.add(waiting.step);
        }
        for (address, mut waiting) in again {
            if let Some(arp) = arp {
                arp.ask(address);
            }
            waiting.asked += 1;
            waiting.until = now + ARP_PAUSE;
            self.0.insert(address, waiting);
        }
    }
}

/// What one message needs.
struct Desk<'a> {
    engine: &'a mut Engine,
    source: &'a dyn BootSource,
    arp: Option<&'a Arp>,
    held: &'a mut Held,
}

impl Desk<'_> {
    fn answer(
        &mut self,
        bytes: &[u8],
        port: Port,
        from: SocketAddrV4,
        now: Timestamp,
        batch: &mut Batch,
    ) {
        let packet = match Packet::parse(bytes) {
            Ok(packet) => packet,
            Err(error) => {
                tracing::debug!(%from, %error, "not a DHCP message");
                return;
            }
        };
        let decide = |request: &_| self.source.decide(request);
        let step = self.engine.handle(&packet, port, from, now, decide);
        self.settle(packet, from, step, batch);
    }

    /// Sends on a step, or holds it until the address is asked for.
    fn settle(&mut self, packet: Packet, from: SocketAddrV4, step: Step, batch: &mut Batch) {
        // A client that repeats itself while its address is asked for gets one
        // answer, to its last question.
        let offered = step.reply.as_ref().map(|reply| reply.packet.yiaddr);
        if let Some(waiting) = offered.and_then(|address| self.held.0.get_mut(&address))
            && waiting.packet.mac == packet.mac
            && step.record.is_none()
        {
            waiting.packet = packet;
            waiting.step = step;
            return;
        }
        let (Some(address), Some(arp)) = (step.ask_first, self.arp) else {
            return batch.add(step);
        };
        if self.held.0.len() >= ARP_QUESTIONS {
            return batch.add(step);
        }
        arp.ask(address);
        let waiting = Waiting {
            packet,
            from,
            step,
            until: Instant::now() + ARP_PAUSE,
            asked: 1,
        };
        self.held.0.insert(address, waiting);
    }

    /// Puts an address aside that somebody else uses, and offers another one.
    fn conflict(
        &mut self,
        waiting: Waiting,
        address: Ipv4Addr,
        user: MacAddr,
        now: Timestamp,
        batch: &mut Batch,
    ) {
        let Waiting { packet, from, .. } = waiting;
        let mac = packet.mac;
        tracing::warn!(%mac, %address, %user, "address is in use by another host");
        let declined = self.engine.conflict(mac, address, now);
        batch.later.records.extend(declined);
        if let Some(message) = packet.options.message_type() {
            batch.now.events.push(BootEvent::Dhcp {
                request: request_of(&packet, Protocol::Dhcp),
                xid: packet.xid,
                message: DhcpMessage::V4(message),
                outcome: DhcpOutcome::Noted {
                    note: format!("{address} is in use by {user}, kept back for an hour"),
                },
            });
        }
        let decide = |request: &_| self.source.decide(request);
        let step = self.engine.handle(&packet, Port::Dhcp, from, now, decide);
        self.settle(packet, from, step, batch);
    }
}

async fn heard(arp: Option<&Arp>) -> (Ipv4Addr, MacAddr) {
    let Some(arp) = arp else {
        return std::future::pending().await;
    };
    loop {
        match arp.heard().await {
            Ok(heard) => return heard,
            // The interface went down; offers go out unasked until it is back.
            Err(error) => {
                tracing::debug!(%error, "ARP not heard");
                tokio::time::sleep(ARP_PAUSE).await;
            }
        }
    }
}

async fn readable(socket: Option<&UdpSocket>) -> io::Result<&UdpSocket> {
    match socket {
        Some(socket) => socket.readable().await.map(|()| socket),
        None => std::future::pending().await,
    }
}

async fn send(socket: &UdpSocket, server: Ipv4Addr, reply: &Reply) {
    let to = match reply.to {
        Destination::Broadcast => SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT),
        Destination::Unicast(to) => to,
    };
    let bytes = reply.packet.encode();
    if let Err(error) = send_from(socket, server, to, &bytes).await {
        tracing::warn!(%to, mac = %reply.packet.mac, %error, "DHCP reply not sent");
    }
}

/// Sends with our identifier as source address: with several addresses on the
/// interface the kernel would take its first, and relays and firmware drop what
/// comes from another address than they know.
async fn send_from(
    socket: &UdpSocket,
    server: Ipv4Addr,
    to: SocketAddrV4,
    bytes: &[u8],
) -> io::Result<()> {
    let info = in_pktinfo {
        ipi_ifindex: 0,
        ipi_spec_dst: nix::libc::in_addr {
            s_addr: u32::from(server).to_be(),
        },
        ipi_addr: nix::libc::in_addr { s_addr: 0 },
    };
    let message = || {
        let (source, to) = (
            [ControlMessage::Ipv4PacketInfo(&info)],
            SockaddrIn::from(to),
        );
        let content = [IoSlice::new(bytes)];
        let flags = MsgFlags::empty();
        sendmsg(socket.as_raw_fd(), &content, &source, flags, Some(&to))?;
        Ok(())
    };
    match socket.async_io(Interest::WRITABLE, message).await {
        // The address is not on this machine (yet).
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            socket.send_to(bytes, to).await.map(drop)
        }
        sent => sent,
    }
}
