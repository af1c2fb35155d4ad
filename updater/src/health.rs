//! The health gate: is this release good on this unit?
//!
//! A boot is blessed only when the gate has passed. When it has not in time,
//! and the boot is still counted, and there is a release to go back to, the
//! unit restarts, and boot counting does the rest. Without a way back it
//! stays up and goes on asking: a restart would only repeat what failed, and
//! a unit that is up can be helped.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use edge::durable::{self, Mode};
use jiff::Timestamp;
use model::ReleaseVersion;
use model::api::HealthCheck;
use serde::{Deserialize, Serialize};
use slots::decide;
use slots::esp::{Entry, EntryState};

use crate::site::{Site, read_json, read_state};

/// How often what the daemon says is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// How long one executable of `health.d` may take.
const SCRIPT: Duration = Duration::from_secs(60);
/// How often the canary is tried again.
const CANARY_AGAIN: Duration = Duration::from_secs(3);
/// How long replaced services must go on to run; systemd starts a failed one
/// again only after a longer pause.
const STEADY: Duration = Duration::from_secs(2);

/// What the daemon says of this boot, in `/run/leapserv/state.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// When the sky was last reached.
    pub checked_in: Option<Timestamp>,
    /// Why it was not, when the last try failed.
    pub sky_problem: Option<String>,
    /// The generation that the sky wants; `None` when it has sent nothing newer.
    pub wanted: Option<u64>,
    /// The generation in force.
    pub applied: u64,
    /// The last generation that was given up.
    pub rejected: Option<u64>,
    /// The backup repository.
    pub repository: Repository,
}

/// Where the backup repository stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum Repository {
    /// No backup is configured.
    #[default]
    NotConfigured,
    /// It is being made or attached.
    Waiting {
        /// For what.
        reason: String,
    },
    /// It can be used.
    Ready,
}

/// One end of a gate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateResult {
    /// The release that was judged.
    pub release: ReleaseVersion,
    /// The boot that was judged.
    pub boot_id: String,
    /// Whether it is good.
    pub passed: bool,
    /// Each check.
    pub checks: Vec<HealthCheck>,
    /// When.
    pub time: Timestamp,
}

/// What gates have said, durable.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateLog {
    /// The last one.
    pub last: Option<GateResult>,
    /// The reason of each release that failed and has not passed since.
    pub failed: BTreeMap<ReleaseVersion, String>,
}

impl GateLog {
    /// Reads the log.
    pub fn read(site: &Site) -> Self {
        read_state(&site.state("gate.json")).unwrap_or_default()
    }

    /// Returns the result of this boot's gate, once there is one.
    pub fn of_boot(&self, boot_id: &str) -> Option<&GateResult> {
        self.last
            .as_ref()
            .filter(|result| result.boot_id == boot_id)
    }

    /// Whether the gate of this boot has passed.
    pub fn passed(site: &Site) -> bool {
        let boot_id = site.boot_id().unwrap_or_default();
        Self::read(site)
            .of_boot(&boot_id)
            .is_some_and(|result| result.passed)
    }

    fn record(&mut self, site: &Site, result: GateResult) -> Result<()> {
        if result.passed {
            self.failed.remove(&result.release);
        } else {
            self.failed.insert(result.release, reason(&result.checks));
        }
        self.last = Some(result);
        durable::write_json(&site.state("gate.json"), self, Mode::Public)
    }
}

/// Says in one line what was wrong.
pub fn reason(checks: &[HealthCheck]) -> String {
    let bad: Vec<String> = checks
        .iter()
        .filter(|check| !check.ok)
        .map(|check| format!("{}: {}", check.name, check.message))
        .collect();
    bad.join("; ")
}

/// Judges what the daemon has said. Pure.
pub fn judge(said: &Said) -> Vec<HealthCheck> {
    let check = |name: &str, ok: bool, message: String| HealthCheck {
        name: name.to_owned(),
        ok,
        message,
    };
    let reached = match (&said.checked_in, &said.sky_problem) {
        (Some(time), _) => check("check-in", true, format!("sky reached at {time}")),
        (None, Some(problem)) => check("check-in", false, problem.clone()),
        (None, None) => check("check-in", false, "sky not reached yet".into()),
    };
    let settled = match said.wanted {
        Some(wanted) if wanted != said.applied && said.rejected != Some(wanted) => check(
            "configuration",
            false,
            format!("generation {wanted} is not applied yet"),
        ),
        _ => check(
            "configuration",
            reached.ok,
            format!("generation {} in force", said.applied),
        ),
    };
    let repository = match &said.repository {
        Repository::NotConfigured => check("repository", true, "no backup is configured".into()),
        Repository::Waiting { reason } => check("repository", false, reason.clone()),
        Repository::Ready => check("repository", true, "open".into()),
    };
    vec![reached, settled, repository]
}

/// What to do when the time is up and not all is well. Pure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failing {
    /// Restart: boot counting leads back to a release that was good.
    GoBack,
    /// Stay up and go on asking.
    Stay,
}

/// Decides what a gate does that has not passed in time.
pub fn failing(entries: &[Entry], running: ReleaseVersion) -> Failing {
    let counted = decide::running_entry(entries, running)
        .is_some_and(|entry| entry.state() != EntryState::Good);
    if counted && decide::has_way_back(entries, running) {
        Failing::GoBack
    } else {
        Failing::Stay
    }
}

/// Runs the gate until it passes or the unit has to go back.
///
/// # Errors
/// The result cannot be made durable, or the restart cannot be asked for.
pub async fn gate(site: &Site, deadline: Duration) -> Result<GateResult> {
    let begun = Instant::now();
    let release = site.release()?;
    let boot_id = site.boot_id()?;
    let mut log = GateLog::read(site);
    let mut recorded = false;
    let scripts = scripts(site)?;
    let mut script_checks: Option<Vec<HealthCheck>> = None;
    let mut canary: Option<HealthCheck> = None;
    let mut canary_next = begun;
    loop {
        let said: Said = read_json(&site.run("state.json"))
            .unwrap_or_default()
            .unwrap_or_default();
        let mut checks = judge(&said);
        let daemon_is_well = checks.iter().all(|check| check.ok);
        checks.extend(components(site));
        // The executables run beside the real services, so these come first.
        if checks[0].ok && script_checks.is_none() {
            script_checks = Some(run_scripts(&scripts).await);
        }
        if said.repository == Repository::Ready
            && canary.as_ref().is_none_or(|check| !check.ok)
            && Instant::now() >= canary_next
        {
            canary = Some(prove_canary(site).await);
            canary_next = Instant::now() + CANARY_AGAIN;
        }
        checks.extend(script_checks.clone().unwrap_or_default());
        checks.extend(canary.clone());
        let complete = script_checks.is_some() || scripts.is_empty();
        let passed = daemon_is_well && complete && checks.iter().all(|check| check.ok);
        // What an executable or a component says does not get better by waiting.
        let hopeless = checks.iter().any(|check| {
            !check.ok && (check.name.starts_with("health.d/") || check.name == "components")
        });
        let late = begun.elapsed() >= deadline || hopeless;
        if passed || (late && !recorded) {
            let result = GateResult {
                release,
                boot_id: boot_id.clone(),
                passed,
                checks,
                time: edge::clock::now(),
            };
            log.record(site, result.clone())?;
            recorded = true;
            if passed {
                bless_if_given_up(site, release)?;
                tracing::info!(%release, "health gate passed");
                return Ok(result);
            }
            let reason = reason(&result.checks);
            match failing(&site.esp().entries()?, release) {
                Failing::GoBack => {
                    tracing::error!(%release, reason, "health gate failed, going back");
                    site.tool("systemctl").arg("reboot").run_async().await?;
                    return Ok(result);
                }
                Failing::Stay => {
                    tracing::error!(%release, reason, "health gate failed, and there is no way back: going on");
                }
            }
        }
        // An executable that failed is asked again now and then: without a
        // way back, the unit may still become well.
        if recorded && hopeless {
            tokio::time::sleep(SCRIPT / 4).await;
            script_checks = None;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Proves components that were just replaced: waits until every check of the
/// gate is good and `services` run, and have gone on to run for a moment.
///
/// Nothing is recorded and nothing restarted.
///
/// # Errors
/// What was still wrong at the deadline, in one line.
pub async fn prove(site: &Site, services: &[String], deadline: Duration) -> Result<()> {
    let begun = Instant::now();
    let scripts = scripts(site)?;
    let mut well_since: Option<Instant> = None;
    loop {
        let said: Said = read_json(&site.run("state.json"))?.unwrap_or_default();
        let mut checks = judge(&said);
        checks.extend(components(site));
        for service in services {
            let state = site
                .tool("systemctl")
                .args(["is-active", "--quiet", service]);
            let result = state
                .run_async()
                .await
                .map_err(|_| anyhow::anyhow!("does not run"));
            checks.push(check(service.clone(), result, "runs"));
        }
        // What takes long comes when the rest is good.
        if checks.iter().all(|check| check.ok) && well_since.is_none() {
            checks.extend(run_scripts(&scripts).await);
            if said.repository == Repository::Ready {
                checks.push(prove_canary(site).await);
            }
        }
        if checks.iter().all(|check| check.ok) {
            // A service that falls over at once was seen running, too.
            if well_since.get_or_insert_with(Instant::now).elapsed() >= STEADY {
                return Ok(());
            }
        } else {
            well_since = None;
            if begun.elapsed() >= deadline {
                anyhow::bail!(reason(&checks));
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Says what was left out at the start; it is a fault of the release.
fn components(site: &Site) -> Option<HealthCheck> {
    let found: Vec<HealthCheck> = read_json(&site.run("activation.json")).ok()??;
    found.into_iter().find(|check| check.name == "components")
}

/// Off-spec: systemd blesses only a boot that it still counts. An entry whose
/// tries were used up, and that is good after all, would stay marked as bad.
fn bless_if_given_up(site: &Site, release: ReleaseVersion) -> Result<()> {
    let esp = site.esp();
    let entries = esp.entries()?;
    if let Some(entry) = decide::running_entry(&entries, release)
        && entry.state() == EntryState::Bad
    {
        esp.rename(&entry.path(), &entry.blessed().path())?;
    }
    Ok(())
}

fn scripts(site: &Site) -> Result<Vec<PathBuf>> {
    let folder = site.at("/usr/lib/leapserv/health.d");
    let Ok(entries) = fs::read_dir(&folder) else {
        return Ok(Vec::new());
    };
    let mut scripts = Vec::new();
    for entry in entries {
        let path = entry
            .with_context(|| format!("read {}", folder.display()))?
            .path();
        let executable = fs::metadata(&path)
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
        if executable {
            scripts.push(path);
        }
    }
    scripts.sort();
    Ok(scripts)
}

async fn run_scripts(scripts: &[PathBuf]) -> Vec<HealthCheck> {
    let mut checks = Vec::new();
    for script in scripts {
        let name = script.file_name().unwrap_or_default().to_string_lossy();
        let run = edge::runner::Tool::new(script);
        let result = tokio::time::timeout(SCRIPT, run.run_async())
            .await
            .unwrap_or_else(|_| Err(anyhow::anyhow!("not done within {} s", SCRIPT.as_secs())));
        checks.push(check(format!("health.d/{name}"), result, "good"));
    }
    checks
}

async fn prove_canary(site: &Site) -> HealthCheck {
    let result = site.backup_tool().arg("canary").run_async().await;
    check("canary".to_owned(), result, "restored and good")
}

fn check(name: String, result: Result<()>, good: &str) -> HealthCheck {
    let (ok, message) = match result {
        Ok(()) => (true, good.to_owned()),
        Err(problem) => (false, format!("{problem:#}")),
    };
    HealthCheck { name, ok, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(names: &[&str]) -> Vec<Entry> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn all_ok(said: &Said) -> bool {
        judge(said).iter().all(|check| check.ok)
    }

    #[test]
    fn the_gate_wants_sky_configuration_and_repository() {
        let mut said = Said::default();
        assert!(!all_ok(&said), "the sky was not reached");
        said.checked_in = Some(Timestamp::UNIX_EPOCH);
        assert!(
            all_ok(&said),
            "nothing is configured, so nothing is missing"
        );
        said.wanted = Some(2);
        said.applied = 1;
        assert!(!all_ok(&said), "generation 2 is on trial");
        said.rejected = Some(2);
        assert!(all_ok(&said), "generation 2 was taken back, 1 is in force");
        said.repository = Repository::Waiting {
            reason: "secrets".into(),
        };
        assert!(!all_ok(&said));
        said.repository = Repository::Ready;
        assert!(all_ok(&said));
    }

    #[test]
    fn a_unit_goes_back_only_while_it_is_counted_and_to_a_good_release() {
        let running = "2026.11.3".parse().unwrap();
        let of = |names: &[&str]| failing(&entries(names), running);
        let (new, old) = ("leapserv_2026.11.3+2-1.efi", "leapserv_2026.11.2.efi");
        assert_eq!(of(&[new, old]), Failing::GoBack);
        assert_eq!(of(&["leapserv_2026.11.3+0-3.efi", old]), Failing::GoBack);
        assert_eq!(of(&["leapserv_2026.11.3.efi", old]), Failing::Stay);
        assert_eq!(of(&[new]), Failing::Stay);
        assert_eq!(of(&[new, "leapserv_2026.11.2+0-3.efi"]), Failing::Stay);
    }

    struct Unit {
        _folder: tempfile::TempDir,
        site: Site,
    }

    fn unit(entry_names: &[&str]) -> Unit {
        let folder = tempfile::tempdir().unwrap();
        let site = Site::new(folder.path());
        let put = |path: &str, text: &str| {
            let path = site.at(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("/usr/lib/os-release", "IMAGE_VERSION=2026.11.3\n");
        put("/proc/sys/kernel/random/boot_id", "boot-1\n");
        for name in entry_names {
            put(&format!("/efi/EFI/Linux/{name}"), "uki");
        }
        program(
            &site,
            "/usr/bin/systemctl",
            "echo \"$@\" >> $LEAP_ROOT/systemctl.log",
        );
        Unit {
            _folder: folder,
            site,
        }
    }

    fn program(site: &Site, path: &str, text: &str) {
        let path = site.at(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn say(site: &Site, repository: Repository) {
        let said = Said {
            checked_in: Some(Timestamp::UNIX_EPOCH),
            repository,
            ..Said::default()
        };
        durable::write_json(&site.run("state.json"), &said, Mode::Public).unwrap();
    }

    #[tokio::test]
    async fn a_good_boot_passes_and_is_blessed_even_with_its_tries_used_up() {
        let unit = unit(&["leapserv_2026.11.3+0-3.efi"]);
        program(&unit.site, "/usr/bin/leap-backup", "test \"$3\" = canary");
        program(&unit.site, "/usr/lib/leapserv/health.d/one", "exit 0");
        say(&unit.site, Repository::Ready);
        let result = gate(&unit.site, Duration::from_secs(20)).await.unwrap();
        assert!(result.passed, "{result:?}");
        let names: Vec<_> = result.checks.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "check-in",
                "configuration",
                "repository",
                "health.d/one",
                "canary"
            ]
        );
        let entries = unit.site.esp().entries().unwrap();
        assert_eq!(entries[0].state(), EntryState::Good);
        assert!(GateLog::read(&unit.site).of_boot("boot-1").unwrap().passed);
    }

    #[tokio::test]
    async fn a_release_whose_check_fails_goes_back_at_once_and_leaves_the_reason() {
        let unit = unit(&["leapserv_2026.11.3+2-1.efi", "leapserv_2026.11.2.efi"]);
        let bad = "echo 'pump is dry' >&2; exit 1";
        program(&unit.site, "/usr/lib/leapserv/health.d/pump", bad);
        say(&unit.site, Repository::NotConfigured);
        let begun = Instant::now();
        let result = gate(&unit.site, Duration::from_secs(60)).await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(20));
        assert!(!result.passed);
        let said = fs::read_to_string(unit.site.at("systemctl.log")).unwrap();
        assert_eq!(said, "reboot\n");
        let log = GateLog::read(&unit.site);
        let reason = &log.failed[&"2026.11.3".parse().unwrap()];
        assert!(
            reason.contains("health.d/pump") && reason.contains("pump is dry"),
            "{reason}"
        );
    }

    #[tokio::test]
    async fn without_a_way_back_the_gate_goes_on_until_the_unit_is_well() {
        let unit = unit(&["leapserv_2026.11.3+2-1.efi"]);
        let site = unit.site.clone();
        let running = tokio::spawn(async move { gate(&site, Duration::from_millis(1)).await });
        let failed = || !GateLog::read(&unit.site).failed.is_empty();
        while !failed() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        say(&unit.site, Repository::NotConfigured);
        assert!(running.await.unwrap().unwrap().passed);
        assert!(!failed());
        assert!(!unit.site.at("systemctl.log").exists(), "restarted");
    }
}
