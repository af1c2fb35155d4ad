//! A server's time, for a machine whose own clock may stand anywhere.
//!
//! A certificate is valid from one moment to another, so a machine whose clock has lost
//! its years can verify none, and cannot learn the time from anybody whom it trusts. The
//! one question asked here is answered by a server whose certificate was verified as ever,
//! but for the time. Nothing else may be asked this way.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The head of an answer is shorter.
const HEAD: u64 = 16 << 10;

/// Asks the server at `base` (`https://HOST:PORT`) for its time.
///
/// # Errors
/// There is no answer within `patience`, `ca` (PEM) has not signed the server's
/// certificate, or the answer names no time.
pub async fn told_by(base: &str, ca: &str, patience: Duration) -> Result<Timestamp> {
    tokio::time::timeout(patience, ask(base, ca))
        .await
        .map_err(|_| anyhow!("{base}: no answer for {} s", patience.as_secs()))?
        .with_context(|| base.to_owned())
}

async fn ask(base: &str, ca: &str) -> Result<Timestamp> {
    let url = reqwest::Url::parse(base).context("expected https://HOST:PORT")?;
    ensure!(url.scheme() == "https", "expected https://HOST:PORT");
    let host = url.host_str().context("expected https://HOST:PORT")?;
    let host = host.trim_matches(['[', ']']);
    let port = url.port_or_known_default().unwrap_or(443);
    let name = ServerName::try_from(host.to_owned()).context("not a host name")?;
    let stream = TcpStream::connect((host, port)).await.context("connect")?;
    let connector = TlsConnector::from(Arc::new(config(ca)?));
    let mut stream = connector.connect(name, stream).await.context("TLS")?;
    let question = format!("GET /v1/health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream
        .write_all(question.as_bytes())
        .await
        .context("ask for the time")?;
    let mut answer = Vec::new();
    // Whether it ends its TLS properly does not matter once the head is here.
    let read = stream.take(HEAD).read_to_end(&mut answer).await;
    date(&answer).with_context(|| match read {
        Ok(_) => "the answer names no time".to_owned(),
        Err(error) => format!("the answer broke off: {error}"),
    })
}

/// The `Date` in the head of an answer (RFC 9110, 6.6.1).
fn date(answer: &[u8]) -> Option<Timestamp> {
    let head = answer.split(|byte| *byte == b'\n');
    head.map(|line| line.strip_suffix(b"\r").unwrap_or(line))
        .take_while(|line| !line.is_empty())
        .filter_map(|line| std::str::from_utf8(line).ok()?.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("date"))
        .and_then(|(_, value)| rfc2822::parse(value.trim()).ok())
        .map(|date| date.timestamp())
}

fn config(ca: &str) -> Result<ClientConfig> {
    crate::install_provider();
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        let certificate = certificate.context("CA: expected PEM")?;
        roots
            .add(certificate)
            .context("CA: expected a certificate")?;
    }
    let inner = WebPkiServerVerifier::builder(Arc::new(roots))
        .build()
        .context("CA: no certificate found")?;
    Ok(ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AtItsOwnTime(inner)))
        .with_no_client_auth())
}

/// Verifies a certificate at the moment from which on it is valid.
#[derive(Debug)]
struct AtItsOwnTime(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AtItsOwnTime {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let bad = || rustls::Error::InvalidCertificate(CertificateError::BadEncoding);
        let (_, certificate) = X509Certificate::from_der(end_entity).map_err(|_| bad())?;
        let from = certificate.validity().not_before.timestamp();
        let from = u64::try_from(from).map_err(|_| bad())?;
        let then = UnixTime::since_unix_epoch(Duration::from_secs(from));
        self.0
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, then)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::Authority;
    use crate::server::{ClientAuth, Identity, Listener};
    use axum::Router;
    use axum::routing::get;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A server whose certificate begins to be valid at `from`.
    async fn server(authority: &Authority, from: Timestamp) -> String {
        let names = ["127.0.0.1".to_owned()];
        let (certificate, key) = authority.server_certificate(&names, from).unwrap();
        let identity = Identity::from_pem(&certificate, &key).unwrap();
        let address = "127.0.0.1:0".parse().unwrap();
        let listener = Listener::bind(address, identity, ClientAuth::None)
            .await
            .unwrap();
        let base = format!("https://{}", listener.address());
        let router = Router::new().route("/v1/health", get(async || "well"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        base
    }

    #[tokio::test]
    async fn the_time_is_told_whatever_our_clock_says_and_by_nobody_else() {
        let now = edge::clock::now();
        let authority = Authority::generate("fleet", now).unwrap();
        let ca = authority.certificate().to_owned();
        // As seen by a clock that stands a hundred days back.
        let ahead = server(&authority, now + jiff::SignedDuration::from_hours(2400)).await;
        let told = told_by(&ahead, &ca, PATIENCE).await.unwrap();
        assert!(now.duration_until(told).abs() < jiff::SignedDuration::from_mins(1));
        let client = crate::client::builder(&ca).unwrap().build().unwrap();
        let call = client.get(format!("{ahead}/v1/health")).send().await;
        assert!(call.is_err(), "nothing but the time is asked this way");
        let stranger = Authority::generate("stranger", now).unwrap();
        let problem = told_by(&ahead, stranger.certificate(), PATIENCE).await;
        let problem = format!("{:#}", problem.unwrap_err());
        assert!(problem.contains("TLS"), "{problem}");
    }

    #[test]
    fn a_date_is_read_from_the_head_alone() {
        let head = b"HTTP/1.1 200 OK\r\ndate: Sun, 22 Nov 2026 12:00:00 GMT\r\n\r\n";
        assert_eq!(date(head), Some("2026-11-22T12:00:00Z".parse().unwrap()));
        let body = b"HTTP/1.1 200 OK\r\n\r\nDate: Sun, 22 Nov 2026 12:00:00 GMT\r\n";
        assert_eq!(date(body), None);
        assert_eq!(date(b""), None);
    }
}
