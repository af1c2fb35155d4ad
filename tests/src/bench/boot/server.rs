//! Our servers of network boot, with a folder to serve and durable leases.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use pxe::boot::{BootAnswer, BootEvent, BootFile, BootRequest, BootSource, NotServed};
use pxe::dhcp::{self, Config, ConflictCheck, FileStore, LocalDiskReply, Mode, Subnet};
use tokio::net::UdpSocket;

struct Folder(PathBuf);

impl BootSource for Folder {
    fn decide(&self, _: &BootRequest) -> BootAnswer {
        BootAnswer::Boot {
            tftp_path: "big".into(),
            http_path: "big".into(),
        }
    }

    fn open(&self, _: IpAddr, path: &str) -> Result<BootFile, NotServed> {
        Ok(BootFile::Path(self.0.join(path)))
    }

    fn observe(&self, _: &BootEvent) {}
}

/// Serves DHCP and TFTP until it is killed.
///
/// # Errors
/// A port cannot be had, or a server broke.
pub async fn serve(
    interface: &str,
    server: Ipv4Addr,
    root: PathBuf,
    leases: PathBuf,
) -> anyhow::Result<()> {
    let [a, b, _, _] = server.octets();
    let mode = Mode::Authoritative(vec![Subnet {
        network: Ipv4Addr::new(a, b, 0, 0),
        prefix: 16,
        range: Ipv4Addr::new(a, b, 1, 0)..=Ipv4Addr::new(a, b, 255, 250),
        reservations: BTreeMap::new(),
        places: Vec::new(),
        routers: Vec::new(),
        name_servers: Vec::new(),
        domain: None,
        lease: Duration::from_secs(3600),
        options: Vec::new(),
    }]);
    let config = Config {
        mode,
        server,
        http_base: format!("http://{server}:8080"),
        local_disk: LocalDiskReply::Loader,
        conflicts: ConflictCheck::Arp,
    };
    let tftp = UdpSocket::bind((server, 69)).await;
    let tftp = tftp.context("bind TFTP port 69")?;
    let sockets = dhcp::server::Sockets::bind(interface, &config.mode)?;
    let store = FileStore::open(&leases).context("open the lease journal")?;
    let source: Arc<dyn BootSource> = Arc::new(Folder(root));
    let forever = std::future::pending;
    let (clock, limits) = (edge::clock::now, pxe::tftp::Limits::default());
    let answered = Arc::clone(&source);
    tokio::select! {
        done = dhcp::server::run(sockets, config, store, answered, clock, forever()) => done?,
        done = pxe::tftp::run(tftp, limits, source, forever()) => done?,
    }
    Ok(())
}
