//! What happened.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event as Message, KeepAlive, Sse};
use axum::routing::get;
use axum::{Json as Answer, Router};
use futures::Stream;
use model::api::Event;
use serde::Deserialize;

use super::read::Query;
use crate::app::event;
use crate::app::stream::{self, News, Wanted};
use crate::error::Problem;
use crate::sky::Sky;

/// Between two signs of life of a stream that has nothing to tell.
const ALIVE: Duration = Duration::from_secs(15);

pub(super) fn router() -> Router<Arc<Sky>> {
    Router::new()
        .route("/v1/events", get(events))
        .route("/v1/events/stream", get(follow))
}

async fn events(State(sky): State<Arc<Sky>>, query: Query) -> Result<Answer<Vec<Event>>, Problem> {
    event::after(&sky, query.after, query.wait)
        .await
        .map(Answer)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Follow {
    after: Option<u64>,
    #[serde(default)]
    machines: bool,
}

async fn follow(
    State(sky): State<Arc<Sky>>,
    headers: HeaderMap,
    query: Result<axum::extract::Query<Follow>, axum::extract::rejection::QueryRejection>,
) -> Result<Sse<impl Stream<Item = Result<Message, Infallible>>>, Problem> {
    let Follow { after, machines } = query
        .map_err(|rejection| Problem::bad_request(format!("query: {}", rejection.body_text())))?
        .0;
    let wanted = Wanted {
        // What a client has seen wins over where it once began.
        after: last_seen(&headers)?.or(after),
        machines,
    };
    let stream = stream::Stream::open(&sky, wanted).await?;
    let messages = futures::stream::unfold(stream, async |mut stream| {
        let news = stream.next().await?;
        Some((Ok(message(&news)), stream))
    });
    Ok(Sse::new(messages).keep_alive(KeepAlive::new().interval(ALIVE).text("still here")))
}

fn last_seen(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(value) = headers.get("last-event-id") else {
        return Ok(None);
    };
    let number = value.to_str().ok().and_then(|text| text.parse().ok());
    number
        .map(Some)
        .ok_or_else(|| Problem::bad_request("last-event-id: expected the number of an event"))
}

fn message(news: &News) -> Message {
    let json = |value: Result<String, serde_json::Error>| {
        value.expect("our answers are plain JSON values")
    };
    match news {
        News::Event(event) => Message::default()
            .event("event")
            .id(event.number.to_string())
            .data(json(serde_json::to_string(event))),
        News::Machine(machine) => Message::default()
            .event("machine")
            .data(json(serde_json::to_string(machine))),
    }
}
