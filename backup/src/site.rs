//! Where the engine's files lie on a unit, and the one lock for writers.

use std::fs::{File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use edge::exit::{Kind, hint, marked};
use model::DeviceIdentity;
use model::configuration::Backup;

/// All paths of the engine, under one root that tests may move.
#[derive(Debug, Clone)]
pub struct Site {
    root: PathBuf,
}

impl Site {
    /// The paths under `root`, `/` on a unit.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// Folder for the engine's own files.
    pub fn state(&self) -> PathBuf {
        self.at("var/lib/leapserv/backup")
    }

    /// The configuration, written by the updater.
    pub fn config(&self) -> PathBuf {
        self.state().join("config.json")
    }

    /// The local repository.
    pub fn repository(&self) -> PathBuf {
        self.state().join("repository")
    }

    /// The unit's secrets.
    pub fn secrets(&self) -> PathBuf {
        self.at("var/lib/leapserv/secrets/backup.json")
    }

    /// The device certificate.
    pub fn certificate(&self) -> PathBuf {
        self.at("var/lib/leapserv/identity/device.crt")
    }

    /// The device key.
    pub fn key(&self) -> PathBuf {
        self.at("var/lib/leapserv/identity/device.key")
    }

    /// The CA of the sky and of the vaults.
    pub fn ca(&self) -> PathBuf {
        self.at("var/lib/leapserv/identity/ca.crt")
    }

    /// Reads the configuration; without one there is nothing to back up.
    ///
    /// # Errors
    /// Kind `InvalidInput` when the file does not fit.
    pub fn read_config(&self) -> anyhow::Result<Option<Backup>> {
        let path = self.config();
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| {
                marked(Kind::InvalidInput, format!("{}: {error}", path.display()))
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    /// Reads the device's identity and makes a client that shows it.
    ///
    /// # Errors
    /// Kind `Environment` when the machine is not enrolled.
    pub fn device(&self) -> anyhow::Result<Device> {
        let read = |path: PathBuf| {
            std::fs::read_to_string(&path).map_err(|error| {
                hint(
                    marked(
                        Kind::Environment,
                        format!("read {}: {error}", path.display()),
                    ),
                    "the machine gets its identity when it is enrolled",
                )
            })
        };
        let certificate = read(self.certificate())?;
        let key = zeroize::Zeroizing::new(read(self.key())?);
        let ca = read(self.ca())?;
        let identity = tls::device_in(&certificate).ok_or_else(|| {
            marked(
                Kind::Environment,
                format!(
                    "{}: names no device, expected urn:leapserv:CUSTOMER/NAME:NUMBER",
                    self.certificate().display()
                ),
            )
        })?;
        let papers = tls::device::Papers {
            ca: &ca,
            certificate: &certificate,
            key: &key,
            tpm: &self.at("dev/tpmrm0"),
        };
        let client = papers
            .client()
            .context("prepare TLS")?
            .build()
            .context("prepare HTTP")?;
        Ok(Device { identity, client })
    }

    /// Takes the writer's lock, waiting for another writer as long as `wait`.
    ///
    /// # Errors
    /// When another process still holds it; the message names it.
    pub fn lock(&self, wait: Duration) -> anyhow::Result<Lock> {
        let path = self.state().join("lock");
        let mut file = self.lock_file(&path)?;
        let begun = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if begun.elapsed() < wait => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(TryLockError::WouldBlock) => {
                    let mut holder = String::new();
                    file.read_to_string(&mut holder).ok();
                    anyhow::bail!(
                        "repository is in use by process {}: waited {} s",
                        holder.trim(),
                        wait.as_secs()
                    );
                }
                Err(TryLockError::Error(error)) => {
                    return Err(error).with_context(|| format!("lock {}", path.display()));
                }
            }
        }
        file.set_len(0).context("write lock")?;
        file.rewind().context("write lock")?;
        write!(file, "{}", std::process::id()).context("write lock")?;
        Ok(Lock { _file: file })
    }

    fn restoring_file(&self, source: &str) -> anyhow::Result<File> {
        self.lock_file(&self.state().join(format!("restoring-{source}.lock")))
    }

    fn lock_file(&self, path: &Path) -> anyhow::Result<File> {
        std::fs::create_dir_all(self.state())
            .with_context(|| format!("make folder {}", self.state().display()))?;
        File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .with_context(|| format!("open {}", path.display()))
    }

    /// Says for as long as the answer is held that files of a source are being restored.
    /// Several may be at it.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn restoring(&self, source: &str) -> anyhow::Result<Lock> {
        let file = self.restoring_file(source)?;
        file.lock_shared().context("say that files are restored")?;
        Ok(Lock { _file: file })
    }

    /// Whether files of a source are being restored: a snapshot of it would hold half of them.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn is_restoring(&self, source: &str) -> anyhow::Result<bool> {
        match self.restoring_file(source)?.try_lock() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(error).context("ask whether files are restored"),
        }
    }
}

/// Held while writing; the system releases it when the process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// The machine's identity in the fleet.
#[derive(Debug)]
pub struct Device {
    /// Unit and incarnation.
    pub identity: DeviceIdentity,
    /// Shows the device certificate and trusts the fleet's CA alone.
    pub client: reqwest::Client,
}

/// Writes a marker that stands while a repository is written to, so that a crash is noticed.
///
/// # Errors
/// When the disk refuses.
pub(crate) fn mark(path: &Path) -> anyhow::Result<()> {
    edge::durable::write(path, b"", edge::durable::Mode::Public)
}

/// Removes the marker.
///
/// # Errors
/// When the disk refuses.
pub(crate) fn unmark(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("remove {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_writer_is_refused_while_the_first_holds_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let site = Site::new(folder.path());
        let held = site.lock(Duration::ZERO).unwrap();
        let error = site.lock(Duration::ZERO).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(held);
        site.lock(Duration::ZERO).unwrap();
    }

    #[test]
    fn a_source_is_restored_to_for_as_long_as_somebody_is_at_it() {
        let folder = tempfile::tempdir().unwrap();
        let site = Site::new(folder.path());
        assert!(!site.is_restoring("gallery").unwrap());
        let one = site.restoring("gallery").unwrap();
        let other = site.restoring("gallery").unwrap();
        assert!(site.is_restoring("gallery").unwrap());
        assert!(!site.is_restoring("invoices").unwrap());
        drop(one);
        assert!(site.is_restoring("gallery").unwrap());
        drop(other);
        assert!(!site.is_restoring("gallery").unwrap());
    }

    #[test]
    fn wrong_configuration_is_an_invalid_input() {
        let folder = tempfile::tempdir().unwrap();
        let site = Site::new(folder.path());
        assert_eq!(site.read_config().unwrap(), None);
        std::fs::create_dir_all(site.state()).unwrap();
        std::fs::write(site.config(), b"{\"sources\":[],\"colour\":1}").unwrap();
        let failure = edge::exit::Failure::from(site.read_config().unwrap_err());
        assert_eq!(failure.kind(), Kind::InvalidInput);
        assert!(failure.to_string().contains("colour"));
    }
}
