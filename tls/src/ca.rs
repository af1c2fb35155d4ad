//! The fleet's certificate authority, and the requests that machines make to it.
//!
//! It issues certificates for our own servers and for device keys. A stolen CA
//! gives no code, no configuration and no secret: none of these rest on it.

use anyhow::{Context as _, Result, ensure};
use jiff::{SignedDuration, Timestamp};
use model::{DeviceIdentity, Digest};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData as _,
    SanType,
};

/// A unit stays enrolled as long as its hardware lives; it is ended by a fence.
const DEVICE_YEARS: i64 = 20;
const SERVER_YEARS: i64 = 5;
const AUTHORITY_YEARS: i64 = 30;

/// The fleet's CA with its private key.
#[derive(Debug)]
pub struct Authority {
    certificate: String,
    key: KeyPair,
}

impl Authority {
    /// Makes a new authority.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn generate(name: &str, now: Timestamp) -> Result<Self> {
        let key = KeyPair::generate().context("make the CA's key")?;
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, now, AUTHORITY_YEARS)?;
        let certificate = params
            .self_signed(&key)
            .context("sign the CA's certificate")?
            .pem();
        Ok(Self { certificate, key })
    }

    /// Reads an authority from its two PEM texts.
    ///
    /// # Errors
    /// Either is malformed.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self> {
        let key = KeyPair::from_pem(key).context("CA key: expected PKCS #8 PEM")?;
        let authority = Self {
            certificate: certificate.to_owned(),
            key,
        };
        authority.issuer()?;
        Ok(authority)
    }

    /// Returns a secret that only the holder of the CA's key can make, for one use.
    ///
    /// The same use gives the same secret.
    pub fn secret(&self, purpose: &str) -> [u8; 32] {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, self.key.serialized_der());
        let tag = ring::hmac::sign(&key, purpose.as_bytes());
        let mut secret = [0; 32];
        secret.copy_from_slice(tag.as_ref());
        secret
    }

    /// The CA's certificate (PEM).
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// The CA's private key (PKCS #8 PEM).
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// Issues a server's certificate for host names and addresses, with a new key.
    ///
    /// # Errors
    /// A name is neither a DNS name nor an address.
    pub fn server_certificate(&self, names: &[String], now: Timestamp) -> Result<(String, String)> {
        let key = KeyPair::generate().context("make the server's key")?;
        let mut params = CertificateParams::new(names.to_vec())
            .with_context(|| format!("server names {names:?}: expected DNS names or addresses"))?;
        params.distinguished_name = common_name(names.first().map_or("leapserv", String::as_str));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, now, SERVER_YEARS)?;
        let certificate = params
            .signed_by(&key, &self.issuer()?)
            .context("sign the server's certificate")?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    /// Issues a device's certificate for the key of its request.
    ///
    /// What else the request asks for is ignored: the name and the usages are ours.
    ///
    /// # Errors
    /// The request is malformed, badly signed, or of another key than expected.
    pub fn device_certificate(
        &self,
        csr: &str,
        identity: &DeviceIdentity,
        expected_key: Digest,
        now: Timestamp,
    ) -> Result<String> {
        let mut request = parse_request(csr)?;
        let found = Digest::of(&request.public_key.subject_public_key_info());
        ensure!(
            found == expected_key,
            "certificate request: of key {found}, expected {expected_key}"
        );
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(&identity.unit.to_string());
        let uri = identity
            .to_string()
            .try_into()
            .context("device identity as a URI")?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, now, DEVICE_YEARS)?;
        request.params = params;
        let certificate = request
            .signed_by(&self.issuer()?)
            .context("sign the device's certificate")?;
        Ok(certificate.pem())
    }

    fn issuer(&self) -> Result<Issuer<'_, &KeyPair>> {
        Issuer::from_ca_cert_pem(&self.certificate, &self.key)
            .context("CA certificate: expected PEM")
    }
}

/// What a machine makes for itself at birth.
pub struct DeviceRequest {
    /// The private key: PKCS #8 PEM, or the file of a key in a TPM. It never leaves the
    /// machine.
    pub key: String,
    /// The certificate signing request (PEM).
    pub csr: String,
    /// SHA-256 of the public key (SubjectPublicKeyInfo, DER).
    pub public_key: Digest,
}

impl std::fmt::Debug for DeviceRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceRequest")
            .field("public_key", &self.public_key)
            .finish_non_exhaustive()
    }
}

/// Makes a device key and the request for its certificate.
///
/// # Errors
/// The system has no randomness.
pub fn device_request() -> Result<DeviceRequest> {
    let key = KeyPair::generate().context("make the device key")?;
    Ok(DeviceRequest {
        public_key: Digest::of(&key.subject_public_key_info()),
        csr: request_of(&key)?,
        key: key.serialize_pem(),
    })
}

/// Returns the request (PEM) for a device key's certificate.
pub(crate) fn request_of(key: &impl rcgen::SigningKey) -> Result<String> {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name("leapserv device");
    params
        .serialize_request(key)
        .and_then(|csr| csr.pem())
        .context("make the certificate request")
}

/// Returns SHA-256 of the public key in a request, after checking that its holder signed it.
///
/// # Errors
/// The request is malformed or badly signed.
pub fn csr_public_key(csr: &str) -> Result<Digest> {
    Ok(Digest::of(
        &parse_request(csr)?.public_key.subject_public_key_info(),
    ))
}

fn parse_request(csr: &str) -> Result<CertificateSigningRequestParams> {
    CertificateSigningRequestParams::from_pem(csr)
        .context("certificate request: expected PKCS #10 PEM")
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn set_validity(params: &mut CertificateParams, now: Timestamp, years: i64) -> Result<()> {
    // A day back: the other side's clock may be behind.
    let from = now - SignedDuration::from_hours(24);
    let to = now + SignedDuration::from_hours(24 * 365 * years);
    let convert = |time: Timestamp| {
        time::OffsetDateTime::from_unix_timestamp(time.as_second()).context("certificate validity")
    };
    params.not_before = convert(from)?;
    params.not_after = convert(to)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Incarnation;

    #[test]
    fn a_device_certificate_is_only_issued_for_the_expected_key() {
        let now = edge::clock::now();
        let ca = Authority::generate("test", now).unwrap();
        let again = Authority::from_pem(ca.certificate(), &ca.key_pem()).unwrap();
        let request = device_request().unwrap();
        assert_eq!(csr_public_key(&request.csr).unwrap(), request.public_key);
        let identity = DeviceIdentity {
            unit: "motivatit/houma-1".parse().unwrap(),
            incarnation: Incarnation(1),
        };
        assert!(
            again
                .device_certificate(&request.csr, &identity, request.public_key, now)
                .is_ok()
        );
        let other = Digest::of(b"another key");
        assert!(
            again
                .device_certificate(&request.csr, &identity, other, now)
                .is_err()
        );
    }
}
