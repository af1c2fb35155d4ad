//! Which incarnation of each unit is let in, durably remembered.
//!
//! Two sources only ever raise the bar: the sky's list of current
//! incarnations, and what the vault has itself seen. So a dead unit that
//! wakes is refused even while the sky cannot be reached.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use edge::durable;
use jiff::{SignedDuration, Timestamp};
use model::api::{FenceAttempt, Fences as Current};
use model::{DeviceIdentity, Incarnation, UnitName};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::config::Sky;

/// An identity that keeps trying is reported this often.
const REPORT_EVERY: SignedDuration = SignedDuration::from_secs(30);
/// How long the start waits for the sky.
const FIRST_ANSWER: std::time::Duration = std::time::Duration::from_secs(3);
/// Reports that wait for the sky; more are only logged.
const WAITING: usize = 256;

/// An older incarnation came.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("incarnation {came} of {unit} is fenced: {current} is current")]
pub struct Fenced {
    /// The unit.
    pub unit: UnitName,
    /// Who came.
    pub came: Incarnation,
    /// Who is current.
    pub current: Incarnation,
}

/// What is on the disk.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    /// The lowest incarnation of each unit that is let in.
    lowest: BTreeMap<UnitName, Incarnation>,
}

/// The gate keeper.
#[derive(Debug)]
pub struct Fences {
    path: PathBuf,
    stored: Mutex<Stored>,
    reported: Mutex<HashMap<DeviceIdentity, Timestamp>>,
    reports: Option<mpsc::Sender<FenceAttempt>>,
    place: String,
}

impl Fences {
    /// Reads what was remembered. Attempts go to `reports`, named after the vault.
    ///
    /// # Errors
    /// When the file is there and cannot be read: to forget a fence would open it.
    pub fn load(
        path: &Path,
        vault: &str,
        reports: Option<mpsc::Sender<FenceAttempt>>,
    ) -> anyhow::Result<Self> {
        let stored = match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .with_context(|| format!("read {}: expected the list of fences", path.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Stored::default(),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        Ok(Self {
            path: path.to_owned(),
            stored: Mutex::new(stored),
            reported: Mutex::default(),
            reports,
            place: format!("vault {vault}"),
        })
    }

    /// Raises the bar to what the sky says. It is never lowered.
    ///
    /// # Errors
    /// When it cannot be remembered.
    pub fn raise(&self, current: &[DeviceIdentity]) -> anyhow::Result<()> {
        let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lowest = stored.lowest.clone();
        for identity in current {
            let bar = lowest.entry(identity.unit.clone()).or_default();
            *bar = (*bar).max(identity.incarnation);
        }
        if lowest != stored.lowest {
            self.keep(&mut stored, lowest)?;
        }
        Ok(())
    }

    /// Lets a caller in, or says that it is fenced and reports it.
    ///
    /// A higher incarnation than any before is remembered before it is let in.
    ///
    /// # Errors
    /// Inner: [`Fenced`]. Outer: it could not be remembered, and nobody is let in.
    pub fn admit(
        &self,
        identity: &DeviceIdentity,
        address: &str,
        now: Timestamp,
    ) -> anyhow::Result<Result<(), Fenced>> {
        let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        let bar = stored.lowest.get(&identity.unit).copied();
        if let Some(current) = bar.filter(|bar| identity.incarnation < *bar) {
            drop(stored);
            self.report(identity, address, now);
            return Ok(Err(Fenced {
                unit: identity.unit.clone(),
                came: identity.incarnation,
                current,
            }));
        }
        if bar != Some(identity.incarnation) {
            let mut lowest = stored.lowest.clone();
            lowest.insert(identity.unit.clone(), identity.incarnation);
            self.keep(&mut stored, lowest)?;
        }
        Ok(Ok(()))
    }

    fn keep(
        &self,
        stored: &mut Stored,
        lowest: BTreeMap<UnitName, Incarnation>,
    ) -> anyhow::Result<()> {
        let next = Stored { lowest };
        durable::write_json(&self.path, &next, durable::Mode::Public)?;
        tracing::info!(units = next.lowest.len(), "fences changed");
        *stored = next;
        Ok(())
    }

    fn report(&self, identity: &DeviceIdentity, address: &str, now: Timestamp) {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        if reported
            .get(identity)
            .is_some_and(|last| now.duration_since(*last) < REPORT_EVERY)
        {
            return;
        }
        reported.insert(identity.clone(), now);
        tracing::warn!(%identity, address, "fenced incarnation refused");
        let attempt = FenceAttempt {
            identity: identity.clone(),
            place: self.place.clone(),
            address: address.to_owned(),
            time: now,
        };
        if let Some(reports) = &self.reports
            && reports.try_send(attempt).is_err()
        {
            tracing::warn!(%identity, "attempt not reported: the sky has not taken the ones before");
        }
    }
}

/// The queue of attempts between the gate keeper and the sky.
pub fn queue() -> (mpsc::Sender<FenceAttempt>, mpsc::Receiver<FenceAttempt>) {
    mpsc::channel(WAITING)
}

/// Asks the sky once, before the vault begins to serve; without an answer the last list counts.
pub async fn refresh(sky: &Sky, fences: &Fences) {
    let asking = async { ask(sky).await.and_then(|list| fences.raise(&list.units)) };
    match tokio::time::timeout(FIRST_ANSWER, asking).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(
                error = format!("{error:#}"),
                "sky not asked; the last list is in force"
            );
        }
        Err(_) => tracing::warn!("sky does not answer; the last list is in force"),
    }
}

/// Polls the sky for fences until the task is dropped. The last list stays in
/// force while the sky does not answer.
pub async fn poll(sky: Arc<Sky>, fences: Arc<Fences>) {
    let mut ticks = tokio::time::interval(sky.poll);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut answering = true;
    loop {
        ticks.tick().await;
        match ask(&sky).await.and_then(|list| fences.raise(&list.units)) {
            Ok(()) => {
                if !answering {
                    tracing::info!("sky answers again");
                }
                answering = true;
            }
            Err(error) => {
                if answering {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "fences not refreshed; the last list stays in force"
                    );
                }
                answering = false;
            }
        }
    }
}

async fn ask(sky: &Sky) -> anyhow::Result<Current> {
    let url = format!("{}/v1/fences", sky.url);
    let answer = sky
        .client
        .get(&url)
        .bearer_auth(sky.token.as_str())
        .send()
        .await
        .and_then(reqwest::Response::error_for_status)
        .context("ask for fences")?;
    answer.json().await.context("read fences")
}

/// Hands the attempts to the sky, one after the other, again until it takes them.
pub async fn deliver(sky: Arc<Sky>, mut attempts: mpsc::Receiver<FenceAttempt>) {
    let url = format!("{}/v1/fences/attempts", sky.url);
    while let Some(attempt) = attempts.recv().await {
        let mut pause = sky.poll;
        loop {
            let sent = sky
                .client
                .post(&url)
                .bearer_auth(sky.token.as_str())
                .json(&attempt)
                .send()
                .await;
            match sent {
                Ok(answer) if answer.status().is_success() => break,
                Ok(answer) if answer.status().is_client_error() => {
                    tracing::error!(status = %answer.status(), "sky does not take a fenced attempt");
                    break;
                }
                Ok(_) | Err(_) => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(std::time::Duration::from_secs(60));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(incarnation: u32) -> DeviceIdentity {
        DeviceIdentity {
            unit: "motivatit/houma-1".parse().unwrap(),
            incarnation: Incarnation(incarnation),
        }
    }

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    #[test]
    fn lower_incarnation_than_seen_is_fenced_after_a_restart_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fences.json");
        let fences = Fences::load(&path, "a", None).unwrap();
        assert_eq!(fences.admit(&identity(2), "x", now()).unwrap(), Ok(()));
        let fences = Fences::load(&path, "a", None).unwrap();
        assert!(fences.admit(&identity(1), "x", now()).unwrap().is_err());
        assert_eq!(fences.admit(&identity(2), "x", now()).unwrap(), Ok(()));
        assert_eq!(fences.admit(&identity(3), "x", now()).unwrap(), Ok(()));
        assert!(fences.admit(&identity(2), "x", now()).unwrap().is_err());
    }

    #[test]
    fn sky_raises_the_bar_and_never_lowers_it() {
        let folder = tempfile::tempdir().unwrap();
        let fences = Fences::load(&folder.path().join("f"), "a", None).unwrap();
        fences.raise(&[identity(5)]).unwrap();
        fences.raise(&[identity(4)]).unwrap();
        fences.raise(&[]).unwrap();
        assert!(fences.admit(&identity(4), "x", now()).unwrap().is_err());
        assert_eq!(fences.admit(&identity(5), "x", now()).unwrap(), Ok(()));
    }

    #[test]
    fn damaged_list_stops_the_vault_instead_of_opening_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, b"{").unwrap();
        assert!(Fences::load(&path, "a", None).is_err());
    }

    #[test]
    fn attempt_is_reported_once_in_a_while() {
        let folder = tempfile::tempdir().unwrap();
        let (send, mut receive) = queue();
        let fences = Fences::load(&folder.path().join("f"), "a", Some(send)).unwrap();
        fences.raise(&[identity(2)]).unwrap();
        for _ in 0..3 {
            assert!(
                fences
                    .admit(&identity(1), "10.0.0.9", now())
                    .unwrap()
                    .is_err()
            );
        }
        let attempt = receive.try_recv().unwrap();
        assert_eq!(attempt.place, "vault a");
        assert_eq!(attempt.address, "10.0.0.9");
        assert!(receive.try_recv().is_err());
    }
}
