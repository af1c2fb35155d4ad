//! The listener and its end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use edge::exit::{Classify as _, Failure, hint};
use tls::server::{ClientAuth, Identity, Listener, Peer};

use crate::config::Config;
use crate::place::Place;
use crate::routes;
use crate::sky::Sky;

/// How long calls in flight may take after the signal to stop.
const FAREWELL: Duration = Duration::from_secs(10);

/// Binds the address: TLS, where a device certificate may be shown.
///
/// # Errors
/// Kind `Environment` when the address cannot be had, `InvalidInput` for the certificate.
pub async fn bind(config: &Config) -> Result<Listener, Failure> {
    let place = Place::new(&config.data);
    let ca = place.text(&place.ca_certificate())?;
    let certificate = place.text(&place.server_certificate())?;
    let key = place.text(&place.server_key())?;
    let identity = Identity::from_pem(&certificate, &key).invalid_input()?;
    Listener::bind(config.listen, identity, ClientAuth::Optional { ca: &ca })
        .await
        .map_err(|error| {
            let next = format!(
                "is another program listening on {0}, and is the address this machine's? try `ss -ltnp`",
                config.listen
            );
            hint(error, next)
        })
        .environment()
}

/// Serves until the sky is told to stop, then lets calls in flight end.
///
/// # Errors
/// The listener failed.
pub async fn serve(sky: Arc<Sky>, listener: Listener) -> Result<(), Failure> {
    let address: SocketAddr = listener.address();
    let app = routes::router(Arc::clone(&sky)).into_make_service_with_connect_info::<Peer>();
    let stop = sky.stop.clone();
    tracing::info!(%address, url = sky.url, "ready");
    let server = axum::serve(listener, app).with_graceful_shutdown(stop.clone().cancelled_owned());
    tokio::select! {
        ended = server.into_future() => ended.context("serve")?,
        () = async { stop.cancelled().await; tokio::time::sleep(FAREWELL).await } => {
            tracing::warn!("some calls did not end in time");
        }
    }
    sky.close().await;
    tracing::info!("stopped");
    Ok(())
}
