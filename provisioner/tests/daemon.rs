//! The factory's program in a network of its own: a DHCP exchange as firmware
//! makes it, the installer by TFTP and HTTP through programs that are not
//! ours, the operator's commands, and a second DHCP server.

#![allow(
    clippy::unwrap_used,
    reason = "a test's helpers fail the test, like the test itself"
)]

mod support;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use edge::runner::Tool;
use pxe::dhcp::options::{self, MessageType, Options};
use pxe::dhcp::packet::{Op, Packet};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::UdpSocket;

/// Set in the process that runs inside the network namespace.
const INSIDE: &str = "LEAP_TEST_INSIDE";

/// Runs the named test once more in a network of its own. Says whether this is
/// that run.
fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    // Root needs no user namespace, and one would take its rights away.
    let namespaces = if rustix::process::geteuid().is_root() {
        "-n"
    } else {
        "-rn"
    };
    Tool::new("unshare")
        .arg(namespaces)
        .arg(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(INSIDE, "1")
        .run()
        .unwrap();
    false
}

/// A cable with an end for the bench and one for a machine.
fn lay_cable() {
    let ip = |line: &str| Tool::new("ip").args(line.split(' ')).run().unwrap();
    ip("link set lo up");
    ip("link add bench0 type veth peer name client0");
    for (end, address) in [("bench0", "10.77.0.1/24"), ("client0", "10.77.0.2/24")] {
        ip(&format!("addr add {address} dev {end}"));
        ip(&format!("link set {end} up"));
        // Both ends are in one network stack here, which distrusts that.
        for (key, value) in [("accept_local", "1"), ("rp_filter", "0")] {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{end}/{key}"), value).unwrap();
        }
    }
    std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "0").unwrap();
}

fn write_config(dir: &Path, sky: &provisioner::factory::config::Sky) -> PathBuf {
    support::write_trust_root(dir);
    std::fs::write(dir.join("ca.pem"), &sky.ca).unwrap();
    std::fs::write(dir.join("token"), &sky.token).unwrap();
    let path = dir.join("factory.toml");
    let text = format!(
        r#"
interface = "bench0"
address = "10.77.0.1"
state = "state"
channel = "stable"
trust_root = "trust-root.json"

[dhcp]
mode = "server"
network = "10.77.0.0/24"
pool = ["10.77.0.100", "10.77.0.199"]

[sky]
url = "{}"
ca = "ca.pem"
token_file = "token"
"#,
        sky.url
    );
    std::fs::write(&path, text).unwrap();
    path
}

fn factory(config: &Path) -> Tool {
    Tool::new(env!("CARGO_BIN_EXE_leap-provisioner"))
        .arg("--config")
        .arg(config)
}

fn socket(port: u16) -> UdpSocket {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.set_broadcast(true).unwrap();
    socket.bind_device(Some(b"client0")).unwrap();
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    socket.bind(&address.into()).unwrap();
    UdpSocket::from_std(socket.into()).unwrap()
}

/// What firmware asks first.
fn discover() -> Packet {
    let mut options = Options::default();
    options.set_message_type(MessageType::Discover);
    options.set(options::VENDOR_CLASS, "PXEClient:Arch:00007:UNDI:003000");
    options.set(options::CLIENT_ARCH, [0, 7]);
    options.set(options::PARAMETERS, [1, 3, 66, 67]);
    Packet {
        op: Op::Request,
        hops: 0,
        xid: 77,
        secs: 0,
        broadcast: true,
        ciaddr: Ipv4Addr::UNSPECIFIED,
        yiaddr: Ipv4Addr::UNSPECIFIED,
        siaddr: Ipv4Addr::UNSPECIFIED,
        giaddr: Ipv4Addr::UNSPECIFIED,
        mac: support::MAC,
        sname: Vec::new(),
        file: Vec::new(),
        options,
    }
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(30);
    let ended = tokio::time::timeout(limit, future).await;
    ended.unwrap_or_else(|_| panic!("{what}: nothing for {limit:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_serves_a_machine_and_its_operator() {
    if !inside("the_daemon_serves_a_machine_and_its_operator") {
        return;
    }
    lay_cable();
    let (sky, sky_config) = support::start_sky().await;
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), &sky_config);
    factory(&config).arg("check-config").run().unwrap();
    let mut daemon = factory(&config)
        .arg("run")
        .tokio_command()
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(daemon.stdout.take().unwrap()).lines();
    let ready = within("ready line", lines.next_line()).await.unwrap();
    assert_eq!(
        ready.as_deref(),
        Some(
            "leap-provisioner: ready on http://10.77.0.1:8080 \
             (interface bench0, dhcp server, channel stable)"
        )
    );

    // Firmware asks, and asks again until the release is here.
    let client = socket(68);
    let question = discover().encode();
    let offer = within("offer", async {
        let mut buffer = vec![0; 2048];
        loop {
            client
                .send_to(&question, (Ipv4Addr::BROADCAST, 67))
                .await
                .unwrap();
            let heard = client.recv(&mut buffer);
            if let Ok(length) = tokio::time::timeout(Duration::from_millis(300), heard).await
                && let Ok(packet) = Packet::parse(&buffer[..length.unwrap()])
                && packet.op == Op::Reply
            {
                return packet;
            }
        }
    })
    .await;
    assert_eq!(offer.options.message_type(), Some(MessageType::Offer));
    assert_eq!(offer.yiaddr, Ipv4Addr::new(10, 77, 0, 100));

    // The installer by programs that are not ours.
    let installer = &sky.release.files["installer.efi"];
    for url in [
        "tftp://10.77.0.1/boot/installer.efi",
        "http://10.77.0.1:8080/boot/installer.efi",
        "http://10.77.0.1:8080//boot//installer.efi",
    ] {
        let found = Tool::new("curl").args(["-sSf", url]).output_async().await;
        assert!(found.unwrap() == *installer, "{url}");
    }
    let part = "http://10.77.0.1:8080/v1/releases/2026.11.1/root.zst";
    let found = Tool::new("curl")
        .args(["-sSf", "-r", "1000-1999", part])
        .output_async()
        .await
        .unwrap();
    assert!(found == sky.release.files["root.zst"][1000..2000]);
    for url in [
        "http://10.77.0.1:8080/state/machines.jsonl",
        "http://10.77.0.1:8080/v1/releases/2026.11.1/../../channel.json",
        "http://10.77.0.1:8080/v1/machines/52:54:00:00:00:01/invite",
        "tftp://10.77.0.1/../token",
    ] {
        let refused = Tool::new("curl")
            .args(["-sSf", "--path-as-is", url])
            .output_async()
            .await;
        assert!(refused.is_err(), "{url}");
    }

    // Where DHCP leads elsewhere, an installer asks everybody.
    let seeker = socket(0);
    seeker
        .send_to(provisioner::WHO_IS_FACTORY, (Ipv4Addr::BROADCAST, 8080))
        .await
        .unwrap();
    let mut answer = [0; 64];
    let length = within("discovery", seeker.recv(&mut answer)).await.unwrap();
    assert_eq!(&answer[..length], b"http://10.77.0.1:8080");

    // What it did can be read afterwards.
    let url = format!("http://10.77.0.1:8080/v1/machines/{}/story", support::MAC);
    let story = Tool::new("curl").args(["-sSf", &url]).text_async().await;
    let story = story.unwrap();
    assert!(
        story.contains("DISCOVER") && story.contains("10.77.0.100"),
        "{story}"
    );
    assert!(story.contains("\"boots\":\"installer\""), "{story}");

    // A machine that was never there cannot be invited.
    let refused = factory(&config).args(["invite", "52:54:00:00:00:09"]);
    let refused = refused.run_async().await.unwrap_err().to_string();
    assert!(refused.contains("not in the ledger"), "{refused}");
    assert!(refused.contains("exit status: 5"), "{refused}");
    factory(&config).arg("machines").run_async().await.unwrap();

    // A second factory on the same state is kept out, and the first goes on.
    let second = factory(&config).args(["run", "--beside-other-dhcp-server"]);
    let second = second.run_async().await.unwrap_err().to_string();
    assert!(
        second.contains("another leap-provisioner uses it"),
        "{second}"
    );
    assert!(second.contains("exit status: 4"), "{second}");

    let pid = daemon.id().unwrap().to_string();
    Tool::new("kill").args(["-TERM", &pid]).run().unwrap();
    let status = within("end", daemon.wait()).await.unwrap();
    assert_eq!(status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn where_another_dhcp_server_answers_it_does_not_start() {
    if !inside("where_another_dhcp_server_answers_it_does_not_start") {
        return;
    }
    lay_cable();
    let (_sky, sky_config) = support::start_sky().await;
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), &sky_config);
    let mut other = Tool::new("dnsmasq")
        .args(["--no-daemon", "--conf-file=/dev/null", "--port=0"])
        .args(["--user=root", "--interface=client0", "--bind-interfaces"])
        .args(["--dhcp-range=10.77.0.50,10.77.0.60", "--log-dhcp"])
        .arg(format!(
            "--dhcp-leasefile={}",
            dir.path().join("leases").display()
        ))
        .arg(format!("--pid-file={}", dir.path().join("pid").display()))
        .tokio_command()
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(other.stderr.take().unwrap()).lines();
    within("dnsmasq", async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains("sockets bound") || line.contains("DHCP, IP range") {
                return;
            }
        }
        panic!("dnsmasq ended");
    })
    .await;
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    let run = factory(&config).arg("run");
    let refused = within("refusal", run.run_async()).await;
    let refused = refused.unwrap_err().to_string();
    assert!(
        refused.contains("another DHCP server answers, 10.77.0.2"),
        "{refused}"
    );
    assert!(refused.contains("hint: set dhcp.mode"), "{refused}");
    assert!(refused.contains("exit status: 4"), "{refused}");
    // No trace of it: nothing was bound, nothing was written.
    assert!(!dir.path().join("state").exists());
    other.kill().await.unwrap();
}
