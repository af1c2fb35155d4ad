//! The bench of the tests: sky, factory, and a cable that can be pulled.

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "shared by tests that each use a part of it"
)]

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use edge::runner::Tool;
use jiff::{SignedDuration, Timestamp};
use model::api::{
    Accepted, Announcement, ApiError, Credential, Enrolment, InstallStep, MachineState,
    MachineView, Progress, Redemption, Verdict,
};
use model::machine::{MachineCode, MachineFacts, NicFacts, TpmKeys};
use model::release::{
    Artifact, ChannelPointer, Component, CustomerLayer, ReleaseManifest, SEGMENT_SIZE,
    SecureBootKeys, Segment, SegmentedImage,
};
use model::ticket::{BirthTicket, ForeignData, TicketDisk};
use model::trust::RoleKeys;
use model::{
    DeviceIdentity, Digest, HexBytes, Incarnation, MacAddr, Role, Signed, Signer, TrustRoot,
    UnitName,
};
use provisioner::factory::cache::Cache;
use provisioner::factory::config;
use provisioner::factory::disks::DiskShelf;
use provisioner::factory::ledger::Ledger;
use provisioner::factory::routes::{self, Factory};
use provisioner::factory::sky::SkyClient;
use provisioner::factory::source;
use provisioner::factory::story::{Stories, Story};
use slots::{Disk, Part, Target as _};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

pub const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
const TOKEN: &str = "factory-token";
const PATIENCE: Duration = Duration::from_secs(60);

fn unit() -> UnitName {
    "motivatit/houma-1".parse().unwrap()
}

/// Who signs what.
struct Signers {
    targets: Signer,
    operator: Signer,
    sky: Signer,
}

impl Signers {
    fn new() -> Self {
        Self {
            targets: Signer::from_seed(&[1; 32]),
            operator: Signer::from_seed(&[2; 32]),
            sky: Signer::from_seed(&[3; 32]),
        }
    }

    fn trust_root(&self) -> TrustRoot {
        let role = |signer: &Signer| RoleKeys {
            keys: vec![signer.public()],
            threshold: 1,
        };
        TrustRoot {
            version: 1,
            roles: BTreeMap::from([
                (Role::Targets, role(&self.targets)),
                (Role::Configuration, role(&self.operator)),
                (Role::Timestamp, role(&self.sky)),
            ]),
            recovery: vec![],
        }
    }
}

/// A small release with all of its files.
pub struct Release {
    pub manifest: ReleaseManifest,
    pub manifest_bytes: Vec<u8>,
    pub root: Vec<u8>,
    pub verity: Vec<u8>,
    pub uki: Vec<u8>,
    pub boot_loader: Vec<u8>,
    pub component: Vec<u8>,
    pub layer: Vec<u8>,
    pub files: HashMap<String, Vec<u8>>,
}

fn random(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}

fn artifact(path: &str, bytes: &[u8]) -> Artifact {
    Artifact {
        path: path.into(),
        size: bytes.len() as u64,
        sha256: Digest::of(bytes),
    }
}

fn segmented(path: &str, content: &[u8]) -> (SegmentedImage, Vec<u8>) {
    let mut stored = Vec::new();
    let segments = content
        .chunks(usize::try_from(SEGMENT_SIZE).unwrap())
        .map(|chunk| {
            let frame = zstd::bulk::compress(chunk, 1).unwrap();
            let segment = Segment {
                stored_offset: stored.len() as u64,
                stored_length: u32::try_from(frame.len()).unwrap(),
                length: u32::try_from(chunk.len()).unwrap(),
                sha256: Digest::of(chunk),
            };
            stored.extend(frame);
            segment
        })
        .collect();
    let image = SegmentedImage {
        path: path.into(),
        stored_size: stored.len() as u64,
        size: content.len() as u64,
        segments,
    };
    (image, stored)
}

impl Release {
    fn new(signers: &Signers) -> Self {
        let (root, verity) = (random(5_000_000), random(70_000));
        let (uki, boot_loader, component) = (random(300_000), random(60_000), random(100_000));
        let installer = random(50_000);
        let (root_image, root_stored) = segmented("root.zst", &root);
        let (verity_image, verity_stored) = segmented("verity.zst", &verity);
        let manifest = ReleaseManifest {
            version: "2026.11.1".parse().unwrap(),
            revision: 0,
            architecture: model::Architecture::Amd64,
            root_hash: Digest::of(&root),
            root: root_image,
            verity: verity_image,
            uki: artifact("leapserv.efi", &uki),
            boot_loader: artifact("systemd-bootx64.efi", &boot_loader),
            installer: artifact("installer.efi", &installer),
            components: vec![Component {
                name: "backup".into(),
                version: "1".into(),
                image: artifact("leap-backup.raw", &component),
                verity: None,
            }],
            documents: Vec::new(),
            tries: 3,
            secure_boot: Some(SecureBootKeys {
                pk: artifact("keys/PK.auth", b"PK"),
                kek: artifact("keys/KEK.auth", b"KEK"),
                db: artifact("keys/db.auth", b"db"),
            }),
        };
        let manifest_bytes = serde_json::to_vec(&signers.targets.sign(&manifest)).unwrap();
        let files = [
            ("manifest.json", &manifest_bytes),
            ("root.zst", &root_stored),
            ("verity.zst", &verity_stored),
            ("leapserv.efi", &uki),
            ("systemd-bootx64.efi", &boot_loader),
            ("installer.efi", &installer),
            ("leap-backup.raw", &component),
            ("keys/PK.auth", &b"PK".to_vec()),
            ("keys/KEK.auth", &b"KEK".to_vec()),
            ("keys/db.auth", &b"db".to_vec()),
        ];
        let files = files.map(|(path, bytes)| (path.to_owned(), bytes.clone()));
        Self {
            files: HashMap::from(files),
            layer: random(9_000),
            manifest,
            manifest_bytes,
            root,
            verity,
            uki,
            boot_loader,
            component,
        }
    }

    /// Bytes that a birth carries over the cable, about.
    pub fn total(&self) -> u64 {
        self.files.values().map(|bytes| bytes.len() as u64).sum()
    }
}

/// What kind of ticket an operator gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ticketing {
    Good,
    EraseForeign,
    Expired,
    OtherMachine,
    OtherKeys,
    OtherDisk,
    OtherRelease,
    SignedByTheSky,
}

struct Machine {
    view: MachineView,
    ticket: Option<Signed<BirthTicket>>,
    id: String,
    redeemed: bool,
}

/// A sky with the calls that a factory makes.
pub struct Sky {
    machines: Mutex<BTreeMap<MachineCode, Machine>>,
    changed: Notify,
    silent_at: Mutex<Option<InstallStep>>,
    signers: Signers,
    authority: tls::ca::Authority,
    pub release: Arc<Release>,
}

type SharedSky = State<Arc<Sky>>;

fn refuse(status: StatusCode, code: &str, message: &str) -> Response {
    let error = ApiError {
        code: code.into(),
        message: message.into(),
        hint: None,
        request: None,
    };
    (status, Json(error)).into_response()
}

impl Sky {
    fn router(self: Arc<Self>) -> Router {
        Router::new()
            .route("/v1/machines", get(sky_list).post(sky_announce))
            .route("/v1/machines/{code}/verdict", get(sky_verdict))
            .route("/v1/machines/{code}/redeem", post(sky_redeem))
            .route("/v1/machines/{code}/progress", post(sky_progress))
            .route("/v1/channels/stable", get(sky_channel))
            .route("/v1/releases/{version}/{*path}", get(sky_file))
            .route("/v1/customers/motivatit/layer.json", get(sky_layer))
            .route("/v1/customers/motivatit/layer.raw", get(sky_layer_raw))
            .with_state(self)
    }

    pub fn state(&self, code: &MachineCode) -> MachineState {
        self.machines.lock().unwrap()[code].view.state
    }

    pub fn facts(&self, code: &MachineCode) -> MachineFacts {
        self.machines.lock().unwrap()[code].view.facts.clone()
    }

    pub fn redeemed(&self, code: &MachineCode) -> bool {
        self.machines.lock().unwrap()[code].redeemed
    }

    pub fn fall_silent_at(&self, step: InstallStep) {
        *self.silent_at.lock().unwrap() = Some(step);
    }

    pub fn speak(&self) {
        *self.silent_at.lock().unwrap() = None;
    }

    pub fn approve(&self, code: &MachineCode, ticketing: Ticketing) {
        let mut machines = self.machines.lock().unwrap();
        let machine = machines.get_mut(code).unwrap();
        let now = edge::clock::now();
        let facts = &machine.view.facts;
        let disk = &facts.disks[0];
        let mut ticket = BirthTicket {
            id: model::Digest::of(&random(16)).to_string()[..32].to_owned(),
            unit: unit(),
            incarnation: Incarnation(1),
            machine_serial: facts.serial.clone(),
            machine_uuid: facts.uuid.clone(),
            device_keys: machine.view.keys.fingerprint(),
            disk: TicketDisk {
                path: disk.path.clone(),
                serial: disk.serial.clone(),
                size: disk.size,
            },
            mirror: None,
            release: self.release.manifest.version,
            foreign_data: ForeignData::Keep,
            issued: now,
            expires: now + SignedDuration::from_hours(1),
        };
        let mut signer = &self.signers.operator;
        match ticketing {
            Ticketing::Good => {}
            Ticketing::EraseForeign => ticket.foreign_data = ForeignData::Erase,
            Ticketing::Expired => ticket.expires = now - SignedDuration::from_secs(1),
            Ticketing::OtherMachine => ticket.machine_serial = "OTHER".into(),
            Ticketing::OtherKeys => ticket.device_keys = Digest::of(b"other"),
            Ticketing::OtherDisk => ticket.disk.serial = "OTHER".into(),
            Ticketing::OtherRelease => ticket.release = "2026.11.9".parse().unwrap(),
            Ticketing::SignedByTheSky => signer = &self.signers.sky,
        }
        machine.ticket = Some(signer.sign(&ticket));
        machine.id = ticket.id;
        machine.view.state = MachineState::Approved;
        self.changed.notify_waiters();
    }
}

async fn sky_list(State(_): SharedSky, headers: HeaderMap) -> Response {
    let expected = format!("Bearer {TOKEN}");
    if headers.get("authorization").map(|h| h.as_bytes()) != Some(expected.as_bytes()) {
        return refuse(StatusCode::UNAUTHORIZED, "unauthorized", "no such token");
    }
    Json(Vec::<MachineView>::new()).into_response()
}

async fn sky_announce(State(sky): SharedSky, Json(body): Json<Announcement>) -> Json<MachineView> {
    let code = MachineCode::of(&body.keys);
    let now = edge::clock::now();
    let mut machines = sky.machines.lock().unwrap();
    let machine = machines.entry(code.clone()).or_insert_with(|| Machine {
        view: MachineView {
            code,
            facts: body.facts,
            keys: body.keys,
            state: MachineState::Held,
            unit: None,
            pass: None,
            progress: None,
            first_seen: now,
            last_seen: now,
        },
        ticket: None,
        id: String::new(),
        redeemed: false,
    });
    Json(machine.view.clone())
}

/// What a machine with a TPM has to open.
const PROOF: [u8; 32] = [7; 32];

fn challenge(keys: &TpmKeys) -> Credential {
    let area = |bytes: &HexBytes| tpm::Public::parse(&bytes.0).unwrap();
    let (endorsement, key) = (area(&keys.endorsement_key), area(&keys.device_key));
    let wrapped = tpm::credential::wrap(&PROOF, &endorsement, &key).unwrap();
    Credential {
        blob: HexBytes(wrapped.blob),
        secret: HexBytes(wrapped.secret),
    }
}

async fn sky_verdict(State(sky): SharedSky, UrlPath(code): UrlPath<MachineCode>) -> Json<Verdict> {
    let look = || {
        let machines = sky.machines.lock().unwrap();
        let machine = &machines[&code];
        let ticket = machine.ticket.clone();
        ticket.map(|ticket| (ticket, machine.view.keys.clone()))
    };
    for _ in 0..2 {
        let changed = sky.changed.notified();
        if let Some((ticket, keys)) = look() {
            let credential = keys.tpm.map(|tpm| challenge(&tpm));
            return Json(Verdict::Install { ticket, credential });
        }
        drop(tokio::time::timeout(Duration::from_secs(1), changed).await);
    }
    Json(Verdict::Held)
}

async fn sky_redeem(
    State(sky): SharedSky,
    UrlPath(code): UrlPath<MachineCode>,
    Json(body): Json<Redemption>,
) -> Response {
    let mut machines = sky.machines.lock().unwrap();
    let machine = machines.get_mut(&code).unwrap();
    if machine.id != body.ticket || machine.view.keys != body.keys {
        return refuse(
            StatusCode::CONFLICT,
            "refused",
            "ticket is not for this machine",
        );
    }
    let proof = body.keys.tpm.as_ref().map(|_| HexBytes(PROOF.to_vec()));
    if body.proof != proof {
        return refuse(StatusCode::FORBIDDEN, "refused", "not proven");
    }
    machine.redeemed = true;
    machine.view.state = MachineState::Installing;
    let identity = DeviceIdentity {
        unit: unit(),
        incarnation: Incarnation(1),
    };
    let (csr, key) = (&body.keys.csr, body.keys.public_key);
    let now = edge::clock::now();
    let certificate = sky.authority.device_certificate(csr, &identity, key, now);
    Json(Enrolment {
        identity,
        certificate: certificate.unwrap(),
        ca: sky.authority.certificate().to_owned(),
        sky: "https://10.0.0.1:8443".into(),
    })
    .into_response()
}

async fn sky_progress(
    State(sky): SharedSky,
    UrlPath(code): UrlPath<MachineCode>,
    Json(body): Json<Progress>,
) -> Response {
    if *sky.silent_at.lock().unwrap() == Some(body.step) {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "internal", "away");
    }
    let mut machines = sky.machines.lock().unwrap();
    let machine = machines.get_mut(&code).unwrap();
    match body.step {
        InstallStep::Done => machine.view.state = MachineState::Born,
        InstallStep::Failed => machine.view.state = MachineState::Failed,
        _ => {}
    }
    machine.view.progress = Some(body);
    Json(Accepted {}).into_response()
}

async fn sky_channel(State(sky): SharedSky) -> Json<Signed<ChannelPointer>> {
    Json(sky.signers.sky.sign(&ChannelPointer {
        channel: "stable".into(),
        version: 1,
        release: sky.release.manifest.version,
        revision: 0,
        manifest: Digest::of(&sky.release.manifest_bytes),
        expires: edge::clock::now() + SignedDuration::from_hours(24),
    }))
}

async fn sky_file(
    State(sky): SharedSky,
    UrlPath((version, path)): UrlPath<(String, String)>,
    headers: HeaderMap,
) -> Response {
    let release = &sky.release;
    let file = release.files.get(&path);
    let Some(bytes) = file.filter(|_| version == release.manifest.version.to_string()) else {
        return refuse(StatusCode::NOT_FOUND, "not-found", "no such file");
    };
    let from = headers
        .get("range")
        .and_then(|range| {
            range
                .to_str()
                .ok()?
                .strip_prefix("bytes=")?
                .strip_suffix('-')
        })
        .and_then(|from| from.parse::<usize>().ok());
    match from {
        Some(from) => (StatusCode::PARTIAL_CONTENT, bytes[from..].to_vec()).into_response(),
        None => bytes.clone().into_response(),
    }
}

async fn sky_layer(State(sky): SharedSky) -> Json<Signed<CustomerLayer>> {
    Json(sky.signers.operator.sign(&CustomerLayer {
        customer: "motivatit".parse().unwrap(),
        version: 1,
        components: None,
        image: artifact("layer.raw", &sky.release.layer),
    }))
}

async fn sky_layer_raw(State(sky): SharedSky) -> Vec<u8> {
    sky.release.layer.clone()
}

/// What the cable between installer and factory does.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    None,
    /// Connections break after so many bytes, so many times.
    CutAfter {
        bytes: usize,
        times: usize,
    },
    /// One byte of a connection is changed, so many times.
    Flip {
        at: usize,
        times: usize,
    },
    /// One byte in so many is changed.
    FlipEvery {
        bytes: usize,
    },
    /// Connections stand still after so many bytes.
    Stop {
        bytes: usize,
    },
    /// Nothing gets through.
    Dead,
}

struct Cable {
    fault: Mutex<Fault>,
    used: AtomicUsize,
    carried: AtomicU64,
    changed: Notify,
}

impl Cable {
    fn once_more(&self, times: usize) -> bool {
        self.used.fetch_add(1, Ordering::SeqCst) < times
    }

    async fn run(self: Arc<Self>, listener: TcpListener, factory: SocketAddr) {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            if matches!(*self.fault.lock().unwrap(), Fault::Dead) {
                continue;
            }
            let server = TcpStream::connect(factory).await.unwrap();
            tokio::spawn(Arc::clone(&self).carry(client, server));
        }
    }

    async fn carry(self: Arc<Self>, mut client: TcpStream, mut server: TcpStream) {
        let (mut from_client, mut to_client) = client.split();
        let (mut from_server, mut to_server) = server.split();
        let up = tokio::io::copy(&mut from_client, &mut to_server);
        let down = async {
            let mut buffer = vec![0; 16 << 10];
            let mut passed = 0;
            loop {
                let length = match from_server.read(&mut buffer).await {
                    Ok(0) | Err(_) => return,
                    Ok(length) => length,
                };
                let crosses = |place: usize| (passed..passed + length).contains(&place);
                let fault = *self.fault.lock().unwrap();
                match fault {
                    Fault::CutAfter { bytes, times } if crosses(bytes) && self.once_more(times) => {
                        return;
                    }
                    Fault::Flip { at, times } if crosses(at) && self.once_more(times) => {
                        buffer[at - passed] ^= 1;
                    }
                    Fault::FlipEvery { bytes } if passed / bytes < (passed + length) / bytes => {
                        buffer[length - 1] ^= 1;
                    }
                    Fault::Stop { bytes } if passed + length > bytes => {
                        self.changed.notified().await;
                        return;
                    }
                    Fault::Dead => return,
                    _ => {}
                }
                passed += length;
                self.carried.fetch_add(length as u64, Ordering::SeqCst);
                if to_client.write_all(&buffer[..length]).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            _ = up => {}
            () = down => {}
        }
    }
}

/// Sky, factory, cable and disk.
pub struct Bench {
    pub sky: Arc<Sky>,
    pub release: Arc<Release>,
    dir: tempfile::TempDir,
    sky_config: config::Sky,
    trust: TrustRoot,
    clock: fn() -> Timestamp,
    factory: Arc<Factory>,
    server: tokio::task::JoinHandle<()>,
    cable: Arc<Cable>,
    pub base: String,
}

impl Bench {
    pub async fn start(fault: Fault) -> Self {
        let trust = Signers::new().trust_root();
        Self::start_with(fault, trust, edge::clock::now).await
    }

    /// A factory that takes every ticket for good.
    pub async fn start_gullible() -> Self {
        let signers = Signers::new();
        let mut trust = signers.trust_root();
        let keys = trust.roles.get_mut(&Role::Configuration).unwrap();
        keys.keys.push(signers.sky.public());
        Self::start_with(Fault::None, trust, || Timestamp::UNIX_EPOCH).await
    }

    async fn start_with(fault: Fault, trust: TrustRoot, clock: fn() -> Timestamp) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (sky, sky_config) = start_sky().await;
        let release = Arc::clone(&sky.release);
        Disk::create(&dir.path().join("disk"), slots::layout::MIN_DISK_SIZE).unwrap();
        write_facts(dir.path());
        write_trust_root(dir.path());
        let cable = Arc::new(Cable {
            fault: Mutex::new(fault),
            used: AtomicUsize::new(0),
            carried: AtomicU64::new(0),
            changed: Notify::new(),
        });
        let (factory, server, base) =
            start_factory(dir.path(), &sky_config, &trust, clock, &cable).await;
        Self {
            sky,
            release,
            dir,
            sky_config,
            trust,
            clock,
            factory,
            server,
            cable,
            base,
        }
    }

    /// Stops the factory and starts it again on what it has written.
    pub async fn restart_factory(self) -> Self {
        let Self {
            sky,
            release,
            dir,
            sky_config,
            trust,
            clock,
            factory,
            server,
            cable,
            ..
        } = self;
        server.abort();
        drop(server.await);
        let weak = Arc::downgrade(&factory);
        drop(factory);
        // Handlers of connections that just ended still hold it for a moment.
        while weak.strong_count() > 0 {
            tokio::task::yield_now().await;
        }
        let (factory, server, base) =
            start_factory(dir.path(), &sky_config, &trust, clock, &cable).await;
        Self {
            sky,
            release,
            dir,
            sky_config,
            trust,
            clock,
            factory,
            server,
            cable,
            base,
        }
    }

    pub fn source(&self) -> &source::Bench {
        &self.factory.bench
    }

    pub fn ledger(&self) -> &Ledger {
        &self.factory.ledger
    }

    /// The page of metrics, from an address of its own: the bench's has none.
    pub async fn metrics(&self) -> String {
        let bench = self.base.strip_prefix("http://").unwrap();
        let refused = ask_page(bench.parse().unwrap(), "/metrics").await;
        assert!(refused.starts_with("HTTP/1.1 404"), "{refused}");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = routes::metrics_router(Arc::clone(&self.factory));
        let server = tokio::spawn(async { axum::serve(listener, service).await.unwrap() });
        let answer = ask_page(address, "/metrics").await;
        server.abort();
        let (head, page) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert!(head.contains(edge::metrics::CONTENT_TYPE), "{head}");
        page.to_owned()
    }

    pub fn story(&self) -> Story {
        self.factory.bench.story(MAC)
    }

    pub async fn tell_owed(&self) {
        routes::tell_all_owed(&self.factory).await;
    }

    pub fn disk(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    pub fn carried(&self) -> u64 {
        self.cable.carried.load(Ordering::SeqCst)
    }

    pub fn mend(&self) {
        *self.cable.fault.lock().unwrap() = Fault::None;
        self.cable.changed.notify_waiters();
    }

    pub fn cut_for_good(&self) {
        *self.cable.fault.lock().unwrap() = Fault::Dead;
    }

    pub fn root_is_whole(&self) -> bool {
        let mut disk = Disk::open_read_only(&self.disk()).unwrap();
        let layout = slots::gpt::read(&mut disk).unwrap();
        let start = layout.partition(Part::Root(slots::Slot::A)).start;
        let mut found = vec![0; self.release.root.len()];
        disk.read_at(start, &mut found).unwrap();
        found == self.release.root
    }

    fn data(&self) -> String {
        let mut disk = Disk::open_read_only(&self.disk()).unwrap();
        let layout = slots::gpt::read(&mut disk).unwrap();
        let start = layout.partition(Part::Data).start;
        format!("{}?offset={start}", self.disk().display())
    }

    pub fn debugfs(&self, command: &str) -> String {
        Tool::new("debugfs")
            .args(["-R", command])
            .arg(self.data())
            .text()
            .unwrap()
    }

    pub fn fsck(&self) {
        Tool::new("e2fsck")
            .arg("-fn")
            .arg(self.data())
            .run()
            .unwrap();
    }
}

/// Starts a sky on loopback.
pub async fn start_sky() -> (Arc<Sky>, config::Sky) {
    let now = edge::clock::now();
    let signers = Signers::new();
    let release = Arc::new(Release::new(&signers));
    let authority = tls::ca::Authority::generate("fleet", now).unwrap();
    let (certificate, key) = authority
        .server_certificate(&["127.0.0.1".into()], now)
        .unwrap();
    let identity = tls::server::Identity::from_pem(&certificate, &key).unwrap();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let listener = tls::server::Listener::bind(any, identity, tls::server::ClientAuth::None)
        .await
        .unwrap();
    let sky_config = config::Sky {
        url: format!("https://{}", listener.address()),
        ca: authority.certificate().to_owned(),
        token: TOKEN.into(),
    };
    let sky = Arc::new(Sky {
        machines: Mutex::default(),
        changed: Notify::new(),
        silent_at: Mutex::default(),
        signers,
        authority,
        release,
    });
    let service = Arc::clone(&sky).router().into_make_service();
    tokio::spawn(async move { axum::serve(listener, service).await.unwrap() });
    (sky, sky_config)
}

pub fn write_trust_root(dir: &Path) {
    let text = serde_json::to_vec(&Signers::new().trust_root()).unwrap();
    std::fs::write(dir.join("trust-root.json"), text).unwrap();
}

async fn start_factory(
    dir: &Path,
    sky: &config::Sky,
    trust: &TrustRoot,
    clock: fn() -> Timestamp,
    cable: &Arc<Cable>,
) -> (Arc<Factory>, tokio::task::JoinHandle<()>, String) {
    // Made by the test that wants it.
    let local_boot = Some(dir.join("local.efi")).filter(|path| path.exists());
    let client = SkyClient::new(sky).unwrap();
    let ledger = Arc::new(Ledger::open(&dir.join("state/machines.jsonl")).unwrap());
    let stories = Arc::new(Stories::open(&dir.join("state/stories.jsonl")).unwrap());
    let cache = Cache::open(
        &dir.join("cache"),
        client.clone(),
        trust.clone(),
        "stable".into(),
    );
    let cache = Arc::new(cache.unwrap());
    cache.resume(clock());
    cache.refresh(clock()).await.unwrap();
    let bench = source::Bench::new(
        Arc::clone(&ledger),
        Arc::clone(&cache),
        stories,
        clock,
        source::Programs {
            local_boot,
            ipxe: None,
        },
    );
    let factory = Arc::new(Factory {
        ledger,
        cache,
        bench: Arc::new(bench),
        sky: client,
        trust: trust.clone(),
        clock,
        announcements: routes::Announcements::default(),
        disks: DiskShelf::default(),
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = routes::router(Arc::clone(&factory));
    let service = service.into_make_service_with_connect_info::<SocketAddr>();
    let serve = async move { axum::serve(listener, service).await.unwrap() };
    let outside = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", outside.local_addr().unwrap());
    let carry = Arc::clone(cable).run(outside, address);
    let server = tokio::spawn(async move {
        tokio::select! {
            () = serve => {}
            () = carry => {}
        }
    });
    (factory, server, base)
}

/// Asks for a page, head and all.
async fn ask_page(address: SocketAddr, path: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let question = format!("GET {path} HTTP/1.1\r\nhost: factory\r\nconnection: close\r\n\r\n");
    stream.write_all(question.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn write_facts(dir: &Path) {
    let facts = MachineFacts {
        serial: "LAB-0001".into(),
        uuid: "00112233-4455-6677-8899-aabbccddeeff".into(),
        product: "test".into(),
        cpu: "test".into(),
        cpus: 2,
        memory: 2 << 30,
        disks: vec![model::machine::DiskFacts {
            path: "/dev/none".into(),
            serial: "DISK-1".into(),
            model: String::new(),
            size: 0,
            removable: false,
            content: model::machine::DiskContent::Empty,
            health: None,
        }],
        nics: vec![NicFacts {
            name: "eth0".into(),
            mac: MAC,
            link: true,
        }],
        firmware: "uefi".into(),
        secure_boot: false,
        tpm: false,
        findings: vec![],
    };
    let text = serde_json::to_vec(&facts).unwrap();
    std::fs::write(dir.join("facts.json"), text).unwrap();
}

/// The real program.
pub struct Installer {
    child: tokio::process::Child,
    lines: tokio::io::Lines<BufReader<tokio::process::ChildStdout>>,
    said: String,
}

impl Installer {
    pub fn start(bench: &Bench, more: &[&str]) -> Self {
        let dir = bench.dir.path();
        let mut child = Tool::new(env!("CARGO_BIN_EXE_leap-installer"))
            .args(["--no-init", "--factory", &bench.base])
            .arg("--disk")
            .arg(bench.disk())
            .arg("--facts")
            .arg(dir.join("facts.json"))
            .arg("--trust-root")
            .arg(dir.join("trust-root.json"))
            .args(more)
            .tokio_command()
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        Self {
            child,
            lines: BufReader::new(stdout).lines(),
            said: String::new(),
        }
    }

    async fn next(&mut self) -> Option<String> {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await;
        let line = line.unwrap_or_else(|_| panic!("silent after:\n{}", self.said));
        let line = line.unwrap()?;
        self.said.push_str(&line);
        self.said.push('\n');
        Some(line)
    }

    /// Waits for a line that contains a text.
    pub async fn line(&mut self, wanted: &str) -> String {
        loop {
            match self.next().await {
                Some(line) if line.contains(wanted) => return line,
                Some(_) => {}
                None => panic!("ended without {wanted:?}:\n{}", self.said),
            }
        }
    }

    pub async fn code(&mut self) -> MachineCode {
        let line = self.line("leapserv: code ").await;
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    pub fn said(&self) -> String {
        self.said.clone()
    }

    async fn end(&mut self) -> Option<i32> {
        while self.next().await.is_some() {}
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        status.expect("it ends").unwrap().code()
    }

    pub async fn ends(&mut self, code: i32) {
        let found = self.end().await;
        assert_eq!(found, Some(code), "{}", self.said);
    }

    pub async fn fails(&mut self) {
        let found = self.end().await;
        assert_ne!(found, Some(0), "{}", self.said);
    }

    pub async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }
}
