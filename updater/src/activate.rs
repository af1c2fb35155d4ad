//! The first thing at a start: components, customer layer, last configuration.
//!
//! Nothing that lies on the ESP is believed before its signature and digest
//! are verified. What is not good is left out and reported; the unit starts
//! all the same, because a unit that starts can be helped.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, ensure};
use edge::durable::{self, Mode};
use jiff::Timestamp;
use model::api::HealthCheck;
use model::release::{Component, CustomerLayer, ReleaseManifest};
use model::{Signed, TrustRoot, Verified};
use slots::esp;

use crate::extension;
use crate::generation::Store;
use crate::replace;
use crate::revision::is_plain;
use crate::settings;
use crate::site::{Site, read_json, read_state};

/// Activates everything and returns what was found, good and bad.
///
/// # Errors
/// Only when not even the report can be written.
pub fn activate(site: &Site, now: Timestamp) -> Result<Vec<HealthCheck>> {
    let mut found = Vec::new();
    // The configuration first: what reads it starts right after this.
    found.push(check("settings", settings(site, now)));
    match site.trust_root() {
        Ok(trust) => {
            if let Err(problem) = replace::end_interrupted(site, &trust, now) {
                let problem = format!("{problem:#}");
                tracing::error!(problem, "components on trial not taken back");
            }
            let layer = layer(site, &trust, now);
            found.push(check("components", components(site, &trust, &layer, now)));
            found.push(check(
                "customer-layer",
                customer_layer(site, &trust, layer, now),
            ));
        }
        Err(problem) => found.push(check("components", Err(problem))),
    }
    for one in found.iter().filter(|one| !one.ok) {
        tracing::error!(part = one.name, problem = one.message, "not activated");
    }
    report(site, &found)?;
    Ok(found)
}

/// Activates the components anew, as the manifest on the ESP says now.
///
/// # Errors
/// One of them is not active; the others are.
pub fn components_again(site: &Site, trust: &TrustRoot, now: Timestamp) -> Result<String> {
    let layer = layer(site, trust, now);
    let result = components(site, trust, &layer, now);
    let mut found: Vec<HealthCheck> = read_state(&site.run("activation.json")).unwrap_or_default();
    found.retain(|one| one.name != "components");
    let (ok, message) = match &result {
        Ok(message) => (true, message.clone()),
        Err(problem) => (false, format!("{problem:#}")),
    };
    let name = "components".to_owned();
    found.insert(0, HealthCheck { name, ok, message });
    report(site, &found)?;
    result
}

fn report(site: &Site, found: &[HealthCheck]) -> Result<()> {
    durable::write_json(&site.run("activation.json"), &found, Mode::Public)
}

/// Returns the revision whose components were activated last in this boot.
///
/// # Errors
/// The file is there and cannot be read.
pub fn active_revision(site: &Site) -> Result<u32> {
    Ok(read_json(&site.run("revision.json"))?.unwrap_or(0))
}

fn check(name: &str, result: Result<String>) -> HealthCheck {
    let (ok, message) = match result {
        Ok(message) => (true, message),
        Err(problem) => (false, format!("{problem:#}")),
    };
    HealthCheck {
        name: name.to_owned(),
        ok,
        message,
    }
}

fn settings(site: &Site, now: Timestamp) -> Result<String> {
    let trust = site.trust_root()?;
    let mut store = Store::open(site, &trust, now)?;
    let interrupted = store.end_interrupted()?;
    let confirmed = store.confirmed();
    settings::write(site, confirmed.map(|one| &one.settings))?;
    let generation = confirmed.map_or(0, |one| one.generation);
    Ok(match interrupted {
        Some(trial) => format!("generation {generation}; the trial of {trial} was cut off"),
        None => format!("generation {generation}"),
    })
}

/// Reads and verifies the manifest of the running release on the ESP.
///
/// # Errors
/// It is missing, not signed, or of another release or root.
pub fn running_manifest(
    site: &Site,
    trust: &TrustRoot,
    now: Timestamp,
) -> Result<Verified<ReleaseManifest>> {
    let bytes = site.esp().read(&esp::manifest(site.release()?))?;
    believe(site, trust, &bytes, now).context("manifest of the running release")
}

/// Verifies the bytes of a manifest of the running release.
///
/// # Errors
/// They are not signed, or of another release or root.
pub fn believe(
    site: &Site,
    trust: &TrustRoot,
    bytes: &[u8],
    now: Timestamp,
) -> Result<Verified<ReleaseManifest>> {
    let version = site.release()?;
    let signed: Signed<ReleaseManifest> =
        serde_json::from_slice(bytes).context("expected a signed manifest")?;
    let manifest = trust.verify(&signed, now)?;
    ensure!(
        manifest.version == version,
        "made for {}, {version} runs",
        manifest.version
    );
    let root_hash = site.root_hash()?;
    ensure!(
        manifest.root_hash == root_hash,
        "another root hash than the running {root_hash}"
    );
    Ok(manifest)
}

fn components(
    site: &Site,
    trust: &TrustRoot,
    layer: &Result<Verified<CustomerLayer>>,
    now: Timestamp,
) -> Result<String> {
    let manifest = running_manifest(site, trust, now)?;
    // A layer that is not believed chooses nothing: its check tells of it.
    let chosen = layer.as_ref().ok();
    let chosen = chosen.and_then(|layer| layer.components.as_deref());
    let mut bad = Vec::new();
    let mut good = Vec::new();
    for component in manifest.chosen(chosen) {
        match mounted(site, &manifest, component) {
            Ok(point) => good.push((component, point)),
            Err(problem) => bad.push(format!("{}: {problem:#}", component.name)),
        }
    }
    merge(site, &mut good, &mut bad)?;
    durable::write_json(&site.run("revision.json"), &manifest.revision, Mode::Public)?;
    ensure!(bad.is_empty(), "{}", bad.join("; "));
    let names: Vec<String> = good
        .iter()
        .map(|(component, _)| format!("{} {}", component.name, component.version))
        .collect();
    Ok(names.join(", "))
}

/// Mounts a component's image, if it is as signed, and returns where.
fn mounted(site: &Site, manifest: &ReleaseManifest, component: &Component) -> Result<PathBuf> {
    ensure!(is_plain(&component.name), "not a component's name");
    let path = esp::component(manifest.version, component)
        .ok_or_else(|| anyhow!("path {:?} leads out", component.image.path))?;
    let tree = component
        .verity
        .context("the release has no hash tree for it: build the release anew")?;
    let esp = site.esp();
    // The whole image now, so that damage is told now; the kernel checks what is read later.
    ensure!(
        esp.holds(&path, &component.image)?,
        "missing or not as signed"
    );
    extension::mount_verified(site, &extension_name(component), &esp.path(&path), &tree)
}

fn extension_name(component: &Component) -> String {
    format!("leap-{}", component.name)
}

/// Links exactly these mounts for systemd, and has it merge them. What it does
/// not merge goes from the good ones to the bad ones.
fn merge(site: &Site, good: &mut Vec<(&Component, PathBuf)>, bad: &mut Vec<String>) -> Result<()> {
    link_components(site, good)?;
    let before = merged(site)?;
    if good.is_empty() && before.is_empty() {
        return Ok(());
    }
    if let Err(problem) = refresh(site, "systemd-sysext") {
        // One bad image keeps all of them out: find out which.
        let candidates = std::mem::take(good);
        if candidates.len() == 1 {
            bad.push(format!("{}: {problem:#}", candidates[0].0.name));
        } else {
            for candidate in candidates {
                let name = candidate.0.name.clone();
                good.push(candidate);
                link_components(site, good)?;
                if let Err(problem) = refresh(site, "systemd-sysext") {
                    good.pop();
                    bad.push(format!("{name}: {problem:#}"));
                }
            }
        }
        link_components(site, good)?;
        refresh(site, "systemd-sysext")?;
    }
    // What does not fit this system is passed over without an error.
    let now = merged(site)?;
    good.retain(|(component, _)| {
        let there = now.contains(&component.name);
        if !there {
            bad.push(format!(
                "{}: not merged: its extension-release is not for this system",
                component.name
            ));
        }
        there
    });
    link_components(site, good)
}

fn link_components(site: &Site, components: &[(&Component, PathBuf)]) -> Result<()> {
    let folder = site.at(extension::LINKS[0]);
    for name in extension::entries(&folder)? {
        let ours = name.strip_prefix("leap-");
        if ours.is_some_and(|name| !components.iter().any(|(one, _)| one.name == name)) {
            unlink(&folder.join(name))?;
        }
    }
    for (component, point) in components {
        link_to(point, &folder.join(extension_name(component)))?;
    }
    Ok(())
}

/// Returns the components whose files are there, by name: each brings the file
/// by which systemd knows it.
fn merged(site: &Site) -> Result<Vec<String>> {
    let names = extension::entries(&site.at("/usr/lib/extension-release.d"))?;
    Ok(names
        .iter()
        .filter_map(|name| name.strip_prefix("extension-release.leap-"))
        .map(str::to_owned)
        .collect())
}

/// Reads and verifies the customer's layer.
fn layer(site: &Site, trust: &TrustRoot, now: Timestamp) -> Result<Verified<CustomerLayer>> {
    let bytes = site.esp().read(esp::LAYER_JSON)?;
    let signed: Signed<CustomerLayer> = serde_json::from_slice(&bytes).context("customer layer")?;
    let layer = trust.verify(&signed, now).context("customer layer")?;
    let unit = site.enrolment()?.identity.unit;
    ensure!(
        layer.customer == *unit.customer(),
        "customer layer: made for {}, this unit is {unit}",
        layer.customer
    );
    Ok(layer)
}

fn customer_layer(
    site: &Site,
    trust: &TrustRoot,
    layer: Result<Verified<CustomerLayer>>,
    now: Timestamp,
) -> Result<String> {
    let esp = site.esp();
    let link = site.at(extension::LINKS[1]).join(CUSTOMER);
    let place = || -> Result<Verified<CustomerLayer>> {
        let layer = layer?;
        let bytes = esp.read(esp::LAYER_RAW)?;
        let point = extension::mount_copy(site, CUSTOMER, &bytes, &layer.image)
            .context("customer layer")?;
        link_to(&point, &link)?;
        refresh(site, "systemd-confext")?;
        Ok(layer)
    };
    let layer = place().inspect_err(|_| drop(unlink(&link)))?;
    if let Some(chosen) = &layer.components {
        let manifest = running_manifest(site, trust, now)?;
        let has = |name: &String| manifest.components.iter().any(|one| one.name == *name);
        let missing: Vec<&str> = chosen
            .iter()
            .filter(|name| !has(name))
            .map(String::as_str)
            .collect();
        ensure!(
            missing.is_empty(),
            "customer layer: chooses {}, which release {} does not have",
            missing.join(", "),
            manifest.version
        );
    }
    Ok(format!("{} version {}", layer.customer, layer.version))
}

/// The configuration extension's name.
const CUSTOMER: &str = "leap-customer";

fn refresh(site: &Site, tool: &str) -> Result<()> {
    site.tool(tool).arg("refresh").run()
}

/// Replaces a link: there is always the old link or the new one.
fn link_to(file: &Path, link: &Path) -> Result<()> {
    if fs::read_link(link).is_ok_and(|there| there == file) {
        return Ok(());
    }
    if let Some(folder) = link.parent() {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let new = link.with_extension("new");
    unlink(&new)?;
    symlink(file, &new)
        .and_then(|()| fs::rename(&new, link))
        .with_context(|| format!("link {}", link.display()))
}

fn unlink(link: &Path) -> Result<()> {
    match fs::remove_file(link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", link.display()))
        }
        _ => Ok(()),
    }
}
