//! The DHCPv6 message on the wire (RFC 8415, sections 7 to 9), in the envelopes of the
//! relays that it passed.

use std::net::Ipv6Addr;

use serde::Serialize;
use thiserror::Error;

/// Who the client is.
pub const CLIENT_ID: u16 = 1;
/// Who the server is.
pub const SERVER_ID: u16 = 2;
/// Identity association: addresses for one purpose of the client.
pub const IA_NA: u16 = 3;
/// An address, inside an identity association.
pub const IA_ADDR: u16 = 5;
/// Codes that the client would like to get.
pub const REQUESTED: u16 = 6;
/// How much a server wants to be chosen, 0 to 255.
pub const PREFERENCE: u16 = 7;
/// The message inside a relay's envelope.
pub const RELAY_MESSAGE: u16 = 9;
/// Success or failure, with words.
pub const STATUS: u16 = 13;
/// User classes: `iPXE`.
pub const USER_CLASS: u16 = 15;
/// Vendor class: `PXEClient…`, `HTTPClient…`.
pub const VENDOR_CLASS: u16 = 16;
/// Where the client is connected to the relay, to be returned as it came.
pub const INTERFACE_ID: u16 = 18;
/// Name servers (RFC 3646).
pub const NAME_SERVERS: u16 = 23;
/// URL of the boot file (RFC 5970).
pub const BOOT_FILE_URL: u16 = 59;
/// Client system architectures (RFC 5970), the preferred one first.
pub const CLIENT_ARCH: u16 = 61;
/// Hardware address of the client, as the relay next to it saw it (RFC 6939).
pub const CLIENT_LINK_LAYER: u16 = 79;

const RELAY_FORWARD: u8 = 12;
const RELAY_REPLY: u8 = 13;

/// The most relays that a message passes (`HOP_COUNT_LIMIT`).
const MOST_RELAYS: usize = 8;

/// Kind of a DHCPv6 message, without those of relays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum MessageType {
    /// A client looks for servers.
    Solicit = 1,
    /// A server offers.
    Advertise = 2,
    /// A client takes an offer.
    Request = 3,
    /// A client asks whether its addresses fit the link that it is on.
    Confirm = 4,
    /// A client wants its addresses longer, from the server that gave them.
    Renew = 5,
    /// The same, from any server.
    Rebind = 6,
    /// The answer to all but [`MessageType::Solicit`].
    Reply = 7,
    /// A client gives addresses back.
    Release = 8,
    /// Somebody else uses the address.
    Decline = 9,
    /// A server bids its clients to ask.
    Reconfigure = 10,
    /// A client has addresses and asks for the rest.
    InformationRequest = 11,
}

impl MessageType {
    /// Returns the kind of a code.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        use MessageType::{
            Advertise, Confirm, Decline, InformationRequest, Rebind, Reconfigure, Release, Renew,
            Reply, Request, Solicit,
        };
        [
            Solicit,
            Advertise,
            Request,
            Confirm,
            Renew,
            Rebind,
            Reply,
            Release,
            Decline,
            Reconfigure,
            InformationRequest,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == code)
    }

    /// Returns the name as RFC 8415 writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Solicit => "SOLICIT",
            Self::Advertise => "ADVERTISE",
            Self::Request => "REQUEST",
            Self::Confirm => "CONFIRM",
            Self::Renew => "RENEW",
            Self::Rebind => "REBIND",
            Self::Reply => "REPLY",
            Self::Release => "RELEASE",
            Self::Decline => "DECLINE",
            Self::Reconfigure => "RECONFIGURE",
            Self::InformationRequest => "INFORMATION-REQUEST",
        }
    }
}

/// Why bytes are not a message that this library answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Malformed {
    /// Shorter than the fields that every message has.
    #[error("{0} bytes, expected at least {1}")]
    Short(usize, usize),
    /// Not a kind of message that RFC 8415 knows.
    #[error("message type {0}, expected one of RFC 8415")]
    Kind(u8),
    /// An option runs past the end of what holds it.
    #[error("option {0} runs past the end of its message")]
    Option(u16),
    /// Some bytes after the last option.
    #[error("{0} bytes after the last option, too few for one more")]
    Rest(usize),
    /// More relays than a message may pass, or an envelope with nothing in it.
    #[error("a relay's envelope without a message in it")]
    Envelope,
}

/// Options in their order. A code may stand several times: each identity association
/// is an option of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options(Vec<(u16, Vec<u8>)>);

impl Options {
    /// Reads options up to the end of `bytes`.
    ///
    /// # Errors
    /// [`Malformed`] says what is wrong. No bytes make it panic.
    pub fn parse(mut bytes: &[u8]) -> Result<Self, Malformed> {
        let mut options = Vec::new();
        while !bytes.is_empty() {
            let [c0, c1, l0, l1, rest @ ..] = bytes else {
                return Err(Malformed::Rest(bytes.len()));
            };
            let code = u16::from_be_bytes([*c0, *c1]);
            let length = usize::from(u16::from_be_bytes([*l0, *l1]));
            let (value, rest) = rest
                .split_at_checked(length)
                .ok_or(Malformed::Option(code))?;
            options.push((code, value.to_vec()));
            bytes = rest;
        }
        Ok(Self(options))
    }

    /// Returns the bytes of the first option of a code.
    #[must_use]
    pub fn get(&self, code: u16) -> Option<&[u8]> {
        self.all(code).next()
    }

    /// Returns the bytes of all options of a code.
    pub fn all(&self, code: u16) -> impl Iterator<Item = &[u8]> {
        self.iter()
            .filter(move |(have, _)| *have == code)
            .map(|(_, value)| value)
    }

    /// Returns the options with their bytes, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u16, &[u8])> {
        self.0.iter().map(|(code, value)| (*code, value.as_slice()))
    }

    /// Adds an option at the end. Its value is at most 65,535 bytes long: what is longer
    /// is cut, and no option of ours is.
    pub fn add(&mut self, code: u16, value: impl AsRef<[u8]>) {
        let value = value.as_ref();
        let length = value.len().min(usize::from(u16::MAX));
        self.0.push((code, value[..length].to_vec()));
    }

    /// Appends all options.
    pub fn write(&self, out: &mut Vec<u8>) {
        for (code, value) in &self.0 {
            let length = u16::try_from(value.len()).expect("options are at most 65,535 bytes");
            out.extend(code.to_be_bytes());
            out.extend(length.to_be_bytes());
            out.extend(value);
        }
    }

    /// Whether the client asks for an option.
    #[must_use]
    pub fn asks_for(&self, code: u16) -> bool {
        let wanted = self.get(REQUESTED).unwrap_or_default();
        let (codes, _) = wanted.as_chunks();
        codes.iter().any(|have| u16::from_be_bytes(*have) == code)
    }

    /// The texts of a class option: each with its length before it.
    pub(super) fn texts(mut list: &[u8]) -> impl Iterator<Item = &[u8]> {
        std::iter::from_fn(move || {
            let (length, rest) = list.split_first_chunk()?;
            let (text, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
            list = rest;
            Some(text)
        })
    }
}

/// An identity association for addresses (RFC 8415, section 21.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IaNa<'a> {
    /// The client's number for it.
    pub iaid: u32,
    /// Its options.
    options: &'a [u8],
}

impl<'a> IaNa<'a> {
    /// Reads the value of the option; `None` if it is too short.
    #[must_use]
    pub fn parse(value: &'a [u8]) -> Option<Self> {
        let (iaid, rest) = value.split_first_chunk()?;
        Some(Self {
            iaid: u32::from_be_bytes(*iaid),
            // After the two times, which are a client's wish at most.
            options: rest.get(8..)?,
        })
    }

    /// The addresses that it names.
    ///
    /// # Errors
    /// Its options are malformed.
    pub fn addresses(&self) -> Result<Vec<Ipv6Addr>, Malformed> {
        let options = Options::parse(self.options)?;
        let addresses = options.all(IA_ADDR).filter_map(|value| {
            let octets: &[u8; 16] = value.first_chunk()?;
            Some(Ipv6Addr::from(*octets))
        });
        Ok(addresses.collect())
    }
}

/// A message of a client or a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its kind.
    pub kind: MessageType,
    /// Transaction, chosen by the client: 24 bits.
    pub transaction: u32,
    /// Its options.
    pub options: Options,
}

/// The envelope of one relay (RFC 8415, section 9).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relay {
    /// Relays that the message had passed before.
    pub hops: u8,
    /// An address on the client's link, or zero if the relay next to it named none.
    pub link: Ipv6Addr,
    /// Whom the relay had the message from.
    pub peer: Ipv6Addr,
    /// Its options, without the message.
    pub options: Options,
}

/// A message and the envelopes that it came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// The envelopes, the outermost first: the last one is of the relay next to the client.
    pub relays: Vec<Relay>,
    /// What the client or the server says.
    pub message: Message,
}

impl Packet {
    /// Parses the payload of one datagram.
    ///
    /// # Errors
    /// [`Malformed`] says what is wrong. No bytes make it panic.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut relays = Vec::new();
        let mut inner = bytes.to_vec();
        while let [RELAY_FORWARD | RELAY_REPLY, ..] = inner[..] {
            if relays.len() > MOST_RELAYS {
                return Err(Malformed::Envelope);
            }
            let (relay, message) = Relay::parse(&inner)?;
            relays.push(relay);
            inner = message;
        }
        let message = Message::parse(&inner)?;
        Ok(Self { relays, message })
    }

    /// Returns the bytes of a datagram from a server: relays' envelopes are replies.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(256);
        self.message.write(&mut bytes);
        for relay in self.relays.iter().rev() {
            let mut envelope = vec![RELAY_REPLY, relay.hops];
            envelope.extend(relay.link.octets());
            envelope.extend(relay.peer.octets());
            let mut options = relay.options.clone();
            options.add(RELAY_MESSAGE, &bytes);
            options.write(&mut envelope);
            bytes = envelope;
        }
        bytes
    }
}

impl Relay {
    /// Reads one envelope and returns what is in it.
    fn parse(bytes: &[u8]) -> Result<(Self, Vec<u8>), Malformed> {
        const FIXED: usize = 34;
        let short = || Malformed::Short(bytes.len(), FIXED);
        let address = |at: usize| -> Option<Ipv6Addr> {
            let octets: &[u8; 16] = bytes.get(at..)?.first_chunk()?;
            Some(Ipv6Addr::from(*octets))
        };
        let link = address(2).ok_or_else(short)?;
        let peer = address(18).ok_or_else(short)?;
        let mut options = Options::parse(&bytes[FIXED..])?;
        let inside = options.get(RELAY_MESSAGE).ok_or(Malformed::Envelope)?;
        let inside = inside.to_vec();
        options.0.retain(|(code, _)| *code != RELAY_MESSAGE);
        let relay = Self {
            hops: bytes[1],
            link,
            peer,
            options,
        };
        Ok((relay, inside))
    }

    /// The envelope that an answer goes back in.
    #[must_use]
    pub fn answered(&self) -> Self {
        let mut options = Options::default();
        if let Some(interface) = self.options.get(INTERFACE_ID) {
            options.add(INTERFACE_ID, interface);
        }
        Self {
            options,
            ..self.clone()
        }
    }
}

impl Message {
    fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let [kind, t0, t1, t2, options @ ..] = bytes else {
            return Err(Malformed::Short(bytes.len(), 4));
        };
        Ok(Self {
            kind: MessageType::from_code(*kind).ok_or(Malformed::Kind(*kind))?,
            transaction: u32::from_be_bytes([0, *t0, *t1, *t2]),
            options: Options::parse(options)?,
        })
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.push(self.kind as u8);
        out.extend(&self.transaction.to_be_bytes()[1..]);
        self.options.write(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message() -> Message {
        let mut options = Options::default();
        options.add(CLIENT_ID, [0, 3, 0, 1, 2, 2, 2, 2, 2, 2]);
        options.add(REQUESTED, [0, 59, 0, 23]);
        Message {
            kind: MessageType::Solicit,
            transaction: 0xabcdef,
            options,
        }
    }

    fn relay(hops: u8) -> Relay {
        let mut options = Options::default();
        options.add(INTERFACE_ID, b"port 7");
        Relay {
            hops,
            link: "fd00::1".parse().unwrap(),
            peer: "fe80::2".parse().unwrap(),
            options,
        }
    }

    #[test]
    fn a_message_comes_back_as_it_was_written_also_through_relays() {
        for relays in [vec![], vec![relay(0)], vec![relay(1), relay(0)]] {
            let packet = Packet {
                relays,
                message: message(),
            };
            assert_eq!(Packet::parse(&packet.encode()), Ok(packet));
        }
        assert!(message().options.asks_for(23));
        assert!(!message().options.asks_for(16));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let whole = Packet {
            relays: vec![relay(0)],
            message: message(),
        }
        .encode();
        for (bytes, error) in [
            (&[][..], Malformed::Short(0, 4)),
            (&[1, 0, 0], Malformed::Short(3, 4)),
            (&[99, 0, 0, 0], Malformed::Kind(99)),
            (&[1, 0, 0, 0, 0, 1], Malformed::Rest(2)),
            (&[1, 0, 0, 0, 0, 1, 0, 9, 0], Malformed::Option(1)),
            (&whole[..20], Malformed::Short(20, 34)),
            (&whole[..34], Malformed::Envelope),
        ] {
            assert_eq!(Packet::parse(bytes), Err(error));
        }
        let deep = Packet {
            relays: vec![relay(0); 10],
            message: message(),
        };
        assert_eq!(Packet::parse(&deep.encode()), Err(Malformed::Envelope));
    }

    #[test]
    fn texts_end_where_a_length_lies() {
        let texts = |bytes| Options::texts(bytes).collect::<Vec<_>>();
        assert_eq!(texts(&[0, 1, b'a', 0, 2, b'b', b'c']), [&b"a"[..], b"bc"]);
        assert_eq!(texts(&[0, 1, b'a', 0, 9, b'b']), [&b"a"[..]]);
        assert_eq!(texts(&[0]), [] as [&[u8]; 0]);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(
            relayed in any::<bool>(), kind in 1u8..14,
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut datagram = vec![if relayed { RELAY_FORWARD } else { kind }];
            datagram.extend(bytes);
            if let Ok(packet) = Packet::parse(&datagram) {
                prop_assert_eq!(Packet::parse(&packet.encode()), Ok(packet));
            }
        }

        /// Another implementation reads what this one writes.
        #[test]
        fn another_implementation_reads_the_same(transaction in 0u32..1 << 24) {
            use dhcproto::{Decodable, Decoder, v6};
            let packet = Packet { relays: vec![], message: Message { transaction, ..message() } };
            let bytes = packet.encode();
            let theirs = v6::Message::decode(&mut Decoder::new(&bytes)).unwrap();
            prop_assert_eq!(u32::from_be_bytes([0, theirs.xid()[0], theirs.xid()[1], theirs.xid()[2]]), transaction);
            prop_assert_eq!(theirs.msg_type(), v6::MessageType::Solicit);
            prop_assert!(theirs.opts().get(v6::OptionCode::ClientId).is_some());
        }
    }
}
