//! Check-ins of units.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::post;
use axum::{Json as Answer, Router};
use model::api::{CheckIn, CheckInReply};

use super::read::Json;
use crate::app::checkin;
use crate::auth::Caller;
use crate::error::Problem;
use crate::sky::Sky;

pub(super) fn router() -> Router<Arc<Sky>> {
    Router::new().route("/v1/checkin", post(check_in))
}

async fn check_in(
    State(sky): State<Arc<Sky>>,
    caller: Caller,
    Json(said): Json<CheckIn>,
) -> Result<Answer<CheckInReply>, Problem> {
    checkin::check_in(&sky, caller.unit()?, said)
        .await
        .map(Answer)
}
