//! The sockets around [`Engine`]: receives in batches, makes leases durable once
//! for each batch, then answers.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;

use jiff::Timestamp;
use socket2::{Domain, Protocol as SocketProtocol, Socket, Type};
use thiserror::Error;
use tokio::net::UdpSocket;

use super::lease::{LeaseRecord, LeaseStore};
use super::packet::Packet;
use super::policy::{CLIENT_PORT, Config, ConfigError, Destination, Engine, Mode, Port, Reply};
use super::policy::{PROXY_PORT, SERVER_PORT};
use crate::boot::{BootEvent, BootSource};

/// Messages answered after one sync of the lease store.
const BATCH: usize = 512;
/// Room for messages that arrive while leases are made durable.
const RECEIVE_BUFFER: usize = 4 << 20;

/// The sockets that a server answers on.
#[derive(Debug)]
pub struct Sockets {
    /// Port 67.
    pub dhcp: UdpSocket,
    /// Port 4011, for a proxy.
    pub proxy: Option<UdpSocket>,
}

impl Sockets {
    /// Binds the ports that a mode needs, on one interface only.
    ///
    /// # Errors
    /// [`BindError`]: the port is taken, or the right to bind it is missing.
    pub fn bind(interface: &str, mode: &Mode) -> Result<Self, BindError> {
        let proxy = match mode {
            Mode::Authoritative(_) => None,
            Mode::Proxy => Some(bind(interface, PROXY_PORT)?),
        };
        Ok(Self {
            dhcp: bind(interface, SERVER_PORT)?,
            proxy,
        })
    }
}

/// A port cannot be had.
#[derive(Debug, Error)]
#[error("bind UDP port {port} on interface {interface}")]
pub struct BindError {
    /// The port.
    pub port: u16,
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
        port,
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
    let mut shutdown = std::pin::pin!(shutdown);
    let mut buffer = vec![0; 64 << 10];
    loop {
        let (port, socket) = tokio::select! {
            () = &mut shutdown => return Ok(()),
            ready = sockets.dhcp.readable() => {
                ready.map_err(ServeError::Receive)?;
                (Port::Dhcp, &sockets.dhcp)
            }
            ready = readable(sockets.proxy.as_ref()) => {
                (Port::Proxy, ready.map_err(ServeError::Receive)?)
            }
        };
        let mut batch = Batch::default();
        for _ in 0..BATCH {
            match socket.try_recv_from(&mut buffer) {
                Ok((length, SocketAddr::V4(from))) => {
                    answer(
                        &mut engine,
                        &buffer[..length],
                        port,
                        from,
                        clock(),
                        &*source,
                        &mut batch,
                    );
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
        if !batch.records.is_empty() {
            let records = std::mem::take(&mut batch.records);
            let stored = tokio::task::spawn_blocking(move || {
                let result = store.append(&records);
                (store, result)
            });
            let (back, result) = stored.await.expect("a lease store does not panic");
            store = back;
            result.map_err(ServeError::Store)?;
        }
        for reply in batch.replies {
            send(socket, &reply).await;
        }
        for event in batch.events {
            tracing::debug!(%event, "dhcp");
            source.observe(&event);
        }
    }
}

#[derive(Default)]
struct Batch {
    records: Vec<LeaseRecord>,
    replies: Vec<Reply>,
    events: Vec<BootEvent>,
}

fn answer(
    engine: &mut Engine,
    bytes: &[u8],
    port: Port,
    from: SocketAddrV4,
    now: Timestamp,
    source: &dyn BootSource,
    batch: &mut Batch,
) {
    let packet = match Packet::parse(bytes) {
        Ok(packet) => packet,
        Err(error) => {
            tracing::debug!(%from, %error, "not a DHCP message");
            return;
        }
    };
    let step = engine.handle(&packet, port, from, now, |request| source.decide(request));
    batch.records.extend(step.record);
    batch.replies.extend(step.reply);
    batch.events.extend(step.event);
}

async fn readable(socket: Option<&UdpSocket>) -> io::Result<&UdpSocket> {
    match socket {
        Some(socket) => socket.readable().await.map(|()| socket),
        None => std::future::pending().await,
    }
}

async fn send(socket: &UdpSocket, reply: &Reply) {
    let to = match reply.to {
        Destination::Broadcast => SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT),
        Destination::Unicast(to) => to,
    };
    if let Err(error) = socket.send_to(&reply.packet.encode(), to).await {
        tracing::warn!(%to, mac = %reply.packet.mac, %error, "DHCP reply not sent");
    }
}
