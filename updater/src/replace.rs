//! Replaces components of the running release, without a restart of the unit.
//!
//! The order is the safety. New images lie beside the old ones, durably, before
//! anything says so. Then the former manifest is put aside: that is the trial.
//! Then the new manifest takes its place in one rename: a start of the unit
//! finds either of them, and with it whole images. A start during a trial, for
//! whatever reason, goes back to the former manifest. Only when the health
//! gate's checks have passed with the new components the former manifest is
//! removed: that is the commit. What no manifest names goes last.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use jiff::Timestamp;
use model::release::{ReleaseManifest, is_unit_of};
use model::{TrustRoot, Verified};
use slots::esp;

use crate::activate;
use crate::apply::place;
use crate::extension;
use crate::health;
use crate::revision::{Memory, Named, Plan};
use crate::site::Site;
use crate::sky::Files;

/// One revision on its way to the running release.
#[derive(Debug)]
pub struct Job<'a> {
    /// The unit.
    pub site: &'a Site,
    /// Whom to believe.
    pub trust: &'a TrustRoot,
    /// The new revision.
    pub offered: Named,
    /// Its manifest.
    pub manifest: &'a Verified<ReleaseManifest>,
    /// The manifest as it was signed.
    pub bytes: &'a [u8],
    /// What was decided.
    pub plan: &'a Plan,
    /// How long the new components may take to prove themselves.
    pub gate: Duration,
}

/// How it ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// The new components are active.
    Active,
    /// They are not, and the former ones are: this is why.
    TakenBack(String),
}

/// Brings the new images onto the ESP, beside those that are active.
///
/// # Errors
/// What failed; what is there already is not fetched again.
pub async fn fetch(job: &Job<'_>, files: &Files) -> Result<()> {
    for component in &job.plan.fetch {
        let path = esp::component(job.manifest.version, component)
            .ok_or_else(|| anyhow!("component {}: path leads out", component.name))?;
        place(job.site, files, &path, &component.image).await?;
    }
    Ok(())
}

/// Puts fetched components on trial, and keeps them or takes them back.
///
/// # Errors
/// The trial could not be begun or ended as it should; the next start of the
/// daemon, or of the unit, goes back to the former components.
pub async fn replace(job: &Job<'_>) -> Result<Ended> {
    let site = job.site;
    let mut memory = Memory::read(site);
    if !memory.begin(site, &job.offered)? {
        return Ok(Ended::TakenBack("its trials were cut off".to_owned()));
    }
    tracing::info!(release = %job.offered.release, revision = job.offered.revision, "components on trial");
    let services = running(site, &job.plan.changed).await?;
    begin(job)?;
    let proven = match switch(site, job.trust, &job.plan.changed, &services).await {
        Ok(services) => health::prove(site, &services, job.gate).await,
        Err(problem) => Err(problem),
    };
    let Err(problem) = proven else {
        commit(site)?;
        memory.confirm(site)?;
        tracing::info!(release = %job.offered.release, revision = job.offered.revision, "components replaced");
        tidy(site, job.trust);
        return Ok(Ended::Active);
    };
    let reason = format!("{problem:#}");
    // First, so that a power cut in what follows does not lead to another trial.
    memory.reject(site, &job.offered, reason.clone())?;
    end_interrupted(site, job.trust, edge::clock::now())?;
    switch(site, job.trust, &job.plan.changed, &services)
        .await
        .context("former components")?;
    tidy(site, job.trust);
    Ok(Ended::TakenBack(reason))
}

/// Puts the former manifest aside and the new one in its place.
fn begin(job: &Job<'_>) -> Result<()> {
    let esp = job.site.esp();
    let version = job.manifest.version;
    let active = esp::manifest(version);
    let former = esp.read(&active)?;
    esp.write(&esp::former_manifest(version), &former)?;
    esp.write(&active, job.bytes)?;
    Ok(())
}

/// Ends a trial for good: what is active stays.
fn commit(site: &Site) -> Result<()> {
    let former = esp::former_manifest(site.release()?);
    Ok(site.esp().remove(&former)?)
}

/// Ends a trial that was cut off: the former manifest counts again. Says
/// whether there was one.
///
/// What is merged already stays so until components are activated again.
///
/// # Errors
/// The ESP failed.
pub fn end_interrupted(site: &Site, trust: &TrustRoot, now: Timestamp) -> Result<bool> {
    let esp = site.esp();
    let version = site.release()?;
    let former = esp::former_manifest(version);
    if !esp.path(&former).exists() {
        return Ok(false);
    }
    let bytes = esp.read(&former)?;
    // A former manifest that power went away from under has not been replaced yet.
    match activate::believe(site, trust, &bytes, now) {
        Ok(_) => {
            tracing::warn!(release = %version, "components on trial taken back");
            esp.write(&esp::manifest(version), &bytes)?;
        }
        Err(problem) => {
            let problem = format!("{problem:#}");
            tracing::error!(problem, "former manifest not used");
        }
    }
    esp.remove(&former)?;
    Ok(true)
}

/// Goes back from a trial that a former life of the daemon left, on a unit that runs on.
///
/// # Errors
/// The former components are not active.
pub async fn resume(site: &Site, trust: &TrustRoot) -> Result<()> {
    if !end_interrupted(site, trust, edge::clock::now())? {
        return Ok(());
    }
    let manifest = activate::running_manifest(site, trust, edge::clock::now())?;
    let names: Vec<String> = manifest
        .components
        .iter()
        .map(|component| component.name.clone())
        .collect();
    let services = running(site, &names).await?;
    switch(site, trust, &names, &services).await.map(drop)
}

/// Returns the units of these components that run.
async fn running(site: &Site, components: &[String]) -> Result<Vec<String>> {
    let mut running = Vec::new();
    for unit in units(site, components)? {
        let state = site.tool("systemctl");
        let state = state.args(["is-active", "--quiet", &unit]);
        if state.run_async().await.is_ok() {
            running.push(unit);
        }
    }
    Ok(running)
}

/// Activates what the manifest on the ESP says and restarts those of `services`
/// that `changed` components still bring. Returns them: they must run now.
async fn switch(
    site: &Site,
    trust: &TrustRoot,
    changed: &[String],
    services: &[String],
) -> Result<Vec<String>> {
    let activated =
        tokio::task::block_in_place(|| activate::components_again(site, trust, edge::clock::now()));
    let systemctl = || site.tool("systemctl");
    systemctl().arg("daemon-reload").run_async().await?;
    let there = units(site, changed)?;
    let (stay, gone): (Vec<String>, Vec<String>) = services
        .iter()
        .cloned()
        .partition(|unit| there.contains(unit));
    if !gone.is_empty() {
        systemctl().arg("stop").args(gone).run_async().await?;
    }
    if !stay.is_empty() {
        // What failed too often would not be started again.
        drop(
            systemctl()
                .arg("reset-failed")
                .args(&stay)
                .run_async()
                .await,
        );
        systemctl().arg("restart").args(&stay).run_async().await?;
    }
    activated?;
    Ok(stay)
}

/// Returns the units that components have brought: a component's units begin
/// with `leap-` and its name. Of a template, all instances are meant.
fn units(site: &Site, components: &[String]) -> Result<Vec<String>> {
    const KINDS: [&str; 4] = [".service", ".socket", ".timer", ".path"];
    let folder = site.at("/usr/lib/systemd/system");
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("read {}", folder.display()))?,
    };
    let mut units = BTreeSet::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("read {}", folder.display()))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_unit = KINDS.iter().any(|kind| name.ends_with(kind));
        if is_unit && components.iter().any(|one| is_unit_of(&name, one)) {
            units.insert(name.replace("@.", "@*."));
        }
    }
    Ok(units.into_iter().collect())
}

/// Does as [`sweep`], and goes on where it fails: what stays takes room and does no harm.
pub fn tidy(site: &Site, trust: &TrustRoot) {
    if let Err(problem) = sweep(site, trust, edge::clock::now()) {
        let problem = format!("{problem:#}");
        tracing::warn!(problem, "old components not removed");
    }
}

/// Unmounts images that are not in use, and removes what the manifest of the
/// running release does not name from its folder.
///
/// # Errors
/// The ESP failed, or its manifest is not believed: then everything stays.
pub fn sweep(site: &Site, trust: &TrustRoot, now: Timestamp) -> Result<()> {
    extension::sweep(site)?;
    let manifest = activate::running_manifest(site, trust, now)?;
    let esp = site.esp();
    let version = manifest.version;
    let mut named = vec![esp::manifest(version), esp::former_manifest(version)];
    for component in &manifest.components {
        named.extend(esp::component(version, component));
    }
    for file in esp.release_files(version)? {
        // FAT keeps the case of a name and does not tell names apart by it.
        if !named.iter().any(|name| name.eq_ignore_ascii_case(&file)) {
            tracing::info!(file, "removed: the release does not name it");
            esp.remove(&file)?;
        }
    }
    Ok(())
}
