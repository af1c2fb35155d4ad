//! Asks whether a DHCP server answers on a network.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use model::id::MacAddr;
use thiserror::Error;

use super::options::{self, MessageType, Options};
use super::packet::{Op, Packet};
use super::policy::{CLIENT_PORT, SERVER_PORT};
use super::server::{BindError, bind};
use crate::interface::link_address;

/// Why the question could not be asked.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// The client port cannot be had.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The interface does not exist or has no Ethernet address.
    #[error("read the hardware address of interface {0}")]
    Interface(String, #[source] io::Error),
    /// Sending or receiving failed.
    #[error("ask for DHCP servers on interface {0}")]
    Ask(String, #[source] io::Error),
}

/// Long enough for every server known: dnsmasq pings an address for three seconds
/// before it offers it for the first time.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Returns the identifier of the first DHCP server that answers on `interface`
/// within `timeout`, best [`PROBE_TIMEOUT`].
///
/// Sends DHCPDISCOVER, and DHCPREQUEST for an address of a documentation network,
/// which servers with authority refuse at once; both twice, in case one is lost.
/// Takes no lease. Must run before an own server starts there, or it finds that
/// one. `xid` should be random.
///
/// # Errors
/// [`ProbeError`]: an answer could not have been heard, which is not "no server".
pub async fn probe(
    interface: &str,
    xid: u32,
    timeout: Duration,
) -> Result<Option<Ipv4Addr>, ProbeError> {
    let mac = hardware_address(interface)
        .map_err(|error| ProbeError::Interface(interface.to_owned(), error))?;
    let socket = bind(interface, CLIENT_PORT)?;
    let failed = |error| ProbeError::Ask(interface.to_owned(), error);
    let listen = async {
        let mut buffer = vec![0; 2048];
        loop {
            let length = socket.recv(&mut buffer).await?;
            if let Some(server) = server_in(&buffer[..length], mac, xid) {
                return io::Result::Ok(server);
            }
        }
    };
    let mut listen = std::pin::pin!(listen);
    for _ in 0..2 {
        let to = SocketAddrV4::new(Ipv4Addr::BROADCAST, SERVER_PORT);
        for question in [discover(mac, xid), reboot(mac, xid)] {
            socket
                .send_to(&question.encode(), to)
                .await
                .map_err(failed)?;
        }
        if let Ok(heard) = tokio::time::timeout(timeout / 2, &mut listen).await {
            return heard.map(Some).map_err(failed);
        }
    }
    Ok(None)
}

fn discover(mac: MacAddr, xid: u32) -> Packet {
    let mut options = Options::default();
    options.set_message_type(MessageType::Discover);
    options.set(
        options::PARAMETERS,
        [options::SUBNET_MASK, options::ROUTERS],
    );
    Packet {
        op: Op::Request,
        hops: 0,
        xid,
        secs: 0,
        // We have no address that the offered one could be unicast to.
        broadcast: true,
        ciaddr: Ipv4Addr::UNSPECIFIED,
        yiaddr: Ipv4Addr::UNSPECIFIED,
        siaddr: Ipv4Addr::UNSPECIFIED,
        giaddr: Ipv4Addr::UNSPECIFIED,
        mac,
        sname: Vec::new(),
        file: Vec::new(),
        options,
    }
}

/// What a client asks that had an address before it was switched off; here one of
/// TEST-NET-1 (RFC 5737), that no server can grant.
fn reboot(mac: MacAddr, xid: u32) -> Packet {
    let mut packet = discover(mac, xid);
    packet.options.set_message_type(MessageType::Request);
    packet
        .options
        .set_addresses(options::REQUESTED_ADDRESS, &[Ipv4Addr::new(192, 0, 2, 1)]);
    packet
}

/// Returns the server of an offer of an address, or of a refusal. A proxyDHCP
/// server sends neither and does not count: it may stand beside us.
fn server_in(bytes: &[u8], mac: MacAddr, xid: u32) -> Option<Ipv4Addr> {
    let packet = Packet::parse(bytes).ok()?;
    let ours = packet.op == Op::Reply && packet.xid == xid && packet.mac == mac;
    let serves = match packet.options.message_type()? {
        MessageType::Offer => !packet.yiaddr.is_unspecified(),
        MessageType::Nak => true,
        _ => false,
    };
    (ours && serves)
        .then(|| packet.options.address(options::SERVER_ID))
        .flatten()
}

fn hardware_address(interface: &str) -> io::Result<MacAddr> {
    let address = link_address(interface)?.addr();
    address
        .map(MacAddr)
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_offer_of_an_address_or_a_refusal_to_us_counts() {
        let mac = MacAddr([2, 0, 0, 0, 0, 1]);
        let mut offer = Packet::reply_to(&discover(mac, 7));
        offer.options.set_message_type(MessageType::Offer);
        offer
            .options
            .set_addresses(options::SERVER_ID, &[Ipv4Addr::new(10, 0, 0, 1)]);
        assert_eq!(server_in(&offer.encode(), mac, 7), None, "proxyDHCP");
        offer.yiaddr = Ipv4Addr::new(10, 0, 0, 9);
        assert_eq!(
            server_in(&offer.encode(), mac, 7),
            Some(Ipv4Addr::new(10, 0, 0, 1))
        );
        assert_eq!(
            server_in(&offer.encode(), mac, 8),
            None,
            "another transaction"
        );
        assert_eq!(
            server_in(&discover(mac, 7).encode(), mac, 7),
            None,
            "a question"
        );
    }
}
