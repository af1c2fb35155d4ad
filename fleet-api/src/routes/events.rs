//! What happened.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::get;
use axum::{Json as Answer, Router};
use model::api::Event;

use super::read::Query;
use crate::app::event;
use crate::error::Problem;
use crate::sky::Sky;

pub(super) fn router() -> Router<Arc<Sky>> {
    Router::new().route("/v1/events", get(events))
}

async fn events(State(sky): State<Arc<Sky>>, query: Query) -> Result<Answer<Vec<Event>>, Problem> {
    event::after(&sky, query.after, query.wait)
        .await
        .map(Answer)
}
