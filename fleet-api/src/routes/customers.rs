//! Customers and their layers.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Response};
use axum::response::IntoResponse;
use axum::routing::{get, post, put};
use axum::{Json as Answer, Router};
use model::api::{Accepted, NewCustomer};
use model::release::CustomerLayer;
use model::{CustomerName, Signed};

use super::file;
use super::read::{Json, Path};
use crate::app::{customer, pass};
use crate::auth::Caller;
use crate::error::Problem;
use crate::sky::Sky;

pub(super) fn router() -> Router<Arc<Sky>> {
    Router::new()
        .route("/v1/customers", post(create).get(list))
        .route("/v1/customers/{c}/layer", put(put_layer))
        .route("/v1/customers/{c}/layer.json", get(layer))
        .route("/v1/customers/{c}/layer.raw", put(put_image).get(image))
}

async fn create(
    State(sky): State<Arc<Sky>>,
    Json(new): Json<NewCustomer>,
) -> Result<Answer<NewCustomer>, Problem> {
    customer::create(&sky, new).await.map(Answer)
}

async fn list(State(sky): State<Arc<Sky>>) -> Result<Answer<Vec<NewCustomer>>, Problem> {
    customer::list(&sky).await.map(Answer)
}

async fn put_layer(
    State(sky): State<Arc<Sky>>,
    Path(name): Path<CustomerName>,
    Json(document): Json<Signed<CustomerLayer>>,
) -> Result<Answer<Accepted>, Problem> {
    customer::put_layer(&sky, &name, document).await?;
    Ok(Answer(Accepted {}))
}

async fn put_image(
    State(sky): State<Arc<Sky>>,
    Path(name): Path<CustomerName>,
    body: Body,
) -> Result<Answer<Accepted>, Problem> {
    customer::put_image(&sky, &name, body.into_data_stream()).await?;
    Ok(Answer(Accepted {}))
}

async fn layer(
    State(sky): State<Arc<Sky>>,
    caller: Caller,
    Path(name): Path<CustomerName>,
) -> Result<impl IntoResponse, Problem> {
    check_tenant(&caller, &name)?;
    let layer = customer::layer(&sky, &name).await?;
    Ok(Answer(layer.document))
}

async fn image(
    State(sky): State<Arc<Sky>>,
    caller: Caller,
    Path(name): Path<CustomerName>,
    headers: HeaderMap,
) -> Result<Response<Body>, Problem> {
    check_tenant(&caller, &name)?;
    let layer = customer::layer(&sky, &name).await?;
    file::answer(&sky, &layer.image, &headers).await
}

/// A unit sees its own customer only, and so does an installer with a pass.
fn check_tenant(caller: &Caller, customer: &CustomerName) -> Result<(), Problem> {
    match caller {
        Caller::Unit(identity) if identity.unit.customer() != customer => Err(Problem::refused(
            format!("unit {}: not of customer {customer}", identity.unit),
        )),
        Caller::Installer(pass) => pass::check_customer(pass, customer),
        _ => Ok(()),
    }
}
