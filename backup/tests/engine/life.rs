//! A unit's backups from the first run to a restore on another machine.

use std::fs;
use std::path::Path;

use edge::runner::Tool;
use serde_json::json;

use crate::lab::{Lab, UNIT, gallery, restic, source, tree, wait_for};

#[test]
fn gallery_survives_loss_of_a_photo_and_of_the_unit() {
    let lab = Lab::new();
    let sshd = lab.sshd();
    let photos = lab.at("gallery");
    gallery(&photos, 300);
    sshd.give(&photos);
    let before = tree(&photos);
    let (north, south) = (lab.vault("north"), lab.vault("south"));

    // Set up: the unit makes its own secrets and shows its public key.
    let unit = lab.machine("unit", 1);
    unit.configure(
        json!([source("gallery", &sshd, sshd.port, &photos)]),
        &[&north, &south],
        json!({}),
    );
    let made = unit.done(&["init"]);
    assert_eq!(made["secrets_made"], true);
    sshd.allow(made["ssh_public_key"].as_str().unwrap());

    // First run: complete, in both vaults.
    let first = unit.done(&["run"]);
    let files = before
        .values()
        .filter(|leaf| !matches!(leaf, crate::lab::Leaf::Folder))
        .count();
    assert_eq!(first["sources"][0]["files"], json!(files));
    assert_eq!(first["sources"][0]["partial"], false);
    assert_eq!(first["copies_complete"], 2);
    let id = first["sources"][0]["snapshot"].as_str().unwrap().to_owned();

    // Second run: nothing changed, nothing is read or sent again but the snapshot.
    let second = unit.done(&["run"]);
    assert_eq!(second["sources"][0]["files"], json!(files));
    let sent = second["copies"][0]["bytes_sent"].as_u64().unwrap();
    assert!(sent < 20_000, "{sent} bytes for an unchanged gallery");

    // Debian's restic opens the local repository and both copies as they lie.
    for repository in [unit.repository(), north.place(), south.place()] {
        let said = restic(&repository, &unit, &["check", "--read-data"]);
        assert!(said.contains("no errors were found"), "{said}");
    }
    let by_restic = lab.at("by-restic");
    let target = by_restic.to_str().unwrap();
    restic(&south.place(), &unit, &["restore", &id, "--target", target]);
    assert_eq!(
        tree(&by_restic.join(photos.strip_prefix("/").unwrap())),
        before
    );

    // … and over the wire, straight from the vault.
    let (certificate, key) = lab.enrol(UNIT, 1);
    fs::write(lab.at("client.pem"), format!("{certificate}\n{key}")).unwrap();
    let over_rest = Tool::new("restic")
        .args(["--no-cache", "--no-lock", "--cacert"])
        .arg(lab.at("ca.pem"))
        .arg("--tls-client-cert")
        .arg(lab.at("client.pem"))
        .args(["-r", &format!("rest:{}/{UNIT}/", north.url), "check"])
        .env(
            "RESTIC_PASSWORD",
            unit.secrets()["repository_password"].as_str().unwrap(),
        )
        .text()
        .unwrap();
    assert!(over_rest.contains("no errors were found"), "{over_rest}");

    // A photo is deleted on the server and comes back, in place.
    fs::remove_file(photos.join("2017/IMG_0002.jpg")).unwrap();
    fs::write(photos.join("2018/IMG_0003.jpg"), b"overwritten by mistake").unwrap();
    for photo in ["2017/IMG_0002.jpg", "2018/IMG_0003.jpg"] {
        let restored = unit.done(&["restore", "--path", photo, "--to", "source"]);
        assert_eq!(restored["files"], 1);
    }
    assert_eq!(tree(&photos), before);

    // Into another folder of the server, from a vault.
    let other = photos.join("restored");
    let back = [
        "restore",
        "--from",
        "north",
        "--to",
        "source",
        "--target-path",
    ];
    let restored = unit.done(&[&back[..], &[other.to_str().unwrap()]].concat());
    assert_eq!(restored["files"], json!(files - 1));
    assert_eq!(restored["links"], 1);
    assert_eq!(tree(&other), before);
    fs::remove_dir_all(&other).unwrap();

    // The health gate's question.
    assert_eq!(unit.done(&["canary"])["ok"], true);
    let status = unit.done(&["status"]);
    assert_eq!(status["snapshots"].as_array().unwrap().len(), 2);
    assert_eq!(
        status["snapshots"][0]["copies"],
        json!(["local", "north", "south"])
    );
    assert_eq!(status["problem"], json!(null));
    assert!(status["canary_proven"].is_string());

    // The machine dies. Another one gets the secrets from the escrow.
    let secrets = fs::read(unit.at("secrets/backup.json")).unwrap();
    let password_holder = unit;
    let newcomer = lab.machine("newcomer", 2);
    newcomer.configure(
        json!([source("gallery", &sshd, sshd.port, &photos)]),
        &[&north, &south],
        json!({}),
    );
    fs::create_dir_all(newcomer.at("secrets")).unwrap();
    fs::write(newcomer.at("secrets/backup.json"), secrets).unwrap();

    // A second repository would split the unit's history.
    let refused = newcomer.ask(&["init"]);
    assert_eq!(refused.code, 5, "{refused:?}");
    assert!(refused.stderr.contains("attach"), "{refused:?}");

    // It restores before its disk is filled …
    let attached = newcomer.done(&["attach", "--lazy"]);
    assert_eq!(attached["complete"], false);
    assert_eq!(attached["snapshots"], 2);
    assert_eq!(newcomer.done(&["canary"])["ok"], true);
    let early = lab.at("early");
    newcomer.done(&["restore", "--path", "2015", "--to", early.to_str().unwrap()]);
    assert!(tree(&early).len() >= 30);

    // … and the whole gallery from a destination, byte for byte.
    let whole = lab.at("whole");
    let to = whole.to_str().unwrap();
    newcomer.done(&["restore", "--from", "south", "--to", to]);
    assert_eq!(tree(&whole), before);

    // The disk is filled, and backups go on as if nothing had happened.
    assert_eq!(newcomer.done(&["attach"])["complete"], true);
    let third = newcomer.done(&["run"]);
    assert_eq!(third["ok"], true);
    assert!(third["sources"][0]["added"].as_u64().unwrap() < 50_000);
    let said = restic(&newcomer.repository(), &newcomer, &["check", "--read-data"]);
    assert!(said.contains("no errors were found"), "{said}");

    // The dead machine wakes: the vaults have seen a higher incarnation.
    let woken = password_holder.ask(&["replicate"]);
    assert_eq!(woken.code, 1, "{woken:?}");
    let problem = woken.json["copies"][0]["problem"].as_str().unwrap();
    assert!(problem.contains("fenced"), "{problem}");
}

#[test]
fn one_vault_down_is_told_and_caught_up_later() {
    let lab = Lab::new();
    let sshd = lab.sshd();
    let photos = lab.at("gallery");
    gallery(&photos, 20);
    sshd.give(&photos);
    let (north, south) = (lab.vault("north"), lab.vault("south"));
    south.stop();
    let unit = lab.machine("unit", 1);
    let sources = json!([source("gallery", &sshd, sshd.port, &photos)]);
    unit.configure(
        sources.clone(),
        &[&north, &south],
        json!({"copies_required": 1}),
    );
    let made = unit.done(&["init"]);
    sshd.allow(made["ssh_public_key"].as_str().unwrap());

    // One copy is enough here, so the run is good, and the other is told.
    let ran = unit.done(&["run"]);
    assert_eq!(ran["copies_complete"], 1);
    assert!(ran["copies"][1]["problem"].is_string());
    let rows = unit.done(&["snapshots"]);
    assert_eq!(rows[0]["copies"], json!(["local", "north"]));

    // It comes back, elsewhere, with what it had.
    let south = lab.vault("south");
    unit.configure(sources, &[&north, &south], json!({}));
    let caught_up = unit.done(&["replicate"]);
    assert_eq!(caught_up["copies_complete"], 2);
    assert_eq!(
        unit.done(&["snapshots", "--from", "south"])[0]["id"],
        ran["sources"][0]["snapshot"]
    );
    let nothing_more = unit.done(&["replicate"]);
    assert_eq!(nothing_more["copies"][1]["files_sent"], 0);
}

#[test]
fn mistakes_get_one_clear_message() {
    let lab = Lab::new();
    let unit = lab.machine("unit", 1);
    let early = unit.ask(&["run"]);
    assert_eq!(early.code, 4, "{early:?}");
    assert!(
        early.stderr.contains("no backup configuration"),
        "{early:?}"
    );
    unit.configure(json!([]), &[], json!({}));
    let early = unit.ask(&["run"]);
    assert_eq!(early.code, 4, "{early:?}");
    assert!(
        early.stderr.contains("hint: run leap-backup init"),
        "{early:?}"
    );
    unit.done(&["init"]);
    let unknown = unit.ask(&["run", "--source", "books"]);
    assert_eq!(unknown.code, 2, "{unknown:?}");
    let unknown = unit.ask(&["restore", "--from", "west", "--to", "/x"]);
    assert_eq!(unknown.code, 2, "{unknown:?}");
    assert!(unknown.stderr.contains("west"), "{unknown:?}");
    assert!(!Path::new("/x").exists());
    fs::write(unit.at("backup/config.json"), "{\"sources\": 3}").unwrap();
    let bad = unit.ask(&["run"]);
    assert_eq!(bad.code, 3, "{bad:?}");
    assert!(bad.stderr.contains("config.json"), "{bad:?}");
}

#[test]
fn daemon_backs_up_what_is_due_and_fills_an_attached_repository() {
    let lab = Lab::new();
    let sshd = lab.sshd();
    let photos = lab.at("gallery");
    gallery(&photos, 20);
    sshd.give(&photos);
    let north = lab.vault("north");
    let sources = json!([source("gallery", &sshd, sshd.port, &photos)]);
    let hourly = json!({"schedule": {"every_minutes": 60}});
    let unit = lab.machine("unit", 1);

    // The daemon waits for a unit that is not set up, and begins by itself when it is.
    let mut daemon = unit.start(&["serve"]);
    unit.configure(sources.clone(), &[&north], hourly.clone());
    let made = unit.done(&["init"]);
    sshd.allow(made["ssh_public_key"].as_str().unwrap());
    let copies =
        |unit: &crate::lab::Machine| unit.done(&["status"])["snapshots"][0]["copies"].clone();
    wait_for("the first backup", || {
        copies(&unit) == json!(["local", "north"])
    });
    terminate(&mut daemon);
    assert_eq!(unit.done(&["snapshots"]).as_array().unwrap().len(), 1);

    let newcomer = lab.machine("newcomer", 2);
    newcomer.configure(sources, &[&north], hourly);
    fs::create_dir_all(newcomer.at("secrets")).unwrap();
    fs::copy(
        unit.at("secrets/backup.json"),
        newcomer.at("secrets/backup.json"),
    )
    .unwrap();
    newcomer.done(&["attach", "--lazy"]);
    let mut daemon = newcomer.start(&["serve"]);
    // Nothing ran on this machine yet, so after filling it backs up at once.
    wait_for("the second backup", || {
        newcomer.done(&["snapshots"]).as_array().unwrap().len() == 2
    });
    terminate(&mut daemon);
    let said = restic(&newcomer.repository(), &newcomer, &["check", "--read-data"]);
    assert!(said.contains("no errors were found"), "{said}");
}

/// Stops a daemon as the service manager does; it must not take long.
fn terminate(daemon: &mut std::process::Child) {
    Tool::new("kill")
        .arg(daemon.id().to_string())
        .run()
        .unwrap();
    wait_for("the daemon to stop", || {
        daemon.try_wait().unwrap().is_some()
    });
    assert!(daemon.wait().unwrap().success());
}

#[test]
fn pruned_repository_stays_sound_here_and_offsite() {
    let lab = Lab::new();
    let sshd = lab.sshd();
    let photos = lab.at("gallery");
    gallery(&photos, 20);
    sshd.give(&photos);
    let north = lab.vault("north");
    let unit = lab.machine("unit", 1);
    unit.configure(
        json!([source("gallery", &sshd, sshd.port, &photos)]),
        &[&north],
        json!({"retention": {"last": 1, "daily": 0, "weekly": 0, "monthly": 0}}),
    );
    let made = unit.done(&["init"]);
    sshd.allow(made["ssh_public_key"].as_str().unwrap());
    unit.done(&["run"]);
    // Most of it goes, and the last prune was more than a week ago.
    fs::remove_file(photos.join("large.tif")).unwrap();
    fs::remove_dir_all(photos.join("2015")).unwrap();
    let state = unit.at("backup/state.json");
    let mut then: serde_json::Value = serde_json::from_slice(&fs::read(&state).unwrap()).unwrap();
    then["pruned"] = json!("2026-01-01T00:00:00Z");
    fs::write(&state, then.to_string()).unwrap();
    let ran = unit.done(&["run"]);
    assert_eq!(ran["forgotten"], 1);
    let now: serde_json::Value = serde_json::from_slice(&fs::read(&state).unwrap()).unwrap();
    assert_ne!(now["pruned"], then["pruned"]);
    for repository in [unit.repository(), north.place()] {
        let said = restic(&repository, &unit, &["check", "--read-data"]);
        assert!(said.contains("no errors were found"), "{said}");
    }
    // The vault keeps what the unit forgot: a thief of the unit cannot shorten the past.
    assert_eq!(unit.done(&["snapshots"]).as_array().unwrap().len(), 1);
    let offsite = unit.done(&["snapshots", "--from", "north"]);
    assert_eq!(offsite.as_array().unwrap().len(), 2);
}

/// Prints the numbers that `docs/benchmarks.md` keeps: run it with `--run-ignored only`.
#[test]
#[ignore = "measures; it asserts nothing that another test does not"]
fn numbers() {
    let lab = Lab::new();
    let sshd = lab.sshd();
    let photos = lab.at("gallery");
    gallery(&photos, 600);
    sshd.give(&photos);
    let (north, south) = (lab.vault("north"), lab.vault("south"));
    let unit = lab.machine("unit", 1);
    let sources = json!([source("gallery", &sshd, sshd.port, &photos)]);
    unit.configure(sources.clone(), &[&north, &south], json!({}));
    let made = unit.done(&["init"]);
    sshd.allow(made["ssh_public_key"].as_str().unwrap());
    let first = unit.done(&["run"]);
    let second = unit.done(&["run"]);
    let to = |name: &str| lab.at(name).to_str().unwrap().to_owned();
    let local = unit.done(&["restore", "--to", &to("a")]);
    let far = unit.done(&["restore", "--from", "north", "--to", &to("b")]);
    let back = unit.done(&["restore", "--to", "source"]);
    let peak = Tool::new("/usr/bin/env")
        .args(["sh", "-c"])
        .arg(format!(
            "{} & pid=$!; peak=0; while kill -0 $pid 2>/dev/null; do \
             now=$(awk '/VmHWM/{{print $2}}' /proc/$pid/status 2>/dev/null); \
             [ \"${{now:-0}}\" -gt \"$peak\" ] && peak=$now; done; echo $peak >&2; wait $pid",
            unit.tool(&["restore", "--from", "north", "--to", &to("c")])
                .line()
        ))
        .command()
        .output()
        .unwrap();
    let newcomer = lab.machine("newcomer", 2);
    newcomer.configure(sources, &[&north, &south], json!({}));
    fs::create_dir_all(newcomer.at("secrets")).unwrap();
    fs::copy(
        unit.at("secrets/backup.json"),
        newcomer.at("secrets/backup.json"),
    )
    .unwrap();
    let attached = newcomer.done(&["attach"]);
    println!(
        "{}",
        json!({
            "files": first["sources"][0]["files"],
            "bytes": first["sources"][0]["bytes"],
            "first run": first["seconds"],
            "first run, source only": first["sources"][0]["seconds"],
            "unchanged run": second["seconds"],
            "restore from local": local["seconds"],
            "restore from vault": far["seconds"],
            "restore to source": back["seconds"],
            "attach": attached["seconds"],
            "peak KiB of a restore from a vault":
                String::from_utf8_lossy(&peak.stderr).trim(),
        })
    );
}
