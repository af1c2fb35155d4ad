//! The configuration file of the factory: raw TOML in, checked values out.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use edge::exit::{Classify as _, Failure};
use model::TrustRoot;
use pxe::dhcp::policy;
use pxe::dhcp6;
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
    /// Where HTTP answers installers, as `http://10.77.0.1:8080`.
    pub http_base: String,
    /// Where the metrics are to be had besides the control socket.
    pub metrics: Option<SocketAddr>,
    /// A UEFI program that starts a machine's own disk, in place of the one
    /// that the factory makes.
    pub local_boot: Option<PathBuf>,
    /// iPXE for BIOS, which shows such a machine why it is not born.
    pub ipxe: Option<PathBuf>,
    /// DHCPv4 as `pxe` wants it; `None` where machines boot by IPv6 alone.
    pub dhcp: Option<policy::Config>,
    /// DHCPv6, where machines boot by IPv6 too.
    pub dhcp6: Option<dhcp6::Config>,
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
    ipxe: Option<PathBuf>,
    #[serde(default)]
    http: RawHttp,
    #[serde(default)]
    metrics: RawMetrics,
    dhcp: RawDhcp,
    dhcp6: Option<RawDhcp6>,
    sky: RawSky,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHttp {
    #[serde(default = "default_port")]
    port: u16,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMetrics {
    listen: Option<SocketAddr>,
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
    reservations: BTreeMap<model::MacAddr, Ipv4Addr>,
    #[serde(default)]
    places: Vec<RawPlace>,
    #[serde(default)]
    options: BTreeMap<String, RawOption>,
    #[serde(default)]
    relayed: Vec<RawNetwork>,
    #[serde(default)]
    conflict_check: RawConflictCheck,
    #[serde(default)]
    local_disk: RawLocalDisk,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDhcp6 {
    address: Ipv6Addr,
    #[serde(default)]
    name_servers: Vec<Ipv6Addr>,
    #[serde(default = "default_lease")]
    lease_seconds: u32,
    #[serde(default = "default_true")]
    router_advertisements: bool,
}

/// A network whose machines are heard through a relay.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNetwork {
    network: String,
    pool: [Ipv4Addr; 2],
    #[serde(default)]
    routers: Vec<Ipv4Addr>,
    #[serde(default)]
    name_servers: Vec<Ipv4Addr>,
    domain: Option<String>,
    #[serde(default = "default_lease")]
    lease_seconds: u32,
    #[serde(default)]
    reservations: BTreeMap<model::MacAddr, Ipv4Addr>,
    #[serde(default)]
    places: Vec<RawPlace>,
    #[serde(default)]
    options: BTreeMap<String, RawOption>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPlace {
    circuit: Option<String>,
    remote: Option<String>,
    address: Ipv4Addr,
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected text, \"0x\" with hexadecimal digits, a list of addresses, \
                 or { u8 = 1 }, { u16 = 1 }, { u32 = 1 }"
)]
enum RawOption {
    Text(String),
    Addresses(Vec<Ipv4Addr>),
    Number(RawNumber),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawNumber {
    U8(u8),
    U16(u16),
    U32(u32),
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RawConflictCheck {
    #[default]
    Arp,
    Off,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RawMode {
    Server,
    Proxy,
    Off,
}

#[derive(Clone, Copy, Default, Deserialize)]
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

/// Where Debian's package `ipxe` puts it.
const DEBIAN_IPXE: &str = "/usr/lib/ipxe/undionly.kpxe";

fn default_state() -> PathBuf {
    "/var/lib/leap-provisioner".into()
}

fn default_port() -> u16 {
    8080
}

fn default_lease() -> u32 {
    3600
}

fn default_true() -> bool {
    true
}

impl From<RawLocalDisk> for policy::LocalDiskReply {
    fn from(raw: RawLocalDisk) -> Self {
        match raw {
            RawLocalDisk::Loader => Self::Loader,
            RawLocalDisk::BootMenu => Self::BootMenu,
            RawLocalDisk::PlainLease => Self::PlainLease,
            RawLocalDisk::Silence => Self::Silence,
        }
    }
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
        let metrics = raw.metrics.listen;
        if let Some(listen) = metrics
            && (listen.ip().is_unspecified() || listen.ip() == raw.address)
        {
            bail!(
                "metrics.listen {listen}: machines on the bench would reach it, \
                 expected an address of another network, like 127.0.0.1:9469"
            );
        }
        let local_boot = raw.local_boot.map(at);
        if let Some(path) = local_boot.as_ref().filter(|path| !path.is_file()) {
            bail!("local_boot: no file {}", path.display());
        }
        let ipxe = match raw.ipxe.map(at) {
            Some(path) if !path.is_file() => bail!("ipxe: no file {}", path.display()),
            Some(path) => Some(path),
            None => Some(PathBuf::from(DEBIAN_IPXE)).filter(|path| path.is_file()),
        };
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
        let (address, port) = (raw.address, raw.http.port);
        let local_disk = raw.dhcp.local_disk.into();
        let dhcp6 = raw.dhcp6.map(|raw| check_dhcp6(raw, local_disk, port));
        let dhcp6 = dhcp6.transpose()?;
        let dhcp = check_dhcp(raw.dhcp, address, port)?;
        if dhcp.is_none() && dhcp6.is_none() {
            bail!(
                "dhcp.mode \"off\" without a section dhcp6: nothing would tell machines \
                 what to boot"
            );
        }
        Ok(Self {
            interface,
            address: raw.address,
            cache: raw.cache.map_or_else(|| state.join("cache"), at),
            http_port: port,
            http_base: format!("http://{address}:{port}"),
            metrics,
            local_boot,
            ipxe,
            dhcp,
            dhcp6,
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

fn check_dhcp6(
    raw: RawDhcp6,
    local_disk: policy::LocalDiskReply,
    port: u16,
) -> Result<dhcp6::Config> {
    let config = dhcp6::Config {
        server: raw.address,
        http_base: format!("http://[{}]:{port}", raw.address),
        name_servers: raw.name_servers,
        lease: Duration::from_secs(u64::from(raw.lease_seconds.max(60))),
        local_disk,
        advertise: raw.router_advertisements,
    };
    config.check().context("dhcp6")?;
    Ok(config)
}

fn check_dhcp(raw: RawDhcp, address: Ipv4Addr, port: u16) -> Result<Option<policy::Config>> {
    let gives = raw.network.is_some() || raw.pool.is_some() || !raw.relayed.is_empty();
    let mode = match raw.mode {
        RawMode::Off | RawMode::Proxy if gives => {
            bail!("dhcp: this mode gives no addresses: remove network, pool and relayed");
        }
        RawMode::Off => return Ok(None),
        RawMode::Proxy => policy::Mode::Proxy,
        RawMode::Server => {
            let network = raw
                .network
                .ok_or_else(|| anyhow!("dhcp.network: missing, expected like 10.77.0.0/24"))?;
            let pool = raw
                .pool
                .ok_or_else(|| anyhow!("dhcp.pool: missing, expected two addresses"))?;
            let own = RawNetwork {
                network: network.clone(),
                pool,
                routers: raw.routers,
                name_servers: raw.name_servers,
                domain: raw.domain,
                lease_seconds: raw.lease_seconds,
                reservations: raw.reservations,
                places: raw.places,
                options: raw.options,
            };
            let mut subnets = vec![check_network(own).context("dhcp")?];
            if !subnets[0].contains(address) {
                bail!("address {address}: not in dhcp.network {network}");
            }
            for (at, relayed) in raw.relayed.into_iter().enumerate() {
                let name = relayed.network.clone();
                let subnet =
                    check_network(relayed).with_context(|| format!("dhcp.relayed[{at}]"))?;
                // A relay is told apart by the network that it stands in.
                let inside = |one: &policy::Subnet, other: &policy::Subnet| {
                    one.contains(other.network) || other.contains(one.network)
                };
                if let Some(other) = subnets.iter().find(|other| inside(&subnet, other)) {
                    bail!(
                        "dhcp.relayed[{at}].network {name}: overlaps {}/{}",
                        other.network,
                        other.prefix
                    );
                }
                subnets.push(subnet);
            }
            policy::Mode::Authoritative(subnets)
        }
    };
    let config = policy::Config {
        mode,
        server: address,
        http_base: format!("http://{address}:{port}"),
        local_disk: raw.local_disk.into(),
        conflicts: match raw.conflict_check {
            RawConflictCheck::Arp => policy::ConflictCheck::Arp,
            RawConflictCheck::Off => policy::ConflictCheck::Off,
        },
    };
    config.check().context("dhcp")?;
    Ok(Some(config))
}

fn check_network(raw: RawNetwork) -> Result<policy::Subnet> {
    let network = raw.network;
    let bad = || anyhow!("network {network:?}: expected like 10.77.0.0/24");
    let (base, prefix) = network.split_once('/').ok_or_else(bad)?;
    let [start, end] = raw.pool;
    let place = |place: RawPlace| -> Result<policy::Place> {
        let name = |key: &str, text: Option<String>| {
            let bytes = text.map(|text| bytes_of(&text)).transpose();
            bytes.with_context(|| format!("places: {key} of {}", place.address))
        };
        Ok(policy::Place {
            circuit: name("circuit", place.circuit)?,
            remote: name("remote", place.remote)?,
            address: place.address,
        })
    };
    let option = |(code, value): (String, RawOption)| -> Result<(u8, Vec<u8>)> {
        let name = || format!("options.{code}");
        let number = code
            .parse()
            .map_err(|_| anyhow!("expected a code, 1 to 254"));
        let bytes = match value {
            RawOption::Text(text) => bytes_of(&text).with_context(name)?,
            RawOption::Addresses(all) => all.iter().flat_map(Ipv4Addr::octets).collect(),
            RawOption::Number(RawNumber::U8(number)) => vec![number],
            RawOption::Number(RawNumber::U16(number)) => number.to_be_bytes().to_vec(),
            RawOption::Number(RawNumber::U32(number)) => number.to_be_bytes().to_vec(),
        };
        Ok((number.with_context(name)?, bytes))
    };
    Ok(policy::Subnet {
        network: base.parse().map_err(|_| bad())?,
        prefix: prefix.parse().map_err(|_| bad())?,
        range: start..=end,
        reservations: raw.reservations,
        places: raw.places.into_iter().map(place).collect::<Result<_>>()?,
        routers: raw.routers,
        name_servers: raw.name_servers,
        domain: raw.domain,
        lease: Duration::from_secs(u64::from(raw.lease_seconds.max(60))),
        options: raw.options.into_iter().map(option).collect::<Result<_>>()?,
    })
}

/// Returns the bytes of a text, or those that `0x…` spells.
fn bytes_of(text: &str) -> Result<Vec<u8>> {
    let Some(digits) = text.strip_prefix("0x") else {
        return Ok(text.as_bytes().to_vec());
    };
    let bad = || anyhow!("{text:?}: expected two hexadecimal digits for each byte");
    let pair = |pair: &[u8]| -> Option<u8> {
        let digit = |at: usize| char::from(*pair.get(at)?).to_digit(16);
        u8::try_from(digit(0)? * 16 + digit(1)?).ok()
    };
    let bytes: Option<Vec<u8>> = digits.as_bytes().chunks(2).map(pair).collect();
    bytes.filter(|bytes| !bytes.is_empty()).ok_or_else(bad)
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
        assert_eq!(config.http_base, "http://10.77.0.1:8080");
        assert_eq!(config.dhcp.unwrap().http_base, config.http_base);
        assert_eq!(config.dhcp6, None);
        assert_eq!(config.sky.url, "https://10.77.0.2:8443");
        assert_eq!(config.sky.token, "secret");
        assert!(config.lease_file.ends_with("state/leases"));
        assert_eq!(config.other_server, OtherServer::Refuse);
        assert_eq!(config.metrics, None);
    }

    #[test]
    fn metrics_are_never_offered_to_the_bench() {
        let with = |listen: &str| read(&format!("{GOOD}\n[metrics]\nlisten = \"{listen}\"\n"));
        let config = with("127.0.0.1:9469").unwrap();
        assert_eq!(config.metrics, Some(([127, 0, 0, 1], 9469).into()));
        for bench in ["0.0.0.0:9469", "[::]:9469", "10.77.0.1:9469"] {
            let failure = with(bench).unwrap_err();
            assert_eq!(failure.kind(), Kind::InvalidInput);
            assert!(
                failure.to_string().contains("machines on the bench"),
                "{failure}"
            );
        }
    }

    #[test]
    fn a_bench_speaks_ipv6_too_or_alone() {
        let both = format!("{GOOD}\n[dhcp6]\naddress = \"fd77::1\"\n");
        let config = read(&both).unwrap();
        assert!(config.dhcp.is_some());
        let dhcp6 = config.dhcp6.unwrap();
        assert_eq!(dhcp6.http_base, "http://[fd77::1]:8080");
        assert!(dhcp6.advertise);

        let (before, rest) = GOOD.split_once("mode = \"server\"").unwrap();
        let (_, sky) = rest.split_once("[sky]").unwrap();
        let off = format!("{before}mode = \"off\"\n[sky]{sky}");
        let failure = read(&off).unwrap_err().to_string();
        assert!(failure.contains("without a section dhcp6"), "{failure}");
        let alone =
            format!("{off}\n[dhcp6]\naddress = \"fd77::1\"\nrouter_advertisements = false\n");
        let config = read(&alone).unwrap();
        assert!(config.dhcp.is_none() && !config.dhcp6.unwrap().advertise);

        for (address, expected) in [
            ("fe80::1", "link-local"),
            ("ff02::1", "unicast"),
            ("::", "unicast"),
        ] {
            let failure = read(&both.replace("fd77::1", address))
                .unwrap_err()
                .to_string();
            assert!(
                failure.contains("dhcp6") && failure.contains(expected),
                "{failure}"
            );
        }
    }

    #[test]
    fn relayed_networks_places_and_options_are_read() {
        let text = GOOD.replace(
            "[sky]",
            r#"conflict_check = "off"
options = { 42 = ["10.77.0.1", "10.77.0.2"], 26 = { u16 = 1400 }, 12 = "bench", 224 = "0x00fF" }

[[dhcp.places]]
circuit = "eth0/7"
address = "10.77.0.7"

[[dhcp.relayed]]
network = "10.78.0.0/24"
pool = ["10.78.0.10", "10.78.0.20"]
routers = ["10.78.0.1"]
places = [{ remote = "0x0a0b", address = "10.78.0.9" }]

[sky]"#,
        );
        let config = read(&text).unwrap();
        let dhcp = config.dhcp.unwrap();
        assert_eq!(dhcp.conflicts, policy::ConflictCheck::Off);
        let policy::Mode::Authoritative(subnets) = dhcp.mode else {
            panic!("not a server");
        };
        let [own, far] = &subnets[..] else {
            panic!("{subnets:?}");
        };
        let mut options = own.options.clone();
        options.sort();
        assert_eq!(
            options,
            [
                (12, b"bench".to_vec()),
                (26, vec![5, 120]),
                (42, vec![10, 77, 0, 1, 10, 77, 0, 2]),
                (224, vec![0, 255]),
            ]
        );
        assert_eq!(own.places[0].circuit.as_deref(), Some(&b"eth0/7"[..]));
        assert_eq!(far.places[0].remote.as_deref(), Some(&[10, 11][..]));
        assert_eq!((far.prefix, far.lease.as_secs()), (24, 3600));
    }

    #[test]
    fn mistakes_in_further_networks_and_options_are_named() {
        let far = "[[dhcp.relayed]]\nnetwork = \"10.78.0.0/24\"\n\
                   pool = [\"10.78.0.10\", \"10.78.0.20\"]\n";
        for (bad, expected) in [
            (
                far.replace("10.78.0.0/24", "10.77.0.0/16"),
                "overlaps 10.77.0.0/24",
            ),
            (
                far.replace("10.78.0.0/24", "10.78.0.0"),
                "dhcp.relayed[0]: network",
            ),
            (
                far.replace("10.78.0.20", "10.79.0.20"),
                "10.79.0.20 is outside",
            ),
            (
                "options = { 53 = { u8 = 6 } }\n".into(),
                "option 53 cannot be set",
            ),
            (
                "options = { 300 = \"x\" }\n".into(),
                "options.300: expected a code",
            ),
            (
                "options = { 224 = \"0x0\" }\n".into(),
                "two hexadecimal digits",
            ),
            ("options = { 224 = 7 }\n".into(), "expected text"),
            (
                "places = [{ address = \"10.77.0.9\" }]\n".into(),
                "neither circuit",
            ),
        ] {
            let failure = read(&GOOD.replace("[sky]", &format!("{bad}[sky]"))).unwrap_err();
            assert_eq!(failure.kind(), Kind::InvalidInput);
            assert!(failure.to_string().contains(expected), "{bad}: {failure}");
        }
    }

    #[test]
    fn each_mistake_is_named() {
        let cases = [
            ("channel = \"stable\"", "chanel = \"stable\"", "chanel"),
            ("10.77.0.0/24", "10.77.0.0", "dhcp: network"),
            (
                "address = \"10.77.0.1\"",
                "address = \"10.9.0.1\"",
                "not in dhcp.network",
            ),
            ("10.77.0.199", "10.77.0.50", "is empty"),
            ("10.77.0.100", "10.77.0.1", "own address"),
            ("https://", "http://", "sky.url"),
            (
                "channel = \"stable\"",
                "channel = \"stable\"\nipxe = \"none.kpxe\"",
                "ipxe: no file",
            ),
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
