//! Processes that outlive one call: daemons, QEMU, the packet capture.
//!
//! Each gets a log file, no input, and a process group of its own, so that a
//! Ctrl-C meant for the story does not reach it before the story cleans up.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use edge::runner::Tool;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Child;

use super::log::last_lines;
use super::wait;

/// A program with its arguments and its log, not yet started.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Name for messages, for example `leap-fleet`.
    pub name: String,
    /// The program with its arguments.
    pub tool: Tool,
    /// Receives standard output and standard error, at its end.
    pub log: PathBuf,
}

impl Recipe {
    /// Describes a program with its log.
    #[must_use]
    pub fn new(name: &str, tool: Tool, log: impl Into<PathBuf>) -> Self {
        Self {
            name: name.to_owned(),
            tool,
            log: log.into(),
        }
    }

    /// Starts the program.
    ///
    /// # Errors
    /// The log cannot be opened or the program cannot be started.
    pub fn start(self) -> anyhow::Result<Process> {
        let log = open_log(&self.log)?;
        let other = log
            .try_clone()
            .context("share the log with standard error")?;
        tracing::debug!(name = self.name, command = self.tool.line(), "start");
        let child = self
            .tool
            .tokio_command()
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(other)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}: {}", self.name, self.tool.line()))?;
        Ok(Process {
            recipe: self,
            child,
            ended: None,
        })
    }
}

/// A running program. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    recipe: Recipe,
    child: Child,
    ended: Option<ExitStatus>,
}

impl Process {
    /// What was started.
    #[must_use]
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// The process number, while it runs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Says how the program ended, or nothing while it runs.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    /// Succeeds while the program runs.
    ///
    /// # Errors
    /// The program ended. The error shows how, and its last log lines.
    pub fn alive(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.ended() {
            let Recipe { name, log, .. } = &self.recipe;
            let lines = last_lines(log, 12);
            bail!("{name} ended by itself: {status}; it said:\n{lines}");
        }
        Ok(())
    }

    /// Sends a signal. A program that has ended gets none.
    ///
    /// # Errors
    /// The system refused the signal.
    pub fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        if self.ended().is_some() {
            return Ok(());
        }
        let id = self.child.id().and_then(|id| i32::try_from(id).ok());
        if let Some(pid) = id.and_then(Pid::from_raw) {
            kill_process(pid, signal).with_context(|| format!("signal {}", self.recipe.name))?;
        }
        Ok(())
    }

    /// Asks the program to end (SIGTERM) and waits for it.
    ///
    /// # Errors
    /// It did not end in time, and was killed. Our daemons must end when asked.
    pub async fn stop(&mut self, patience: Duration) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        match tokio::time::timeout(patience, self.child.wait()).await {
            Ok(status) => {
                let status = status.with_context(|| format!("wait for {}", self.recipe.name))?;
                self.ended = Some(status);
                Ok(status)
            }
            Err(_) => {
                self.kill().await?;
                bail!(
                    "{} did not end within {} s of being asked and was killed",
                    self.recipe.name,
                    patience.as_secs()
                )
            }
        }
    }

    /// Kills the program (SIGKILL) and waits until it is gone.
    ///
    /// # Errors
    /// The system did not let us.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        let name = &self.recipe.name;
        if self.ended.is_none() {
            let _ = self.child.start_kill();
            let status = self.child.wait().await;
            self.ended = Some(status.with_context(|| format!("wait for {name}"))?);
        }
        Ok(())
    }

    /// Waits until the program ends by itself.
    ///
    /// # Errors
    /// The deadline passed.
    pub async fn wait(&mut self, deadline: Duration) -> anyhow::Result<ExitStatus> {
        let what = format!("{} to end", self.recipe.name);
        wait::until(&what, deadline, || {
            let ended = self.ended();
            async move { Ok(ended) }
        })
        .await
    }
}

/// Runs a tool to its end and returns its standard output.
///
/// # Errors
/// It cannot be started or fails. The error holds what it said on standard error.
pub async fn run<S: AsRef<OsStr>>(
    program: &str,
    arguments: impl IntoIterator<Item = S>,
) -> anyhow::Result<String> {
    Tool::new(program).args(arguments).text_async().await
}

fn open_log(path: &Path) -> anyhow::Result<File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("make folder {}", folder.display()))?;
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("open log {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, log: &Path) -> Recipe {
        Recipe::new("sh", Tool::new("sh").args(["-c", script]), log)
    }

    #[tokio::test]
    async fn an_early_death_is_told_with_the_last_words() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("logs/sh.log");
        let mut process = shell("echo cannot bind port 67 >&2; exit 4", &log)
            .start()
            .unwrap();
        process.wait(Duration::from_secs(10)).await.unwrap();
        let error = process.alive().unwrap_err().to_string();
        assert!(error.contains("exit status: 4"), "{error}");
        assert!(error.contains("cannot bind port 67"), "{error}");
    }

    #[tokio::test]
    async fn a_program_that_ignores_sigterm_is_killed_and_blamed() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("sh.log");
        let script = "trap '' TERM; echo up; exec sleep 60";
        let mut process = shell(script, &log).start().unwrap();
        let mut tail = super::super::log::LogTail::from_start(&log);
        tail.wait_for(&["up"], Duration::from_secs(10), || Ok(()))
            .await
            .unwrap();
        let error = process.stop(Duration::from_millis(100)).await.unwrap_err();
        assert!(error.to_string().contains("was killed"), "{error}");
        assert!(process.ended().is_some());
    }
}
