//! Fences, for the vaults.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json as Answer, Router};
use model::api::{Accepted, FenceAttempt, Fences};

use super::read::Json;
use crate::app::fence;
use crate::error::Problem;
use crate::sky::Sky;

pub(super) fn router() -> Router<Arc<Sky>> {
    Router::new()
        .route("/v1/fences", get(list))
        .route("/v1/fences/attempts", post(report))
}

async fn list(State(sky): State<Arc<Sky>>) -> Result<Answer<Fences>, Problem> {
    fence::list(&sky).await.map(Answer)
}

async fn report(
    State(sky): State<Arc<Sky>>,
    Json(attempt): Json<FenceAttempt>,
) -> Result<Answer<Accepted>, Problem> {
    fence::report(&sky, &attempt).await?;
    Ok(Answer(Accepted {}))
}
