//! Files of releases.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Response};
use axum::routing::put;
use axum::{Json as Answer, Router};
use model::ReleaseVersion;
use model::api::Accepted;

use super::file;
use super::read::Path;
use crate::app::release;
use crate::error::Problem;
use crate::sky::Sky;

pub(super) fn router() -> Router<Arc<Sky>> {
    Router::new().route("/v1/releases/{version}/{*path}", put(upload).get(download))
}

async fn upload(
    State(sky): State<Arc<Sky>>,
    Path((version, path)): Path<(ReleaseVersion, String)>,
    body: Body,
) -> Result<Answer<Accepted>, Problem> {
    release::put_file(&sky, &version, &path, body.into_data_stream()).await?;
    Ok(Answer(Accepted {}))
}

async fn download(
    State(sky): State<Arc<Sky>>,
    Path((version, path)): Path<(ReleaseVersion, String)>,
    headers: HeaderMap,
) -> Result<Response<Body>, Problem> {
    let stored = release::file(&sky, &version, &path).await?;
    file::answer(&sky, &stored, &headers).await
}
