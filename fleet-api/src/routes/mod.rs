//! The HTTP calls: they read the call, ask `app`, and write the answer.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderValue, Method, Uri};
use axum::middleware::{self, Next};
use axum::response::Response;
use tracing::Instrument as _;
use uuid::Uuid;

use crate::error::{Kind, Problem};
use crate::sky::Sky;
use crate::{auth, error};

mod read;

mod file;

mod health;

mod customers;

mod units;

mod machines;

mod releases;

mod channels;

mod checkin;

mod fences;

mod events;

mod metrics;

/// Who may make a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// No credentials needed.
    Anyone,
    /// Bearer token.
    Operator,
    /// Bearer token.
    Factory,
    /// Bearer token.
    Vault,
    /// Device certificate of a current incarnation.
    Unit,
    /// An installer without a factory: a unit's one-time code as its bearer token.
    Installer,
}

impl Who {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Anyone => "anyone",
            Self::Operator => "operator",
            Self::Factory => "factory",
            Self::Vault => "vault",
            Self::Unit => "unit",
            Self::Installer => "installer",
        }
    }
}

/// A call of the API.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// The method; `GET` stands for `HEAD` too.
    pub method: &'static str,
    /// The path with its parameters.
    pub path: &'static str,
    /// Who may make it.
    pub who: &'static [Who],
    /// The place that a fenced incarnation's attempt is recorded with.
    pub place: &'static str,
}

const fn call(method: &'static str, path: &'static str, who: &'static [Who]) -> Call {
    Call {
        method,
        path,
        who,
        place: "",
    }
}

const fn at(place: &'static str, call: Call) -> Call {
    Call { place, ..call }
}

use Who::{Anyone, Factory, Installer, Operator, Unit, Vault};

/// Every call, and who may make it. What is not here cannot be called.
pub const CALLS: &[Call] = &[
    call("GET", "/v1/health", &[Anyone]),
    call("POST", "/v1/customers", &[Operator]),
    call("GET", "/v1/customers", &[Operator]),
    call("PUT", "/v1/customers/{c}/layer", &[Operator]),
    call("PUT", "/v1/customers/{c}/layer.raw", &[Operator]),
    at(
        "layer",
        call(
            "GET",
            "/v1/customers/{c}/layer.json",
            &[Factory, Unit, Installer],
        ),
    ),
    at(
        "layer",
        call(
            "GET",
            "/v1/customers/{c}/layer.raw",
            &[Factory, Unit, Installer],
        ),
    ),
    call("POST", "/v1/units", &[Operator]),
    call("GET", "/v1/units", &[Operator]),
    call("GET", "/v1/units/{c}/{n}", &[Operator]),
    call("PUT", "/v1/units/{c}/{n}/configuration", &[Operator]),
    call("GET", "/v1/units/{c}/{n}/configuration", &[Operator]),
    call("POST", "/v1/units/{c}/{n}/incarnations", &[Operator]),
    call("GET", "/v1/units/{c}/{n}/escrow", &[Operator]),
    call(
        "PUT",
        "/v1/units/{c}/{n}/incarnations/{i}/secrets",
        &[Operator],
    ),
    call("PUT", "/v1/units/{c}/{n}/pass", &[Operator]),
    call("GET", "/v1/pass", &[Installer]),
    call("POST", "/v1/units/{c}/{n}/commands", &[Operator]),
    call("GET", "/v1/units/{c}/{n}/commands/{id}", &[Operator]),
    call("GET", "/v1/machines", &[Operator, Factory]),
    call("POST", "/v1/machines", &[Factory, Installer]),
    call("GET", "/v1/machines/{code}", &[Operator, Factory]),
    call("PUT", "/v1/machines/{code}/ticket", &[Operator]),
    call("GET", "/v1/machines/{code}/verdict", &[Factory, Installer]),
    call("POST", "/v1/machines/{code}/redeem", &[Factory, Installer]),
    call(
        "POST",
        "/v1/machines/{code}/progress",
        &[Factory, Installer],
    ),
    call("PUT", "/v1/releases/{version}/{*path}", &[Operator]),
    at(
        "release",
        call(
            "GET",
            "/v1/releases/{version}/{*path}",
            &[Factory, Unit, Operator, Installer],
        ),
    ),
    call("PUT", "/v1/channels/{name}", &[Operator]),
    at(
        "channel",
        call("GET", "/v1/channels/{name}", &[Factory, Unit, Operator]),
    ),
    at("check-in", call("POST", "/v1/checkin", &[Unit])),
    call("GET", "/v1/fences", &[Vault]),
    call("POST", "/v1/fences/attempts", &[Vault]),
    call("GET", "/v1/events", &[Operator]),
    call("GET", "/v1/events/stream", &[Operator]),
    call("GET", "/v1/metrics", &[Operator]),
];

/// Largest body of a call with JSON in bytes.
const LARGEST_JSON: usize = 1 << 20;

/// Returns the whole API.
pub fn router(sky: Arc<Sky>) -> Router {
    Router::new()
        .merge(health::router())
        .merge(customers::router())
        .merge(units::router())
        .merge(machines::router())
        .merge(releases::router())
        .merge(channels::router())
        .merge(checkin::router())
        .merge(fences::router())
        .merge(events::router())
        .merge(metrics::router())
        .route_layer(middleware::from_fn_with_state(
            Arc::clone(&sky),
            auth::guard,
        ))
        .fallback(no_such_path)
        .layer(DefaultBodyLimit::max(LARGEST_JSON))
        .layer(middleware::from_fn(observe))
        .with_state(sky)
}

async fn no_such_path(uri: Uri) -> Problem {
    Problem::new(Kind::NotFound, format!("{:?}: no such call", uri.path()))
}

/// Gives the call its id, and its error a body that names it.
async fn observe(request: Request, next: Next) -> Response {
    let id = Uuid::new_v4().simple().to_string();
    let method: Method = request.method().clone();
    let path = request.uri().path().to_owned();
    let span = tracing::info_span!("call", request = id, %method, path);
    let started = Instant::now();
    async {
        let response = error::close(next.run(request).await, &id);
        let milliseconds = started.elapsed().as_millis();
        tracing::debug!(status = response.status().as_u16(), %milliseconds, "call");
        with_id(response, &id)
    }
    .instrument(span)
    .await
}

fn with_id(mut response: Response, id: &str) -> Response {
    if let Ok(value) = HeaderValue::from_str(id) {
        response.headers_mut().insert("x-request-id", value);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_document_names_every_call_and_who_may_make_it() {
        let document = include_str!("../../../docs/fleet-api.md");
        for call in CALLS {
            let who: Vec<_> = call.who.iter().map(|who| who.word()).collect();
            let row = format!("| `{} {}` | {} |", call.method, call.path, who.join(", "));
            assert!(document.contains(&row), "docs/fleet-api.md lacks: {row}");
        }
    }

    fn sources(dir: &Path) -> Vec<std::path::PathBuf> {
        std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .flat_map(|path| {
                if path.is_dir() {
                    sources(&path)
                } else {
                    vec![path]
                }
            })
            .collect()
    }

    #[test]
    fn nothing_outside_the_store_speaks_sql() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let word = concat!("sql", "x::");
        for path in sources(&root) {
            let text = std::fs::read_to_string(&path).unwrap();
            let speaks = text.contains(word);
            assert!(
                !speaks || path.starts_with(root.join("store")),
                "{}",
                path.display()
            );
        }
    }
}
