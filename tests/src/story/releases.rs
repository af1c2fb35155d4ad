//! Step 2: releases and the customer's layer, built from Debian's packages.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use base64::Engine as _;
use serde_json::Value;

use super::world::{CUSTOMER, World};
use crate::lab::isolation::{Errand, Inside};
use crate::lab::story::Step;

/// The release that units are born with.
pub(super) const FIRST: &str = "2026.11.1";
/// A good one.
pub(super) const GOOD: &str = "2026.11.2";
/// One whose health gate fails.
pub(super) const BAD: &str = "2026.11.3";
/// A further good one.
pub(super) const FURTHER: &str = "2026.11.4";

/// Folder of a release.
pub(super) fn folder(world: &World, version: &str) -> PathBuf {
    world.stage.build.join("releases").join(version)
}

/// Builds four releases and the customer's layer, and publishes the first.
pub(super) async fn build(inside: &Inside, world: &World, step: &mut Step) -> anyhow::Result<()> {
    step.note("building needs Debian's packages, so it runs outside, on the host's network");
    let product = world.stage.recipes.join("leapserv.toml");
    let refused = world.stage.recipes.join("refusing.toml");
    for (version, recipe) in [
        (FIRST, &product),
        (GOOD, &product),
        (BAD, &refused),
        (FURTHER, &product),
    ] {
        let begun = step.elapsed();
        release(inside, world, step, version, recipe).await?;
        step.timing(&format!("build {version}"), step.elapsed() - begun);
    }
    let sizes = sizes(&folder(world, FIRST))?;
    step.evidence(format!("release {FIRST}: {sizes}"));
    step.evidence(format!(
        "releases {GOOD} and {FURTHER} are good; in {BAD} a health check fails"
    ));

    let layer = layer(inside, world, step, &product).await?;
    let shown = layer.display().to_string();
    world
        .operator
        .run(step, &["customer", "layer", CUSTOMER, "--dir", &shown])
        .await?;
    publish(world, step, FIRST).await
}

/// Uploads a release and offers it on the channel.
pub(super) async fn publish(world: &World, step: &mut Step, version: &str) -> anyhow::Result<()> {
    let shown = folder(world, version).display().to_string();
    let answer = world
        .operator
        .run(step, &["release", "publish", &shown, "--channel", "stable"])
        .await?;
    step.evidence(format!(
        "channel stable offers {} ({} files sent)",
        answer["offered"]["release"].as_str().unwrap_or("nothing"),
        answer["files_sent"]
    ));
    Ok(())
}

async fn release(
    inside: &Inside,
    world: &World,
    step: &mut Step,
    version: &str,
    recipe: &Path,
) -> anyhow::Result<()> {
    let keys = world.stage.build.join("keys");
    let arguments = [
        "build".into(),
        text(recipe),
        "--version".into(),
        version.into(),
        "--bin-dir".into(),
        text(&world.stage.programs),
        "--out".into(),
        text(&world.stage.build.join("releases")),
        "--cache".into(),
        text(&world.stage.cache.join("image")),
        "--key".into(),
        text(&keys.join("targets.pem")),
        "--trust-root".into(),
        text(&keys.join("trust-root.json")),
    ];
    run(inside, world, step, arguments.to_vec()).await
}

async fn layer(
    inside: &Inside,
    world: &World,
    step: &mut Step,
    recipe: &Path,
) -> anyhow::Result<PathBuf> {
    let files = world.stage.build.join("settings/layer");
    std::fs::create_dir_all(files.join("leapserv")).context("make the layer's folder")?;
    std::fs::write(
        files.join("motd"),
        "LeapServ for Motivatit Seafoods, Houma, Louisiana\n",
    )
    .and_then(|()| {
        let customer = serde_json::json!({"customer": CUSTOMER, "title": "Motivatit Seafoods"});
        std::fs::write(
            files.join("leapserv/customer.json"),
            format!("{customer:#}\n"),
        )
    })
    .context("write the layer's files")?;
    let out = world.stage.build.join("layer");
    let arguments = [
        "layer".into(),
        "--customer".into(),
        CUSTOMER.into(),
        "--files".into(),
        text(&files),
        "--out".into(),
        text(&out),
        "--recipe".into(),
        text(recipe),
        "--cache".into(),
        text(&world.stage.cache.join("image")),
        "--key".into(),
        text(&world.stage.build.join("keys/configuration.pem")),
    ];
    run(inside, world, step, arguments.to_vec()).await?;
    let size = std::fs::metadata(out.join("layer.raw"))
        .context("look at the layer")?
        .len();
    step.evidence(format!("the customer's layer: {} KiB, signed", size >> 10));
    Ok(out)
}

async fn run(
    inside: &Inside,
    world: &World,
    step: &mut Step,
    arguments: Vec<String>,
) -> anyhow::Result<()> {
    step.command("leap-image", &arguments);
    step.waiting("leap-image starts");
    let errand = Errand {
        program: std::path::absolute(world.program("leap-image")).context("name leap-image")?,
        arguments,
        environment: BTreeMap::new(),
    };
    let done = inside
        .errand(&errand, |line| step.update(line.trim()))
        .await;
    step.rest();
    done
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// The root hash that a release's manifest names.
pub(super) fn root_hash(world: &World, version: &str) -> anyhow::Result<String> {
    let manifest = manifest(&folder(world, version))?;
    let hash = manifest["root_hash"].as_str();
    Ok(hash.context("manifest: expected a root hash")?.to_owned())
}

/// The sizes that people ask for.
fn sizes(release: &Path) -> anyhow::Result<String> {
    let manifest = manifest(release)?;
    let mib = |value: &Value| value.as_u64().unwrap_or(0) as f64 / f64::from(1 << 20);
    let download = mib(&manifest["root"]["stored_size"])
        + mib(&manifest["verity"]["stored_size"])
        + mib(&manifest["uki"]["size"])
        + mib(&manifest["components"][0]["image"]["size"]);
    Ok(format!(
        "root {:.0} MiB (EROFS under dm-verity), kernel image {:.0} MiB, backup component {:.0} MiB, \
         whole download {download:.0} MiB",
        mib(&manifest["root"]["size"]),
        mib(&manifest["uki"]["size"]),
        mib(&manifest["components"][0]["image"]["size"]),
    ))
}

/// The manifest of a release, unverified: for looking only.
pub(crate) fn manifest(release: &Path) -> anyhow::Result<Value> {
    let path = release.join("manifest.json");
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let envelope: Value = serde_json::from_str(&text).context("envelope: expected JSON")?;
    let payload = envelope["payload"]
        .as_str()
        .context("envelope: has no payload")?;
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(payload)
        .context("envelope: expected base64")?;
    serde_json::from_slice(&bytes).context("document: expected JSON")
}
