//! The configuration file of the factory: raw TOML in, checked values out.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use edge::exit::{Classify as _, Failure};
use model::TrustRoot;
use pxe::dhcp::policy;
use serde::Deserialize;

/// Everything that the factory needs to run.
#[derive(Debug)]
pub struct Config {
    /// Network interface of the bench.
    pub interface: String,
    /// Our address on it.
    pub address: Ipv4Addr,
    /// Folder of ledger, leases, stories and the control socket.
    pub state: PathBuf,
    /// Folder of fetched releases and layers.
    pub cache: PathBuf,
    /// Port of HTTP.
    pub http_port: u16,
    /// A UEFI program that starts a machine's own disk, in place of the one
    /// that the factory makes.
    pub local_boot: Option<PathBuf>,
    /// DHCP as `pxe` wants it.
    pub dhcp: policy::Config,
    /// File of leases.
    pub lease_file: PathBuf,
    /// What to do where another DHCP server answers.
    pub other_server: OtherServer,
    /// Where the sky is and how it knows us.
    pub sky: Sky,
    /// The channel whose release is born here.
    pub channel: String,
    /// Whom we believe what a release is.
    pub trust_root: TrustRoot,
}

/// What to do where another DHCP server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtherServer {
    /// Do not start: two servers give one address twice.
    Refuse,
    /// Start all the same: an operator has said that it is right.
    Allow,
}

/// How to reach the sky.
#[derive(Debug)]
pub struct Sky {
    /// `https://HOST:PORT`, without a slash at its end.
    pub url: String,
    /// The CA of its certificate (PEM).
    pub ca: String,
    /// Our bearer token.
    pub token: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    interface: String,
    address: Ipv4Addr,
    #[serde(default = "default_state")]
    state: PathBuf,
    cache: Option<PathBuf>,
    channel: String,
    trust_root: PathBuf,
    local_boot: Option<PathBuf>,
    #[serde(default)]
    http: RawHttp,
    dhcp: RawDhcp,
    sky: RawSky,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHttp {
    #[serde(default = "default_port")]
    port: u16,
}

impl Default for RawHttp {
    fn default() -> Self {
        Self {
            port: default_port(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDhcp {
    mode: RawMode,
    network: Option<String>,
    pool: Option<[Ipv4Addr; 2]>,
    #[serde(default)]
    routers: Vec<Ipv4Addr>,
    #[serde(default)]
    name_servers: Vec<Ipv4Addr>,
    domain: Option<String>,
    #[serde(default = "default_lease")]
    lease_seconds: u32,
    lease_file: Option<PathBuf>,
    #[serde(default)]
    beside_other_server: bool,
    #[serde(default)]
    reservations: std::collections::BTreeMap<model::MacAddr, Ipv4Addr>,
    #[serde(default)]
    local_disk: RawLocalDisk,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RawMode {
    Server,
    Proxy,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RawLocalDisk {
    #[default]
    Loader,
    BootMenu,
    PlainLease,
    Silence,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSky {
    url: String,
    ca: PathBuf,
    token_file: PathBuf,
}

fn default_state() -> PathBuf {
    "/var/lib/leap-provisioner".into()
}

fn default_port() -> u16 {
    8080
}

fn default_lease() -> u32 {
    3600
}

impl Config {
    /// Reads and checks a configuration file and the files that it names.
    /// Relative paths count from the folder of the configuration file.
    ///
    /// # Errors
    /// Kind `InvalidInput`: file, place, and what is expected.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let raw: Raw = edge::toml_file::read(path)?;
        let base = path.parent().unwrap_or(Path::new("."));
        Self::check(raw, base)
            .with_context(|| path.display().to_string())
            .invalid_input()
    }

    fn check(raw: Raw, base: &Path) -> Result<Self> {
        let at = |path: PathBuf| base.join(path);
        let interface = raw.interface;
        if interface.is_empty() || interface.len() > 15 || interface.contains(['/', ' ']) {
            bail!("interface {interface:?}: expected the name of a network interface, like eth1");
        }
        let channel_ok = !raw.channel.is_empty()
            && raw
                .channel
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !channel_ok {
            bail!("channel {:?}: expected a name like stable", raw.channel);
        }
        let url = raw.sky.url.trim_end_matches('/').to_owned();
        if !url.starts_with("https://") {
            bail!("sky.url {url:?}: expected https://HOST:PORT");
        }
        let token = read_text(&at(raw.sky.token_file), "sky.token_file")?;
        if token.trim().is_empty() {
            bail!("sky.token_file: the file is empty, expected the factory's token");
        }
        let trust_text = read_text(&at(raw.trust_root), "trust_root")?;
        let trust_root = serde_json::from_str(&trust_text).context("trust_root: expected JSON")?;
        let local_boot = raw.local_boot.map(at);
        if let Some(path) = local_boot.as_ref().filter(|path| !path.is_file()) {
            bail!("local_boot: no file {}", path.display());
        }
        let state = at(raw.state);
        let lease_file = raw
            .dhcp
            .lease_file
            .clone()
            .map_or_else(|| state.join("leases"), at);
        let other_server = if raw.dhcp.beside_other_server {
            OtherServer::Allow
        } else {
            OtherServer::Refuse
        };
        let dhcp = check_dhcp(raw.dhcp, raw.address, raw.http.port)?;
        Ok(Self {
            interface,
            address: raw.address,
            cache: raw.cache.map_or_else(|| state.join("cache"), at),
            http_port: raw.http.port,
            local_boot,
            dhcp,
            lease_file,
            other_server,
            sky: Sky {
                url,
                ca: read_text(&at(raw.sky.ca), "sky.ca")?,
                token: token.trim().to_owned(),
            },
            channel: raw.channel,
            trust_root,
            state,
        })
    }

    /// The control socket for the operator's commands on this machine.
    pub fn control_socket(&self) -> PathBuf {
        self.state.join("control.sock")
    }
}

fn check_dhcp(raw: RawDhcp, address: Ipv4Addr, port: u16) -> Result<policy::Config> {
    let mode = match raw.mode {
        RawMode::Proxy => {
            if raw.network.is_some() || raw.pool.is_some() {
                bail!("dhcp: mode proxy gives no addresses: remove network and pool");
            }
            policy::Mode::Proxy
        }
        RawMode::Server => {
            let network = raw
                .network
                .ok_or_else(|| anyhow!("dhcp.network: missing, expected like 10.77.0.0/24"))?;
            let bad = || anyhow!("dhcp.network {network:?}: expected like 10.77.0.0/24");
            let (base, prefix) = network.split_once('/').ok_or_else(bad)?;
            let [start, end] = raw
                .pool
                .ok_or_else(|| anyhow!("dhcp.pool: missing, expected two addresses"))?;
            let subnet = policy::Subnet {
                network: base.parse().map_err(|_| bad())?,
                prefix: prefix.parse().map_err(|_| bad())?,
                range: start..=end,
                reservations: raw.reservations,
                routers: raw.routers,
                name_servers: raw.name_servers,
                domain: raw.domain,
                lease: Duration::from_secs(u64::from(raw.lease_seconds.max(60))),
                options: Vec::new(),
            };
            if !subnet.contains(address) {
                bail!("address {address}: not in dhcp.network {network}");
            }
            policy::Mode::Authoritative(vec![subnet])
        }
    };
    let config = policy::Config {
        mode,
        server: address,
        http_base: format!("http://{address}:{port}"),
        local_disk: match raw.local_disk {
            RawLocalDisk::Loader => policy::LocalDiskReply::Loader,
            RawLocalDisk::BootMenu => policy::LocalDiskReply::BootMenu,
            RawLocalDisk::PlainLease => policy::LocalDiskReply::PlainLease,
            RawLocalDisk::Silence => policy::LocalDiskReply::Silence,
        },
    };
    config.check().context("dhcp")?;
    Ok(config)
}

fn read_text(path: &Path, key: &str) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("{key}: read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use edge::exit::Kind;

    const GOOD: &str = r#"
interface = "br0"
address = "10.77.0.1"
state = "state"
channel = "stable"
trust_root = "trust-root.json"

[dhcp]
mode = "server"
network = "10.77.0.0/24"
pool = ["10.77.0.100", "10.77.0.199"]

[sky]
url = "https://10.77.0.2:8443/"
ca = "ca.pem"
token_file = "token"
"#;

    fn read(text: &str) -> Result<Config, Failure> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("factory.toml");
        std::fs::write(&path, text).unwrap();
        std::fs::write(dir.path().join("ca.pem"), "pem").unwrap();
        std::fs::write(dir.path().join("token"), "secret\n").unwrap();
        let root = r#"{"version":1,"roles":{},"recovery":[]}"#;
        std::fs::write(dir.path().join("trust-root.json"), root).unwrap();
        Config::read(&path)
    }

    #[test]
    fn a_good_file_is_read_with_its_defaults() {
        let config = read(GOOD).unwrap();
        assert_eq!(config.http_port, 8080);
        assert_eq!(config.dhcp.http_base, "http://10.77.0.1:8080");
        assert_eq!(config.sky.url, "https://10.77.0.2:8443");
        assert_eq!(config.sky.token, "secret");
        assert!(config.lease_file.ends_with("state/leases"));
        assert_eq!(config.other_server, OtherServer::Refuse);
    }

    #[test]
    fn each_mistake_is_named() {
        let cases = [
            ("channel = \"stable\"", "chanel = \"stable\"", "chanel"),
            ("10.77.0.0/24", "10.77.0.0", "dhcp.network"),
            (
                "address = \"10.77.0.1\"",
                "address = \"10.9.0.1\"",
                "not in dhcp.network",
            ),
            ("10.77.0.199", "10.77.0.50", "is empty"),
            ("10.77.0.100", "10.77.0.1", "own address"),
            ("https://", "http://", "sky.url"),
            ("\"ca.pem\"", "\"none.pem\"", "sky.ca"),
            (
                "mode = \"server\"",
                "mode = \"proxy\"",
                "gives no addresses",
            ),
        ];
        for (good, bad, expected) in cases {
            let failure = read(&GOOD.replace(good, bad)).unwrap_err();
            assert_eq!(failure.kind(), Kind::InvalidInput);
            assert!(failure.to_string().contains(expected), "{bad}: {failure}");
        }
    }
}
