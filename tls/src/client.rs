//! HTTPS clients that trust the fleet's CA and nothing else.

use std::time::Duration;

use anyhow::{Context as _, Result};

/// Returns a client builder that trusts the certificates in `ca` (PEM) alone.
///
/// Connecting is bounded; a call as a whole is not, since downloads and long
/// polls differ: give each request its own timeout.
///
/// # Errors
/// The text holds no certificate.
pub fn builder(ca: &str) -> Result<reqwest::ClientBuilder> {
    crate::install_provider();
    let roots = reqwest::Certificate::from_pem_bundle(ca.as_bytes()).context("CA: expected PEM")?;
    anyhow::ensure!(!roots.is_empty(), "CA: no certificate found");
    Ok(reqwest::Client::builder()
        .tls_certs_only(roots)
        .https_only(true)
        .no_proxy()
        .connect_timeout(Duration::from_secs(10))
        // A peer whose power was cut never closes its connections.
        .tcp_keepalive(Duration::from_secs(15)))
}

/// Adds the client's own certificate and key (PEM).
///
/// # Errors
/// Either is malformed.
pub fn with_identity(
    builder: reqwest::ClientBuilder,
    certificate: &str,
    key: &str,
) -> Result<reqwest::ClientBuilder> {
    let pem = format!("{key}\n{certificate}\n");
    let identity = reqwest::Identity::from_pem(pem.as_bytes())
        .context("device certificate and key: expected PEM")?;
    Ok(builder.identity(identity))
}
