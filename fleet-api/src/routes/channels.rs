//! Channels.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::put;
use axum::{Json as Answer, Router};
use model::Signed;
use model::api::Offer;
use model::release::ChannelPointer;

use super::read::{Json, Path};
use crate::app::{channel, unit};
use crate::auth::Caller;
use crate::error::Problem;
use crate::sky::Sky;

pub(super) fn router() -> Router<Arc<Sky>> {
    Router::new().route("/v1/channels/{name}", put(offer).get(show))
}

async fn offer(
    State(sky): State<Arc<Sky>>,
    Path(name): Path<String>,
    Json(offer): Json<Offer>,
) -> Result<Answer<Signed<ChannelPointer>>, Problem> {
    channel::offer(&sky, &name, &offer).await.map(Answer)
}

async fn show(
    State(sky): State<Arc<Sky>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Answer<Signed<ChannelPointer>>, Problem> {
    if let Caller::Unit(identity) = &caller {
        let own = unit::show(&sky, &identity.unit).await?.channel;
        if own != name {
            return Err(Problem::refused(format!(
                "unit {}: follows channel {own}, not {name:?}",
                identity.unit
            )));
        }
    }
    channel::show(&sky, &name).await.map(Answer)
}
