//! Calls to the sky over mutual TLS. The transport is not trusted with anything.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use model::ReleaseVersion;
use model::api::{ApiError, CheckIn, CheckInReply};
use tls::device::Papers;

use crate::site::Site;

/// The longest answer to a check-in, and the longest manifest, in bytes.
const MOST: usize = 16 << 20;

/// How a check-in ended.
#[derive(Debug)]
pub enum CheckedIn {
    /// The sky has answered.
    Reply(Box<CheckInReply>),
    /// Another machine is this unit now.
    Fenced(String),
}

/// The sky, as this device.
#[derive(Debug, Clone)]
pub struct Sky {
    address: String,
    ca: String,
    certificate: String,
    key: String,
    tpm: PathBuf,
}

impl Sky {
    /// Reads the address and the device's papers.
    ///
    /// # Errors
    /// The unit was not born, or its papers are malformed.
    pub fn of(site: &Site) -> Result<Self> {
        let enrolment = site.enrolment()?;
        let path = site.identity("device.key");
        let key =
            std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(Self {
            address: enrolment.sky.trim_end_matches('/').to_owned(),
            ca: enrolment.ca,
            certificate: enrolment.certificate,
            key,
            tpm: site.tpm(),
        })
    }

    fn client(&self, kept: usize) -> Result<reqwest::Client> {
        let papers = Papers {
            ca: &self.ca,
            certificate: &self.certificate,
            key: &self.key,
            tpm: &self.tpm,
        };
        papers
            .client()?
            // A connection that outlives a change of the network proves nothing about the new one.
            .pool_max_idle_per_host(kept)
            .build()
            .context("set up HTTPS")
    }

    /// Checks in, over a connection of its own.
    ///
    /// # Errors
    /// The sky was not reached within `limit`, or refused the call.
    pub async fn check_in(&self, body: &CheckIn, limit: Duration) -> Result<CheckedIn> {
        let call = async {
            let answer = self
                .client(0)?
                .post(format!("{}/v1/checkin", self.address))
                .json(body)
                .send()
                .await?;
            let status = answer.status();
            let bytes = bounded(answer).await?;
            if status.is_success() {
                let reply = serde_json::from_slice(&bytes).context("answer to the check-in")?;
                return Ok(CheckedIn::Reply(Box::new(reply)));
            }
            let error = serde_json::from_slice::<ApiError>(&bytes).ok();
            match error {
                Some(error) if error.code == "fenced" => Ok(CheckedIn::Fenced(error.message)),
                Some(error) => Err(anyhow!("sky: {status}: {error}")),
                None => Err(anyhow!("sky: {status}")),
            }
        };
        tokio::time::timeout(limit, call)
            .await
            .unwrap_or_else(|_| Err(anyhow!("sky: no answer within {} s", limit.as_secs())))
            .context("check in")
    }

    /// Fetches a channel's pointer.
    ///
    /// # Errors
    /// The sky was not reached, or has no such channel.
    pub async fn channel(&self, name: &str) -> Result<Vec<u8>> {
        let files = Files {
            client: self.client(0)?,
            folder: format!("{}/v1/channels", self.address),
        };
        files.small(name).await
    }

    /// Fetches files of one release.
    ///
    /// # Errors
    /// HTTPS cannot be set up.
    pub fn release(&self, version: ReleaseVersion) -> Result<Files> {
        Ok(Files {
            client: self.client(1)?,
            folder: format!("{}/v1/releases/{version}", self.address),
        })
    }
}

/// The files of one release at the sky.
#[derive(Debug, Clone)]
pub struct Files {
    client: reqwest::Client,
    folder: String,
}

/// How long the sky may be silent within a download.
const SILENCE: Duration = Duration::from_secs(30);

impl Files {
    /// Fetches a small file whole.
    ///
    /// # Errors
    /// It is missing, too long, or the sky was not reached.
    pub async fn small(&self, path: &str) -> Result<Vec<u8>> {
        let call = async {
            let answer = self.client.get(self.url(path)).send().await?;
            bounded(answer.error_for_status()?).await
        };
        tokio::time::timeout(SILENCE, call)
            .await
            .unwrap_or_else(|_| Err(anyhow!("no answer")))
            .with_context(|| format!("fetch {path}"))
    }

    /// Begins to fetch a file.
    ///
    /// # Errors
    /// It is missing, or the sky was not reached.
    pub async fn whole(&self, path: &str) -> Result<Download> {
        self.begin(self.client.get(self.url(path)), path, 200).await
    }

    /// Begins to fetch a range of a file.
    ///
    /// # Errors
    /// It is missing, the sky was not reached, or it does not know ranges.
    pub async fn range(&self, path: &str, offset: u64, length: u64) -> Result<Download> {
        let last = offset + length - 1;
        let request = self
            .client
            .get(self.url(path))
            .header("range", format!("bytes={offset}-{last}"));
        self.begin(request, path, 206).await
    }

    async fn begin(
        &self,
        request: reqwest::RequestBuilder,
        path: &str,
        status: u16,
    ) -> Result<Download> {
        let answer = tokio::time::timeout(SILENCE, request.send())
            .await
            .map_err(|_| anyhow!("no answer"))
            .and_then(|answer| Ok(answer?.error_for_status()?))
            .with_context(|| format!("fetch {path}"))?;
        if answer.status().as_u16() != status {
            return Err(anyhow!(
                "fetch {path}: answer {}, expected {status}",
                answer.status().as_u16()
            ));
        }
        Ok(Download {
            answer,
            path: path.to_owned(),
        })
    }

    fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.folder)
    }
}

/// A file on its way.
#[derive(Debug)]
pub struct Download {
    answer: reqwest::Response,
    path: String,
}

impl Download {
    /// Returns the next bytes; `None` at the end.
    ///
    /// # Errors
    /// The connection broke or fell silent.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>> {
        let chunk = tokio::time::timeout(SILENCE, self.answer.chunk())
            .await
            .map_err(|_| anyhow!("the sky fell silent"))
            .and_then(|chunk| Ok(chunk?))
            .with_context(|| format!("fetch {}", self.path))?;
        Ok(chunk.map(|bytes| bytes.to_vec()))
    }
}

async fn bounded(mut answer: reqwest::Response) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        anyhow::ensure!(bytes.len() + chunk.len() <= MOST, "answer is too long");
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}
