//! Steps 10 and 11: rebirth on other hardware, and the dead machine that wakes up.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use super::birth::{PATIENCE, Split, second_machine, watch_installation};
use super::centre::{sky_url, vault_url};
use super::service::{lose_the_gallery, open_escrow, restic_restores};
use super::world::{Powered, UNIT, VAULTS, World};
use crate::lab::disk::DiskImage;
use crate::lab::gallery::{difference, tree_of};
use crate::lab::log::LogTail;
use crate::lab::machine::Machine;
use crate::lab::pcap::first_of;
use crate::lab::process::Recipe;
use crate::lab::story::Step;

/// The unit dies and lives on in another machine.
pub(super) async fn rebirth(world: &mut World, step: &mut Step) -> anyhow::Result<()> {
    let before = world.unit().await?;
    let powered = world.machine.take().context("no machine is born yet")?;
    let dead = powered.off().await?;
    let corpse = dead
        .copy(&world.stage.build.join("machines/corpse"))
        .await?;
    dead.destroy_disks()?;
    world.corpse = Some(corpse);
    lose_the_gallery(world).await?;
    step.note("the machine is dead, its disk is gone, and so is the gallery on the file server");
    step.note("(a copy of the disk is kept aside, for the last step)");

    let hardware = second_machine();
    let serial = hardware.serial.clone();
    let arguments = [
        "unit",
        "replace",
        UNIT,
        "--machine",
        &serial,
        "--yes",
        "--wait",
        "--timeout",
        "900",
    ];
    step.command("leapctl", arguments);
    let log = world.stage.build.join("leapctl-replace.log");
    let mut replace = Recipe::new("leapctl", world.operator.tool(&arguments), &log).start()?;
    let folder = world.stage.build.join("machines/houma-b");
    let machine = Machine::build(hardware, &folder)?;
    step.note(&format!(
        "another machine, {serial}, with a TPM and a larger disk is powered on"
    ));
    let mut powered = Powered::on(machine, &world.network, world.accelerator).await?;
    let mut console = LogTail::from_start(&powered.machine.serial_log());
    let mut split = Split::default();
    step.waiting("firmware, installer, ticket");
    powered
        .machine
        .says(&mut console, &["leapserv: installer"], PATIENCE)
        .await?;
    split.firmware(&powered.machine, world.capturing[0].file())?;
    powered
        .machine
        .says(&mut console, &["leapserv: keys: made in the TPM"], PATIENCE)
        .await?;
    step.evidence("it has a TPM: its keys are made in it, and its ticket asks for the proof");
    watch_installation(&mut powered.machine, &mut console, step, &mut split).await?;
    step.waiting("leapctl follows until the unit is in service");
    let ended = replace.wait(Duration::from_secs(600)).await?;
    step.rest();
    if !ended.success() {
        bail!(
            "leapctl unit replace failed:\n{}",
            crate::lab::log::last_lines(&log, 12)
        );
    }
    world.machine = Some(powered);
    let after = world.unit().await?;
    let last = after
        .last_check_in
        .context("the newcomer never checked in")?;
    let uptime = world.machine()?.uptime();
    split.mark("enrol", uptime);
    split.tell(step);
    step.evidence(format!(
        "{:.0} s after power-on {serial} is {UNIT}, incarnation {} (before: {}), in service",
        uptime.as_secs_f64(),
        after.incarnation,
        before.incarnation
    ));
    ensure!(
        after.incarnation > before.incarnation,
        "the incarnation did not rise"
    );
    let old = before
        .last_check_in
        .context("the dead machine never checked in")?;
    ensure!(
        last.configuration.applied == old.configuration.applied && last.hostname == old.hostname,
        "configuration {:?} instead of {:?}",
        last.configuration,
        old.configuration
    );
    step.evidence(format!(
        "it has configuration generation {} and host name {}, as the dead one had",
        last.configuration.applied, last.hostname
    ));

    let from = VAULTS[0];
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
                "--from",
                from,
                "--path",
                ".",
                "--to-source",
                "--wait",
            ],
        )
        .await?;
    let gallery = world.files.share().join("gallery");
    if let Some(words) = difference(&world.gallery, &tree_of(&gallery)?) {
        bail!("gallery after the restore: {words}");
    }
    let uptime = world.machine()?.uptime();
    step.timing("power-on to restored gallery", uptime);
    step.evidence(format!(
        "{} photos restored from {from}, byte for byte, {:.0} s after power-on",
        world.gallery.len(),
        uptime.as_secs_f64()
    ));
    restic_restores(world, step).await
}

/// The dead machine wakes up and is refused everywhere.
pub(super) async fn wake(world: &mut World, step: &mut Step) -> anyhow::Result<()> {
    let corpse = world.corpse.take().context("nothing died yet")?;
    let before = world.unit().await?;
    step.note("the copy of the old disk is put into the old machine");
    let papers = papers(world, &corpse).await?;
    let ghost = Powered::on(corpse, &world.network, world.accelerator).await?;
    world.ghost = Some(ghost);
    let view = world.wait_for(step, &["fenced"], 300).await?;
    let attempt = view
        .fenced_attempts
        .first()
        .context("no attempt is shown")?;
    step.evidence(format!(
        "incarnation {} tried {} from {} and was refused",
        attempt.identity.incarnation, attempt.place, attempt.address
    ));
    ensure!(
        attempt.identity.incarnation == before.incarnation_before(),
        "another one was refused"
    );

    step.note("with the key from the old disk, by hand:");
    let client = tls::client::builder(&papers.ca)
        .and_then(|builder| tls::client::with_identity(builder, &papers.certificate, &papers.key))?
        .build()
        .context("make a client")?;
    for (index, vault) in (0u8..).zip(VAULTS) {
        let body = format!("ghost at {vault}");
        let name = model::Digest::of(body.as_bytes());
        let url = format!("{}/{UNIT}/data/{name}", vault_url(index));
        let status = client
            .post(&url)
            .body(body)
            .send()
            .await
            .context("ask the vault")?
            .status();
        ensure!(
            status.as_u16() == 403,
            "{vault} answered {status} to a write"
        );
    }
    step.evidence(format!(
        "a write to {} is refused with 403",
        VAULTS.join(" and ")
    ));
    let url = format!("{}/v1/channels/stable", sky_url());
    let status = client
        .get(&url)
        .send()
        .await
        .context("ask the sky")?
        .status();
    ensure!(
        status.as_u16() == 403,
        "the sky answered {status} to a question for updates"
    );
    step.evidence("the channel of updates is refused with 403");

    let after = world.unit().await?;
    ensure!(
        after.incarnation == before.incarnation,
        "the incarnation changed"
    );
    let fresh = after
        .last_check_in
        .context("the newcomer never checked in")?;
    ensure!(fresh.healthy, "the newcomer is not healthy any more");
    step.evidence(format!(
        "`leapctl unit show` reports {} attempts; incarnation {} is in service as before",
        after.fenced_attempts.len(),
        after.incarnation
    ));
    if let Some(ghost) = world.ghost.take() {
        ghost.off().await?;
    }
    nothing_in_the_clear(world, step, &papers).await
}

/// Looks for every secret of the story in all that crossed the wire.
async fn nothing_in_the_clear(
    world: &World,
    step: &mut Step,
    papers: &Papers,
) -> anyhow::Result<()> {
    let opened = open_escrow(world, step).await?.secrets;
    let token = |name: &str| {
        let path = world.stage.build.join("sky/tokens").join(name);
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    };
    let secrets = [
        ("the unit's device key", longest_line(&papers.key)),
        ("the repository's password", opened.repository_password),
        ("the repository's key", opened.repository_key),
        ("the unit's SSH key", longest_line(&opened.ssh_key)),
        ("the operator's token", token("operator")?.trim().to_owned()),
        ("the factory's token", token("factory")?.trim().to_owned()),
    ];
    let needles: Vec<_> = secrets.iter().map(|(_, text)| text.as_bytes()).collect();
    ensure!(
        needles.iter().all(|needle| needle.len() >= 16),
        "a secret is too short to be looked for"
    );
    step.waiting("looking for secrets in the packet capture");
    let capture = world.capturing[0].file();
    if let Some(found) = first_of(capture, &needles)? {
        bail!("{} crossed the wire in the clear", secrets[found].0);
    }
    let size = std::fs::metadata(capture)
        .context("look at the capture")?
        .len();
    step.rest();
    step.evidence(format!(
        "in {} MiB of captured packets, no frame holds one of {} secrets in the clear",
        size >> 20,
        secrets.len()
    ));
    Ok(())
}

/// The longest line of a key file: its first and last ones are the same in every file.
fn longest_line(text: &str) -> String {
    let line = text.lines().max_by_key(|line| line.len());
    line.unwrap_or_default().to_owned()
}

/// What the old disk knows of its old self.
struct Papers {
    certificate: String,
    key: String,
    ca: String,
}

async fn papers(world: &World, corpse: &Machine) -> anyhow::Result<Papers> {
    let disk = DiskImage::open(&corpse.disk(0))?;
    let work = world.stage.build.join("machines/corpse-data");
    std::fs::create_dir_all(&work).context("make a folder for the old data")?;
    let data = disk.ext4("data", &work).await?;
    let read = async |name: &str| {
        let bytes = data.read(&format!("/lib/leapserv/identity/{name}")).await?;
        String::from_utf8(bytes).with_context(|| format!("{name} on the old disk: expected text"))
    };
    Ok(Papers {
        certificate: read("device.crt").await?,
        key: read("device.key").await?,
        ca: read("ca.crt").await?,
    })
}

/// The incarnation before the current one.
trait Before {
    fn incarnation_before(&self) -> model::Incarnation;
}

impl Before for model::api::UnitView {
    fn incarnation_before(&self) -> model::Incarnation {
        model::Incarnation(self.incarnation.0.saturating_sub(1))
    }
}
