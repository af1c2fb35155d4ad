//! The factory's side of the sky's API.

use std::time::Duration;

use anyhow::Context as _;
use axum::http::StatusCode;
use bytes::Bytes;
use model::api::{Accepted, Announcement, ApiError, Enrolment, MachineView, Progress, Redemption};
use model::machine::MachineCode;
use model::release::{ChannelPointer, CustomerLayer};
use model::{CustomerName, ReleaseVersion, Signed};
use reqwest::Response;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::config;

/// How long a call may take that does not wait for a person.
const CALL: Duration = Duration::from_secs(30);
/// How long a transfer may stand still.
const STALL: Duration = Duration::from_secs(30);

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub enum SkyError {
    /// The sky answered with an error.
    #[error("sky: {error}")]
    Answered {
        /// The HTTP status.
        status: StatusCode,
        /// What it said.
        error: Box<ApiError>,
    },
    /// The sky could not be reached, or its answer makes no sense.
    #[error("sky {url}: {what}")]
    Unreachable {
        /// The call.
        url: String,
        /// What went wrong: `no answer` or `not understood`.
        what: &'static str,
        /// The client's error.
        #[source]
        source: reqwest::Error,
    },
}

impl SkyError {
    /// Says whether the sky knows no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Answered { status, .. } if *status == StatusCode::NOT_FOUND)
    }

    /// The error as an installer is told it.
    pub fn for_installer(&self) -> (StatusCode, ApiError) {
        match self {
            Self::Answered { status, error } => (*status, (**error).clone()),
            Self::Unreachable { .. } => (
                StatusCode::BAD_GATEWAY,
                ApiError {
                    code: "unreachable".into(),
                    message: "the factory cannot reach the sky".into(),
                    hint: Some("check the factory's uplink and leap-fleet".into()),
                    request: None,
                },
            ),
        }
    }
}

/// A client of the sky.
#[derive(Debug, Clone)]
pub struct SkyClient {
    client: reqwest::Client,
    base: String,
    token: String,
}

impl SkyClient {
    /// Returns a client that trusts the sky's CA alone.
    ///
    /// # Errors
    /// The CA file holds no certificate.
    pub fn new(config: &config::Sky) -> anyhow::Result<Self> {
        let client = tls::client::builder(&config.ca)?
            .read_timeout(STALL.max(Duration::from_secs(90)))
            .build()
            .context("make the client of the sky")?;
        Ok(Self {
            client,
            base: config.url.clone(),
            token: config.token.clone(),
        })
    }

    /// What the channel offers.
    ///
    /// # Errors
    /// [`SkyError`].
    pub async fn channel(&self, name: &str) -> Result<Signed<ChannelPointer>, SkyError> {
        self.get(&format!("/v1/channels/{name}"), CALL).await
    }

    /// The bytes of a release's manifest.
    ///
    /// # Errors
    /// [`SkyError`].
    pub async fn manifest(&self, version: ReleaseVersion) -> Result<Bytes, SkyError> {
        self.bytes(&format!("/v1/releases/{version}/manifest.json"))
            .await
    }

    /// A customer's layer document.
    ///
    /// # Errors
    /// [`SkyError`].
    pub async fn layer(&self, customer: &CustomerName) -> Result<Signed<CustomerLayer>, SkyError> {
        self.get(&format!("/v1/customers/{customer}/layer.json"), CALL)
            .await
    }

    /// Asks something that wants the factory's token, and forgets the answer.
    ///
    /// # Errors
    /// [`SkyError`].
    pub async fn machines(&self) -> Result<(), SkyError> {
        self.bytes("/v1/machines").await.map(drop)
    }

    /// Announces a machine.
    ///
    /// # Errors
    /// [`SkyError`].
    pub async fn announce(&self, body: &Announcement) -> Result<MachineView, SkyError> {
        self.post("/v1/machines", body).await
    }

    /// Waits up to `wait` for what a machine is to do.
    ///
    /// # Errors
    /// [`SkyError`].
    pub async fn verdict(
        &self,
        code: &MachineCode,
        wait: Duration,
    ) -> Result<model::api::Verdict, SkyError> {
        let path = format!("/v1/machines/{code}/verdict?wait={}", wait.as_secs());
        self.get(&path, wait + CALL).await
    }

    /// Uses a ticket up.
    ///
    /// # Errors
    /// [`SkyError`].
    pub async fn redeem(
        &self,
        code: &MachineCode,
        body: &Redemption,
    ) -> Result<Enrolment, SkyError> {
        self.post(&format!("/v1/machines/{code}/redeem"), body)
            .await
    }

    /// Tells how far an installer is.
    ///
    /// # Errors
    /// [`SkyError`].
    pub async fn progress(&self, code: &MachineCode, body: &Progress) -> Result<(), SkyError> {
        self.post::<Accepted>(&format!("/v1/machines/{code}/progress"), body)
            .await
            .map(drop)
    }

    /// Begins to fetch a file from an offset. The answer's status says whether
    /// the sky took the range (206) or sends all of it (200).
    ///
    /// # Errors
    /// [`SkyError`].
    pub async fn download(&self, path: &str, offset: u64) -> Result<Response, SkyError> {
        let mut request = self.client.get(self.url(path)).bearer_auth(&self.token);
        if offset > 0 {
            request = request.header("range", format!("bytes={offset}-"));
        }
        self.answer(path, request).await
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    async fn get<T: DeserializeOwned>(&self, path: &str, limit: Duration) -> Result<T, SkyError> {
        let request = self
            .client
            .get(self.url(path))
            .bearer_auth(&self.token)
            .timeout(limit);
        self.json(path, self.answer(path, request).await?).await
    }

    async fn bytes(&self, path: &str) -> Result<Bytes, SkyError> {
        let request = self
            .client
            .get(self.url(path))
            .bearer_auth(&self.token)
            .timeout(CALL);
        let answer = self.answer(path, request).await?;
        answer
            .bytes()
            .await
            .map_err(|source| SkyError::Unreachable {
                url: self.url(path),
                what: "the answer broke off",
                source,
            })
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, SkyError> {
        let request = self
            .client
            .post(self.url(path))
            .bearer_auth(&self.token)
            .timeout(CALL)
            .json(body);
        self.json(path, self.answer(path, request).await?).await
    }

    async fn json<T: DeserializeOwned>(&self, path: &str, answer: Response) -> Result<T, SkyError> {
        answer.json().await.map_err(|source| SkyError::Unreachable {
            url: self.url(path),
            what: "the answer is not understood",
            source,
        })
    }

    async fn answer(
        &self,
        path: &str,
        request: reqwest::RequestBuilder,
    ) -> Result<Response, SkyError> {
        let answer = request
            .send()
            .await
            .map_err(|source| SkyError::Unreachable {
                url: self.url(path),
                what: "no answer",
                source,
            })?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let text = answer.bytes().await.unwrap_or_default();
        let error = serde_json::from_slice(&text).unwrap_or_else(|_| {
            Box::new(ApiError {
                code: "internal".into(),
                message: format!("{path}: HTTP status {status}"),
                hint: None,
                request: None,
            })
        });
        Err(SkyError::Answered { status, error })
    }
}
