//! Daemons: started, waited for until they are ready, and stopped as asked.

use std::net::SocketAddr;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpStream;

use super::log::LogTail;
use super::process::{Process, Recipe};
use super::wait;

/// By what a daemon is known to be ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ready {
    /// A TCP port accepts connections.
    Port(SocketAddr),
    /// The log holds this text, written after the start.
    Line(String),
    /// All of these.
    All(Vec<Ready>),
}

/// How long a daemon may take to become ready, on a slow machine.
const START: Duration = Duration::from_secs(30);

/// How long a daemon may take to end when asked.
const STOP: Duration = Duration::from_secs(10);

/// A daemon that runs. Dropping it kills it.
#[derive(Debug)]
pub struct Server {
    process: Process,
    ready: Ready,
}

impl Server {
    /// Starts a daemon and waits until it is ready.
    ///
    /// # Errors
    /// It cannot be started, ends early, or does not become ready in 30 s. The error
    /// shows its last log lines.
    pub async fn start(recipe: Recipe, ready: Ready) -> anyhow::Result<Self> {
        let name = recipe.name.clone();
        let mut tail = LogTail::from_end(&recipe.log);
        let mut process = recipe.start()?;
        await_ready(&mut process, &ready, &mut tail)
            .await
            .with_context(|| format!("start {name}"))?;
        Ok(Self { process, ready })
    }

    /// The process, for its number, its recipe, or a signal.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// A tail of the log, from now on.
    #[must_use]
    pub fn tail(&self) -> LogTail {
        LogTail::from_end(&self.process.recipe().log)
    }

    /// Succeeds while the daemon runs.
    ///
    /// # Errors
    /// It ended by itself. The error shows its last log lines.
    pub fn alive(&mut self) -> anyhow::Result<()> {
        self.process.alive()
    }

    /// Asks the daemon to end and waits for it.
    ///
    /// # Errors
    /// It did not end within 10 s and was killed.
    pub async fn stop(mut self) -> anyhow::Result<ExitStatus> {
        self.process.stop(STOP).await
    }

    /// Kills the daemon as a power cut would.
    ///
    /// # Errors
    /// The system did not let us.
    pub async fn kill(mut self) -> anyhow::Result<()> {
        self.process.kill().await
    }

    /// Stops the daemon and starts it again with the same command line.
    ///
    /// # Errors
    /// As `stop` and `start`.
    pub async fn restart(mut self) -> anyhow::Result<Self> {
        self.process.stop(STOP).await?;
        Self::start(self.process.recipe().clone(), self.ready).await
    }
}

async fn await_ready(
    process: &mut Process,
    ready: &Ready,
    tail: &mut LogTail,
) -> anyhow::Result<()> {
    match ready {
        Ready::Line(text) => tail
            .wait_for(&[text], START, || process.alive())
            .await
            .map(drop),
        Ready::Port(address) => {
            let what = format!("{address} to accept connections");
            wait::until(&what, START, || {
                let state = process.alive();
                async move {
                    state?;
                    Ok(TcpStream::connect(address).await.ok())
                }
            })
            .await
            .map(drop)
        }
        Ready::All(all) => {
            for one in all {
                Box::pin(await_ready(process, one, tail)).await?;
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, log: &std::path::Path) -> Recipe {
        let tool = edge::runner::Tool::new("sh").args(["-c", script]);
        Recipe::new("sh", tool, log)
    }

    #[tokio::test]
    async fn a_server_is_started_when_its_line_appeared_and_restarts() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("sh.log");
        let ready = Ready::Line("listening".to_owned());
        let server = Server::start(shell("echo listening; exec sleep 60", &log), ready)
            .await
            .unwrap();
        let server = server.restart().await.unwrap();
        server.stop().await.unwrap();
        let said = std::fs::read_to_string(&log).unwrap();
        assert_eq!(said.matches("listening").count(), 2);
    }

    #[tokio::test]
    async fn a_server_that_dies_at_once_fails_the_start_with_its_words() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("sh.log");
        let ready = Ready::Port(([127, 0, 0, 1], 1).into());
        let result = Server::start(shell("echo port taken >&2; exit 4", &log), ready).await;
        let error = format!("{:#}", result.unwrap_err());
        assert!(error.contains("port taken"), "{error}");
    }
}
