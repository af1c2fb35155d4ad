//! Keeps the backup engine fit to work: secrets, repository, escrow, service.

use std::time::Duration;

use anyhow::Result;
use model::api::CheckInReply;
use model::backup::BackupStatus;
use model::secrets::SealedSecrets;

use crate::health::Repository;
use crate::secrets;
use crate::site::Site;

/// What is known about the unit's backups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Whether the configuration in force has a backup section.
    pub configured: bool,
    /// Whether the engine is there.
    pub engine: bool,
    /// Whether the unit holds secrets.
    pub secrets: bool,
    /// Whether the local repository is there and was opened in this boot.
    pub repository: bool,
    /// Version of the escrow at the sky: `None` before the sky was reached.
    pub escrow: Option<Option<u64>>,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing is configured.
    Nothing,
    /// The engine is missing: the component was refused.
    NoEngine,
    /// It is not known yet whether there is an escrow.
    AwaitSky,
    /// There is an escrow: new secrets would split the unit's history.
    AwaitSecrets,
    /// Make secrets and repository.
    Init,
    /// The secrets are there and the repository is not: bring it, or make it
    /// where it never was anywhere.
    Attach,
    /// All is there.
    Ready,
}

/// Decides the next step. Pure.
pub fn decide(facts: Facts) -> Step {
    match facts {
        Facts {
            configured: false, ..
        } => Step::Nothing,
        Facts { engine: false, .. } => Step::NoEngine,
        Facts {
            repository: true,
            secrets: true,
            ..
        } => Step::Ready,
        Facts { secrets: true, .. } => Step::Attach,
        Facts { escrow: None, .. } => Step::AwaitSky,
        Facts {
            escrow: Some(Some(_)),
            ..
        } => Step::AwaitSecrets,
        Facts {
            escrow: Some(None), ..
        } => Step::Init,
    }
}

/// How long a failure is left alone.
pub const AFTER_FAILURE: Duration = Duration::from_secs(5);

/// The backup engine of this unit.
#[derive(Debug)]
pub struct Keeper {
    site: Site,
    opened: bool,
    served: Option<Vec<u8>>,
}

impl Keeper {
    /// A keeper that knows nothing yet.
    pub fn new(site: &Site) -> Self {
        Self {
            site: site.clone(),
            opened: false,
            served: None,
        }
    }

    /// Does the next steps and says where the repository stands.
    ///
    /// # Errors
    /// A step failed; it is to be repeated later.
    pub async fn keep(
        &mut self,
        configured: bool,
        escrow: Option<Option<u64>>,
    ) -> Result<Repository> {
        loop {
            let facts = Facts {
                configured,
                engine: self.site.has_backup_tool(),
                secrets: secrets::read(&self.site)?.is_some(),
                repository: self.opened,
                escrow,
            };
            let waiting = |reason: &str| {
                Ok(Repository::Waiting {
                    reason: reason.to_owned(),
                })
            };
            match decide(facts) {
                Step::Nothing => {
                    self.stop().await?;
                    return Ok(Repository::NotConfigured);
                }
                Step::NoEngine => return waiting("the backup component is missing"),
                Step::AwaitSky => return waiting("the sky was not reached yet"),
                Step::AwaitSecrets => {
                    return waiting("the unit's secrets have not come from the escrow yet");
                }
                Step::Init => self.run(&["init"]).await?,
                Step::Attach if self.has_repository() => self.run(&["init"]).await?,
                Step::Attach => {
                    // The engine refuses to make a second repository, so that
                    // the order of these two is only a matter of time.
                    if let Err(problem) = self.run(&["attach", "--lazy"]).await {
                        tracing::info!(problem = format!("{problem:#}"), "nothing to attach");
                        if let Err(second) = self.run(&["init"]).await {
                            return Err(second.context(format!("{problem:#}")));
                        }
                    }
                }
                Step::Ready => {
                    self.serve().await?;
                    return Ok(Repository::Ready);
                }
            }
            self.opened = true;
        }
    }

    fn has_repository(&self) -> bool {
        self.site
            .at("/var/lib/leapserv/backup/repository/config")
            .exists()
    }

    /// New secrets came: what was opened was opened with other ones.
    pub fn forget(&mut self) {
        self.opened = false;
    }

    /// Starts the service, or restarts it after its configuration has changed.
    async fn serve(&mut self) -> Result<()> {
        let config = std::fs::read(self.site.backup_config()).unwrap_or_default();
        if self.served.as_ref() == Some(&config) {
            return Ok(());
        }
        // It reads its configuration by itself; `start` changes nothing when it runs.
        self.systemctl("start").await?;
        self.served = Some(config);
        Ok(())
    }

    /// Stops the service: fenced, or no backup is configured any more.
    ///
    /// # Errors
    /// The service manager cannot be told.
    pub async fn stop(&mut self) -> Result<()> {
        if self.served.take().is_some() {
            self.systemctl("stop").await?;
        }
        Ok(())
    }

    /// Stops the service whatever is known about it.
    ///
    /// # Errors
    /// The service manager cannot be told.
    pub async fn fence(&mut self) -> Result<()> {
        self.served = None;
        if self.site.has_backup_tool() {
            self.systemctl("stop").await?;
        }
        Ok(())
    }

    async fn systemctl(&self, verb: &str) -> Result<()> {
        self.site
            .tool("systemctl")
            .args([verb, "leap-backup.service"])
            .run_async()
            .await
    }

    async fn run(&self, arguments: &[&str]) -> Result<()> {
        self.site.backup_tool().args(arguments).run_async().await
    }
}

/// Asks the engine for its state.
pub async fn status(site: &Site) -> Option<BackupStatus> {
    if !site.has_backup_tool() || !site.backup_config().exists() {
        return None;
    }
    let asked = site
        .backup_tool()
        .args(["status", "--json"])
        .output_async()
        .await;
    match asked.and_then(|bytes| Ok(serde_json::from_slice(&bytes)?)) {
        Ok(status) => Some(status),
        Err(problem) => {
            tracing::warn!(problem = format!("{problem:#}"), "backup state is unknown");
            None
        }
    }
}

/// Returns the escrow to send, if the sky does not hold this version.
///
/// # Errors
/// The secrets cannot be read, or sealed.
pub fn escrow(
    site: &Site,
    trust: &model::TrustRoot,
    at_sky: Option<Option<u64>>,
) -> Result<Option<SealedSecrets>> {
    let (Some(at_sky), Some(mine)) = (at_sky, secrets::read(site)?) else {
        return Ok(None);
    };
    if at_sky.is_some_and(|version| version >= mine.version) {
        return Ok(None);
    }
    secrets::seal(&mine, trust).map(Some)
}

/// Stores secrets that an answer brings. Says whether they were new.
///
/// # Errors
/// They cannot be opened with this device's key, or not stored.
pub fn take_secrets(site: &Site, reply: &CheckInReply) -> Result<bool> {
    match &reply.secrets {
        Some(sealed) => secrets::store(site, &secrets::open(site, sealed)?),
        None => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRESH: Facts = Facts {
        configured: true,
        engine: true,
        secrets: false,
        repository: false,
        escrow: Some(None),
    };

    #[test]
    fn a_reborn_unit_never_makes_new_secrets() {
        let reborn = Facts {
            escrow: Some(Some(1)),
            ..FRESH
        };
        assert_eq!(decide(reborn), Step::AwaitSecrets);
        let unknown = Facts {
            escrow: None,
            ..FRESH
        };
        assert_eq!(decide(unknown), Step::AwaitSky);
        let given = Facts {
            secrets: true,
            ..reborn
        };
        assert_eq!(decide(given), Step::Attach);
    }

    #[test]
    fn a_new_unit_makes_them_once() {
        assert_eq!(decide(FRESH), Step::Init);
        let made = Facts {
            secrets: true,
            repository: true,
            ..FRESH
        };
        assert_eq!(decide(made), Step::Ready);
        assert_eq!(
            decide(Facts {
                engine: false,
                ..made
            }),
            Step::NoEngine
        );
        let off = Facts {
            configured: false,
            ..made
        };
        assert_eq!(decide(off), Step::Nothing);
    }
}
