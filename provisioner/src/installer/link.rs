//! The way to the factory, or to the sky where there is none: HTTP that may be lost at
//! any moment. Both speak the same calls.
//!
//! Calls are repeated with back-off, downloads go on where they stopped, and
//! nothing waits for ever. What comes over it is believed by nobody here.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt as _;
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use model::api::{
    Accepted, Announcement, ApiError, Enrolment, MachineView, Progress, Redemption, Verdict,
};
use model::machine::MachineCode;
use model::pass::{PassCode, PassView, StickSettings};
use model::{CustomerName, ReleaseVersion};
use reqwest::StatusCode;
use reqwest::header::{AUTHORIZATION, CONTENT_RANGE, DATE, HeaderValue, RANGE, RETRY_AFTER};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use super::console::Console;
use super::shelf::Shelf;

/// Pieces of a download that are kept while the disk is busy.
const AHEAD: usize = 256;
/// The longest that a verdict is waited for at once.
const POLL: Duration = Duration::from_secs(30);

/// How long to wait for what.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// A call, and a transfer that stands still.
    pub stall: Duration,
    /// Without any answer, until it is given up.
    pub give_up: Duration,
    /// Between two tries, at most.
    pub pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            stall: Duration::from_secs(15),
            give_up: Duration::from_secs(600),
            pause: Duration::from_secs(10),
        }
    }
}

impl Patience {
    /// The pause after so many failures in a row.
    fn back_off(&self, failures: u32) -> Duration {
        let steps = 2u32.saturating_pow(failures.min(16));
        (Duration::from_millis(250) * steps).min(self.pause)
    }
}

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The factory or the sky says no.
    #[error("{what}: {error}")]
    Answered {
        /// The call.
        what: String,
        /// HTTP status.
        status: StatusCode,
        /// What was said.
        error: ApiError,
    },
    /// There was no answer for longer than is waited for.
    #[error("{what}: no answer for {seconds} s")]
    Lost {
        /// The call.
        what: String,
        /// How long.
        seconds: u64,
        /// The last failure.
        #[source]
        source: Failure,
    },
}

/// One failed try.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The network.
    #[error("the link failed")]
    Network(#[source] reqwest::Error),
    /// Nothing came for too long.
    #[error("nothing came for {0} s")]
    Stalled(u64),
    /// The factory is busy or cannot reach what it needs.
    #[error("the answer is: {0}")]
    Busy(ApiError),
    /// An answer that makes no sense.
    #[error("the answer is not understood: {0}")]
    NotUnderstood(String),
}

/// What became of one try.
enum Tried<T> {
    Done(T),
    Again(Failure, Option<Duration>),
    Never(StatusCode, ApiError),
}

/// A link to one factory. Clones share it.
#[derive(Debug, Clone)]
pub struct Link {
    client: reqwest::Client,
    base: String,
    patience: Patience,
    console: Console,
    /// What the stick brings along.
    shelf: Option<Arc<Shelf>>,
}

impl Link {
    /// A link to the factory at `base`, `http://ADDRESS:PORT`.
    ///
    /// # Errors
    /// The client cannot be made.
    pub fn new(base: &str, patience: Patience, console: Console) -> anyhow::Result<Self> {
        // Even for plain HTTP the client wants a TLS provider, and the system's
        // CAs unless it is told to trust none. A bare machine has none.
        tls::install_provider();
        let client = reqwest::Client::builder()
            .tls_certs_only([])
            .no_proxy()
            .connect_timeout(patience.stall)
            .read_timeout(patience.stall.max(POLL + Duration::from_secs(15)))
            .tcp_nodelay(true)
            .build()?;
        Ok(Self {
            client,
            base: base.trim_end_matches('/').to_owned(),
            patience,
            console,
            shelf: None,
        })
    }

    /// A link to the sky, for an installer with a one-time code.
    ///
    /// # Errors
    /// The settings on the stick do not make a client.
    pub fn to_sky(
        settings: &StickSettings,
        pass: &PassCode,
        patience: Patience,
        console: Console,
    ) -> anyhow::Result<Self> {
        let mut token = HeaderValue::try_from(format!("Bearer {}", pass.as_str()))?;
        token.set_sensitive(true);
        let client = tls::client::builder(&settings.ca)?
            .default_headers([(AUTHORIZATION, token)].into_iter().collect())
            .read_timeout(patience.stall.max(POLL + Duration::from_secs(15)))
            .tcp_nodelay(true)
            .build()?;
        Ok(Self {
            client,
            base: settings.sky.trim_end_matches('/').to_owned(),
            patience,
            console,
            shelf: None,
        })
    }

    /// The same link, with a release at hand that does not have to be fetched.
    #[must_use]
    pub fn with_shelf(self, shelf: Shelf) -> Self {
        Self {
            shelf: Some(Arc::new(shelf)),
            ..self
        }
    }

    /// Takes note that something arrived altered: from now on everything is fetched.
    pub fn distrust_shelf(&self) {
        if let Some(shelf) = &self.shelf {
            shelf.distrust();
        }
    }

    /// What our one-time code is for. Only the sky knows.
    ///
    /// # Errors
    /// [`LinkError`]; unauthorized for a code that does not count.
    pub async fn pass(&self) -> Result<PassView, LinkError> {
        let limit = self.patience.stall;
        let request = || self.client.get(self.url("/v1/pass")).timeout(limit);
        self.insist("show the one-time code", request).await
    }

    /// Address of the factory or the sky.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Asks once whether a factory is there; tells its time, if it tells it.
    ///
    /// # Errors
    /// There is none.
    pub async fn health(&self) -> Result<Option<Timestamp>, Failure> {
        let request = self.client.get(self.url("/v1/health"));
        let answer = request
            .timeout(Duration::from_secs(5).min(self.patience.stall))
            .send()
            .await
            .map_err(Failure::Network)?;
        let time = answer
            .headers()
            .get(DATE)
            .and_then(|date| date.to_str().ok())
            .and_then(|date| rfc2822::parse(date).ok())
            .map(|date| date.timestamp());
        let body: serde_json::Value = answer.json().await.map_err(Failure::Network)?;
        if body.get("factory").and_then(serde_json::Value::as_str) == Some("leapserv") {
            Ok(time)
        } else {
            Err(Failure::NotUnderstood("not a LeapServ factory".into()))
        }
    }

    /// Announces the machine.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn announce(&self, body: &Announcement) -> Result<MachineView, LinkError> {
        self.post("announce the machine", "/v1/machines", body)
            .await
    }

    /// Waits a while for what the machine is to do.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn verdict(&self, code: &MachineCode) -> Result<Verdict, LinkError> {
        let path = format!("/v1/machines/{code}/verdict?wait={}", POLL.as_secs());
        let limit = POLL + self.patience.stall;
        let request = || self.client.get(self.url(&path)).timeout(limit);
        self.insist("ask what to do", request).await
    }

    /// Uses the ticket up.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn redeem(
        &self,
        code: &MachineCode,
        body: &Redemption,
    ) -> Result<Enrolment, LinkError> {
        let path = format!("/v1/machines/{code}/redeem");
        self.post("use the ticket", &path, body).await
    }

    /// Tells how far the installation is, until it is heard.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn report(&self, code: &MachineCode, body: &Progress) -> Result<(), LinkError> {
        let path = format!("/v1/machines/{code}/progress");
        self.post::<Accepted>("report the end", &path, body)
            .await
            .map(drop)
    }

    /// Tells how far the installation is, once; whether it is heard does not matter.
    pub async fn mention(&self, code: &MachineCode, body: &Progress) {
        let path = self.url(&format!("/v1/machines/{code}/progress"));
        let request = self.client.post(path).json(body);
        let limit = Duration::from_secs(5).min(self.patience.stall);
        if let Err(problem) = request.timeout(limit).send().await {
            tracing::debug!(%problem, "progress not told");
        }
    }

    /// The bytes of a release's manifest.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn manifest(&self, version: ReleaseVersion) -> Result<Bytes, LinkError> {
        let path = format!("/v1/releases/{version}/manifest.json");
        self.small("fetch the manifest", &path).await
    }

    /// A part of a customer's layer: `layer.json` or `layer.raw`.
    ///
    /// # Errors
    /// [`LinkError`]; see [`LinkError::is_not_found`] for a customer without one.
    pub async fn layer(&self, customer: &CustomerName, part: &str) -> Result<Bytes, LinkError> {
        let path = format!("/v1/customers/{customer}/{part}");
        self.small("fetch the customer's layer", &path).await
    }

    /// Begins to fetch a part of a release's file. Pieces come in order and
    /// without gaps; a link that is lost in between is taken up again. An error
    /// is the last that comes.
    pub fn stream(
        &self,
        version: ReleaseVersion,
        path: &str,
        offset: u64,
        length: u64,
    ) -> mpsc::Receiver<Result<Bytes, LinkError>> {
        let (send, receive) = mpsc::channel(AHEAD);
        let download = Download {
            link: self.clone(),
            what: format!("fetch {path}"),
            url: self.url(&format!("/v1/releases/{version}/{path}")),
            version,
            path: path.to_owned(),
            next: offset,
            end: offset + length,
            send,
        };
        tokio::spawn(download.run());
        receive
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    async fn post<T: DeserializeOwned>(
        &self,
        what: &str,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, LinkError> {
        let request = || {
            let request = self.client.post(self.url(path)).json(body);
            // The factory may have to ask the sky first.
            request.timeout(self.patience.stall.max(Duration::from_secs(40)))
        };
        self.insist(what, request).await
    }

    async fn small(&self, what: &str, path: &str) -> Result<Bytes, LinkError> {
        let request = || {
            let limit = self.patience.stall.max(Duration::from_secs(40));
            self.client.get(self.url(path)).timeout(limit)
        };
        self.insist_bytes(what, request).await
    }

    async fn insist<T: DeserializeOwned>(
        &self,
        what: &str,
        request: impl Fn() -> reqwest::RequestBuilder,
    ) -> Result<T, LinkError> {
        let mut tries = Tries::new(self, what);
        loop {
            let bytes = self.insist_bytes(what, &request).await?;
            match serde_json::from_slice(&bytes) {
                Ok(answer) => return Ok(answer),
                Err(problem) => {
                    let failure = Failure::NotUnderstood(problem.to_string());
                    tries.failed(failure, None).await?;
                }
            }
        }
    }

    async fn insist_bytes(
        &self,
        what: &str,
        request: impl Fn() -> reqwest::RequestBuilder,
    ) -> Result<Bytes, LinkError> {
        let mut tries = Tries::new(self, what);
        loop {
            match once(request()).await {
                Tried::Done(bytes) => {
                    tries.worked();
                    return Ok(bytes);
                }
                Tried::Again(failure, pause) => tries.failed(failure, pause).await?,
                Tried::Never(status, error) => {
                    return Err(LinkError::Answered {
                        what: what.to_owned(),
                        status,
                        error,
                    });
                }
            }
        }
    }
}

impl LinkError {
    /// Says whether there is no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Answered { status, .. } if *status == StatusCode::NOT_FOUND)
    }

    /// The factory's word for what is wrong, or "".
    pub fn code(&self) -> &str {
        match self {
            Self::Answered { error, .. } => &error.code,
            Self::Lost { .. } => "",
        }
    }
}

async fn once(request: reqwest::RequestBuilder) -> Tried<Bytes> {
    let answer = match request.send().await {
        Ok(answer) => answer,
        Err(error) => return Tried::Again(Failure::Network(error), None),
    };
    if !answer.status().is_success() {
        return judge(answer).await;
    }
    match answer.bytes().await {
        Ok(bytes) => Tried::Done(bytes),
        Err(error) => Tried::Again(Failure::Network(error), None),
    }
}

/// Sorts an answer that is no success: ask again, or never.
async fn judge<T>(answer: reqwest::Response) -> Tried<T> {
    let status = answer.status();
    let pause = answer
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .map(|seconds: u64| Duration::from_secs(seconds.min(60)));
    let bytes = answer.bytes().await.unwrap_or_default();
    let error: ApiError = serde_json::from_slice(&bytes).unwrap_or_else(|_| ApiError {
        code: "internal".into(),
        message: format!("HTTP status {status}"),
        hint: None,
        request: None,
    });
    let again = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
    if again && error.code != "refused" {
        Tried::Again(Failure::Busy(error), pause)
    } else {
        Tried::Never(status, error)
    }
}

/// Tries of one thing: pauses between them, and an end.
struct Tries<'a> {
    link: &'a Link,
    what: &'a str,
    failures: u32,
    since: Option<Instant>,
}

impl<'a> Tries<'a> {
    fn new(link: &'a Link, what: &'a str) -> Self {
        Self {
            link,
            what,
            failures: 0,
            since: None,
        }
    }

    fn worked(&mut self) {
        if self.since.take().is_some() {
            self.link.console.line("link is back");
        }
        self.failures = 0;
    }

    async fn failed(&mut self, failure: Failure, pause: Option<Duration>) -> Result<(), LinkError> {
        let since = *self.since.get_or_insert_with(Instant::now);
        if self.failures == 0 {
            let text = format!("link lost: {}: {}", self.what, Chain(&failure));
            self.link.console.line(&text);
        }
        let patience = &self.link.patience;
        let pause = pause.unwrap_or_else(|| patience.back_off(self.failures));
        if since.elapsed() + pause > patience.give_up {
            return Err(LinkError::Lost {
                what: self.what.to_owned(),
                seconds: since.elapsed().as_secs(),
                source: failure,
            });
        }
        self.failures += 1;
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

/// An error with its causes on one line.
struct Chain<'a>(&'a dyn std::error::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

struct Download {
    link: Link,
    what: String,
    url: String,
    version: ReleaseVersion,
    path: String,
    next: u64,
    end: u64,
    send: mpsc::Sender<Result<Bytes, LinkError>>,
}

impl Download {
    async fn run(mut self) {
        let (link, what) = (self.link.clone(), self.what.clone());
        if let Some(shelf) = link.shelf.clone() {
            self.take_from_shelf(shelf).await;
        }
        let mut tries = Tries::new(&link, &what);
        while self.next < self.end {
            let before = self.next;
            let ended = self.once().await;
            if self.next > before {
                tries.worked();
            }
            let error = match ended {
                Tried::Done(Taken::All) => continue,
                // Nobody wants the rest.
                Tried::Done(Taken::Unwanted) => return,
                Tried::Again(failure, pause) => match tries.failed(failure, pause).await {
                    Ok(()) => continue,
                    Err(error) => error,
                },
                Tried::Never(status, error) => LinkError::Answered {
                    what: what.clone(),
                    status,
                    error,
                },
            };
            drop(self.send.send(Err(error)).await);
            return;
        }
    }

    /// Takes what the stick has; the network goes on behind it.
    async fn take_from_shelf(&mut self, shelf: Arc<Shelf>) {
        let (version, path, send) = (self.version, self.path.clone(), self.send.clone());
        let range = (self.next, self.end);
        let read = tokio::task::spawn_blocking(move || {
            shelf.read(version, &path, range, |piece| {
                send.blocking_send(Ok(piece)).is_ok()
            })
        });
        self.next = read.await.unwrap_or(self.next);
    }

    async fn once(&mut self) -> Tried<Taken> {
        let range = format!("bytes={}-{}", self.next, self.end - 1);
        let request = self.link.client.get(&self.url).header(RANGE, range);
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) => return Tried::Again(Failure::Network(error), None),
        };
        if !answer.status().is_success() {
            return judge(answer).await;
        }
        let expected = format!("bytes {}-{}/", self.next, self.end - 1);
        let told = answer
            .headers()
            .get(CONTENT_RANGE)
            .and_then(|range| range.to_str().ok())
            .unwrap_or_default();
        if !told.starts_with(&expected) {
            let failure = format!("range {told:?}, expected {expected:?}");
            return Tried::Again(Failure::NotUnderstood(failure), None);
        }
        let stall = self.link.patience.stall;
        let mut body = answer.bytes_stream();
        loop {
            match tokio::time::timeout(stall, body.next()).await {
                Ok(Some(Ok(mut piece))) => {
                    let room = usize::try_from(self.end - self.next).unwrap_or(usize::MAX);
                    piece.truncate(room);
                    self.next += u64::try_from(piece.len()).expect("a piece in memory");
                    if self.send.send(Ok(piece)).await.is_err() {
                        return Tried::Done(Taken::Unwanted);
                    }
                    if self.next == self.end {
                        return Tried::Done(Taken::All);
                    }
                }
                Ok(Some(Err(error))) => return Tried::Again(Failure::Network(error), None),
                Ok(None) => {
                    let failure = Failure::NotUnderstood("the file ended early".into());
                    return Tried::Again(failure, None);
                }
                Err(_) => return Tried::Again(Failure::Stalled(stall.as_secs()), None),
            }
        }
    }
}

enum Taken {
    All,
    Unwanted,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_bound() {
        let patience = Patience::default();
        let pauses: Vec<_> = (0..8).map(|n| patience.back_off(n)).collect();
        assert!(pauses.is_sorted());
        assert_eq!(pauses[0], Duration::from_millis(250));
        assert_eq!(patience.back_off(u32::MAX), patience.pause);
    }
}
