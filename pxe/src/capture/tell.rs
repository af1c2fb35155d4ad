//! Datagrams in words.

use std::collections::HashMap;
use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Datagram;
use crate::dhcp::options::{self, MessageType};
use crate::dhcp::packet::{Op, Packet};
use crate::dhcp6::duid::Duid;
use crate::dhcp6::packet as packet6;
use crate::tftp;

/// Returns the telling of datagrams, a paragraph for each.
#[must_use]
pub fn tell(datagrams: &[Datagram]) -> String {
    let mut teller = Teller::default();
    datagrams.iter().map(|one| teller.tell(one)).collect()
}

/// Tells datagrams one after the other.
#[derive(Debug, Default)]
pub struct Teller {
    condensed: bool,
    /// By the client's end, as TFTP has its port in the first message only.
    transfers: HashMap<SocketAddr, Transfer>,
}

/// A file on its way by TFTP.
#[derive(Debug)]
struct Transfer {
    block_size: usize,
    sent: Option<Sent>,
}

/// The data of a transfer.
#[derive(Debug)]
struct Sent {
    server: SocketAddr,
    begun: u64,
    latest: u64,
    blocks: u64,
    bytes: usize,
    /// Number of the last block, as on the wire.
    last: u16,
    /// Blocks out of their turn: repeated, or after a loss.
    again: u64,
    acknowledged: Option<u16>,
    whole: bool,
    told: bool,
}

impl Teller {
    /// A teller for people: the blocks of a TFTP transfer are summed up in one line,
    /// told with the last of them.
    #[must_use]
    pub fn condensed() -> Self {
        Self {
            condensed: true,
            ..Self::default()
        }
    }

    /// Returns what is to be told once this datagram is known, with its time and its two
    /// ends; it may be nothing.
    pub fn tell(&mut self, datagram: &Datagram) -> String {
        let mut out = String::new();
        let Datagram { from, to, .. } = datagram;
        if datagram.opens_transfer() {
            if let Some(before) = self.transfers.remove(from) {
                before.tell(*from, &mut out);
            }
        } else if self.condensed {
            let client = if self.transfers.contains_key(to) {
                to
            } else {
                from
            };
            if let Some(transfer) = self.transfers.get_mut(client) {
                if transfer.note(datagram, *client) {
                    transfer.tell_end(*client, &mut out);
                    return out;
                }
                transfer.tell_now(*client, &mut out);
            }
        }
        tell_way(datagram.micros, *from, *to, &mut out);
        out.push_str(&self.words(datagram));
        out
    }

    /// Returns what a datagram says, by itself.
    pub fn words(&mut self, datagram: &Datagram) -> String {
        let mut out = String::new();
        let Datagram { from, to, .. } = datagram;
        if datagram.opens_transfer() {
            self.transfers.entry(*from).or_default();
        }
        if datagram.is_dhcp() {
            match datagram.to {
                SocketAddr::V4(_) => tell_dhcp(&datagram.payload, &mut out),
                SocketAddr::V6(_) => tell_dhcp6(&datagram.payload, &mut out),
            }
        } else if [from, to]
            .iter()
            .any(|end| self.transfers.contains_key(end))
        {
            tell_tftp(datagram, &mut out);
        } else {
            let _ = writeln!(out, "{} bytes", datagram.length);
        }
        out
    }

    /// Tells of the transfers that have not come to their end.
    #[must_use]
    pub fn end(self) -> String {
        let mut out = String::new();
        if self.condensed {
            let mut transfers: Vec<_> = self.transfers.into_iter().collect();
            transfers.sort_by_key(|(client, _)| *client);
            for (client, transfer) in transfers {
                transfer.tell(client, &mut out);
            }
        }
        out
    }
}

impl Default for Transfer {
    fn default() -> Self {
        Self {
            // Without options (RFC 1350).
            block_size: 512,
            sent: None,
        }
    }
}

impl Transfer {
    /// Takes note of a datagram. Returns whether it is one of those that are summed up.
    fn note(&mut self, datagram: &Datagram, client: SocketAddr) -> bool {
        use tftp::packet::Packet;
        match Packet::parse(&datagram.payload) {
            Ok(Packet::OptionAck(options)) => {
                let granted = options.iter().find(|(name, _)| name == "blksize");
                if let Some(size) = granted.and_then(|(_, size)| size.parse().ok()) {
                    self.block_size = size;
                }
                false
            }
            Ok(Packet::Data { block }) if datagram.to == client => {
                self.data(datagram, block);
                true
            }
            Ok(Packet::Ack { block }) => match &mut self.sent {
                Some(sent) => {
                    sent.acknowledged = Some(block);
                    true
                }
                None => false,
            },
            _ => false,
        }
    }

    fn data(&mut self, datagram: &Datagram, block: u16) {
        // On the host that sends, several blocks of one call may be seen before the
        // network card cuts them up.
        let datagram_size = self.block_size.saturating_add(4);
        let count = datagram.length.div_ceil(datagram_size).max(1);
        let bytes = datagram.length.saturating_sub(4 * count);
        let sent = self.sent.get_or_insert(Sent {
            server: datagram.from,
            begun: datagram.micros,
            latest: 0,
            blocks: 0,
            bytes: 0,
            last: 0,
            again: 0,
            acknowledged: None,
            whole: false,
            told: false,
        });
        sent.latest = datagram.micros;
        let number = u64::try_from(count).unwrap_or(u64::MAX);
        if block == sent.last.wrapping_add(1) {
            sent.blocks += number;
            sent.bytes = sent.bytes.saturating_add(bytes);
            let low = u16::try_from(number & 0xffff).unwrap_or(0);
            sent.last = sent.last.wrapping_add(low);
            // A file ends with a block that is not full.
            sent.whole |= datagram.length < count.saturating_mul(datagram_size);
        } else {
            sent.again += number;
        }
    }

    /// Tells of the data when its end has come.
    fn tell_end(&mut self, client: SocketAddr, out: &mut String) {
        if self
            .sent
            .as_ref()
            .is_some_and(|sent| sent.whole && sent.acknowledged == Some(sent.last))
        {
            self.tell_now(client, out);
        }
    }

    fn tell_now(&mut self, client: SocketAddr, out: &mut String) {
        if let Some(sent) = self.sent.as_mut().filter(|sent| !sent.told) {
            sent.told = true;
            sent.tell(client, out);
        }
    }

    fn tell(mut self, client: SocketAddr, out: &mut String) {
        self.tell_now(client, out);
    }
}

impl Sent {
    fn tell(&self, client: SocketAddr, out: &mut String) {
        tell_way(self.latest, self.server, client, out);
        let millis = self.latest.saturating_sub(self.begun) / 1000;
        let _ = write!(
            out,
            "TFTP data, {} blocks, {} bytes in {}.{:03} s",
            self.blocks,
            self.bytes,
            millis / 1000,
            millis % 1000
        );
        if self.again > 0 {
            let _ = write!(out, ", {} out of turn", self.again);
        }
        let _ = match self.acknowledged {
            Some(block) if block == self.last && self.whole => writeln!(out, ", complete"),
            Some(block) => writeln!(
                out,
                ", not complete: block {} is the last, {block} the last acknowledged",
                self.last
            ),
            None => writeln!(out, ", none acknowledged"),
        };
    }
}

fn tell_way(micros: u64, from: SocketAddr, to: SocketAddr, out: &mut String) {
    let (seconds, micros) = (micros / 1_000_000, micros % 1_000_000);
    let _ = write!(out, "{seconds:3}.{micros:06} {from} -> {to}  ");
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

fn tell_dhcp6(payload: &[u8], out: &mut String) {
    let packet = match packet6::Packet::parse(payload) {
        Ok(packet) => packet,
        Err(error) => {
            let _ = writeln!(out, "not a DHCPv6 message: {error}");
            return;
        }
    };
    let packet6::Message {
        kind,
        transaction,
        options,
    } = &packet.message;
    let kind = kind.name();
    let _ = writeln!(out, "DHCPv6 {kind} transaction {transaction:06x}");
    for packet6::Relay {
        hops,
        link,
        peer,
        options,
    } in &packet.relays
    {
        let _ = writeln!(out, "    relay {hops}, link {link}, for {peer}");
        for (code, value) in options.iter() {
            let _ = writeln!(out, "      option {code} {}", option6(code, value));
        }
    }
    for (code, value) in options.iter() {
        let _ = writeln!(out, "    option {code} {}", option6(code, value));
        let inside = (code == packet6::IA_NA)
            .then(|| packet6::Options::parse(value.get(12..)?).ok())
            .flatten();
        for (code, value) in inside.iter().flat_map(packet6::Options::iter) {
            let _ = writeln!(out, "      option {code} {}", option6(code, value));
        }
    }
}

/// Returns the name and value of an option of DHCPv6.
fn option6(code: u16, value: &[u8]) -> String {
    let address = |bytes: &[u8; 16]| Ipv6Addr::from(*bytes).to_string();
    let number = |bytes: &[u8]| -> String {
        let bytes: Option<[u8; 4]> = bytes.try_into().ok();
        bytes.map_or_else(String::new, |bytes| u32::from_be_bytes(bytes).to_string())
    };
    let codes = |value: &[u8]| -> String {
        let (codes, _) = value.as_chunks();
        let codes = codes
            .iter()
            .map(|code| u16::from_be_bytes(*code).to_string());
        codes.collect::<Vec<_>>().join(" ")
    };
    let hex = |value: &[u8]| -> String {
        let bytes: Vec<_> = value.iter().map(|byte| format!("{byte:02x}")).collect();
        bytes.join(" ")
    };
    let identifier =
        |value: &[u8]| Duid::new(value).map_or_else(|| hex(value), |duid| duid.to_string());
    let (name, text) = match (code, value) {
        (packet6::CLIENT_ID, value) => ("client identifier", identifier(value)),
        (packet6::SERVER_ID, value) => ("server identifier", identifier(value)),
        (packet6::IA_NA, [a, b, c, d, ..]) => {
            let iaid = u32::from_be_bytes([*a, *b, *c, *d]);
            ("association", format!("{iaid:08x}"))
        }
        (packet6::IA_ADDR, value) => match value.split_first_chunk::<16>() {
            Some((bytes, times)) => {
                let valid = number(times.get(4..8).unwrap_or_default());
                ("address", format!("{} for {valid} s", address(bytes)))
            }
            None => ("address", hex(value)),
        },
        (packet6::REQUESTED, value) => ("wishes", codes(value)),
        (packet6::CLIENT_ARCH, value) => ("architecture", codes(value)),
        (packet6::PREFERENCE, [value]) => ("preference", value.to_string()),
        (packet6::STATUS, [high, low, words @ ..]) => {
            let code = u16::from_be_bytes([*high, *low]);
            ("status", format!("{code} {}", words.escape_ascii()))
        }
        (packet6::VENDOR_CLASS, [_, _, _, _, _, _, text @ ..]) => {
            ("vendor class", text.escape_ascii().to_string())
        }
        (packet6::USER_CLASS, [_, _, text @ ..]) => ("user class", text.escape_ascii().to_string()),
        (packet6::INTERFACE_ID, value) => ("interface", value.escape_ascii().to_string()),
        (packet6::BOOT_FILE_URL, value) => ("boot file", value.escape_ascii().to_string()),
        (packet6::NAME_SERVERS, value) => {
            let (addresses, _) = value.as_chunks();
            let addresses: Vec<_> = addresses.iter().map(address).collect();
            ("name servers", addresses.join(" "))
        }
        (packet6::CLIENT_LINK_LAYER, value) => ("hardware address", hex(value)),
        (_, value) => return hex(value),
    };
    format!("({name}) {text}")
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
        options::CLIENT_ID => "client identifier",
        options::RELAY_AGENT => "relay agent",
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
        (options::RELAY_AGENT, _) => relay_agent(value),
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

/// Returns what a relay tells, part by part.
fn relay_agent(mut rest: &[u8]) -> String {
    let mut parts = Vec::new();
    while let [code, length, list @ ..] = rest {
        let Some((value, more)) = list.split_at_checked(usize::from(*length)) else {
            parts.push("cut short".to_owned());
            break;
        };
        let name = match *code {
            options::RELAY_CIRCUIT => "circuit".to_owned(),
            options::RELAY_REMOTE => "remote".to_owned(),
            options::RELAY_LINK => "link".to_owned(),
            options::RELAY_SERVER_ID => "server identifier".to_owned(),
            other => format!("part {other}"),
        };
        parts.push(format!("{name} {}", value.escape_ascii()));
        rest = more;
    }
    parts.join(", ")
}

fn tell_tftp(datagram: &Datagram, out: &mut String) {
    use tftp::packet::Packet;
    let payload = &datagram.payload;
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
                datagram.length.saturating_sub(4)
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

    fn end(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn said(micros: u64, from: &str, to: &str, payload: &[u8]) -> Datagram {
        Datagram {
            micros,
            from: end(from),
            to: end(to),
            length: payload.len(),
            payload: payload.to_vec(),
        }
    }

    /// The last lines of a condensed telling of a transfer with blocks of 8 bytes.
    fn transfer(rest: &[(bool, &[u8])]) -> Vec<String> {
        let (server, client) = ("10.0.0.1:3000", "10.0.0.2:2000");
        let mut teller = Teller::condensed();
        let request = said(0, client, "10.0.0.1:69", b"\0\x01a\0octet\0blksize\x008\0");
        let mut text = teller.tell(&request);
        text += &teller.tell(&said(1000, server, client, b"\0\x06blksize\x008\0"));
        text += &teller.tell(&said(2000, client, server, b"\0\x04\0\0"));
        for ((from_server, payload), second) in rest.iter().zip(1..) {
            let (from, to) = if *from_server {
                (server, client)
            } else {
                (client, server)
            };
            text += &teller.tell(&said(second * 1_000_000, from, to, payload));
        }
        text += &teller.end();
        text.lines().skip(3).map(str::to_owned).collect()
    }

    #[test]
    fn the_blocks_of_a_transfer_are_one_line_that_says_how_it_ended() {
        let one: (bool, &[u8]) = (true, b"\0\x03\0\x0112345678");
        let two: (bool, &[u8]) = (true, b"\0\x03\0\x0212");
        let acked = |block: &'static [u8]| (false, block);
        let whole = [one, acked(b"\0\x04\0\x01"), two, acked(b"\0\x04\0\x02")];
        assert_eq!(
            transfer(&whole),
            [
                "  3.000000 10.0.0.1:3000 -> 10.0.0.2:2000  TFTP data, 2 blocks, 10 bytes in 2.000 s, complete"
            ]
        );
        // Both blocks as they leave a host whose card cuts them; then silence.
        let both: (bool, &[u8]) = (true, b"\0\x03\0\x0112345678\0\x03\0\x0212345678");
        assert_eq!(
            transfer(&[both, one, acked(b"\0\x04\0\x01")]),
            [
                "  2.000000 10.0.0.1:3000 -> 10.0.0.2:2000  TFTP data, 2 blocks, 16 bytes in 1.000 s, 1 out of turn, not complete: block 2 is the last, 1 the last acknowledged"
            ]
        );
        // An error is told where it stands, after what came before it.
        let lines = transfer(&[one, acked(b"\0\x05\0\0full\0")]);
        assert!(lines[0].ends_with("none acknowledged"), "{lines:?}");
        assert!(lines[1].ends_with("TFTP error 0 \"full\""), "{lines:?}");
        assert_eq!(lines.len(), 2);
    }
}
