//! The command line: what it makes, and how it ends.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Output;

use edge::runner::Tool;
use model::Signer;

use crate::sky::{leap_fleet, trust_root};

fn end(tool: Tool) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = tool.command().output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

fn init(place: &Path) -> Tool {
    leap_fleet()
        .args(["init", "--name", "sky.example", "--address", "127.0.0.1"])
        .arg("--dir")
        .arg(place)
}

fn believe(place: &Path) {
    let (operators, releases) = (Signer::from_seed(&[1; 32]), Signer::from_seed(&[2; 32]));
    let trust = trust_root(place, &operators, &releases);
    let file = place.with_file_name("trust-root.json");
    std::fs::write(&file, serde_json::to_vec(&trust).unwrap()).unwrap();
    let set = leap_fleet().arg("set-trust").arg(place).arg(&file);
    set.run().unwrap();
    std::fs::remove_file(file).unwrap();
}

fn config(place: &Path) -> std::path::PathBuf {
    place.join("fleet.toml")
}

#[test]
fn a_new_sky_keeps_its_secrets_and_is_never_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("sky");
    init(&place).run().unwrap();
    for secret in [
        "ca.key",
        "server.key",
        "timestamp.key",
        "tokens/operator",
        "tokens/factory",
        "tokens/vault",
    ] {
        let mode = std::fs::metadata(place.join(secret)).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600, "{secret}");
    }
    let mode = std::fs::metadata(&place).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o700, "the database is in it");
    let key = std::fs::read(place.join("ca.key")).unwrap();
    let (code, error) = end(init(&place));
    assert_eq!(code, Some(5), "{error}");
    assert_eq!(std::fs::read(place.join("ca.key")).unwrap(), key);
    // The token itself is not in the database.
    let token = std::fs::read(place.join("tokens/operator")).unwrap();
    let database = std::fs::read(place.join("fleet.db")).unwrap();
    let found = database.windows(64).any(|window| window == &token[..64]);
    assert!(!found);
    // Nothing is left beside it.
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn the_sky_does_not_run_without_whom_to_believe() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("sky");
    init(&place).run().unwrap();
    for command in ["run", "check-config"] {
        let (code, error) = end(leap_fleet().args([command, "--config"]).arg(config(&place)));
        assert_eq!(code, Some(3), "{error}");
        assert!(
            error.contains("hint: make one with `leapctl keys init"),
            "{error}"
        );
    }
}

#[test]
fn a_folder_without_its_database_or_with_a_daemon_is_not_served() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("sky");
    init(&place).run().unwrap();
    believe(&place);
    let run = || {
        leap_fleet()
            .args(["run", "--config"])
            .arg(config(&place))
            .args(["--listen", "127.0.0.1:0"])
    };
    let lock = std::fs::File::create(place.join("lock")).unwrap();
    lock.lock().unwrap();
    let (code, error) = end(run());
    assert_eq!(code, Some(4), "{error}");
    assert!(error.contains("another leap-fleet"), "{error}");
    drop(lock);
    // An empty one in its place would know nobody and nothing.
    std::fs::remove_file(place.join("fleet.db")).unwrap();
    let (code, error) = end(run());
    assert_eq!(code, Some(3), "{error}");
    assert!(error.contains("fleet.db"), "{error}");
    assert!(!place.join("fleet.db").exists());
}

#[test]
fn the_address_of_a_sky_without_a_name_may_be_given() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("sky");
    let with = |url: &str| end(init(&place).args(["--url", url]));
    let (code, error) = with("http://10.0.0.1:8443");
    assert_eq!(code, Some(2), "{error}");
    assert!(!place.exists(), "nothing half-made is left");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    assert_eq!(with("https://10.0.0.1:8443").0, Some(0));
    let text = std::fs::read_to_string(config(&place)).unwrap();
    assert!(text.contains("url = \"https://10.0.0.1:8443\""), "{text}");
}

#[test]
fn a_trust_root_that_gives_the_sky_more_than_freshness_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("sky");
    init(&place).run().unwrap();
    let (operators, releases) = (Signer::from_seed(&[1; 32]), Signer::from_seed(&[2; 32]));
    let timestamp = std::fs::read_to_string(place.join("timestamp.key")).unwrap();
    let timestamp = Signer::from_pem(&timestamp).unwrap();
    let file = dir.path().join("trust-root.json");
    let set = |version, operators: &Signer| {
        let mut trust = trust_root(&place, operators, &releases);
        trust.version = version;
        std::fs::write(&file, serde_json::to_vec(&trust).unwrap()).unwrap();
        end(leap_fleet().arg("set-trust").arg(&place).arg(&file))
    };
    let (code, error) = set(1, &timestamp);
    assert_eq!(code, Some(5), "{error}");
    assert_eq!(set(2, &operators).0, Some(0));
    assert_eq!(set(2, &operators).0, Some(0));
    assert_eq!(set(1, &operators).0, Some(5), "an older one");
    assert_eq!(
        set(2, &Signer::from_seed(&[3; 32])).0,
        Some(5),
        "another one"
    );
    let check = leap_fleet()
        .args(["check-config", "--config"])
        .arg(config(&place));
    assert_eq!(end(check).0, Some(0));
}

#[test]
fn an_address_that_is_taken_is_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("sky");
    init(&place).run().unwrap();
    believe(&place);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, error) = end(leap_fleet()
        .args(["run", "--config"])
        .arg(config(&place))
        .args(["--listen", &address]));
    assert_eq!(code, Some(4), "{error}");
    assert!(error.contains(&format!("listen on {address}")), "{error}");
    assert!(error.contains("hint: "), "{error}");
}

#[test]
fn the_daemon_says_that_it_is_ready_and_ends_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("sky");
    init(&place).run().unwrap();
    believe(&place);
    let log = dir.path().join("log");
    let mut daemon = leap_fleet()
        .args(["run", "--config"])
        .arg(config(&place))
        .args(["--listen", "127.0.0.1:0"])
        .spawn_logged(&log)
        .unwrap();
    let logged = || std::fs::read_to_string(&log).unwrap_or_default();
    while !logged().contains("ready") {
        assert!(daemon.try_wait().unwrap().is_none(), "{}", logged());
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    Tool::new("kill")
        .arg(daemon.id().to_string())
        .run()
        .unwrap();
    assert_eq!(daemon.wait().unwrap().code(), Some(0), "{}", logged());
    assert!(logged().contains("stopped"), "{}", logged());
}

#[test]
fn a_server_certificate_is_issued_for_a_vault() {
    let dir = tempfile::tempdir().unwrap();
    let (place, out) = (dir.path().join("sky"), dir.path().join("vault"));
    init(&place).run().unwrap();
    leap_fleet()
        .args([
            "issue",
            "--name",
            "vault-1",
            "--address",
            "10.0.0.3",
            "--dir",
        ])
        .arg(&place)
        .arg("--out")
        .arg(&out)
        .run()
        .unwrap();
    let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
    tls::server::Identity::from_pem(&read("server.crt"), &read("server.key")).unwrap();
    assert_eq!(
        read("ca.crt"),
        std::fs::read_to_string(place.join("ca.crt")).unwrap()
    );
    let (code, error) = end(leap_fleet()
        .args(["issue", "--name", "vault 1", "--dir"])
        .arg(&place)
        .arg("--out")
        .arg(&out));
    assert_eq!(code, Some(2), "{error}");
}
