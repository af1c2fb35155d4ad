//! Steps 4 and 5: configuration and backup.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use edge::runner::Tool;
use model::secrets::UnitSecrets;

use super::centre::{Settings, own};
use super::world::{UNIT, VAULTS, World};
use crate::lab::gallery::{difference, tree_of};
use crate::lab::sftp::public_key;
use crate::lab::story::Step;
use crate::lab::wait;

/// A changed configuration is applied; one that cuts the unit off is taken back.
pub(super) async fn service(world: &mut World, step: &mut Step) -> anyhow::Result<()> {
    let view = world.unit().await?;
    let last = view.last_check_in.context("the unit never checked in")?;
    for check in &last.checks {
        ensure!(check.ok, "health check {}: {}", check.name, check.message);
    }
    let names: Vec<_> = last
        .checks
        .iter()
        .map(|check| check.name.as_str())
        .collect();
    step.evidence(format!("the health gate has passed: {}", names.join(", ")));
    step.evidence(format!(
        "configuration generation {} is applied",
        last.configuration.applied
    ));

    let colleague = public_key(&world.settings().join("operator-key"))?;
    let write = |world: &World, file: &Path, network: &str| {
        Settings {
            hostname: "houma-dock",
            network,
            operator_key: colleague.clone(),
            share: world.files.share(),
            host_key: world.files.host_key(),
            albums: &["gallery", "invoices"],
        }
        .write(file)
    };
    let good = world.settings().join("houma-1-moved.toml");
    write(world, &good, "mode = \"dhcp\"")?;
    let shown = good.display().to_string();
    let answer = world
        .operator
        .run(step, &["unit", "configure", UNIT, &shown, "--wait"])
        .await?;
    let generation = answer["generation"]
        .as_u64()
        .context("configure: has no generation")?;
    let view = world.unit().await?;
    let last = view.last_check_in.context("the unit never checked in")?;
    ensure!(
        last.hostname == "houma-dock",
        "the host name is {}",
        last.hostname
    );
    ensure!(
        last.configuration.applied == generation,
        "not applied: {:?}",
        last.configuration
    );
    step.evidence(format!(
        "generation {generation} is applied: host name {}, sources gallery and invoices",
        last.hostname
    ));

    let deadly = world.settings().join("houma-1-cut-off.toml");
    write(
        world,
        &deadly,
        "mode = \"static\"\naddress = \"192.0.2.7/24\"",
    )?;
    let shown = deadly.display().to_string();
    step.note("now a configuration with an address from which nothing can be reached");
    world
        .operator
        .run(step, &["unit", "configure", UNIT, &shown])
        .await?;
    let view = world
        .wait_for(step, &["configuration-rejected"], 300)
        .await?;
    let last = view.last_check_in.context("the unit never checked in")?;
    let rejected = last
        .configuration
        .rejected
        .context("nothing was rejected")?;
    ensure!(
        last.configuration.applied == generation,
        "runs {:?}",
        last.configuration.applied
    );
    step.evidence(format!(
        "generation {} was taken back by the unit itself: {}; {} is in force",
        rejected.generation, rejected.reason, last.configuration.applied
    ));
    Ok(())
}

/// Backs the gallery up, copies it offsite, restores a photo.
pub(super) async fn backup(world: &mut World, step: &mut Step) -> anyhow::Result<()> {
    step.waiting("the unit's own SSH key");
    let key = wait::until("the unit's SSH key", Duration::from_secs(120), || async {
        let view = world.unit().await?;
        Ok(view
            .last_check_in
            .and_then(|last| last.backup?.ssh_public_key))
    })
    .await?;
    world.files.authorize(&key)?;
    step.evidence("the unit's SSH key, made on the unit, is allowed on the file server");
    let answer = world
        .operator
        .run(
            step,
            &["backup", "run", UNIT, "--source", "gallery", "--wait"],
        )
        .await?;
    step.note(&summary(&answer));
    let view = world.wait_for(step, &["backup=gallery"], 300).await?;
    let status = view
        .last_check_in
        .and_then(|last| last.backup)
        .context("no backup is reported")?;
    let snapshot = status
        .snapshots
        .iter()
        .find(|snapshot| snapshot.source == "gallery")
        .context("no snapshot of the gallery")?;
    ensure!(!snapshot.partial, "the snapshot is partial");
    ensure!(
        snapshot.files == world.gallery.len() as u64,
        "{} files in the snapshot, {} in the gallery",
        snapshot.files,
        world.gallery.len()
    );
    step.evidence(format!(
        "snapshot {} of {} files, {} MiB, lies at {}",
        &snapshot.id[..8],
        snapshot.files,
        snapshot.bytes >> 20,
        snapshot.copies.join(", ")
    ));
    ensure!(view.escrow_version.is_some(), "the sky has no escrow");
    restic_agrees(world, step).await?;

    let gallery = world.files.share().join("gallery");
    let photo = world
        .gallery
        .keys()
        .nth(17)
        .context("the gallery is empty")?
        .clone();
    std::fs::remove_file(gallery.join(&photo)).context("delete a photo")?;
    ensure!(
        tree_of(&gallery)?.len() + 1 == world.gallery.len(),
        "one photo should be missing"
    );
    step.note(&format!("{photo} is deleted on the file server"));
    world
        .operator
        .run(
            step,
            &[
                "backup",
                "restore",
                UNIT,
                "--source",
                "gallery",
                "--path",
                &photo,
                "--to-source",
                "--wait",
            ],
        )
        .await?;
    if let Some(words) = difference(&world.gallery, &tree_of(&gallery)?) {
        anyhow::bail!("gallery after the restore: {words}");
    }
    step.evidence(format!(
        "{photo} is back on the file server, byte for byte, from the local copy"
    ));
    Ok(())
}

/// What a command's report says.
pub(super) fn summary(answer: &serde_json::Value) -> String {
    answer["report"]["message"]
        .as_str()
        .unwrap_or("done")
        .to_owned()
}

/// Debian's own restic opens and checks both copies with the escrowed key.
async fn restic_agrees(world: &World, step: &mut Step) -> anyhow::Result<()> {
    let password = open_escrow(world, step).await?.password;
    for vault in VAULTS {
        let repository = vault_folder(world, vault);
        step.waiting(&format!("restic check --read-data at {vault}"));
        // restic wants to lock what it reads; the vault's folder stays as it is.
        let tool = Tool::new("restic")
            .args(["--no-lock", "--no-cache", "--password-file"])
            .arg(&password)
            .arg("-r")
            .arg(&repository)
            .args(["check", "--read-data"]);
        tool.run_async()
            .await
            .with_context(|| format!("restic at {vault}"))?;
        step.rest();
        step.evidence(format!(
            "Debian's restic opens and checks the copy at {vault}, all data read"
        ));
    }
    Ok(())
}

/// Debian's own restic restores the gallery from an offsite copy, with the escrowed key.
pub(super) async fn restic_restores(world: &World, step: &mut Step) -> anyhow::Result<()> {
    let password = open_escrow(world, step).await?.password;
    let vault = VAULTS[1];
    // The newest one that is whole: the newcomer has looked at the empty gallery since.
    let snapshot = world
        .unit()
        .await?
        .last_check_in
        .and_then(|last| last.backup)
        .into_iter()
        .flat_map(|backup| backup.snapshots)
        .filter(|snapshot| snapshot.source == "gallery" && !snapshot.partial)
        .max_by_key(|snapshot| snapshot.time)
        .context("no whole snapshot of the gallery is reported")?;
    let gallery = world.files.share().join("gallery");
    step.waiting(&format!("restic restore from {vault}"));
    let target = tempfile::tempdir_in(world.settings()).context("make a folder to restore to")?;
    Tool::new("restic")
        .args(["--no-lock", "--no-cache", "--password-file"])
        .arg(&password)
        .arg("-r")
        .arg(vault_folder(world, vault))
        .args(["restore", &snapshot.id, "--target"])
        .arg(target.path())
        .run_async()
        .await
        .with_context(|| format!("restic at {vault}"))?;
    step.rest();
    // restic puts files under their whole path.
    let below = gallery.strip_prefix("/").context("name the gallery")?;
    let restored = tree_of(&target.path().join(below))?;
    if let Some(words) = difference(&world.gallery, &restored) {
        anyhow::bail!("gallery restored by restic: {words}");
    }
    step.evidence(format!(
        "Debian's restic restores the same {} photos from {vault} with the escrowed key",
        restored.len()
    ));
    Ok(())
}

/// What the recovery key opens.
pub(super) struct Opened {
    pub(super) secrets: UnitSecrets,
    /// The repository's password in a file, for restic.
    pub(super) password: PathBuf,
}

/// Opens the escrow with the recovery key.
pub(super) async fn open_escrow(world: &World, step: &mut Step) -> anyhow::Result<Opened> {
    let keys = world.stage.build.join("keys");
    let file = world.settings().join("escrow.json");
    let _ = std::fs::remove_file(&file);
    let recovery = keys.join("recovery.age").display().to_string();
    let out = file.display().to_string();
    world
        .operator
        .run(
            step,
            &[
                "secrets",
                "open-escrow",
                UNIT,
                "--recovery",
                &recovery,
                "--out",
                &out,
            ],
        )
        .await?;
    let text = std::fs::read_to_string(&file).context("read the opened escrow")?;
    let secrets: UnitSecrets =
        serde_json::from_str(&text).context("opened escrow: expected secrets")?;
    let password = world.settings().join("restic-password");
    std::fs::write(&password, &secrets.repository_password).context("write the password file")?;
    Ok(Opened { secrets, password })
}

/// Folder of the unit's repository at a vault.
pub(super) fn vault_folder(world: &World, vault: &str) -> PathBuf {
    world
        .stage
        .build
        .join("vaults")
        .join(vault)
        .join("data/units")
        .join(UNIT)
}

/// Deletes every photo on the file server.
pub(super) async fn lose_the_gallery(world: &World) -> anyhow::Result<()> {
    let gallery = world.files.share().join("gallery");
    std::fs::remove_dir_all(&gallery).context("delete the gallery")?;
    std::fs::create_dir_all(&gallery).context("make an empty gallery")?;
    own(world.files.share()).await
}
