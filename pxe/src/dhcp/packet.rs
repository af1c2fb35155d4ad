//! The DHCPv4 message on the wire: fixed fields, magic cookie, options.

use std::net::Ipv4Addr;

use model::id::MacAddr;
use thiserror::Error;

use super::options::{self, Options};

const FIXED: usize = 236;
const MAGIC: [u8; 4] = [99, 130, 83, 99];
const SNAME: std::ops::Range<usize> = 44..108;
const FILE: std::ops::Range<usize> = 108..236;

/// The smallest message that is sent: some BOOTP relays and boot ROMs drop
/// anything shorter than the 300 bytes of RFC 951 with its vendor area.
const MIN_LENGTH: usize = 300;

/// Direction of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// From client to server (1).
    Request,
    /// From server to client (2).
    Reply,
}

/// One DHCPv4 message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Direction.
    pub op: Op,
    /// Relays passed so far.
    pub hops: u8,
    /// Transaction, chosen by the client.
    pub xid: u32,
    /// Seconds since the client began, as it says.
    pub secs: u16,
    /// The client asks that replies be broadcast.
    pub broadcast: bool,
    /// Address that the client already uses.
    pub ciaddr: Ipv4Addr,
    /// Address that the client is given.
    pub yiaddr: Ipv4Addr,
    /// Server of the next step of the boot.
    pub siaddr: Ipv4Addr,
    /// Relay that the message came through, or zero.
    pub giaddr: Ipv4Addr,
    /// Hardware address of the client.
    pub mac: MacAddr,
    /// Server name field, up to its first zero byte.
    pub sname: Vec<u8>,
    /// Boot file field, up to its first zero byte.
    pub file: Vec<u8>,
    /// Options in the order in which they stand.
    pub options: Options,
}

/// Why bytes are not a message that this library answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Malformed {
    /// Shorter than the fixed fields and the magic cookie.
    #[error("{0} bytes, expected at least 240")]
    Short(usize),
    /// Neither request nor reply.
    #[error("operation {0}, expected 1 or 2")]
    Op(u8),
    /// Not an Ethernet client.
    #[error("hardware type {kind} with {length} address bytes, expected Ethernet")]
    Hardware {
        /// Hardware type of the message.
        kind: u8,
        /// Length of the hardware address.
        length: u8,
    },
    /// BOOTP without DHCP's options, or noise.
    #[error("no DHCP magic cookie")]
    Cookie,
    /// An option runs past the end of the field that holds it.
    #[error("option {0} runs past the end of its field")]
    Option(u8),
}

impl Packet {
    /// Returns an empty reply to `request`: what a server must copy from it is
    /// copied, everything else is zero.
    #[must_use]
    pub fn reply_to(request: &Self) -> Self {
        Self {
            op: Op::Reply,
            hops: 0,
            xid: request.xid,
            secs: 0,
            broadcast: request.broadcast,
            ciaddr: Ipv4Addr::UNSPECIFIED,
            yiaddr: Ipv4Addr::UNSPECIFIED,
            siaddr: Ipv4Addr::UNSPECIFIED,
            giaddr: request.giaddr,
            mac: request.mac,
            sname: Vec::new(),
            file: Vec::new(),
            options: Options::default(),
        }
    }

    /// Parses one message.
    ///
    /// Options in the `file` and `sname` fields (option 52) are read too, and an
    /// option that stands several times is joined (RFC 3396). A missing end
    /// option is accepted.
    ///
    /// # Errors
    /// [`Malformed`] says what is wrong. No bytes make it panic.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        if bytes.len() < FIXED + MAGIC.len() {
            return Err(Malformed::Short(bytes.len()));
        }
        let op = match bytes[0] {
            1 => Op::Request,
            2 => Op::Reply,
            other => return Err(Malformed::Op(other)),
        };
        // Type 6 is IEEE 802: some virtual and wireless adapters say so.
        if !matches!(bytes[1], 1 | 6) || bytes[2] != 6 {
            return Err(Malformed::Hardware {
                kind: bytes[1],
                length: bytes[2],
            });
        }
        if bytes[FIXED..FIXED + 4] != MAGIC {
            return Err(Malformed::Cookie);
        }
        let mut mac = [0; 6];
        mac.copy_from_slice(&bytes[28..34]);

        let mut options = Options::default();
        options.read(&bytes[FIXED + 4..])?;
        let overload = match options.get(options::OVERLOAD) {
            Some([flags]) => *flags,
            _ => 0,
        };
        // RFC 3396, section 5: options, then file, then sname.
        if overload & 1 != 0 {
            options.read(&bytes[FILE])?;
        }
        if overload & 2 != 0 {
            options.read(&bytes[SNAME])?;
        }
        Ok(Self {
            op,
            hops: bytes[3],
            xid: be32(bytes, 4),
            secs: be16(bytes, 8),
            broadcast: be16(bytes, 10) & 0x8000 != 0,
            ciaddr: be32(bytes, 12).into(),
            yiaddr: be32(bytes, 16).into(),
            siaddr: be32(bytes, 20).into(),
            giaddr: be32(bytes, 24).into(),
            mac: MacAddr(mac),
            sname: if overload & 2 == 0 {
                text(&bytes[SNAME])
            } else {
                Vec::new()
            },
            file: if overload & 1 == 0 {
                text(&bytes[FILE])
            } else {
                Vec::new()
            },
            options,
        })
    }

    /// Returns the bytes to send, at least 300 of them.
    ///
    /// A `sname` or `file` that is too long for its field is left out of the
    /// field; the caller gives it as option 66 or 67 then.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; FIXED];
        out[0] = match self.op {
            Op::Request => 1,
            Op::Reply => 2,
        };
        out[1] = 1;
        out[2] = 6;
        out[3] = self.hops;
        out[4..8].copy_from_slice(&self.xid.to_be_bytes());
        out[8..10].copy_from_slice(&self.secs.to_be_bytes());
        let flags: u16 = if self.broadcast { 0x8000 } else { 0 };
        out[10..12].copy_from_slice(&flags.to_be_bytes());
        out[12..16].copy_from_slice(&self.ciaddr.octets());
        out[16..20].copy_from_slice(&self.yiaddr.octets());
        out[20..24].copy_from_slice(&self.siaddr.octets());
        out[24..28].copy_from_slice(&self.giaddr.octets());
        out[28..34].copy_from_slice(&self.mac.0);
        // One byte of each field is kept for the terminating zero.
        for (field, value) in [(SNAME, &self.sname), (FILE, &self.file)] {
            if value.len() < field.len() {
                out[field.start..field.start + value.len()].copy_from_slice(value);
            }
        }
        out.extend_from_slice(&MAGIC);
        self.options.write(&mut out);
        if out.len() < MIN_LENGTH {
            out.resize(MIN_LENGTH, 0);
        }
        out
    }
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn text(field: &[u8]) -> Vec<u8> {
    field
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default()
        .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dhcp::options::MessageType;
    use proptest::prelude::*;

    fn sample() -> Packet {
        let mut packet = Packet {
            op: Op::Request,
            hops: 1,
            xid: 0xdead_beef,
            secs: 4,
            broadcast: true,
            ciaddr: Ipv4Addr::UNSPECIFIED,
            yiaddr: Ipv4Addr::UNSPECIFIED,
            siaddr: Ipv4Addr::UNSPECIFIED,
            giaddr: Ipv4Addr::new(10, 9, 0, 1),
            mac: MacAddr([0x52, 0x54, 0, 1, 2, 3]),
            sname: Vec::new(),
            file: b"boot.efi".to_vec(),
            options: Options::default(),
        };
        packet.options.set_message_type(MessageType::Discover);
        packet
            .options
            .set(options::VENDOR_CLASS, b"PXEClient:Arch:00007:UNDI:003000");
        packet
    }

    #[test]
    fn an_encoded_message_has_the_layout_of_rfc_2131() {
        let bytes = sample().encode();
        assert_eq!(bytes.len(), 300);
        assert_eq!(
            &bytes[..12],
            &[1, 1, 6, 1, 0xde, 0xad, 0xbe, 0xef, 0, 4, 0x80, 0]
        );
        assert_eq!(&bytes[24..34], &[10, 9, 0, 1, 0x52, 0x54, 0, 1, 2, 3]);
        assert_eq!(&bytes[108..117], b"boot.efi\0");
        assert_eq!(&bytes[236..245], &[99, 130, 83, 99, 53, 1, 1, 60, 32]);
        assert_eq!(Packet::parse(&bytes), Ok(sample()));
    }

    #[test]
    fn options_in_the_file_and_sname_fields_are_read() {
        let mut bytes = sample().encode();
        bytes[108..236].fill(0);
        bytes[108..112].copy_from_slice(&[67, 1, b'x', 255]);
        bytes[44..48].copy_from_slice(&[66, 1, b'y', 255]);
        bytes.truncate(240);
        bytes.extend_from_slice(&[53, 1, 1, 52, 1, 3, 255]);
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!(packet.options.get(67), Some(&b"x"[..]));
        assert_eq!(packet.options.get(66), Some(&b"y"[..]));
        assert_eq!((packet.file.len(), packet.sname.len()), (0, 0));
    }

    #[test]
    fn what_is_not_a_dhcp_message_says_why() {
        let good = sample().encode();
        let with = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            Packet::parse(&bytes).unwrap_err()
        };
        assert_eq!(Packet::parse(&good[..239]), Err(Malformed::Short(239)));
        assert_eq!(with(0, 9), Malformed::Op(9));
        assert_eq!(
            with(1, 32),
            Malformed::Hardware {
                kind: 32,
                length: 6
            }
        );
        assert_eq!(
            with(2, 16),
            Malformed::Hardware {
                kind: 1,
                length: 16
            }
        );
        assert_eq!(with(236, 0), Malformed::Cookie);
        assert_eq!(Packet::parse(&good[..250]), Err(Malformed::Option(60)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..700)) {
            let _ = Packet::parse(&bytes);
        }

        #[test]
        fn no_damage_to_a_message_makes_the_parser_panic(
            edits in proptest::collection::vec((0usize..340, any::<u8>()), 0..24),
            cut in 0usize..340,
        ) {
            let mut bytes = sample().encode();
            bytes.resize(340, 0);
            for (at, value) in edits {
                bytes[at] = value;
            }
            bytes.truncate(cut.max(236));
            if let Ok(packet) = Packet::parse(&bytes) {
                // What was understood can be said again.
                prop_assert!(Packet::parse(&packet.encode()).is_ok());
            }
        }

        #[test]
        fn a_message_survives_the_wire(
            xid in any::<u32>(), secs in any::<u16>(), broadcast in any::<bool>(),
            addresses in any::<[u32; 4]>(), mac in any::<[u8; 6]>(),
            file in proptest::collection::vec(1u8.., 0..127),
            values in proptest::collection::btree_map(
                (1u8..255).prop_filter("overload changes the layout", |code| *code != 52),
                proptest::collection::vec(any::<u8>(), 1..600), 0..8),
        ) {
            let mut packet = sample();
            packet.options = Options::default();
            (packet.xid, packet.secs, packet.broadcast, packet.file) = (xid, secs, broadcast, file);
            [packet.ciaddr, packet.yiaddr, packet.siaddr, packet.giaddr] = addresses.map(Ipv4Addr::from);
            packet.mac = MacAddr(mac);
            for (code, value) in &values {
                packet.options.set(*code, value);
            }
            prop_assert_eq!(Packet::parse(&packet.encode()), Ok(packet));
        }
    }
}
