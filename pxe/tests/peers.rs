//! Programs that we did not write, against the servers as they run on a bench:
//! DHCP clients, a relay, another DHCP server, TFTP and HTTP clients.
//!
//! Each test runs itself again inside namespaces of its own (network, mounts,
//! processes), so that it needs no network of the host and leaves nothing behind.
//! Inside it is the host of the servers, with a bridge; its peers are further
//! network namespaces on that bridge. A program that is missing is a failure;
//! `make setup` installs them.

#![allow(clippy::unwrap_used, reason = "a test panics where something is wrong")]

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use edge::runner::Tool;
use pxe::boot::{BootAnswer, BootEvent, BootFile, BootRequest, BootSource, NotServed};
use pxe::capture::{Datagram, Filter, Tap};
use pxe::dhcp::lease::{LeaseRecord, LeaseStore};
use pxe::dhcp::options::{self, MessageType};
use pxe::dhcp::packet::Packet;
use pxe::dhcp::{
    self, Config, ConflictCheck, FileStore, LocalDiskReply, Mode, NoStore, Place, Subnet,
};
use pxe::dhcp6;
use tokio::net::{TcpListener, UdpSocket};
use tokio::process::Child;
use tokio::sync::watch;

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const SERVER6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
/// Tells the test that it is inside.
const INSIDE: &str = "LEAP_PXE_TEST_INSIDE";
/// A folder to put a capture of each test's DHCP into, for `testdata`.
const CAPTURE: &str = "LEAP_PXE_CAPTURE";
/// Nothing here takes so long, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs a test inside namespaces of its own.
fn inside(name: &str, test: impl AsyncFnOnce(&Bench)) {
    if std::env::var_os(INSIDE).is_none() {
        let mut arguments: Vec<&str> = Vec::new();
        let user = Tool::new("id").arg("-u").text().unwrap();
        if user.trim() != "0" {
            arguments.extend(["--user", "--map-root-user"]);
        }
        arguments.extend(["--net", "--mount", "--pid", "--fork", "--kill-child=KILL"]);
        arguments.extend(["--mount-proc", "--"]);
        let path = std::env::var("PATH").unwrap_or_default();
        let this = std::env::current_exe().unwrap();
        let outcome = Tool::new("unshare")
            .args(arguments)
            .arg(this)
            .args(["--exact", name, "--nocapture"])
            .env(INSIDE, "1")
            .env("PATH", format!("{path}:/usr/sbin:/sbin"))
            .text()
            .unwrap_or_else(|problem| panic!("{problem:#}"));
        // A name that was mistyped would run nothing and succeed.
        assert!(outcome.contains("1 passed"), "{outcome}");
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let bench = Bench::new();
        if let Some(folder) = std::env::var_os(CAPTURE) {
            bench.capture(&Path::new(&folder).join(name)).await;
        }
        let done = tokio::time::timeout(PATIENCE, test(&bench)).await;
        let story = bench.source.events.borrow().join("\n");
        assert!(
            done.is_ok(),
            "not done after {PATIENCE:?}; so far:\n{story}"
        );
    });
}

/// The host of the servers, and the network that it is on.
struct Bench {
    folder: tempfile::TempDir,
    source: Arc<Recorder>,
    /// Programs that end with the test.
    children: Mutex<Vec<Child>>,
}

/// Boots everything, serves a folder, and remembers what it was told.
struct Recorder {
    root: PathBuf,
    events: watch::Sender<Vec<String>>,
}

impl BootSource for Recorder {
    fn decide(&self, _: &BootRequest) -> BootAnswer {
        BootAnswer::Boot {
            tftp_path: "boot.efi".into(),
            http_path: "boot.efi".into(),
        }
    }

    fn open(&self, _: IpAddr, path: &str) -> Result<BootFile, NotServed> {
        Ok(BootFile::Path(self.root.join(path)))
    }

    fn observe(&self, event: &BootEvent) {
        self.events.send_modify(|all| all.push(event.to_string()));
    }
}

fn ip(arguments: &str) {
    Tool::new("ip")
        .args(arguments.split(' '))
        .run()
        .unwrap_or_else(|problem| panic!("{problem:#}"));
}

impl Bench {
    fn new() -> Self {
        // `ip netns` keeps its names there.
        let mount = Tool::new("mount").args(["-t", "tmpfs", "tmpfs", "/run"]);
        mount.run().unwrap();
        ip("link set lo up");
        ip("link add br0 type bridge forward_delay 0");
        // The kernel would take the first as source of what we send.
        ip("addr add 10.77.0.250/24 dev br0");
        ip("addr add 10.77.0.1/24 dev br0");
        ip("link set br0 up");
        let folder = tempfile::tempdir().unwrap();
        let source = Arc::new(Recorder {
            root: folder.path().to_owned(),
            events: watch::Sender::default(),
        });
        Self {
            folder,
            source,
            children: Mutex::default(),
        }
    }

    /// Puts a host on the bridge, by the interface `NAME0` with the MAC address
    /// 02:00:00:00:00:NUMBER.
    fn host(&self, name: &str, number: u8) {
        ip(&format!("netns add {name}"));
        ip(&format!(
            "link add {name}0 address 02:00:00:00:00:{number:02x} netns {name} \
             type veth peer name to-{name}"
        ));
        ip(&format!("link set to-{name} master br0 up"));
        ip(&format!("-n {name} link set lo up"));
        ip(&format!("-n {name} link set {name}0 up"));
    }

    /// A program on a host. A tab in the line is a blank inside a word.
    fn on(&self, host: &str, line: &str) -> Tool {
        let words = line.split(' ').filter(|word| !word.is_empty());
        let words = words.map(|word| word.replace('\t', " "));
        Tool::new("ip").args(["netns", "exec", host]).args(words)
    }

    /// Starts a program on a host that runs until the test ends.
    fn start(&self, host: &str, line: &str) -> u32 {
        let log = fs::File::create(self.path(&format!("{host}.log"))).unwrap();
        let mut command = self.on(host, line).tokio_command();
        command.stdin(std::process::Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn().unwrap();
        let id = child.id().unwrap();
        self.children.lock().unwrap().push(child);
        id
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Waits until the servers have told something with these words.
    async fn told(&self, words: &str) -> String {
        let mut events = self.source.events.subscribe();
        let find = |all: &Vec<String>| all.iter().any(|line| line.contains(words));
        let all = events.wait_for(find).await.unwrap();
        let line = all.iter().find(|line| line.contains(words));
        line.unwrap().clone()
    }

    async fn capture(&self, file: &Path) {
        let log = self.path("tcpdump.log");
        let output = fs::File::create(&log).unwrap();
        let mut command = Tool::new("tcpdump")
            .args(["-i", "br0", "-U", "--immediate-mode", "-Z", "root", "-w"])
            .arg(file.with_extension("pcap"))
            .arg("udp and (port 67 or port 68 or port 4011)")
            .tokio_command();
        command.stderr(output);
        self.children.lock().unwrap().push(command.spawn().unwrap());
        line_in(&log, "listening on").await;
    }

    /// The hook of a DHCP client: it sets the address, and notes what it was told.
    fn hook(&self, name: &str) -> (PathBuf, PathBuf) {
        let (hook, log) = (self.path(name), self.path(&format!("{name}.told")));
        let text = format!(
            "#!/bin/sh\n\
             PATH=$PATH:/usr/sbin:/sbin\n\
             # dhclient's names first, then udhcpc's\n\
             what=${{reason:-$1}} address=${{new_ip_address:-$ip}}\n\
             file=${{new_filename:-$boot_file}} option=${{new_ntp_servers:-$ntpsrv}}\n\
             case $what in\n\
             BOUND|RENEW|REBIND|REBOOT|bound|renew)\n\
             ip addr replace $address/24 dev $interface ;;\n\
             deconfig|PREINIT|RELEASE|EXPIRE)\n\
             ip addr flush dev $interface; ip link set $interface up ;;\n\
             esac\n\
             echo \"$what $address file=$file ntp=$option\" >>{}\n",
            log.display()
        );
        fs::write(&hook, text).unwrap();
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
        (hook, log)
    }

    fn subnet(&self) -> Subnet {
        Subnet {
            network: Ipv4Addr::new(10, 77, 0, 0),
            prefix: 24,
            range: Ipv4Addr::new(10, 77, 0, 100)..=Ipv4Addr::new(10, 77, 0, 109),
            reservations: BTreeMap::new(),
            places: Vec::new(),
            routers: Vec::new(),
            name_servers: Vec::new(),
            domain: None,
            lease: Duration::from_secs(600),
            options: vec![(42, vec![10, 77, 0, 3])],
        }
    }

    fn config(&self, mode: Mode) -> Config {
        Config {
            mode,
            server: SERVER,
            http_base: format!("http://{SERVER}:8080"),
            local_disk: LocalDiskReply::default(),
            conflicts: ConflictCheck::default(),
        }
    }

    fn leases(&self) -> FileStore {
        FileStore::open(self.path("leases")).unwrap()
    }

    /// Starts DHCP. Once this returns, nothing that is sent is lost.
    fn serve_dhcp(&self, config: Config) {
        let sockets = dhcp::server::Sockets::bind("br0", &config.mode).unwrap();
        let (source, clock) = (Arc::clone(&self.source), edge::clock::now);
        let forever = std::future::pending();
        if config.mode == Mode::Proxy {
            tokio::spawn(dhcp::server::run(
                sockets, config, NoStore, source, clock, forever,
            ));
        } else {
            let store = self.leases();
            tokio::spawn(dhcp::server::run(
                sockets, config, store, source, clock, forever,
            ));
        }
    }

    /// Starts DHCPv6 for leases of so many seconds.
    fn serve_dhcp6(&self, seconds: u64) {
        ip(&format!("addr add {SERVER6}/64 dev br0 nodad"));
        let config = dhcp6::Config {
            server: SERVER6,
            http_base: format!("http://[{SERVER6}]:8080"),
            name_servers: Vec::new(),
            lease: Duration::from_secs(seconds),
            local_disk: LocalDiskReply::default(),
            advertise: true,
        };
        let sockets = dhcp6::server::Sockets::bind("br0", &config).unwrap();
        let source = Arc::clone(&self.source);
        let forever = std::future::pending();
        tokio::spawn(dhcp6::server::run(sockets, config, source, forever));
    }

    /// Waits until a host has an address or a route with these words.
    async fn shows(&self, host: &str, what: &str, words: &str) -> String {
        loop {
            let text = self.on(host, what).text_async().await.unwrap();
            if let Some(line) = text.lines().find(|line| line.contains(words)) {
                return line.to_owned();
            }
            // The kernel of another host: there is nothing to wait on but time.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn serve_files(&self) {
        let tftp = UdpSocket::bind((SERVER, 69)).await.unwrap();
        let http = TcpListener::bind((SERVER, 8080)).await.unwrap();
        let limits = pxe::tftp::Limits::default();
        let (one, other) = (Arc::clone(&self.source), Arc::clone(&self.source));
        tokio::spawn(pxe::tftp::run(tftp, limits, one, std::future::pending()));
        tokio::spawn(pxe::http::run(http, other, std::future::pending()));
    }
}

/// Waits until a file that another program writes has a line with these words.
async fn line_in(path: &Path, words: &str) -> String {
    loop {
        let text = fs::read_to_string(path).unwrap_or_default();
        if let Some(line) = text.lines().find(|line| line.contains(words)) {
            return line.to_owned();
        }
        // The file of another process: there is nothing to wait on but time.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn signal(process: u32, signal: &str) {
    let kill = Tool::new("kill").args(["-s", signal, &process.to_string()]);
    kill.run().unwrap();
}

#[test]
fn udhcpc_takes_renews_and_releases_a_lease() {
    inside("udhcpc_takes_renews_and_releases_a_lease", async |bench| {
        bench.host("client", 5);
        bench.serve_dhcp(bench.config(Mode::Authoritative(vec![bench.subnet()])));
        let (hook, told) = bench.hook("udhcpc-hook");
        let line = format!("udhcpc -f -i client0 -O ntpsrv -s {}", hook.display());
        let client = bench.start("client", &line);
        let bound = line_in(&told, "bound").await;
        assert_eq!(bound, "bound 10.77.0.100 file= ntp=10.77.0.3");
        let who = "02:00:00:00:00:05 (plain DHCP, unknown architecture) DHCP";
        bench
            .told(&format!("{who} DISCOVER: OFFER 10.77.0.100"))
            .await;
        bench.told(&format!("{who} REQUEST: ACK 10.77.0.100")).await;
        signal(client, "USR1");
        line_in(&told, "renew").await;
        signal(client, "USR2");
        bench.told("gave 10.77.0.100 back").await;
    });
}

#[test]
fn a_tap_hears_both_sides() {
    inside("a_tap_hears_both_sides", async |bench| {
        bench.host("client", 5);
        let mut tap = Tap::open("br0").unwrap();
        bench.serve_dhcp(bench.config(Mode::Authoritative(vec![bench.subnet()])));
        let (hook, told) = bench.hook("udhcpc-hook");
        let line = format!("udhcpc -f -i client0 -s {}", hook.display());
        bench.start("client", &line);
        line_in(&told, "bound").await;
        let mut filter = Filter::new("02:00:00:00:00:05".parse().unwrap());
        let mut said = Vec::new();
        while said.len() < 4 {
            // ARP and what other hosts say stay outside.
            let datagram = Datagram::of_frame(tap.next().await.unwrap(), 0).unwrap();
            if filter.takes(&datagram) {
                let packet = Packet::parse(&datagram.payload).unwrap();
                said.push(packet.options.message_type().unwrap());
            }
        }
        use MessageType::{Ack, Discover, Offer, Request};
        assert_eq!(said, [Discover, Offer, Request, Ack]);
    });
}

#[test]
fn dhclient_takes_renews_and_releases_a_lease() {
    inside(
        "dhclient_takes_renews_and_releases_a_lease",
        async |bench| {
            bench.host("client", 6);
            let mut subnet = bench.subnet();
            subnet.lease = Duration::from_secs(4);
            bench.serve_dhcp(bench.config(Mode::Authoritative(vec![subnet])));
            let (hook, told) = bench.hook("dhclient-hook");
            let settings = bench.path("dhclient.conf");
            fs::write(&settings, "request subnet-mask, ntp-servers;\n").unwrap();
            let arguments = format!(
                "dhclient -4 -cf {} -lf {} -pf {} -sf {}",
                settings.display(),
                bench.path("dhclient.leases").display(),
                bench.path("dhclient.pid").display(),
                hook.display()
            );
            bench.start("client", &format!("{arguments} -d client0"));
            let bound = line_in(&told, "BOUND").await;
            assert_eq!(bound, "BOUND 10.77.0.100 file= ntp=10.77.0.3");
            line_in(&told, "RENEW 10.77.0.100").await;
            let release = bench.on("client", &format!("{arguments} -r client0"));
            release.run_async().await.unwrap();
            bench.told("gave 10.77.0.100 back").await;
        },
    );
}

#[test]
fn an_address_that_somebody_uses_is_not_offered() {
    inside(
        "an_address_that_somebody_uses_is_not_offered",
        async |bench| {
            bench.host("client", 5);
            bench.host("squatter", 9);
            ip("-n squatter addr add 10.77.0.100/24 dev squatter0");
            bench.serve_dhcp(bench.config(Mode::Authoritative(vec![bench.subnet()])));
            let (hook, told) = bench.hook("udhcpc-hook");
            let line = format!("udhcpc -f -i client0 -s {}", hook.display());
            bench.start("client", &line);
            let words = "10.77.0.100 is in use by 02:00:00:00:00:09";
            bench.told(words).await;
            line_in(&told, "bound 10.77.0.101").await;
            bench.told("REQUEST: ACK 10.77.0.101").await;
            let kept = fs::read_to_string(bench.path("leases")).unwrap();
            assert!(kept.contains("10.77.0.100"), "durable: {kept}");
        },
    );
}

#[test]
fn a_client_that_finds_its_address_in_use_gets_another_one() {
    inside(
        "a_client_that_finds_its_address_in_use_gets_another_one",
        async |bench| {
            bench.host("client", 5);
            bench.host("squatter", 9);
            ip("-n squatter addr add 10.77.0.100/24 dev squatter0");
            let mut config = bench.config(Mode::Authoritative(vec![bench.subnet()]));
            config.conflicts = ConflictCheck::Off;
            bench.serve_dhcp(config);
            let (hook, told) = bench.hook("udhcpc-hook");
            // -a: it asks by ARP itself, and declines.
            let line = format!("udhcpc -f -a -A 1 -i client0 -s {}", hook.display());
            bench.start("client", &line);
            bench.told("DECLINE: 10.77.0.100 is in use").await;
            line_in(&told, "bound 10.77.0.101").await;
        },
    );
}

#[test]
fn a_relay_brings_another_network_and_the_place_of_a_machine() {
    inside(
        "a_relay_brings_another_network_and_the_place_of_a_machine",
        async |bench| {
            bench.host("relay", 2);
            ip("-n relay addr add 10.77.0.2/24 dev relay0");
            let forward = "sh -c echo\t1\t>/proc/sys/net/ipv4/ip_forward";
            bench.on("relay", forward).run().unwrap();
            // Two machines behind it, each on a link of its own.
            for (name, number) in [("far", 7u8), ("farther", 8)] {
                ip(&format!("netns add {name}"));
                ip(&format!(
                    "link add {name}0 address 02:00:00:00:00:{number:02x} netns {name} \
                     type veth peer name port{number} netns relay"
                ));
                ip(&format!("-n {name} link set {name}0 up"));
                ip(&format!(
                    "-n relay addr add 10.{number}.0.1/24 dev port{number}"
                ));
                ip(&format!("-n relay link set port{number} up"));
                ip(&format!("route add 10.{number}.0.0/24 via 10.77.0.2"));
            }
            let mut far = bench.subnet();
            far.network = Ipv4Addr::new(10, 7, 0, 0);
            far.range = Ipv4Addr::new(10, 7, 0, 100)..=Ipv4Addr::new(10, 7, 0, 109);
            far.places = vec![Place {
                circuit: Some(b"port7".to_vec()),
                remote: None,
                address: Ipv4Addr::new(10, 7, 0, 33),
            }];
            let mut farther = bench.subnet();
            farther.network = Ipv4Addr::new(10, 8, 0, 0);
            farther.range = Ipv4Addr::new(10, 8, 0, 100)..=Ipv4Addr::new(10, 8, 0, 109);
            let subnets = vec![bench.subnet(), far, farther];
            bench.serve_dhcp(bench.config(Mode::Authoritative(subnets)));
            let relay = "dhcrelay -4 -d --no-pid -a -i port7 -i port8 -i relay0 10.77.0.1";
            bench.start("relay", relay);
            for (name, address) in [("far", "10.7.0.33"), ("farther", "10.8.0.100")] {
                let (hook, told) = bench.hook(&format!("{name}-hook"));
                // The relay says nothing when it is ready: the client asks again.
                let line = format!("udhcpc -f -T 1 -t 20 -i {name}0 -s {}", hook.display());
                let client = bench.start(name, &line);
                line_in(&told, &format!("bound {address}")).await;
                // The renewal goes past the relay, from router to router.
                let gateway = if name == "far" {
                    "10.7.0.1"
                } else {
                    "10.8.0.1"
                };
                ip(&format!("-n {name} route add default via {gateway}"));
                signal(client, "USR1");
                line_in(&told, &format!("renew {address}")).await;
            }
        },
    );
}

#[test]
fn beside_another_server_we_give_no_address_and_do_not_start_as_a_full_one() {
    inside(
        "beside_another_server_we_give_no_address_and_do_not_start_as_a_full_one",
        async |bench| {
            assert_eq!(probe(Duration::from_millis(200)).await, None, "alone");
            bench.host("other", 2);
            bench.host("client", 5);
            ip("-n other addr add 10.77.0.2/24 dev other0");
            let line = format!(
                "dnsmasq --keep-in-foreground --log-facility=- --conf-file=/dev/null --port=0 \
                 --user=root --interface=other0 --bind-dynamic --dhcp-authoritative --no-ping \
                 --dhcp-leasefile={} --pid-file={} --dhcp-range=10.77.0.50,10.77.0.59",
                bench.path("dnsmasq.leases").display(),
                bench.path("dnsmasq.pid").display()
            );
            bench.start("other", &line);
            line_in(&bench.path("other.log"), "DHCP, IP range").await;
            let other = Ipv4Addr::new(10, 77, 0, 2);
            assert_eq!(probe(dhcp::PROBE_TIMEOUT).await, Some(other));

            bench.serve_dhcp(bench.config(Mode::Proxy));
            assert_eq!(
                probe(Duration::from_millis(500)).await,
                Some(other),
                "a proxy is no server"
            );
            // A machine that boots hears both: an address there, a file here.
            let mut machine = Firmware::new();
            machine.ask(MessageType::Discover, 67).await;
            let offers = [machine.heard().await, machine.heard().await];
            let of = |server| {
                let id =
                    |packet: &&Packet| packet.options.address(options::SERVER_ID) == Some(server);
                offers.iter().find(id).cloned().unwrap()
            };
            let (theirs, ours) = (of(other), of(SERVER));
            assert!(!theirs.yiaddr.is_unspecified());
            assert_eq!((ours.yiaddr, ours.siaddr), (Ipv4Addr::UNSPECIFIED, SERVER));
            assert_eq!(ours.file, b"boot.efi");
            assert_eq!(
                ours.options.get(options::VENDOR_CLASS),
                Some(&b"PXEClient"[..])
            );
            // And firmware that asks again does so here.
            machine.ask(MessageType::Request, 4011).await;
            let answer = machine.heard().await;
            assert_eq!(answer.options.message_type(), Some(MessageType::Ack));
            assert_eq!(answer.file, b"boot.efi");

            // What boots nothing hears the other server alone.
            let (hook, told) = bench.hook("udhcpc-hook");
            bench.start(
                "client",
                &format!("udhcpc -f -i client0 -s {}", hook.display()),
            );
            line_in(&told, "bound 10.77.0.5").await;
            let events = bench.source.events.borrow().clone();
            let spoken = events.iter().any(|line| line.contains("02:00:00:00:00:05"));
            assert!(!spoken, "{events:#?}");
        },
    );
}

async fn probe(timeout: Duration) -> Option<Ipv4Addr> {
    dhcp::probe("br0", 77, timeout).await.unwrap()
}

/// dhclient for IPv6, which a host with nothing but a link-local address can run.
fn dhclient6(bench: &Bench, name: &str) -> (String, PathBuf) {
    let (hook, told) = (bench.path("hook6"), bench.path(&format!("{name}.told")));
    let text = format!(
        "#!/bin/sh\nPATH=$PATH:/usr/sbin:/sbin\n\
         case $reason in BOUND6) ip addr replace $new_ip6_address/128 dev $interface ;; esac\n\
         echo \"$reason $new_ip6_address\" >>{}\n",
        told.display()
    );
    fs::write(&hook, text).unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    let file = |suffix: &str| {
        bench
            .path(&format!("{name}.{suffix}"))
            .display()
            .to_string()
    };
    let line = format!(
        "dhclient -6 -D LL -cf /dev/null -lf {} -pf {} -sf {}",
        file("leases"),
        file("pid"),
        hook.display()
    );
    (line, told)
}

#[test]
fn dhclient_takes_renews_and_releases_an_address_of_ipv6() {
    inside(
        "dhclient_takes_renews_and_releases_an_address_of_ipv6",
        async |bench| {
            bench.host("client", 6);
            bench.serve_dhcp6(4);
            // Without an address of its own it would not ask; without our word it would
            // not know that the network is on its link.
            let addresses = "ip -6 addr show dev client0 scope link -tentative";
            bench.shows("client", addresses, "inet6 fe80").await;
            bench.shows("client", "ip -6 route", "fd77::/64").await;
            let mut tap = Tap::open("br0").unwrap();
            let (line, told) = dhclient6(bench, "client");
            bench.start("client", &format!("{line} -d client0"));
            let bound = line_in(&told, "BOUND6").await;
            let mut filter = Filter::new("02:00:00:00:00:06".parse().unwrap());
            let mut said = Vec::new();
            while said.len() < 4 {
                let datagram = Datagram::of_frame(tap.next().await.unwrap(), 0).unwrap();
                if filter.takes(&datagram) {
                    let packet = dhcp6::packet::Packet::parse(&datagram.payload).unwrap();
                    said.push(packet.message.kind.name());
                }
            }
            assert_eq!(said, ["SOLICIT", "ADVERTISE", "REQUEST", "REPLY"]);
            let address = bound.strip_prefix("BOUND6 ").unwrap().to_owned();
            assert!(address.starts_with("fd77:"), "{bound}");
            let event = bench.told("DHCPv6 REQUEST: REPLY").await;
            assert!(
                event.starts_with("02:00:00:00:00:06 (plain DHCP") && event.contains(&address),
                "{event}"
            );
            line_in(&told, &format!("RENEW6 {address}")).await;
            let release = bench.on("client", &format!("{line} -r client0"));
            release.run_async().await.unwrap();
            bench.told("RELEASE: gave its address back").await;
        },
    );
}

#[test]
fn a_relay_brings_another_network_by_ipv6() {
    inside("a_relay_brings_another_network_by_ipv6", async |bench| {
        bench.host("relay", 2);
        ip("-n relay addr add fd77::2/64 dev relay0 nodad");
        ip("netns add far");
        ip("link add far0 address 02:00:00:00:00:07 netns far \
            type veth peer name port7 netns relay");
        ip("-n far link set far0 up");
        ip("-n relay addr add fd07::1/64 dev port7 nodad");
        ip("-n relay link set port7 up");
        bench.serve_dhcp6(600);
        let addresses = "ip -6 addr show scope link -tentative";
        for (host, count) in [("far", 1), ("relay", 2)] {
            loop {
                let text = bench.on(host, addresses).text_async().await.unwrap();
                if text.matches("inet6 fe80").count() == count {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        let line = format!("dhcrelay -6 -d --no-pid -I -l port7 -u {SERVER6}%relay0");
        bench.start("relay", &line);
        let (line, told) = dhclient6(bench, "far");
        bench.start("far", &format!("{line} -d far0"));
        let bound = line_in(&told, "BOUND6").await;
        assert!(bound.starts_with("BOUND6 fd07:"), "{bound}");
        let event = bench.told("DHCPv6 REQUEST: REPLY").await;
        assert!(event.starts_with("02:00:00:00:00:07"), "{event}");
    });
}

#[test]
fn another_dhcpv6_server_is_found() {
    inside("another_dhcpv6_server_is_found", async |bench| {
        let probe = async |timeout| dhcp6::probe("br0", 77, timeout).await.unwrap();
        bench.host("other", 2);
        assert_eq!(probe(Duration::from_secs(3)).await, None, "alone");
        ip("-n other addr add fd77::2/64 dev other0 nodad");
        let line = format!(
            "dnsmasq --keep-in-foreground --log-facility=- --conf-file=/dev/null --port=0 \
             --user=root --interface=other0 --bind-dynamic --dhcp-authoritative \
             --dhcp-leasefile={} --pid-file={} --dhcp-range=fd77::50,fd77::59,64",
            bench.path("dnsmasq.leases").display(),
            bench.path("dnsmasq.pid").display()
        );
        bench.start("other", &line);
        line_in(&bench.path("other.log"), "DHCPv6, IP range").await;
        let found = probe(dhcp::PROBE_TIMEOUT).await.unwrap();
        let theirs = bench
            .shows("other", "ip -6 addr show scope link", "inet6")
            .await;
        assert!(theirs.contains(&found.to_string()), "{found}: {theirs}");
    });
}

/// The DHCP of a boot ROM, from the bridge itself.
struct Firmware {
    socket: UdpSocket,
}

impl Firmware {
    fn new() -> Self {
        let (domain, kind) = (socket2::Domain::IPV4, socket2::Type::DGRAM);
        let socket = socket2::Socket::new(domain, kind, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.set_broadcast(true).unwrap();
        socket.bind_device(Some(b"br0")).unwrap();
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 68));
        socket.bind(&any.into()).unwrap();
        Self {
            socket: UdpSocket::from_std(socket.into()).unwrap(),
        }
    }

    async fn ask(&mut self, kind: MessageType, port: u16) {
        self.send(Self::packet(kind), port).await;
    }

    fn packet(kind: MessageType) -> Packet {
        let blank = [&[1, 1, 6][..], &[0; 233], &[99, 130, 83, 99]].concat();
        let mut packet = Packet::parse(&blank).unwrap();
        packet.xid = 0x7700;
        packet.broadcast = true;
        packet.mac.0 = [2, 0, 0, 0, 0, 77];
        packet.options.set_message_type(kind);
        let class = b"PXEClient:Arch:00007:UNDI:003000";
        packet.options.set(options::VENDOR_CLASS, class);
        packet
    }

    async fn send(&mut self, packet: Packet, port: u16) {
        let to = match port {
            67 => Ipv4Addr::BROADCAST,
            _ => SERVER,
        };
        let to = SocketAddrV4::new(to, port);
        self.socket.send_to(&packet.encode(), to).await.unwrap();
    }

    /// The next message to this machine; the socket hears everybody's.
    async fn heard(&mut self) -> Packet {
        let mut buffer = vec![0; 2048];
        loop {
            let (length, from) = self.socket.recv_from(&mut buffer).await.unwrap();
            let packet = Packet::parse(&buffer[..length]).unwrap();
            if packet.xid == 0x7700 {
                let server = packet.options.address(options::SERVER_ID).unwrap();
                assert_eq!(from.ip(), IpAddr::V4(server), "from where it says");
                return packet;
            }
        }
    }
}

/// Leases are durable when the test says so.
struct SlowDisk(std::sync::mpsc::Receiver<()>);

impl LeaseStore for SlowDisk {
    fn load(&mut self) -> io::Result<Vec<LeaseRecord>> {
        Ok(Vec::new())
    }

    fn append(&mut self, _: &[LeaseRecord]) -> io::Result<()> {
        self.0.recv().map_err(io::Error::other)
    }
}

#[test]
fn what_gives_no_lease_does_not_wait_for_the_disk_and_a_lease_does() {
    inside(
        "what_gives_no_lease_does_not_wait_for_the_disk_and_a_lease_does",
        async |bench| {
            let config = bench.config(Mode::Authoritative(vec![bench.subnet()]));
            let sockets = dhcp::server::Sockets::bind("br0", &config.mode).unwrap();
            let (source, clock) = (Arc::clone(&bench.source), edge::clock::now);
            let (durable, disk) = std::sync::mpsc::channel();
            let (store, forever) = (SlowDisk(disk), std::future::pending());
            tokio::spawn(dhcp::server::run(
                sockets, config, store, source, clock, forever,
            ));
            let mut firmware = Firmware::new();
            let wanted = Ipv4Addr::new(10, 77, 0, 100);
            for _ in 0..3 {
                let mut request = Firmware::packet(MessageType::Request);
                let options = &mut request.options;
                options.set_addresses(options::REQUESTED_ADDRESS, &[wanted]);
                firmware.send(request, 67).await;
            }
            firmware.ask(MessageType::Inform, 67).await;
            assert_eq!(firmware.heard().await.yiaddr, Ipv4Addr::UNSPECIFIED);
            // The first by itself; the others, which came meanwhile, together.
            for _ in 0..2 {
                durable.send(()).unwrap();
            }
            for _ in 0..3 {
                assert_eq!(firmware.heard().await.yiaddr, wanted);
            }
        },
    );
}

#[test]
fn tftp_clients_get_the_same_bytes() {
    inside("tftp_clients_get_the_same_bytes", async |bench| {
        bench.host("client", 5);
        ip("-n client addr add 10.77.0.5/24 dev client0");
        // 65,536 blocks of 64 bytes are less than this: the count rolls over.
        let content: Vec<u8> = (0..1_100_003u32).flat_map(u32::to_le_bytes).collect();
        fs::write(bench.path("boot.efi"), &content).unwrap();
        bench.serve_files().await;
        let file = bench.path("got");
        let out = file.display();
        for line in [
            format!("tftp -m binary 10.77.0.1 -c get boot.efi {out}"),
            format!("atftp --get -r boot.efi -l {out} 10.77.0.1 69"),
            format!(
                "atftp --get --option blksize\t1468 --option windowsize\t8 -r /boot.efi -l {out} 10.77.0.1 69"
            ),
            format!(
                "atftp --get --option blksize\t64 --option windowsize\t32 -r //boot.efi -l {out} 10.77.0.1 69"
            ),
            format!("curl -sSf --tftp-blksize 1400 -o {out} tftp://10.77.0.1/boot.efi"),
            format!("curl -sSf --tftp-no-options -o {out} tftp://10.77.0.1/boot.efi"),
        ] {
            let got = bench.on("client", &line).run_async().await;
            got.unwrap_or_else(|problem| panic!("{problem:#}"));
            let same = fs::read(&file).unwrap() == content;
            assert!(same, "{line}");
            fs::remove_file(&file).unwrap();
        }
        // Refused politely: no file, and the reason in the client's words.
        let line = format!("tftp -m ascii -v 10.77.0.1 -c get boot.efi {out}");
        let said = bench
            .on("client", &line)
            .tokio_command()
            .output()
            .await
            .unwrap();
        let said = String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned();
        assert!(said.contains("expected octet"), "{said}");
        bench
            .told("not served: mode netascii, expected octet")
            .await;
        let line = "curl -sS tftp://10.77.0.1/nothing".to_owned();
        let said = bench
            .on("client", &line)
            .tokio_command()
            .output()
            .await
            .unwrap();
        assert_eq!(
            said.status.code(),
            Some(68),
            "TFTP file not found: {said:?}"
        );
        fs::write(bench.path("up"), "x").unwrap();
        let line = format!(
            "curl -sS -T {} tftp://10.77.0.1/boot.efi",
            bench.path("up").display()
        );
        let said = bench
            .on("client", &line)
            .tokio_command()
            .output()
            .await
            .unwrap();
        assert_eq!(
            said.status.code(),
            Some(69),
            "TFTP access violation: {said:?}"
        );
        assert!(
            fs::read(bench.path("boot.efi")).unwrap() == content,
            "read-only"
        );
    });
}

#[test]
fn curl_gets_files_parts_and_sizes_on_one_connection() {
    inside(
        "curl_gets_files_parts_and_sizes_on_one_connection",
        async |bench| {
            bench.host("client", 5);
            ip("-n client addr add 10.77.0.5/24 dev client0");
            let content: Vec<u8> = (0..700_001u32).flat_map(u32::to_le_bytes).collect();
            fs::create_dir(bench.path("a")).unwrap();
            fs::write(bench.path("a/boot.efi"), &content).unwrap();
            bench.serve_files().await;
            let curl = async |arguments: &str| {
                let tool = bench.on("client", &format!("curl -sSf {arguments}"));
                let got = tool.output_async().await;
                got.unwrap_or_else(|problem| panic!("{problem:#}"))
            };
            let base = "http://10.77.0.1:8080";
            // Not told to follow redirects: the answer is the file itself.
            let doubled = curl(&format!("--path-as-is {base}//a//boot.efi")).await;
            assert!(doubled == content, "{} bytes", doubled.len());
            let part = curl(&format!("-r 1048570-1048600 {base}/a/boot.efi")).await;
            assert_eq!(part, content[1_048_570..=1_048_600]);
            let head = String::from_utf8(curl(&format!("-I {base}/a/boot.efi")).await).unwrap();
            let length = format!("content-length: {}", content.len());
            assert!(head.to_lowercase().contains(&length), "{head}");
            let half = bench.path("half");
            fs::write(&half, &content[..1_000_000]).unwrap();
            curl(&format!("-C - -o {} {base}/a/boot.efi", half.display())).await;
            assert!(fs::read(&half).unwrap() == content, "resumed");
            let file = format!("-o /dev/null {base}/a/boot.efi");
            let again = curl(&format!("-w %{{num_connects}} {file} {file} {file}")).await;
            assert_eq!(String::from_utf8(again).unwrap(), "100", "one connection");
        },
    );
}
