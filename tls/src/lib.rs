//! Mutual TLS for everything that speaks HTTPS here.
//!
//! A listener that tells each handler which device called, clients that trust
//! the fleet's own CA and nothing else, and that CA. The device's name stands
//! in its certificate as a URI ([`model::DeviceIdentity`]).
//!
//! This crate does not decide what a caller may do, knows no fences, and keeps
//! no files: PEM texts come in and go out.

use std::sync::Once;

use model::DeviceIdentity;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

pub mod ca;

pub mod client;

pub mod device;

pub mod server;

pub mod time;

/// Makes `ring` the process's provider of cryptography. May be called again.
pub fn install_provider() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // An error says that one is installed already.
        drop(rustls::crypto::ring::default_provider().install_default());
    });
}

/// Returns the device that a certificate (PEM) names. Nothing is verified: it is for the
/// device's own certificate.
pub fn device_in(pem: &str) -> Option<DeviceIdentity> {
    device_of(&CertificateDer::from_pem_slice(pem.as_bytes()).ok()?)
}

/// Returns the device that a certificate (DER) names. Nothing is verified.
fn device_of(certificate: &[u8]) -> Option<DeviceIdentity> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    names
        .value
        .general_names
        .iter()
        .find_map(|name| match name {
            GeneralName::URI(uri) => uri.parse().ok(),
            _ => None,
        })
}
