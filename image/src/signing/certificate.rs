//! Certificates: the public halves of signing keys, as firmware keeps them.

use std::path::Path;

use anyhow::{Context as _, anyhow};
use edge::exit::{self, Kind};
use jiff::{SignedDuration, Timestamp};
use model::Digest;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose,
    PKCS_RSA_SHA256, PublicKeyData, SerialNumber, SignatureAlgorithm, SigningKey,
};
use time::OffsetDateTime;
use x509_parser::parse_x509_certificate;
use x509_parser::pem::Pem;

use super::der;
use super::key::Key;

/// The certificate of an RSA key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    der: Vec<u8>,
    subject: String,
    issuer: Vec<u8>,
    serial: Vec<u8>,
    public: Vec<u8>,
}

/// When a certificate is valid. Firmware does not look; other tools do.
#[derive(Debug, Clone, Copy)]
pub struct Validity {
    /// From when on.
    pub from: Timestamp,
    /// For how many years.
    pub years: u8,
}

/// What a certificate is for.
#[derive(Debug, Clone, Copy)]
pub struct Purpose<'a> {
    /// The common name of its subject.
    pub name: &'a str,
    /// When it is valid.
    pub validity: Validity,
}

/// A key as rcgen wants to see one.
struct Signing<'a>(&'a dyn Key);

impl PublicKeyData for Signing<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0.public()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_RSA_SHA256
    }
}

impl SigningKey for Signing<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signed = self.0.sign(message);
        signed.map_err(|error| {
            tracing::debug!(problem = format!("{error:#}"), "certificate not signed");
            rcgen::Error::RemoteKeyError
        })
    }
}

impl Certificate {
    /// Makes a certificate that the key signs for itself. The same inputs give the same bytes.
    ///
    /// # Errors
    /// The key cannot be used.
    pub fn self_signed(key: &dyn Key, purpose: &Purpose<'_>) -> anyhow::Result<Self> {
        let mut params = CertificateParams::default();
        let mut name = DistinguishedName::new();
        name.push(DnType::CommonName, purpose.name);
        params.distinguished_name = name;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
        // A random number would make every certificate of a key another one.
        let serial = Digest::of(key.public());
        params.serial_number = Some(SerialNumber::from_slice(&serial.as_bytes()[..16]));
        let Validity { from, years } = purpose.validity;
        let until = from + SignedDuration::from_hours(i64::from(years) * 365 * 24);
        let date = |at: Timestamp| {
            OffsetDateTime::from_unix_timestamp(at.as_second()).context("a date of a certificate")
        };
        params.not_before = date(from)?;
        params.not_after = date(until)?;
        let made = params
            .self_signed(&Signing(key))
            .with_context(|| format!("sign the certificate of {}", purpose.name))?;
        Self::from_der(made.der())
    }

    /// Reads a certificate.
    ///
    /// # Errors
    /// It is none, or one of a key that is not RSA.
    pub fn from_der(bytes: &[u8]) -> anyhow::Result<Self> {
        let (rest, parsed) =
            parse_x509_certificate(bytes).map_err(|error| anyhow!("expected X.509: {error}"))?;
        let info = parsed.public_key();
        let rsa = x509_parser::oid_registry::OID_PKCS1_RSAENCRYPTION;
        if info.algorithm.algorithm != rsa {
            return Err(anyhow!("expected the certificate of an RSA key"));
        }
        Ok(Self {
            der: bytes[..bytes.len() - rest.len()].to_vec(),
            subject: parsed.subject().to_string(),
            issuer: parsed.issuer().as_raw().to_vec(),
            serial: der::value(der::INTEGER, parsed.raw_serial()),
            public: info.subject_public_key.data.to_vec(),
        })
    }

    /// Reads a certificate from a file, PEM or DER.
    ///
    /// # Errors
    /// Kind `InvalidInput`: it cannot be read or holds none.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let invalid = |problem: String| {
            let place = path.display();
            exit::marked(
                Kind::InvalidInput,
                format!("certificate {place}: {problem}"),
            )
        };
        let bytes = std::fs::read(path).map_err(|error| invalid(error.to_string()))?;
        let block = Pem::iter_from_buffer(&bytes)
            .filter_map(Result::ok)
            .find(|block| block.label == "CERTIFICATE");
        Self::from_der(block.as_ref().map_or(&bytes, |block| &block.contents))
            .map_err(|error| invalid(error.to_string()))
    }

    /// The certificate's bytes.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The certificate as PEM.
    pub fn pem(&self) -> String {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(&self.der);
        let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
        for line in text.as_bytes().chunks(64) {
            pem.push_str(&String::from_utf8_lossy(line));
            pem.push('\n');
        }
        pem.push_str("-----END CERTIFICATE-----\n");
        pem
    }

    /// Whose it is, for people.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// The public key: `RSAPublicKey` in DER.
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// SHA-256 of the certificate.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.der)
    }

    /// The issuer's name in DER.
    pub(super) fn issuer(&self) -> &[u8] {
        &self.issuer
    }

    /// The serial number in DER.
    pub(super) fn serial(&self) -> &[u8] {
        &self.serial
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signing::tests::{key, named};
    use edge::runner::Tool;

    #[test]
    fn the_same_key_name_and_time_give_the_same_certificate() {
        let make = |name| Certificate::self_signed(&key(), &named(name)).unwrap();
        assert_eq!(make("db"), make("db"));
        assert_ne!(make("db"), make("KEK"));
        assert_eq!(make("db").subject(), "CN=db");
        assert_eq!(make("db").public(), key().public());
    }

    #[test]
    fn openssl_reads_what_is_written_and_the_reader_reads_both_forms() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c");
        let certificate = Certificate::self_signed(&key(), &named("db")).unwrap();
        std::fs::write(&path, certificate.pem()).unwrap();
        assert_eq!(Certificate::read(&path).unwrap(), certificate);
        let text = Tool::new("openssl")
            .args([
                "x509",
                "-noout",
                "-subject",
                "-ext",
                "extendedKeyUsage",
                "-in",
            ])
            .arg(&path)
            .text()
            .unwrap();
        assert!(text.contains("CN = db") || text.contains("CN=db"), "{text}");
        assert!(text.contains("Code Signing"), "{text}");
        std::fs::write(&path, certificate.der()).unwrap();
        assert_eq!(Certificate::read(&path).unwrap(), certificate);
        std::fs::write(&path, &certificate.der()[1..]).unwrap();
        let error = Certificate::read(&path).unwrap_err().to_string();
        assert!(error.contains("expected X.509"), "{error}");
    }
}
