//! An operator's process at the bench, against a real sky: `leapctl machine attend`.

use std::path::{Path, PathBuf};

use clap::Parser as _;
use edge::exit::Failure;
use model::Role;
use model::api::{InstallStep, MachineState, MachineView, UnitState, Verdict};
use model::machine::DiskContent;
use tokio::task::JoinHandle;

use crate::sky::{Machine, Sky, UNIT, trust_root};

const POOL: &str = "[[rule]]\nproduct = 'QEMU*'\nunits = ['motivatit/houma-*']\n";

/// The operator's key folder, as `leapctl keys init` makes it.
fn keys(sky: &Sky) -> PathBuf {
    let dir = sky.dir.path().join("keys");
    std::fs::create_dir(&dir).unwrap();
    let trust = trust_root(&sky.place(), &sky.operators, &sky.releases);
    std::fs::write(dir.join("configuration.pem"), sky.operators.to_pem()).unwrap();
    std::fs::write(
        dir.join("trust-root.json"),
        serde_json::to_vec(&trust).unwrap(),
    )
    .unwrap();
    std::fs::write(dir.join("ca.crt"), sky.ca()).unwrap();
    assert!(trust.roles.contains_key(&Role::Configuration));
    dir
}

fn attend(sky: &Sky, keys: &Path, rules: &str, more: &[&str]) -> JoinHandle<Result<(), Failure>> {
    let file = sky.dir.path().join("rules.toml");
    std::fs::write(&file, rules).unwrap();
    let token = sky.place().join("tokens/operator");
    let paths = [file, token, keys.to_owned()].map(|path| path.display().to_string());
    let [file, token, keys] = &paths;
    let mut line = vec![
        "leapctl",
        "--json",
        "--sky",
        &sky.base,
        "--token-file",
        token,
        "--keys",
    ];
    line.extend([keys.as_str(), "machine", "attend", file]);
    line.extend(more);
    let cli = ctl::Cli::try_parse_from(line).unwrap();
    // The program has a runtime of its own.
    tokio::task::spawn_blocking(|| ctl::run(cli))
}

/// A machine with ports of its own.
fn machine(number: u8) -> Machine {
    let mut machine = Machine::new(&format!("S{number}"));
    let mac = format!("52:54:00:00:00:{number:02x}");
    machine.facts.nics[0].mac = mac.parse().unwrap();
    machine.facts.disks[0].size = 20 << 30;
    machine
}

async fn seen(sky: &Sky, machine: &Machine) -> MachineView {
    let path = format!("/v1/machines/{}", machine.code());
    sky.operator().get(&path).await
}

/// Waits, as the installer does, until the machine is told to install.
async fn ticket(sky: &Sky, machine: &Machine) -> model::ticket::BirthTicket {
    let path = format!("/v1/machines/{}/verdict?wait=60", machine.code());
    let Verdict::Install { ticket, .. } = sky.factory().get(&path).await else {
        panic!("not approved within a minute");
    };
    let root = trust_root(&sky.place(), &sky.operators, &sky.releases);
    root.verify(&ticket, edge::clock::now())
        .unwrap()
        .into_inner()
}

#[tokio::test]
async fn machines_are_approved_as_they_come_and_each_becomes_one_unit() {
    let sky = Sky::start().await;
    sky.prepare().await;
    for unit in [
        "motivatit/houma-2",
        "motivatit/houma-10",
        "motivatit/spare-1",
    ] {
        sky.add_unit(unit).await;
    }
    let keys = keys(&sky);
    let rules = format!("[[rule]]\nserial = 'S9'\nunit = 'motivatit/spare-1'\n{POOL}");
    let process = attend(&sky, &keys, &rules, &["--at-most", "4"]);
    // One after the other, and each only once the one before it has its ticket.
    let mut told = Vec::new();
    for number in [1, 2, 9, 3] {
        let machine = machine(number);
        sky.announce(&machine).await;
        let ticket = ticket(&sky, &machine).await;
        told.push((ticket.machine_serial.clone(), ticket.unit.to_string()));
        if number != 2 {
            sky.redeem(&machine, &ticket).await;
        }
    }
    process.await.unwrap().unwrap();
    let told: Vec<_> = told.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    assert_eq!(
        told,
        [
            ("S1", "motivatit/houma-1"),
            ("S2", "motivatit/houma-2"),
            ("S9", "motivatit/spare-1"),
            ("S3", "motivatit/houma-10"),
        ]
    );
    // The limit is reached: the next one waits for a person.
    let fifth = machine(5);
    sky.announce(&fifth).await;
    assert_eq!(seen(&sky, &fifth).await.state, MachineState::Held);
    let kinds = sky.event_kinds().await;
    let approved = kinds.iter().filter(|kind| *kind == "machine-approved");
    assert_eq!(approved.count(), 4);
}

#[tokio::test]
async fn what_is_in_doubt_stays_held_and_the_next_machine_goes_on() {
    let sky = Sky::start().await;
    sky.prepare().await;
    sky.add_unit("motivatit/houma-2").await;
    let keys = keys(&sky);
    let mut foreign = machine(1);
    foreign.facts.disks[0].content = DiskContent::Foreign;
    let mut small = machine(2);
    small.facts.disks[0].size = 4 << 30;
    let mut other = machine(3);
    other.facts.product = "Dell Inc. OptiPlex".into();
    let good = machine(4);
    for machine in [&foreign, &small, &other, &good] {
        sky.announce(machine).await;
    }
    let process = attend(&sky, &keys, POOL, &["--at-most", "1"]);
    let permitted = ticket(&sky, &good).await;
    process.await.unwrap().unwrap();
    assert_eq!(permitted.unit, UNIT.parse().unwrap());
    assert_eq!(permitted.foreign_data, model::ticket::ForeignData::Keep);
    for machine in [&foreign, &small, &other] {
        assert_eq!(seen(&sky, machine).await.state, MachineState::Held);
    }
    // It is born, and started from the network again: no second unit for it, no second erase.
    sky.redeem(&good, &permitted).await;
    sky.progress(&good, InstallStep::Failed).await;
    let again = machine(4);
    sky.announce(&again).await;
    let last = machine(6);
    sky.announce(&last).await;
    let process = attend(&sky, &keys, POOL, &["--at-most", "1"]);
    assert_eq!(
        ticket(&sky, &last).await.unit.to_string(),
        "motivatit/houma-2"
    );
    process.await.unwrap().unwrap();
    assert_eq!(seen(&sky, &again).await.state, MachineState::Held);
}

#[tokio::test]
async fn a_rehearsal_signs_nothing_and_begins_nothing() {
    let sky = Sky::start().await;
    sky.prepare().await;
    let keys = keys(&sky);
    let machine = machine(1);
    sky.announce(&machine).await;
    let events = sky.events().await.len();
    let process = attend(&sky, &keys, POOL, &["--dry-run"]);
    process.await.unwrap().unwrap();
    assert_eq!(seen(&sky, &machine).await.state, MachineState::Held);
    let unit = sky.unit(UNIT).await;
    assert_eq!((unit.state, unit.incarnation.0), (UnitState::Unborn, 0));
    assert_eq!(sky.events().await.len(), events);
}

#[tokio::test]
async fn rules_and_keys_are_checked_before_the_first_machine() {
    let sky = Sky::start().await;
    sky.prepare().await;
    let keys = keys(&sky);
    sky.announce(&machine(1)).await;
    let code = async |rules: &str| {
        let ended = attend(&sky, &keys, rules, &["--at-most", "1"]).await;
        ended.unwrap().unwrap_err().kind().code()
    };
    assert_eq!(code("").await, 3);
    assert_eq!(code("[[rule]]\nunits = ['motivatit/*']\n").await, 3);
    // A key that the trust root does not name.
    let stranger = sky.releases.to_pem();
    std::fs::write(keys.join("configuration.pem"), stranger).unwrap();
    assert_eq!(code(POOL).await, 5);
}

#[tokio::test]
async fn a_machine_that_only_waits_is_heard_of() {
    let mut sky = Sky::start().await;
    sky.prepare().await;
    let machine = machine(1);
    let announced = sky.announce(&machine).await.last_seen;
    sky.restart(|| edge::clock::now() + jiff::SignedDuration::from_mins(2))
        .await;
    let path = format!("/v1/machines/{}/verdict", machine.code());
    assert!(matches!(sky.factory().get(&path).await, Verdict::Held));
    let heard = seen(&sky, &machine).await.last_seen;
    assert!(heard.duration_since(announced) >= jiff::SignedDuration::from_secs(119));
}
