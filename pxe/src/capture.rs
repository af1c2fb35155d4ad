//! Reads packet captures (classic pcap, Ethernet, IPv4, UDP) and tells in words
//! what a machine and its boot servers said to one another.
//!
//! For the operator's `debug decode` and for the tests: what real firmware sent is
//! kept as a capture with its telling beside it.

use std::collections::HashSet;
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddrV4};

use thiserror::Error;

use crate::dhcp::options::{self, MessageType};
use crate::dhcp::packet::{Op, Packet};
use crate::tftp;

/// One UDP datagram of a capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// Microseconds since the first packet of the capture, of whatever kind.
    pub micros: u64,
    /// Where it came from.
    pub from: SocketAddrV4,
    /// Where it went.
    pub to: SocketAddrV4,
    /// Its content, as far as it was captured.
    pub payload: Vec<u8>,
}

/// Why a file is not a capture that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BadCapture {
    /// Not the classic pcap format.
    #[error("not a pcap file (pcapng is not read; hint: tcpdump -w writes pcap)")]
    Format,
    /// Not Ethernet.
    #[error("link type {0}, expected Ethernet (1)")]
    Link(u32),
}

/// Returns the UDP datagrams of a capture. What is no whole UDP over IPv4 is left
/// out, and a capture that was cut off ends with its last whole packet.
///
/// # Errors
/// [`BadCapture`].
pub fn read(bytes: &[u8]) -> Result<Vec<Datagram>, BadCapture> {
    let magic: [u8; 4] = bytes
        .get(..4)
        .and_then(|m| m.try_into().ok())
        .ok_or(BadCapture::Format)?;
    let (big, nanos) = match magic {
        [0xd4, 0xc3, 0xb2, 0xa1] => (false, false),
        [0xa1, 0xb2, 0xc3, 0xd4] => (true, false),
        [0x4d, 0x3c, 0xb2, 0xa1] => (false, true),
        [0xa1, 0xb2, 0x3c, 0x4d] => (true, true),
        _ => return Err(BadCapture::Format),
    };
    let number = |bytes: &[u8], at: usize| -> Option<u32> {
        let field = bytes.get(at..at + 4)?.try_into().ok()?;
        Some(if big {
            u32::from_be_bytes(field)
        } else {
            u32::from_le_bytes(field)
        })
    };
    match number(bytes, 20) {
        Some(1) => {}
        Some(other) => return Err(BadCapture::Link(other)),
        None => return Err(BadCapture::Format),
    }
    let (mut rest, mut start, mut datagrams) = (&bytes[24..], None, Vec::new());
    while let (Some(seconds), Some(fraction), Some(length)) =
        (number(rest, 0), number(rest, 4), number(rest, 8))
    {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let Some(frame) = rest.get(16..).and_then(|rest| rest.get(..length)) else {
            break;
        };
        rest = &rest[16 + length..];
        let micros = u64::from(if nanos { fraction / 1000 } else { fraction });
        let time = u64::from(seconds) * 1_000_000 + micros;
        let since = time.saturating_sub(*start.get_or_insert(time));
        datagrams.extend(datagram(frame, since));
    }
    Ok(datagrams)
}

fn datagram(frame: &[u8], micros: u64) -> Option<Datagram> {
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
    Some(Datagram {
        micros,
        from: SocketAddrV4::new(address(ip, 12)?, be16(udp, 0)?),
        to: SocketAddrV4::new(address(ip, 16)?, be16(udp, 2)?),
        payload: udp.get(8..length.min(udp.len()))?.to_vec(),
    })
}

/// Returns the telling of datagrams, a paragraph for each.
#[must_use]
pub fn tell(datagrams: &[Datagram]) -> String {
    let mut out = String::new();
    // TFTP has its port in the first message only.
    let mut transfers: HashSet<SocketAddrV4> = HashSet::new();
    for Datagram {
        micros,
        from,
        to,
        payload,
    } in datagrams
    {
        let seconds = micros / 1_000_000;
        let _ = write!(
            out,
            "{seconds:3}.{:06} {from} -> {to}  ",
            micros % 1_000_000
        );
        let ports = [from.port(), to.port()];
        if ports.iter().any(|port| matches!(port, 67 | 68 | 4011)) {
            tell_dhcp(payload, &mut out);
        } else if to.port() == 69 || transfers.contains(from) || transfers.contains(to) {
            if to.port() == 69 {
                transfers.insert(*from);
            }
            tell_tftp(payload, &mut out);
        } else {
            let _ = writeln!(out, "{} bytes", payload.len());
        }
    }
    out
}

fn tell_dhcp(payload: &[u8], out: &mut String) {
    let packet = match Packet::parse(payload) {
        Ok(packet) => packet,
        Err(error) => {
            let _ = writeln!(out, "not a DHCP message: {error}");
            return;
        }
    };
    let kind = packet
        .options
        .message_type()
        .map_or("without type", MessageType::name);
    let flags = if packet.broadcast { " broadcast" } else { "" };
    let side = match packet.op {
        Op::Request => "from",
        Op::Reply => "to",
    };
    let Packet { mac, xid, secs, .. } = packet;
    let _ = writeln!(
        out,
        "DHCP {kind} {side} {mac} xid {xid:08x} secs {secs}{flags}"
    );
    for (name, address) in [
        ("ciaddr", packet.ciaddr),
        ("yiaddr", packet.yiaddr),
        ("siaddr", packet.siaddr),
        ("giaddr", packet.giaddr),
    ] {
        if !address.is_unspecified() {
            let _ = writeln!(out, "    {name} {address}");
        }
    }
    for (name, text) in [("sname", &packet.sname), ("file", &packet.file)] {
        if !text.is_empty() {
            let _ = writeln!(out, "    {name} {}", text.escape_ascii());
        }
    }
    for (code, value) in packet
        .options
        .iter()
        .filter(|(code, _)| *code != options::MESSAGE_TYPE)
    {
        let _ = writeln!(out, "    option {code} {}", option(code, value));
    }
}

/// Returns the name and value of an option.
fn option(code: u8, value: &[u8]) -> String {
    let name = match code {
        options::SUBNET_MASK => "subnet mask",
        options::ROUTERS => "routers",
        options::NAME_SERVERS => "name servers",
        options::REQUESTED_ADDRESS => "requested address",
        options::SERVER_ID => "server identifier",
        options::LEASE_TIME => "lease seconds",
        options::RENEWAL_TIME => "renewal seconds",
        options::REBINDING_TIME => "rebinding seconds",
        options::MAX_SIZE => "largest message",
        options::CLIENT_ARCH => "architecture",
        options::PARAMETERS => "wishes",
        options::VENDOR_CLASS => "vendor class",
        options::USER_CLASS => "user class",
        options::TFTP_SERVER => "tftp server",
        options::BOOT_FILE => "boot file",
        options::MESSAGE => "message",
        options::DOMAIN_NAME => "domain name",
        options::VENDOR => "vendor options",
        options::CLIENT_UUID => "machine identifier",
        94 => "network interface",
        _ => "",
    };
    let list = |separator: &str, items: Vec<String>| items.join(separator);
    let text = match (code, value.len()) {
        (1 | 3 | 6 | 50 | 54, length) if length % 4 == 0 => list(
            " ",
            value
                .chunks_exact(4)
                .map(|a| Ipv4Addr::new(a[0], a[1], a[2], a[3]).to_string())
                .collect(),
        ),
        (51 | 57..=59 | 93, 1..=8) => value
            .iter()
            .fold(0u64, |number, byte| number << 8 | u64::from(*byte))
            .to_string(),
        (options::PARAMETERS, _) => list(" ", value.iter().map(u8::to_string).collect()),
        (12 | 15 | 17 | 56 | 60 | 66 | 67 | 77, _) => value.escape_ascii().to_string(),
        _ => list(
            " ",
            value.iter().map(|byte| format!("{byte:02x}")).collect(),
        ),
    };
    if name.is_empty() {
        text
    } else {
        format!("({name}) {text}")
    }
}

fn tell_tftp(payload: &[u8], out: &mut String) {
    use tftp::packet::Packet;
    let pairs = |options: &[(String, String)]| -> String {
        options
            .iter()
            .map(|(name, value)| format!(" {name}={value}"))
            .collect()
    };
    let _ = match tftp::packet::Packet::parse(payload) {
        Ok(Packet::Read(request)) => {
            let tftp::packet::Request {
                path,
                mode,
                options,
            } = request;
            writeln!(out, "TFTP read {path} {mode}{}", pairs(&options))
        }
        Ok(Packet::Write(request)) => writeln!(out, "TFTP write {}", request.path),
        Ok(Packet::Data { block }) => {
            writeln!(
                out,
                "TFTP data {block}, {} bytes",
                payload.len().saturating_sub(4)
            )
        }
        Ok(Packet::Ack { block }) => writeln!(out, "TFTP acknowledge {block}"),
        Ok(Packet::Error { code, message }) => writeln!(out, "TFTP error {code} {message:?}"),
        Ok(Packet::OptionAck(options)) => writeln!(out, "TFTP grant{}", pairs(&options)),
        Err(error) => writeln!(out, "not a TFTP message: {error}"),
    };
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
            let _ = tell(&[Datagram { micros: 0, from: to, to, payload }]);
        }
    }
}
