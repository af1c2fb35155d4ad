//! Numbers for Prometheus.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;

use crate::app::metrics;
use crate::error::Problem;
use crate::sky::Sky;

pub(super) fn router() -> Router<Arc<Sky>> {
    Router::new().route("/v1/metrics", get(page))
}

async fn page(State(sky): State<Arc<Sky>>) -> Result<impl IntoResponse, Problem> {
    let page = metrics::page(&sky).await?;
    Ok(([(header::CONTENT_TYPE, edge::metrics::CONTENT_TYPE)], page))
}
