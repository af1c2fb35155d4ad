//! The daemon: binds everything, says that it is ready, runs until it is told to stop.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use edge::exit::{Classify as _, Failure, Kind, hint};
use pxe::boot::BootSource;
use pxe::dhcp::lease::{FileStore, NoStore};
use pxe::dhcp::policy::Mode;
use pxe::dhcp::server::Sockets;
use pxe::dhcp6;
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, UdpSocket, UnixListener};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::cache::Cache;
use super::config::{Config, OtherServer};
use super::disks::DiskShelf;
use super::ledger::Ledger;
use super::routes::{self, Factory};
use super::sky::{SkyClient, SkyError};
use super::source::{Bench, Programs, UNSIGNED_ANSWER};
use super::story::Stories;
use crate::WHO_IS_FACTORY;

/// How long another DHCP server may take to answer our question. Some of them
/// try first for three seconds whether an address is taken.
const PROBE: Duration = Duration::from_secs(5);
/// How often the channel is asked.
const CHANNEL: Duration = Duration::from_secs(5);
/// How often the sky is told what it was not told yet.
const OWED: Duration = Duration::from_secs(10);

/// Runs the factory until `stop`.
///
/// # Errors
/// Kind `Environment` where an address, a port or a folder cannot be had or
/// another DHCP server answers; `Refused` where the sky does not know our token.
pub async fn run(config: Config, stop: CancellationToken) -> Result<(), Failure> {
    let clock = edge::clock::now;
    allow_many_files();
    tls::install_provider();
    refuse_second_server(&config).await?;
    let ledger = Ledger::open(&config.state.join("machines.jsonl")).environment()?;
    let ledger = Arc::new(ledger);
    let stories = Arc::new(Stories::open(&config.state.join("stories.jsonl")).environment()?);
    let sky = SkyClient::new(&config.sky)
        .context("sky.ca")
        .invalid_input()?;
    let cache = Cache::open(
        &config.cache,
        sky.clone(),
        config.trust_root.clone(),
        config.channel.clone(),
    )
    .environment()?;
    let cache = Arc::new(cache);
    cache.resume(clock());
    let bench = Arc::new(Bench::new(
        Arc::clone(&ledger),
        Arc::clone(&cache),
        stories,
        clock,
        Programs {
            local_boot: config.local_boot.clone(),
            ipxe: config.ipxe.clone(),
        },
    ));
    let factory = Arc::new(Factory {
        ledger,
        cache,
        bench: Arc::clone(&bench),
        sky,
        trust: config.trust_root.clone(),
        clock,
        announcements: routes::Announcements::default(),
        disks: DiskShelf::default(),
    });
    let bound = Bound::bind(&config).await?;
    first_contact(&factory).await?;

    let mut tasks: JoinSet<Result<()>> = JoinSet::new();
    let source: Arc<dyn BootSource> = bench;
    if let Some((sockets, dhcp)) = bound.dhcp.zip(config.dhcp.clone()) {
        serve_dhcp(&mut tasks, &config, (sockets, dhcp), &source, &stop)?;
    }
    if let Some((sockets, dhcp6)) = bound.dhcp6.zip(config.dhcp6.clone()) {
        let (source, stopped) = (Arc::clone(&source), stop.clone().cancelled_owned());
        tasks.spawn(async move {
            let run = dhcp6::server::run(sockets, dhcp6, source, stopped);
            run.await.context("DHCPv6 server")
        });
    }
    {
        let (source, stop) = (Arc::clone(&source), stop.clone());
        let limits = pxe::tftp::server::Limits::default();
        tasks.spawn(async move {
            let stopped = stop.cancelled_owned();
            let served = pxe::tftp::server::run(bound.tftp, limits, source, stopped).await;
            served.context("TFTP server")
        });
    }
    for listener in bound.http {
        let service = routes::router(Arc::clone(&factory));
        let service = service.into_make_service_with_connect_info::<SocketAddr>();
        let stopped = stop.clone().cancelled_owned();
        tasks.spawn(async move {
            let limits = pxe::connections::Limits::default();
            let listener = pxe::connections::limited(listener, limits);
            let server = axum::serve(listener, service).with_graceful_shutdown(stopped);
            server.await.context("HTTP server")
        });
    }
    if let Some(listener) = bound.metrics {
        let service = routes::metrics_router(Arc::clone(&factory));
        let stopped = stop.clone().cancelled_owned();
        tasks.spawn(async move {
            let listener = pxe::connections::limited(listener, pxe::connections::Limits::default());
            let server = axum::serve(listener, service).with_graceful_shutdown(stopped);
            server.await.context("metrics server")
        });
    }
    let control = routes::control_router(Arc::clone(&factory));
    let stopped = stop.clone().cancelled_owned();
    tasks.spawn(async move {
        let server = axum::serve(bound.control, control).with_graceful_shutdown(stopped);
        server.await.context("control socket")
    });
    {
        let (base, stop) = (config.http_base.clone(), stop.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => Ok(()),
                ended = tell_who_asks(bound.finder, base) => ended.context("discovery"),
            }
        });
    }
    tokio::spawn(follow_channel(Arc::clone(&factory), stop.clone()));
    tokio::spawn(tell_owed(Arc::clone(&factory), stop.clone()));

    let mode = match config.dhcp.as_ref().map(|dhcp| &dhcp.mode) {
        Some(Mode::Authoritative(_)) => "server",
        Some(Mode::Proxy) => "proxy",
        None => "off",
    };
    let dhcp6 = match &config.dhcp6 {
        Some(dhcp6) => format!(", dhcp6 on {}", dhcp6.server),
        None => String::new(),
    };
    edge::out::line(format_args!(
        "leap-provisioner: ready on {} (interface {}, dhcp {mode}{dhcp6}, channel {})",
        config.http_base, config.interface, config.channel
    ));

    let ended = tokio::select! {
        () = stop.cancelled() => Ok(()),
        Some(ended) = tasks.join_next() => ended.context("a server of the factory")?,
    };
    stop.cancel();
    // Long polls of installers end with their connections; they ask again.
    drop(tokio::time::timeout(Duration::from_secs(2), tasks.join_all()).await);
    drop(std::fs::remove_file(config.control_socket()));
    ended.map_err(Failure::from)
}

/// A machine at birth holds a few sockets and files. The usual limit of 1,024 is
/// soft, and too few for a bench of hundreds.
fn allow_many_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: maximum,
        maximum,
    };
    if let Err(problem) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%problem, "limit of open files not raised");
    }
}

async fn refuse_second_server(config: &Config) -> Result<(), Failure> {
    if config.other_server == OtherServer::Allow {
        return Ok(());
    }
    let mut xid = [0; 4];
    getrandom::fill(&mut xid)
        .map_err(|error| anyhow!("read randomness: {error}"))
        .environment()?;
    let (interface, xid) = (&config.interface, u32::from_be_bytes(xid));
    // A lease of our own last run cannot answer: nothing listens yet.
    let found = async {
        match config.dhcp.as_ref().map(|dhcp| &dhcp.mode) {
            Some(Mode::Authoritative(_)) => {
                let found = pxe::dhcp::probe(interface, xid, PROBE).await?;
                Ok(found.filter(|server| *server != config.address))
            }
            Some(Mode::Proxy) | None => Ok(None),
        }
    };
    let found6 = async {
        match &config.dhcp6 {
            Some(_) => dhcp6::probe(interface, xid, PROBE).await,
            None => Ok(None),
        }
    };
    let (found, found6) = tokio::try_join!(found, found6).environment()?;
    if let Some(server) = found {
        return Err(Failure::new(
            Kind::Environment,
            hint(
                anyhow!("interface {interface}: another DHCP server answers, {server}"),
                "set dhcp.mode = \"proxy\" to work beside it, or choose a network of its own; \
                 --beside-other-dhcp-server overrides",
            ),
        ));
    }
    if let Some(server) = found6 {
        return Err(Failure::new(
            Kind::Environment,
            hint(
                anyhow!("interface {interface}: another DHCPv6 server answers, {server}"),
                "remove the section dhcp6: machines boot by IPv4 too; \
                 --beside-other-dhcp-server overrides",
            ),
        ));
    }
    Ok(())
}

/// All sockets, bound before anything is promised.
struct Bound {
    dhcp: Option<Sockets>,
    dhcp6: Option<dhcp6::server::Sockets>,
    tftp: UdpSocket,
    http: Vec<TcpListener>,
    metrics: Option<TcpListener>,
    finder: UdpSocket,
    control: UnixListener,
}

impl Bound {
    async fn bind(config: &Config) -> Result<Self, Failure> {
        let Config {
            interface,
            address,
            http_port,
            ..
        } = config;
        let rights = "binding low ports wants root or CAP_NET_BIND_SERVICE and CAP_NET_RAW; \
                      is another server running there?";
        let dhcp = config.dhcp.as_ref();
        let dhcp = dhcp.map(|dhcp| Sockets::bind(interface, &dhcp.mode));
        let dhcp = dhcp
            .transpose()
            .map_err(|error| hint(error, rights))
            .environment()?;
        let dhcp6 = config.dhcp6.as_ref();
        let sockets = dhcp6.map(|dhcp6| dhcp6::server::Sockets::bind(interface, dhcp6));
        let sockets = sockets
            .transpose()
            .map_err(|error| hint(error, rights))
            .environment()?;
        let tftp = UdpSocket::bind((*address, 69))
            .await
            .with_context(|| format!("bind UDP port 69 on {address}"))
            .map_err(|error| hint(error, rights))
            .environment()?;
        let http = TcpListener::bind((*address, *http_port))
            .await
            .with_context(|| format!("listen on {address}:{http_port}"))
            .map_err(|error| hint(error, "is the address on this machine, and the port free?"))
            .environment()?;
        let mut http = vec![http];
        if let Some(server) = dhcp6.map(|dhcp6| dhcp6.server) {
            let listener = bind_http6(server, *http_port)
                .with_context(|| format!("listen on [{server}]:{http_port}"))
                .environment()?;
            http.push(listener);
        }
        let metrics = match config.metrics {
            None => None,
            Some(address) => Some(
                TcpListener::bind(address)
                    .await
                    .with_context(|| format!("metrics.listen: listen on {address}"))
                    .map_err(|error| {
                        hint(error, "is the address on this machine, and the port free?")
                    })
                    .environment()?,
            ),
        };
        let finder = bind_finder(interface, *http_port)
            .with_context(|| format!("bind UDP port {http_port} on interface {interface}"))
            .environment()?;
        let control = bind_control(&config.control_socket()).environment()?;
        Ok(Self {
            dhcp,
            dhcp6: sockets,
            tftp,
            http,
            metrics,
            finder,
            control,
        })
    }
}

/// A listener on an address that the interface has, and may still be trying out: machines
/// are not told of it before they could reach it.
fn bind_http6(address: Ipv6Addr, port: u16) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_only_v6(true)?;
    socket.set_reuse_address(true)?;
    socket.set_freebind_v6(true)?;
    socket.bind(&SocketAddr::from((address, port)).into())?;
    socket.listen(1024)?;
    TcpListener::from_std(socket.into())
}

/// A socket for questions to everybody on the bench's network, and no other.
fn bind_finder(interface: &str, port: u16) -> std::io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
    UdpSocket::from_std(socket.into())
}

/// Tells installers where we are that DHCP has not told.
async fn tell_who_asks(socket: UdpSocket, base: String) -> std::io::Result<()> {
    let mut question = [0; 64];
    loop {
        let (length, peer) = match socket.recv_from(&mut question).await {
            Ok(heard) => heard,
            // An ICMP error that an earlier answer met.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => continue,
            Err(error) => return Err(error),
        };
        if question[..length] == *WHO_IS_FACTORY
            && let Err(problem) = socket.send_to(base.as_bytes(), peer).await
        {
            tracing::debug!(%peer, %problem, "installer not answered");
        }
    }
}

fn bind_control(path: &Path) -> Result<UnixListener> {
    // Left behind by a run that was killed; a living one holds the ledger.
    drop(std::fs::remove_file(path));
    let describe = || format!("listen on {}", path.display());
    let listener = UnixListener::bind(path).with_context(describe)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(path, mode).with_context(describe)?;
    Ok(listener)
}

fn serve_dhcp(
    tasks: &mut JoinSet<Result<()>>,
    config: &Config,
    (sockets, dhcp): (Sockets, pxe::dhcp::Config),
    source: &Arc<dyn BootSource>,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let source = Arc::clone(source);
    let stopped = stop.clone().cancelled_owned();
    let clock = edge::clock::now;
    match dhcp.mode {
        Mode::Authoritative(_) => {
            let store = FileStore::open(&config.lease_file)
                .with_context(|| format!("open leases {}", config.lease_file.display()))
                .environment()?;
            tasks.spawn(async move {
                let run = pxe::dhcp::server::run(sockets, dhcp, store, source, clock, stopped);
                run.await.context("DHCP server")
            });
        }
        Mode::Proxy => {
            tasks.spawn(async move {
                let run = pxe::dhcp::server::run(sockets, dhcp, NoStore, source, clock, stopped);
                run.await.context("proxyDHCP server")
            });
        }
    }
    Ok(())
}

/// Asks the sky once, so that a wrong token or address is told at the start.
async fn first_contact(factory: &Arc<Factory>) -> Result<(), Failure> {
    match factory.sky.machines().await {
        Ok(()) => Ok(()),
        Err(SkyError::Answered { status, error })
            if status == axum::http::StatusCode::UNAUTHORIZED
                || status == axum::http::StatusCode::FORBIDDEN =>
        {
            Err(Failure::new(
                Kind::Refused,
                hint(
                    anyhow!(*error).context("the sky refuses the factory's token"),
                    "put the token of this factory into sky.token_file",
                ),
            ))
        }
        Err(problem) => {
            let problem = format!("{:#}", anyhow!(problem));
            tracing::warn!(problem, "the sky does not answer yet; going on without it");
            Ok(())
        }
    }
}

async fn follow_channel(factory: Arc<Factory>, stop: CancellationToken) {
    let mut last_problem = String::new();
    let mut prefetched = None;
    loop {
        match factory.cache.refresh(edge::clock::now()).await {
            Ok(changed) => {
                last_problem.clear();
                if let Some(release) = changed {
                    tracing::info!(%release, "channel offers a release; its installer is here");
                }
                let current = factory.cache.current().map(|current| current.version);
                if let Some(release) = current.filter(|_| prefetched != current) {
                    if factory.bench.answer_is_unsigned() {
                        tracing::warn!(%release, "{UNSIGNED_ANSWER}");
                    }
                    match factory.cache.prefetch(release, edge::clock::now()).await {
                        Ok(()) => {
                            tracing::info!(%release, "release is here whole");
                            prefetched = current;
                        }
                        Err(problem) => {
                            let problem = format!("{:#}", anyhow!(problem));
                            tracing::warn!(%release, problem, "release not fetched yet");
                        }
                    }
                }
            }
            Err(problem) => {
                let problem = format!("{:#}", anyhow!(problem));
                if problem != last_problem {
                    tracing::warn!(problem, "channel not read");
                    last_problem = problem;
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(CHANNEL) => {}
        }
    }
}

async fn tell_owed(factory: Arc<Factory>, stop: CancellationToken) {
    loop {
        routes::tell_all_owed(&factory).await;
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(OWED) => {}
        }
    }
}
