//! The bodies of the HTTP calls.
//!
//! Three listeners speak them. All are JSON unless said otherwise.
//!
//! **The sky** (`leap-fleet`, HTTPS). Callers are operators and factories (bearer
//! token) and units (device certificate).
//!
//! | call | who | body → answer |
//! |---|---|---|
//! | `GET /v1/health` | anyone | → `{"ok":true}` |
//! | `POST /v1/customers` | operator | [`NewCustomer`] → [`NewCustomer`] |
//! | `GET /v1/customers` | operator | → `Vec<NewCustomer>` |
//! | `PUT /v1/customers/{c}/layer` | operator | signed layer document → [`Accepted`] |
//! | `PUT /v1/customers/{c}/layer.raw` | operator | the image → [`Accepted`] |
//! | `GET /v1/customers/{c}/layer.json`, `…/layer.raw` | factory, unit of the customer | |
//! | `POST /v1/units` | operator | [`NewUnit`] → [`UnitView`] |
//! | `GET /v1/units` | operator | → `Vec<UnitView>` |
//! | `GET /v1/units/{c}/{n}` | operator | → [`UnitView`] |
//! | `PUT /v1/units/{c}/{n}/configuration` | operator | `Signed<Configuration>` → [`Accepted`] |
//! | `GET /v1/units/{c}/{n}/configuration` | operator | → `Signed<Configuration>` |
//! | `POST /v1/units/{c}/{n}/incarnations` | operator | [`NewIncarnation`] → [`IncarnationView`] |
//! | `GET /v1/units/{c}/{n}/escrow` | operator | → [`SealedSecrets`] |
//! | `PUT /v1/units/{c}/{n}/incarnations/{i}/secrets` | operator | [`SealedSecrets`] → [`Accepted`] |
//! | `POST /v1/units/{c}/{n}/commands` | operator | `Signed<UnitCommand>` → [`Accepted`] |
//! | `GET /v1/units/{c}/{n}/commands/{id}?wait=SECONDS` | operator | → [`CommandView`] |
//! | `GET /v1/machines` | operator, factory | → `Vec<MachineView>` |
//! | `POST /v1/machines` | factory | [`Announcement`] → [`MachineView`] |
//! | `GET /v1/machines/{code}` | operator, factory | → [`MachineView`] |
//! | `PUT /v1/machines/{code}/ticket` | operator | `Signed<BirthTicket>` → [`MachineView`] |
//! | `GET /v1/machines/{code}/verdict?wait=SECONDS` | factory | → [`Verdict`] |
//! | `POST /v1/machines/{code}/redeem` | factory | [`Redemption`] → [`Enrolment`] |
//! | `POST /v1/machines/{code}/progress` | factory | [`Progress`] → [`Accepted`] |
//! | `PUT /v1/releases/{version}/{path}` | operator | bytes → [`Accepted`] |
//! | `GET /v1/releases/{version}/{path}` | factory, unit, operator | bytes, ranges |
//! | `PUT /v1/channels/{name}` | operator | [`Offer`] → `Signed<ChannelPointer>` |
//! | `GET /v1/channels/{name}` | factory, unit, operator | → `Signed<ChannelPointer>` |
//! | `POST /v1/checkin` | unit | [`CheckIn`] → [`CheckInReply`] |
//! | `GET /v1/fences` | vault (bearer token) | → [`Fences`] |
//! | `POST /v1/fences/attempts` | vault | [`FenceAttempt`] → [`Accepted`] |
//! | `GET /v1/events?after=N&wait=SECONDS` | operator | → `Vec<Event>` |
//! | `GET /v1/events/stream?after=N&machines=true` | operator | → server-sent events: [`Event`] and [`MachineView`] |
//! | `GET /v1/metrics` | operator | → Prometheus' text format |
//!
//! An error is an [`ApiError`] with a 4xx or 5xx status.
//!
//! **The factory** (`leap-provisioner`, plain HTTP on the bench): the installer's calls
//! `POST /v1/machines`, `GET /v1/machines/{code}/verdict`, `POST …/redeem`, `POST …/progress`
//! with the same bodies, and `GET /v1/releases/…`, `GET /v1/customers/{c}/layer.json|raw`.
//! Nothing secret goes over it, and the installer verifies all that it believes.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::backup::BackupStatus;
use crate::command::{CommandReport, UnitCommand};
use crate::configuration::Configuration;
use crate::id::{
    CustomerName, DeviceIdentity, HexBytes, Incarnation, MacAddr, ReleaseVersion, UnitName,
};
use crate::machine::{DeviceKeys, MachineCode, MachineFacts};
use crate::release::{ChannelPointer, is_first};
use crate::secrets::SealedSecrets;
use crate::ticket::BirthTicket;
use crate::trust::Signed;

/// A call that changed something durable.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {}

/// What went wrong with a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// A stable word for programs: `not-found`, `conflict`, `fenced`, `refused`,
    /// `unauthorized`, `bad-request`, `busy`, `internal`.
    pub code: String,
    /// One line for people.
    pub message: String,
    /// What to do next, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Finds the call in the sky's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
}

/// A customer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewCustomer {
    /// Its name.
    pub name: CustomerName,
    /// Its name for people, "Motivatit Seafoods".
    pub title: String,
}

/// A unit to create.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewUnit {
    /// Its name; the customer must exist.
    pub unit: UnitName,
    /// The profile, `backup`.
    pub profile: String,
    /// The channel that it follows, `stable`.
    pub channel: String,
}

/// A unit as the operator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitView {
    /// Its name.
    pub unit: UnitName,
    /// The profile.
    pub profile: String,
    /// The channel.
    pub channel: String,
    /// Where it stands in life.
    pub state: UnitState,
    /// The current incarnation; 0 before birth was begun.
    pub incarnation: Incarnation,
    /// Serial of the current incarnation's machine.
    pub machine_serial: Option<String>,
    /// The newest configuration generation that an operator has signed.
    pub configuration_generation: u64,
    /// What the unit said last.
    pub last_check_in: Option<CheckIn>,
    /// When it did.
    pub last_seen: Option<Timestamp>,
    /// Whether an escrow is stored, and its version.
    pub escrow_version: Option<u64>,
    /// Attempts of fenced incarnations, newest first, at most 20.
    pub fenced_attempts: Vec<FenceAttempt>,
}

/// Where a unit stands in life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnitState {
    /// Created; no machine yet.
    Unborn,
    /// A ticket is out.
    Birth,
    /// Checked in and the health gate passed.
    InService,
    /// Checked in; the health gate has not passed (yet).
    Unhealthy,
    /// Replaced; the newcomer is not in service yet.
    Rebirth,
}

/// Why a new incarnation is begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IncarnationReason {
    /// The unit has never lived. Refused if it has.
    Birth,
    /// The hardware is dead: every older incarnation is fenced from now on.
    Replace,
}

/// Begins an incarnation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewIncarnation {
    /// Why.
    pub reason: IncarnationReason,
}

/// An incarnation that was begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IncarnationView {
    /// The unit.
    pub unit: UnitName,
    /// Its number.
    pub incarnation: Incarnation,
}

/// What the installer sends: who it is. Repeated, it changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Announcement {
    /// The machine.
    pub facts: MachineFacts,
    /// The keys that it made; the code is [`MachineCode::of`] them.
    pub keys: DeviceKeys,
    /// Version of the installer.
    pub installer: String,
}

/// A machine as the operator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineView {
    /// The code on its screen.
    pub code: MachineCode,
    /// What the installer found.
    pub facts: MachineFacts,
    /// What it made.
    pub keys: DeviceKeys,
    /// Where its birth stands.
    pub state: MachineState,
    /// The unit, once there is a ticket.
    pub unit: Option<UnitName>,
    /// The unit whose one-time code it came with; none behind a factory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pass: Option<UnitName>,
    /// The last progress told.
    pub progress: Option<Progress>,
    /// When it was first seen.
    pub first_seen: Timestamp,
    /// When it was last heard of.
    pub last_seen: Timestamp,
}

/// Where a machine's birth stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MachineState {
    /// Waits for an operator.
    Held,
    /// A ticket is ready to be used.
    Approved,
    /// The ticket is used: the disk is being written.
    Installing,
    /// The installer is done.
    Born,
    /// The installer gave up.
    Failed,
}

/// What a machine in its installer is to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum Verdict {
    /// Wait: an operator has to approve.
    Held,
    /// Restart from the local disk.
    LocalDisk {
        /// Why.
        reason: String,
    },
    /// Redeem this ticket, then install.
    Install {
        /// The permission.
        ticket: Signed<BirthTicket>,
        /// For a machine whose keys are in a TPM: what to open for its proof.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        credential: Option<Credential>,
    },
}

/// A secret that only the TPM opens which has both the endorsement key and the device
/// key of the machine (TPM 2.0 Library, part 1, "Credential Protection").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    /// Content of the `TPM2B_ID_OBJECT`.
    pub blob: HexBytes,
    /// Content of the `TPM2B_ENCRYPTED_SECRET`.
    pub secret: HexBytes,
}

/// Uses a ticket up. Repeated by the same keys, it gives the same answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Redemption {
    /// [`BirthTicket::id`].
    pub ticket: String,
    /// The keys that the ticket is bound to.
    pub keys: DeviceKeys,
    /// What was in the [`Credential`], where the keys are in a TPM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<HexBytes>,
}

/// The newborn's papers. None of it is secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Enrolment {
    /// Who it is.
    pub identity: DeviceIdentity,
    /// The device certificate (PEM).
    pub certificate: String,
    /// The fleet CA's certificate (PEM).
    pub ca: String,
    /// Where the sky is, `https://HOST:PORT`.
    pub sky: String,
}

/// How far the installer is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// The step.
    pub step: InstallStep,
    /// Bytes done of this step, where it has some.
    pub done: u64,
    /// Bytes of this step in all.
    pub total: u64,
    /// Seconds since the installer started.
    pub seconds: u32,
    /// What went wrong, for a failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// The installer's steps in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstallStep {
    /// Waiting for approval.
    Waiting,
    /// Ticket redeemed; partition table and file systems.
    Partition,
    /// Root and verity slots.
    Write,
    /// Boot loader, kernel, components, customer layer.
    Boot,
    /// Identity on the data partition.
    Identity,
    /// Reading back.
    Verify,
    /// All durable; about to restart.
    Done,
    /// Gave up.
    Failed,
}

/// Offers a release on a channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    /// The release; all of its files must have been stored.
    pub release: ReleaseVersion,
    /// Its revision.
    #[serde(default, skip_serializing_if = "is_first")]
    pub revision: u32,
}

/// What a unit says at a check-in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Eq)]
pub struct CheckIn {
    /// The release that runs.
    pub release: ReleaseVersion,
    /// The revision of its components that is active.
    #[serde(default, skip_serializing_if = "is_first")]
    pub revision: u32,
    /// The dm-verity root hash that runs.
    pub root_hash: String,
    /// `a` or `b`.
    pub slot: String,
    /// A random text that is new at each start of the system.
    pub boot_id: String,
    /// Whether the boot is blessed: the health gate has passed.
    pub healthy: bool,
    /// What the gate's checks said.
    pub checks: Vec<HealthCheck>,
    /// State of the configuration.
    pub configuration: ConfigurationStatus,
    /// State of updates.
    pub update: UpdateStatus,
    /// State of backups, once the component has told it.
    pub backup: Option<BackupStatus>,
    /// Secrets sealed to the recovery recipients, when the sky has not confirmed this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub escrow: Option<SealedSecrets>,
    /// Version of the secrets that the unit holds; `None` before it has any.
    pub secrets_version: Option<u64>,
    /// Commands that ended since the sky last confirmed.
    #[serde(default)]
    pub reports: Vec<CommandReport>,
    /// The unit's host name now.
    pub hostname: String,
    /// Addresses of the unit now.
    pub addresses: Vec<String>,
}

/// One check of the health gate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// Its name: `check-in`, `configuration`, `repository`, `canary`, or a file of `health.d`;
    /// `mirror`, of a system on two disks, is no part of the gate.
    pub name: String,
    /// Whether it passed.
    pub ok: bool,
    /// Why not, or what was found.
    pub message: String,
}

/// State of a unit's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigurationStatus {
    /// The generation in force; 0 before the first.
    pub applied: u64,
    /// The last generation that was refused or taken back.
    pub rejected: Option<RejectedGeneration>,
}

/// A generation that a unit does not run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedGeneration {
    /// Its number.
    pub generation: u64,
    /// Why: a bad signature, or that the sky could not be reached with it.
    pub reason: String,
}

/// State of a unit's updates.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateStatus {
    /// What goes on now: `idle`, `fetching`, `waiting`, `restarting`, or
    /// `replacing` components without a restart.
    pub state: String,
    /// The release that is being fetched.
    pub target: Option<ReleaseVersion>,
    /// Segments written so far.
    pub segments_done: u64,
    /// Segments in all.
    pub segments_total: u64,
    /// Segments found already written when an interrupted update went on.
    pub segments_resumed: u64,
    /// Releases that were tried and given up; they are not tried again.
    pub rejected: Vec<RejectedRelease>,
    /// The last problem.
    pub problem: Option<String>,
}

/// A release that a unit has given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedRelease {
    /// Its version.
    pub release: ReleaseVersion,
    /// The revision that was given up; 0 for the release as such.
    #[serde(default, skip_serializing_if = "is_first")]
    pub revision: u32,
    /// Why.
    pub reason: String,
}

/// What the sky answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckInReply {
    /// The sky's time.
    pub time: Timestamp,
    /// The newest configuration, when the unit's applied generation is another.
    pub configuration: Option<Signed<Configuration>>,
    /// What the unit's channel offers.
    pub channel: Option<Signed<ChannelPointer>>,
    /// Commands that the unit has not reported on.
    pub commands: Vec<Signed<UnitCommand>>,
    /// Secrets sealed to this incarnation's device, after a replacement.
    pub secrets: Option<SealedSecrets>,
    /// Version of the escrow that is stored durably.
    pub escrow_version: Option<u64>,
    /// Reports that are stored durably; the unit may forget them.
    pub reports_stored: Vec<String>,
}

/// A command as the operator sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CommandView {
    /// The command.
    pub id: String,
    /// When the unit was first given it.
    pub delivered: Option<Timestamp>,
    /// What became of it.
    pub report: Option<CommandReport>,
}

/// Which incarnations are current. Every lower one is fenced.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fences {
    /// One for each unit that has lived.
    pub units: Vec<DeviceIdentity>,
}

/// A fenced incarnation has tried something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceAttempt {
    /// Who.
    pub identity: DeviceIdentity,
    /// Where: `check-in`, `release`, or `vault NAME`.
    pub place: String,
    /// From which address.
    pub address: String,
    /// When.
    pub time: Timestamp,
}

/// Something that happened, for watching and for the audit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Rises by one.
    pub number: u64,
    /// When.
    pub time: Timestamp,
    /// A word: `machine-held`, `machine-approved`, `ticket-withdrawn`, `ticket-redeemed`,
    /// `ticket-refused`, `disk-erased`, `install`, `install-failed`, `born`,
    /// `in-service`, `mirror`, `configuration`, `release`, `fenced`, `replace` …
    pub kind: String,
    /// The unit, where there is one.
    pub unit: Option<UnitName>,
    /// The machine's code, where there is one.
    pub machine: Option<MachineCode>,
    /// The machine's first MAC address, where known.
    pub mac: Option<MacAddr>,
    /// One line for people.
    pub message: String,
}
