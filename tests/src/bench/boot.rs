//! What network boot takes: our DHCP and TFTP beside Kea, dnsmasq and atftpd.
//!
//! Server and clients are on the two ends of one virtual cable, in a laboratory. Each
//! server is a process of its own and gets the same questions from the same clients.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use edge::exit;
use edge::progress::Bar;
use edge::runner::Tool;

use super::Figure;
use crate::lab::process::{Process, Recipe};
use crate::lab::wait;

mod client;
mod server;

pub use client::{Fetched, Wanted, fetch};
pub use server::serve;

/// Address of the server; its clients are in 10.66.0.0/16.
pub const SERVER: &str = "10.66.0.1";
/// The server's end of the cable.
const INTERFACE: &str = "boot0";
/// The network namespace of the clients.
const CLIENTS: &str = "clients";
/// The file of one client, and that of each of many.
const BIG: u64 = 128 << 20;
const EACH: u64 = 30 << 20;
/// Clients at once.
const MANY: u32 = 100;
/// Where a client puts what it fetches: in memory, in the laboratory's own `/run`.
const GOT: &str = "/run/got";
/// Leases that are no leases: in memory, gone with the laboratory.
const LEASES: &str = "/run/leases";
/// Seconds of one load of DHCP.
const LOAD: u64 = 4;
/// Messages that a server may leave without answer, in percent.
const DROPS: f64 = 1.0;
/// How often one client fetches the file; the best counts.
const ROUNDS: usize = 3;

/// The programs that are measured or measure, with their Debian packages.
const NEEDED: &[(&str, &str)] = &[
    ("perfdhcp", "kea-admin"),
    ("kea-dhcp4", "kea-dhcp4-server"),
    ("dnsmasq", "dnsmasq-base"),
    ("atftpd", "atftpd"),
    ("atftp", "atftp"),
    ("curl", "curl"),
];

/// Who serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Ours,
    /// With the leases in memory, where making them durable costs nothing: what is left
    /// of a slow or busy disk's share.
    OursInMemory,
    Kea,
    Dnsmasq,
    Atftpd,
}

/// What is measured with, and where.
#[derive(Debug)]
struct Bench<'a> {
    work: &'a Path,
    /// This program, which is also our server and the many clients.
    this: PathBuf,
}

/// Measures inside a laboratory.
///
/// # Errors
/// A program is missing, with the package that has it; or a server or client failed.
pub async fn measure(work: &Path) -> anyhow::Result<Vec<Figure>> {
    check_programs()?;
    let folder = tempfile::Builder::new()
        .prefix("boot-")
        .tempdir_in(work)
        .with_context(|| format!("make a folder in {}", work.display()))?;
    let bench = Bench {
        work: folder.path(),
        this: std::env::current_exe().context("find this program")?,
    };
    bench.cable()?;
    let mut figures = bench.dhcp().await?;
    figures.extend(bench.tftp().await?);
    Ok(figures)
}

fn check_programs() -> anyhow::Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places: Vec<_> = std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .collect();
    for (program, package) in NEEDED {
        if !places.iter().any(|place| place.join(program).is_file()) {
            return Err(exit::hint(
                exit::marked(
                    exit::Kind::Environment,
                    format!("{program} is missing, which our servers are compared with"),
                ),
                format!("apt-get install {package}"),
            ));
        }
    }
    Ok(())
}

impl Bench<'_> {
    /// Lays the cable.
    fn cable(&self) -> anyhow::Result<()> {
        for line in [
            "netns add clients",
            "link add boot0 type veth peer name eth0 netns clients",
            "addr add 10.66.0.1/16 dev boot0",
            "link set boot0 up",
            "-n clients link set lo up",
            "-n clients link set eth0 up",
        ] {
            Tool::new("ip").args(line.split(' ')).run()?;
        }
        // Servers limit what one address may have at once: each client has its own.
        let addresses = (2..2 + MANY).map(|last| format!("addr add 10.66.0.{last}/16 dev eth0\n"));
        Tool::new("ip")
            .args(["-n", CLIENTS, "-batch", "-"])
            .stdin_bytes(addresses.collect::<String>())
            .run()?;
        std::fs::create_dir(self.work.join("root")).context("make the folder that is served")?;
        for (name, length) in [("big", BIG), ("each", EACH)] {
            let path = self.work.join("root").join(name);
            let mut bytes = Vec::new();
            // No two blocks alike.
            for number in 0..length / 8 {
                bytes.extend_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
            }
            std::fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(())
    }

    fn client(&self, program: impl AsRef<std::ffi::OsStr>) -> Tool {
        let tool = Tool::new("ip").args(["netns", "exec", CLIENTS]);
        tool.arg(program).current_dir(self.work)
    }

    /// Starts a server with nothing remembered, and waits until it answers.
    async fn start(&self, who: Who) -> anyhow::Result<Process> {
        let root = self.work.join("root");
        let state = self.work.join("state");
        drop(std::fs::remove_file(LEASES));
        if state.exists() {
            std::fs::remove_dir_all(&state).context("remove what the last server kept")?;
        }
        std::fs::create_dir(&state).context("make a folder for the server")?;
        let leases = state.join("leases");
        let (name, tool) = match who {
            Who::Ours | Who::OursInMemory => {
                let leases = match who {
                    Who::OursInMemory => PathBuf::from(LEASES),
                    _ => leases,
                };
                let tool = Tool::new(&self.this)
                    .args(["serve-boot", "--interface", INTERFACE, "--server", SERVER])
                    .arg("--root")
                    .arg(&root)
                    .arg("--leases")
                    .arg(&leases);
                ("leapserv", tool)
            }
            Who::Kea => {
                let config = state.join("kea.json");
                std::fs::write(&config, kea(&leases)).context("configure Kea")?;
                let tool = Tool::new("kea-dhcp4").arg("-c").arg(config);
                let tool = tool.env("KEA_PIDFILE_DIR", &state);
                ("kea-dhcp4", tool.env("KEA_LOCKFILE_DIR", &state))
            }
            Who::Dnsmasq => {
                let tool = Tool::new("dnsmasq")
                    .args(["--keep-in-foreground", "--conf-file=/dev/null", "--port=0"])
                    .args(["--bind-dynamic", "--user=root", "--no-ping", "--no-hosts"])
                    .args(["--dhcp-authoritative", "--dhcp-lease-max=100000"])
                    .args(["--quiet-dhcp", "--quiet-tftp", "--log-facility=-"])
                    .arg("--dhcp-range=10.66.1.0,10.66.255.250,255.255.0.0,1h")
                    .arg(format!("--interface={INTERFACE}"))
                    .arg(format!("--dhcp-leasefile={}", leases.display()))
                    .args(["--enable-tftp", "--tftp-max=200"])
                    .arg(format!("--tftp-root={}", root.display()));
                ("dnsmasq", tool)
            }
            Who::Atftpd => {
                let tool = Tool::new("atftpd")
                    .args(["--daemon", "--no-fork", "--user", "root", "--group", "root"])
                    .args([
                        "--bind-address",
                        SERVER,
                        "--port",
                        "69",
                        "--maxthread",
                        "200",
                    ])
                    .args(["--verbose=3", "--logfile=-"])
                    .arg(&root);
                ("atftpd", tool)
            }
        };
        let log = self.work.join(format!("{name}.log"));
        let mut process = Recipe::new(name, tool, log).start()?;
        let port = match who {
            Who::Atftpd => 69,
            Who::Ours | Who::OursInMemory | Who::Kea | Who::Dnsmasq => 67,
        };
        let what = format!("{name} on port {port}");
        wait::until(&what, Duration::from_secs(20), || {
            let state = process.alive().and_then(|()| is_bound(port));
            async move { state.map(|bound| bound.then_some(())) }
        })
        .await?;
        Ok(process)
    }

    async fn stop(&self, mut process: Process) -> anyhow::Result<()> {
        process.signal(rustix::process::Signal::KILL)?;
        wait::until("a server's end", Duration::from_secs(10), || {
            let ended = process.ended().map(drop);
            async move { Ok(ended) }
        })
        .await
    }

    async fn dhcp(&self) -> anyhow::Result<Vec<Figure>> {
        let mut rates = Vec::new();
        for who in [Who::Ours, Who::Kea, Who::OursInMemory, Who::Dnsmasq] {
            let bar = Bar::spinner(&format!("DHCP: {who:?}"));
            rates.push(self.exchanges(who).await?);
            bar.finish();
        }
        let figure = |what: &str, peer: f64, aim: Option<f64>| Figure {
            what: format!("DHCP four-way exchanges, at most 1 % dropped, beside {what}"),
            unit: "1/s",
            ours: rates[0],
            peer: Some(peer),
            aim,
        };
        Ok(vec![
            figure("Kea, memfile", rates[1], Some(rates[1] * 2.0)),
            Figure {
                ours: rates[2],
                ..figure("Kea, ours with leases in memory", rates[1], None)
            },
            figure("dnsmasq", rates[3], None),
        ])
    }

    /// The most exchanges a second of which a server drops no more than is allowed.
    async fn exchanges(&self, who: Who) -> anyhow::Result<f64> {
        let (mut good, mut bad) = (0u32, None);
        let mut best = 0f64;
        let mut rate = 250;
        // Doubled until too much, then four times halved.
        for _ in 0..16 {
            let mut loaded = self.fresh_load(who, rate).await?;
            if loaded.1 > DROPS {
                // Once more: the machine may have been busy with something else.
                loaded = self.fresh_load(who, rate).await?;
            }
            let (reached, drops) = loaded;
            if drops <= DROPS {
                good = rate;
                best = best.max(reached);
                // The load itself has an end: perfdhcp cannot ask faster.
                if reached < f64::from(rate) * 0.8 {
                    break;
                }
            } else {
                bad = Some(rate);
            }
            rate = match bad {
                None => rate * 2,
                Some(bad) if bad - good <= good / 12 => break,
                Some(bad) => good.midpoint(bad),
            };
        }
        ensure!(
            best > 0.0,
            "{who:?} answers not even 250 exchanges a second"
        );
        Ok(best)
    }

    async fn fresh_load(&self, who: Who, rate: u32) -> anyhow::Result<(f64, f64)> {
        let process = self.start(who).await?;
        let (reached, drops) = self.load(rate)?;
        self.stop(process).await?;
        tracing::info!(?who, rate, reached, drops, "DHCP load");
        Ok((reached, drops))
    }

    /// Exchanges a second, and the worse of the two shares of drops in percent.
    fn load(&self, rate: u32) -> anyhow::Result<(f64, f64)> {
        let tool = self
            .client("perfdhcp")
            .args(["-4", "-l", "eth0", "-R", "50000", "-W", "500000"])
            .args(["-r", &rate.to_string(), "-p", &LOAD.to_string()])
            .arg(SERVER);
        // It ends with 3 where something was dropped.
        let output = tool.command().output();
        let output = output.with_context(|| format!("start {}", tool.line()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        read_load(&text).with_context(|| {
            let said = String::from_utf8_lossy(&output.stderr);
            format!("{}: {text}{said}", tool.line())
        })
    }

    async fn tftp(&self) -> anyhow::Result<Vec<Figure>> {
        let mut ours = Vec::new();
        let process = self.start(Who::Ours).await?;
        for window in [1, 8, 32] {
            ours.push(self.one("atftp", window)?);
        }
        let ours_curl = self.one("curl", 1)?;
        let ours_many = self.many()?;
        self.stop(process).await?;

        let process = self.start(Who::Atftpd).await?;
        let mut theirs = Vec::new();
        for window in [1, 8, 32] {
            theirs.push(self.one("atftp", window)?);
        }
        let atftpd_many = self.many()?;
        self.stop(process).await?;

        let process = self.start(Who::Dnsmasq).await?;
        let dnsmasq = self.one("curl", 1)?;
        let dnsmasq_many = self.many()?;
        self.stop(process).await?;

        let figure = |what: String, ours: f64, peer: f64| Figure {
            what,
            unit: "MB/s",
            ours,
            peer: Some(peer),
            aim: Some(peer * 1.3),
        };
        let mut figures = Vec::new();
        for (at, window) in [1, 8, 32].into_iter().enumerate() {
            figures.push(figure(
                format!("TFTP, atftp, 128 MiB, blocks of 1,468, window {window}, beside atftpd"),
                ours[at],
                theirs[at],
            ));
        }
        figures.push(figure(
            "TFTP, curl, 128 MiB, blocks of 1,468, beside dnsmasq".to_owned(),
            ours_curl,
            dnsmasq,
        ));
        for (peer, theirs) in [("atftpd", atftpd_many), ("dnsmasq", dnsmasq_many)] {
            figures.push(Figure {
                unit: "failed of 100",
                ..figure(
                    format!("TFTP, 100 clients, 30 MiB each, beside {peer}"),
                    f64::from(ours_many.failed),
                    f64::from(theirs.failed),
                )
            });
            figures.push(figure(
                format!("TFTP, 100 clients, 30 MiB each, window 8, together, beside {peer}"),
                ours_many.rate(),
                theirs.rate(),
            ));
        }
        for figure in figures.iter_mut().filter(|figure| figure.unit != "MB/s") {
            figure.aim = Some(0.0);
        }
        Ok(figures)
    }

    /// MB a second of one client, the best of some.
    fn one(&self, client: &str, window: u32) -> anyhow::Result<f64> {
        let tool = match client {
            "curl" => self
                .client("curl")
                .args(["--silent", "--show-error", "--tftp-blksize", "1468"])
                .args(["--output", GOT])
                .arg(format!("tftp://{SERVER}/big")),
            _ => self
                .client("atftp")
                .args(["--option", "blksize 1468"])
                .args(["--option", &format!("windowsize {window}")])
                .args(["--get", "--remote-file", "big", "--local-file", GOT])
                .args([SERVER, "69"]),
        };
        let mut best = 0f64;
        for _ in 0..ROUNDS {
            let bar = Bar::spinner(&format!("TFTP: {client}, window {window}"));
            let begun = Instant::now();
            tool.run()?;
            let seconds = begun.elapsed().as_secs_f64();
            bar.finish();
            let length = std::fs::metadata(GOT);
            let length = length.context("look at what was fetched")?.len();
            ensure!(length == BIG, "{client} fetched {length} bytes of {BIG}");
            best = best.max(mega(length) / seconds);
        }
        Ok(best)
    }

    fn many(&self) -> anyhow::Result<Fetched> {
        let bar = Bar::spinner("TFTP: 100 clients");
        let text = self
            .client(&self.this)
            .args(["fetch-boot", "--server", SERVER, "--path", "each"])
            .args(["--first", "10.66.0.2", "--window", "8"])
            .args(["--clients", &MANY.to_string()])
            .args(["--bytes", &EACH.to_string()])
            .text()?;
        bar.finish();
        let fetched: Fetched = serde_json::from_str(&text).context("the clients: expected JSON")?;
        if let Some(problem) = &fetched.problem {
            tracing::warn!(failed = fetched.failed, problem, "TFTP clients failed");
        }
        Ok(fetched)
    }
}

/// Bytes as MB.
#[allow(clippy::cast_precision_loss, reason = "a figure for people")]
fn mega(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// Tells whether some socket of this namespace has a UDP port.
fn is_bound(port: u16) -> anyhow::Result<bool> {
    let table = std::fs::read_to_string("/proc/net/udp").context("read the table of sockets")?;
    let wanted = format!(":{port:04X}");
    let local = |line: &str| Some(line.split_whitespace().nth(1)?.ends_with(&wanted));
    Ok(table.lines().any(|line| local(line) == Some(true)))
}

fn kea(leases: &Path) -> String {
    serde_json::json!({ "Dhcp4": {
        "interfaces-config": { "interfaces": [INTERFACE], "dhcp-socket-type": "raw" },
        "lease-database": {
            "type": "memfile", "persist": true, "name": leases, "lfc-interval": 0
        },
        "valid-lifetime": 3600,
        "subnet4": [{
            "subnet": "10.66.0.0/16",
            "pools": [{ "pool": "10.66.1.0-10.66.255.250" }]
        }],
        "loggers": [{ "name": "kea-dhcp4", "severity": "ERROR",
            "output_options": [{ "output": "stdout" }] }]
    }})
    .to_string()
}

/// Reads what perfdhcp prints at its end.
fn read_load(text: &str) -> anyhow::Result<(f64, f64)> {
    let numbers = |name: &str| -> Vec<f64> {
        let lines = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix(name));
        lines
            .filter_map(|rest| rest.split_whitespace().next()?.parse().ok())
            .collect()
    };
    let (rate, sent, dropped) = (
        numbers("Rate:"),
        numbers("sent packets:"),
        numbers("drops:"),
    );
    let (Some(rate), false) = (rate.first(), sent.is_empty() || sent.len() != dropped.len()) else {
        bail!("expected a rate, and packets sent and dropped");
    };
    let shares = sent.iter().zip(&dropped);
    let worst = shares
        .map(|(sent, dropped)| {
            if *sent > 0.0 {
                dropped / sent * 100.0
            } else {
                100.0
            }
        })
        .fold(0.0, f64::max);
    Ok((*rate, worst))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn perfdhcp_is_understood() {
        let text = "Running: perfdhcp\n***Rate statistics***\n\
            Rate: 995.8 4-way exchanges/second, expected rate: 1000\n\n\
            ***Statistics for: DISCOVER-OFFER***\nsent packets: 4000\n\
            received packets: 3999\ndrops: 1\norphans: 0\n\
            ***Statistics for: REQUEST-ACK***\nsent packets: 3999\n\
            received packets: 3959\ndrops: 40\n";
        let (rate, drops) = read_load(text).unwrap();
        assert!((rate - 995.8).abs() < 1e-9);
        assert!((drops - 40.0 / 39.99).abs() < 1e-9);
        assert!(read_load("nothing").is_err());
        let none = text
            .replace("4000", "0")
            .replace("drops: 1\n", "drops: 0\n");
        assert!(read_load(&none).unwrap().1 >= 100.0);
    }
}
