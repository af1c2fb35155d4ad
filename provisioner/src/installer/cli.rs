//! The command line of `leap-installer`, and its life as the first process.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use clap::{Parser, Subcommand};
use edge::exit::{Classify as _, Failure, Kind};
use jiff::Timestamp;
use model::TrustRoot;
use model::machine::{DiskFacts, MachineFacts};
use slots::Target as _;
use tokio::runtime::Runtime;

use super::birth::{self, AfterFailure, Clock, Ending, Setup};
use super::console::Console;
use super::link::{Link, Patience};
use super::network::{self, Clients};
use super::stick::{self, Stick};
use super::{boot_next, facts, health, init, visit};

/// Whom the installer believes.
const TRUST_ROOT: &str = "/etc/leapserv/trust-root.json";
/// The machine's TPM, behind the kernel's resource manager.
const TPM: &str = "/dev/tpmrm0";
/// How long a failure stands on the screen before the machine starts anew.
const READ_IT: Duration = Duration::from_secs(30);

/// Install a LeapServ unit on this machine, with a ticket from its factory
///
/// As the first process of a machine it takes no arguments: it finds disks,
/// network and factory by itself. Otherwise say --no-init.
#[derive(Debug, Parser)]
#[command(name = "leap-installer", version)]
pub struct Cli {
    /// Run as a normal program: mount, load and restart nothing
    #[arg(long, requires = "factory")]
    no_init: bool,
    /// The factory's address
    #[arg(long, value_name = "URL")]
    factory: Option<String>,
    /// Offer this disk or file as the only disk
    #[arg(long, value_name = "FILE")]
    disk: Option<PathBuf>,
    /// Take the machine's facts from this file
    #[arg(long, value_name = "FILE")]
    facts: Option<PathBuf>,
    /// Make the keys in this TPM: a device or an emulator's socket
    #[arg(long, value_name = "FILE")]
    tpm: Option<PathBuf>,
    /// Whom to believe
    #[arg(long, value_name = "FILE", default_value = TRUST_ROOT)]
    trust_root: PathBuf,
    /// End with an error instead of waiting for another ticket
    #[arg(long)]
    once: bool,
    /// Give the factory up after so long without an answer
    #[arg(long, value_name = "SECONDS")]
    give_up: Option<u64>,
    /// Take the link as lost after so long without a byte
    #[arg(long, value_name = "SECONDS")]
    stall: Option<u64>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print this machine's facts as JSON
    Facts,
}

/// Runs this program as what it was started as: the first process, the
/// script of busybox's DHCP client, or a normal program.
///
/// # Errors
/// With the exit code's kind. The first process has none: it restarts.
pub fn main() -> Result<(), Failure> {
    if std::process::id() == 1 {
        // Unknown words of the kernel's command line arrive as arguments.
        first_process();
    }
    let event = std::env::args().nth(1).unwrap_or_default();
    if network::is_callback(&event) {
        return Ok(network::callback(&event)?);
    }
    let cli = Cli::parse();
    edge::log::init_quiet(0);
    normal_program(cli)
}

fn normal_program(cli: Cli) -> Result<(), Failure> {
    if let Some(Command::Facts) = cli.command {
        edge::out::json(&facts::gather(Path::new("/")));
        return Ok(());
    }
    if !cli.no_init {
        return Err(anyhow!(
            "this is not the first process; to run it all the same say --no-init"
        ))
        .usage();
    }
    let trust = read_trust_root(&cli.trust_root).invalid_input()?;
    let facts = facts_of(&cli).invalid_input()?;
    let console = Console::standard_output();
    let defaults = Patience::default();
    let give_up = cli.give_up.map_or(defaults.give_up, Duration::from_secs);
    let patience = Patience {
        stall: cli.stall.map_or(defaults.stall, Duration::from_secs),
        give_up,
        ..defaults
    };
    let base = cli.factory.unwrap_or_default();
    let runtime = Runtime::new().context("start the runtime").environment()?;
    let scratch = scratch()?;
    let ended = runtime.block_on(async {
        console.line(&format!("installer {}", env!("CARGO_PKG_VERSION")));
        let link = Link::new(&base, patience, console.clone())?;
        console.line(&format!("factory {base}"));
        let told = link.health().await.ok().flatten();
        let clock = Clock::corrected(edge::clock::now(), told);
        let setup = Setup {
            trust,
            facts,
            link,
            console: console.clone(),
            clock,
            clock_was_off: clock.offset(),
            free_memory: None,
            tpm: cli.tpm,
            scratch: scratch.clone(),
            after_failure: if cli.once {
                AfterFailure::End
            } else {
                AfterFailure::Hold
            },
        };
        birth::birth(&setup).await
    });
    drop(std::fs::remove_dir_all(&scratch));
    match ended {
        Ok(Ending::Born { .. }) => console.line("restart"),
        Ok(Ending::LocalDisk { reason }) => {
            console.line(&format!("local disk: {reason}"));
            console.line("restart");
        }
        Err(error) => return Err(classify(error)),
    }
    Ok(())
}

/// Refusals have an exit code of their own.
fn classify(error: anyhow::Error) -> Failure {
    let refused = error.chain().any(|cause| {
        cause.is::<model::TrustError>()
            || cause.is::<model::ticket::TicketRefusal>()
            || cause.is::<super::plan::PlanRefusal>()
            || cause.is::<super::permit::OpenRefusal>()
    });
    if refused {
        Failure::new(Kind::Refused, error)
    } else {
        Failure::from(error)
    }
}

/// A folder that only this process reads, for keys on their way to the disk.
fn scratch() -> Result<PathBuf, Failure> {
    let base = if Path::new("/dev/shm").is_dir() {
        PathBuf::from("/dev/shm")
    } else {
        std::env::temp_dir()
    };
    let dir = base.join(format!("leap-installer-{}", std::process::id()));
    std::fs::create_dir_all(&dir)
        .and_then(|()| {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
            std::fs::set_permissions(&dir, mode)
        })
        .with_context(|| format!("make {}", dir.display()))
        .environment()?;
    Ok(dir)
}

fn read_trust_root(path: &Path) -> Result<TrustRoot> {
    let text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text)
        .with_context(|| format!("{}: expected a trust root", path.display()))
}

fn facts_of(cli: &Cli) -> Result<MachineFacts> {
    let mut facts = match &cli.facts {
        None => facts::gather(Path::new("/")),
        Some(path) => {
            let text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
            serde_json::from_slice(&text)
                .with_context(|| format!("{}: expected a machine's facts", path.display()))?
        }
    };
    if let Some(path) = &cli.disk {
        let disk = slots::Disk::open_read_only(path)
            .with_context(|| format!("open {}", path.display()))?;
        let serial = facts
            .disks
            .first()
            .map(|disk| disk.serial.clone())
            .unwrap_or_default();
        facts.disks = vec![DiskFacts {
            path: path.display().to_string(),
            serial,
            model: "file".into(),
            size: disk.size(),
            removable: false,
            content: facts::content_of(path),
            health: None,
        }];
    }
    Ok(facts)
}

/// The life of the first process. It never returns: the kernel would panic.
fn first_process() -> ! {
    let mounted = init::mount_all();
    let console = Console::of_machine();
    console.line(&format!("installer {}", env!("CARGO_PKG_VERSION")));
    // On a thread, so that a bug ends in a message and a restart.
    let lived = std::thread::scope(|scope| {
        let life = scope.spawn(|| mounted.and_then(|()| machine(&console)));
        life.join()
            .unwrap_or_else(|_| Err(anyhow!("a bug in the installer")))
    });
    past_the_stick(&console, &lived);
    match lived {
        Ok(Ending::Born { .. }) => {}
        Ok(Ending::LocalDisk { reason }) => console.note(&format!("local disk: {reason}")),
        Err(error) => {
            console.error(&format!("{error:#}"), "the machine restarts in 30 s");
            std::thread::sleep(READ_IT);
        }
    }
    console.line("restart");
    loop {
        if let Err(error) = init::restart() {
            console.error(&format!("{error:#}"), "switch the machine off and on");
        }
        std::thread::sleep(READ_IT);
    }
}

/// Leads the firmware past a stick that stays in its port: to the unit that was just
/// born, or to the one that is there.
fn past_the_stick(console: &Console, lived: &Result<Ending>) {
    let root = Path::new("/");
    if !stick::is_start(root) {
        return;
    }
    let disk = match lived {
        Ok(Ending::Born { disk }) => Some(disk.clone()),
        Ok(Ending::LocalDisk { .. }) | Err(_) => visit::local_unit(root),
    };
    let Some(disk) = disk else { return };
    match boot_next::from_disk(root, Path::new(&disk)) {
        Ok(()) => console.line(&format!("the next start is from {disk}")),
        Err(error) => console.error(&format!("{error:#}"), "take the stick out"),
    }
}

/// Who is at the other end of the cable.
enum FarEnd {
    /// A factory, found.
    Factory(Link),
    /// The sky, which the machine has no code for yet.
    Sky(Stick),
}

/// Finds it, and its time.
async fn find_far_end(
    console: &Console,
    clients: &mut Clients,
) -> Result<(FarEnd, Option<Timestamp>)> {
    if stick::is_start(Path::new("/")) {
        console.line("started from a disk: looking for a stick's settings on it");
    }
    if let Some(stick) = stick::started_from(Path::new("/")).await? {
        console.line("started from a stick: no factory, the sky itself");
        let told = network::find_sky(console, &stick.settings, clients).await?;
        console.line(&format!("sky {}", stick.settings.sky));
        return Ok((FarEnd::Sky(stick), Some(told)));
    }
    let link = network::find_factory(console, Patience::default(), clients).await?;
    console.line(&format!("factory {}", link.base()));
    let told = link.health().await.ok().flatten();
    Ok((FarEnd::Factory(link), told))
}

fn machine(console: &Console) -> Result<Ending> {
    init::load_modules(console);
    init::mount_variables();
    let trust = read_trust_root(Path::new(TRUST_ROOT))?;
    let runtime = Runtime::new().context("start the runtime")?;
    runtime.block_on(async {
        init::wait_for_disk().await;
        let mut clients = Clients::default();
        let (far_end, told) = find_far_end(console, &mut clients).await?;
        let mut clock = Clock::corrected(edge::clock::now(), told);
        let clock_was_off = clock.offset();
        if let Some(offset) = clock_was_off {
            console.line(&format!(
                "clock is off by {} s, corrected",
                offset.as_secs()
            ));
            if init::set_clock(clock.now()).is_ok() {
                clock = Clock::default();
            }
        }
        let link = match far_end {
            FarEnd::Factory(link) => link,
            // By now the clock is right: certificates count by it.
            FarEnd::Sky(stick) => match visit::link(&stick, console).await? {
                Some(link) => link,
                None => {
                    return Ok(Ending::LocalDisk {
                        reason: "nobody typed a one-time code".into(),
                    });
                }
            },
        };
        let mut facts = facts::gather(Path::new("/"));
        health::ask(&mut facts);
        let setup = Setup {
            trust,
            clock_was_off,
            free_memory: Some(facts::free_memory(Path::new("/"))),
            tpm: facts.tpm.then(|| PathBuf::from(TPM)),
            facts,
            link,
            console: console.clone(),
            clock,
            scratch: PathBuf::from("/run/leapserv"),
            after_failure: AfterFailure::Hold,
        };
        birth::birth(&setup).await
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_holds_together() {
        Cli::command().debug_assert();
    }
}
