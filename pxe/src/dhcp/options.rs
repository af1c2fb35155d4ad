//! DHCP options: an ordered list of code and bytes, and typed views on it.

use std::net::Ipv4Addr;

use serde::Serialize;

use super::packet::Malformed;

/// Subnet mask.
pub const SUBNET_MASK: u8 = 1;
/// Default gateways.
pub const ROUTERS: u8 = 3;
/// Name servers.
pub const NAME_SERVERS: u8 = 6;
/// Domain name.
pub const DOMAIN_NAME: u8 = 15;
/// Vendor options; for `PXEClient`, the PXE options of the PXE specification.
pub const VENDOR: u8 = 43;
/// Address that the client asks for.
pub const REQUESTED_ADDRESS: u8 = 50;
/// Length of a lease in seconds.
pub const LEASE_TIME: u8 = 51;
/// The `file` and `sname` fields hold options.
pub const OVERLOAD: u8 = 52;
/// Kind of message.
pub const MESSAGE_TYPE: u8 = 53;
/// Server identifier.
pub const SERVER_ID: u8 = 54;
/// Codes that the client would like to get.
pub const PARAMETERS: u8 = 55;
/// Text for the person who reads logs.
pub const MESSAGE: u8 = 56;
/// Largest message that the client takes.
pub const MAX_SIZE: u8 = 57;
/// Renewal time in seconds.
pub const RENEWAL_TIME: u8 = 58;
/// Rebinding time in seconds.
pub const REBINDING_TIME: u8 = 59;
/// Vendor class: `PXEClient…`, `HTTPClient…`.
pub const VENDOR_CLASS: u8 = 60;
/// Client identifier.
pub const CLIENT_ID: u8 = 61;
/// TFTP server name.
pub const TFTP_SERVER: u8 = 66;
/// Boot file name.
pub const BOOT_FILE: u8 = 67;
/// User class: `iPXE`.
pub const USER_CLASS: u8 = 77;
/// Relay agent information.
pub const RELAY_AGENT: u8 = 82;
/// In [`RELAY_AGENT`]: the circuit that the client is on (RFC 3046).
pub const RELAY_CIRCUIT: u8 = 1;
/// In [`RELAY_AGENT`]: the other end of that circuit (RFC 3046).
pub const RELAY_REMOTE: u8 = 2;
/// In [`RELAY_AGENT`]: an address of the network that the client is in (RFC 3527).
pub const RELAY_LINK: u8 = 5;
/// In [`RELAY_AGENT`]: what the server is to call itself (RFC 5107).
pub const RELAY_SERVER_ID: u8 = 11;
/// Client system architecture, RFC 4578.
pub const CLIENT_ARCH: u8 = 93;
/// Client machine identifier, RFC 4578.
pub const CLIENT_UUID: u8 = 97;

const PAD: u8 = 0;
const END: u8 = 255;

/// Kind of a DHCP message (option 53).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum MessageType {
    /// A client looks for servers.
    Discover = 1,
    /// A server offers an address.
    Offer = 2,
    /// A client takes an offer, renews, or asks for the address it had.
    Request = 3,
    /// The client does not want the address: another host uses it.
    Decline = 4,
    /// The lease is granted.
    Ack = 5,
    /// The address is refused.
    Nak = 6,
    /// The client gives its address back.
    Release = 7,
    /// The client has an address and asks for the rest.
    Inform = 8,
}

impl MessageType {
    /// Returns the kind of a code, if it is one that this library knows.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        use MessageType::{Ack, Decline, Discover, Inform, Nak, Offer, Release, Request};
        [Discover, Offer, Request, Decline, Ack, Nak, Release, Inform]
            .into_iter()
            .find(|kind| *kind as u8 == code)
    }

    /// Returns the name as RFC 2131 writes it, without its prefix.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Discover => "DISCOVER",
            Self::Offer => "OFFER",
            Self::Request => "REQUEST",
            Self::Decline => "DECLINE",
            Self::Ack => "ACK",
            Self::Nak => "NAK",
            Self::Release => "RELEASE",
            Self::Inform => "INFORM",
        }
    }
}

/// The options of a message, in their order, each code at most once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options(Vec<(u8, Vec<u8>)>);

impl Options {
    /// Returns the bytes of an option.
    #[must_use]
    pub fn get(&self, code: u8) -> Option<&[u8]> {
        self.0
            .iter()
            .find(|(have, _)| *have == code)
            .map(|(_, value)| value.as_slice())
    }

    /// Sets an option, at the end if it is new. Codes 0 and 255 have no value
    /// and are ignored.
    pub fn set(&mut self, code: u8, value: impl AsRef<[u8]>) {
        if matches!(code, PAD | END) {
            return;
        }
        let value = value.as_ref().to_vec();
        match self.0.iter_mut().find(|(have, _)| *have == code) {
            Some((_, old)) => *old = value,
            None => self.0.push((code, value)),
        }
    }

    /// Takes an option out.
    pub fn remove(&mut self, code: u8) {
        self.0.retain(|(have, _)| *have != code);
    }

    /// Sets an option of one or more addresses; none leaves it out.
    pub fn set_addresses(&mut self, code: u8, addresses: &[Ipv4Addr]) {
        if !addresses.is_empty() {
            self.set(
                code,
                addresses
                    .iter()
                    .flat_map(Ipv4Addr::octets)
                    .collect::<Vec<_>>(),
            );
        }
    }

    /// Sets an option that is a 32-bit number.
    pub fn set_u32(&mut self, code: u8, value: u32) {
        self.set(code, value.to_be_bytes());
    }

    /// Sets the kind of message.
    pub fn set_message_type(&mut self, kind: MessageType) {
        self.set(MESSAGE_TYPE, [kind as u8]);
    }

    /// Returns the kind of message.
    #[must_use]
    pub fn message_type(&self) -> Option<MessageType> {
        match self.get(MESSAGE_TYPE)? {
            [code] => MessageType::from_code(*code),
            _ => None,
        }
    }

    /// Returns an option that is one address; `None` too if its length is wrong.
    #[must_use]
    pub fn address(&self, code: u8) -> Option<Ipv4Addr> {
        let octets: [u8; 4] = self.get(code)?.try_into().ok()?;
        Some(octets.into())
    }

    /// Returns the options with their bytes, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u8, &[u8])> {
        self.0.iter().map(|(code, value)| (*code, value.as_slice()))
    }

    /// Adds the options of one field, joining what stands several times.
    pub(super) fn read(&mut self, mut field: &[u8]) -> Result<(), Malformed> {
        while let [code, rest @ ..] = field {
            match *code {
                PAD => field = rest,
                END => return Ok(()),
                code => {
                    let [length, rest @ ..] = rest else {
                        return Err(Malformed::Option(code));
                    };
                    let length = usize::from(*length);
                    if rest.len() < length {
                        return Err(Malformed::Option(code));
                    }
                    let (value, rest) = rest.split_at(length);
                    match self.0.iter_mut().find(|(have, _)| *have == code) {
                        Some((_, old)) => old.extend_from_slice(value),
                        None => self.0.push((code, value.to_vec())),
                    }
                    field = rest;
                }
            }
        }
        Ok(())
    }

    /// Appends all options and the end mark; long ones in pieces (RFC 3396).
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        for (code, value) in &self.0 {
            if value.is_empty() {
                out.extend_from_slice(&[*code, 0]);
            }
            for piece in value.chunks(255) {
                out.push(*code);
                out.push(u8::try_from(piece.len()).expect("chunks of at most 255"));
                out.extend_from_slice(piece);
            }
        }
        out.push(END);
    }
}

/// Returns a part of the relay agent information. One that runs past its end, and
/// what stands behind it, is not there.
#[must_use]
pub fn of_relay(options: &Options, code: u8) -> Option<&[u8]> {
    let mut rest = options.get(RELAY_AGENT)?;
    while let [have, length, list @ ..] = rest {
        let (value, more) = list.split_at_checked(usize::from(*length))?;
        if *have == code {
            return Some(value);
        }
        rest = more;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_in_pieces_is_joined() {
        let mut options = Options::default();
        options
            .read(&[67, 2, b'a', b'b', 0, 53, 1, 1, 67, 1, b'c', 255, 9, 9])
            .unwrap();
        assert_eq!(options.get(67), Some(&b"abc"[..]));
        assert_eq!(options.message_type(), Some(MessageType::Discover));
        assert_eq!(options.iter().count(), 2);
    }

    #[test]
    fn what_a_relay_tells_is_found_and_a_broken_end_is_not_read() {
        let mut options = Options::default();
        assert_eq!(of_relay(&options, RELAY_CIRCUIT), None);
        options.set(RELAY_AGENT, [1, 2, b'g', b'1', 2, 1, b'x', 5, 4, 10, 0]);
        assert_eq!(of_relay(&options, RELAY_CIRCUIT), Some(&b"g1"[..]));
        assert_eq!(of_relay(&options, RELAY_REMOTE), Some(&b"x"[..]));
        assert_eq!(of_relay(&options, RELAY_LINK), None, "two of four bytes");
        assert_eq!(of_relay(&options, RELAY_SERVER_ID), None);
    }

    #[test]
    fn options_of_wrong_length_are_not_there() {
        let mut options = Options::default();
        options.set(SERVER_ID, [10, 0, 0]);
        options.set(MESSAGE_TYPE, [1, 1]);
        assert_eq!(options.address(SERVER_ID), None);
        assert_eq!(options.message_type(), None);
    }

    #[test]
    fn a_length_beyond_the_field_is_refused() {
        assert_eq!(
            Options::default().read(&[12, 4, 1]),
            Err(Malformed::Option(12))
        );
        assert_eq!(Options::default().read(&[12]), Err(Malformed::Option(12)));
    }
}
