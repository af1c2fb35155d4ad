//! Step 3: a machine with an empty disk is born as the unit.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use edge::runner::Tool;
use model::api::UnitView;

use super::Stage;
use super::centre::sky_url;
use super::matrix::type_code;
use super::operator::Operator;
use super::releases::{FIRST, STABLE, root_hash};
use super::world::{Powered, UNIT, World, factory_address};
use crate::lab::disk::DiskImage;
use crate::lab::log::LogTail;
use crate::lab::machine::{Disk, DiskKind, Firmware, Hardware, Machine, mac};
use crate::lab::pcap::{self, Capture};
use crate::lab::process::Recipe;
use crate::lab::server::{Ready, Server};
use crate::lab::story::Step;
use crate::lab::wait;

pub(super) const FACTORY_PORT: u16 = 8080;
/// Without KVM a machine takes minutes for what takes seconds on iron.
pub(super) const PATIENCE: Duration = Duration::from_secs(300);

/// The machine that the unit is born on.
fn first_machine() -> Hardware {
    Hardware {
        name: "houma-a".to_owned(),
        serial: "LEAPSERV-0001".to_owned(),
        uuid: "6c656170-0000-4000-8000-000000000001".to_owned(),
        macs: vec![mac(1)],
        memory: 1024,
        // One processor: several, translated in parallel, race when the guest's kernel
        // patches its own code, and panic now and then.
        processors: 1,
        disks: vec![Disk {
            serial: "DISK0001".to_owned(),
            size: 16 << 30,
            kind: DiskKind::Virtio,
        }],
        tpm: false,
        firmware: Firmware::Ovmf,
    }
}

/// The machine that takes its place.
pub(super) fn second_machine() -> Hardware {
    Hardware {
        name: "houma-b".to_owned(),
        serial: "LEAPSERV-0002".to_owned(),
        uuid: "6c656170-0000-4000-8000-000000000002".to_owned(),
        macs: vec![mac(2)],
        memory: 1024,
        processors: 1,
        disks: vec![Disk {
            serial: "DISK0002".to_owned(),
            size: 24 << 30,
            kind: DiskKind::Virtio,
        }],
        tpm: true,
        firmware: Firmware::Ovmf,
    }
}

/// Starts the factory, powers a machine on, approves it and waits until it serves.
pub(super) async fn birth(world: &mut World, step: &mut Step) -> anyhow::Result<()> {
    let site = Site {
        folder: world.stage.build.join("factory"),
        interface: world.network.interface(),
        address: factory_address(),
        dhcp: "mode = \"server\"\nnetwork = \"10.77.0.0/24\"\n\
               pool = [\"10.77.0.100\", \"10.77.0.150\"]\n"
            .to_owned(),
        channel: STABLE,
        local_boot: None,
        log: world.stage.build.join("leap-provisioner.log"),
    };
    world.factory = Some(start_factory(&world.stage, &site, step).await?);
    let folder = world.stage.build.join("machines/houma-a");
    let machine = Machine::build(first_machine(), &folder)?;
    step.note("a machine with OVMF firmware, an empty disk and nothing else is powered on");
    let powered = Powered::on(machine, &world.network, world.accelerator).await?;
    let powered = world.machine.insert(powered);
    let birth = Birth {
        operator: &world.operator,
        unit: UNIT,
        release: FIRST,
        capture: world.capturing[0].file(),
        fetched_by: FetchedBy::Tftp,
        pass: None,
        terms: &[],
    };
    birth.watch(&mut powered.machine, step).await?;
    prove(world, step).await
}

/// How the firmware fetches the installer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FetchedBy {
    /// By PXE.
    Tftp,
    /// By UEFI HTTP boot.
    Http,
    /// From a stick; its people type a one-time code.
    Stick,
}

/// What is to be known of a birth to watch it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Birth<'a> {
    pub(super) operator: &'a Operator,
    pub(super) unit: &'a str,
    /// The release that it is born with.
    pub(super) release: &'a str,
    /// The capture of the machine's network.
    pub(super) capture: &'a Path,
    pub(super) fetched_by: FetchedBy,
    /// The one-time code, for an installer from a stick.
    pub(super) pass: Option<&'a str>,
    /// What else the operator says when the machine is approved.
    pub(super) terms: &'a [&'a str],
}

impl Birth<'_> {
    /// Watches a machine with an empty disk from power-on until its unit is in service,
    /// and approves it when its screen shows a code.
    pub(super) async fn watch(
        &self,
        machine: &mut Machine,
        step: &mut Step,
    ) -> anyhow::Result<UnitView> {
        let (view, _) = self.watch_split(machine, step).await?;
        Ok(view)
    }

    /// The same, and what the seconds were spent on.
    pub(super) async fn watch_split(
        &self,
        machine: &mut Machine,
        step: &mut Step,
    ) -> anyhow::Result<(UnitView, Split)> {
        let mut console = LogTail::from_start(&machine.serial_log());
        let mut split = Split::default();
        step.waiting("firmware: DHCP and the installer from our servers");
        machine
            .says(&mut console, &["leapserv: installer"], PATIENCE)
            .await?;
        match self.fetched_by {
            FetchedBy::Tftp => split.firmware(machine, self.capture)?,
            FetchedBy::Http => split.mark("firmware and download", machine.uptime()),
            FetchedBy::Stick => {
                split.mark("firmware and stick", machine.uptime());
                let code = self.pass.context("a stick, and no one-time code")?;
                type_code(machine, &mut console, self.unit, code, step).await?;
                split.mark("network and code", machine.uptime());
            }
        }
        step.waiting("installer: facts to the factory");
        machine
            .says(&mut console, &["leapserv: code "], PATIENCE)
            .await?;
        split.mark("announce", machine.uptime());
        let code = code_on_screen(&machine.serial_log())?;
        step.evidence(format!(
            "{:.0} s after power-on the machine waits, with code {code} on its screen",
            machine.uptime().as_secs_f64()
        ));
        ensure!(
            machine.disk_use(0).await?.written == 0,
            "the disk was written before anyone approved"
        );
        step.evidence("its disk has not been written: there is no ticket");

        let mut approve = vec!["machine", "approve", &code, "--unit", self.unit];
        approve.extend(self.terms);
        self.operator.run(step, &approve).await?;
        split.mark("approval", machine.uptime());
        watch_installation(machine, &mut console, step, &mut split).await?;
        let view = self
            .operator
            .wait_for(step, self.unit, &["in-service"], 300)
            .await?;
        let uptime = machine.uptime();
        split.mark("enrol", uptime);
        split.tell(step);
        let check_in = view
            .last_check_in
            .as_ref()
            .context("the unit is in service and never checked in")?;
        step.evidence(format!(
            "{:.0} s after power-on: in service, release {}, slot {}, {}",
            uptime.as_secs_f64(),
            check_in.release,
            check_in.slot,
            check_in.addresses.join(" ")
        ));
        ensure!(
            check_in.release.to_string() == self.release,
            "expected release {}",
            self.release
        );
        Ok((view, split))
    }
}

/// The part of a birth that begins when the installed kernel does.
const KERNEL: &str = "start of the system";

/// What the seconds from power-on to "in service" are spent on.
#[derive(Debug, Default)]
pub(super) struct Split {
    /// Names of the parts, each with the time since power-on at which it ended.
    ends: Vec<(&'static str, Duration)>,
}

impl Split {
    /// A part of the birth ended so long after power-on.
    pub(super) fn mark(&mut self, part: &'static str, end: Duration) {
        self.ends.push((part, end));
    }

    /// When a part ended, since power-on.
    pub(super) fn end_of(&self, part: &str) -> Option<Duration> {
        let mut ends = self.ends.iter();
        ends.find(|(name, _)| *name == part).map(|(_, end)| *end)
    }

    /// The installer runs: what came before it, by the packet capture.
    pub(super) fn firmware(&mut self, machine: &Machine, capture: &Path) -> anyhow::Result<()> {
        let running = machine.uptime();
        let now = edge::clock::now().as_duration().as_secs_f64();
        let power_on = now - running.as_secs_f64();
        let client = machine.hardware().macs.first().context("no network card")?;
        let fetch = pcap::longest_fetch(capture, *client)?
            .context("the capture has no TFTP transfer of this machine")?;
        let since = |time: f64| Duration::from_secs_f64((time - power_on).max(0.0));
        self.mark("firmware", since(fetch.asked));
        self.mark("download of the installer", since(fetch.done));
        self.mark("start of the installer", running);
        Ok(())
    }

    /// Gives the parts and their sum to the step.
    pub(super) fn tell(&self, step: &mut Step) {
        let mut begin = Duration::ZERO;
        let mut kernel = None;
        for (part, end) in &self.ends {
            if *part == KERNEL {
                kernel = Some(begin);
            }
            step.timing(part, end.saturating_sub(begin));
            begin = *end;
        }
        if let Some(kernel) = kernel {
            step.timing("kernel start to in service", begin.saturating_sub(kernel));
        }
        step.timing("power-on to in service", begin);
    }
}

/// Waits through the installer's steps and the first start from disk.
pub(super) async fn watch_installation(
    machine: &mut Machine,
    console: &mut LogTail,
    step: &mut Step,
    split: &mut Split,
) -> anyhow::Result<()> {
    for (text, part, what) in [
        (
            "leapserv: step write ",
            "partition",
            "the ticket is redeemed, the disk is partitioned",
        ),
        (
            "leapserv: step boot ",
            "download and write",
            "the image is streamed to disk, each segment verified",
        ),
        (
            "leapserv: step verify ",
            "boot files and identity",
            "boot loader, kernel, components, customer layer, identity",
        ),
        (
            "leapserv: born ",
            "read-back",
            "all that was written is read back",
        ),
        (
            "EFI stub: Loaded initrd",
            "restart and firmware",
            "restart: the network answers \"boot your disk\"",
        ),
        (
            "Started leap-updater.service",
            KERNEL,
            "the system starts: kernel, initrd, systemd",
        ),
    ] {
        step.waiting(what);
        let which = machine
            .says(console, &[text, "leapserv: error"], PATIENCE)
            .await?;
        ensure!(which == 0, "the installer gave up; see its serial log");
        split.mark(part, machine.uptime());
    }
    step.rest();
    Ok(())
}

/// The code that stands on the screen.
pub(super) fn code_on_screen(serial: &Path) -> anyhow::Result<String> {
    let text = std::fs::read(serial).with_context(|| format!("read {}", serial.display()))?;
    let text = String::from_utf8_lossy(&text);
    let line = text
        .rsplit("leapserv: code ")
        .next()
        .context("no code on the screen")?;
    Ok(line.chars().take(9).collect())
}

/// Where a factory is, and what it is told.
#[derive(Debug)]
pub(super) struct Site<'a> {
    /// Folder of its files.
    pub(super) folder: PathBuf,
    /// The bench's interface.
    pub(super) interface: &'a str,
    /// Its address there.
    pub(super) address: Ipv4Addr,
    /// The section `dhcp` of its configuration.
    pub(super) dhcp: String,
    /// The channel whose release is born there.
    pub(super) channel: &'a str,
    /// The program that starts a machine's disk, where it is not the factory's own.
    pub(super) local_boot: Option<PathBuf>,
    /// Its log.
    pub(super) log: PathBuf,
}

/// Starts a factory, and waits until it has an installer to give.
pub(super) async fn start_factory(
    stage: &Stage,
    site: &Site<'_>,
    step: &mut Step,
) -> anyhow::Result<Server> {
    let Site {
        folder,
        interface,
        address,
        dhcp,
        channel,
        local_boot,
        log,
    } = site;
    std::fs::create_dir_all(folder).context("make the factory's folder")?;
    let absolute = |path: &Path| {
        std::path::absolute(path)
            .map(|path| path.display().to_string())
            .context("name a file")
    };
    let sky = stage.build.join("sky");
    let local_boot = match local_boot {
        Some(program) => format!("local_boot = {:?}\n", absolute(program)?),
        None => String::new(),
    };
    let config = format!(
        "interface = {interface:?}\naddress = \"{address}\"\nstate = {:?}\ncache = {:?}\n\
         channel = {channel:?}\ntrust_root = {:?}\n{local_boot}\n\
         [http]\nport = {FACTORY_PORT}\n\n[dhcp]\n{dhcp}\n\
         [sky]\nurl = {:?}\nca = {:?}\ntoken_file = {:?}\n",
        absolute(&folder.join("state"))?,
        absolute(&folder.join("cache"))?,
        absolute(&stage.build.join("keys/trust-root.json"))?,
        sky_url(),
        absolute(&sky.join("ca.crt"))?,
        absolute(&sky.join("tokens/factory"))?,
    );
    let file = folder.join("factory.toml");
    std::fs::write(&file, config).context("write the factory's configuration")?;
    let shown = file.display().to_string();
    step.command("leap-provisioner", ["run", "--config", &shown]);
    let program = stage.programs.join("leap-provisioner");
    let tool = Tool::new(program).args(["run", "--config", &shown]);
    let recipe = Recipe::new("leap-provisioner", tool, log);
    let ready = Ready::Port((*address, FACTORY_PORT).into());
    let server = Server::start(recipe, ready).await?;
    // The installer has to be in the factory's cache before a machine asks for it.
    let cache = folder.join("cache");
    step.waiting("the factory fetches the release from the sky");
    wait::until(
        "the installer in the factory's cache",
        Duration::from_secs(60),
        || {
            let found = find(&cache, "installer.efi");
            async move { Ok(found.then_some(())) }
        },
    )
    .await?;
    step.rest();
    step.evidence("the factory serves DHCP, TFTP and HTTP on the bench");
    Ok(server)
}

fn find(folder: &Path, name: &str) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return false;
    };
    entries.flatten().any(|entry| {
        entry.file_name() == name || (entry.path().is_dir() && find(&entry.path(), name))
    })
}

/// What can be seen of the birth from outside the machine.
async fn prove(world: &mut World, step: &mut Step) -> anyhow::Result<()> {
    let capture = Capture::read(world.capturing[0].file())?;
    let reads = capture.tftp_reads();
    let read = reads.first().context("the capture has no TFTP request")?;
    let boots = capture.boot_file_for(mac(1));
    step.evidence(format!(
        "capture: the firmware fetched {} by TFTP{}",
        read.file,
        boots
            .map(|file| format!(", last boot answer {file}"))
            .unwrap_or_default()
    ));
    let disk = DiskImage::open(&world.machine()?.disk(0))?;
    let names: Vec<_> = disk
        .partitions()
        .iter()
        .map(|part| part.name.clone())
        .collect();
    ensure!(
        names == ["esp", "root-a", "verity-a", "root-b", "verity-b", "data"],
        "unexpected partitions: {names:?}"
    );
    disk.verify_table().await?;
    step.evidence(format!("disk, read from outside: {}", names.join(" ")));
    slot_holds(world, step, "a", FIRST).await
}

/// Lets `veritysetup` check a slot from outside against the release that was built.
pub(super) async fn slot_holds(
    world: &mut World,
    step: &mut Step,
    slot: &str,
    release: &str,
) -> anyhow::Result<()> {
    let disk = DiskImage::open(&world.machine()?.disk(0))?;
    let work = world.stage.build.join("machines/slot");
    std::fs::create_dir_all(&work).context("make a folder for the slot's copy")?;
    step.waiting(&format!("veritysetup verifies every block of slot {slot}"));
    let (root, verity) = (format!("root-{slot}"), format!("verity-{slot}"));
    let found = disk.verify_root(&root, &verity, &work).await?;
    step.rest();
    std::fs::remove_dir_all(&work).context("remove the slot's copy")?;
    let built = root_hash(world, release)?;
    ensure!(found == built, "slot {slot} holds {found}, not {built}");
    step.evidence(format!(
        "slot {slot}: veritysetup finds every block of release {release}, root hash {}…",
        &found[..12]
    ));
    Ok(())
}
