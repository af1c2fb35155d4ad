//! Packet captures (classic pcap, Ethernet, IPv4, UDP): taken from an interface, kept in
//! a file, and told in words: what a machine and its boot servers said to one another.
//!
//! For the operator's `debug capture` and `debug decode`, and for the tests: what real
//! firmware sent is kept as a capture with its telling beside it.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddrV4};

use model::id::MacAddr;

use crate::dhcp::packet::Packet;

mod file;
mod tap;
mod tell;

pub use file::{BadCapture, Writer, read};
pub use tap::Tap;
pub use tell::{Teller, tell};

/// One UDP datagram of a capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// Microseconds since the first packet of the capture, of whatever kind.
    pub micros: u64,
    /// Where it came from.
    pub from: SocketAddrV4,
    /// Where it went.
    pub to: SocketAddrV4,
    /// Bytes of its content on the wire.
    pub length: usize,
    /// Its content, as far as it was captured.
    pub payload: Vec<u8>,
}

impl Datagram {
    /// Reads an Ethernet frame, if it is UDP over IPv4: a whole datagram, or its first
    /// fragment.
    #[must_use]
    pub fn of_frame(frame: &[u8], micros: u64) -> Option<Self> {
        let be16 = |bytes: &[u8], at: usize| -> Option<u16> {
            Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
        };
        let address = |bytes: &[u8], at: usize| -> Option<Ipv4Addr> {
            let octets: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
            Some(octets.into())
        };
        if be16(frame, 12)? != 0x0800 {
            return None;
        }
        let ip = frame.get(14..)?;
        let header = usize::from(ip.first()? & 15) * 4;
        // UDP, and the first fragment or the only one.
        if *ip.get(9)? != 17 || be16(ip, 6)? & 0x1fff != 0 {
            return None;
        }
        let udp = ip.get(header..)?;
        let length = usize::from(be16(udp, 4)?);
        Some(Self {
            micros,
            from: SocketAddrV4::new(address(ip, 12)?, be16(udp, 0)?),
            to: SocketAddrV4::new(address(ip, 16)?, be16(udp, 2)?),
            length: length.checked_sub(8)?,
            payload: udp.get(8..length.min(udp.len()))?.to_vec(),
        })
    }

    /// Whether it is to or from a server of network boot that speaks DHCP.
    #[must_use]
    pub fn is_dhcp(&self) -> bool {
        let ports = [self.from.port(), self.to.port()];
        ports.iter().any(|port| matches!(port, 67 | 68 | 4011))
    }

    /// Whether it asks for a file by TFTP.
    #[must_use]
    pub fn opens_transfer(&self) -> bool {
        self.to.port() == 69
    }
}

/// Picks what concerns one machine: its DHCP by its MAC address, as relays change those
/// of frames, and the rest by the addresses that DHCP gave it.
#[derive(Debug)]
pub struct Filter {
    mac: MacAddr,
    addresses: HashSet<Ipv4Addr>,
}

impl Filter {
    /// A filter for the machine with this card.
    #[must_use]
    pub fn new(mac: MacAddr) -> Self {
        Self {
            mac,
            addresses: HashSet::new(),
        }
    }

    /// Whether a datagram concerns the machine, as far as can be known by now.
    pub fn takes(&mut self, datagram: &Datagram) -> bool {
        if !datagram.is_dhcp() {
            let [from, to] = [datagram.from, datagram.to].map(|end| *end.ip());
            return self.addresses.contains(&from) || self.addresses.contains(&to);
        }
        let Ok(packet) = Packet::parse(&datagram.payload) else {
            return false;
        };
        if packet.mac != self.mac {
            return false;
        }
        let known = [packet.yiaddr, packet.ciaddr];
        self.addresses
            .extend(known.iter().filter(|address| !address.is_unspecified()));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(
            body in proptest::collection::vec(any::<u8>(), 0..400), lengths in any::<bool>(),
        ) {
            let mut file = vec![0xd4, 0xc3, 0xb2, 0xa1];
            file.extend_from_slice(&[0; 16]);
            file.extend_from_slice(&[1, 0, 0, 0]);
            if lengths {
                // One whole packet, so that the frame is looked at.
                file.extend_from_slice(&[0; 8]);
                let length = u32::try_from(body.len()).unwrap();
                file.extend_from_slice(&length.to_le_bytes());
                file.extend_from_slice(&length.to_le_bytes());
            }
            file.extend_from_slice(&body);
            let _ = tell(&read(&file).unwrap());
            let _ = read(&body);
        }

        #[test]
        fn no_datagram_makes_the_telling_panic(
            port in prop_oneof![Just(67u16), Just(69)],
            payload in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let to = SocketAddrV4::new(Ipv4Addr::BROADCAST, port);
            let length = payload.len();
            let _ = tell(&[Datagram { micros: 0, from: to, to, length, payload }]);
        }
    }
}
