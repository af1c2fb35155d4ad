//! Authenticode: signatures inside EFI programs (PE files), as firmware checks them.
//!
//! The digest covers everything but the file's checksum and the signature itself. Microsoft
//! defines it by headers and sections, most signers take the file as it lies; a file in
//! which the two differ is refused, because nobody can say what was signed.

use model::Digest;

use super::der::{self, BIT_STRING, SEQUENCE, context};
use super::{Signer, cms};

/// Why a file cannot be signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PeError {
    /// Not an EFI program.
    #[error("expected an EFI program (PE32+)")]
    NotPe,
    /// The file ends inside of something.
    #[error("EFI program: cut off")]
    Short,
    /// Sections overlap or leave gaps.
    #[error("EFI program: its sections do not lie one behind the other")]
    Gap,
    /// The signature's table is not the end of the file.
    #[error("EFI program: something lies behind its signature")]
    Behind,
    /// A PE file has 32-bit places.
    #[error("EFI program: larger than 4 GiB")]
    Large,
}

const INDIRECT_DATA: &[u8] = &[0x2b, 6, 1, 4, 1, 0x82, 0x37, 2, 1, 4];
const PE_IMAGE_DATA: &[u8] = &[0x2b, 6, 1, 4, 1, 0x82, 0x37, 2, 1, 0x0f];
/// Revision 2.0 and type PKCS #7 signed data of a `WIN_CERTIFICATE`.
const CERTIFICATE_KIND: [u8; 4] = [0x00, 0x02, 0x02, 0x00];
const CERTIFICATE_HEADER: usize = 8;
const SECTION_HEADER: usize = 40;

/// Where in a file the things are that its signature leaves out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Places {
    checksum: usize,
    /// The entry of the data directory that points to the signature's table.
    entry: usize,
    /// The table itself: offset and size; both 0 where there is none.
    table: (usize, usize),
}

fn number(image: &[u8], at: usize) -> Result<usize, PeError> {
    let field = at.checked_add(4).and_then(|end| image.get(at..end));
    let field: [u8; 4] = field
        .and_then(|f| f.try_into().ok())
        .ok_or(PeError::Short)?;
    usize::try_from(u32::from_le_bytes(field)).map_err(|_| PeError::Short)
}

fn half(image: &[u8], at: usize) -> Result<usize, PeError> {
    let field = at.checked_add(2).and_then(|end| image.get(at..end));
    let field: [u8; 2] = field
        .and_then(|f| f.try_into().ok())
        .ok_or(PeError::Short)?;
    Ok(usize::from(u16::from_le_bytes(field)))
}

/// Reads the headers and checks that the file can be signed.
fn look(image: &[u8]) -> Result<Places, PeError> {
    if image.get(..2) != Some(b"MZ") {
        return Err(PeError::NotPe);
    }
    let pe = number(image, 0x3c).map_err(|_| PeError::NotPe)?;
    // 32-bit numbers: no sum of a few of them overflows.
    if image.get(pe..pe + 4) != Some(b"PE\0\0") {
        return Err(PeError::NotPe);
    }
    let optional = pe + 24;
    if half(image, optional)? != 0x20b {
        return Err(PeError::NotPe);
    }
    let sections = half(image, pe + 6)?;
    let headers = optional + half(image, pe + 20)?;
    // The fifth entry of the data directory.
    if number(image, optional + 108)? < 5 || headers < optional + 152 {
        return Err(PeError::NotPe);
    }
    let entry = optional + 144;
    let table = (number(image, entry)?, number(image, entry + 4)?);
    let end = match table {
        (_, 0) => image.len(),
        (start, size) if start + size == image.len() => start,
        (start, size) if start + size > image.len() => return Err(PeError::Short),
        _ => return Err(PeError::Behind),
    };
    let mut extents = Vec::new();
    for index in 0..sections {
        let at = headers + index * SECTION_HEADER;
        let (size, start) = (number(image, at + 16)?, number(image, at + 20)?);
        if size > 0 {
            extents.push((start, size));
        }
    }
    extents.sort_unstable();
    let mut reached = number(image, optional + 60)?;
    if reached < headers + sections * SECTION_HEADER {
        return Err(PeError::Gap);
    }
    for (start, size) in extents {
        if start != reached {
            return Err(PeError::Gap);
        }
        reached = start + size;
    }
    if reached > end {
        return Err(PeError::Short);
    }
    Ok(Places {
        checksum: optional + 64,
        entry,
        table,
    })
}

/// Returns a program without its signature, filled up to where one would begin.
fn bare(image: &[u8]) -> Result<(Vec<u8>, Places), PeError> {
    let places = look(image)?;
    let end = match places.table {
        (_, 0) => image.len(),
        (start, _) => start,
    };
    let mut bare = image[..end].to_vec();
    bare.resize(end.next_multiple_of(8), 0);
    bare[places.entry..places.entry + 8].fill(0);
    bare[places.checksum..places.checksum + 4].fill(0);
    Ok((bare, places))
}

/// Returns the digest that a program's signature is made over. The same for a program
/// with and without one.
///
/// # Errors
/// See [`PeError`].
pub fn digest(image: &[u8]) -> Result<Digest, PeError> {
    let (bare, places) = bare(image)?;
    Ok(digest_bare(&bare, places))
}

fn digest_bare(bare: &[u8], places: Places) -> Digest {
    let covered = [
        &bare[..places.checksum],
        &bare[places.checksum + 4..places.entry],
        &bare[places.entry + 8..],
    ];
    Digest::of(&covered.concat())
}

/// Returns a program with a signature, instead of the one that it had. The same key,
/// certificate and program give the same bytes.
///
/// # Errors
/// A [`PeError`], or the key cannot be used.
pub fn sign(signer: &Signer, image: &[u8]) -> anyhow::Result<Vec<u8>> {
    let (mut signed, places) = bare(image)?;
    let content = indirect_data(&digest_bare(&signed, places));
    let signature = cms::around(signer, INDIRECT_DATA, &content)?;
    let narrow = |size: usize| u32::try_from(size).map_err(|_| PeError::Large);
    let length = CERTIFICATE_HEADER + signature.len();
    let start = signed.len();
    signed.extend_from_slice(&narrow(length)?.to_le_bytes());
    signed.extend_from_slice(&CERTIFICATE_KIND);
    signed.extend_from_slice(&signature);
    signed.resize(signed.len().next_multiple_of(8), 0);
    let size = signed.len() - start;
    let Places {
        checksum, entry, ..
    } = places;
    signed[entry..entry + 4].copy_from_slice(&narrow(start)?.to_le_bytes());
    signed[entry + 4..entry + 8].copy_from_slice(&narrow(size)?.to_le_bytes());
    let sum = sum(&signed).wrapping_add(narrow(signed.len())?);
    signed[checksum..checksum + 4].copy_from_slice(&sum.to_le_bytes());
    Ok(signed)
}

/// Returns the signature in a program: the `ContentInfo` of PKCS #7, or nothing.
///
/// # Errors
/// See [`PeError`].
pub fn signature(image: &[u8]) -> Result<Option<&[u8]>, PeError> {
    let (start, size) = look(image)?.table;
    if size == 0 {
        return Ok(None);
    }
    let length = number(image, start)?;
    let found = image.get(start + CERTIFICATE_HEADER..start + length);
    found.map(Some).ok_or(PeError::Short)
}

/// `SpcIndirectDataContent` without tag and length: what is signed is the digest of this.
fn indirect_data(digest: &Digest) -> Vec<u8> {
    // No flags, and a file name that nobody reads: an empty text.
    let name = der::value(context(0), &der::value(context(2), &[0x80, 0]));
    let image = der::list(SEQUENCE, &[&der::value(BIT_STRING, &[0]), &name]);
    let data = der::list(SEQUENCE, &[&der::object(PE_IMAGE_DATA), &image]);
    [data, cms::digest_info(digest)].concat()
}

/// The sum of a file's 16-bit words, its carries added in. The checksum's own place is 0.
fn sum(image: &[u8]) -> u32 {
    let mut sum = 0u32;
    for word in image.chunks(2) {
        let high = word.get(1).copied().unwrap_or(0);
        sum += u32::from(u16::from_le_bytes([word[0], high]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::signing::tests::signer;
    use edge::runner::Tool;
    use proptest::prelude::*;

    /// A PE32+ file with one section, and some bytes behind it.
    pub(crate) fn program() -> Vec<u8> {
        let mut program = vec![0; 0x605];
        let mut put =
            |at: usize, bytes: &[u8]| program[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"MZ");
        put(0x3c, &[0x80]);
        put(0x80, b"PE\0\0\x64\x86\x01");
        put(0x94, &[240, 0, 0x2e, 0x02]);
        let optional = 0x98;
        put(optional, &[0x0b, 0x02]);
        put(optional + 16, &0x1000u32.to_le_bytes());
        put(optional + 32, &0x1000u32.to_le_bytes());
        put(optional + 36, &0x200u32.to_le_bytes());
        put(optional + 56, &0x2000u32.to_le_bytes());
        put(optional + 60, &0x400u32.to_le_bytes());
        put(optional + 68, &[10]);
        put(optional + 108, &[16]);
        let header = optional + 240;
        put(header, b".text");
        put(header + 8, &0x200u32.to_le_bytes());
        put(header + 12, &0x1000u32.to_le_bytes());
        put(header + 16, &0x200u32.to_le_bytes());
        put(header + 20, &0x400u32.to_le_bytes());
        put(header + 36, &0x6000_0020u32.to_le_bytes());
        put(0x400, &[0xc3; 0x200]);
        put(0x600, b"tail!");
        program
    }

    #[test]
    fn a_signature_is_the_same_each_time_and_replaces_an_older_one() {
        let signer = signer();
        let once = sign(&signer, &program()).unwrap();
        assert_eq!(sign(&signer, &program()).unwrap(), once);
        assert_eq!(sign(&signer, &once).unwrap(), once);
        assert_eq!(digest(&once), digest(&program()));
        assert!(signature(&once).unwrap().is_some());
        assert_eq!(signature(&program()), Ok(None));
    }

    #[test]
    fn other_peoples_verifiers_accept_a_signed_program_and_no_altered_one() {
        let folder = tempfile::tempdir().unwrap();
        let (file, pem) = (folder.path().join("x.efi"), folder.path().join("x.pem"));
        let signer = signer();
        std::fs::write(&pem, signer.certificate().pem()).unwrap();
        let sbverify = |bytes: &[u8]| {
            std::fs::write(&file, bytes).unwrap();
            let tool = Tool::new("sbverify").arg("--cert").arg(&pem);
            tool.arg(&file).run()
        };
        let signed = sign(&signer, &program()).unwrap();
        sbverify(&signed).unwrap();
        // One byte in each part that counts: headers, section, what lies behind it, signature.
        for at in [0x110, 0x450, 0x602, signed.len() - 20] {
            let mut altered = signed.clone();
            altered[at] ^= 1;
            assert!(sbverify(&altered).is_err(), "byte {at:#x}");
        }
        // The checksum alone is nobody's business.
        let mut other = signed.clone();
        other[0x98 + 64] ^= 1;
        sbverify(&other).unwrap();
        assert!(sbverify(&program()).is_err());
    }

    #[test]
    fn the_checksum_is_the_one_that_another_signer_computes() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        let signer = signer();
        let signed = sign(&signer, &program()).unwrap();
        std::fs::write(place("ours.efi"), &signed).unwrap();
        std::fs::write(place("p7"), signature(&signed).unwrap().unwrap()).unwrap();
        std::fs::write(place("bare.efi"), program()).unwrap();
        // The same signature, put in by sbsigntools, which computes the checksum itself.
        Tool::new("sbattach")
            .arg("--attach")
            .arg(place("p7"))
            .arg(place("bare.efi"))
            .run()
            .unwrap();
        let theirs = std::fs::read(place("bare.efi")).unwrap();
        assert_eq!(hex::encode(theirs), hex::encode(signed));
    }

    #[test]
    fn what_is_no_sound_program_is_refused() {
        let refused = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut program = program();
            change(&mut program);
            digest(&program).unwrap_err()
        };
        assert_eq!(digest(b""), Err(PeError::NotPe));
        assert_eq!(refused(&|p| p[0] = b'N'), PeError::NotPe);
        assert_eq!(refused(&|p| p[0x99] = 1), PeError::NotPe);
        assert_eq!(refused(&|p| p.truncate(0x500)), PeError::Short);
        // The section begins behind a gap.
        assert_eq!(refused(&|p| p[0x98 + 61] = 2), PeError::Gap);
        // A table of signatures that something else follows, or that ends behind the file.
        assert_eq!(
            refused(&|p| p[0x98 + 144..0x98 + 149].fill(4)),
            PeError::Short
        );
        let behind = |p: &mut Vec<u8>| {
            p[0x98 + 145] = 6;
            p[0x98 + 148] = 2;
        };
        assert_eq!(refused(&behind), PeError::Behind);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(
            changes in proptest::collection::vec((0usize..0x605, any::<u8>()), 0..20),
            length in 0usize..=0x605,
        ) {
            let mut program = program();
            for (at, byte) in changes {
                program[at] = byte;
            }
            program.truncate(length);
            let _ = digest(&program);
            let _ = signature(&program);
        }
    }
}
