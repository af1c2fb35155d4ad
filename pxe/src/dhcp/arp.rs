//! Asks by ARP whether somebody uses an address, before it is offered (RFC 2131,
//! section 2.2, in the way of RFC 5227).
//!
//! Not by ping: a host with a firewall does not answer that, and every host must
//! answer ARP.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

use model::id::MacAddr;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use crate::interface::link_address;

const ETHERTYPE: u16 = 0x0806;
/// Ethernet header and ARP for IPv4 over Ethernet.
const FRAME: usize = 14 + 28;

/// Where ARP is spoken on one interface.
#[derive(Debug)]
pub(super) struct Arp {
    /// A packet socket. tokio has no type for those; sending and receiving without
    /// addresses is the same for both.
    socket: UdpSocket,
    mac: MacAddr,
}

impl Arp {
    /// Opens the interface; needs `CAP_NET_RAW`.
    pub(super) fn open(interface: &str) -> io::Result<Self> {
        let link = link_address(interface)?;
        let mac = link.addr().ok_or(io::ErrorKind::NotFound)?;
        let protocol = Protocol::from(i32::from(ETHERTYPE.to_be()));
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))?;
        socket.set_nonblocking(true)?;
        nix::sys::socket::bind(socket.as_raw_fd(), &link)?;
        Ok(Self {
            socket: UdpSocket::from_std(socket.into())?,
            mac: MacAddr(mac),
        })
    }

    /// Asks who has an address. A question that cannot be sent is as good as one
    /// that was lost.
    pub(super) fn ask(&self, address: Ipv4Addr) {
        let sent = self.socket.try_send(&question(self.mac, address));
        if let Err(error) = sent {
            tracing::debug!(%address, %error, "ARP question not sent");
        }
    }

    /// Returns what is heard next: who uses which address.
    pub(super) async fn heard(&self) -> io::Result<(Ipv4Addr, MacAddr)> {
        // A longer frame is cut: ARP is padded.
        let mut frame = [0; FRAME];
        loop {
            let length = self.socket.recv(&mut frame).await?;
            if let Some(heard) = user(&frame[..length]) {
                return Ok(heard);
            }
        }
    }
}

/// The probe of RFC 5227: its sender claims no address, so that nobody who hears
/// it remembers a wrong one.
fn question(mac: MacAddr, address: Ipv4Addr) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac.0);
    frame[12..14].copy_from_slice(&ETHERTYPE.to_be_bytes());
    // Ethernet, IPv4, lengths of their addresses, request.
    frame[14..22].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
    frame[22..28].copy_from_slice(&mac.0);
    frame[38..42].copy_from_slice(&address.octets());
    frame
}

/// Returns who uses which address, by an answer or by a word of its own.
fn user(frame: &[u8]) -> Option<(Ipv4Addr, MacAddr)> {
    let arp = frame.get(14..FRAME)?;
    if frame[12..14] != ETHERTYPE.to_be_bytes() || arp[..6] != [0, 1, 8, 0, 6, 4] {
        return None;
    }
    let mac: [u8; 6] = arp[8..14].try_into().ok()?;
    let address: [u8; 4] = arp[14..18].try_into().ok()?;
    let address = Ipv4Addr::from(address);
    (!address.is_unspecified()).then_some((address, MacAddr(mac)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);

    #[test]
    fn a_question_claims_nothing_and_an_answer_names_its_user() {
        let mut frame = question(MAC, ADDRESS);
        assert_eq!(user(&frame), None, "a probe uses no address");
        // What the host at the address makes of it.
        frame[21] = 2;
        frame[22..28].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
        frame[28..32].copy_from_slice(&ADDRESS.octets());
        let host = MacAddr([2, 0, 0, 0, 0, 9]);
        assert_eq!(user(&frame), Some((ADDRESS, host)));
        assert_eq!(user(&frame[..41]), None, "cut short");
        frame[16] = 0x86;
        assert_eq!(user(&frame), None, "not IPv4");
    }

    proptest! {
        #[test]
        fn no_frame_makes_the_reader_panic(
            frame in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let _ = user(&frame);
        }
    }
}
