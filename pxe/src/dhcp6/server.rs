//! The sockets around [`Engine`].

use std::future::Future;
use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::time::Duration;

use model::id::MacAddr;
use socket2::{Domain, Protocol as SocketProtocol, Socket, Type};
use thiserror::Error;
use tokio::net::UdpSocket;
use tokio::time::Instant;

use super::advertisement::{Advertiser, INTERVAL};
use super::duid::Duid;
use super::packet::Packet;
use super::policy::{Config, ConfigError, Engine, SERVER_PORT};
use crate::boot::BootSource;
use crate::dhcp::server::BindError;
use crate::interface::{has_address, link_address};

/// Whom clients and the relays next to them ask.
pub(super) const ALL_SERVERS_AND_RELAYS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
/// Whom relays ask.
const ALL_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 1, 3);

/// The shortest time between two advertisements: whoever asks in a flood is answered
/// with the others. RFC 4861 has three seconds for links of routers; firmware waits
/// for the answer.
const PAUSE: Duration = Duration::from_secs(1);

/// The sockets that a server answers on.
#[derive(Debug)]
pub struct Sockets {
    dhcp: UdpSocket,
    advertiser: Option<Advertiser>,
    mac: MacAddr,
}

impl Sockets {
    /// Binds port 547 on one interface only, and ICMPv6 where the server advertises.
    ///
    /// # Errors
    /// [`BindError`]: the port is taken, the right to bind it is missing, or the
    /// interface has not the server's address.
    pub fn bind(interface: &str, config: &Config) -> Result<Self, BindError> {
        let failed = |what: &str| {
            let (what, interface) = (what.to_owned(), interface.to_owned());
            move |source| BindError {
                what,
                interface,
                source,
            }
        };
        let address = format!("address {}", config.server);
        match has_address(interface, config.server) {
            Ok(true) => Ok(()),
            Ok(false) => Err(io::ErrorKind::AddrNotAvailable.into()),
            Err(error) => Err(error),
        }
        .map_err(failed(&address))?;
        let mac = link_address(interface).and_then(|link| {
            let mac = link.addr().ok_or(io::ErrorKind::NotFound)?;
            Ok((MacAddr(mac), link.ifindex()))
        });
        let (mac, index) = mac.map_err(failed("its hardware address"))?;
        let advertiser = config
            .advertise
            .then(|| Advertiser::open(interface, config.server));
        let dhcp = bind(interface, SERVER_PORT).and_then(|socket| {
            let index = u32::try_from(index).map_err(io::Error::other)?;
            socket.join_multicast_v6(&ALL_SERVERS_AND_RELAYS, index)?;
            socket.join_multicast_v6(&ALL_SERVERS, index)?;
            Ok(socket)
        });
        Ok(Self {
            dhcp: dhcp.map_err(failed("UDP port 547 (IPv6)"))?,
            advertiser: advertiser.transpose().map_err(failed("ICMPv6"))?,
            mac,
        })
    }
}

/// Returns a socket of all IPv6 addresses, tied to one interface.
pub(super) fn bind(interface: &str, port: u16) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(SocketProtocol::UDP))?;
    socket.set_nonblocking(true)?;
    socket.set_only_v6(true)?;
    if port != SERVER_PORT {
        // The host's own DHCP client may sit there.
        socket.set_reuse_address(true)?;
    }
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    UdpSocket::from_std(socket.into())
}

/// Why the server stopped.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The configuration has a mistake.
    #[error("check the DHCPv6 configuration")]
    Config(#[source] ConfigError),
    /// A socket broke.
    #[error("receive DHCPv6 messages")]
    Receive(#[source] io::Error),
}

/// Answers until `shutdown` is done.
///
/// Messages that are no DHCPv6 are dropped with a debug log line; everything else is
/// told to the source.
///
/// # Errors
/// [`ServeError`]. A reply that cannot be sent is logged and is no error: the client
/// asks again.
pub async fn run(
    sockets: Sockets,
    config: Config,
    source: Arc<dyn BootSource>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let Sockets {
        dhcp,
        advertiser,
        mac,
    } = sockets;
    let mut engine = Engine::new(config, Duid::of_mac(mac)).map_err(ServeError::Config)?;
    let mut shutdown = std::pin::pin!(shutdown);
    let mut advertise = std::pin::pin!(advertise(advertiser.as_ref()));
    let mut buffer = vec![0; 64 << 10];
    loop {
        let received = tokio::select! {
            () = &mut shutdown => return Ok(()),
            () = &mut advertise => unreachable!("it goes on for ever"),
            received = dhcp.recv_from(&mut buffer) => received,
        };
        match received {
            Ok((length, SocketAddr::V6(from))) => {
                answer(&mut engine, &buffer[..length], from, &*source, &dhcp).await;
            }
            Ok(_) => {}
            // An ICMP error that an earlier reply met.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(ServeError::Receive(error)),
        }
    }
}

async fn answer(
    engine: &mut Engine,
    bytes: &[u8],
    from: SocketAddrV6,
    source: &dyn BootSource,
    socket: &UdpSocket,
) {
    let packet = match Packet::parse(bytes) {
        Ok(packet) => packet,
        Err(error) => {
            tracing::debug!(%from, %error, "not a DHCPv6 message");
            return;
        }
    };
    let step = engine.handle(&packet, from, |request| source.decide(request));
    if let Some(reply) = step.reply
        && let Err(error) = socket.send_to(&reply.packet.encode(), reply.to).await
    {
        tracing::warn!(to = %reply.to, %error, "DHCPv6 reply not sent");
    }
    if let Some(event) = step.event {
        tracing::debug!(%event, "dhcpv6");
        source.observe(&event);
    }
}

/// Tells the link now and then that we are here, and whoever asks.
async fn advertise(advertiser: Option<&Advertiser>) {
    let Some(advertiser) = advertiser else {
        return std::future::pending().await;
    };
    let mut next = Instant::now();
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            asked = advertiser.asked() => {
                // The interface went down; it is told again when it is back.
                if let Err(error) = asked {
                    tracing::debug!(%error, "router solicitations not heard");
                }
                let told = next.checked_sub(INTERVAL).unwrap_or(next);
                tokio::time::sleep_until(told + PAUSE).await;
            }
        }
        advertiser.tell();
        next = Instant::now() + INTERVAL;
    }
}
