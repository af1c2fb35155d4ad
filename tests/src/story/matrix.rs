//! The firmware matrix: machines of many kinds on networks of many shapes, each from an
//! empty disk to "in service".
//!
//! Sky, keys and release are made once. Each case then has a bench, a factory, a machine
//! and a unit of its own. A case that fails does not keep the others from running.

pub(super) mod bench;
mod enrolment;
mod mirrored;
mod stick;

pub(super) use stick::type_code;

use std::time::Duration;

use anyhow::{Context as _, ensure};

use super::birth::{Birth, FetchedBy, PATIENCE};
use super::releases::{ARM64, FIRST, GOOD, SIGNED, STABLE};
use super::world::{CUSTOMER, Powered, World};
use super::{Stage, centre, releases};
use crate::lab::isolation::Inside;
use crate::lab::log::LogTail;
use crate::lab::loss::Loss;
use crate::lab::machine::{Disk, DiskKind, Firmware, Hardware, Machine, mac};
use crate::lab::pcap::{Capture, DhcpKind};
use crate::lab::prerequisites;
use crate::lab::story::{Output, Report, Step, Story};
use bench::{Bench, Place, Shape};

/// What the first steps are called; the others are the cases.
pub const BEFORE: [&str; 2] = ["sky", "release"];

/// SeaBIOS and iPXE take seconds.
const TO_THE_MESSAGE: Duration = Duration::from_secs(120);

/// One machine on one network.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Its name on the command line and in the report.
    pub name: &'static str,
    title: &'static str,
    shape: Shape,
    firmware: Firmware,
    disk: DiskKind,
    goal: Goal,
}

/// How far a machine is to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goal {
    /// Its unit is in service.
    Born(FetchedBy),
    /// The installer has arrived; it is another architecture's.
    FetchesTheInstaller,
    /// Its screen says that it wants another firmware.
    ToldToSwitchFirmware,
    /// Born from a stick, its unit runs again after a power cut with the stick in its port.
    PassesTheStick,
    /// Born on two disks, its unit lives on when one is pulled out, starts from the other,
    /// and is whole again when the first one is back.
    OutlivesItsDisk,
}

impl Goal {
    /// How the installer comes, where a unit is to be born.
    fn fetched_by(self) -> Option<FetchedBy> {
        match self {
            Self::Born(fetched_by) => Some(fetched_by),
            Self::PassesTheStick => Some(FetchedBy::Stick),
            Self::OutlivesItsDisk => Some(FetchedBy::Tftp),
            Self::FetchesTheInstaller | Self::ToldToSwitchFirmware => None,
        }
    }
}

/// The matrix.
pub const CASES: [Case; 12] = [
    Case {
        name: "proxy-dhcp",
        title: "Beside dnsmasq, which gives the addresses; OVMF by PXE",
        shape: Shape::BesideDnsmasq,
        firmware: Firmware::Ovmf,
        disk: DiskKind::Virtio,
        goal: Goal::Born(FetchedBy::Tftp),
    },
    Case {
        name: "relay",
        title: "In another network, behind ISC's relay; OVMF by PXE",
        shape: Shape::BehindRelay,
        firmware: Firmware::Ovmf,
        disk: DiskKind::Virtio,
        goal: Goal::Born(FetchedBy::Tftp),
    },
    Case {
        name: "loss",
        title: "On a wire that loses 2 % in each direction; OVMF by PXE",
        shape: Shape::Lossy(Loss {
            per_mille: 20,
            seed: 0x1ea9,
        }),
        firmware: Firmware::Ovmf,
        disk: DiskKind::Virtio,
        goal: Goal::Born(FetchedBy::Tftp),
    },
    Case {
        name: "seabios",
        title: "SeaBIOS and iPXE, which our units do not start with",
        shape: Shape::Plain,
        firmware: Firmware::SeaBios,
        disk: DiskKind::Virtio,
        goal: Goal::ToldToSwitchFirmware,
    },
    Case {
        name: "aavmf",
        title: "An arm64 machine with AAVMF by PXE, up to the boot file that it fetches",
        shape: Shape::Plain,
        firmware: Firmware::Aavmf,
        disk: DiskKind::Virtio,
        goal: Goal::FetchesTheInstaller,
    },
    Case {
        name: "http-boot",
        title: "OVMF by UEFI HTTP boot",
        shape: Shape::Plain,
        firmware: Firmware::OvmfHttp,
        disk: DiskKind::Virtio,
        goal: Goal::Born(FetchedBy::Http),
    },
    Case {
        name: "http-boot-v6",
        title: "OVMF by UEFI HTTP boot over IPv6, from a factory that speaks no DHCPv4",
        shape: Shape::OverIpv6,
        firmware: Firmware::OvmfHttp,
        disk: DiskKind::Virtio,
        goal: Goal::Born(FetchedBy::Http),
    },
    Case {
        name: "secure-boot",
        title: "OVMF that enforces Secure Boot from the first instruction on; by PXE",
        shape: Shape::Plain,
        firmware: Firmware::OvmfSecureBoot,
        disk: DiskKind::Virtio,
        goal: Goal::Born(FetchedBy::Tftp),
    },
    Case {
        name: "failing-disk",
        title: "An NVMe disk that says that it fails, which the operator takes all the same",
        shape: Shape::Plain,
        firmware: Firmware::Ovmf,
        disk: DiskKind::FailingNvme,
        goal: Goal::Born(FetchedBy::Tftp),
    },
    Case {
        name: "mirrored",
        title: "Two SCSI disks that mirror each other, of which one is pulled out; OVMF by PXE",
        shape: Shape::Plain,
        firmware: Firmware::Ovmf,
        disk: DiskKind::Scsi,
        goal: Goal::OutlivesItsDisk,
    },
    Case {
        name: "stick",
        title: "At a customer's: dnsmasq, no factory; OVMF from a USB stick, a one-time code",
        shape: Shape::NoFactory,
        firmware: Firmware::Ovmf,
        disk: DiskKind::Virtio,
        goal: Goal::Born(FetchedBy::Stick),
    },
    Case {
        name: "stick-forgotten",
        title: "The same, and the stick stays in its port when the power fails",
        shape: Shape::NoFactory,
        firmware: Firmware::Ovmf,
        disk: DiskKind::Virtio,
        goal: Goal::PassesTheStick,
    },
];

/// Runs the cases of these names, or all of them, and writes the report.
///
/// # Errors
/// The report cannot be written. A case that fails is in the report.
pub async fn tell(
    inside: &Inside,
    stage: &Stage,
    output: Output,
    names: &[String],
) -> anyhow::Result<Report> {
    let wanted = |case: &&Case| names.is_empty() || names.iter().any(|name| name == case.name);
    let cases: Vec<&Case> = CASES.iter().filter(wanted).collect();
    let steps: Vec<_> = BEFORE
        .into_iter()
        .chain(cases.iter().map(|case| case.name))
        .collect();
    let mut story = Story::new(&steps, output);
    match prepare(inside, stage, &mut story).await {
        Err(error) => story.say(&edge::exit::render(&error)),
        Ok(world) => {
            for (number, case) in (1u8..).zip(cases) {
                let told = story.step(case.name, case.title, async |step| {
                    run(inside, case, number, &world, step).await
                });
                if let Err(error) = told.await {
                    story.say(&edge::exit::render(&error));
                }
            }
        }
    }
    story.end(&stage.build.join("report.json"))
}

/// What all cases share.
pub(super) async fn prepare(
    inside: &Inside,
    stage: &Stage,
    story: &mut Story,
) -> anyhow::Result<World> {
    let title = "Sky: the centre starts, and a customer is created";
    let world = story
        .step(BEFORE[0], title, async |step| {
            centre::sky(inside, stage, step).await
        })
        .await?;
    let title = "Release: an operating system is built from Debian's packages";
    story
        .step(BEFORE[1], title, async |step| {
            releases::build_first(inside, &world, step).await
        })
        .await?;
    Ok(world)
}

async fn run(
    inside: &Inside,
    case: &Case,
    number: u8,
    world: &World,
    step: &mut Step,
) -> anyhow::Result<()> {
    let stage = &world.stage;
    let folder = stage.build.join("cases").join(case.name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("make folder {}", folder.display()))?;
    let secure = case.firmware == Firmware::OvmfSecureBoot;
    let (channel, release, local_boot) = if secure {
        let signing = folder.join("keys");
        releases::build_signed(inside, world, step, &signing).await?;
        let program = enrolment::signed_local_boot(world, &signing, &folder).await?;
        (SIGNED, GOOD, Some(program))
    } else if case.goal == Goal::FetchesTheInstaller {
        prerequisites::require("qemu-system-aarch64", "qemu-system-arm")?;
        releases::publish_for_arm64(world, step).await?;
        (ARM64, FIRST, None)
    } else {
        (STABLE, FIRST, None)
    };
    let unit = format!("{CUSTOMER}/{}", case.name);
    let (operator, files) = (&world.operator, &world.files);
    centre::unit(stage, operator, files, step, &unit, channel).await?;
    let place = Place {
        number,
        folder: &folder,
        channel,
        local_boot,
    };
    let bench = Bench::set_up(case.shape, stage, place, step).await?;

    let mut hardware = hardware(number, case.firmware, case.disk);
    if case.goal == Goal::OutlivesItsDisk {
        hardware
            .disks
            .push(mirrored::second_disk(&hardware.disks[0]));
    }
    let at = folder.join("machine");
    if secure {
        let release = releases::folder(world, release);
        enrolment::enrol(world, &release, &hardware, &at, step).await?;
    }
    let mut machine = Machine::build(hardware, &at)?;
    let mut code = None;
    if case.goal.fetched_by() == Some(FetchedBy::Stick) {
        machine.plug_stick(&stick::compose(world, &folder, step).await?)?;
        code = Some(stick::make_code(world, &unit, step).await?);
    }
    step.note("a machine with an empty disk is powered on");
    let port = bench.port(&format!("m{number}")).await?;
    let mut powered = Powered::plugged(machine, port, world.accelerator).await?;
    match case.goal.fetched_by() {
        Some(fetched_by) => {
            let birth = Birth {
                operator: &world.operator,
                unit: &unit,
                release,
                capture: bench.capture(),
                fetched_by,
                pass: code.as_deref(),
                terms: match case.goal {
                    Goal::OutlivesItsDisk => &["--mirrored"],
                    _ => &[],
                },
            };
            let view = birth.watch(&mut powered.machine, step).await?;
            let check_in = view.last_check_in.context("the unit never checked in")?;
            bench.prove_address(&check_in.addresses)?;
            prove(case, world, &bench, &powered, step).await?;
            if let Some(code) = &code {
                stick::prove_untold(world, bench.capture(), code, step)?;
                stick::prove_spared(world, bench.capture(), step)?;
            }
        }
        None if case.goal == Goal::FetchesTheInstaller => {
            fetches(&mut powered.machine, step).await?;
            prove(case, world, &bench, &powered, step).await?;
        }
        None => told_to_switch(&mut powered.machine, step).await?,
    }
    if case.goal == Goal::OutlivesItsDisk {
        let case = mirrored::Case {
            world,
            unit: &unit,
            folder: &folder,
        };
        case.tell(&mut powered, step).await?;
    }
    if case.goal == Goal::PassesTheStick {
        powered.machine.power_cut().await?;
        let mut console = powered.machine.console();
        let Powered { machine, ports } = &mut powered;
        machine.power_on(world.accelerator, ports).await?;
        stick::forgotten(machine, &mut console, step).await?;
    }
    if let Some(toll) = powered.ports[0].toll() {
        step.evidence(format!(
            "the wire lost {} of {} frames to the machine and {} of {} from it",
            toll.lost_to_machine,
            toll.lost_to_machine + toll.to_machine,
            toll.lost_from_machine,
            toll.lost_from_machine + toll.from_machine
        ));
        ensure!(
            toll.lost_to_machine > 0 && toll.lost_from_machine > 0,
            "the wire lost nothing"
        );
    }
    powered.off().await?;
    bench.clear_away().await
}

pub(super) fn hardware(number: u8, firmware: Firmware, disk: DiskKind) -> Hardware {
    Hardware {
        name: format!("case-{number}"),
        serial: format!("LEAPCASE-{number:04}"),
        uuid: format!("6c656170-0000-4000-8000-0000000001{number:02x}"),
        macs: vec![mac(100 + number)],
        memory: 1024,
        // As in the story: several processors race where they are translated.
        processors: 1,
        disks: vec![Disk {
            serial: format!("CASEDISK{number:04}"),
            size: 16 << 30,
            kind: disk,
        }],
        tpm: false,
        firmware,
    }
}

/// What the capture says of the boot.
async fn prove(
    case: &Case,
    world: &World,
    bench: &Bench,
    powered: &Powered,
    step: &mut Step,
) -> anyhow::Result<()> {
    let client = *powered
        .machine
        .hardware()
        .macs
        .first()
        .context("no network card")?;
    let capture = Capture::read(bench.capture())?;
    let dhcp: Vec<_> = capture
        .dhcp()
        .into_iter()
        .filter(|message| message.client == client)
        .collect();
    let first = dhcp
        .iter()
        .find(|message| message.kind == DhcpKind::Discover)
        .context("the capture has no DHCP discover of this machine")?;
    let reads = capture.tftp_reads();
    let fetched = reads.iter().any(|read| read.client == client);
    step.evidence(format!(
        "capture: the firmware asked as architecture {}, class {}{}",
        first.architecture.unwrap_or_default(),
        first.vendor_class.as_deref().unwrap_or("none"),
        if fetched {
            "; its files came by TFTP"
        } else {
            "; nothing came by TFTP"
        }
    ));
    let by_tftp = match case.goal {
        Goal::Born(FetchedBy::Tftp) | Goal::FetchesTheInstaller | Goal::OutlivesItsDisk => true,
        Goal::Born(_) | Goal::PassesTheStick | Goal::ToldToSwitchFirmware => false,
    };
    ensure!(fetched == by_tftp, "the wrong protocol");
    bench.prove_offers(&dhcp, step)?;
    if let Some(url) = bench.url6() {
        over_ipv6(&powered.machine, &url, step)?;
    }
    if case.disk == DiskKind::FailingNvme {
        let text = std::fs::read(powered.machine.serial_log()).context("read the serial log")?;
        let said = "finding note /dev/nvme0n1 is failing, by its own word: it is not reliable";
        let found = String::from_utf8_lossy(&text).contains(said);
        ensure!(found, "the screen does not say: {said}");
        step.evidence(format!("its screen: {said} any more"));
    }
    if case.firmware == Firmware::OvmfSecureBoot {
        let serial = powered.machine.serial_log();
        let text = std::fs::read(&serial).context("read the serial log")?;
        let enforced = String::from_utf8_lossy(&text)
            .matches("UEFI Secure Boot is enabled")
            .count();
        // The installer's kernel and the unit's.
        ensure!(enforced >= 2, "a kernel did not find Secure Boot enforced");
        step.evidence("installer and system both found Secure Boot enforced");
        let serial = &powered.machine.hardware().serial;
        let machines = world.operator.ask(&["machine", "list"]).await?;
        let machines = machines
            .as_array()
            .context("machine list: expected a list")?;
        let told = machines
            .iter()
            .map(|machine| &machine["facts"])
            .find(|facts| facts["serial"] == serial.as_str());
        let told = told.context("the sky does not know the machine")?;
        ensure!(told["secure_boot"] == true, "the installer told: {told:#}");
    }
    Ok(())
}

/// The screen of a machine that has fetched its installer by IPv6.
fn over_ipv6(machine: &Machine, url: &str, step: &mut Step) -> anyhow::Result<()> {
    let screen = std::fs::read(machine.serial_log()).context("read the serial log")?;
    let screen = String::from_utf8_lossy(&screen);
    let began = screen.find("Start HTTP Boot over IPv6");
    let began = began.context("the firmware has not begun with HTTP boot over IPv6")?;
    for said in [url, "Downloading...100%"] {
        ensure!(
            screen[began..].contains(said),
            "its screen does not say: {said}"
        );
    }
    step.evidence(format!(
        "its screen: HTTP boot over IPv6, {url}, downloaded"
    ));
    Ok(())
}

/// The screen of a machine that fetches an installer.
async fn fetches(machine: &mut Machine, step: &mut Step) -> anyhow::Result<()> {
    let mut console = LogTail::from_start(&machine.serial_log());
    step.waiting("the firmware and its boot file");
    for line in [
        "NBP filename is boot/installer.efi",
        "NBP file downloaded successfully",
    ] {
        machine.says(&mut console, &[line], PATIENCE).await?;
    }
    step.rest();
    step.timing("power-on to the fetched boot file", machine.uptime());
    step.evidence(format!(
        "{:.0} s after power-on the installer has arrived whole",
        machine.uptime().as_secs_f64()
    ));
    Ok(())
}

/// The screen of a machine that our units do not start on.
async fn told_to_switch(machine: &mut Machine, step: &mut Step) -> anyhow::Result<()> {
    let mut console = LogTail::from_start(&machine.serial_log());
    step.waiting("SeaBIOS, iPXE, and what we tell it");
    let lines = [
        "units are UEFI x64 machines",
        "switch the firmware to UEFI network boot",
    ];
    for line in lines {
        let texts = [line, "No more network devices"];
        let which = machine.says(&mut console, &texts, TO_THE_MESSAGE).await?;
        ensure!(which == 0, "iPXE gave up without showing: {line}");
    }
    step.rest();
    step.timing("power-on to the message", machine.uptime());
    step.evidence(format!(
        "{:.0} s after power-on its screen says: {}",
        machine.uptime().as_secs_f64(),
        lines.join(": ")
    ));
    ensure!(
        machine.disk_use(0).await?.written == 0,
        "its disk was written"
    );
    step.evidence("its disk has not been written");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_cases_differ_and_make_names_of_units() {
        for (index, case) in CASES.iter().enumerate() {
            let unit = format!("{CUSTOMER}/{}", case.name);
            assert!(unit.parse::<model::UnitName>().is_ok(), "{unit}");
            let others = CASES.iter().filter(|other| other.name == case.name);
            assert_eq!(others.count(), 1, "{index}: {}", case.name);
        }
    }
}
