//! Signatures of EFI programs: whose they are, and whether they are of these bytes.
//!
//! This looks; it does not verify a signature against a key. Firmware does.

use model::Digest;
use serde::Serialize;
use sha2::Digest as _;

/// A signature in a program's certificate table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Signature {
    /// The subjects of the certificates that come with it.
    pub subjects: Vec<String>,
    /// Whether the SHA-256 that is signed is that of this file.
    pub of_this_file: bool,
}

/// Why a certificate table cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("certificate table: {0}")]
pub struct TableError(&'static str);

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    let field = bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
    usize::try_from(u32::from_le_bytes(field)).ok()
}

/// Where things are that the digest leaves out.
struct Places {
    checksum: usize,
    entry: usize,
    table: std::ops::Range<usize>,
}

fn places(image: &[u8]) -> Option<Places> {
    let pe = u32_at(image, 0x3c)?;
    let optional = pe.checked_add(24)?;
    if image.get(pe..pe + 4)? != b"PE\0\0" || image.get(optional..optional + 2)? != [0x0b, 2] {
        return None;
    }
    let directories = u32_at(image, optional + 108)?;
    let entry = optional + 144;
    let (start, size) = match directories > 4 {
        true => (u32_at(image, entry)?, u32_at(image, entry + 4)?),
        false => (0, 0),
    };
    Some(Places {
        checksum: optional + 64,
        entry,
        table: start..start.checked_add(size)?,
    })
}

/// Reads the signatures of a PE32+ file; a file without any has an empty list.
///
/// # Errors
/// When the certificate table contradicts itself.
pub fn of(image: &[u8]) -> Result<Vec<Signature>, TableError> {
    let Some(places) = places(image) else {
        return Err(TableError("expected a PE32+ file"));
    };
    if places.table.is_empty() {
        return Ok(Vec::new());
    }
    let table = image
        .get(places.table.clone())
        .ok_or(TableError("lies outside of the file"))?;
    let digest = digest(image, &places);
    let mut found = Vec::new();
    let mut rest = table;
    while rest.len() >= 8 {
        let length = u32_at(rest, 0).filter(|length| *length >= 8 && *length <= rest.len());
        let length = length.ok_or(TableError("a certificate is cut off"))?;
        // Type 2 is a PKCS #7 message; others no firmware asks for.
        if rest[6..8] == [2, 0] {
            let message = message(&rest[8..length]);
            let (subjects, signed) = message.ok_or(TableError("expected a PKCS #7 message"))?;
            found.push(Signature {
                subjects,
                of_this_file: signed == digest.as_bytes(),
            });
        }
        rest = rest.get(length.next_multiple_of(8)..).unwrap_or_default();
    }
    Ok(found)
}

/// The digest that a signature covers: all but the checksum, the table, and where it is.
fn digest(image: &[u8], places: &Places) -> Digest {
    let mut hash = sha2::Sha256::new();
    let parts = [
        0..places.checksum,
        places.checksum + 4..places.entry,
        places.entry + 8..places.table.start,
        places.table.end..image.len(),
    ];
    for part in parts {
        hash.update(image.get(part).unwrap_or_default());
    }
    Digest::from(<[u8; 32]>::from(hash.finalize()))
}

/// A DER value: its tag, its content, and what follows.
fn value(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = bytes.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match *first {
        short @ 0..=0x7f => (usize::from(short), rest),
        long @ 0x81..=0x84 => {
            let (length, rest) = rest.split_at_checked(usize::from(long & 0x7f))?;
            let length = length
                .iter()
                .fold(0usize, |sum, byte| sum << 8 | usize::from(*byte));
            (length, rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, rest))
}

fn expect(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, content, rest) = value(bytes)?;
    (found == tag).then_some((content, rest))
}

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT: u8 = 0x06;
const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const FIRST: u8 = 0xa0;

/// The certificates' subjects and the file's digest in a PKCS #7 signed message.
fn message(bytes: &[u8]) -> Option<(Vec<String>, Vec<u8>)> {
    let (info, _) = expect(bytes, SEQUENCE)?;
    let (_, rest) = expect(info, OBJECT)?;
    let (signed, _) = expect(rest, FIRST)?;
    let (signed, _) = expect(signed, SEQUENCE)?;
    let (_, rest) = expect(signed, INTEGER)?;
    let (_, rest) = expect(rest, SET)?;
    let (content, rest) = expect(rest, SEQUENCE)?;
    // What is signed: type, then data and the digest of the file.
    let (_, inner) = expect(content, OBJECT)?;
    let (inner, _) = expect(inner, FIRST)?;
    let (inner, _) = expect(inner, SEQUENCE)?;
    let (_, after) = expect(inner, SEQUENCE)?;
    let (digest, _) = expect(after, SEQUENCE)?;
    let (_, digest) = expect(digest, SEQUENCE)?;
    let (digest, _) = expect(digest, OCTETS)?;
    let mut subjects = Vec::new();
    if let Some((mut certificates, _)) = expect(rest, FIRST) {
        while !certificates.is_empty() {
            let (_, _, after) = value(certificates)?;
            let one = &certificates[..certificates.len() - after.len()];
            let (_, certificate) = x509_parser::parse_x509_certificate(one).ok()?;
            subjects.push(certificate.subject().to_string());
            certificates = after;
        }
    }
    Some((subjects, digest.to_vec()))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Made with sbsign 0.9.4 from a PE32+ file without code and a key that is thrown away.
    pub(crate) fn signed() -> Vec<u8> {
        zstd::bulk::decompress(include_bytes!("signatures/signed.efi.zst"), 1 << 20).unwrap()
    }

    #[test]
    fn a_signature_tells_whose_it_is_and_that_it_is_of_the_file() {
        let mut image = signed();
        let found = of(&image).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].subjects, ["CN=sample signer"]);
        assert!(found[0].of_this_file);
        // A byte of the section, then the checksum, which does not count.
        image[0x400] ^= 1;
        assert!(!of(&image).unwrap()[0].of_this_file);
        image[0x400] ^= 1;
        let pe = u32_at(&image, 0x3c).unwrap();
        image[pe + 24 + 64] ^= 1;
        assert!(of(&image).unwrap()[0].of_this_file);
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_an_answer(
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in 0usize..3000,
        ) {
            let mut image = signed();
            for (index, value) in flips {
                let at = index.index(image.len());
                image[at] = value;
            }
            image.truncate(image.len().saturating_sub(cut));
            let _ = of(&image);
        }
    }
}
