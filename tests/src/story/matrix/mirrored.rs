//! A unit on two disks loses one, while it runs and before it starts.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use model::api::{HealthCheck, UnitView};

use super::super::birth::PATIENCE;
use super::super::world::{Powered, World};
use crate::lab::disk::DiskImage;
use crate::lab::machine::{Disk, Machine};
use crate::lab::story::Step;
use crate::lab::wait;

/// From a disk's end to the word of it in the sky: its errors, then a check-in.
const TO_THE_SKY: Duration = Duration::from_secs(180);

/// A second disk like the first one, and a little larger, as another maker's would be.
pub(super) fn second_disk(first: &Disk) -> Disk {
    Disk {
        serial: "SECONDDISK".to_owned(),
        size: first.size + (100 << 20),
        kind: first.kind,
    }
}

/// Which unit it is.
pub(super) struct Case<'a> {
    pub(super) world: &'a World,
    pub(super) unit: &'a str,
    pub(super) folder: &'a Path,
}

impl Case<'_> {
    /// A disk goes, the system starts from the other one, the disk comes back.
    pub(super) async fn tell(&self, powered: &mut Powered, step: &mut Step) -> anyhow::Result<()> {
        let Powered { machine, ports } = powered;
        step.waiting("both disks are in the mirror");
        let whole = self.check(|check| check.ok).await?;
        step.evidence(format!("mirror: {}", whole.message));

        step.note("the disk that it was started from is pulled out");
        machine.pull_disk(0).await?;
        step.waiting("the sky hears of it");
        let broken = self.check(|check| !check.ok).await?;
        step.evidence(format!("the unit runs on and tells: {}", broken.message));
        let view = self.view().await?;
        let boot = view.last_check_in.context("no check-in")?.boot_id;

        step.note("the power is cut, and comes back without that disk");
        machine.power_cut().await?;
        let mut console = machine.console();
        machine.power_on(self.world.accelerator, ports).await?;
        step.waiting("the system starts from the other disk");
        let running = ["Started leap-updater.service"];
        machine.says(&mut console, &running, PATIENCE).await?;
        let alone = self.in_service(&boot).await?;
        step.evidence(format!(
            "{:.0} s after power-on in service from the other disk alone",
            machine.uptime().as_secs_f64()
        ));

        step.note("the first disk is put back");
        machine.power_cut().await?;
        machine.return_disk(0)?;
        let mut console = machine.console();
        machine.power_on(self.world.accelerator, ports).await?;
        machine.says(&mut console, &running, PATIENCE).await?;
        self.in_service(&alone).await?;
        step.waiting("it gets what it has missed");
        let whole = self.check(|check| check.ok).await?;
        step.rest();
        step.evidence(format!("mirror: {}", whole.message));
        self.prove_alike(powered, step).await
    }

    /// Both disks, read from outside, start the same system.
    async fn prove_alike(&self, powered: &mut Powered, step: &mut Step) -> anyhow::Result<()> {
        let machine = &mut powered.machine;
        step.waiting("the second ESP follows the first one");
        wait::until("two ESPs with the same files", TO_THE_SKY, || async {
            let (one, two) = (esp(machine, 0).await, esp(machine, 1).await);
            // While it is written, the second one is none.
            Ok((one? == two.unwrap_or_default()).then_some(()))
        })
        .await?;
        step.rest();
        step.note("somebody presses the power button");
        machine.power_button(PATIENCE).await?;
        let mut roots = Vec::new();
        for index in 0..2 {
            let disk = DiskImage::open(&machine.disk(index))?;
            disk.verify_table().await?;
            let work = self.folder.join("verify");
            roots.push(disk.verify_root("root-a", "verity-a", &work).await?);
        }
        ensure!(roots[0] == roots[1], "the disks differ: {roots:#?}");
        let files = esp(machine, 1).await?;
        let entry = files.iter().find(|path| path.contains("EFI/Linux"));
        let entry = entry.context("no boot entry")?;
        ensure!(
            !entry.contains('+'),
            "the second disk's entry is not blessed: {entry}"
        );
        step.evidence(format!(
            "both disks, read from outside: root hash {}, {} files on the ESP, {entry}",
            roots[0],
            files.len()
        ));
        Ok(())
    }

    async fn view(&self) -> anyhow::Result<UnitView> {
        let answer = self
            .world
            .operator
            .ask(&["unit", "show", self.unit])
            .await?;
        serde_json::from_value(answer).context("unit show: expected a unit")
    }

    /// Waits until the unit tells of its mirror what is wanted.
    async fn check(&self, wanted: fn(&HealthCheck) -> bool) -> anyhow::Result<HealthCheck> {
        wait::until("the unit to tell of its mirror", TO_THE_SKY, || async {
            let said = self.view().await?.last_check_in;
            let checks = said.map(|said| said.checks).unwrap_or_default();
            let mirror = checks.into_iter().find(|check| check.name == "mirror");
            Ok(mirror.filter(wanted))
        })
        .await
    }

    /// Waits until the unit is healthy after another start, and returns which it was.
    async fn in_service(&self, before: &str) -> anyhow::Result<String> {
        wait::until("the unit to be in service again", PATIENCE, || async {
            let said = self.view().await?.last_check_in;
            let said = said.filter(|said| said.healthy && said.boot_id != before);
            Ok(said.map(|said| said.boot_id))
        })
        .await
    }
}

/// The files of a disk's ESP, read from outside.
async fn esp(machine: &Machine, disk: usize) -> anyhow::Result<Vec<String>> {
    let disk = DiskImage::open(&machine.disk(disk))?;
    let files = disk.fat_files("esp").await?;
    let mut files: Vec<_> = files.into_iter().map(|file| file.path).collect();
    files.sort();
    Ok(files)
}
