//! The little of DER that signatures need: values are written, never read.

/// `SEQUENCE`.
pub(super) const SEQUENCE: u8 = 0x30;
/// `SET`.
pub(super) const SET: u8 = 0x31;
/// `OCTET STRING`.
pub(super) const OCTET_STRING: u8 = 0x04;
/// `BIT STRING`.
pub(super) const BIT_STRING: u8 = 0x03;
/// `INTEGER`.
pub(super) const INTEGER: u8 = 0x02;
const OBJECT: u8 = 0x06;

/// The tag `[number]` of something constructed.
pub(super) const fn context(number: u8) -> u8 {
    0xa0 | number
}

/// A value with its tag and length.
pub(super) fn value(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    let length = content.len().to_be_bytes();
    let first = length.iter().position(|byte| *byte != 0);
    match (content.len(), first) {
        (..0x80, _) | (_, None) => bytes.push(length[length.len() - 1]),
        (_, Some(first)) => {
            let digits = &length[first..];
            bytes.push(0x80 | digits.len().to_be_bytes()[length.len() - 1]);
            bytes.extend_from_slice(digits);
        }
    }
    bytes.extend_from_slice(content);
    bytes
}

/// A value that consists of others, in their order.
pub(super) fn list(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    value(tag, &parts.concat())
}

/// A `SET OF` under any tag: DER sorts its members.
pub(super) fn set_of(tag: u8, members: &[Vec<u8>]) -> Vec<u8> {
    let mut sorted = members.to_vec();
    sorted.sort();
    value(tag, &sorted.concat())
}

/// An object identifier, from its content in hand-encoded bytes.
pub(super) fn object(content: &[u8]) -> Vec<u8> {
    value(OBJECT, content)
}

/// An `INTEGER` from unsigned bytes, highest first.
pub(super) fn unsigned(bytes: &[u8]) -> Vec<u8> {
    let first = bytes.iter().position(|byte| *byte != 0);
    let digits = first.map_or(&[0][..], |first| &bytes[first..]);
    match digits[0] {
        0x80.. => list(INTEGER, &[&[0], digits]),
        _ => value(INTEGER, digits),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_as_short_as_they_can_be() {
        assert_eq!(value(OCTET_STRING, b"ab"), b"\x04\x02ab");
        assert_eq!(value(SET, &[0; 0x7f])[..2], [0x31, 0x7f]);
        assert_eq!(value(SET, &[0; 0x80])[..3], [0x31, 0x81, 0x80]);
        assert_eq!(value(SET, &[0; 0x100])[..4], [0x31, 0x82, 1, 0]);
        assert_eq!(value(SET, &[0; 0x1_0000])[..5], [0x31, 0x83, 1, 0, 0]);
    }

    #[test]
    fn integers_are_never_negative_and_have_no_leading_zeros() {
        assert_eq!(unsigned(&[0, 0, 1]), [2, 1, 1]);
        assert_eq!(unsigned(&[0x80]), [2, 2, 0, 0x80]);
        assert_eq!(unsigned(&[]), [2, 1, 0]);
    }

    #[test]
    fn members_of_a_set_are_sorted() {
        let members = [value(INTEGER, &[2]), value(INTEGER, &[1])];
        assert_eq!(set_of(SET, &members), [0x31, 6, 2, 1, 1, 2, 1, 2]);
    }
}
