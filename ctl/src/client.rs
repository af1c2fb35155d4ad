//! The sky's API as typed calls.

use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

use edge::exit::{Failure, Kind, hint};
use edge::progress::Bar;
use model::api::{
    Accepted, ApiError, CommandView, Event, IncarnationReason, IncarnationView, MachineView,
    NewCustomer, NewIncarnation, NewUnit, Offer, UnitView,
};
use model::command::UnitCommand;
use model::configuration::Configuration;
use model::machine::MachineCode;
use model::pass::{NewPass, PassView};
use model::release::ChannelPointer;
use model::secrets::SealedSecrets;
use model::ticket::BirthTicket;
use model::{CustomerName, Incarnation, ReleaseVersion, Signed, UnitName};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncReadExt as _;

use crate::stream::{News, Parser};

/// A stream that is silent for so long is broken: the sky sends a comment every 15 seconds.
const SILENCE: Duration = Duration::from_secs(45);

/// How long an answer may take when nothing is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a call to the sky has no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SkyError {
    /// Nothing answered.
    #[error("sky {url}: no answer to {call}")]
    Unreachable {
        url: String,
        call: String,
        #[source]
        source: reqwest::Error,
    },
    /// The sky said no.
    #[error("{error}")]
    Answer {
        call: String,
        status: u16,
        error: ApiError,
    },
    /// Something answered and then fell silent.
    #[error("sky {url}: silent for {seconds} s at {call}")]
    Silent {
        url: String,
        call: String,
        seconds: u64,
    },
    /// Something answered that is not the sky of this version.
    #[error("sky {url}: answer to {call} is not readable: {problem}")]
    Unreadable {
        url: String,
        call: String,
        problem: String,
    },
    /// A file to be sent cannot be read.
    #[error("read {path}")]
    File {
        path: String,
        #[source]
        source: std::io::Error,
    },
}

impl SkyError {
    /// Whether the sky knows nothing of what was asked for.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Answer { error, .. } if error.code == "not-found")
    }

    /// Whether asking again later may help.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Silent { .. } => true,
            Self::Answer { status, .. } => *status >= 500,
            Self::Unreadable { .. } | Self::File { .. } => false,
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::Unreachable { .. } | Self::Silent { .. } => Kind::Environment,
            Self::Answer { error, .. } => match error.code.as_str() {
                "refused" | "fenced" => Kind::Refused,
                "unauthorized" => Kind::Environment,
                _ => Kind::Failed,
            },
            Self::Unreadable { .. } => Kind::Failed,
            Self::File { .. } => Kind::InvalidInput,
        }
    }

    fn next_step(&self) -> Option<String> {
        match self {
            Self::Unreachable { .. } | Self::Silent { .. } => {
                Some("check --sky and --ca, and that leap-fleet runs there".into())
            }
            Self::Answer { call, error, .. } => error.hint.clone().or_else(|| {
                let next = match error.code.as_str() {
                    "unauthorized" => "check --token-file",
                    "not-found" => where_to_look(call)?,
                    "internal" => {
                        let request = error.request.as_deref()?;
                        return Some(format!("the sky's log has it as request {request}"));
                    }
                    _ => return None,
                };
                Some(next.to_owned())
            }),
            Self::Unreadable { .. } => {
                Some("check that --sky is a leap-fleet of the same version as leapctl".into())
            }
            Self::File { .. } => None,
        }
    }
}

impl From<SkyError> for Failure {
    fn from(error: SkyError) -> Self {
        let kind = error.kind();
        let next = error.next_step();
        let error = anyhow::Error::new(error);
        match next {
            Some(next) => Self::new(kind, hint(error, next)),
            None => Self::new(kind, error),
        }
    }
}

/// Names the command that shows what there is of the kind that was not found.
fn where_to_look(call: &str) -> Option<&'static str> {
    const PLACES: [(&str, &str); 7] = [
        (
            "POST /v1/units",
            "leapctl customer list shows those that are there",
        ),
        (
            "/escrow",
            "a unit sends its escrow once its backup repository is made: leapctl unit show NAME",
        ),
        ("/v1/units", "leapctl unit list shows those that are there"),
        (
            "/v1/machines",
            "leapctl machine list shows those that are there",
        ),
        (
            "/v1/customers",
            "leapctl customer list shows those that are there",
        ),
        ("/v1/channels", "leapctl release publish DIR --channel NAME"),
        ("/v1/releases", "leapctl release publish DIR"),
    ];
    let known = PLACES.iter().find(|(part, _)| call.contains(part));
    known.map(|(_, next)| *next)
}

type Result<T> = std::result::Result<T, SkyError>;

/// The sky, as an operator speaks to it.
#[derive(Debug, Clone)]
pub(crate) struct Sky {
    http: reqwest::Client,
    base: String,
    token: String,
}

impl Sky {
    /// A client that trusts `ca` alone. It connects at the first call.
    pub(crate) fn new(base: &str, ca: &str, token: &str) -> std::result::Result<Self, Failure> {
        let usage = |message: String| Failure::new(Kind::Usage, anyhow::anyhow!(message));
        let base = base.trim_end_matches('/');
        // The token goes with every call: it must never travel in the clear.
        if !base.starts_with("https://") || reqwest::Url::parse(base).is_err() {
            return Err(usage(format!("sky {base:?}: expected https://HOST:PORT")));
        }
        let http = tls::client::builder(ca)
            .map_err(|error| Failure::new(Kind::Environment, error).context("fleet CA"))?
            .build()
            .map_err(|error| Failure::new(Kind::Environment, error).context("HTTPS client"))?;
        Ok(Self {
            http,
            base: base.to_owned(),
            token: token.to_owned(),
        })
    }

    pub(crate) async fn customers(&self) -> Result<Vec<NewCustomer>> {
        self.get("/v1/customers").await
    }

    pub(crate) async fn create_customer(&self, customer: &NewCustomer) -> Result<NewCustomer> {
        self.send(Method::POST, "/v1/customers", customer).await
    }

    /// Stores the two files of a customer's layer. The sky serves it once both have come.
    pub(crate) async fn store_layer(
        &self,
        customer: &CustomerName,
        document: Vec<u8>,
        image: Vec<u8>,
    ) -> Result<()> {
        let path = format!("/v1/customers/{customer}/layer.raw");
        let request = self.request(Method::PUT, &path).body(image);
        self.answer::<Accepted>(Method::PUT, &path, request).await?;
        let path = format!("/v1/customers/{customer}/layer");
        let request = self
            .request(Method::PUT, &path)
            .header("content-type", "application/json")
            .body(document);
        self.answer::<Accepted>(Method::PUT, &path, request).await?;
        Ok(())
    }

    pub(crate) async fn units(&self) -> Result<Vec<UnitView>> {
        self.get("/v1/units").await
    }

    pub(crate) async fn unit(&self, unit: &UnitName) -> Result<UnitView> {
        self.get(&format!("/v1/units/{unit}")).await
    }

    pub(crate) async fn create_unit(&self, unit: &NewUnit) -> Result<UnitView> {
        self.send(Method::POST, "/v1/units", unit).await
    }

    pub(crate) async fn configuration(&self, unit: &UnitName) -> Result<Signed<Configuration>> {
        self.get(&format!("/v1/units/{unit}/configuration")).await
    }

    pub(crate) async fn configure(
        &self,
        unit: &UnitName,
        configuration: &Signed<Configuration>,
    ) -> Result<Accepted> {
        let path = format!("/v1/units/{unit}/configuration");
        self.send(Method::PUT, &path, configuration).await
    }

    pub(crate) async fn begin_incarnation(
        &self,
        unit: &UnitName,
        reason: IncarnationReason,
    ) -> Result<IncarnationView> {
        let path = format!("/v1/units/{unit}/incarnations");
        self.send(Method::POST, &path, &NewIncarnation { reason })
            .await
    }

    pub(crate) async fn put_pass(&self, unit: &UnitName, pass: &NewPass) -> Result<PassView> {
        let path = format!("/v1/units/{unit}/pass");
        self.send(Method::PUT, &path, pass).await
    }

    pub(crate) async fn escrow(&self, unit: &UnitName) -> Result<SealedSecrets> {
        self.get(&format!("/v1/units/{unit}/escrow")).await
    }

    pub(crate) async fn give_secrets(
        &self,
        unit: &UnitName,
        incarnation: Incarnation,
        secrets: &SealedSecrets,
    ) -> Result<Accepted> {
        let path = format!("/v1/units/{unit}/incarnations/{incarnation}/secrets");
        self.send(Method::PUT, &path, secrets).await
    }

    pub(crate) async fn command(
        &self,
        unit: &UnitName,
        command: &Signed<UnitCommand>,
    ) -> Result<Accepted> {
        let path = format!("/v1/units/{unit}/commands");
        self.send(Method::POST, &path, command).await
    }

    /// Answers when the command has ended, or after `wait` seconds as it stands.
    pub(crate) async fn command_view(
        &self,
        unit: &UnitName,
        id: &str,
        wait: u32,
    ) -> Result<CommandView> {
        let path = format!("/v1/units/{unit}/commands/{id}?wait={wait}");
        self.get_slowly(&path, wait).await
    }

    pub(crate) async fn machines(&self) -> Result<Vec<MachineView>> {
        self.get("/v1/machines").await
    }

    pub(crate) async fn machine(&self, code: &MachineCode) -> Result<MachineView> {
        self.get(&format!("/v1/machines/{code}")).await
    }

    pub(crate) async fn approve(
        &self,
        code: &MachineCode,
        ticket: &Signed<BirthTicket>,
    ) -> Result<MachineView> {
        let path = format!("/v1/machines/{code}/ticket");
        self.send(Method::PUT, &path, ticket).await
    }

    pub(crate) async fn offer(
        &self,
        channel: &str,
        release: ReleaseVersion,
        revision: u32,
    ) -> Result<Signed<ChannelPointer>> {
        let path = format!("/v1/channels/{channel}");
        let offer = Offer { release, revision };
        self.send(Method::PUT, &path, &offer).await
    }

    pub(crate) async fn channel(&self, channel: &str) -> Result<Signed<ChannelPointer>> {
        self.get(&format!("/v1/channels/{channel}")).await
    }

    /// Answers as soon as there is an event after `after`, or after `wait` seconds.
    pub(crate) async fn events(&self, after: u64, wait: u32) -> Result<Vec<Event>> {
        let path = format!("/v1/events?after={after}&wait={wait}");
        self.get_slowly(&path, wait).await
    }

    /// Listens to machines as they change, all of them first.
    pub(crate) async fn listen(&self) -> Result<Listener> {
        let path = "/v1/events/stream?machines=true";
        let request = self.request(Method::GET, path);
        let response = tokio::time::timeout(PATIENCE, self.raw(Method::GET, path, request)).await;
        let response = response.map_err(|_| self.silent(path, PATIENCE))??;
        Ok(Listener {
            sky: self.clone(),
            response,
            parser: Parser::default(),
            ready: VecDeque::new(),
        })
    }

    /// Returns the size of a stored file of a release; `None` when it is not there.
    pub(crate) async fn release_file_size(
        &self,
        release: ReleaseVersion,
        file: &str,
    ) -> Result<Option<u64>> {
        let path = format!("/v1/releases/{release}/{file}");
        // Not HEAD: of a ranged answer the whole size is part by definition.
        let request = self
            .request(Method::GET, &path)
            .header("range", "bytes=0-0")
            .timeout(PATIENCE);
        let response = self.raw(Method::GET, &path, request).await;
        let response = match response {
            Err(error) if error.is_not_found() => return Ok(None),
            other => other?,
        };
        Ok(whole_size(&response))
    }

    /// Returns a whole small file of a release; `None` when it is not there.
    pub(crate) async fn release_file(
        &self,
        release: ReleaseVersion,
        file: &str,
    ) -> Result<Option<Vec<u8>>> {
        let path = format!("/v1/releases/{release}/{file}");
        let request = self.request(Method::GET, &path).timeout(PATIENCE);
        match self.raw(Method::GET, &path, request).await {
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
            Ok(response) => {
                let bytes = response.bytes().await;
                bytes
                    .map(|bytes| Some(bytes.to_vec()))
                    .map_err(|source| self.unreachable(Method::GET, &path, source))
            }
        }
    }

    /// Streams a file of a release to the sky.
    pub(crate) async fn store_release_file(
        &self,
        release: ReleaseVersion,
        file: &str,
        from: &Path,
        bar: &Bar,
    ) -> Result<()> {
        let unreadable = |source| SkyError::File {
            path: from.display().to_string(),
            source,
        };
        let input = tokio::fs::File::open(from).await.map_err(unreadable)?;
        let size = input.metadata().await.map_err(unreadable)?.len();
        let bar = bar.clone();
        let stream = futures::stream::try_unfold(input, move |mut input| {
            let bar = bar.clone();
            async move {
                let mut block = vec![0; 256 * 1024];
                let length = input.read(&mut block).await?;
                block.truncate(length);
                bar.advance(length as u64);
                Ok::<_, std::io::Error>((length > 0).then_some((block, input)))
            }
        });
        let path = format!("/v1/releases/{release}/{file}");
        let request = self
            .request(Method::PUT, &path)
            .header("content-length", size)
            .body(reqwest::Body::wrap_stream(stream));
        self.answer::<Accepted>(Method::PUT, &path, request).await?;
        Ok(())
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.get_slowly(path, 0).await
    }

    async fn get_slowly<T: DeserializeOwned>(&self, path: &str, wait: u32) -> Result<T> {
        let timeout = PATIENCE + Duration::from_secs(wait.into());
        let request = self.request(Method::GET, path).timeout(timeout);
        self.answer(Method::GET, path, request).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T> {
        let request = self
            .request(method.clone(), path)
            .json(body)
            .timeout(PATIENCE);
        self.answer(method, path, request).await
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("{}{path}", self.base))
            .bearer_auth(&self.token)
    }

    async fn answer<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        request: RequestBuilder,
    ) -> Result<T> {
        let response = self.raw(method.clone(), path, request).await?;
        let bytes = response
            .bytes()
            .await
            .map_err(|source| self.unreachable(method.clone(), path, source))?;
        serde_json::from_slice(&bytes).map_err(|problem| SkyError::Unreadable {
            url: self.base.clone(),
            call: format!("{method} {path}"),
            problem: problem.to_string(),
        })
    }

    async fn raw(&self, method: Method, path: &str, request: RequestBuilder) -> Result<Response> {
        let response = request
            .send()
            .await
            .map_err(|source| self.unreachable(method.clone(), path, source))?;
        let status = response.status();
        tracing::debug!(%method, path, status = status.as_u16(), "sky answered");
        if status.is_success() {
            return Ok(response);
        }
        let body = response.bytes().await.unwrap_or_default();
        Err(SkyError::Answer {
            call: format!("{method} {path}"),
            status: status.as_u16(),
            error: api_error(status, &body),
        })
    }

    fn silent(&self, path: &str, patience: Duration) -> SkyError {
        SkyError::Silent {
            url: self.base.clone(),
            call: format!("GET {path}"),
            seconds: patience.as_secs(),
        }
    }

    fn unreachable(&self, method: Method, path: &str, source: reqwest::Error) -> SkyError {
        SkyError::Unreachable {
            url: self.base.clone(),
            call: format!("{method} {path}"),
            source: source.without_url(),
        }
    }
}

/// A stream of news from the sky.
pub(crate) struct Listener {
    sky: Sky,
    response: Response,
    parser: Parser,
    ready: VecDeque<News>,
}

impl Listener {
    /// Returns the next piece of news, or `None` when the sky has ended the stream.
    ///
    /// May be dropped while it waits: nothing is lost.
    pub(crate) async fn next(&mut self) -> Result<Option<News>> {
        let path = "/v1/events/stream";
        loop {
            if let Some(news) = self.ready.pop_front() {
                return Ok(Some(news));
            }
            let chunk = tokio::time::timeout(SILENCE, self.response.chunk()).await;
            let chunk = chunk
                .map_err(|_| self.sky.silent(path, SILENCE))?
                .map_err(|source| self.sky.unreachable(Method::GET, path, source))?;
            let Some(chunk) = chunk else { return Ok(None) };
            let news = self.parser.feed(&chunk);
            self.ready
                .extend(news.map_err(|problem| SkyError::Unreadable {
                    url: self.sky.base.clone(),
                    call: format!("GET {path}"),
                    problem: problem.to_string(),
                })?);
        }
    }
}

/// Reads an error's body, whoever may have written it.
fn api_error(status: StatusCode, body: &[u8]) -> ApiError {
    serde_json::from_slice(body).unwrap_or_else(|_| ApiError {
        code: match status {
            StatusCode::NOT_FOUND => "not-found",
            StatusCode::UNAUTHORIZED => "unauthorized",
            StatusCode::FORBIDDEN => "refused",
            StatusCode::CONFLICT => "conflict",
            status if status.is_client_error() => "bad-request",
            _ => "internal",
        }
        .into(),
        message: match String::from_utf8_lossy(body).trim() {
            "" => status.to_string(),
            text => format!("{status}: {}", text.chars().take(200).collect::<String>()),
        },
        hint: None,
        request: None,
    })
}

/// Returns a file's whole size from the answer to a ranged request.
fn whole_size(response: &Response) -> Option<u64> {
    match response.headers().get("content-range") {
        Some(range) => range.to_str().ok()?.rsplit_once('/')?.1.parse().ok(),
        None => response.content_length(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(code: &str) -> SkyError {
        SkyError::Answer {
            call: "PUT /v1/x".into(),
            status: 409,
            error: ApiError {
                code: code.into(),
                message: "no".into(),
                hint: None,
                request: Some("r1".into()),
            },
        }
    }

    #[test]
    fn the_skys_words_become_exit_codes() {
        let code = |word| Failure::from(answer(word)).kind().code();
        assert_eq!(code("refused"), 5);
        assert_eq!(code("fenced"), 5);
        assert_eq!(code("unauthorized"), 4);
        assert_eq!(code("conflict"), 1);
        assert_eq!(code("not-found"), 1);
        assert_eq!(code("internal"), 1);
    }

    #[test]
    fn an_answer_from_something_else_is_still_an_error_with_its_meaning() {
        let error = api_error(StatusCode::NOT_FOUND, b"<html>nothing here</html>");
        assert_eq!(error.code, "not-found");
        assert!(error.message.contains("nothing here"));
    }

    #[test]
    fn what_was_not_found_is_looked_for_with_another_command() {
        assert!(
            where_to_look("POST /v1/units")
                .unwrap()
                .contains("customer list")
        );
        assert!(
            where_to_look("GET /v1/units/a/b")
                .unwrap()
                .contains("unit list")
        );
        assert!(
            where_to_look("GET /v1/units/a/b/escrow")
                .unwrap()
                .contains("escrow")
        );
        assert!(
            where_to_look("GET /v1/machines/X")
                .unwrap()
                .contains("machine list")
        );
    }

    #[test]
    fn a_token_never_travels_in_the_clear() {
        let failure = Sky::new("http://sky:8443", "", "token").unwrap_err();
        assert_eq!(failure.kind(), Kind::Usage);
    }
}
