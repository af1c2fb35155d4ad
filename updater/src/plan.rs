//! What an update would do now. Changes nothing.

use std::path::Path;

use anyhow::{Context as _, Result};
use model::Signed;
use model::release::ChannelPointer;
use slots::decide::{Refusal, decide};

use crate::site::Site;
use crate::sky::Sky;
use crate::update::{Rejected, Running, facts};

/// Asks the sky for a channel and returns what would be done, a line each.
///
/// # Errors
/// The sky cannot be reached, or what it offers is not believed.
pub async fn plan(
    site: &Site,
    disk: Option<&Path>,
    channel: &str,
) -> Result<Result<Vec<String>, Refusal>> {
    let trust = site.trust_root()?;
    let sky = Sky::of(site)?;
    let now = edge::clock::now();
    let bytes = sky.channel(channel).await?;
    let signed: Signed<ChannelPointer> = serde_json::from_slice(&bytes).context("channel")?;
    let pointer = trust.verify(&signed, now).context("channel")?;
    crate::channel::Floors::read(site)?.accept(&pointer)?;
    let files = sky.release(pointer.release)?;
    let bytes = files.small("manifest.json").await?;
    let manifest = crate::channel::manifest(&trust, &pointer, &bytes, now)?;
    let running = Running::find(site, disk)?;
    let facts = facts(site, &running, &Rejected::read(site), &manifest)?;
    Ok(decide(&facts).map(|plan| {
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
