//! The updater against a sky of its own, over real mutual TLS: a folder and a
//! file stand in for the unit's file system and disk.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy.toml's exception does not reach"
)]

mod components;
mod lab;
mod mirror;

use std::fs;
use std::time::Duration;

use lab::{Release, Sky, Unit, eventually, release, settings};
use model::api::CheckIn;
use model::command::{Action, CommandOutcome, UnitCommand};
use model::configuration::{Configuration, Network, Settings};
use model::{Signed, Signer};
use slots::esp::EntryState;
use slots::{Disk, Part, Slot, Window};

fn configuration(unit: &Unit, generation: u64, settings: Settings) -> Signed<Configuration> {
    lab::operator().sign(&Configuration {
        unit: unit.name(),
        generation,
        settings,
    })
}

fn last(sky: &Sky) -> CheckIn {
    sky.with(|state| state.check_ins.last().cloned().expect("a check-in"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_is_applied_and_one_that_cuts_the_unit_off_is_taken_back() {
    let sky = Sky::start().await;
    let unit = Unit::born(&sky, &release(1));
    let daemon = unit.start();
    eventually("first check-in", || sky.with(|s| !s.check_ins.is_empty())).await;
    assert_eq!(last(&sky).slot, "a");
    assert_eq!(last(&sky).configuration.applied, 0);

    let good = settings("houma-1");
    sky.with(|s| s.configuration = Some(configuration(&unit, 1, good.clone())));
    eventually("generation 1", || last(&sky).configuration.applied == 1).await;
    assert_eq!(last(&sky).hostname, "houma-1");

    // Signed by somebody else: refused, and told.
    let forged = Signer::from_seed(&[99; 32]).sign(&Configuration {
        unit: unit.name(),
        generation: 2,
        settings: settings("evil"),
    });
    sky.with(|s| s.configuration = Some(forged));
    eventually("refusal of a forgery", || {
        let rejected = last(&sky).configuration.rejected;
        rejected.is_some_and(|one| one.generation == 2 && one.reason.contains("signatures"))
    })
    .await;
    assert_eq!(last(&sky).hostname, "houma-1");

    // A network without the sky in it.
    let mut cut = settings("houma-2");
    cut.network = Network::Static {
        address: "10.99.0.5/24".into(),
        gateway: None,
        dns: vec![],
    };
    sky.with(|s| s.configuration = Some(configuration(&unit, 3, cut)));
    eventually("generation 3 taken back", || {
        let rejected = last(&sky).configuration.rejected;
        rejected.is_some_and(|one| one.generation == 3 && one.reason.contains("not reached"))
    })
    .await;
    assert_eq!(last(&sky).configuration.applied, 1);
    assert_eq!(last(&sky).hostname, "houma-1");
    assert_eq!(last(&sky).addresses, ["10.0.0.7"]);
    // Offered again and again, it is not tried again.
    let reloads = unit.log("networkctl").len();
    let seen = sky.with(|s| s.check_ins.len());
    eventually("more check-ins", || {
        sky.with(|s| s.check_ins.len() > seen + 2)
    })
    .await;
    assert_eq!(unit.log("networkctl").len(), reloads);

    // A replay of an old generation changes nothing either.
    sky.with(|s| s.configuration = Some(configuration(&unit, 4, settings("houma-4"))));
    eventually("generation 4", || last(&sky).configuration.applied == 4).await;
    sky.with(|s| s.configuration = Some(configuration(&unit, 1, good)));
    eventually("refusal of a replay", || {
        let rejected = last(&sky).configuration.rejected;
        rejected.is_some_and(|one| one.generation == 1 && one.reason.contains("older"))
    })
    .await;
    assert_eq!(last(&sky).hostname, "houma-4");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_during_a_trial_ends_with_the_confirmed_generation() {
    let sky = Sky::start().await;
    let mut unit = Unit::born(&sky, &release(1));
    let daemon = unit.start();
    sky.with(|s| s.configuration = Some(configuration(&unit, 1, settings("one"))));
    eventually("generation 1", || {
        sky.seen(|c| c.configuration.applied == 1)
    })
    .await;
    let mut cut = settings("two");
    cut.network = Network::Static {
        address: "10.99.0.5/24".into(),
        gateway: None,
        dns: vec![],
    };
    sky.with(|s| s.configuration = Some(configuration(&unit, 2, cut)));
    let trial = unit.at("/var/lib/leapserv/configuration/trial.json");
    eventually("the trial", || trial.exists() && unit.hostname() == "two").await;
    daemon.stop().await;
    sky.with(|s| s.configuration = None);
    unit.restart();
    let found = updater::activate::activate(&unit.site(), edge::clock::now()).unwrap();
    assert!(
        found[0].message.contains("trial of 2 was cut off"),
        "{found:?}"
    );
    assert_eq!(unit.hostname(), "one");
    assert!(!trial.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_made_once_escrowed_sealed_and_commands_run_once() {
    let sky = Sky::start().await;
    let unit = Unit::born(&sky, &release(1));
    let daemon = unit.start();
    let mut wanted = settings("houma-1");
    wanted.backup = Some(lab::backup());
    sky.with(|s| s.configuration = Some(configuration(&unit, 1, wanted)));
    eventually("the escrow", || sky.with(|s| s.escrow.is_some())).await;
    let sealed = sky.with(|s| s.escrow.clone().unwrap());
    assert_eq!(sealed.version, 1);
    assert!(!sealed.age.contains("hurricane"));
    let opened = age::decrypt(&sky.recovery, sealed.age.as_bytes()).unwrap();
    assert!(String::from_utf8(opened).unwrap().contains("hurricane"));
    eventually("no more escrow", || {
        sky.seen(|c| c.escrow.is_none() && c.backup.is_some())
    })
    .await;
    assert_eq!(
        unit.log("leap-backup")
            .iter()
            .filter(|line| *line == "init")
            .count(),
        1
    );
    assert!(
        unit.log("systemctl")
            .contains(&"start leap-backup.service".to_owned())
    );

    let command = UnitCommand {
        id: "c0ffee".into(),
        unit: unit.name(),
        action: Action::BackUp { source: None },
        issued: edge::clock::now(),
        expires: jiff::Timestamp::MAX,
    };
    sky.with(|s| s.commands = vec![lab::operator().sign(&command)]);
    eventually("the report", || sky.with(|s| !s.reports.is_empty())).await;
    let report = sky.with(|s| s.reports[0].clone());
    assert_eq!(report.outcome, CommandOutcome::Done);
    assert_eq!(report.detail, serde_json::json!({"ok": true}));
    // The sky goes on sending it, over a restart too.
    daemon.stop().await;
    let daemon = unit.start();
    let seen = sky.with(|s| s.check_ins.len());
    eventually("more check-ins", || {
        sky.with(|s| s.check_ins.len() > seen + 2)
    })
    .await;
    let runs = unit
        .log("leap-backup")
        .iter()
        .filter(|line| *line == "--json run")
        .count();
    assert_eq!(runs, 1);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reborn_unit_waits_for_its_secrets_and_attaches() {
    let sky = Sky::start().await;
    let unit = Unit::born(&sky, &release(1));
    let mut wanted = settings("houma-1");
    wanted.backup = Some(lab::backup());
    sky.with(|s| {
        s.escrow_version = Some(1);
        s.configuration = Some(configuration(&unit, 1, wanted));
    });
    let daemon = unit.start();
    eventually("waiting", || {
        unit.state().contains("have not come from the escrow")
    })
    .await;
    assert_eq!(
        unit.log("leap-backup")
            .iter()
            .filter(|line| *line == "init")
            .count(),
        0
    );
    sky.with(|s| s.secrets = Some(unit.seal_to_device(1)));
    eventually("ready", || unit.state().contains("ready")).await;
    let calls = unit.log("leap-backup");
    assert!(calls.contains(&"attach --lazy".to_owned()), "{calls:?}");
    assert!(!calls.contains(&"init".to_owned()), "{calls:?}");
    eventually("told", || last(&sky).secrets_version == Some(1)).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fenced_machine_stops_everything() {
    let sky = Sky::start().await;
    let unit = Unit::born(&sky, &release(1));
    sky.with(|s| {
        s.fenced = true;
        s.configuration = Some(configuration(&unit, 1, settings("houma-1")));
    });
    let daemon = unit.start();
    let mark = unit.at("/run/leapserv/fenced");
    eventually("the mark", || mark.exists()).await;
    eventually("backups stopped", || {
        unit.log("systemctl")
            .contains(&"stop leap-backup.service".to_owned())
    })
    .await;
    assert_eq!(unit.hostname(), "leapserv");
    assert_eq!(sky.with(|s| s.check_ins.len()), 1, "it calls slowly");
    daemon.stop().await;
}

/// Ends the unit's first boot well: the gate has passed and systemd has blessed the entry.
fn bless(unit: &Unit) {
    let esp = unit.site().esp();
    for entry in esp.entries().unwrap() {
        esp.rename(&entry.path(), &entry.blessed().path()).unwrap();
    }
}

fn offer(sky: &Sky, release: &Release, pointer_version: u64) {
    sky.publish(release, pointer_version);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_goes_on_after_a_power_cut_and_one_that_fails_is_not_tried_again() {
    let sky = Sky::start().await;
    let (one, two) = (release(1), release(2));
    let mut unit = Unit::born(&sky, &one);
    sky.with(|s| s.configuration = Some(configuration(&unit, 1, settings("houma-1"))));
    offer(&sky, &two, 7);

    // Before the first boot has proven itself the other slot is left alone.
    let daemon = unit.start();
    eventually("not yet", || {
        sky.seen(|c| {
            c.update
                .problem
                .as_ref()
                .is_some_and(|p| p.contains("health gate"))
        })
    })
    .await;
    bless(&unit);

    // Power goes when 20 of the 24 segments have been sent.
    sky.with(|s| s.hang_after = Some(20 << 20));
    eventually("a part is written", || {
        sky.seen(|c| c.update.segments_done >= 16)
    })
    .await;
    daemon.stop().await;
    assert_eq!(unit.entries(), ["leapserv_2026.11.1.efi"]);

    sky.with(|s| {
        s.hang_after = None;
        s.check_ins.clear();
        s.bytes_sent = 0;
    });
    unit.restart();
    let daemon = unit.start();
    eventually("restart", || {
        unit.log("systemctl").contains(&"reboot".to_owned())
    })
    .await;
    assert!(sky.seen(|c| c.update.segments_resumed >= 16), "not resumed");
    assert!(sky.with(|s| s.bytes_sent) < 12 << 20, "fetched again");
    assert!(sky.seen(|c| c.update.state == "restarting"));
    daemon.stop().await;

    // Seen from outside: slot B holds release 2, and its entry has its tries.
    assert_eq!(
        unit.entries(),
        ["leapserv_2026.11.2+3.efi", "leapserv_2026.11.1.efi"]
    );
    let mut disk = Disk::open(&unit.disk).unwrap();
    let layout = slots::gpt::read(&mut disk).unwrap();
    assert_eq!(layout.slot_of(&two.manifest.root_hash), Some(Slot::B));
    assert_eq!(layout.slot_of(&one.manifest.root_hash), Some(Slot::A));
    for (slot, release) in [(Slot::A, &one), (Slot::B, &two)] {
        let verified = release.verified(&sky.trust);
        for (part, content) in [
            (Part::Root(slot), slots::writer::Content::Root),
            (Part::Verity(slot), slots::writer::Content::Verity),
        ] {
            let place = layout.partition(part);
            let image = slots::writer::Image::of(&verified, content).unwrap();
            let mut window = Window::new(&mut disk, place.start, place.size);
            slots::writer::verify(image, &mut window).unwrap();
        }
    }

    // It boots three times, its gate fails, and boot counting goes back.
    let esp = unit.site().esp();
    esp.rename(
        "EFI/Linux/leapserv_2026.11.2+3.efi",
        "EFI/Linux/leapserv_2026.11.2+0-3.efi",
    )
    .unwrap();
    let gate = serde_json::json!({"last": null, "failed": {"2026.11.2": "health.d/pump: dry"}});
    fs::write(unit.site().state("gate.json"), gate.to_string()).unwrap();
    sky.with(|s| s.check_ins.clear());
    unit.restart();
    let daemon = unit.start();
    eventually("the reason", || {
        sky.seen(|c| {
            c.update
                .rejected
                .iter()
                .any(|one| one.reason == "health.d/pump: dry")
        })
    })
    .await;
    eventually("the refusal", || {
        sky.seen(|c| {
            c.update
                .problem
                .as_ref()
                .is_some_and(|p| p.contains("given up"))
        })
    })
    .await;
    let reboots = unit
        .log("systemctl")
        .iter()
        .filter(|line| *line == "reboot")
        .count();
    assert_eq!(reboots, 1);

    // An older pointer with a good signature is a replay.
    offer(&sky, &release(3), 6);
    let seen = sky.with(|s| s.check_ins.len());
    eventually("more check-ins", || {
        sky.with(|s| s.check_ins.len() > seen + 2)
    })
    .await;
    assert_eq!(unit.entries().len(), 2);

    // A newer release takes the place of the bad one.
    offer(&sky, &release(3), 8);
    eventually("release 3", || {
        unit.log("systemctl")
            .iter()
            .filter(|line| *line == "reboot")
            .count()
            == 2
    })
    .await;
    assert_eq!(
        unit.entries(),
        ["leapserv_2026.11.3+3.efi", "leapserv_2026.11.1.efi"]
    );
    assert!(!unit.at("/efi/leapserv/releases/2026.11.2").exists());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_is_not_as_signed_never_gets_an_entry() {
    let sky = Sky::start().await;
    let unit = Unit::born(&sky, &release(1));
    bless(&unit);
    sky.with(|s| s.configuration = Some(configuration(&unit, 1, settings("houma-1"))));
    // The sky itself is hostile: another manifest than the one that it points to.
    let mut forged = release(2);
    forged.bytes = release(3).bytes;
    sky.publish_as(&forged, 1, release(2).digest());
    let daemon = unit.start();
    eventually("refusal", || {
        sky.seen(|c| {
            c.update
                .problem
                .as_ref()
                .is_some_and(|p| p.contains("SHA-256"))
        })
    })
    .await;
    // The manifest is true and the kernel is not.
    let mut other = release(2);
    other.files.insert("leapserv.efi".into(), b"evil".to_vec());
    sky.with(|s| s.check_ins.clear());
    sky.publish(&other, 2);
    eventually("the slot is written", || {
        sky.seen(|c| c.update.segments_done >= 24)
    })
    .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(unit.entries(), ["leapserv_2026.11.1.efi"]);
    assert!(!unit.log("systemctl").contains(&"reboot".to_owned()));
    daemon.stop().await;
}

#[test]
fn only_what_is_signed_is_activated() {
    let sky = Sky::offline();
    let unit = Unit::born(&sky, &release(1));
    let activate = || updater::activate::activate(&unit.site(), edge::clock::now()).unwrap();
    let found = activate();
    assert!(found.iter().all(|one| one.ok), "{found:?}");
    let component = unit.at("/run/extensions/leap-backup/image");
    let layer = unit.at("/run/confexts/leap-customer/image");
    assert_eq!(
        fs::read(&component).unwrap(),
        b"backup engine 1 for this system"
    );
    assert_eq!(fs::read(&layer).unwrap(), b"layer");
    assert_eq!(unit.log("systemd-sysext"), ["refresh"]);
    assert_eq!(unit.log("systemd-confext"), ["refresh"]);

    fs::write(
        unit.at("/efi/leapserv/releases/2026.11.1/components/backup.raw"),
        b"evil",
    )
    .unwrap();
    fs::write(unit.at("/efi/leapserv/customer/layer.raw"), b"evil!").unwrap();
    let found = activate();
    let bad: Vec<_> = found
        .iter()
        .filter(|one| !one.ok)
        .map(|one| one.name.as_str())
        .collect();
    assert_eq!(bad, ["components", "customer-layer"]);
    assert!(!component.exists() && !layer.exists());

    // Another unit's customer.
    fs::write(unit.at("/efi/leapserv/customer/layer.raw"), b"layer").unwrap();
    fs::write(
        unit.at("/efi/leapserv/customer/layer.json"),
        lab::layer("acme"),
    )
    .unwrap();
    let found = activate();
    assert!(found[2].message.contains("made for acme"), "{found:?}");
}

#[test]
fn an_entry_that_waits_for_its_restart_is_pending() {
    let sky = Sky::offline();
    let unit = Unit::born(&sky, &release(1));
    let state = unit.site().esp().entries().unwrap()[0].state();
    assert_eq!(state, EntryState::Pending { left: 3 });
}
