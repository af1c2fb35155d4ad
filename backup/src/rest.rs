//! The client of a vault: restic's REST protocol, version 2, over mutual TLS.
//!
//! [`Rest`] is asynchronous and used by the replicator; through [`Remote`] the
//! same vault is a store of the repository library, for restores that read
//! straight from it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT, CONTENT_LENGTH, RANGE};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use rustic_core::{
    BytesList, ErrorKind, FileType, Id, ReadBackend, RusticError, RusticResult, WriteBackend,
};
use serde::{Deserialize, Serialize};
use tokio::runtime;
use tokio::time::Instant;

use crate::rate::Bucket;

/// Version 2 of the protocol: listings carry sizes.
pub const V2: &str = "application/vnd.x.restic.rest.v2";

/// An upload goes out in pieces of this size, each paid for in the bucket.
const PIECE: usize = 64 * 1024;

/// How long a vault may be silent while an answer is read.
const SILENCE: Duration = Duration::from_secs(60);

/// How long an upload may stand still, and how long the vault may take to
/// make the last piece durable.
const STANDSTILL: Duration = Duration::from_secs(120);

/// How often a request that the network lost is tried, and how long after each.
const RETRIES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(3)];

/// One line of a listing, as the protocol spells it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ListEntry {
    /// The file's name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
}

/// Why a vault did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RestError {
    /// It could not be asked.
    #[error("reach {url}: {reason}")]
    Unreachable {
        /// What was asked.
        url: String,
        /// What the network said.
        reason: String,
    },
    /// It said no: fenced, foreign unit, no such file, quota.
    #[error("{url}: {status}: {message}")]
    Refused {
        /// What was asked.
        url: String,
        /// The status.
        status: u16,
        /// The vault's own words.
        message: String,
    },
    /// It answered with something that is not the protocol.
    #[error("{url}: {reason}")]
    Nonsense {
        /// What was asked.
        url: String,
        /// What is wrong with the answer.
        reason: String,
    },
}

impl RestError {
    /// Whether trying again may help.
    fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
            Self::Nonsense { .. } => false,
        }
    }

    /// Whether the vault says that there is no such file.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }
}

/// A unit's place in one vault.
#[derive(Debug, Clone)]
pub struct Rest {
    client: Client,
    /// `https://host:port/customer/unit`, without a slash at the end.
    base: String,
}

fn unreachable(url: &str, error: reqwest::Error) -> RestError {
    RestError::Unreachable {
        url: url.to_owned(),
        reason: chain(&error.without_url()),
    }
}

fn silent(url: &str, time: Duration) -> RestError {
    RestError::Unreachable {
        url: url.to_owned(),
        reason: format!("no progress for {} s", time.as_secs()),
    }
}

/// Reads an answer to its end, as long as it goes on.
async fn collect(url: &str, mut answer: Response) -> Result<Bytes, RestError> {
    let expected = answer.content_length().unwrap_or(0);
    let expected = usize::try_from(expected.min(64 << 20)).unwrap_or(0);
    let mut body = bytes::BytesMut::with_capacity(expected);
    loop {
        match tokio::time::timeout(SILENCE, answer.chunk()).await {
            Ok(Ok(Some(piece))) => body.extend_from_slice(&piece),
            Ok(Ok(None)) => return Ok(body.freeze()),
            Ok(Err(error)) => return Err(unreachable(url, error)),
            Err(_) => return Err(silent(url, SILENCE)),
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

impl Rest {
    /// The place `unit` (`customer/name`) at the vault `url`.
    pub fn new(client: Client, url: &str, unit: &str) -> Self {
        Self {
            client,
            base: format!("{}/{unit}", url.trim_end_matches('/')),
        }
    }

    fn url(&self, kind: FileType, id: Option<&Id>) -> String {
        let base = &self.base;
        match (kind, id) {
            (FileType::Config, _) => format!("{base}/config"),
            (kind, None) => format!("{base}/{}/", kind.dirname()),
            (kind, Some(id)) => format!("{base}/{}/{}", kind.dirname(), &*id.to_hex()),
        }
    }

    async fn once(url: &str, request: RequestBuilder) -> Result<Response, RestError> {
        match tokio::time::timeout(SILENCE, Self::exchange(url, request)).await {
            Ok(answer) => answer,
            Err(_) => Err(silent(url, SILENCE)),
        }
    }

    async fn exchange(url: &str, request: RequestBuilder) -> Result<Response, RestError> {
        let answer = request
            .send()
            .await
            .map_err(|error| unreachable(url, error))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let mut message = answer.text().await.unwrap_or_default();
        message.truncate(message.floor_char_boundary(300));
        Err(RestError::Refused {
            url: url.to_owned(),
            status: status.as_u16(),
            message: if message.is_empty() {
                status
                    .canonical_reason()
                    .unwrap_or("no reason given")
                    .to_owned()
            } else {
                message.trim().to_owned()
            },
        })
    }

    /// Runs a whole exchange again when the network lost it.
    async fn retry<T, F>(&self, exchange: impl Fn() -> F) -> Result<T, RestError>
    where
        F: Future<Output = Result<T, RestError>>,
    {
        for pause in RETRIES {
            match exchange().await {
                Err(error) if error.is_transient() => {
                    tracing::debug!(%error, "vault is asked again");
                    tokio::time::sleep(pause).await;
                }
                other => return other,
            }
        }
        exchange().await
    }

    async fn body(&self, url: &str, range: Option<String>) -> Result<Bytes, RestError> {
        self.retry(|| async {
            let mut request = self.client.request(Method::GET, url);
            if let Some(range) = &range {
                request = request.header(RANGE, range);
            }
            let answer = Self::once(url, request).await?;
            if range.is_some() && answer.status() != StatusCode::PARTIAL_CONTENT {
                return Err(RestError::Nonsense {
                    url: url.to_owned(),
                    reason: "expected a part of the file".to_owned(),
                });
            }
            collect(url, answer).await
        })
        .await
    }

    /// Lists the files of a kind with their sizes.
    ///
    /// # Errors
    /// [`RestError`].
    pub async fn list(&self, kind: FileType) -> Result<Vec<(Id, u32)>, RestError> {
        let url = self.url(kind, None);
        let nonsense = |reason: String| RestError::Nonsense {
            url: url.clone(),
            reason,
        };
        if kind == FileType::Config {
            return match self.body(&url, None).await {
                Ok(config) => Ok(vec![(
                    Id::default(),
                    u32::try_from(config.len()).map_err(|error| nonsense(error.to_string()))?,
                )]),
                Err(error) if error.is_missing() => Ok(Vec::new()),
                Err(error) => Err(error),
            };
        }
        let entries: Vec<ListEntry> = self
            .retry(|| async {
                let request = self.client.request(Method::GET, &url).header(ACCEPT, V2);
                let answer = match Self::once(&url, request).await {
                    Err(error) if error.is_missing() => return Ok(Vec::new()),
                    other => other?,
                };
                let body = collect(&url, answer).await?;
                serde_json::from_slice(&body)
                    .map_err(|error| nonsense(format!("expected a listing: {error}")))
            })
            .await?;
        entries
            .into_iter()
            .map(|entry| {
                let id = entry.name.parse().map_err(|_| {
                    nonsense(format!("{:?} is no file of a repository", entry.name))
                })?;
                let size =
                    u32::try_from(entry.size).map_err(|error| nonsense(error.to_string()))?;
                Ok((id, size))
            })
            .collect()
    }

    /// Reads a whole file.
    ///
    /// # Errors
    /// [`RestError`].
    pub async fn read(&self, kind: FileType, id: &Id) -> Result<Bytes, RestError> {
        self.body(&self.url(kind, Some(id)), None).await
    }

    /// Reads a part of a file.
    ///
    /// # Errors
    /// [`RestError`], also when the file is shorter.
    pub async fn read_part(
        &self,
        kind: FileType,
        id: &Id,
        offset: u32,
        length: u32,
    ) -> Result<Bytes, RestError> {
        if length == 0 {
            return Ok(Bytes::new());
        }
        let url = self.url(kind, Some(id));
        let last = u64::from(offset) + u64::from(length) - 1;
        let part = self
            .body(&url, Some(format!("bytes={offset}-{last}")))
            .await?;
        if part.len() as u64 != u64::from(length) {
            return Err(RestError::Nonsense {
                url,
                reason: format!("expected {length} bytes, got {}", part.len()),
            });
        }
        Ok(part)
    }

    /// Asks the vault to make a place for the unit. Repeated, it changes nothing.
    ///
    /// # Errors
    /// [`RestError`].
    pub async fn create(&self) -> Result<(), RestError> {
        let url = format!("{}/?create=true", self.base);
        self.retry(|| async {
            Self::once(&url, self.client.request(Method::POST, &url))
                .await
                .map(drop)
        })
        .await
    }

    /// Writes a file, not faster than the bucket allows.
    ///
    /// When this returns, the vault has it durably and has checked its hash.
    ///
    /// # Errors
    /// [`RestError`].
    pub async fn write(
        &self,
        kind: FileType,
        id: &Id,
        content: Bytes,
        rate: &Arc<Bucket>,
    ) -> Result<(), RestError> {
        let url = self.url(kind, Some(id));
        self.retry(|| async {
            let moved = Arc::new(Mutex::new(Instant::now()));
            let body = pieces(content.clone(), Arc::clone(rate), Arc::clone(&moved));
            let request = self
                .client
                .request(Method::POST, &url)
                .header(CONTENT_LENGTH, content.len())
                .body(reqwest::Body::wrap_stream(body));
            // An upload may take hours at a low rate, but it has to move.
            let sending = Self::exchange(&url, request);
            tokio::pin!(sending);
            loop {
                let deadline = *moved.lock().unwrap_or_else(PoisonError::into_inner) + STANDSTILL;
                tokio::select! {
                    sent = &mut sending => return sent.map(drop),
                    () = tokio::time::sleep_until(deadline) => {}
                }
                let last = *moved.lock().unwrap_or_else(PoisonError::into_inner);
                if last + STANDSTILL <= Instant::now() {
                    return Err(silent(&url, STANDSTILL));
                }
            }
        })
        .await
    }
}

/// The content in pieces; `moved` is when the last one was asked for.
fn pieces(
    content: Bytes,
    rate: Arc<Bucket>,
    moved: Arc<Mutex<Instant>>,
) -> impl futures::Stream<Item = Result<Bytes, std::convert::Infallible>> {
    futures::stream::unfold(
        (content, rate, moved),
        |(mut left, rate, moved)| async move {
            *moved.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            if left.is_empty() {
                return None;
            }
            let piece = left.split_to(left.len().min(PIECE));
            rate.take(piece.len()).await;
            Some((Ok(piece), (left, rate, moved)))
        },
    )
}

/// A vault as a store that the repository library reads. It never writes:
/// copies are written by the replicator alone.
#[derive(Debug, Clone)]
pub struct Remote {
    rest: Rest,
    runtime: runtime::Handle,
}

impl Remote {
    /// Reads through `rest`, blocking on the runtime that this is called in.
    pub fn new(rest: Rest) -> Self {
        Self {
            rest,
            runtime: runtime::Handle::current(),
        }
    }
}

fn told(error: RestError) -> Box<RusticError> {
    let kind = ErrorKind::Backend;
    RusticError::new(kind, error.to_string())
}

impl ReadBackend for Remote {
    fn location(&self) -> String {
        self.rest.base.clone()
    }

    fn list_with_size(&self, kind: FileType) -> RusticResult<Vec<(Id, u32)>> {
        self.runtime.block_on(self.rest.list(kind)).map_err(told)
    }

    fn read_full(&self, kind: FileType, id: &Id) -> RusticResult<Bytes> {
        self.runtime
            .block_on(self.rest.read(kind, id))
            .map_err(told)
    }

    fn read_partial(
        &self,
        kind: FileType,
        id: &Id,
        _cacheable: bool,
        offset: u32,
        length: u32,
    ) -> RusticResult<Bytes> {
        self.runtime
            .block_on(self.rest.read_part(kind, id, offset, length))
            .map_err(told)
    }

    fn warmup_path(&self, kind: FileType, id: &Id) -> String {
        self.rest.url(kind, Some(id))
    }
}

fn read_only() -> Box<RusticError> {
    RusticError::new(
        ErrorKind::Unsupported,
        "a destination is written by the replicator alone",
    )
}

impl WriteBackend for Remote {
    fn write_bytes(
        &self,
        _kind: FileType,
        _id: &Id,
        _cacheable: bool,
        _content: BytesList,
    ) -> RusticResult<()> {
        Err(read_only())
    }

    fn remove(&self, _kind: FileType, _id: &Id, _cacheable: bool) -> RusticResult<()> {
        Err(read_only())
    }
}
