//! Signing for Secure Boot: EFI programs, and the variables that firmware checks them by.
//!
//! The same key, certificate and input give the same bytes: RSA signatures by
//! PKCS #1 v1.5 have no randomness, and nothing here writes a signing time into a
//! program. Firmware knows no other algorithm for certain.
//!
//! A [`key`] is a file or lies on a [`token`]; a [`certificate`] belongs to it.
//! [`Signer`] is both, [`cms`] makes signatures of it, [`authenticode`] puts one into an
//! EFI program, [`variables`] one in front of a firmware variable. A [`set`] is the
//! folder with all that a vendor's fleet is born with.

mod der;

pub mod key;

pub mod token;

pub mod certificate;

pub mod cms;

pub mod authenticode;

pub mod variables;

pub mod set;

use anyhow::Context as _;
use edge::exit::{self, Kind};

use self::certificate::Certificate;
use self::key::Key;

/// The source texts that decide how a program is signed: part of a signed step's key.
pub(crate) const CODE: &[&str] = &[
    include_str!("authenticode.rs"),
    include_str!("cms.rs"),
    include_str!("der.rs"),
];

/// A key with the certificate by which others know it.
#[derive(Debug)]
pub struct Signer {
    key: Box<dyn Key>,
    certificate: Certificate,
}

impl Signer {
    /// Puts a key and its certificate together.
    ///
    /// # Errors
    /// Kind `InvalidInput` when the certificate is another key's.
    pub fn new(key: Box<dyn Key>, certificate: Certificate) -> anyhow::Result<Self> {
        if key.public() != certificate.public() {
            let subject = certificate.subject();
            return Err(exit::marked(
                Kind::InvalidInput,
                format!("certificate of {subject}: made for another key"),
            ));
        }
        Ok(Self { key, certificate })
    }

    /// The certificate.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// Signs a message: RSASSA-PKCS1-v1_5 with SHA-256.
    ///
    /// # Errors
    /// The key cannot be used.
    fn sign(&self, message: &[u8]) -> anyhow::Result<Vec<u8>> {
        self.key
            .sign(message)
            .with_context(|| format!("sign as {}", self.certificate.subject()))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::OnceLock;

    use super::certificate::{Purpose, Validity};
    use super::key::FileKey;
    use super::*;

    /// A key made once for all tests: making one takes a moment.
    pub(crate) fn pem() -> &'static str {
        static PEM: OnceLock<String> = OnceLock::new();
        PEM.get_or_init(|| key::generate().unwrap().to_string())
    }

    pub(crate) fn key() -> FileKey {
        FileKey::from_pem(pem()).unwrap()
    }

    pub(crate) fn signer() -> Signer {
        let certificate = Certificate::self_signed(&key(), &named("test")).unwrap();
        Signer::new(Box::new(key()), certificate).unwrap()
    }

    pub(crate) fn named(name: &str) -> Purpose<'_> {
        Purpose {
            name,
            validity: Validity {
                from: "2026-11-01T00:00:00Z".parse().unwrap(),
                years: 20,
            },
        }
    }

    #[test]
    fn a_certificate_of_another_key_is_refused() {
        let other = FileKey::from_pem(&key::generate().unwrap()).unwrap();
        let certificate = Certificate::self_signed(&other, &named("other")).unwrap();
        let error = Signer::new(Box::new(key()), certificate).unwrap_err();
        assert!(error.to_string().contains("another key"), "{error}");
    }
}
