//! Machines in their installer.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::{get, post, put};
use axum::{Json as Answer, Router};
use model::Signed;
use model::api::{Accepted, Announcement, Enrolment, MachineView, Progress, Redemption, Verdict};
use model::machine::MachineCode;
use model::ticket::BirthTicket;

use super::read::{Json, Path, Query};
use crate::app::{machine, ticket};
use crate::auth::Caller;
use crate::error::Problem;
use crate::sky::Sky;

pub(super) fn router() -> Router<Arc<Sky>> {
    Router::new()
        .route("/v1/machines", post(announce).get(list))
        .route("/v1/machines/{code}", get(show))
        .route("/v1/machines/{code}/ticket", put(approve))
        .route("/v1/machines/{code}/verdict", get(verdict))
        .route("/v1/machines/{code}/redeem", post(redeem))
        .route("/v1/machines/{code}/progress", post(progress))
}

async fn announce(
    State(sky): State<Arc<Sky>>,
    caller: Caller,
    Json(announcement): Json<Announcement>,
) -> Result<Answer<MachineView>, Problem> {
    machine::announce(&sky, &caller, &announcement)
        .await
        .map(Answer)
}

async fn list(State(sky): State<Arc<Sky>>) -> Result<Answer<Vec<MachineView>>, Problem> {
    machine::list(&sky).await.map(Answer)
}

async fn show(
    State(sky): State<Arc<Sky>>,
    Path(code): Path<MachineCode>,
) -> Result<Answer<MachineView>, Problem> {
    machine::show(&sky, &code).await.map(Answer)
}

async fn approve(
    State(sky): State<Arc<Sky>>,
    Path(code): Path<MachineCode>,
    Json(document): Json<Signed<BirthTicket>>,
) -> Result<Answer<MachineView>, Problem> {
    ticket::put(&sky, &code, document).await.map(Answer)
}

async fn verdict(
    State(sky): State<Arc<Sky>>,
    caller: Caller,
    Path(code): Path<MachineCode>,
    query: Query,
) -> Result<Answer<Verdict>, Problem> {
    machine::verdict_of(&sky, &caller, &code, query.wait)
        .await
        .map(Answer)
}

async fn redeem(
    State(sky): State<Arc<Sky>>,
    caller: Caller,
    Path(code): Path<MachineCode>,
    Json(redemption): Json<Redemption>,
) -> Result<Answer<Enrolment>, Problem> {
    ticket::redeem(&sky, &caller, &code, &redemption)
        .await
        .map(Answer)
}

async fn progress(
    State(sky): State<Arc<Sky>>,
    caller: Caller,
    Path(code): Path<MachineCode>,
    Json(told): Json<Progress>,
) -> Result<Answer<Accepted>, Problem> {
    machine::progress(&sky, &caller, &code, &told).await?;
    Ok(Answer(Accepted {}))
}
