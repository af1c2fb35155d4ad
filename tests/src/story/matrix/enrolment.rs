//! A machine whose firmware knows our keys before it sees its first disk.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use edge::runner::Tool;

use super::super::world::World;
use crate::lab::log::LogTail;
use crate::lab::machine::{Disk, DiskKind, Hardware, Machine};
use crate::lab::story::Step;

const PATIENCE: Duration = Duration::from_secs(120);

/// Signs the program that starts a machine's own disk, and returns where it is.
pub(super) async fn signed_local_boot(
    world: &World,
    keys: &Path,
    folder: &Path,
) -> anyhow::Result<PathBuf> {
    let program = folder.join("local-boot.efi");
    std::fs::write(&program, pxe::local_boot::PROGRAM)
        .with_context(|| format!("write {}", program.display()))?;
    Tool::new(world.program("leap-image"))
        .arg("sign")
        .arg(&program)
        .arg("--keys")
        .arg(keys)
        .run_async()
        .await?;
    Ok(program)
}

/// Puts firmware variables with the release's keys into `folder`, for a machine that is
/// built there afterwards. Our boot loader writes them, from a disk with nothing else.
pub(super) async fn enrol(
    world: &World,
    release: &Path,
    hardware: &Hardware,
    folder: &Path,
    step: &mut Step,
) -> anyhow::Result<()> {
    let alone = Hardware {
        // Without a network card the firmware goes to the disk at once.
        macs: Vec::new(),
        memory: 256,
        disks: vec![Disk {
            serial: "ENROLMENT".to_owned(),
            size: 64 << 20,
            kind: DiskKind::Virtio,
        }],
        ..hardware.clone()
    };
    let mut machine = Machine::build(alone, &folder.with_extension("enrolment"))?;
    fill(&machine.disk(0), release).await?;
    step.waiting("the firmware of a new machine is given the keys");
    let mut console = LogTail::from_start(&machine.serial_log());
    machine.power_on(world.accelerator, &mut []).await?;
    let enrolled = "Secure Boot keys successfully enrolled";
    machine.says(&mut console, &[enrolled], PATIENCE).await?;
    // With the keys in, the firmware starts the boot loader again as a signed program.
    machine
        .says(&mut console, &["BdsDxe: starting"], PATIENCE)
        .await?;
    machine.power_cut().await?;
    step.rest();
    std::fs::create_dir_all(folder).context("make the machine's folder")?;
    let variables = machine.variables();
    let name = variables.file_name().context("variables without a name")?;
    std::fs::copy(&variables, folder.join(name)).context("copy the firmware's variables")?;
    step.evidence("the machine's firmware enforces Secure Boot with our keys, its disk is empty");
    Ok(())
}

/// A file system with the boot loader and the keys alone.
async fn fill(disk: &Path, release: &Path) -> anyhow::Result<()> {
    Tool::new("mkfs.vfat").arg(disk).run_async().await?;
    let conf = disk.with_extension("loader.conf");
    std::fs::write(&conf, "timeout 0\neditor no\nsecure-boot-enroll force\n")
        .context("write the boot loader's settings")?;
    let on = |tool: &str| Tool::new(tool).arg("-i").arg(disk);
    let folders = [
        "::/EFI",
        "::/EFI/BOOT",
        "::/loader",
        "::/loader/keys",
        "::/loader/keys/auto",
    ];
    on("mmd").args(folders).run_async().await?;
    for (file, place) in [
        (release.join("systemd-bootx64.efi"), "EFI/BOOT/BOOTX64.EFI"),
        (conf, "loader/loader.conf"),
        (release.join("keys/PK.auth"), "loader/keys/auto/PK.auth"),
        (release.join("keys/KEK.auth"), "loader/keys/auto/KEK.auth"),
        (release.join("keys/db.auth"), "loader/keys/auto/db.auth"),
    ] {
        let place = format!("::/{place}");
        on("mcopy").arg(file).arg(place).run_async().await?;
    }
    Ok(())
}
