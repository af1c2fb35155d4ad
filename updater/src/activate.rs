//! The first thing at a start: components, customer layer, last configuration.
//!
//! Nothing that lies on the ESP is believed before its signature and digest
//! are verified. What is not good is left out and reported; the unit starts
//! all the same, because a unit that starts can be helped.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, ensure};
use edge::durable::{self, Mode};
use jiff::Timestamp;
use model::api::HealthCheck;
use model::release::{CustomerLayer, ReleaseManifest};
use model::{Signed, TrustRoot, Verified};
use slots::esp;

use crate::generation::Store;
use crate::settings;
use crate::site::Site;

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
            found.push(check("components", components(site, &trust, now)));
            found.push(check("customer-layer", customer_layer(site, &trust, now)));
        }
        Err(problem) => found.push(check("components", Err(problem))),
    }
    for one in found.iter().filter(|one| !one.ok) {
        tracing::error!(part = one.name, problem = one.message, "not activated");
    }
    durable::write_json(&site.run("activation.json"), &found, Mode::Public)?;
    Ok(found)
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
    let version = site.release()?;
    let bytes = site.esp().read(&esp::manifest(version))?;
    let signed: Signed<ReleaseManifest> =
        serde_json::from_slice(&bytes).context("manifest of the running release")?;
    let manifest = trust
        .verify(&signed, now)
        .context("manifest of the running release")?;
    ensure!(
        manifest.version == version,
        "manifest of the running release: made for {}, {version} runs",
        manifest.version
    );
    let root_hash = site.root_hash()?;
    ensure!(
        manifest.root_hash == root_hash,
        "manifest of the running release: another root hash than the running {root_hash}"
    );
    Ok(manifest)
}

fn components(site: &Site, trust: &TrustRoot, now: Timestamp) -> Result<String> {
    let manifest = running_manifest(site, trust, now)?;
    let esp = site.esp();
    let mut good = Vec::new();
    let mut bad = Vec::new();
    for component in &manifest.components {
        let link = site.at(&format!("/run/extensions/leap-{}.raw", component.name));
        let place = esp::component(manifest.version, component)
            .ok_or_else(|| anyhow!("path {:?} leads out", component.image.path))
            .and_then(|path| {
                let name_is_plain = !component.name.is_empty()
                    && component
                        .name
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b == b'-');
                ensure!(name_is_plain, "not a component's name");
                ensure!(
                    esp.holds(&path, &component.image)?,
                    "missing or not as signed"
                );
                link_to(&esp.path(&path), &link)
            });
        match place {
            Ok(()) => good.push(format!("{} {}", component.name, component.version)),
            Err(problem) => {
                unlink(&link)?;
                bad.push(format!("{}: {problem:#}", component.name));
            }
        }
    }
    if !good.is_empty() {
        refresh(site, "systemd-sysext")?;
    }
    ensure!(bad.is_empty(), "{}", bad.join("; "));
    Ok(good.join(", "))
}

fn customer_layer(site: &Site, trust: &TrustRoot, now: Timestamp) -> Result<String> {
    let esp = site.esp();
    let link = site.at("/run/confexts/leap-customer.raw");
    let place = || -> Result<String> {
        let bytes = esp.read(esp::LAYER_JSON)?;
        let signed: Signed<CustomerLayer> =
            serde_json::from_slice(&bytes).context("customer layer")?;
        let layer = trust.verify(&signed, now).context("customer layer")?;
        let unit = site.enrolment()?.identity.unit;
        ensure!(
            layer.customer == *unit.customer(),
            "customer layer: made for {}, this unit is {unit}",
            layer.customer
        );
        ensure!(
            esp.holds(esp::LAYER_RAW, &layer.image)?,
            "customer layer: missing or not as signed"
        );
        link_to(&esp.path(esp::LAYER_RAW), &link)?;
        refresh(site, "systemd-confext")?;
        Ok(format!("{} version {}", layer.customer, layer.version))
    };
    place().inspect_err(|_| drop(unlink(&link)))
}

fn refresh(site: &Site, tool: &str) -> Result<()> {
    site.tool(tool).arg("refresh").run()
}

fn link_to(file: &Path, link: &Path) -> Result<()> {
    unlink(link)?;
    if let Some(folder) = link.parent() {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    symlink(file, link).with_context(|| format!("link {}", link.display()))
}

fn unlink(link: &Path) -> Result<()> {
    match fs::remove_file(link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", link.display()))
        }
        _ => Ok(()),
    }
}
