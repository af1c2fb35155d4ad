//! Steps 6 to 9: a good release, another component, a bad release, and a power cut.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use super::birth::slot_holds;
use super::releases::{BAD, FURTHER, GOOD, STABLE, publish, publish_folder, revise};
use super::service::summary;
use super::world::{UNIT, World};
use crate::lab::disk::DiskImage;
use crate::lab::isolation::Inside;
use crate::lab::story::Step;
use crate::lab::wait;

/// Bytes into an update at which the power is cut.
const CUT_AFTER: u64 = 48 << 20;
/// The longest time from the gate's verdict to the blessed entry.
const BLESSING: Duration = Duration::from_secs(60);

/// A good release is taken and kept.
pub(super) async fn good(world: &mut World, step: &mut Step) -> anyhow::Result<()> {
    let before = world
        .unit()
        .await?
        .last_check_in
        .context("the unit never checked in")?;
    publish(world, step, GOOD).await?;
    let view = world
        .wait_for(step, &[&format!("release={GOOD}"), "in-service"], 600)
        .await?;
    let last = view.last_check_in.context("the unit never checked in")?;
    ensure!(last.slot != before.slot, "the slot is still {}", last.slot);
    step.evidence(format!(
        "release {} runs from slot {} (before: {} from {}), blessed by its health gate",
        last.release, last.slot, before.release, before.slot
    ));
    // The gate's verdict is reported at once; the boot loader's entry follows it.
    let blessed = format!("leapserv_{GOOD}.efi");
    let disk = world.machine()?.disk(0);
    let entries = wait::until("the new release to be blessed", BLESSING, || {
        let (disk, blessed) = (disk.clone(), blessed.clone());
        async move {
            let entries = entries(&disk).await?;
            Ok(entries.contains(&blessed).then_some(entries))
        }
    })
    .await?;
    step.evidence(format!("ESP, read from outside: {}", entries.join(" ")));
    slot_holds(world, step, &last.slot.to_string(), GOOD).await
}

/// The backup engine alone is replaced, and the machine does not restart.
pub(super) async fn component(
    inside: &Inside,
    world: &mut World,
    step: &mut Step,
) -> anyhow::Result<()> {
    let resets = world.machine()?.resets();
    let folder = revise(inside, world, step, GOOD).await?;
    publish_folder(world, step, &folder, STABLE).await?;
    step.waiting("the unit takes the component");
    let patience = Duration::from_secs(300);
    let last = wait::until("the revision in service", patience, || async {
        let last = world.unit().await?.last_check_in;
        Ok(last.filter(|last| last.revision == 1))
    })
    .await?;
    step.rest();
    ensure!(
        last.release.to_string() == GOOD && last.update.rejected.is_empty(),
        "{} runs, rejected: {:?}",
        last.release,
        last.update.rejected
    );
    for check in &last.checks {
        ensure!(check.ok, "health check {}: {}", check.name, check.message);
    }
    let components = last.checks.iter().find(|check| check.name == "components");
    let components = components.context("no check tells of the components")?;
    ensure!(
        components.message == "backup 0.1.1",
        "active components: {}",
        components.message
    );
    ensure!(
        world.machine()?.resets() == resets,
        "the machine has restarted"
    );
    step.evidence(format!(
        "release {} revision 1 in service without a restart: {}, each block of it under dm-verity",
        last.release, components.message
    ));
    // The new engine works, and with what the old one wrote.
    let answer = world
        .operator
        .run(
            step,
            &["backup", "run", UNIT, "--source", "gallery", "--wait"],
        )
        .await?;
    step.evidence(format!(
        "the new engine goes on with the old one's repository: {}",
        summary(&answer)
    ));
    Ok(())
}

/// A bad release is tried, given up, and not tried again.
pub(super) async fn bad(world: &mut World, step: &mut Step) -> anyhow::Result<()> {
    let resets = world.machine()?.resets();
    publish(world, step, BAD).await?;
    let view = world
        .wait_for(
            step,
            &[
                &format!("release-rejected={BAD}"),
                &format!("release={GOOD}"),
            ],
            900,
        )
        .await?;
    let last = view.last_check_in.context("the unit never checked in")?;
    let rejected = last
        .update
        .rejected
        .iter()
        .find(|rejected| rejected.release.to_string() == BAD)
        .context("the bad release is not reported")?;
    let restarts = world.machine()?.resets() - resets;
    ensure!(
        restarts >= 2,
        "only {restarts} restarts: was the bad release tried at all?"
    );
    step.evidence(format!(
        "after {restarts} restarts the unit runs {} again, and says why: {}",
        last.release, rejected.reason
    ));
    let entries = entries(&world.machine()?.disk(0)).await?;
    step.evidence(format!("ESP, read from outside: {}", entries.join(" ")));
    // The channel still offers it: several check-ins later nothing has begun.
    let seen = view.last_seen;
    let later = wait::until("three more check-ins", Duration::from_secs(120), || async {
        let view = world.unit().await?;
        let gone = view
            .last_seen
            .zip(seen)
            .map(|(now, then)| now.duration_since(then));
        Ok(gone.filter(|gone| gone.as_secs() >= 8).map(|_| view))
    })
    .await?;
    let last = later.last_check_in.context("the unit never checked in")?;
    ensure!(
        last.update.state == "idle",
        "the unit is {} again",
        last.update.state
    );
    ensure!(
        world.machine()?.resets() - resets == restarts,
        "the unit restarted once more"
    );
    step.evidence("it does not try that release again, though the channel still offers it");
    Ok(())
}

/// The power is cut in the middle of an update; the unit goes on where it stopped.
pub(super) async fn power_cut(world: &mut World, step: &mut Step) -> anyhow::Result<()> {
    let machine = world.machine()?;
    let before = machine.disk_use(0).await?.written;
    publish(world, step, FURTHER).await?;
    step.waiting("the update begins to write");
    let deadline = Duration::from_secs(300);
    let machine = world.machine()?;
    let begun = std::time::Instant::now();
    let written = loop {
        let written = machine.disk_use(0).await?.written - before;
        if written > CUT_AFTER {
            break written;
        }
        ensure!(
            begun.elapsed() < deadline,
            "only {written} bytes were written"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    machine.power_cut().await?;
    step.rest();
    step.evidence(format!(
        "power cut after {} MiB of the update were written",
        written >> 20
    ));
    let entries = entries(&world.machine()?.disk(0)).await?;
    ensure!(
        !entries.iter().any(|entry| entry.contains(FURTHER)),
        "the update was committed before the power was cut: {entries:?}"
    );
    step.note("the machine is switched on again");
    let powered = world.machine.take().context("no machine is born yet")?;
    let machine = powered.off().await?;
    let powered = super::world::Powered::on(machine, &world.network, world.accelerator).await?;
    world.machine = Some(powered);
    step.waiting("the update goes on");
    let resumed = wait::until("the update goes on", Duration::from_secs(300), || async {
        let view = world.unit().await?;
        let Some(last) = view.last_check_in else {
            return Ok(None);
        };
        let on = last.update.segments_resumed > 0 || last.release.to_string() == FURTHER;
        Ok(on.then_some(last.update.segments_resumed))
    })
    .await?;
    step.rest();
    let view = world
        .wait_for(step, &[&format!("release={FURTHER}"), "in-service"], 600)
        .await?;
    let last = view.last_check_in.context("the unit never checked in")?;
    ensure!(resumed > 0, "nothing was resumed: the update began anew");
    step.evidence(format!(
        "it went on with {resumed} segments that were there already, and runs {} from slot {}",
        last.release, last.slot
    ));
    Ok(())
}

/// Names of the kernel images on the ESP, read from outside.
async fn entries(disk: &Path) -> anyhow::Result<Vec<String>> {
    let disk = DiskImage::open(disk)?;
    let files = disk.fat_files("esp").await?;
    Ok(files
        .into_iter()
        .filter_map(|file| file.path.strip_prefix("/EFI/Linux/").map(str::to_owned))
        .collect())
}
