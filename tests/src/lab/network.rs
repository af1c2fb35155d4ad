//! Ethernet of the laboratory: a bridge, ports for machines, and a capture of all of it.
//!
//! A port is a TAP device. Where this user may not open `/dev/net/tun`, as in some
//! containers, it is a pair of virtual interfaces with `socat` carrying the frames
//! between one end and QEMU's socket: slower, and otherwise the same.

use std::fs::OpenOptions;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use edge::runner::Tool;

use super::isolation::RUN;
use super::log::LogTail;
use super::loss::{End, Loss, Toll, Wire};
use super::process::{Process, Recipe, run};

/// A bridge with an address of ours, inside the laboratory's network namespace.
#[derive(Debug)]
pub struct Network {
    bridge: String,
    address: Ipv4Addr,
    prefix: u8,
    wiring: Wiring,
}

/// How machines are plugged in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wiring {
    /// TAP devices.
    Tap,
    /// Virtual interface pairs and `socat`.
    Socat,
}

impl Wiring {
    /// Chooses by whether this user can open `/dev/net/tun`.
    #[must_use]
    pub fn detect() -> Self {
        let tun = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/net/tun");
        if tun.is_ok() { Self::Tap } else { Self::Socat }
    }
}

/// A place to plug one network card in. Dropping it pulls the plug.
#[derive(Debug)]
pub struct Port {
    interface: String,
    kind: PortKind,
}

#[derive(Debug)]
enum PortKind {
    Tap,
    Socat {
        /// The end of the pair that is not on the bridge.
        far: String,
        relay: Option<Box<Process>>,
        loss: Option<Lossy>,
    },
}

/// What a lossy port loses, while a machine is on and before.
#[derive(Debug)]
struct Lossy {
    loss: Loss,
    wire: Option<Wire>,
    /// What earlier lives of the machine lost.
    earlier: Toll,
}

/// A running packet capture. Dropping it ends it.
#[derive(Debug)]
pub struct Capturing {
    file: PathBuf,
    tcpdump: Process,
}

impl Network {
    /// Makes a bridge, for example `lan0` with 10.77.0.1/24, and brings it up.
    ///
    /// # Errors
    /// `ip` failed: most likely this is not inside a laboratory.
    pub async fn create(
        bridge: &str,
        address: Ipv4Addr,
        prefix: u8,
        wiring: Wiring,
    ) -> anyhow::Result<Self> {
        Self::bridge(bridge, Some((address, prefix)), wiring).await
    }

    /// Makes a bridge that we have no address on: a network beside ours, which a router
    /// leads to.
    ///
    /// # Errors
    /// As `create`.
    pub async fn beyond(bridge: &str, wiring: Wiring) -> anyhow::Result<Self> {
        Self::bridge(bridge, None, wiring).await
    }

    async fn bridge(
        bridge: &str,
        own: Option<(Ipv4Addr, u8)>,
        wiring: Wiring,
    ) -> anyhow::Result<Self> {
        ensure!(
            super::isolation::is_inside(),
            "bridge {bridge}: expected to be inside a laboratory, not on the host's network"
        );
        // With the usual delay of 15 s, firmware gives up on DHCP before a port forwards.
        let kind = ["type", "bridge", "forward_delay", "0", "stp_state", "0"];
        ip(&["link", "add", bridge], &kind).await?;
        if let Some((address, prefix)) = own {
            let with_prefix = format!("{address}/{prefix}");
            ip(&["addr", "add", &with_prefix, "dev", bridge], &[]).await?;
        }
        ip(&["link", "set", bridge, "up"], &[]).await?;
        if wiring == Wiring::Socat {
            no_offload(bridge).await?;
        }
        let (address, prefix) = own.unwrap_or((Ipv4Addr::UNSPECIFIED, 0));
        Ok(Self {
            bridge: bridge.to_owned(),
            address,
            prefix,
            wiring,
        })
    }

    /// The bridge's name, which is also the interface that our servers listen on.
    #[must_use]
    pub fn interface(&self) -> &str {
        &self.bridge
    }

    /// Our address on the bridge.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Gives the bridge another address: another server of the story.
    ///
    /// # Errors
    /// `ip` failed.
    pub async fn add_address(&self, address: Ipv4Addr) -> anyhow::Result<()> {
        let with_prefix = format!("{address}/{}", self.prefix);
        ip(&["addr", "add", &with_prefix, "dev", &self.bridge], &[]).await
    }

    /// Gives the bridge an address of IPv6, of a network with 64 bits.
    ///
    /// # Errors
    /// `ip` failed.
    pub async fn add_address6(&self, address: Ipv6Addr) -> anyhow::Result<()> {
        let with_prefix = format!("{address}/64");
        ip(&["addr", "add", &with_prefix, "dev", &self.bridge], &[]).await
    }

    /// Leads to a network behind a router on this one.
    ///
    /// # Errors
    /// `ip` failed.
    pub async fn route(&self, network: &str, router: Ipv4Addr) -> anyhow::Result<()> {
        let router = router.to_string();
        ip(&["route", "add", network, "via", &router], &[]).await
    }

    /// Removes the bridge. Ports and captures have to be gone before.
    ///
    /// # Errors
    /// `ip` failed.
    pub async fn remove(self) -> anyhow::Result<()> {
        ip(&["link", "del", &self.bridge], &[]).await
    }

    /// Makes a port. `name` is the interface's: at most 15 bytes.
    ///
    /// # Errors
    /// `ip`, `ethtool` or `socat` failed.
    pub async fn port(&self, name: &str) -> anyhow::Result<Port> {
        self.plug(name, None).await
    }

    /// Makes a port that loses frames.
    ///
    /// # Errors
    /// As `port`.
    pub async fn lossy_port(&self, name: &str, loss: Loss) -> anyhow::Result<Port> {
        self.plug(name, Some(loss)).await
    }

    async fn plug(&self, name: &str, loss: Option<Loss>) -> anyhow::Result<Port> {
        ensure!(
            name.len() < 16,
            "port {name}: an interface name has at most 15 bytes"
        );
        let kind = match self.wiring {
            Wiring::Tap if loss.is_none() => {
                ip(&["tuntap", "add", "dev", name, "mode", "tap"], &[]).await?;
                PortKind::Tap
            }
            // Frames that are to be lost have to pass through our hands.
            Wiring::Tap | Wiring::Socat => self.socat(name, loss).await?,
        };
        ip(&["link", "set", name, "master", &self.bridge], &[]).await?;
        ip(&["link", "set", name, "up"], &[]).await?;
        Ok(Port {
            interface: name.to_owned(),
            kind,
        })
    }

    /// Captures all that crosses the bridge into a file, whose name must end in `.pcap`.
    ///
    /// # Errors
    /// `tcpdump` did not start.
    pub async fn capture(&self, file: &Path) -> anyhow::Result<Capturing> {
        let log = file.with_extension("tcpdump.log");
        let _ = std::fs::remove_file(&log);
        let tool = Tool::new("tcpdump")
            // It must stay root of the laboratory: the user `tcpdump` may not write here.
            .args(["-Z", "root", "-U", "--immediate-mode", "-n", "-s", "0"])
            // On a busy machine the usual buffer of 2 MiB loses frames of a transfer.
            .args(["-B", "65536", "-i", &self.bridge, "-w"])
            .arg(file);
        let mut tcpdump = Recipe::new("tcpdump", tool, &log).start()?;
        LogTail::from_start(&log)
            .wait_for(&["listening on"], Duration::from_secs(10), || {
                tcpdump.alive()
            })
            .await
            .context("start the packet capture")?;
        Ok(Capturing {
            file: file.to_owned(),
            tcpdump,
        })
    }

    async fn socat(&self, name: &str, loss: Option<Loss>) -> anyhow::Result<PortKind> {
        let far = format!("{}-q", name.chars().take(13).collect::<String>());
        ip(
            &["link", "add", name],
            &["type", "veth", "peer", "name", &far],
        )
        .await?;
        no_offload(name).await?;
        no_offload(&far).await?;
        ip(&["link", "set", &far, "up"], &[]).await?;
        let loss = loss.map(|loss| Lossy {
            loss,
            wire: None,
            earlier: Toll::default(),
        });
        let relay = None;
        Ok(PortKind::Socat { far, relay, loss })
    }
}

impl Port {
    /// The interface's name.
    #[must_use]
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// QEMU's `-netdev` argument for this port.
    #[must_use]
    pub fn netdev(&self, id: &str) -> String {
        match &self.kind {
            PortKind::Tap => format!(
                "tap,id={id},ifname={},script=no,downscript=no,vhost=off",
                self.interface
            ),
            PortKind::Socat { .. } => format!(
                "dgram,id={id},local.type=unix,local.path={},remote.type=unix,remote.path={}",
                self.socket("machine").display(),
                self.socket("wire").display()
            ),
        }
    }

    /// Pulls the cable, or plugs it in again.
    ///
    /// # Errors
    /// `ip` failed.
    pub async fn cable(&self, cable: Cable) -> anyhow::Result<()> {
        let state = match cable {
            Cable::In => "up",
            Cable::Out => "down",
        };
        ip(&["link", "set", &self.interface, state], &[]).await
    }

    /// Removes the port.
    ///
    /// # Errors
    /// `ip` failed.
    pub async fn remove(self) -> anyhow::Result<()> {
        ip(&["link", "del", &self.interface], &[]).await
    }

    /// Clears what an earlier life of the machine left: QEMU makes its socket itself.
    pub(super) fn release(&mut self) {
        let sockets = ["machine", "wire", "near", "cable"].map(|side| self.socket(side));
        if let PortKind::Socat { relay, loss, .. } = &mut self.kind {
            *relay = None;
            if let Some(lossy) = loss {
                lossy.earlier = lossy.toll();
                lossy.wire = None;
            }
            for socket in sockets {
                let _ = std::fs::remove_file(socket);
            }
        }
    }

    /// Joins the port to a QEMU that has started. Not earlier: `socat` ends when nobody
    /// listens where it sends.
    pub(super) fn join(&mut self) -> anyhow::Result<()> {
        let log = Path::new(RUN).join(format!("{}.socat.log", self.interface));
        let (machine, wire) = (self.socket("machine"), self.socket("wire"));
        let (near, cable) = (self.socket("near"), self.socket("cable"));
        if let PortKind::Socat { far, relay, loss } = &mut self.kind {
            let (peer, bind) = match loss {
                None => (machine, wire),
                Some(lossy) => {
                    let inner = End {
                        own: wire,
                        peer: machine,
                    };
                    let outer = End {
                        own: near.clone(),
                        peer: cable.clone(),
                    };
                    lossy.wire = Some(Wire::start(lossy.loss, inner, outer)?);
                    (near, cable)
                }
            };
            let peer = format!("UNIX-SENDTO:{},bind={}", peer.display(), bind.display());
            let tool = Tool::new("socat").arg(format!("INTERFACE:{far}")).arg(peer);
            *relay = Some(Box::new(Recipe::new("socat", tool, &log).start()?));
        }
        Ok(())
    }

    /// What the port has carried and lost, where it is one that loses.
    #[must_use]
    pub fn toll(&self) -> Option<Toll> {
        match &self.kind {
            PortKind::Socat { loss, .. } => loss.as_ref().map(Lossy::toll),
            PortKind::Tap => None,
        }
    }

    fn socket(&self, side: &str) -> PathBuf {
        Path::new(RUN).join(format!("{}.{side}", self.interface))
    }
}

impl Lossy {
    fn toll(&self) -> Toll {
        let now = self.wire.as_ref().map(Wire::toll);
        now.map_or(self.earlier, |now| self.earlier.and(now))
    }
}

/// Whether a cable is plugged in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cable {
    /// Plugged in.
    In,
    /// Pulled out.
    Out,
}

impl Capturing {
    /// The file that is being written. Every packet is in it as soon as it was seen.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Ends the capture.
    ///
    /// # Errors
    /// `tcpdump` had to be killed.
    pub async fn end(mut self) -> anyhow::Result<PathBuf> {
        self.tcpdump.stop(Duration::from_secs(5)).await?;
        Ok(self.file)
    }
}

pub(super) async fn ip(arguments: &[&str], more: &[&str]) -> anyhow::Result<()> {
    run("ip", arguments.iter().chain(more)).await.map(drop)
}

/// Frames that leave through a socket must be whole: checksums filled in, and never
/// longer than the wire allows.
pub(super) async fn no_offload(interface: &str) -> anyhow::Result<()> {
    let off = [
        "tx", "off", "sg", "off", "tso", "off", "gso", "off", "gro", "off",
    ];
    run("ethtool", ["-K", interface].iter().chain(&off))
        .await
        .map(drop)
}

/// The address of a host in the laboratory's network.
#[must_use]
pub fn host(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, number)
}
