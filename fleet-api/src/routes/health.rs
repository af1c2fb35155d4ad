//! Whether the sky answers.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::error::Problem;
use crate::sky::Sky;

pub(super) fn router() -> Router<Arc<Sky>> {
    Router::new().route("/v1/health", get(health))
}

async fn health(State(sky): State<Arc<Sky>>) -> Result<Json<Value>, Problem> {
    sky.store.read().await?.ping().await?;
    Ok(Json(json!({"ok": true})))
}
