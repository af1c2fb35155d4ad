//! The router advertisement (RFC 4861): "this network is on your link, ask by DHCPv6".
//!
//! Firmware asks for no address without it, and takes nobody for a neighbour whose
//! network no router has named. We are no router: the lifetime of ours as one is zero.

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::time::Duration;

use model::id::MacAddr;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use super::policy::PREFIX;
use crate::interface::link_address;

/// How often everybody is told who did not ask.
pub(super) const INTERVAL: Duration = Duration::from_secs(200);
/// How long what is told holds. It ends soon after the factory went away.
const LIFETIME: u32 = 1800;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

const SOLICITATION: u8 = 133;
const ADVERTISEMENT: u8 = 134;

/// Addresses by DHCPv6, and everything else too.
const MANAGED_AND_OTHER: u8 = 0x80 | 0x40;
/// The prefix is on the link; no addresses are to be formed of it.
const ON_LINK: u8 = 0x80;

/// Where routers are asked for, and answered, on one interface.
#[derive(Debug)]
pub(super) struct Advertiser {
    /// A raw socket of ICMPv6. tokio has no type for those; sending and receiving is
    /// the same for both.
    socket: UdpSocket,
    index: u32,
    message: Vec<u8>,
}

impl Advertiser {
    /// Opens the interface; needs `CAP_NET_RAW`.
    pub(super) fn open(interface: &str, server: Ipv6Addr) -> io::Result<Self> {
        let link = link_address(interface)?;
        let mac = link.addr().ok_or(io::ErrorKind::NotFound)?;
        let index = u32::try_from(link.ifindex()).map_err(io::Error::other)?;
        let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
        socket.set_nonblocking(true)?;
        socket.bind_device(Some(interface.as_bytes()))?;
        // Section 4.2: from elsewhere it would not arrive with 255.
        socket.set_multicast_hops_v6(255)?;
        socket.set_multicast_loop_v6(false)?;
        socket.join_multicast_v6(&ALL_ROUTERS, index)?;
        Ok(Self {
            socket: UdpSocket::from_std(socket.into())?,
            index,
            message: message(server, MacAddr(mac)),
        })
    }

    /// Tells everybody. What cannot be sent is as good as lost: whoever needs it asks.
    pub(super) fn tell(&self) {
        let to = SocketAddrV6::new(ALL_NODES, 0, 0, self.index);
        if let Err(error) = self.socket.try_send_to(&self.message, to.into()) {
            tracing::debug!(%error, "router advertisement not sent");
        }
    }

    /// Returns when somebody asks.
    pub(super) async fn asked(&self) -> io::Result<()> {
        let mut message = [0; 64];
        loop {
            let length = self.socket.recv(&mut message).await?;
            if let [SOLICITATION, 0, ..] = message[..length] {
                return Ok(());
            }
        }
    }
}

/// Section 4.2; the kernel fills in the checksum.
fn message(server: Ipv6Addr, mac: MacAddr) -> Vec<u8> {
    let mut out = vec![ADVERTISEMENT, 0, 0, 0];
    out.extend([64, MANAGED_AND_OTHER]);
    // No router, and no opinion on the two timers of neighbour discovery.
    out.extend([0; 10]);
    // Source link-layer address.
    out.extend([1, 1]);
    out.extend(mac.0);
    // Prefix information.
    out.extend([3, 4, PREFIX, ON_LINK]);
    out.extend(LIFETIME.to_be_bytes());
    out.extend(LIFETIME.to_be_bytes());
    out.extend([0; 4]);
    out.extend(&server.octets()[..8]);
    out.extend([0; 8]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_names_the_network_and_makes_no_router_of_us() {
        let bytes = message("fd77::1".parse().unwrap(), MacAddr([2, 0, 0, 0, 0, 1]));
        assert_eq!(bytes.len(), 16 + 8 + 32);
        assert_eq!(bytes[5], 0xc0, "ask by DHCPv6");
        assert_eq!(&bytes[6..8], [0, 0], "lifetime as a router");
        assert_eq!(&bytes[16..24], [1, 1, 2, 0, 0, 0, 0, 1]);
        assert_eq!(&bytes[24..28], [3, 4, 64, 0x80]);
        assert_eq!(&bytes[40..48], [0xfd, 0x77, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&bytes[48..], [0; 8], "no bits beyond the prefix");
    }
}
