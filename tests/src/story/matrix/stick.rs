//! A machine at a customer's: started from a stick, without a factory.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use edge::runner::Tool;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;

use super::super::centre::sky_url;
use super::super::releases::{self, FIRST};
use super::super::world::World;
use crate::lab::log::LogTail;
use crate::lab::machine::Machine;
use crate::lab::pcap;
use crate::lab::story::Step;

const PATIENCE: Duration = Duration::from_secs(300);
const QUESTION: &str = "leapserv: type one-time code";

/// Composes the stick, and returns where it is.
pub(super) async fn compose(
    world: &World,
    folder: &Path,
    step: &mut Step,
) -> anyhow::Result<PathBuf> {
    let build = &world.stage.build;
    let stick = folder.join("stick.img");
    let text = |path: &Path| path.display().to_string();
    let arguments = [
        "compose".to_owned(),
        text(&releases::folder(world, FIRST)),
        "--layer".to_owned(),
        text(&build.join("layer")),
        "--trust-root".to_owned(),
        text(&build.join("keys/trust-root.json")),
        "--format".to_owned(),
        "usb".to_owned(),
        "--sky".to_owned(),
        sky_url(),
        "--sky-ca".to_owned(),
        text(&build.join("sky/ca.crt")),
        "--out".to_owned(),
        text(&stick),
    ];
    step.command("leap-image", &arguments);
    Tool::new(world.program("leap-image"))
        .args(&arguments)
        .run_async()
        .await?;
    let size = std::fs::metadata(&stick)
        .context("look at the stick")?
        .len();
    step.evidence(format!("a stick of {} MiB, without a secret", size >> 20));
    Ok(stick)
}

/// Makes a one-time code, which support then tells.
pub(super) async fn make_code(
    world: &World,
    unit: &str,
    step: &mut Step,
) -> anyhow::Result<String> {
    let made = world.operator.run(step, &["unit", "pass", unit]).await?;
    let code = made["pass"].as_str().context("no code in the answer")?;
    Ok(code.to_owned())
}

/// Waits for the question, mistypes twice, and types the code that support tells.
pub(in crate::story) async fn type_code(
    machine: &mut Machine,
    console: &mut LogTail,
    unit: &str,
    code: &str,
    step: &mut Step,
) -> anyhow::Result<()> {
    machine.says(console, &[QUESTION], PATIENCE).await?;
    // Held until all is read: the machine takes some bytes at a time, and what is still
    // under way when somebody hangs up is lost. Who does not listen makes it fall silent.
    let terminal = UnixStream::connect(machine.console_socket())
        .await
        .context("open the console")?;
    let (mut screen, mut keyboard) = terminal.into_split();
    // It ends with the machine's power.
    tokio::spawn(async move { tokio::io::copy(&mut screen, &mut tokio::io::sink()).await });
    for (typed, answer) in [
        ("what is a code", "expected 12 letters and digits"),
        ("0000-0000-0000", "the sky does not know this code"),
    ] {
        enter(&mut keyboard, typed).await?;
        machine.says(console, &[answer], PATIENCE).await?;
        machine.says(console, &[QUESTION], PATIENCE).await?;
    }
    step.evidence("a slip of the fingers and a wrong code are told, and asked for again");
    // As somebody types who is on the telephone.
    enter(&mut keyboard, &code.to_lowercase().replace('-', " ")).await?;
    let granted = format!("one-time code for {unit}");
    machine.says(console, &[&granted], PATIENCE).await?;
    step.evidence(format!("its screen: {granted}"));
    Ok(())
}

/// Types a line.
async fn enter(keyboard: &mut OwnedWriteHalf, line: &str) -> anyhow::Result<()> {
    keyboard
        .write_all(format!("{line}\r").as_bytes())
        .await
        .context("type on the console")
}

/// The release came from the stick: the wire has carried a fraction of it.
pub(super) fn prove_spared(world: &World, capture: &Path, step: &mut Step) -> anyhow::Result<()> {
    let wire = std::fs::metadata(capture)
        .context("look at the capture")?
        .len();
    let whole = releases::Sizes::of(&releases::folder(world, FIRST))?.download;
    let mib = wire >> 20;
    step.evidence(format!(
        "the wire has carried {mib} MiB; the release on the stick has {whole:.0}"
    ));
    ensure!(mib < 20, "the release came over the wire");
    Ok(())
}

/// Neither the wire nor the sky's log has seen the code.
pub(super) fn prove_untold(
    world: &World,
    capture: &Path,
    code: &str,
    step: &mut Step,
) -> anyhow::Result<()> {
    let needles: [&[u8]; 2] = [code.as_bytes(), b"Bearer"];
    let seen = pcap::first_of(capture, &needles)?;
    ensure!(seen.is_none(), "the code was seen on the wire");
    let log = world.stage.build.join("leap-fleet.log");
    let log = std::fs::read_to_string(&log).context("read the sky's log")?;
    ensure!(!log.contains(code), "the code stands in the sky's log");
    step.evidence("the code was seen neither on the wire nor in the sky's log");
    Ok(())
}

/// The stick stays in its port and the power fails. Nobody types anything: the machine
/// has to find its own disk.
pub(super) async fn forgotten(
    machine: &mut Machine,
    console: &mut LogTail,
    step: &mut Step,
) -> anyhow::Result<()> {
    step.waiting("the installer asks, and nobody is there");
    machine.says(console, &[QUESTION], PATIENCE).await?;
    for text in [
        "leapserv: the next start is from /dev/",
        "leapserv: local disk: nobody typed a one-time code",
        "Started leap-updater.service",
    ] {
        machine.says(console, &[text], PATIENCE).await?;
    }
    step.rest();
    step.evidence(format!(
        "{:.0} s after power-on with the stick in its port, the unit runs from its disk",
        machine.uptime().as_secs_f64()
    ));
    Ok(())
}
