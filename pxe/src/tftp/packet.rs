//! The TFTP message on the wire.

use thiserror::Error;

/// One TFTP message, as a server reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// The wish to read a file.
    Read(Request),
    /// The wish to write a file.
    Write(Request),
    /// A block of data. The data itself is of no use to a read-only server.
    Data {
        /// Number of the block.
        block: u16,
    },
    /// Blocks up to this one have arrived.
    Ack {
        /// Number of the block.
        block: u16,
    },
    /// The other side gives up.
    Error {
        /// Error code.
        code: u16,
        /// Text for a person.
        message: String,
    },
    /// Options that a server accepts.
    OptionAck(Vec<(String, String)>),
}

/// Path, mode and options of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Path as sent.
    pub path: String,
    /// Transfer mode in lower case: `octet`, `netascii`, `mail`.
    pub mode: String,
    /// Options, names in lower case, in their order.
    pub options: Vec<(String, String)>,
}

/// Error codes of RFC 1350 and RFC 2347.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum ErrorCode {
    /// See the text.
    Undefined = 0,
    /// File not found.
    NotFound = 1,
    /// Access violation.
    Access = 2,
    /// Illegal operation.
    Illegal = 4,
    /// Unknown transfer.
    UnknownTransfer = 5,
    /// Option negotiation failed.
    Options = 8,
}

/// Why bytes are not a TFTP message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Malformed {
    /// Fewer bytes than the message needs.
    #[error("message cut short")]
    Short,
    /// No such operation.
    #[error("operation {0}, expected 1 to 6")]
    Operation(u16),
    /// A text without its terminating zero, or not UTF-8.
    #[error("broken text field")]
    Text,
}

impl Packet {
    /// Parses one message.
    ///
    /// # Errors
    /// [`Malformed`] says what is wrong. No bytes make it panic.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let (operation, rest) = number(bytes)?;
        Ok(match operation {
            1 => Self::Read(request(rest)?),
            2 => Self::Write(request(rest)?),
            3 => Self::Data {
                block: number(rest)?.0,
            },
            4 => Self::Ack {
                block: number(rest)?.0,
            },
            5 => {
                let (code, text) = number(rest)?;
                let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
                Self::Error {
                    code,
                    message: String::from_utf8_lossy(text).into_owned(),
                }
            }
            6 => Self::OptionAck(pairs(texts(rest)?)),
            other => return Err(Malformed::Operation(other)),
        })
    }
}

/// Returns an ERROR message.
#[must_use]
pub fn encode_error(code: ErrorCode, message: &str) -> Vec<u8> {
    let mut out = vec![0, 5];
    out.extend_from_slice(&(code as u16).to_be_bytes());
    out.extend(message.bytes().filter(|byte| *byte != 0));
    out.push(0);
    out
}

/// Returns an OACK message.
#[must_use]
pub fn encode_option_ack(options: &[(&str, u64)]) -> Vec<u8> {
    let mut out = vec![0, 6];
    for (name, value) in options {
        out.extend_from_slice(name.as_bytes());
        out.push(0);
        out.extend_from_slice(value.to_string().as_bytes());
        out.push(0);
    }
    out
}

fn number(bytes: &[u8]) -> Result<(u16, &[u8]), Malformed> {
    match bytes {
        [high, low, rest @ ..] => Ok((u16::from_be_bytes([*high, *low]), rest)),
        _ => Err(Malformed::Short),
    }
}

fn request(bytes: &[u8]) -> Result<Request, Malformed> {
    let mut fields = texts(bytes)?.into_iter();
    let (Some(path), Some(mode)) = (fields.next(), fields.next()) else {
        return Err(Malformed::Text);
    };
    Ok(Request {
        path,
        mode: mode.to_ascii_lowercase(),
        options: pairs(fields.collect()),
    })
}

/// Returns the zero-terminated texts of a message.
///
/// Off-spec: what follows the last zero is dropped. Some firmware sends a fixed
/// buffer with noise behind its last option.
fn texts(bytes: &[u8]) -> Result<Vec<String>, Malformed> {
    let Some(end) = bytes.iter().rposition(|byte| *byte == 0) else {
        return Err(Malformed::Text);
    };
    bytes[..end]
        .split(|byte| *byte == 0)
        .map(|text| String::from_utf8(text.to_vec()).map_err(|_| Malformed::Text))
        .collect()
}

/// An option name without its value is dropped.
fn pairs(fields: Vec<String>) -> Vec<(String, String)> {
    let mut fields = fields.into_iter();
    let mut pairs = Vec::new();
    while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
        if !name.is_empty() {
            pairs.push((name.to_ascii_lowercase(), value));
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_request_with_options_is_read() {
        let parsed = Packet::parse(b"\0\x01boot/x.efi\0OCTET\0TSize\x000\0blksize\x001468\0");
        let Ok(Packet::Read(request)) = parsed else {
            panic!("{parsed:?}")
        };
        assert_eq!(
            (request.path.as_str(), request.mode.as_str()),
            ("boot/x.efi", "octet")
        );
        let options: Vec<_> = request
            .options
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_str()))
            .collect();
        assert_eq!(options, [("tsize", "0"), ("blksize", "1468")]);
    }

    #[test]
    fn noise_behind_the_last_option_is_dropped() {
        let parsed = Packet::parse(b"\0\x01x\0octet\0blksize\x00512\0noise");
        let Ok(Packet::Read(request)) = parsed else {
            panic!("{parsed:?}")
        };
        assert_eq!(request.options, [("blksize".into(), "512".into())]);
    }

    #[test]
    fn broken_messages_say_why() {
        assert_eq!(Packet::parse(b""), Err(Malformed::Short));
        assert_eq!(Packet::parse(b"\0\x04\0"), Err(Malformed::Short));
        assert_eq!(Packet::parse(b"\0\x07x"), Err(Malformed::Operation(7)));
        assert_eq!(Packet::parse(b"\0\x01path"), Err(Malformed::Text));
        assert_eq!(Packet::parse(b"\0\x01path\0"), Err(Malformed::Text));
        assert_eq!(
            Packet::parse(b"\0\x01\xff\xfe\0octet\0"),
            Err(Malformed::Text)
        );
    }

    #[test]
    fn what_is_encoded_is_parsed_back() {
        let error = encode_error(ErrorCode::Access, "read\0-only");
        assert_eq!(
            Packet::parse(&error),
            Ok(Packet::Error {
                code: 2,
                message: "read-only".into()
            })
        );
        let oack = encode_option_ack(&[("blksize", 1468), ("tsize", 7)]);
        let options = vec![
            ("blksize".into(), "1468".into()),
            ("tsize".into(), "7".into()),
        ];
        assert_eq!(Packet::parse(&oack), Ok(Packet::OptionAck(options)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(
            operation in 0u8..8,
            bytes in proptest::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..64),
        ) {
            let _ = Packet::parse(&bytes);
            let _ = Packet::parse(&[&[0, operation], &bytes[..]].concat());
        }
    }
}
