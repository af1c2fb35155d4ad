//! The HTTPS listener for axum: who called stands in the connection's info.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use model::{DeviceIdentity, Digest};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// How long a client may take to shake hands.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Connections whose handshake is done and that axum has not taken yet.
const BACKLOG: usize = 64;

/// A server's certificate chain and key.
#[derive(Debug)]
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    /// Reads both from PEM.
    ///
    /// # Errors
    /// Either is malformed.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self> {
        let chain = certificates(certificate).context("server certificate: expected PEM")?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .context("server key: expected PKCS #8 PEM")?;
        Ok(Self { chain, key })
    }
}

/// Whether clients show a certificate. One that is shown is always verified.
#[derive(Debug, Clone, Copy)]
pub enum ClientAuth<'a> {
    /// They are not asked.
    None,
    /// They may; without one, [`Peer::device`] is empty.
    Optional {
        /// The CA that signs devices' certificates (PEM).
        ca: &'a str,
    },
    /// They must, or the handshake fails.
    Required {
        /// The CA that signs devices' certificates (PEM).
        ca: &'a str,
    },
}

/// Who is at the other end.
#[derive(Debug, Clone)]
pub struct Peer {
    /// The address.
    pub address: SocketAddr,
    /// The device that the client's verified certificate names.
    pub device: Option<DeviceIdentity>,
    /// SHA-256 of the client's certificate.
    pub certificate: Option<Digest>,
}

impl Connected<IncomingStream<'_, Listener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Listener>) -> Self {
        stream.remote_addr().clone()
    }
}

/// Accepts TLS connections. Handshakes run beside each other, so that one slow
/// client holds up no other.
#[derive(Debug)]
pub struct Listener {
    address: SocketAddr,
    ready: mpsc::Receiver<(TlsStream<TcpStream>, Peer)>,
    acceptor: tokio::task::JoinHandle<()>,
}

impl Listener {
    /// Binds the address and begins to listen.
    ///
    /// # Errors
    /// The address is taken or not ours, or a PEM text does not fit.
    pub async fn bind(
        address: SocketAddr,
        identity: Identity,
        client_auth: ClientAuth<'_>,
    ) -> Result<Self> {
        crate::install_provider();
        let config = Arc::new(server_config(identity, client_auth)?);
        let tcp = TcpListener::bind(address)
            .await
            .with_context(|| format!("listen on {address}"))?;
        let address = tcp.local_addr().context("own address")?;
        let (send, ready) = mpsc::channel(BACKLOG);
        let acceptor = tokio::spawn(accept(tcp, TlsAcceptor::from(config), send));
        Ok(Self {
            address,
            ready,
            acceptor,
        })
    }

    /// The address that is listened on; useful after binding port 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}

impl axum::serve::Listener for Listener {
    type Io = TlsStream<TcpStream>;
    type Addr = Peer;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(connection) => connection,
            // The task that accepts never ends by itself; nothing more can come.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Peer> {
        Ok(Peer {
            address: self.address,
            device: None,
            certificate: None,
        })
    }
}

async fn accept(
    tcp: TcpListener,
    acceptor: TlsAcceptor,
    send: mpsc::Sender<(TlsStream<TcpStream>, Peer)>,
) {
    loop {
        let (stream, address) = match tcp.accept().await {
            Ok(accepted) => accepted,
            Err(problem) => {
                // Out of descriptors, mostly: give the others time to close theirs.
                tracing::warn!(%problem, "connection not accepted");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let (acceptor, send) = (acceptor.clone(), send.clone());
        tokio::spawn(async move {
            // Small answers must not wait for the peer's delayed acknowledgement.
            drop(stream.set_nodelay(true));
            match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => {
                    let peer = peer_of(&stream, address);
                    drop(send.send((stream, peer)).await);
                }
                Ok(Err(problem)) => tracing::debug!(%address, %problem, "TLS handshake failed"),
                Err(_) => tracing::debug!(%address, "TLS handshake took too long"),
            }
        });
    }
}

fn server_config(identity: Identity, client_auth: ClientAuth<'_>) -> Result<ServerConfig> {
    let verifier = |ca: &str| -> Result<_> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(ca).context("CA: expected PEM")? {
            roots.add(certificate).context("CA")?;
        }
        Ok(WebPkiClientVerifier::builder(Arc::new(roots)))
    };
    let builder = ServerConfig::builder();
    let builder = match client_auth {
        ClientAuth::None => builder.with_no_client_auth(),
        ClientAuth::Optional { ca } => {
            let verifier = verifier(ca)?.allow_unauthenticated().build();
            builder.with_client_cert_verifier(verifier.context("CA")?)
        }
        ClientAuth::Required { ca } => {
            builder.with_client_cert_verifier(verifier(ca)?.build().context("CA")?)
        }
    };
    builder
        .with_single_cert(identity.chain, identity.key)
        .context("server certificate and key: expected a pair")
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>()?;
    anyhow::ensure!(!chain.is_empty(), "no certificate found");
    Ok(chain)
}

fn peer_of(stream: &TlsStream<TcpStream>, address: SocketAddr) -> Peer {
    let certificate = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first());
    Peer {
        address,
        device: certificate.and_then(|certificate| crate::device_of(certificate)),
        certificate: certificate.map(|certificate| Digest::of(certificate)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ca, client};
    use axum::extract::ConnectInfo;
    use axum::routing::get;
    use model::Incarnation;

    async fn whoami(ConnectInfo(peer): ConnectInfo<Peer>) -> String {
        peer.device
            .map_or_else(|| "nobody".to_owned(), |device| device.to_string())
    }

    async fn serve(ca: &ca::Authority, auth: ClientAuth<'_>) -> String {
        let now = edge::clock::now();
        let (certificate, key) = ca.server_certificate(&["127.0.0.1".into()], now).unwrap();
        let identity = Identity::from_pem(&certificate, &key).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = Listener::bind(address, identity, auth).await.unwrap();
        let url = format!("https://{}/", listener.address());
        let router = axum::Router::new().route("/", get(whoami));
        let service = router.into_make_service_with_connect_info::<Peer>();
        tokio::spawn(async move { axum::serve(listener, service).await });
        url
    }

    fn device(ca: &ca::Authority, trusts: &ca::Authority) -> reqwest::Client {
        let identity = DeviceIdentity {
            unit: "motivatit/houma-1".parse().unwrap(),
            incarnation: Incarnation(3),
        };
        let request = ca::device_request().unwrap();
        let certificate = ca
            .device_certificate(
                &request.csr,
                &identity,
                request.public_key,
                edge::clock::now(),
            )
            .unwrap();
        let builder = client::builder(trusts.certificate()).unwrap();
        client::with_identity(builder, &certificate, &request.key)
            .unwrap()
            .build()
            .unwrap()
    }

    #[tokio::test]
    async fn a_handler_learns_which_device_called() {
        let ca = ca::Authority::generate("fleet", edge::clock::now()).unwrap();
        let url = serve(
            &ca,
            ClientAuth::Optional {
                ca: ca.certificate(),
            },
        )
        .await;
        let answer = device(&ca, &ca).get(&url).send().await.unwrap();
        assert_eq!(
            answer.text().await.unwrap(),
            "urn:leapserv:motivatit/houma-1:3"
        );
        let anonymous = client::builder(ca.certificate()).unwrap().build().unwrap();
        let answer = anonymous.get(&url).send().await.unwrap();
        assert_eq!(answer.text().await.unwrap(), "nobody");
    }

    #[tokio::test]
    async fn a_device_of_another_fleet_is_turned_away() {
        let ca = ca::Authority::generate("fleet", edge::clock::now()).unwrap();
        let other = ca::Authority::generate("other", edge::clock::now()).unwrap();
        let url = serve(
            &ca,
            ClientAuth::Optional {
                ca: ca.certificate(),
            },
        )
        .await;
        assert!(device(&other, &ca).get(&url).send().await.is_err());
    }

    #[tokio::test]
    async fn a_client_refuses_a_server_of_another_fleet() {
        let ca = ca::Authority::generate("fleet", edge::clock::now()).unwrap();
        let other = ca::Authority::generate("other", edge::clock::now()).unwrap();
        let url = serve(&other, ClientAuth::None).await;
        let client = client::builder(ca.certificate()).unwrap().build().unwrap();
        assert!(client.get(&url).send().await.is_err());
    }

    #[tokio::test]
    async fn without_a_required_certificate_there_is_no_answer() {
        let ca = ca::Authority::generate("fleet", edge::clock::now()).unwrap();
        let url = serve(
            &ca,
            ClientAuth::Required {
                ca: ca.certificate(),
            },
        )
        .await;
        let anonymous = client::builder(ca.certificate()).unwrap().build().unwrap();
        assert!(anonymous.get(&url).send().await.is_err());
        assert!(device(&ca, &ca).get(&url).send().await.is_ok());
    }
}
