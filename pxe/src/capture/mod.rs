//! Packet captures (classic pcap, Ethernet, IPv4 and IPv6, UDP): taken from an interface, kept in
//! a file, and told in words: what a machine and its boot servers said to one another.
//!
//! For the operator's `debug capture` and `debug decode`, and for the tests: what real
//! firmware sent is kept as a capture with its telling beside it.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use model::id::MacAddr;

use crate::dhcp::packet::Packet;
use crate::dhcp6;
use crate::dhcp6::packet::IaNa;

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
    pub from: SocketAddr,
    /// Where it went.
    pub to: SocketAddr,
    /// Bytes of its content on the wire.
    pub length: usize,
    /// Its content, as far as it was captured.
    pub payload: Vec<u8>,
}

impl Datagram {
    /// Reads an Ethernet frame, if it is UDP: a whole datagram, or its first fragment. UDP
    /// over IPv6 is found right behind the fixed header only.
    #[must_use]
    pub fn of_frame(frame: &[u8], micros: u64) -> Option<Self> {
        let ip = frame.get(14..)?;
        let (from, to, udp) = match be16(frame, 12)? {
            0x0800 => {
                let header = usize::from(ip.first()? & 15) * 4;
                // UDP, and the first fragment or the only one.
                if *ip.get(9)? != UDP || be16(ip, 6)? & 0x1fff != 0 {
                    return None;
                }
                (v4(ip, 12)?, v4(ip, 16)?, ip.get(header..)?)
            }
            0x86dd => {
                if *ip.get(6)? != UDP {
                    return None;
                }
                (v6(ip, 8)?, v6(ip, 24)?, ip.get(40..)?)
            }
            _ => return None,
        };
        let length = usize::from(be16(udp, 4)?);
        Some(Self {
            micros,
            from: SocketAddr::new(from, be16(udp, 0)?),
            to: SocketAddr::new(to, be16(udp, 2)?),
            length: length.checked_sub(8)?,
            payload: udp.get(8..length.min(udp.len()))?.to_vec(),
        })
    }

    /// Whether it is to or from a server of network boot that speaks DHCP.
    #[must_use]
    pub fn is_dhcp(&self) -> bool {
        let ports = [self.from.port(), self.to.port()];
        let of = |port: &u16| match self.to {
            SocketAddr::V4(_) => matches!(port, 67 | 68 | 4011),
            SocketAddr::V6(_) => matches!(port, 546 | 547),
        };
        ports.iter().any(of)
    }

    /// Whether it asks for a file by TFTP.
    #[must_use]
    pub fn opens_transfer(&self) -> bool {
        self.to.port() == 69
    }
}

/// Protocol number.
const UDP: u8 = 17;

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn v4(bytes: &[u8], at: usize) -> Option<IpAddr> {
    let octets: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(octets.into())
}

fn v6(bytes: &[u8], at: usize) -> Option<IpAddr> {
    let octets: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
    Some(octets.into())
}

/// Picks what concerns one machine: its DHCP by its MAC address, as relays change those
/// of frames, and the rest by the addresses that DHCP gave it.
#[derive(Debug)]
pub struct Filter {
    mac: MacAddr,
    addresses: HashSet<IpAddr>,
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
            let [from, to] = [datagram.from, datagram.to].map(|end| end.ip());
            return self.addresses.contains(&from) || self.addresses.contains(&to);
        }
        let given = match (datagram.from.ip(), datagram.to.ip()) {
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let client = if datagram.to.port() == 547 { from } else { to };
                given6(&datagram.payload, client)
            }
            _ => given4(&datagram.payload),
        };
        let Some((_, addresses)) = given.filter(|(mac, _)| *mac == self.mac) else {
            return false;
        };
        let known = addresses.iter().filter(|one| !one.is_unspecified());
        self.addresses.extend(known);
        true
    }
}

/// Whom a DHCP message concerns, and the addresses that it names.
fn given4(payload: &[u8]) -> Option<(MacAddr, Vec<IpAddr>)> {
    let packet = Packet::parse(payload).ok()?;
    let addresses = [packet.yiaddr, packet.ciaddr].map(IpAddr::V4);
    Some((packet.mac, addresses.to_vec()))
}

/// The same of DHCPv6; `client` is the end that is not the server.
fn given6(payload: &[u8], client: std::net::Ipv6Addr) -> Option<(MacAddr, Vec<IpAddr>)> {
    let packet = dhcp6::packet::Packet::parse(payload).ok()?;
    let request = dhcp6::policy::request_of(&packet, client)?;
    let associations = packet.message.options.all(dhcp6::packet::IA_NA);
    let addresses = associations
        .filter_map(|value| IaNa::parse(value)?.addresses().ok())
        .flatten();
    Some((request.mac, addresses.map(IpAddr::V6).collect()))
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
            port in prop_oneof![Just(67u16), Just(69), Just(547)], six in any::<bool>(),
            payload in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let to = match six {
                true => SocketAddr::from(([0xfe80, 0, 0, 0, 0, 0, 0, 1], port)),
                false => SocketAddr::from(([255; 4], port)),
            };
            let length = payload.len();
            let _ = tell(&[Datagram { micros: 0, from: to, to, length, payload }]);
        }
    }
}
