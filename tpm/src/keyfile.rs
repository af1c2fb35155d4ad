//! What a TPM has wrapped, in a file: "ASN.1 Specification for TPM 2.0 Key Files"
//! (the TCG's `TPMKey`), the form that OpenSSL, the kernel and systemd know.

use pem_rfc7468::LineEnding;
use yasna::models::ObjectIdentifier;
use yasna::{ASN1Error, ASN1ErrorKind, Tag};

use crate::TpmError;

/// The label of such a file's PEM.
pub const LABEL: &str = "TSS2 PRIVATE KEY";

/// `TPM_RH_OWNER`: the parent is the owner's storage key.
const OWNER: u32 = 0x4000_0001;

/// What is wrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A key that is loaded and used in the TPM.
    Key,
    /// A secret that the TPM gives back.
    Secret,
}

impl Kind {
    fn oid(self) -> ObjectIdentifier {
        let last = match self {
            Self::Key => 3,
            Self::Secret => 5,
        };
        ObjectIdentifier::from_slice(&[2, 23, 133, 10, 1, last])
    }
}

/// An object that only one TPM can use, for anyone to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// What it is.
    pub kind: Kind,
    /// Its `TPMT_PUBLIC`.
    pub public: Vec<u8>,
    /// The content of its `TPM2B_PRIVATE`, encrypted by the TPM for itself.
    pub private: Vec<u8>,
}

impl Blob {
    /// The text of its file.
    pub fn to_pem(&self) -> String {
        let sized = |bytes: &[u8]| {
            let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
            [&length.to_be_bytes()[..], bytes].concat()
        };
        let der = yasna::construct_der(|writer| {
            writer.write_sequence(|writer| {
                writer.next().write_oid(&self.kind.oid());
                // It has no password.
                let tagged = writer.next();
                tagged.write_tagged(Tag::context(0), |writer| writer.write_bool(true));
                writer.next().write_u32(OWNER);
                writer.next().write_bytes(&sized(&self.public));
                writer.next().write_bytes(&sized(&self.private));
            });
        });
        // Fails only where the length of the text does not fit into memory.
        pem_rfc7468::encode_string(LABEL, LineEnding::LF, &der).unwrap_or_default()
    }

    /// Whether a text is such a file.
    pub fn is_pem(text: &str) -> bool {
        pem_rfc7468::decode_label(text.as_bytes()) == Ok(LABEL)
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// It is malformed, or of a kind that we do not write: with a password, a policy
    /// or another parent.
    pub fn from_pem(text: &str) -> Result<Self, TpmError> {
        const WHAT: &str = "key file";
        let (label, der) = pem_rfc7468::decode_vec(text.as_bytes())
            .map_err(|error| TpmError::malformed(WHAT, error))?;
        if label != LABEL {
            return Err(TpmError::malformed(
                WHAT,
                format!("{label}, expected {LABEL}"),
            ));
        }
        let content = |bytes: Vec<u8>| match bytes.split_at_checked(2) {
            Some((length, rest))
                if u16::from_be_bytes([length[0], length[1]]) as usize == rest.len() =>
            {
                Ok(rest.to_vec())
            }
            _ => Err(ASN1Error::new(ASN1ErrorKind::Invalid)),
        };
        yasna::parse_der(&der, |reader| {
            reader.read_sequence(|reader| {
                let oid = reader.next().read_oid()?;
                let kind = [Kind::Key, Kind::Secret]
                    .into_iter()
                    .find(|kind| kind.oid() == oid)
                    .ok_or(ASN1Error::new(ASN1ErrorKind::Invalid))?;
                let empty = reader
                    .next()
                    .read_tagged(Tag::context(0), |reader| reader.read_bool())?;
                let parent = reader.next().read_u32()?;
                if !empty || parent != OWNER {
                    return Err(ASN1Error::new(ASN1ErrorKind::Invalid));
                }
                Ok(Self {
                    kind,
                    public: content(reader.next().read_bytes()?)?,
                    private: content(reader.next().read_bytes()?)?,
                })
            })
        })
        .map_err(|error| TpmError::malformed(WHAT, error))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn blob(kind: Kind) -> Blob {
        Blob {
            kind,
            public: vec![1; 88],
            private: vec![2; 126],
        }
    }

    #[test]
    fn a_file_is_read_as_it_was_written() {
        for kind in [Kind::Key, Kind::Secret] {
            let pem = blob(kind).to_pem();
            assert!(
                pem.starts_with("-----BEGIN TSS2 PRIVATE KEY-----\n"),
                "{pem}"
            );
            assert!(Blob::is_pem(&pem));
            assert_eq!(Blob::from_pem(&pem).unwrap(), blob(kind));
        }
        let other = blob(Kind::Key).to_pem().replace(LABEL, "PRIVATE KEY");
        assert!(!Blob::is_pem(&other));
        let refused = Blob::from_pem(&other).unwrap_err().to_string();
        assert_eq!(
            refused,
            "TPM: key file: PRIVATE KEY, expected TSS2 PRIVATE KEY"
        );
    }

    proptest! {
        #[test]
        fn no_file_makes_the_parser_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            at in any::<prop::sample::Index>(),
        ) {
            let random = pem_rfc7468::encode_string(LABEL, LineEnding::LF, &bytes).unwrap();
            let _ = Blob::from_pem(&random);
            let mut real = blob(Kind::Key).to_pem().into_bytes();
            let at = at.index(real.len());
            real[at] = real[at].wrapping_add(1) & 0x7f;
            let _ = Blob::from_pem(&String::from_utf8(real).unwrap());
        }
    }
}
