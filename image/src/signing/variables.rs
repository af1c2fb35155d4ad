//! Firmware variables that say whose signatures count, signed for enrolment.
//!
//! The file that a boot loader hands to the firmware is an
//! `EFI_VARIABLE_AUTHENTICATION_2` in front of the variable's content (UEFI 2.10,
//! 8.2.2), the content is a list of certificates (32.4.1).

use anyhow::Context as _;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use uuid::{Uuid, uuid};

use super::certificate::Certificate;
use super::{Signer, cms};

/// A variable of Secure Boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Variable {
    /// The platform key: who may change the key exchange keys. With it setup mode ends.
    Pk,
    /// The key exchange keys: who may change `db`.
    Kek,
    /// Whose programs start.
    Db,
}

impl Variable {
    /// All of them, in the order of the chain.
    pub const ALL: [Self; 3] = [Self::Pk, Self::Kek, Self::Db];

    /// Its name in the firmware and in file names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pk => "PK",
            Self::Kek => "KEK",
            Self::Db => "db",
        }
    }

    /// Whose key signs a change of it.
    pub fn authority(self) -> Self {
        match self {
            Self::Pk | Self::Kek => Self::Pk,
            Self::Db => Self::Kek,
        }
    }

    fn vendor(self) -> Uuid {
        match self {
            Self::Pk | Self::Kek => uuid!("8be4df61-93ca-11d2-aa0d-00e098032b8c"),
            Self::Db => uuid!("d719b2cb-3d3a-4596-a3bc-dad00e67656f"),
        }
    }
}

const X509: Uuid = uuid!("a5c059a1-94e4-4aa7-87b5-ab155c2bf072");
const PKCS7: Uuid = uuid!("4aafd29d-68df-49ee-8aa9-347d375665a7");
/// Kept over power-off, for boot loaders and running systems, written with a signed time.
const ATTRIBUTES: u32 = 0x27;
const REVISION: u16 = 0x0200;
const KIND: u16 = 0x0ef1;

/// The content of a variable: a list of certificates for each, marked with an owner.
///
/// # Errors
/// A certificate of 4 GiB.
pub fn certificates(owner: Uuid, certificates: &[&Certificate]) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for certificate in certificates {
        let entry = u32::try_from(16 + certificate.der().len()).context("a large certificate")?;
        bytes.extend_from_slice(&X509.to_bytes_le());
        // The list with its header of 28 bytes, no further header, the entry.
        for size in [28 + entry, 0, entry] {
            bytes.extend_from_slice(&size.to_le_bytes());
        }
        bytes.extend_from_slice(&owner.to_bytes_le());
        bytes.extend_from_slice(certificate.der());
    }
    Ok(bytes)
}

/// Signs the content of a variable as what it shall be from `time` on.
///
/// # Errors
/// The key cannot be used.
pub fn enrolment(
    variable: Variable,
    content: &[u8],
    time: Timestamp,
    authority: &Signer,
) -> anyhow::Result<Vec<u8>> {
    let time = efi_time(time)?;
    let signature = cms::beside(authority, &signed_bytes(variable, &time, content))?;
    let length = u32::try_from(24 + signature.len()).context("a large signature")?;
    let mut bytes = time.to_vec();
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&REVISION.to_le_bytes());
    bytes.extend_from_slice(&KIND.to_le_bytes());
    bytes.extend_from_slice(&PKCS7.to_bytes_le());
    bytes.extend_from_slice(&signature);
    bytes.extend_from_slice(content);
    Ok(bytes)
}

/// What the signature is over: the firmware puts it together from its own arguments.
fn signed_bytes(variable: Variable, time: &[u8; 16], content: &[u8]) -> Vec<u8> {
    let mut bytes: Vec<u8> = variable
        .name()
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    bytes.extend_from_slice(&variable.vendor().to_bytes_le());
    bytes.extend_from_slice(&ATTRIBUTES.to_le_bytes());
    bytes.extend_from_slice(time);
    bytes.extend_from_slice(content);
    bytes
}

/// `EFI_TIME` in UTC: everything behind the second must be 0.
fn efi_time(time: Timestamp) -> anyhow::Result<[u8; 16]> {
    let civil = time.to_zoned(TimeZone::UTC).datetime();
    let mut bytes = [0; 16];
    let year = u16::try_from(civil.year()).context("a year before 0")?;
    bytes[..2].copy_from_slice(&year.to_le_bytes());
    let fields = [
        civil.month(),
        civil.day(),
        civil.hour(),
        civil.minute(),
        civil.second(),
    ];
    for (place, field) in bytes[2..].iter_mut().zip(fields) {
        *place = field.unsigned_abs();
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signing::tests::{pem, signer};
    use edge::runner::Tool;

    const OWNER: Uuid = uuid!("11111111-2222-3333-4444-555555555555");

    fn content() -> Vec<u8> {
        certificates(OWNER, &[signer().certificate()]).unwrap()
    }

    #[test]
    fn a_list_of_certificates_is_the_one_that_efitools_make() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        std::fs::write(place("pem"), signer().certificate().pem()).unwrap();
        Tool::new("cert-to-efi-sig-list")
            .args(["-g", &OWNER.to_string()])
            .args([place("pem"), place("esl")])
            .run()
            .unwrap();
        let theirs = std::fs::read(place("esl")).unwrap();
        assert_eq!(hex::encode(content()), hex::encode(theirs));
    }

    #[test]
    fn a_signed_variable_is_the_one_that_efitools_make() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        std::fs::write(place("pem"), signer().certificate().pem()).unwrap();
        std::fs::write(place("esl"), content()).unwrap();
        std::fs::write(place("key"), pem()).unwrap();
        let time = "2026-11-23T01:02:03Z".parse().unwrap();
        for variable in Variable::ALL {
            let ours = enrolment(variable, &content(), time, &signer()).unwrap();
            Tool::new("sign-efi-sig-list")
                .args(["-t", "2026-11-23 01:02:03"])
                .args([std::path::Path::new("-k"), &place("key")])
                .args([std::path::Path::new("-c"), &place("pem")])
                .arg(variable.name())
                .args([place("esl"), place("auth")])
                .env("TZ", "UTC")
                .run()
                .unwrap();
            let theirs = std::fs::read(place("auth")).unwrap();
            assert_eq!(hex::encode(ours), hex::encode(theirs), "{variable:?}");
        }
    }

    #[test]
    fn the_time_is_part_of_what_is_signed() {
        let sign = |time: &str| {
            let time = time.parse().unwrap();
            enrolment(Variable::Db, &content(), time, &signer()).unwrap()
        };
        let (one, two) = (sign("2026-11-23T01:02:03Z"), sign("2026-11-23T01:02:04Z"));
        assert_eq!(one[..8], [0xea, 0x07, 11, 23, 1, 2, 3, 0]);
        assert_eq!(one, sign("2026-11-23T01:02:03Z"));
        assert_ne!(one[24..], two[24..]);
    }
}
