//! The REST protocol's routes, without TLS and sockets.
//!
//! | request | answer |
//! |---|---|
//! | `POST /{customer}/{unit}/?create=true` | 200, the place exists |
//! | `HEAD GET POST …/config` | 200; 404; 403 when a different one is stored |
//! | `GET …/{kind}/` | the names, with sizes when version 2 is accepted |
//! | `HEAD GET …/{kind}/{name}` | 200, 206 for a range, 404 |
//! | `POST …/{kind}/{name}` | 200 durable; 400 wrong hash; 409 damaged; 411, 413; 507 quota |
//! | `DELETE` anything | 403 |
//! | anything by a fenced incarnation or for another unit | 403 |

use std::io::{Seek as _, SeekFrom, Write as _};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, Path, Request, State};
use axum::http::header::{
    ACCEPT, ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE,
};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures::StreamExt;
use model::{DeviceIdentity, Digest, UnitName};
use sha2::Digest as _;
use tls::server::Peer;
use tokio_util::io::ReaderStream;

use super::fences::Fences;
use super::places::{self, Kind, Places, StoreError, Stored};
use crate::rest::{ListEntry, V2};

/// How long an upload may stand still.
const STANDSTILL: Duration = Duration::from_secs(120);

const V1: &str = "application/vnd.x.restic.rest.v1";

/// What the routes work on.
#[derive(Debug)]
pub struct Vault {
    /// The units' files.
    pub places: Places,
    /// Who is let in.
    pub fences: Arc<Fences>,
    /// The largest single file in bytes.
    pub max_file: u64,
}

/// Why a request is not served. The text goes to the unit.
#[derive(Debug)]
struct Refusal(StatusCode, String);

impl Refusal {
    fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self(status, text.into())
    }

    /// A fault of ours: logged here, not told.
    fn fault(operation: &str, error: impl std::fmt::Display) -> Self {
        tracing::error!(operation, %error, "request failed");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("{operation}: the vault's disk fails"),
        )
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, self.1).into_response()
    }
}

/// The routes. The service must carry [`Peer`] as connect info.
pub fn router(vault: Arc<Vault>) -> Router {
    let config = get(read_config).post(write_config).delete(delete);
    let file = get(read_file).post(write_file).delete(delete);
    Router::new()
        .route("/{customer}/{unit}/", post(create).delete(delete))
        .route("/{customer}/{unit}/config", config)
        .route("/{customer}/{unit}/{kind}/", get(list))
        .route("/{customer}/{unit}/{kind}/{name}", file)
        .layer(middleware::from_fn_with_state(Arc::clone(&vault), admit))
        .with_state(vault)
}

/// Who may do anything at all: the current incarnation of the unit that the path names.
async fn admit(
    State(vault): State<Arc<Vault>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    mut request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    let Some(identity) = peer.device else {
        return Err(Refusal::new(
            StatusCode::FORBIDDEN,
            "certificate names no device: expected a device certificate",
        ));
    };
    let mut parts = request.uri().path().split('/').skip(1);
    let place = format!(
        "{}/{}",
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default()
    );
    if place != identity.unit.to_string() {
        tracing::warn!(%identity, place, "foreign place refused");
        return Err(Refusal::new(
            StatusCode::FORBIDDEN,
            format!(
                "certificate is of {}: expected its own place",
                identity.unit
            ),
        ));
    }
    let address = peer.address.ip().to_string();
    let admitted = {
        let (fences, identity) = (Arc::clone(&vault.fences), identity.clone());
        blocking(move || fences.admit(&identity, &address, edge::clock::now()))
            .await?
            .map_err(|error| Refusal::fault("remember incarnation", format!("{error:#}")))?
    };
    admitted.map_err(|fenced| Refusal::new(StatusCode::FORBIDDEN, fenced.to_string()))?;
    request.extensions_mut().insert(identity);
    Ok(next.run(request).await)
}

type Identity = axum::Extension<DeviceIdentity>;

async fn blocking<T: Send + 'static>(
    operation: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(operation)
        .await
        .map_err(|error| Refusal::fault("run operation", error))
}

async fn create(
    State(vault): State<Arc<Vault>>,
    axum::Extension(identity): Identity,
) -> Result<(), Refusal> {
    blocking(move || vault.places.create(&identity.unit))
        .await?
        .map_err(|error| Refusal::fault("make place", error))
}

async fn delete() -> Refusal {
    Refusal::new(
        StatusCode::FORBIDDEN,
        "this vault is append-only: nothing is deleted by a unit",
    )
}

fn kind_of(text: &str) -> Result<Kind, Refusal> {
    if text == "locks" {
        return Err(Refusal::new(
            StatusCode::FORBIDDEN,
            "this vault takes no locks: use --no-lock to read",
        ));
    }
    Kind::parse(text).ok_or_else(|| {
        Refusal::new(
            StatusCode::NOT_FOUND,
            "unknown kind: expected data, index, keys or snapshots",
        )
    })
}

fn check_name(name: &str) -> Result<(), Refusal> {
    if places::is_name(name) {
        Ok(())
    } else {
        Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "file name: expected 64 lower-case hexadecimal digits",
        ))
    }
}

async fn list(
    State(vault): State<Arc<Vault>>,
    axum::Extension(identity): Identity,
    Path((_, _, kind)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let files = if kind == "locks" {
        Vec::new()
    } else {
        let kind = kind_of(&kind)?;
        blocking(move || vault.places.list(&identity.unit, kind))
            .await?
            .map_err(|error| Refusal::fault("list files", error))?
    };
    let wants_sizes = headers
        .get(ACCEPT)
        .is_some_and(|accept| accept.as_bytes() == V2.as_bytes());
    let encoded = if wants_sizes {
        let entries: Vec<ListEntry> = files
            .into_iter()
            .map(|(name, size)| ListEntry { name, size })
            .collect();
        serde_json::to_vec(&entries)
    } else {
        let names: Vec<String> = files.into_iter().map(|(name, _)| name).collect();
        serde_json::to_vec(&names)
    };
    let body = encoded.map_err(|error| Refusal::fault("encode listing", error))?;
    let version = if wants_sizes { V2 } else { V1 };
    Ok(([(CONTENT_TYPE, version)], body).into_response())
}

async fn read_config(
    State(vault): State<Arc<Vault>>,
    axum::Extension(identity): Identity,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    read(&vault, &identity.unit, Kind::Config, "", &method, &headers).await
}

async fn read_file(
    State(vault): State<Arc<Vault>>,
    axum::Extension(identity): Identity,
    Path((_, _, kind, name)): Path<(String, String, String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    check_name(&name)?;
    let kind = kind_of(&kind)?;
    read(&vault, &identity.unit, kind, &name, &method, &headers).await
}

async fn read(
    vault: &Vault,
    unit: &UnitName,
    kind: Kind,
    name: &str,
    method: &Method,
    headers: &HeaderMap,
) -> Result<Response, Refusal> {
    let path = vault.places.path(unit, kind, name);
    let opened = blocking(move || places::open(&path))
        .await?
        .map_err(|error| Refusal::fault("open file", error))?;
    let Some((mut file, size)) = opened else {
        return Err(Refusal::new(StatusCode::NOT_FOUND, "no such file"));
    };
    let range = match headers.get(RANGE) {
        None => None,
        Some(range) => Some(
            range
                .to_str()
                .ok()
                .and_then(|range| parse_range(range, size))
                .ok_or_else(|| {
                    Refusal::new(
                        StatusCode::RANGE_NOT_SATISFIABLE,
                        format!("range: expected bytes=FROM-TO inside of {size} bytes"),
                    )
                })?,
        ),
    };
    let (from, length) = range.unwrap_or((0, size));
    let mut answer = Response::builder()
        .status(if range.is_some() {
            StatusCode::PARTIAL_CONTENT
        } else {
            StatusCode::OK
        })
        .header(CONTENT_LENGTH, length)
        .header(CONTENT_TYPE, "binary/octet-stream")
        .header(ACCEPT_RANGES, "bytes");
    if range.is_some() && length > 0 {
        let last = from + length - 1;
        answer = answer.header(CONTENT_RANGE, format!("bytes {from}-{last}/{size}"));
    }
    let body = if *method == Method::HEAD {
        Body::empty()
    } else {
        file.seek(SeekFrom::Start(from))
            .map_err(|error| Refusal::fault("read file", error))?;
        let part = tokio::io::AsyncReadExt::take(tokio::fs::File::from_std(file), length);
        Body::from_stream(ReaderStream::with_capacity(part, 128 * 1024))
    };
    answer
        .body(body)
        .map_err(|error| Refusal::fault("answer", error))
}

/// Parses one range into its start and length. Lists of ranges are not part of the protocol.
fn parse_range(text: &str, size: u64) -> Option<(u64, u64)> {
    let (from, to) = text.strip_prefix("bytes=")?.split_once('-')?;
    if from.is_empty() {
        let last: u64 = to.parse().ok()?;
        let length = last.min(size);
        return Some((size - length, length));
    }
    let from: u64 = from.parse().ok()?;
    let to: u64 = if to.is_empty() {
        size.checked_sub(1)?
    } else {
        to.parse::<u64>().ok()?.min(size.checked_sub(1)?)
    };
    (from <= to).then(|| (from, to - from + 1))
}

async fn write_config(
    State(vault): State<Arc<Vault>>,
    axum::Extension(identity): Identity,
    request: Request,
) -> Result<(), Refusal> {
    write(vault, identity.unit, Kind::Config, String::new(), request).await
}

async fn write_file(
    State(vault): State<Arc<Vault>>,
    axum::Extension(identity): Identity,
    Path((_, _, kind, name)): Path<(String, String, String, String)>,
    request: Request,
) -> Result<(), Refusal> {
    check_name(&name)?;
    let kind = kind_of(&kind)?;
    write(vault, identity.unit, kind, name, request).await
}

async fn write(
    vault: Arc<Vault>,
    unit: UnitName,
    kind: Kind,
    name: String,
    request: Request,
) -> Result<(), Refusal> {
    let announced: u64 = request
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok())
        .and_then(|length| length.parse().ok())
        .ok_or_else(|| Refusal::new(StatusCode::LENGTH_REQUIRED, "expected a content length"))?;
    if announced > vault.max_file {
        return Err(Refusal::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!(
                "file of {announced} bytes: at most {} are taken",
                vault.max_file
            ),
        ));
    }
    let places = Arc::clone(&vault);
    let mut upload = blocking(move || places.places.incoming())
        .await?
        .map_err(|error| Refusal::fault("take upload", error))?;
    let mut hash = sha2::Sha256::new();
    let mut received: u64 = 0;
    let mut body = request.into_body().into_data_stream();
    loop {
        let next = tokio::time::timeout(STANDSTILL, body.next()).await;
        let Some(piece) =
            next.map_err(|_| Refusal::new(StatusCode::REQUEST_TIMEOUT, "upload stands still"))?
        else {
            break;
        };
        // A connection that breaks ends here, and the upload is dropped.
        let piece: Bytes = piece.map_err(|error| {
            Refusal::new(
                StatusCode::BAD_REQUEST,
                format!("upload broke off: {error}"),
            )
        })?;
        received += piece.len() as u64;
        if received > announced {
            break;
        }
        (upload, hash) = blocking(move || {
            hash.update(&piece);
            upload.write_all(&piece).map(|()| (upload, hash))
        })
        .await?
        .map_err(|error| Refusal::fault("take upload", error))?;
    }
    if received != announced {
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            format!("upload of {received} bytes: {announced} were announced"),
        ));
    }
    let digest = Digest::from(<[u8; 32]>::from(hash.finalize())).to_string();
    if kind != Kind::Config && digest != name {
        tracing::warn!(%unit, name, digest, "upload with a wrong hash refused");
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            format!("content has the SHA-256 {digest}: expected the file's name"),
        ));
    }
    let stored = blocking(move || vault.places.store(&unit, kind, &name, upload)).await?;
    match stored {
        Ok(Stored::New | Stored::Same) => Ok(()),
        Err(error @ StoreError::Exists) => {
            let status = if kind == Kind::Config {
                StatusCode::FORBIDDEN
            } else {
                StatusCode::CONFLICT
            };
            Err(Refusal::new(status, error.to_string()))
        }
        Err(error @ StoreError::Quota { .. }) => Err(Refusal::new(
            StatusCode::INSUFFICIENT_STORAGE,
            error.to_string(),
        )),
        Err(StoreError::Io(error)) => Err(Refusal::fault("store file", error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_is_clipped_to_the_file_and_never_outside() {
        assert_eq!(parse_range("bytes=0-3", 10), Some((0, 4)));
        assert_eq!(parse_range("bytes=8-99", 10), Some((8, 2)));
        assert_eq!(parse_range("bytes=5-", 10), Some((5, 5)));
        assert_eq!(parse_range("bytes=-3", 10), Some((7, 3)));
        for bad in [
            "bytes=10-",
            "bytes=4-3",
            "bytes=a-b",
            "0-3",
            "bytes=0-1,3-4",
        ] {
            assert_eq!(parse_range(bad, 10), None, "{bad}");
        }
        assert_eq!(parse_range("bytes=0-", 0), None);
    }
}
