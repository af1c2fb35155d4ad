//! A TPM for tests: Debian's `swtpm`, with a state of its own.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use edge::runner::Tool;

use crate::Tpm;

/// How long it may take to come up.
const PATIENCE: Duration = Duration::from_secs(20);

/// A chip that nobody has used before. Dropped, it is gone.
#[derive(Debug)]
pub struct Emulator {
    process: Child,
    folder: tempfile::TempDir,
}

impl Emulator {
    /// Makes a chip and switches it on.
    ///
    /// # Errors
    /// `swtpm` is missing or does not come up.
    pub fn start() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("make the TPM's folder")?;
        let process = Tool::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "startup-clear", "--server"])
            .arg(format!(
                "type=unixio,path={}/socket",
                folder.path().display()
            ))
            .arg("--tpmstate")
            .arg(format!("dir={}", folder.path().display()))
            .command()
            .spawn()
            .context("start swtpm (Debian's package swtpm)")?;
        // From here on it is ended when this is dropped.
        let emulator = Self { process, folder };
        let begun = Instant::now();
        // The socket's name is there a moment before anybody listens at it.
        while UnixStream::connect(emulator.socket()).is_err() {
            ensure!(begun.elapsed() < PATIENCE, "swtpm: nobody answers");
            std::thread::yield_now();
        }
        Ok(emulator)
    }

    /// Where it listens, to one caller at a time.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// Opens it.
    ///
    /// # Errors
    /// It has ended.
    pub fn open(&self) -> Result<Tpm, crate::TpmError> {
        Tpm::open(&self.socket())
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
