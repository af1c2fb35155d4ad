//! What a factory takes when many machines come at once: memory with a thousand that wait,
//! and fifty real installers that are born together.
//!
//! The sky is a copy of a told story's, with its keys and releases; factory and installers
//! are the real programs. Only the machines are missing: no firmware, files for disks.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use edge::runner::Tool;
use model::Digest;
use model::api::{Announcement, MachineView};
use model::id::MacAddr;
use model::machine::{DeviceKeys, DiskContent, DiskFacts, MachineCode, MachineFacts, NicFacts};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use reqwest::Client;
use rustix::process::Signal;
use serde_json::Value;
use tokio::task::JoinSet;

use super::Stage;
use super::birth::{Site, start_factory};
use super::centre::{SKY_PORT, sky_url};
use super::operator::Operator;
use super::releases::STABLE;
use super::world::{CUSTOMER, factory_address, sky_address};
use crate::bench::Figure;
use crate::lab::log::LogTail;
use crate::lab::neighbour::Neighbour;
use crate::lab::network::{Network, Wiring, host};
use crate::lab::process::{Process, Recipe, run};
use crate::lab::server::{Ready, Server};
use crate::lab::story::{Output, Step, Story};
use crate::lab::wait;

/// Machines that wait for their verdict at once, and those of them that also fetch.
const WAITING: u16 = 1000;
const FETCHING: u16 = 100;
/// Memory of the factory with these that we aim at, in MiB.
const MEMORY: f64 = 128.0;
/// Installers on one host: a factory takes 30 announcements a minute of one address.
const ON_ONE_HOST: usize = 10;
/// Size of a machine's disk, and what of it a birth writes at most.
const DISK: u64 = 16 << 30;
const WRITTEN: u64 = 256 << 20;
/// What is written to tell how fast the disk is.
const FLOOR: u64 = 1 << 30;
/// How long a birth among many may take.
const PATIENCE: Duration = Duration::from_secs(900);
const MIB: f64 = 1_048_576.0;
/// In a second, as Linux tells them to programs on all machines of ours.
const TICKS: f64 = 100.0;

/// Measures inside a laboratory.
///
/// # Errors
/// No story was told in the build folder, the disk is too small, or something failed that
/// was to be measured.
pub async fn measure(stage: &Stage, machines: u16, output: Output) -> anyhow::Result<Vec<Figure>> {
    ensure!(
        stage.build.join("sky/fleet.toml").is_file(),
        "{}: expected a told story, with its sky; run leap-lab demo first",
        stage.build.display()
    );
    let work = tempfile::Builder::new()
        .prefix("births-")
        .tempdir_in(&stage.build)
        .context("make a folder for the births")?;
    for folder in ["sky", "keys"] {
        let copy = Tool::new("cp").args(["-a", "--reflink=auto"]);
        copy.arg(stage.build.join(folder)).arg(work.path()).run()?;
    }
    let room = room(work.path())?;
    ensure!(
        room > (u64::from(machines) * WRITTEN) + FLOOR,
        "{}: {} MiB are free, expected {} MiB for {machines} disks; ask for fewer machines",
        work.path().display(),
        room >> 20,
        ((u64::from(machines) * WRITTEN) + FLOOR) >> 20,
    );
    let stage = Stage {
        build: work.path().to_owned(),
        ..stage.clone()
    };
    let mut story = Story::new(&["factory", "waiting", "births"], output);
    let mut bench = story
        .step("factory", "Sky and factory start", async |step| {
            Bench::start(&stage, step).await
        })
        .await?;
    let title = format!("{WAITING} machines wait for their verdict, {FETCHING} of them fetch");
    let mut figures = story
        .step("waiting", &title, async |step| bench.waiting(step).await)
        .await?;
    let title = format!("{machines} real installers at once");
    figures.extend(
        story
            .step("births", &title, async |step| {
                bench.births(machines, step).await
            })
            .await?,
    );
    Ok(figures)
}

fn room(folder: &Path) -> anyhow::Result<u64> {
    let found = rustix::fs::statvfs(folder).context("ask for free space")?;
    Ok(found.f_bavail * found.f_frsize)
}

struct Bench {
    stage: Stage,
    network: Network,
    operator: Operator,
    factory: Server,
    _sky: Server,
}

impl Bench {
    async fn start(stage: &Stage, step: &mut Step) -> anyhow::Result<Self> {
        let build = &stage.build;
        let network = Network::create("lan0", factory_address(), 24, Wiring::detect()).await?;
        network.add_address(sky_address()).await?;
        let config = build.join("sky/fleet.toml").display().to_string();
        let tool = Tool::new(stage.programs.join("leap-fleet")).args(["run", "--config", &config]);
        let recipe = Recipe::new("leap-fleet", tool, build.join("leap-fleet.log"));
        let ready = Ready::Port((sky_address(), SKY_PORT).into());
        let sky = Server::start(recipe, ready).await?;
        let operator = Operator::new(
            &stage.programs,
            &sky_url(),
            &build.join("keys"),
            &build.join("sky/ca.crt"),
            &build.join("sky/tokens/operator"),
        )?;
        let site = Site {
            folder: build.join("factory"),
            interface: network.interface(),
            address: factory_address(),
            dhcp: "mode = \"proxy\"\n".to_owned(),
            channel: STABLE,
            local_boot: None,
            log: build.join("leap-provisioner.log"),
        };
        let factory = start_factory(stage, &site, step).await?;
        Ok(Self {
            stage: stage.clone(),
            network,
            operator,
            factory,
            _sky: sky,
        })
    }

    fn pid(&mut self) -> anyhow::Result<u32> {
        let id = self.factory.process().id();
        id.context("the factory has ended")
    }

    /// The release's root image, which is most of what an installer fetches.
    async fn root_image(&self) -> anyhow::Result<String> {
        let client = client(None)?;
        let text = client.get(format!("{}/v1/health", base())).send().await?;
        let health: Value = serde_json::from_slice(&text.bytes().await?)?;
        let release = health["release"].as_str();
        let release = release.context("the factory has no release")?;
        Ok(format!("{}/v1/releases/{release}/root.zst", base()))
    }

    async fn waiting(&mut self, step: &mut Step) -> anyhow::Result<Vec<Figure>> {
        let pid = self.pid()?;
        let before = memory(pid, "VmRSS")?;
        // Every machine has an address of its own, in a network that is all this host's.
        run("ip", ["route", "add", "local", "10.78.0.0/16", "dev", "lo"]).await?;
        let keys = keys(&self.stage.build)?;
        let root = self.root_image().await?;
        let asked = Arc::new(AtomicUsize::new(0));
        let over = Arc::new(AtomicBool::new(false));
        let mut machines = JoinSet::new();
        let begun = Instant::now();
        for number in 0..WAITING {
            let machine = Waiting {
                number,
                keys: keys.clone(),
                fetches: (number < FETCHING).then(|| root.clone()),
                asked: Arc::clone(&asked),
                over: Arc::clone(&over),
            };
            machines.spawn(machine.live());
        }
        let (mut fetched, mut seconds) = (0, f64::NAN);
        step.waiting("all of them to wait, and the downloads to end");
        while let Some(ended) = machines.join_next().await {
            fetched += ended.context("a machine of the bench")??;
            if fetched == usize::from(FETCHING) && !over.swap(true, Ordering::Relaxed) {
                seconds = begun.elapsed().as_secs_f64();
                break;
            }
        }
        let together = asked.load(Ordering::Relaxed);
        let (peak, now) = (memory(pid, "VmHWM")?, memory(pid, "VmRSS")?);
        machines.shutdown().await;
        step.rest();
        ensure!(
            together == usize::from(WAITING),
            "{together} of {WAITING} machines waited at once"
        );
        step.evidence(format!(
            "{together} machines waited at once, and {fetched} fetched the root image \
             meanwhile, all within {seconds:.0} s; the factory holds {now:.0} MiB then"
        ));
        Ok(vec![
            figure("factory that has just started, memory", "MiB", before),
            Figure {
                aim: Some(MEMORY),
                ..figure(
                    "factory with 1,000 machines waiting and 100 of them fetching, peak memory",
                    "MiB",
                    peak,
                )
            },
        ])
    }

    async fn births(&mut self, count: u16, step: &mut Step) -> anyhow::Result<Vec<Figure>> {
        let pid = self.pid()?;
        let floor = write_rate(&self.stage.build.join("floor"))?;
        let readers = self.only_read(count).await?;
        let hosts = self.hosts(usize::from(count).div_ceil(ON_ONE_HOST)).await?;
        let mut installers = Vec::new();
        for number in 0..count {
            let host = &hosts[usize::from(number) / ON_ONE_HOST];
            installers.push(self.power_on(number, host)?);
        }
        step.waiting("the codes on their screens");
        let mut codes = Vec::new();
        for one in &mut installers {
            codes.push(one.code().await?);
        }
        step.waiting("the operator names the units");
        let units: Vec<_> = (0..count).map(|n| format!("{CUSTOMER}/born-{n}")).collect();
        for unit in &units {
            let create = ["unit", "create", unit, "--profile", "backup"];
            let create = [&create[..], &["--channel", STABLE]].concat();
            self.operator.ask(&create).await?;
        }
        step.waiting("the operator approves all");
        // Tickets come one after the other, and births shall begin together: until all are
        // given, none is heard of.
        for one in &mut installers {
            one.process.signal(Signal::STOP)?;
        }
        for (code, unit) in codes.iter().zip(&units) {
            let approve = ["machine", "approve", code, "--unit", unit];
            self.operator.ask(&approve).await?;
        }
        step.waiting("births");
        // From here on the peak is that of the births.
        fs::write(format!("/proc/{pid}/clear_refs"), "5").context("reset the peak of memory")?;
        let (busy, cpu, sent) = (busy()?, cpu_seconds(pid)?, sent(hosts.len())?);
        let children = cpu_of_children()?;
        let begun = Instant::now();
        for one in &mut installers {
            one.process.signal(Signal::CONT)?;
        }
        for one in &mut installers {
            one.born().await?;
        }
        let seconds = begun.elapsed().as_secs_f64();
        step.rest();
        let busy = (busy_since(&busy)? * 100.0).min(100.0);
        let cpu = cpu_seconds(pid)? - cpu;
        let theirs = cpu_of_children()? - children;
        let sent = (self::sent(hosts.len())? - sent) / MIB;
        let mut written = 0.0;
        for one in &installers {
            written += one.written()?;
        }
        let machines = f64::from(count);
        step.evidence(format!(
            "{count} machines born in {seconds:.0} s; each fetched {:.0} MiB and wrote {:.0} MiB, checked on the way and read back",
            sent / machines,
            written / machines
        ));
        let (of_disk, of_link) = (written / seconds / floor, sent / seconds / readers.rate);
        let limit = if busy >= 90.0 {
            "the processors, which are the installers' too"
        } else if of_disk >= of_link {
            "the disk"
        } else {
            "the link"
        };
        step.evidence(format!(
            "limited by {limit}: processors {busy:.0} % busy, disk at {:.0} % and factory at {:.0} % \
             of what each does alone",
            of_disk * 100.0,
            of_link * 100.0
        ));
        drop(installers);
        for host in hosts {
            host.remove().await?;
        }
        let what = format!("{count} births at once");
        let name = |text: &str| format!("{what}: {text}");
        let beside = |text: &str, unit, ours, peer| Figure {
            peer: Some(peer),
            ..figure(name(text), unit, ours)
        };
        Ok(vec![
            figure(name("from the tickets to the last birth"), "s", seconds),
            beside(
                "sent by the factory, beside the same to clients that only read",
                "MiB/s",
                sent / seconds,
                readers.rate,
            ),
            beside(
                "written to disks, beside one file alone",
                "MiB/s",
                written / seconds,
                floor,
            ),
            figure(name("processors busy"), "%", busy),
            figure(name("processor of each installer"), "s", theirs / machines),
            figure(
                name("processor of the factory for each GiB"),
                "s",
                cpu / sent * 1024.0,
            ),
            figure(
                format!("{count} clients that only read: the same"),
                "s",
                readers.cpu_for_gib,
            ),
            figure(
                name("peak memory of the factory"),
                "MiB",
                memory(pid, "VmHWM")?,
            ),
        ])
    }

    /// As many clients fetch the root image and throw it away.
    async fn only_read(&mut self, count: u16) -> anyhow::Result<Readers> {
        let pid = self.pid()?;
        let url = self.root_image().await?;
        let cpu = cpu_seconds(pid)?;
        let begun = Instant::now();
        let mut clients = JoinSet::new();
        for number in 0..count {
            let (client, url) = (client(Some(address(number)))?, url.clone());
            clients.spawn(async move { fetch(&client, &url).await });
        }
        let mut bytes = 0;
        while let Some(done) = clients.join_next().await {
            bytes += done.context("a client of the bench")??;
        }
        let mib = as_f64(bytes) / MIB;
        Ok(Readers {
            rate: mib / begun.elapsed().as_secs_f64(),
            cpu_for_gib: (cpu_seconds(pid)? - cpu) / mib * 1024.0,
        })
    }

    async fn hosts(&self, count: usize) -> anyhow::Result<Vec<Neighbour>> {
        let mut hosts = Vec::new();
        for number in (0u8..).take(count) {
            let host_of = Neighbour::create(&format!("machines{number}")).await?;
            let name = format!("m{number}");
            host_of
                .plug(&self.network, &name, host(100 + number), 24)
                .await?;
            hosts.push(host_of);
        }
        Ok(hosts)
    }

    fn power_on(&self, number: u16, host: &Neighbour) -> anyhow::Result<Installer> {
        let folder = self.stage.build.join(format!("machine-{number}"));
        fs::create_dir(&folder).context("make a machine's folder")?;
        let disk = folder.join("disk");
        let file = fs::File::create(&disk).context("make a disk")?;
        file.set_len(DISK).context("make a disk")?;
        let facts = folder.join("facts.json");
        // Beyond the machines that wait.
        let text = serde_json::to_vec(&self::facts(WAITING + number)).context("encode facts")?;
        fs::write(&facts, text).context("write a machine's facts")?;
        let program = std::path::absolute(self.stage.programs.join("leap-installer"))
            .context("name leap-installer")?;
        let tool = host
            .tool(&program.display().to_string(), ["--no-init", "--once"])
            .args(["--factory", &base()])
            .arg("--disk")
            .arg(&disk)
            .arg("--facts")
            .arg(&facts)
            .arg("--trust-root")
            .arg(self.stage.build.join("keys/trust-root.json"));
        let log = folder.join("console.log");
        let process = Recipe::new("leap-installer", tool, &log).start()?;
        Ok(Installer {
            process,
            screen: LogTail::from_start(&log),
            log,
            disk,
        })
    }
}

struct Readers {
    rate: f64,
    cpu_for_gib: f64,
}

struct Installer {
    process: Process,
    screen: LogTail,
    log: PathBuf,
    disk: PathBuf,
}

impl Installer {
    async fn says(&mut self, text: &str) -> anyhow::Result<()> {
        let Self {
            process, screen, ..
        } = self;
        let alive = || process.alive();
        screen.wait_for(&[text], PATIENCE, alive).await.map(drop)
    }

    async fn code(&mut self) -> anyhow::Result<String> {
        self.says("leapserv: code ").await?;
        super::birth::code_on_screen(&self.log)
    }

    async fn born(&mut self) -> anyhow::Result<()> {
        let what = "an installer's end";
        let process = &mut self.process;
        let status = wait::until(what, PATIENCE, || {
            let ended = process.ended();
            async move { Ok(ended) }
        })
        .await?;
        if !status.success() {
            let said = crate::lab::log::last_lines(&self.log, 12);
            bail!("an installer ended, {status}; it said:\n{said}");
        }
        let said = fs::read_to_string(&self.log).context("read a console")?;
        ensure!(said.contains("leapserv: born "), "not born:\n{said}");
        Ok(())
    }

    /// MiB that the disk takes: its file has holes where nothing was written.
    fn written(&self) -> anyhow::Result<f64> {
        let found = fs::metadata(&self.disk).context("look at a disk")?;
        Ok(as_f64(found.blocks() * 512) / MIB)
    }
}

/// One of the machines that wait: its installer's calls, without the rest of it.
struct Waiting {
    number: u16,
    keys: DeviceKeys,
    fetches: Option<String>,
    /// Machines whose verdict is waited for, at this moment.
    asked: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
}

impl Waiting {
    /// Waits until it is told to end; one that fetches ends after that. Returns how many
    /// root images were fetched.
    async fn live(self) -> anyhow::Result<usize> {
        let client = client(Some(address(self.number)))?;
        let machine = format!("a machine at {}", address(self.number));
        let recipient = format!("age1{:058}", self.number);
        let announcement = Announcement {
            facts: facts(self.number),
            keys: DeviceKeys {
                recipient,
                ..self.keys.clone()
            },
            installer: "bench".to_owned(),
        };
        let url = format!("{}/v1/machines", base());
        let answer = client.post(&url).json(&announcement).send().await;
        let answer = answer.with_context(|| format!("announce {machine}"))?;
        let status = answer.status();
        let text = answer.text().await.context("read an answer")?;
        ensure!(status.is_success(), "announce {machine}: {status}: {text}");
        let view: MachineView = serde_json::from_str(&text).context("expected a machine")?;
        let code = MachineCode::of(&announcement.keys);
        ensure!(
            view.code == code,
            "announced {code}, known as {}",
            view.code
        );

        let poll = async {
            while !self.over.load(Ordering::Relaxed) {
                let url = format!("{url}/{code}/verdict?wait=50");
                let answer = client.get(url).send().await;
                let answer = answer.with_context(|| format!("verdict of {machine}"))?;
                let status = answer.status();
                let text = answer.text().await.context("read a verdict")?;
                ensure!(
                    status.is_success(),
                    "verdict of {machine}: {status}: {text}"
                );
                ensure!(text.contains("held"), "verdict of {machine}: {text}");
            }
            Ok(0)
        };
        self.asked.fetch_add(1, Ordering::Relaxed);
        let fetch = async {
            let Some(root) = &self.fetches else {
                return std::future::pending().await;
            };
            // Not before all are there: what counts is all of it at once.
            wait::until("the others", PATIENCE, || async {
                let asked = self.asked.load(Ordering::Relaxed);
                Ok((asked == usize::from(WAITING)).then_some(()))
            })
            .await?;
            fetch(&client, root).await?;
            anyhow::Ok(1)
        };
        tokio::select! {
            ended = poll => ended,
            fetched = fetch => fetched,
        }
    }
}

fn base() -> String {
    format!("http://{}:8080", factory_address())
}

/// The address of a machine that is this program.
fn address(number: u16) -> Ipv4Addr {
    let [high, low] = (number + 256).to_be_bytes();
    Ipv4Addr::new(10, 78, high, low)
}

fn client(from: Option<Ipv4Addr>) -> anyhow::Result<Client> {
    tls::install_provider();
    let client = Client::builder().tls_certs_only([]).no_proxy();
    client
        .local_address(from.map(Into::into))
        .read_timeout(Duration::from_secs(90))
        .build()
        .context("make a client")
}

/// Returns how many bytes came.
async fn fetch(client: &Client, url: &str) -> anyhow::Result<u64> {
    let mut answer = client.get(url).send().await?.error_for_status()?;
    let told = answer.content_length();
    let mut bytes = 0;
    while let Some(piece) = answer.chunk().await? {
        bytes += u64::try_from(piece.len())?;
    }
    ensure!(told.is_none_or(|told| told == bytes), "{url}: cut short");
    Ok(bytes)
}

/// One key for all: what tells the machines that wait apart is their recipient.
fn keys(folder: &Path) -> anyhow::Result<DeviceKeys> {
    let csr = Tool::new("openssl")
        .args(["req", "-new", "-newkey", "ec", "-nodes", "-batch"])
        .args(["-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-subj", "/CN=machine", "-keyout"])
        .arg(folder.join("machine.key"))
        .text()?;
    let public_key: Digest = tls::ca::csr_public_key(&csr)?;
    Ok(DeviceKeys {
        csr,
        public_key,
        recipient: String::new(),
        tpm: None,
    })
}

fn facts(number: u16) -> MachineFacts {
    let [high, low] = number.to_be_bytes();
    MachineFacts {
        serial: format!("BENCH-{number:04}"),
        uuid: format!("6c656170-0000-4000-8000-00000000{number:04x}"),
        product: "bench".to_owned(),
        cpu: "bench".to_owned(),
        cpus: 2,
        memory: 2 << 30,
        disks: vec![DiskFacts {
            path: "/dev/vda".to_owned(),
            serial: format!("DISK-{number:04}"),
            model: "file".to_owned(),
            size: DISK,
            removable: false,
            content: DiskContent::Empty,
            health: None,
        }],
        nics: vec![NicFacts {
            name: "eth0".to_owned(),
            mac: MacAddr([0x52, 0x54, 0, 0xbe, high, low]),
            link: true,
        }],
        firmware: "uefi".to_owned(),
        secure_boot: false,
        tpm: false,
        findings: Vec::new(),
    }
}

fn figure(what: impl Into<String>, unit: &'static str, ours: f64) -> Figure {
    Figure {
        what: what.into(),
        unit,
        ours,
        peer: None,
        aim: None,
    }
}

/// MiB a second of one file that is written from its begin to its end and made durable.
fn write_rate(path: &Path) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let count = FLOOR >> 20;
    Tool::new("dd")
        .args(["if=/dev/zero", "bs=1M", "conv=fdatasync", "status=none"])
        .arg(format!("count={count}"))
        .arg(format!("of={}", path.display()))
        .run()?;
    let seconds = begun.elapsed().as_secs_f64();
    fs::remove_file(path).context("remove what was written")?;
    Ok(as_f64(count) / seconds)
}

/// A line of a process's status, in MiB: `VmRSS` now, `VmHWM` at its peak.
fn memory(pid: u32, name: &str) -> anyhow::Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).context("look at the factory")?;
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    let kib = value.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    Ok(as_f64(kib.with_context(|| format!("no {name}"))?) / 1024.0)
}

/// Seconds that a process has used of the processors.
fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).context("look at the factory")?;
    // The name, in parentheses, may hold anything.
    let (_, fields) = text.rsplit_once(')').context("stat: has no name")?;
    let fields: Vec<_> = fields.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok());
    let (user, system) = (ticks(11), ticks(12));
    let both = user.zip(system).map(|(user, system)| user + system);
    Ok(as_f64(both.context("stat: expected numbers")?) / TICKS)
}

/// Seconds that programs of ours have used of the processors that have ended.
fn cpu_of_children() -> anyhow::Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("ask for the use of processors")?;
    let both = usage.user_time() + usage.system_time();
    let micros = u64::try_from(both.num_microseconds()).context("a time before all times")?;
    Ok(Duration::from_micros(micros).as_secs_f64())
}

/// Time of all processors, and how much of it was idle or waited for a disk.
fn busy() -> anyhow::Result<(f64, f64)> {
    let text = fs::read_to_string("/proc/stat").context("look at the processors")?;
    let line = text.lines().next().context("stat: is empty")?;
    let ticks: Vec<f64> = line
        .split_whitespace()
        .skip(1)
        .filter_map(|text| text.parse().ok())
        .collect();
    ensure!(ticks.len() >= 8, "stat: expected eight numbers");
    Ok((ticks[..8].iter().sum(), ticks[3] + ticks[4]))
}

fn busy_since((all, idle): &(f64, f64)) -> anyhow::Result<f64> {
    let now = busy()?;
    Ok(1.0 - (now.1 - idle) / (now.0 - all).max(1.0))
}

/// Bytes that the bridge has sent to the hosts so far.
fn sent(hosts: usize) -> anyhow::Result<f64> {
    let mut sum = 0;
    for number in 0..hosts {
        let path = format!("/sys/class/net/to-m{number}/statistics/tx_bytes");
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        sum += text.trim().parse::<u64>().context("expected a number")?;
    }
    Ok(as_f64(sum))
}

#[expect(
    clippy::cast_precision_loss,
    reason = "figures for people, far below 2^52"
)]
fn as_f64(number: u64) -> f64 {
    number as f64
}
