//! The keys of a unit, made on its machine. The private halves are in memory
//! until they are written to its own disk.

use std::path::{Path, PathBuf};

use age::secrecy::ExposeSecret as _;
use anyhow::{Result, ensure};
use model::HexBytes;
use model::api::{Credential, Enrolment};
use model::machine::{DeviceKeys, TpmKeys};
use model::ticket::BirthTicket;
use tls::ca::DeviceRequest;
use tpm::Tpm;
use x509_parser::prelude::{FromDer as _, X509Certificate, parse_x509_pem};
use zeroize::Zeroizing;

/// Both keys of a machine.
pub struct Keys {
    device: DeviceRequest,
    /// The file of the `age` identity: itself, or what the TPM has wrapped.
    age: Zeroizing<String>,
    public: DeviceKeys,
    tpm: Option<PathBuf>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys")
            .field("public", &self.public.fingerprint())
            .finish_non_exhaustive()
    }
}

impl Keys {
    /// Makes new keys, whose private halves will be in a file.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn generate() -> Result<Self> {
        let device = tls::ca::device_request()?;
        let (age, recipient) = age_identity();
        let public = DeviceKeys {
            csr: device.csr.clone(),
            public_key: device.public_key,
            recipient,
            tpm: None,
        };
        Ok(Self {
            device,
            age,
            public,
            tpm: None,
        })
    }

    /// Makes new keys that only this TPM can use: the device key in it, the `age`
    /// identity wrapped by it.
    ///
    /// # Errors
    /// There is no TPM, or it does not do it.
    pub fn generate_in(device: &Path) -> Result<Self> {
        let made = tls::device::request_in_tpm(device)?;
        let (age, recipient) = age_identity();
        let sealed = Tpm::open(device)?.seal(age.as_bytes())?;
        let public = DeviceKeys {
            csr: made.request.csr.clone(),
            public_key: made.request.public_key,
            recipient,
            tpm: Some(TpmKeys {
                endorsement_key: HexBytes(made.endorsement.key.as_bytes().to_vec()),
                endorsement_certificate: made.endorsement.certificate.map(HexBytes),
                device_key: HexBytes(made.public.as_bytes().to_vec()),
            }),
        };
        Ok(Self {
            device: made.request,
            age: Zeroizing::new(sealed.to_pem()),
            public,
            tpm: Some(device.to_owned()),
        })
    }

    /// Opens the credential that comes with a ticket: the proof that these keys are in
    /// this machine's TPM.
    ///
    /// # Errors
    /// It is for another TPM, or altered.
    pub fn prove(&self, credential: Option<&Credential>) -> Result<Option<HexBytes>> {
        let (Some(device), Some(credential)) = (&self.tpm, credential) else {
            return Ok(None);
        };
        let key = tpm::Blob::from_pem(&self.device.key)?;
        let wrapped = tpm::Credential {
            blob: credential.blob.0.clone(),
            secret: credential.secret.0.clone(),
        };
        let secret = Tpm::open(device)?.activate(&key, &wrapped)?;
        Ok(Some(HexBytes(secret.to_vec())))
    }

    /// The public halves.
    pub fn public(&self) -> &DeviceKeys {
        &self.public
    }

    /// The file of the device's private key: PKCS #8 PEM, or one that only the TPM reads.
    pub fn device_key(&self) -> &str {
        &self.device.key
    }

    /// The `age` identity in the form of its file.
    pub fn age_key(&self) -> &Zeroizing<String> {
        &self.age
    }
}

/// Makes an identity: the text of its file, and its recipient.
fn age_identity() -> (Zeroizing<String>, String) {
    let identity = age::x25519::Identity::generate();
    let file = Zeroizing::new(format!("{}\n", identity.to_string().expose_secret()));
    (file, identity.to_public().to_string())
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
