//! Configuration generations: what is accepted, and commit-confirm.
//!
//! A new generation is on trial until the sky was reached with it. The trial
//! stands in a file *before* anything is changed, so that a power cut in the
//! middle ends with the generation that was confirmed last.

use std::fs;
use std::io;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use edge::durable::{self, Mode};
use jiff::Timestamp;
use model::api::{ConfigurationStatus, RejectedGeneration};
use model::configuration::Configuration;
use model::{Signed, TrustRoot, UnitName};
use serde::{Deserialize, Serialize};

use crate::site::{Site, read_state};

/// How often a trial may be cut off by a restart before the generation is given up.
pub const MOST_INTERRUPTIONS: u32 = 2;

/// What a unit remembers of its configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// The generation in force; 0 before the first.
    pub applied: u64,
    /// The highest generation that was ever in force.
    pub floor: u64,
    /// The last one that was refused or taken back.
    pub rejected: Option<RejectedGeneration>,
}

/// What to do with a generation that the sky sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Try it.
    Try,
    /// It is in force, or was given up already.
    Ignore,
    /// Refuse it and say why.
    Refuse(String),
}

/// Judges a generation whose signature is good. Pure.
pub fn judge(memory: &Memory, me: &UnitName, offered: &Configuration) -> Verdict {
    let rejected = memory.rejected.as_ref().map(|one| one.generation);
    if offered.unit != *me {
        return Verdict::Refuse(format!("made for unit {}", offered.unit));
    }
    let floor = memory.floor.max(memory.applied);
    if offered.generation < floor {
        return Verdict::Refuse(format!("older than applied generation {floor}"));
    }
    if offered.generation == memory.applied || rejected == Some(offered.generation) {
        return Verdict::Ignore;
    }
    match offered.settings.check() {
        Ok(()) => Verdict::Try,
        Err(wrong) => Verdict::Refuse(wrong.to_string()),
    }
}

/// Returns the generation that a document claims, believed or not, to name it in a report.
pub fn claimed_generation<T>(signed: &Signed<T>) -> u64 {
    peek(signed)
        .and_then(|payload| payload.get("generation")?.as_u64())
        .unwrap_or(0)
}

/// Looks into a document that is not believed, to name it in a report.
pub fn peek<T>(signed: &Signed<T>) -> Option<serde_json::Value> {
    let envelope = serde_json::to_value(signed).ok()?;
    let payload = envelope.get("payload")?.as_str()?;
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(payload)
        .ok()?;
    serde_json::from_slice(&bytes).ok()
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Trial {
    document: Signed<Configuration>,
    generation: u64,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// Outlives a confirmed generation that cannot be believed any more.
    #[serde(default)]
    floor: u64,
    rejected: Option<RejectedGeneration>,
    /// The generation whose trial was cut off by a restart, and how often.
    interrupted: Option<(u64, u32)>,
}

/// The generations on the data partition.
#[derive(Debug)]
pub struct Store {
    site: Site,
    trust: TrustRoot,
    confirmed: Option<Configuration>,
    record: Record,
}

impl Store {
    /// Opens the store. The confirmed generation's signature is verified again;
    /// one that is not believed any more is put aside, loudly: the unit must
    /// come up to get another.
    ///
    /// # Errors
    /// The confirmed generation cannot be put aside.
    pub fn open(site: &Site, trust: &TrustRoot, now: Timestamp) -> Result<Self> {
        let path = site.configuration("confirmed.json");
        let read = || -> Result<Option<Configuration>> {
            let signed = crate::site::read_json::<Signed<Configuration>>(&path)?;
            let verified = signed
                .map(|signed| trust.verify(&signed, now))
                .transpose()?;
            Ok(verified.map(model::Verified::into_inner))
        };
        let confirmed = match read() {
            Ok(confirmed) => confirmed,
            Err(problem) => {
                let problem = format!("{problem:#}");
                tracing::error!(problem, "confirmed configuration is not believed");
                durable::rename(&path, &site.configuration("confirmed.json.bad"))?;
                None
            }
        };
        Ok(Self {
            site: site.clone(),
            trust: trust.clone(),
            confirmed,
            record: read_state(&site.configuration("record.json")).unwrap_or_default(),
        })
    }

    /// Returns the generation in force.
    pub fn confirmed(&self) -> Option<&Configuration> {
        self.confirmed.as_ref()
    }

    /// Returns what to judge a new generation by.
    pub fn memory(&self) -> Memory {
        Memory {
            applied: self.confirmed.as_ref().map_or(0, |one| one.generation),
            floor: self.record.floor,
            rejected: self.record.rejected.clone(),
        }
    }

    /// Returns what the sky is told.
    pub fn status(&self) -> ConfigurationStatus {
        let memory = self.memory();
        ConfigurationStatus {
            applied: memory.applied,
            rejected: memory.rejected,
        }
    }

    /// Notes durably that a generation is on trial, before anything of it is applied.
    ///
    /// # Errors
    /// The note cannot be made durable: nothing may be applied.
    pub fn begin(&self, document: &Signed<Configuration>, generation: u64) -> Result<()> {
        let trial = Trial {
            document: document.clone(),
            generation,
        };
        durable::write_json(&self.site.configuration("trial.json"), &trial, Mode::Secret)
    }

    /// The generation on trial has proven itself.
    ///
    /// # Errors
    /// It cannot be made durable: then it does not count.
    pub fn confirm(&mut self, now: Timestamp) -> Result<()> {
        let path = self.site.configuration("trial.json");
        let trial: Trial = crate::site::read_json(&path)?.context("no generation is on trial")?;
        let configuration = self.trust.verify(&trial.document, now)?.into_inner();
        durable::write_json(
            &self.site.configuration("confirmed.json"),
            &trial.document,
            Mode::Secret,
        )?;
        self.record = Record {
            floor: configuration.generation,
            ..Record::default()
        };
        self.confirmed = Some(configuration);
        self.save()?;
        self.end_trial()
    }

    /// A generation is given up, on trial or before.
    ///
    /// # Errors
    /// It cannot be made durable.
    pub fn reject(&mut self, generation: u64, reason: String) -> Result<()> {
        self.record.rejected = Some(RejectedGeneration { generation, reason });
        self.record.interrupted = None;
        self.save()?;
        self.end_trial()
    }

    /// Ends a trial that a restart has cut off; the confirmed generation stays in force.
    ///
    /// A power cut is not the generation's fault, so it may be tried again,
    /// but not for ever: it might be what stops the machine.
    ///
    /// # Errors
    /// It cannot be made durable.
    pub fn end_interrupted(&mut self) -> Result<Option<u64>> {
        let path = self.site.configuration("trial.json");
        if !path.exists() {
            return Ok(None);
        }
        let Some(trial) = read_state::<Trial>(&path) else {
            self.end_trial()?;
            return Ok(None);
        };
        let generation = trial.generation;
        // Confirmed, and the power went before the note was removed.
        if self.memory().applied == generation {
            self.end_trial()?;
            return Ok(None);
        }
        let times = match self.record.interrupted {
            Some((same, times)) if same == generation => times + 1,
            _ => 1,
        };
        if times >= MOST_INTERRUPTIONS {
            let reason = format!("the unit restarted {times} times before it was confirmed");
            self.reject(generation, reason)?;
        } else {
            self.record.interrupted = Some((generation, times));
            self.save()?;
            self.end_trial()?;
        }
        Ok(Some(generation))
    }

    fn save(&self) -> Result<()> {
        durable::write_json(
            &self.site.configuration("record.json"),
            &self.record,
            Mode::Public,
        )
    }

    fn end_trial(&self) -> Result<()> {
        let path = self.site.configuration("trial.json");
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", path.display()))
            }
            _ => durable::sync_dir(&self.site.configuration("")).context("end trial"),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use model::configuration::{Maintenance, Network, Settings};
    use model::trust::RoleKeys;
    use model::{Role, Signer};

    pub(crate) fn settings(hostname: &str) -> Settings {
        Settings {
            hostname: hostname.into(),
            time_zone: "America/Chicago".into(),
            network: Network::Dhcp {},
            operators: vec![],
            maintenance: Maintenance::default(),
            check_in_seconds: 60,
            backup: None,
        }
    }

    pub(crate) fn configuration(generation: u64) -> Configuration {
        Configuration {
            unit: "motivatit/houma-1".parse().unwrap(),
            generation,
            settings: settings(&format!("houma-{generation}")),
        }
    }

    fn signer() -> Signer {
        Signer::from_seed(&[4; 32])
    }

    fn trust() -> TrustRoot {
        let keys = RoleKeys {
            keys: vec![signer().public()],
            threshold: 1,
        };
        TrustRoot {
            version: 1,
            roles: [(Role::Configuration, keys)].into(),
            recovery: vec![],
        }
    }

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn open(site: &Site) -> Store {
        Store::open(site, &trust(), NOW).unwrap()
    }

    fn me() -> UnitName {
        "motivatit/houma-1".parse().unwrap()
    }

    #[test]
    fn only_a_newer_generation_for_this_unit_is_tried() {
        let memory = Memory {
            applied: 5,
            floor: 0,
            rejected: Some(RejectedGeneration {
                generation: 7,
                reason: "x".into(),
            }),
        };
        let of = |generation| judge(&memory, &me(), &configuration(generation));
        assert!(matches!(of(4), Verdict::Refuse(_)), "a replay");
        assert_eq!(of(5), Verdict::Ignore);
        assert_eq!(of(6), Verdict::Try);
        assert_eq!(of(7), Verdict::Ignore);
        assert_eq!(of(8), Verdict::Try);
        let mut other = configuration(8);
        other.unit = "motivatit/houma-2".parse().unwrap();
        assert!(matches!(judge(&memory, &me(), &other), Verdict::Refuse(_)));
        let mut bad = configuration(8);
        bad.settings.hostname = "-".into();
        let Verdict::Refuse(reason) = judge(&memory, &me(), &bad) else {
            panic!("accepted");
        };
        assert!(reason.starts_with("hostname: "), "{reason}");
    }

    #[test]
    fn a_trial_that_is_confirmed_survives_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let site = Site::new(folder.path());
        let mut store = open(&site);
        store.begin(&signer().sign(&configuration(1)), 1).unwrap();
        assert_eq!(store.memory().applied, 0);
        store.confirm(NOW).unwrap();
        let mut store = open(&site);
        assert_eq!(store.confirmed(), Some(&configuration(1)));
        assert_eq!(store.end_interrupted().unwrap(), None);
    }

    #[test]
    fn a_power_cut_during_a_trial_brings_the_confirmed_generation_back() {
        let folder = tempfile::tempdir().unwrap();
        let site = Site::new(folder.path());
        let mut store = open(&site);
        store.begin(&signer().sign(&configuration(1)), 1).unwrap();
        store.confirm(NOW).unwrap();
        for (turn, verdict) in [(1, Verdict::Try), (2, Verdict::Ignore)] {
            let mut store = open(&site);
            assert_eq!(
                judge(&store.memory(), &me(), &configuration(2)),
                Verdict::Try
            );
            store.begin(&signer().sign(&configuration(2)), 2).unwrap();
            drop(store);
            store = open(&site);
            assert_eq!(store.end_interrupted().unwrap(), Some(2));
            assert_eq!(store.end_interrupted().unwrap(), None);
            assert_eq!(store.confirmed(), Some(&configuration(1)));
            let found = judge(&open(&site).memory(), &me(), &configuration(2));
            assert_eq!(found, verdict, "after restart {turn}");
        }
        let status = open(&site).status();
        assert_eq!(status.rejected.unwrap().generation, 2);
    }

    #[test]
    fn a_generation_that_is_given_up_is_remembered_until_another_is_confirmed() {
        let folder = tempfile::tempdir().unwrap();
        let site = Site::new(folder.path());
        let mut store = open(&site);
        store.begin(&signer().sign(&configuration(1)), 1).unwrap();
        store.reject(1, "sky not reached".into()).unwrap();
        let mut store = open(&site);
        assert_eq!(
            judge(&store.memory(), &me(), &configuration(1)),
            Verdict::Ignore
        );
        store.begin(&signer().sign(&configuration(2)), 2).unwrap();
        store.confirm(NOW).unwrap();
        assert_eq!(open(&site).status().rejected, None);
    }

    #[test]
    fn a_confirmed_generation_that_was_tampered_with_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let site = Site::new(folder.path());
        let mut store = open(&site);
        store.begin(&signer().sign(&configuration(5)), 5).unwrap();
        store.confirm(NOW).unwrap();
        let forged = Signer::from_seed(&[9; 32]).sign(&configuration(6));
        assert_eq!(claimed_generation(&forged), 6);
        durable::write_json(&site.configuration("confirmed.json"), &forged, Mode::Public).unwrap();
        let store = open(&site);
        assert_eq!(store.confirmed(), None);
        // The floor against replays is not lost with it.
        let verdict = |generation| judge(&store.memory(), &me(), &configuration(generation));
        assert!(matches!(verdict(4), Verdict::Refuse(_)));
        assert_eq!(verdict(5), Verdict::Try);
        assert_eq!(open(&site).confirmed(), None);
    }
}
