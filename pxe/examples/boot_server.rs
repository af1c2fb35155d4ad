//! Serves a folder to machines that boot from the network: DHCP, TFTP and HTTP.
//!
//! For trying firmware on a bench or in a network namespace. Machines named by
//! `--local-disk` (or all, with `all`) are told to boot their disk.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Parser, ValueEnum};
use pxe::boot::{BootAnswer, BootEvent, BootFile, BootRequest, BootSource, ClientClass, NotServed};
use pxe::dhcp::{self, ConflictCheck, FileStore, LocalDiskReply, Mode, Subnet};
use tokio::net::{TcpListener, UdpSocket};

#[derive(Debug, Parser)]
struct Args {
    /// Interface to answer on
    #[arg(long)]
    interface: String,
    /// Address of this server on that interface
    #[arg(long)]
    server: Ipv4Addr,
    /// Folder to serve
    #[arg(long)]
    root: PathBuf,
    /// File that PXE clients boot
    #[arg(long, default_value = "boot.efi")]
    file: String,
    /// Machines that are told to boot their disk: MAC addresses, or "all"
    #[arg(long)]
    local_disk: Vec<String>,
    /// How they are told
    #[arg(long, value_enum, default_value = "loader")]
    local_disk_reply: How,
    /// Leave PXE clients without answer, so that firmware comes to HTTP boot
    #[arg(long)]
    http_only: bool,
    /// Leave the addresses to another server
    #[arg(long)]
    proxy: bool,
    /// Lease journal
    #[arg(long, default_value = "leases")]
    leases: PathBuf,
    /// First and last address, as 10.0.0.10-10.0.0.99
    #[arg(long)]
    pool: Option<String>,
    /// Only ask whether another DHCP server answers
    #[arg(long)]
    probe: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum How {
    Loader,
    Menu,
    Lease,
    Silence,
}

struct Folder {
    args: Args,
    began: Instant,
}

impl BootSource for Folder {
    fn decide(&self, request: &BootRequest) -> BootAnswer {
        if self.args.http_only && request.client_class == ClientClass::Pxe {
            return BootAnswer::Ignore {
                reason: "only HTTP boot is answered".into(),
            };
        }
        let mac = request.mac.to_string();
        if self
            .args
            .local_disk
            .iter()
            .any(|word| *word == mac || word == "all")
        {
            return BootAnswer::LocalDisk {
                reason: "asked for on the command line".into(),
            };
        }
        let path = self.args.file.clone();
        BootAnswer::Boot {
            tftp_path: path.clone(),
            http_path: path,
        }
    }

    fn open(&self, _: IpAddr, path: &str) -> Result<BootFile, NotServed> {
        Ok(BootFile::Path(self.args.root.join(path)))
    }

    fn observe(&self, event: &BootEvent) {
        tracing::info!(
            at = format!("{:.3}", self.began.elapsed().as_secs_f64()),
            "{event}"
        );
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let args = Args::parse();
    if args.probe {
        let found = dhcp::probe(&args.interface, std::process::id(), dhcp::PROBE_TIMEOUT).await?;
        tracing::info!(?found, "other DHCP server");
        return Ok(());
    }
    let [a, b, c, _] = args.server.octets();
    let range = match args.pool.as_deref().and_then(|pool| pool.split_once('-')) {
        Some((first, last)) => first.parse()?..=last.parse()?,
        None => Ipv4Addr::new(a, b, c, 100)..=Ipv4Addr::new(a, b, c, 199),
    };
    let mode = if args.proxy {
        Mode::Proxy
    } else {
        Mode::Authoritative(vec![Subnet {
            network: Ipv4Addr::new(a, b, 0, 0),
            prefix: 16,
            range,
            reservations: BTreeMap::new(),
            places: Vec::new(),
            routers: Vec::new(),
            name_servers: Vec::new(),
            domain: None,
            lease: Duration::from_secs(3600),
            options: Vec::new(),
        }])
    };
    let config = dhcp::Config {
        mode,
        server: args.server,
        http_base: format!("http://{}:8080", args.server),
        local_disk: match args.local_disk_reply {
            How::Loader => LocalDiskReply::Loader,
            How::Menu => LocalDiskReply::BootMenu,
            How::Lease => LocalDiskReply::PlainLease,
            How::Silence => LocalDiskReply::Silence,
        },
        conflicts: ConflictCheck::Arp,
    };
    let sockets = dhcp::server::Sockets::bind(&args.interface, &config.mode)?;
    let tftp = UdpSocket::bind((args.server, 69))
        .await
        .context("bind TFTP port 69")?;
    let listener = TcpListener::bind((args.server, 8080))
        .await
        .context("bind HTTP port 8080")?;
    let store = FileStore::open(&args.leases).context("open the lease journal")?;
    let source: Arc<dyn BootSource> = Arc::new(Folder {
        args,
        began: Instant::now(),
    });
    tracing::info!(address = %SocketAddr::from((config.server, 0)).ip(), "serving");
    #[allow(
        clippy::disallowed_methods,
        reason = "an example is an edge of its own"
    )]
    let clock = jiff::Timestamp::now;
    let forever = std::future::pending;
    tokio::select! {
        done = dhcp::server::run(sockets, config, store, Arc::clone(&source), clock, forever()) => done?,
        done = pxe::tftp::run(tftp, pxe::tftp::Limits::default(), Arc::clone(&source), forever()) => done?,
        done = pxe::http::run(listener, source, forever()) => done?,
        _ = tokio::signal::ctrl_c() => {}
    }
    Ok(())
}
