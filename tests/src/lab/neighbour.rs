//! Somebody else's host on a network of the laboratory, with a network stack of its own.

use std::ffi::OsStr;
use std::net::Ipv4Addr;

use anyhow::ensure;
use edge::runner::Tool;

use super::network::{Network, ip, no_offload};

/// A host in a network namespace. What runs there is started by [`Neighbour::tool`].
#[derive(Debug)]
pub struct Neighbour {
    name: String,
}

impl Neighbour {
    /// Makes a host without any network.
    ///
    /// # Errors
    /// `ip` failed: most likely this is not inside a laboratory.
    pub async fn create(name: &str) -> anyhow::Result<Self> {
        ip(&["netns", "add", name], &[]).await?;
        let neighbour = Self {
            name: name.to_owned(),
        };
        neighbour.ip(&["link", "set", "lo", "up"]).await?;
        Ok(neighbour)
    }

    /// Plugs the host into a network, by an interface of this name: at most 12 bytes.
    ///
    /// # Errors
    /// The name is too long, or `ip` or `ethtool` failed.
    pub async fn plug(
        &self,
        network: &Network,
        interface: &str,
        address: Ipv4Addr,
        prefix: u8,
    ) -> anyhow::Result<()> {
        ensure!(
            interface.len() <= 12,
            "interface {interface}: expected a name of at most 12 bytes"
        );
        let outer = format!("to-{interface}");
        ip(
            &["link", "add", &outer],
            &["type", "veth", "peer", "name", interface],
        )
        .await?;
        no_offload(&outer).await?;
        no_offload(interface).await?;
        ip(&["link", "set", interface, "netns", &self.name], &[]).await?;
        let bridge = network.interface();
        ip(&["link", "set", &outer, "master", bridge], &[]).await?;
        ip(&["link", "set", &outer, "up"], &[]).await?;
        let with_prefix = format!("{address}/{prefix}");
        self.ip(&["addr", "add", &with_prefix, "dev", interface])
            .await?;
        self.ip(&["link", "set", interface, "up"]).await
    }

    /// Makes the host a router, with a default route of its own.
    ///
    /// # Errors
    /// `ip` or `sysctl` failed.
    pub async fn route(&self, gateway: Ipv4Addr) -> anyhow::Result<()> {
        let forward = self.tool("sh", ["-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"]);
        forward.run_async().await?;
        self.ip(&["route", "add", "default", "via", &gateway.to_string()])
            .await
    }

    /// A program on the host, not yet started.
    #[must_use]
    pub fn tool<S: AsRef<OsStr>>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Tool {
        Tool::new("ip")
            .args(["netns", "exec", &self.name, program])
            .args(arguments)
    }

    /// Removes the host with its interfaces. What runs there has to be stopped before.
    ///
    /// # Errors
    /// `ip` failed.
    pub async fn remove(self) -> anyhow::Result<()> {
        ip(&["netns", "del", &self.name], &[]).await
    }

    async fn ip(&self, arguments: &[&str]) -> anyhow::Result<()> {
        ip(&["-n", &self.name], arguments).await
    }
}
