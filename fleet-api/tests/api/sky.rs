//! A sky of its own for each test, and those who call it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::tpm::emulator::Emulator;
use edge::runner::Tool;
use fleet_api::config::Config;
use fleet_api::serve;
use jiff::{SignedDuration, Timestamp};
use model::api::{
    Announcement, ApiError, CheckIn, CheckInReply, ConfigurationStatus, Enrolment,
    IncarnationReason, IncarnationView, InstallStep, MachineView, NewCustomer, NewIncarnation,
    NewUnit, Offer, Progress, Redemption, UpdateStatus,
};
use model::configuration::{Configuration, Maintenance, Network, Settings};
use model::machine::{
    DeviceKeys, DiskContent, DiskFacts, MachineCode, MachineFacts, NicFacts, TpmKeys,
};
use model::release::{Artifact, Component, ReleaseManifest, Segment, SegmentedImage};
use model::ticket::{BirthTicket, ForeignData, TicketDisk};
use model::trust::RoleKeys;
use model::{Digest, HexBytes, Incarnation, Role, Signed, Signer, TrustRoot};
use reqwest::{Client, Method, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) const UNIT: &str = "motivatit/houma-1";
pub(crate) const RELEASE: &str = "2026.11.1";

pub(crate) fn leap_fleet() -> Tool {
    Tool::new(env!("CARGO_BIN_EXE_leap-fleet"))
}

/// A sky that runs, and the keys of its people.
pub(crate) struct Sky {
    pub(crate) dir: TempDir,
    pub(crate) base: String,
    pub(crate) operators: Signer,
    pub(crate) releases: Signer,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Sky {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (operators, releases) = (Signer::from_seed(&[1; 32]), Signer::from_seed(&[2; 32]));
        set_up(&dir.path().join("sky"), &operators, &releases);
        let (base, stop, task) = serve(&dir.path().join("sky"), edge::clock::now).await;
        Self {
            dir,
            base,
            operators,
            releases,
            stop,
            task,
        }
    }

    pub(crate) fn place(&self) -> PathBuf {
        self.dir.path().join("sky")
    }

    /// Ends the daemon and starts another one on the same folder.
    pub(crate) async fn restart(&mut self, clock: fn() -> Timestamp) {
        self.stop.cancel();
        (&mut self.task).await.unwrap();
        (self.base, self.stop, self.task) = serve(&self.place(), clock).await;
    }

    pub(crate) fn ca(&self) -> String {
        std::fs::read_to_string(self.place().join("ca.crt")).unwrap()
    }

    pub(crate) fn anyone(&self) -> Caller {
        Caller {
            client: tls::client::builder(&self.ca()).unwrap().build().unwrap(),
            base: self.base.clone(),
            token: None,
        }
    }

    pub(crate) fn holder(&self, word: &str) -> Caller {
        let token = std::fs::read_to_string(self.place().join("tokens").join(word)).unwrap();
        Caller {
            token: Some(token.trim().to_owned()),
            ..self.anyone()
        }
    }

    pub(crate) fn operator(&self) -> Caller {
        self.holder("operator")
    }

    pub(crate) fn factory(&self) -> Caller {
        self.holder("factory")
    }

    pub(crate) fn device(&self, machine: &Machine, enrolment: &Enrolment) -> Caller {
        let papers = tls::device::Papers {
            ca: &enrolment.ca,
            certificate: &enrolment.certificate,
            key: &machine.key,
            tpm: &machine.chip,
        };
        Caller {
            client: papers.client().unwrap().build().unwrap(),
            base: self.base.clone(),
            token: None,
        }
    }

    /// Customer, unit, first configuration, and a release on channel `stable`.
    pub(crate) async fn prepare(&self) {
        self.add_unit(UNIT).await;
        self.publish(RELEASE).await;
        self.offer(RELEASE).await;
    }

    pub(crate) async fn add_unit(&self, unit: &str) {
        let operator = self.operator();
        let customer = unit.split('/').next().unwrap();
        let new = NewCustomer {
            name: customer.parse().unwrap(),
            title: format!("{customer} of Houma"),
        };
        operator
            .ok::<NewCustomer>(Method::POST, "/v1/customers", &new)
            .await;
        let new = NewUnit {
            unit: unit.parse().unwrap(),
            profile: "backup".into(),
            channel: "stable".into(),
        };
        operator
            .ok::<serde_json::Value>(Method::POST, "/v1/units", &new)
            .await;
        operator
            .ok::<serde_json::Value>(
                Method::PUT,
                &format!("/v1/units/{unit}/configuration"),
                &self.configuration(unit, 1),
            )
            .await;
    }

    pub(crate) fn configuration(&self, unit: &str, generation: u64) -> Signed<Configuration> {
        self.operators.sign(&Configuration {
            unit: unit.parse().unwrap(),
            generation,
            settings: Settings {
                hostname: format!("host-{generation}"),
                time_zone: "America/Chicago".into(),
                network: Network::Dhcp {},
                operators: vec![],
                maintenance: Maintenance::default(),
                check_in_seconds: 60,
                backup: None,
            },
        })
    }

    /// Uploads a small release that is whole.
    pub(crate) async fn publish(&self, version: &str) {
        for (path, bytes) in release_files(&self.releases, version) {
            self.upload(version, &path, bytes).await;
        }
    }

    pub(crate) async fn upload(&self, version: &str, path: &str, bytes: Vec<u8>) {
        let path = format!("/v1/releases/{version}/{path}");
        let response = self.operator().put_bytes(&path, bytes).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
    }

    pub(crate) async fn offer(&self, version: &str) {
        let offer = Offer {
            release: version.parse().unwrap(),
            revision: 0,
        };
        self.operator()
            .ok::<serde_json::Value>(Method::PUT, "/v1/channels/stable", &offer)
            .await;
    }

    pub(crate) async fn begin(&self, unit: &str, reason: IncarnationReason) -> Incarnation {
        let path = format!("/v1/units/{unit}/incarnations");
        let new = NewIncarnation { reason };
        self.operator()
            .ok::<IncarnationView>(Method::POST, &path, &new)
            .await
            .incarnation
    }

    pub(crate) fn ticket(
        &self,
        machine: &Machine,
        unit: &str,
        incarnation: Incarnation,
    ) -> BirthTicket {
        let now = edge::clock::now();
        BirthTicket {
            id: Digest::of(machine.key.as_bytes()).to_string()[..32].to_owned(),
            unit: unit.parse().unwrap(),
            incarnation,
            machine_serial: machine.facts.serial.clone(),
            machine_uuid: machine.facts.uuid.clone(),
            device_keys: machine.keys.fingerprint(),
            disk: TicketDisk {
                path: "/dev/vda".into(),
                serial: "D1".into(),
                size: 10 << 30,
            },
            mirror: None,
            release: RELEASE.parse().unwrap(),
            foreign_data: ForeignData::Keep,
            issued: now,
            expires: now + SignedDuration::from_hours(1),
        }
    }

    /// Announces a machine and approves it; the ticket is not used yet.
    pub(crate) async fn approve(
        &self,
        machine: &Machine,
        unit: &str,
        incarnation: Incarnation,
    ) -> BirthTicket {
        self.announce(machine).await;
        let ticket = self.ticket(machine, unit, incarnation);
        let path = format!("/v1/machines/{}/ticket", machine.code());
        self.operator()
            .ok::<MachineView>(Method::PUT, &path, &self.operators.sign(&ticket))
            .await;
        ticket
    }

    pub(crate) async fn announce(&self, machine: &Machine) -> MachineView {
        self.factory()
            .ok(Method::POST, "/v1/machines", &machine.announcement())
            .await
    }

    pub(crate) async fn redeem(&self, machine: &Machine, ticket: &BirthTicket) -> Enrolment {
        let path = format!("/v1/machines/{}/redeem", machine.code());
        let redemption = Redemption {
            ticket: ticket.id.clone(),
            keys: machine.keys.clone(),
            proof: None,
        };
        self.factory().ok(Method::POST, &path, &redemption).await
    }

    pub(crate) async fn progress(&self, machine: &Machine, step: InstallStep) -> Response {
        let path = format!("/v1/machines/{}/progress", machine.code());
        let progress = Progress {
            step,
            done: 1,
            total: 2,
            seconds: 3,
            problem: None,
        };
        self.factory().send(Method::POST, &path, &progress).await
    }

    /// The whole birth; returns the newborn as a caller.
    pub(crate) async fn birth(
        &self,
        machine: &Machine,
        unit: &str,
        reason: IncarnationReason,
    ) -> Caller {
        let incarnation = self.begin(unit, reason).await;
        let ticket = self.approve(machine, unit, incarnation).await;
        let enrolment = self.redeem(machine, &ticket).await;
        let done = self.progress(machine, InstallStep::Done).await;
        assert_eq!(done.status(), StatusCode::OK);
        self.device(machine, &enrolment)
    }

    pub(crate) async fn unit(&self, unit: &str) -> model::api::UnitView {
        self.operator().get(&format!("/v1/units/{unit}")).await
    }

    pub(crate) async fn events(&self) -> Vec<model::api::Event> {
        self.operator().get("/v1/events").await
    }

    pub(crate) async fn event_kinds(&self) -> Vec<String> {
        let events = self.events().await;
        events.into_iter().map(|event| event.kind).collect()
    }
}

fn set_up(place: &Path, operators: &Signer, releases: &Signer) {
    leap_fleet()
        .args(["init", "--name", "localhost", "--address", "127.0.0.1"])
        .arg("--dir")
        .arg(place)
        .run()
        .unwrap();
    let trust = trust_root(place, operators, releases);
    let path = place.with_file_name("trust-root.json");
    std::fs::write(&path, serde_json::to_vec(&trust).unwrap()).unwrap();
    leap_fleet()
        .arg("set-trust")
        .arg(place)
        .arg(&path)
        .run()
        .unwrap();
}

/// What `leapctl keys init` makes of the sky's introduction.
pub(crate) fn trust_root(place: &Path, operators: &Signer, releases: &Signer) -> TrustRoot {
    let text = std::fs::read_to_string(place.join("sky.json")).unwrap();
    let introduction: serde_json::Value = serde_json::from_str(&text).unwrap();
    let timestamp = introduction["timestamp_public_key"].as_str().unwrap();
    let keys = |key| RoleKeys {
        keys: vec![key],
        threshold: 1,
    };
    TrustRoot {
        version: 1,
        roles: [
            (Role::Targets, keys(releases.public())),
            (Role::Configuration, keys(operators.public())),
            (Role::Timestamp, keys(timestamp.parse().unwrap())),
        ]
        .into(),
        recovery: vec![],
    }
}

async fn serve(
    place: &Path,
    clock: fn() -> Timestamp,
) -> (String, CancellationToken, JoinHandle<()>) {
    tls::install_provider();
    let mut config = Config::read(&place.join("fleet.toml")).unwrap();
    config.listen = "127.0.0.1:0".parse().unwrap();
    let stop = CancellationToken::new();
    let listener = serve::bind(&config).await.unwrap();
    let base = format!("https://{}", listener.address());
    let mut sky = fleet_api::sky::Sky::open(&config, stop.clone())
        .await
        .unwrap();
    Arc::get_mut(&mut sky).unwrap().clock = clock;
    let task = tokio::spawn(async { serve::serve(sky, listener).await.unwrap() });
    (base, stop, task)
}

/// Somebody who calls the sky.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) client: Client,
    pub(crate) base: String,
    pub(crate) token: Option<String>,
}

impl Caller {
    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.base));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    pub(crate) async fn send(&self, method: Method, path: &str, body: &impl Serialize) -> Response {
        self.request(method, path).json(body).send().await.unwrap()
    }

    /// Like [`Self::send`], where it may not even connect.
    pub(crate) async fn try_send(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> reqwest::Result<Response> {
        self.request(method, path).json(body).send().await
    }

    pub(crate) async fn put_bytes(&self, path: &str, bytes: Vec<u8>) -> Response {
        let request = self.request(Method::PUT, path).body(bytes);
        request.send().await.unwrap()
    }

    pub(crate) async fn fetch(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.unwrap()
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        answer(self.fetch(path).await, path).await
    }

    pub(crate) async fn ok<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> T {
        answer(self.send(method, path, body).await, path).await
    }

    /// Expects a refusal, and returns its status and error.
    pub(crate) async fn refused(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> (u16, ApiError) {
        refusal(self.send(method, path, body).await).await
    }

    pub(crate) async fn check_in(&self, said: &CheckIn) -> CheckInReply {
        self.ok(Method::POST, "/v1/checkin", said).await
    }
}

async fn answer<T: DeserializeOwned>(response: Response, path: &str) -> T {
    let status = response.status();
    let text = response.text().await.unwrap();
    assert_eq!(status, StatusCode::OK, "{path}: {text}");
    serde_json::from_str(&text).unwrap()
}

/// Every refusal has an `ApiError` that names the request.
pub(crate) async fn refusal(response: Response) -> (u16, ApiError) {
    let status = response.status();
    let request = response.headers()["x-request-id"]
        .to_str()
        .unwrap()
        .to_owned();
    let text = response.text().await.unwrap();
    assert!(!status.is_success(), "{text}");
    let error: ApiError = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"));
    assert_eq!(error.request, Some(request));
    (status.as_u16(), error)
}

/// A machine in its installer.
pub(crate) struct Machine {
    pub(crate) facts: MachineFacts,
    pub(crate) keys: DeviceKeys,
    pub(crate) key: String,
    /// Where its TPM is.
    pub(crate) chip: PathBuf,
}

impl Machine {
    pub(crate) fn new(serial: &str) -> Self {
        let request = tls::ca::device_request().unwrap();
        Self {
            facts: MachineFacts {
                serial: serial.into(),
                uuid: format!("uuid-of-{serial}"),
                product: "QEMU Standard PC".into(),
                cpu: "TCG".into(),
                cpus: 2,
                memory: 1 << 30,
                disks: vec![DiskFacts {
                    path: "/dev/vda".into(),
                    serial: "D1".into(),
                    model: String::new(),
                    size: 10 << 30,
                    removable: false,
                    content: DiskContent::Empty,
                    health: None,
                }],
                nics: vec![NicFacts {
                    name: "eth0".into(),
                    mac: "52:54:00:12:34:56".parse().unwrap(),
                    link: true,
                }],
                firmware: "uefi".into(),
                secure_boot: false,
                tpm: false,
                findings: vec![],
            },
            keys: DeviceKeys {
                csr: request.csr,
                public_key: request.public_key,
                recipient: "age1qqqqqqqqqqqqqqqq".into(),
                tpm: None,
            },
            key: request.key,
            chip: PathBuf::new(),
        }
    }

    /// A machine whose keys are in this TPM.
    pub(crate) fn with_tpm(serial: &str, chip: &Emulator) -> Self {
        let made = tls::device::request_in_tpm(&chip.socket()).unwrap();
        let mut machine = Self::new(serial);
        machine.facts.tpm = true;
        machine.keys.csr = made.request.csr;
        machine.keys.public_key = made.request.public_key;
        machine.keys.tpm = Some(TpmKeys {
            endorsement_key: HexBytes(made.endorsement.key.as_bytes().to_vec()),
            endorsement_certificate: None,
            device_key: HexBytes(made.public.as_bytes().to_vec()),
        });
        machine.key = made.request.key;
        machine.chip = chip.socket();
        machine
    }

    pub(crate) fn code(&self) -> MachineCode {
        MachineCode::of(&self.keys)
    }

    pub(crate) fn announcement(&self) -> Announcement {
        Announcement {
            facts: self.facts.clone(),
            keys: self.keys.clone(),
            installer: "test".into(),
        }
    }
}

pub(crate) fn said(healthy: bool) -> CheckIn {
    CheckIn {
        release: RELEASE.parse().unwrap(),
        revision: 0,
        root_hash: "00".repeat(32),
        slot: "a".into(),
        boot_id: "boot".into(),
        healthy,
        checks: vec![],
        configuration: ConfigurationStatus::default(),
        update: UpdateStatus::default(),
        backup: None,
        escrow: None,
        secrets_version: None,
        reports: vec![],
        hostname: "houma-1".into(),
        addresses: vec![],
    }
}

/// The files of a release that is small and whole, the manifest last.
pub(crate) fn release_files(signer: &Signer, version: &str) -> Vec<(String, Vec<u8>)> {
    let content = |name: &str| format!("{name} of {version}, ").repeat(50).into_bytes();
    let segmented = |path: &str| {
        let plain = content(path);
        let packed = zstd::bulk::compress(&plain, 3).unwrap();
        let image = SegmentedImage {
            path: path.into(),
            stored_size: packed.len() as u64,
            size: plain.len() as u64,
            segments: vec![Segment {
                stored_offset: 0,
                stored_length: u32::try_from(packed.len()).unwrap(),
                length: u32::try_from(plain.len()).unwrap(),
                sha256: Digest::of(&plain),
            }],
        };
        (image, packed)
    };
    let artifact = |path: &str| Artifact {
        path: path.into(),
        size: content(path).len() as u64,
        sha256: Digest::of(&content(path)),
    };
    let (root, root_bytes) = segmented("root.zst");
    let (verity, verity_bytes) = segmented("verity.zst");
    let manifest = ReleaseManifest {
        version: version.parse().unwrap(),
        revision: 0,
        architecture: model::Architecture::Amd64,
        root_hash: Digest::of(b"root"),
        root,
        verity,
        uki: artifact("leapserv.efi"),
        boot_loader: artifact("systemd-boot.efi"),
        installer: artifact("installer.efi"),
        components: vec![Component {
            name: "backup".into(),
            version: "1".into(),
            image: artifact("components/leap-backup.raw"),
            verity: None,
        }],
        documents: Vec::new(),
        tries: 3,
        secure_boot: None,
    };
    let mut files = vec![
        ("root.zst".to_owned(), root_bytes),
        ("verity.zst".to_owned(), verity_bytes),
    ];
    for path in [
        "leapserv.efi",
        "systemd-boot.efi",
        "installer.efi",
        "components/leap-backup.raw",
    ] {
        files.push((path.to_owned(), content(path)));
    }
    let manifest = serde_json::to_vec(&signer.sign(&manifest)).unwrap();
    files.push(("manifest.json".to_owned(), manifest));
    files
}

/// Seals a text as a unit does.
pub(crate) fn seal(text: &str) -> String {
    use age::armor::{ArmoredWriter, Format};
    use std::io::Write as _;
    let key = age::x25519::Identity::generate().to_public();
    let encryptor =
        age::Encryptor::with_recipients(std::iter::once(&key as &dyn age::Recipient)).unwrap();
    let mut armored = ArmoredWriter::wrap_output(Vec::new(), Format::AsciiArmor).unwrap();
    let mut writer = encryptor.wrap_output(&mut armored).unwrap();
    writer.write_all(text.as_bytes()).unwrap();
    writer.finish().unwrap();
    String::from_utf8(armored.finish().unwrap()).unwrap()
}
