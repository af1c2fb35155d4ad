//! Reading a call: body, path and query, each with our own error.

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use model::UnitName;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::auth::Caller;
use crate::error::{Kind, Problem};

/// A body of JSON.
pub(super) struct Json<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let bytes = Bytes::from_request(request, state)
            .await
            .map_err(|rejection| {
                let kind = match rejection.status() {
                    StatusCode::PAYLOAD_TOO_LARGE => Kind::TooLarge,
                    _ => Kind::BadRequest,
                };
                Problem::new(kind, format!("body: {}", rejection.body_text()))
            })?;
        serde_json::from_slice(&bytes).map(Self).map_err(|error| {
            // The text itself stays out of the message: it may hold what must not be logged.
            let kind = match error.classify() {
                serde_json::error::Category::Data => Kind::Invalid,
                _ => Kind::BadRequest,
            };
            Problem::new(kind, format!("body: {error}"))
        })
    }
}

/// Parameters of the path.
pub(super) struct Path<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        axum::extract::Path::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Path(value)| Self(value))
            .map_err(|rejection| Problem::bad_request(format!("path: {}", rejection.body_text())))
    }
}

/// Returns the unit that a path names.
pub(super) fn unit(customer: &str, name: &str) -> Result<UnitName, Problem> {
    format!("{customer}/{name}")
        .parse()
        .map_err(|error| Problem::bad_request(format!("path: {error}")))
}

/// What a call may ask beside its path.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Query {
    /// Seconds to wait for news.
    pub(super) wait: u64,
    /// The number of the last event that is known.
    pub(super) after: u64,
}

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        axum::extract::Query::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Query(query)| query)
            .map_err(|rejection| Problem::bad_request(format!("query: {}", rejection.body_text())))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts
            .extensions
            .get::<Self>()
            .cloned()
            .ok_or_else(|| Problem::new(Kind::Unauthorized, "this call needs credentials"))
    }
}
