//! Components: what is activated, and how they are replaced without a restart.

use std::fs;

use model::api::CheckIn;
use model::release::HashTree;
use model::{Digest, Signer};

use crate::lab::{Release, Sky, Unit, eventually, release, revision, settings, signed};
use crate::{configuration, lab, last};

const OLD: [&str; 3] = [
    "backup",
    "components/backup.raw",
    "backup engine 1 for this system",
];
const NEW: [&str; 3] = [
    "backup",
    "components/backup-new.raw",
    "better engine for this system",
];
const FAILING: [&str; 3] = [
    "backup",
    "components/backup-bad.raw",
    "for this system, but falls over",
];

/// A unit of release 1 whose gate has passed, with a configuration.
fn well(sky: &Sky, release: &Release) -> Unit {
    let unit = Unit::born(sky, release);
    sky.with(|s| s.configuration = Some(configuration(&unit, 1, settings("houma-1"))));
    activate(&unit);
    unit.pass_gate();
    unit
}

fn activate(unit: &Unit) -> Vec<model::api::HealthCheck> {
    updater::activate::activate(&unit.site(), edge::clock::now()).unwrap()
}

/// What the active component's image says.
fn active(unit: &Unit, component: &str) -> Option<String> {
    let link = unit.at(&format!("/run/extensions/leap-{component}/image"));
    fs::read_to_string(link).ok()
}

/// The components' images that are mounted.
fn mounted(unit: &Unit) -> Vec<String> {
    let folder = unit.at("/run/leapserv/extensions");
    let points = fs::read_dir(folder).unwrap();
    let contents =
        points.filter_map(|point| fs::read_to_string(point.unwrap().path().join("image")).ok());
    contents.filter(|content| content != "layer").collect()
}

fn on_esp(unit: &Unit) -> Vec<String> {
    let esp = unit.site().esp();
    let version = unit.site().release().unwrap();
    let files = esp.release_files(version).unwrap();
    let folder = slots::esp::release_dir(version);
    files
        .iter()
        .map(|file| {
            file.trim_start_matches(&folder)
                .trim_start_matches('/')
                .to_owned()
        })
        .collect()
}

async fn problem(sky: &Sky, text: &str) {
    let has = |check_in: &CheckIn| {
        let problem = check_in.update.problem.as_ref();
        problem.is_some_and(|problem| problem.contains(text))
    };
    eventually(text, || sky.seen(has)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_component_is_replaced_without_a_restart_and_only_upwards() {
    let sky = Sky::start().await;
    let one = release(1);
    let unit = well(&sky, &one);
    let three = revision(&one, 3, &[NEW]);
    sky.publish(&three, 1);
    let daemon = unit.start();
    eventually("revision 3", || sky.seen(|c| c.revision == 3)).await;
    assert_eq!(active(&unit, "backup").unwrap(), NEW[2]);
    // The old image and the former manifest are gone, and nothing of the root was fetched.
    eventually("the sweep", || {
        on_esp(&unit) == ["components/backup-new.raw", "manifest.json"]
    })
    .await;
    assert_eq!(mounted(&unit), [NEW[2]]);
    let closed = unit.log("veritysetup");
    assert!(
        closed
            .last()
            .unwrap()
            .starts_with("close --deferred leap-backup-"),
        "{closed:?}"
    );
    assert_eq!(sky.with(|s| s.bytes_sent), 0);
    let calls = unit.log("systemctl");
    let place = |call: &str| calls.iter().position(|one| one == call).unwrap();
    assert!(place("daemon-reload") < place("restart leap-backup.service"));
    assert!(!calls.contains(&"reboot".to_owned()));
    eventually("idle", || last(&sky).update.state == "idle").await;

    // Older, unsigned, and more than components: refused by name.
    sky.publish(&revision(&one, 2, &[OLD]), 2);
    problem(&sky, "revision 2 is older than active revision 3").await;
    sky.publish(&revision(&one, 3, &[OLD]), 3);
    problem(&sky, "has another manifest than the active one").await;
    let mut rooted = three.manifest.clone();
    rooted.revision = 4;
    rooted.root_hash = model::Digest::of(b"another root");
    sky.publish(&lab::engineers_signature(rooted, one.files.clone()), 4);
    problem(&sky, "has another root hash").await;
    let mut forged = three.manifest.clone();
    forged.revision = 5;
    let forger = Signer::from_seed(&[99; 32]);
    sky.publish(&signed(forged, three.files.clone(), &forger), 5);
    problem(&sky, "signatures").await;
    assert_eq!(active(&unit, "backup").unwrap(), NEW[2]);
    assert_eq!(last(&sky).revision, 3);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_component_that_fails_is_taken_back_reported_and_not_tried_again() {
    let sky = Sky::start().await;
    let one = release(1);
    let unit = well(&sky, &one);
    sky.publish(&revision(&one, 1, &[FAILING]), 1);
    let daemon = unit.start_with_gate_of(5);
    let rejected = |c: &CheckIn| {
        let mut rows = c.update.rejected.iter();
        rows.any(|row| row.revision == 1 && row.reason.contains("leap-backup.service"))
    };
    eventually("the rejection", || sky.seen(rejected)).await;
    assert_eq!(active(&unit, "backup").unwrap(), OLD[2]);
    assert_eq!(
        fs::read(unit.at("/efi/leapserv/releases/2026.11.1/manifest.json")).unwrap(),
        one.bytes
    );
    let restarts = || {
        let calls = unit.log("systemctl");
        calls
            .iter()
            .filter(|call| *call == "restart leap-backup.service")
            .count()
    };
    assert_eq!(restarts(), 2, "the new one and the old one again");
    problem(&sky, "given up").await;
    assert_eq!(mounted(&unit), [OLD[2]]);
    let seen = sky.with(|s| s.check_ins.len());
    eventually("more check-ins", || {
        sky.with(|s| s.check_ins.len() > seen + 2)
    })
    .await;
    assert_eq!(restarts(), 2);
    assert_eq!(last(&sky).revision, 0);
    assert!(last(&sky).checks.iter().all(|check| check.ok));

    // A better one is taken.
    sky.publish(&revision(&one, 2, &[NEW]), 2);
    eventually("revision 2", || sky.seen(|c| c.revision == 2)).await;
    assert_eq!(active(&unit, "backup").unwrap(), NEW[2]);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_in_the_trial_goes_back_and_the_second_gives_up() {
    let sky = Sky::start().await;
    let one = release(1);
    let mut unit = well(&sky, &one);
    // Never well, never judged: power goes before.
    sky.publish(&revision(&one, 1, &[FAILING]), 1);
    for cut in 1..=2 {
        let daemon = unit.start();
        eventually("the trial", || {
            active(&unit, "backup").as_deref() == Some(FAILING[2])
        })
        .await;
        daemon.stop().await;
        unit.restart();
        let found = activate(&unit);
        assert!(found.iter().all(|check| check.ok), "{found:?}");
        assert_eq!(active(&unit, "backup").unwrap(), OLD[2], "cut {cut}");
        unit.pass_gate();
    }
    let daemon = unit.start();
    eventually("the rejection", || {
        sky.seen(|c| {
            c.update
                .rejected
                .iter()
                .any(|row| row.reason.contains("cut off 2 times"))
        })
    })
    .await;
    assert_eq!(active(&unit, "backup").unwrap(), OLD[2]);
    daemon.stop().await;

    // A daemon that dies leaves the unit running with what was on trial.
    sky.publish(&revision(&one, 2, &[FAILING]), 2);
    let daemon = unit.start();
    eventually("the trial", || {
        active(&unit, "backup").as_deref() == Some(FAILING[2])
    })
    .await;
    daemon.stop().await;
    sky.with(|s| s.channel = None);
    let daemon = unit.start();
    eventually("the way back", || {
        active(&unit, "backup").as_deref() == Some(OLD[2])
    })
    .await;
    daemon.stop().await;
}

#[test]
fn a_start_after_a_power_cut_finds_the_old_components_or_the_new_and_never_half() {
    let sky = Sky::offline();
    let one = release(1);
    let new = revision(&one, 1, &[NEW]);
    let folder = "leapserv/releases/2026.11.1";
    let (manifest, former) = (
        format!("{folder}/manifest.json"),
        format!("{folder}/former.json"),
    );
    // What lies on the ESP after each step of a replacement.
    type Step<'a> = (&'a str, &'a [u8], Option<&'a [u8]>, &'a str);
    let steps: [Step<'_>; 6] = [
        ("fetched", &one.bytes, None, OLD[2]),
        ("former torn", &one.bytes, Some(&one.bytes[..99]), OLD[2]),
        ("former put aside", &one.bytes, Some(&one.bytes), OLD[2]),
        ("replaced", &new.bytes, Some(&one.bytes), OLD[2]),
        ("committed", &new.bytes, None, NEW[2]),
        ("taken back", &one.bytes, Some(&one.bytes), OLD[2]),
    ];
    for (step, active_manifest, former_manifest, expected) in steps {
        let unit = Unit::born(&sky, &one);
        let esp = unit.site().esp();
        esp.write(&format!("{folder}/{}", NEW[1]), NEW[2].as_bytes())
            .unwrap();
        esp.write(&format!("{folder}/components/other.raw.new"), b"half")
            .unwrap();
        esp.write(&manifest, active_manifest).unwrap();
        if let Some(bytes) = former_manifest {
            esp.write(&former, bytes).unwrap();
        }
        // Twice: the start itself may be cut off.
        for _ in 0..2 {
            let found = activate(&unit);
            assert!(found.iter().all(|check| check.ok), "{step}: {found:?}");
            assert_eq!(active(&unit, "backup").unwrap(), expected, "{step}");
            assert!(!esp.path(&former).exists(), "{step}");
        }
        updater::replace::sweep(&unit.site(), &sky.trust, edge::clock::now()).unwrap();
        let image = if expected == NEW[2] { NEW[1] } else { OLD[1] };
        assert_eq!(on_esp(&unit), [image, "manifest.json"], "{step}");
    }
}

const PUMP: [&str; 3] = ["pump", "components/pump.raw", "pump for this system"];

#[test]
fn a_broken_component_is_left_out_and_reported_and_the_others_are_active() {
    let sky = Sky::offline();
    let both = revision(&release(1), 0, &[OLD, PUMP]);
    let image = |unit: &Unit| unit.at("/efi/leapserv/releases/2026.11.1/components/backup.raw");
    type Damage = fn(&std::path::Path);
    let damages: [(&str, Damage); 3] = [
        ("flipped", |path| {
            let mut bytes = fs::read(path).unwrap();
            bytes[3] ^= 1;
            fs::write(path, bytes).unwrap();
        }),
        ("cut short", |path| {
            let bytes = fs::read(path).unwrap();
            fs::write(path, &bytes[1..]).unwrap();
        }),
        ("missing", |path| fs::remove_file(path).unwrap()),
    ];
    for (what, damage) in damages {
        let unit = Unit::born(&sky, &both);
        damage(&image(&unit));
        let found = activate(&unit);
        let check = found
            .iter()
            .find(|check| check.name == "components")
            .unwrap();
        assert!(!check.ok, "{what}");
        assert!(
            check.message.contains("backup: missing or not as signed"),
            "{check:?}"
        );
        assert_eq!(active(&unit, "backup"), None, "{what}");
        assert_eq!(active(&unit, "pump").as_deref(), Some(PUMP[2]), "{what}");
    }
    // As signed, and not for this system; or nothing that systemd or the kernel takes.
    for (content, problem) in [
        (
            "for another system",
            "its extension-release is not for this system",
        ),
        ("no identity, for this system", "backup: "),
        ("no image, for this system", "backup: "),
    ] {
        let bad = ["backup", "components/backup.raw", content];
        let unit = Unit::born(&sky, &revision(&release(1), 0, &[bad, PUMP]));
        let found = activate(&unit);
        let check = found
            .iter()
            .find(|check| check.name == "components")
            .unwrap();
        assert!(!check.ok && check.message.contains(problem), "{check:?}");
        assert!(!check.message.contains("pump"), "{check:?}");
        assert_eq!(active(&unit, "backup"), None);
        assert_eq!(active(&unit, "pump").as_deref(), Some(PUMP[2]));
    }
    // Signed, and the kernel would not check what is read from it later.
    let problems = [
        (None, "the release has no hash tree for it"),
        (Some(Digest::of(b"another image")), "veritysetup"),
    ];
    for (root_hash, problem) in problems {
        let mut release = both.manifest.clone();
        let tree = &mut release.components[0].verity;
        *tree = root_hash.map(|root_hash| HashTree {
            root_hash,
            offset: 4096,
        });
        let unit = Unit::born(&sky, &lab::engineers_signature(release, both.files.clone()));
        let found = activate(&unit);
        let check = found
            .iter()
            .find(|check| check.name == "components")
            .unwrap();
        assert!(!check.ok && check.message.contains(problem), "{check:?}");
        assert_eq!(active(&unit, "backup"), None);
        assert_eq!(active(&unit, "pump").as_deref(), Some(PUMP[2]));
    }
    // What the manifest does not name is not looked at.
    let unit = Unit::born(&sky, &both);
    fs::write(image(&unit).with_file_name("evil.raw"), "for this system").unwrap();
    assert!(activate(&unit).iter().all(|check| check.ok));
    assert_eq!(active(&unit, "evil"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_component_is_told_at_every_check_in() {
    let sky = Sky::start().await;
    let unit = well(&sky, &release(1));
    fs::remove_file(unit.at("/efi/leapserv/releases/2026.11.1/components/backup.raw")).unwrap();
    activate(&unit);
    let daemon = unit.start();
    eventually("the check", || {
        sky.seen(|c| {
            c.checks
                .iter()
                .any(|check| check.name == "components" && !check.ok)
        })
    })
    .await;
    daemon.stop().await;
}

#[test]
fn a_customers_layer_chooses_among_the_components() {
    let sky = Sky::offline();
    let unit = Unit::born(&sky, &revision(&release(1), 0, &[OLD, PUMP]));
    activate(&unit);
    assert!(active(&unit, "backup").is_some() && active(&unit, "pump").is_some());
    let choose = |names: &[&str]| {
        let layer = lab::choosing_layer("motivatit", Some(names));
        fs::write(unit.at("/efi/leapserv/customer/layer.json"), layer).unwrap();
        activate(&unit)
    };
    assert!(choose(&["pump"]).iter().all(|check| check.ok));
    assert!(active(&unit, "backup").is_none() && active(&unit, "pump").is_some());
    assert!(choose(&[]).iter().all(|check| check.ok));
    assert!(active(&unit, "pump").is_none());
    let found = choose(&["backup", "siren"]);
    assert!(found[2].message.contains("chooses siren"), "{found:?}");
    assert!(active(&unit, "backup").is_some());
}
