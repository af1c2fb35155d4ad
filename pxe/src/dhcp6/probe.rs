//! Asks whether a DHCPv6 server answers on a network.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use model::id::MacAddr;

use super::duid::Duid;
use super::packet::{self, Message, MessageType, Options, Packet};
use super::policy::{CLIENT_PORT, SERVER_PORT};
use super::server::{ALL_SERVERS_AND_RELAYS, bind};
use crate::dhcp::ProbeError;
use crate::dhcp::server::BindError;
use crate::interface::link_address;

/// Returns the address of the first DHCPv6 server that answers on `interface` within
/// `timeout`, best [`crate::dhcp::PROBE_TIMEOUT`].
///
/// Sends SOLICIT, twice, in case one is lost, and takes no address. Must run before an own
/// server starts there, or it finds that one. `transaction` should be random; 24 bits of
/// it count.
///
/// # Errors
/// [`ProbeError`]: an answer could not have been heard, which is not "no server".
pub async fn probe(
    interface: &str,
    transaction: u32,
    timeout: Duration,
) -> Result<Option<Ipv6Addr>, ProbeError> {
    let link = link_address(interface).and_then(|link| {
        let mac = link.addr().ok_or(io::ErrorKind::NotFound)?;
        let index = u32::try_from(link.ifindex()).map_err(io::Error::other)?;
        Ok((MacAddr(mac), index))
    });
    let (mac, index) = link.map_err(|error| ProbeError::Interface(interface.to_owned(), error))?;
    let socket = bind(interface, CLIENT_PORT).map_err(|source| BindError {
        what: "UDP port 546 (IPv6)".into(),
        interface: interface.to_owned(),
        source,
    })?;
    let transaction = transaction & 0xff_ffff;
    let question = solicit(mac, transaction);
    let to = SocketAddrV6::new(ALL_SERVERS_AND_RELAYS, SERVER_PORT, 0, index);
    let talk = async {
        for _ in 0..2 {
            send(&socket, &question, to).await?;
            let heard = tokio::time::timeout(timeout / 2, advertised(&socket, mac, transaction));
            if let Ok(server) = heard.await {
                return server.map(Some);
            }
        }
        Ok(None)
    };
    // A link-local address that is still being tried out can't be sent from.
    match tokio::time::timeout(timeout, talk).await {
        Ok(told) => told.map_err(|error| ProbeError::Ask(interface.to_owned(), error)),
        Err(_) => Ok(None),
    }
}

/// Sends as soon as the interface has an address to send from.
async fn send(socket: &tokio::net::UdpSocket, question: &[u8], to: SocketAddrV6) -> io::Result<()> {
    loop {
        match socket.send_to(question, to).await {
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            sent => return sent.map(drop),
        }
    }
}

async fn advertised(
    socket: &tokio::net::UdpSocket,
    mac: MacAddr,
    transaction: u32,
) -> io::Result<Ipv6Addr> {
    let mut buffer = vec![0; 2048];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await?;
        let SocketAddr::V6(from) = from else { continue };
        let Ok(Packet { message, .. }) = Packet::parse(&buffer[..length]) else {
            continue;
        };
        let ours = message.options.get(packet::CLIENT_ID) == Some(Duid::of_mac(mac).bytes());
        if ours && message.transaction == transaction && message.kind == MessageType::Advertise {
            return Ok(*from.ip());
        }
    }
}

fn solicit(mac: MacAddr, transaction: u32) -> Vec<u8> {
    let mut options = Options::default();
    options.add(packet::CLIENT_ID, Duid::of_mac(mac).bytes());
    options.add(packet::IA_NA, [0; 12]);
    // No time spent on asking so far (section 21.9).
    options.add(8, [0, 0]);
    let message = Message {
        kind: MessageType::Solicit,
        transaction,
        options,
    };
    let relays = Vec::new();
    Packet { relays, message }.encode()
}
