//! A device's private key: in a file, or in the machine's TPM.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use model::Digest;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{RootCertStore, SignatureAlgorithm, SignatureScheme};
use tpm::{Blob, Endorsement, Public, Tpm, TpmError};

use crate::ca::{self, DeviceRequest};
use crate::client;

/// The papers by which a device shows who it is.
#[derive(Clone, Copy)]
pub struct Papers<'a> {
    /// The fleet's CA (PEM).
    pub ca: &'a str,
    /// The device's certificate (PEM).
    pub certificate: &'a str,
    /// The device's key: PKCS #8 PEM, or the file of a key in the TPM.
    pub key: &'a str,
    /// Where the TPM is, should the key be in it.
    pub tpm: &'a Path,
}

impl std::fmt::Debug for Papers<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Papers").finish_non_exhaustive()
    }
}

impl Papers<'_> {
    /// Returns a client builder that shows these papers and trusts the fleet's CA alone.
    ///
    /// # Errors
    /// One of them is malformed. Whether the TPM knows the key shows when it is used.
    pub fn client(&self) -> Result<reqwest::ClientBuilder> {
        let builder = client::builder(self.ca)?;
        if !Blob::is_pem(self.key) {
            return client::with_identity(builder, self.certificate, self.key);
        }
        let blob = Blob::from_pem(self.key).context("device key")?;
        let key = TpmKey::new(self.tpm, blob).context("device key")?;
        let chain = CertificateDer::pem_slice_iter(self.certificate.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .context("device certificate: expected PEM")?;
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(self.ca.as_bytes()) {
            let root = root.context("CA: expected PEM")?;
            roots.add(root).context("CA: expected a certificate")?;
        }
        let identity = CertifiedKey::new(chain, Arc::new(key));
        let mut config = rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity)));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(builder.tls_backend_preconfigured(config))
    }
}

/// What a machine makes for itself in its TPM.
#[derive(Debug)]
pub struct TpmRequest {
    /// The request; its key is the file of a key that only this TPM can use.
    pub request: DeviceRequest,
    /// The TPM.
    pub endorsement: Endorsement,
    /// The device key's public area.
    pub public: Public,
}

/// Makes a device key in the TPM and the request for its certificate.
///
/// # Errors
/// There is no TPM, or it does not do it.
pub fn request_in_tpm(device: &Path) -> Result<TpmRequest> {
    let mut tpm = Tpm::open(device)?;
    let endorsement = tpm.endorsement()?;
    let (blob, public) = tpm.create_key()?;
    drop(tpm);
    let key = blob.to_pem();
    let signing = TpmKey::new(device, blob)?;
    Ok(TpmRequest {
        request: DeviceRequest {
            csr: ca::request_of(&signing)?,
            public_key: Digest::of(&public.subject_public_key_info()),
            key,
        },
        endorsement,
        public,
    })
}

/// A key in the TPM. The TPM is opened for each signature: a connection in a while
/// needs one, and two programs of a unit share the chip.
#[derive(Debug, Clone)]
struct TpmKey {
    device: PathBuf,
    blob: Arc<Blob>,
    public: Public,
}

impl TpmKey {
    fn new(device: &Path, blob: Blob) -> Result<Self, TpmError> {
        Ok(Self {
            device: device.to_owned(),
            public: Public::parse(&blob.public)?,
            blob: Arc::new(blob),
        })
    }

    fn signature(&self, message: &[u8]) -> Result<Vec<u8>, TpmError> {
        let digest = Digest::of(message);
        Tpm::open(&self.device)?.sign(&self.blob, digest.as_bytes())
    }
}

impl rcgen::PublicKeyData for TpmKey {
    fn der_bytes(&self) -> &[u8] {
        self.public.point()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for TpmKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.signature(message).map_err(|problem| {
            tracing::error!(%problem, "TPM does not sign");
            rcgen::Error::RemoteKeyError
        })
    }
}

impl rustls::sign::SigningKey for TpmKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn rustls::sign::Signer>> {
        offered
            .contains(&SignatureScheme::ECDSA_NISTP256_SHA256)
            .then(|| Box::new(self.clone()) as Box<dyn rustls::sign::Signer>)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl rustls::sign::Signer for TpmKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        self.signature(message)
            .map_err(|problem| rustls::Error::General(problem.to_string()))
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP256_SHA256
    }
}
