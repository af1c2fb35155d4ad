//! A sky with real TLS, and a unit made of a folder and a disk image.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, Path as UrlPath, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use model::api::{ApiError, CheckIn, CheckInReply, Enrolment};
use model::command::{CommandReport, UnitCommand};
use model::configuration::{
    Backup, Configuration, Maintenance, Network, Retention, Schedule, Settings,
};
use model::release::{
    Artifact, ChannelPointer, Component, CustomerLayer, HashTree, ReleaseManifest, Segment,
    SegmentedImage, manifest_path,
};
use model::secrets::{SealedSecrets, UnitSecrets};
use model::trust::RoleKeys;
use model::{DeviceIdentity, Digest, Role, Signed, Signer, TrustRoot, UnitName, Verified};
use slots::compose::{EspContent, Folders, Layer, compose, esp_files};
use slots::{Disk, layout};
use tls::ca::Authority;
use tls::server::{ClientAuth, Identity, Listener, Peer};
use tokio_util::sync::CancellationToken;
use updater::config::Config;
use updater::site::Site;

pub(crate) fn operator() -> Signer {
    Signer::from_seed(&[11; 32])
}

fn engineer() -> Signer {
    Signer::from_seed(&[12; 32])
}

fn timestamp() -> Signer {
    Signer::from_seed(&[13; 32])
}

pub(crate) fn settings(hostname: &str) -> Settings {
    Settings {
        hostname: hostname.into(),
        time_zone: "America/Chicago".into(),
        network: Network::Dhcp {},
        operators: vec![],
        maintenance: Maintenance::default(),
        check_in_seconds: 1,
        backup: None,
    }
}

pub(crate) fn backup() -> Backup {
    Backup {
        sources: vec![],
        schedule: Schedule::default(),
        retention: Retention::default(),
        destinations: vec![],
        copies_required: 0,
    }
}

/// Waits for a condition, for a long time on a slow machine.
pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(60), "no {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A signed release with all of its files.
pub(crate) struct Release {
    pub(crate) manifest: ReleaseManifest,
    pub(crate) bytes: Vec<u8>,
    pub(crate) files: BTreeMap<String, Vec<u8>>,
}

impl Release {
    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.bytes)
    }

    pub(crate) fn verified(&self, trust: &TrustRoot) -> Verified<ReleaseManifest> {
        let signed: Signed<ReleaseManifest> = serde_json::from_slice(&self.bytes).unwrap();
        trust.verify(&signed, edge::clock::now()).unwrap()
    }
}

/// Release `2026.11.NUMBER`: 24 segments of noise, of which four are the same in all.
pub(crate) fn release(number: u8) -> Release {
    let mut files = BTreeMap::new();
    let noise = |seed: u8, length: usize| {
        let mut state = u64::from(seed) + 1;
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend_from_slice(&state.to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    };
    let mut root = noise(200, 4 << 20);
    root.extend(noise(number, 20 << 20));
    let mut image = |path: &str, content: &[u8]| {
        let mut file = Vec::new();
        let segments = content
            .chunks(1 << 20)
            .map(|chunk| {
                let frame = zstd::bulk::compress(chunk, 1).unwrap();
                let segment = Segment {
                    stored_offset: file.len() as u64,
                    stored_length: u32::try_from(frame.len()).unwrap(),
                    length: u32::try_from(chunk.len()).unwrap(),
                    sha256: Digest::of(chunk),
                };
                file.extend_from_slice(&frame);
                segment
            })
            .collect();
        let image = SegmentedImage {
            path: path.into(),
            stored_size: file.len() as u64,
            size: content.len() as u64,
            segments,
        };
        files.insert(path.to_owned(), file);
        image
    };
    let (root, verity) = (
        image("root.seg", &root),
        image("verity.seg", &noise(number + 100, 100_000)),
    );
    let mut artifact = |path: &str, text: String| {
        let artifact = Artifact {
            path: path.into(),
            size: text.len() as u64,
            sha256: Digest::of(text.as_bytes()),
        };
        files.insert(path.to_owned(), text.into_bytes());
        artifact
    };
    let manifest = ReleaseManifest {
        version: format!("2026.11.{number}").parse().unwrap(),
        revision: 0,
        architecture: model::Architecture::Amd64,
        root_hash: Digest::of(&[number]),
        root,
        verity,
        uki: artifact("leapserv.efi", format!("uki {number}")),
        boot_loader: artifact("systemd-bootx64.efi", "loader".into()),
        installer: artifact("installer.efi", "installer".into()),
        components: vec![Component {
            name: "backup".into(),
            version: format!("0.{number}.0"),
            image: artifact(
                "components/backup.raw",
                format!("backup engine {number} for this system"),
            ),
            verity: hash_tree(&format!("backup engine {number} for this system")),
        }],
        documents: Vec::new(),
        tries: 3,
        secure_boot: None,
    };
    Release {
        bytes: serde_json::to_vec(&engineer().sign(&manifest)).unwrap(),
        manifest,
        files,
    }
}

/// Stands for the hash tree behind a component's content.
fn hash_tree(content: &str) -> Option<HashTree> {
    Some(HashTree {
        root_hash: Digest::of(content.as_bytes()),
        offset: 4096,
    })
}

/// A revision of a release: the same but for its components, each of name, path and content.
pub(crate) fn revision(of: &Release, number: u32, components: &[[&str; 3]]) -> Release {
    let mut manifest = of.manifest.clone();
    let mut files = of.files.clone();
    manifest.revision = number;
    manifest.components = components
        .iter()
        .map(|[name, path, content]| {
            files.insert((*path).to_owned(), content.as_bytes().to_vec());
            Component {
                name: (*name).into(),
                version: format!("0.{number}.0"),
                image: Artifact {
                    path: (*path).into(),
                    size: content.len() as u64,
                    sha256: Digest::of(content.as_bytes()),
                },
                verity: hash_tree(content),
            }
        })
        .collect();
    signed(manifest, files, &engineer())
}

pub(crate) fn signed(
    manifest: ReleaseManifest,
    files: BTreeMap<String, Vec<u8>>,
    signer: &Signer,
) -> Release {
    Release {
        bytes: serde_json::to_vec(&signer.sign(&manifest)).unwrap(),
        manifest,
        files,
    }
}

pub(crate) fn engineers_signature(
    manifest: ReleaseManifest,
    files: BTreeMap<String, Vec<u8>>,
) -> Release {
    signed(manifest, files, &engineer())
}

pub(crate) fn layer(customer: &str) -> Vec<u8> {
    choosing_layer(customer, None)
}

/// A customer's layer that chooses components.
pub(crate) fn choosing_layer(customer: &str, components: Option<&[&str]>) -> Vec<u8> {
    let layer = CustomerLayer {
        customer: customer.parse().unwrap(),
        version: 1,
        components: components.map(|names| names.iter().map(|&name| name.into()).collect()),
        image: Artifact {
            path: "layer.raw".into(),
            size: 5,
            sha256: Digest::of(b"layer"),
        },
    };
    serde_json::to_vec(&operator().sign(&layer)).unwrap()
}

#[derive(Default)]
pub(crate) struct SkyState {
    pub(crate) check_ins: Vec<CheckIn>,
    pub(crate) configuration: Option<Signed<Configuration>>,
    pub(crate) channel: Option<Signed<ChannelPointer>>,
    pub(crate) commands: Vec<Signed<UnitCommand>>,
    pub(crate) secrets: Option<SealedSecrets>,
    pub(crate) escrow: Option<SealedSecrets>,
    pub(crate) escrow_version: Option<u64>,
    pub(crate) reports: Vec<CommandReport>,
    pub(crate) fenced: bool,
    pub(crate) bytes_sent: u64,
    /// Root segments stop to flow after so many bytes.
    pub(crate) hang_after: Option<u64>,
    files: HashMap<String, Vec<u8>>,
    /// The unit's network leads nowhere while this file is there.
    cut: PathBuf,
}

pub(crate) struct Sky {
    state: Arc<Mutex<SkyState>>,
    pub(crate) trust: TrustRoot,
    pub(crate) recovery: age::x25519::Identity,
    authority: Authority,
    address: SocketAddr,
}

type Shared = Arc<Mutex<SkyState>>;

impl Sky {
    pub(crate) fn offline() -> Self {
        let recovery = age::x25519::Identity::generate();
        let role = |signer: &Signer| RoleKeys {
            keys: vec![signer.public()],
            threshold: 1,
        };
        Self {
            state: Arc::default(),
            trust: TrustRoot {
                version: 1,
                roles: [
                    (Role::Targets, role(&engineer())),
                    (Role::Timestamp, role(&timestamp())),
                    (Role::Configuration, role(&operator())),
                ]
                .into(),
                recovery: vec![recovery.to_public().to_string()],
            },
            recovery,
            authority: Authority::generate("test", edge::clock::now()).unwrap(),
            address: ([127, 0, 0, 1], 1).into(),
        }
    }

    pub(crate) async fn start() -> Self {
        let mut sky = Self::offline();
        let (certificate, key) = sky
            .authority
            .server_certificate(&["127.0.0.1".to_owned()], edge::clock::now())
            .unwrap();
        let listener = Listener::bind(
            ([127, 0, 0, 1], 0).into(),
            Identity::from_pem(&certificate, &key).unwrap(),
            ClientAuth::Required {
                ca: sky.authority.certificate(),
            },
        )
        .await
        .unwrap();
        sky.address = listener.address();
        let router = Router::new()
            .route("/v1/checkin", post(check_in))
            .route("/v1/releases/{version}/{*path}", get(file))
            .with_state(Arc::clone(&sky.state));
        tokio::spawn(async move {
            let service = router.into_make_service_with_connect_info::<Peer>();
            axum::serve(listener, service).await.unwrap();
        });
        sky
    }

    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut SkyState) -> T) -> T {
        look(&mut self.state.lock().unwrap())
    }

    /// Whether any check-in was so.
    pub(crate) fn seen(&self, look: impl Fn(&CheckIn) -> bool) -> bool {
        self.with(|state| state.check_ins.iter().any(look))
    }

    pub(crate) fn publish(&self, release: &Release, version: u64) {
        self.publish_as(release, version, release.digest());
    }

    pub(crate) fn publish_as(&self, release: &Release, version: u64, manifest: Digest) {
        let folder = release.manifest.version;
        let pointer = ChannelPointer {
            channel: "stable".into(),
            version,
            release: folder,
            revision: release.manifest.revision,
            manifest,
            expires: jiff::Timestamp::MAX,
        };
        self.with(|state| {
            let mut put = |path: &str, bytes: &[u8]| {
                state
                    .files
                    .insert(format!("{folder}/{path}"), bytes.to_vec());
            };
            put(&manifest_path(release.manifest.revision), &release.bytes);
            for (path, bytes) in &release.files {
                put(path, bytes);
            }
            state.channel = Some(timestamp().sign(&pointer));
        });
    }
}

async fn check_in(
    State(state): State<Shared>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Json(body): Json<CheckIn>,
) -> Response {
    assert_eq!(
        peer.device.unwrap().to_string(),
        "urn:leapserv:motivatit/houma-1:1"
    );
    let mut state = state.lock().unwrap();
    if state.cut.exists() {
        return StatusCode::BAD_GATEWAY.into_response();
    }
    let applied = body.configuration.applied;
    if let Some(sealed) = &body.escrow {
        state.escrow_version = Some(sealed.version);
        state.escrow = Some(sealed.clone());
    }
    let reports_stored = body
        .reports
        .iter()
        .map(|report| report.id.clone())
        .collect();
    state.reports.extend(body.reports.clone());
    state.check_ins.push(body);
    if state.fenced {
        let error = ApiError {
            code: "fenced".into(),
            message: "incarnation 2 is motivatit/houma-1 now".into(),
            hint: None,
            request: None,
        };
        return (StatusCode::FORBIDDEN, Json(error)).into_response();
    }
    let configuration = state
        .configuration
        .clone()
        .filter(|signed| updater::generation::claimed_generation(signed) != applied);
    Json(CheckInReply {
        time: edge::clock::now(),
        configuration,
        channel: state.channel.clone(),
        commands: state.commands.clone(),
        secrets: state.secrets.clone(),
        escrow_version: state.escrow_version,
        reports_stored,
    })
    .into_response()
}

async fn file(
    State(state): State<Shared>,
    UrlPath((version, path)): UrlPath<(String, String)>,
    headers: HeaderMap,
) -> Response {
    let bytes = state
        .lock()
        .unwrap()
        .files
        .get(&format!("{version}/{path}"))
        .cloned();
    let Some(bytes) = bytes else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let Some(range) = headers.get("range") else {
        return bytes.into_response();
    };
    let range = range.to_str().unwrap().strip_prefix("bytes=").unwrap();
    let (first, last) = range.split_once('-').unwrap();
    let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
    let pieces: Vec<Vec<u8>> = bytes[first..=last]
        .chunks(256 << 10)
        .map(<[u8]>::to_vec)
        .collect();
    let stream =
        futures::stream::unfold((pieces.into_iter(), state), async |(mut pieces, state)| {
            let piece = pieces.next()?;
            let hang = {
                let mut state = state.lock().unwrap();
                state.bytes_sent += piece.len() as u64;
                state.hang_after.is_some_and(|most| state.bytes_sent > most)
            };
            if hang {
                std::future::pending::<()>().await;
            }
            Some((Ok::<_, std::io::Error>(Bytes::from(piece)), (pieces, state)))
        });
    (StatusCode::PARTIAL_CONTENT, Body::from_stream(stream)).into_response()
}

pub(crate) struct Unit {
    folder: tempfile::TempDir,
    pub(crate) disk: PathBuf,
    boots: u32,
}

impl Unit {
    pub(crate) fn born(sky: &Sky, release: &Release) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("disk");
        let unit = Self {
            folder,
            disk,
            boots: 1,
        };
        let root = unit.folder.path();
        sky.with(|state| state.cut = root.join("net/cut"));
        unit.put(
            "/usr/lib/os-release",
            format!("IMAGE_VERSION={}\n", release.manifest.version),
        );
        unit.put(
            "/usr/lib/leapserv/trust-root.json",
            serde_json::to_string(&sky.trust).unwrap(),
        );
        unit.put(
            "/proc/cmdline",
            format!("ro roothash={} quiet\n", release.manifest.root_hash),
        );
        unit.put("/proc/sys/kernel/hostname", "leapserv\n");
        unit.put("/proc/sys/kernel/random/boot_id", "boot-1\n");
        fs::create_dir_all(unit.at("/sys/class/net")).unwrap();
        unit.enrol(sky);
        unit.install(sky, release);
        unit.programs();
        unit
    }

    fn enrol(&self, sky: &Sky) {
        let now = edge::clock::now();
        let request = tls::ca::device_request().unwrap();
        let identity: DeviceIdentity = "urn:leapserv:motivatit/houma-1:1".parse().unwrap();
        let certificate = sky
            .authority
            .device_certificate(&request.csr, &identity, request.public_key, now)
            .unwrap();
        let enrolment = Enrolment {
            identity,
            certificate,
            ca: sky.authority.certificate().to_owned(),
            sky: format!("https://{}", sky.address),
        };
        let folder = "/var/lib/leapserv/identity";
        self.put(
            &format!("{folder}/enrolment.json"),
            serde_json::to_string(&enrolment).unwrap(),
        );
        self.put(&format!("{folder}/device.key"), &request.key);
        use age::secrecy::ExposeSecret as _;
        let key = age::x25519::Identity::generate().to_string();
        self.put(&format!("{folder}/age.key"), key.expose_secret());
    }

    /// Composes the disk, and puts what is on its ESP where it is mounted.
    fn install(&self, sky: &Sky, release: &Release) {
        let files = self.folder.path().join("release");
        for (path, bytes) in &release.files {
            self.put(&format!("/release/{path}"), bytes);
        }
        self.put("/release/layer.raw", "layer");
        let now = edge::clock::now();
        let manifest = release.verified(&sky.trust);
        let layer_bytes = layer("motivatit");
        let signed: Signed<CustomerLayer> = serde_json::from_slice(&layer_bytes).unwrap();
        let document = sky.trust.verify(&signed, now).unwrap();
        let release_parts = slots::compose::Release {
            manifest: &manifest,
            bytes: &release.bytes,
        };
        let layer_parts = Layer {
            document: &document,
            bytes: &layer_bytes,
        };
        let mut disk = Disk::create(&self.disk, layout::MIN_DISK_SIZE).unwrap();
        let mut source = Folders {
            layer: files.join("layer.raw"),
            release: files,
        };
        compose(
            &mut disk,
            &Digest::of(b"disk"),
            release_parts,
            layer_parts,
            &mut source,
        )
        .unwrap();
        for file in esp_files(release_parts, layer_parts).unwrap() {
            let bytes = match file.content {
                EspContent::Bytes(bytes) => bytes,
                EspContent::Release(artifact) => release.files[&artifact.path].clone(),
                EspContent::Layer(_) => b"layer".to_vec(),
            };
            self.put(&format!("/efi/{}", file.path), &bytes);
        }
    }

    fn programs(&self) {
        self.program("systemd-confext", "");
        // A loop device is as good as the file itself, and never opened for writing.
        self.program(
            "losetup",
            r#"case "$*" in
               "--find --show --read-only "*) echo $4 ;;
               "--detach "*) ;;
               *) exit 1 ;;
               esac"#,
        );
        // The kernel's part: a device shows what its root hash is of, and only that.
        self.program(
            "veritysetup",
            r#"devices=$LEAP_ROOT/dev/mapper
               mkdir -p $devices
               case "$1" in
               open) sha256sum $4 | grep -q $5 && test $6 = --hash-offset=4096 && ln -s $4 $devices/$3 ;;
               close) test $2 = --deferred && rm $devices/$3 ;;
               esac"#,
        );
        self.program(
            "mount",
            r#"test $1 = -t && test $2 = erofs || exit 1
               grep -qs "no image" $5 && exit 1
               cp $5 $6/image"#,
        );
        self.program("umount", "rm $1/image");
        // Merging shows what systemd would: each extension's own file, and a unit of its name.
        self.program(
            "systemd-sysext",
            r#"usr=$LEAP_ROOT/usr/lib
               grep -l "no identity" $LEAP_ROOT/run/extensions/*/image >&2 2> /dev/null && exit 1
               rm -rf $usr/extension-release.d $usr/systemd/system
               mkdir -p $usr/extension-release.d $usr/systemd/system
               for link in $LEAP_ROOT/run/extensions/*; do
                   grep -qs "for this system" $link/image || continue
                   touch $usr/extension-release.d/extension-release.$(basename $link)
                   touch $usr/systemd/system/$(basename $link).service
               done"#,
        );
        // A service does not run when its component says so.
        self.program(
            "systemctl",
            r#"case "$1" in
               is-active) ! grep -qs "falls over" $LEAP_ROOT/run/extensions/$(basename $3 .service)/image ;;
               esac"#,
        );
        // networkd: reads its file, and an address from nowhere cuts the unit off.
        self.program(
            "networkctl",
            r#"mkdir -p $LEAP_ROOT/net
               if grep -qs 10.99 $LEAP_ROOT/run/systemd/network/10-leapserv.network
               then touch $LEAP_ROOT/net/cut; else rm -f $LEAP_ROOT/net/cut; fi"#,
        );
        self.program(
            "ip",
            r#"test "$2" = route && exit 0
               if [ -e $LEAP_ROOT/net/cut ]
               then echo '[{"addr_info":[{"local":"10.99.0.5","prefixlen":24,"scope":"global"}]}]'
               else echo '[{"addr_info":[{"local":"10.0.0.7","prefixlen":24,"scope":"global","dynamic":true}]}]'
               fi"#,
        );
        self.program(
            "leap-backup",
            r#"var=$LEAP_ROOT/var/lib/leapserv
               case "$*" in
               init)
                   mkdir -p $var/secrets $var/backup/repository
                   touch $var/backup/repository/config
                   echo '{"version":1,"repository_password":"hurricane","repository_key":"{}","ssh_key":"k"}' > $var/secrets/backup.json ;;
               status*) echo '{"ssh_public_key":"ssh-ed25519 AAAA"}' ;;
               *run) echo '{"ok":true}' ;;
               esac"#,
        );
    }

    fn program(&self, name: &str, text: &str) {
        let path = self.at("/usr/bin").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        // The engine is told its root first; the log has what comes after.
        let log =
            "test \"$1\" = --root && shift 2; echo \"$*\" >> \"$LEAP_ROOT/$(basename $0).log\"";
        fs::write(&path, format!("#!/bin/sh\n{log}\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn put(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.at(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.site().at(path)
    }

    pub(crate) fn site(&self) -> Site {
        Site::new(self.folder.path())
    }

    pub(crate) fn name(&self) -> UnitName {
        "motivatit/houma-1".parse().unwrap()
    }

    pub(crate) fn hostname(&self) -> String {
        self.site().hostname().unwrap()
    }

    pub(crate) fn state(&self) -> String {
        fs::read_to_string(self.at("/run/leapserv/state.json")).unwrap_or_default()
    }

    pub(crate) fn entries(&self) -> Vec<String> {
        let entries = self.site().esp().entries().unwrap();
        entries.iter().map(ToString::to_string).collect()
    }

    /// How a tool was called, call by call.
    pub(crate) fn log(&self, tool: &str) -> Vec<String> {
        let text = fs::read_to_string(self.folder.path().join(format!("{tool}.log")));
        text.unwrap_or_default()
            .lines()
            .map(str::to_owned)
            .collect()
    }

    pub(crate) fn seal_to_device(&self, version: u64) -> SealedSecrets {
        let key = fs::read_to_string(self.at("/var/lib/leapserv/identity/age.key")).unwrap();
        let identity: age::x25519::Identity = key.parse().unwrap();
        let secrets = UnitSecrets {
            version,
            repository_password: "hurricane".into(),
            repository_key: "{}".into(),
            ssh_key: "k".into(),
        };
        let plain = serde_json::to_vec(&secrets).unwrap();
        SealedSecrets {
            version,
            age: age::encrypt_and_armor(&identity.to_public(), &plain).unwrap(),
        }
    }

    /// What a restart of the machine does to the file system.
    pub(crate) fn restart(&mut self) {
        self.boots += 1;
        for path in ["/run", "/net", "/dev"] {
            drop(fs::remove_dir_all(self.at(path)));
        }
        self.put("/proc/sys/kernel/hostname", "leapserv\n");
        self.put(
            "/proc/sys/kernel/random/boot_id",
            format!("boot-{}\n", self.boots),
        );
    }

    /// Ends the unit's boot well: its gate has passed.
    pub(crate) fn pass_gate(&self) {
        let site = self.site();
        let gate = serde_json::json!({
            "last": {
                "release": site.release().unwrap(),
                "boot_id": site.boot_id().unwrap(),
                "passed": true,
                "checks": [],
                "time": edge::clock::now(),
            },
            "failed": {},
        });
        let path = site.state("gate.json");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, gate.to_string()).unwrap();
    }

    pub(crate) fn start(&self) -> Daemon {
        self.start_with_gate_of(60)
    }

    pub(crate) fn start_with_gate_of(&self, gate_seconds: u32) -> Daemon {
        let stop = CancellationToken::new();
        let config = Config {
            confirm_seconds: 5,
            gate_seconds,
        };
        let task = updater::daemon::run(self.site(), Some(self.disk.clone()), config, stop.clone());
        Daemon {
            task: tokio::spawn(async move { task.await.unwrap() }),
            stop,
        }
    }
}

pub(crate) struct Daemon {
    task: tokio::task::JoinHandle<()>,
    stop: CancellationToken,
}

impl Daemon {
    /// Leaves everything where it is, as a power cut does.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}
