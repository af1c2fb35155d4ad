//! Units: configuration, incarnations, secrets, commands.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::{get, post, put};
use axum::{Json as Answer, Router};
use model::api::{Accepted, CommandView, IncarnationView, NewIncarnation, NewUnit, UnitView};
use model::command::UnitCommand;
use model::configuration::Configuration;
use model::pass::{NewPass, PassView};
use model::secrets::SealedSecrets;
use model::{DeviceIdentity, Incarnation, Signed};

use super::read::{Json, Path, Query, unit};
use crate::app;
use crate::auth::Caller;
use crate::error::Problem;
use crate::sky::Sky;

type Names = Path<(String, String)>;

pub(super) fn router() -> Router<Arc<Sky>> {
    Router::new()
        .route("/v1/units", post(create).get(list))
        .route("/v1/units/{c}/{n}", get(show))
        .route(
            "/v1/units/{c}/{n}/configuration",
            put(configure).get(configuration),
        )
        .route("/v1/units/{c}/{n}/incarnations", post(begin))
        .route("/v1/units/{c}/{n}/escrow", get(escrow))
        .route(
            "/v1/units/{c}/{n}/incarnations/{i}/secrets",
            put(device_secrets),
        )
        .route("/v1/units/{c}/{n}/pass", put(pass))
        .route("/v1/pass", get(own_pass))
        .route("/v1/units/{c}/{n}/commands", post(command))
        .route("/v1/units/{c}/{n}/commands/{id}", get(command_view))
}

async fn create(
    State(sky): State<Arc<Sky>>,
    Json(new): Json<NewUnit>,
) -> Result<Answer<UnitView>, Problem> {
    app::unit::create(&sky, new).await.map(Answer)
}

async fn list(State(sky): State<Arc<Sky>>) -> Result<Answer<Vec<UnitView>>, Problem> {
    app::unit::list(&sky).await.map(Answer)
}

async fn show(
    State(sky): State<Arc<Sky>>,
    Path((customer, name)): Names,
) -> Result<Answer<UnitView>, Problem> {
    let unit = unit(&customer, &name)?;
    app::unit::show(&sky, &unit).await.map(Answer)
}

async fn configure(
    State(sky): State<Arc<Sky>>,
    Path((customer, name)): Names,
    Json(document): Json<Signed<Configuration>>,
) -> Result<Answer<Accepted>, Problem> {
    app::configuration::put(&sky, &unit(&customer, &name)?, document).await?;
    Ok(Answer(Accepted {}))
}

async fn configuration(
    State(sky): State<Arc<Sky>>,
    Path((customer, name)): Names,
) -> Result<Answer<Signed<Configuration>>, Problem> {
    let unit = unit(&customer, &name)?;
    app::configuration::newest(&sky, &unit).await.map(Answer)
}

async fn begin(
    State(sky): State<Arc<Sky>>,
    Path((customer, name)): Names,
    Json(new): Json<NewIncarnation>,
) -> Result<Answer<IncarnationView>, Problem> {
    let unit = unit(&customer, &name)?;
    app::incarnation::begin(&sky, &unit, new.reason)
        .await
        .map(Answer)
}

async fn escrow(
    State(sky): State<Arc<Sky>>,
    Path((customer, name)): Names,
) -> Result<Answer<SealedSecrets>, Problem> {
    let unit = unit(&customer, &name)?;
    app::secrets::escrow(&sky, &unit).await.map(Answer)
}

async fn device_secrets(
    State(sky): State<Arc<Sky>>,
    Path((customer, name, incarnation)): Path<(String, String, u32)>,
    Json(secrets): Json<SealedSecrets>,
) -> Result<Answer<Accepted>, Problem> {
    let identity = DeviceIdentity {
        unit: unit(&customer, &name)?,
        incarnation: Incarnation(incarnation),
    };
    app::secrets::put_device(&sky, &identity, &secrets).await?;
    Ok(Answer(Accepted {}))
}

async fn pass(
    State(sky): State<Arc<Sky>>,
    Path((customer, name)): Names,
    Json(new): Json<NewPass>,
) -> Result<Answer<PassView>, Problem> {
    let unit = unit(&customer, &name)?;
    app::pass::put(&sky, &unit, &new).await.map(Answer)
}

async fn own_pass(caller: Caller) -> Result<Answer<PassView>, Problem> {
    match &caller {
        Caller::Installer(pass) => Ok(Answer(app::pass::show(pass))),
        _ => Err(Problem::refused("this call is for installers")),
    }
}

async fn command(
    State(sky): State<Arc<Sky>>,
    Path((customer, name)): Names,
    Json(document): Json<Signed<UnitCommand>>,
) -> Result<Answer<Accepted>, Problem> {
    app::command::put(&sky, &unit(&customer, &name)?, document).await?;
    Ok(Answer(Accepted {}))
}

async fn command_view(
    State(sky): State<Arc<Sky>>,
    Path((customer, name, id)): Path<(String, String, String)>,
    query: Query,
) -> Result<Answer<CommandView>, Problem> {
    let unit = unit(&customer, &name)?;
    app::command::show(&sky, &unit, &id, query.wait)
        .await
        .map(Answer)
}
