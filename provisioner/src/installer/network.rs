//! The bare machine's network: ports up, an address by DHCP, the factory found.
//!
//! The DHCP client is busybox's. It calls this program back with what it
//! learned; that is written to a file for each port.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use edge::runner::Tool;
use jiff::Timestamp;
use model::pass::StickSettings;
use serde::{Deserialize, Serialize};

use tokio::net::UdpSocket;

use super::console::Console;
use super::facts;
use super::install::PATH;
use super::link::{Link, Patience};
use crate::WHO_IS_FACTORY;

/// Folder of what DHCP told.
const LEASES: &str = "/run/leapserv/leases";
/// How long to wait for ports to appear.
const PORTS: Duration = Duration::from_secs(60);
/// How long to look for a factory.
const FACTORY: Duration = Duration::from_secs(300);
/// Port of a factory.
const FACTORY_PORT: u16 = 8080;
/// How long to wait for the answer to [`WHO_IS_FACTORY`].
const ANSWER: Duration = Duration::from_millis(500);
/// How long one try to reach the sky may take.
const SKY_ANSWER: Duration = Duration::from_secs(10);
/// Where the C library finds the name servers.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Kernel parameter that names the factory.
const PARAMETER: &str = "leapserv.factory=";

/// What DHCP told for one port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Our address.
    pub address: Ipv4Addr,
    /// Length of the network's prefix.
    pub prefix: u8,
    /// Default gateway.
    pub router: Option<Ipv4Addr>,
    /// The next server, which serves boot files.
    pub next_server: Option<Ipv4Addr>,
    /// The DHCP server.
    pub server: Option<Ipv4Addr>,
    /// Who knows names.
    #[serde(default)]
    pub name_servers: Vec<Ipv4Addr>,
}

impl Lease {
    /// Takes a lease out of the environment in which busybox calls back.
    ///
    /// # Errors
    /// There is no usable address in it.
    pub fn of(environment: &BTreeMap<String, String>) -> Result<Self> {
        let address = |name: &str| -> Option<Ipv4Addr> {
            let first = environment.get(name)?.split_whitespace().next()?;
            first
                .parse()
                .ok()
                .filter(|a: &Ipv4Addr| !a.is_unspecified())
        };
        let prefix = environment.get("mask").and_then(|mask| mask.parse().ok());
        let prefix = prefix
            .or_else(|| {
                let mask: Ipv4Addr = environment.get("subnet")?.parse().ok()?;
                u8::try_from(u32::from(mask).leading_ones()).ok()
            })
            .unwrap_or(24);
        Ok(Self {
            address: address("ip").context("DHCP: no address in the lease")?,
            prefix,
            router: address("router"),
            next_server: address("siaddr"),
            server: address("serverid"),
            name_servers: environment
                .get("dns")
                .map(|text| text.split_whitespace())
                .into_iter()
                .flatten()
                .filter_map(|word| word.parse().ok())
                .collect(),
        })
    }

    /// The address that reaches everybody on the network.
    fn broadcast(&self) -> Ipv4Addr {
        let hosts = u32::MAX.checked_shr(u32::from(self.prefix)).unwrap_or(0);
        Ipv4Addr::from(u32::from(self.address) | hosts)
    }

    /// Where a factory may be, the likeliest first.
    pub fn factories(&self) -> Vec<String> {
        let mut found: Vec<String> = Vec::new();
        for address in [self.next_server, self.server].into_iter().flatten() {
            let url = format!("http://{address}:{FACTORY_PORT}");
            if !found.contains(&url) {
                found.push(url);
            }
        }
        found
    }
}

/// Whether arguments are a call of busybox's DHCP client.
pub fn is_callback(event: &str) -> bool {
    matches!(event, "deconfig" | "bound" | "renew" | "nak" | "leasefail")
}

/// Does what busybox's DHCP client calls its script for.
///
/// # Errors
/// The address cannot be set.
pub fn callback(event: &str) -> Result<()> {
    let environment: BTreeMap<String, String> = std::env::vars().collect();
    let port = environment
        .get("interface")
        .context("DHCP: no interface in the environment")?
        .clone();
    match event {
        "deconfig" => ip(&["addr", "flush", "dev", &port]),
        "bound" | "renew" => {
            let lease = Lease::of(&environment)?;
            let address = format!("{}/{}", lease.address, lease.prefix);
            if event == "bound" {
                ip(&["addr", "flush", "dev", &port])?;
                ip(&["addr", "add", &address, "dev", &port])?;
                if let Some(router) = lease.router {
                    let router = router.to_string();
                    // A second port's default route is not needed.
                    drop(ip(&[
                        "route", "add", "default", "via", &router, "dev", &port,
                    ]));
                }
            }
            let path = Path::new(LEASES).join(&port);
            edge::durable::write_json(&path, &lease, edge::durable::Mode::Public)
        }
        _ => Ok(()),
    }
}

fn ip(args: &[&str]) -> Result<()> {
    Tool::new("busybox")
        .arg("ip")
        .args(args)
        .env("PATH", PATH)
        .run()
}

/// The DHCP clients of all ports. Dropped, they end.
#[derive(Debug, Default)]
pub struct Clients(BTreeMap<String, Child>);

impl Drop for Clients {
    fn drop(&mut self) {
        for client in self.0.values_mut() {
            drop(client.kill());
            drop(client.wait());
        }
    }
}

impl Clients {
    /// Brings up ports that have appeared and asks for addresses on them.
    fn start_new(&mut self, console: &Console) -> Result<()> {
        let this = std::env::current_exe().context("find this program")?;
        for port in facts::ports(Path::new("/")) {
            if self.0.contains_key(&port) {
                continue;
            }
            ip(&["link", "set", &port, "up"])?;
            let client = Tool::new("busybox")
                .args(["udhcpc", "-f", "-t", "6", "-T", "2", "-A", "3"])
                .args(["-V", "leapserv-installer", "-i", &port, "-s"])
                .arg(&this)
                .env("PATH", PATH)
                .spawn_logged(&PathBuf::from(format!("/run/leapserv/udhcpc.{port}.log")))?;
            console.line(&format!("port {port} asks for an address"));
            self.0.insert(port, client);
        }
        Ok(())
    }
}

/// Finds the factory: the kernel's parameter, or who gave us our address.
///
/// # Errors
/// There is no port, or no factory answers for minutes.
pub async fn find_factory(
    console: &Console,
    patience: Patience,
    clients: &mut Clients,
) -> Result<Link> {
    std::fs::create_dir_all(LEASES).context("make the folder of leases")?;
    let command_line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let told = parameter(&command_line);
    let began = Instant::now();
    loop {
        clients.start_new(console)?;
        if clients.0.is_empty() && began.elapsed() > PORTS {
            bail!("network: no Ethernet port found; is its driver in the installer?");
        }
        let mut candidates: Vec<String> = told.iter().cloned().collect();
        if told.is_none() {
            let leases = leases();
            candidates.extend(leases.iter().flat_map(Lease::factories));
            // Beside another DHCP server, none of these is the factory.
            for lease in &leases {
                candidates.extend(ask_around(lease).await);
            }
        }
        for base in candidates {
            let link = Link::new(&base, patience, console.clone())?;
            match link.health().await {
                Ok(_) => return Ok(link),
                Err(problem) => {
                    console.line(&format!("factory {base} does not answer: {problem}"));
                }
            }
        }
        if began.elapsed() > FACTORY {
            bail!("network: no factory answers; are cable, switch and leap-provisioner well?");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Finds the sky that a stick names, over whatever port reaches it, and returns its time.
///
/// # Errors
/// There is no port, or the sky does not answer for minutes.
pub async fn find_sky(
    console: &Console,
    settings: &StickSettings,
    clients: &mut Clients,
) -> Result<Timestamp> {
    std::fs::create_dir_all(LEASES).context("make the folder of leases")?;
    let began = Instant::now();
    let mut problem = "no address by DHCP".to_owned();
    loop {
        clients.start_new(console)?;
        if clients.0.is_empty() && began.elapsed() > PORTS {
            bail!("network: no Ethernet port found; is its driver in the installer?");
        }
        let leases = leases();
        if !leases.is_empty() {
            std::fs::write(RESOLV_CONF, resolv_conf(&leases)).context("name the name servers")?;
            match tls::time::told_by(&settings.sky, &settings.ca, SKY_ANSWER).await {
                Ok(time) => return Ok(time),
                Err(error) => problem = format!("{error:#}"),
            }
            console.line(&format!("sky does not answer: {problem}"));
        }
        if began.elapsed() > FACTORY {
            bail!("network: the sky is not reached: {problem}; are cable and router well?");
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// The resolver's file (resolv.conf(5)): at most three servers count.
fn resolv_conf(leases: &[Lease]) -> String {
    let mut servers: Vec<_> = leases.iter().flat_map(|it| &it.name_servers).collect();
    servers.dedup();
    let lines = servers
        .iter()
        .map(|server| format!("nameserver {server}\n"));
    lines.take(3).collect()
}

/// Asks everybody on a network whether they are a factory. Who answers is only
/// a candidate.
async fn ask_around(lease: &Lease) -> Option<String> {
    let socket = UdpSocket::bind((lease.address, 0)).await.ok()?;
    socket.set_broadcast(true).ok()?;
    let everybody = (lease.broadcast(), FACTORY_PORT);
    socket.send_to(WHO_IS_FACTORY, everybody).await.ok()?;
    let mut answer = [0; 128];
    let heard = tokio::time::timeout(ANSWER, socket.recv(&mut answer)).await;
    let text = std::str::from_utf8(&answer[..heard.ok()?.ok()?]).ok()?;
    text.starts_with("http://").then(|| text.to_owned())
}

fn leases() -> Vec<Lease> {
    let Ok(entries) = std::fs::read_dir(LEASES) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| std::fs::read(entry.path()).ok())
        .filter_map(|bytes| serde_json::from_slice(&bytes).ok())
        .collect()
}

fn parameter(command_line: &str) -> Option<String> {
    command_line
        .split_whitespace()
        .find_map(|word| word.strip_prefix(PARAMETER))
        .filter(|value| !value.is_empty())
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn a_lease_is_read_from_what_busybox_tells() {
        let lease = Lease::of(&environment(&[
            ("ip", "10.77.0.100"),
            ("mask", "24"),
            ("subnet", "255.255.255.0"),
            ("router", "10.77.0.1 10.77.0.2"),
            ("siaddr", "10.77.0.9"),
            ("serverid", "10.77.0.1"),
            ("dns", "10.77.0.1 9.9.9.9"),
        ]))
        .unwrap();
        let servers = "nameserver 10.77.0.1\nnameserver 9.9.9.9\n";
        assert_eq!(resolv_conf(std::slice::from_ref(&lease)), servers);
        assert_eq!(lease.router, Some(Ipv4Addr::new(10, 77, 0, 1)));
        assert_eq!(
            lease.factories(),
            ["http://10.77.0.9:8080", "http://10.77.0.1:8080"]
        );
    }

    #[test]
    fn without_a_next_server_the_dhcp_server_is_asked() {
        let lease = Lease::of(&environment(&[
            ("ip", "10.77.0.100"),
            ("subnet", "255.255.0.0"),
            ("siaddr", "0.0.0.0"),
            ("serverid", "10.77.0.1"),
        ]))
        .unwrap();
        assert_eq!(lease.prefix, 16);
        assert_eq!(lease.factories(), ["http://10.77.0.1:8080"]);
        assert!(Lease::of(&environment(&[])).is_err());
    }

    #[test]
    fn everybody_on_the_network_has_its_address() {
        let mut lease = Lease::of(&environment(&[("ip", "10.77.3.100"), ("mask", "22")])).unwrap();
        assert_eq!(lease.broadcast(), Ipv4Addr::new(10, 77, 3, 255));
        lease.prefix = 32;
        assert_eq!(lease.broadcast(), lease.address);
    }

    #[test]
    fn the_kernel_parameter_names_the_factory() {
        let line = "quiet leapserv.factory=http://10.0.0.1:8080 console=ttyS0";
        assert_eq!(parameter(line).as_deref(), Some("http://10.0.0.1:8080"));
        assert_eq!(parameter("leapserv.factory= quiet"), None);
    }
}
