//! A unit, a file server and vaults on loopback, in a folder of their own.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use backup::vault::config::{Config, Sky};
use backup::vault::server;
use edge::runner::Tool;
use model::{DeviceIdentity, Incarnation};
use serde_json::{Value, json};
use tempfile::TempDir;
use tls::ca::{Authority, device_request};
use tokio_util::sync::CancellationToken;

pub(crate) const UNIT: &str = "motivatit/houma-1";

/// Polls until `condition` holds; a test that waits for nothing fails.
pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "waited for {what}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Bytes that do not compress and are the same in every run.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Debian's `sshd` with a configuration of its own, as an ordinary child process.
pub(crate) struct Sshd {
    child: Child,
    pub(crate) port: u16,
    pub(crate) host_key: String,
    pub(crate) user: String,
    authorized: PathBuf,
    owner: Option<u32>,
}

impl Sshd {
    pub(crate) fn start(folder: &Path) -> Self {
        fs::create_dir_all(folder).unwrap();
        let key = folder.join("host_key");
        Tool::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(&key)
            .run()
            .unwrap();
        let host_key = fs::read_to_string(folder.join("host_key.pub")).unwrap();
        let authorized = folder.join("authorized_keys");
        fs::write(&authorized, "").unwrap();
        // Root could read everything, so the server lets another user in.
        let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
        let (user, owner) = if is_root {
            fs::create_dir_all("/run/sshd").unwrap();
            ("nobody".to_owned(), Some(65534))
        } else {
            (Tool::new("id").arg("-un").text().unwrap(), None)
        };
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let config = folder.join("sshd_config");
        let text = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\n\
             StrictModes no\nUsePAM no\nPidFile none\nPasswordAuthentication no\n\
             Subsystem sftp internal-sftp\nForceCommand internal-sftp\nLogLevel ERROR\n",
            key.display(),
            authorized.display()
        );
        fs::write(&config, text).unwrap();
        let child = Tool::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f"])
            .arg(&config)
            .spawn_logged(&folder.join("sshd.log"))
            .unwrap();
        wait_for("sshd", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Self {
            child,
            port,
            host_key,
            user,
            authorized,
            owner,
        }
    }

    pub(crate) fn allow(&self, public_key: &str) {
        fs::write(&self.authorized, format!("{public_key}\n")).unwrap();
    }

    /// Gives a tree to the user that the server lets in.
    pub(crate) fn give(&self, path: &Path) {
        if self.owner.is_some() {
            std::os::unix::fs::lchown(path, self.owner, self.owner).unwrap();
        }
        if path.is_dir() && !path.is_symlink() {
            for entry in fs::read_dir(path).unwrap() {
                self.give(&entry.unwrap().path());
            }
        }
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// What a [`Wire`] does when its budget of bytes from the server is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The server is gone.
    Cut,
    /// The server hangs.
    Stall,
}

/// A wire to the file server that fails after a number of bytes.
pub(crate) struct Wire {
    pub(crate) port: u16,
    carried: Arc<AtomicU64>,
}

impl Wire {
    pub(crate) fn lay(to: u16, budget: u64, fate: Fate) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let carried = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&carried);
        std::thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                let server = TcpStream::connect(("127.0.0.1", to)).unwrap();
                let (client2, server2) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || carry(client2, server2, |_| true));
                let count = Arc::clone(&count);
                std::thread::spawn(move || {
                    let alive = carry(server, client, |bytes| {
                        count.fetch_add(bytes, Ordering::SeqCst) + bytes < budget
                    });
                    // Kept open for as long as the test lives: the server only hangs.
                    if fate == Fate::Stall {
                        std::mem::forget(alive);
                    }
                });
            }
        });
        Self { port, carried }
    }

    pub(crate) fn carried(&self) -> u64 {
        self.carried.load(Ordering::SeqCst)
    }
}

/// Both ends of a wire; dropped, they are closed.
struct Ends(TcpStream, TcpStream);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.shutdown(Shutdown::Both).ok();
        self.1.shutdown(Shutdown::Both).ok();
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, go_on: impl Fn(u64) -> bool) -> Ends {
    let ends = Ends(from.try_clone().unwrap(), to.try_clone().unwrap());
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count) = from.read(&mut buffer) {
        if count == 0 || to.write_all(&buffer[..count]).is_err() || !go_on(count as u64) {
            break;
        }
    }
    ends
}

/// A running vault.
pub(crate) struct Vault {
    pub(crate) name: String,
    pub(crate) url: String,
    pub(crate) data: PathBuf,
    stop: CancellationToken,
}

impl Vault {
    /// The unit's files, as they lie.
    pub(crate) fn place(&self) -> PathBuf {
        self.data.join("units").join(UNIT)
    }

    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }
}

/// The whole laboratory.
pub(crate) struct Lab {
    pub(crate) folder: TempDir,
    pub(crate) ca: Authority,
    runtime: tokio::runtime::Runtime,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("leap-lab-")
            .tempdir()
            .unwrap();
        // The file server's user must get to its folder.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let ca = Authority::generate("test fleet", edge::clock::now()).unwrap();
        let lab = Self {
            folder,
            ca,
            runtime: tokio::runtime::Runtime::new().unwrap(),
        };
        fs::write(lab.at("ca.pem"), lab.ca.certificate()).unwrap();
        lab
    }

    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    pub(crate) fn sshd(&self) -> Sshd {
        Sshd::start(&self.at("sshd"))
    }

    pub(crate) fn vault(&self, name: &str) -> Vault {
        self.vault_with(name, None, None)
    }

    pub(crate) fn vault_with(&self, name: &str, quota: Option<u64>, sky: Option<Sky>) -> Vault {
        let data = self.at(&format!("vault-{name}"));
        let (certificate, key) = self
            .ca
            .server_certificate(&["127.0.0.1".to_owned()], edge::clock::now())
            .unwrap();
        let config = Config {
            name: name.to_owned(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            data: data.clone(),
            identity: tls::server::Identity::from_pem(&certificate, &key).unwrap(),
            device_ca: self.ca.certificate().to_owned(),
            quota,
            max_file: 64 << 20,
            sky,
        };
        let stop = CancellationToken::new();
        let running = self.block_on(server::start(config, stop.clone())).unwrap();
        let url = format!("https://{}", running.address);
        self.runtime.spawn(running.stopped());
        Vault {
            name: name.to_owned(),
            url,
            data,
            stop,
        }
    }

    /// Certificate and key of an incarnation of a unit.
    pub(crate) fn enrol(&self, unit: &str, incarnation: u32) -> (String, String) {
        let request = device_request().unwrap();
        let identity = DeviceIdentity {
            unit: unit.parse().unwrap(),
            incarnation: Incarnation(incarnation),
        };
        let now = edge::clock::now();
        let certificate = self
            .ca
            .device_certificate(&request.csr, &identity, request.public_key, now)
            .unwrap();
        (certificate, request.key)
    }

    /// A client that shows a device certificate.
    pub(crate) fn client(&self, unit: &str, incarnation: u32) -> reqwest::Client {
        let (certificate, key) = self.enrol(unit, incarnation);
        let builder = tls::client::builder(self.ca.certificate()).unwrap();
        tls::client::with_identity(builder, &certificate, &key)
            .unwrap()
            .build()
            .unwrap()
    }

    /// A machine that serves as the unit, with an empty disk.
    pub(crate) fn machine(&self, name: &str, incarnation: u32) -> Machine {
        let root = self.at(name);
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let (certificate, key) = self.enrol(UNIT, incarnation);
        write("var/lib/leapserv/identity/device.crt", &certificate);
        write("var/lib/leapserv/identity/device.key", &key);
        write("var/lib/leapserv/identity/ca.crt", self.ca.certificate());
        Machine { root }
    }
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: i32,
    pub(crate) json: Value,
    pub(crate) stderr: String,
}

/// A machine with `leap-backup` on it.
pub(crate) struct Machine {
    pub(crate) root: PathBuf,
}

impl Machine {
    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.root.join("var/lib/leapserv").join(path)
    }

    pub(crate) fn configure(&self, sources: Value, vaults: &[&Vault], more: Value) {
        let destinations: Vec<Value> = vaults
            .iter()
            .map(|vault| json!({"name": vault.name, "url": vault.url}))
            .collect();
        let mut config = json!({
            "sources": sources,
            "schedule": {"every_minutes": 0},
            "destinations": destinations,
            "copies_required": vaults.len(),
        });
        for (key, value) in more.as_object().unwrap() {
            config[key] = value.clone();
        }
        fs::create_dir_all(self.at("backup")).unwrap();
        fs::write(self.at("backup/config.json"), config.to_string()).unwrap();
    }

    pub(crate) fn tool(&self, args: &[&str]) -> Tool {
        Tool::new(env!("CARGO_BIN_EXE_leap-backup"))
            .arg("--root")
            .arg(&self.root)
            .args(["--json", "--lock-wait", "5"])
            .args(args)
    }

    pub(crate) fn start(&self, args: &[&str]) -> Child {
        self.tool(args)
            .command()
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    pub(crate) fn ask(&self, args: &[&str]) -> Answer {
        let output = self.tool(args).command().output().unwrap();
        Answer {
            code: output.status.code().unwrap_or(-1),
            json: serde_json::from_slice(&output.stdout).unwrap_or(Value::Null),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs a command that must succeed.
    pub(crate) fn done(&self, args: &[&str]) -> Value {
        let answer = self.ask(args);
        assert_eq!(answer.code, 0, "{args:?}: {answer:#?}");
        answer.json
    }

    pub(crate) fn secrets(&self) -> Value {
        serde_json::from_slice(&fs::read(self.at("secrets/backup.json")).unwrap()).unwrap()
    }

    pub(crate) fn repository(&self) -> PathBuf {
        self.at("backup/repository")
    }
}

/// A source in the configuration.
pub(crate) fn source(name: &str, sshd: &Sshd, port: u16, path: &Path) -> Value {
    json!({
        "kind": "sftp",
        "name": name,
        "host": "127.0.0.1",
        "port": port,
        "user": sshd.user,
        "path": path,
        "host_key": sshd.host_key,
    })
}

/// The customer's photo gallery: files in folders, a link, odd names, an empty file.
pub(crate) fn gallery(folder: &Path, photos: u64) {
    for photo in 0..photos {
        let year = folder.join(format!("{}", 2015 + photo % 10));
        fs::create_dir_all(&year).unwrap();
        let length = 20_000 + usize::try_from(photo * 7919 % 120_000).unwrap();
        let path = year.join(format!("IMG_{photo:04}.jpg"));
        fs::write(&path, noise(photo, length)).unwrap();
        let mode = if photo % 3 == 0 { 0o640 } else { 0o644 };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::write(folder.join("empty"), b"").unwrap();
    fs::write(folder.join("Bayou \"Terrebonne\" \\ café ☀.txt"), b"odd").unwrap();
    fs::write(folder.join("large.tif"), noise(77, 5_000_000)).unwrap();
    std::os::unix::fs::symlink("2015/IMG_0000.jpg", folder.join("favourite")).unwrap();
    age(folder);
}

/// Sets all times an hour back: fresh files are read again by the next run.
pub(crate) fn age(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            age(&path);
        }
        let hour_ago = edge::clock::now() - jiff::SignedDuration::from_hours(1);
        let whole = jiff::Timestamp::from_second(hour_ago.as_second()).unwrap();
        fs::File::open(&path)
            .unwrap()
            .set_modified(whole.into())
            .unwrap();
    }
}

/// One entry of a tree, to compare trees by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Leaf {
    Folder,
    Link(PathBuf),
    File {
        mode: u32,
        mtime: i64,
        digest: String,
    },
}

/// Everything under a folder, by relative path.
pub(crate) fn tree(folder: &Path) -> BTreeMap<PathBuf, Leaf> {
    fn walk(base: &Path, folder: &Path, into: &mut BTreeMap<PathBuf, Leaf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let leaf = if meta.is_symlink() {
                Leaf::Link(fs::read_link(&path).unwrap())
            } else if meta.is_dir() {
                walk(base, &path, into);
                Leaf::Folder
            } else {
                Leaf::File {
                    mode: meta.mode() & 0o7777,
                    mtime: meta.mtime(),
                    digest: model::Digest::of(&fs::read(&path).unwrap()).to_string(),
                }
            };
            into.insert(path.strip_prefix(base).unwrap().to_path_buf(), leaf);
        }
    }
    let mut found = BTreeMap::new();
    walk(folder, folder, &mut found);
    found
}

/// Debian's `restic` on a repository folder, opened with the escrowed password.
pub(crate) fn restic(repository: &Path, machine: &Machine, args: &[&str]) -> String {
    let password = machine.secrets()["repository_password"].clone();
    Tool::new("restic")
        .args(["--no-cache", "--no-lock", "-r"])
        .arg(repository)
        .args(args)
        .env("RESTIC_PASSWORD", password.as_str().unwrap())
        .text()
        .unwrap()
}
