//! What goes wrong on the way must be seen, and must not harm what is there.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use crate::lab::{
    Fate, Lab, Machine, Sshd, Wire, age, gallery, noise, restic, source, tree, wait_for,
};

/// A unit with a gallery of 100 photos on a file server, and no vaults.
fn setting(lab: &Lab) -> (Sshd, std::path::PathBuf, Machine) {
    let sshd = lab.sshd();
    let photos = lab.at("gallery");
    gallery(&photos, 100);
    sshd.give(&photos);
    let unit = lab.machine("unit", 1);
    unit.configure(
        json!([source("gallery", &sshd, sshd.port, &photos)]),
        &[],
        json!({"retention": {"last": 2}}),
    );
    let made = unit.done(&["init"]);
    sshd.allow(made["ssh_public_key"].as_str().unwrap());
    (sshd, photos, unit)
}

#[test]
fn unreadable_file_makes_the_snapshot_partial_and_it_never_counts() {
    let lab = Lab::new();
    let (_sshd, photos, unit) = setting(&lab);
    let whole = unit.done(&["run"]);
    let whole_id = whole["sources"][0]["snapshot"].clone();

    let secret = photos.join("2016/IMG_0001.jpg");
    fs::write(&secret, b"changed, so that it must be read").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).unwrap();
    fs::set_permissions(photos.join("2019"), fs::Permissions::from_mode(0o000)).unwrap();
    for _ in 0..3 {
        let ran = unit.ask(&["run"]);
        assert_eq!(ran.code, 1, "{ran:?}");
        let source = &ran.json["sources"][0];
        assert_eq!(source["partial"], true);
        // One file that does not open, one folder that does not list.
        assert_eq!(source["ledger"]["errors"], 2);
        let paths = source["ledger"]["entries"].to_string();
        assert!(
            paths.contains("IMG_0001.jpg") && paths.contains("2019"),
            "{paths}"
        );
    }

    // Three partial ones have not pushed the complete one out of "last 2" …
    let rows = unit.done(&["snapshots"]);
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), 4);
    assert_eq!(rows.iter().filter(|row| row["partial"] == true).count(), 3);
    // … "latest" is the complete one, and the unit says what is wrong.
    let to = lab.at("latest");
    let restored = unit.done(&["restore", "--to", to.to_str().unwrap()]);
    assert_eq!(restored["snapshot"], whole_id);
    let problem = unit.done(&["status"])["problem"].to_string();
    assert!(problem.contains("2 entries could not be read"), "{problem}");

    // When the cause is gone, the next run is complete and the partial ones go.
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).unwrap();
    fs::set_permissions(photos.join("2019"), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(unit.done(&["run"])["forgotten"], 3);
    assert_eq!(unit.done(&["status"])["problem"], json!(null));
}

#[test]
fn server_that_dies_in_the_middle_leaves_a_partial_snapshot() {
    let lab = Lab::new();
    let (sshd, photos, unit) = setting(&lab);
    let wire = Wire::lay(sshd.port, 3_000_000, Fate::Cut);
    let sources = |port| json!([source("gallery", &sshd, port, &photos)]);
    unit.configure(sources(wire.port), &[], json!({}));
    let ran = unit.ask(&["run"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    let source = &ran.json["sources"][0];
    assert_eq!(source["partial"], true, "{source}");
    assert!(source["ledger"]["connections_lost"].as_u64().unwrap() > 0);
    assert!(source["files"].as_u64().unwrap() < 103, "{source}");
    // No complete snapshot exists, so nothing is restored by default.
    let restored = unit.ask(&["restore", "--to", lab.at("x").to_str().unwrap()]);
    assert!(
        restored.stderr.contains("no complete snapshot"),
        "{restored:?}"
    );

    // The next run is whole, uses what came before, and is sound.
    unit.configure(sources(sshd.port), &[], json!({}));
    let again = unit.done(&["run"]);
    assert_eq!(again["sources"][0]["partial"], false);
    let bytes = again["sources"][0]["bytes"].as_u64().unwrap();
    assert!(again["sources"][0]["added"].as_u64().unwrap() < bytes);
    let said = restic(&unit.repository(), &unit, &["check", "--read-data"]);
    assert!(said.contains("no errors were found"), "{said}");
}

#[test]
fn killed_run_leaves_no_snapshot_and_the_retry_goes_on() {
    let lab = Lab::new();
    let (sshd, photos, unit) = setting(&lab);
    for large in 0..8 {
        fs::write(
            photos.join(format!("video-{large}.mp4")),
            noise(large + 1000, 8_000_000),
        )
        .unwrap();
    }
    age(&photos);
    sshd.give(&photos);
    let wire = Wire::lay(sshd.port, 60_000_000, Fate::Stall);
    let sources = |port| json!([source("gallery", &sshd, port, &photos)]);
    unit.configure(sources(wire.port), &[], json!({}));
    let packs = || {
        fs::read_dir(unit.repository().join("data")).map_or(0, |shards| {
            shards
                .flat_map(|shard| fs::read_dir(shard.unwrap().path()).unwrap())
                .filter(|file| file.as_ref().unwrap().metadata().unwrap().len() > 1_000_000)
                .count()
        })
    };
    let mut child = unit.start(&["run"]);
    wait_for("the server to hang", || wire.carried() >= 60_000_000);
    wait_for("packs on the disk", || packs() >= 2);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(unit.done(&["snapshots"]), json!([]));

    unit.configure(sources(sshd.port), &[], json!({}));
    let ran = unit.done(&["run"]);
    let (bytes, added) = (&ran["sources"][0]["bytes"], &ran["sources"][0]["added"]);
    // What the killed run had written was found again and not written twice.
    assert!(
        added.as_u64().unwrap() + 20_000_000 < bytes.as_u64().unwrap(),
        "{added} of {bytes}"
    );
    let said = restic(&unit.repository(), &unit, &["check", "--read-data"]);
    assert!(said.contains("no errors were found"), "{said}");
    let to = lab.at("restored");
    unit.done(&["restore", "--to", to.to_str().unwrap()]);
    assert_eq!(tree(&to), tree(&photos));
}

#[test]
fn server_with_another_key_is_not_talked_to() {
    let lab = Lab::new();
    let (sshd, photos, unit) = setting(&lab);
    let other = Sshd::start(&lab.at("impostor"));
    let mut pinned = source("gallery", &sshd, other.port, &photos);
    unit.configure(json!([pinned]), &[], json!({}));
    let ran = unit.ask(&["run"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    let error = ran.json["sources"][0]["error"].as_str().unwrap();
    assert!(error.contains("host key is not the one pinned"), "{error}");
    assert!(error.contains("hint: it shows SHA256:"), "{error}");

    // A server that does not know the unit's key: the message holds the line to add.
    pinned = source("gallery", &sshd, sshd.port, &photos);
    unit.configure(json!([pinned]), &[], json!({}));
    sshd.allow("");
    let ran = unit.ask(&["run"]);
    let error = ran.json["sources"][0]["error"].as_str().unwrap();
    assert!(
        error.contains("authorized_keys on the server: ssh-ed25519 AAAA"),
        "{error}"
    );

    // A folder that is gone is no empty backup.
    let gone = source("gallery", &sshd, sshd.port, &lab.at("nowhere"));
    unit.configure(json!([gone]), &[], json!({}));
    sshd.allow(unit.done(&["init"])["ssh_public_key"].as_str().unwrap());
    let ran = unit.ask(&["run"]);
    let error = ran.json["sources"][0]["error"].as_str().unwrap();
    assert!(error.contains("No such file"), "{error}");
    assert_eq!(unit.done(&["snapshots"]), json!([]));
}

#[test]
fn source_that_is_suddenly_empty_is_partial() {
    let lab = Lab::new();
    let (_sshd, photos, unit) = setting(&lab);
    unit.done(&["run"]);
    fs::rename(&photos, lab.at("unmounted")).unwrap();
    fs::create_dir(&photos).unwrap();
    let ran = unit.ask(&["run"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert_eq!(ran.json["sources"][0]["partial"], true);
}

#[test]
fn file_changed_within_the_same_second_is_read_again() {
    let lab = Lab::new();
    let (_sshd, photos, unit) = setting(&lab);
    let note = photos.join("note");
    // Same size, same second: only its youth tells that it may have changed.
    let now = jiff::Timestamp::from_second(edge::clock::now().as_second()).unwrap();
    let write = |text: &[u8]| {
        fs::write(&note, text).unwrap();
        fs::set_permissions(&note, fs::Permissions::from_mode(0o644)).unwrap();
        fs::File::open(&note)
            .unwrap()
            .set_modified(now.into())
            .unwrap();
    };
    write(b"first!");
    unit.done(&["run"]);
    write(b"second");
    unit.done(&["run"]);
    let to = lab.at("note");
    unit.done(&["restore", "--path", "note", "--to", to.to_str().unwrap()]);
    assert_eq!(fs::read(to.join("note")).unwrap(), b"second");
}

#[test]
fn secrets_appear_in_no_output_and_no_state() {
    let lab = Lab::new();
    let (_sshd, _photos, unit) = setting(&lab);
    let secrets = unit.secrets();
    let private: String = secrets["ssh_key"]
        .as_str()
        .unwrap()
        .lines()
        .nth(1)
        .unwrap()
        .into();
    let output = unit
        .tool(&["-v", "-v", "-v", "run"])
        .command()
        .output()
        .unwrap();
    let mut texts = vec![output.stdout, output.stderr];
    for name in ["backup/state.json", "backup/config.json"] {
        texts.push(fs::read(unit.at(name)).unwrap());
    }
    for text in texts {
        let text = String::from_utf8_lossy(&text);
        let key: serde_json::Value =
            serde_json::from_str(secrets["repository_key"].as_str().unwrap()).unwrap();
        for secret in [
            secrets["repository_password"].as_str().unwrap(),
            key["encrypt"].as_str().unwrap(),
            &private,
        ] {
            assert!(!text.contains(secret));
        }
    }
}
