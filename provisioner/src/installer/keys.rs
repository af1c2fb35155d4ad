//! The keys of a unit, made on its machine. The private halves are in memory
//! until they are written to its own disk.

use age::secrecy::ExposeSecret as _;
use anyhow::{Result, ensure};
use model::api::Enrolment;
use model::machine::DeviceKeys;
use model::ticket::BirthTicket;
use tls::ca::DeviceRequest;
use x509_parser::prelude::{FromDer as _, X509Certificate, parse_x509_pem};
use zeroize::Zeroizing;

/// Both keys of a machine.
pub struct Keys {
    device: DeviceRequest,
    age: age::x25519::Identity,
    public: DeviceKeys,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys")
            .field("public", &self.public.fingerprint())
            .finish_non_exhaustive()
    }
}

impl Keys {
    /// Makes new keys.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn generate() -> Result<Self> {
        let device = tls::ca::device_request()?;
        let age = age::x25519::Identity::generate();
        let public = DeviceKeys {
            csr: device.csr.clone(),
            public_key: device.public_key,
            recipient: age.to_public().to_string(),
        };
        Ok(Self {
            device,
            age,
            public,
        })
    }

    /// The public halves.
    pub fn public(&self) -> &DeviceKeys {
        &self.public
    }

    /// The device's private key (PKCS #8 PEM).
    pub fn device_key(&self) -> &str {
        &self.device.key
    }

    /// The `age` identity in the form of its file.
    pub fn age_key(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{}\n", self.age.to_string().expose_secret()))
    }
}

/// Checks that papers are for these keys and for what the ticket says.
///
/// They came over a way that nobody protects. False papers would only make a
/// unit that knows no sky, but it is better told here than after a restart.
///
/// # Errors
/// Says what does not fit.
pub fn check_enrolment(
    enrolment: &Enrolment,
    ticket: &BirthTicket,
    keys: &DeviceKeys,
) -> Result<()> {
    let identity = &enrolment.identity;
    ensure!(
        identity.unit == ticket.unit && identity.incarnation == ticket.incarnation,
        "enrolment: for {identity}, expected {} incarnation {}",
        ticket.unit,
        ticket.incarnation
    );
    let certificate = |pem: &str| -> Result<Vec<u8>> {
        let (_, pem) = parse_x509_pem(pem.as_bytes())
            .map_err(|_| anyhow::anyhow!("enrolment: certificate is not PEM"))?;
        Ok(pem.contents)
    };
    let ours = certificate(&enrolment.certificate)?;
    let ca = certificate(&enrolment.ca)?;
    let parse = |der: &[u8]| {
        X509Certificate::from_der(der)
            .map(|(_, certificate)| {
                (
                    model::Digest::of(certificate.public_key().raw),
                    certificate.subject().to_string(),
                    certificate.issuer().to_string(),
                )
            })
            .map_err(|_| anyhow::anyhow!("enrolment: certificate is not readable"))
    };
    let (key, _, issuer) = parse(&ours)?;
    let (_, subject, _) = parse(&ca)?;
    ensure!(
        key == keys.public_key,
        "enrolment: the certificate is for another key than this machine's"
    );
    ensure!(
        issuer == subject,
        "enrolment: the certificate is issued by {issuer:?}, expected {subject:?}"
    );
    ensure!(
        enrolment.sky.starts_with("https://"),
        "enrolment: the sky is at {:?}, expected https://",
        enrolment.sky
    );
    Ok(())
}
