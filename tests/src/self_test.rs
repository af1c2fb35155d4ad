//! The laboratory's proof of itself: everything that it is made of, without our daemons.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use edge::runner::Tool;

use crate::lab::accelerator::Accelerator;
use crate::lab::gallery::{Gallery, difference, tree_of};
use crate::lab::isolation::{Errand, Inside};
use crate::lab::log::LogTail;
use crate::lab::machine::{Disk, DiskKind, Firmware, Hardware, Machine, mac};
use crate::lab::network::{Network, Wiring, host};
use crate::lab::pcap::{Capture, DhcpKind};
use crate::lab::process::Recipe;
use crate::lab::server::{Ready, Server};
use crate::lab::sftp::{FileServer, USER, make_key, public_key};
use crate::lab::story::{Output, Report, Step, Story};
use crate::lab::{prerequisites, wait};

const STEPS: [&str; 4] = ["isolation", "errand", "machine", "file-server"];

const BOOT_FILE: usize = 4 << 20;

/// Runs the proof and writes `self-test.json` into the build folder.
pub(crate) async fn run(inside: &Inside, build: &Path, output: Output) -> anyhow::Result<Report> {
    let mut story = Story::new(&STEPS, output);
    let told = tell(inside, build, &mut story).await;
    let report = story.end(&build.join("self-test.json"))?;
    told.map(|()| report)
}

async fn tell(inside: &Inside, build: &Path, story: &mut Story) -> anyhow::Result<()> {
    let wiring = Wiring::detect();
    let network = story
        .step(
            "isolation",
            "A network of our own",
            async |step: &mut Step| {
                let links = Tool::new("ip").args(["-o", "link"]).text_async().await?;
                ensure!(
                    links.lines().count() == 1,
                    "expected only loopback:\n{links}"
                );
                step.evidence("a new network has only loopback");
                let network = Network::create("lan0", host(1), 24, wiring).await?;
                step.evidence(format!(
                    "bridge lan0 at {}, plugs: {wiring:?}",
                    network.address()
                ));
                Ok(network)
            },
        )
        .await?;

    story
        .step(
            "errand",
            "The host's network for errands",
            async |step: &mut Step| {
                let errand = Errand {
                    program: "ip".into(),
                    arguments: vec!["-o".into(), "link".into()],
                    environment: std::collections::BTreeMap::new(),
                };
                let mut seen = Vec::new();
                inside
                    .errand(&errand, |line| seen.push(line.to_owned()))
                    .await?;
                ensure!(!seen.is_empty(), "an errand said nothing");
                ensure!(
                    !seen.iter().any(|line| line.contains(" lan0:")),
                    "the host sees our bridge"
                );
                step.evidence("an errand ran outside, and the host does not see our bridge");
                Ok(())
            },
        )
        .await?;

    story
        .step(
            "machine",
            "Firmware that boots from the network",
            async |step: &mut Step| firmware_asks_for_an_address(&network, build, step).await,
        )
        .await?;

    story
        .step(
            "file-server",
            "A file server with photos",
            async |step: &mut Step| photos_come_over_sftp(inside, build, &network, step).await,
        )
        .await
}

async fn firmware_asks_for_an_address(
    network: &Network,
    build: &Path,
    step: &mut Step,
) -> anyhow::Result<()> {
    let folder = build.join("self-test");
    let _ = std::fs::remove_dir_all(&folder);
    let hardware = Hardware {
        name: "try-1".to_owned(),
        serial: "LAB-TRY-1".to_owned(),
        uuid: "6c656170-0000-4000-8000-0000000000fe".to_owned(),
        macs: vec![mac(0xfe)],
        memory: 256,
        processors: 1,
        disks: vec![Disk {
            serial: "LABDISK1".to_owned(),
            size: 1 << 30,
            kind: DiskKind::Virtio,
        }],
        tpm: false,
        firmware: Firmware::Ovmf,
    };
    let mut machine = Machine::build(hardware, &folder)?;
    step.waiting("trying KVM");
    let accelerator = Accelerator::detect(&folder).await?;
    step.evidence(format!("processors run by {}", accelerator.words()));
    let file = folder.join("lan0.pcap");
    let capturing = network.capture(&file).await?;
    let dnsmasq = stranger(network, &folder).await?;
    let port = network.port("try-1-0").await?;
    let mut ports = [port];
    machine.power_on(accelerator, &mut ports).await?;
    step.waiting("the firmware's network boot");
    let asked = wait::until(
        "a DHCP discover of the firmware",
        Duration::from_secs(60),
        || {
            let state = machine.alive();
            let capture = Capture::read(&file);
            async move {
                state?;
                let dhcp = capture?.dhcp();
                Ok(dhcp
                    .into_iter()
                    .find(|message| message.kind == DhcpKind::Discover))
            }
        },
    )
    .await?;
    let seconds = machine.uptime().as_secs_f64();
    ensure!(
        asked.client == mac(0xfe),
        "somebody else asked: {}",
        asked.client
    );
    ensure!(
        asked.architecture == Some(7),
        "expected UEFI x64, not {:?}",
        asked.architecture
    );
    step.evidence(format!(
        "OVMF of {} asks for an address {seconds:.1} s after power-on: {}",
        asked.client,
        asked.vendor_class.unwrap_or_default()
    ));
    let mut console = LogTail::from_start(&machine.serial_log());
    machine
        .says(
            &mut console,
            &["downloaded successfully"],
            Duration::from_secs(60),
        )
        .await?;
    let seconds = machine.uptime().as_secs_f64() - seconds;
    let reads = Capture::read(&file)?.tftp_reads();
    let read = reads.last().context("the capture has no TFTP request")?;
    ensure!(
        read.file == "boot.efi",
        "the firmware asked for {}",
        read.file
    );
    step.evidence(format!(
        "it got one from dnsmasq, and {} of {} KiB by TFTP, {seconds:.1} s later",
        read.file,
        BOOT_FILE >> 10
    ));
    dnsmasq.stop().await?;
    let used = machine.disk_use(0).await?;
    ensure!(used.written == 0, "an empty disk was written: {used:?}");
    machine.power_cut().await?;
    ensure!(machine.alive().is_err(), "a machine without power is on");
    capturing.end().await?;
    for port in ports {
        port.remove().await?;
    }
    step.evidence("the power cut worked, and the disk was not written");
    Ok(())
}

/// Starts a DHCP and TFTP server that is not ours, with a boot file that does not boot.
async fn stranger(network: &Network, folder: &Path) -> anyhow::Result<Server> {
    let tree = folder.join("tftp");
    std::fs::create_dir_all(&tree).context("make a folder for the boot file")?;
    // dnsmasq serves nothing below a path that has `..`.
    let tree = std::fs::canonicalize(&tree).context("name the boot file's folder")?;
    std::fs::write(tree.join("boot.efi"), vec![0; BOOT_FILE]).context("make a boot file")?;
    let tool = Tool::new("dnsmasq")
        .args([
            "--no-daemon",
            "--port=0",
            "--user=root",
            "--conf-file=/dev/null",
        ])
        .args([
            "--bind-interfaces",
            "--dhcp-range=10.77.0.100,10.77.0.120",
            "--log-dhcp",
        ])
        .args([
            "--dhcp-boot=boot.efi",
            "--enable-tftp",
            "--dhcp-leasefile=/dev/null",
        ])
        .arg(format!("--interface={}", network.interface()))
        .arg(format!("--tftp-root={}", tree.display()));
    let recipe = Recipe::new("dnsmasq", tool, folder.join("dnsmasq.log"));
    Server::start(recipe, Ready::Line("TFTP root".to_owned())).await
}

async fn photos_come_over_sftp(
    inside: &Inside,
    build: &Path,
    network: &Network,
    step: &mut Step,
) -> anyhow::Result<()> {
    let server = host(30);
    network.add_address(server).await?;
    let sshd = prerequisites::sshd(&build.join("cache")).await?;
    let log = build.join("self-test/sshd.log");
    let files = FileServer::start(inside, &sshd, (server, 22).into(), &log).await?;
    let gallery = Gallery {
        photos: 20,
        ..Gallery::default()
    };
    let expected = gallery.write(files.share())?;
    let work = build.join("self-test/photos");
    std::fs::create_dir_all(&work).context("make a folder for the photos")?;
    let key = build.join("self-test/client-key");
    make_key(&key).await?;
    files.authorize(&public_key(&key)?)?;
    let known = build.join("self-test/known-hosts");
    std::fs::write(&known, format!("{server} {}\n", files.host_key()))
        .context("write the known host")?;
    let fetched = fetch(&key, &known, server, files.share(), &work).await;
    fetched.with_context(|| crate::lab::log::last_lines(&log, 8))?;
    let found = tree_of(&work.join("photos"))?;
    if let Some(words) = difference(&expected, &found) {
        anyhow::bail!("photos over SFTP: {words}");
    }
    step.evidence(format!(
        "{} photos came over SFTP, byte for byte",
        found.len()
    ));
    files.stop().await?;
    Ok(())
}

async fn fetch(
    key: &Path,
    known: &Path,
    server: Ipv4Addr,
    share: &Path,
    to: &Path,
) -> anyhow::Result<()> {
    let mut tool = Tool::new("sftp").args(["-q", "-r", "-i"]).arg(key);
    for option in [
        "BatchMode=yes",
        "StrictHostKeyChecking=yes",
        "GlobalKnownHostsFile=none",
    ] {
        tool = tool.args(["-o", option]);
    }
    tool.arg("-o")
        .arg(format!("UserKnownHostsFile={}", known.display()))
        .arg(format!("{USER}@{server}:{}", share.display()))
        .arg(to)
        .run_async()
        .await
}
