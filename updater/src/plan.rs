//! What an update would do now. Changes nothing.

use std::path::Path;

use anyhow::{Context as _, Result};
use model::Signed;
use model::release::{ChannelPointer, manifest_path};
use slots::decide::{Refusal, decide};

use crate::revision::{self, Memory};
use crate::site::Site;
use crate::sky::Sky;
use crate::update::{ActiveRevision, Rejected, Running, facts};

/// Why nothing would be done.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The other slot would not be written.
    #[error(transparent)]
    Slot(#[from] Refusal),
    /// No component would be replaced.
    #[error(transparent)]
    Components(#[from] revision::Refusal),
}

/// Asks the sky for a channel and returns what would be done, a line each.
///
/// # Errors
/// The sky cannot be reached, or what it offers is not believed.
pub async fn plan(
    site: &Site,
    disk: Option<&Path>,
    channel: &str,
) -> Result<Result<Vec<String>, Refused>> {
    let trust = site.trust_root()?;
    let sky = Sky::of(site)?;
    let now = edge::clock::now();
    let bytes = sky.channel(channel).await?;
    let signed: Signed<ChannelPointer> = serde_json::from_slice(&bytes).context("channel")?;
    let pointer = trust.verify(&signed, now).context("channel")?;
    crate::channel::Floors::read(site)?.accept(&pointer)?;
    let files = sky.release(pointer.release)?;
    let bytes = files.small(&manifest_path(pointer.revision)).await?;
    let manifest = crate::channel::manifest(&trust, &pointer, &bytes, now)?;
    if pointer.release == site.release()? {
        let active = ActiveRevision::read(site, &trust, now)?;
        let memory = Memory::read(site);
        let facts = active.facts(site, &pointer, &memory)?;
        let plan = revision::decide(&facts, &active.manifest, &manifest);
        return Ok(plan.map(|plan| replacement(&plan)).map_err(Refused::from));
    }
    let running = Running::find(site, disk)?;
    let facts = facts(site, &running, &Rejected::read(site), &manifest)?;
    Ok(decide(&facts).map_err(Refused::from).map(|plan| {
        let mut lines: Vec<String> = plan
            .remove_entries
            .iter()
            .map(|entry| format!("remove boot entry {entry}"))
            .chain(
                plan.remove_releases
                    .iter()
                    .map(|release| format!("remove files of release {release}")),
            )
            .collect();
        lines.push(format!(
            "write release {} to slot {} of {}: root {} bytes, verity {} bytes",
            manifest.version,
            plan.slot,
            running.disk.display(),
            manifest.root.size,
            manifest.verity.size
        ));
        for component in &manifest.components {
            lines.push(format!(
                "place component {} {}",
                component.name, component.version
            ));
        }
        lines.push(format!("add a boot entry with {} tries", manifest.tries));
        lines.push("restart in the maintenance window".to_owned());
        lines
    }))
}

fn replacement(plan: &revision::Plan) -> Vec<String> {
    let fetch = plan.fetch.iter().map(|component| {
        let (name, version) = (&component.name, &component.version);
        format!(
            "fetch component {name} {version}: {} bytes",
            component.image.size
        )
    });
    let restart = plan
        .changed
        .iter()
        .map(|name| format!("restart the services of component {name} that run"));
    let gate = "keep the new components if the health gate passes, else take them back";
    fetch.chain(restart).chain([gate.to_owned()]).collect()
}
