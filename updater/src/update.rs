//! An update: from an offer to the restart into it.
//!
//! Facts are gathered here, [`slots::decide`] decides, [`crate::apply`] writes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use edge::durable::{self, Mode};
use jiff::Timestamp;
use model::api::{RejectedRelease, UpdateStatus};
use model::configuration::Maintenance;
use model::release::{ChannelPointer, ReleaseManifest, manifest_path};
use model::{Digest, ReleaseVersion, TrustRoot, Verified};
use slots::decide::{self, Facts, Refusal, WritePlan};
use slots::esp::{Entry, EntryState};
use slots::{Disk, Layout, Slot};
use tokio::sync::watch;

use crate::apply;
use crate::command::{self, Ledger};
use crate::health::GateLog;
use crate::mirror::{self, Mirror};
use crate::replace::{self, Ended};
use crate::revision::{self, Memory, Named};
use crate::site::{Site, read_state};
use crate::sky::Sky;

/// Releases that were tried and given up, durable.
#[derive(Debug, Clone, Default)]
pub struct Rejected {
    releases: BTreeMap<ReleaseVersion, String>,
}

impl Rejected {
    /// Reads what was given up.
    pub fn read(site: &Site) -> Self {
        let rows: Vec<RejectedRelease> =
            read_state(&site.state("rejected.json")).unwrap_or_default();
        Self {
            releases: rows
                .into_iter()
                .map(|row| (row.release, row.reason))
                .collect(),
        }
    }

    /// Returns the rows for the sky.
    pub fn rows(&self) -> Vec<RejectedRelease> {
        self.releases
            .iter()
            .map(|(release, reason)| RejectedRelease {
                release: *release,
                revision: 0,
                reason: reason.clone(),
            })
            .collect()
    }

    /// Remembers releases whose tries are used up, with the gate's reasons.
    ///
    /// # Errors
    /// They cannot be made durable.
    pub fn learn(
        &mut self,
        site: &Site,
        given_up: &[ReleaseVersion],
        gate: &GateLog,
    ) -> Result<()> {
        let mut news = false;
        for release in given_up {
            if !self.releases.contains_key(release) {
                let reason = gate.failed.get(release).cloned().unwrap_or_else(|| {
                    "its tries were used up before it reached its health gate".to_owned()
                });
                tracing::error!(%release, reason, "release given up, back on the one before");
                self.releases.insert(*release, reason);
                news = true;
            }
        }
        if news {
            durable::write_json(&site.state("rejected.json"), &self.rows(), Mode::Public)?;
        }
        Ok(())
    }
}

/// Returns all that was given up on this unit, releases and revisions of the running one.
pub fn given_up_rows(site: &Site) -> Vec<RejectedRelease> {
    let mut rows = Rejected::read(site).rows();
    rows.extend(Memory::read(site).rows());
    rows
}

/// What runs, as far as updates are concerned.
#[derive(Debug, Clone)]
pub struct Running {
    /// The whole disk.
    pub disk: PathBuf,
    /// Its partitions.
    pub layout: Layout,
    /// The slot that was started.
    pub slot: Slot,
    /// The release.
    pub release: ReleaseVersion,
    /// Its root hash.
    pub root_hash: Digest,
}

impl Running {
    /// Finds the disk and the slot that the system was started from.
    ///
    /// # Errors
    /// No partition carries the running root hash.
    pub fn find(site: &Site, disk: Option<&Path>) -> Result<Self> {
        let root_hash = site.root_hash()?;
        let disk = match disk {
            Some(disk) => disk.to_owned(),
            None => find_disk(site, &root_hash)?,
        };
        let mut device =
            Disk::open_read_only(&disk).with_context(|| format!("open {}", disk.display()))?;
        let layout = slots::gpt::read(&mut device).with_context(|| disk.display().to_string())?;
        let slot = layout
            .slot_of(&root_hash)
            .ok_or_else(|| anyhow!("{}: no slot has the running root hash", disk.display()))?;
        Ok(Self {
            disk,
            layout,
            slot,
            release: site.release()?,
            root_hash,
        })
    }
}

/// Finds the disk of which one slot carries the running root hash. Where there are two,
/// it is the one with the ESP that the system was started from.
///
/// The partition tables themselves are asked: kernels before 6.14 do not tell a
/// partition's UUID in sysfs.
fn find_disk(site: &Site, root_hash: &Digest) -> Result<PathBuf> {
    let folder = site.at("/sys/class/block");
    let entries =
        std::fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))?;
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let place = entry.path();
        // Partitions have a number; what has no device beneath is a loop or a mapping.
        if place.join("partition").exists() || !place.join("device").exists() {
            continue;
        }
        let disk = site.at("/dev").join(entry.file_name());
        let layout = Disk::open_read_only(&disk)
            .ok()
            .and_then(|mut device| slots::gpt::read(&mut device).ok());
        if layout.is_some_and(|layout| layout.slot_of(root_hash).is_some()) {
            found.push(disk);
        }
    }
    let of_esp = site
        .mounted_device("/efi")
        .map(|partition| site.at("/dev").join(mirror::disk_of(site, &partition)));
    let place = found.iter().position(|disk| Some(disk) == of_esp.as_ref());
    if found.is_empty() {
        return Err(anyhow!(
            "no disk of this machine has a slot with root hash {root_hash}"
        ));
    }
    Ok(found.swap_remove(place.unwrap_or(0)))
}

/// Gathers what the decision needs.
///
/// # Errors
/// The ESP cannot be read.
pub fn facts(
    site: &Site,
    running: &Running,
    rejected: &Rejected,
    offered: &ReleaseManifest,
) -> Result<Facts> {
    let esp = site.esp();
    let entries = esp.entries()?;
    let proven = decide::running_entry(&entries, running.release)
        .is_some_and(|entry| entry.state() == EntryState::Good);
    Ok(Facts {
        running_slot: running.slot,
        running: running.release,
        running_root: running.root_hash,
        running_proven: proven,
        releases: esp.releases()?,
        entries,
        rejected: rejected.releases.keys().copied().collect(),
        offered: offered.version,
        offered_root: offered.root_hash,
    })
}

/// The revision of the running release whose components are active.
#[derive(Debug)]
pub struct ActiveRevision {
    /// Its manifest.
    pub manifest: Verified<ReleaseManifest>,
    named: Named,
}

impl ActiveRevision {
    /// Reads and verifies its manifest on the ESP.
    ///
    /// # Errors
    /// It is missing, not signed, or of another release or root.
    pub fn read(site: &Site, trust: &TrustRoot, now: Timestamp) -> Result<Self> {
        let bytes = site.esp().read(&slots::esp::manifest(site.release()?))?;
        let manifest = crate::activate::believe(site, trust, &bytes, now)
            .context("manifest of the running release")?;
        let named = Named {
            release: manifest.version,
            revision: manifest.revision,
            manifest: Digest::of(&bytes),
        };
        Ok(Self { manifest, named })
    }

    /// Gathers what the decision about another revision needs.
    ///
    /// # Errors
    /// The kernel does not tell which boot this is.
    pub fn facts<'a>(
        &self,
        site: &Site,
        pointer: &ChannelPointer,
        memory: &'a Memory,
    ) -> Result<revision::Facts<'a>> {
        let proven = GateLog::read(site)
            .of_boot(&site.boot_id()?)
            .is_some_and(|result| result.passed);
        Ok(revision::Facts {
            running: self.named,
            offered: Named {
                release: pointer.release,
                revision: pointer.revision,
                manifest: pointer.manifest,
            },
            proven,
            memory,
        })
    }
}

/// What became of an offer.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing to do, or refused; with the reason where someone should know it.
    Idle(Option<String>),
    /// Written whole; only the restart is missing.
    Written,
}

/// Where the update task tells how far it is, and is told what is offered.
#[derive(Debug, Clone)]
pub struct Work {
    /// The unit.
    pub site: Site,
    /// Whom to believe.
    pub trust: Arc<TrustRoot>,
    /// The sky.
    pub sky: Sky,
    /// The disk, where it is not to be searched for.
    pub disk: Option<PathBuf>,
    /// How far the update is.
    pub status: watch::Sender<UpdateStatus>,
    /// What commands are being carried out.
    pub ledger: Arc<Mutex<Ledger>>,
    /// How long replaced components may take to prove themselves.
    pub gate: Duration,
}

impl Work {
    /// Says how far the update is.
    pub fn say(&self, change: impl FnOnce(&mut UpdateStatus)) {
        self.status.send_modify(change);
    }

    /// Brings the other slot to what the channel offers, if that is due.
    ///
    /// # Errors
    /// Anything that may go away by itself: it is tried again at a later check-in.
    pub async fn follow(&self, pointer: &Verified<ChannelPointer>) -> Result<Outcome> {
        let release = pointer.release;
        // The cheap answers first: most of the time there is nothing to do.
        let version = self.site.release()?;
        if release == version {
            return self.follow_revision(pointer).await;
        }
        let rejected = Rejected::read(&self.site);
        if release < version {
            let refusal = Refusal::Rollback {
                running: version,
                offered: release,
            };
            return Ok(Outcome::Idle(Some(refusal.to_string())));
        }
        if rejected.releases.contains_key(&release) {
            return Ok(Outcome::Idle(Some(Refusal::Rejected(release).to_string())));
        }
        let files = self.sky.release(release)?;
        let bytes = files.small(&manifest_path(pointer.revision)).await?;
        let manifest = crate::channel::manifest(&self.trust, pointer, &bytes, edge::clock::now())?;
        let running = Running::find(&self.site, self.disk.as_deref())?;
        let facts = facts(&self.site, &running, &rejected, &manifest)?;
        match decide::decide(&facts) {
            Ok(plan) => {
                self.write(&running, &manifest, &bytes, &plan, &files)
                    .await?;
                Ok(Outcome::Written)
            }
            Err(Refusal::AlreadyWritten(_)) => Ok(Outcome::Written),
            Err(Refusal::AlreadyRunning(_)) => Ok(Outcome::Idle(None)),
            Err(refusal) => Ok(Outcome::Idle(Some(refusal.to_string()))),
        }
    }

    /// Brings the running release's components to the revision that the channel offers.
    async fn follow_revision(&self, pointer: &Verified<ChannelPointer>) -> Result<Outcome> {
        let now = edge::clock::now();
        let active = ActiveRevision::read(&self.site, &self.trust, now)?;
        let memory = Memory::read(&self.site);
        let facts = active.facts(&self.site, pointer, &memory)?;
        let refused = |refusal: revision::Refusal| match refusal {
            revision::Refusal::AlreadyActive(_) => Ok(Outcome::Idle(None)),
            refusal => Ok(Outcome::Idle(Some(refusal.to_string()))),
        };
        // Most of the time there is nothing to fetch.
        if let Err(refusal) = revision::glance(&facts) {
            return refused(refusal);
        }
        let offered = facts.offered;
        let files = self.sky.release(pointer.release)?;
        let bytes = files.small(&manifest_path(pointer.revision)).await?;
        let manifest = crate::channel::manifest(&self.trust, pointer, &bytes, now)?;
        let plan = match revision::decide(&facts, &active.manifest, &manifest) {
            Ok(plan) => plan,
            Err(refusal) => return refused(refusal),
        };
        let job = replace::Job {
            site: &self.site,
            trust: &self.trust,
            offered,
            manifest: &manifest,
            bytes: &bytes,
            plan: &plan,
            gate: self.gate,
        };
        self.state("fetching", pointer.release);
        replace::fetch(&job, &files).await?;
        if command::lock(&self.ledger).is_busy() {
            let problem = format!("{offered} waits for the end of a command");
            return Ok(Outcome::Idle(Some(problem)));
        }
        self.state("replacing", pointer.release);
        let ended = replace::replace(&job).await;
        self.say(|status| status.rejected = given_up_rows(&self.site));
        Ok(Outcome::Idle(match ended? {
            Ended::Active => None,
            Ended::TakenBack(reason) => Some(format!("{offered} given up: {reason}")),
        }))
    }

    /// Brings the second disk of a mirrored system up to date, where there is one.
    ///
    /// What fails is told and tried again: the system runs and starts without.
    pub fn mirror(&self) {
        if Mirror::read(&self.site).is_none() {
            return;
        }
        let caught_up = tokio::task::block_in_place(|| {
            let running = Running::find(&self.site, self.disk.as_deref())?;
            mirror::catch_up(&self.site, &self.trust, &running, edge::clock::now())
        });
        if let Err(problem) = caught_up {
            tracing::error!(problem = format!("{problem:#}"), "mirror");
        }
    }

    fn state(&self, state: &str, target: ReleaseVersion) {
        self.say(|status| {
            state.clone_into(&mut status.state);
            status.target = Some(target);
            status.problem = None;
            status.segments_done = 0;
            status.segments_total = 0;
            status.segments_resumed = 0;
        });
    }

    async fn write(
        &self,
        running: &Running,
        manifest: &Verified<ReleaseManifest>,
        bytes: &[u8],
        plan: &WritePlan,
        files: &crate::sky::Files,
    ) -> Result<()> {
        tracing::info!(release = %manifest.version, slot = %plan.slot, "update begins");
        self.state("fetching", manifest.version);
        let old = crate::activate::running_manifest(&self.site, &self.trust, edge::clock::now())
            .inspect_err(|problem| {
                tracing::warn!(
                    problem = format!("{problem:#}"),
                    "nothing is copied from the running slot"
                );
            })
            .ok();
        let job = apply::Job {
            site: &self.site,
            running,
            manifest,
            bytes,
            plan,
            old: old.as_ref(),
            files,
        };
        apply::apply(&job, |progress| {
            self.say(|status| {
                status.segments_done = progress.done;
                status.segments_total = progress.total;
                status.segments_resumed = progress.resumed;
            });
        })
        .await?;
        tracing::info!(release = %manifest.version, slot = %plan.slot, "update written");
        Ok(())
    }
}

/// Returns how long to wait for the maintenance window, in minutes; 0 inside of it. Pure.
///
/// # Errors
/// The time zone is unknown.
pub fn minutes_to_window(window: &Maintenance, time_zone: &str, now: Timestamp) -> Result<u16> {
    let zone =
        jiff::tz::TimeZone::get(time_zone).with_context(|| format!("time zone {time_zone}"))?;
    let local = now.to_zoned(zone);
    let hours = u16::try_from(local.hour()).context("hour")?;
    let minutes = u16::try_from(local.minute()).context("minute")?;
    let minute = hours * 60 + minutes;
    (0..24 * 60)
        .find(|wait| window.contains((minute + wait) % (24 * 60)))
        .context("maintenance window: expected HH:MM")
}

/// How long the sky is given to hear of the restart.
pub const GOODBYE: Duration = Duration::from_secs(3);

/// Returns the entries of the ESP with the releases that were rolled back.
///
/// # Errors
/// The ESP cannot be read.
pub fn given_up(site: &Site) -> Result<(Vec<Entry>, Vec<ReleaseVersion>)> {
    let entries = site.esp().entries()?;
    let given_up = decide::rolled_back(&entries, site.release()?);
    Ok((entries, given_up))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_waited_for_in_the_units_own_time() {
        let window = Maintenance {
            from: "01:00".into(),
            to: "04:00".into(),
        };
        // 06:30 UTC is 00:30 in Chicago in winter.
        let now: Timestamp = "2026-11-22T06:30:00Z".parse().unwrap();
        assert_eq!(
            minutes_to_window(&window, "America/Chicago", now).unwrap(),
            30
        );
        let now: Timestamp = "2026-11-22T09:59:00Z".parse().unwrap();
        assert_eq!(
            minutes_to_window(&window, "America/Chicago", now).unwrap(),
            0
        );
        assert_eq!(minutes_to_window(&window, "UTC", now).unwrap(), 15 * 60 + 1);
        assert_eq!(
            minutes_to_window(&Maintenance::default(), "UTC", now).unwrap(),
            0
        );
        assert!(minutes_to_window(&window, "Moon/Crater", now).is_err());
    }

    #[test]
    fn a_release_that_was_given_up_is_remembered_with_the_gates_reason() {
        let folder = tempfile::tempdir().unwrap();
        let site = Site::new(folder.path());
        let (three, four) = ("2026.11.3".parse().unwrap(), "2026.11.4".parse().unwrap());
        let gate = GateLog {
            last: None,
            failed: [(three, "health.d/pump: exit status: 1".to_owned())].into(),
        };
        Rejected::read(&site)
            .learn(&site, &[three, four], &gate)
            .unwrap();
        let rows = Rejected::read(&site).rows();
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0].reason, "health.d/pump: exit status: 1");
        assert!(rows[1].reason.contains("before it reached its health gate"));
        // The first reason stays, also when a later gate says something else.
        Rejected::read(&site)
            .learn(&site, &[three], &GateLog::default())
            .unwrap();
        assert_eq!(Rejected::read(&site).rows(), rows);
    }
}
