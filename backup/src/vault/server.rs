//! The running vault: listener, routes, and the two conversations with the sky.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tls::server::{ClientAuth, Listener, Peer};
use tokio_util::sync::CancellationToken;

use super::config::Config;
use super::fences::{self, Fences};
use super::places::Places;
use super::routes::{self, Vault};

/// How long requests in flight may take after the vault was told to stop.
const FAREWELL: Duration = Duration::from_secs(5);

/// A vault that listens.
#[derive(Debug)]
pub struct Running {
    /// The address that it listens on.
    pub address: SocketAddr,
    stop: CancellationToken,
    server: tokio::task::JoinHandle<std::io::Result<()>>,
    helpers: Vec<tokio::task::JoinHandle<()>>,
}

impl Running {
    /// Waits until the vault has stopped.
    ///
    /// # Errors
    /// When the server failed.
    pub async fn stopped(self) -> anyhow::Result<()> {
        let mut server = self.server;
        let ended = tokio::select! {
            ended = &mut server => ended,
            () = async {
                self.stop.cancelled().await;
                tokio::time::sleep(FAREWELL).await;
            } => {
                // An upload that is cut off here leaves nothing.
                server.abort();
                Ok(Ok(()))
            }
        };
        for helper in self.helpers {
            helper.abort();
        }
        ended.context("run server")?.context("serve")
    }
}

/// Starts a vault; it stops when `stop` is cancelled, after the requests in flight.
///
/// # Errors
/// When the data folder, the list of fences or the address cannot be used.
pub async fn start(config: Config, stop: CancellationToken) -> anyhow::Result<Running> {
    std::fs::create_dir_all(&config.data)
        .with_context(|| format!("data: make {}", config.data.display()))?;
    let places = Places::open(&config.data, config.quota)
        .with_context(|| format!("data: open {}", config.data.display()))?;
    let (send, attempts) = fences::queue();
    let reports = config.sky.is_some().then_some(send);
    let fences = Fences::load(&config.data.join("fences.json"), &config.name, reports)?;
    let fences = Arc::new(fences);
    let mut helpers = Vec::new();
    if let Some(sky) = config.sky.map(Arc::new) {
        fences::refresh(&sky, &fences).await;
        helpers.push(tokio::spawn(fences::poll(
            Arc::clone(&sky),
            Arc::clone(&fences),
        )));
        helpers.push(tokio::spawn(fences::deliver(sky, attempts)));
    } else {
        tracing::warn!("no sky is configured: only the highest incarnation seen fences older ones");
    }
    let auth = ClientAuth::Required {
        ca: &config.device_ca,
    };
    let listener = Listener::bind(config.listen, config.identity, auth).await?;
    let address = listener.address();
    let router = routes::router(Arc::new(Vault {
        places,
        fences,
        max_file: config.max_file,
    }));
    let service = router.into_make_service_with_connect_info::<Peer>();
    let told = stop.clone();
    let serving = axum::serve(listener, service)
        .with_graceful_shutdown(async move { told.cancelled().await });
    tracing::info!(%address, vault = config.name, "vault listens");
    Ok(Running {
        address,
        stop,
        server: tokio::spawn(async move { serving.await }),
        helpers,
    })
}
