//! The unit's own network: what is written for networkd, and when it is in force. Pure.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use model::MacAddr;
use model::configuration::{Network, parse_interface_address};
use serde::Deserialize;

/// Returns the text of the unit's `.network` file; `None` where the image's own
/// says the same, so that a unit with DHCP is not disturbed by its first configuration.
///
/// `port` is the one Ethernet port that a fixed address goes to; without it,
/// the address goes to every port.
pub fn file(network: &Network, port: Option<MacAddr>) -> Option<String> {
    let Network::Static {
        address,
        gateway,
        dns,
    } = network
    else {
        return None;
    };
    let mut text = String::from(
        "# Written by leap-updater from the unit's configuration.\n[Match]\nType=ether\nKind=!*\n",
    );
    if let Some(port) = port {
        let _ = writeln!(text, "MACAddress={port}");
    }
    let _ = write!(text, "\n[Network]\nAddress={address}\n");
    if let Some(gateway) = gateway {
        let _ = writeln!(text, "Gateway={gateway}");
    }
    for server in dns {
        let _ = writeln!(text, "DNS={server}");
    }
    Some(text)
}

/// One interface, as `ip -json address` prints it.
#[derive(Debug, Clone, Deserialize)]
pub struct Link {
    /// Its name.
    #[serde(default)]
    pub ifname: String,
    /// Its addresses.
    #[serde(default)]
    pub addr_info: Vec<Address>,
}

/// One address of an interface.
#[derive(Debug, Clone, Deserialize)]
pub struct Address {
    /// The address.
    #[serde(default)]
    pub local: Option<IpAddr>,
    /// Prefix length.
    #[serde(default)]
    pub prefixlen: u8,
    /// `global`, `link`, `host`.
    #[serde(default)]
    pub scope: String,
    /// Whether it has an end, as one from a DHCP server.
    #[serde(default)]
    pub dynamic: bool,
}

/// One route, as `ip -json route` prints it.
#[derive(Debug, Clone, Deserialize)]
pub struct Route {
    /// The router.
    #[serde(default)]
    pub gateway: Option<IpAddr>,
}

/// Returns the global addresses.
pub fn addresses(links: &[Link]) -> Vec<String> {
    links
        .iter()
        .flat_map(|link| &link.addr_info)
        .filter(|address| address.scope == "global")
        .filter_map(|address| address.local)
        .map(|address| address.to_string())
        .collect()
}

/// Says whether the network is as the configuration wants it.
///
/// networkd works on after it was told: a call to the sky that goes over the
/// old address proves nothing about the new one.
pub fn in_force(network: &Network, links: &[Link], default_routes: &[Route]) -> bool {
    let mut global = links
        .iter()
        .flat_map(|link| &link.addr_info)
        .filter(|address| address.scope == "global")
        .filter(|address| address.local.is_some_and(|local| local.is_ipv4()));
    match network {
        Network::Dhcp {} => {
            let global: Vec<_> = global.collect();
            !global.is_empty() && global.iter().all(|address| address.dynamic)
        }
        Network::Static {
            address, gateway, ..
        } => {
            let Some((wanted, prefix)) = parse_interface_address(address) else {
                return false;
            };
            let there = links
                .iter()
                .flat_map(|link| &link.addr_info)
                .any(|found| found.local == Some(wanted) && found.prefixlen == prefix);
            let routers: BTreeSet<IpAddr> = default_routes
                .iter()
                .filter_map(|route| route.gateway)
                .filter(IpAddr::is_ipv4)
                .collect();
            let expected: BTreeSet<IpAddr> =
                gateway.iter().copied().filter(IpAddr::is_ipv4).collect();
            there && !global.any(|address| address.dynamic) && routers == expected
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links(json: &str) -> Vec<Link> {
        serde_json::from_str(json).unwrap()
    }

    fn fixed(address: &str, gateway: Option<&str>) -> Network {
        Network::Static {
            address: address.into(),
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
            dns: vec!["10.0.0.1".parse().unwrap()],
        }
    }

    const DHCP: &str = r#"[{"ifname":"lo","addr_info":[{"family":"inet","local":"127.0.0.1","prefixlen":8,"scope":"host"}]},
        {"ifname":"eth0","addr_info":[
            {"family":"inet","local":"10.0.0.7","prefixlen":24,"scope":"global","dynamic":true,"valid_life_time":3599},
            {"family":"inet6","local":"fe80::1","prefixlen":64,"scope":"link"}]}]"#;
    const FIXED: &str =
        r#"[{"ifname":"eth0","addr_info":[{"local":"10.0.0.5","prefixlen":24,"scope":"global"}]}]"#;

    #[test]
    fn a_fixed_address_is_in_force_only_without_the_old_one_and_with_its_router() {
        let network = fixed("10.0.0.5/24", Some("10.0.0.1"));
        let route = |gateway: &str| Route {
            gateway: Some(gateway.parse().unwrap()),
        };
        assert!(!in_force(&network, &links(DHCP), &[]));
        assert!(!in_force(&network, &links(FIXED), &[]));
        assert!(!in_force(&network, &links(FIXED), &[route("10.0.0.2")]));
        assert!(in_force(&network, &links(FIXED), &[route("10.0.0.1")]));
        let both = format!("{},{}", &DHCP[..DHCP.len() - 1], &FIXED[1..]);
        assert!(!in_force(&network, &links(&both), &[route("10.0.0.1")]));
        assert!(in_force(&Network::Dhcp {}, &links(DHCP), &[]));
        assert!(!in_force(&Network::Dhcp {}, &links(FIXED), &[]));
        assert!(!in_force(&Network::Dhcp {}, &links("[]"), &[]));
    }

    #[test]
    fn only_global_addresses_are_told() {
        assert_eq!(addresses(&links(DHCP)), ["10.0.0.7"]);
    }

    #[test]
    fn the_file_names_port_address_router_and_servers() {
        let port = "52:54:00:12:34:56".parse().unwrap();
        let text = file(&fixed("10.0.0.5/24", Some("10.0.0.1")), Some(port)).unwrap();
        for line in [
            "MACAddress=52:54:00:12:34:56",
            "Address=10.0.0.5/24",
            "Gateway=10.0.0.1",
            "DNS=10.0.0.1",
        ] {
            assert!(text.lines().any(|found| found == line), "{text}");
        }
        assert_eq!(file(&Network::Dhcp {}, Some(port)), None);
    }
}
