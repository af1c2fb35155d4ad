//! Brings a configuration's settings into force. Applied twice, they change nothing.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context as _, Result};
use edge::durable::{self, Mode};
use model::MacAddr;
use model::configuration::Settings;

use crate::network::{self, Link, Route};
use crate::site::Site;

const NETWORK_FILE: &str = "/run/systemd/network/10-leapserv.network";

/// Whether something has to be told that a file has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// networkd has to read its files again.
    Network,
}

/// Writes what the settings say; without settings, removes what was written.
///
/// Tells no service about it: at the start of the system none runs yet.
///
/// # Errors
/// The first thing that cannot be written.
pub fn write(site: &Site, settings: Option<&Settings>) -> Result<Change> {
    let Some(settings) = settings else {
        let network = remove(&site.at(NETWORK_FILE))?;
        for path in [
            site.run("localtime"),
            site.run("ssh/operator.keys"),
            site.backup_config(),
        ] {
            remove(&path)?;
        }
        return Ok(network);
    };
    let hostname = site.at("/proc/sys/kernel/hostname");
    if site.hostname().ok().as_deref() != Some(&settings.hostname) {
        fs::write(&hostname, &settings.hostname).context("set host name")?;
    }
    write_time_zone(site, &settings.time_zone)?;
    let network = match network::file(&settings.network, port(site)) {
        Some(text) => replace(&site.at(NETWORK_FILE), &text)?,
        None => remove(&site.at(NETWORK_FILE))?,
    };
    let mut keys = settings.operators.join("\n");
    keys.push('\n');
    replace(&site.run("ssh/operator.keys"), &keys)?;
    match &settings.backup {
        Some(backup) => {
            let path = site.backup_config();
            let text = serde_json::to_vec_pretty(backup).context("encode backup settings")?;
            // Written only when it differs: it lies on the disk, and is looked at often.
            if fs::read(&path).ok().as_deref() != Some(&text) {
                durable::write(&path, &text, Mode::Public)?;
            }
        }
        None => drop(remove(&site.backup_config())?),
    }
    Ok(network)
}

/// Makes networkd read its files again.
///
/// # Errors
/// networkd cannot be told.
pub async fn reload_network(site: &Site) -> Result<()> {
    site.tool("networkctl").arg("reload").run_async().await
}

/// Says whether the network is as the settings want it by now.
///
/// # Errors
/// The kernel cannot be asked.
pub async fn network_in_force(site: &Site, settings: &Settings) -> Result<bool> {
    let routes = site
        .tool("ip")
        .args(["-json", "route", "show", "default"])
        .text_async()
        .await?;
    let routes: Vec<Route> = parse(&routes).context("default routes")?;
    Ok(network::in_force(
        &settings.network,
        &links(site).await?,
        &routes,
    ))
}

/// Returns the interfaces with their addresses.
///
/// # Errors
/// The kernel cannot be asked.
pub async fn links(site: &Site) -> Result<Vec<Link>> {
    let text = site
        .tool("ip")
        .args(["-json", "address"])
        .text_async()
        .await?;
    parse(&text).context("addresses")
}

fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Result<Vec<T>> {
    // Without any route, `ip` prints nothing at all.
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_str(text).context("expected the JSON of ip")
}

/// Chooses the port that a fixed address goes to, once, and remembers it.
///
/// It is remembered because at the next start the address is written down
/// before there is link anywhere.
pub fn choose_port(site: &Site) -> Result<()> {
    let path = site.configuration("port");
    if path.exists() {
        return Ok(());
    }
    let mut ports: Vec<(bool, String, MacAddr)> = Vec::new();
    let folder = site.at("/sys/class/net");
    for entry in fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
        let entry = entry.with_context(|| format!("read {}", folder.display()))?;
        let read = |name: &str| {
            fs::read_to_string(entry.path().join(name)).map(|text| text.trim().to_owned())
        };
        // Type 1 is Ethernet; what has no device behind it is no port.
        if !entry.path().join("device").exists() || read("type").ok().as_deref() != Some("1") {
            continue;
        }
        let Some(address) = read("address").ok().and_then(|text| text.parse().ok()) else {
            continue;
        };
        let no_link = read("carrier").ok().as_deref() != Some("1");
        ports.push((no_link, entry.file_name().to_string_lossy().into(), address));
    }
    ports.sort();
    match ports.first() {
        Some((_, _, address)) => {
            durable::write(&path, address.to_string().as_bytes(), Mode::Public)
        }
        None => Ok(()),
    }
}

fn port(site: &Site) -> Option<MacAddr> {
    let text = fs::read_to_string(site.configuration("port")).ok()?;
    text.trim().parse().ok()
}

fn write_time_zone(site: &Site, zone: &str) -> Result<()> {
    let target = Path::new("/usr/share/zoneinfo").join(zone);
    let link = site.run("localtime");
    if fs::read_link(&link).ok().as_deref() == Some(&target) {
        return Ok(());
    }
    let new = site.run("localtime.new");
    remove(&new)?;
    fs::create_dir_all(site.run("")).context("make /run/leapserv")?;
    symlink(&target, &new)
        .and_then(|()| fs::rename(&new, &link))
        .context("set time zone")
}

/// Replaces a file below `/run`, if it differs.
fn replace(path: &Path, text: &str) -> Result<Change> {
    if fs::read_to_string(path).ok().as_deref() == Some(text) {
        return Ok(Change::None);
    }
    durable::write(path, text.as_bytes(), Mode::Public)?;
    Ok(Change::Network)
}

fn remove(path: &Path) -> Result<Change> {
    match fs::remove_file(path) {
        Ok(()) => Ok(Change::Network),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Change::None),
        Err(error) => Err(error).with_context(|| format!("remove {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generation::tests::settings;
    use model::configuration::{Backup, Network, Retention, Schedule};

    fn site() -> (tempfile::TempDir, Site) {
        let folder = tempfile::tempdir().unwrap();
        let site = Site::new(folder.path());
        fs::create_dir_all(site.at("/proc/sys/kernel")).unwrap();
        (folder, site)
    }

    #[test]
    fn settings_are_written_once_and_taken_back_whole() {
        let (_folder, site) = site();
        let mut wanted = settings("houma-1");
        wanted.network = Network::Static {
            address: "10.0.0.5/24".into(),
            gateway: None,
            dns: vec![],
        };
        wanted.operators = vec!["ssh-ed25519 AAAA joe".into()];
        wanted.backup = Some(Backup {
            sources: vec![],
            schedule: Schedule::default(),
            retention: Retention::default(),
            destinations: vec![],
            copies_required: 0,
        });
        assert_eq!(write(&site, Some(&wanted)).unwrap(), Change::Network);
        assert_eq!(write(&site, Some(&wanted)).unwrap(), Change::None);
        assert_eq!(site.hostname().unwrap(), "houma-1");
        assert_eq!(
            fs::read_link(site.run("localtime")).unwrap(),
            Path::new("/usr/share/zoneinfo/America/Chicago")
        );
        let keys = fs::read_to_string(site.run("ssh/operator.keys")).unwrap();
        assert_eq!(keys, "ssh-ed25519 AAAA joe\n");
        assert!(site.backup_config().exists());
        assert_eq!(write(&site, None).unwrap(), Change::Network);
        assert_eq!(write(&site, None).unwrap(), Change::None);
        assert!(!site.backup_config().exists() && !site.run("ssh/operator.keys").exists());
    }

    #[test]
    fn a_new_host_name_alone_does_not_disturb_the_network() {
        let (_folder, site) = site();
        write(&site, Some(&settings("one"))).unwrap();
        assert_eq!(write(&site, Some(&settings("two"))).unwrap(), Change::None);
        assert_eq!(site.hostname().unwrap(), "two");
    }

    #[test]
    fn a_fixed_address_goes_to_the_first_port_with_link_and_stays_there() {
        let (_folder, site) = site();
        let port = |name: &str, mac: &str, carrier: &str| {
            let folder = site.at("/sys/class/net").join(name);
            fs::create_dir_all(folder.join("device")).unwrap();
            fs::write(folder.join("type"), "1\n").unwrap();
            fs::write(folder.join("address"), format!("{mac}\n")).unwrap();
            fs::write(folder.join("carrier"), carrier).unwrap();
        };
        port("eth0", "52:54:00:00:00:01", "0\n");
        port("eth1", "52:54:00:00:00:02", "1\n");
        fs::create_dir_all(site.at("/sys/class/net/lo")).unwrap();
        choose_port(&site).unwrap();
        port("eth0", "52:54:00:00:00:01", "1\n");
        choose_port(&site).unwrap();
        let mut wanted = settings("houma-1");
        wanted.network = Network::Static {
            address: "10.0.0.5/24".into(),
            gateway: None,
            dns: vec![],
        };
        write(&site, Some(&wanted)).unwrap();
        let text = fs::read_to_string(site.at(NETWORK_FILE)).unwrap();
        assert!(text.contains("MACAddress=52:54:00:00:00:02"), "{text}");
    }
}
