//! The configuration document of a unit.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::id::UnitName;
use crate::trust::{Document, Role};

/// One generation of a unit's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Configuration {
    /// The unit that it is for; another unit refuses it.
    pub unit: UnitName,
    /// Rises by one with each change; a unit refuses a lower one than it has applied.
    pub generation: u64,
    /// What the operator wrote.
    pub settings: Settings,
}

impl Document for Configuration {
    const TYPE: &'static str = "application/vnd.leapserv.configuration+json";
    const ROLE: Role = Role::Configuration;
}

/// What an operator writes down for a unit (TOML on the operator's machine).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Host name, one DNS label.
    pub hostname: String,
    /// A zone of the tz database, `America/Chicago`.
    pub time_zone: String,
    /// The unit's own network.
    pub network: Network,
    /// OpenSSH public keys, a line each, of those who may log in as `operator`.
    #[serde(default)]
    pub operators: Vec<String>,
    /// When the unit may restart for an update.
    #[serde(default)]
    pub maintenance: Maintenance,
    /// Seconds between two check-ins.
    #[serde(default = "default_check_in_seconds")]
    pub check_in_seconds: u32,
    /// What is backed up, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<Backup>,
}

fn default_check_in_seconds() -> u32 {
    60
}

/// The unit's own network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Network {
    /// Address by DHCP on every Ethernet port.
    Dhcp {},
    /// A fixed address on the first Ethernet port with link.
    Static {
        /// Address with prefix length, `10.77.0.50/24`.
        address: String,
        /// The default router, if there is one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        gateway: Option<IpAddr>,
        /// Name servers.
        #[serde(default)]
        dns: Vec<IpAddr>,
    },
}

/// When the unit may restart for an update, in its own time zone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Maintenance {
    /// Start, `HH:MM`.
    pub from: String,
    /// End, `HH:MM`; before `from`, it is on the next day; the same: always.
    pub to: String,
}

impl Default for Maintenance {
    /// Always.
    fn default() -> Self {
        Self {
            from: "00:00".into(),
            to: "00:00".into(),
        }
    }
}

/// What is backed up, how often and to where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backup {
    /// Where the data comes from.
    pub sources: Vec<Source>,
    /// How often.
    #[serde(default)]
    pub schedule: Schedule,
    /// What is kept.
    #[serde(default)]
    pub retention: Retention,
    /// The offsite destinations.
    #[serde(default)]
    pub destinations: Vec<Destination>,
    /// How many of the destinations must hold a snapshot before it counts as safe.
    #[serde(default = "default_copies_required")]
    pub copies_required: u32,
}

fn default_copies_required() -> u32 {
    1
}

/// A place to pull data from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Source {
    /// SSH File Transfer Protocol; the unit logs in with its own key.
    Sftp(SftpSource),
}

impl Source {
    /// Its name, a label; the snapshot's label too.
    pub fn name(&self) -> &str {
        match self {
            Self::Sftp(source) => &source.name,
        }
    }
}

/// A folder on an SSH server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SftpSource {
    /// The source's name, a label.
    pub name: String,
    /// Host name or address.
    pub host: String,
    /// TCP port.
    #[serde(default = "default_ssh_port")]
    pub port: u16,
    /// Login name.
    pub user: String,
    /// Absolute path of the folder on the server.
    pub path: String,
    /// The server's public key, `ssh-ed25519 AAAA…`: no other is talked to.
    pub host_key: String,
}

fn default_ssh_port() -> u16 {
    22
}

/// How often a backup runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Minutes between the starts of two runs; 0 runs only on command.
    pub every_minutes: u32,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { every_minutes: 60 }
    }
}

/// How many snapshots of each source are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// The newest ones.
    pub last: u32,
    /// One a day.
    pub daily: u32,
    /// One a week.
    pub weekly: u32,
    /// One a month.
    pub monthly: u32,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            last: 24,
            daily: 14,
            weekly: 8,
            monthly: 12,
        }
    }
}

/// An offsite destination: a vault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Destination {
    /// Its name, a label.
    pub name: String,
    /// `https://HOST:PORT`, without the unit's path.
    pub url: String,
    /// Upper bound of the upload rate in KiB a second; 0 is unbounded.
    #[serde(default)]
    pub rate_kib: u32,
}

/// What is wrong with a configuration: the key and what was expected there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct InvalidSetting {
    /// Dotted path of the key, `backup.sources[0].path`.
    pub key: String,
    /// What is wrong and what was expected.
    pub problem: String,
}

impl Settings {
    /// Checks what the types cannot: names, addresses, ranges, double entries.
    ///
    /// # Errors
    /// The first setting that is wrong.
    pub fn check(&self) -> Result<(), InvalidSetting> {
        check_label("hostname", &self.hostname)?;
        if jiff::tz::TimeZone::get(&self.time_zone).is_err()
            && !self
                .time_zone
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"/_+-".contains(&b))
        {
            return Err(wrong("time_zone", "expected a zone like America/Chicago"));
        }
        if let Network::Static { address, .. } = &self.network {
            parse_interface_address(address).ok_or_else(|| {
                wrong(
                    "network.address",
                    "expected ADDRESS/PREFIX, like 10.0.0.5/24",
                )
            })?;
        }
        for (index, key) in self.operators.iter().enumerate() {
            let good =
                key.starts_with("ssh-") || key.starts_with("ecdsa-") || key.starts_with("sk-");
            if !good || key.contains('\n') || key.split_whitespace().count() < 2 {
                return Err(wrong(
                    &format!("operators[{index}]"),
                    "expected one OpenSSH public key, like ssh-ed25519 AAAA… name",
                ));
            }
        }
        for (key, time) in [
            ("maintenance.from", &self.maintenance.from),
            ("maintenance.to", &self.maintenance.to),
        ] {
            minutes_of_day(time).ok_or_else(|| wrong(key, "expected HH:MM"))?;
        }
        if !(1..=86_400).contains(&self.check_in_seconds) {
            return Err(wrong("check_in_seconds", "expected 1 to 86400"));
        }
        self.backup.as_ref().map_or(Ok(()), Backup::check)
    }
}

impl Backup {
    fn check(&self) -> Result<(), InvalidSetting> {
        let mut names = std::collections::BTreeSet::new();
        for (index, source) in self.sources.iter().enumerate() {
            let key = |field: &str| format!("backup.sources[{index}].{field}");
            check_label(&key("name"), source.name())?;
            if !names.insert(source.name()) {
                return Err(wrong(&key("name"), "another source has this name"));
            }
            let Source::Sftp(SftpSource {
                host,
                user,
                path,
                host_key,
                ..
            }) = source;
            if host.is_empty() || host.contains(char::is_whitespace) {
                return Err(wrong(&key("host"), "expected a host name or address"));
            }
            if user.is_empty() {
                return Err(wrong(&key("user"), "expected a login name"));
            }
            if !path.starts_with('/') {
                return Err(wrong(&key("path"), "expected an absolute path"));
            }
            if host_key.split_whitespace().count() < 2 {
                return Err(wrong(
                    &key("host_key"),
                    "expected the server's public key, like ssh-ed25519 AAAA…",
                ));
            }
        }
        let mut names = std::collections::BTreeSet::new();
        for (index, destination) in self.destinations.iter().enumerate() {
            let key = |field: &str| format!("backup.destinations[{index}].{field}");
            check_label(&key("name"), &destination.name)?;
            if !names.insert(&destination.name) {
                return Err(wrong(&key("name"), "another destination has this name"));
            }
            if !destination.url.starts_with("https://") {
                return Err(wrong(&key("url"), "expected https://HOST:PORT"));
            }
        }
        let count = u32::try_from(self.destinations.len()).unwrap_or(u32::MAX);
        if self.copies_required > count {
            return Err(wrong(
                "backup.copies_required",
                &format!(
                    "{} are required and there are {count} destinations",
                    self.copies_required
                ),
            ));
        }
        Ok(())
    }
}

fn wrong(key: &str, problem: &str) -> InvalidSetting {
    InvalidSetting {
        key: key.to_owned(),
        problem: problem.to_owned(),
    }
}

fn check_label(key: &str, text: &str) -> Result<(), InvalidSetting> {
    let good = !text.is_empty()
        && text.len() <= 63
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-');
    if good {
        Ok(())
    } else {
        Err(wrong(
            key,
            &format!("{text:?}: expected 1 to 63 letters, digits and '-', not at either end"),
        ))
    }
}

/// Parses `ADDRESS/PREFIX`.
pub fn parse_interface_address(text: &str) -> Option<(IpAddr, u8)> {
    let (address, prefix) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let prefix: u8 = prefix.parse().ok()?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    (prefix <= most).then_some((address, prefix))
}

/// Parses `HH:MM` into minutes since midnight.
pub fn minutes_of_day(text: &str) -> Option<u16> {
    let (hours, minutes) = text.split_once(':')?;
    if hours.len() != 2 || minutes.len() != 2 {
        return None;
    }
    let (hours, minutes): (u16, u16) = (hours.parse().ok()?, minutes.parse().ok()?);
    (hours < 24 && minutes < 60).then_some(hours * 60 + minutes)
}

impl Maintenance {
    /// Whether `minute` of the day lies in the window.
    pub fn contains(&self, minute: u16) -> bool {
        match (minutes_of_day(&self.from), minutes_of_day(&self.to)) {
            (Some(from), Some(to)) if from == to => true,
            (Some(from), Some(to)) if from < to => (from..to).contains(&minute),
            (Some(from), Some(to)) => minute >= from || minute < to,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn settings() -> Settings {
        Settings {
            hostname: "houma-1".into(),
            time_zone: "America/Chicago".into(),
            network: Network::Dhcp {},
            operators: vec!["ssh-ed25519 AAAA joe".into()],
            maintenance: Maintenance::default(),
            check_in_seconds: 60,
            backup: Some(Backup {
                sources: vec![Source::Sftp(SftpSource {
                    name: "gallery".into(),
                    host: "files".into(),
                    port: 22,
                    user: "backup".into(),
                    path: "/gallery".into(),
                    host_key: "ssh-ed25519 AAAA".into(),
                })],
                schedule: Schedule::default(),
                retention: Retention::default(),
                destinations: vec![Destination {
                    name: "vault-1".into(),
                    url: "https://vault-1:8443".into(),
                    rate_kib: 0,
                }],
                copies_required: 1,
            }),
        }
    }

    #[test]
    fn a_wrong_setting_is_named() {
        assert_eq!(settings().check(), Ok(()));
        let mut bad = settings();
        bad.backup.as_mut().unwrap().copies_required = 2;
        assert_eq!(bad.check().unwrap_err().key, "backup.copies_required");
        let mut bad = settings();
        bad.hostname = "houma_1".into();
        assert_eq!(bad.check().unwrap_err().key, "hostname");
        let mut bad = settings();
        bad.network = Network::Static {
            address: "10.0.0.5/33".into(),
            gateway: None,
            dns: vec![],
        };
        assert_eq!(bad.check().unwrap_err().key, "network.address");
    }

    #[test]
    fn a_maintenance_window_may_span_midnight() {
        let window = Maintenance {
            from: "23:00".into(),
            to: "04:00".into(),
        };
        assert!(window.contains(23 * 60 + 5));
        assert!(window.contains(60));
        assert!(!window.contains(12 * 60));
        assert!(Maintenance::default().contains(777));
    }

    #[test]
    fn a_configuration_survives_its_json() {
        let configuration = Configuration {
            unit: "motivatit/houma-1".parse().unwrap(),
            generation: 3,
            settings: settings(),
        };
        let json = serde_json::to_string(&configuration).unwrap();
        assert_eq!(
            serde_json::from_str::<Configuration>(&json).unwrap(),
            configuration
        );
    }

    #[test]
    fn an_unknown_setting_is_refused_at_every_depth() {
        let good = serde_json::to_value(settings()).unwrap();
        let refused = |value: serde_json::Value| serde_json::from_value::<Settings>(value).is_err();
        let mut bad = good.clone();
        bad["hostnam"] = "x".into();
        assert!(refused(bad));
        let mut bad = good.clone();
        bad["backup"]["sources"][0]["hsot"] = "x".into();
        assert!(refused(bad));
        let mut bad = good.clone();
        bad["network"] = serde_json::json!({"mode": "dhcp", "adress": "x"});
        assert!(refused(bad));
        assert!(!refused(good));
    }
}
