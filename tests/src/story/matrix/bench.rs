//! The network of a case: its shape, the factory, and who else is there.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};

use super::super::Stage;
use super::super::birth::{FACTORY_PORT, Site, start_factory};
use crate::lab::loss::Loss;
use crate::lab::neighbour::Neighbour;
use crate::lab::network::{Capturing, Network, Port, Wiring};
use crate::lab::pcap::{Dhcp, DhcpKind};
use crate::lab::prerequisites;
use crate::lab::process::Recipe;
use crate::lab::server::{Ready, Server};
use crate::lab::story::Step;

/// What lies between factory and machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::story) enum Shape {
    /// A bridge.
    Plain,
    /// A bridge with dnsmasq on it, which gives the addresses.
    BesideDnsmasq,
    /// The same, and the factory speaks DHCPv6 alone.
    OverIpv6,
    /// A router that relays DHCP.
    BehindRelay,
    /// A bridge, and a wire to it that loses frames.
    Lossy(Loss),
    /// A bridge with dnsmasq on it, as at a customer's: the sky can be reached, and there is
    /// no factory.
    NoFactory,
}

/// A network that stands.
#[derive(Debug)]
pub(in crate::story) struct Bench {
    shape: Shape,
    plan: Plan,
    factory: Option<Server>,
    /// Where the factory is.
    near: Network,
    /// Where the machine is, if that is elsewhere.
    far: Option<Network>,
    capturing: Capturing,
    /// Somebody else's server, and the host that it is on.
    other: Option<(Server, Neighbour)>,
}

/// What tells the bench of one case from another's.
#[derive(Debug)]
pub(in crate::story) struct Place<'a> {
    /// Makes names and addresses its own.
    pub(in crate::story) number: u8,
    /// Folder of its files.
    pub(in crate::story) folder: &'a Path,
    /// The channel whose release is born there.
    pub(in crate::story) channel: &'a str,
    /// The program that starts a machine's disk, where it is not the factory's own.
    pub(in crate::story) local_boot: Option<PathBuf>,
}

/// The addresses of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    number: u8,
}

impl Plan {
    /// The factory's network.
    fn near(self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 80, self.number, host)
    }

    /// The network behind a relay.
    fn far(self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 81, self.number, host)
    }

    fn factory(self) -> Ipv4Addr {
        self.near(1)
    }

    /// The factory by IPv6.
    pub(in crate::story) fn factory6(self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd80, 0, 0, u16::from(self.number), 0, 0, 0, 1)
    }

    /// Who else is on the factory's network: the other server, or the relay.
    fn other(self) -> Ipv4Addr {
        self.near(2)
    }

    /// The section `dhcp` of the factory's configuration.
    fn dhcp(self, shape: Shape) -> String {
        let network = |of: fn(Self, u8) -> Ipv4Addr| {
            let [base, first, last, router] = [0, 100, 150, 1].map(|host| of(self, host));
            format!(
                "network = \"{base}/24\"\npool = [\"{first}\", \"{last}\"]\nrouters = [\"{router}\"]\n"
            )
        };
        match shape {
            Shape::BesideDnsmasq | Shape::NoFactory => "mode = \"proxy\"\n".to_owned(),
            Shape::OverIpv6 => format!(
                "mode = \"off\"\n\n[dhcp6]\naddress = \"{}\"\n",
                self.factory6()
            ),
            Shape::Plain | Shape::Lossy(_) => format!("mode = \"server\"\n{}", network(Self::near)),
            Shape::BehindRelay => format!(
                "mode = \"server\"\n{}\n[[dhcp.relayed]]\n{}",
                network(Self::near),
                network(Self::far)
            ),
        }
    }
}

impl Bench {
    /// Makes the network and starts whoever is on it, our factory last.
    pub(in crate::story) async fn set_up(
        shape: Shape,
        stage: &Stage,
        place: Place<'_>,
        step: &mut Step,
    ) -> anyhow::Result<Self> {
        let Place {
            number,
            folder,
            channel,
            local_boot,
        } = place;
        let plan = Plan { number };
        let wiring = Wiring::detect();
        let name = format!("near{number}");
        let near = Network::create(&name, plan.factory(), 24, wiring).await?;
        let mut far = None;
        let mut other = None;
        match shape {
            Shape::Plain | Shape::Lossy(_) => {}
            Shape::BesideDnsmasq | Shape::OverIpv6 | Shape::NoFactory => {
                other = Some(dnsmasq(plan, &near, folder, step).await?);
            }
            Shape::BehindRelay => {
                let beyond = Network::beyond(&format!("far{number}"), wiring).await?;
                other = Some(relay(plan, &near, &beyond, folder, step).await?);
                far = Some(beyond);
            }
        }
        if shape == Shape::OverIpv6 {
            near.add_address6(plan.factory6()).await?;
        }
        let network = far.as_ref().unwrap_or(&near);
        let capturing = network.capture(&folder.join("network.pcap")).await?;
        if shape == Shape::NoFactory {
            return Ok(Self {
                shape,
                plan,
                factory: None,
                near,
                far,
                capturing,
                other,
            });
        }
        let site = Site {
            folder: folder.join("factory"),
            interface: near.interface(),
            address: plan.factory(),
            dhcp: plan.dhcp(shape),
            channel,
            local_boot,
            log: folder.join("leap-provisioner.log"),
        };
        let factory = Some(start_factory(stage, &site, step).await?);
        Ok(Self {
            shape,
            plan,
            factory,
            near,
            far,
            capturing,
            other,
        })
    }

    /// A place to plug the machine in.
    pub(in crate::story) async fn port(&self, name: &str) -> anyhow::Result<Port> {
        let network = self.far.as_ref().unwrap_or(&self.near);
        match self.shape {
            Shape::Lossy(loss) => network.lossy_port(name, loss).await,
            _ => network.port(name).await,
        }
    }

    /// The capture of the machine's network.
    pub(in crate::story) fn capture(&self) -> &Path {
        self.capturing.file()
    }

    /// The unit has an address of the network that the machine is in.
    pub(in crate::story) fn prove_address(&self, addresses: &[String]) -> anyhow::Result<()> {
        let network = match self.shape {
            Shape::BehindRelay => self.plan.far(0),
            _ => self.plan.near(0),
        };
        let network = network.to_string();
        let begin = network.strip_suffix('0').unwrap_or(&network);
        ensure!(
            addresses.iter().any(|address| address.starts_with(begin)),
            "the unit has {addresses:?}, expected an address in {network}/24"
        );
        Ok(())
    }

    /// Who offered what, by the capture.
    pub(in crate::story) fn prove_offers(
        &self,
        dhcp: &[Dhcp],
        step: &mut Step,
    ) -> anyhow::Result<()> {
        let offers = || {
            dhcp.iter()
                .filter(|message| matches!(message.kind, DhcpKind::Offer | DhcpKind::Ack))
        };
        let (ours, other) = (self.plan.factory(), self.plan.other());
        match self.shape {
            Shape::Plain | Shape::Lossy(_) => {}
            Shape::BesideDnsmasq => {
                for offer in offers() {
                    let gives = !offer.your_ip.is_unspecified();
                    match offer.server {
                        Some(server) if server == other => ensure!(
                            offer.boot_file.is_none(),
                            "dnsmasq names a boot file: {offer:?}"
                        ),
                        Some(server) if server == ours => {
                            ensure!(!gives, "we gave an address: {offer:?}");
                        }
                        _ => bail!("somebody else answers: {offer:?}"),
                    }
                }
                let file = offers()
                    .filter(|offer| offer.server == Some(ours))
                    .find_map(|offer| offer.boot_file.as_deref());
                let file = file.context("the capture has no boot file of ours")?;
                let port = offers()
                    .filter(|offer| offer.server == Some(ours))
                    .map(|offer| offer.from.1)
                    .max();
                step.evidence(format!(
                    "capture: every address from dnsmasq, the boot file {file} from us, by \
                     port {} at the highest",
                    port.unwrap_or_default()
                ));
            }
            Shape::NoFactory | Shape::OverIpv6 => {
                let strangers = offers().find(|offer| offer.server != Some(other));
                ensure!(strangers.is_none(), "somebody else answers: {strangers:?}");
            }
            Shape::BehindRelay => {
                let relayed = offers().filter(|offer| offer.from.0 == self.plan.far(1));
                let relayed = relayed.count();
                ensure!(relayed > 0, "the capture has no answer through the relay");
                step.evidence(format!(
                    "capture of the machine's network: {relayed} answers through the relay {}",
                    self.plan.far(1)
                ));
            }
        }
        Ok(())
    }

    /// The URL that the firmware is to fetch by IPv6, where it is to.
    pub(in crate::story) fn url6(&self) -> Option<String> {
        let factory = self.plan.factory6();
        (self.shape == Shape::OverIpv6)
            .then(|| format!("http://[{factory}]:{FACTORY_PORT}/boot/installer.efi"))
    }

    /// Ends the case's servers and takes its networks away.
    pub(in crate::story) async fn clear_away(self) -> anyhow::Result<()> {
        if let Some(factory) = self.factory {
            factory.stop().await?;
        }
        self.capturing.end().await?;
        if let Some((server, host)) = self.other {
            server.kill().await?;
            host.remove().await?;
        }
        for network in [Some(self.near), self.far].into_iter().flatten() {
            network.remove().await?;
        }
        Ok(())
    }
}

/// An existing DHCP server, as an office has one: addresses, and nothing to boot.
async fn dnsmasq(
    plan: Plan,
    near: &Network,
    folder: &Path,
    step: &mut Step,
) -> anyhow::Result<(Server, Neighbour)> {
    let host = Neighbour::create(&format!("office{}", plan.number)).await?;
    let interface = format!("office{}", plan.number);
    host.plug(near, &interface, plan.other(), 24).await?;
    let arguments = [
        "--no-daemon".to_owned(),
        "--port=0".to_owned(),
        "--user=root".to_owned(),
        "--conf-file=/dev/null".to_owned(),
        "--bind-interfaces".to_owned(),
        "--log-dhcp".to_owned(),
        "--dhcp-authoritative".to_owned(),
        format!("--interface={interface}"),
        format!("--dhcp-range={},{}", plan.near(100), plan.near(150)),
        format!("--dhcp-option=option:router,{}", plan.factory()),
        "--dhcp-leasefile=/dev/null".to_owned(),
    ];
    step.command("dnsmasq", &arguments);
    let recipe = Recipe::new(
        "dnsmasq",
        host.tool("dnsmasq", &arguments),
        folder.join("dnsmasq.log"),
    );
    let server = Server::start(recipe, Ready::Line("IP range".to_owned())).await?;
    step.evidence(format!(
        "dnsmasq at {} gives the addresses of this network",
        plan.other()
    ));
    Ok((server, host))
}

/// A router between the factory's network and the machine's, with ISC's relay on it.
async fn relay(
    plan: Plan,
    near: &Network,
    far: &Network,
    folder: &Path,
    step: &mut Step,
) -> anyhow::Result<(Server, Neighbour)> {
    // Not among what every laboratory needs: its package would start a service.
    prerequisites::require("dhcrelay", "isc-dhcp-relay")?;
    let host = Neighbour::create(&format!("router{}", plan.number)).await?;
    let (up, down) = (format!("up{}", plan.number), format!("down{}", plan.number));
    host.plug(near, &up, plan.other(), 24).await?;
    host.plug(far, &down, plan.far(1), 24).await?;
    host.route(plan.factory()).await?;
    near.route(&format!("{}/24", plan.far(0)), plan.other())
        .await?;
    let server = plan.factory().to_string();
    let arguments = [
        "-4", "-d", "--no-pid", "-a", "-i", &down, "-i", &up, &server,
    ];
    step.command("dhcrelay", arguments);
    let recipe = Recipe::new(
        "dhcrelay",
        host.tool("dhcrelay", arguments),
        folder.join("dhcrelay.log"),
    );
    // Its last words before it serves.
    let ready = Ready::Line("Sending on   Socket/".to_owned());
    let server = Server::start(recipe, ready).await?;
    step.evidence(format!(
        "dhcrelay at {} brings the network {}/24 to the factory",
        plan.far(1),
        plan.far(0)
    ));
    Ok((server, host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_factory_is_told_of_its_network_and_of_the_one_behind_the_relay() {
        let plan = Plan { number: 3 };
        assert_eq!(plan.dhcp(Shape::BesideDnsmasq), "mode = \"proxy\"\n");
        let relayed = plan.dhcp(Shape::BehindRelay);
        assert!(
            relayed.starts_with("mode = \"server\"\nnetwork = \"10.80.3.0/24\""),
            "{relayed}"
        );
        assert!(
            relayed.ends_with(
                "[[dhcp.relayed]]\nnetwork = \"10.81.3.0/24\"\n\
                 pool = [\"10.81.3.100\", \"10.81.3.150\"]\nrouters = [\"10.81.3.1\"]\n"
            ),
            "{relayed}"
        );
    }
}
