//! Step 2: releases and the customer's layer, built from Debian's packages.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use base64::Engine as _;
use edge::runner::Tool;
use model::release::ReleaseManifest;
use model::{Architecture, Signed, Signer, TrustRoot};
use serde_json::Value;

use super::world::{CUSTOMER, World};
use crate::lab::isolation::{Errand, Inside};
use crate::lab::story::Step;

/// The release that units are born with.
pub(crate) const FIRST: &str = "2026.11.1";
/// A good one.
pub(super) const GOOD: &str = "2026.11.2";
/// One whose health gate fails.
pub(super) const BAD: &str = "2026.11.3";
/// The channel of units.
pub(super) const STABLE: &str = "stable";
/// The channel of releases whose programs are signed for Secure Boot.
pub(super) const SIGNED: &str = "signed";
/// The channel of machines of another architecture.
pub(super) const ARM64: &str = "stable-arm64";
/// The release on it.
const FOR_ARM64: &str = "2026.11.5";
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
    lock(inside, world, step, &product).await?;
    let refused = world.stage.recipes.join("refusing.toml");
    for (version, recipe) in [
        (FIRST, &product),
        (GOOD, &product),
        (BAD, &refused),
        (FURTHER, &product),
    ] {
        let begun = step.elapsed();
        release(inside, world, step, version, recipe, None).await?;
        step.timing(&format!("build {version}"), step.elapsed() - begun);
    }
    let sizes = Sizes::of(&folder(world, FIRST))?;
    step.evidence(format!(
        "release {FIRST}: root {:.0} MiB (EROFS under dm-verity), kernel image {:.0} MiB, \
         backup component {:.0} MiB, whole download {:.0} MiB",
        sizes.root, sizes.kernel, sizes.backup, sizes.download
    ));
    step.evidence(format!(
        "releases {GOOD} and {FURTHER} are good; in {BAD} a health check fails"
    ));

    first(inside, world, step, &product).await
}

/// Builds the first release alone and the customer's layer, and publishes both.
pub(super) async fn build_first(
    inside: &Inside,
    world: &World,
    step: &mut Step,
) -> anyhow::Result<()> {
    step.note("building needs Debian's packages, so it runs outside, on the host's network");
    let product = world.stage.recipes.join("leapserv.toml");
    lock(inside, world, step, &product).await?;
    release(inside, world, step, FIRST, &product, None).await?;
    first(inside, world, step, &product).await
}

/// Builds a release whose programs are signed for Secure Boot, with new keys that go into
/// the folder `signing`, and publishes it on a channel of its own.
pub(super) async fn build_signed(
    inside: &Inside,
    world: &World,
    step: &mut Step,
    signing: &Path,
) -> anyhow::Result<()> {
    let product = world.stage.recipes.join("leapserv.toml");
    let keys = vec!["keys".to_owned(), "--out".to_owned(), text(signing)];
    run(inside, world, step, keys).await?;
    release(inside, world, step, GOOD, &product, Some(signing)).await?;
    publish_folder(world, step, &folder(world, GOOD), SIGNED).await
}

/// Publishes, on a channel of its own, a release for arm64 machines as far as they take
/// part in it: up to the boot file that they fetch. Its programs are the first release's,
/// since nothing here makes any for them.
pub(super) async fn publish_for_arm64(world: &World, step: &mut Step) -> anyhow::Result<()> {
    let keys = world.stage.build.join("keys");
    let read = |path: &Path| {
        std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
    };
    let root: TrustRoot = serde_json::from_str(&read(&keys.join("trust-root.json"))?)?;
    let signer = Signer::from_pem(&read(&keys.join("targets.pem"))?)?;
    let copy = folder(world, FOR_ARM64);
    let _ = std::fs::remove_dir_all(&copy);
    Tool::new("cp")
        .args(["--recursive", "--reflink=auto", "--"])
        .args([folder(world, FIRST), copy.clone()])
        .run_async()
        .await?;
    let file = copy.join("manifest.json");
    let signed: Signed<ReleaseManifest> = serde_json::from_str(&read(&file)?)?;
    let manifest = root.verify(&signed, edge::clock::now())?.into_inner();
    let manifest = ReleaseManifest {
        version: FOR_ARM64.parse()?,
        architecture: Architecture::Arm64,
        ..manifest
    };
    let signed = serde_json::to_vec(&signer.sign(&manifest))?;
    std::fs::write(&file, signed).with_context(|| format!("write {}", file.display()))?;
    publish_folder(world, step, &copy, ARM64).await
}

async fn first(
    inside: &Inside,
    world: &World,
    step: &mut Step,
    product: &Path,
) -> anyhow::Result<()> {
    let layer = layer(inside, world, step, product).await?;
    let shown = layer.display().to_string();
    world
        .operator
        .run(step, &["customer", "layer", CUSTOMER, "--dir", &shown])
        .await?;
    publish(world, step, FIRST).await
}

/// Uploads a release and offers it on the channel.
pub(super) async fn publish(world: &World, step: &mut Step, version: &str) -> anyhow::Result<()> {
    publish_folder(world, step, &folder(world, version), STABLE).await
}

/// Uploads what lies in a release's or revision's folder and offers it on the channel.
pub(super) async fn publish_folder(
    world: &World,
    step: &mut Step,
    folder: &Path,
    channel: &str,
) -> anyhow::Result<()> {
    let shown = folder.display().to_string();
    let answer = world
        .operator
        .run(step, &["release", "publish", &shown, "--channel", channel])
        .await?;
    step.evidence(format!(
        "channel {channel} offers {} ({} files sent)",
        answer["offered"]["release"].as_str().unwrap_or("nothing"),
        answer["files_sent"]
    ));
    Ok(())
}

/// Fixes the packages of all releases: the recipes ask for the same ones.
async fn lock(
    inside: &Inside,
    world: &World,
    step: &mut Step,
    recipe: &Path,
) -> anyhow::Result<()> {
    let lock = lock_file(world);
    let arguments = [
        "lock".into(),
        text(recipe),
        "--lock".into(),
        text(&lock),
        "--cache".into(),
        text(&world.stage.cache.join("image")),
    ];
    run(inside, world, step, arguments.to_vec()).await?;
    let locked = std::fs::read_to_string(&lock).context("read the lock")?;
    step.evidence(format!(
        "lock: {} packages by version and SHA-256, no mirror named",
        locked.matches("\"sha256\"").count()
    ));
    Ok(())
}

fn lock_file(world: &World) -> PathBuf {
    world.stage.build.join("leapserv.lock")
}

/// Makes a revision of a release in which the backup engine alone is another, and
/// returns its folder.
pub(super) async fn revise(
    inside: &Inside,
    world: &World,
    step: &mut Step,
    version: &str,
) -> anyhow::Result<PathBuf> {
    let keys = world.stage.build.join("keys");
    let arguments = [
        "component".into(),
        text(&folder(world, version)),
        "--name".into(),
        "backup".into(),
        "--recipe".into(),
        text(&world.stage.recipes.join("mended.toml")),
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
    run(inside, world, step, arguments.to_vec()).await?;
    Ok(folder(world, &format!("{version}-r1")))
}

async fn release(
    inside: &Inside,
    world: &World,
    step: &mut Step,
    version: &str,
    recipe: &Path,
    signing: Option<&Path>,
) -> anyhow::Result<()> {
    let keys = world.stage.build.join("keys");
    let mut arguments = vec![
        "build".into(),
        text(recipe),
        "--version".into(),
        version.into(),
        "--lock".into(),
        text(&lock_file(world)),
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
    if let Some(signing) = signing {
        arguments.extend(["--secure-boot".to_owned(), text(signing)]);
    }
    run(inside, world, step, arguments).await
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

/// The sizes of a release that people ask for, in MiB.
#[derive(Debug)]
pub(crate) struct Sizes {
    /// The root image, uncompressed.
    pub(crate) root: f64,
    /// The kernel image.
    pub(crate) kernel: f64,
    /// The installer.
    pub(crate) installer: f64,
    /// The backup component.
    pub(crate) backup: f64,
    /// All that an update fetches, compressed.
    pub(crate) download: f64,
}

impl Sizes {
    /// Reads them from a release's manifest.
    pub(crate) fn of(release: &Path) -> anyhow::Result<Self> {
        let manifest = manifest(release)?;
        let mib = |value: &Value| value.as_f64().unwrap_or(0.0) / f64::from(1 << 20);
        let kernel = mib(&manifest["uki"]["size"]);
        let backup = mib(&manifest["components"][0]["image"]["size"]);
        let stored = |image: &str| mib(&manifest[image]["stored_size"]);
        Ok(Self {
            root: mib(&manifest["root"]["size"]),
            kernel,
            installer: mib(&manifest["installer"]["size"]),
            backup,
            download: stored("root") + stored("verity") + kernel + backup,
        })
    }
}

/// The manifest of a release, unverified: for looking only.
fn manifest(release: &Path) -> anyhow::Result<Value> {
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
